"""The iterated sign-gradient family, by torchattacks: BIM, momentum methods, Jitter and EOT-PGD."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from harness.api import EvasionContext, Field, NotApplicable, Reference
from harness_plugins.attacks.evasion._torchattacks import TorchattacksAttack, check_square, three_channels

if TYPE_CHECKING:
    from torch import Tensor, nn


class Iterative(TorchattacksAttack):
    """An attack of `steps` steps of size alpha in the L-inf ball; torchattacks' own alpha may never reach eps."""

    norm: ClassVar[str | None] = "linf"
    default_eps: ClassVar[float | None] = 8 / 255
    stride: ClassVar[float] = 1.0  # default alpha, as a multiple of eps / steps

    eps: float | None = Field(
        None, ge=0, le=1, description="L-inf radius in [0, 1] pixels; None: the threat's budget, else 8/255"
    )
    alpha: float | None = Field(
        None, gt=0, le=1, description="step size in [0, 1] pixels; None: a multiple of eps / steps, see above"
    )
    steps: int = Field(10, ge=1, description="gradient steps")

    @property
    def effort(self) -> int:
        """Gradient evaluations a sample."""
        return self.steps

    def arguments(self, context: EvasionContext) -> dict[str, Any]:
        assert context.eps is not None
        alpha = self.stride * context.eps / self.steps if self.alpha is None else self.alpha
        return {"eps": context.eps, "alpha": alpha, "steps": self.steps, **self.further()}

    def further(self) -> dict[str, Any]:
        """Arguments that this attack has beside the common ones."""
        return {}


class BIM(Iterative):
    """The basic iterative method: sign steps from x, clipped to the ball and to [0, 1]; alpha 2.5 eps / steps.

    x_{t+1} = clip(x_t + alpha sign(grad CE(model(x_t), y))). x (b, c, h, w) in [0, 1]. One gradient a step.
    """

    name = "bim"
    reference = Reference(
        title="Adversarial examples in the physical world", authors="Kurakin, Goodfellow, Bengio",
        venue="ICLR Workshop", year=2017, url="https://arxiv.org/abs/1607.02533",
    )  # fmt: skip
    implementation: ClassVar[str] = "BIM"
    cross_entropy: ClassVar[bool] = True
    stride: ClassVar[float] = 2.5


class MIFGSM(Iterative):
    """Momentum iterative FGSM: sign steps along accumulated, normalised gradients; alpha eps / steps.

    g <- decay g + grad / mean |grad|; x <- clip(x + alpha sign(g)). The paper divides by the L1 norm, which gives the
    same signs. Made to transfer. One gradient a step.
    """

    name = "mi-fgsm"
    reference = Reference(
        title="Boosting Adversarial Attacks with Momentum", authors="Dong, Liao, Pang, Su, Zhu, Hu, Li",
        venue="CVPR", year=2018, url="https://arxiv.org/abs/1710.06081",
    )  # fmt: skip
    implementation: ClassVar[str] = "MIFGSM"
    cross_entropy: ClassVar[bool] = True
    decay: float = Field(1.0, ge=0, description="decay of the accumulated gradient")

    def further(self) -> dict[str, Any]:
        return {"decay": self.decay}


class NIFGSM(MIFGSM):
    """Nesterov iterative FGSM: as mi-fgsm, with the gradient taken one step ahead; alpha eps / steps.

    That is at x + decay alpha g. With g of gradients divided by their mean size, as here and in the authors' code, this
    step may be many times alpha; divided by their L1 norm, as the paper writes, it would be all but none.
    """

    name = "ni-fgsm"
    reference = Reference(
        title="Nesterov Accelerated Gradient and Scale Invariance for Adversarial Attacks",
        authors="Lin, Song, He, Wang, Hopcroft", venue="ICLR", year=2020, url="https://arxiv.org/abs/1908.06281",
    )  # fmt: skip
    implementation: ClassVar[str] = "NIFGSM"
    cross_entropy: ClassVar[bool] = True


class VMIFGSM(MIFGSM):
    """Variance-tuned mi-fgsm: the gradient is corrected by its mean over `samples` neighbours; alpha eps / steps.

    Neighbours are uniform within beta eps. 1 + samples gradients a step.
    """

    name = "vmi-fgsm"
    reference = Reference(
        title="Enhancing the Transferability of Adversarial Attacks through Variance Tuning", authors="Wang, He",
        venue="CVPR", year=2021, url="https://arxiv.org/abs/2103.15571",
    )  # fmt: skip
    implementation: ClassVar[str] = "VMIFGSM"
    cross_entropy: ClassVar[bool] = True
    adds_passes: ClassVar[bool] = True
    samples: int = Field(5, ge=1, description="neighbours whose gradients are averaged (N)")
    beta: float = Field(1.5, gt=0, description="how far neighbours lie, as a multiple of eps")

    @property
    def effort(self) -> int:
        return self.steps * (1 + self.samples)

    def further(self) -> dict[str, Any]:
        return {"decay": self.decay, "N": self.samples, "beta": self.beta}


