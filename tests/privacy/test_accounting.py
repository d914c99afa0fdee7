import math
import warnings

import pytest

from harness.errors import PluginError
from harness.privacy.accounting import caveats, epsilon, group_epsilon, noise_multiplier

pytestmark = pytest.mark.filterwarnings("ignore:gdp accounting")

HISTORIES = [
    [(1.1, 0.01, 1000)],
    [(0.7, 0.05, 40)],
    [(1.1, 0.3, 60)],
    [(2.0, 1.0, 30)],
    [(1.5, 0.2, 25), (1.5, 0.2, 15)],
    [(0.8, 0.05, 100), (1.5, 1.0, 4), (3.0, 0.5, 10)],
]


def opacus(name, history, delta):
    from opacus.accountants import PRVAccountant, RDPAccountant

    accountant = {"rdp": RDPAccountant, "prv": PRVAccountant}[name]()
    accountant.history = history
    return accountant.get_epsilon(delta)


def gaussian_delta(eps, mu):
    """Exact: Balle and Wang 2018, theorem 8, with mu = sensitivity / standard deviation."""
    from scipy.stats import norm

    return norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu)


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
def test_rdp_is_opacus(history, delta):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Opacus warns where its range of orders ends too early
        expected = opacus("rdp", history, delta)
        assert epsilon(history, delta) == pytest.approx(expected, rel=1e-9)


def test_rdp_searches_every_order():
    from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

    from harness.privacy.accounting import _ORDERS

    for sigma, rate, steps in [(0.9, 0.1, 50), (6.0, 0.4, 9), (0.4, 0.02, 7), (1.0, 1.0, 3)]:
        curve = compute_rdp(q=rate, noise_multiplier=sigma, steps=steps, orders=list(_ORDERS))
        expected, _ = get_privacy_spent(orders=list(_ORDERS), rdp=curve, delta=1e-5)
        assert epsilon([(sigma, rate, steps)], 1e-5) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("history", [[(60.0, 0.1, 10)], [(0.2, 0.3, 60)]])
