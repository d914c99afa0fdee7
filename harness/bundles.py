"""Which trainings run as one program: those that differ only in seed or, as shadow models do, in records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from harness.stage_specs import TrainSpec, shared_parts

if TYPE_CHECKING:
    from harness.plan import Stage


def bundles(stages: Mapping[str, Stage], wanted: Iterable[str], device: str) -> dict[str, tuple[str, ...]]:
    """Key of the first stage of each bundle -> keys of the stages that train with it, in the order of `stages`.

    A bundle has at most `compute.trainings` stages, the first included; a stage that trains alone is in none.
    wanted: keys of the stages that have to be computed.
    """
    alike: dict[tuple[Any, ...], list[str]] = {}
    chosen = set(wanted)
    for key, stage in stages.items():
        spec = stage.spec
        if key in chosen and isinstance(spec, TrainSpec) and _may_join(spec, device):
            alike.setdefault(shared_parts(spec), []).append(key)
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
