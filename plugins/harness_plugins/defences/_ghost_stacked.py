"""Ghost clipping of clients that train as one program, under torch.func.vmap over clients.

What `_ghost` does by forward hooks and autograd edges, which functorch transforms do not know, is done here on torch's
function calls: a zero is added to the output of each layer that uses a parameter, and the gradient with respect to
that zero is the one with respect to the output. Per-sample gradients by vmap run a convolution's backward pass as
a grouped convolution with a group for each client and record: ten clients' round of small-cnn took four times as long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from harness_plugins.defences._ghost_formulas import (
    Convolution,
    NotFinite,
    Owned,
    Part,
    Shown,
    Unsupported,
    clip_scales,
    comparisons,
    convolution,
    group_norm,
    linear,
)

if TYPE_CHECKING:
    from torch import Tensor

    from harness.api import Batch, LossFn, Params


class StackedGhostClipping:
    """Clipped gradient sums of clients under vmap; what the first batch shows is kept for the next ones.

    `clipped_sum` raises Unsupported where a parameter is used by another function than those known here, or twice, or
    in reduced precision, or where the sums are not autograd's (looked at per network, until a batch of two records or
    more gives every parameter a gradient); and NotFinite where a record's gradient is not finite.
    """

    def __init__(self, max_grad_norm: float, clipping: str = "flat") -> None:
        self.max_grad_norm = max_grad_norm
        self.clipping = clipping
        self._known: dict[Hashable, _Known] = {}

    def clipped_sum(
        self, loss: LossFn, params: Params, batch: Batch, key: Tensor, mask: Tensor | None
    ) -> Params:
        """Sum over records of g_i min(1, C / (|g_i| + 1e-6)). batch: b >= 1. mask (b,): the records that are real."""
        values = {name: p.detach() for name, p in params.items()}
        network = (*batch[0].shape[1:], *((name, p.shape) for name, p in values.items()))
        known = self._known.setdefault(network, _Known())
        known.ask()
        try:
            return self._clipped_sum(known, loss, values, batch, key, mask)
        except Unsupported as error:
            known.refused = str(error)
            raise

    def _clipped_sum(
        self, known: _Known, loss: LossFn, values: Params, batch: Batch, key: Tensor, mask: Tensor | None
    ) -> Params:
        names = {id(value): name for name, value in values.items()}
        records = len(batch[1])
        if known.shapes is None:
            with _Layers(names, None) as seen:
                loss(values, batch, key)
            _check_uses(seen.uses, values, records)
            known.shapes = [use.shape[1:] for use in seen.uses]
        like = next(iter(values.values()))
        uses: list[_Use] = []

        def total(taps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            with _Layers(names, taps) as seen:
                losses = loss(values, batch, key)
            uses.extend(seen.uses)
            return losses.sum(), [use.x for use in seen.uses]

        taps = [torch.zeros((records, *own), dtype=like.dtype, device=like.device) for own in known.shapes]
        backprops, inputs = torch.func.grad(total, has_aux=True)(taps)
        _check_uses(uses, values, records)
        parts = [part for use, x, g in zip(uses, inputs, backprops, strict=True) for part in use.parts(x, g)]
        squared = torch.stack([part.squared for part in parts])  # (parameters, b)
        scales = clip_scales(look(squared, _all_finite), self.max_grad_norm, self.clipping)
        if mask is not None:
            scales = scales.where(mask, 0)
        if not known.verified:
            known.compared(records, _verified(loss, values, batch, key, parts))
        sums = {part.name: part.sum(scale) for part, scale in zip(parts, scales, strict=True)}
        return {name: sums[name].reshape(p.shape) for name, p in values.items()}


@dataclass
class _Known(Shown):
    """shapes: of the layers' outputs, without the record; None before the first batch."""

    shapes: list[tuple[int, ...]] | None = None


def _check_uses(uses: list[_Use], values: Params, records: int) -> None:
    owners = Counter(name for use in uses for name in use.owned if name is not None)
    for name in values:
        if owners[name] != 1:
            raise Unsupported(f"{name} is used {owners[name]} times in the loss")
    if any(use.shape[0] != records for use in uses):
        raise Unsupported("a layer does not put out one row a record")


