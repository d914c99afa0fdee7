import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from harness import registry
from harness.api import Audit, Guarantee, Membership, MetricContext


def metric(name):
    return registry.resolve("metric", name)


def context(scores, member, groups=None):
    return MetricContext(2, (1, 8, 8), membership=Membership(np.asarray(scores), np.asarray(member), groups))


def drawn(n, shift, seed=0):
    rng = np.random.default_rng(seed)
    member = np.repeat([True, False], n)
    return np.round(rng.normal(size=2 * n) + shift * member, 1), member  # rounded: with ties


def test_intervals_are_those_of_a_plain_bootstrap():
    scores, member = drawn(300, 0.5)
    found = metric("mia").intervals(context(scores, member))
    rng = np.random.default_rng(7)
    aucs, balanced = [], []
    for _ in range(600):
        take = np.concatenate([rng.integers(0, 300, 300), 300 + rng.integers(0, 300, 300)])
        aucs.append(roc_auc_score(member[take], scores[take]))
        again = metric("mia").score(context(scores[take], member[take]))
        balanced.append(again["mia_balanced_accuracy"])
    for name, values in (("mia_auc", aucs), ("mia_balanced_accuracy", balanced)):
        low, high = np.percentile(values, [2.5, 97.5])
        assert found[name] == pytest.approx((low, high), abs=0.006)


def test_rates_have_intervals_where_they_are_reported_and_contain_the_estimate():
    scores, member = drawn(1200, 1.0)
    known = context(scores, member)
    found, point = metric("mia").intervals(known), metric("mia").score(known)
    assert set(found) == set(point) == {"mia_auc", "mia_balanced_accuracy", "mia_tpr_at_1pct_fpr"}
    for name, (low, high) in found.items():
        assert low <= point[name] <= high
        assert low < high


def test_scores_of_two_values_have_the_intervals_of_what_they_say():
    """An attack that answers yes or no: what it says of all members, and of no other record, stays so in any draw."""
    member = np.repeat([True, False], 40)
    assert metric("mia").intervals(context(member * 1.0, member))["mia_auc"] == (1.0, 1.0)
    assert metric("mia").intervals(context(1.0 - member, member))["mia_auc"] == (0.0, 0.0)
    assert metric("mia").intervals(context(0.0 * member, member))["mia_auc"] == (0.5, 0.5)


def test_patients_are_drawn_whole():
    """Ten copies of each record under one patient say no more than one copy: the interval must not shrink."""
    scores, member = drawn(120, 0.5)
    groups = np.arange(len(scores))
    single = metric("mia").intervals(context(scores, member, groups))["mia_auc"]
    copied = (np.repeat(scores, 10), np.repeat(member, 10))
    grouped = metric("mia").intervals(context(*copied, np.repeat(groups, 10)))["mia_auc"]
    naive = metric("mia").intervals(context(*copied))["mia_auc"]
    width = np.ptp(single)
    assert np.ptp(grouped) == pytest.approx(width, rel=0.1)
    assert np.ptp(naive) < 0.5 * width


def test_about_nineteen_of_twenty_intervals_hold_the_truth():
    from scipy.stats import norm

    truth, inside = norm.cdf(0.5 / np.sqrt(2)), 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        member = np.repeat([True, False], 150)
        low, high = metric("mia").intervals(context(rng.normal(size=300) + 0.5 * member, member))["mia_auc"]
        inside += low <= truth <= high
    assert 52 <= inside <= 60  # binomial(60, 0.95): fewer than 52 has probability 0.002


def test_what_cannot_be_said_has_no_interval():
    assert metric("mia").intervals(context([1.0, 2.0], [True, True])) == {}
    assert metric("mia").intervals(context([1.0, np.nan], [True, False])) == {}


def test_an_audit_is_scored_and_refutes_only_what_is_claimed():
    def audit(bound, **claim):
        claimed = Guarantee(unit="record", delta=1e-5, accountant="rdp", **claim) if claim else None
        return Audit(bound, 1e-5, 0.95, claimed)

    known = MetricContext(2, (1, 8, 8), audit=audit(3.0, epsilon=2.0))
    assert metric("audit").score(known) == {"epsilon_audited": 3.0}
    assert audit(3.0, epsilon=2.0).violated
    assert not audit(2.0, epsilon=2.0).violated
    assert not audit(3.0).violated
    assert not audit(3.0, epsilon=2.0, holds=False, broken_by=["x"]).violated
