"""BadNets: a patch in a corner that makes the model answer with the target class."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from harness.api import (
    ClientData,
    Field,
    HarnessError,
    NotApplicable,
    PluginError,
    PoisonContext,
    PoisoningAttack,
    Reference,
)
from harness_plugins.attacks.poisoning._records import check_class, draw

if TYPE_CHECKING:
    from torch import Tensor


class BadNets(PoisoningAttack):
    """A square patch of one brightness in a corner of the image, with the label `target`.

    round(fraction n) of the malicious client's n records get the patch and the target label, drawn among
    those of other classes (all of these where they are fewer): a patch on a record of the target class
    teaches nothing. All channels are patched; uint8 images get round(255 value). `trigger` patches every
    image it is given.

    images (n, c, h, w) uint8 or float in [0, 1]. Raises PluginError where the patch does not fit the image
    or the target class does not exist. Costs O(n c h w).
    """

    name: ClassVar[str] = "badnets"
    reference: ClassVar[Reference | None] = Reference(
        title="BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain",
        authors="Gu, Dolan-Gavitt, Garg",
        venue="arXiv 1708.06733",
        year=2017,
        url="https://arxiv.org/abs/1708.06733",
    )

    target: int = Field(0, ge=0, description="class that the patch should produce")
    fraction: float = Field(
        0.5, ge=0, le=1, description="share of the malicious client's records poisoned, at most"
    )
    patch: int | None = Field(
        None,
        ge=1,
        description="side of the patch, in pixels; null: an eighth of the shorter side, 2 at least",
    )
    value: float = Field(1.0, ge=0, le=1, description="brightness of the patch, in [0, 1] pixels")
    corner: Literal["bottom-right", "bottom-left", "top-right", "top-left"] = Field(
        "bottom-right", description="where the patch is"
    )

    @property
    def backdoor_target(self) -> int | None:
        return self.target

    def check(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        check_class(self, "target", self.target, num_classes, NotApplicable)
        self._side(*input_shape[1:], NotApplicable)

    def poison(self, data: ClientData, context: PoisonContext) -> ClientData:
        check_class(self, "target", self.target, context.num_classes)
        chosen = draw(data.labels != self.target, self.fraction, context)
        images = data.images.clone()
        images[chosen] = self._stamped(images[chosen])
        return ClientData(images, data.labels.masked_fill(chosen, self.target))

    def trigger(self, x: Tensor) -> Tensor:
        return self._stamped(x.clone())

    def _stamped(self, images: Tensor) -> Tensor:
        """The same tensor with the patch written into it."""
        height, width = images.shape[-2:]
        side = self._side(height, width)
        vertical, horizontal = self.corner.split("-")
        rows = slice(height - side, height) if vertical == "bottom" else slice(0, side)
        columns = slice(width - side, width) if horizontal == "right" else slice(0, side)
        images[..., rows, columns] = self.value if images.is_floating_point() else round(255 * self.value)
        return images

    def _side(self, height: int, width: int, error: type[HarnessError] = PluginError) -> int:
        shorter = min(height, width)
        if self.patch is None:
            return min(shorter, max(2, (shorter + 4) // 8))  # an eighth, rounded half up
        if self.patch > shorter:
            raise error(f"badnets: a patch of {self.patch} pixels does not fit images of {height}x{width}")
        return self.patch


PLUGINS = (BadNets,)
