"""Which executor a run uses, on which device, with how many stages at a time."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.devices import free_memory, gpu_count, processes_per_gpu, resolve_device
from harness.errors import HarnessError, did_you_mean

if TYPE_CHECKING:
    from harness.contracts.metric import Metric
    from harness.executors import Executor
    from harness.plan import Plan

EXECUTORS = ("local", "ray")
ARTIFACTS = ("objects", "shared")


def connection(executor: str, address: str, artifacts: str) -> AbstractContextManager[Any]:
    """A context to hold open while the executor is used: for Ray, the connection to the cluster.

    Raises HarnessError for an unknown executor or way of artifacts, and for Ray's settings without Ray.
    """
    for what, value, known in (("executor", executor, EXECUTORS), ("way of artifacts", artifacts, ARTIFACTS)):
        if value not in known:
            raise HarnessError(f"unknown {what} {value!r}; {did_you_mean(value, known)}")
    if executor == "local":
        if (address, artifacts) != ("auto", "objects"):
            raise HarnessError("an address, and a way for artifacts, are for --executor ray")
        return nullcontext()
    from harness.executors.ray_cluster import connected

    return connected(address)


def resources(executor: str, device: str, jobs: str | int) -> tuple[str, int]:
    """The device, and how many stages run at a time: 0 for this process; on Ray, 0 for as many as there is room for.

    Raises HarnessError for a device that does not exist, and for jobs that the executor cannot use.
    """
    if executor == "local":
        device = resolve_device(device)
        return device, job_count(jobs, device)
    from harness.executors.ray_cluster import cluster_device

    if jobs != "auto" and _number(jobs) == 0:
        raise HarnessError("--jobs 0 is for this process; on Ray take auto or a number of stages at a time")
    return cluster_device(device), 0 if jobs == "auto" else _number(jobs)


def ray_executor(
    store: Path, device: str, plan: Plan, metrics: dict[str, tuple[Metric, ...]], jobs: int, artifacts: str
) -> Executor:
    """An executor on the connected cluster. Raises HarnessError where none of its nodes can be used."""
    from harness.executors.ray import RayExecutor

    return RayExecutor(store, device, plan, metrics, jobs=jobs or None, shared=artifacts == "shared")


def job_count(jobs: str | int, device: str, peak: int | None = None) -> int:
    """The number of worker processes, as in `worker_devices`; 0 means this process. Raises HarnessError."""
    return len(worker_devices(jobs, device, peak))


def worker_devices(jobs: str | int, device: str, peak: int | None = None) -> list[str]:
    """The device of each worker process; an empty list means this process. Raises HarnessError.

    jobs: `auto` is one worker per core on a CPU; on CUDA, as many on each GPU as its free memory and its share of the
    cores allow, or one while `peak` is unknown (LocalExecutor may add more once it is known). A number is spread evenly
    over the GPUs. peak: the most bytes that a stage like those to come has used.
    """
    if jobs != "auto":
        return _spread(_number(jobs), device)
    usable = getattr(os, "sched_getaffinity", None)  # not on every system
    cores = len(usable(0)) if usable else os.cpu_count() or 1
    if not device.startswith("cuda"):
        return [device] * cores
    if peak is None:
        return _spread(gpu_count(device), device)
    free = free_memory(device)
    names = [f"cuda:{i}" for i in range(len(free))] if device == "cuda" else [device]
    fitting = [processes_per_gpu(bytes, peak, max(1, cores // len(free))) for bytes in free]
    return [name for name, count in zip(names, fitting, strict=True) for _ in range(count)]


def _spread(count: int, device: str) -> list[str]:
    """`count` devices; `cuda` stands for all GPUs, in turn."""
    if device != "cuda" or not count:
        return [device] * count
    gpus = gpu_count(device)
    return [f"cuda:{i % gpus}" for i in range(count)]


def _number(jobs: str | int) -> int:
    try:
        count = int(jobs)
    except ValueError:
        raise HarnessError(f"jobs must be auto or a number, not {jobs!r}") from None
    if count < 0:
        raise HarnessError(f"jobs must be 0 (this process) or more, not {count}")
    return count
