"""Federated rounds: who takes part, what they send, how the server combines it.

Order within a round: local training → defences' `update` → update compressor encode/decode → attackers
craft → pre-aggregators → aggregator → server optimiser. Rows that are not finite are dropped and counted,
and f falls by as many.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from harness.contracts.aggregator import (
    MERGED,
    AggregationContext,
    Aggregator,
    finite_rows,
    rows_finite,
)
from harness.contracts.attack import ByzantineAttack, ByzantineContext
from harness.contracts.compressor import UpdateCompressor
from harness.errors import PluginError, blamed
from harness.evaluation.predict import modes_restored
from harness.federation.counts import tolerated
from harness.federation.local import Client, LocalTrainer, Start, Task, Trained, seeded_modules
from harness.federation.outcome import Detection, Outcome
from harness.federation.returned import checked, kept_rows
from harness.federation.server import Server
from harness.federation.vector import (
    flatten,
    float_buffers,
    load_buffers,
    trainable,
    write,
)
from harness.federation.wire import Wire
from harness.pooling import cheap_pooling
from harness.random import torch_generator

if TYPE_CHECKING:
    from torch import Tensor, nn

Watch = Callable[["Start", "dict[int, Tensor]"], None]  # sees a round's updates as the server receives them


@dataclass
class Rules:
    """How the server turns updates into a step, and who attacks it.

    active: the rounds, from 0, in which malicious clients attack; in others they are honest. root: the root
    dataset as a client, for a rule that uses one.
    """

    aggregators: tuple[Aggregator, ...]
    tolerance: float
    weighting: str
    buffers: str
    server: Any
    compressors: tuple[UpdateCompressor, ...] = ()
    byzantine: ByzantineAttack | None = None
    knowledge: str | None = None
    malicious: tuple[int, ...] = ()
    active: range | None = None  # None: all
    done: int = 0  # rounds trained before
    root: Client | None = None
    input_shape: tuple[int, int, int] | None = None

    def attackers(self, round: int, ids: list[int]) -> list[int]:
        """The clients among these that attack in a round."""
        if self.active is not None and round not in self.active:
            return []
        return [i for i in ids if i in self.malicious]


@dataclass(frozen=True)
class Opened:
    """A round that has begun. byzantine: attackers that craft updates; trained: clients whose training is needed."""

    start: Start
    ids: list[int]
    attackers: list[int]
    byzantine: list[int]
    trained: list[int]
    buffers: dict[str, Tensor]


class Federation:
    """Runs rounds over clients, which its trainer trains one after another or together."""

    def __init__(
        self,
        module: nn.Module,
        clients: list[Client],
        trainer: LocalTrainer,
        rules: Rules,
        seed: int,
        noise_seed: str,
        watch: Watch | None = None,
    ) -> None:
        self.module = module
        self.clients = clients
        self.trainer = trainer
        self.rules = rules
        self.seed = seed
        self.noise_seed = noise_seed
        self.watch = watch
        self.device = trainer.device
        self.layout = trainer.layout
        self.sizes = [client.size for client in clients]  # records per client, for weighting by examples
        self.outcome = Outcome()
        self._chain_state: list[dict[str, Any]] = [{} for _ in rules.aggregators]
        self.wire = Wire(rules.compressors, trainer, seed, self.outcome, rules.buffers == "local")
        self._attack_state: dict[str, Any] = {}
        self._moved: Tensor | None = None
        self._root: tuple[int, Tensor] | None = None  # the round and its root update

    def begin(self, schedule: list[list[int]], multiplier: Callable[[int], float]) -> None:
        """Starts from the module's weights. After it, for each round: `open`, the clients' training, `close`."""
        self._schedule = schedule
        self._multiplier = multiplier
        self._global = flatten(self.module)
        self._buffers = float_buffers(self.module, self.trainer.buffer_names)
        self._kept_buffers: dict[int, dict[str, Tensor]] = {}  # by client; used where buffers stay local
        self._server = Server(self.rules.server)

    def open(self, round: int) -> Opened:
        """Who takes part in a round, and what they start from."""
        ids = self._schedule[round]
        attackers = self.rules.attackers(round, ids)
        done = self.rules.done
        start = Start(
            round=round,
            weights=self._global,
            moved=self._moved,
            multiplier=self._multiplier(round),
            rounds=done + len(self._schedule),
            done=done,
            clients=len(ids),
            malicious=len(attackers),
            share=self._share(ids, attackers),
        )
        byzantine = attackers if self.rules.byzantine else []
        honest = [i for i in ids if i not in byzantine]
        # Malicious clients need not train where nobody looks at what they would honestly send.
        trained = ids if not byzantine or self._needs_own() or not honest else honest
        return Opened(start, ids, attackers, byzantine, trained, self._buffers)

    def close(
        self, opened: Opened, updates: dict[int, Tensor], client_buffers: dict[int, dict[str, Tensor]]
    ) -> dict[str, Any]:
        """The server's half: attackers craft, rules aggregate, weights move. Returns the round's history entry.

        updates, client_buffers: of the clients `opened.trained`, as the server receives them.
        """
        start, ids = opened.start, opened.ids
        if self.watch is not None:
            self.watch(start, updates)
        if opened.byzantine:
            self._craft(start, ids, opened.byzantine, updates, self._buffers)
        rows = (
            torch.stack([updates[i] for i in ids]) if ids else start.weights.new_empty(0, len(start.weights))
        )
        finite = rows_finite(rows)
        usable = [i for i, ok in zip(ids, finite.tolist(), strict=True) if ok]
        facts: dict[str, Any] = {"round": start.round + 1, "clients": len(ids)}
        if len(usable) < len(ids):
            facts["dropped"] = len(ids) - len(usable)
            self.outcome.dropped += len(ids) - len(usable)
        with seeded_modules(self.device, self.noise_seed, "rules", start.round):
            update = self._aggregate(start, rows, finite, ids, self._buffers, self._chain_state, facts)
        if "kept" in facts or len(usable) < len(ids):
            self.outcome.detection = self.outcome.detection or Detection()
            self.outcome.detection.count(ids, set(facts.get("kept", usable)), opened.attackers)
        before, self._global = self._global, self._server.step(self._global, update)
        self._moved = self._global - before
        # Crafting attackers may have trained to see their own honest updates; they do not send what that gave.
        senders = [i for i in usable if i not in opened.byzantine]
        write(list(self.trainer.parameters.values()), self._global)
        load_buffers(self.module, self._settle_buffers(client_buffers, senders))
        return facts

    def updates(
        self, start: Start, ids: list[int], attackers: list[int], buffers: dict[str, Tensor]
    ) -> tuple[dict[int, Tensor], dict[int, dict[str, Tensor]]]:
        """Trains these clients: their updates (d,) as the server receives them, and their float buffers."""
        updates, client_buffers = self.train(start, ids, attackers, buffers)
        return self.wire.exchange(start.round, updates, buffers), client_buffers

    def train(
        self, start: Start, ids: list[int], attackers: list[int], buffers: dict[str, Tensor]
    ) -> tuple[dict[int, Tensor], dict[int, dict[str, Tensor]]]:
        """Trains these clients: their updates (d,) before they are sent, and their float buffers."""
        return self.collect(ids, self.trainer.train_all(self.tasks(start, ids, attackers, buffers)))

    def tasks(
        self, start: Start, ids: list[int], attackers: list[int], buffers: dict[str, Tensor]
    ) -> list[Task]:
        """What these clients have to train."""
        members = [self.clients[i] for i in ids]
        training = [(i in attackers and m.attacking) or m for i, m in zip(ids, members, strict=True)]
        held = [m.buffers if m.buffers is not None else buffers for m in members]
        return self.trainer.tasks(training, start, held)

    def collect(
        self, ids: list[int], trained: Sequence[Trained]
    ) -> tuple[dict[int, Tensor], dict[int, dict[str, Tensor]]]:
        """Updates and float buffers by client; each client keeps its buffers where these stay local."""
        updates: dict[int, Tensor] = {}
        client_buffers: dict[int, dict[str, Tensor]] = {}
        for i, (update, own) in zip(ids, trained, strict=True):
            updates[i], client_buffers[i] = update, own
            if self.rules.buffers == "local":
                self.clients[i].buffers = own
        return updates, client_buffers

    # server -------------------------------------------------------------------------------------

    def _weights(self, ids: list[int], like: Tensor) -> Tensor:
        sizes = [self.sizes[i] if self.rules.weighting == "examples" else 1 for i in ids]
        share = torch.tensor(sizes, dtype=torch.float64)
        return (share / share.sum()).to(like)  # empty where there are no rows

    def _share(self, ids: list[int], attackers: list[int]) -> float:
        """The attackers' part of a round's mean, in [0, 1]."""
        weights = self._weights(ids, torch.zeros((), dtype=torch.float64))
        return float(weights[[i in attackers for i in ids]].sum()) if attackers else 0.0

    def _aggregate(
        self,
        start: Start,
        rows: Tensor,
        finite: Tensor,
        ids: list[int],
        buffers: dict[str, Tensor],
        states: list[dict[str, Any]],
        facts: dict[str, Any] | None = None,
        trial: bool = False,
    ) -> Tensor:
        """Applies the chain of rules to the rows that are finite; `states` changes.

        finite (n,) bool: which rows are. facts: receives the clients kept. trial: an attacker tries out the rules. It
        cannot know the coins and the noise that the server will draw, so a trial draws others, the same in all trials
        of a round.
        """
        weights = start.weights
        purpose = ["trial"] * trial
        by: Aggregator = self.rules.aggregators[-1]  # whose turn it is
        mixed = False  # whether a row now holds updates of several clients

        def record(decision: dict[str, Any]) -> None:
            chosen = decision.get("kept")
            if facts is not None and chosen is not None:
                positions = kept_rows(chosen, len(context.client_ids), by.name)
                chosen_ids = [context.client_ids[p] for p in positions]
                # Where rows are merged or mixed, no single client was kept or left out.
                if MERGED not in context.client_ids and not mixed:
                    facts["kept"] = chosen_ids

        context = AggregationContext(
            round=start.done + start.round,
            f=tolerated(len(ids), self.rules.tolerance),
            weights=self._weights(ids, rows),
            client_ids=list(ids),
            layout=self.layout,
            generator=torch_generator(self.seed, "aggregator", start.round, *purpose, device=self.device),
            global_weights=weights.clone(),  # a copy: a rule that changes it moves no model
            rounds=start.rounds,
            input_shape=self.rules.input_shape,
            logits=self._logits(buffers),
            root_update=None if self.rules.root is None else lambda: self._root_update(start, buffers),
            reporter=record,
            noise=self.trainer.generator(
                "server noise", self.noise_seed, start.round, *purpose, device=self.device
            ),
        )
        given, *rules = self.rules.aggregators
        if not finite.any():
            last = self.rules.aggregators[-1]
            if not last.accepts_empty:
                return torch.zeros_like(weights)
            given, rules = last, []
            rows, finite, context = rows[:0], finite[:0], context.with_rows(context.weights[:0], [])
        first, rows, context = finite_rows(given, rows, context, finite)
        lost = len(ids) - len(rows)
        chain = [first, *(rule.with_fewer(lost) for rule in rules)]
        for link, rule in enumerate(chain[:-1]):
            context.state = states[link]
            rule.check_clients(context.client_ids)
            _check_left(rule, len(rows), context.f, lost)
            by = rule
            rows, context = _transformed(rule, rows, context)
            mixed |= rule.mixes_clients  # type: ignore[attr-defined]
        by = last = chain[-1]
        context.state = states[-1]
        last.check_clients(context.client_ids)
        if len(rows):
            _check_left(last, len(rows), context.f, lost)
        with blamed(last):
            update = checked(last.aggregate(rows, context), weights.shape, last.name)
        if not rows_finite(update[None]).all():
            raise PluginError(f"{last.name} returned values that are not finite")
        return update

    def _logits(self, buffers: dict[str, Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        """(weights (d,), x) -> (b, k) in eval mode, on the global buffers; the module is left as it was.

        Where buffers stay local, these are the initial ones, as the server has no others.
        """

        @torch.no_grad()
        def logits(weights: Tensor, x: Tensor) -> Tensor:
            shapes = trainable(self.module)
            values = {
                name: weights[part].view_as(shapes[name]).to(shapes[name])
                for name, part in self.layout.items()
            }
            with modes_restored(self.module), cheap_pooling(self.module):
                self.module.eval()
                return torch.func.functional_call(self.module, {**values, **buffers}, (x.to(self.device),))

        return logits

    def _root_update(self, start: Start, buffers: dict[str, Tensor]) -> Tensor:
        """What a client that holds the root dataset would honestly send; trained once a round."""
        assert self.rules.root is not None
        if self._root is None or self._root[0] != start.round:
            load_buffers(self.module, buffers)
            self._root = (start.round, self.trainer.train(self.rules.root, start))
        return self._root[1].clone()

    def _settle_buffers(self, values: dict[int, dict[str, Tensor]], senders: list[int]) -> dict[str, Tensor]:
        """The module's buffers after a round. Averaged buffers also become `_buffers`, which clients start from.

        Where buffers stay local, the server has none until the end: then every client that has taken part sends those
        of the last round in which its update counted. Until then the module gets, for evaluation only, the average as
        it would be if this round were the last; no client starts from it.
        """
        if self.rules.buffers == "local":
            self._kept_buffers |= {i: values[i] for i in senders if i in values}
            return self._merge_buffers(self._kept_buffers, sorted(self._kept_buffers), self._buffers)
        self._buffers = self._merge_buffers(values, senders, self._buffers)
        return self._buffers

    def _merge_buffers(
        self, values: dict[int, dict[str, Tensor]], ids: list[int], before: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Float buffers averaged with the weights of a mean of updates; integer ones stay where they are."""
        ids = [i for i in ids if i in values]
        if not before or not ids:
            return before
        share = self._weights(ids, next(iter(before.values())))
        return {
            name: torch.einsum("n,n...->...", share.to(old), torch.stack([values[i][name] for i in ids]))
            for name, old in before.items()
        }

    def _needs_own(self) -> bool:
        return self.rules.knowledge == "own" or (
            self.rules.byzantine is not None and self.rules.byzantine.uses_own
        )

    def _craft(
        self,
        start: Start,
        ids: list[int],
        byzantine: list[int],
        updates: dict[int, Tensor],
        buffers: dict[str, Tensor],
    ) -> None:
        """Replace the malicious clients' updates by crafted ones; what the threat does not grant is withheld."""
        rules, weights = self.rules, start.weights
        round = start.done + start.round  # of the whole training
        attack = rules.byzantine
        assert attack is not None
        honest_ids = [i for i in ids if i not in byzantine]
        own = torch.stack([updates[i] for i in byzantine]) if byzantine[0] in updates else None
        sees_others = bool(honest_ids and rules.knowledge != "own")
        known = torch.stack([updates[i] for i in honest_ids]) if sees_others else own

        def probe(rows: Tensor) -> Tensor:
            states = copy.deepcopy(self._chain_state)
            m, shown, d = len(byzantine), len(context.ids), len(weights)
            if rows.ndim != 2 or rows.shape[1] != d or len(rows) not in (shown + m, len(honest_ids) + m):
                raise PluginError(
                    f"{attack.name}: context.aggregator takes {shown + m} rows ({d},), the {shown} of `honest`, then "
                    f"the {m} crafted ones, not {tuple(rows.shape)}"
                )
            if not honest_ids:  # the attack saw its own honest updates, which are not sent
                rows = rows[-len(byzantine) :]
            order = [*honest_ids, *byzantine]
            if len(rows) < len(order):  # the server also gets updates that are not finite
                lost = [i for i in honest_ids if i not in context.ids]
                order = [*context.ids, *lost, *byzantine]
                given, sent = rows[: -len(byzantine)], rows[-len(byzantine) :]
                rows = torch.cat([given, torch.stack([updates[i] for i in lost]), sent])
            with seeded_modules(self.device, self.noise_seed, "rules", start.round, "trial"):
                return self._aggregate(start, rows, rows_finite(rows), order, buffers, states, trial=True)

        context = ByzantineContext(
            m=len(byzantine),
            round=round,
            generator=torch_generator(self.seed, "byzantine", start.round, device=self.device),
            own=own,
            n=len(ids),
            f=tolerated(len(ids), rules.tolerance),
            global_weights=weights.clone(),  # a copy: an attacker moves the model only by what it sends
            layout=self.layout,
            ids=list(byzantine if rules.knowledge == "own" or not honest_ids else honest_ids),
            aggregator=probe if rules.knowledge == "omniscient" else None,
            state=self._attack_state,
            moved=start.moved,
            sees_others=sees_others,
        )
        honest = known
        if honest is None:
            raise PluginError(f"{attack.name}: no update to learn from in round {round + 1}")
        finite = rows_finite(honest)
        if not finite.all():  # training has diverged: there is nothing to learn from such updates
            context.ids = [i for i, ok in zip(context.ids, finite.tolist(), strict=True) if ok]
            honest = honest[finite]
        if not len(honest):
            updates.update({i: torch.zeros_like(weights) for i in byzantine})
            return
        shape = (len(byzantine), weights.numel())
        with blamed(attack), seeded_modules(self.device, self.seed, "byzantine", start.round):
            crafted = checked(attack.craft(honest, context), shape, attack.name, whole=True)
        updates.update(zip(byzantine, crafted.to(weights).unbind(), strict=True))


def _check_left(rule: Aggregator, n: int, f: int, lost: int) -> None:
    """The rule's own check of the n rows left, which also says how many were `lost`, as nobody planned with those."""
    try:
        rule.check(n, f)
    except PluginError as error:
        if not lost:
            raise
        raise PluginError(
            f"{error}; of {n + lost} updates, {lost} had to be dropped as not finite"
        ) from error


def _transformed(
    rule: Aggregator, rows: Tensor, context: AggregationContext
) -> tuple[Tensor, AggregationContext]:
    """What a pre-aggregator makes of the rows. Raises PluginError unless that is rows and their context."""
    with blamed(rule):
        found = rule.transform(rows, context)  # type: ignore[attr-defined]
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], AggregationContext)):
        raise PluginError(f"{rule.name} returned {type(found).__name__}, not (updates, context)")
    after: AggregationContext = found[1]
    return checked(found[0], (len(after.client_ids), rows.shape[1]), rule.name), after
