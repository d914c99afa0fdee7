"""FLAME: clusters models, clips updates, blurs what backdoor may be left."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import AggregationContext, Aggregator, Field, PluginError, Reference
from harness_plugins.aggregators._cosines import cosines, gram_matrix
from harness_plugins.aggregators._tolerance import tolerated
from harness_plugins.columns import clip_factors, inner_products, mean_of, squared_norms

if TYPE_CHECKING:
    from torch import Tensor


class Flame(Aggregator):
    """Averages the models of the majority's cluster, clipped to the median norm, and adds noise (Algorithm 1).

    HDBSCAN on 1 - cos(w + x_i, w + x_j), w the global weights, with at least floor(n/2) + 1 models to a
    cluster and one sample to a core point, admits one cluster; where it finds none, all are admitted.
    Admitted updates are clipped to S, the median norm of all, and averaged; N(0, (noise S)^2) is added to
    each coordinate. The paper's noise factor lambda = sqrt(2 ln(1.25 / delta)) / epsilon is meant against
    backdoors; its experiments on images use 0.001. No privacy is claimed. f and the weights are not used.

    updates (n, d) -> (d,). Needs the global weights, else PluginError. Costs O(n^2 d). Noise comes from the
    context's generator. Reports the rows admitted.
    """

    name: ClassVar[str] = "flame"
    requires: ClassVar[tuple[str, ...]] = ("sklearn.cluster",)
    reference: ClassVar[Reference | None] = Reference(
        title="FLAME: Taming Backdoors in Federated Learning",
        authors="Nguyen, Rieger, Chen, Yalame, Möllering, Fereidooni, Marchal, Miettinen, Mirhoseini, "
        "Zeitouni, Koushanfar, Sadeghi, Schneider",
        venue="USENIX Security",
        year=2022,
        url="https://arxiv.org/abs/2101.02281",
    )

    noise: float = Field(
        0.001, ge=0, allow_inf_nan=False, description="noise factor lambda: deviation over the median norm"
    )

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        import torch

        tolerated(self, updates, context)
        if context.global_weights is None:
            raise PluginError("flame compares models: it needs the global weights in the context")
        kept = self._admitted(updates, context.global_weights)
        context.report(kept=kept)
        norms = squared_norms(updates).sqrt()
        median = norms.quantile(0.5)
        result = mean_of(updates, kept, clip_factors(norms, median))
        if self.noise:
            drawn = torch.randn(result.shape, generator=context.generator, device=context.generator.device)
            result = result + float(self.noise * median) * drawn.to(result)
        return result

    @staticmethod
    def _admitted(updates: Tensor, weights: Tensor) -> list[int]:
        from sklearn.cluster import HDBSCAN

        n = len(updates)
        if n < 3:
            return list(range(n))
        # <w + x_i, w + x_j> from the updates' own products, without a second matrix of models.
        inner = inner_products(updates, weights)
        square = squared_norms(weights[None])[0]
        gram = square + inner[:, None] + inner[None, :] + gram_matrix(updates)
        distances = (1 - cosines(gram)).clamp(min=0).numpy()
        labels = HDBSCAN(
            min_cluster_size=n // 2 + 1,
            min_samples=1,
            allow_single_cluster=True,
            metric="precomputed",
            copy=True,
        ).fit_predict(distances)
        kept = [i for i, label in enumerate(labels) if label == 0]
        return kept or list(range(n))


PLUGINS = (Flame,)
