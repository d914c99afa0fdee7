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

    round: from 0, fine-tuning counted on; rounds: how many there will be, 0 where nobody knows. f: Byzantine clients
    to tolerate among these rows. weights: (n,), sum 1. client_ids: whose row it is; MERGED for one of several clients.
    layout: parameter name -> slice of d, in the network's order. generator: on the updates' device.
    global_weights (d,): what the clients started from; a rule that declares `sets_weights` may aim at weights by
    returning aim - global_weights (the default server optimiser, fedavg with lr 1, then arrives there).
    state: this rule's own dictionary, kept between rounds; empty in the first, and in the first of fine-tuning.
    logits: (weights (d,), x (b, c, h, w)) -> (b, k), the network with these weights in eval mode.
    root_update: only for rules that declare `root_records`: the update (d,) that a client holding the root
    dataset would honestly send this round. noise: for mechanism noise, seeded by stage and round, so that no two
    trainings share it. An attacker's trial of the rule gets another generator and other noise.
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

    What it declares, as class variables, or as properties where they follow from a parameter: `sum_only`, that the
    result follows from the weighted sum of the updates alone; `accepts_empty`, that it is also called in a round
    without a usable update; `follows_clients`, that it needs to know whose row a row is: it is refused behind a
    pre-aggregator that `merges_clients`; `trusts`, the numbers of clients that it takes for honest, who must take
    part in every round: it is refused where one is malicious; `sets_weights`, that it returns aim - global_weights:
    it is refused with another server optimiser than fedavg with lr 1, which would not arrive at the aim;
    `remembers_clients`, that what it has learned of clients decides later rounds: it is refused before a compressor
    that fine-tunes, for which rules begin anew; `perturbs_weights`, that what `inference` deploys changes the
    parameters: it is refused with a compressor whose network has no gradients, as its weights are no parameters.
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
        """The rule once `dropped` rows need no tolerating any more: with a lower f of its own, where it has one."""
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

    `merges_clients` declares that a row it returns belongs to no single client: its id is MERGED. `mixes_clients`, that
    a row keeps its client's id but holds others' updates too: what later rules leave out then says nothing of clients.
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
    # Many times faster than looking at every value, and sure where it says yes.
    finite = updates.sum(1).isfinite()
    return finite if bool(finite.all()) else updates.isfinite().all(dim=1)


RuleT = TypeVar("RuleT", bound=Aggregator)


def finite_rows(
    rule: RuleT, updates: Tensor, context: AggregationContext, finite: Tensor | None = None
) -> tuple[RuleT, Tensor, AggregationContext]:
    """Without the rows that hold NaN or infinity: f falls by as many, the remaining weights sum to 1.

    The rule comes back with its own f lowered too, where it has one. finite: `rows_finite(updates)`, where it is known.
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

    updates (n, d), n >= 1. given: further fields of the context, in the place of these. Raises PluginError for updates
    of another form, an f outside [0, n), and where the rule does not tolerate f among n.
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
