"""Whether an attack left a model as it was: the attacks after it are scored on the same model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
Bytes = dict[tuple["torch.device", "torch.dtype"], "Tensor"]


class Untouched:
    """A model as it is now: parameters, buffers, modes, modules and their hooks.

    Values are copied, not tracked by torch's version counters, which writes through `.data` do not raise. Tensors of
    one type are joined, so that a network costs two or three operations whatever its depth.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names = _names(model)
        self._modes = _modes(model)
        self._hooks = _hooks(model)
        self._values = _values(model)

    def changed(self) -> str | None:
        """What the attack did to the model, in words; None if nothing has changed."""
        import torch

        model = self._model
        names = _names(model)
        if names != self._names:
            return "replaced modules or parameters of the model"
        values = _values(model)
        if values.keys() != self._values.keys() or not all(
            torch.equal(values[key], kept) for key, kept in self._values.items()
        ):
            return "changed parameters or buffers of the model"
        modes = _modes(model)
        if modes != self._modes:
            return f"left the model in {'training' if any(modes) else 'eval'} mode"
        return None if _hooks(model) == self._hooks else "left hooks in the model"


def _names(model: nn.Module) -> list[tuple[str, object]]:
    return [(name, type(module)) for name, module in model.named_modules()] + [
        (name, (tuple(tensor.shape), tensor.dtype, tensor.device))
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    ]


def _modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def _hooks(model: nn.Module) -> list[int]:
    return [len(getattr(module, kind)) for module in model.modules() for kind in HOOKS]


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor as a dense one, or what a library's own type keeps its values in, such as torchao's scales.

    Such a type has no bytes of its own, and need not support being joined.
    """
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain(getattr(tensor, name))
    else:
        yield tensor.dequantize() if tensor.is_quantized else tensor.to_dense()


def _packed(model: nn.Module) -> Iterator[Tensor]:
    """The weights of quantised layers, which keep them as neither parameters nor buffers."""
    import torch

    for kept in model.state_dict().values():
        for value in kept if isinstance(kept, tuple) else (kept,):
            if isinstance(value, torch.Tensor) and value.is_quantized:
                yield value


def _values(model: nn.Module) -> Bytes:
    """The bytes of all tensors, joined by device and type; bytes, as NaN is unlike itself."""
    import torch

    rows: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for whole in (*model.parameters(), *model.buffers(), *_packed(model)):
        for tensor in _plain(whole):
            rows.setdefault((tensor.device, tensor.dtype), []).append(tensor.detach().reshape(-1))
    # `cat` of one tensor is a copy too.
    return {key: torch.cat(row).view(torch.uint8) for key, row in rows.items()}
