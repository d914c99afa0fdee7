"""What the model compressors share: copies of networks and of the tensors that make up a file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from harness.api import PluginError

if TYPE_CHECKING:
    from torch import Tensor, nn


def file_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The state dict as independent, contiguous tensors on the CPU: what a file holds. Cost: one copy."""
    import torch

    tensors = {}
    for name, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor) or value.is_quantized:
            raise PluginError(f"the entry {name!r} of the network's state is not a plain tensor")
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
    return tensors


def other_names(module: nn.Module, keys: Collection[str]) -> dict[str, str]:
    """Further names of the tensors at these keys of the state -> the key: where layers share a weight, or are one."""
    values = module.state_dict(keep_vars=True)
    known = {id(values[key]): key for key in keys}
    return {n: known[id(v)] for n, v in values.items() if n not in keys and id(v) in known}


def check_names(expected: Mapping[str, object] | set[str], state: Mapping[str, Tensor], what: str) -> None:
    """Raises PluginError where a file's tensors are not those of the architecture."""
    missing = sorted(set(expected) - set(state))
    unknown = sorted(set(state) - set(expected))
    if missing or unknown:
        texts = [
            f"{label}: {', '.join(names)}"
            for label, names in (("missing", missing), ("unknown", unknown))
            if names
        ]
        raise PluginError(f"{what}: the file does not fit this architecture; {'; '.join(texts)}")


def zeroed(module: nn.Module) -> nn.Module:
    """A copy with 0 for every float of its state: what a network that is only traced can be run with."""
    import copy

    import torch

    module = copy.deepcopy(module)
    with torch.no_grad():
        for value in module.state_dict().values():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                value.zero_()
    return module


def check_finite(module: nn.Module, what: str) -> None:
    """Raises PluginError where a weight is NaN or infinite: magnitudes and ranges then mean nothing."""
    for name, parameter in module.named_parameters():
        if not parameter.isfinite().all():
            raise PluginError(f"{what}: the weights of {name!r} are not all finite")


def load_dense(module: nn.Module, state: Mapping[str, Tensor], what: str) -> nn.Module:
    """The module, in eval mode, with a file's tensors. Raises PluginError where they do not fit."""
    check_names(module.state_dict(), state, what)
    return load_values(module, state, what)


def load_values(module: nn.Module, values: Mapping[str, Tensor], what: str) -> nn.Module:
    """The module, in eval mode, with these values. Raises PluginError for other names or shapes."""
    try:
        module.load_state_dict(dict(values))
    except RuntimeError as error:
        raise PluginError(f"{what}: the file does not fit this architecture: {error}") from None
    return module.eval()


def weight_key(layer: str) -> str:
    """The name of a layer's weight in the state of the network; the network itself may be the layer."""
    return f"{layer}.weight" if layer else "weight"
