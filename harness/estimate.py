"""How long a plan will take: what the store has seen of equal stages, else a short measurement of one step."""

from __future__ import annotations

import time
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING, Any

from harness.contracts.attack import EvasionAttack
from harness.contracts.privacy import PrivacyAttack
from harness.devices import give_back_memory
from harness.stage_specs import AttackSpec, CleanSpec, CompressSpec, TrainSpec, training_of

if TYPE_CHECKING:
    from harness.grid import DataFacts
    from harness.plan import Plan, Stage

OVERHEAD = 0.15  # seconds a stage costs beside its arithmetic: loading, partitioning, storing
COMPRESS = 1.0  # seconds a compressor takes beside fine-tuning


def estimate(plan: Plan, pending: list[Stage], known: dict[tuple[str, str], float], jobs: int) -> float:
    """Seconds for the pending stages on `jobs` workers. known: the store's mean seconds by (kind, signature)."""
    total = longest = 0.0
    facts = {id(c.cell.scenario.dataset): plan.facts[c.cell.scenario.name] for c in plan.cells}
    for stage in pending:
        seconds = known.get((stage.kind, stage.signature))
        if seconds is None:
            spec = stage.spec
            train = training_of(spec)
            seconds = OVERHEAD + _seconds(spec, train, facts[id(train.dataset)], plan.device)
        total += seconds
        longest = max(longest, seconds)
    return max(total / max(jobs, 1), longest)


def _seconds(spec: Any, train: TrainSpec, facts: DataFacts, device: str) -> float:
    batch = train.federation.local.batch_size
    step, forward = _measure(train.model, train.normalization, facts, batch, train.compute.threads, device)
    return work(spec, train, facts, step, forward)


def work(spec: Any, train: TrainSpec, facts: DataFacts, step: float, forward: float) -> float:
    """Seconds of a stage where a local step takes `step` and an image through the network `forward` seconds."""
    local = train.federation.local
    records = facts.train * (1 - train.holdout) * train.federation.participation
    clients = max(1, round(train.federation.clients * train.federation.participation))
    per_round = (
        local.steps * clients
        if local.steps is not None
        else (local.epochs or 0) * (ceil(records / local.batch_size) + clients / 2)
    )
    cost = 1.0
    for defence in train.defences:
        cost *= defence.cost()
    if isinstance(spec, TrainSpec):
        return per_round * train.federation.rounds * step * cost
    if isinstance(spec, CompressSpec):
        rounds = sum(c.fine_tuning_rounds for c in spec.compressors)
        return COMPRESS * len(spec.compressors) + per_round * rounds * step * cost
    if isinstance(spec, CleanSpec):
        return facts.test * forward + 0.5
    assert isinstance(spec, AttackSpec)
    if isinstance(spec.attack, PrivacyAttack):
        return facts.test * forward * 4 + spec.attack.effort * forward * 8
    effort = spec.attack.effort * 3 + 2 if isinstance(spec.attack, EvasionAttack) else 4
    return facts.test * forward * effort


@lru_cache
def _measure_cached(
    model: Any,
    normalization: str,
    shape: tuple[int, int, int],
    classes: int,
    batch: int,
    threads: int,
    device: str,
) -> tuple[float, float]:
    import torch

    from harness.contracts.model import Normalization

    if device.startswith("cuda") and not torch.cuda.is_available():
        device = "cpu"  # the GPUs are elsewhere
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng():
            constants = None if normalization == "null" else Normalization.model_validate_json(normalization)
            module = model.build(shape, classes, constants).to(device)
            x = torch.rand((batch, *shape), device=device)
            y = torch.zeros(batch, dtype=torch.int64, device=device)
            step = forward = float("inf")
            for _ in range(3):
                started = time.perf_counter()
                loss = torch.nn.functional.cross_entropy(module(x), y)
                middle = time.perf_counter()
                torch.autograd.grad(loss, list(module.parameters()))
                if device.startswith("cuda"):
                    torch.cuda.synchronize()
                step = min(step, time.perf_counter() - started)
                forward = min(forward, (middle - started) / batch)
    finally:
        torch.set_num_threads(before)
    if device.startswith("cuda"):
        del module, x, y, loss
        give_back_memory(device)  # this process does not train
    return step, forward


def _measure(
    model: Any, normalization: Any, facts: DataFacts, batch: int, threads: int, device: str
) -> tuple[float, float]:
    constants = "null" if normalization is None else normalization.model_dump_json()
    return _measure_cached(model, constants, facts.input_shape, facts.num_classes, batch, threads, device)
