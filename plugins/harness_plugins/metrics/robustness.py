"""Quality of the predictions under attack."""

from __future__ import annotations

from typing import ClassVar

from harness.api import Metric, MetricContext, PluginError, Reference, Score
from harness_plugins.metrics.classification import checked, predicted


class RobustAccuracy(Metric):
    """Share of test samples predicted right on the clean *and* the adversarial input.

    Never above the clean accuracy of the samples that were attacked, which stands beside it: a sample that an attack
    happens to set right is not robust. Where a subset is attacked, that accuracy is not the whole test set's.
    Source: Croce et al. (2021), for the attack at hand in place of the worst case.
    """

    name = "robust-accuracy"
    reference = Reference(
        title="RobustBench: a standardized adversarial robustness benchmark",
        authors="Croce, Andriushchenko, Sehwag, Debenedetti, Flammarion, Chiang, Mittal, Hein",
        venue="NeurIPS Datasets and Benchmarks 2021",
        year=2021,
        url="https://arxiv.org/abs/2010.09670",
    )
    needs: ClassVar[tuple[str, ...]] = ("labels", "logits", "adversarial_logits")
    scores: ClassVar[dict[str, Score]] = {
        "robust_accuracy": Score(
            "higher", "share", "test samples right on the clean and the adversarial input"
        ),
        "attacked_clean_accuracy": Score(
            "higher", "share", "the same samples, right on the clean input: what there was to lose"
        ),
    }

    def score(self, context: MetricContext) -> dict[str, float]:
        labels, clean, adversarial = checked(context.labels, context.logits, context.adversarial_logits)
        before = predicted(clean) == labels
        right = before & (predicted(adversarial) == labels)
        return {"robust_accuracy": float(right.mean()), "attacked_clean_accuracy": float(before.mean())}


class AttackSuccessRate(Metric):
    """Share of the test samples of other classes that the trigger sends to the backdoor's target class.

    Samples of the target class do not count: to predict it for them is no success. Left out where there are
    no others. An attack with test records of its own (edge cases) is scored on these. Source: Gu et al. (2017).
    """

    name = "attack-success-rate"
    reference = Reference(
        title="BadNets: identifying vulnerabilities in the machine learning model supply chain",
        authors="Gu, Dolan-Gavitt, Garg",
        year=2017,
        url="https://arxiv.org/abs/1708.06733",
    )
    needs: ClassVar[tuple[str, ...]] = ("triggered_labels", "triggered_logits", "backdoor_target")
    scores: ClassVar[dict[str, Score]] = {
        "attack_success_rate": Score(
            "lower", "share", "test samples of other classes that the trigger sends to the target class"
        )
    }

    def score(self, context: MetricContext) -> dict[str, float]:
        import numpy as np

        if context.triggered_labels is None or context.triggered_logits is None:
            raise PluginError("the triggered samples' labels and logits are needed")
        labels, triggered = np.asarray(context.triggered_labels), np.asarray(context.triggered_logits)
        if triggered.ndim != 2 or labels.shape != triggered.shape[:1] or not len(labels):
            raise PluginError(f"triggered logits must be (t, classes) with t labels, not {triggered.shape}")
        target = context.backdoor_target
        if target is None or not 0 <= target < triggered.shape[1]:
            raise PluginError(f"the backdoor's target must lie in [0, {triggered.shape[1]}), not {target}")
        others = labels != target
        if not others.any():
            return {}
        answers = predicted(triggered)[others]
        if (answers < 0).any():  # a diverged model has no answer to send anywhere: that is no protection
            return {}
        return {"attack_success_rate": float((answers == target).mean())}


PLUGINS = (RobustAccuracy, AttackSuccessRate)
