"""What training cost, as the engine counted or measured it."""

from __future__ import annotations

from typing import ClassVar

from harness.api import Metric, MetricContext, PluginError, Score


class TrainingFacts(Metric):
    """Scores that are facts of the training, taken over by name; unknown ones are left out."""

    needs: ClassVar[tuple[str, ...]] = ("training",)

    def score(self, context: MetricContext) -> dict[str, float]:
        if context.training is None:
            raise PluginError("the facts of a training are needed")
        known = {name: context.training.get(name) for name in self.scores}
        return {name: float(value) for name, value in known.items() if value is not None}


class Uplink(TrainingFacts):
    """Bytes that one client sends and receives in a round, mean over clients and rounds.

    Encoded payloads, indices included, and float buffers; without what transport adds. A crafted update of
    a malicious client is not counted.
    """

    name = "uplink"
    scores: ClassVar[dict[str, Score]] = {
        "uplink_bytes_per_round": Score(
            "lower", "bytes per client", "sent by a client in a round, as encoded"
        ),
        "downlink_bytes_per_round": Score("lower", "bytes per client", "sent to a client in a round"),
    }


class TrainTime(TrainingFacts):
    """Time of the training, as its clients take one after another: free cores are not a property of a method."""

    name = "train-time"
    scores: ClassVar[dict[str, Score]] = {
        "train_seconds": Score(
            "lower", "s", "time of the training, its clients one after another", measured=True
        )
    }


class PeakMemory(TrainingFacts):
    """The most memory the training held at once, on its device."""

    name = "peak-memory"
    scores: ClassVar[dict[str, Score]] = {
        "peak_memory_bytes": Score(
            "lower", "bytes", "most memory held at once by the training", measured=True
        )
    }


PLUGINS = (Uplink, TrainTime, PeakMemory)
