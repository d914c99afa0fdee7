"""Rules of this harness as Strategies of other people's Flower apps."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from harness.contracts.aggregator import AggregationContext, Aggregator, finite_rows, rows_finite
from harness.errors import PluginError
from harness.random import secret_generator, torch_generator

if TYPE_CHECKING:
    from torch import Tensor

STATISTICS = ("running_mean", "running_var")  # PyTorch's names for what normalisation layers keep


class RuleStrategy(FedAvg):
    """FedAvg with a chain of this harness's rules in the place of its mean.

    Clients may return any arrays, whole models for instance: an update is what a client returned minus what it was
    sent, over the floating-point arrays that are trained; integers (batch counters) stay as they were sent. buffers:
    the arrays that are not trained, by their names or endings of these; as in the engine the rules do not see them,
    and they become their mean over clients, weighted by examples. No rule protects that mean: a Byzantine client can
    move it. Sampling, evaluation and metrics are FedAvg's; options: its arguments. f: Byzantine clients to
    tolerate in a round; None: each rule's own, or else the first that another rule has, or 0. State of rules is kept
    between rounds. Rows are in the order of the nodes' ids. seed: what random rules draw from, with the round; whoever
    knows it knows a rule's noise. None: a secret of 256 bits, see `harness.random.secret_generator`.
    """

    def __init__(
        self,
        rules: Sequence[Aggregator],
        f: int | None = None,
        seed: int | None = None,
        buffers: Sequence[str] = STATISTICS,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.rules = tuple(rules)
        own = next((value for rule in self.rules if (value := getattr(rule, "f", None)) is not None), 0)
        self.f = own if f is None else f
        names = [buffers] if isinstance(buffers, str) else buffers
        # An ending begins where a word does: "3" is no ending of "13".
        self._buffers = re.compile("|".join(rf"(?:^|.*[^0-9A-Za-z]){re.escape(name)}" for name in names))
        self._seed: int | str = secrets.token_hex(32) if seed is None else seed
        self._generator = secret_generator if seed is None else torch_generator
        self._states: list[dict[str, Any]] = [{} for _ in self.rules]
        self._sent: ArrayRecord | None = None

    def summary(self) -> None:
        from flwr.common import log

        log(20, "\t├──> Rules: %s, f = %d", " + ".join(rule.label() for rule in self.rules), self.f)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._sent = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Raises PluginError where the rules refuse these replies."""
        valid, _ = self._check_and_log_replies(replies, is_train=True)
        if not valid or self._sent is None:
            return None, None
        valid = sorted(valid, key=lambda reply: reply.metadata.src_node_id)  # whichever came first
        contents = [reply.content for reply in valid]
        sent = self._sent.to_torch_state_dict()
        returned = [next(iter(content.array_records.values())).to_torch_state_dict() for content in contents]
        floats = [name for name, value in sent.items() if value.is_floating_point()]
        moving = [name for name in floats if not self._buffers.fullmatch(name)]
        layout, start = {}, 0
        for name in moving:
            layout[name] = slice(start, start + sent[name].numel())
            start += sent[name].numel()
        if not moving:
            raise PluginError("there is no trained floating-point array to aggregate")
        before = flat(sent, moving)
        updates = torch.stack([flat(model, moving) for model in returned]) - before
        examples = [
            float(next(iter(content.metric_records.values()))[self.weighted_by_key])  # type: ignore[arg-type]
            for content in contents
        ]
        weights = torch.tensor(examples, dtype=updates.dtype)
        ids = [reply.metadata.src_node_id for reply in valid]
        after = before + self._aggregate(
            server_round - 1, updates, weights / weights.sum(), ids, layout, before
        )
        counted = [i for i, finite in enumerate(rows_finite(updates)) if finite]  # as in the engine
        statistics = {
            name: _mean(sent[name], [returned[i][name] for i in counted], weights[counted])
            for name in floats
            if name not in layout
        }
        model = {
            name: after[layout[name]].view_as(value).to(value.dtype)
            if name in layout
            else statistics.get(name, value)
            for name, value in sent.items()
        }
        return ArrayRecord(model), self.train_metrics_aggr_fn(contents, self.weighted_by_key)

    def _aggregate(
        self,
        round: int,
        rows: Tensor,
        weights: Tensor,
        ids: list[int],
        layout: dict[str, slice],
        before: Tensor,
    ) -> Tensor:
        context = AggregationContext(
            round=round,
            f=self.f,
            weights=weights,
            client_ids=ids,
            layout=layout,
            generator=self._generator(self._seed, "aggregator", round),
            global_weights=before,
            noise=self._generator(self._seed, "server noise", round),
        )
        first, kept, context = finite_rows(self.rules[0], rows, context)
        chain = [first, *(rule.with_fewer(len(rows) - len(kept)) for rule in self.rules[1:])]
        for rule, state in zip(chain, self._states, strict=True):
            context.state = state
            rule.check(len(kept), context.f)
            if rule is chain[-1]:
                return rule.aggregate(kept, context)
            kept, context = rule.transform(kept, context)  # type: ignore[attr-defined]
        raise AssertionError("a chain has a last rule")


def _mean(before: Tensor, values: list[Tensor], weights: Tensor) -> Tensor:
    """The weighted mean of the finite values; with equal weights if all are 0, and `before` if no value is finite."""
    found = [(v, w) for v, w in zip(values, weights.double(), strict=True) if bool(v.isfinite().all())]
    if not found:
        return before
    share = torch.stack([w for _, w in found])
    share = share / share.sum() if share.sum() > 0 else torch.full_like(share, 1 / len(share))
    stacked = torch.stack([v.double() for v, _ in found])
    return torch.einsum("n,n...->...", share, stacked).to(before.dtype)


def flat(model: dict[str, Tensor], names: list[str]) -> Tensor:
    """These arrays as one vector, in their widest type, at least float32."""
    dtype = torch.float64 if any(model[n].dtype == torch.float64 for n in names) else torch.float32
    return torch.cat([model[name].reshape(-1).to(dtype) for name in names])
