"""Attacks built around a backdoor: what is poisoned and scored is the inner attack's business."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from harness.api import ClientData, Field, PoisonContext, PoisoningAttack, UpdateContext

if TYPE_CHECKING:
    from torch import Tensor

    from harness.api import GradientFn, Local, LogitsFn, LossFn


class WithBackdoor(PoisoningAttack):
    """Passes every hook on to `backdoor`; what an attack adds it overrides."""

    backdoor: PoisoningAttack = Field(
        "badnets", description="backdoor attack: what is poisoned, and to which class"
    )

    @model_validator(mode="after")
    def _has_target(self) -> Self:
        if self.backdoor.backdoor_target is None:
            raise ValueError(f"{self.backdoor.name} is no backdoor: use badnets, blended, dba or edge-case")
        return self

    @property
    def vectorises(self) -> bool:  # type: ignore[override]
        """Where the backdoor's own gradient does, or it has none."""
        return self.backdoor.vectorises or not self.backdoor.overrides("gradient")

    @property
    def couples_samples(self) -> bool:  # type: ignore[override]
        """As the backdoor does; what is built around it does not."""
        changed = any(map(self.backdoor.overrides, ("batch", "loss", "gradient")))
        return changed and self.backdoor.couples_samples

    def overrides(self, name: str) -> bool:
        """Passing a hook on is no hook."""
        return getattr(type(self), name) is not getattr(WithBackdoor, name) or self.backdoor.overrides(name)

    @property
    def backdoor_target(self) -> int | None:
        return self.backdoor.backdoor_target

    def check(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        self.backdoor.check(num_classes, input_shape)

    def poison(self, data: ClientData, context: PoisonContext) -> ClientData:
        return self.backdoor.poison(data, context)

    def trigger(self, x: Tensor) -> Tensor:
        return self.backdoor.trigger(x)

    def success_records(self, input_shape: tuple[int, int, int], root: Path | None) -> ClientData | None:
        return self.backdoor.success_records(input_shape, root)

    def batch(self, x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return self.backdoor.batch(x, y, key)

    def loss(self, loss: LossFn, logits: LogitsFn) -> LossFn:
        return self.backdoor.loss(loss, logits)

    def gradient(self, local: Local) -> GradientFn | None:
        return self.backdoor.gradient(local)

    def update(self, delta: Tensor, context: UpdateContext) -> Tensor:
        return self.backdoor.update(delta, context)
