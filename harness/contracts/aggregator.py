"""Aggregators and pre-aggregators: (n, d) updates in, (d,) or (n', d) out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

from harness.contracts.base import Plugin

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

MERGED = -1  # the client id of a row that several clients share


@dataclass
class AggregationContext:
    """What the server knows in a round.

    round: from 0, continuing through fine-tuning; rounds: how many there will be, 0 where unknown. f: Byzantine clients
    to tolerate among these rows. weights: (n,), sum 1. client_ids: whose row each is; MERGED where several share it.
    layout: parameter name -> slice of d, in the network's order. generator: on the updates' device.
    global_weights (d,): what the clients started from; a rule that declares `sets_weights` may aim at weights by
    returning aim - global_weights (the default server optimiser, fedavg with lr 1, then arrives there).
    state: this rule's own dictionary, kept between rounds; empty in the first round, and in the first of fine-tuning.
    logits: (weights (d,), x (b, c, h, w)) -> (b, k), the network with these weights in eval mode.
    root_update: only for rules that declare `root_records`: the update (d,) that a client holding the root
    dataset would honestly send this round. noise: the generator for mechanism noise, seeded by stage and round, so that
    no two trainings share it. When an attacker tries the rule out, generator and noise are others than the server's.
    """

    round: int
    f: int
    weights: Tensor
    client_ids: list[int]
    layout: dict[str, slice]
    generator: torch.Generator
    global_weights: Tensor | None = None
    rounds: int = 0
    input_shape: tuple[int, int, int] | None = None
    logits: Callable[[Tensor, Tensor], Tensor] | None = None
    root_update: Callable[[], Tensor] | None = None
    state: dict[str, Any] = field(default_factory=dict)
    reporter: Callable[[dict[str, Any]], None] | None = None
    noise: torch.Generator | None = None

    def report(
        self,
        *,
        kept: Sequence[int] | Tensor | None = None,
        weights: Sequence[float] | Tensor | None = None,
        **facts: Any,
    ) -> None:
        """Tell the engine what was decided, for the detection scores.

        kept: the rows that entered the result, as positions or a boolean mask. weights: (n,) non-negative, for
        rules that weigh rows instead: a row below half of an equal share counts as found malicious.
        """
        if self.reporter is not None:
            if kept is None and weights is not None:
                given = [float(w) for w in weights]
                kept = [i for i, w in enumerate(given) if w >= sum(given) / (2 * len(given))]
            self.reporter({"kept": kept, **facts})

    def with_rows(self, weights: Tensor, client_ids: list[int], f: int | None = None) -> AggregationContext:
        """The context for other rows, for pre-aggregators that merge or drop some."""
        return replace(self, weights=weights, client_ids=client_ids, f=self.f if f is None else f)


class Aggregator(Plugin):
    """A rule that turns n updates into one. Call an instance directly for a default context.

    A rule declares these, as class variables, or as properties where they follow from a parameter:

    - `sum_only`: the result follows from the weighted sum of the updates alone.
    - `accepts_empty`: it is also called in a round without a usable update.
    - `follows_clients`: it needs to know whose row a row is. Refused behind a pre-aggregator that `merges_clients`.
    - `trusts`: the numbers of the clients that it takes for honest, which must take part in every round. Refused where
      one of them is malicious.
    - `sets_weights`: it returns aim - global_weights. Refused with any server optimiser other than fedavg with lr 1,
      as it would not arrive at the aim.
    - `remembers_clients`: what it has learned of clients decides later rounds. Refused with a compressor that
      fine-tunes, as rules begin anew for fine-tuning.
    - `perturbs_weights`: what `inference` deploys changes the parameters. Refused with a compressor whose network has
      no gradients, as its weights are not parameters.
    """

    kind: ClassVar[str] = "aggregator"
    pre: ClassVar[bool] = False
    sum_only: ClassVar[bool] = False
    accepts_empty: ClassVar[bool] = False  # updates are (0, d) then
    follows_clients: ClassVar[bool] = False
    sets_weights: ClassVar[bool] = False
    remembers_clients: ClassVar[bool] = False
    perturbs_weights: ClassVar[bool] = False
    trusts: ClassVar[tuple[int, ...]] = ()

    @property
    def data_access(self) -> Literal["none", "public", "private"]:
        """none, public (data the scenario declares unprotected) or private: where a root dataset comes from."""
        return "none"

    @property
    def root_records(self) -> int:
        """Records in the root dataset behind `context.root_update`; 0: there is none."""
        return 0

    def check(self, n: int, f: int) -> tuple[int, int]:
        """Raises PluginError where the rule's conditions on n and f fail; returns (n, f) for what follows."""
        return n, f

    def check_clients(self, client_ids: Sequence[int]) -> None:
        """Raises PluginError where the rule needs to know whose row a row is and several clients share one."""
        from harness.errors import PluginError

        if self.follows_clients and MERGED in client_ids:
            raise PluginError(
                f"{self.name} follows single clients, and a row here is made of several: no pre-aggregator that "
                "merges clients may stand before it"
            )

    def with_fewer(self, dropped: int) -> Self:
        """The rule to use after `dropped` rows were left out: its own f, where it has one, is lower by as many."""
        own = getattr(self, "f", None)
        return self.model_copy(update={"f": max(0, own - dropped)}) if own is not None and dropped else self

    @abstractmethod
    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        """updates (n, d), never mutated; returns (d,)."""

    def inference(self, model: nn.Module) -> nn.Module:
        """The model as deployed, for rules that are part of a certified or smoothed classifier."""
        return model

    def __call__(self, updates: Tensor, f: int | None = None, **context: Any) -> Tensor:
        """updates (n, d) -> (d,) in a default context, rows that are not finite dropped. Raises PluginError."""
        rule, rows, known = finite_rows(self, updates, default_context(self, updates, f, **context))
        return rule.aggregate(rows, known)


