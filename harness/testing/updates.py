"""Update compressors: what goes over the wire, and what the server makes of it."""

from __future__ import annotations

import pickle
from typing import Any

from harness.contracts.compressor import Payload, UpdateCompressionContext, UpdateCompressor
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


FAMILIES[FAMILY] = Family(FAMILY, _trial, dtypes=("float32",))  # the wire knows no other


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
    counted = sum(t.numel() * t.element_size() for t in payload.tensors.values())
    require(
        payload.nbytes == counted,
        f"{subject.name} reports {payload.nbytes} bytes for a payload of {counted}: leave Payload.nbytes as it is",
    )
    require(
        len(pickle.dumps(payload.facts)) <= 1024,
        f"{subject.name} sends {len(pickle.dumps(payload.facts))} bytes in `facts`, which are not counted: put numbers "
        "into `tensors`, in their wire dtypes",
    )
    require(
        all(isinstance(n, int) and n >= 0 for n in (*output["sent"], *output["before"], *output["answered"])),
        f"`exchange` of {subject.name} returns sizes that are not whole numbers of bytes",
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
    """A zero update, a constant one, one of NaN, one with a NaN, and several rounds work, or raise PluginError."""
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
    state: dict[str, Any] = {}
    for number in range(3):
        row = updates(world, 1, seed=number)[0]
        found = codec.decode(
            codec.encode(row, state, _context(world, setting, 0, number)),
            _context(world, setting, 0, number),
        )
        require(
            found.shape == row.shape and bool(found.isfinite().all()),
            f"{codec.name} breaks in round {number + 1}",
        )
