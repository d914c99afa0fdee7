"""Label flipping."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import model_validator

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


class LabelFlip(PoisoningAttack):
    """Malicious clients train on wrong labels; the images stay.

    Modes, for a label y of k classes:
    pairwise: (y + 1) mod k; reverse: k - 1 - y (Fang et al., USENIX Security 2020), which leaves the
    middle class of an odd k as it is; random: one of the other k - 1 classes, uniformly;
    all-to-one: `target`, from every other class, or from `source` alone (the source -> target
    flips of Tolpegin et al.).

    round(fraction n) of the client's n records are drawn among those whose label the mode changes; all of
    these where they are fewer. Raises PluginError for fewer than two classes or a class that does not exist.
    Costs O(n).
    """

    name: ClassVar[str] = "label-flip"
    reference: ClassVar[Reference | None] = Reference(
        title="Data Poisoning Attacks Against Federated Learning Systems",
        authors="Tolpegin, Truex, Gursoy, Liu",
        venue="ESORICS",
        year=2020,
        url="https://arxiv.org/abs/2007.08432",
    )

    mode: Literal["pairwise", "reverse", "random", "all-to-one"] = Field(
        "pairwise", description="what a label becomes"
    )
    target: int | None = Field(
        None, ge=0, description="all-to-one: the class that labels become; null: class 0"
    )
    source: int | None = Field(
        None, ge=0, description="all-to-one: the only class flipped; null: every other one"
    )
    fraction: float = Field(
        1.0, ge=0, le=1, description="share of the malicious client's records flipped, at most"
    )

    @model_validator(mode="after")
    def _classes(self) -> Self:
        if self.mode != "all-to-one" and (self.target is not None or self.source is not None):
            raise ValueError(f"target and source are for mode all-to-one, not {self.mode}")
        if self.source is not None and self.source == (self.target or 0):
            raise ValueError(f"source and target are the same class, {self.source}")
        return self

    def check(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        self._check(num_classes, NotApplicable)

    def poison(self, data: ClientData, context: PoisonContext) -> ClientData:
        self._check(context.num_classes, PluginError)
        flipped = self._flipped(data.labels, context)
        eligible = flipped != data.labels
        if self.source is not None:
            eligible &= data.labels == self.source
        chosen = draw(eligible, self.fraction, context)
        return ClientData(data.images, flipped.where(chosen, data.labels))

    def _flipped(self, labels: Tensor, context: PoisonContext) -> Tensor:
        import torch

        k = context.num_classes
        if self.mode == "pairwise":
            return (labels + 1) % k
        if self.mode == "reverse":
            return k - 1 - labels
        if self.mode == "random":
            shift = torch.randint(1, k, labels.shape, generator=context.generator, device=labels.device)
            return ((labels + shift) % k).to(labels.dtype)
        return torch.full_like(labels, self.target or 0)

    def _check(self, num_classes: int, error: type[HarnessError]) -> None:
        if num_classes < 2:
            raise error(f"label-flip needs at least 2 classes, not {num_classes}")
        check_class(self, "target", self.target or 0, num_classes, error)
        check_class(self, "source", self.source or 0, num_classes, error)


PLUGINS = (LabelFlip,)
