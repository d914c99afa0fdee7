"""Weights in few bits, arithmetic in float; and torchao's dynamic int8."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

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

if TYPE_CHECKING:
    from torch import Tensor, nn

TORCHAO = Reference(
    title="TorchAO: PyTorch-Native Training-to-Serving Model Optimization",
    authors="Or, Jain, Vega-Myhre, Cai, Hernandez, Zheng, Guessous, Kuznetsov, Puhrsch, Saroufim, Rao, Nguyen, Bar",
    venue="arXiv 2507.16099", year=2025, url="https://arxiv.org/abs/2507.16099",
)  # fmt: skip


class WeightOnly(ModelCompressor):
    """Weights of convolution and linear layers as integers of `bits` bits; they are used in float.

    Symmetric: w = s q, with q in [-128, 127] or [-8, 7] and s = max|w| over half of that range, one a group of
    weights: the output channel's (of transposed convolutions the input channel's), cut into runs of `group` (null:
    whole). It saves memory and bytes sent; the arithmetic, and so MACs and gradients, is that of the float network. By
    torchao's quantisation primitives, which its own weight-only configurations apply to linear layers alone.

    The file holds for each such layer `weight` (int8, or uint8 with two values a byte), `weight.scale` and all
    other tensors in float. A weight that layers share is held, and counted, once, under its first name. facts:
    quantized_layers, and weight_error, ||w - s q|| / ||w|| over all of them. Raises PluginError where a weight is
    not finite or there is no such layer. Cost: one pass over the weights.
    """

    name: ClassVar[str] = "weight-only"
    requires: ClassVar[tuple[str, ...]] = ("torchao.quantization",)
    reference: ClassVar[Reference | None] = TORCHAO

    bits: Literal[8, 4] = Field(8, description="bits of a weight")
    group: int | None = Field(
        None, ge=2, description="weights that share a scale, along a row of the flattened weight; null: a row"
    )

    def compress(self, model: nn.Module, context: CompressionContext) -> CompressedModel:
        from harness_plugins.compressors._layers import weight_layers

        check_finite(model, self.name)
        layers = weight_layers(model)
        if not layers:
            raise PluginError(f"{self.name}: the network has no convolution or linear weights of floats")
        state = file_tensors(model)
        error = total = 0.0
        keys = [weight_key(name) for name in layers]
        for name in other_names(model, keys):
            del state[name]
        for key in keys:
            weight = state[key].float()
            packed, scale = self._quantize(weight)
            state[key], state[f"{key}.scale"] = packed, scale
            error += float((self._dequantize(packed, scale, weight) - weight).square().sum())
            total += float(weight.square().sum())
        facts = {"quantized_layers": len(layers), "weight_error": math.sqrt(error / total) if total else 0.0}
        return CompressedModel(self._network(copy.deepcopy(model), state), state, facts=facts)

    def restore(
        self, model: nn.Module, state: dict[str, Tensor], surroundings: Surroundings
    ) -> CompressedModel:
        return CompressedModel(self._network(copy.deepcopy(model), state), dict(state))

    def _network(self, module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
        """The module, in place and in eval mode, with the weights that the file stands for."""
        import torch

        from harness_plugins.compressors._layers import weight_layers

        own = module.state_dict()
        keys = {weight_key(name) for name in weight_layers(module)}
        shared = other_names(module, keys)
        check_names({*own, *(f"{key}.scale" for key in keys)} - shared.keys(), state, self.name)
        values = {key: state[key] for key in own if key not in shared}
        with torch.no_grad():
            for key in keys:
                values[key] = self._dequantize(state[key], state[f"{key}.scale"], own[key])
        values |= {name: values[key] for name, key in shared.items()}
        return load_values(module, values, self.name)

    def _block(self, columns: int) -> tuple[int, int]:
        # Two at least, a lone column beside a zero: torchao gives blocks of one weight a single scale for them all.
        return (1, max(2, columns if self.group is None else min(self.group, columns)))

    def _limits(self) -> tuple[int, int]:
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1

    def _quantize(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(integers as the file holds them, scales (rows, groups))."""
        import torch
        from torch.nn.functional import pad
        from torchao.quantization import choose_qparams_affine, quantize_affine
        from torchao.quantization.quant_primitives import MappingType

        rows = weight.flatten(1)
        block = self._block(rows.shape[1])
        rows = pad(rows, (0, -rows.shape[1] % block[1]))  # zeros change no scale
        low, high = self._limits()
        scale, zero = choose_qparams_affine(
            rows, MappingType.SYMMETRIC, block, torch.int8, low, high, zero_point_dtype=torch.int8
        )
        values = quantize_affine(rows, block, scale, zero, torch.int8, low, high)
        values, scale = values[:, : weight[0].numel()], scale.view(len(weight), -1)
        if self.bits == 8:
            return values.reshape(weight.shape).contiguous(), scale
        flat = (values + 8).flatten().to(torch.uint8)
        flat = pad(flat, (0, len(flat) % 2))
        return flat[0::2] | (flat[1::2] << 4), scale

    def _dequantize(self, stored: Tensor, scale: Tensor, like: Tensor) -> Tensor:
        """The float weight. Raises PluginError where the integers are of another number or type."""
        import torch

        count = like.numel()
        expected = (like.shape, torch.int8) if self.bits == 8 else ((math.ceil(count / 2),), torch.uint8)
        columns = count // len(like)
        group = self._block(columns)[1]
        if (stored.shape, stored.dtype) != expected or scale.shape != (len(like), math.ceil(columns / group)):
            raise PluginError(f"{self.name}: the file has weights of other bits, groups or shapes")
        if self.bits == 4:
            both = torch.stack([stored & 15, stored >> 4], 1).flatten()[:count]
            stored = both.to(torch.int8) - 8
        each = scale.repeat_interleave(group, dim=1)[:, :columns]
        return (stored.reshape(len(like), columns) * each).view(like.shape)


