"""Aggregators and pre-aggregators: (n, d) updates in, (d,) or (n', d) out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from harness.contracts.base import Plugin

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass
class AggregationContext:
    """What the server knows in a round.

    f: Byzantine clients to tolerate among these rows. weights: (n,), sum 1. generator: on the updates' device.
    state: this rule's own dictionary, kept between rounds. layout: parameter name -> slice of d.
    root_data: only for rules that declare access to a root dataset, else None.
    """

    round: int
    f: int
    weights: Tensor
    client_ids: list[int]
    layout: dict[str, slice]
    generator: torch.Generator
    global_weights: Tensor | None = None
    root_data: Any = None
    state: dict[str, Any] = field(default_factory=dict)
    reporter: Callable[[dict[str, Any]], None] | None = None

    def report(self, *, kept: Sequence[int] | Tensor | None = None, **facts: Any) -> None:
        """Tell the engine what was decided: `kept` is the rows kept, as positions or a boolean mask."""
        if self.reporter is not None:
            self.reporter({"kept": kept, **facts})

    def with_rows(self, weights: Tensor, client_ids: list[int], f: int | None = None) -> AggregationContext:
        """The context for other rows, for pre-aggregators that merge or drop some."""
        return replace(self, weights=weights, client_ids=client_ids, f=self.f if f is None else f)


class Aggregator(Plugin):
    """A rule that turns n updates into one. Call an instance directly for a default context."""

    kind: ClassVar[str] = "aggregator"
    pre: ClassVar[bool] = False
    data_access: ClassVar[str] = "none"  # none | public | private: a root dataset, if it needs one

    def check(self, n: int, f: int) -> tuple[int, int]:
        """Raises PluginError where the rule's conditions on n and f fail; returns (n, f) for what follows."""
        return n, f

    @abstractmethod
    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        """updates (n, d), never mutated; returns (d,)."""

    def __call__(self, updates: Tensor, f: int | None = None, **context: Any) -> Tensor:
        """updates (n, d) -> (d,) (or (n', d) for a pre-aggregator) in a default context. Raises PluginError."""
        return self.aggregate(updates, default_context(self, updates, f, **context))


class PreAggregator(Aggregator):
    """A rule that turns n updates into n' better ones, for the next rule of the chain."""

    pre: ClassVar[bool] = True

    @abstractmethod
    def transform(self, updates: Tensor, context: AggregationContext) -> tuple[Tensor, AggregationContext]:
        """updates (n, d), never mutated; returns ((n', d), the context for n' rows)."""

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        """The mean of the transformed rows, weighted as the returned context says."""
        rows, after = self.transform(updates, context)
        return after.weights.to(rows.dtype) @ rows

    def __call__(self, updates: Tensor, f: int | None = None, **context: Any) -> Tensor:
        return self.transform(updates, default_context(self, updates, f, **context))[0]


def default_context(
    aggregator: Aggregator, updates: Tensor, f: int | None = None, **given: Any
) -> AggregationContext:
    """A context for one call outside a federation: uniform weights, round 0, the rule's own f if it has one."""
    import torch

    from harness.errors import PluginError

    if updates.ndim != 2 or not len(updates):
        raise PluginError(f"updates must be (n, d) with n >= 1, not {tuple(updates.shape)}")
    n = len(updates)
    own = getattr(aggregator, "f", None)
    if f is None:
        f = own if own is not None else 0
    if not 0 <= f < n:
        raise PluginError(f"f must lie in [0, {n}), not {f}")
    aggregator.check(n, f)
    given.setdefault("round", 0)
    exact = updates.dtype if updates.is_floating_point() else None
    given.setdefault("weights", torch.full((n,), 1 / n, dtype=exact, device=updates.device))
    given.setdefault("client_ids", list(range(n)))
    given.setdefault("layout", {"all": slice(0, updates.shape[1])})
    given.setdefault("generator", torch.Generator(updates.device).manual_seed(0))
    return AggregationContext(f=f, **given)
