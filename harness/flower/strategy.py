"""A training's server half as a Flower Strategy: the same rounds, rules and attackers as in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from harness.errors import HarnessError
from harness.federation.rounds import Federation, Opened
from harness.flower import messages

if TYPE_CHECKING:
    from torch import Tensor

    from harness.training import Ready

Report = Callable[[int, int, dict[str, Any]], None]


class NodesLost(HarnessError):
    """Too few clients answered in a round for it to count."""


class RemoteAttackers(Federation):
    """A federation whose attackers craft their updates in a malicious client's app.

    The app gets what the threat grants them, and nothing else, over a side channel that only simulations have.
    """

    ask: Callable[[int, RecordDict], RecordDict] | None = None  # (client, content) -> its answer

    def _craft(
        self,
        start: Any,
        ids: list[int],
        byzantine: list[int],
        updates: dict[int, Tensor],
        buffers: dict[str, Tensor],
    ) -> None:
        assert self.ask is not None
        knowledge = self.rules.knowledge
        told = byzantine if knowledge == "own" else ids
        known = {i: updates[i] for i in told if i in updates}
        channel = {
            "ids": ids,
            "byzantine": byzantine,
            "updates": known,
            "chain": self._chain_state if knowledge == "omniscient" else None,
            "memory": self._attack_state,
        }
        leader = byzantine[0]  # the malicious clients collude: one crafts for all of them
        content = messages.start_record(
            start, buffers, leader, attacks=True, channel=messages.to_bytes(channel)
        )
        answer = messages.from_bytes(messages.settings(self.ask(leader, content))["channel"])
        self._attack_state = answer["memory"]
        updates.update({i: row.to(start.weights) for i, row in answer["updates"].items()})

    def craft_here(self, content: RecordDict) -> RecordDict:
        """The malicious client's side of `_craft`."""
        start, buffers = messages.read_start(content, self.device)
        channel = messages.from_bytes(messages.settings(content)["channel"])
        updates, byzantine = channel["updates"], channel["byzantine"]
        if channel["chain"] is not None:
            self._chain_state = channel["chain"]
        self._attack_state = channel["memory"]
        super()._craft(start, channel["ids"], byzantine, updates, buffers)
        answer = {"updates": {i: updates[i] for i in byzantine}, "memory": self._attack_state}
        return RecordDict({messages.CONFIG: ConfigRecord({"channel": messages.to_bytes(answer)})})


