"""Max-pooling that costs less and changes no number. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

# Values of an image batch from which on `_Halve` was faster than torch's kernel, gradient included.
LARGE = 2**16


@contextmanager
def cheap_pooling(*modules: nn.Module) -> Iterator[None]:
    """Inside the block, the max-poolings of the modules cost less; outputs and gradients are the same to the last bit.

    Every `nn.Sequential` runs a max-pooling before the ReLU that precedes it. The two commute, for gradients too: the
    largest value of a window is the same one in either order, and where none is positive nothing flows back. After a
    2x2 pooling a ReLU has a quarter of the values to read and write (Page 2019, "How to train your ResNet", part 8,
    moves the layers of the network itself). Here the layers keep their places, because compressors fuse a convolution
    with the ReLU behind it; layers with hooks are called in their usual order.

    On a CPU, 2x2 poolings of channels that come first in memory are made of maxima of whole slices (see `_Halve`), as
    torch's kernel for them looks at one value at a time.

    Measured on one core with AVX-512 (tests/benchmarks/pooling.py).
    """
    changed: list[tuple[nn.Module, type[nn.Module]]] = []
    for layer in {layer for module in modules for layer in module.modules()}:
        kind: type[nn.Module] | None = None
        if type(layer) is nn.Sequential and any(_commute(a, b) for a, b in pairwise(layer)):
            kind = _PoolsFirst
        elif type(layer) is nn.MaxPool2d and _halves(layer):
            kind = _Halving
        if kind is not None:
            changed.append((layer, type(layer)))
            layer.__class__ = kind
    try:
        yield
    finally:
        for layer, usual in changed:
            layer.__class__ = usual


class _PoolsFirst(nn.Sequential):
    """The class of a sequence inside the block.

    A `forward` set on the instance would be copied along with it, and the copy would then run the original's layers.
    """

    def forward(self, x: Tensor) -> Tensor:
        layers = list(self)
        for i in range(len(layers) - 1):
            if _commute(layers[i], layers[i + 1]):
                layers[i], layers[i + 1] = layers[i + 1], layers[i]
        for layer in layers:
            x = layer(x)
        return x


def _commute(first: nn.Module, then: nn.Module) -> bool:
    """Whether these are a ReLU and a max-pooling, without indices to return or hooks that see what goes in or out."""
    if type(first) is not nn.ReLU or type(then) not in (nn.MaxPool2d, _Halving) or then.return_indices:
        return False
    return not any(
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
        for layer in (first, then)
    )


class _Halving(nn.MaxPool2d):
    """The class of a 2x2 pooling inside the block."""

    def forward(self, x: Tensor) -> Tensor:
        images = x.ndim == 4 and x.device.type == "cpu" and x.is_floating_point() and x.numel() >= LARGE
        if images and (x.shape[1] == 1 or x.stride(1) > 1):  # where channels come last torch is fast
            return _Halve.apply(x)  # type: ignore[no-any-return, no-untyped-call]
        return super().forward(x)  # type: ignore[no-any-return]


def _halves(pool: nn.MaxPool2d) -> bool:
    """Whether the windows are 2x2 and next to each other, and only whole ones count."""
    sizes = (
        (value, value) if isinstance(value, int) else tuple(value)
        for value in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    )
    return [*sizes] == [(2, 2), (2, 2), (0, 0), (1, 1)] and not (pool.ceil_mode or pool.return_indices)


class _Halve(torch.autograd.Function):
    """x (..., h, w) -> (..., h // 2, w // 2), as nn.MaxPool2d(2): of equal values the first has the gradient.

    In a window with a NaN the last place has it; in torch the last NaN.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _largest(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)  # not the output, which a ReLU may change in place

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        largest = _largest(x)
        height, width = _whole(x)
        line = x.shape[-1]
        # Where the largest value is not the first of its window, not the second, and not the third.
        first, second, third = (x[..., i:height:2, j:width:2] != largest for i, j in ((0, 0), (0, 1), (1, 0)))
        below = first & second
        right = (first ^ below) | (below & third)
        corner = torch.arange(0, height, 2)[:, None] * line + torch.arange(0, width, 2)
        places = (corner + right).add_(below, alpha=line)
        found: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
            gradient, x, [2, 2], [2, 2], [0, 0], [1, 1], False, places
        )
        return found


def _largest(x: Tensor) -> Tensor:
    height, width = _whole(x)
    rows = torch.maximum(x[..., 0:height:2, :width], x[..., 1:height:2, :width])
    return torch.maximum(rows[..., ::2], rows[..., 1::2])


def _whole(x: Tensor) -> tuple[int, int]:
    """Height and width of what whole windows cover."""
    return x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
