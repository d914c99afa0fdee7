"""Seeing what a plugin did besides returning something: copies, comparisons, generators, forbidden fields."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

import numpy as np


def snapshot(value: Any) -> Any:
    """A copy that later changes do not reach: tensors, arrays, modules and containers. Functions are left out."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, torch.nn.Module):
        own = dict([*value.named_parameters(), *value.named_buffers()])
        return {
            "tensors": snapshot(own),
            "requires_grad": {n: t.requires_grad for n, t in own.items()},
            "training": {n: m.training for n, m in value.named_modules()},
        }
    if isinstance(value, Mapping):
        return {key: snapshot(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [snapshot(inner) for inner in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: snapshot(vars(value).get(f.name)) for f in fields(value)}
    if isinstance(value, torch.Generator) or callable(value):
        return None
    return value


def same(a: Any, b: Any) -> bool:
    """Bit for bit the same values, shapes and dtypes; two NaN in one place are the same."""
    import torch

    if isinstance(a, torch.nn.Module) and isinstance(b, torch.nn.Module):
        return same(snapshot(a), snapshot(b))
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
            return False
        if a.is_quantized:
            return torch.equal(a, b)
        equal = a == b
        return bool((equal | ((a != a) & (b != b))).all())
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if type(a) is not type(b):
        return False
    if is_dataclass(a) and not isinstance(a, type):
        return same(snapshot(a), snapshot(b))
    if isinstance(a, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if callable(a):
        return True
    return bool(a == b)


class RandomState:
    """The states of the global generators."""

    def __init__(self) -> None:
        self.mark()

    def mark(self) -> None:
        self._before = self._read()

    def moved(self) -> list[str]:
        """The generators that were used or seeded since the last mark."""
        return [name for name, state in self._read().items() if not same(state, self._before[name])]

    @staticmethod
    def _read() -> dict[str, Any]:
        import torch

        found = {
            "torch": torch.get_rng_state(),
            "numpy.random": list(np.random.get_state()),
            "random": list(random.getstate()),
        }
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            found["torch.cuda"] = torch.cuda.get_rng_state()
        return found


@contextmanager
def global_random_state(seed: int = 0) -> Iterator[RandomState]:
    """Seeds the global generators, yields their RandomState, and restores them afterwards."""
    import torch

    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield RandomState()
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@contextmanager
def other_hash(modules: Iterable[ModuleType], salt: int) -> Iterator[None]:
    """Inside, `hash` gives these modules other numbers for text, as in another process; for numbers it is unchanged."""

    def holds_text(value: Any) -> bool:
        return isinstance(value, str | bytes) or (
            isinstance(value, tuple | frozenset) and any(map(holds_text, value))
        )

    def salted(value: Any) -> int:
        return hash((salt, value)) if holds_text(value) else hash(value)

    changed = [module for module in modules if "hash" not in vars(module)]  # else it is one of their own
    try:
        for module in changed:
            vars(module)["hash"] = salted  # found before the built-in one
        yield
    finally:
        for module in changed:
            vars(module).pop("hash", None)


def guarded(value: Any, forbidden: Mapping[str, Callable[..., Any]]) -> Any:
    """A copy of a dataclass instance in which reading one of these fields calls the function given for it."""
    cls = type(value)

    def read(self: Any, name: str) -> Any:
        if name in forbidden:
            return forbidden[name]()
        return object.__getattribute__(self, name)

    copy: Any = object.__new__(type(cls.__name__, (cls,), {"__getattribute__": read}))
    for f in fields(value):
        object.__setattr__(copy, f.name, vars(value)[f.name])
    return copy
