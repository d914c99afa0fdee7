"""Sums of clipped per-sample gradients from one forward and one backward pass.

Norms are those of ghost clipping (Bu, Mao, Xu 2022, arXiv 2205.10683; Li et al. 2022, arXiv 2110.05679), the sums
those of book-keeping (Bu, Wang, Zha, Karypis 2023, arXiv 2210.00038): a layer's inputs and the gradients of
its outputs, once known, give its norms and, scaled record by record, its clipped sum, so there is no second backward
pass. Linear layers and convolutions have formulas here, others Opacus'. Opacus' own hooks fail inside
torch.func transforms, so with them no attack could run inside the loss. Here a forward hook takes part
only while a layer holds its own parameter objects, so attacks on detached parameters pass by unseen, and the
gradients of layer outputs come from autograd.grad on graph edges, which needs no backward hook and no
gradient of the weights.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.api import Batch, LossFn, Params


class Unsupported(Exception):
    """The reason why per-sample norms of this module and loss need another path."""


class Call(NamedTuple):
    """One use of a layer: what went in, and where its output lies in the graph."""

    layer: nn.Module
    activations: list[Tensor]
    edge: Any
    dtype: Any


_verified: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


class GhostClipping:
    """Clipped gradient sums of one module under one loss.

    `clipped_sum` raises Unsupported where the module or the loss is outside what the formulas cover: a
    layer without a formula, a layer or parameter used more than once or outside its layer's forward, reduced
    precision, or a formula that disagrees with autograd (checked once per module, on a batch of two records or more:
    with one alone, layers in which records meet would pass).
    """

    def __init__(
        self, module: nn.Module, loss: LossFn, max_grad_norm: float, automatic: bool = False
    ) -> None:
        self.module = module
        self.loss = loss
        self.max_grad_norm = max_grad_norm
        self.automatic = automatic
        self.parameters = dict(module.named_parameters())
        self.layers = {
            layer: own
            for layer in module.modules()
            if (own := [p for p in layer.parameters(recurse=False) if p.requires_grad])
        }
        self._loss_checked = False

    def owns(self, params: Params) -> bool:
        """Whether these are the module's own trainable parameter objects, all of them."""
        trainable = {name for name, p in self.parameters.items() if p.requires_grad}
        return params.keys() == trainable and all(self.parameters[n] is p for n, p in params.items())

    def clipped_sum(self, params: Params, batch: Batch, key: Tensor) -> tuple[Params, Tensor]:
        """(sum over records of g_i min(1, C / (|g_i| + 1e-6)), the norms |g_i| (b,)). batch: b >= 1."""
        import torch

        if not self.owns(params):
            raise Unsupported("the parameters are not the module's own")
        with torch.enable_grad():
            with self._capture() as calls:
                losses = self.loss(params, batch, key)
            self._check_calls(calls, losses)
            first = self.module not in _verified
            backprops = torch.autograd.grad(
                losses.sum(), [call.edge for call in calls], retain_graph=first, allow_unused=True
            )
        parts = []
        for call, gradient in zip(calls, backprops, strict=True):
            if gradient is None or len(gradient) != len(losses):
                raise Unsupported(f"{type(call.layer).__name__} does not put out one row a record")
            parts.append(_layer_part(call, gradient, self.layers[call.layer]))
        norms = torch.stack([part.squared for part in parts]).sum(0).sqrt()
        scale = clip_scale(norms, self.max_grad_norm, self.automatic)
        sums = {id(p): g.view_as(p) for part in parts for p, g in part.sums(scale).items()}
        result = {name: sums[id(p)] for name, p in params.items()}
        if first and bool(norms.isfinite().all()):
            _verify(parts, list(params.values()), losses, scale)
            if len(losses) > 1:
                _verified[self.module] = True
        return result, norms

    @contextmanager
    def _capture(self) -> Iterator[list[Call]]:
        import torch

        calls: list[Call] = []

        def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            held = list(layer.parameters(recurse=False))
            if not any(p is q for p in held for q in self.layers[layer]) or not torch.is_grad_enabled():
                return  # an attack's copy of the parameters is in place
            if not isinstance(output, torch.Tensor) or not all(isinstance(x, torch.Tensor) for x in inputs):
                raise Unsupported(f"{type(layer).__name__} does not map tensors to a tensor")
            # An edge, as the next layer may change the output in place; contiguous, as Opacus' formulas
            # for convolutions read the strides of a contiguous tensor.
            edge = torch.autograd.graph.get_gradient_edge(output)
            calls.append(Call(layer, [x.detach().contiguous() for x in inputs], edge, output.dtype))

        handles = [layer.register_forward_hook(hook) for layer in self.layers]
        try:
            yield calls
        finally:
            for handle in handles:
                handle.remove()

    def _check_calls(self, calls: list[Call], losses: Tensor) -> None:
        import torch

        used = Counter(call.layer for call in calls)
        for layer in self.layers:
            if used[layer] != 1:
                raise Unsupported(f"{type(layer).__name__} is used {used[layer]} times in the loss")
        if self._loss_checked:
            return
        known = _formulas()
        for call in calls:
            if type(call.layer) not in known:
                raise Unsupported(f"there is no formula for {type(call.layer).__name__}")
            if getattr(call.layer, "padding_mode", "zeros") != "zeros":
                raise Unsupported(f"there is no formula for {call.layer.padding_mode} padding")
            dtypes = {call.dtype, *(x.dtype for x in call.activations if x.is_floating_point())}
            tf32 = call.activations[0].is_cuda and torch.backends.cudnn.allow_tf32
            if tf32 or dtypes != {p.dtype for p in self.layers[call.layer]}:
                raise Unsupported("norms in reduced precision would not bound the gradients")
        uses = _uses(losses)
        for name, parameter in self.parameters.items():
            if parameter.requires_grad and uses[id(parameter)] != 1:
                raise Unsupported(f"{name} is used {uses[id(parameter)]} times in the loss")
        self._loss_checked = True


