"""Executes stages: train, compress, clean, attack. All a worker needs is in the stage and the store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from harness.devices import PeakMemory
from harness.plan import CleanSpec, CompressSpec, Stage, TrainSpec, training_of
from harness.provenance import device_name
from harness.stages.compress import compress
from harness.stages.score import attack, clean
from harness.stages.train import Progress, train

if TYPE_CHECKING:
    from harness.store import Store


def execute(stage: Stage, store: Store, device: str, progress: Progress) -> dict[str, Any]:
    """Compute one stage, write its artifacts and its row, and return the result. Raises what the work raises."""
    spec = stage.spec
    compute = training_of(spec).compute
    memory = PeakMemory(device)
    started = time.perf_counter()
    with _numerics(compute.threads, compute.tf32):
        if isinstance(spec, TrainSpec):
            result = train(stage, spec, store, device, progress)
        elif isinstance(spec, CompressSpec):
            result = compress(stage, spec, store, device, progress)
        elif isinstance(spec, CleanSpec):
            result = clean(stage, spec, store, device)
        else:
            result = attack(stage, spec, store, device, progress)
    result["peak_memory_bytes"] = memory.bytes()
    result["device_name"] = device_name(device)
    seconds = time.perf_counter() - started
    result["seconds"] = seconds
    store.put_stage(stage.key, stage.kind, stage.signature, stage.label, "done", result, seconds)
    return result


@contextmanager
def _numerics(threads: int, tf32: bool) -> Iterator[None]:
    before = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    deterministic = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[1:]
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic
