"""The one-run audit's arithmetic: the published formula term by term, closed forms, and mechanisms of known epsilon."""

from __future__ import annotations

import math
import warnings
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import binom, norm

import harness
from harness.api import (
    Guarantee,
    Planted,
    PluginError,
    PrivacyContext,
    PrivacyView,
    VariantView,
)
from harness_plugins.attacks.privacy import one_run_audit
from harness_plugins.attacks.privacy.one_run_audit import (
    SHARES,
    OneRunAudit,
    audited_epsilon,
    epsilon_lower_bound,
    p_value,
)

ERROR = 0.05 / len(SHARES)  # of one share, at a confidence of 0.95


def direct(m, r, v, epsilon, delta):
    """Steinke et al. (2023), theorem 5.2, as written: P[B >= v] + 2 m delta max_i (P[v - i <= B < v] / i)."""
    right = math.exp(epsilon) / (1 + math.exp(epsilon))

    def mass(k):
        return math.comb(r, k) * right**k * (1 - right) ** (r - k) if 0 <= k <= r else 0.0

    beta = math.fsum(mass(k) for k in range(v, r + 1))
    alpha = max(math.fsum(mass(k) for k in range(v - i, v)) / i for i in range(1, m + 1))
    return min(1.0, beta + 2 * m * delta * alpha)


@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-3])
@pytest.mark.parametrize(("m", "r"), [(20, 2), (20, 20), (60, 30), (40, 10)])
def test_p_value_is_the_published_formula(m, r, delta):
    for epsilon in (0.0, 0.5, 1.5, 4.0):
        for v in range(r + 1):
            expected = direct(m, r, v, epsilon, delta)
            assert p_value(m, r, v, epsilon, delta) == pytest.approx(expected, rel=1e-9, abs=1e-14), (
                epsilon,
                v,
            )


def test_delta_is_worth_something_and_as_much_as_there_are_canaries():
    plain = p_value(100, 50, 45, 1.0, 0.0)
    extra = [p_value(m, 50, 45, 1.0, 1e-4) - plain for m in (100, 200)]
    assert extra[0] > 0
    assert extra[1] == pytest.approx(2 * extra[0], rel=1e-9)


def test_without_delta_it_is_the_binomial_tail():
    for epsilon in (0.0, 0.7, 3.0):
        right = math.exp(epsilon) / (1 + math.exp(epsilon))
        for v in range(1, 101):
            assert p_value(200, 100, v, epsilon, 0.0) == pytest.approx(binom.sf(v - 1, 100, right), rel=1e-9)
    assert p_value(200, 100, 0, 0.0, 0.0) == 1.0


def test_it_grows_with_epsilon_and_delta_and_falls_with_the_count():
    grid = np.linspace(0, 8, 60)
    for delta in (0.0, 1e-5):
        for v in (30, 60, 95, 100):
            values = [p_value(200, 100, v, epsilon, delta) for epsilon in grid]
            assert all(a <= b for a, b in pairwise(values))
            assert values[0] < values[-1]
    counts = [p_value(200, 100, v, 1.0, 0.0) for v in range(101)]
    assert all(a >= b for a, b in pairwise(counts))
    deltas = [p_value(200, 100, 90, 1.0, delta) for delta in (0.0, 1e-6, 1e-4, 1e-2)]
    assert all(a < b for a, b in pairwise(deltas))


@pytest.mark.parametrize("delta", [0.0, 1e-5])
@pytest.mark.parametrize(("r", "v"), [(200, 140), (100, 99), (50, 50), (20, 20), (200, 199)])
def test_the_bound_is_the_root(r, v, delta):
    bound = epsilon_lower_bound(200, r, v, delta, ERROR)
    assert bound > 0.1
    assert p_value(200, r, v, bound, delta) <= ERROR < p_value(200, r, v, bound + 2e-4, delta)
    root = brentq(lambda epsilon: direct(200, r, v, epsilon, delta) - ERROR, 0, 20, xtol=1e-12)
    assert root - 2e-4 < bound <= root + 1e-9


def test_what_refutes_nothing_bounds_nothing():
    for r, v in (
        (100, 50),
        (100, 0),
        (2, 2),
        (10, 9),
    ):  # 2 of 2 right: a coin does it in a quarter of all runs
        assert epsilon_lower_bound(200, r, v, 0.0, ERROR) == 0.0
    assert epsilon_lower_bound(200, 200, 200, 0.5, ERROR) == 0.0  # a delta that allows anything


@pytest.mark.parametrize("error", [0.05, 0.01, 1e-4])
@pytest.mark.parametrize("r", [20, 100, 1000])
def test_all_right_has_a_closed_form(r, error):
    """P = (e^eps / (1 + e^eps))^r, which is the error at eps = log(p / (1 - p)) for p = error^(1/r)."""
    p = error ** (1 / r)
    exact = math.log(p / (1 - p))
    assert exact > 0.3
    bound = epsilon_lower_bound(r, r, r, 0.0, error)
    assert exact - 2e-4 < bound <= exact + 1e-9


# Mechanisms whose epsilon is known -------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.5, 1.5, 3.0])
def test_one_count_is_wrong_as_often_as_it_may_be(epsilon):
    """Randomised response is where the theorem is tight: the error is used up, but for the count's steps."""
    rng = np.random.default_rng(7)
    m, error, runs = 500, 0.05, 4000
    right = math.exp(epsilon) / (1 + math.exp(epsilon))
    # The number of right answers that exceeds the true epsilon, from which on every bound does.
    least = next(v for v in range(m + 1) if epsilon_lower_bound(m, m, v, 0.0, error) > epsilon)
    coins = rng.random((runs, m)) < 0.5
    answers = coins ^ (rng.random((runs, m)) >= right)
    share = ((answers == coins).sum(1) >= least).mean()
    allowed = 4 * math.sqrt(0.05 * 0.95 / runs)
    assert share <= 0.05 + allowed
    assert share > 0.025  # the step of one count is at most 0.02 here


def violations(monkeypatch, runs, m, epsilon, delta, answer):
    """How many of so many audits of a mechanism exceed its epsilon, and the bounds. answer(coins, rng): signals."""
    monkeypatch.setattr(one_run_audit, "epsilon_lower_bound", lru_cache(None)(epsilon_lower_bound))
    rng = np.random.default_rng(11)
    bounds = []
    for _ in range(runs):
        coins = rng.random(m) < 0.5
        bounds.append(audited_epsilon(answer(coins, rng), coins, delta, 0.95)[0])
    return int((np.asarray(bounds) > epsilon).sum()), np.asarray(bounds)


def allowed(runs):
    """So many of them may exceed it at a confidence of 0.95; more has a probability below 1e-4."""
    return int(binom.isf(1e-4, runs, 0.05))


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0])
def test_randomised_response_is_not_refuted_too_often(epsilon, monkeypatch):
    right = math.exp(epsilon) / (1 + math.exp(epsilon))

    def answer(coins, rng):
        told = coins ^ (rng.random(len(coins)) >= right)
        return told + 0.1 * rng.random(len(coins))  # post-processing, so that no two are equal

    wrong, bounds = violations(monkeypatch, 400, 200, epsilon, 0.0, answer)
    assert wrong <= allowed(400)
    assert np.median(bounds) > 0.2 * epsilon  # so that there was something to get wrong


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0])
def test_answers_out_of_many_are_not_refuted_too_often(epsilon, monkeypatch):
    """Of k = 6 symbols the coin's own set of three is e^epsilon times as likely: a canary in k-ary response."""
    right = math.exp(epsilon) / (1 + math.exp(epsilon))

    def answer(coins, rng):
        told = coins ^ (rng.random(len(coins)) >= right)
        return 3.0 * told + rng.integers(0, 3, len(coins))  # 0, 1, 2: out; 3, 4, 5: in; with many ties

    wrong, bounds = violations(monkeypatch, 400, 200, epsilon, 0.0, answer)
    assert wrong <= allowed(400)
    assert np.median(bounds) > 0.2 * epsilon  # so that there was something to get wrong


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_laplace_noise_is_not_refuted_too_often(epsilon, monkeypatch):
    wrong, bounds = violations(
        monkeypatch,
        400,
        400,
        epsilon,
        0.0,
        lambda coins, rng: coins + rng.laplace(0, 1 / epsilon, len(coins)),
    )
    assert wrong <= allowed(400)
    assert np.median(bounds) > 0.2 * epsilon


@pytest.mark.parametrize("sigma", [0.7, 2.0])
def test_gaussian_noise_is_not_refuted_too_often(sigma, monkeypatch):
    """Its epsilon at delta: Balle and Wang (2018), theorem 8."""
    delta, mu = 1e-5, 1 / sigma

    def spent(epsilon):
        return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)

    epsilon = brentq(lambda value: spent(value) - delta, 1e-6, 40)
    wrong, bounds = violations(
        monkeypatch, 300, 400, epsilon, delta, lambda coins, rng: coins + rng.normal(0, sigma, len(coins))
    )
    assert wrong <= allowed(300)
    assert bounds.max() > 0


