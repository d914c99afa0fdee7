"""Quantisation-aware training: the network trains with the rounding that it will have in 8 bits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from harness.api import CompressedModel, CompressionContext, Field, Reference
from harness_plugins.compressors.static_int8 import BATCH, StaticInt8, activation_grid, weight_rounding

if TYPE_CHECKING:
    from torch import Tensor, nn


class QATInt8(StaticInt8):
    """static-int8 after `fine_tune_rounds` rounds of the same federation with rounding simulated.

    In these rounds the forward pass sees every convolution and linear layer with its weight rounded (the scale
    follows the weight) and its input rounded, both to the steps that static-int8 deploys with this machine's
    kernels; the backward pass takes rounding for the identity inside the range of the 8 bits (Jacob et al.,
    section 3). Input ranges are the least and the
    greatest value on the calibration images, before the training, where the paper follows a running mean; batch
    normalisation is folded only afterwards. The result is then calibrated and converted as static-int8 does
    it, file and facts included. Weights that are zero, as after pruning, stay zero. A record's
    loss depends on that record alone.
    """

    name: ClassVar[str] = "qat-int8"
    reference: ClassVar[Reference | None] = StaticInt8.reference

    fine_tune_rounds: int = Field(2, ge=1, description="federated rounds of training with simulated rounding")

    @property
    def fine_tuning_rounds(self) -> int:
        return self.fine_tune_rounds

    def compress(self, model: nn.Module, context: CompressionContext) -> CompressedModel:
        from harness_plugins.compressors._layers import weight_layers, zeros_held

        module = copy.deepcopy(model).eval()
        layers = weight_layers(module)
        ranges = _input_ranges(module, layers, self._draw(context))
        functions = {name: weight_rounding(layers[name], self.granularity) for name in ranges}
        rounded = {name: layers[name] for name in ranges}
        with zeros_held(module, functions), _rounded_inputs(rounded, ranges):
            context.fine_tune(module, self.fine_tune_rounds)
        return super().compress(module.eval(), context)


def _input_ranges(
    module: nn.Module, layers: dict[str, nn.Module], images: Tensor
) -> dict[str, tuple[float, float]]:
    """Name -> least and greatest input value of each layer that is used, over all images."""
    import torch

    seen: dict[str, tuple[float, float]] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            low, high = seen.get(name, (0.0, 0.0))  # zero has to be a value of its own
            seen[name] = (min(low, float(inputs[0].min())), max(high, float(inputs[0].max())))

        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    device = next(p.device for p in module.parameters())
    try:
        with torch.no_grad():
            for batch in images.split(BATCH):
                module(batch.to(device))
    finally:
        for handle in handles:
            handle.remove()
    return seen


@contextmanager
def _rounded_inputs(layers: dict[str, nn.Module], ranges: dict[str, tuple[float, float]]) -> Iterator[None]:
    """Inside, these layers get their inputs rounded as deployed, for these ranges."""

    def rounded(low: float, high: float) -> Any:
        scale, zero = activation_grid(low, high)

        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x, *others = inputs
            # Kernels clip at all of uint8, also where the range is spread over fewer steps.
            inside = x.clamp((0 - zero) * scale, (255 - zero) * scale)
            values = inside.detach()
            return ((values * (1 / scale)).round() * scale + (inside - values), *others)

        return hook

    handles = [layer.register_forward_pre_hook(rounded(*ranges[name])) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


PLUGINS = (QATInt8,)
