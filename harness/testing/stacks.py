"""Defences in stacks with others."""

from __future__ import annotations

from functools import cache
from typing import Any

from harness.contracts.defence import Defence
from harness.errors import HarnessError, NotApplicable
from harness.testing.core import CheckFailed, Setting, Subject, check, require


@check("defence")
def composes(subject: Subject) -> None:
    """In a stack with private training and with adversarial training it works, or says why it is not applicable."""
    subject.outcome()
    from harness.testing.local import begin
    from harness.testing.toy import toy

    setting = Setting(scene=subject.outcome().setting.scene)
    for what, partner in partners().items():
        if partner.name == subject.name:
            continue
        for stack in ((subject.plugin, partner), (partner, subject.plugin)):
            names = " + ".join(d.name for d in stack)
            world = toy(setting)
            x, y = world.images[:12], world.labels[:12]
            try:
                update = begin(stack, world, setting).steps(x, y)
                # Clients that train as one program have no module of their own.
                if partner.protects and all(d.vectorises or not d.overrides("gradient") for d in stack):
                    update = update + begin(stack, world, setting, alone=False).steps(x[:2], y[:2], 1)
            except NotApplicable as reason:
                require(bool(str(reason)), f"{names} is not applicable, and nobody says why: give the reason")
                continue
            except Exception as error:
                raise CheckFailed(
                    f"the stack {names} ({what}) fails: {type(error).__name__}: {error}. Losses must work under "
                    "torch.func.vmap with one key a record; where a stack makes no sense raise NotApplicable in `check`"
                ) from error
            require(bool(update.isfinite().all()), f"the stack {names} sends an update that is not finite")


@cache
def partners() -> dict[str, Defence]:
    """The built-in defences to stack with: one with a guarantee for records, and one with a costlier loss.

    Other installed defences are left out: with them a plugin could pass on one machine and fail on another.
    """
    from harness.console.describe import example_parameters
    from harness.entry_points import BUILTIN
    from harness.registry import registry

    found: dict[str, Defence] = {}
    for entry in registry().entries("defence"):
        cls: Any = entry.plugin
        if entry.distribution != BUILTIN:
            continue
        try:
            defence = cls.create(example_parameters(cls) if cls.protects else None)
        except HarnessError:
            continue
        if cls.protects == "record":
            found.setdefault("private training", defence)
        elif cls.loss is not Defence.loss and not cls.couples_samples and defence.cost() > 1.5:
            found.setdefault("adversarial training", defence)
    return found