def test_no_privacy_at_all_is_bounded_by_the_number_of_guesses_alone():
    rng = np.random.default_rng(0)
    coins = rng.permutation(np.arange(200) < 100)
    bound, guesses, correct = audited_epsilon(coins + rng.random(200), coins, 0.0, 0.95)
    assert (guesses, correct) == (200, 200)
    p = ERROR ** (1 / 200)
    assert bound == pytest.approx(math.log(p / (1 - p)), abs=2e-4)


def test_more_guesses_come_nearer_from_below():
    """With as many right as randomised response of epsilon 1 has on average."""
    right = math.e / (1 + math.e)
    bounds = [
        epsilon_lower_bound(m, m, math.floor(m * right), 0.0, ERROR) for m in (100, 1000, 10_000, 100_000)
    ]
    assert all(a < b for a, b in pairwise(bounds))
    assert bounds[0] < 0.6
    assert 0.97 < bounds[-1] < 1


# Guessing -------------------------------------------------------------------------------------------


def test_the_order_of_canaries_does_not_matter():
    rng = np.random.default_rng(1)
    coins = rng.random(200) < 0.5
    signal = coins + rng.normal(0, 0.4, 200)
    first = audited_epsilon(signal, coins, 1e-5, 0.95)
    assert first[0] > 0.5
    for _ in range(5):
        order = rng.permutation(200)
        assert audited_epsilon(signal[order], coins[order], 1e-5, 0.95) == first
    assert audited_epsilon(-3 * signal[::-1], ~coins[::-1], 1e-5, 0.95) == first  # both sides are alike
    assert audited_epsilon(np.exp(signal), coins, 1e-5, 0.95) == first  # only the order of signals counts
    assert audited_epsilon(-signal, coins, 1e-5, 0.95)[0] == 0.0


def test_the_guesses_are_the_highest_and_the_lowest_and_the_best_share_counts():
    # The ten highest are in, the ten lowest out; between them every guess is as wrong as can be.
    m = 200
    coins = np.arange(m) < m // 2
    coins[:10], coins[-10:] = False, True
    bound, guesses, correct = audited_epsilon(np.arange(m, dtype=float), coins, 0.0, 0.95)
    assert (guesses, correct) == (20, 20)
    assert bound == epsilon_lower_bound(m, 20, 20, 0.0, ERROR) > 0
    # Here the tails are coin flips and the middle tells, so that all must be guessed on.
    coins = np.arange(m) >= m // 2
    coins[0], coins[-1] = True, False
    bound, guesses, correct = audited_epsilon(np.arange(m, dtype=float), coins, 0.0, 0.95)
    assert (guesses, correct) == (200, 198)
    assert bound == epsilon_lower_bound(m, 200, 198, 0.0, ERROR)


def test_the_error_is_shared_by_all_that_are_tried():
    coins = np.arange(100) >= 50
    bound, guesses, _ = audited_epsilon(np.arange(100, dtype=float), coins, 0.0, 0.9)
    assert guesses == 100
    assert bound == epsilon_lower_bound(100, 100, 100, 0.0, (1 - 0.9) / 5)
    assert bound < epsilon_lower_bound(100, 100, 100, 0.0, 1 - 0.9)


def test_a_stricter_confidence_gives_a_lower_bound():
    coins = np.arange(100) >= 50
    bounds = [audited_epsilon(np.arange(100.0), coins, 0.0, c)[0] for c in (0.6, 0.9, 0.99, 0.999)]
    assert all(a > b for a, b in pairwise(bounds))


def test_signals_that_are_nan_are_not_guessed_on():
    """Neither of two canaries without a signal is told from the other, whatever their coins and places."""
    rng = np.random.default_rng(2)
    coins = rng.random(200) < 0.5
    signal = coins + 0.1 * rng.random(200)
    lost = rng.permutation(200)[:100]
    signal[lost] = np.nan
    bound, guesses, correct = audited_epsilon(signal, coins, 0.0, 0.95)
    assert (guesses, correct) == (100, 100)
    assert bound == epsilon_lower_bound(200, 100, 100, 0.0, ERROR)
    # Those lost stand in the middle, where their place must tell nothing either.
    coins = np.arange(200) >= 100
    signal = np.where((np.arange(200) < 5) | (np.arange(200) >= 195), coins.astype(float), np.nan)
    bound, guesses, correct = audited_epsilon(signal, coins, 0.0, 0.95)
    assert guesses <= 10
    assert bound == epsilon_lower_bound(200, guesses, correct, 0.0, ERROR) < 0.7


def test_a_training_that_diverged_is_found_to_say_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bound, guesses, correct = audited_epsilon(np.full(200, np.nan), np.arange(200) >= 100, 1e-5, 0.95)
    assert (bound, guesses, correct) == (0.0, 0, 0)


