"""Statistics of one or two configurations over seeds: intervals, paired tests, Holm's adjustment.

Comparisons of many methods over many blocks are in `harness.leaderboard.comparisons`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from harness.errors import HarnessError
from harness.leaderboard.ranges import ANYTHING, Range

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.float64]

ENOUGH_SEEDS = 3
ROUNDING = 1e-12  # relative; differences that vary by less vary only by rounding


class Interval(NamedTuple):
    """A mean and its confidence interval [low, high]; both bounds are NaN if there is none."""

    mean: float
    low: float
    high: float


class PairedDifference(NamedTuple):
    """The mean of a - b over shared seeds, its interval, the paired t test's p-value, the number of pairs."""

    mean: float
    low: float
    high: float
    p: float
    pairs: int


def interval(values: npt.ArrayLike, confidence: float = 0.95, within: Range = ANYTHING) -> Interval:
    """Student's t interval for the mean of n independent values (n,), one per seed.

    mean +- t(1 - (1 - confidence) / 2; n - 1) s / sqrt(n), with s the sample deviation (divisor n - 1); Student
    (1908), The probable error of a mean, Biometrika 6. It assumes values that are about normal over seeds, and has
    width zero if all values are equal. within: what a value can be; the interval is clipped to it, which excludes no
    possible mean. With one value, or an infinite one (a PSNR, an epsilon), low = high = NaN. `too_few` says when an
    interval means little.

    Raises HarnessError if there are no values, for NaN, and for a confidence outside (0, 1).
    """
    array = _vector(values, "values")
    quantile = _upper_quantile(confidence)
    if not len(array):
        raise HarnessError("an interval needs at least one value")
    if np.isnan(array).any():
        raise HarnessError(
            f"{int(np.isnan(array).sum())} of {len(array)} values are NaN: leave them out, and say so"
        )
    if not np.isfinite(array).all():
        both = np.isposinf(array).any() and np.isneginf(array).any()
        return Interval(math.nan if both else float(array[np.isinf(array)][0]), math.nan, math.nan)
    mean = math.fsum(array) / len(array)  # the same in every order: no tie is broken by rounding
    if len(array) == 1:
        return Interval(mean, math.nan, math.nan)
    from scipy.special import stdtrit

    half = float(stdtrit(len(array) - 1, quantile) * array.std(ddof=1) / math.sqrt(len(array)))
    return Interval(mean, min(mean, max(mean - half, within[0])), max(mean, min(mean + half, within[1])))


def too_few(seeds: int) -> str | None:
    """Why an interval over so few seeds means little, in a sentence; None from three seeds on."""
    if seeds >= ENOUGH_SEEDS:
        return None
    if seeds == 2:
        return "two seeds: the spread is one difference, and a 95 % interval reaches 12.7 standard errors each way"
    if seeds == 1:
        return "one seed: no spread can be seen, so there is no interval"
    return "no seeds: there is no score"


def paired_difference(
    a: Mapping[Hashable, float] | pd.Series, b: Mapping[Hashable, float] | pd.Series, confidence: float = 0.95
) -> PairedDifference:
    """The mean of a - b over the seeds that both have, with t interval and two-sided paired t test.

    a, b: seed -> score (a dictionary, or a Series indexed by seed). A seed whose score is NaN counts as absent.
    The p-value is that of scipy.stats.ttest_rel, in [0, 1]. What the formula leaves open:

    - no pair: everything is NaN; one pair: the mean alone
    - no difference at any seed: p = 1, interval [0, 0]
    - the same difference, not zero, at every seed: the interval has width zero and p is NaN. t would be infinite
      and p zero, but a few coarse scores agree by chance, and for a score without randomness there is nothing to
      test. "Same" allows for rounding: 1e-12 of the largest score
    - an infinite score among the pairs: mean, interval and p are NaN

    Raises HarnessError for a seed given twice and a confidence outside (0, 1).
    """
    _upper_quantile(confidence)
    first, second = _by_seed(a, "a"), _by_seed(b, "b")
    shared = [seed for seed in first if seed in second]
    x, y = (np.array([scores[seed] for seed in shared], dtype=float) for scores in (first, second))
    pairs = len(shared)
    if not pairs or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return PairedDifference(math.nan, math.nan, math.nan, math.nan, pairs)
    difference = x - y
    found = interval(difference, confidence)
    rounding = ROUNDING * float(np.maximum(abs(x), abs(y)).max())
    if pairs == 1:
        p = math.nan
    elif np.ptp(difference) <= rounding:
        p = 1.0 if float(abs(difference).max()) <= rounding else math.nan
    else:
        from scipy.stats import ttest_rel

        p = float(ttest_rel(x, y).pvalue)
    return PairedDifference(*found, p, pairs)


def holm(p_values: npt.ArrayLike) -> Floats:
    """Holm's step-down adjustment of m p-values (m,), in the given order; each at most 1.

    adjusted_(i) = max over j <= i of min(1, (m - j + 1) p_(j)), p sorted ascending: rejecting where adjusted <=
    alpha keeps the family-wise error at alpha under any dependence. Holm (1979), A simple sequentially rejective
    multiple test procedure, Scandinavian Journal of Statistics 6. NaN (not tested) stays NaN and does not count
    in m. Raises HarnessError for values outside [0, 1].
    """
    p = _vector(p_values, "p_values")
    tested = np.flatnonzero(~np.isnan(p))
    if ((p[tested] < 0) | (p[tested] > 1)).any():
        raise HarnessError("p-values lie in [0, 1]")
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted


def _by_seed(scores: Mapping[Hashable, float] | pd.Series, name: str) -> dict[Hashable, float]:
    if not hasattr(scores, "items"):
        raise HarnessError(
            f"{name} maps seeds to scores (a dictionary or a Series), so that the seeds can be paired"
        )
    found = {seed: float(value) for seed, value in scores.items() if not math.isnan(value)}
    if len({seed for seed, _ in scores.items()}) != len(scores):
        raise HarnessError(f"{name} has several scores for a seed")
    return found


def _vector(values: npt.ArrayLike | Sequence[float], name: str) -> Floats:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1:
        raise HarnessError(f"{name} has shape {array.shape}; expected one dimension")
    return array


def _upper_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise HarnessError(f"confidence lies between 0 and 1, not {confidence}")
    return 1 - (1 - confidence) / 2
