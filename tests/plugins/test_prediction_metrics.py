import numpy as np
import pytest
from sklearn import metrics as reference

import harness
from harness.api import Guarantee, Membership, MetricContext, PluginError
from harness_plugins.metrics.privacy import roc, tpr_at_fpr

rng = np.random.default_rng(0)


def score(name, classes=3, **given):
    return harness.create("metric", name).score(MetricContext(classes, (1, 8, 8), **given))


def predictions(classes, n=200, scale=1.0, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, n)
    logits = generator.normal(size=(n, classes)) * scale + 0.7 * np.eye(classes)[labels]
    return labels, logits.astype(np.float32)


def softmax(logits):
    e = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


# clean predictions --------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_clean_scores_equal_those_of_scikit_learn(classes):
    labels = np.random.default_rng(1).permutation(np.minimum(np.arange(200) // 20, classes - 1))  # uneven
    logits = predictions(classes)[1] + 0.9 * np.eye(classes, dtype=np.float32)[labels]
    predicted, probability = logits.argmax(1), softmax(logits)
    given = {"labels": labels, "logits": logits}
    assert score("accuracy", **given) == {
        "accuracy": pytest.approx(reference.accuracy_score(labels, predicted))
    }
    assert score("balanced-accuracy", **given) == {
        "balanced_accuracy": pytest.approx(reference.balanced_accuracy_score(labels, predicted))
    }
    assert score("macro-f1", **given) == {
        "macro_f1": pytest.approx(reference.f1_score(labels, predicted, average="macro"))
    }
    assert score("loss", **given) == {
        "loss": pytest.approx(reference.log_loss(labels, probability), rel=1e-9)
    }
    expected = (
        reference.roc_auc_score(labels, probability[:, 1])
        if classes == 2
        else reference.roc_auc_score(labels, probability, multi_class="ovr", average="macro")
    )
    assert 0.6 < expected < 0.99
    assert score("auroc", **given) == {"auroc": pytest.approx(expected, rel=1e-12)}


def test_clean_scores_by_hand():
    # Predictions 0 0 1 1 2 for labels 0 0 0 1 1.
    given = {"labels": np.array([0, 0, 0, 1, 1]), "logits": np.eye(3)[[0, 0, 1, 1, 2]]}
    assert score("accuracy", **given)["accuracy"] == pytest.approx(3 / 5)
    assert score("balanced-accuracy", **given)["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert score("macro-f1", **given)["macro_f1"] == pytest.approx((4 / 5 + 2 / 4 + 0) / 3)
    unseen = {"labels": np.array([1, 1, 2]), "logits": np.eye(3)}  # class 0 is predicted, and never true
    assert score("macro-f1", **unseen)["macro_f1"] == pytest.approx((0 + 2 / 3 + 1) / 3)
    expected = (3 * (np.log(np.e + 2) - 1) + 2 * np.log(np.e + 2)) / 5
    assert score("loss", **given)["loss"] == pytest.approx(expected)


def test_ties_count_half_in_the_area():
    labels = np.array([1, 0, 1, 0, 0])
    logits = np.zeros((5, 2))
    logits[:, 1] = [2, 1, 1, 1, 0]
    # Pairs positive-negative: 2 beats all three; 1 ties with two and beats one.
    assert score("auroc", 2, labels=labels, logits=logits)["auroc"] == pytest.approx((3 + 1 + 0.5 + 0.5) / 6)
    tied = np.round(predictions(2)[1])
    labels = predictions(2)[0]
    expected = reference.roc_auc_score(labels, (tied[:, 1] - tied[:, 0]))
    assert score("auroc", 2, labels=labels, logits=tied)["auroc"] == pytest.approx(expected, rel=1e-12)


def test_certain_predictions_are_still_ranked():
    # All probabilities are 1 in floats: ranking them would give 0.5.
    logits = np.array([[0, 800.0], [0, 900.0], [0, 700.0], [0, 600.0]])
    assert score("auroc", 2, labels=np.array([1, 1, 0, 0]), logits=logits) == {"auroc": 1.0}


def test_the_area_is_left_out_where_a_class_is_missing():
    labels, logits = predictions(3)
    for kept in (labels != 2, labels == 0):
        assert score("auroc", labels=labels[kept], logits=logits[kept]) == {}
    one = score("auroc", 2, labels=np.ones(4, dtype=int), logits=rng.normal(size=(4, 2)))
    assert one == {}


def test_a_class_that_never_occurs_is_in_no_mean():
    labels, logits = predictions(3)
    wide = np.concatenate([logits, np.full((len(logits), 2), -100.0)], axis=1)
    for name in ("balanced-accuracy", "macro-f1"):
        assert score(name, 5, labels=labels, logits=wide) == score(name, labels=labels, logits=logits)


def test_a_diverged_model_predicts_nothing_rather_than_class_zero():
    labels = np.array([0, 0, 1])
    logits = np.full((3, 2), np.nan)
    given = {"labels": labels, "logits": logits}
    assert score("accuracy", 2, **given) == {"accuracy": 0.0}
    assert score("balanced-accuracy", 2, **given) == {"balanced_accuracy": 0.0}
    assert score("macro-f1", 2, **given) == {"macro_f1": 0.0}
    partly = {"labels": labels, "logits": np.array([[1, 0], [np.nan, 0], [0, 1]])}
    assert score("macro-f1", 2, **partly) == {"macro_f1": pytest.approx((2 / 3 + 1) / 2)}
    assert score("loss", 2, **given) == {}
    assert score("auroc", 2, **given) == {}
    infinite = np.array([[np.inf, 0], [1, -np.inf], [0, np.inf]])
    assert score("accuracy", 2, labels=labels, logits=infinite) == {"accuracy": 1.0}


def test_large_logits_do_not_overflow_the_loss():
    loss = score("loss", 2, labels=np.array([0, 1]), logits=np.array([[1e4, 0], [1e4, 0]], dtype=np.float32))
    assert loss == {"loss": pytest.approx(5e3)}


def test_auroc_counts_equal_probabilities_as_ties():
    """Rounding told them apart: an area of 0.28 where it is 1/2."""
    shifted = np.arange(3) + np.array([0, 1, 3, 2], dtype=np.float32)[:, None]
    assert score("auroc", 3, labels=np.array([0, 1, 0, 2]), logits=shifted) == {"auroc": 0.5}
    rng = np.random.default_rng(
        0
    )  # few different values, as of 8-bit networks: rows are others in another order
    labels, logits = rng.integers(0, 6, 300), np.round(2 * rng.normal(size=(300, 6))) / 2
    expected = []
    for c in range(6):
        odds = logits[:, c] - np.log(np.exp(np.delete(logits, c, axis=1)).sum(1))
        expected.append(reference.roc_auc_score(labels == c, odds.round(9)))
    found = score("auroc", 6, labels=labels, logits=logits.astype(np.float32))["auroc"]
    assert found == pytest.approx(np.mean(expected), rel=1e-12)


@pytest.mark.parametrize("name", ["accuracy", "balanced-accuracy", "macro-f1", "auroc", "loss"])
def test_misfits_are_refused_and_inputs_kept(name):
    labels, logits = predictions(3)
    before = logits.copy()
    score(name, labels=labels, logits=logits)
    np.testing.assert_array_equal(logits, before)
    for bad in ((labels[:5], logits), (labels[:0], logits[:0]), (labels + 1, logits), (labels, logits[:, 0])):
        with pytest.raises(PluginError):
            score(name, labels=bad[0], logits=bad[1])


# under attack -------------------------------------------------------------------------------------


def test_robust_accuracy_counts_what_is_right_both_times():
    labels = np.zeros(4, dtype=int)
    clean = np.eye(2)[[0, 0, 1, 1]]
    adversarial = np.eye(2)[[0, 1, 0, 1]]  # the third is set right by the attack: not robust
    given = {"labels": labels, "logits": clean, "adversarial_logits": adversarial}
    assert score("robust-accuracy", 2, **given) == {
        "robust_accuracy": 0.25,
        "attacked_clean_accuracy": 0.5,
    }
    given["adversarial_logits"] = np.full((4, 2), np.nan)
    assert score("robust-accuracy", 2, **given)["robust_accuracy"] == 0.0
    given["adversarial_logits"] = clean
    assert score("robust-accuracy", 2, **given)["robust_accuracy"] == score(
        "accuracy", 2, labels=labels, logits=clean
    )["accuracy"]  # fmt: skip


def test_attack_success_leaves_the_target_class_out():
    labels = np.array([1, 1, 1, 1, 0, 0, 2, 2])
    triggered = np.eye(3)[[1, 1, 1, 1, 1, 0, 2, 1]]
    given = {"triggered_labels": labels, "triggered_logits": triggered, "backdoor_target": 1}
    assert score("attack-success-rate", **given) == {"attack_success_rate": 0.5}  # counted with them: 0.75
    # A model without backdoor that is always right has no success, though half the samples are its target's.
    perfect = {**given, "triggered_logits": np.eye(3)[labels]}
    assert score("attack-success-rate", **perfect) == {"attack_success_rate": 0.0}
    diverged = {**given, "triggered_logits": np.where(labels[:, None] == 2, np.nan, triggered)}
    assert (
        score("attack-success-rate", **diverged) == {}
    )  # not the perfect 0.0 of a model that has no answers
    only = {**given, "triggered_labels": np.ones(8, dtype=int)}
    assert score("attack-success-rate", **only) == {}
    with pytest.raises(PluginError, match="target"):
        score("attack-success-rate", **{**given, "backdoor_target": 3})


# privacy ------------------------------------------------------------------------------------------


def guarantee(**given):
    return Guarantee(unit="record", epsilon=3.5, delta=1e-5, accountant="rdp", **given)


def test_a_broken_guarantee_is_infinite():
    assert score("epsilon", guarantee=guarantee()) == {"epsilon": 3.5, "delta": 1e-5}
    broken = guarantee(holds=False, broken_by=["static-int8"])
    assert score("epsilon", guarantee=broken) == {"epsilon": float("inf"), "delta": 1e-5}


def membership(n, m, ties, shift=0.5):
    generator = np.random.default_rng(n)
    scores = np.concatenate([generator.normal(shift, 1, n), generator.normal(0, 1, m)])
    is_member = np.repeat([True, False], [n, m])
    order = generator.permutation(n + m)
    return Membership((scores.round(1) if ties else scores)[order], is_member[order])


@pytest.mark.parametrize("ties", [False, True])
def test_membership_scores_equal_those_of_scikit_learn(ties):
    result = membership(700, 12_000, ties)
    scores = score("mia", membership=result)
    fpr, tpr, _ = reference.roc_curve(result.is_member, result.scores, drop_intermediate=False)
    assert scores == {
        "mia_auc": pytest.approx(reference.roc_auc_score(result.is_member, result.scores), rel=1e-12),
        "mia_balanced_accuracy": pytest.approx(((tpr + 1 - fpr) / 2).max()),
        "mia_tpr_at_1pct_fpr": pytest.approx(tpr[fpr <= 0.01].max()),
        "mia_tpr_at_0_1pct_fpr": pytest.approx(tpr[fpr <= 0.001].max()),
    }
    assert 0.01 < scores["mia_tpr_at_1pct_fpr"] < 0.2
    false, true = roc(result.scores, result.is_member)
    np.testing.assert_allclose(false / 12_000, fpr)
    np.testing.assert_allclose(true / 700, tpr)


def test_tied_scores_enter_together():
    # At 25 % false positives one of four non-members may pass; the tie at 2 lets two pass at once.
    scores = np.array([3.0, 2, 2, 2, 1, 0, 0])
    member = np.array([True, True, False, False, True, False, False])
    assert tpr_at_fpr(scores, member, 0.25) == pytest.approx(1 / 3)
    assert tpr_at_fpr(scores, member, 0.5) == 1.0
    assert tpr_at_fpr(np.zeros(7), member, 0.25) == 0.0


def test_a_rate_of_exactly_alpha_counts_despite_rounding():
    scores = -np.arange(200.0)
    member = np.zeros(200, dtype=bool)
    member[29] = True  # after 29 non-members...
    member[101:] = True
    assert (~member).sum() == 100
    assert 0.29 * 100 < 29
    assert tpr_at_fpr(scores, member, 0.29) == pytest.approx(1 / 100)


@pytest.mark.parametrize(("non_members", "rates"), [(999, 0), (1000, 1), (9999, 1), (10_000, 2)])
def test_small_rates_need_ten_false_positives(non_members, rates):
    scores = score("mia", membership=membership(50, non_members, ties=False))
    expected = {"mia_auc", "mia_balanced_accuracy", "mia_tpr_at_1pct_fpr", "mia_tpr_at_0_1pct_fpr"}
    missing = ["mia_tpr_at_0_1pct_fpr", "mia_tpr_at_1pct_fpr"][: 2 - rates]
    assert set(scores) == expected - set(missing)


def test_undefined_membership_is_left_out():
    assert score("mia", membership=Membership(np.ones(3), np.ones(3, dtype=bool))) == {}
    nan = Membership(np.array([np.nan, 1.0]), np.array([True, False]))
    assert score("mia", membership=nan) == {}
    with pytest.raises(PluginError):
        score("mia", membership=Membership(np.ones(3), np.ones(2, dtype=bool)))
    reverse = Membership(np.array([0.0, 1.0]), np.array([True, False]))
    assert score("mia", membership=reverse) == {"mia_auc": 0.0, "mia_balanced_accuracy": 0.5}
    undefined_loss = Membership(np.array([0.0, -np.inf, -np.inf]), np.array([True, True, False]))
    assert score("mia", membership=undefined_loss)["mia_auc"] == 0.75


# training -----------------------------------------------------------------------------------------


def test_facts_of_the_training_are_taken_over_by_name():
    training = {
        "uplink_bytes_per_round": 10,
        "downlink_bytes_per_round": 20,
        "train_seconds": 1.5,
        "rounds": 3,
    }
    assert score("uplink", training=training) == {
        "uplink_bytes_per_round": 10.0,
        "downlink_bytes_per_round": 20.0,
    }
    assert score("train-time", training=training) == {"train_seconds": 1.5}
    assert score("peak-memory", training=training) == {}
    assert score("peak-memory", training={"peak_memory_bytes": None}) == {}
    assert score("peak-memory", training={"peak_memory_bytes": 7}) == {"peak_memory_bytes": 7.0}


def test_detection_is_precision_recall_and_false_positive_rate():
    counts = {"flagged_malicious": 6, "flagged_honest": 2, "kept_malicious": 3, "kept_honest": 14}
    assert score("detection", training={"detection": counts}) == {
        "detection_precision": 6 / 8,
        "detection_recall": 6 / 9,
        "detection_false_positive_rate": 2 / 16,
    }
    benign = {"flagged_malicious": 0, "flagged_honest": 0, "kept_malicious": 0, "kept_honest": 5}
    assert score("detection", training={"detection": benign}) == {"detection_false_positive_rate": 0.0}
    assert score("detection", training={"detection": None}) == {}


NAMES = [
    *("accuracy", "balanced-accuracy", "macro-f1", "auroc", "loss", "robust-accuracy", "attack-success-rate"),
    *("epsilon", "mia", "uplink", "train-time", "peak-memory", "detection"),
]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_scored_is_declared_and_what_is_missing_is_said(name):
    metric = harness.create("metric", name)
    labels, logits = predictions(3)
    full = MetricContext(
        3, (1, 8, 8), labels=labels, logits=logits, adversarial_logits=logits, triggered_logits=logits,
        triggered_labels=labels,
        backdoor_target=0, membership=membership(20, 10_000, ties=False), guarantee=guarantee(),
        training={"uplink_bytes_per_round": 1, "downlink_bytes_per_round": 2, "train_seconds": 3,
                  "peak_memory_bytes": 4,
                  "detection": {"flagged_malicious": 1, "flagged_honest": 1, "kept_malicious": 1, "kept_honest": 1}},
    )  # fmt: skip
    assert full.has(metric.needs)
    scores = metric.score(full)
    assert set(scores) == set(metric.scores)
    assert all(type(value) is float for value in scores.values())
    with pytest.raises(PluginError):
        metric.score(MetricContext(3, (1, 8, 8)))


def test_only_times_and_memory_are_measured():
    declared = {n: s for name in NAMES for n, s in harness.create("metric", name).scores.items()}
    assert {n for n, s in declared.items() if s.measured} == {"train_seconds", "peak_memory_bytes"}
    higher = {n for n, s in declared.items() if s.direction == "higher"}
    quality = {
        "accuracy",
        "balanced_accuracy",
        "macro_f1",
        "auroc",
        "robust_accuracy",
        "attacked_clean_accuracy",
    }
    assert higher == quality | {"detection_precision", "detection_recall"}


def test_undefined_predictions_agree_with_nothing():
    """Two models that both diverged are not in agreement."""
    logits = np.full((4, 3), np.nan)
    logits[0] = [0, 1, 0]
    context = MetricContext(3, (1, 2, 2), logits=logits, uncompressed_logits=logits)
    assert harness.create("metric", "agreement").score(context) == {"agreement": 0.25}