def test_rdp_beyond_opacus_orders_is_tighter_and_silent(history):
    with pytest.warns(UserWarning, match="Optimal order"):
        loose = opacus("rdp", history, 1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spent = epsilon(history, 1e-4)
    assert 0 < spent < loose
    # One long composition of a Gaussian-like mechanism: the central limit is close from below.
    if history[0][0] > 1:
        assert spent >= epsilon(history, 1e-4, "gdp")


def test_prv_is_opacus():
    for history in ([(1.1, 0.01, 200)], [(1.1, 0.3, 20), (2.0, 1.0, 5)]):
        assert epsilon(history, 1e-5, "prv") == pytest.approx(opacus("prv", history, 1e-5), rel=1e-9)


def test_prv_is_not_looser_than_rdp_at_small_epsilons():
    """The error of its grid, 0.01 at most, is all of the epsilon that it gives for loud noise."""
    for history in ([(20.0, 0.01, 10)], [(50.0, 0.01, 1)], [(10.0, 0.01, 100), (30.0, 0.1, 5)]):
        assert epsilon(history, 1e-5, "prv") <= epsilon(history, 1e-5, "rdp") < opacus("prv", history, 1e-5)
    sigma = noise_multiplier(0.005, 1e-5, 0.01, 100, "prv")
    assert 0.99 * 0.005 <= epsilon([(sigma, 0.01, 100)], 1e-5, "prv") <= 0.005


@pytest.mark.parametrize("accountant", ["prv", "pld"])
@pytest.mark.parametrize("sigma", [1e-30, 0.01])
def test_with_next_to_no_noise_the_bound_of_rdp_is_taken(accountant, sigma):
    """Where pld alone would ask for more memory than there is."""
    history = [(sigma, 0.06, 6)]
    assert epsilon(history, 1e-5, accountant) == epsilon(history, 1e-5, "rdp") < math.inf


def test_prv_below_its_own_rounding_is_rdp():
    history = [(1.0, 0.02, 200)]
    assert epsilon(history, 1e-11, "prv") == epsilon(history, 1e-11, "rdp")
    assert epsilon(history, 1e-9, "prv") < epsilon(history, 1e-9, "rdp")


def test_prv_beyond_float64_falls_back_to_a_bound():
    history = [(0.05, 1.0, 20)]
    spent = epsilon(history, 1e-5, "prv")
    assert spent == epsilon(history, 1e-5, "rdp")
    assert spent > 20 / (2 * 0.05**2)  # the mean privacy loss alone


def test_gdp_is_opacus_for_one_segment_and_composes():
    from opacus.accountants.analysis import gdp

    for sigma, rate, steps in [(1.1, 0.01, 1000), (2.0, 0.3, 60)]:
        expected = gdp.compute_eps_poisson(steps=steps, noise_multiplier=sigma, sample_rate=rate, delta=1e-5)
        assert epsilon([(sigma, rate, steps)], 1e-5, "gdp") == pytest.approx(expected, rel=1e-9)
        parts = [(sigma, rate, steps // 4), (sigma, rate, steps - steps // 4)]
        assert epsilon(parts, 1e-5, "gdp") == pytest.approx(expected, rel=1e-9)
    mixed = [(1.1, 0.01, 1000), (2.0, 0.3, 60)]
    mu = math.hypot(
        *(gdp.compute_mu_poisson(steps=n, noise_multiplier=s, sample_rate=q) for s, q, n in mixed)
    )
    assert epsilon(mixed, 1e-5, "gdp") == pytest.approx(gdp.eps_from_mu(mu=mu, delta=1e-5), rel=1e-9)


def test_gdp_says_that_it_is_an_approximation():
    with pytest.warns(UserWarning, match="understate"):
        epsilon([(1.0, 0.1, 1)], 1e-5, "gdp")


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
@pytest.mark.parametrize(("sigma", "steps"), [(4.0, 1), (3.0, 20)])
def test_without_sampling_it_bounds_the_exact_gaussian(accountant, sigma, steps):
    mu = math.sqrt(steps) / sigma
    spent = epsilon([(sigma, 1.0, steps)], 1e-5, accountant)
    assert gaussian_delta(spent, mu) <= 1e-5
    assert gaussian_delta(0.8 * spent, mu) > 1e-5


@pytest.mark.parametrize("accountant", ["rdp", "prv", "gdp"])
def test_no_noise_and_no_steps(accountant):
    assert epsilon([(0.0, 0.1, 1)], 1e-5, accountant) == math.inf
    assert epsilon([(1.0, 0.1, 5), (0.0, 0.1, 1)], 1e-5, accountant) == math.inf
    assert epsilon([(0.0, 0.1, 0), (0.0, 0.0, 9)], 1e-5, accountant) == 0
    assert epsilon([], 1e-5, accountant) == 0
    once = epsilon([(1.3, 0.1, 5)], 1e-5, accountant)
    assert epsilon([(1.3, 0.1, 5), (0.0, 0.1, 0)], 1e-5, accountant) == once


@pytest.mark.parametrize("accountant", ["rdp", "gdp", "prv"])
def test_more_noise_spends_less_and_more_steps_or_sampling_spend_more(accountant):
    base = epsilon([(1.2, 0.1, 40)], 1e-5, accountant)
    assert epsilon([(1.3, 0.1, 40)], 1e-5, accountant) < base
    assert epsilon([(1.2, 0.1, 50)], 1e-5, accountant) > base
    assert epsilon([(1.2, 0.12, 40)], 1e-5, accountant) > base
    assert epsilon([(1.2, 0.1, 40)], 1e-6, accountant) > base


@pytest.mark.parametrize("accountant", ["rdp", "gdp"])
@pytest.mark.parametrize("target", [0.05, 0.5, 3.0, 8.0, 200.0])
@pytest.mark.parametrize(("rate", "steps"), [(0.3, 60), (1.0, 20), (0.01, 1)])
def test_noise_meets_the_target_from_below(accountant, target, rate, steps):
    sigma = noise_multiplier(target, 1e-4, rate, steps, accountant)
    assert 0.99 * target <= epsilon([(sigma, rate, steps)], 1e-4, accountant) <= target


def test_prv_noise_meets_the_target():
    sigma = noise_multiplier(2.0, 1e-4, 0.2, 20, "prv")
    assert 0.99 * 2 <= epsilon([(sigma, 0.2, 20)], 1e-4, "prv") <= 2
    assert sigma < noise_multiplier(2.0, 1e-4, 0.2, 20, "rdp")


def test_noise_agrees_with_opacus():
    from opacus.accountants.utils import get_noise_multiplier

    expected = get_noise_multiplier(
        target_epsilon=3.0,
        target_delta=1e-5,
        sample_rate=0.1,
        steps=100,
        accountant="rdp",
        epsilon_tolerance=1e-4,
    )
    assert noise_multiplier(3.0, 1e-5, 0.1, 100) == pytest.approx(expected, rel=1e-3)


def test_noise_for_no_steps_and_out_of_reach():
    assert noise_multiplier(1.0, 1e-5, 0.1, 0) == 0
    with pytest.raises(PluginError, match="larger epsilon"):
        noise_multiplier(1e-6, 1e-5, 1.0, 1000)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: epsilon([(1.0, 1.1, 3)], 1e-5), "sample rate"),
        (lambda: epsilon([(-1.0, 0.1, 3)], 1e-5), "noise multiplier"),
        (lambda: epsilon([(math.nan, 0.1, 3)], 1e-5), "noise multiplier"),
        (lambda: epsilon([(1.0, 0.1, 2.5)], 1e-5), "whole steps"),
        (lambda: epsilon([(1.0, 0.1, 3)], 0.0), "delta"),
        (lambda: epsilon([(1.0, 0.1, 3)], 1e-5, "moments"), "rdp, prv, pld, gdp"),
        (lambda: noise_multiplier(-1.0, 1e-5, 0.1, 3), "positive"),
        (lambda: group_epsilon([[(1.0, 0.1, 3)]], 1e-5, 0), "at least one"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(PluginError, match=message):
        call()


@pytest.mark.parametrize("accountant", ["rdp", "gdp"])
@pytest.mark.parametrize("k", [2, 5, 12])
def test_group_epsilon_is_the_smallest_that_the_conversion_allows(accountant, k):
    history, delta = [(4.0, 0.1, 30)], 1e-5
    found = group_epsilon([history], delta, k, accountant)

    def allowed(log_d):  # the condition, written from the lemma
        eps = epsilon(history, math.exp(log_d), accountant)
        return math.log(k) + (k - 1) * eps + log_d <= math.log(delta), k * eps

    grid = [math.log(delta) - 0.02 * i for i in range(3000)]
    best = min(value for fine, value in map(allowed, grid) if fine)
    assert found <= best <= 1.01 * found
    assert found > k * epsilon(history, delta, accountant)


def test_group_epsilon_is_no_less_than_the_exact_gaussian():
    # Without sampling a group of k moves the mean k times as far.
    k, sigma, steps = 3, 8.0, 4
    found = group_epsilon([[(sigma, 1.0, steps)]], 1e-5, k)
    assert gaussian_delta(found, k * math.sqrt(steps) / sigma) <= 1e-5


def test_group_of_one_and_limits():
    history = [(1.1, 0.1, 20)]
    assert group_epsilon([history], 1e-5, 1) == epsilon(history, 1e-5)
    assert group_epsilon([[]], 1e-5, 4) == group_epsilon([], 1e-5, 4) == 0
    assert group_epsilon([[(0.0, 0.1, 1)]], 1e-5, 4) == math.inf
    assert group_epsilon([history], 1e-5, 5000) == math.inf  # beyond the largest order
    assert group_epsilon([history], 1e-5, 3, "prv") >= 3 * epsilon(history, 1e-5, "prv")


def test_a_group_over_several_clients_pays_the_dearest_client_for_every_record():
    # Two curves that cross: one is the dearer at large delta, the other at the tiny ones groups need.
    often, rarely = [(6.0, 1.0, 60)], [(0.9, 0.02, 30)]
    both = group_epsilon([often, rarely], 1e-5, 3)
    assert both >= max(group_epsilon([often], 1e-5, 3), group_epsilon([rarely], 1e-5, 3))
    # By brute force over delta': k e(d') with k exp((k - 1) e(d')) d' <= delta, e the larger of the two.
    found = []
    for log_d in (x / 50 for x in range(-60 * 50, -11 * 50)):
        d = math.exp(log_d)
        e = max(epsilon(often, d), epsilon(rarely, d))
        if math.log(3) + 2 * e + log_d <= math.log(1e-5):
            found.append(3 * e)
    assert both == pytest.approx(min(found), rel=5e-3)


@pytest.mark.parametrize(
    "history", [[(1.0, 0.02, 300)], [(2.0, 1.0, 20)], [(1.1, 0.05, 100), (1.1, 0.05, 40)]]
)
def test_pld_bounds_from_between_the_exact_value_and_rdp(history):
    pytest.importorskip("dp_accounting")
    tight = epsilon(history, 1e-5, "pld")
    assert tight < epsilon(history, 1e-5, "rdp")
    assert tight == pytest.approx(epsilon(history, 1e-5, "prv"), rel=0.02)
    if (
        len(history) == 1 and history[0][1] == 1.0
    ):  # without sampling: a Gaussian of noise sigma / sqrt(steps)
        from scipy.stats import norm

        mu = math.sqrt(history[0][2]) / history[0][0]
        exact = norm.cdf(-tight / mu + mu / 2) - math.exp(tight) * norm.cdf(-tight / mu - mu / 2)
        assert exact <= 1e-5
        assert exact == pytest.approx(1e-5, rel=0.02)


def test_pld_of_a_group_is_finite_where_rdp_is():
    """The tiny deltas that groups need lie below pld's truncated tails."""
    pytest.importorskip("dp_accounting")
    history = [(1.0, 0.01, 1000)]
    found = {name: group_epsilon([history], 1e-5, 5, name) for name in ("rdp", "pld")}
    assert 5 * epsilon(history, 1e-5, "pld") < found["pld"] <= found["rdp"] < math.inf


def test_pld_is_rdp_where_its_grid_is_too_coarse():
    pytest.importorskip("dp_accounting")
    history = [(12.0, 1e-4, 10**6)]
    assert epsilon(history, 1e-9, "pld") <= epsilon(history, 1e-9, "rdp")


def test_what_an_approximation_gives_is_no_guarantee():
    """gdp at one step of little noise says 0.04, and the exact (subsampled) Gaussian spends more."""
    from scipy.stats import norm

    sigma, q, delta = 1.0, 0.01, 1e-5
    claimed = epsilon([(sigma, q, 1)], delta, "gdp")
    # The trade-off at the best threshold, with the record present by a coin of q against absent.
    threshold = norm.isf(delta / q) if delta < q else 0.0
    for t in (threshold, 3.0, 3.5):
        present = q * norm.sf(t - 1 / sigma) + (1 - q) * norm.sf(t)
        absent = norm.sf(t)
        if present - math.exp(claimed) * absent > delta:
            break
    else:
        raise AssertionError("gdp covers what one step spends")
    assert caveats("dp-sgd", claimed, "gdp") == [
        "dp-sgd is accounted by gdp, an approximation that can fall short: take rdp, prv or pld"
    ]
    assert caveats("dp-sgd", math.inf, "rdp") == ["dp-sgd adds no noise"]
    assert [caveats("dp-sgd", 3.0, name) for name in ("rdp", "prv", "pld")] == [[]] * 3


def test_pld_says_what_it_needs(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(PluginError, match=r"pip install 'psr-harness\[pld\]', or take prv"):
        epsilon([(1.23, 0.011, 7)], 1e-5, "pld")
