"""Rules that look for the best n - f updates: least diameter, least spread."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations, islice
from typing import TYPE_CHECKING, ClassVar

from harness.api import AggregationContext, Field, PluginError, Reference
from harness_plugins.aggregators._tolerance import NeedsMajority, tolerated
from harness_plugins.columns import combine, mean_of
from harness_plugins.distances import gram_about, scaled_down, squared_distances

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

BATCH = 4096  # subsets looked at together
ROUNDING = 1e-9  # of a ratio of projections in float64: equal rows' differ by less


def _check_limit(rule: NeedsMajority, n: int, f: int, limit: int) -> None:
    if math.comb(n, f) > limit:
        raise PluginError(
            f"{rule.name} would look at {math.comb(n, f):.3g} subsets of n - f = {n - f} of n = {n} updates, "
            f"more than its limit of {limit:.3g}; use fewer clients or raise `limit`"
        )


class MinimumDiameterAveraging(NeedsMajority):
    """The mean of the n - f updates of least diameter: the subset whose two farthest rows are closest.

    Of several such subsets the first in lexicographic order. The least diameter is found by bisection over
    the distances; whether n - f rows fit within one is whether f rows can be left out so that no two that are
    farther apart remain (a vertex cover). The work grows with C(n, f) in the worst case, as the problem is
    hard, and is refused beyond `limit`. Weights are ignored.

    updates (n, d) -> (d,). Needs n > 2f, else PluginError. Costs O(n^2 d) and up to C(n, f) steps of O(n^2).
    Reports the rows kept.
    """

    name: ClassVar[str] = "mda"
    reference: ClassVar[Reference | None] = Reference(
        title="Genuinely Distributed Byzantine Machine Learning",
        authors="El Mhamdi, Guerraoui, Guirguis, Hoang, Rouault",
        venue="PODC",
        year=2020,
        url="https://arxiv.org/abs/1905.03853",
    )

    limit: int = Field(10**6, ge=1, description="most subsets C(n, f) it may have to look at")

    def check(self, n: int, f: int) -> tuple[int, int]:
        super().check(n, f)
        _check_limit(self, n, self.in_force(f), self.limit)
        return n, f

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        f = tolerated(self, updates, context)
        distances = squared_distances(updates).numpy()
        values = sorted({float(v) for v in distances.flatten()})
        low, high = 0, len(values) - 1
        while low < high:  # the least value within which n - f rows fit
            half = (low + high) // 2
            if _covers(distances > values[half], f):
                high = half
            else:
                low = half + 1
        kept = self._first(distances > values[low], f)
        context.report(kept=kept)
        return mean_of(updates, kept)

    @staticmethod
    def _first(apart: np.ndarray, f: int) -> list[int]:
        """The first n - f rows, in lexicographic order, of which no two are too far apart. apart: as for `_covers`."""
        n = len(apart)
        kept: list[int] = []
        out: set[int] = set()
        for row in range(n):
            if row in out or len(kept) == n - f:
                continue
            gone = out | {j for j in range(n) if apart[row, j]}
            if gone & set(kept) or len(gone) > f:
                continue
            rest = [j for j in range(n) if j not in gone]
            if _covers(apart[rest][:, rest], f - len(gone)):
                kept.append(row)
                out = gone
            else:
                out = out | {row}
        return kept


def _covers(apart: np.ndarray, budget: int) -> bool:
    """Whether at most `budget` rows can be left out so that no two remaining ones are too far apart.

    apart (m, m) bool, symmetric. Branches on the row with most conflicts: it goes, or all that it conflicts
    with.
    """
    conflicts = apart.sum(1)
    worst = int(conflicts.argmax()) if len(conflicts) else 0
    if not len(conflicts) or conflicts[worst] == 0:
        return True
    if budget <= 0 or conflicts.sum() > 2 * budget * conflicts[worst]:
        return False
    import numpy as np

    others = np.arange(len(apart)) != worst
    if _covers(apart[others][:, others], budget - 1):
        return True
    if conflicts[worst] > budget:
        return False
    left = others & ~apart[worst]
    return _covers(apart[left][:, left], budget - int(conflicts[worst]))


class SmallestMaximumEigenvalue(NeedsMajority):
    """The mean of the n - f updates whose covariance has the least largest eigenvalue.

    Exact eigenvalues of each subset's centred Gram matrix, (n - f) x (n - f), in float64; ByzFL takes one
    step of power iteration from a random vector. The first subset in lexicographic order wins a tie. All C(n,
    f) subsets are looked at; more than `limit` are refused. Weights are ignored.

    updates (n, d) -> (d,). Needs n > 2f, else PluginError. Costs O(n^2 d + C(n, f) n^3). Reports the rows
    kept.
    """

    name: ClassVar[str] = "smea"
    reference: ClassVar[Reference | None] = Reference(
        title="On the Privacy-Robustness-Utility Trilemma in Distributed Learning",
        authors="Allouah, Guerraoui, Gupta, Pinot, Stephan",
        venue="ICML",
        year=2023,
        url="https://arxiv.org/abs/2302.04787",
    )

    limit: int = Field(10**5, ge=1, description="most subsets C(n, f) it may look at")

    def check(self, n: int, f: int) -> tuple[int, int]:
        super().check(n, f)
        _check_limit(self, n, self.in_force(f), self.limit)
        return n, f

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        import torch

        f = tolerated(self, updates, context)
        n = len(updates)
        size = n - f
        distances = squared_distances(updates, exact=True)
        best, least = list(range(size)), math.inf
        for subsets in _batches(combinations(range(n), size), max(1, BATCH * 64 // size**2)):
            index = torch.tensor(subsets)
            inner = distances[index[:, :, None], index[:, None, :]]  # (b, size, size)
            rows = inner.mean(2, keepdim=True)
            # Double centring: inner products about the subset's own mean.
            gram = (rows + rows.transpose(1, 2) - rows.mean(1, keepdim=True) - inner) / 2
            largest = torch.linalg.eigvalsh(gram)[:, -1] / size
            first = int(largest.argmin())
            if float(largest[first]) < least:
                best, least = list(subsets[first]), float(largest[first])
        context.report(kept=best)
        return mean_of(updates, best)


def _batches(items: Iterator[tuple[int, ...]], size: int) -> Iterator[list[tuple[int, ...]]]:
    while batch := list(islice(items, size)):
        yield batch


class CovarianceFilter(NeedsMajority):
    """Covariance-bound-agnostic filter (CAF): down-weighs rows along the direction of most variance.

    Starting from weights c = 1: v is the top eigenvector of the covariance about the weighted mean mu, with
    eigenvalue lambda; c_i <- c_i (1 - t_i / max t) with t_i = <x_i - mu, v>^2, the max over c_i > 0 (ByzFL: over
    all rows); while sum c > n - 2f. The mean with the least lambda seen is the result; with f = 0 it is the plain
    mean. A factor below 1e-9 counts as zero, so that equal rows go together. Eigenvectors are exact, through the
    n x n Gram matrix in float64: ByzFL takes one step of power iteration from a random vector, and returns nothing
    where all rows are equal. Weights are ignored.

    updates (n, d) -> (d,). Needs n > 2f, else PluginError. Costs O(n^2 d + f n^3). Reports the weights.
    """

    name: ClassVar[str] = "caf"
    requires: ClassVar[tuple[str, ...]] = ("scipy.linalg",)
    reference: ClassVar[Reference | None] = Reference(
        title="Towards Trustworthy Federated Learning with Untrusted Participants",
        authors="Allouah, Guerraoui, Stephan",
        venue="ICML",
        year=2025,
        url="https://arxiv.org/abs/2505.01874",
    )

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        import torch
        from scipy.linalg import eigh

        f = tolerated(self, updates, context)
        n = len(updates)
        rows, _ = scaled_down(updates)  # the weights don't depend on the scale
        distances = squared_distances(rows, exact=True)
        c = torch.ones(n, dtype=torch.float64)
        best, least = c / n, math.inf
        while float(c.sum()) > n - 2 * f:
            share = c / c.sum()
            gram = gram_about(distances, share)
            root = share.sqrt()
            weighted = (root[:, None] * gram * root[None, :]).numpy()
            values, vectors = eigh(weighted, subset_by_index=[n - 1, n - 1], check_finite=False)
            largest = float(values[-1])
            if largest < least:
                best, least = share, largest
            # <x_i - mu, v> up to the eigenvector's length, the same for all i.
            spread = (gram @ (root * torch.from_numpy(vectors[:, 0]))).square()
            top = float(spread[c > 0].max())
            if top <= 0:  # all rows that count are equal
                break
            left = 1 - spread / top
            c = c * left.where(left > ROUNDING, 0.0)
        context.report(weights=best)
        return combine(best[None], updates)[0]


PLUGINS = (MinimumDiameterAveraging, SmallestMaximumEigenvalue, CovarianceFilter)