class DIFGSM(Iterative):
    """Diverse-input FGSM: the gradient is taken of randomly resized and padded inputs; alpha eps / steps."""

    name = "di-fgsm"
    reference = Reference(
        title="Improving Transferability of Adversarial Examples with Input Diversity",
        authors="Xie, Zhang, Zhou, Bai, Wang, Ren, Yuille", venue="CVPR", year=2019,
        url="https://arxiv.org/abs/1803.06978",
    )  # fmt: skip
    implementation: ClassVar[str] = "DIFGSM"
    cross_entropy: ClassVar[bool] = True
    decay: float = Field(0.0, ge=0, description="decay of the accumulated gradient; 0: none")
    resize_rate: float = Field(0.9, gt=0, lt=1, description="least size of the resized input, as a share")
    diversity_prob: float = Field(0.5, ge=0, le=1, description="probability that an input is transformed")

    def check(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        check_square(self.name, input_shape)

    def further(self) -> dict[str, Any]:
        kept = ("decay", "resize_rate", "diversity_prob")
        return {name: getattr(self, name) for name in kept}


class TIFGSM(DIFGSM):
    """Translation-invariant di-fgsm: gradients are smoothed by a Gaussian kernel; alpha eps / steps.

    Images of one channel are attacked as three equal ones, which gives the same steps.
    """

    name = "ti-fgsm"
    reference = Reference(
        title="Evading Defenses to Transferable Adversarial Examples by Translation-Invariant Attacks",
        authors="Dong, Pang, Su, Zhu", venue="CVPR", year=2019, url="https://arxiv.org/abs/1904.02884",
    )  # fmt: skip
    implementation: ClassVar[str] = "TIFGSM"
    cross_entropy: ClassVar[bool] = True
    single_precision: ClassVar[bool] = True
    kernel: int = Field(15, ge=1, description="side of the kernel, in pixels (odd)")

    def further(self) -> dict[str, Any]:
        return {**super().further(), "len_kernel": self.kernel}

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, context: EvasionContext) -> Tensor:
        if x.shape[1] == 3:
            return super().perturb(model, x, y, context)
        return super().perturb(three_channels(model), x.repeat(1, 3, 1, 1), y, context)[:, :1]

    def check(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        super().check(num_classes, input_shape)
        if input_shape[0] not in (1, 3):
            raise NotApplicable(f"ti-fgsm takes images of 1 or 3 channels, not {input_shape[0]}")


class Jitter(Iterative):
    """Jitter: PGD on a noisy, scaled output distance divided by the perturbation's norm; alpha 2.5 eps / steps."""

    name = "jitter"
    reference = Reference(
        title="Exploring Misclassifications of Robust Neural Networks to Enhance Adversarial Attacks",
        authors="Schwinn, Raab, Nguyen, Zanca, Eskofier", venue="Applied Intelligence", year=2023,
        url="https://arxiv.org/abs/2105.10304",
    )  # fmt: skip
    implementation: ClassVar[str] = "Jitter"
    stride: ClassVar[float] = 2.5
    scale: float = Field(10.0, gt=0, description="scale of the normalised logits")
    std: float = Field(0.1, ge=0, description="noise on the softmax outputs")

    def further(self) -> dict[str, Any]:
        return {"scale": self.scale, "std": self.std}


class EOTPGD(Iterative):
    """PGD with gradients averaged over `draws` passes, for models that answer at random; alpha 2.5 eps / steps.

    The engine averages answers of stochastic defences for every gradient attack already; this averages
    gradients.
    """

    name = "eot-pgd"
    reference = Reference(
        title="Comment on 'Adv-BNN: Improved Adversarial Defense through Robust Bayesian Neural Network'",
        authors="Zimmermann", venue="arXiv 1907.00895", year=2019, url="https://arxiv.org/abs/1907.00895",
    )  # fmt: skip
    implementation: ClassVar[str] = "EOTPGD"
    cross_entropy: ClassVar[bool] = True
    adds_passes: ClassVar[bool] = True
    stride: ClassVar[float] = 2.5
    draws: int = Field(2, ge=1, description="passes averaged in a step")

    @property
    def effort(self) -> int:
        return self.steps * self.draws

    def further(self) -> dict[str, Any]:
        return {"eot_iter": self.draws}


PLUGINS = (BIM, MIFGSM, NIFGSM, VMIFGSM, DIFGSM, TIFGSM, Jitter, EOTPGD)
