"""Runs federations to their end: one, or several whose clients train at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.federation.rounds import Federation


@dataclass(frozen=True, eq=False)
class Run:
    """A federation and its rounds, which change its module.

    schedule: the clients of each round. evaluate(round) -> scores, or {} to skip.
    """

    federation: Federation
    schedule: list[list[int]]
    multiplier: Callable[[int], float]
    evaluate: Callable[[int], dict[str, float]] | None
    report: Callable[[int, int, dict[str, Any]], None]


def run_together(runs: Sequence[Run]) -> None:
    """Runs trainings of equally many rounds, round by round: the first one's trainer trains the clients of all at once.

    Each training gives the numbers that it gives alone. A training's `seconds` are an equal share of the time that
    all of them would take with clients one after another: how many cores were free is not a property of a method.
    """
    for run in runs:
        run.federation.begin(run.schedule, run.multiplier)
    rounds, spared = len(runs[0].schedule), runs[0].federation.trainer.spared
    for round in range(rounds):
        started = time.perf_counter()
        opened = [run.federation.open(round) for run in runs]
        tasks = [
            run.federation.tasks(o.start, o.trained, o.attackers, o.buffers)
            for run, o in zip(runs, opened, strict=True)
        ]
        trained = iter(runs[0].federation.trainer.train_all([task for own in tasks for task in own]))
        entries = []
        for run, o, own in zip(runs, opened, tasks, strict=True):
            sent, buffers = run.federation.collect(o.trained, list(islice(trained, len(own))))
            updates = run.federation.wire.exchange(round, sent, o.buffers)
            entries.append(run.federation.close(o, updates, buffers))
        elapsed = time.perf_counter() - started
        trainer = runs[0].federation.trainer
        seconds = (elapsed + trainer.spared - spared) / len(runs)
        spared = trainer.spared
        for run, entry in zip(runs, entries, strict=True):
            outcome = run.federation.outcome
            outcome.seconds += seconds
            outcome.elapsed += elapsed / len(runs)
            entry |= run.evaluate(round) if run.evaluate else {}
            outcome.history.append(entry)
            run.report(round + 1, rounds, entry)
