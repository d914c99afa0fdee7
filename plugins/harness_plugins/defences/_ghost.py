"""Sums of clipped per-sample gradients from one forward and one backward pass.

Norms are those of ghost clipping (Bu, Mao, Xu 2022, arXiv 2205.10683; Li et al. 2022, arXiv 2110.05679), the sums
those of book-keeping (Bu, Wang, Zha, Karypis 2023, arXiv 2210.00038): a layer's inputs and the gradients of
its outputs, once known, give its norms and, scaled record by record, its clipped sum, so there is no second backward
pass. The formulas are in `_ghost_formulas`, those of rarer layers Opacus'. Opacus' own hooks fail inside
torch.func transforms, so with them no attack could run inside the loss. Here a forward hook takes part
only while a layer holds its own parameter objects, so attacks on detached parameters pass by unseen, and the
gradients of layer outputs come from autograd.grad on graph edges, which needs no backward hook and no
gradient of the weights.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from harness_plugins.defences._ghost_formulas import (
    Convolution,
    NotFinite,
    Owned,
    Part,
    Shown,
    Unsupported,
    clip_scales,
    comparisons,
    convolution,
    group_norm,
    linear,
    per_sample,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.api import Batch, LossFn, Params


class Call(NamedTuple):
    """One use of a layer: what went in, and where its output lies in the graph."""

    layer: nn.Module
    activations: list[Tensor]
    edge: Any
    dtype: Any


_shown: weakref.WeakKeyDictionary[nn.Module, Shown] = weakref.WeakKeyDictionary()


class GhostClipping:
    """Clipped gradient sums of one module under one loss.

    `clipped_sum` raises Unsupported where the module or the loss is outside what the formulas cover: a
    layer without a formula, a layer or parameter used more than once or outside its layer's forward, reduced
    precision, or a formula that disagrees with autograd (checked per module until a batch of two records or more
    gives every parameter a gradient: with one alone, layers in which records meet would pass); and NotFinite where a
    record's gradient is not finite.
    """

    def __init__(self, module: nn.Module, loss: LossFn, max_grad_norm: float, clipping: str = "flat") -> None:
        self.module = module
        self.loss = loss
        self.max_grad_norm = max_grad_norm
        self.clipping = clipping
        self.parameters = dict(module.named_parameters())
        self.names = {id(p): name for name, p in self.parameters.items()}
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

    def clipped_sum(self, params: Params, batch: Batch, key: Tensor) -> Params:
        """Sum over records of g_i min(1, C / (|g_i| + 1e-6)). batch: b >= 1."""
        import torch

        if not self.owns(params):
            raise Unsupported("the parameters are not the module's own")
        shown = _shown.setdefault(self.module, Shown())
        shown.ask()
        with torch.enable_grad():
            with self._capture() as calls:
                losses = self.loss(params, batch, key)
            self._check_calls(calls, losses)
            edges = [call.edge for call in calls]
            backprops = torch.autograd.grad(
                losses.sum(), edges, retain_graph=not shown.verified, allow_unused=True
            )
        parts: list[Part] = []
        for call, gradient in zip(calls, backprops, strict=True):
            if gradient is None or len(gradient) != len(losses):
                raise Unsupported(f"{type(call.layer).__name__} does not put out one row a record")
            parts += self._layer_parts(call, gradient)
        squared = torch.stack([part.squared for part in parts])  # (parameters, b)
        if not bool(squared.sum(0).isfinite().all()):
            raise NotFinite
        scales = clip_scales(squared, self.max_grad_norm, self.clipping)
        if not shown.verified:
            _verify(shown, parts, params, losses)
        sums = {part.name: part.sum(scale) for part, scale in zip(parts, scales, strict=True)}
        return {name: sums[name].reshape(p.shape) for name, p in params.items()}

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

    def _layer_parts(self, call: Call, backprops: Tensor) -> list[Part]:
        from torch import nn

        layer, (x, *_) = call.layer, call.activations
        wanted = {id(p): self.names[id(p)] for p in self.layers[layer]}
        weight, bias = (wanted.get(id(getattr(layer, name, None))) for name in ("weight", "bias"))
        owned = Owned(weight, bias)
        if {*wanted.values()} - {*owned}:
            raise Unsupported(f"{type(layer).__name__} has parameters beside a weight and a bias")
        if type(layer) is nn.Linear and backprops.ndim == 2:
            return linear(x, backprops, owned)
        if type(layer) is nn.Conv2d and layer.groups == 1 and not isinstance(layer.padding, str):
            how = Convolution(layer.weight.shape, layer.stride, layer.padding, layer.dilation)
            return convolution(x, backprops, owned, how)
        if type(layer) is nn.GroupNorm:
            return group_norm(x, backprops, owned, layer.num_groups, layer.eps)
        try:
            found = _formulas()[type(layer)](layer, call.activations, backprops)
        except Exception as error:  # an option of the layer that Opacus' formula does not know
            raise Unsupported(f"the formula for {type(layer).__name__} fails: {error}") from error
        if any(p not in found for p in self.layers[layer]):
            raise Unsupported(f"the formula for {type(layer).__name__} leaves a parameter out")
        return [per_sample(self.names[id(p)], found[p].flatten(1)) for p in self.layers[layer]]


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


def _verify(shown: Shown, parts: list[Part], params: Params, losses: Tensor) -> None:
    """Raises Unsupported where the formulas disagree with autograd, and notes it."""
    import torch

    def gradients(weights: Tensor) -> Params:
        found = torch.autograd.grad((weights * losses).sum(), list(params.values()), retain_graph=True)
        return dict(zip(params, found, strict=True))

    held, told = comparisons(parts, gradients)
    for holds, otherwise in held:
        if not bool(holds):
            shown.refused = otherwise
            shown.ask()
    shown.compared(len(losses), bool(told))
