"""What defences promise: well-formed guarantees, whose epsilon covers what the stated noise and sampling spend."""

from __future__ import annotations

import math

from harness.contracts.defence import Guarantee
from harness.privacy.promised import promised
from harness.testing.core import Subject, check, require


@check("defence")
def guarantee_valid(subject: Subject) -> None:
    """A guarantee has a positive epsilon, a delta below 1 / N, the unit that `protects` says, and grows
    with training."""
    from harness.testing.local import CLIENTS, PER_CLIENT, federation

    defence, prepared = subject.plugin, subject.outcome().output["prepared"]
    require(
        defence.guarantee([]) is None,
        f"{subject.name} guarantees something without a training: `guarantee([])` is None",
    )
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