class PreAggregator(Aggregator):
    """A rule that turns n updates into n' better ones, for the next rule of the chain.

    `merges_clients` declares that a row it returns may belong to several clients: its id is then MERGED.
    `mixes_clients` declares that a row keeps its client's id but also holds others' updates: which rows later rules
    leave out then says nothing about clients.
    """

    pre: ClassVar[bool] = True
    merges_clients: ClassVar[bool] = False
    mixes_clients: ClassVar[bool] = False

    @abstractmethod
    def transform(self, updates: Tensor, context: AggregationContext) -> tuple[Tensor, AggregationContext]:
        """updates (n, d), never mutated; returns ((n', d), the context for n' rows)."""

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        """The mean of the transformed rows, weighted as the returned context says."""
        rows, after = self.transform(updates, context)
        return after.weights.to(rows.dtype) @ rows

    def __call__(self, updates: Tensor, f: int | None = None, **context: Any) -> Tensor:
        """updates (n, d) -> (n', d) in a default context, rows that are not finite dropped. Raises PluginError."""
        rule, rows, known = finite_rows(self, updates, default_context(self, updates, f, **context))
        return rule.transform(rows, known)[0]


def rows_finite(updates: Tensor) -> Tensor:
    """updates (n, d) -> (n,) bool: whether a row holds neither NaN nor infinity."""
    # Row sums are many times faster than looking at every value, and a finite sum proves a finite row.
    finite = updates.sum(1).isfinite()
    return finite if bool(finite.all()) else updates.isfinite().all(dim=1)


RuleT = TypeVar("RuleT", bound=Aggregator)


def finite_rows(
    rule: RuleT, updates: Tensor, context: AggregationContext, finite: Tensor | None = None
) -> tuple[RuleT, Tensor, AggregationContext]:
    """Drops the rows that hold NaN or infinity: f falls by as many, and the remaining weights sum to 1.

    The rule's own f is lowered too, where it has one. finite: `rows_finite(updates)`, where it is known already.
    Raises PluginError where no row is finite.
    """
    from harness.errors import PluginError

    finite = rows_finite(updates) if finite is None else finite
    left = int(finite.sum())
    if left == len(updates):
        return rule, updates, context
    if not left:
        raise PluginError(f"{rule.name}: none of the {len(updates)} updates is finite")
    weights = context.weights[finite.to(context.weights.device)]
    total = weights.sum()
    weights = weights / total if total > 0 else weights.new_full((left,), 1 / left)
    ids = [i for i, ok in zip(context.client_ids, finite.tolist(), strict=True) if ok]
    lost = len(updates) - left
    return rule.with_fewer(lost), updates[finite], context.with_rows(weights, ids, max(0, context.f - lost))


def default_context(
    aggregator: Aggregator, updates: Tensor, f: int | None = None, **given: Any
) -> AggregationContext:
    """A context for one call outside a federation: uniform weights, round 0, the rule's own f if it has one.

    updates (n, d), n >= 1. given: further fields of the context, which replace these defaults. Raises PluginError for
    updates of another form, for an f outside [0, n), and where the rule does not tolerate f among n.
    """
    import torch

    from harness.errors import PluginError

    if not isinstance(updates, torch.Tensor):
        raise PluginError(f"updates must be a torch tensor (n, d), not {type(updates).__name__}")
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
