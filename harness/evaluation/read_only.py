"""What a metric is shown, so that it cannot change what the metrics after it compute from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

    from harness.contracts.metric import MetricContext

T = TypeVar("T")


def read_only(value: T) -> T:
    """The same values with every NumPy array as a read-only view, in new tuples, lists, dicts and dataclasses.

    Tensors and modules stay the same objects, as torch has no read-only ones: see `tensor_versions`.
    """
    found: Any = value
    if isinstance(found, np.ndarray):
        view = found.view()
        view.setflags(write=False)
        return view  # type: ignore[return-value]
    if type(found) in (tuple, list):
        return type(found)(map(read_only, found))  # type: ignore[no-any-return]
    if type(found) is dict:
        return {key: read_only(inner) for key, inner in found.items()}  # type: ignore[return-value]
    if is_dataclass(found) and not isinstance(found, type):
        own = {f.name: read_only(getattr(found, f.name)) for f in fields(found) if f.init}
        return replace(found, **own)  # type: ignore[return-value]
    return value


def tensor_versions(context: MetricContext) -> dict[str, int]:
    """Field -> how many in-place writes torch has counted for its tensors; a rise means that one was written to.

    Of the module only the parameters count, and of `state` no buffers: the forward pass may itself change these.
    """
    counts: dict[str, int] = {}
    buffers = set() if context.module is None else {name for name, _ in context.module.named_buffers()}
    for f in fields(context):
        value = getattr(context, f.name)
        if f.name == "module" and value is not None:
            value = list(value.parameters())
        elif f.name == "state" and value is not None:
            value = [tensor for name, tensor in value.items() if name not in buffers]
        tensors = [t for t in _tensors(value) if not t.is_inference()]  # inference tensors count no writes
        if tensors:
            counts[f.name] = sum(t._version for t in tensors)
    return counts


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    import torch  # here, because the commands that only read records need the names of this package, not torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
    elif is_dataclass(value) and not isinstance(value, type):
        for f in fields(value):
            yield from _tensors(getattr(value, f.name))
