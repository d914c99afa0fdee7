import numpy as np
import pytest
import torch

import harness
from harness.api import MetricContext, PluginError, PrivacyContext, PrivacyView

CONTEXT = PrivacyContext(num_classes=3, generator=torch.Generator())


def attack():
    return harness.create("attack", "loss-threshold")


def logits_of(images):
    return images.flatten(1)  # (n, 1, 1, 3): the pixels are the logits


def view(members, non_members, labels=None, logits=logits_of):
    sides = [torch.tensor(rows, dtype=torch.float32).reshape(-1, 1, 1, 3) for rows in (members, non_members)]
    labels = labels or [[0] * len(side) for side in sides]
    pairs = [(side, torch.tensor(y, dtype=torch.int64)) for side, y in zip(sides, labels, strict=True)]
    return PrivacyView(logits, *pairs)


def test_the_score_is_the_log_odds_of_the_cross_entropy_members_first():
    rng = np.random.default_rng(0)
    members, others = rng.normal(size=(4, 3)), rng.normal(size=(6, 3))
    labels = [rng.integers(0, 3, 4).tolist(), rng.integers(0, 3, 6).tolist()]
    result = attack().run(view(members, others, labels), CONTEXT)
    rows, y = np.concatenate([members, others]).astype(np.float32).astype(np.float64), np.concatenate(labels)
    expected = rows[np.arange(10), y] - np.log(np.exp(rows).sum(1))
    np.testing.assert_allclose(-np.log1p(np.exp(-result.scores)), expected, rtol=1e-12)
    assert result.is_member.dtype == bool
    assert result.is_member.tolist() == [True] * 4 + [False] * 6


def test_confident_predictions_stay_apart():
    # In float32 both losses are 0; members are the ones fitted further.
    result = attack().run(view([[30.0, 0, 0]], [[25.0, 0, 0]]), CONTEXT)
    assert result.scores.tolist() == pytest.approx([30 - np.log(2), 25 - np.log(2)])


def test_records_far_from_the_boundary_stay_apart():
    # From the probability every one of these losses would be 0, in float64 too: no threshold could tell them apart.
    rows = [[float(z), 0, 0] for z in range(40, 2040, 40)]
    result = attack().run(view(rows[1::2], rows[::2]), CONTEXT)
    assert len(set(result.scores.tolist())) == 50
    np.testing.assert_array_equal(np.argsort(result.scores[:25]), np.arange(25))


def test_an_undefined_loss_counts_as_the_largest():
    result = attack().run(view([[0.0, 0, 0]], [[float("nan"), 0, 0]]), CONTEXT)
    assert result.scores.tolist() == [pytest.approx(-np.log(2)), -1e6]


def test_a_model_that_memorised_its_members_gives_them_all_away():
    rng = np.random.default_rng(0)
    members = np.eye(3)[[0] * 1000] * 5 + rng.normal(size=(1000, 3)) * 0.1
    others = rng.normal(size=(1000, 3)) * 0.1
    result = attack().run(view(members, others), CONTEXT)
    scores = harness.create("metric", "mia").score(MetricContext(3, (1, 1, 3), membership=result))
    assert scores == {"mia_auc": 1.0, "mia_balanced_accuracy": 1.0, "mia_tpr_at_1pct_fpr": 1.0}


def test_a_model_that_treats_both_alike_gives_nothing_away():
    rng = np.random.default_rng(0)
    members, others = rng.normal(size=(2000, 3)), rng.normal(size=(2000, 3))
    result = attack().run(view(members, others), CONTEXT)
    scores = harness.create("metric", "mia").score(MetricContext(3, (1, 1, 3), membership=result))
    assert scores["mia_auc"] == pytest.approx(0.5, abs=5 * np.sqrt(1 / 12 / 1000))


def test_missing_sides_and_misfits_are_refused():
    with pytest.raises(PluginError, match="members and non-members"):
        attack().run(view([[1.0, 0, 0]], np.empty((0, 3))), CONTEXT)
    with pytest.raises(PluginError, match=r"logits \(1, 3\) for labels \(2,\)"):
        attack().run(view([[1.0, 0, 0]] * 2, [[1.0, 0, 0]] * 2, logits=lambda x: x[:1].flatten(1)), CONTEXT)


def test_it_needs_no_further_training():
    assert attack().trainings(None) == []
    assert attack().phase == "privacy"
