"""Which layer of a network classifies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import NotApplicable

if TYPE_CHECKING:
    from torch import nn


def last_linear(module: nn.Module, num_classes: int | None = None) -> str:
    """The name of the classifier: the last linear layer, which must have num_classes outputs where given.

    Raises NotApplicable where there is none.
    """
    from torch import nn

    names = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not names:
        raise NotApplicable("a network whose last layer is linear is needed; this one has no linear layer")
    outputs = module.get_submodule(names[-1]).out_features
    if num_classes is not None and outputs != num_classes:
        raise NotApplicable(
            f"the last linear layer, {names[-1]}, has {outputs} outputs for {num_classes} classes"
        )
    return names[-1]
