"""Distributed backdoor: each malicious client stamps its own part of one trigger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

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

PARTS = 4  # two bars above two bars, as published


class DistributedBackdoor(PoisoningAttack):
    """A trigger of four bars, of which each malicious client trains on one; all four are used at inference (DBA).

    The bars lie in two rows of two, `size` of the image's width long and `thickness` of its height thick,
    `gap` apart in both directions, from `offset` off the top left corner; each at least a pixel. The
    malicious client of rank r, in order of their numbers, stamps bar r mod 4: with fewer than four malicious
    clients some bars are never trained on. round(fraction n) of a client's n records get the bar and the
    target label, drawn among those of other classes (all of these where they are fewer). All channels are
    stamped. The attackers control their training: they run no client-side defence.

    Sizes are the authors' for CIFAR-10 by default: bars of 6 x 1 pixels, 3 apart, in 32 x 32. They poison as many
    records of every batch, those of the target class among them, and let an attacker who is alone train on all four
    bars. Their single-shot attack, whose update is scaled, is model-replacement with this backdoor.

    images (n, c, h, w) uint8 or float in [0, 1]. Raises PluginError where the bars do not fit the image or
    the target class does not exist. Costs O(n c h w).
    """

    name: ClassVar[str] = "dba"
    controls_training: ClassVar[bool] = True
    reference: ClassVar[Reference | None] = Reference(
        title="DBA: Distributed Backdoor Attacks against Federated Learning",
        authors="Xie, Huang, Chen, Li",
        venue="ICLR",
        year=2020,
        url="https://openreview.net/forum?id=rkgyS0VFvr",
    )

    target: int = Field(0, ge=0, description="class that the trigger should produce")
    fraction: float = Field(
        0.5, ge=0, le=1, description="share of the malicious client's records poisoned, at most"
    )
    size: float = Field(0.18, gt=0, le=0.5, description="length of a bar, as a share of the width")
    thickness: float = Field(0.04, gt=0, le=0.5, description="thickness of a bar, as a share of the height")
    gap: float = Field(0.08, ge=0, le=0.5, description="space between bars, as a share of the shorter side")
    offset: float = Field(
        0.0, ge=0, lt=1, description="distance from the corner, as a share of the shorter side"
    )
    value: float = Field(1.0, ge=0, le=1, description="brightness of the bars, in [0, 1] pixels")

    @property
    def backdoor_target(self) -> int | None:
        return self.target

    def check(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        check_class(self, "target", self.target, num_classes, NotApplicable)
        self.bars(*input_shape[1:], NotApplicable)

    def poison(self, data: ClientData, context: PoisonContext) -> ClientData:
        check_class(self, "target", self.target, context.num_classes)
        rank = context.malicious.index(context.client) if context.client in context.malicious else 0
        chosen = draw(data.labels != self.target, self.fraction, context)
        images = data.images.clone()
        images[chosen] = self._stamped(images[chosen], [rank % PARTS])
        return ClientData(images, data.labels.masked_fill(chosen, self.target))

    def trigger(self, x: Tensor) -> Tensor:
        return self._stamped(x.clone(), range(PARTS))

    def bars(
        self, height: int, width: int, error: type[HarnessError] = PluginError
    ) -> list[tuple[slice, slice]]:
        """Rows and columns of the four bars."""
        shorter = min(height, width)
        long, thick = max(1, round(self.size * width)), max(1, round(self.thickness * height))
        gap, first = max(1, round(self.gap * shorter)), round(self.offset * shorter)
        if first + 2 * long + gap > width or first + 2 * thick + gap > height:
            raise error(f"dba: the bars do not fit images of {height}x{width}; use a smaller size or offset")
        return [
            (slice(top, top + thick), slice(left, left + long))
            for top in (first, first + thick + gap)
            for left in (first, first + long + gap)
        ]

    def _stamped(self, images: Tensor, parts: Sequence[int]) -> Tensor:
        """The same tensor with these bars written into it."""
        found = self.bars(*images.shape[-2:])
        for part in parts:
            rows, columns = found[part]
            images[..., rows, columns] = self.value if images.is_floating_point() else round(255 * self.value)
        return images


PLUGINS = (DistributedBackdoor,)