class Part(NamedTuple):
    """What one layer adds: squared norms (b,) of its gradients, and its clipped sums given the scale (b,)."""

    squared: Tensor
    sums: Callable[[Tensor], dict[nn.Parameter, Tensor]]


def _layer_part(call: Call, backprops: Tensor, wanted: list[nn.Parameter]) -> Part:
    from torch import nn

    layer, (x, *_) = call.layer, call.activations
    if type(layer) is nn.Linear and backprops.ndim == 2:
        return _linear(layer, x, backprops, wanted)
    if type(layer) is nn.Conv2d and layer.groups == 1 and not isinstance(layer.padding, str):
        return _per_sample(_convolution(layer, x, backprops), wanted)
    found = _formulas()[type(layer)](layer, call.activations, backprops)
    if any(p not in found for p in wanted):
        raise Unsupported(f"the formula for {type(layer).__name__} leaves a parameter out")
    return _per_sample({p: found[p].flatten(1) for p in wanted}, wanted)


def _linear(layer: nn.Linear, x: Tensor, g: Tensor, wanted: list[nn.Parameter]) -> Part:
    """Row i of the weight's gradients is g_i x_i^T, an outer product: its norm is the product of theirs."""
    squares = g.square().sum(1)
    weight, bias = (any(p is own for p in wanted) for own in (layer.weight, layer.bias))
    squared = squares * (x.square().sum(1) * weight + float(bias))

    def sums(scale: Tensor) -> dict[nn.Parameter, Tensor]:
        scaled = scale.unsqueeze(1) * g
        found = {layer.weight: scaled.T @ x} if weight else {}
        return found | ({layer.bias: scaled.sum(0)} if bias else {})

    return Part(squared, sums)


def _convolution(layer: nn.Conv2d, x: Tensor, g: Tensor) -> dict[nn.Parameter, Tensor]:
    """Per-sample gradients, flat: output gradients times patches of the input."""
    from torch.nn import functional

    g = g.flatten(2)
    patches = functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
    found = {layer.weight: (g @ patches.transpose(1, 2)).flatten(1)}
    return found if layer.bias is None else found | {layer.bias: g.sum(2)}


def _per_sample(samples: dict[nn.Parameter, Tensor], wanted: list[nn.Parameter]) -> Part:
    """From gradients (b, numel), which are at hand once their norms are known."""
    import torch

    squared = torch.stack([samples[p].square().sum(1) for p in wanted]).sum(0)
    return Part(squared, lambda scale: {p: scale @ samples[p] for p in wanted})


def clip_scale(norms: Tensor, max_grad_norm: float, automatic: bool = False) -> Tensor:
    """min(1, C / (norm + 1e-6)), Opacus' factor: what is clipped stays below C in floating point too.

    automatic: C / (norm + 0.01), AUTO-S (Bu et al. 2023, arXiv 2206.07136), below C as well.
    """
    if automatic:
        return max_grad_norm / (norms + 0.01)
    return (max_grad_norm / (norms + 1e-6)).clamp(max=1.0)


def _formulas() -> dict[Any, Any]:
    """Layer class -> Opacus' per-sample gradients."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping as Opacus

    return Opacus.GRAD_SAMPLERS


def _uses(losses: Tensor) -> Counter[int]:
    """How often each leaf (by id) enters the graph of the losses."""
    uses: Counter[int] = Counter()
    seen, open_nodes = set(), [losses.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            if following is not None and hasattr(following, "variable"):
                uses[id(following.variable)] += 1
            else:
                open_nodes.append(following)
    return uses


def _verify(parts: list[Part], params: list[Tensor], losses: Tensor, scale: Tensor) -> None:
    """The formulas' sums against autograd's: a layer's option that they do not know shows here.

    No two records have the same weight, as where all have, records that meet in the network do not show.
    """
    import torch

    scale = scale * torch.linspace(0.5, 1.0, len(scale)).to(scale)
    expected = dict(zip(map(id, params), torch.autograd.grad((scale * losses).sum(), params), strict=True))
    for part in parts:
        size = (scale * part.squared.sqrt()).sum()  # what was added up; little may be left of it
        for p, given in part.sums(scale).items():
            if not (given.view_as(p) - expected[id(p)]).norm() <= 1e-3 * size + 1e-12:
                raise Unsupported(f"the formulas do not give autograd's gradient of shape {tuple(p.shape)}")
