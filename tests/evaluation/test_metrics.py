"""Metrics share one context: none may change it, none may take another's score."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
import torch

import harness
from harness.api import Membership, Metric, MetricContext, Reconstruction, Score
from harness.contracts.metric import shared_scores
from harness.errors import PluginError
from harness.evaluation.metrics import compute_metrics, confidence_intervals
from harness.evaluation.unscored import unscored
from harness.testing.core import Setting
from harness.testing.metrics import everything


def metric(title: str, needs: tuple[str, ...], compute, intervals=None) -> Metric:
    """A metric whose one score has its title."""

    class Made(Metric):
        """A metric of a test."""

        name = title
        scores: ClassVar[dict[str, Score]] = {title: Score("higher", "", "for a test")}

        def score(self, context: MetricContext) -> dict[str, float]:
            return compute(context)

        def intervals(self, context: MetricContext) -> dict[str, tuple[float, float]]:
            return {} if intervals is None else intervals(context)

    Made.needs = needs
    return Made.create()


MEAN = metric("after", ("logits",), lambda context: {"after": float(context.logits.mean())})


@pytest.fixture
def context() -> MetricContext:
    return everything(Setting())


def test_a_metric_that_writes_into_the_logits_fails_by_itself(context):
    def sort(context):
        context.logits.sort(axis=1)
        return {"spoils": 0.0}

    with pytest.raises(ValueError, match="read-only") as caught:
        compute_metrics((metric("spoils", ("logits",), sort), MEAN), context, attack=False)
    assert any(entry.name == "sort" for entry in caught.traceback), "the traceback shows the culprit"
    assert context.logits.flags.writeable, "what the engine holds stays as it was"


@pytest.mark.parametrize(
    ("needs", "write"),
    [
        (("certificate",), lambda c: c.certificate.radii.fill(9)),
        (("membership",), lambda c: c.membership.scores.fill(9)),
        (("membership",), lambda c: c.membership.is_member.fill(True)),
    ],
)
def test_arrays_inside_dataclasses_are_read_only(context, needs, write):
    bad = metric("spoils", needs, write)
    with pytest.raises(ValueError, match="read-only"):
        compute_metrics((bad,), context, attack="membership" in needs)


@pytest.mark.parametrize(
    ("field", "write"),
    [
        ("reconstruction", lambda c: c.reconstruction.images[0].zero_()),
        ("state", lambda c: next(iter(c.state.values())).zero_()),
        ("module", lambda c: torch.nn.init.zeros_(next(c.module.parameters()))),
    ],
)
def test_a_metric_that_writes_into_a_tensor_is_named(context, field, write):
    def score(context):
        write(context)
        return {"spoils": 0.0}

    with pytest.raises(PluginError, match=rf"metric spoils changed context\.{field} in place"):
        compute_metrics((metric("spoils", (field,), score),), context, attack=field == "reconstruction")


def test_what_a_metric_puts_into_a_dictionary_is_not_seen_by_others(context):
    def score(context):
        context.training["train_seconds"] = 0.0
        return {"spoils": 0.0}

    compute_metrics((metric("spoils", ("training",), score),), context, attack=False)
    assert context.training["train_seconds"] == 2.0


def test_intervals_are_taken_from_read_only_values_too(context):
    def intervals(context):
        context.membership.scores.sort()
        return {"spoils": (0.0, 1.0)}

    bad = metric("spoils", ("membership",), lambda context: {"spoils": 0.5}, intervals)
    with pytest.raises(ValueError, match="read-only"):
        confidence_intervals((bad,), context)


def test_values_stay_what_they_were(context):
    seen = {}

    def look(context):
        seen["membership"], seen["reconstruction"] = context.membership, context.reconstruction
        return {"looks": 1.0}

    found = compute_metrics((metric("looks", ("membership",), look),), context, attack=True)
    assert found == {"looks": 1.0}
    assert isinstance(seen["membership"], Membership)
    assert isinstance(seen["reconstruction"], Reconstruction)
    np.testing.assert_array_equal(seen["membership"].scores, context.membership.scores)
    assert seen["reconstruction"].images[0] is context.reconstruction.images[0]


def test_two_metrics_with_one_score_name_are_refused_in_either_order(context):
    def other(name: str) -> Metric:
        made = metric(name, ("logits",), lambda context: {"shared": 0.0})
        type(made).scores = {"shared": Score("higher", "", "for a test")}
        return made

    pair = (other("first"), other("second"))
    for metrics in (pair, pair[::-1]):
        with pytest.raises(PluginError, match="both declare the score 'shared'"):
            compute_metrics(metrics, context, attack=False)
        with pytest.raises(PluginError, match="both declare the score 'shared'"):
            confidence_intervals(metrics, context)


def test_a_metric_that_stands_twice_with_other_parameters_is_no_clash(context):
    first = harness.create("metric", "latency", budget=0.001)
    second = harness.create("metric", "latency", budget=0.002)
    assert set(compute_metrics((first, second), context, attack=False)) == {"latency_ms_1", "latency_ms_64"}


def test_no_two_built_in_metrics_share_a_score():
    built_in = [cls.create() for cls in harness.plugins("metric").values()]
    assert list(shared_scores(built_in)) == []


@pytest.mark.parametrize("value", ["0.5", None, [1, 2], 1j, b"1", math.inf, -math.inf])
def test_a_share_that_is_no_finite_number_is_refused(context, value):
    bad = metric("share", ("logits",), lambda context: {"share": value})
    type(bad).scores = {"share": Score("higher", "share", "for a test")}
    with pytest.raises(PluginError, match="metric share: the score 'share' is"):
        compute_metrics((bad,), context, attack=False)


@pytest.mark.parametrize("value", [1, np.float32(0.5), torch.tensor(0.25), math.nan, math.inf])
def test_numbers_stay_what_they_are(context, value):
    """NaN: undefined, as of a model that has diverged; infinite: a quantity without a largest value."""
    good = metric("free", ("logits",), lambda context: {"free": value})
    found = compute_metrics((good,), context, attack=False)["free"]
    assert type(found) is float
    assert found == float(value) or (math.isnan(found) and math.isnan(value))


@pytest.mark.parametrize("ends", [0.5, (0.1,), (0.1, "0.2"), None])
def test_an_interval_that_is_no_pair_of_numbers_is_refused(context, ends):
    bad = metric("wide", ("membership",), lambda context: {"wide": 0.5}, lambda context: {"wide": ends})
    with pytest.raises(PluginError, match="metric wide: the"):
        confidence_intervals((bad,), context)


def test_an_attack_is_unscored_where_none_of_its_scores_has_a_value():
    assert all(map(unscored, ({}, {"a": None}, {"a": math.nan, "b": None})))
    assert not any(map(unscored, ({"a": 0.0}, {"a": math.nan, "b": 0.5}, {"a": None, "b": math.inf})))
