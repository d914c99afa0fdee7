"""DeepSight: looks into the models for what they were trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import AggregationContext, Aggregator, Field, PluginError, Reference
from harness_plugins.aggregators._cosines import cosines, gram_matrix
from harness_plugins.aggregators._tolerance import tolerated
from harness_plugins.columns import clip_factors, mean_of, squared_norms

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

TINY = 1e-12  # keeps ratios of probabilities finite


class DeepSight(Aggregator):
    """Removes clusters of models that hold many with suspiciously homogeneous training data.

    Of each update, over the output layer's k neurons (its last weight and bias): energies E_j = |bias_j| +
    sum_h |w_jh|; NEUP_j = E_j^2 / sum E^2; threshold exceedings TE = #{j: NEUP_j > max(0.01, 1/k) max NEUP}.
    A model is suspicious where TE <= median(TE) / 2. Models are clustered by HDBSCAN on the cosine distances
    of their output biases' updates, on their NEUPs, and on their division differences DDif_j = mean over
    random images of p_j(local) / p_j(global), for three sets of images; pairs of one cluster have distance 0,
    others 1; the three kinds of distances are averaged and clustered once more. A final cluster is accepted
    where fewer than `tau` of its models are suspicious. Accepted updates are clipped to the median norm of
    all, and averaged. Where no cluster is accepted the result is zero. f and the weights are not used.

    The paper draws 20,000 images a set: n + 1 forward passes each, in every round.

    updates (n, d) -> (d,). Needs n >= min_cluster_size and a context with the network, else PluginError.
    Costs O(n d + n^2) and 3 (n + 1) samples forward passes. Draws from the context's generator. Reports the
    rows accepted.
    """

    name: ClassVar[str] = "deepsight"
    requires: ClassVar[tuple[str, ...]] = ("sklearn.cluster",)
    reference: ClassVar[Reference | None] = Reference(
        title="DeepSight: Mitigating Backdoor Attacks in Federated Learning Through Deep Model Inspection",
        authors="Rieger, Nguyen, Miettinen, Sadeghi",
        venue="NDSS",
        year=2022,
        url="https://arxiv.org/abs/2201.00763",
    )

    samples: int = Field(20_000, ge=1, description="random images in each of the three sets")
    tau: float = Field(
        1 / 3, gt=0, le=1, description="share of suspicious models that a cluster must stay below"
    )
    min_cluster_size: int = Field(5, ge=2, description="models to a cluster, at least")
    min_samples: int = Field(
        3,
        ge=1,
        description="models near a core point, itself among them as in scikit-learn; the hdbscan package leaves it out",
    )
    batch_size: int = Field(1000, ge=1, description="random images in a forward pass")

    def check(self, n: int, f: int) -> tuple[int, int]:
        if n < self.min_cluster_size:
            raise PluginError(f"deepsight needs n >= {self.min_cluster_size} updates to cluster: n = {n}")
        return n, f

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        import numpy as np
        import torch

        tolerated(self, updates, context)
        weights, biases = self._output_layer(updates, context)
        energy = biases.abs() + weights.abs().sum(2)
        neups = (energy.square() / energy.square().sum(1, keepdim=True)).nan_to_num(nan=1 / energy.shape[1])
        threshold = max(0.01, 1 / energy.shape[1]) * neups.amax(1, keepdim=True)
        exceedings = (neups > threshold).sum(1).double()
        suspicious = (exceedings <= exceedings.quantile(0.5) / 2).numpy()
        by_bias = self._pairs((1 - cosines(gram_matrix(biases))).clamp(min=0).numpy(), precomputed=True)
        by_neup = self._pairs(neups.numpy())
        by_ddif = np.mean([self._pairs(d) for d in self._ddifs(updates, context)], axis=0)
        labels = self._cluster((by_bias + by_neup + by_ddif) / 3, precomputed=True, single=True)
        accepted = [
            label
            for label in sorted(set(labels.tolist()) - {-1})
            if suspicious[labels == label].mean() < self.tau
        ]
        kept = [i for i, label in enumerate(labels) if label in accepted]
        context.report(kept=kept)
        if not kept:
            return torch.zeros_like(updates[0])
        norms = squared_norms(updates).sqrt()
        return mean_of(updates, kept, clip_factors(norms, norms.quantile(0.5)))

    @staticmethod
    def _output_layer(updates: Tensor, context: AggregationContext) -> tuple[Tensor, Tensor]:
        """The output layer's updates: weights (n, k, h) and biases (n, k), float64 on the CPU."""
        names = list(context.layout)
        if len(names) < 2 or context.logits is None or context.input_shape is None:
            raise PluginError("deepsight inspects models: it needs the network and its layers in the context")
        # A masked or rounded layer has its weight behind its bias, under `parametrizations`.
        pair = sorted(names[-2:], key=lambda name: name.rpartition(".")[2].startswith("bias"))
        weight, bias = (updates[:, context.layout[name]].cpu().double() for name in pair)
        classes = bias.shape[1]
        if _layer(names[-2]) != _layer(names[-1]) or weight.shape[1] % classes:
            raise PluginError(
                f"deepsight needs an output layer with weight and bias as the last two parameters, "
                f"not {names[-2]!r} and {names[-1]!r}"
            )
        return weight.reshape(len(updates), classes, -1), bias

    def _ddifs(self, updates: Tensor, context: AggregationContext) -> list[np.ndarray]:
        """Three arrays (n, k) of division differences."""
        import torch

        assert context.logits is not None
        assert context.input_shape is not None
        base = context.global_weights
        base = torch.zeros_like(updates[0]) if base is None else base
        generator = context.generator
        found = []
        for _ in range(3):
            totals: Tensor | None = None
            done = 0
            while done < self.samples:
                size = min(self.batch_size, self.samples - done)
                shape = (size, *context.input_shape)
                x = torch.rand(shape, generator=generator, device=generator.device)
                reference = context.logits(base, x).double().softmax(1).clamp(min=TINY)
                ratios = [
                    (context.logits(base + update, x).double().softmax(1) / reference).sum(0)
                    for update in updates
                ]
                stacked = torch.stack(ratios).cpu()
                totals = stacked if totals is None else totals + stacked
                done += size
            assert totals is not None
            found.append((totals / self.samples).numpy())
        return found

    def _cluster(self, values: np.ndarray, precomputed: bool = False, single: bool = False) -> np.ndarray:
        import numpy as np
        from sklearn.cluster import HDBSCAN

        clusterer = HDBSCAN(
            min_cluster_size=self.min_cluster_size,
            min_samples=min(self.min_samples, len(values)),
            metric="precomputed" if precomputed else "euclidean",
            allow_single_cluster=single,
            copy=True,
        )
        return np.asarray(clusterer.fit_predict(values))

    def _pairs(self, values: np.ndarray, precomputed: bool = False) -> np.ndarray:
        """(n, n): 0 for two models of one cluster (or both of none), else 1."""
        labels = self._cluster(values, precomputed)
        return (labels[:, None] != labels[None, :]).astype(float)


def _layer(name: str) -> str:
    """The layer that a parameter belongs to."""
    before, parametrized, _ = f".{name}".partition(".parametrizations.")
    return before if parametrized else before.rpartition(".")[0]


PLUGINS = (DeepSight,)
