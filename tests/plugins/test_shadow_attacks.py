"""lira, calibrated-loss and rmia, on models whose log-odds of every record are written down in a table."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

import harness
from harness.api import (
    MetricContext,
    PluginError,
    PrivacyContext,
    PrivacyView,
    TrainingVariant,
    VariantView,
)
from harness.scenario import load_text
from harness_plugins.attacks.privacy._shadows import log_odds
from harness_plugins.attacks.privacy.calibrated_loss import CalibratedLoss
from harness_plugins.attacks.privacy.lira import Lira
from harness_plugins.attacks.privacy.loss_threshold import LossThreshold
from harness_plugins.attacks.privacy.rmia import Rmia

CONTEXT = PrivacyContext(num_classes=2, generator=torch.Generator())
ATTACKS = [
    Lira(shadows=8),
    Lira(shadows=8, offline=True),
    Lira(shadows=8, fixed_variance=False),
    CalibratedLoss(shadows=8),
    Rmia(shadows=8),
    Rmia(shadows=8, offline=True),
]
IDS = [attack.label() for attack in ATTACKS]


def pair(numbers):
    """Records by their number in the tables, all of class 0."""
    numbers = torch.as_tensor(numbers)
    return numbers.double().reshape(-1, 1, 1, 1), torch.zeros(len(numbers), dtype=torch.int64)


def model(phi):
    """A model with these log-odds: logits (phi, 0)."""
    table = torch.as_tensor(np.stack([phi, np.zeros_like(phi)], 1))
    return lambda images: table[images.flatten().long()]


def halves(rng, shadows, n):
    """Masks (shadows, n): complementary pairs."""
    first = rng.random((shadows // 2, n)) < 0.5
    return np.stack([first, ~first], 1).reshape(shadows, n)


def view(target, shadows, masks, members, order=None):
    """The first n numbers of the tables are tested, members first; the rest are the population."""
    n = masks.shape[1]
    order = np.arange(n) if order is None else order
    variants = {
        f"shadow-{i}": VariantView(model(phi), mask[order])
        for i, (phi, mask) in enumerate(zip(shadows, masks, strict=True))
    }
    population = pair(np.arange(n, len(target)))
    return PrivacyView(
        model(target),
        pair(order[:members]),
        pair(order[members:]),
        variants=variants,
        population=population,
    )


def world(seed=0, shadows=8, members=20, non_members=30, population=40):
    rng = np.random.default_rng(seed)
    n = members + non_members
    masks = halves(rng, shadows, n)
    phi = rng.normal(size=(shadows, n + population)) * 2
    phi[:, :n] += 1.5 * masks
    target = rng.normal(size=n + population) * 2
    return target, phi, masks, members


def scores_of(attack, *made, **more):
    return attack.run(view(*made, **more), CONTEXT).scores


def mia(membership):
    return harness.create("metric", "mia").score(MetricContext(2, (1, 1, 1), membership=membership))


def probability(phi):
    return 1 / (1 + np.exp(-phi))


# what they share --------------------------------------------------------------------------------


def test_the_log_odds_are_those_of_the_softmax():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 5)) * 3, rng.integers(0, 5, 50)
    p = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[np.arange(50), labels]
    found = log_odds("x", lambda x: x, torch.from_numpy(logits), torch.from_numpy(labels))
    np.testing.assert_allclose(found, np.log(p / (1 - p)), rtol=1e-10)


def test_the_log_odds_stay_apart_where_probabilities_round_to_one():
    logits = torch.tensor([[50.0, 0, 0], [60.0, 0, 0], [-800.0, 0, 0]])
    found = log_odds("x", lambda x: x, logits, torch.zeros(3, dtype=torch.int64))
    np.testing.assert_allclose(found, np.array([50.0, 60.0, -800.0]) - np.log(2), rtol=1e-15)


def test_undefined_log_odds_are_the_least():
    logits = torch.tensor([[float("nan"), 0], [float("inf"), 0], [-float("inf"), 0]])
    found = log_odds("x", lambda x: x, logits, torch.zeros(3, dtype=torch.int64))
    assert found.tolist() == [-1e6, 1e6, -1e6]


def test_log_odds_refuse_what_does_not_fit():
    logits = torch.zeros(3, 2)
    with pytest.raises(PluginError, match=r"x: logits \(2, 2\) for labels \(3,\)"):
        log_odds("x", lambda x: x[:2], logits, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(PluginError, match="labels from 0 to 2 for 2 classes"):
        log_odds("x", lambda x: x, logits, torch.tensor([0, 1, 2]))


def test_all_ask_for_the_same_trainings():
    asked = Lira(shadows=4).trainings(None)
    assert asked == [
        TrainingVariant("shadow-0", 0.5),
        TrainingVariant("shadow-1", 0.5, complement_of="shadow-0"),
        TrainingVariant("shadow-2", 0.5),
        TrainingVariant("shadow-3", 0.5, complement_of="shadow-2"),
    ]
    assert Rmia(shadows=4).trainings(None) == CalibratedLoss(shadows=4).trainings(None) == asked
    assert Lira(shadows=16).trainings(None)[:4] == asked
    assert len(harness.create("attack", "lira").trainings(None)) == 16


@pytest.mark.parametrize("kind", [Lira, CalibratedLoss, Rmia])
@pytest.mark.parametrize("shadows", [0, 3, -2])
def test_an_odd_or_empty_number_of_shadow_models_is_refused(kind, shadows):
    with pytest.raises(PluginError, match="shadows"):
        kind.create({"shadows": shadows})


@pytest.mark.parametrize("attack", ATTACKS, ids=IDS)
def test_a_permutation_of_the_records_permutes_the_scores(attack):
    made = world()
    rng = np.random.default_rng(1)
    order = np.concatenate([rng.permutation(20), 20 + rng.permutation(30)])
    scores = scores_of(attack, *made)
    assert len(np.unique(scores)) > 10
    np.testing.assert_allclose(scores_of(attack, *made, order=order), scores[order], rtol=1e-12)


@pytest.mark.parametrize("attack", ATTACKS, ids=IDS)
def test_the_order_of_the_shadow_models_does_not_matter(attack):
    target, phi, masks, members = world()
    swapped = np.random.default_rng(1).permutation(8)
    found = scores_of(attack, target, phi[swapped], masks[swapped], members)
    np.testing.assert_allclose(found, scores_of(attack, target, phi, masks, members), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("attack", ATTACKS, ids=IDS)
def test_members_come_first_and_progress_is_told(attack):
    told = []
    context = PrivacyContext(2, torch.Generator(), lambda done, total: told.append((done, total)))
    result = attack.run(view(*world()), context)
    assert result.is_member.tolist() == [True] * 20 + [False] * 30
    assert result.scores.dtype == np.float64
    assert told == [(i, 8) for i in range(1, 9)]


@pytest.mark.parametrize("attack", ATTACKS, ids=IDS)
def test_a_target_that_treats_all_alike_gives_nothing_away(attack):
    rng = np.random.default_rng(3)
    n, masks = 3000, halves(rng, 8, 3000)
    difficulty = rng.normal(size=n + 500) * 2
    phi = difficulty + rng.normal(size=(8, n + 500))
    phi[:, :n] += 2 * masks
    target = difficulty + rng.normal(size=n + 500)
    auc = mia(attack.run(view(target, phi, masks, n // 2), CONTEXT))["mia_auc"]
    assert auc == pytest.approx(0.5, abs=4 * np.sqrt(1 / 3 / n))


def hard_and_easy(seed=4, n=4000, shadows=32, gain=2.5):
    """Records differ in difficulty by far more than training on one changes its log-odds."""
    rng = np.random.default_rng(seed)
    masks, size = halves(rng, shadows, n), n + 1000
    difficulty = rng.normal(size=size) * 3
    phi = difficulty + rng.normal(size=(shadows, size))
    phi[:, :n] += gain * masks
    target = difficulty + rng.normal(size=size)
    target[: n // 2] += gain
    return view(target, phi, masks, n // 2)


def test_attacks_that_know_the_difficulty_beat_the_loss_alone():
    made, rate = hard_and_easy(), "mia_tpr_at_1pct_fpr"
    loss = mia(LossThreshold().run(made, CONTEXT))
    lira = mia(Lira(shadows=32).run(made, CONTEXT))
    offline = mia(Lira(shadows=32, offline=True).run(made, CONTEXT))
    best = norm.sf(norm.isf(0.01) - 2.5)  # the likelihood ratio's, were the four numbers known
    assert loss[rate] < 0.15
    assert 0.8 * best < lira[rate] < best + 0.05
    assert 0.7 * best < offline[rate] < best + 0.05
    for other in (CalibratedLoss(shadows=32), Rmia(shadows=32), Rmia(shadows=32, offline=True)):
        assert mia(other.run(made, CONTEXT))["mia_auc"] > loss["mia_auc"] + 0.05


@pytest.mark.parametrize("attack", ATTACKS, ids=IDS)
def test_trainings_that_diverged_tell_nothing(attack):
    target, phi, masks, members = world()
    scores = scores_of(attack, np.full_like(target, np.nan), np.full_like(phi, np.nan), masks, members)
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) == 1


@pytest.mark.parametrize("attack", ATTACKS, ids=IDS)
def test_what_is_missing_is_named(attack):
    target, phi, masks, members = world()
    empty = view(target, phi, masks, members)
    empty.members = pair([])
    with pytest.raises(PluginError, match="members and non-members"):
        attack.run(empty, CONTEXT)
    lacking = view(target, phi[:5], masks[:5], members)
    with pytest.raises(PluginError, match="needs the training 'shadow-5'"):
        attack.run(lacking, CONTEXT)
    misfit = view(target, phi, masks, members)
    misfit.non_members = pair([20, 21])
    with pytest.raises(PluginError, match=r"shadow model 0 has a mask \(50,\) for 22 records"):
        attack.run(misfit, CONTEXT)
    everywhere = masks.copy()
    everywhere[:, [3, 7]] = True
    with pytest.raises(PluginError, match="2 of 50 records have no out-model among the 8"):
        scores_of(attack, target, phi, everywhere, members)


@pytest.mark.parametrize("kind", [Lira, Rmia])
def test_only_online_are_in_models_needed(kind):
    target, phi, masks, members = world()
    masks = masks.copy()
    masks[:, 4] = False
    with pytest.raises(PluginError, match="1 of 50 records have no in-model"):
        scores_of(kind(shadows=8), target, phi, masks, members)
    assert np.isfinite(scores_of(kind(shadows=8, offline=True), target, phi, masks, members)).all()


# lira -------------------------------------------------------------------------------------------


def fitted(phi, masks, column, inside):
    values = phi[masks[:, column] == inside, column]
    return values.mean(), values


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("offline", [True, False])
def test_lira_is_the_ratio_of_two_gaussian_likelihoods(fixed, offline):
    target, phi, masks, members = world()
    spreads = {}
    for inside in (True, False):
        rests = [v - m for m, v in (fitted(phi, masks, i, inside) for i in range(50))]
        each = np.array([rest.std() for rest in rests])
        spreads[inside] = np.full(50, np.sqrt((np.concatenate(rests) ** 2).mean())) if fixed else each
    expected = []
    for i in range(50):
        out = norm(fitted(phi, masks, i, False)[0], spreads[False][i])
        inside = norm(fitted(phi, masks, i, True)[0], spreads[True][i])
        x = target[i]
        expected.append(out.logcdf(x) - out.logsf(x) if offline else inside.logpdf(x) - out.logpdf(x))
    found = scores_of(Lira(shadows=8, offline=offline, fixed_variance=fixed), target, phi, masks, members)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("shadows", "fixed"), [(126, True), (128, False)])
def test_from_64_models_a_side_on_each_record_has_its_own_variance(shadows, fixed):
    made = world(shadows=shadows)
    for offline in (False, True):
        chosen = scores_of(Lira(shadows=shadows, offline=offline), *made)
        given = Lira(shadows=shadows, offline=offline, fixed_variance=fixed)
        other = Lira(shadows=shadows, offline=offline, fixed_variance=not fixed)
        np.testing.assert_array_equal(chosen, scores_of(given, *made))
        assert np.abs(chosen - scores_of(other, *made)).max() > 0.01


def test_one_record_with_too_few_models_makes_the_variance_common():
    target, phi, masks, members = world(shadows=130)  # 65 a side
    for offline, changed in ((True, (1, False)), (False, (2, False)), (False, (2, True))):
        masks, (column, inside) = masks.copy(), changed
        masks[np.flatnonzero(masks[:, column] == inside)[:2], column] = not inside
        found = scores_of(Lira(shadows=130, offline=offline), target, phi, masks, members)
        common = Lira(shadows=130, offline=offline, fixed_variance=True)
        np.testing.assert_array_equal(found, scores_of(common, target, phi, masks, members))


def test_with_many_models_the_score_is_the_true_log_likelihood_ratio():
    rng = np.random.default_rng(5)
    n, shadows = 20, 4000
    masks = halves(rng, shadows, n)
    middle, gain, spread = rng.normal(size=n), rng.uniform(1, 3, n), rng.uniform(0.5, 2, n)
    phi = middle + gain * masks + spread * rng.normal(size=(shadows, n))
    target = middle + rng.uniform(-1, 3, n)
    expected = norm.logpdf(target, middle + gain, spread) - norm.logpdf(target, middle, spread)
    found = scores_of(Lira(shadows=shadows), target, phi, masks, 10)
    np.testing.assert_allclose(found, expected, atol=0.5)
    assert np.corrcoef(found, expected)[0, 1] > 0.99


def test_the_offline_score_does_not_saturate():
    made = world()
    target = np.array([1.0, 10, 100, 1e4, -1, -10, -100, -1e4])
    masks = np.tile(np.arange(8)[:, None] % 2 == 1, 8)
    phi = np.tile(made[1][:, :1], 8)
    found = scores_of(Lira(shadows=8, offline=True), target, phi, masks, 4)
    assert np.isfinite(found).all()
    assert (np.diff(found[np.argsort(target)]) > 0).all()


def test_a_single_model_a_side_uses_the_spread_over_records():
    target, phi, masks, members = world(shadows=2)
    inside = np.where(masks, phi[:, :50], 0).sum(0)
    outside = np.where(~masks, phi[:, :50], 0).sum(0)
    expected = norm.logpdf(target[:50], inside, inside.std()) - norm.logpdf(
        target[:50], outside, outside.std()
    )
    np.testing.assert_allclose(scores_of(Lira(shadows=2), target, phi, masks, members), expected, rtol=1e-9)
    with pytest.raises(PluginError, match="50 of 50 records have a single out-model"):
        scores_of(Lira(shadows=2, fixed_variance=False), target, phi, masks, members)


def test_shadow_models_that_all_agree_still_tell_a_higher_confidence():
    target, phi, masks, members = (
        np.array([0.0, 3.0]),
        np.zeros((4, 2)),
        halves(np.random.default_rng(0), 4, 2),
        1,
    )
    for attack in (Lira(shadows=4, offline=True), Lira(shadows=4, offline=True, fixed_variance=False)):
        low, high = scores_of(attack, target, phi, masks, members)
        assert low == 0
        assert 1e6 < high < np.inf


# calibrated-loss --------------------------------------------------------------------------------


def test_the_calibrated_loss_is_what_other_models_lose_beyond_the_target():
    target, phi, masks, members = world()
    expected = []
    for i in range(50):
        losses = [-np.log(probability(phi[s, i])) for s in range(8) if not masks[s, i]]
        expected.append(sum(losses) / len(losses) + np.log(probability(target[i])))
    np.testing.assert_allclose(
        scores_of(CalibratedLoss(shadows=8), target, phi, masks, members), expected, rtol=1e-9
    )


def test_the_calibrated_loss_ignores_models_trained_on_the_record():
    target, phi, masks, members = world()
    changed = phi.copy()
    changed[:, :50] += 5 * masks
    attack = CalibratedLoss(shadows=8)
    np.testing.assert_array_equal(
        scores_of(attack, target, changed, masks, members), scores_of(attack, target, phi, masks, members)
    )


# rmia -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, 1.3, 2.0])
@pytest.mark.parametrize(("offline", "a"), [(False, 0.3), (True, 0.3), (True, 0.0), (True, 1.0)])
def test_rmia_is_the_share_of_the_population_that_is_beaten(gamma, offline, a):
    target, phi, masks, members = world()

    def ratio(i):
        used = [s for s in range(8) if i >= 50 or not offline or not masks[s, i]]
        p = sum(probability(phi[s, i]) for s in used) / len(used)
        return probability(target[i]) / (((1 + a) * p + (1 - a)) / 2 if offline else p)

    expected = [sum(ratio(i) / ratio(z) >= gamma for z in range(50, 90)) / 40 for i in range(50)]
    found = scores_of(Rmia(shadows=8, gamma=gamma, offline=offline, a=a), target, phi, masks, members)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert 0 < np.mean(expected) < 1


def test_rmia_works_where_probabilities_underflow():
    # The record's probability is e^10 times what the reference models say, the population's e^5 times.
    target = np.array([-790.0, -800.0, -795.0, -795.0])
    phi = np.full((2, 4), -800.0)
    masks = np.array([[True, False], [False, True]])
    assert scores_of(Rmia(shadows=2), target, phi, masks, 1).tolist() == [1.0, 0.0]
    assert scores_of(Rmia(shadows=2, offline=True, a=1.0), target, phi, masks, 1).tolist() == [1.0, 0.0]


def test_rmia_counts_a_ratio_of_exactly_gamma():
    target, phi, masks = np.full(5, 0.7), np.full((2, 5), 0.2), np.array([[True, False], [False, True]])
    assert scores_of(Rmia(shadows=2, gamma=1.0), target, phi, masks, 1).tolist() == [1.0, 1.0]
    assert scores_of(Rmia(shadows=2, gamma=1.01), target, phi, masks, 1).tolist() == [0.0, 0.0]


def test_rmia_needs_a_population():
    made = view(*world())
    for population in (None, pair([])):
        made.population = population
        with pytest.raises(PluginError, match="population"):
            Rmia(shadows=8).run(made, CONTEXT)


@pytest.mark.parametrize("bad", [{"gamma": 0.5}, {"a": 1.5}, {"a": -0.1}])
def test_rmia_refuses_numbers_out_of_range(bad):
    with pytest.raises(PluginError, match=next(iter(bad))):
        Rmia.create(bad)


@pytest.mark.parametrize(
    ("attacks", "expected"),
    [("loss-threshold", 0.2), ("lira", 0.5), ("loss-threshold, rmia", 0.5), ("calibrated-loss", 0.5)],
)
def test_the_target_has_half_of_the_pool_too_unless_told_otherwise(attacks, expected):
    text = f"schema: 1\nname: x\ndataset: digits\nmodel: small-cnn\nthreats: [{{name: p, attacks: [{attacks}]}}]\n"
    assert load_text(text).holdout == expected
    assert load_text(text + "holdout: 0.3\n").holdout == 0.3
