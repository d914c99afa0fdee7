"""What a client steps along: the one place where hooks become a batch, a loss and a gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from harness.errors import PluginError
from harness.functional import cross_entropy, mean_gradient
from harness.random import split

if TYPE_CHECKING:
    from torch import Tensor

    from harness.contracts.defence import Batch, ClientHooks, GradientFn, Local, LogitsFn, LossFn, Params

Hooks = Sequence["ClientHooks"]
# Numbers of the keys of losses inside of others: hooks themselves split theirs by small numbers.
INNER = 1 << 32


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
    """Per-sample losses, cross-entropy where no hook says otherwise.

    Two losses draw from two keys: else their coins for a record that the first leaves as it is were one coin.
    """
    base = loss = cross_entropy(logits)
    losses = 0
    for hook in hooks:
        inner = loss if loss is base else _with_key(loss, INNER + losses)
        found = hook.loss(inner, logits)
        if found is not inner:
            loss = found
            losses += 1
    return loss


def _with_key(loss: LossFn, number: int) -> LossFn:
    """The same loss with a key of its own."""

    def keyed(params: Params, batch: Batch, key: Tensor) -> Tensor:
        return loss(params, batch, split(key, number))

    return keyed


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
