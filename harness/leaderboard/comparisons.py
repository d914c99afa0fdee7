"""Comparisons of k methods: ranks and tests over blocks, critical differences, win rates, Pareto fronts.

A block is what methods are compared within, such as a scenario, a data set or a threat. Blocks should be
independent: seeds of one scenario are not blocks, their mean is one. After Demsar (2006), Statistical comparisons
of classifiers over multiple data sets, JMLR 7:1-30. Intervals and tests over seeds are in
`harness.leaderboard.statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from harness.errors import HarnessError

Floats = npt.NDArray[np.float64]
DIGITS = 12  # significant digits of means that are compared
TIED = 10  # decimals, in units of the largest score, to which differences between scores are compared
CHUNK = 1024  # points that are compared with the Pareto front at a time


class Omnibus(NamedTuple):
    """A test of whether any method differs. test: which one; blocks: how many; dropped: blocks left out for a NaN."""

    statistic: float
    p: float
    test: Literal["friedman", "wilcoxon"]
    blocks: int
    dropped: int


class WinRates(NamedTuple):
    """Matrices (k, k), row against column: share of blocks won, its 95 % interval, how many blocks were compared."""

    share: Floats
    low: Floats
    high: Floats
    blocks: npt.NDArray[np.int64]


def complete_blocks(table: npt.ArrayLike) -> tuple[Floats, int]:
    """The rows of a table (blocks, k) that hold no NaN, and how many were dropped.

    Raises HarnessError unless the table has two dimensions and k >= 2.
    """
    array = np.asarray(table, dtype=float)
    if array.ndim != 2 or array.shape[1] < 2:
        raise HarnessError(
            f"a table of blocks by two or more methods is needed, not one of shape {array.shape}"
        )
    kept = array[~np.isnan(array).any(axis=1)]
    return kept, len(array) - len(kept)


def friedman(table: npt.ArrayLike) -> Omnibus:
    """Friedman's test, corrected for ties, of whether k methods score alike; table (blocks, k), NaN blocks dropped.

    By scipy.stats.friedmanchisquare: ranks within blocks, chi-squared with k - 1 degrees of freedom. That is an
    approximation, rough below about ten blocks. Friedman (1937), The use of ranks to avoid the assumption of
    normality implicit in the analysis of variance, JASA 32. For k = 2 it falls back to Wilcoxon's signed-rank
    test, two-sided, without the blocks that tie (Wilcoxon 1945, Biometrics Bulletin 1), and `test` says so.
    Differences that agree to 1e-10 of the largest score share a rank: as floats, 0.3 - 0.2 and 0.2 - 0.1 differ.

    Statistic and p are NaN with fewer than two blocks. Where all blocks tie completely, p = 1. The direction of
    the scores does not matter. Raises HarnessError as `complete_blocks`.
    """
    kept, dropped = complete_blocks(table)
    test: Literal["friedman", "wilcoxon"] = "wilcoxon" if kept.shape[1] == 2 else "friedman"
    if len(kept) < 2:
        return Omnibus(math.nan, math.nan, test, len(kept), dropped)
    if (kept == kept[:, :1]).all():
        return Omnibus(0.0, 1.0, test, len(kept), dropped)
    from scipy.stats import friedmanchisquare, wilcoxon

    if test == "friedman":
        found = friedmanchisquare(*kept.T)
    else:
        uneven = kept[kept[:, 0] != kept[:, 1]]  # also spares inf - inf
        largest = np.abs(uneven[np.isfinite(uneven)]).max(initial=0.0) or 1.0
        found = wilcoxon(np.round((uneven[:, 0] - uneven[:, 1]) / largest, TIED))
    return Omnibus(float(found.statistic), float(found.pvalue), test, len(kept), dropped)


def average_ranks(table: npt.ArrayLike, higher_is_better: bool) -> Floats:
    """(k,): each method's rank averaged over the blocks of a table (blocks, k); 1 is best, ties share their mean.

    Blocks with a NaN are dropped; the ranks are NaN if none is left. Raises HarnessError as `complete_blocks`.
    """
    kept, _ = complete_blocks(table)
    if not len(kept):
        return np.full(kept.shape[1], np.nan)
    from scipy.stats import rankdata

    ranks: Floats = rankdata(-kept if higher_is_better else kept, axis=1).mean(axis=0)
    return ranks


def nemenyi_critical_difference(k: int, blocks: int, alpha: float = 0.05) -> float:
    """The least difference between the average ranks of two of k methods that is significant over so many blocks.

    q sqrt(k (k + 1) / (6 blocks)), with q the upper alpha quantile of the studentized range of k with infinite
    degrees of freedom, divided by sqrt(2); Demsar (2006), section 3.2.2 and Table 5. It keeps the family-wise error
    over all pairs at alpha; with many ties it is conservative. Raises HarnessError for k < 2, no blocks, and alpha
    outside (0, 1).
    """
    if k < 2 or blocks < 1 or not 0 < alpha < 1:
        raise HarnessError(f"no critical difference for k = {k}, blocks = {blocks}, alpha = {alpha}")
    return _studentized_range(k, alpha) / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * blocks))


@lru_cache(maxsize=256)
def _studentized_range(k: int, alpha: float) -> float:
    from scipy.stats import studentized_range

    return float(studentized_range.isf(alpha, k, np.inf))


def cliques(ranks: npt.ArrayLike, critical_difference: float) -> list[tuple[int, ...]]:
    """The bars of a critical-difference diagram: largest groups of average ranks that differ by less than it.

    ranks (k,); each group is two or more positions in `ranks`, best rank first, and groups are ordered likewise.
    No group lies within another. Raises HarnessError unless ranks has one dimension and no NaN.
    """
    array = np.asarray(ranks, dtype=float)
    if array.ndim != 1 or np.isnan(array).any():
        raise HarnessError("cliques need one average rank a method, none of them NaN")
    order = np.argsort(array, kind="stable")
    ends = np.searchsorted(array[order], array[order] + critical_difference, side="left")
    groups, reached = [], 0
    for start, end in enumerate(ends):
        if end - start > 1 and end > reached:
            groups.append(tuple(int(i) for i in order[start:end]))
            reached = end
    return groups


def win_rates(
    values: npt.ArrayLike, higher_is_better: bool, resamples: int = 1000, seed: int = 0
) -> WinRates:
    """How often each of k methods beats each other one; values (k, blocks), ties count half.

    A pair is compared on the blocks where neither is NaN; a pair without any has NaN. share[i, j] + share[j, i] = 1,
    and 0.5 on the diagonal. low and high are percentiles of a bootstrap over blocks (Efron 1979, Bootstrap methods,
    Annals of Statistics 7), drawn once for all pairs; NaN with fewer than two blocks. The bootstrap sees nothing
    beyond its blocks: where one method won every block, it gives [1, 1], however few blocks there are.
    O(k^2 blocks resamples).

    Raises HarnessError unless values has two dimensions and resamples >= 1.
    """
    array = np.asarray(values, dtype=float)
    if array.ndim != 2 or resamples < 1:
        raise HarnessError(
            f"win rates need values (k, blocks), not {array.shape}, and resamples, not {resamples}"
        )
    k, blocks = array.shape
    count = np.zeros((k, k), dtype=np.int64)
    share, low, high = (np.full((k, k), np.nan) for _ in range(3))
    weights = np.zeros((blocks, resamples))
    if blocks:
        drawn = np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), size=resamples)
        weights = drawn.T.astype(float)
    for i, own in enumerate(array):
        there = ~np.isnan(own) & ~np.isnan(array)
        ahead = own > array if higher_is_better else own < array
        won = there * (ahead + 0.5 * (own == array))
        count[i] = there.sum(axis=1)
        some, several = count[i] > 0, count[i] > 1
        share[i, some] = won[some].sum(axis=1) / count[i, some]
        with np.errstate(invalid="ignore"):  # a resample may hold no block of a pair
            resampled = (won[several] @ weights) / (there[several] @ weights)
        if several.any():
            low[i, several], high[i, several] = np.nanpercentile(resampled, [2.5, 97.5], axis=1)
    return WinRates(share, low, high, count)


def compared_mean(mean: float) -> float:
    """A mean rounded to DIGITS significant digits.

    Means that are equal in theory can differ in their last digits by rounding, which would make one of them better.
    """
    return float(f"{mean:.{DIGITS}g}")


def by_unit(value: float, better: str, clients: bool) -> tuple[float, float]:
    """A value as two coordinates of a Pareto front where lower is better: one for records, one for clients.

    better: whether a `higher` or `lower` value is better. clients: whether the value is a guarantee for clients. The
    other coordinate is inf, so that values of different units never dominate each other, and both dominate an infinite
    cost. Equal means give equal coordinates: see `compared_mean`.
    """
    cost = compared_mean(-value if better == "higher" else value)
    return (math.inf, cost) if clients else (cost, math.inf)


def pareto_front(
    points: npt.ArrayLike, directions: Sequence[Literal["higher", "lower"]]
) -> npt.NDArray[np.bool_]:
    """(n,): which of the points (n, m) no other one dominates. directions: which values are better, for each of the m.

    One dominates another if it is at least as good in everything and better in something; equal points are on the
    front together. A point with a NaN is never on the front and dominates nothing. Infinities are compared as
    numbers. Points are taken in lexicographic order, in which none is dominated by a later one, and compared with
    the front so far: O(n log n + n f m) for a front of f.

    Raises HarnessError for other shapes and unknown directions.
    """
    array = np.asarray(points, dtype=float)
    if array.ndim != 2 or array.shape[1] != len(directions) or not len(directions):
        raise HarnessError(f"points of shape {array.shape} do not fit {len(directions)} directions")
    if set(directions) - {"higher", "lower"}:
        raise HarnessError(f"directions are 'higher' or 'lower', not {list(directions)}")
    mask = np.zeros(len(array), dtype=bool)
    known = np.flatnonzero(~np.isnan(array).any(axis=1))
    if not len(known):
        return mask
    costs = array[known] * [-1.0 if direction == "higher" else 1.0 for direction in directions]
    order = np.lexsort(costs.T[::-1])
    costs = costs[order]
    new = np.concatenate([[True], (costs[1:] != costs[:-1]).any(axis=1)])
    distinct = costs[new]
    # Sorted and distinct: an earlier point dominates if it is no worse in the other coordinates.
    on_front = _undominated(np.ascontiguousarray(distinct[:, 1:].T))
    mask[known[order]] = on_front[np.cumsum(new) - 1]
    return mask


def _undominated(costs: Floats) -> npt.NDArray[np.bool_]:
    """(n,): whether no earlier column of costs (m, n) is <= the column in every coordinate."""
    n = costs.shape[1]
    undominated = np.ones(n, dtype=bool)
    front = costs[:, :0]
    for start in range(0, n, CHUNK):
        chunk = costs[:, start : start + CHUNK]
        free = np.flatnonzero(~_covered(front, chunk))
        among = _covered(chunk[:, free], chunk[:, free], strictly_earlier=True)
        free = free[~among]
        undominated[start : start + CHUNK] = False
        undominated[start + free] = True
        front = np.concatenate([front, chunk[:, free]], axis=1)
    return undominated


def _covered(by: Floats, costs: Floats, strictly_earlier: bool = False) -> npt.NDArray[np.bool_]:
    """(n,): which columns of costs (m, n) have a column of `by` (m, f) that is <= in every coordinate.

    strictly_earlier: count only columns of `by` at a smaller position.
    """
    below = np.ones((by.shape[1], costs.shape[1]), dtype=bool)
    for one, other in zip(by, costs, strict=True):
        below &= one[:, None] <= other[None, :]
    if strictly_earlier:
        below = np.triu(below, 1)
    return np.asarray(below.any(axis=0))
