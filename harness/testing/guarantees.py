"""What defences promise: well-formed guarantees, whose epsilon covers what the stated noise and sampling spend."""

from __future__ import annotations

import math
from typing import Any

from harness.contracts.defence import ClientHooks, Defence, Guarantee
from harness.privacy.promised import promised
from harness.testing.core import CheckFailed, Setting, Subject, after, check, require


@check("defence")
def guarantee_valid(subject: Subject) -> None:
    """A guarantee has a positive epsilon, a delta below 1 / N, the unit that `protects` says, and grows
    with training."""
    from harness.testing.local import CLIENTS, PER_CLIENT, federation

    defence, prepared = subject.plugin, subject.outcome().output["prepared"]
    try:
        nothing = defence.guarantee([]) is None
    except Exception as error:
        raise CheckFailed(
            f"{subject.name} breaks where there is no training yet: `guarantee([])` raises {type(error).__name__}: "
            f"{error}; it returns None"
        ) from error
    require(nothing, f"{subject.name} guarantees something without a training: `guarantee([])` is None")
    first = promised(defence, [prepared])
    if first is None:
        require(
            defence.protects is None,
            f"{subject.name} says that it protects a {defence.protects} and gives no guarantee",
        )
        return
    require(
        first.unit == defence.protects,
        f"{subject.name} guarantees for a {first.unit} and declares protects = {defence.protects!r}: they must agree, "
        "the engine plans by `protects`",
    )
    if not first.holds:
        require(bool(first.broken_by), f"{subject.name} gives a guarantee that does not hold, and no reason")
        return
    units = PER_CLIENT * CLIENTS if first.unit == "record" else CLIENTS
    require(
        first.epsilon > 0 and math.isfinite(first.epsilon) and 0 <= first.delta < 1 / units,
        f"{subject.name} guarantees epsilon {first.epsilon:g} and delta {first.delta:g} over {units} {first.unit}s: "
        "epsilon must be positive and finite, delta below 1 / N",
    )
    _spent(subject, first)
    second = defence.prepare(federation([prepared]))
    both = promised(defence, [prepared, second])
    require(
        both is not None and (not both.holds or both.epsilon >= first.epsilon * (1 - 1e-9)),
        f"{subject.name} guarantees a smaller epsilon for two trainings of the same weights than for one: "
        "`guarantee(history)` composes over all of them",
    )


def _spent(subject: Subject, claim: Guarantee) -> None:
    """Raises CheckFailed where epsilon is smaller than what the noise and the sampling stated beside it spend."""
    from harness.privacy.accounting import epsilon

    noise, rate, steps = (claim.noise_multiplier, claim.sampling.get("rate"), claim.sampling.get("steps"))
    if claim.unit != "record" or not noise or rate is None or steps is None:
        return
    least = epsilon([(noise, rate, steps)], claim.delta, "prv")
    require(
        claim.epsilon >= 0.95 * least - 0.02,  # prv may be 0.01 too high
        f"{subject.name} guarantees epsilon {claim.epsilon:.3g}, and noise of {noise:g} times the sensitivity in "
        f"{steps} steps at rate {rate:.3g} spends {least:.3g} at delta {claim.delta:.3g}: see harness.api.accounting",
    )


@check("defence", when=lambda plugin: plugin.protects is not None)
def noise_as_declared(subject: Subject) -> None:
    """Its noise is at least the noise multiplier that it states, times what one record or client moves."""
    after(subject, guarantee_valid)
    claim = promised(subject.plugin, [subject.outcome().output["prepared"]])
    if claim is None or not claim.holds or not claim.noise_multiplier:
        return
    setting = Setting(scene=subject.outcome().setting.scene)
    without, again, with_unit = (
        _release(subject.plugin, claim, setting, *case) for case in ((0, False), (1, False), (0, True))
    )
    moved = float((with_unit - without).norm())
    deviation = float((again - without).std()) / math.sqrt(2)
    require(
        deviation >= 0.9 * claim.noise_multiplier * moved,
        f"{subject.name} states a noise multiplier of {claim.noise_multiplier:.3g}, and in the first step a "
        f"{claim.unit} moves what is released by {moved:.3g} (L2) under noise of deviation {deviation:.3g}, which is "
        f"{deviation / max(moved, 1e-30):.3g} times that: clip to the bound, and add noise of the multiplier times it",
    )


class _Steep(ClientHooks):
    """Stands before a defence and makes losses so steep that every gradient is clipped."""

    def loss(self, loss: Any, logits: Any) -> Any:
        return lambda params, batch, key: 1e4 * loss(params, batch, key)


def _release(defence: Defence, claim: Guarantee, setting: Setting, coins: int, with_unit: bool) -> Any:
    """What an attacker sees of one round, (d,): the client's update, or the server's aggregate.

    with_unit: with the record, or the client's large update, that is to be hidden. coins: of the noise.
    """
    import torch

    from harness.contracts.defence import UpdateContext
    from harness.testing.defences import aggregated
    from harness.testing.local import CLIENTS, PlainMean, begin
    from harness.testing.toy import generator, toy

    world, number = toy(setting), int(with_unit)
    training = begin((_Steep(), defence), world, setting, coins=11 + coins)
    prepared = training.prepared[1]
    if claim.unit == "record":
        update = training.steps(world.images[:number], world.labels[:number], 1)
    else:
        context = UpdateContext(0, 0, generator(setting, 11 + coins), world.layout, prepared, CLIENTS, 0)
        update = defence.update(1e4 * number * world.vector, context)
    if claim.against == "server":
        return update
    rows = torch.stack([update, *torch.zeros((CLIENTS - 1, len(update)))])
    return aggregated(defence.aggregator(PlainMean(), prepared), rows, world, setting, coins=1 + coins)
