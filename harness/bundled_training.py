"""Runs several trainings as one program. The trainings of such a bundle differ only in seed or in records."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from harness.evaluation.predict import to_pixels
from harness.federation.cohort import alike
from harness.federation.together import run_together
from harness.federation.vectorised import VectorisedTrainer
from harness.training import Report, Trained, Training

logger = logging.getLogger(__name__)

APART = "the networks of the trainings beside it differ from its own in more than parameters and buffers"


def train_together(trainings: Sequence[Training], reports: Sequence[Report]) -> list[Trained] | None:
    """Train a bundle from its initial weights, with the clients of all its trainings as one program.

    Returns None where that would gain nothing, because these clients cannot train as one program. Trainings whose
    networks differ in more than the values of parameters and buffers run one after another, and their results say so.
    """
    readies = [training.set_up(training.initial_module()) for training in trainings]
    trainer, client = readies[0].federation.trainer, readies[0].federation.clients[0]
    if not isinstance(trainer, VectorisedTrainer) or not trainer.mergeable(client):
        return None
    if not alike([ready.federation.module for ready in readies], to_pixels(client.images[:8])):
        # These networks have been called by now; each training builds its own again.
        del readies, trainer, client
        return [_alone(*pair) for pair in zip(trainings, reports, strict=True)]
    run_together([ready.run(report) for ready, report in zip(readies, reports, strict=True)])
    for ready in readies:
        own = ready.federation.trainer
        ways = {"ways": own.ways} if own.ways else {}  # those of its own clients' hooks
        shared = {name: fact for name, fact in trainer.facts.items() if name != "ways"}
        own.facts = shared | ways | {"trainings": len(readies)}
    return [ready.trained() for ready in readies]


def _alone(training: Training, report: Report) -> Trained:
    """One of several trainings that cannot share a program."""
    logger.info("trainings run one after another: %s", APART)
    trained = training.run(training.initial_module(), report)
    trained.execution["alone"] = [*trained.execution["alone"], APART]
    return trained
