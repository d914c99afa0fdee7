"""What a ServerApp and its ClientApps have to know to train one cell together."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from harness.flower.strategy import RemoteAttackers
from harness.stages.isolation import settle
from harness.training import Ready, Training

if TYPE_CHECKING:
    from torch import nn

    from harness.stage_specs import TrainSpec


@dataclass(frozen=True)
class Job:
    """One training as a simulation: with the cell's data, partition and seeds. See `harness.training.Training`."""

    spec: TrainSpec
    stage_key: str
    device: str

    def write(self, path: Path) -> None:
        """For `read` in other processes of this machine: plugins must be importable there."""
        path.write_bytes(pickle.dumps(self))


@dataclass
class Simulated:
    """A job in this process: what every client needs to train, and the server to combine."""

    training: Training
    ready: Ready
    module: nn.Module

    @property
    def federation(self) -> RemoteAttackers:
        federation = self.ready.federation
        assert isinstance(federation, RemoteAttackers)
        return federation


def simulated(job: Job) -> Simulated:
    """Sets a job up from its specification alone, so that every process arrives at the same."""
    settle(job.spec.compute.threads, job.spec.compute.tf32)
    training = Training(job.spec, job.stage_key, job.device)
    module = training.initial_module()
    return Simulated(training, training.set_up(module, kind=RemoteAttackers), module)


@lru_cache(maxsize=1)
def read(path: str) -> Job:
    """A job that `Job.write` wrote, kept for the next message."""
    job = pickle.loads(Path(path).read_bytes())
    assert isinstance(job, Job)
    return job
