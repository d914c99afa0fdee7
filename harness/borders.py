"""Checks of networks where plugins hand them over: further in, nothing tells which plugin made a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.errors import PluginError, blamed

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn

    from harness.contracts.base import Plugin
    from harness.contracts.model import Model, Normalization


def built(
    model: Model, input_shape: tuple[int, int, int], num_classes: int, normalization: Normalization | None
) -> nn.Module:
    """`model.build(...)`. Raises PluginError where it returns no network."""
    with blamed(model):
        return network(model.build(input_shape, num_classes, normalization), f"model {model.name}: build")


def outlined(
    model: Model, input_shape: tuple[int, int, int], num_classes: int, normalization: Normalization | None
) -> nn.Module:
    """As `built`, on the meta device: its layers can be inspected, and its weights take no memory.

    Global random generators stay as they are.
    """
    import torch

    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return built(model, input_shape, num_classes, normalization)


def network(found: Any, who: str) -> nn.Module:
    """What a plugin returned, unchanged. Raises PluginError, which names `who` returned it, where it is no network."""
    import torch

    if not isinstance(found, torch.nn.Module):
        raise PluginError(f"{who} returned {type(found).__name__}, not a network")
    return found


def check_logits(
    module: nn.Module,
    input_shape: Sequence[int],
    num_classes: int,
    device: torch.device | str,
    who: Sequence[Plugin],
) -> None:
    """Raises PluginError where a network does not return one logit per class. who: the plugins that made it.

    It is called once, in eval mode, on a black image; parameters, buffers, modes and the global random generators stay
    as they are.
    """
    import torch

    from harness.evaluation.predict import modes_restored

    dtypes = [p.dtype for p in module.parameters() if p.is_floating_point()]
    x = torch.zeros((1, *input_shape), device=device, dtype=dtypes[0] if dtypes else None)
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    devices = [x.device] if x.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices), modes_restored(module), blamed(who[0]):
        module.eval()
        found = torch.func.functional_call(module, buffers, (x,))
    shape = tuple(getattr(found, "shape", ())) or type(found).__name__
    if shape != (1, num_classes):
        raise PluginError(
            f"{named(who)}: the network returns {shape} for 1 image, not logits (1, {num_classes}), one a class"
        )


def named(who: Sequence[Plugin]) -> str:
    """`model mlp, defence soteria`."""
    return ", ".join(f"{plugin.kind} {plugin.name}" for plugin in who)
