"""How well the server's rule finds the malicious clients."""

from __future__ import annotations

from typing import ClassVar

from harness.api import Metric, MetricContext, PluginError, Score


class Detection(Metric):
    """Precision, recall and false-positive rate of excluding malicious clients, pooled over all rounds.

    A client is flagged in a round where its update does not enter the server's result: a rule left it out or
    gave it less than half of an equal share of the weight, or it held values that are not finite. With TP flagged
    malicious, FP flagged honest, FN kept malicious and TN kept honest (client, round) pairs:
    precision = TP / (TP + FP), recall = TP / (TP + FN), false-positive rate = FP / (FP + TN).
    A client counts as malicious in the rounds in which it attacks. A ratio of 0 / 0 is left out. A
    rule that treats every row alike, or in which several clients share a row, flags nobody: its rounds count only
    where the server dropped an update that was not finite, and without any such round all three are left out.
    """

    name = "detection"
    needs: ClassVar[tuple[str, ...]] = ("training",)
    scores: ClassVar[dict[str, Score]] = {
        "detection_precision": Score("higher", "share", "clients excluded by the server that are malicious"),
        "detection_recall": Score("higher", "share", "malicious clients that the server excluded"),
        "detection_false_positive_rate": Score("lower", "share", "honest clients that the server excluded"),
    }

    def score(self, context: MetricContext) -> dict[str, float]:
        if context.training is None:
            raise PluginError("the facts of a training are needed")
        counts = context.training.get("detection")
        if counts is None:
            return {}
        found, missed = counts["flagged_malicious"], counts["kept_malicious"]
        wrong, right = counts["flagged_honest"], counts["kept_honest"]
        ratios = {
            "detection_precision": (found, found + wrong),
            "detection_recall": (found, found + missed),
            "detection_false_positive_rate": (wrong, wrong + right),
        }
        return {name: part / whole for name, (part, whole) in ratios.items() if whole}


PLUGINS = (Detection,)
