"""Several trainings as one program: those of a bundle differ in seed or in records alone."""

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
    """Trainings that differ in seed or records, from their initial weights, with all their clients as one program.

    None where nothing would be won, as such clients do not train as one program. Trainings whose networks differ in
    more than the values of parameters and buffers run one after another, and say so.
    """
    readies = [training.set_up(training.initial_module()) for training in trainings]
    trainer, client = readies[0].federation.trainer, readies[0].federation.clients[0]
    if not isinstance(trainer, VectorisedTrainer) or not trainer.mergeable(client):
        return None
    if not alike([ready.federation.module for ready in readies], to_pixels(client.images[:8])):
        del readies, trainer, client  # their networks have been called
        return [_alone(*pair) for pair in zip(trainings, reports, strict=True)]
    run_together([ready.run(report) for ready, report in zip(readies, reports, strict=True)])
    for ready in readies:
        own = ready.federation.trainer
        ways = {"ways": own.ways} if own.ways else {}  # of its own clients' hooks
        shared = {name: fact for name, fact in trainer.facts.items() if name != "ways"}
        own.facts = shared | ways | {"trainings": len(readies)}
    return [ready.trained() for ready in readies]


def _alone(training: Training, report: Report) -> Trained:
    """One of several trainings that cannot share a program."""
    logger.info("trainings run one after another: %s", APART)
    trained = training.run(training.initial_module(), report)
    trained.execution["alone"] = [*trained.execution["alone"], APART]
    return trained
