"""The train stage: a federation, run once, and what later stages need of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from harness.bundled_training import train_together
from harness.devices import PeakMemory
from harness.federation.vector import flatten
from harness.plan import Stage
from harness.stage_specs import TrainSpec
from harness.training import Report, Trained, Training

if TYPE_CHECKING:
    from torch import nn

    from harness.store import Store

logger = logging.getLogger(__name__)


class Progress(Protocol):
    """Called with how much of a stage is done, the same in words, and the history entry of a round that ended."""

    def __call__(self, done: int, total: int, text: str, round: dict[str, Any] | None = None) -> None: ...


def train(
    stage: Stage, store: Store, device: str, progress: Callable[[str], Progress]
) -> dict[str, dict[str, Any]]:
    """The stage's result, and those of the stages beside it that trained as one program with it, by key."""
    if stage.beside:
        results = _train_bundle((stage, *stage.beside), store, device, progress)
        if results is not None:
            return results
    training, memory = _training(stage, device), PeakMemory(device)
    trained = _run(training, report_rounds(progress(stage.key)))
    return {stage.key: _keep(training, trained, store, memory)}


def _train_bundle(
    stages: Sequence[Stage], store: Store, device: str, progress: Callable[[str], Progress]
) -> dict[str, dict[str, Any]] | None:
    """The results of all these stages, or None where their clients cannot train together or one of them fails."""
    memory = PeakMemory(device)
    try:
        trainings = [_training(stage, device) for stage in stages]
        trained = train_together(trainings, [report_rounds(progress(stage.key)) for stage in stages])
        if trained is None:
            return None
        kept = [_keep(*pair, store, memory) for pair in zip(trainings, trained, strict=True)]
    except Exception as error:  # which training caused it will show when each trains alone
        logger.warning("%d trainings as one program: %s: %s", len(stages), type(error).__name__, error)
        return None
    return {stage.key: result for stage, result in zip(stages, kept, strict=True)}


def _training(stage: Stage, device: str) -> Training:
    spec = stage.spec
    assert isinstance(spec, TrainSpec)
    return Training(spec, spec.noise_key or stage.key, device, stage.at_a_time)


def _keep(training: Training, trained: Trained, store: Store, memory: PeakMemory) -> dict[str, Any]:
    digest, _ = store.save_tensors(trained.module.state_dict())
    artifacts, kept = [digest], {}
    if trained.recorder is not None:
        recorder = trained.recorder
        kept = {"recorded": recorder.rounds, "signals": recorder.signals(flatten(trained.module))}
        if recorder.tensors:
            artifacts.append(store.save_tensors(recorder.tensors)[0])
    return {
        **kept,
        "artifacts": artifacts,
        "prepared": trained.prepared,
        "guarantees": [guarantee.model_dump() for guarantee in training.guarantees(trained.prepared)],
        "history": trained.outcome.history,
        "malicious": training.malicious,
        "client_sizes": [len(c) for c in training.pool.clients],
        "records": len(training.pool.members),
        "non_members": len(training.pool.non_members),
        "dropped_updates": trained.outcome.dropped,
        "training": training_facts(trained) | {"peak_memory_bytes": memory.bytes()},
    }


def _run(training: Training, report: Report) -> Trained:
    if training.spec.engine == "flower":
        from harness.flower.engine import train as train_by_flower

        return train_by_flower(training, report)
    return training.run(training.initial_module(), report)


def training_facts(trained: Trained) -> dict[str, Any]:
    outcome = trained.outcome
    return {
        "train_seconds": outcome.seconds,
        "elapsed_seconds": outcome.elapsed,
        "uplink_bytes_per_round": outcome.uplink_bytes / max(outcome.messages, 1),
        "downlink_bytes_per_round": outcome.downlink_bytes / max(outcome.messages, 1),
        "rounds": len(outcome.history),
        "execution": trained.execution,
        "detection": None if outcome.detection is None else asdict(outcome.detection),
    }


def report_rounds(progress: Progress) -> Report:
    def report(done: int, total: int, entry: dict[str, Any]) -> None:
        accuracy = entry.get("val_accuracy")
        text = f"round {done}/{total}" + ("" if accuracy is None else f", val {accuracy:.3f}")
        progress(done, total, text, entry)

    return report


def load_trained(training: Training, store: Store, result: dict[str, Any]) -> nn.Module:
    """The trained module, from its artifact."""
    module = training.initial_module()
    module.load_state_dict(store.load_tensors(result["artifacts"][0], training.device))
    return module.eval()
