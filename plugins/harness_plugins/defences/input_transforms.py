"""Transforms of the input before the network sees it: JPEG, fewer bits, median smoothing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from pydantic import field_validator

from harness.api import Defence, Field, Reference
from harness_plugins._jpeg import encoded_and_decoded

if TYPE_CHECKING:
    from torch import Tensor, nn

XU = Reference(
    title="Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks", authors="Xu, Evans, Qi",
    venue="NDSS", year=2018, url="https://arxiv.org/abs/1704.01155",
)  # fmt: skip


class InputTransform(Defence):
    """The deployed network sees transformed images; gradients pass the transform as if it were not there.

    That is the backward pass differentiable approximation (Athalye, Carlini, Wagner 2018), without which the
    transform would only hide the gradient. Training is not changed.
    """

    @abstractmethod
    def transform(self, x: Tensor) -> Tensor:
        """x (b, c, h, w) in [0, 1] -> the same shape, in [0, 1]; deterministic."""

    def inference(self, model: nn.Module) -> nn.Module:
        return _transformed_class()(model, self.transform)


class BitDepth(InputTransform):
    """Rounds pixels to 2^bits values: round(x (2^bits - 1)) / (2^bits - 1)."""

    name = "bit-depth"
    reference = XU
    bits: int = Field(4, ge=1, le=8, description="bits that a value keeps")

    def transform(self, x: Tensor) -> Tensor:
        levels = 2**self.bits - 1
        return (x * levels).round() / levels


class MedianSmoothing(InputTransform):
    """Replaces each pixel by the median of the square around it.

    Beyond an edge the image is mirrored, the edge's own pixels repeated, as in the authors' code.
    """

    name = "median-smoothing"
    reference = XU
    window: int = Field(3, ge=3, le=15, description="side of the square, in pixels; odd")

    @field_validator("window")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"the window must be odd, not {value}")
        return value

    def transform(self, x: Tensor) -> Tensor:
        import torch

        padded = x
        for dim in (2, 3):
            size, half = x.shape[dim], self.window // 2
            places = torch.arange(-half, size + half, device=x.device) % (2 * size)
            padded = padded.index_select(dim, torch.minimum(places, 2 * size - 1 - places))
        patches = padded.unfold(2, self.window, 1).unfold(3, self.window, 1)
        return patches.flatten(-2).median(-1).values


class JPEGCompression(InputTransform):
    """Encodes and decodes images as JPEG. Grey and colour images; other channel counts one by one as grey."""

    name = "jpeg-compression"
    reference = Reference(
        title="Keeping the Bad Guys Out: Protecting and Vaccinating Deep Learning with JPEG Compression",
        authors="Das, Shanbhogue, Chen, Hohman, Chen, Kounavis, Chau", venue="arXiv 1705.02900", year=2017,
        url="https://arxiv.org/abs/1705.02900",
    )  # fmt: skip
    quality: int = Field(75, ge=1, le=100, description="JPEG quality")

    def transform(self, x: Tensor) -> Tensor:
        return encoded_and_decoded(x, self.quality)


@cache
def _transformed_class() -> type[nn.Module]:
    """Made at the first use: the module must load without torch."""
    import torch

    class Transformed(torch.nn.Module):
        """The network behind a transform, whose gradient is taken for the identity's."""

        def __init__(self, model: nn.Module, transform: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.model = model
            self.transform = transform
            self.training = model.training

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                moved = self.transform(x) - x
            return self.model(x + moved)

    return Transformed


PLUGINS = (BitDepth, MedianSmoothing, JPEGCompression)