class FederationStrategy(Strategy):
    """Runs `ready.federation` over a Grid. nodes: client -> the node that plays it (several may share one).

    strict: a client that does not answer ends the training (a simulation's numbers must not depend on luck);
    otherwise the round goes on with those that did, and a silent client is not asked again. report(done, total,
    entry): called after each round. extra(client): further plain values for a client. discreet: who takes part in a
    round is neither sent nor reported.
    """

    def __init__(
        self,
        ready: Ready,
        nodes: dict[int, int],
        report: Report,
        *,
        strict: bool = True,
        timeout: float = 3600.0,
        extra: Callable[[int], dict[str, Any]] = lambda client: {},
        discreet: bool = False,
    ) -> None:
        self.ready = ready
        self.federation = ready.federation
        self.nodes = nodes
        self.report = report
        self.strict = strict
        self.timeout = timeout
        self.extra = extra
        self.discreet = discreet
        self._opened: Opened | None = None
        self._gone: set[int] = set()  # clients that left a round without an answer
        self._entry: dict[str, Any] = {}
        self._started = 0.0
        self.context: Any = None  # the ServerApp's, for strategies that need it

    def train(self, grid: Grid) -> Result:
        """All rounds. Raises NodesLost, and what the rules raise."""
        self.federation.begin(self.ready.schedule, self.ready.multiplier)
        return self.start(
            grid, self._arrays(), len(self.ready.schedule), self.timeout, evaluate_fn=self._evaluate
        )

    # flwr.serverapp.strategy.Strategy --------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._opened = self._begin(server_round, grid)
        if isinstance(self.federation, RemoteAttackers):
            self.federation.ask = lambda client, content: self._ask(grid, client, content)
        return self._messages(self._opened)

    def _begin(self, server_round: int, grid: Grid) -> Opened:
        """Opens the round, unless `strict` without the clients that are no longer there."""
        self._started = time.perf_counter()
        opened = self.federation.open(server_round - 1)
        if self.strict:
            return opened
        here = set(grid.get_node_ids())
        away = [i for i in opened.ids if i in self._gone or self.nodes[i] not in here]
        return self._without(opened, away, ["no longer connected"]) if away else opened

    def _messages(self, opened: Opened) -> list[Message]:
        found = []
        for client in opened.trained:
            content = messages.start_record(
                opened.start,
                opened.buffers,
                client,
                client in opened.attackers,
                self.discreet,
                **self.extra(client),
            )
            found.append(Message(content, dst_node_id=self.nodes[client], message_type=messages.TRAIN))
        return found

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        opened, device = self._opened, self.federation.device
        assert opened is not None
        received: dict[int, RecordDict] = {}
        failed: dict[int, str] = {}
        for reply in replies:
            if reply.has_error():
                failed[reply.metadata.src_node_id] = str(reply.error.reason)
            else:
                received[messages.settings(reply.content)["client"]] = reply.content
        missing = [i for i in opened.trained if i not in received]
        self._gone |= {i for i in missing if self.nodes[i] not in failed}  # silent: not waited for again
        if missing:
            opened = self._without(opened, missing, [f"node {n}: {why}" for n, why in failed.items()])
        updates, buffers = {}, {}
        for i in opened.trained:  # in the schedule's order: sums of floats depend on it
            updates[i], buffers[i] = messages.read_update(received[i], device)
        updates = self.federation.wire.exchange(opened.start.round, updates, opened.buffers)
        return self._close(opened, updates, buffers)

    def _close(
        self, opened: Opened, updates: dict[int, Tensor], buffers: dict[int, dict[str, Tensor]]
    ) -> tuple[ArrayRecord, MetricRecord]:
        self._entry = self.federation.close(opened, updates, buffers)
        lost = [i for i in self.ready.schedule[opened.start.round] if i not in opened.ids]
        if lost:
            self._entry["lost"] = lost
        elapsed = time.perf_counter() - self._started
        self.federation.outcome.seconds += elapsed
        self.federation.outcome.elapsed += elapsed
        return self._arrays(), MetricRecord({} if self.discreet else {"clients": len(opened.ids)})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return []  # the model is evaluated in the ServerApp

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None

    def summary(self) -> None:
        from flwr.common import log

        names = " + ".join(rule.name for rule in self.federation.rules.aggregators)
        log(20, "\t└──> %s over %d clients", names, len(self.nodes))

    # parts -------------------------------------------------------------------------------------------

    def _evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round == 0:
            return None
        scores = self.ready.evaluate(server_round - 1)
        told = {"round": self._entry["round"]} if self.discreet else self._entry
        entry = told | scores
        self.federation.outcome.history.append(entry)
        self.report(server_round, len(self.ready.schedule), entry)
        return MetricRecord({**scores}) if scores else None

    def _without(self, opened: Opened, missing: list[int], reasons: list[str]) -> Opened:
        why = "; ".join(reasons) or f"no answer within {self.timeout:g} s"
        left = [i for i in opened.ids if i not in missing]
        if self.strict or not left:
            raise NodesLost(f"round {opened.start.round + 1}: clients {missing} did not answer ({why})")
        return replace(
            opened,
            ids=left,
            attackers=[i for i in opened.attackers if i in left],
            byzantine=[i for i in opened.byzantine if i in left],
            trained=[i for i in opened.trained if i in left],
        )

    def _ask(self, grid: Grid, client: int, content: RecordDict) -> RecordDict:
        message = Message(content, dst_node_id=self.nodes[client], message_type=messages.CRAFT)
        for reply in grid.send_and_receive([message], timeout=self.timeout):
            if reply.has_error():
                raise NodesLost(f"the attackers' app failed: {reply.error.reason}")
            return reply.content
        raise NodesLost(f"the attackers' app did not answer within {self.timeout:g} s")

    def _arrays(self) -> ArrayRecord:
        return messages.arrays(dict(self.federation.module.state_dict()))
