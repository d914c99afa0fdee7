"""Norms of per-sample gradients and their clipped sums, from a layer's inputs and the gradients of its outputs.

x (b, ...): what goes into a layer, a row a record; g (b, ...): the gradient of the record's loss with respect to
what comes out. All of it runs under torch.func.vmap over clients too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


# Batches that are looked at where some parameter has no gradient, as behind a head that starts at zero, or in front
# of a normalisation that takes its part away.
TRIES = 5


class Unsupported(Exception):
    """The reason why per-sample norms of this module and loss need another path."""


class NotFinite(Exception):
    """Some record's gradient is not finite."""


@dataclass
class Shown:
    """What the first batches of a network have shown: whether the formulas hold for it. A refusal is for good."""

    verified: bool = False
    refused: str | None = None
    tries: int = 0

    def ask(self) -> None:
        """Raises Unsupported where the network was refused."""
        if self.refused is not None:
            raise Unsupported(self.refused)

    def compared(self, records: int, told: bool) -> None:
        """A batch was in order. told: every parameter had a gradient to be looked at."""
        self.tries += 1
        self.verified = records > 1 and (told or self.tries > TRIES)


class Part(NamedTuple):
    """What one parameter adds: squared norms (b,) of its gradients, and its clipped sum given the scale (b,).

    The sum has the parameter's order of elements, not always its shape.
    """

    name: str
    squared: Tensor
    sum: Callable[[Tensor], Tensor]


class Owned(NamedTuple):
    """Names of a layer's parameters; None for one that it lacks, or that is not trained."""

    weight: str | None
    bias: str | None


class Convolution(NamedTuple):
    """How an ungrouped two-dimensional convolution with zeros around the image goes about it."""

    shape: tuple[int, ...]  # of the weight: (out, in, height, width)
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


def clip_scale(norms: Tensor, max_grad_norm: float, automatic: bool = False) -> Tensor:
    """min(1, C / (norm + 1e-6)), Opacus' factor: what is clipped stays below C in floating point too.

    automatic: C / (norm + 0.01), AUTO-S (Bu et al. 2023, arXiv 2206.07136), below C as well.
    """
    if automatic:
        return max_grad_norm / (norms + 0.01)
    return (max_grad_norm / (norms + 1e-6)).clamp(max=1.0)


def clip_scales(squared: Tensor, max_grad_norm: float, clipping: str) -> Tensor:
    """What each record's gradient is multiplied by, parameter by parameter. squared, and what is given: (L, b).

    clipping: flat, by all parameters jointly; automatic; or per-layer, where each of the L has a bound C / sqrt(L).
    """
    if clipping == "per-layer":
        return clip_scale(squared.sqrt(), max_grad_norm / math.sqrt(len(squared)))
    norms = squared.sum(0).sqrt()
    return clip_scale(norms, max_grad_norm, clipping == "automatic").expand(len(squared), -1)


def linear(x: Tensor, g: Tensor, owned: Owned) -> list[Part]:
    """Row i of the weight's gradients is g_i x_i^T, an outer product: its norm is |g_i| |x_i|. x, g (b, d)."""
    parts, squares = [], g.square().sum(1)
    if owned.weight is not None:
        weighted = squares * x.square().sum(1)
        parts.append(Part(owned.weight, weighted, lambda scale: (scale.unsqueeze(1) * g).T @ x))
    if owned.bias is not None:
        parts.append(Part(owned.bias, squares, lambda scale: scale @ g))
    return parts


def group_norm(x: Tensor, g: Tensor, owned: Owned, groups: int, eps: float) -> list[Part]:
    """Per-sample gradients of the scale and the shift of a channel. x, g (b, c, ...)."""
    from torch.nn import functional

    parts = []
    if owned.weight is not None:
        parts.append(per_sample(owned.weight, _channels(functional.group_norm(x, groups, eps=eps) * g)))
    if owned.bias is not None:
        parts.append(per_sample(owned.bias, _channels(g)))
    return parts


def convolution(x: Tensor, g: Tensor, owned: Owned, how: Convolution) -> list[Part]:
    """Whichever way holds less decides about the weight: what pairs of positions have, or a gradient per sample.

    x, g (b, c, h, w). The choice is mixed ghost clipping (Bu, Mao, Xu 2022, section 4).
    """
    from torch.nn import functional

    parts = []
    if owned.weight is not None:
        rows, columns = how.padding
        padded = functional.pad(x, (columns, columns, rows, rows)) if rows or columns else x
        pixels = padded.shape[2] * padded.shape[3]
        if 2 * pixels**2 <= math.prod(how.shape):
            parts.append(_by_positions(x, padded, g, owned.weight, how))
        elif x.is_cuda:
            parts.append(_by_patches(x, g, owned.weight, how))
        else:
            parts.append(_by_rows(padded, g, owned.weight, how))
    if owned.bias is not None:
        parts.append(per_sample(owned.bias, _channels(g)))
    return parts


