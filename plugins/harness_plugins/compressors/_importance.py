"""What the channels of a network are worth, for structured pruning."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from harness.api import CompressionContext

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness_plugins.compressors.structured_pruning import StructuredPruning

BATCH = 64  # images of one gradient


class Importance:
    """A group -> what its channels (C,) are worth, None where that is not defined for it."""

    def __init__(self, settings: StructuredPruning, module: nn.Module, context: CompressionContext) -> None:
        self.settings, self.module, self.context = settings, module, context
        self._gradients: list[dict[int, Tensor]] = []  # for each batch: id of a parameter -> its gradient

    def refresh(self) -> None:
        """Gradients at the present weights, where they are used."""
        import torch
        from torch.nn import functional

        if self.settings.importance != "taylor":
            return
        images, labels = self.context.data()
        generator = self.context.generator
        order = torch.randperm(len(images), generator=generator, device=generator.device).to(images.device)
        parameters = list(self.module.parameters())
        self._gradients = []
        with torch.enable_grad():
            for batch in order[: self.settings.samples].split(BATCH):
                x, y = (part[batch].to(parameters[0].device) for part in (images, labels))
                loss = functional.cross_entropy(self.module(x), y)
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
                pairs = zip(parameters, found, strict=True)
                self._gradients.append({id(p): g for p, g in pairs if g is not None})

    def __call__(self, group: Any) -> Tensor | None:
        import torch

        kind = self.settings.importance
        if kind == "magnitude":
            return summed(group, lambda layer: layer.weight.detach().square())
        if kind == "scale":
            return summed(
                group,
                lambda layer: None if is_root(layer) else layer.weight.detach().abs(),
            )
        if kind == "random":
            worth, generator = summed(group, lambda layer: layer.weight.detach()), self.context.generator
            return (
                None
                if worth is None
                else torch.rand(len(worth), generator=generator, device=generator.device)
            )
        parts = []
        for gradients in self._gradients:
            part = summed(
                group,
                lambda layer, of=gradients: (
                    layer.weight.detach() * of[id(layer.weight)] if id(layer.weight) in of else None
                ),
            )
            if part is not None:
                parts.append(part.square())
        return torch.stack(parts).mean(0) if parts else None


def summed(group: Any, values: Callable[[Any], Tensor | None]) -> Tensor | None:
    """The sum (C,) over a group's layers of values(layer), shaped like their weights, for each channel.

    None where no layer has any. torch-pruning's own importances leave depthwise convolutions out and, where
    one comes first in a group that ends in a flattened linear layer, return the linear layer's number of inputs
    instead of C values.
    """
    import torch
    from torch_pruning.pruner import function

    importance = None
    for member in group:
        layer, rows = member.dep.target.module, member.root_idxs
        incoming = member.dep.handler in (function.prune_conv_in_channels, function.prune_linear_in_channels)
        sums = None if getattr(layer, "weight", None) is None else values(layer)
        sums = None if sums is None else by_channel(layer, incoming, sums)
        if sums is None or any(row is None for row in rows):
            continue
        if importance is None:
            importance = torch.zeros(len(group[0].idxs), device=sums.device)
        importance.index_add_(0, torch.tensor(rows, device=sums.device), sums[list(member.idxs)].float())
    return importance


def by_channel(layer: nn.Module, incoming: bool, values: Tensor) -> Tensor | None:
    """The sum of values, shaped like the weight, for each output (or input) channel; None: not counted."""
    from torch import nn
    from torch.nn.modules.batchnorm import _NormBase
    from torch.nn.modules.conv import _ConvNd

    if isinstance(layer, _ConvNd):
        values = values.flatten(2).sum(2)
        if incoming != layer.transposed:  # channels of the second dimension, which counts within a group
            return values.view(layer.groups, -1, values.shape[1]).sum(1).flatten()
        return values.sum(1)
    if isinstance(layer, nn.Linear):
        return values.sum(0 if incoming else 1)
    if isinstance(layer, (_NormBase, nn.GroupNorm, nn.LayerNorm)) and values.ndim == 1:
        return values
    return None


def is_root(module: nn.Module) -> bool:
    """Whether it is a convolution or linear layer: those whose channels a group is pruned by."""
    from torch import nn
    from torch.nn.modules.conv import _ConvNd

    return isinstance(module, (_ConvNd, nn.Linear))