# The attack -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [10, 30, 199])
def test_canaries_come_in_twenties(count):
    with pytest.raises(PluginError, match="canaries"):
        harness.create("attack", "one-run-audit", canaries=count)
    assert harness.create("attack", "audit", canaries=40).canaries == 40


class _Cell:
    def __init__(self, *defences):
        self.defences = defences


@pytest.mark.parametrize(
    ("name", "unit", "opposite"),
    [("dp-sgd", "record", False), ("dp-fedavg", "client", False), ("local-dp", "client", True)],
)
def test_canaries_are_what_the_guarantee_is_about(name, unit, opposite):
    defence = harness.create("defence", name, epsilon=2.0)
    (variant,) = OneRunAudit(canaries=60, scale=4.0).trainings(_Cell(defence))
    assert variant.keep is None
    canaries = variant.canaries
    assert (canaries.unit, canaries.opposite, canaries.form) == (unit, opposite, "gradient")
    assert (canaries.count, canaries.scale) == (60, 4.0)
    (plain,) = OneRunAudit(canaries=60, scale=4.0).trainings(_Cell())
    assert (plain.canaries.unit, plain.canaries.opposite) == ("record", False)


@pytest.mark.parametrize("names", [("dp-sgd", "dp-fedavg"), ("dp-sgd", "local-dp"), ("local-dp", "dp-sgd")])
def test_where_records_are_protected_too_canaries_are_records(names):
    """Clients are not what a record's guarantee is about: they would refute it, though it is right."""
    stack = [harness.create("defence", name, epsilon=2.0) for name in names]
    (variant,) = OneRunAudit().trainings(_Cell(*stack))
    assert (variant.canaries.unit, variant.canaries.opposite) == ("record", False)


def view(planted, guarantee=None):
    empty = torch.empty(0, 1, 8, 8), torch.empty(0, dtype=torch.int64)
    mask = np.empty(0, dtype=bool)
    variant = VariantView(lambda x: x, mask, canaries=planted, guarantee=guarantee)
    return PrivacyView(lambda x: x, empty, empty, variants={"audit-200-10": variant})


CONTEXT = PrivacyContext(10, torch.Generator())


def guarantee(**settings):
    return Guarantee(
        **{
            "unit": "record",
            "epsilon": 1.0,
            "delta": 1e-3,
            "accountant": "rdp",
            **settings,
        }
    )


def test_the_attack_bounds_at_the_delta_of_the_claim():
    coins = np.arange(200) >= 100
    planted = Planted(coins, np.arange(200, dtype=float))
    plain = OneRunAudit().run(view(planted), CONTEXT)
    assert (plain.delta, plain.guarantee, plain.violated) == (1e-5, None, False)
    assert plain.epsilon == epsilon_lower_bound(200, 200, 200, 1e-5, ERROR)
    assert plain.facts == {"canaries": 200, "guesses": 200, "correct": 200}
    claimed = OneRunAudit().run(view(planted, guarantee()), CONTEXT)
    assert claimed.delta == 1e-3
    best = max(epsilon_lower_bound(200, guesses, guesses, 1e-3, ERROR) for guesses in (200, 100, 50, 20, 10))
    assert claimed.epsilon == best < plain.epsilon


@pytest.mark.parametrize(
    ("claim", "violated"),
    [
        ({"epsilon": 1.0}, True),
        ({"epsilon": 50.0}, False),
        ({"epsilon": 1.0, "holds": False}, False),  # nothing is claimed any more
        ({"epsilon": math.inf}, False),
    ],
)
def test_only_a_claim_below_the_bound_is_refuted(claim, violated):
    coins = np.arange(200) >= 100
    found = OneRunAudit().run(view(Planted(coins, np.arange(200.0)), guarantee(delta=1e-6, **claim)), CONTEXT)
    assert found.violated is violated


def test_a_bound_equal_to_the_claim_refutes_nothing():
    coins = np.arange(200) >= 100
    planted = Planted(coins, np.arange(200.0))
    bound = OneRunAudit().run(view(planted), CONTEXT).epsilon
    claims = guarantee(epsilon=bound, delta=1e-5), guarantee(epsilon=bound - 1e-9, delta=1e-5)
    assert [OneRunAudit().run(view(planted, c), CONTEXT).violated for c in claims] == [False, True]


@pytest.mark.parametrize("planted", [None, Planted(np.ones(20, dtype=bool), None)])
def test_nothing_planted_is_an_error(planted):
    with pytest.raises(PluginError, match="no canary was planted"):
        OneRunAudit().run(view(planted), CONTEXT)
