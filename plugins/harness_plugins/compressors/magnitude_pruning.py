"""Unstructured pruning: the smallest weights become zero."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, ClassVar

from harness.api import CompressedModel, CompressionContext, Field, ModelCompressor, PluginError, Reference
from harness_plugins.compressors.state import check_finite, check_names, file_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn


class MagnitudePruning(ModelCompressor):
    """Zeroes the floor(ratio · N) convolution and linear weights of smallest magnitude in the whole network.

    N counts the `weight` tensors of all convolution and linear layers (each shared one once); biases and
    normalisation layers are left alone. One shot, one threshold for all layers, no retraining: the pruning
    step of Han et al. 2015, whose threshold is one per layer, ranked over the whole network as in the
    global magnitude pruning of Blalock et al. 2020 (arXiv 2003.03033). Of weights that tie at the
    threshold, those of earlier layers and lower positions go first, so the count is exact. Weights that are
    zero already count among the smallest.

    The file keeps its size as plain tensors: what is gained shows in `gzip_bytes` and `nonzero_share`.
    facts: weights (N), zeros (those that are zero afterwards), sparsity (zeros/N).
    Raises PluginError where there is no such layer or a weight is not finite. Cost: O(N) time and memory.
    """

    name: ClassVar[str] = "magnitude-pruning"
    requires: ClassVar[tuple[str, ...]] = ("torch",)
    reference: ClassVar[Reference | None] = Reference(
        title="Learning both Weights and Connections for Efficient Neural Networks",
        authors="Song Han, Jeff Pool, John Tran, William J. Dally",
        venue="NeurIPS 2015",
        year=2015,
        url="https://arxiv.org/abs/1506.02626",
    )

    ratio: float = Field(0.5, ge=0, lt=1, description="share of these weights zeroed, in [0, 1)")

    def compress(self, model: nn.Module, context: CompressionContext) -> CompressedModel:
        import torch

        module = copy.deepcopy(model).eval()
        weights = prunable_weights(module)
        if not weights:
            raise PluginError("magnitude-pruning: the network has no convolution or linear weights of floats")
        check_finite(module, "magnitude-pruning")
        magnitudes = torch.cat([w.detach().abs().flatten() for w in weights])
        total = len(magnitudes)
        # A product such as 0.29 * 100 lies just below the whole number that is meant.
        removed = math.floor(self.ratio * total + 1e-9)
        kept = (~smallest(magnitudes, removed)).split([w.numel() for w in weights])
        with torch.no_grad():
            for weight, mask in zip(weights, kept, strict=True):
                weight.masked_fill_(~mask.view_as(weight), 0)
        zeros = sum(int((w == 0).sum()) for w in weights)
        facts = {"weights": total, "zeros": zeros, "sparsity": zeros / total}
        return CompressedModel(module, file_tensors(module), facts=facts)

    def restore(
        self, model: nn.Module, state: dict[str, Tensor], input_shape: tuple[int, int, int]
    ) -> CompressedModel:
        module = copy.deepcopy(model).eval()
        check_names(module.state_dict(), state, "magnitude-pruning")
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise PluginError(
                f"magnitude-pruning: the file does not fit this architecture: {error}"
            ) from None
        return CompressedModel(module, dict(state))


def prunable_weights(module: nn.Module) -> list[Tensor]:
    """The weights of convolution and linear layers, in the module's order, each shared tensor once."""
    from torch import nn
    from torch.nn.modules.conv import _ConvNd

    found = [layer.weight for layer in module.modules() if isinstance(layer, (_ConvNd, nn.Linear))]
    return list({id(w): w for w in found}.values())


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


PLUGINS = (MagnitudePruning,)
