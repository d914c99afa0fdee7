"""Natural corruptions: what images suffer without an adversary, as a baseline for attacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import EvasionAttack, EvasionContext, Field, Reference
from harness_plugins._jpeg import encoded_and_decoded

if TYPE_CHECKING:
    from torch import Tensor, nn


class Corruption(EvasionAttack):
    """A corruption at one of five severities, with the constants published for CIFAR-sized images."""

    access: ClassVar[str] = "none"
    reference = Reference(
        title="Benchmarking Neural Network Robustness to Common Corruptions and Perturbations",
        authors="Hendrycks, Dietterich", venue="ICLR", year=2019, url="https://arxiv.org/abs/1903.12261",
    )  # fmt: skip

    severity: int = Field(3, ge=1, le=5, description="1 (hardly seen) to 5")


class GaussianNoise(Corruption):
    """Gaussian noise of deviation 0.04, 0.06, 0.08, 0.09 or 0.10 on every value, clipped to [0, 1]."""

    name = "gaussian-noise"
    deviations: ClassVar[tuple[float, ...]] = (0.04, 0.06, 0.08, 0.09, 0.10)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, context: EvasionContext) -> Tensor:
        import torch

        drawn = torch.randn(x.shape, generator=context.generator, device=context.generator.device)
        return (x + self.deviations[self.severity - 1] * drawn.to(x)).clamp(0, 1)


class GaussianBlur(Corruption):
    """Gaussian blur of deviation 0.4, 0.6, 0.7, 0.8 or 1.0 pixels, edges reflected."""

    name = "gaussian-blur"
    deviations: ClassVar[tuple[float, ...]] = (0.4, 0.6, 0.7, 0.8, 1.0)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, context: EvasionContext) -> Tensor:
        from torchvision.transforms.functional import gaussian_blur

        return gaussian_blur(x, [9, 9], [self.deviations[self.severity - 1]] * 2).clamp(0, 1)


class Contrast(Corruption):
    """Contrast lowered to 0.75, 0.5, 0.4, 0.3 or 0.15 of the distance from each channel's mean."""

    name = "contrast"
    shares: ClassVar[tuple[float, ...]] = (0.75, 0.5, 0.4, 0.3, 0.15)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, context: EvasionContext) -> Tensor:
        mean = x.mean(dim=(2, 3), keepdim=True)
        return (mean + self.shares[self.severity - 1] * (x - mean)).clamp(0, 1)


class JPEG(Corruption):
    """JPEG at quality 80, 65, 58, 50 or 40. Grey and colour images; other channel counts one by one as grey."""

    name = "jpeg"
    qualities: ClassVar[tuple[int, ...]] = (80, 65, 58, 50, 40)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, context: EvasionContext) -> Tensor:
        return encoded_and_decoded(x, self.qualities[self.severity - 1])


PLUGINS = (GaussianNoise, GaussianBlur, Contrast, JPEG)
