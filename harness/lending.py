"""How many of a run's places one stage gets: those that no other stage could use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.federation.counts import clients_per_round
from harness.stage_specs import TrainSpec

if TYPE_CHECKING:
    from harness.plan import Stage


def places(stage: Stage, free: int, ready: int, device: str) -> int:
    """How many clients of a stage may train at the same time, each in one of the `free` places.

    ready: stages that could start now, this one included. They share the free places equally; a stage takes no more
    than its clients can use, and only trainings on a CPU, with clients one after another, take more than one. Scores do
    not depend on it.
    """
    spec = stage.spec
    if device != "cpu" or not isinstance(spec, TrainSpec) or spec.engine != "local":
        return 1
    if spec.compute.vectorised(device):
        return 1
    clients = clients_per_round(spec.federation.clients, spec.federation.participation)
    return max(1, min(free // max(ready, 1), clients))
