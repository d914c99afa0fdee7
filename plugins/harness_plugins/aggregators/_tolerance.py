"""How many malicious clients a rule tolerates, and the condition on them that most robust rules share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import AggregationContext, Aggregator, Field, PluginError

if TYPE_CHECKING:
    from torch import Tensor


class Tolerant(Aggregator):
    """A rule that is told how many malicious clients to tolerate, by the scenario or by a parameter."""

    f: int | None = Field(
        None, ge=0, description="malicious clients tolerated; null: from federation.byzantine_tolerance"
    )

    def in_force(self, f: int) -> int:
        """The rule's own f, else the one given."""
        return f if self.f is None else self.f


class NeedsMajority(Tolerant):
    """One that needs more than half of the updates to be honest."""

    def check(self, n: int, f: int) -> tuple[int, int]:
        own = self.in_force(f)
        if n <= 2 * own:
            raise PluginError(f"{self.name} needs n > 2f updates: n = {n}, f = {own}")
        return n, f


def tolerated(rule: Aggregator, updates: Tensor, context: AggregationContext) -> int:
    """The f in force: the rule's own, else the context's. Raises PluginError for bad updates, n, f or clients."""
    if updates.ndim != 2 or not len(updates) or not updates.is_floating_point():
        raise PluginError(
            f"{rule.name}: updates must be (n, d) floating point with n >= 1, "
            f"not {tuple(updates.shape)} of {updates.dtype}"
        )
    rule.check_clients(context.client_ids)
    rule.check(len(updates), context.f)
    return rule.in_force(context.f) if isinstance(rule, Tolerant) else context.f
