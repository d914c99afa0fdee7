"""How long a plan will take: from the times of equal stages in the store, else from a short measurement of one step."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from harness.contracts.attack import EvasionAttack
from harness.contracts.privacy import PrivacyAttack
from harness.devices import current, give_back_memory
from harness.stage_specs import AttackSpec, CleanSpec, CompressSpec, TrainSpec, training_of

if TYPE_CHECKING:
    from harness.contracts.base import Plugin
    from harness.grid import DataFacts
    from harness.plan import Plan, Stage

OVERHEAD = 0.15  # seconds a stage costs besides its arithmetic: loading, partitioning, storing
MEASURED = 0.1  # seconds that a network is measured for; longer only if three runs take longer
COMPRESS = 1.0  # seconds a compressor takes besides fine-tuning
# Seconds assumed for a step and for an image's forward pass where a network cannot be measured.
NOMINAL = (1e-2, 1e-4)


def estimate(plan: Plan, pending: list[Stage], known: dict[tuple[str, str], float]) -> dict[str, float]:
    """Seconds of each pending stage, by its key. known: the store's mean seconds by (kind, signature).

    For a stage with no equal in the store, the time of its arithmetic is computed from a short measurement of speed,
    and multiplied by the ratio of seen to computed seconds of the stages in the store that are most like it: attacks
    stop early, int8 is slow, machines are shared.
    """
    facts = {id(c.cell.scenario.dataset): plan.facts[c.cell.scenario.name] for c in plan.cells}

    def computed(stage: Stage) -> float:
        train = training_of(stage.spec)
        return OVERHEAD + _seconds(stage.spec, train, facts[id(train.dataset)], plan.device)

    def seen(stage: Stage) -> float | None:
        return known.get((stage.kind, stage.signature))

    like = _Alike()
    told = bool(known) and any(seen(stage) is None for stage in pending)
    for stage in {stage.signature: stage for stage in plan.stages.values()}.values() if told else ():
        seconds = seen(stage)
        if seconds is not None:
            like.add(stage, seconds, computed(stage))
    alike: dict[tuple[str, str], float] = {}
    for stage in pending:
        if (stage.kind, stage.signature) not in alike:
            found = seen(stage)
            seconds = like.ratio(stage) * computed(stage) if found is None else found
            alike[stage.kind, stage.signature] = seconds
    return {stage.key: alike[stage.kind, stage.signature] for stage in pending}


def elapsed(seconds: Collection[float], jobs: int) -> float:
    """Seconds for stages that take `seconds` each, on `jobs` workers: an even share, but no less than the longest."""
    return max(math.fsum(seconds) / max(jobs, 1), max(seconds, default=0.0))


class _Alike:
    """The ratio of the seconds that stages took to those computed for them, by what the stages have in common."""

    def __init__(self) -> None:
        # what stages have in common, see `_groups` -> [seconds seen, seconds computed]
        self.seconds: dict[tuple[Any, ...], list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, stage: Stage, seen: float, computed: float) -> None:
        for group in _groups(stage):
            self.seconds[group][0] += seen
            self.seconds[group][1] += computed

    def ratio(self, stage: Stage) -> float:
        """The ratio of the seen stages that have most in common with this one; 1 where none of its kind was seen."""
        if not self.seconds:
            return 1.0
        seen, computed = next((self.seconds[g] for g in _groups(stage) if g in self.seconds), (1.0, 1.0))
        return seen / computed


def _groups(stage: Stage) -> list[tuple[Any, ...]]:
    """What a stage may have in common with others, from its kind and all its methods down to its kind alone."""
    spec, train = stage.spec, training_of(stage.spec)
    attack = (spec.attack.name,) if isinstance(spec, AttackSpec) else ()
    compressors: tuple[Plugin, ...] = train.compressors
    if not isinstance(spec, TrainSpec):
        compressors += spec.compressors if isinstance(spec, CompressSpec) else spec.model.compressors
    parts = (stage.kind, attack, _names(compressors), _names(train.defences))
    return [parts[:end] for end in range(len(parts), 0, -1)]


def _names(stack: Iterable[Plugin]) -> tuple[str, ...]:
    return tuple(plugin.name for plugin in stack)


def _seconds(spec: Any, train: TrainSpec, facts: DataFacts, device: str) -> float:
    batch = train.federation.local.batch_size
    step, forward = _measure(train.model, train.normalization, facts, batch, train.compute.threads, device)
    return work(spec, train, facts, step, forward)


def work(spec: Any, train: TrainSpec, facts: DataFacts, step: float, forward: float) -> float:
    """Seconds of a stage where a local step takes `step` seconds and an image's forward pass takes `forward`."""
    local = train.federation.local
    records = facts.train * (1 - train.holdout) * train.federation.participation
    clients = max(1, round(train.federation.clients * train.federation.participation))
    per_round = (
        local.steps * clients
        if local.steps is not None
        else (local.epochs or 0) * (math.ceil(records / local.batch_size) + clients / 2)
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
        return _part(facts.test, spec.evaluation.subset) * forward + 0.5
    assert isinstance(spec, AttackSpec)
    if isinstance(spec.attack, PrivacyAttack):
        return facts.test * forward * 4 + spec.attack.effort * forward * 8
    images = _part(facts.test, spec.threat.subset, spec.evaluation.subset)
    if not isinstance(spec.attack, EvasionAttack):
        return images * forward * 4
    passes = max(1, len(spec.ways)) * spec.attack.passes(facts.num_classes) + 2
    return images * forward * passes


def _part(whole: int, *subsets: int | None) -> int:
    """How many records of a split of `whole` are used: the first subset size that is declared, else all."""
    return min(whole, next((subset for subset in subsets if subset is not None), whole))


@lru_cache
def _measure_cached(*how: Any) -> tuple[float, float]:
    try:
        return _measured(*how)
    except Exception:  # a network that is broken or too large fails its own stages, not the plan
        return NOMINAL


def _measured(
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
    from harness.pooling import cheap_pooling

    if device.startswith("cuda") and not torch.cuda.is_available():
        device = "cpu"  # the GPUs are in other machines
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with current(device), torch.random.fork_rng([device] if device.startswith("cuda") else []):
            constants = None if normalization == "null" else Normalization.model_validate_json(normalization)
            module = model.build(shape, classes, constants).to(device)
            x = torch.rand((batch, *shape), device=device)
            y = torch.zeros(batch, dtype=torch.int64, device=device)

            # A processor's time, not that in which other work here has it; a GPU's is time spent waiting for it.
            clock = time.perf_counter if device.startswith("cuda") else time.thread_time

            def quickest(work: Callable[[], Any]) -> float:
                """The shortest of three runs, or of as many as fit `MEASURED` seconds: other work here slows some."""
                found: list[float] = []
                while len(found) < 3 or math.fsum(found) < MEASURED:
                    started = clock()
                    work()
                    if device.startswith("cuda"):
                        torch.cuda.synchronize(device)
                    found.append(clock() - started)
                return min(found)

            def local_step() -> None:
                loss = torch.nn.functional.cross_entropy(module(x), y)
                torch.autograd.grad(loss, list(module.parameters()))

            with cheap_pooling(module):  # as in every stage
                step = quickest(local_step)
                module.eval()
                with torch.inference_mode():
                    forward = quickest(lambda: module(x)) / batch
    finally:
        torch.set_num_threads(before)
    if device.startswith("cuda"):
        del module, x, y
        give_back_memory(device)  # this process does not train, and needs none
    return step, forward


def _measure(
    model: Any, normalization: Any, facts: DataFacts, batch: int, threads: int, device: str
) -> tuple[float, float]:
    constants = "null" if normalization is None else normalization.model_dump_json()
    batch = min(batch, facts.train)
    return _measure_cached(model, constants, facts.input_shape, facts.num_classes, batch, threads, device)
