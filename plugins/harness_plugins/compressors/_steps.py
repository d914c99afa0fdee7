"""What prunes step by step, training after each."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from harness.api import Field, ModelCompressor


class InSteps(ModelCompressor):
    """Takes away the share `ratio` in `steps` steps, each followed by `fine_tune_rounds` rounds of the federation."""

    ratio: float = Field(0.5, ge=0, lt=1, description="share taken away, in [0, 1)")
    steps: int = Field(1, ge=1, description="pruning steps; more than one needs fine_tune_rounds")
    fine_tune_rounds: int = Field(0, ge=0, description="federated rounds of training after each step")

    @model_validator(mode="after")
    def _steps_train(self) -> Self:
        if self.steps > 1 and not self.fine_tune_rounds:
            raise ValueError(f"{self.steps} steps without fine_tune_rounds are the same as one")
        return self

    @property
    def fine_tuning_rounds(self) -> int:
        return self.steps * self.fine_tune_rounds

    @property
    def fine_tunings(self) -> tuple[int, ...]:
        return (self.fine_tune_rounds,) * self.steps if self.fine_tune_rounds else ()
