"""How large and how fast the released model is."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from harness.api import Field, Metric, MetricContext, PluginError, Score

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Parameters(Metric):
    """parameters: how many learned numbers the released model holds.

    The elements of every parameter (each shared one once), and of weight and bias of layers that keep them
    in an 8-bit form. Buffers, quantisation scales and zero points are not counted; zeros are, and so a mask
    changes nothing. Batch normalisation that was folded into a convolution is gone. Cost: O(1) per tensor.
    """

    name: ClassVar[str] = "parameters"
    needs: ClassVar[tuple[str, ...]] = ("module",)
    scores: ClassVar[dict[str, Score]] = {
        "parameters": Score("lower", "", "learned numbers in the released model")
    }

    def score(self, context: MetricContext) -> dict[str, float]:
        return {"parameters": float(sum(t.numel() for t in learned(_module(context))))}


class NonzeroShare(Metric):
    """nonzero_share: the share of `parameters` that is not zero, in [0, 1].

    A quantised weight is zero where it stands for the value zero. Undefined (left out) without parameters.
    Cost: one pass over the weights.
    """

    name: ClassVar[str] = "nonzero-share"
    needs: ClassVar[tuple[str, ...]] = ("module",)
    scores: ClassVar[dict[str, Score]] = {
        "nonzero_share": Score("lower", "", "share of parameters that is not zero")
    }

    def score(self, context: MetricContext) -> dict[str, float]:
        tensors = list(learned(_module(context)))
        total = sum(t.numel() for t in tensors)
        if not total:
            return {}
        nonzero = sum(int(plain(t).count_nonzero()) for t in tensors)
        return {"nonzero_share": nonzero / total}


class Size(Metric):
    """serialized_bytes: the model's safetensors file, header included. gzip_bytes: that file after gzip -6.

    The second shows what unstructured sparsity is worth when the model is sent. Cost: one copy and one
    compression of the file in memory.
    """

    name: ClassVar[str] = "size"
    needs: ClassVar[tuple[str, ...]] = ("state",)
    requires: ClassVar[tuple[str, ...]] = ("safetensors.torch",)
    scores: ClassVar[dict[str, Score]] = {
        "serialized_bytes": Score("lower", "B", "size of the model's safetensors file"),
        "gzip_bytes": Score("lower", "B", "size of that file compressed by gzip at level 6"),
    }

    def score(self, context: MetricContext) -> dict[str, float]:
        import gzip

        from safetensors.torch import save

        if context.state is None:
            raise PluginError("size needs the tensors of the model's file")
        # The format refuses tensors that share memory, and each name has its own bytes in the file.
        data = save({k: v.detach().to("cpu", copy=True).contiguous() for k, v in context.state.items()})
        return {
            "serialized_bytes": float(len(data)),
            "gzip_bytes": float(len(gzip.compress(data, compresslevel=6, mtime=0))),
        }


class Macs(Metric):
    """macs: multiply-accumulate operations of one image's forward pass.

    One multiply-accumulate is half of the floating-point operations that torch counts, which are those of
    convolutions, matrix products and attention, wherever in the network they stand, inside fused layers too. Products
    with vectors and bilinear layers, which torch does not count, are: a bilinear layer as a linear one of the products
    of its inputs, (outputs) · (inputs 1) · (inputs 2). Quantised convolution and linear layers have (outputs) ·
    (weights per output channel), transposed ones (inputs) · (weights per input channel). Biases, normalisation,
    activations, pooling, products and sums of single values (as in outer and cosine products), distances and Fourier
    transforms are not counted; zeros in a weight are. Cost: one forward pass.
    """

    name: ClassVar[str] = "macs"
    needs: ClassVar[tuple[str, ...]] = ("module",)
    requires: ClassVar[tuple[str, ...]] = ("torch.utils.flop_counter", "torch._dynamo")
    scores: ClassVar[dict[str, Score]] = {"macs": Score("lower", "MAC", "multiply-accumulates per image")}

    def score(self, context: MetricContext) -> dict[str, float]:
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        module = _module(context)
        quantized = 0

        def count(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            nonlocal quantized
            weight = layer.weight() if is_quantized(layer) else layer.weight
            # A transposed convolution's weight has the input channels first, and each input value meets its part of it.
            values = inputs[0] if getattr(layer, "transposed", False) else output
            quantized += values.numel() * (weight.numel() // len(weight))

        uncounted = [layer for layer in module.modules() if is_quantized(layer) or is_wrapped(layer)]
        handles = [layer.register_forward_hook(count) for layer in uncounted]
        try:
            with (
                evaluating(module),
                torch.no_grad(),
                unfused(module),
                FlopCounterMode(display=False, custom_mapping=uncounted_products()) as counter,
            ):
                module(_images(module, context, 1))
        finally:
            for handle in handles:
                handle.remove()
        return {"macs": float(counter.get_total_flops() // 2 + quantized)}


class Latency(Metric):
    """latency_ms_1, latency_ms_64: milliseconds of one forward pass of a batch of 1 and of 64 images.

    The median over as many passes as fit into `budget` (at least three), after a warm-up pass, on the model's
    device with torch's present number of threads; a warm-up pass that takes longer than that is itself the
    measurement. It differs between machines and runs: compare only times of one machine.
    """

    name: ClassVar[str] = "latency"
    needs: ClassVar[tuple[str, ...]] = ("module",)
    requires: ClassVar[tuple[str, ...]] = ("torch",)
    scores: ClassVar[dict[str, Score]] = {
        f"latency_ms_{n}": Score("lower", "ms", f"forward pass of a batch of {n}", measured=True)
        for n in (1, 64)
    }

    budget: float = Field(0.05, gt=0, description="seconds of measuring for each batch size")

    def score(self, context: MetricContext) -> dict[str, float]:
        import torch

        module = _module(context)
        scores = {}
        with evaluating(module), torch.inference_mode():
            for batch in (1, 64):
                images = _images(module, context, batch)

                def forward(images: Tensor = images) -> None:
                    module(images)
                    if images.is_cuda:
                        torch.cuda.synchronize(images.device)

                scores[f"latency_ms_{batch}"] = 1e3 * median_seconds(forward, self.budget)
        return scores


def uncounted_products() -> dict[Any, Callable[..., int]]:
    """Products of which torch counts nothing -> their floating-point operations from shapes, two a multiply-add."""
    import torch

    aten = torch.ops.aten
    return {
        aten.mv: lambda matrix, vector, **_: 2 * math.prod(matrix),
        aten.addmv: lambda added, matrix, vector, **_: 2 * math.prod(matrix),
        aten.dot: lambda one, other, **_: 2 * math.prod(one),
        aten.vdot: lambda one, other, **_: 2 * math.prod(one),
        aten.addbmm: lambda added, one, other, **_: 2 * math.prod(one) * other[-1],
        aten._trilinear: lambda first, weight, second, *_, **__: 2 * first[0] * math.prod(weight),
    }


def median_seconds(
    run: Callable[[], Any], budget: float, clock: Callable[[], float] = time.perf_counter
) -> float:
    """The median time of a call: one for warm-up, then at least three and until `budget` seconds have passed.

    A warm-up call that takes the whole budget is the result.
    """
    start = last = clock()
    times: list[float] = []
    while len(times) < 4 or last - start < budget:
        run()
        now = clock()
        times.append(now - last)
        last = now
        if len(times) == 1 and times[0] >= budget:
            return times[0]
    return statistics.median(times[1:])


def is_quantized(layer: Any) -> bool:
    """Whether a layer keeps its weight packed in an 8-bit form, behind a method `weight()`."""
    weight = getattr(layer, "weight", None)
    return callable(weight) and bool(getattr(weight(), "is_quantized", False))


def is_wrapped(layer: Any) -> bool:
    """Whether a linear layer's weight is a quantised tensor of a library's own type, such as torchao's."""
    from torch import nn
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    return isinstance(layer, nn.Linear) and is_traceable_wrapper_subclass(layer.weight)