def _verified(loss: LossFn, values: Params, batch: Batch, key: Tensor, parts: list[Part]) -> bool:
    """Whether every parameter had a gradient at some client. Raises Unsupported where the formulas disagree with it."""

    def gradients(weights: Tensor) -> Params:
        return torch.func.grad(lambda values: (weights * loss(values, batch, key)).sum())(values)  # type: ignore[no-any-return]

    held, told = comparisons(parts, gradients)
    for holds, otherwise in held:
        look(holds, _holds(otherwise))
    seen = [False]
    look(told, _noted(seen))
    return seen[0]


class _Use(NamedTuple):
    """One call of a function that uses parameters. shape: of its output."""

    x: Tensor
    shape: tuple[int, ...]
    owned: Owned
    parts: Callable[[Tensor, Tensor], list[Part]]


class _Layers(TorchFunctionMode):
    """Meanwhile functions called with the parameters are noted, and `taps` added to what they put out."""

    def __init__(self, names: dict[int, str], taps: list[Tensor] | None) -> None:
        super().__init__()
        self.names = names
        self.taps = taps
        self.uses: list[_Use] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if not any(id(value) in self.names for value in _leaves((args, kwargs))):
            return output
        if not isinstance(output, torch.Tensor) or func is torch.Tensor.detach:
            return output  # a size, or what an attack reads without changing it
        reader = _READERS.get(func)
        if reader is None:
            raise Unsupported(f"there is no formula for {getattr(func, '__name__', func)}")
        use = reader(self.names, output, *args, **kwargs)
        tf32 = output.is_cuda and torch.backends.cudnn.allow_tf32
        if tf32 or output.dtype != use.x.dtype:
            raise Unsupported("norms in reduced precision would not bound the gradients")
        place = len(self.uses)
        self.uses.append(use)
        if self.taps is None:
            return output
        if place >= len(self.taps) or self.taps[place].shape != output.shape:
            raise Unsupported("the loss does not use the layers as it did at first")
        return output + self.taps[place]


def _leaves(value: Any) -> Iterator[Any]:
    """What a call was given, out of its lists, too."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        yield value
        return
    for inner in value:
        yield from _leaves(inner)


def _owned(names: dict[int, str], weight: Tensor | None, bias: Tensor | None) -> Owned:
    return Owned(names.get(id(weight)), names.get(id(bias)))


def _linear(
    names: dict[int, str], output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> _Use:
    if input.ndim != 2:
        raise Unsupported("there is no formula for linear layers of more than one row a record")
    owned = _owned(names, weight, bias)
    return _Use(input.detach(), tuple(output.shape), owned, lambda x, g: linear(x, g, owned))


def _conv2d(
    names: dict[int, str],
    output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Use:
    if groups != 1 or isinstance(padding, str) or input.ndim != 4:
        raise Unsupported("there is no formula for grouped convolutions, or padding by name")
    owned = _owned(names, weight, bias)
    stride, padding, dilation = (_pair(value) for value in (stride, padding, dilation))
    how = Convolution(tuple(weight.shape), stride, padding, dilation)
    return _Use(input.detach(), tuple(output.shape), owned, lambda x, g: convolution(x, g, owned, how))


def _group_norm(
    names: dict[int, str],
    output: Tensor,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> _Use:
    owned = _owned(names, weight, bias)
    return _Use(
        input.detach(), tuple(output.shape), owned, lambda x, g: group_norm(x, g, owned, num_groups, eps)
    )


_READERS: dict[Any, Callable[..., _Use]] = {
    functional.linear: _linear,
    functional.conv2d: _conv2d,
    functional.group_norm: _group_norm,
}


def _pair(value: Any) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))


def look(values: Tensor, at: Callable[[Tensor], None]) -> Tensor:
    """The values as they are, once `at` has seen those of all clients; it may raise, which vmap forbids itself."""
    return _Look.apply(values, at)  # type: ignore[no-any-return]


class _Look(torch.autograd.Function):
    @staticmethod
    def forward(values: Tensor, at: Callable[[Tensor], None]) -> Tensor:
        at(values)
        return values.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: nobody differentiates."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, None], values: Tensor, at: Callable[[Tensor], None]
    ) -> tuple[Tensor, int | None]:
        return _Look.apply(values, at), in_dims[0]


def _all_finite(squared: Tensor) -> None:
    if not bool(squared.sum().isfinite()):
        raise NotFinite


def _noted(seen: list[bool]) -> Callable[[Tensor], None]:
    def note(values: Tensor) -> None:
        seen[0] = bool(values.any())

    return note


def _holds(otherwise: str) -> Callable[[Tensor], None]:
    def check(holds: Tensor) -> None:
        if not bool(holds.all()):
            raise Unsupported(otherwise)

    return check
