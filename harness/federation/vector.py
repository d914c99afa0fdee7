"""A module's trainable parameters as one vector, and its buffers by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter, for the parameters that are trained."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def layout(module: nn.Module) -> dict[str, slice]:
    """Parameter name -> its slice of the vector."""
    result, start = {}, 0
    for name, parameter in trainable(module).items():
        result[name] = slice(start, start + parameter.numel())
        start += parameter.numel()
    return result


def flatten(module: nn.Module) -> Tensor:
    """A copy of the trainable parameters as one vector (d,)."""
    return joined(trainable(module).values())


def joined(parameters: Iterable[Tensor]) -> Tensor:
    """A copy of these parameters as one vector (d,)."""
    return torch.cat([p.detach().reshape(-1) for p in parameters])


def load_vector(module: nn.Module, vector: Tensor) -> None:
    """Write a vector (d,) into the trainable parameters, in place."""
    write(list(trainable(module).values()), vector)


@torch.no_grad()
def write(parameters: Sequence[Tensor], vector: Tensor) -> None:
    """Write a vector (d,) into these parameters, in place."""
    parts = vector.split([p.numel() for p in parameters])
    shaped = [part.view_as(parameter) for parameter, part in zip(parameters, parts, strict=True)]
    torch._foreach_copy_(list(parameters), shaped)


def mean_of(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Mean (d,) of rows (n, d), weighted by counts; the plain mean where all count alike."""
    if len(set(counts)) < 2:
        return rows.mean(0)
    shares = torch.tensor(counts, dtype=torch.float64, device=rows.device) / sum(counts)
    return torch.einsum("n,n...->...", shares.to(rows), rows)


def buffer_names(module: nn.Module) -> frozenset[str]:
    """The persistent floating-point buffers (batch-norm statistics), which travel with an update."""
    kept = module.state_dict(keep_vars=True)
    return frozenset(n for n, b in module.named_buffers() if n in kept and b.is_floating_point())


def float_buffers(module: nn.Module, names: frozenset[str]) -> dict[str, Tensor]:
    """Copies of these buffers."""
    if not names:
        return {}
    return {n: b.detach().clone() for n, b in module.named_buffers() if n in names}


@torch.no_grad()
def load_buffers(module: nn.Module, values: dict[str, Tensor]) -> None:
    """Write buffers back, in place. Integer buffers (batch counters) are left alone: they never travel."""
    own = dict(module.named_buffers()) if values else {}
    for name, value in values.items():
        own[name].copy_(value)