def plain(values: Tensor) -> Tensor:
    """The float values that a quantised tensor, torch's own or of a library's own type, stands for."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    stands = values.is_quantized or is_traceable_wrapper_subclass(values)
    return values.dequantize() if stands else values


def learned(module: nn.Module) -> Iterator[Tensor]:
    """Every learned tensor of a float or quantised network, each once."""
    yield from module.parameters()
    for layer in module.modules():
        if is_quantized(layer):
            values: Any = layer
            yield values.weight()
            bias = values.bias()
            # Parameters that a quantised layer keeps as such have come already.
            if bias is not None and not any(bias is p for p in layer.parameters()):
                yield bias


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """In eval mode inside, every layer in its own mode again afterwards."""
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


@contextmanager
def unfused(module: nn.Module) -> Iterator[None]:
    """Inside, attention, transformer and recurrent layers take one step after another, which torch counts.

    Of their fused forms, one call each, it counts nothing, but for some of attention.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends: Any = torch.backends
    recurrent = any(isinstance(layer, torch.nn.RNNBase) for layer in module.modules())
    fast, one, other = backends.mha.get_fastpath_enabled(), backends.mkldnn.enabled, backends.cudnn.enabled
    backends.mha.set_fastpath_enabled(False)
    if recurrent:  # convolutions keep the kernels that they have
        backends.mkldnn.enabled = backends.cudnn.enabled = False
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        backends.mha.set_fastpath_enabled(fast)
        backends.mkldnn.enabled, backends.cudnn.enabled = one, other


def _module(context: MetricContext) -> nn.Module:
    if context.module is None:
        raise PluginError("this metric needs the released model")
    return context.module


def _images(module: nn.Module, context: MetricContext, batch: int) -> torch.Tensor:
    """Images in [0, 1] on the module's device and of its dtype: neither zeros nor denormals, which change
    timings."""
    import torch

    first = next((p for p in module.parameters() if p.is_floating_point()), None)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, *context.input_shape, generator=generator)
    return images if first is None else images.to(first.device, first.dtype)


PLUGINS = (Parameters, NonzeroShare, Size, Macs, Latency)
