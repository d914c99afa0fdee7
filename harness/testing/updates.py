"""Update compressors: what goes over the wire, and what the server makes of it."""

from __future__ import annotations

from typing import Any

from harness.contracts.compressor import FREE_FACTS, Payload, UpdateCompressionContext, UpdateCompressor
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
from harness.testing.watch import same

FAMILY = "update compressor"


def _context(world: Any, setting: Setting, client: int = 0, round: int = 0) -> UpdateCompressionContext:
    from harness.testing.toy import generator

    return UpdateCompressionContext(
        round=round, client=client, generator=generator(setting, 20 + client), shared=generator(setting, 19),
        layout=world.layout, shapes={name: tuple(p.shape) for name, p in world.module.named_parameters()},
    )  # fmt: skip


def _trial(compressor: UpdateCompressor, setting: Setting) -> Trial:
    from harness.testing.toy import toy, updates

    world = toy(setting)
    rows = [row.clone() for row in updates(world, 3)]

    def call() -> dict[str, Any]:
        states: list[dict[str, Any]] = [{} for _ in rows]
        contexts = [lambda i=i: _context(world, setting, i) for i in range(3)]
        made = compressor.exchange(rows, states, {}, contexts)
        payload = compressor.encode(rows[0], {}, _context(world, setting))
        return {
            "decoded": made.updates, "sent": made.sent, "before": made.before, "answered": made.answered,
            "payload": payload, "alone": compressor.decode(payload, _context(world, setting)),
        }  # fmt: skip

    return Trial({"updates": rows}, call, ("decoded", "alone"))


FAMILIES[FAMILY] = Family(FAMILY, _trial, dtypes=("float32",))  # updates are sent in no other


@check(FAMILY)
def decoded_well_formed(subject: Subject) -> None:
    """The server gets an update (d,) of finite numbers for every client."""
    outcome = subject.outcome()
    rows, output = outcome.trial.inputs["updates"], outcome.output
    for found in (*output["decoded"], output["alone"]):
        require(
            tuple(found.shape) == tuple(rows[0].shape) and bool(found.isfinite().all()),
            f"{subject.name} decodes {tuple(found.shape)} of updates {tuple(rows[0].shape)}, or values that "
            "are not finite",
        )
    require(
        all(len(output[part]) == len(rows) for part in ("decoded", "sent", "before", "answered")),
        f"`exchange` of {subject.name} returns {len(output['decoded'])} updates and {len(output['sent'])} sizes for "
        f"{len(rows)} clients",
    )


@check(FAMILY)
def bytes_counted(subject: Subject) -> None:
    """The bytes it reports are those of the tensors it sends; plain facts beside them stay small."""
    output = subject.outcome().output
    payload = output["payload"]
    require(
        isinstance(payload, Payload), f"{subject.name}.encode returns {type(payload).__name__}, not a Payload"
    )
    tensors = sum(t.numel() * t.element_size() for t in payload.tensors.values())
    counted = Payload(payload.tensors, payload.facts).nbytes
    require(
        payload.nbytes == counted,
        f"{subject.name} reports {payload.nbytes} bytes for a payload of {counted}: leave Payload.nbytes as it is",
    )
    require(
        counted == tensors,
        f"{subject.name} sends {counted - tensors + FREE_FACTS} bytes in `facts`, of which {FREE_FACTS} are free: put "
        "numbers into `tensors`, in their wire dtypes",
    )
    require(
        all(isinstance(n, int) and n >= 0 for n in (*output["sent"], *output["before"], *output["answered"])),
        f"`exchange` of {subject.name} returns sizes that are not whole numbers of bytes",
    )


@check(FAMILY)
def bytes_are_enough(subject: Subject) -> None:
    """The bytes it reports can carry what the server learns: d Gaussian numbers with a relative squared error D take
    d / 2 log2(1 / D) bits, whatever the code.

    Shannon 1959, Coding theorems for a discrete source with a fidelity criterion. Nothing agreed beforehand can tell
    numbers that are drawn anew. The bound is capped at 22 bits per number, as float32 has 24, and half of it is asked
    for.
    """
    import math

    import torch

    from harness.testing.toy import toy

    after(subject, decoded_well_formed)
    setting = Setting(scene=subject.outcome().setting.scene)
    world = toy(setting)
    d = len(world.vector)
    rows = list(torch.randn((3, d), generator=torch.Generator().manual_seed(5)))
    contexts = [lambda i=i: _context(world, setting, i) for i in range(3)]
    made = subject.plugin.exchange([row.clone() for row in rows], [{}, {}, {}], {}, contexts)
    for row, found, *counted in zip(rows, made.updates, made.sent, made.before, strict=True):
        error = float((found - row).square().sum() / row.square().sum())
        least = d / 16 * min(44.0, math.log2(1 / max(error, 1e-20)))
        require(
            sum(counted) >= least / 2,
            f"{subject.name} reports {sum(counted)} bytes a client for an update of {d} numbers that the server gets "
            f"with a relative squared error of {error:.2g}, which takes {math.ceil(least)}: count in `sent` and "
            "`before` all that a client sends",
        )


