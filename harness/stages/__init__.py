"""Executes stages: train, compress, clean, attack. All a worker needs is in the stage and the store."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness.devices import PeakMemory
from harness.plan import Stage
from harness.provenance import of_stage
from harness.stage_specs import CleanSpec, CompressSpec, TrainSpec, training_of
from harness.stages.compress import compress
from harness.stages.isolation import isolated
from harness.stages.score import attack, clean
from harness.stages.train import Progress, train

if TYPE_CHECKING:
    from harness.store import Store


def execute(
    stage: Stage, store: Store, device: str, progress: Callable[[str], Progress]
) -> dict[str, dict[str, Any]]:
    """Compute a stage and those beside it; write their artifacts and rows, and return the results by key.

    progress: a stage's key -> the callback for its progress. Stages beside this one that could not be computed with it
    are left out. Raises what the work on the stage itself raises.
    """
    spec = stage.spec
    compute = training_of(spec).compute
    together = (*stage.beside, stage)
    for one in together:
        one.premises.check_code()
    memory = PeakMemory(device)
    started = time.perf_counter()
    with isolated(stage.key, device, compute.threads, compute.tf32):
        if isinstance(spec, TrainSpec):
            results = train(stage, store, device, progress)
        elif isinstance(spec, CompressSpec):
            results = {stage.key: compress(stage, spec, store, device, progress(stage.key))}
        elif isinstance(spec, CleanSpec):
            results = {stage.key: clean(stage, spec, store, device)}
        else:
            results = {stage.key: attack(stage, spec, store, device, progress(stage.key))}
    seconds = (time.perf_counter() - started) / len(results)
    for one in together:  # once more, for the code and data that were only now imported and read
        one.premises.check()
    facts = {"peak_memory_bytes": memory.bytes(), "seconds": seconds, **of_stage(device)}
    for one in together:  # the stage itself comes last: when its row is there, so are the others
        if one.key in results:
            result = results[one.key] = results[one.key] | facts
            store.put_stage(one.key, one.kind, one.signature, one.label, "done", result, seconds)
    return results
