"""Convolutions of clients that train as one program, each client's with a kernel of its own.

torch's vmap turns the convolutions of many clients, each with weights of its own, into one grouped convolution. That
is a single kernel, but often a slow one, the more so the wider the layers. Here each client has an ordinary
convolution instead, while the rest of the network still runs for all clients at once. Which way is faster depends on
the network, the clients and the device (tests/benchmarks/stacked_convolution.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class ConvolutionsApart(TorchFunctionMode):
    """Inside the block, `conv2d` of a batch gives the same as ever, and under vmap runs client by client."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = _conv2d if func is functional.conv2d else func
        return call(*args, **(kwargs or {}))


class _How(NamedTuple):
    stride: Any
    padding: Any
    dilation: Any
    groups: int


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str) or input.ndim != 4:
        return functional.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if torch.is_autocast_enabled(input.device.type):  # which does this for `conv2d`
        precise = torch.get_autocast_dtype(input.device.type)
        input, weight = input.to(precise), weight.to(precise)
        bias = None if bias is None else bias.to(precise)
    output: Tensor = _Convolution.apply(input, weight, _How(stride, padding, dilation, groups))
    return output if bias is None else output + bias[:, None, None]


# A convolution and the two gradients of it are each linear in both of their tensors, and the gradients of each are made
# of the other two, so that they can be differentiated as often as wanted.
#
# x (b, c, h, w), weight (o, c, i, j), g (b, o, h', w'), what the gradient of the output is. All of them may have one
# dimension more, in front: one row a client. `shape` is that of a client's result, the records left out.


class _Convolution(torch.autograd.Function):
    """(x, weight) -> the output."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, how: _How) -> Tensor:
        return _each(lambda own, w: functional.conv2d(own, w, None, *how), x, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, ctx.how = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x, weight), wanted = ctx.saved_tensors, ctx.needs_input_grad
        return (
            _InputGradient.apply(g, weight, ctx.how, x.shape[-3:]) if wanted[0] else None,
            _WeightGradient.apply(g, x, ctx.how, weight.shape[-4:]) if wanted[1] else None,
            None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *given: Any) -> tuple[Tensor, int]:
        return _of_weight(_Convolution, info, in_dims, *given)


class _InputGradient(torch.autograd.Function):
    """(g, weight) -> the gradient with respect to x. shape: (c, h, w)."""

    @staticmethod
    def forward(g: Tensor, weight: Tensor, how: _How, shape: tuple[int, ...]) -> Tensor:
        return _each(lambda own, w: conv2d_input((len(own), *shape), w, own, *how), g, weight)  # type: ignore[arg-type]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        g, weight, ctx.how, _ = inputs
        ctx.save_for_backward(g, weight)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> Any:
        (g, weight), wanted = ctx.saved_tensors, ctx.needs_input_grad
        return (
            _Convolution.apply(u, weight, ctx.how) if wanted[0] else None,
            _WeightGradient.apply(g, u, ctx.how, weight.shape[-4:]) if wanted[1] else None,
            None,
            None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *given: Any) -> tuple[Tensor, int]:
        return _of_weight(_InputGradient, info, in_dims, *given)


class _WeightGradient(torch.autograd.Function):
    """(g, x) -> the gradient with respect to the weight. shape: (o, c, i, j)."""

    @staticmethod
    def forward(g: Tensor, x: Tensor, how: _How, shape: tuple[int, ...]) -> Tensor:
        return _each(lambda own, given: conv2d_weight(given, shape, own, *how), g, x)  # type: ignore[arg-type]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        g, x, ctx.how, _ = inputs
        ctx.save_for_backward(g, x)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        (g, x), wanted = ctx.saved_tensors, ctx.needs_input_grad
        return (
            _Convolution.apply(x, v, ctx.how) if wanted[0] else None,
            _InputGradient.apply(g, v, ctx.how, x.shape[-3:]) if wanted[1] else None,
            None,
            None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *given: Any) -> tuple[Tensor, int]:
        return _stacked(_WeightGradient, info, in_dims, *given)


def _each(run: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor) -> Tensor:
    """What `run` gives for two tensors, or for the rows of two that have one a client."""
    if first.ndim == 4:
        return run(first, second)
    return torch.stack([run(*own) for own in zip(first, second, strict=True)])


def _of_weight(
    function: Any, info: Any, in_dims: Any, records: Tensor, weight: Tensor, *how: Any
) -> tuple[Tensor, int]:
    """As `_stacked`; where all have the same weights, their records are more records of one."""
    if in_dims[1] is not None or weight.ndim > 4:
        return _stacked(function, info, in_dims, records, weight, *how)
    rows = records.movedim(in_dims[0], 0)
    return function.apply(rows.flatten(0, 1), weight, *how).unflatten(0, rows.shape[:2]), 0


def _stacked(
    function: Any, info: Any, in_dims: Any, first: Tensor, second: Tensor, *how: Any
) -> tuple[Tensor, int]:
    """A function of two tensors under vmap, by its own form for one row a client; a vmap around that has more rows."""
    n = info.batch_size
    rows = [
        value.expand(n, *value.shape) if dim is None else value.movedim(dim, 0)
        for value, dim in zip((first, second), in_dims, strict=False)
    ]
    if rows[0].ndim == 5:
        return function.apply(*rows, *how), 0
    found = function.apply(*(value.flatten(0, 1) for value in rows), *how)
    return found.unflatten(0, rows[0].shape[:2]), 0
