"""The fast gradient sign method."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from harness.api import EvasionContext, Field, Reference, fgsm
from harness_plugins.attacks.evasion._torchattacks import TorchattacksAttack

if TYPE_CHECKING:
    from torch import Tensor


class FGSM(TorchattacksAttack):
    """Fast gradient sign method: one step of the full radius along the sign of the loss gradient.

    x_adv = clip(x + eps sign(grad_x CE(model(x), y)), 0, 1).
    x (b, c, h, w) in [0, 1]; L-inf ball of radius eps. One forward and one backward pass a sample. Source:
    Goodfellow et al. (2015), section 4.
    """

    name = "fgsm"
    reference = Reference(
        title="Explaining and harnessing adversarial examples",
        authors="Goodfellow, Shlens, Szegedy",
        venue="ICLR 2015",
        year=2015,
        url="https://arxiv.org/abs/1412.6572",
    )
    norm: ClassVar[str | None] = "linf"
    default_eps: ClassVar[float | None] = 8 / 255
    implementation: ClassVar[str] = "FGSM"
    cross_entropy: ClassVar[bool] = True

    eps: float | None = Field(
        None, ge=0, le=1, description="L-inf radius in [0, 1] pixels; None: the threat's budget, else 8/255"
    )

    def arguments(self, context: EvasionContext) -> dict[str, Any]:
        return {"eps": context.eps}

    def functional(
        self, eps: float | None = None
    ) -> Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]:
        """The step as a pure function (loss(x) -> (b,), x, key) -> x_adv; eps: the threat's budget."""
        radius = self.radius(eps)

        def attack(loss: Callable[[Tensor], Tensor], x: Tensor, key: Tensor) -> Tensor:
            return fgsm(loss, x, radius)

        return attack


PLUGINS = (FGSM,)
