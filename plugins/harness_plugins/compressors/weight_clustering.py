"""Weight clustering: every layer's weights share a few values."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, ClassVar

from harness.api import (
    CompressedModel,
    CompressionContext,
    Field,
    ModelCompressor,
    PluginError,
    Reference,
    Surroundings,
)
from harness_plugins.compressors._state import (
    check_finite,
    check_names,
    file_tensors,
    load_values,
    other_names,
    weight_key,
)
from harness_plugins.compressors._updates import pack, unpack, width_for

if TYPE_CHECKING:
    from torch import Tensor, nn


class WeightClustering(ModelCompressor):
    """Each convolution and linear layer keeps `clusters` values, and for every weight which of them it has.

    k-means on a layer's weights, centroids first spread evenly from the least to the greatest. Where some weights
    are exactly zero, as after pruning, one of the values is zero, theirs for good, and the others are found among
    the remaining weights: Han et al. cluster what pruning has left. Then, over `fine_tune_rounds` of the same
    federation, training of the centroids: the gradients of a centroid's weights are averaged, so that centroids move
    as far as weights do under any optimiser, by the learning rate times that mean under SGD (section 3 adds the
    gradients up and trains at a smaller rate). Clients send a whole weight's update, whose mean over a centroid's
    weights is what counts. Huffman coding, their last step, is not used. Layers with no more weights than clusters
    stay as they are. Bytes are saved on disk; in memory the weights are float again.

    The file holds for each such layer `weight.codebook` (float32) and `weight.indices` (1, 2, 4 or 8 bits
    each, packed into uint8), and all other tensors in float. facts: layers_clustered, and weight_error, ||w -
    w'|| / ||w|| before training. Raises PluginError where a weight is not finite or no layer has enough of
    them.
    """

    name: ClassVar[str] = "weight-clustering"
    requires: ClassVar[tuple[str, ...]] = ("sklearn.cluster",)
    reference: ClassVar[Reference | None] = Reference(
        title="Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and "
        "Huffman Coding",
        authors="Han, Mao, Dally", venue="ICLR", year=2016, url="https://arxiv.org/abs/1510.00149",
    )  # fmt: skip

    clusters: int = Field(
        16, ge=2, le=256, description="different values of a layer's weights, zero included"
    )
    fine_tune_rounds: int = Field(0, ge=0, description="federated rounds in which the centroids train")

    @property
    def fine_tuning_rounds(self) -> int:
        return self.fine_tune_rounds

    def compress(self, model: nn.Module, context: CompressionContext) -> CompressedModel:
        from harness_plugins.compressors._layers import Codebook, weight_layers, with_weights, zero_masks

        check_finite(model, self.name)
        module = copy.deepcopy(model).eval()
        codebooks: dict[str, Any] = {}
        indices: dict[str, Tensor] = {}
        error = total = 0.0
        for name, layer in weight_layers(module).items():
            weight: Tensor = layer.weight.detach()  # type: ignore[assignment]
            if weight.numel() <= self.clusters:
                continue
            codebook, found = clustered(weight, self.clusters)
            indices[name] = found
            codebooks[name] = Codebook(found, codebook, with_zero=bool((weight == 0).any()))
            error += float((codebook[found] - weight).square().sum())
            total += float(weight.square().sum())
        if not codebooks:
            raise PluginError(f"{self.name}: no layer has more than {self.clusters} weights")
        values: dict[str, Tensor] = {}
        # Of what pruning has left of layers that are too small for clusters, nothing may grow back either.
        with with_weights(module, zero_masks(module) | codebooks, baked=True):
            if self.fine_tune_rounds:
                context.fine_tune(module, self.fine_tune_rounds)
            for name in codebooks:
                own: Any = module.get_submodule(name)
                trained = own.parametrizations.weight.original.detach()
                values[name] = codebooks[name].centroids(trained).clone()
        state = file_tensors(module)
        for name in other_names(module, {weight_key(name) for name in values}):
            del state[name]
        for name, codebook in values.items():
            key = weight_key(name)
            del state[key]
            state[f"{key}.codebook"] = codebook.cpu()
            state[f"{key}.indices"] = pack(indices[name].flatten().cpu(), width_for(self.clusters))
        facts = {"layers_clustered": len(values), "weight_error": math.sqrt(error / total) if total else 0.0}
        return CompressedModel(module.eval(), state, facts=facts)

    def restore(
        self, model: nn.Module, state: dict[str, Tensor], surroundings: Surroundings
    ) -> CompressedModel:
        from harness_plugins.compressors._layers import weight_layers

        module = copy.deepcopy(model)
        own = module.state_dict()
        expected = dict(own)
        values = dict(state)
        for name, layer in weight_layers(module).items():
            weight: Tensor = layer.weight  # type: ignore[assignment]
            if weight.numel() <= self.clusters:
                continue
            key = weight_key(name)
            del expected[key]
            expected |= {f"{key}.codebook": weight, f"{key}.indices": weight}
        replaced = set(own) - set(expected)
        shared = other_names(module, replaced)
        for name in shared:
            del expected[name]
        check_names(expected, state, self.name)
        for key in replaced:
            codebook, packed = values.pop(f"{key}.codebook"), values.pop(f"{key}.indices")
            width = width_for(self.clusters)
            if len(codebook) > self.clusters or len(packed) != math.ceil(own[key].numel() * width / 8):
                raise PluginError(f"{self.name}: the file's {key!r} has other clusters or another shape")
            found = unpack(packed, width, own[key].numel()).long()
            values[key] = codebook[found].view_as(own[key])
        values |= {name: values[key] for name, key in shared.items()}
        load_values(module, values, self.name)
        return CompressedModel(module, dict(state))


def clustered(weight: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """(codebook (k,), which of its values each weight has, int64 like the weight); the first is 0 where a weight is."""
    import torch

    zero = weight == 0
    if not zero.any():
        return kmeans(weight, clusters)
    centroids, found = kmeans(weight[~zero], clusters - 1)
    indices = torch.zeros_like(weight, dtype=torch.int64)
    indices[~zero] = found + 1
    return torch.cat([centroids.new_zeros(1), centroids]), indices


def kmeans(weight: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """(centroids (k,), which one each weight has, int64 like the weight), Lloyd's algorithm from even spacing.

    It ends where no weight changes its cluster, after 300 rounds at most. k is at most the number of weights; of none,
    one centroid that nothing has.
    """
    import warnings

    import numpy as np
    import torch
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    if not weight.numel():
        return weight.new_zeros(1), torch.zeros_like(weight, dtype=torch.int64)
    clusters = min(clusters, weight.numel())
    values = weight.detach().cpu().double().numpy().reshape(-1, 1)
    start = np.linspace(values.min(), values.max(), clusters).reshape(-1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different values than clusters
        found = KMeans(clusters, init=start, n_init=1, tol=0, algorithm="lloyd").fit(values)
    centroids = torch.from_numpy(found.cluster_centers_[:, 0].copy()).to(weight)
    indices = torch.from_numpy(found.labels_.astype(np.int64)).to(weight.device)
    return centroids, indices.view(weight.shape)


PLUGINS = (WeightClustering,)
