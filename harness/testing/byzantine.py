"""Byzantine attacks: crafted updates."""

from __future__ import annotations

from typing import Any

from harness.contracts.attack import ByzantineAttack, ByzantineContext
from harness.errors import NotApplicable, PluginError
from harness.testing.core import (
    FAMILIES,
    CheckFailed,
    Family,
    Setting,
    Subject,
    Trial,
    after,
    check,
    repeated,
    require,
)
from harness.testing.watch import guarded

HONEST, MALICIOUS = 8, 3


def _context(
    attack: ByzantineAttack, honest: Any, own: Any, world: Any, setting: Setting, **changes: Any
) -> Any:
    """What the attack gets from a threat that grants no more knowledge than the attack declares."""  # fmt: skip
    from harness.testing.toy import generator

    m = len(own)

    def rule(rows: Any) -> Any:
        return rows.median(0).values

    probe: Any = rule
    if attack.knowledge != "omniscient":
        probe = setting.forbid(
            f"{attack.name} runs the server's rule and declares knowledge = {attack.knowledge!r}: it would "
            "fail under such a "
            "threat. Declare knowledge = 'omniscient'"
        )
    known = honest if attack.knowledge != "own" else own
    given: dict[str, Any] = {
        "m": m, "round": 1, "generator": generator(setting), "own": own, "n": len(honest) + m, "f": m,
        "global_weights": world.vector, "layout": world.layout, "aggregator": probe, "ids": list(range(len(known))),
        "moved": world.vector / 100, "sees_others": attack.knowledge != "own",
    }  # fmt: skip
    context = ByzantineContext(**{**given, **changes})
    if attack.uses_own:
        return context
    return guarded(context, {"own": setting.forbid(
        f"{attack.name} reads context.own and declares uses_own = False: it is not computed then. Leave uses_own alone"
    )})  # fmt: skip


def _trial(attack: ByzantineAttack, setting: Setting) -> Trial:
    from harness.testing.toy import toy, updates

    world = toy(setting)
    honest, own = updates(world, HONEST), updates(world, MALICIOUS, seed=5)
    context = _context(attack, honest, own, world, setting)
    known = own if attack.knowledge == "own" else honest
    weights = context.global_weights
    inputs = {"honest": honest, "own": own, "global_weights": weights}
    return Trial(inputs, lambda: {"crafted": attack.craft(known, context)}, ("crafted",))


FAMILIES["byzantine"] = Family("byzantine", _trial)


def _proper(subject: Subject, crafted: Any, m: int, d: int, what: str) -> None:
    import torch

    found = tuple(crafted.shape) if isinstance(crafted, torch.Tensor) else type(crafted).__name__
    require(
        found == (m, d),
        f"{subject.name} crafts {found} ({what}), not one row a malicious client: ({m}, {d})",
    )
    require(
        not bool(crafted.isnan().any()),
        f"{subject.name} crafts NaN ({what}): such rows are dropped, and nothing is attacked. Guard the divisions",
    )


@check("byzantine")
def crafted_well_formed(subject: Subject) -> None:
    """One row (d,) for each malicious client, without NaN."""
    outcome = subject.outcome()
    _proper(
        subject, outcome.output["crafted"], MALICIOUS, outcome.trial.inputs["honest"].shape[1], "8 honest clients"
    )  # fmt: skip
    require(
        subject.plugin.knowledge in ("own", "updates", "omniscient"),
        f"{subject.name} declares knowledge = {subject.plugin.knowledge!r}: own, updates or omniscient",
    )


@check("byzantine")
def few_clients(subject: Subject) -> None:
    """One malicious client, one honest one, many malicious ones and equal updates work, or raise PluginError."""
    from harness.testing.toy import toy, updates

    after(subject, crafted_well_formed)
    attack, setting = subject.plugin, Setting(scene=subject.outcome().setting.scene)
    world = toy(setting)
    for h, m, scale in ((HONEST, 1, 1), (1, 1, 1), (3, 4, 1), (4, 2, 0)):
        honest, own = scale * updates(world, h), scale * updates(world, m, seed=5)
        what = f"{h} honest and {m} malicious clients" + ("" if scale else ", all updates zero")
        context = _context(attack, honest, own, world, setting, state={})
        try:
            crafted = attack.craft(own if attack.knowledge == "own" else honest, context)
        except (PluginError, NotApplicable):
            continue
        except Exception as error:
            raise CheckFailed(
                f"{subject.name} breaks with {what}: {type(error).__name__}: {error}. Raise PluginError with "
                "the numbers"
            ) from error
        _proper(subject, crafted, m, honest.shape[1], what)


@check("byzantine")
def several_rounds(subject: Subject) -> None:
    """With its own state from the round before, later rounds work as the first did, and repeat exactly."""
    from harness.testing.toy import toy, updates

    after(subject, crafted_well_formed)
    attack, setting = subject.plugin, Setting(scene=subject.outcome().setting.scene)
    world = toy(setting)

    def play(number: int, state: dict[str, Any]) -> Any:
        honest, own = updates(world, HONEST, seed=number), updates(world, MALICIOUS, seed=5 + number)
        context = _context(attack, honest, own, world, setting, round=number, state=state)
        crafted = attack.craft(own if attack.knowledge == "own" else honest, context)
        _proper(subject, crafted, MALICIOUS, honest.shape[1], f"round {number + 1}")
        return crafted

    repeated(subject, play)
