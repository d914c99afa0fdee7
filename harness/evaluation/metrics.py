"""The scores of a cell: every metric that has what it needs, on values that none of them can change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from harness.contracts.metric import CONTEXT_FIELDS, Metric, MetricContext, shared_scores
from harness.errors import PluginError
from harness.evaluation.read_only import read_only, tensor_versions

ATTACK_FIELDS = ("adversarial_logits", "triggered_logits", "membership", "reconstruction", "audit")


def compute_metrics(metrics: tuple[Metric, ...], context: MetricContext, *, attack: bool) -> dict[str, float]:
    """The scores of every metric that has what it needs; those that need an attack only where asked for them."""
    _check_names(metrics)
    scores: dict[str, float] = {}
    for metric in metrics:
        unknown = set(metric.needs) - set(CONTEXT_FIELDS)
        if unknown:
            raise PluginError(
                f"metric {metric.name} needs {', '.join(sorted(unknown))}, which nobody provides"
            )
        about_attack = any(name in ATTACK_FIELDS for name in metric.needs)
        if about_attack is attack and context.has(metric.needs):
            with _untouched(metric, context) as shown:
                found = metric.score(shown)
            for name, value in found.items():
                if name not in metric.scores:
                    raise PluginError(f"metric {metric.name} returned {name!r}, which it does not declare")
                scores[name] = float(value)
    return scores


def confidence_intervals(metrics: tuple[Metric, ...], context: MetricContext) -> dict[str, list[float]]:
    """score -> [low, high], of the metrics about an attack that give intervals."""
    _check_names(metrics)
    intervals: dict[str, list[float]] = {}
    for metric in metrics:
        if set(metric.needs) & set(ATTACK_FIELDS) and context.has(metric.needs):
            with _untouched(metric, context) as shown:
                found = metric.intervals(shown)
            intervals |= {name: [float(low), float(high)] for name, (low, high) in found.items()}
    return intervals


def _check_names(metrics: tuple[Metric, ...]) -> None:
    for _, problem in shared_scores(metrics):
        raise PluginError(problem)


@contextmanager
def _untouched(metric: Metric, context: MetricContext) -> Iterator[MetricContext]:
    """The context as a metric is shown it. Raises PluginError where the metric wrote into a tensor of it."""
    before = tensor_versions(context)
    yield read_only(context)
    changed = [name for name, count in tensor_versions(context).items() if count != before.get(name)]
    if changed:
        raise PluginError(
            f"metric {metric.name} changed context.{changed[0]} in place, which the metrics after it compute from: "
            "work on a copy"
        )
