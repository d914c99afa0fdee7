"""The scores of a cell: every metric that has what it needs, on values that none of them can change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from harness.contracts.metric import Metric, MetricContext, shared_scores
from harness.contracts.privacy import PrivacyAttack
from harness.errors import PluginError, blamed
from harness.evaluation.read_only import read_only, tensor_versions

ATTACK_FIELDS = ("adversarial_logits", "triggered_logits", "membership", "reconstruction", "audit")


def compute_metrics(metrics: tuple[Metric, ...], context: MetricContext, *, attack: bool) -> dict[str, float]:
    """The scores of all metrics that have what they need: of those about an attack if `attack`, else of the others.

    Raises PluginError for a metric that returns what it does not declare.
    """
    _check_names(metrics)
    scores: dict[str, float] = {}
    for metric in metrics:
        about_attack = any(name in ATTACK_FIELDS for name in metric.needs)
        if about_attack is attack and context.has(metric.needs):
            with _untouched(metric, context) as shown, _own(metric):
                found = metric.score(shown)
            scores |= {name: checked_number(metric, name, value) for name, value in _named(metric, found)}
    return scores


def confidence_intervals(metrics: tuple[Metric, ...], context: MetricContext) -> dict[str, list[float]]:
    """score -> [low, high], from the metrics about an attack that give intervals.

    Raises PluginError for an interval that is not (low, high), or of a score that its metric does not declare.
    """
    _check_names(metrics)
    intervals: dict[str, list[float]] = {}
    for metric in metrics:
        if set(metric.needs) & set(ATTACK_FIELDS) and context.has(metric.needs):
            with _untouched(metric, context) as shown, _own(metric):
                found = metric.intervals(shown)
            for name, ends in _named(metric, found):
                try:
                    low, high = ends
                except (TypeError, ValueError):
                    raise PluginError(
                        f"metric {metric.name}: the interval of {name!r} is {ends!r:.80}, not (low, high)"
                    ) from None
                intervals[name] = [checked_number(metric, name, end) for end in (low, high)]
    return intervals


def _named(metric: Metric, found: Any) -> list[tuple[str, Any]]:
    """(score, value) of what a metric returned. Raises PluginError unless it is a dictionary of declared scores."""
    if not isinstance(found, Mapping):
        raise PluginError(
            f"metric {metric.name} returned {type(found).__name__}, not a dictionary; an empty one where nothing is "
            "defined"
        )
    for name in found:
        if name not in metric.scores:
            raise PluginError(f"metric {metric.name} returned {name!r}, which it does not declare")
    return list(found.items())


def checked_number(plugin: Metric | PrivacyAttack, name: str, value: Any) -> float:
    """The value of a score that a plugin declares. Raises PluginError for what is no number, and for an infinite share.

    NaN stands for what is undefined, as for a model that has diverged, and a quantity without a largest value may be
    infinite; both are kept.
    """
    try:
        found = None if isinstance(value, str | bytes) else float(value)  # float() would parse a string
    except (TypeError, ValueError, RuntimeError):
        found = None
    who = f"{plugin.kind} {plugin.name}: the score {name!r}"
    if found is None:
        raise PluginError(f"{who} is {value!r:.80}, not a number")
    if math.isinf(found) and plugin.scores[name].unit == "share":
        raise PluginError(f"{who} is a share and {found}")
    return found


def _check_names(metrics: tuple[Metric, ...]) -> None:
    for _, problem in shared_scores(metrics):
        raise PluginError(problem)


@contextmanager
def _own(metric: Metric) -> Iterator[None]:
    """Names the metric in what it raises; a write to a read-only array is explained in the contract's words."""
    with blamed(metric):
        try:
            yield
        except ValueError as error:
            if "read-only" in str(error):  # amended, not replaced: its traceback shows the line
                error.args = (
                    f"metric {metric.name} writes into an array of its context, which the metrics after it compute "
                    f"from: work on a copy ({error})",
                )
            raise


@contextmanager
def _untouched(metric: Metric, context: MetricContext) -> Iterator[MetricContext]:
    """The context as a metric is shown it. Raises PluginError where the metric wrote into one of its tensors."""
    before = tensor_versions(context)
    yield read_only(context)
    changed = [name for name, count in tensor_versions(context).items() if count != before.get(name)]
    if changed:
        raise PluginError(
            f"metric {metric.name} changed context.{changed[0]} in place, which the metrics after it compute from: "
            "work on a copy"
        )
