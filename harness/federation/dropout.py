"""Dropout whose masks come from each client's own generator, so that it is the same however clients train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class Masks:
    """Draws the masks of a network's dropout layers. generators: one per client.

    who: where clients are vectorised, the place of the client at hand; a scalar tensor.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.generators = list(generators)
        self.who = torch.zeros((), dtype=torch.int64, device=self.generators[0].device)

    def draw(self, like: Tensor, p: float) -> Tensor:
        """A mask of `like`'s shape and type: 0 with probability p, else 1 / (1 - p)."""
        if p == 1:
            return torch.zeros_like(like)
        return _Mask.apply(self.who, like.detach(), self.generators, p) / (1 - p)  # type: ignore[no-any-return]


class _Seeded(nn.modules.dropout._DropoutNd):
    masks: Masks | None = None  # None outside of a client's training: torch's own dropout

    def forward(self, x: Tensor) -> Tensor:
        like = self.dropped(x)
        if not self.training or self.masks is None or not self.p or like is None:
            return super().forward(x)  # type: ignore[no-any-return]
        return x * self.masks.draw(like, self.p)

    def dropped(self, x: Tensor) -> Tensor | None:
        """A tensor with one element per part of x that is dropped as a whole; None: torch's own dropout takes x."""
        return x


class _SeededDropout(_Seeded, nn.Dropout):
    pass


class _SeededDropout2d(_Seeded, nn.Dropout2d):
    def dropped(self, x: Tensor) -> Tensor | None:
        return x[:, :, :1, :1] if x.ndim == 4 else None


_SEEDED: dict[type, type] = {nn.Dropout: _SeededDropout, nn.Dropout2d: _SeededDropout2d}


def seed_dropout(module: nn.Module) -> None:
    """Turns a network's dropout layers, in place, into layers that can be given masks."""
    for layer in module.modules():
        layer.__class__ = _SEEDED.get(type(layer), type(layer))


def dropouts(module: nn.Module) -> list[Any]:
    """The layers that can be given masks and that use them (p > 0)."""
    return [layer for layer in module.modules() if type(layer) in _SEEDED.values() and layer.p]


@contextmanager
def masked(layers: Sequence[Any], masks: Masks | None) -> Iterator[None]:
    """Gives these layers their masks within the block."""
    for layer in layers:
        layer.masks = masks
    try:
        yield
    finally:
        for layer in layers:
            layer.masks = None


class _Mask(torch.autograd.Function):
    """Ones with probability 1 - p, else zeros; under vmap each row is drawn from its client's generator."""

    @staticmethod
    def forward(who: Tensor, like: Tensor, generators: list[torch.Generator], p: float) -> Tensor:
        (generator,) = generators
        return torch.empty(like.shape, dtype=like.dtype, device=like.device).bernoulli_(
            1 - p, generator=generator
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept: a mask has no gradient."""

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, who: Tensor, like: Tensor, generators: list[torch.Generator], p: float
    ) -> tuple[Tensor, int]:
        rows = (
            like.expand(info.batch_size, *like.shape) if in_dims[1] is None else like.movedim(in_dims[1], 0)
        )
        if in_dims[0] is None:  # vmap over the records of one client, not over clients
            return _Mask.apply(who, rows, generators, p), 0
        drawn = torch.empty(rows.shape, dtype=like.dtype, device=like.device)
        for row, generator in zip(drawn, generators[: info.batch_size], strict=True):
            row.bernoulli_(1 - p, generator=generator)
        return drawn, 0
