"""Post-training static quantisation to int8.

torch.ao.quantization is deprecated in favour of torchao, whose export path gives larger files and,
uncompiled, slower networks. Everything that touches the deprecated API is in this file.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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
from harness_plugins.compressors._state import check_finite, check_names, zeroed

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH = 64  # images per calibration pass
PACKED = "._packed_params._packed_params"  # where a quantised linear layer keeps (weight, bias)


class StaticInt8(ModelCompressor):
    """Weights and activations of convolution and linear layers in 8 bits, ranges from calibration images.

    Affine quantisation r = S (q − Z) (Jacob et al., eq. 1). Weights: q in int8, symmetric (Z = 0), S from
    the largest magnitude, one per output channel or one per tensor. Activations: q in uint8, one (S, Z) per
    tensor, from a histogram of what the calibration images produce, clipped where that lowers the squared
    error. Batch normalisation is folded into the convolution before it and a ReLU module or `F.relu` after
    it is fused; layers without an 8-bit form (group normalisation, ...), and those whose form file and twin
    could not hold (layer normalisation, PReLU, ELU, ...), run in float between them. On x86 activations use 7 of
    the 8 bits, as the kernels' 16-bit accumulators require without VNNI.

    Calibration draws `samples` images without replacement from `context.data()`, with the context's
    generator. The result runs on the CPU only and has no gradients; its twin computes the same in float, each
    8-bit value rounded with a straight-through gradient. The file holds, for each quantised
    layer, `weight` (int8), `weight.scale` (float32), `weight.zero_point` (int8), `bias` (float32), its
    output's `scale` and `zero_point`, and all other tensors in float. `restore` rebuilds it from the
    architecture with equal outputs.

    facts: engine (x86, fbgemm, qnnpack or onednn: this machine's kernels), calibration_samples,
    quantized_layers. Raises PluginError where torch has no quantised kernels, the network cannot be traced
    symbolically (control flow that depends on values), nothing in it can be quantised, a weight is not
    finite, or there are no images. Cost: `samples` forward passes with histograms, and one tracing.
    """

    name: ClassVar[str] = "static-int8"
    requires: ClassVar[tuple[str, ...]] = ("torch.ao.quantization.quantize_fx",)
    differentiable: ClassVar[bool] = False
    straight_through: ClassVar[bool] = True
    comes_last: ClassVar[bool] = True
    reference: ClassVar[Reference | None] = Reference(
        title="Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
        authors="Benoit Jacob, Skirmantas Kligys, Bo Chen, Menglong Zhu, Matthew Tang, Andrew Howard, "
        "Hartwig Adam, Dmitry Kalenichenko",
        venue="CVPR 2018",
        year=2018,
        url="https://arxiv.org/abs/1712.05877",
    )

    granularity: Literal["channel", "tensor"] = Field(
        "channel", description="one weight scale per output channel, or one per tensor"
    )
    calibration: Literal["private", "public"] = Field(
        "private", description="images that set the activation ranges: the validation split, or public data"
    )
    samples: int = Field(512, ge=1, description="calibration images drawn, at most (images)")

    @property
    def data_access(self) -> str:
        return self.calibration

    def compress(self, model: nn.Module, context: CompressionContext) -> CompressedModel:
        import torch

        check_finite(model, self.name)
        images = self._draw(context)
        with _quietly():
            prepared = _prepare(model, context.input_shape, self.granularity)
            with torch.no_grad():
                for batch in images.split(BATCH):
                    self._check_outputs(model, batch)
                    prepared(batch)
            module = _convert(prepared)
        facts = {**_facts(module), "calibration_samples": len(images)}
        return _compressed(module, _to_file(module), facts, context.input_shape)

    def restore(
        self, model: nn.Module, state: dict[str, Tensor], surroundings: Surroundings
    ) -> CompressedModel:
        with _quietly():
            # The values that it is given mean nothing, and those that are not finite have no ranges.
            prepared = _prepare(zeroed(model), surroundings.input_shape, self.granularity)
            # No image is shown to it: the file's ranges replace those that its observers then make up.
            module = _convert(prepared)
            _load(module, state)
        return _compressed(module, dict(state), _facts(module), surroundings.input_shape)

    def _check_outputs(self, model: nn.Module, batch: Tensor) -> None:
        device = next((p.device for p in model.parameters()), batch.device)
        if not model(batch.to(device)).isfinite().all():
            raise PluginError(
                "static-int8: the network's outputs on the calibration images are not finite: its training "
                "has diverged, so there are no ranges to quantise"
            )

    def _draw(self, context: CompressionContext) -> Tensor:
        import torch

        images, _ = context.data()
        if not len(images):
            raise PluginError(f"{self.name}: there are no {self.calibration} images to calibrate on")
        if tuple(images.shape[1:]) != tuple(context.input_shape) or not images.is_floating_point():
            raise PluginError(
                f"{self.name} calibrates on float images {tuple(context.input_shape)}, "
                f"not {tuple(images.shape[1:])} {images.dtype}"
            )
        if len(images) > self.samples:
            generator = context.generator
            order = torch.randperm(len(images), generator=generator, device=generator.device)
            images = images[order[: self.samples].to(images.device)]
        return images.detach().to("cpu", torch.float32)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without deprecation warnings; the global generator, which new layers draw from, is left as it was."""
    import torch

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        yield


def _engine() -> str:
    import torch

    engine = torch.backends.quantized.engine
    if engine not in ("x86", "fbgemm", "qnnpack", "onednn"):
        raise PluginError("static-int8: this build of torch has no quantised kernels for this processor")
    return str(engine)


def _qconfig_mapping(granularity: str) -> Any:
    """What observes which layer's weight and output: the engine's own, but for the weights' granularity."""
    from torch.ao import quantization

    mapping: Any = quantization.get_default_qconfig_mapping(_engine())
    per_channel = granularity == "channel"
    weight = (
        quantization.default_per_channel_weight_observer
        if per_channel
        else quantization.default_weight_observer
    )
    return mapping.set_global(
        quantization.QConfig(activation=mapping.global_qconfig.activation, weight=weight)
    )


def _left_in_float(module: nn.Module) -> list[type[nn.Module]]:
    """In place: layers that stay in float become of classes that torch has no 8-bit form of; returns these.

    The forms that it has keep values that are not in the state, and so not in a file (PReLU, ELU, Softmax), or their
    functions are not in the twin. Between two convolutions a layer would be given its form whatever the mapping says.
    """
    from torch import nn

    kinds = (
        nn.PReLU, nn.ELU, nn.Softmax, nn.LeakyReLU, nn.Hardswish,
        nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
    )  # fmt: skip
    classes = {kind: type(f"Float{kind.__name__}", (kind,), {}) for kind in kinds}
    for layer in module.modules():
        if type(layer) in classes:
            layer.__class__ = classes[type(layer)]
    return list(classes.values())


def weight_rounding(layer: nn.Module, granularity: str) -> nn.Module:
    """The rounding of this layer's weight in the converted network, differentiable."""
    import torch

    from harness_plugins.compressors._layers import FakeRounding

    with _quietly():
        mapping = _qconfig_mapping(granularity)
        observer = mapping.object_type_qconfigs.get(type(layer), mapping.global_qconfig).weight()
    per_channel = observer.qscheme in (torch.per_channel_affine, torch.per_channel_symmetric)
    return FakeRounding(per_channel, observer.quant_min, observer.quant_max, float(observer.eps))


def activation_grid(low: float, high: float) -> tuple[float, int]:
    """(S, Z) of activations that were observed to lie in [low, high], in the converted network."""
    import torch

    with _quietly():
        observer = _qconfig_mapping("tensor").global_qconfig.activation()
        scale, zero_point = observer._calculate_qparams(torch.tensor(low), torch.tensor(high))
    return float(scale), int(zero_point)


def _prepare(model: nn.Module, input_shape: tuple[int, int, int], granularity: str) -> Any:
    """The network with fused layers and observers."""
    import torch
    from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
    from torch.ao.quantization.quantize_fx import prepare_fx

    mapping = _qconfig_mapping(granularity)
    module = copy.deepcopy(model).to("cpu", torch.float32).eval()
    config = PrepareCustomConfig().set_non_traceable_module_classes(_left_in_float(module))
    try:
        return prepare_fx(module, mapping, (torch.zeros(1, *input_shape),), prepare_custom_config=config)
    except Exception as error:  # whatever the network's own code raises while it is traced
        raise PluginError(f"static-int8 cannot trace this network: {error}") from error


def _convert(prepared: Any) -> nn.Module:
    from torch.ao.quantization.quantize_fx import convert_fx

    module = convert_fx(prepared)
    if not _quantized_layers(module):
        raise PluginError("static-int8: the network has no convolution or linear layer to quantise")
    return module


def _quantized_layers(module: nn.Module) -> list[str]:
    names = []
    for name, layer in module.named_modules():
        weight = getattr(layer, "weight", None)
        if callable(weight) and getattr(weight(), "is_quantized", False):
            names.append(name)
    return names


def _facts(module: nn.Module) -> dict[str, Any]:
    return {"engine": _engine(), "quantized_layers": len(_quantized_layers(module))}


def _compressed(
    module: Any, state: dict[str, Tensor], facts: dict[str, Any], input_shape: tuple[int, int, int]
) -> CompressedModel:
    from harness_plugins.compressors._twin import straight_through

    twin = straight_through(module, input_shape)
    return CompressedModel(module, state, differentiable=False, twin=twin, device="cpu", facts=facts)


def _entries(module: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """(key in the state dict, name in the file, value) of everything a quantised network keeps."""
    import torch

    for key, value in module.state_dict().items():
        if isinstance(value, torch.Tensor):
            yield key, key, value
        elif key.endswith(PACKED) and isinstance(value, tuple):
            for part, tensor in zip(("weight", "bias"), value, strict=True):
                if tensor is not None:
                    yield key, f"{key.removesuffix(PACKED)}.{part}", tensor
        elif value is not None and not isinstance(value, torch.dtype):
            raise PluginError(f"static-int8 cannot write {key!r} ({type(value).__name__}) to a file")


def _to_file(module: nn.Module) -> dict[str, Tensor]:
    """Plain tensors: integer weights beside their scales and zero points."""
    import torch

    state: dict[str, Tensor] = {}
    for _, name, value in _entries(module):
        tensor = value.detach()
        if tensor.is_quantized:
            per_channel = tensor.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)
            scale = tensor.q_per_channel_scales() if per_channel else torch.tensor(tensor.q_scale())
            zero = tensor.q_per_channel_zero_points() if per_channel else torch.tensor(tensor.q_zero_point())
            state[name] = tensor.int_repr().contiguous()
            # Observers compute scales in float32 and keep them in wider types: nothing is lost here.
            state[f"{name}.scale"] = scale.to(torch.float32)
            state[f"{name}.zero_point"] = zero.to(torch.int8)
        elif tensor.dtype == torch.int64:  # zero points of activations, in [0, 255]
            state[name] = tensor.to(torch.int32)
        else:
            state[name] = tensor.clone().contiguous()
    return state


def _load(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Put a file's tensors into a converted network. Raises PluginError where they do not fit."""
    import torch

    entries = list(_entries(module))
    names = {name for _, name, _ in entries}
    names |= {f"{n}.{part}" for _, n, v in entries if v.is_quantized for part in ("scale", "zero_point")}
    check_names(names, state, "static-int8")
    loaded = module.state_dict()  # with the layers' version numbers, which loading needs
    packed: dict[str, dict[str, Tensor]] = {}
    for key, name, old in entries:
        stored = state[name].to("cpu")
        if stored.shape != old.shape:
            raise PluginError(
                f"static-int8: {name!r} is {tuple(stored.shape)} in the file, not {tuple(old.shape)}"
            )
        if old.is_quantized:
            new = _quantized(stored, state[f"{name}.scale"], state[f"{name}.zero_point"], old, name)
        else:
            new = stored.to(old.dtype)
        if key.endswith(PACKED):
            packed.setdefault(key, {})[name.rpartition(".")[2]] = new
        else:
            loaded[key] = new
    for key, parts in packed.items():
        loaded[key] = (parts["weight"], parts.get("bias"))
    with torch.no_grad():
        module.load_state_dict(loaded)


def _quantized(values: Tensor, scale: Tensor, zero_point: Tensor, like: Tensor, name: str) -> Tensor:
    """The quantised tensor of these integers, with the same scheme as `like`."""
    import torch

    per_channel = like.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)
    expected = (like.shape[like.q_per_channel_axis()],) if per_channel else ()
    if values.dtype != torch.int8 or tuple(scale.shape) != expected or tuple(zero_point.shape) != expected:
        raise PluginError(f"static-int8: the file's {name!r} has another granularity or is not int8")
    if per_channel:
        return torch._make_per_channel_quantized_tensor(
            values, scale.to(torch.float64), zero_point.to(torch.int64), like.q_per_channel_axis()
        )
    return torch._make_per_tensor_quantized_tensor(values, float(scale), int(zero_point))


PLUGINS = (StaticInt8,)
