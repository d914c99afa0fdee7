"""What a client steps along: the one place where hooks become a batch, a loss and a gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from harness.errors import PluginError
from harness.functional import cross_entropy, mean_gradient
from harness.random import split

if TYPE_CHECKING:
    from torch import Tensor

    from harness.contracts.defence import Batch, ClientHooks, GradientFn, Local, LogitsFn, LossFn

Hooks = Sequence["ClientHooks"]


def composed_batch(hooks: Hooks) -> Callable[[Batch, Tensor], Batch]:
    """(x, y), key -> the batch to train on, left to right."""
    changing = [(position, hook) for position, hook in enumerate(hooks) if hook.overrides("batch")]

    def changed(batch: Batch, key: Tensor) -> Batch:
        x, y = batch
        for position, hook in changing:
            found = hook.batch(x, y, split(key, position))
            x, y = found if isinstance(found, tuple) and len(found) == 2 else (None, None)
            if x is None or y is None or len(x) != len(y):
                what = (
                    type(found).__name__
                    if x is None or y is None
                    else f"{len(x)} images with {len(y)} labels"
                )
                raise PluginError(
                    f"{getattr(hook, 'name', 'a hook')}.batch returned {what}: a label an image"
                )
        return x, y

    return changed


def composed_loss(hooks: Hooks, logits: LogitsFn) -> LossFn:
    """Per-sample losses, cross-entropy where no hook says otherwise."""
    loss = cross_entropy(logits)
    for hook in hooks:
        loss = hook.loss(loss, logits)
    return loss


def composed_gradient(
    hooks: Hooks,
    prepared: Sequence[Any],
    loss: LossFn,
    local: Callable[[LossFn, GradientFn, Any], Local],
    mask: Tensor | None = None,
) -> GradientFn:
    """What the optimiser steps along, the gradient of the mean loss where no hook says otherwise.

    prepared: what each hook has prepared, for `local`, which makes what a hook sees of the client.
    """
    gradient = mean_gradient(loss, mask)
    for hook, own in zip(hooks, prepared, strict=True):
        if hook.overrides("gradient"):
            gradient = hook.gradient(local(loss, gradient, own)) or gradient
    return gradient
