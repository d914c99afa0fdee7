"""Low-rank factorisation: one layer becomes two thin ones."""

from __future__ import annotations

import copy
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
from harness_plugins.compressors._state import check_finite, file_tensors, load_dense

if TYPE_CHECKING:
    from torch import Tensor, nn


class LowRank(ModelCompressor):
    """Convolution and linear layers whose weight W is replaced by the nearest W' of rank r, then fine-tuned.

    W, flattened to (outputs, inputs · kernel), has the truncated singular value decomposition U S V; the
    layer becomes one with the r rows of S^1/2 V as its kernels and, after it, a linear layer or 1x1
    convolution with U S^1/2 and the bias: halves of equal size, which train alike. r is the least that keeps
    `energy` of the sum of squared singular values. These are the layers of Zhang et al., without their fit of U to the
    responses to images and to the ReLU after them: U fits the weights alone, which takes no data, as Denton et al.
    2014 do for linear layers. A layer where that would not save weights, or that is grouped or transposed, stays as
    it is. Layers that share a weight share its factors; one shared with a layer of another kind, as an embedding,
    stays. Weights that are zero then, as a layer's that was pruned before and not factorised, stay zero in training;
    the factors of a pruned layer are dense.

    facts: layers_factorised, and ranks, name -> r. Raises PluginError where nothing would be saved or a
    weight is not finite. Cost: one decomposition a layer, then the fine-tuning.
    """

    name: ClassVar[str] = "low-rank"
    requires: ClassVar[tuple[str, ...]] = ("torch",)
    reference: ClassVar[Reference | None] = Reference(
        title="Accelerating Very Deep Convolutional Networks for Classification and Detection",
        authors="Zhang, Zou, He, Sun", venue="TPAMI", year=2016, url="https://arxiv.org/abs/1505.06798",
    )  # fmt: skip

    energy: float = Field(
        0.9, gt=0, le=1, description="share of each weight's squared singular values kept, in (0, 1]"
    )
    fine_tune_rounds: int = Field(0, ge=0, description="federated rounds of training afterwards")

    @property
    def fine_tuning_rounds(self) -> int:
        return self.fine_tune_rounds

    def compress(self, model: nn.Module, context: CompressionContext) -> CompressedModel:
        import torch

        from harness_plugins.compressors._layers import zeros_held

        check_finite(model, self.name)
        module = copy.deepcopy(model).eval()
        ranks: dict[str, Any] = {}
        for layers in _factorable(module):
            weight: Tensor = next(iter(layers.values())).weight.detach()  # type: ignore[assignment,operator]
            matrix = weight.flatten(1).double()
            u, s, v = torch.linalg.svd(matrix, full_matrices=False)
            rank = _rank(s, self.energy)
            if rank * sum(matrix.shape) >= matrix.numel():
                continue
            half = s[:rank].sqrt()
            module, pair = _factorised(module, layers, rank)
            with torch.no_grad():
                pair[0].weight.copy_((half[:, None] * v[:rank]).view_as(pair[0].weight))  # type: ignore[operator]
                pair[1].weight.copy_((u[:, :rank] * half).view_as(pair[1].weight))  # type: ignore[operator]
            ranks |= dict.fromkeys(layers, rank)
        if not ranks:
            raise PluginError(f"{self.name}: keeping {self.energy:g} of the energy saves weights in no layer")
        if self.fine_tune_rounds:
            with zeros_held(module):
                module = context.fine_tune(module, self.fine_tune_rounds).eval()
        facts = {"layers_factorised": len(ranks), "ranks": ranks}
        return CompressedModel(module, file_tensors(module), facts=facts)

    def restore(
        self, model: nn.Module, state: dict[str, Tensor], surroundings: Surroundings
    ) -> CompressedModel:
        module = copy.deepcopy(model)
        for layers in _factorable(module):
            name, layer = next(iter(layers.items()))
            first = state.get(f"{name}.0.weight" if name else "0.weight")
            if first is not None and first.ndim == layer.weight.ndim:  # type: ignore[union-attr,operator]
                module, _ = _factorised(module, layers, len(first))
        return CompressedModel(load_dense(module, state, self.name), dict(state))


def _factorable(module: nn.Module) -> list[dict[str, nn.Module]]:
    """The layers that can be factorised, by name; those of one weight, or one layer's several names, together."""
    from torch import nn

    users: dict[int, dict[str, nn.Module]] = {}
    for name, layer in module.named_modules(remove_duplicate=False):
        for parameter in layer.parameters(recurse=False):
            users.setdefault(id(parameter), {})[name] = layer

    def fits(layer: Any, weight: int) -> bool:
        convolution = isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and layer.groups == 1
        return (convolution or type(layer) is nn.Linear) and id(layer.weight) == weight

    return [
        layers for weight, layers in users.items() if all(fits(layer, weight) for layer in layers.values())
    ]


def _factorised(
    module: nn.Module, layers: dict[str, nn.Module], rank: int
) -> tuple[nn.Module, nn.Sequential]:
    """In place: pairs for layers that share a weight, which share theirs. Also the first of them, without values."""
    pairs: dict[int, nn.Sequential] = {}
    first = _pair(next(iter(layers.values())), rank)
    for name, layer in layers.items():
        pair = pairs.setdefault(id(layer), _pair(layer, rank) if pairs else first)
        pair[0].weight, pair[1].weight = first[0].weight, first[1].weight
        module = _replaced(module, name, pair)
    return module, first


def _rank(singular: Tensor, energy: float) -> int:
    """The least r whose largest singular values hold this share of the sum of squares, at least 1."""
    squares = singular.square().cumsum(0)
    return int((squares < energy * squares[-1] * (1 - 1e-12)).sum()) + 1


def _pair(layer: Any, rank: int) -> nn.Sequential:
    """Two layers of the same function class, with the layer's bias and without its weight's values."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        like = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        if isinstance(layer, nn.Linear):
            first: nn.Module = nn.Linear(layer.in_features, rank, bias=False, **like)
            second: nn.Module = nn.Linear(rank, layer.out_features, bias=False, **like)
        else:
            options = {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "padding_mode")}
            first = type(layer)(layer.in_channels, rank, layer.kernel_size, bias=False, **options, **like)
            second = type(layer)(rank, layer.out_channels, 1, bias=False, **like)
    second.bias = layer.bias
    return nn.Sequential(first, second)


def _replaced(module: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """The module with another layer at a name, in place; the layer itself where the name is empty."""
    from torch import nn

    if not name:
        return layer
    path, _, own = name.rpartition(".")
    parent = module.get_submodule(path)
    setattr(parent, own, layer)
    if isinstance(parent, nn.TransformerEncoderLayer):
        # Else the fused form of it, and of encoders for padded input, takes the weights of its linear layers itself.
        parent.activation_relu_or_gelu = 0
        for outer in module.modules():
            if isinstance(outer, nn.TransformerEncoder):
                outer.use_nested_tensor = False
    return module


PLUGINS = (LowRank,)
