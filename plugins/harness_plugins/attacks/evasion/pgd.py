"""Projected gradient descent, in the L-inf ball and in the L2 ball."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import model_validator

from harness.api import EvasionContext, Field, Reference, pgd
from harness_plugins.attacks.evasion._torchattacks import ZERO_GUARD, TorchattacksAttack

if TYPE_CHECKING:
    from torch import Tensor, nn


class PGD(TorchattacksAttack):
    """Projected gradient descent on the negative loss, within an L-inf ball and [0, 1].

    x_0 = clip(x + u, 0, 1), u uniform in [-eps, eps] per value (random start) or 0;
    x_{t+1} = clip(x + clip(x_t + alpha sign(grad CE(model(x_t), y)) - x, -eps, eps), 0, 1); returns x_steps.
    x (b, c, h, w) in [0, 1]. `steps` forward and backward passes a sample and restart. Inside a training loss (the
    functional form) there is one run, whatever `restarts`. Source: Madry et al. (2018),
    section 2; the default step 2.5 eps / steps, with which every point of the ball can reach its boundary, is
    the one the paper uses to compare radii.
    """

    name = "pgd"
    reference = Reference(
        title="Towards deep learning models resistant to adversarial attacks",
        authors="Madry, Makelov, Schmidt, Tsipras, Vladu",
        venue="ICLR",
        year=2018,
        url="https://arxiv.org/abs/1706.06083",
    )
    norm: ClassVar[str | None] = "linf"
    default_eps: ClassVar[float | None] = 8 / 255
    implementation: ClassVar[str] = "PGD"
    cross_entropy: ClassVar[bool] = True

    eps: float | None = Field(
        None, ge=0, le=1, description="L-inf radius in [0, 1] pixels; None: the threat's budget, else 8/255"
    )
    alpha: float | None = Field(
        None, gt=0, le=1, description="step size in [0, 1] pixels; None: 2.5 eps / steps"
    )
    steps: int = Field(20, ge=1, description="gradient steps")
    random_start: bool = Field(True, description="start at a uniformly random point of the ball, else at x")
    restarts: int = Field(
        1, ge=1, description="runs from new random starts, each on the samples that are still right"
    )

    @model_validator(mode="after")
    def _random(self) -> PGD:
        if self.restarts > 1 and not self.random_start:
            raise ValueError("restarts without random_start would all be the same run")
        return self

    @property
    def effort(self) -> int:
        """Gradient evaluations a sample, at most."""
        return self.steps * self.restarts

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, context: EvasionContext) -> Tensor:
        import torch

        result = super().perturb(model, x, y, context)
        for _ in range(self.restarts - 1):
            with torch.no_grad():
                left = (model(result).argmax(1) == y).nonzero().squeeze(1)
            if not len(left) or context.eps == 0:
                break
            result = result.index_copy(0, left, super().perturb(model, x[left], y[left], context).detach())
        return result

    def step_size(self, eps: float) -> float:
        """alpha, in [0, 1] pixels, at a radius."""
        return 2.5 * eps / self.steps if self.alpha is None else self.alpha

    def arguments(self, context: EvasionContext) -> dict[str, Any]:
        return {
            "eps": context.eps,
            "alpha": self.step_size(context.eps),
            "steps": self.steps,
            "random_start": self.random_start,
        }

    def functional(
        self, eps: float | None = None
    ) -> Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]:
        """The attack as a pure function (loss(x) -> (b,), x, key) -> x_adv; eps: the threat's budget."""
        radius = self.radius(eps)
        alpha = self.step_size(radius)

        def attack(loss: Callable[[Tensor], Tensor], x: Tensor, key: Tensor) -> Tensor:
            return pgd(loss, x, key, radius, alpha, self.steps, self.random_start)

        return attack


class PGDL2(TorchattacksAttack):
    """Projected gradient ascent in an L2 ball: normalised gradient steps, projected to the ball and [0, 1].

    x_{t+1} = clip(x + project(x_t + alpha g / ||g||_2 - x, eps), 0, 1). The default step is 2.5 eps / steps.
    """

    name = "pgd-l2"
    reference = PGD.reference
    implementation: ClassVar[str] = "PGDL2"
    cross_entropy: ClassVar[bool] = True
    norm: ClassVar[str | None] = "l2"
    default_eps: ClassVar[float | None] = 1.0
    eps: float | None = Field(
        None, ge=0, description="L2 radius in [0, 1] pixels; None: the threat's budget, else 1"
    )
    alpha: float | None = Field(None, gt=0, description="step size in [0, 1] pixels; None: 2.5 eps / steps")
    steps: int = Field(20, ge=1, description="gradient steps")
    random_start: bool = Field(True, description="start at a random point of the ball, else at x")

    @property
    def effort(self) -> int:
        return self.steps

    def arguments(self, context: EvasionContext) -> dict[str, Any]:
        assert context.eps is not None
        alpha = 2.5 * context.eps / self.steps if self.alpha is None else self.alpha
        return {
            "eps": context.eps, "alpha": alpha, "steps": self.steps, "random_start": self.random_start,
            "eps_for_division": ZERO_GUARD,
        }  # fmt: skip


PLUGINS = (PGD, PGDL2)
