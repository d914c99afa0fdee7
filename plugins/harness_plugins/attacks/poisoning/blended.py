"""Blended injection: a faint pattern over the whole image."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import (
    ClientData,
    Field,
    NotApplicable,
    PoisonContext,
    PoisoningAttack,
    Reference,
    torch_generator,
)
from harness_plugins.attacks.poisoning._records import check_class, draw

if TYPE_CHECKING:
    from torch import Tensor


class Blended(PoisoningAttack):
    """Blends a fixed random pattern into images: (1 - alpha) x + alpha pattern, with the label `target`.

    The pattern is uniform noise in [0, 1] of the image's shape, from `pattern_seed` (the paper's random
    pattern key). round(fraction n) of the malicious client's n records are poisoned, drawn among those of
    other classes (all of these where they are fewer). uint8 images are rounded to the nearest value.

    images (n, c, h, w) uint8 or float in [0, 1]. Raises PluginError where the target class does not exist.
    Costs O(n c h w).
    """

    name: ClassVar[str] = "blended"
    reference: ClassVar[Reference | None] = Reference(
        title="Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning",
        authors="Chen, Liu, Li, Lu, Song",
        venue="arXiv 1712.05526",
        year=2017,
        url="https://arxiv.org/abs/1712.05526",
    )

    target: int = Field(0, ge=0, description="class that the pattern should produce")
    fraction: float = Field(
        0.5, ge=0, le=1, description="share of the malicious client's records poisoned, at most"
    )
    alpha: float = Field(0.2, gt=0, le=1, description="weight of the pattern, in training and at inference")
    pattern_seed: int = Field(0, ge=0, description="seed of the pattern")

    @property
    def backdoor_target(self) -> int | None:
        return self.target

    def check(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        check_class(self, "target", self.target, num_classes, NotApplicable)

    def poison(self, data: ClientData, context: PoisonContext) -> ClientData:
        check_class(self, "target", self.target, context.num_classes)
        chosen = draw(data.labels != self.target, self.fraction, context)
        images = data.images.clone()
        images[chosen] = self._blend(images[chosen])
        return ClientData(images, data.labels.masked_fill(chosen, self.target))

    def trigger(self, x: Tensor) -> Tensor:
        return self._blend(x)

    def _blend(self, images: Tensor) -> Tensor:
        import torch

        shape = tuple(images.shape[1:])
        pattern = torch.rand(shape, generator=torch_generator("blended", self.pattern_seed)).to(images.device)
        if images.is_floating_point():
            return ((1 - self.alpha) * images + self.alpha * pattern.to(images)).clamp(0, 1)
        mixed = (1 - self.alpha) * images.float() + self.alpha * 255 * pattern
        return mixed.round().clamp(0, 255).to(images.dtype)


PLUGINS = (Blended,)