class DynamicInt8(ModelCompressor):
    """Linear layers in 8 bits: weights ahead of time, one scale an output; inputs as they come, one scale a row.

    torchao's Int8DynamicActivationInt8WeightConfig: symmetric, products in int32. Convolutions stay in float,
    as torchao has no 8-bit form of them; a network without linear layers is refused. No data is needed, and a
    row's scale depends on that row alone, so a prediction does not depend on its batch. No gradients; the twin
    rounds the same in float, with a straight-through gradient.

    The file holds `weight` (int8) and `weight.scale` of each linear layer, also where layers share a weight, which
    then is no longer one tensor; and all other tensors in float.
    facts: quantized_layers. Runs on the CPU.
    """

    name: ClassVar[str] = "dynamic-int8"
    requires: ClassVar[tuple[str, ...]] = ("torchao.quantization",)
    differentiable: ClassVar[bool] = False
    straight_through: ClassVar[bool] = True
    comes_last: ClassVar[bool] = True
    reference: ClassVar[Reference | None] = TORCHAO

    def compress(self, model: nn.Module, context: CompressionContext) -> CompressedModel:
        check_finite(model, self.name)
        module = self._quantized(model)
        layers = {weight_key(name): layer for name, layer in _linear_layers(module).items()}
        state = file_tensors(model)
        for name in other_names(module, layers):
            del state[name]
        for key, layer in layers.items():
            weight: Any = layer.weight
            state[key], state[f"{key}.scale"] = weight.qdata.clone(), weight.scale.clone()
        return self._compressed(model, module, state)

    def restore(
        self, model: nn.Module, state: dict[str, Tensor], surroundings: Surroundings
    ) -> CompressedModel:
        import torch

        module = self._quantized(model)
        layers = _linear_layers(module)
        quantised = {weight_key(name) for name in layers}
        names = model.state_dict().keys() - other_names(module, quantised).keys()
        check_names({*names, *(f"{key}.scale" for key in quantised)}, state, self.name)
        with torch.no_grad():
            for name, layer in layers.items():
                weight: Any = layer.weight
                key = weight_key(name)
                for own, stored in ((weight.qdata, state[key]), (weight.scale, state[f"{key}.scale"])):
                    if own.shape != stored.shape or own.dtype != stored.dtype:
                        raise PluginError(f"{self.name}: the file's {key!r} does not fit this architecture")
                    own.copy_(stored)
            others = {key: state[key] for key in names - quantised}
            module.load_state_dict(others, strict=False)
        return self._compressed(model, module, dict(state))

    def _quantized(self, model: nn.Module) -> nn.Module:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        module = copy.deepcopy(model).to("cpu").eval()
        if not _linear_layers(module):
            raise PluginError(f"{self.name}: the network has no linear layer")
        quantize_(module, Int8DynamicActivationInt8WeightConfig())
        if not all(hasattr(layer.weight, "qdata") for layer in _linear_layers(module).values()):
            raise PluginError(
                f"{self.name} needs torchao 0.18 or newer: earlier ones keep the integers elsewhere"
            )
        return module

    def _compressed(self, model: nn.Module, module: nn.Module, state: dict[str, Tensor]) -> CompressedModel:
        """Beside the network its twin: float weights as rounded, and inputs rounded row by row."""
        import torch

        from harness_plugins.compressors._twin import RoundedRows

        twin = copy.deepcopy(model).to("cpu").eval()
        layers = _linear_layers(module)
        quantised = {weight_key(name) for name in layers}
        with torch.no_grad():
            others = twin.state_dict().keys() & state.keys() - quantised
            twin.load_state_dict({k: state[k] for k in others}, strict=False)
            for name, layer in _linear_layers(twin).items():
                key = weight_key(name)
                layer.weight.copy_(state[key] * state[f"{key}.scale"])
                rounding = RoundedRows()
                layer.register_forward_pre_hook(lambda _, inputs, rounding=rounding: (rounding(inputs[0]),))
        facts = {"quantized_layers": len(layers)}
        return CompressedModel(module, state, differentiable=False, twin=twin, device="cpu", facts=facts)


def _linear_layers(module: nn.Module) -> dict[str, nn.Linear]:
    """Name -> linear layer, but for the one inside attention, whose weight attention takes and torchao leaves alone."""
    from torch import nn
    from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

    found = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    return {k: layer for k, layer in found.items() if not isinstance(layer, NonDynamicallyQuantizableLinear)}


PLUGINS = (WeightOnly, DynamicInt8)
