"""Differentiable copies of quantised networks, for attacks: rounding has the gradient of the identity.

Imports torch. The straight-through estimator is Bengio, Leonard and Courville's (2013, arXiv 1308.3432); that
attacks on non-differentiable models should use such a copy is Athalye, Carlini and Wagner's point (ICML 2018,
section 4.1, "BPDA").
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


class Rounded(nn.Module):
    """x -> (clip(round(x / scale) + zero_point, 0, 255) - zero_point) scale; gradient 1 inside the range, else 0."""

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.scale, self.zero_point = scale, zero_point

    def forward(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, 0, 255)


class RoundedRows(nn.Module):
    """Each row's own symmetric rounding to int8, as torchao does it, with the gradient of the identity.

    Its scale is the largest magnitude over half of the 255 steps, so that largest value may fall outside by
    half a step.
    """

    def forward(self, x: Tensor) -> Tensor:
        values = x.detach()
        scale = (values.abs().amax(-1, keepdim=True) / 127.5).clamp_min(torch.finfo(values.dtype).eps)
        return x + ((values / scale).round().clamp(-128, 127) * scale - values)


class FloatLayer(nn.Module):
    """A quantised convolution or linear layer in float, before its output is rounded."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight().dequantize())
        bias = layer.bias()
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.is_linear = self.weight.ndim == 2
        self.relu = "ReLU" in type(layer).__name__
        self.around: list[int] | None = None  # what is padded otherwise than with zeros, last dimension first
        if self.is_linear:
            return
        names = ["stride", "padding", "dilation", "groups"]
        self.transposed = layer.transposed
        if self.transposed:
            names.append("output_padding")
        self.options = {name: getattr(layer, name) for name in names}
        if layer.padding_mode != "zeros":
            self.mode = layer.padding_mode
            self.around = [p for p in reversed(self.options.pop("padding")) for _ in range(2)]

    def forward(self, x: Tensor) -> Tensor:
        if self.is_linear:
            out = functional.linear(x, self.weight, self.bias)
        else:
            if self.around is not None:
                x = functional.pad(x, self.around, mode=self.mode)
            convolve = CONVOLUTIONS[self.transposed][self.weight.ndim - 3]
            out = convolve(x, self.weight, self.bias, **self.options)
        return out.relu() if self.relu else out


class FloatBatchNorm(nn.Module):
    """A quantised batch normalisation that was not folded into a convolution, before its output is rounded."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.relu = "ReLU" in type(layer).__name__
        self.eps = layer.eps
        for name in ("running_mean", "running_var", "weight", "bias"):
            self.register_buffer(name, getattr(layer, name).detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        values = (self.running_mean, self.running_var, self.weight, self.bias)
        out = functional.batch_norm(x, *values, eps=self.eps)  # type: ignore[arg-type]
        return out.relu() if self.relu else out


CONVOLUTIONS: tuple[tuple[Any, ...], ...] = (  # of one, two and three dimensions; then the transposed ones
    (functional.conv1d, functional.conv2d, functional.conv3d),
    (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d),
)
FLOAT_OPERATIONS: dict[str, Any] = {  # the name of a quantised function -> the same in float
    "quantized.add": torch.add,
    "quantized.add_relu": lambda a, b: torch.add(a, b).relu(),
    "quantized.mul": torch.mul,
    "quantized.cat": lambda tensors, dim: torch.cat(tensors, dim),
}


class _Ranges(fx.Interpreter):
    """Runs a converted network and notes scale and zero point of every quantised value in it."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, tuple[float, int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_quantized:
            self.found[n.name] = (float(value.q_scale()), int(value.q_zero_point()))
        return value


def straight_through(module: fx.GraphModule, input_shape: tuple[int, int, int]) -> nn.Module | None:
    """The twin of a network converted by torch's graph mode; None where it holds a function without a float form.

    Every quantised value is rounded to the scale and zero point it has in the network; between them the
    arithmetic is in float, where the network's is in integers, so single roundings may differ.
    """
    ranges = _Ranges(module)
    with torch.no_grad():
        ranges.run(torch.zeros(1, *input_shape))
    root = nn.Module()
    graph = fx.Graph()
    new: dict[fx.Node, fx.Node] = {}
    modules = dict(module.named_modules())

    def add(name: str, layer: nn.Module, *inputs: fx.Node) -> fx.Node:
        key = f"{name}_{len(root._modules)}".replace(".", "_")
        root.add_module(key, layer)
        return graph.call_module(key, inputs)

    for node in module.graph.nodes:
        inputs = fx.node.map_arg(node.args, lambda n: new[n])
        if node.op == "call_function" and node.target is torch.quantize_per_tensor:
            new[node] = inputs[0]
        elif node.op == "call_method" and node.target == "dequantize":
            new[node] = inputs[0]
            continue
        elif (
            node.op == "call_module"
            and hasattr(modules[node.target], "weight")
            and callable(modules[node.target].weight)
        ):
            new[node] = add(node.name, FloatLayer(modules[node.target]), *inputs)
        elif (
            node.op == "call_module"
            and isinstance(modules[node.target], _BatchNorm)
            and node.name in ranges.found
        ):
            new[node] = add(node.name, FloatBatchNorm(modules[node.target]), *inputs)
        elif node.op == "call_module":
            new[node] = add(node.name, copy.deepcopy(modules[node.target]), *inputs)
        elif node.op == "call_function" and "quantized." in str(node.target):
            operation = FLOAT_OPERATIONS.get(str(node.target).removesuffix(".default"))
            if operation is None:
                return None
            last = node.args[-2:]  # the result's scale and zero point, but not beside a plain number
            if all(isinstance(arg, fx.Node) and arg.op == "get_attr" for arg in last):
                inputs = inputs[:-2]
            new[node] = graph.call_function(operation, inputs)
        elif node.op == "get_attr":
            value: Any = module
            for part in node.target.split("."):
                value = getattr(value, part)
            key = f"constant_{len(root._buffers)}"
            root.register_buffer(key, value.detach().clone())
            new[node] = graph.get_attr(key)
        else:
            new[node] = graph.node_copy(node, lambda n: new[n])
        if node.name in ranges.found:
            new[node] = add(node.name, Rounded(*ranges.found[node.name]), new[node])
    twin = fx.GraphModule(root, graph)
    twin.graph.eliminate_dead_code()
    twin.recompile()
    return twin.eval()
