import math

import numpy as np
import pandas as pd
import pytest
import scikit_posthocs
from scipy import stats
from statsmodels.stats.multitest import multipletests

from harness.errors import HarnessError
from harness.leaderboard import comparisons, statistics

# Demsar (2006), Table 5 (a).
DEMSAR = {
    0.05: (1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164),
    0.10: (1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920),
}


def assert_rate(hits, expected, sigmas=4.0):
    """The share of hits agrees with a probability within binomial error."""
    hits = np.asarray(hits)
    slack = sigmas * math.sqrt(expected * (1 - expected) / len(hits))
    assert abs(hits.mean() - expected) <= slack, f"{hits.mean():.4f}, expected {expected} +- {slack:.4f}"


def planted(blocks, k=4, best=2, lead=2.0, seed=0):
    """(blocks, k) scores whose blocks differ much; one method leads by `lead` deviations of the noise."""
    rng = np.random.default_rng(seed)
    table = 10 * rng.normal(size=(blocks, 1)) + rng.normal(size=(blocks, k))
    table[:, best] += lead
    return table


# --- one configuration ---


@pytest.mark.parametrize("n", [2, 3, 7])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_an_interval_is_scipys(n, confidence):
    values = np.random.default_rng(n).normal(0.7, 0.1, n)
    expected = stats.t.interval(confidence, n - 1, loc=values.mean(), scale=stats.sem(values))
    found = statistics.interval(values, confidence)
    assert found.mean == pytest.approx(values.mean())
    assert found[1:] == pytest.approx(expected, rel=1e-12)


def test_an_interval_of_two_values_by_hand():
    # mean 2, s = sqrt 2, t(0.975; 1) = tan(0.475 pi), half-width t s / sqrt 2 = t
    half = math.tan(0.475 * math.pi)
    assert statistics.interval([1, 3]) == pytest.approx((2, 2 - half, 2 + half))


@pytest.mark.parametrize("n", [3, 5, 10])
def test_intervals_cover_the_true_mean_as_often_as_they_say(n):
    draws = np.random.default_rng(100 + n).normal(0.8, 0.03, size=(2000, n))
    found = np.array([statistics.interval(row) for row in draws])
    assert_rate((found[:, 1] <= 0.8) & (found[:, 2] >= 0.8), 0.95)


def test_an_interval_ends_where_a_score_does():
    whole = statistics.interval([0.9, 1.0, 0.8])
    assert whole.high > 1
    assert statistics.interval([0.9, 1.0, 0.8], within=(0.0, 1.0)) == (whole.mean, whole.low, 1.0)
    assert statistics.interval([0.0, 0.0, 0.0], within=(0.0, 1.0)) == (0.0, 0.0, 0.0)
    # A value outside what it can be is a file's fault, and its mean still lies in its interval.
    assert statistics.interval([1.2, 1.2], within=(0.0, 1.0)) == (1.2, 1.2, 1.2)


def test_what_has_no_spread_has_no_interval():
    mean, low, high = statistics.interval([0.4])
    assert mean == 0.4
    assert math.isnan(low)
    assert math.isnan(high)
    mean, low, high = statistics.interval([1.0, math.inf])
    assert mean == math.inf
    assert math.isnan(low)
    assert math.isnan(high)
    assert math.isnan(statistics.interval([-math.inf, math.inf]).mean)
    assert statistics.interval([2.5, 2.5, 2.5]) == (2.5, 2.5, 2.5)


@pytest.mark.parametrize(
    ("values", "confidence", "message"),
    [
        ([], 0.95, "at least one"),
        ([1, math.nan, 2], 0.95, "1 of 3 values are NaN"),
        ([[1, 2]], 0.95, r"shape \(1, 2\)"),
        ([1, 2], 1.0, "between 0 and 1"),
        ([1, 2], 95, "between 0 and 1"),
    ],
)
def test_intervals_refuse(values, confidence, message):
    with pytest.raises(HarnessError, match=message):
        statistics.interval(values, confidence)


def test_too_few_seeds_are_said_in_words():
    assert "no seeds" in statistics.too_few(0)
    assert "one seed" in statistics.too_few(1)
    assert "two seeds" in statistics.too_few(2)
    assert f"{stats.t.ppf(0.975, 1):.1f}" in statistics.too_few(2)
    assert statistics.too_few(3) is None


# --- two configurations ---


def test_a_paired_difference_is_that_of_scipys_test_over_shared_seeds():
    rng = np.random.default_rng(3)
    a = dict(enumerate(rng.normal(0.8, 0.1, 8)))
    b = {seed: value - 0.02 + rng.normal(0, 0.02) for seed, value in a.items()}
    reference = stats.ttest_rel([a[s] for s in range(2, 7)], [b[s] for s in range(2, 7)])
    expected = reference.confidence_interval(0.9)
    a = {seed: a[seed] for seed in range(7)} | {90: 1.0}
    b = {seed: b[seed] for seed in reversed(range(2, 8))} | {90: math.nan, 91: 0.0}  # another order
    for first, second in ((a, b), (pd.Series(a), pd.Series(b))):
        found = statistics.paired_difference(first, second, 0.9)
        assert found.pairs == 5
        assert found.p == pytest.approx(reference.pvalue)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
        assert found.mean == pytest.approx((expected.low + expected.high) / 2)
    swapped = statistics.paired_difference(b, a, 0.9)
    assert (swapped.mean, swapped.low, swapped.high) == pytest.approx((-found.mean, -found.high, -found.low))


def test_pairing_takes_out_what_seeds_share():
    rng = np.random.default_rng(4)
    shared = rng.normal(0, 1, 10)
    a, b = shared + 0.1 + rng.normal(0, 0.03, 10), shared + rng.normal(0, 0.03, 10)
    assert statistics.paired_difference(dict(enumerate(a)), dict(enumerate(b))).p < 1e-3
    assert statistics.paired_difference(dict(enumerate(a)), dict(enumerate(b[::-1]))).p > 0.05


def test_equal_configurations_differ_as_rarely_as_stated():
    rng = np.random.default_rng(5)
    found = []
    for _ in range(1000):
        a, b = rng.normal(0.8, 0.05, (2, 5))
        found.append(statistics.paired_difference(dict(enumerate(a)), dict(enumerate(b))))
    assert_rate([one.p <= 0.05 for one in found], 0.05)
    assert all((one.p <= 0.05) == (not one.low <= 0 <= one.high) for one in found)


def test_differences_without_variance():
    same = {0: 0.5, 1: 0.7, 2: 0.6}
    assert statistics.paired_difference(same, same) == (0, 0, 0, 1.0, 3)
    # 0.6 - 0.5, 0.8 - 0.7 and 0.7 - 0.6 differ in the last bits, which is no variance.
    shifted = {0: 0.6, 1: 0.8, 2: 0.7}
    assert len({shifted[s] - same[s] for s in same}) > 1
    found = statistics.paired_difference(shifted, same)
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert math.isnan(found.p)
    almost = statistics.paired_difference({**shifted, 2: 0.7001}, same)
    assert 0 < almost.p < 1e-5


def test_too_few_pairs_and_infinite_scores():
    one = statistics.paired_difference({0: 3.0, 1: 1.0}, {0: 1.0, 2: 1.0})
    assert (one.mean, one.pairs) == (2.0, 1)
    assert np.isnan([one.low, one.high, one.p]).all()
    assert math.isnan(statistics.paired_difference({0: 3.0}, {0: 3.0}).p)
    none = statistics.paired_difference({0: 3.0}, {1: 1.0})
    assert none.pairs == 0
    assert np.isnan(none[:4]).all()
    for other in (math.inf, 1.0):
        infinite = statistics.paired_difference({0: math.inf, 1: 1.0}, {0: other, 1: 2.0})
        assert infinite.pairs == 2
        assert np.isnan(infinite[:4]).all()