@check(FAMILY)
def payload_is_all(subject: Subject) -> None:
    """The server decodes from the payload alone: a copy of it, at another instance, gives the same update."""
    from harness.testing.toy import toy, updates

    after(subject, decoded_well_formed)
    outcome, codec = subject.outcome(), subject.plugin
    setting = Setting(scene=outcome.setting.scene)
    world = toy(setting)
    rows = updates(world, 2, seed=7)
    sent = codec.encode(rows[0], {}, _context(world, setting))
    wire = Payload({name: t.clone() for name, t in sent.tensors.items()}, dict(sent.facts))
    first = codec.decode(sent, _context(world, setting)).clone()
    codec.encode(rows[1], {}, _context(world, setting))
    second = codec.model_copy().decode(wire, _context(world, setting))
    require(
        same(first, second),
        f"{subject.name} decodes something else after another update was encoded: everything that the server "
        "needs must be in "
        "the payload, or drawn from context.shared",
    )


@check(FAMILY)
def unusual_updates(subject: Subject) -> None:
    """A zero update, a constant one, one of NaN and one with a NaN work, or raise PluginError."""
    import torch

    from harness.testing.toy import toy, updates

    after(subject, decoded_well_formed)
    codec, setting = subject.plugin, Setting(scene=subject.outcome().setting.scene)
    world = toy(setting)
    ordinary = updates(world, 1)[0]
    cases = {
        "an update of zeros": torch.zeros_like(ordinary), "a constant update": torch.ones_like(ordinary),
        "an update of NaN": torch.full_like(ordinary, float("nan")),
        "one NaN in an update": ordinary.clone().index_fill_(0, torch.tensor([len(ordinary) // 2]), float("nan")),
    }  # fmt: skip
    for what, update in cases.items():
        try:
            payload = codec.encode(update, {}, _context(world, setting))
            found = codec.decode(payload, _context(world, setting))
        except (PluginError, NotApplicable):
            continue
        except Exception as error:
            raise CheckFailed(f"{codec.name} breaks with {what}: {type(error).__name__}: {error}") from error
        finite = bool(found.isfinite().all())
        require(
            found.shape == update.shape and (finite or "NaN" in what),
            f"{codec.name} decodes {what} into {tuple(found.shape)}, or values that are not finite: guard the scale",
        )
        require(
            "NaN" not in what or not finite,
            f"{codec.name} turns {what} into ordinary numbers: a client that diverged would be "
            "counted as sound. "
            "Let NaN through (its row is dropped), or raise PluginError",
        )


@check(FAMILY)
def several_rounds(subject: Subject) -> None:
    """With its own state from the round before, later rounds work as the first did, and repeat exactly."""
    from harness.testing.toy import toy, updates

    after(subject, decoded_well_formed)
    codec, setting = subject.plugin, Setting(scene=subject.outcome().setting.scene)
    world = toy(setting)

    def play(number: int, state: dict[str, Any]) -> Any:
        row = updates(world, 1, seed=number)[0]
        payload = codec.encode(row, state, _context(world, setting, 0, number))
        found = codec.decode(payload, _context(world, setting, 0, number))
        require(
            found.shape == row.shape and bool(found.isfinite().all()),
            f"{codec.name} breaks in round {number + 1}",
        )
        return found

    repeated(subject, play)


@check(FAMILY)
def links_of_a_chain(subject: Subject) -> None:
    """What it declares for chains is true: what it remembers between rounds, and which numbers others may encode."""
    import torch

    from harness.testing.toy import toy, updates

    after(subject, decoded_well_formed)
    codec, setting = subject.plugin, Setting(scene=subject.outcome().setting.scene)
    name, world = codec.name, toy(setting)
    rows = updates(world, 3, seed=11)

    def later(state: dict[str, Any]) -> Any:
        """What the server makes of the second update."""
        payload = codec.encode(rows[1], state, _context(world, setting))
        return codec.decode(payload, _context(world, setting)).clone()

    states: list[dict[str, Any]] = [{}, {}, {}]
    payload = codec.encode(rows[0], states[0], _context(world, setting))
    codec.encode(rows[0], states[1], _context(world, setting))
    if codec.passed_on and codec.remembers:
        codec.add_lost(10 * rows[2], states[1])
    plain, added, fresh = map(later, states)
    require(
        codec.remembers or same(plain, fresh),
        f"{name} decodes another update after a round than without one: declare `remembers = True`, so that it does "
        "not follow links that pass on other numbers in every round",
    )
    if not codec.passed_on:
        return
    require(
        type(codec).exchange is UpdateCompressor.exchange,
        f"{name} has `passed_on` and an `exchange` of its own, which is not called where links follow",
    )
    missing = [part for part in codec.passed_on if part not in payload.tensors]
    require(not missing, f"{name} passes on {missing}, which its payload does not have")
    passed = {part: payload.tensors[part] for part in codec.passed_on}
    count = sum(t.numel() for t in passed.values())
    require(
        all(t.is_floating_point() for t in passed.values()) and count > 0,
        f"{name} passes on tensors that are not floats, or nothing: another link cannot encode them",
    )
    require(
        not codec.places_stay or count == len(rows[0]),
        f"{name} declares `places_stay` and passes on {count} numbers of {len(rows[0])} coordinates",
    )
    halves = {part: t.to(torch.float32) / 2 for part, t in passed.items()}
    other = codec.decode(
        Payload({**payload.tensors, **halves}, dict(payload.facts)), _context(world, setting)
    )
    ordinary = codec.decode(payload, _context(world, setting))
    require(
        other.shape == rows[0].shape and bool(other.isfinite().all()) and not same(other, ordinary),
        f"{name} does not decode the numbers that it passed on, where following links have changed them",
    )
    require(
        not codec.remembers or not same(added, plain),
        f"{name} remembers and passes on numbers, and `add_lost` changes nothing of what it sends next: what following "
        "links lose would never be sent",
    )
