"""SignGuard: norms and signs that stand out."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import AggregationContext, Aggregator, Field, PluginError, Reference
from harness_plugins.aggregators._tolerance import tolerated
from harness_plugins.columns import clip_factors, mean_of, squared_norms

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class SignGuard(Aggregator):
    """Keeps updates of plausible norm whose share of signs is that of the largest cluster (plain SignGuard).

    A row passes the norm filter where lower <= ||x_i|| / median <= upper. It passes the sign filter where its
    shares of positive, zero and negative values, over a random `share` of the coordinates, lie in the largest
    cluster found by mean shift (bandwidth: scikit-learn's estimate at quantile 0.5, the mean distance from a row to
    the floor(n/2)-th nearest, itself the first; equal rows are a cluster where it is 0). Those that pass both are
    clipped to the median norm and averaged. f and the weights are not used. Without any such row all rows
    that pass the norm filter count, and all rows where none does: the median of an even n is between two norms,
    which may both be far from it. The authors' code also divides each share by its largest, starts mean shift from
    bins and leaves rows far from every cluster out; their paper does not.

    updates (n, d) -> (d,). Raises PluginError for n < 4: the bandwidth of 2 or 3 rows is 0, so that no two of them are
    alike. Costs O(n d + n^2). Draws from the context's generator. Reports the rows kept.
    """

    name: ClassVar[str] = "signguard"
    requires: ClassVar[tuple[str, ...]] = ("sklearn.cluster",)
    reference: ClassVar[Reference | None] = Reference(
        title="Byzantine-robust Federated Learning through Collaborative Malicious Gradient Filtering",
        authors="Xu, Huang, Song, Lan",
        venue="ICDCS",
        year=2022,
        url="https://arxiv.org/abs/2109.05872",
    )

    lower: float = Field(0.1, ge=0, le=1, description="least norm, as a share of the median one (L)")
    upper: float = Field(
        3.0, ge=1, allow_inf_nan=False, description="largest norm, as a multiple of the median one (R)"
    )
    share: float = Field(0.1, gt=0, le=1, description="coordinates whose signs are looked at, of all")

    def check(self, n: int, f: int) -> tuple[int, int]:
        if n < 4:
            raise PluginError(f"{self.name} needs n >= 4 updates to find clusters: n = {n}")
        return n, f

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        import torch

        tolerated(self, updates, context)
        norms = squared_norms(updates).sqrt()
        median = norms.quantile(0.5)
        plausible = (norms >= self.lower * median) & (norms <= self.upper * median)
        alike = torch.from_numpy(self._largest_cluster(self._signs(updates, context)))
        kept = (plausible & alike).nonzero().flatten().tolist()
        if not kept:
            kept = plausible.nonzero().flatten().tolist() or list(range(len(updates)))
        context.report(kept=kept)
        return mean_of(updates, kept, clip_factors(norms, median))

    def _signs(self, updates: Tensor, context: AggregationContext) -> np.ndarray:
        """(n, 3): shares of positive, zero and negative values."""
        import torch

        d = updates.shape[1]
        looked = max(1, round(self.share * d))
        generator = context.generator
        drawn = torch.randperm(d, generator=generator, device=generator.device)[:looked]
        signs = updates[:, drawn.to(updates.device)].sign()
        return torch.stack([(signs == s).double().mean(1) for s in (1, 0, -1)], dim=1).cpu().numpy()

    @staticmethod
    def _largest_cluster(features: np.ndarray) -> np.ndarray:
        import numpy as np
        from scipy.spatial.distance import cdist
        from sklearn.cluster import MeanShift

        # Not by scikit-learn's estimate_bandwidth, whose distances between equal rows may be rounding instead of 0.
        nearest = np.sort(cdist(features, features), axis=1)
        bandwidth = nearest[:, len(features) // 2 - 1].mean()
        if bandwidth == 0:  # every row is in a group of floor(n/2) equal ones, at least
            _, inverse, counts = np.unique(features, axis=0, return_inverse=True, return_counts=True)
            return np.asarray(inverse.reshape(-1) == counts.argmax())
        labels = MeanShift(bandwidth=bandwidth).fit(features).labels_
        return np.asarray(labels == np.bincount(labels).argmax())


PLUGINS = (SignGuard,)
