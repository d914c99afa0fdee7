"""Quality of the clean predictions.

Written in NumPy: scikit-learn gives the same numbers, which the tests check, but its import takes seconds in
every worker process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import Metric, MetricContext, PluginError, Reference, Score

if TYPE_CHECKING:
    import numpy as np


def predicted(logits: np.ndarray) -> np.ndarray:
    """The class of each row of logits (n, k), the first of equal ones; -1 (none) where a value is NaN."""
    import numpy as np

    return np.where(np.isnan(logits).any(1), -1, logits.argmax(1))


def checked(labels: np.ndarray | None, *logits: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """labels (n,) and each logits (n, k). Raises PluginError where they are missing, empty or do not fit."""
    import numpy as np

    if labels is None or any(rows is None for rows in logits):
        raise PluginError("labels and logits are needed")
    arrays = tuple(np.asarray(a) for a in (labels, *logits))
    if arrays[0].ndim != 1 or not len(arrays[0]):
        raise PluginError(f"labels must be (n,) with n >= 1, not {arrays[0].shape}")
    for rows in arrays[1:]:
        if rows.ndim != 2 or len(rows) != len(arrays[0]):
            raise PluginError(f"logits must be ({len(arrays[0])}, classes), not {rows.shape}")
        if arrays[0].min() < 0 or arrays[0].max() >= rows.shape[1]:
            raise PluginError(f"labels must lie in [0, {rows.shape[1]})")
    return arrays


def log_normalizer(logits: np.ndarray) -> np.ndarray:
    """log sum_k exp(logits) over the last axis, float64."""
    import numpy as np

    return np.logaddexp.reduce(logits.astype(np.float64), axis=-1)


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve, the Mann-Whitney statistic over n+ n-: P(s+ > s-) + P(s+ = s-) / 2.

    scores (n,), positive (n,) bool; O(n log n). NaN where a side is empty or a score is NaN.
    """
    import numpy as np

    positive = np.asarray(positive, dtype=bool)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative or np.isnan(scores).any():
        return float("nan")
    _, group, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[group]  # ties share the mean of their ranks
    return float((rank[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


class Accuracy(Metric):
    """Share of test samples predicted right, argmax of the logits. A NaN prediction is wrong."""

    name = "accuracy"
    needs: ClassVar[tuple[str, ...]] = ("labels", "logits")
    scores: ClassVar[dict[str, Score]] = {
        "accuracy": Score("higher", "share", "test samples predicted right")
    }

    def score(self, context: MetricContext) -> dict[str, float]:
        labels, logits = checked(context.labels, context.logits)
        return {"accuracy": float((predicted(logits) == labels).mean())}


class BalancedAccuracy(Metric):
    """Mean over the classes that occur of each class's recall: as if all classes were equally frequent."""

    name = "balanced-accuracy"
    reference = Reference(
        title="The balanced accuracy and its posterior distribution",
        authors="Brodersen, Ong, Stephan, Buhmann",
        venue="ICPR 2010",
        year=2010,
        url="https://doi.org/10.1109/ICPR.2010.764",
    )
    needs: ClassVar[tuple[str, ...]] = ("labels", "logits")
    scores: ClassVar[dict[str, Score]] = {
        "balanced_accuracy": Score("higher", "share", "mean recall over the classes in the test set")
    }

    def score(self, context: MetricContext) -> dict[str, float]:
        import numpy as np

        labels, logits = checked(context.labels, context.logits)
        right = predicted(logits) == labels
        recall = [right[labels == c].mean() for c in np.unique(labels)]
        return {"balanced_accuracy": float(np.mean(recall))}


class MacroF1(Metric):
    """Mean of F1 = 2 TP / (2 TP + FP + FN) over the classes that occur as label or prediction."""

    name = "macro-f1"
    needs: ClassVar[tuple[str, ...]] = ("labels", "logits")
    scores: ClassVar[dict[str, Score]] = {
        "macro_f1": Score("higher", "share", "mean F1 score of the classes")
    }

    def score(self, context: MetricContext) -> dict[str, float]:
        import numpy as np

        labels, logits = checked(context.labels, context.logits)
        prediction = predicted(logits)
        values = []
        for c in np.union1d(labels, prediction[prediction >= 0]):
            hits = int(((prediction == c) & (labels == c)).sum())
            # 2 TP + FP + FN: how often the class is predicted, plus how often it is true.
            values.append(2 * hits / (int((prediction == c).sum()) + int((labels == c).sum())))
        return {"macro_f1": float(np.mean(values))}


class AUROC(Metric):
    """Area under the ROC curve: of class 1 for two classes, else the mean of each class against the rest.

    A class is ranked by its log-odds, log p - log(1 - p) of the softmax: the order of the probabilities
    without their ties near 0 and 1. Left out where a class does not occur, as its curve is undefined, or a
    logit is NaN. Source: Hanley and McNeil (1982) for the area as a rank statistic. O(k n log n).
    """

    name = "auroc"
    reference = Reference(
        title="The meaning and use of the area under a receiver operating characteristic (ROC) curve",
        authors="Hanley, McNeil",
        venue="Radiology 143(1)",
        year=1982,
        url="https://doi.org/10.1148/radiology.143.1.7063747",
    )
    needs: ClassVar[tuple[str, ...]] = ("labels", "logits")
    scores: ClassVar[dict[str, Score]] = {
        "auroc": Score(
            "higher", "share", "area under the ROC curve; mean of class against rest beyond two classes"
        )
    }

    def score(self, context: MetricContext) -> dict[str, float]:
        import numpy as np

        labels, logits = checked(context.labels, context.logits)
        classes = range(logits.shape[1])
        if len(classes) < 2 or np.isnan(logits).any():
            return {}
        # Measured from each row's greatest and added up in order of size: rounding alone would tell rows of the same
        # probabilities apart, of which 8-bit networks give many.
        rows = logits.astype(np.float64)
        greatest = rows.max(1, keepdims=True)
        rows = rows - np.where(np.isfinite(greatest), greatest, 0)
        with np.errstate(invalid="ignore"):
            odds = [rows[:, c] - log_normalizer(np.sort(np.delete(rows, c, axis=1))) for c in classes]
        chosen = classes[1:] if len(classes) == 2 else classes
        area = float(np.mean([auroc(odds[c], labels == c) for c in chosen]))
        return {} if np.isnan(area) else {"auroc": area}


class Loss(Metric):
    """Mean cross-entropy of the test samples, -log softmax(logits)[label], in nats; left out if NaN."""

    name = "loss"
    needs: ClassVar[tuple[str, ...]] = ("labels", "logits")
    scores: ClassVar[dict[str, Score]] = {
        "loss": Score("lower", "nats", "mean cross-entropy on the test set")
    }

    def score(self, context: MetricContext) -> dict[str, float]:
        import numpy as np

        labels, logits = checked(context.labels, context.logits)
        with np.errstate(invalid="ignore"):
            own = logits[np.arange(len(labels)), labels].astype(np.float64)
            loss = float((log_normalizer(logits) - own).mean())
        return {} if np.isnan(loss) else {"loss": loss}


PLUGINS = (Accuracy, BalancedAccuracy, MacroF1, AUROC, Loss)
