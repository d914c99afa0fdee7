"""Which stacks of defences make sense: each one's conditions hold, and none drops the effect of one before it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from harness.contracts.defence import StackContext
from harness.errors import NotApplicable, blamed

if TYPE_CHECKING:
    from torch import nn

    from harness.contracts.defence import ClientHooks, Defence

HOOKS = ("batch", "loss", "gradient", "update")


def check_stack(
    defences: Sequence[Defence], module: nn.Module | None = None, before: Sequence[ClientHooks] = ()
) -> None:
    """Raises NotApplicable where a stack makes no sense. module: the network. before: hooks that run before it."""
    for position, defence in enumerate(defences):
        with blamed(defence):
            defence.check(StackContext(tuple(defences), position, module))
    _check_records_apart(defences)
    check_nothing_dropped(defences, [(hook_name(hook), brought(hook)) for hook in before])


def _check_records_apart(defences: Sequence[Defence]) -> None:
    """Raises NotApplicable where one defence protects records and another couples those of a batch.

    The first need not check this itself: its guarantee would be shown as it states it.
    """
    for guard in defences:
        for other in defences:
            if guard.protects == "record" and other is not guard and other.couples_samples:
                raise NotApplicable(
                    f"{other.name} couples the records of a batch, so {guard.name} cannot bound one's part"
                )


def check_nothing_dropped(
    defences: Sequence[Defence], before: Iterable[tuple[str, Sequence[str]]] = ()
) -> None:
    """Raises NotApplicable where a defence ignores the loss or the gradient that something before it made.

    A row would name a method that had no effect. before: (name, hooks) of all that runs before the defences.
    """
    # Who made a loss or a gradient, and whether it could stand behind a defence that replaces these.
    earlier: dict[str, list[tuple[str, bool]]] = {"loss": [], "gradient": []}
    for who, hooks in before:
        for hook in earlier.keys() & set(hooks):
            earlier[hook].append((who, False))
    for defence in defences:
        replaces = {"loss": defence.replaces_loss, "gradient": defence.replaces_gradient}
        for hook, others in earlier.items():
            if replaces[hook] and others:
                other, movable = others[0]
                advice = f": put {other} after {defence.name}" if movable else ""
                raise NotApplicable(
                    f"{defence.name} takes no account of the {hook} before it and would drop that of {other}{advice}"
                )
            if defence.overrides(hook):
                others.append((defence.name, not replaces[hook]))


def brought(hook: ClientHooks) -> tuple[str, ...]:
    """The names of the hooks that do more than the default, which changes nothing."""
    return tuple(filter(hook.overrides, HOOKS))


def hook_name(hook: ClientHooks) -> str:
    """The plugin's name, or that of the class for hooks that are no plugin."""
    return str(getattr(hook, "name", type(hook).__name__))
