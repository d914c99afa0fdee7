"""Structured pruning: whole channels go, so the network is smaller and faster on any hardware."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness.api import (
    CompressedModel,
    CompressionContext,
    Field,
    PluginError,
    Reference,
    Surroundings,
)
from harness_plugins.compressors._importance import Importance, is_root
from harness_plugins.compressors._state import check_finite, check_names, file_tensors
from harness_plugins.compressors._steps import InSteps

if TYPE_CHECKING:
    from torch import Tensor, nn

TOLERANCE = 0.25  # relative distance from the ratio asked for, above which a record carries a warning


class StructuredPruning(InSteps):
    """Removes the least important channels from every layer, then fine-tunes.

    Layers whose channels depend on each other (the two sides of an addition, a convolution and the
    normalisation and layers behind it) form a group, pruned as one (DepGraph, section 3). The importance of a
    channel k is one of these, over the group's tensors w: the weights of convolutions and linear layers (by
    output or input) and the scales of normalisations.

      magnitude   sum_w ||w[k]||_2^2 (DepGraph, section 3.3, without its sparse training)
      scale       sum |scale[k]| of the normalisations (Liu et al. 2017, arXiv 1708.06519, without its sparse
                  training); groups without one stay whole
      taylor      (sum_w <grad w[k], w[k]>)^2, the gradient being the cross-entropy's on a batch of images, and
                  the mean over batches (Molchanov et al. 2019, arXiv 1906.10771, equation 8)
      random      drawn at random

    Of every group's C channels the ceil(ratio · C) of least importance go. Where a group normalisation has
    G groups it keeps them: positions are ranked by their mean over the G groups, and the ceil(ratio · C /
    G) least go from each. The layers that yield the network's output keep all their outputs. A layer is
    left whole where nothing would remain of it. Coupled layers make the share of parameters removed differ
    from `ratio`.

    After pruning, `fine_tune_rounds` rounds of the same federation train the small network. With `steps` > 1
    the ratio is reached in as many equal steps, each followed by these rounds. Weights that are zero, as after
    unstructured pruning, stay zero.

    facts: channels_removed and parameters_removed, shares in [0, 1] (channels over all convolution and
    linear layers but the output's), and a warning where the first differs from `ratio` by more than 25 % of
    it. Raises PluginError where nothing was removed, a weight is not finite, the dependencies cannot be
    traced, or the pruned network no longer runs. Cost: two forward passes and one backward graph walk, then
    the fine-tuning.
    """

    name: ClassVar[str] = "structured-pruning"
    requires: ClassVar[tuple[str, ...]] = ("torch_pruning",)
    reference: ClassVar[Reference | None] = Reference(
        title="DepGraph: Towards Any Structural Pruning",
        authors="Gongfan Fang, Xinyin Ma, Mingli Song, Michael Bi Mi, Xinchao Wang",
        venue="CVPR 2023",
        year=2023,
        url="https://arxiv.org/abs/2301.12900",
    )

    ratio: float = Field(
        0.5, gt=0, lt=1, description="share of each layer's output channels removed, in (0, 1)"
    )
    importance: Literal["magnitude", "scale", "taylor", "random"] = Field(
        "magnitude", description="what a channel is worth, see above"
    )
    fine_tune_rounds: int = Field(2, ge=0, description="federated rounds of training after each step")
    calibration: Literal["private", "public"] = Field(
        "private", description="images for taylor: the validation split, or public data"
    )
    samples: int = Field(512, ge=1, description="images for taylor, at most")

    @property
    def data_access(self) -> str:
        return self.calibration if self.importance == "taylor" else "none"

    def compress(self, model: nn.Module, context: CompressionContext) -> CompressedModel:
        from harness_plugins.compressors._layers import zeros_held

        module = copy.deepcopy(model).eval()
        check_finite(module, self.name)
        channels, parameters = _channels(module), _parameters(module)
        importance = Importance(self, module, context)
        pruner, outputs = _pruner(module, context.input_shape, self.ratio, self.steps, importance)
        for _ in range(self.steps):
            _prune(module, pruner, importance)
            _check_runs(module, context.input_shape, context.num_classes)
            if self.fine_tune_rounds:
                with zeros_held(module):
                    module = context.fine_tune(module, self.fine_tune_rounds).eval()
        total = sum(n for name, n in channels.items() if name not in outputs)
        left = sum(n for name, n in _channels(module).items() if name not in outputs)
        if left == total:
            raise PluginError(
                f"structured-pruning: ratio {self.ratio:g} removed no channel; layers before the output's are too "
                "narrow, have as many normalisation groups as channels, or (importance: scale) no normalisation"
            )
        facts: dict[str, Any] = {
            "channels_removed": 1 - left / total,
            "parameters_removed": 1 - _parameters(module) / parameters,
        }
        if abs(facts["channels_removed"] - self.ratio) > TOLERANCE * self.ratio:
            facts["warning"] = f"removed {facts['channels_removed']:.3f} of the channels, not {self.ratio:g}"
        return CompressedModel(module, file_tensors(module), facts=facts)

    def restore(
        self, model: nn.Module, state: dict[str, Tensor], surroundings: Surroundings
    ) -> CompressedModel:
        module = copy.deepcopy(model).eval()
        check_names(module.state_dict(), state, "structured-pruning")
        for name, layer in module.named_modules():
            resize(layer, name, state)
        module.load_state_dict(state)
        return CompressedModel(module, dict(state))


def _pruner(
    module: nn.Module,
    input_shape: tuple[int, int, int],
    ratio: float,
    steps: int,
    importance: Importance,
) -> tuple[Any, set[str]]:
    """What prunes the module step by step, and the names of the layers that yield the output."""
    import torch
    import torch_pruning

    example = _example(module, input_shape)
    # Dependencies are read off the autograd graph, so every parameter has to be in it.
    with _all_trainable(module), torch.inference_mode(False), torch.enable_grad():
        try:
            graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=example)
            outputs = _output_layers(graph)
            pruner = torch_pruning.pruner.MagnitudePruner(
                module,
                example,
                importance=importance,
                iterative_steps=steps,
                # It keeps int(C * (1 - ratio)) channels: 10 * (1 - 0.8) must not fall below 2.
                pruning_ratio=ratio - 1e-9,
                ignored_layers=outputs,
                # Its own defaults are dictionaries shared by all pruners, which keep layers alive.
                in_channel_groups={},
                out_channel_groups={},
                num_heads={},
            )
        except PluginError:
            raise
        except Exception as error:  # whatever the network's own code raises while it is traced
            raise PluginError(f"structured-pruning cannot trace this network: {error}") from error
    return pruner, {name for name, layer in module.named_modules() if any(layer is o for o in outputs)}


def _prune(module: nn.Module, pruner: Any, importance: Importance) -> None:
    """One step, in place."""
    import torch

    with _all_trainable(module), torch.inference_mode(False):
        importance.refresh()
        try:
            with torch.enable_grad():
                pruner.step()
        except PluginError:
            raise
        except Exception as error:  # whatever the library raises for layers it does not know
            raise PluginError(f"structured-pruning cannot prune this network: {error}") from error


@contextmanager
def _all_trainable(module: nn.Module) -> Iterator[None]:
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in frozen)
            parameter.grad = None


def _output_layers(graph: Any) -> list[nn.Module]:
    """The convolution and linear layers whose channels are the output's, through any layers between."""
    nodes = list(graph.module2node.values())
    waiting = [node for node in nodes if not node.outputs]
    seen: set[int] = set()
    found = []
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if is_root(node.module):
            found.append(node.module)
        else:
            waiting += node.inputs
    if not found:
        raise PluginError("structured-pruning: the network has no convolution or linear layer of floats")
    return found


def _channels(module: nn.Module) -> dict[str, int]:
    """Output channels of each convolution and linear layer."""
    return {
        name: int(getattr(layer, "out_channels", None) or layer.out_features)
        for name, layer in module.named_modules()
        if is_root(layer)
    }


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _example(module: nn.Module, input_shape: tuple[int, int, int]) -> Tensor:
    import torch

    first = next(module.parameters(), None)
    if first is None:
        raise PluginError("structured-pruning: the network has no parameters")
    return torch.zeros(1, *input_shape, device=first.device, dtype=first.dtype)


def _check_runs(module: nn.Module, input_shape: tuple[int, int, int], num_classes: int) -> None:
    import torch

    try:
        with torch.no_grad():
            shape = tuple(module(_example(module, input_shape)).shape)
    except (RuntimeError, ValueError) as error:
        raise PluginError(f"structured-pruning: the pruned network no longer runs: {error}") from error
    if shape != (1, num_classes):
        raise PluginError(f"structured-pruning: the pruned network returns {shape}, not (1, {num_classes})")


def resize(layer: nn.Module, name: str, state: dict[str, Tensor]) -> None:
    """Give a layer's own tensors the shapes they have in a file, and set the sizes that follow."""
    import torch

    prefix = f"{name}." if name else ""
    changed = False
    own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    for key, tensor in own:
        shape = state[prefix + key].shape if prefix + key in state else tensor.shape
        if shape == tensor.shape:
            continue
        if len(shape) != tensor.ndim or shape[2:] != tensor.shape[2:]:  # only channels can be fewer
            raise PluginError(f"structured-pruning: {prefix + key!r} cannot become {tuple(shape)}")
        new = torch.empty(shape, device=tensor.device, dtype=tensor.dtype)
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        setattr(layer, key, torch.nn.Parameter(new, tensor.requires_grad) if is_parameter else new)
        changed = True
    if changed:
        _resize_attributes(layer, name)


def _resize_attributes(layer: Any, name: str) -> None:
    from torch import nn
    from torch.nn.modules.batchnorm import _NormBase
    from torch.nn.modules.conv import _ConvNd

    weight: Any = layer.weight
    if isinstance(layer, _ConvNd):
        if layer.groups > 1 and layer.groups == layer.in_channels == layer.out_channels:  # depthwise
            layer.groups = layer.in_channels = layer.out_channels = weight.shape[0]
        elif layer.transposed:
            layer.in_channels, layer.out_channels = weight.shape[0], weight.shape[1] * layer.groups
        else:
            layer.in_channels, layer.out_channels = weight.shape[1] * layer.groups, weight.shape[0]
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(layer, nn.GroupNorm):
        layer.num_channels = len(weight)
    elif isinstance(layer, _NormBase):
        layer.num_features = len(next(iter(layer.state_dict().values())))  # scale, or running mean
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = tuple(weight.shape)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = len(weight)
    else:
        raise PluginError(f"structured-pruning cannot resize {name!r}, a {type(layer).__name__}")


PLUGINS = (StructuredPruning,)
