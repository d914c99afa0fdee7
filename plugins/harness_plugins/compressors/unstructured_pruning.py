"""Unstructured pruning: single weights become zero."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from harness.api import (
    CompressedModel,
    CompressionContext,
    Field,
    PluginError,
    Reference,
    Surroundings,
)
from harness_plugins.compressors._state import check_finite, file_tensors, load_dense
from harness_plugins.compressors._steps import InSteps

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Pruning(InSteps):
    """Zeroes weights of convolution and linear layers, in one step or in several with training between.

    After step t of `steps` the share 1 - (1 - ratio)^(t / steps) is zero, so every step takes the same share of
    what is left. What is zero stays zero, what was so before included, in training too: masks hold it there.
    """

    requires: ClassVar[tuple[str, ...]] = ("torch",)

    ratio: float = Field(0.5, ge=0, lt=1, description="share of these weights zeroed, in [0, 1)")
    scope: Literal["network", "layer"] = Field(
        "network", description="where the share is taken: over all these layers together, or in each"
    )

    @abstractmethod
    def score(self, weights: Tensor, generator: torch.Generator) -> Tensor:
        """What each of the weights (n,) is worth, (n,) >= 0; the least go first."""

    def compress(self, model: nn.Module, context: CompressionContext) -> CompressedModel:
        import torch

        from harness_plugins.compressors._layers import Mask, weight_layers, with_weights

        module = copy.deepcopy(model).eval()
        layers = weight_layers(module)
        if not layers:
            raise PluginError(f"{self.name}: the network has no convolution or linear weights of floats")
        check_finite(module, self.name)
        kept = {name: torch.ones_like(layer.weight, dtype=torch.bool) for name, layer in layers.items()}
        before = {name: layer.weight.detach() != 0 for name, layer in layers.items()}
        for step in range(1, self.steps + 1):
            share = 1 - (1 - self.ratio) ** (step / self.steps)
            kept = self._masks(weight_layers(module), kept, share, context.generator)
            masks = {name: Mask(mask & before[name]) for name, mask in kept.items()}
            if not self.fine_tune_rounds:  # nothing trains: layers may share a weight
                with torch.no_grad():
                    for name, mask in masks.items():
                        shared: Tensor = module.get_submodule(name).weight  # type: ignore[assignment]
                        shared.copy_(mask(shared))
                continue
            with with_weights(module, masks, baked=True):
                context.fine_tune(module, self.fine_tune_rounds)
            module.eval()
        weights = [layer.weight for layer in weight_layers(module).values()]
        total, zeros = sum(w.numel() for w in weights), sum(int((w == 0).sum()) for w in weights)
        facts = {"weights": total, "zeros": zeros, "sparsity": zeros / total}
        return CompressedModel(module, file_tensors(module), facts=facts)

    def _masks(
        self, layers: dict[str, nn.Module], kept: dict[str, Tensor], share: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Which weights stay, name -> bool like the weight: of what is gone already nothing comes back."""
        import torch

        scores = {}
        for name, layer in layers.items():
            worth = self.score(layer.weight.detach().flatten(), generator)
            scores[name] = worth.masked_fill(~kept[name].flatten(), -1)
        if self.scope == "layer":
            gone = {name: smallest(s, _count(share, len(s))) for name, s in scores.items()}
        else:
            together = torch.cat(list(scores.values()))
            parts = smallest(together, _count(share, len(together))).split([len(s) for s in scores.values()])
            gone = dict(zip(scores, parts, strict=True))
        return {name: ~gone[name].view_as(kept[name]) for name in layers}

    def restore(
        self, model: nn.Module, state: dict[str, Tensor], surroundings: Surroundings
    ) -> CompressedModel:
        return CompressedModel(load_dense(copy.deepcopy(model), state, self.name), dict(state))


class MagnitudePruning(Pruning):
    """Zeroes the floor(ratio · N) convolution and linear weights of smallest magnitude.

    N counts the `weight` tensors of all convolution and linear layers (each shared one once); biases and normalisation
    layers are left alone. As it is, one shot and one threshold for the whole network without retraining, the global
    magnitude pruning of Blalock et al. 2020 (arXiv 2003.03033); `scope: layer`, `steps` and `fine_tune_rounds` give the
    layer-wise iterative pruning and retraining of Han et al. 2015: after step t of `steps` the share 1 - (1 - ratio)^(t
    / steps) is zero, and stays so while the others train. (Their thresholds are multiples of a layer's standard
    deviation, which zero another share of each.) Of weights that tie at the threshold, those of earlier layers and
    lower positions go first, so the count is exact. Weights that are zero already count among the smallest.

    The file keeps its size as plain tensors: what is gained shows in `gzip_bytes` and `nonzero_share`.
    facts: weights (N), zeros (those that are zero afterwards), sparsity (zeros/N).
    Raises PluginError where there is no such layer or a weight is not finite. Cost: O(N log N) and the training.
    """

    name: ClassVar[str] = "magnitude-pruning"
    reference: ClassVar[Reference | None] = Reference(
        title="Learning both Weights and Connections for Efficient Neural Networks",
        authors="Song Han, Jeff Pool, John Tran, William J. Dally",
        venue="NeurIPS 2015",
        year=2015,
        url="https://arxiv.org/abs/1506.02626",
    )

    def score(self, weights: Tensor, generator: torch.Generator) -> Tensor:
        return weights.abs()


class RandomPruning(Pruning):
    """Zeroes floor(ratio · N) convolution and linear weights drawn at random: what any importance must beat.

    Counts, steps, training and facts as for magnitude-pruning. Source: the baseline of Blalock et al. (2020).
    """

    name: ClassVar[str] = "random-pruning"
    reference: ClassVar[Reference | None] = Reference(
        title="What is the State of Neural Network Pruning?", authors="Blalock, Gonzalez Ortiz, Frankle, Guttag",
        venue="MLSys", year=2020, url="https://arxiv.org/abs/2003.03033",
    )  # fmt: skip

    def score(self, weights: Tensor, generator: torch.Generator) -> Tensor:
        import torch

        return torch.rand(len(weights), generator=generator, device=generator.device).to(weights)


def _count(share: float, total: int) -> int:
    # A product such as 0.29 * 100 lies just below the whole number that is meant.
    return math.floor(share * total + 1e-9)


def smallest(values: Tensor, k: int) -> Tensor:
    """A mask (n,) of the k smallest of n values; of equal ones the first."""
    import torch

    mask = torch.zeros_like(values, dtype=torch.bool)
    if k > 0:
        threshold = values.sort().values[k - 1]  # kthvalue has no deterministic form on GPUs
        mask = values < threshold
        ties = (values == threshold).nonzero().flatten()
        mask[ties[: k - int(mask.sum())]] = True
    return mask


PLUGINS = (MagnitudePruning, RandomPruning)
