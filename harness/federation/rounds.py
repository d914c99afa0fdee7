"""Federated rounds: who takes part, what they send, how the server combines it.

Order within a round: local training → defences' `update` → update compressor encode/decode → attackers
craft → pre-aggregators → aggregator → server optimiser. Rows that are not finite are dropped and counted,
and f falls by as many.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from harness.contracts.aggregator import AggregationContext, Aggregator
from harness.contracts.attack import ByzantineAttack, ByzantineContext
from harness.contracts.compressor import UpdateCompressor
from harness.errors import PluginError
from harness.federation.counts import tolerated
from harness.federation.local import Client, LocalTrainer
from harness.federation.server import Server
from harness.federation.vector import buffer_names, flatten, float_buffers, load_buffers, load_vector
from harness.random import torch_generator

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass
class Rules:
    """How the server turns updates into a step, and who attacks it."""

    aggregators: tuple[Aggregator, ...]
    tolerance: float
    weighting: str
    buffers: str
    server: Any
    compressors: tuple[UpdateCompressor, ...] = ()
    byzantine: ByzantineAttack | None = None
    knowledge: str | None = None
    malicious: tuple[int, ...] = ()


@dataclass
class Outcome:
    """What a training leaves behind, beside the weights in its module."""

    history: list[dict[str, Any]] = field(default_factory=list)
    uplink_bytes: int = 0  # sum over rounds and clients
    downlink_bytes: int = 0
    messages: int = 0
    dropped: int = 0  # updates dropped as not finite
    seconds: float = 0.0  # training alone, without evaluation


class Federation:
    """Runs rounds over clients, one client after another."""

    def __init__(
        self,
        module: nn.Module,
        clients: list[Client],
        trainer: LocalTrainer,
        rules: Rules,
        seed: int,
        noise_seed: str,
    ) -> None:
        self.module = module
        self.clients = clients
        self.trainer = trainer
        self.rules = rules
        self.seed = seed
        self.noise_seed = noise_seed
        self.device = trainer.device
        self.layout = trainer.layout
        self._buffer_names = buffer_names(module)
        self.outcome = Outcome()
        self._chain_state: list[dict[str, Any]] = [{} for _ in rules.aggregators]
        self._wire_state: dict[tuple[int, int], dict[str, Any]] = {}
        self._attack_state: dict[str, Any] = {}

    def run(
        self,
        schedule: list[list[int]],
        multiplier: Callable[[int], float],
        evaluate: Callable[[int], dict[str, float]] | None,
        report: Callable[[int, int, dict[str, Any]], None],
    ) -> Outcome:
        """Train in place. schedule: the clients of each round. evaluate(round) -> scores, or {} to skip."""
        weights = flatten(self.module)
        buffers = float_buffers(self.module, self._buffer_names)
        server = Server(self.rules.server)
        for round, ids in enumerate(schedule):
            started = time.perf_counter()
            update, facts, buffers = self._round(round, ids, weights, buffers, multiplier(round))
            weights = server.step(weights, update)
            self.outcome.seconds += time.perf_counter() - started
            load_vector(self.module, weights)
            load_buffers(self.module, buffers)
            entry = {"round": round + 1, **facts, **(evaluate(round) if evaluate else {})}
            self.outcome.history.append(entry)
            report(round + 1, len(schedule), entry)
        return self.outcome

    def _round(
        self, round: int, ids: list[int], weights: Tensor, buffers: dict[str, Tensor], multiplier: float
    ) -> tuple[Tensor, dict[str, Any], dict[str, Tensor]]:
        rules = self.rules
        byzantine = [i for i in ids if i in rules.malicious] if rules.byzantine else []
        honest = [i for i in ids if i not in byzantine]
        # Malicious clients need not train where nobody looks at what they would honestly send.
        trained = ids if not byzantine or self._needs_own() or not honest else honest
        updates: dict[int, Tensor] = {}
        client_buffers: dict[int, dict[str, Tensor]] = {}
        for i in trained:
            client = self.clients[i]
            load_buffers(self.module, client.buffers if client.buffers is not None else buffers)
            delta = self.trainer.train(client, round, multiplier, weights)
            client_buffers[i] = float_buffers(self.module, self._buffer_names)
            if rules.buffers == "local":
                client.buffers = client_buffers[i]
            updates[i] = self._wire(i, delta, weights.numel() + _size(buffers))
        if byzantine:
            self._craft(round, ids, byzantine, updates, weights)
        rows = torch.stack([updates[i] for i in ids])
        finite = rows.isfinite().all(dim=1)
        kept = [i for i, ok in zip(ids, finite.tolist(), strict=True) if ok]
        facts: dict[str, Any] = {"clients": len(ids)}
        if len(kept) < len(ids):
            facts["dropped"] = len(ids) - len(kept)
            self.outcome.dropped += len(ids) - len(kept)
        f = max(0, tolerated(len(ids), rules.tolerance) - (len(ids) - len(kept)))
        if not kept:
            return torch.zeros_like(weights), facts, buffers
        if len(kept) < len(ids):
            rows = rows[finite]
        update = self._aggregate(
            round, rows, kept, f, weights, self._chain_state, facts, len(ids) - len(kept)
        )
        return update, facts, self._merge_buffers(client_buffers, kept, buffers)

    # server -------------------------------------------------------------------------------------

    def _weights(self, ids: list[int], like: Tensor) -> Tensor:
        sizes = [self.clients[i].size if self.rules.weighting == "examples" else 1 for i in ids]
        share = torch.tensor(sizes, dtype=torch.float64)
        return (share / share.sum()).to(like)

    def _aggregate(
        self,
        round: int,
        rows: Tensor,
        ids: list[int],
        f: int,
        weights: Tensor,
        states: list[dict[str, Any]],
        facts: dict[str, Any] | None = None,
        dropped: int = 0,
    ) -> Tensor:
        def record(decision: dict[str, Any]) -> None:
            chosen = decision.get("kept")
            if facts is not None and chosen is not None:
                positions = torch.as_tensor(chosen)
                if positions.dtype == torch.bool:
                    positions = positions.nonzero().squeeze(1)
                facts["kept"] = [context.client_ids[p] for p in positions.tolist()]

        context = AggregationContext(
            round=round,
            f=f,
            weights=self._weights(ids, rows),
            client_ids=ids,
            layout=self.layout,
            generator=torch_generator(self.seed, "aggregator", round, device=self.device),
            global_weights=weights,
            reporter=record,
        )
        *pre, last = [_with_fewer(rule, dropped) for rule in self.rules.aggregators]
        for link, rule in enumerate(pre):
            context.state = states[link]
            rule.check(len(rows), context.f)
            rows, context = rule.transform(rows, context)  # type: ignore[attr-defined]
        context.state = states[-1]
        last.check(len(rows), context.f)
        update = last.aggregate(rows, context)
        if update.shape != weights.shape:
            raise PluginError(f"{last.name} returned {tuple(update.shape)}, not ({weights.numel()},)")
        if not update.isfinite().all():
            raise PluginError(f"{last.name} returned values that are not finite")
        return update

    def _merge_buffers(
        self, values: dict[int, dict[str, Tensor]], ids: list[int], before: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Float buffers averaged like a mean of updates; integer ones stay where they are."""
        ids = [i for i in ids if i in values]
        if not before or not ids:
            return before
        share = self._weights(ids, next(iter(before.values())))
        return {
            name: torch.einsum("n,n...->...", share.to(old), torch.stack([values[i][name] for i in ids]))
            for name, old in before.items()
        }

    # clients ------------------------------------------------------------------------------------

    def _wire(self, client: int, update: Tensor, plain: int) -> Tensor:
        """The update as the server receives it, and its bytes counted."""
        self.outcome.messages += 1
        self.outcome.downlink_bytes += plain * 4
        if not self.rules.compressors:
            self.outcome.uplink_bytes += plain * 4
            return update
        size = update.numel()
        for link, compressor in enumerate(self.rules.compressors):
            payload = compressor.encode(update, self._wire_state.setdefault((client, link), {}))
            update = compressor.decode(payload)
        if update.shape != (size,):
            raise PluginError(f"{compressor.name} decoded {tuple(update.shape)}, not ({size},)")
        self.outcome.uplink_bytes += payload.nbytes + (plain - size) * 4
        return update

    def _needs_own(self) -> bool:
        return self.rules.knowledge == "own" or (
            self.rules.byzantine is not None and self.rules.byzantine.uses_own
        )

    def _craft(
        self, round: int, ids: list[int], byzantine: list[int], updates: dict[int, Tensor], weights: Tensor
    ) -> None:
        """Replace the malicious clients' updates by crafted ones; what the threat does not grant is withheld."""
        rules = self.rules
        attack = rules.byzantine
        assert attack is not None
        honest_ids = [i for i in ids if i not in byzantine]
        own = torch.stack([updates[i] for i in byzantine]) if byzantine[0] in updates else None
        known = torch.stack([updates[i] for i in honest_ids]) if honest_ids else own
        f = tolerated(len(ids), rules.tolerance)

        def probe(rows: Tensor) -> Tensor:
            return self._aggregate(
                round, rows, honest_ids + byzantine, f, weights, copy.deepcopy(self._chain_state)
            )

        context = ByzantineContext(
            m=len(byzantine),
            round=round,
            generator=torch_generator(self.seed, "byzantine", round, device=self.device),
            own=own,
            n=len(ids),
            f=f,
            global_weights=weights,
            layout=self.layout,
            aggregator=probe if rules.knowledge == "omniscient" else None,
            state=self._attack_state,
        )
        honest = own if rules.knowledge == "own" else known
        if honest is None:
            raise PluginError(f"{attack.name}: no update to learn from in round {round + 1}")
        crafted = attack.craft(honest, context)
        if crafted.shape != (len(byzantine), weights.numel()):
            raise PluginError(
                f"{attack.name} crafted {tuple(crafted.shape)}, not {(len(byzantine), weights.numel())}"
            )
        updates.update(zip(byzantine, crafted.to(weights).unbind(), strict=True))


def _with_fewer(rule: Aggregator, dropped: int) -> Aggregator:
    """A rule with an f of its own is told, like the others, that dropped rows need no tolerating any more."""
    own = getattr(rule, "f", None)
    return rule.model_copy(update={"f": max(0, own - dropped)}) if own is not None and dropped else rule


def _size(buffers: dict[str, Tensor]) -> int:
    return sum(b.numel() for b in buffers.values())