def _by_positions(x: Tensor, padded: Tensor, g: Tensor, name: str, how: Convolution) -> Part:
    """Ghost norms: |g_i|^2 = sum over pairs of output positions of <patches> <output gradients>.

    Inner products of patches are sums, over the kernel, of inner products of pixels. Positions cancel, so
    what rounding may have taken from the sum is added to it: a norm too small would let a record through.
    """
    import torch
    from torch.nn.grad import conv2d_weight

    pixels, outputs = padded.flatten(2), g.flatten(2)
    b, size, (height, width) = len(x), padded.shape[2:], g.shape[2:]
    (down, right), (dy, dx) = how.stride, how.dilation
    products = torch.bmm(pixels.transpose(1, 2), pixels).view(b, *size, *size)
    patches = None
    for i in range(how.shape[2]):
        for j in range(how.shape[3]):
            below = slice(i * dy, i * dy + (height - 1) * down + 1, down)
            beside = slice(j * dx, j * dx + (width - 1) * right + 1, right)
            here = products[:, below, beside, below, beside]
            patches = here.clone() if patches is None else patches.add_(here)
    assert patches is not None
    pairs = patches.flatten(1) * torch.bmm(outputs.transpose(1, 2), outputs).flatten(1)
    squared = pairs.sum(1).clamp(min=0) + 4 * torch.finfo(pairs.dtype).eps * pairs.abs().sum(1)

    def summed(scale: Tensor) -> Tensor:
        scaled = g * scale.view(-1, 1, 1, 1)
        return conv2d_weight(x, how.shape, scaled, how.stride, how.padding, how.dilation)  # type: ignore[arg-type]

    return Part(name, squared, summed)


def _by_rows(padded: Tensor, g: Tensor, name: str, how: Convolution) -> Part:
    """Per-sample gradients, a row of the kernel at a time, whose patches are overlapping parts of one matrix.

    On a CPU 1.5 to 3 times as fast as copying whole patches.
    """
    import torch

    _, c, below, beside = how.shape
    (down, right), (dy, dx) = how.stride, how.dilation
    b, height, outputs = len(g), g.shape[2], g.flatten(2)
    windows = padded.unfold(3, dx * (beside - 1) + 1, right)[..., ::dx]  # (b, c, row, output column, column)
    columns = windows.permute(0, 1, 4, 2, 3).reshape(b, c * beside, *windows.shape[2:4])
    samples = []  # (b, out * c * beside) each
    for i in range(below):
        rows = columns[:, :, i * dy : i * dy + (height - 1) * down + 1 : down].flatten(2)
        samples.append(torch.bmm(outputs, rows.transpose(1, 2)).flatten(1))
    squared = torch.stack([own.square().sum(1) for own in samples]).sum(0)

    def summed(scale: Tensor) -> Tensor:
        return torch.stack([scale @ own for own in samples]).view(below, -1, c, beside).permute(1, 2, 0, 3)

    return Part(name, squared, summed)


def _by_patches(x: Tensor, g: Tensor, name: str, how: Convolution) -> Part:
    """Per-sample gradients: output gradients times patches of the input. One product keeps a GPU busier."""
    from torch.nn import functional

    patches = functional.unfold(x, how.shape[2:], how.dilation, how.padding, how.stride)  # type: ignore[arg-type]
    return per_sample(name, (g.flatten(2) @ patches.transpose(1, 2)).flatten(1))


def _channels(values: Tensor) -> Tensor:
    """(b, c, ...) -> the sums over all but record and channel (b, c)."""
    return values.flatten(2).sum(2) if values.ndim > 2 else values


def per_sample(name: str, samples: Tensor) -> Part:
    """From gradients (b, numel), which are at hand once their norms are known."""
    return Part(name, samples.square().sum(1), lambda scale: scale @ samples)


def comparisons(
    parts: list[Part], gradients: Callable[[Tensor], Mapping[str, Tensor]]
) -> tuple[list[tuple[Tensor, str]], Tensor]:
    """Sums, and one record's norm, beside autograd's: a layer's option that the formulas do not know shows here.

    gradients: weights (b,) -> name -> of the weighted sum of the losses. No two records have the same weight, as where
    all have, records that meet in the network do not show. Returns what has to hold, each with what is wrong otherwise,
    and whether every parameter had a gradient to be looked at.
    """
    import torch

    squared = torch.stack([part.squared for part in parts])  # (parameters, b)
    weights = torch.linspace(0.5, 1.0, squared.shape[1]).to(squared)
    first = torch.zeros_like(weights)
    first[0] = 1.0
    expected, alone = gradients(weights), gradients(first)
    noise = 1e-5 * squared.sum(0).sqrt()  # (b,): what a gradient may be that is zero but for rounding
    found = []
    for part in parts:
        wanted, own = expected[part.name], alone[part.name].norm()
        # The size of what was added up, though little may be left of it.
        size = (weights * (1e-3 * part.squared.sqrt() + noise)).sum()
        same = (part.sum(weights).reshape(wanted.shape) - wanted).norm() <= size
        found.append((same, f"the formulas do not give autograd's gradient of {part.name}"))
        same = (part.squared[0].sqrt() - own).abs() <= 1e-3 * own + noise[0]
        found.append((same, f"the formulas do not give the norm of autograd's gradient of {part.name}"))
    return found, (squared.sqrt() > noise).any(1).all()