def test_pairs_need_seeds():
    with pytest.raises(HarnessError, match="maps seeds"):
        statistics.paired_difference(np.array([1.0, 2.0]), {0: 1.0})
    with pytest.raises(HarnessError, match="b has several"):
        statistics.paired_difference({0: 1.0}, pd.Series([1.0, 2.0], index=[0, 0]))
    with pytest.raises(HarnessError, match="confidence"):
        statistics.paired_difference({0: 1.0}, {0: 1.0}, 0)


def test_holm_by_hand_and_by_statsmodels():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    rng = np.random.default_rng(6)
    for size in (1, 2, 5, 30):
        p = np.round(rng.uniform(size=size) ** 3, 2)  # with ties and zeros
        assert statistics.holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_holm_is_monotone_and_never_below_the_p_values():
    rng = np.random.default_rng(7)
    for _ in range(50):
        p = rng.uniform(size=12) ** 2
        adjusted = statistics.holm(p)
        assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()
        assert (adjusted >= p).all()
        assert adjusted.max() <= 1
        assert adjusted.min() == pytest.approx(min(1, 12 * p.min()))


def test_holm_keeps_the_family_wise_error():
    p = np.random.default_rng(8).uniform(size=(4000, 10))
    rejected = np.array([(statistics.holm(row) <= 0.05).any() for row in p])
    assert_rate(rejected, 1 - (1 - 0.05 / 10) ** 10)  # independent: some p is below alpha / m


def test_holm_leaves_out_what_was_not_tested():
    found = statistics.holm([0.02, math.nan, 0.01])
    assert found[[0, 2]] == pytest.approx([0.02, 0.02])
    assert math.isnan(found[1])
    assert len(statistics.holm([])) == 0
    with pytest.raises(HarnessError, match=r"\[0, 1\]"):
        statistics.holm([0.2, 1.2])


def test_the_order_of_seeds_breaks_no_tie():
    from itertools import permutations

    for values in ((0.1, 0.2, 0.3), (0.91, 0.85, 0.7, 0.66)):
        assert len({statistics.interval(order).mean for order in permutations(values)}) == 1


# --- many methods ---


def test_a_planted_winner_is_found():
    table = planted(20)
    ranks = comparisons.average_ranks(table, higher_is_better=True)
    bars = comparisons.cliques(ranks, comparisons.nemenyi_critical_difference(4, 20))
    assert comparisons.friedman(table).p < 1e-4
    assert ranks.argmin() == 2
    assert ranks[2] < 1.5
    assert [set(bar) for bar in bars] == [{0, 1, 3}]


def test_equal_methods_are_told_apart_as_rarely_as_stated():
    rng = np.random.default_rng(11)
    cd = comparisons.nemenyi_critical_difference(4, 30)
    omnibus, pairwise = [], []
    for _ in range(1500):
        table = rng.normal(size=(30, 4))
        omnibus.append(comparisons.friedman(table).p <= 0.05)
        pairwise.append(np.ptp(comparisons.average_ranks(table, True)) >= cd)
    assert_rate(omnibus, 0.05)
    assert_rate(pairwise, 0.05)


def test_two_equal_methods_are_told_apart_as_rarely_as_stated():
    rng = np.random.default_rng(12)
    found = [comparisons.friedman(rng.normal(size=(20, 2))) for _ in range(1500)]
    assert {one.test for one in found} == {"wilcoxon"}
    assert_rate([one.p <= 0.05 for one in found], 0.05)


def test_friedman_by_the_formula_with_ties():
    table = np.random.default_rng(13).integers(0, 4, size=(12, 5)).astype(float)
    ranks = np.array([[(row < x).sum() + ((row == x).sum() + 1) / 2 for x in row] for row in table])
    n, k = table.shape
    # Conover (1999), Practical nonparametric statistics, section 5.8
    between = n * ((ranks.mean(axis=0) - (k + 1) / 2) ** 2).sum()
    within = (ranks**2).sum() - n * k * (k + 1) ** 2 / 4
    expected = (k - 1) * n * between / within
    found = comparisons.friedman(table)
    assert found.statistic == pytest.approx(expected)
    assert found.p == pytest.approx(stats.chi2.sf(expected, k - 1))
    assert found[2:] == ("friedman", 12, 0)


