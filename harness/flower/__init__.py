"""Federations that span machines: trainings as Flower apps, and rules as Flower strategies.

Everything here needs the extra `flower`, which is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flwr.serverapp.strategy import FedAvg

__all__ = ["as_strategy"]


def as_strategy(
    *rules: Any,
    f: int | None = None,
    seed: int | None = None,
    buffers: Sequence[str] = ("running_mean", "running_var"),
    options: dict[str, Any] | None = None,
    **parameters: Any,
) -> FedAvg:
    """A rule of this harness, or a chain of them, as a Flower Strategy (message API) for any Flower app.

        strategy = as_strategy("krum", f=2, options={"fraction_train": 0.5})
        strategy = as_strategy("nnm", "trimmed-mean", f=2)

    rules: names of aggregators, all but the last pre-aggregators, or instances from `harness.create`. f: Byzantine
    clients to tolerate in a round. seed: makes random rules reproducible, and a rule's noise known to whoever knows
    the seed; without one they draw from a secret. Rows are in the order of the nodes' ids, so that the order of
    answers decides nothing; the nodes of another federation have other ids, in another order, so that a rule that
    draws by row gives another result there. buffers: names, or endings of names, of the arrays that are not trained,
    such as BatchNorm's statistics: no rule sees them, and they become their mean over clients, weighted by examples,
    which any client can move. Where your arrays have other names, give those. parameters: of the last rule, where it
    is given by name. options: arguments of Flower's FedAvg: sampling, evaluation, keys. Raises PluginError for unknown
    names and wrong parameters.
    """
    from harness.errors import PluginError
    from harness.flower.strategies import RuleStrategy
    from harness.registry import registry

    if not rules:
        raise PluginError("as_strategy needs at least one aggregator, e.g. as_strategy('median')")
    created = []
    for position, rule in enumerate(rules):
        if isinstance(rule, str):
            own = parameters if position == len(rules) - 1 else {}
            rule = registry().create("aggregator", rule, own)
        elif parameters and position == len(rules) - 1:
            raise PluginError(f"parameters {sorted(parameters)} are for rules given by name")
        created.append(rule)
    for rule in created:
        if rule.kind != "aggregator":
            raise PluginError(f"{rule.name} is a {rule.kind}, not an aggregator")
        if rule.root_records:
            raise PluginError(
                f"{rule.name} needs a root dataset, which a Flower app of yours does not give it"
            )
    for rule in created[:-1]:
        if not rule.pre:
            raise PluginError(
                f"{rule.name} is not a pre-aggregator; only the last rule of a chain may be another"
            )
    return RuleStrategy(created, f, seed, buffers, **(options or {}))
