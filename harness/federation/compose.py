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
# The keys of inner losses are split off by numbers from here on; hooks split their own keys by small numbers.
INNER = 1 << 32


def composed_batch(hooks: Hooks) -> Callable[[Batch, Tensor], Batch]:
    """(x, y), key -> the batch to train on, left to right; raises PluginError where a hook does not return a batch."""
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

    Each loss draws from a key of its own: with a shared key, two losses would toss the same coin for a record that the
    first one leaves as it is.
    """
    base = loss = cross_entropy(logits)
    losses = 0
    for hook in hooks:
        inner = loss if loss is base else _with_key(loss, INNER + losses)
        found = hook.loss(inner, logits)
        if found is not inner:
            loss = _one_a_record(found, getattr(hook, "name", "a hook"))
            losses += 1
    return loss


def _one_a_record(loss: Any, who: str) -> LossFn:
    """A hook's loss, checked: PluginError where it gives anything but one loss per record.

    A sum over the batch would otherwise be taken for the mean, and the learning rate would in effect be multiplied by
    the batch size.
    """
    if not callable(loss):
        raise PluginError(
            f"{who}.loss returned {type(loss).__name__}, not a function of (params, batch, key)"
        )

    def checked(params: Params, batch: Batch, key: Tensor) -> Tensor:
        found: Tensor = loss(params, batch, key)
        wanted, shape = batch[1].shape, getattr(found, "shape", None)
        if shape != wanted:
            what = type(found).__name__ if shape is None else tuple(shape)
            raise PluginError(
                f"the loss of {who} returned {what}, not {tuple(wanted)}: one loss a record, without a mean or a sum"
            )
        return found

    return checked


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
    """What the optimiser steps along: the gradient of the mean loss where no hook says otherwise.

    prepared: what each hook has prepared. local(loss, gradient, prepared) makes a hook's view of the client.
    """
    gradient = mean_gradient(loss, mask)
    for hook, own in zip(hooks, prepared, strict=True):
        if hook.overrides("gradient"):
            found = hook.gradient(local(loss, gradient, own))
            if found is not None:
                gradient = _of_each_parameter(found, getattr(hook, "name", "a hook"))
    return gradient


def _of_each_parameter(gradient: Any, who: str) -> GradientFn:
    """A hook's gradient, checked: PluginError where it does not give a gradient for each parameter."""
    if not callable(gradient):
        raise PluginError(
            f"{who}.gradient returned {type(gradient).__name__}, not a function of (params, batch, key)"
        )

    def checked(params: Params, batch: Batch, key: Tensor) -> Params:
        try:
            found: Params = gradient(params, batch, key)
        except RuntimeError as error:
            if "randomness error mode" not in str(error):
                raise
            raise PluginError(
                f"the gradient of {who} is taken by torch.func.vmap, and in it the network (as in dropout) or a loss "
                "draws random numbers: give vmap randomness='different'"
            ) from error
        if not isinstance(found, dict):
            raise PluginError(
                f"the gradient of {who} returned {type(found).__name__}, not a dictionary name -> tensor"
            )
        if missing := params.keys() - found.keys():
            raise PluginError(f"the gradient of {who} has none of the parameter {min(missing)!r}")
        return found

    return checked