def test_friedman_drops_and_counts_blocks_with_gaps():
    table = planted(12, lead=0.5)
    holes = np.concatenate([table, table[:3]])
    holes[12:, 1] = math.nan
    expected = stats.friedmanchisquare(*table.T)
    found = comparisons.friedman(holes)
    assert found == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue), "friedman", 12, 3)
    assert comparisons.average_ranks(holes, True) == pytest.approx(comparisons.average_ranks(table, True))


def test_friedman_of_two_is_wilcoxons_test_without_ties():
    table = planted(15, k=2, best=1, lead=1.0)
    expected = stats.wilcoxon(*table.T)
    tied = np.concatenate([table, [[3.0, 3.0], [math.inf, math.inf]]])
    found = comparisons.friedman(tied)
    assert (found.statistic, found.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert found[2:] == ("wilcoxon", 17, 0)


@pytest.mark.parametrize("unit", [1 / 10, 1 / 3, 1e6 / 7])
def test_wilcoxons_test_ties_what_rounding_tells_apart(unit):
    wins = np.array([[3, 2], [2, 1], [9, 8], [1, 4], [7, 4], [8, 6], [0, 2], [6, 5]])
    expected = stats.wilcoxon(*wins.T)
    table = [[comparisons.compared_mean(value * unit) for value in block] for block in wins]
    found = comparisons.friedman(table)
    assert (found.p, found.statistic) == pytest.approx((expected.pvalue, expected.statistic))


@pytest.mark.parametrize("k", [2, 3])
def test_friedman_where_there_is_nothing_to_test(k):
    assert comparisons.friedman(np.repeat([[1.0], [2.0], [3.0]], k, axis=1))[:2] == (0, 1)
    single = comparisons.friedman([[1.0, 2.0, 3.0][:k], [math.nan] * k])
    assert np.isnan(single[:2]).all()
    assert (single.blocks, single.dropped) == (1, 1)


@pytest.mark.parametrize("table", [[1.0, 2.0], [[1.0], [2.0]], np.zeros((2, 2, 2))])
def test_tables_of_other_shapes_are_refused(table):
    for function in (comparisons.friedman, lambda t: comparisons.average_ranks(t, True)):
        with pytest.raises(HarnessError, match="blocks by two or more methods"):
            function(table)


def test_average_ranks_by_hand():
    table = [[0.9, 0.8, 0.9, 0.1], [0.7, 0.7, 0.7, 0.7], [math.nan, 1, 2, 3]]
    assert comparisons.average_ranks(table, True) == pytest.approx([2.0, 2.75, 2.0, 3.25])
    assert comparisons.average_ranks(table, False) == pytest.approx([3.0, 2.25, 3.0, 1.75])
    assert np.isnan(comparisons.average_ranks([[math.nan, 1]], True)).all()


@pytest.mark.parametrize("alpha", DEMSAR)
def test_critical_values_are_those_of_demsars_table(alpha):
    for k, q in enumerate(DEMSAR[alpha], start=2):
        found = comparisons.nemenyi_critical_difference(k, 1, alpha) / math.sqrt(k * (k + 1) / 6)
        assert found == pytest.approx(q, abs=1.1e-3)  # printed with three digits, some of them cut off


def test_demsars_example():
    # Section 3.2.3: four algorithms, 14 data sets
    assert comparisons.nemenyi_critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert comparisons.nemenyi_critical_difference(4, 14, 0.1) == pytest.approx(1.12, abs=0.005)
    assert comparisons.nemenyi_critical_difference(2, 9) == pytest.approx(stats.norm.ppf(0.975) / 3)


@pytest.mark.parametrize(("k", "blocks", "alpha"), [(1, 10, 0.05), (3, 0, 0.05), (3, 10, 0), (3, 10, 5)])
def test_critical_differences_refuse(k, blocks, alpha):
    with pytest.raises(HarnessError, match="critical difference"):
        comparisons.nemenyi_critical_difference(k, blocks, alpha)


def test_the_critical_difference_agrees_with_nemenyis_p_values():
    below = above = 0
    for seed in range(40):
        table = planted(10, k=5, lead=1.0, seed=seed)
        p = scikit_posthocs.posthoc_nemenyi_friedman(table).to_numpy()
        ranks = comparisons.average_ranks(table, True)
        apart = abs(ranks[:, None] - ranks) >= comparisons.nemenyi_critical_difference(5, 10, 0.1)
        assert ((p <= 0.1) == apart).all()
        below, above = below + (~apart).sum(), above + apart.sum()
    assert min(below, above) > 20  # both cases were met


def test_cliques_by_hand():
    assert comparisons.cliques([3.0, 1.0, 2.0, 5.0], 1.5) == [(1, 2), (2, 0)]
    assert comparisons.cliques([1.0, 2.0, 3.0, 4.0], 2.5) == [(0, 1, 2), (1, 2, 3)]
    assert comparisons.cliques([1.0, 2.0, 3.0], 5) == [(0, 1, 2)]
    assert comparisons.cliques([1.0, 2.0, 3.0], 1.0) == []  # at least the critical difference is significant
    with pytest.raises(HarnessError, match="NaN"):
        comparisons.cliques([1.0, math.nan], 1)


def test_cliques_are_the_maximal_groups():
    rng = np.random.default_rng(14)
    for _ in range(100):
        ranks, cd = rng.uniform(1, 8, 7).round(1), rng.uniform(0.3, 4)
        # By brute force: all sets of methods within reach of each other, the largest of them.
        groups = [{i for i in range(7) if mask >> i & 1} for mask in range(1, 128) if mask.bit_count() > 1]
        groups = [g for g in groups if max(ranks[list(g)]) - min(ranks[list(g)]) < cd]
        maximal = {frozenset(g) for g in groups if not any(g < other for other in groups)}
        found = comparisons.cliques(ranks, cd)
        assert {frozenset(bar) for bar in found} == maximal
        assert len(found) == len(maximal)


def test_win_rates_by_hand():
    values = [[1.0, 2.0, 3.0, math.nan], [1.0, 1.0, 4.0, 5.0], [0.0, math.nan, 0.0, 0.0]]
    found = comparisons.win_rates(values, higher_is_better=True)
    assert found.share == pytest.approx(np.array([[0.5, 0.5, 1], [0.5, 0.5, 1], [0, 0, 0.5]]))
    assert found.blocks.tolist() == [[3, 3, 2], [3, 4, 3], [2, 3, 3]]
    lower = comparisons.win_rates(values, higher_is_better=False)
    assert lower.share == pytest.approx(1 - found.share)


def test_win_rates_are_complementary():
    rng = np.random.default_rng(15)
    values = rng.integers(0, 5, size=(6, 40)).astype(float)
    values[rng.uniform(size=values.shape) < 0.2] = math.nan
    found = comparisons.win_rates(values, True, resamples=200)
    assert np.allclose(found.share + found.share.T, 1)
    assert np.allclose(found.low + found.high.T, 1)
    assert ((found.low <= found.share) & (found.share <= found.high)).all()
    again = comparisons.win_rates(values, True, resamples=200)
    other = comparisons.win_rates(values, True, resamples=200, seed=1)
    assert (again.low == found.low).all()
    assert not (other.low == found.low).all()


def test_the_bootstrap_of_a_win_rate_is_binomial():
    # Resampling 200 blocks of which 130 were won gives Binomial(200, 0.65) wins.
    values = np.zeros((2, 200))
    values[0, :130], values[0, 130:] = 1, -1
    found = comparisons.win_rates(values, True, resamples=20_000)
    expected = stats.binom.ppf([0.025, 0.975], 200, 0.65) / 200
    assert found.share[0, 1] == 0.65
    assert (found.low[0, 1], found.high[0, 1]) == pytest.approx(expected, abs=0.0051)  # one block


def test_win_rates_find_the_planted_winner_and_cover_its_true_rate():
    truth = stats.norm.cdf(1 / math.sqrt(2))  # noise of two methods, lead of one deviation
    hits = []
    for seed in range(300):
        found = comparisons.win_rates(planted(100, k=2, best=0, lead=1.0, seed=seed).T, True, 400, seed)
        hits.append(found.low[0, 1] <= truth <= found.high[0, 1])
        assert found.low[0, 1] > 0.5
    assert 0.90 <= np.mean(hits) <= 0.99  # percentiles of discrete shares: 0.95 to first order


def test_win_rates_without_enough_blocks():
    found = comparisons.win_rates([[1.0, math.nan], [0.0, math.nan], [math.nan, 2.0]], True, resamples=10)
    assert (found.share[0, 1], found.blocks[0, 1]) == (1, 1)
    assert math.isnan(found.low[0, 1])
    assert math.isnan(found.share[0, 2])
    empty = comparisons.win_rates(np.zeros((2, 0)), True)
    assert np.isnan(empty.share).all()
    assert empty.blocks.tolist() == [[0, 0], [0, 0]]
    for values, resamples in (([1.0, 2.0], 10), ([[1.0], [2.0]], 0)):
        with pytest.raises(HarnessError, match="win rates"):
            comparisons.win_rates(values, True, resamples)


# --- the front ---


def brute_front(points, directions):
    costs = np.array(
        [[-x if d == "higher" else x for x, d in zip(p, directions, strict=True)] for p in points]
    )
    usable = [not any(math.isnan(x) for x in cost) for cost in costs]
    return [
        usable[i]
        and not any(
            usable[j] and all(costs[j] <= costs[i]) and any(costs[j] < costs[i]) for j in range(len(costs))
        )
        for i in range(len(costs))
    ]


@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_the_front_is_that_of_all_pairs(m, monkeypatch):
    rng = np.random.default_rng(20 + m)
    for trial in range(60):
        monkeypatch.setattr(comparisons, "CHUNK", int(rng.integers(1, 12)))  # several chunks
        n = int(rng.integers(1, 40))
        points = rng.integers(-2, 5, size=(n, m)).astype(float) if trial % 2 else rng.normal(size=(n, m))
        points[rng.uniform(size=points.shape) < 0.05] = math.nan
        points[rng.uniform(size=points.shape) < 0.05] = math.inf
        points[points == 0] *= -1  # negative zeros are zeros
        directions = rng.choice(["higher", "lower"], m).tolist()
        found = comparisons.pareto_front(points, directions)
        assert found.tolist() == brute_front(points, directions)


def test_equal_points_share_the_front_and_unknown_ones_are_off_it():
    points = [[1.0, 5.0], [1.0, 5.0], [2.0, 6.0], [0.0, math.nan], [3.0, 5.0]]
    assert comparisons.pareto_front(points, ["lower", "lower"]).tolist() == [True, True, False, False, False]
    assert comparisons.pareto_front(points, ["lower", "higher"]).tolist() == [True, True, True, False, False]
    assert comparisons.pareto_front(points, ["higher", "lower"]).tolist() == [
        False,
        False,
        False,
        False,
        True,
    ]


def test_large_fronts():
    rng = np.random.default_rng(30)
    sphere = abs(rng.normal(size=(20_000, 3)))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    assert comparisons.pareto_front(sphere, ["higher"] * 3).all()
    both = np.concatenate([0.999 * sphere, sphere])[rng.permutation(40_000)]
    outer = np.linalg.norm(both, axis=1) > 0.9995
    found = comparisons.pareto_front(both, ["higher"] * 3)
    assert (found == outer).all()  # each inner point has an outer one beyond it


def test_the_front_refuses_and_takes_nothing():
    assert comparisons.pareto_front(np.zeros((0, 2)), ["lower", "lower"]).shape == (0,)
    assert not comparisons.pareto_front([[math.nan]], ["lower"]).any()
    for points, directions in (([[1.0, 2.0]], ["lower"]), ([1.0], ["lower"]), (np.zeros((3, 0)), [])):
        with pytest.raises(HarnessError, match="do not fit"):
            comparisons.pareto_front(points, directions)
    with pytest.raises(HarnessError, match="'up'"):
        comparisons.pareto_front([[1.0]], ["up"])
