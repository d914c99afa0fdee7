"""Which trainings run as one program: those of a cell that differ in seed or, as shadow models do, in records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.plan import TrainSpec

if TYPE_CHECKING:
    from harness.plan import Stage

SHARED = tuple(f.name for f in fields(TrainSpec) if f.name not in ("seed", "variant"))


def bundles(stages: Mapping[str, Stage], wanted: Iterable[str], device: str) -> dict[str, tuple[str, ...]]:
    """First stage -> those that train with it, `compute.trainings` at most in all; keys in the order of `stages`.

    wanted: keys of the stages that have to be computed.
    """
    alike: dict[tuple[Any, ...], list[str]] = {}
    chosen = set(wanted)
    for key, stage in stages.items():
        spec = stage.spec
        if key in chosen and isinstance(spec, TrainSpec) and _may_join(spec, device):
            mark = tuple(_identity(getattr(spec, name)) for name in SHARED)
            alike.setdefault(mark, []).append(key)
    found = {}
    for keys in alike.values():
        size = stages[keys[0]].spec.compute.trainings  # type: ignore[union-attr]
        for first in range(0, len(keys), size):
            lead, *others = keys[first : first + size]
            if others:
                found[lead] = tuple(others)
    return found


def _may_join(spec: TrainSpec, device: str) -> bool:
    return spec.engine == "local" and spec.compute.trainings > 1 and spec.compute.vectorised(device)


def _identity(part: Any) -> Any:
    """Plain values as they are; plugins and settings, which the cells of a scenario have in common, by identity."""
    if isinstance(part, tuple):
        return tuple(map(_identity, part))
    return part if isinstance(part, str | float | Path) else id(part)
