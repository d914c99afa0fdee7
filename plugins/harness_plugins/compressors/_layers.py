"""Weights of convolution and linear layers as functions of other tensors, while a network trains. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from harness.api import PluginError


def weight_layers(module: nn.Module) -> dict[str, nn.Module]:
    """Name -> convolution or linear layer, in the module's order; of layers that share a weight the first."""
    found: dict[int, str] = {}
    layers = dict(module.named_modules())
    for name, layer in layers.items():
        if isinstance(layer, (_ConvNd, nn.Linear)):
            found.setdefault(id(layer.weight), name)
    return {name: layers[name] for name in found.values()}


@contextmanager
def with_weights(
    module: nn.Module, functions: Mapping[str, nn.Module], *, baked: bool
) -> Iterator[nn.Module]:
    """In place: inside, the weight of each named layer is functions[name](w), and w is what trains.

    Afterwards the layer has one weight again: functions[name](w) where `baked`, else w. Raises PluginError where
    layers share a weight: each would then train its own.
    """
    layers = dict(module.named_modules())
    own = {id(layers[name].weight) for name in functions}
    users = {name: id(getattr(layer, "weight", None)) for name, layer in layers.items()}
    shared = [
        name for name, weight in users.items() if weight in own and list(users.values()).count(weight) > 1
    ]
    if shared:
        raise PluginError(
            f"layers that share a weight cannot be trained through a function of it: {', '.join(shared)}"
        )
    for name, function in functions.items():
        parametrize.register_parametrization(layers[name], "weight", function, unsafe=True)
    try:
        yield module
    finally:
        for name in functions:
            parametrize.remove_parametrizations(layers[name], "weight", leave_parametrized=baked)


def zero_masks(module: nn.Module) -> dict[str, nn.Module]:
    """Name -> mask of the weights that are not zero, for convolution and linear layers in which some are, as after
    pruning.
    """
    weights = {name: layer.weight.detach() for name, layer in weight_layers(module).items()}  # type: ignore[operator]
    return {name: Mask(weight != 0) for name, weight in weights.items() if bool((weight == 0).any())}


@contextmanager
def zeros_held(module: nn.Module, functions: Mapping[str, nn.Module] | None = None) -> Iterator[nn.Module]:
    """In place: weights of convolution and linear layers that are zero stay zero, whatever trains inside.

    functions: what weights are trained through beside, see `with_weights`; afterwards each layer has w again. A
    network without zeros, as any that nobody pruned, trains as it is. Raises PluginError where layers share a weight
    that has zeros.
    """
    masks = zero_masks(module)
    chained = dict(functions or {})
    for name, mask in masks.items():
        chained[name] = nn.Sequential(mask, chained[name]) if name in chained else mask
    with with_weights(module, chained, baked=False):
        yield module
    with torch.no_grad():  # behind the mask they may have moved, by a defence's noise or by momentum
        for name, mask in masks.items():
            weight: Tensor = module.get_submodule(name).weight  # type: ignore[assignment]
            weight.copy_(mask(weight))


class Mask(nn.Module):
    """w -> w where kept, else zero. kept: bool, like w."""

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept.clone(), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.kept, weight, torch.zeros_like(weight))

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.detach().clone()


class Codebook(nn.Module):
    """Trains the centroids of a clustered weight: element i of it is centroids[indices[i]].

    With `with_zero` the first of them is zero, and does not train.
    What trains is a whole weight, of which each centroid is the mean over its elements. Each element then has the
    mean of its centroid's gradients for its own, so that the centroid moves as far as a weight does under any
    optimiser: by lr times that mean under SGD, by about lr under Adam, which the centroids themselves, in whatever
    units, could do for one of the two alone. Norms and noise of gradients, as in dp-sgd, are a whole weight's too.
    """

    def __init__(self, indices: Tensor, centroids: Tensor, with_zero: bool = False) -> None:
        super().__init__()
        self.with_zero = with_zero
        self.register_buffer("indices", indices.long().clone(), persistent=False)
        self.register_buffer("first", centroids.detach().clone(), persistent=False)
        counts = torch.bincount(indices.flatten(), minlength=len(centroids)).clamp_min(1)
        self.register_buffer("counts", counts.to(centroids), persistent=False)

    def centroids(self, trained: Tensor) -> Tensor:
        # Sums of how far elements have moved, as thousands of values themselves would lose digits.
        moved = (trained - self.first[self.indices]).flatten()
        # Of all ways to add them up the one that gives the same sum every time on a GPU.
        sums = moved.new_zeros(len(self.first)).index_put((self.indices.flatten(),), moved, accumulate=True)
        means = sums / self.counts
        if self.with_zero:
            means = torch.cat([means.new_zeros(1), means[1:]])
        return self.first + means

    def forward(self, trained: Tensor) -> Tensor:
        return self.centroids(trained)[self.indices]

    def right_inverse(self, weight: Tensor) -> Tensor:
        return self.first[self.indices].clone()


class FakeRounding(nn.Module):
    """w -> S clip(round(w / S), low, high), with the gradient of w; S = max|w| over half of the high - low steps.

    One S for each of the weight's first dimension, or one in all; none is below `least`.
    """

    def __init__(self, per_channel: bool, low: int, high: int, least: float) -> None:
        super().__init__()
        self.per_channel, self.low, self.high, self.least = per_channel, low, high, least

    def forward(self, weight: Tensor) -> Tensor:
        values = weight.detach()
        over = tuple(range(1, weight.ndim)) if self.per_channel else tuple(range(weight.ndim))
        scale = values.abs().amax(over, keepdim=True) / ((self.high - self.low) / 2)
        scale = scale.clamp_min(self.least)
        # Times the inverse, as kernels do it: the largest weight lies between two steps, where that decides.
        rounded = (values * scale.reciprocal()).round().clamp(self.low, self.high) * scale
        return rounded + (weight - values)  # the last is zero, so the values are exact

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.detach().clone()


class Cast(nn.Module):
    """The module in another number format, from and to float32.

    Each record's gradient runs through it scaled by a power of two, so that its largest entry at the outputs is about
    1: a confident network's are below the smallest float16, and an attack would find nothing.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.dtype = module, dtype

    def forward(self, x: Tensor) -> Tensor:
        scale: list[Tensor] = []
        out: Tensor = self.module(_In.apply(x, self.dtype, scale))
        return _Out.apply(out, scale)  # type: ignore[no-any-return]


class _In(torch.autograd.Function):
    """To another number format; the gradient comes back as it was before `_Out` scaled it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, scale: list[Tensor]) -> Tensor:
        ctx.scale = scale
        return x.to(dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (scale,) = ctx.scale
        return g.float() / scale.view(-1, *[1] * (g.ndim - 1)), None, None


class _Out(torch.autograd.Function):
    """To float32; on the way back, each record's gradient times a power of two, which `scale` then holds."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, scale: list[Tensor]) -> Tensor:
        ctx.scale, ctx.dtype = scale, out.dtype
        return out.float()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        exponent = torch.frexp(g.abs().flatten(1).amax(1)).exponent.clamp(-126, 126)
        ctx.scale[:] = [torch.ldexp(torch.ones_like(exponent, dtype=g.dtype), -exponent)]
        return (g * ctx.scale[0].view(-1, *[1] * (g.ndim - 1))).to(ctx.dtype), None
