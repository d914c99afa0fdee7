"""SecAgg+ for exported cells that declare secure aggregation: the server learns the mean of a round and nothing else.

Flower runs the protocol (Bell et al. 2020): `SecAggPlusWorkflow` on the server, `secaggplus_mod` at the clients. Both
belong to its older API, but they speak through the same Grid and wrap the same ClientApps, so all that is needed is to
hand them what they expect: a strategy's FitIns and FitRes. What is masked is a client's update, quantised to
QUANTISATION levels in [-CLIPPING, CLIPPING]; its weight is the number of its records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from harness.errors import PluginError
from harness.flower import messages
from harness.flower.strategy import FederationStrategy, NodesLost

if TYPE_CHECKING:
    from flwr.serverapp import Grid
    from torch import Tensor

    from harness.federation.rounds import Opened

CLIPPING = 8.0
QUANTISATION = 2**22
FEWEST = 3  # clients in a round: of two, each knows the other's update once it knows the mean


class SecureStrategy(FederationStrategy):
    """A FederationStrategy whose rounds run SecAgg+: in place of each update, rules see the mean of all.

    A rule that declares `sum_only` gives the same result for these rows as for the true ones.
    """

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        for rule in self.federation.rules.aggregators:
            if not rule.sum_only:
                raise PluginError(
                    f"{rule.name} needs every update; under secure aggregation there is only their sum"
                )
        opened = self._begin(server_round, grid)
        if len(opened.ids) < FEWEST:
            raise NodesLost(f"secure aggregation needs {FEWEST} clients in a round, not {len(opened.ids)}")
        mean, present = self._protocol(grid, opened, server_round)
        missing = [i for i in opened.ids if i not in present]
        self._gone |= set(missing)
        self._opened = self._without(opened, missing, ["left the protocol"]) if missing else opened
        self._mean = mean
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        assert self._opened is not None
        return self._close(self._opened, dict.fromkeys(self._opened.ids, self._mean), {})

    def _protocol(self, grid: Grid, opened: Opened, server_round: int) -> tuple[Tensor, set[int]]:
        """Runs one round of SecAgg+: the weighted mean (d,) of the updates, and the clients that sent them."""
        from flwr.common import FitIns, ndarrays_to_parameters, parameters_to_ndarrays
        from flwr.server import LegacyContext
        from flwr.server.workflow import SecAggPlusWorkflow

        start = opened.start
        received: list[tuple[np.ndarray, set[int]]] = []
        clients = {self.nodes[i]: i for i in opened.ids}
        arrays = [start.weights.cpu().numpy()] + ([] if start.moved is None else [start.moved.cpu().numpy()])
        facts = messages.facts_of(start, self.discreet)

        def configure_fit(*_: Any) -> list[Any]:
            return [
                (
                    SimpleNamespace(node_id=self.nodes[i]),
                    FitIns(ndarrays_to_parameters(arrays), {**facts, "client": i, **self.extra(i)}),
                )
                for i in opened.ids
            ]

        def aggregate_fit(_: int, results: list[Any], failures: list[Any]) -> tuple[None, dict[str, Any]]:
            mean = parameters_to_ndarrays(results[0][1].parameters)[0]
            received.append((mean, {clients[proxy.node_id] for proxy, _ in results}))
            return None, {}

        strategy: Any = SimpleNamespace(configure_fit=configure_fit, aggregate_fit=aggregate_fit)
        manager: Any = SimpleNamespace(num_available=lambda: len(self.nodes))
        context = LegacyContext(self.context, strategy=strategy, client_manager=manager)
        context.state = RecordDict({"config": ConfigRecord({"current_round": server_round})})
        context.state["parameters"] = ArrayRecord({})
        sizes = self.federation.sizes if self.federation.rules.weighting == "examples" else [1]
        workflow = SecAggPlusWorkflow(
            num_shares=1.0,
            reconstruction_threshold=0.6,
            max_weight=float(max(sizes)),
            clipping_range=CLIPPING,
            quantization_range=QUANTISATION,
            timeout=self.timeout,
        )
        workflow(grid, context)
        if not received:
            raise NodesLost(f"round {server_round}: too few clients stayed for secure aggregation")
        mean, present = received[0]
        return torch.from_numpy(np.asarray(mean)).to(start.weights), present


def unwrap(message: Message) -> Message:
    """Turns what `secaggplus_mod` passes on into a plain round's message: the same object, with other content."""
    config = dict(message.content.config_records["fitins.config"])
    sent = list(message.content.array_records["fitins.parameters"].values())
    arrays = {name: Array(array.numpy()) for name, array in zip(("weights", "moved"), sent, strict=False)}
    content = RecordDict({messages.CONFIG: ConfigRecord({**config, "attacks": False})})
    content[messages.ARRAYS] = ArrayRecord(arrays)
    message.content = content
    return message


def wrap(reply: Message, weighting: str) -> Message:
    """Turns a plain answer, in place, into the form that `secaggplus_mod` masks: the update and its weight.

    Raises PluginError for buffers, and for an update that is not finite or leaves [-CLIPPING, CLIPPING].
    """
    update, buffers = messages.read_update(reply.content, "cpu")
    if buffers:
        raise PluginError(
            "buffers such as BatchNorm's cannot be averaged under secure aggregation: take a model without them"
        )
    if not bool(update.isfinite().all()):
        raise PluginError("an update that is not finite cannot be quantised for secure aggregation")
    if float(update.abs().max()) > CLIPPING:
        raise PluginError(
            f"an update beyond {CLIPPING} in magnitude cannot be quantised for secure aggregation"
        )
    metrics: dict[str, Any] = dict(reply.content.metric_records[messages.METRICS])
    examples = metrics["num-examples"] if weighting == "examples" else 1
    content = RecordDict({"fitres.parameters": ArrayRecord({"0": Array(update.numpy())})})
    content["fitres.num_examples"] = MetricRecord({"num_examples": examples})
    content["fitres.metrics"] = ConfigRecord({})
    content["fitres.status"] = ConfigRecord({"code": 0, "message": ""})
    reply.content = content
    return reply


def mask(message: Message, context: Context, train: Callable[[Message, Context], Message]) -> Message:
    """A client's side of the protocol; `train` is called in the stage that asks for the update."""
    from flwr.client.mod import secaggplus_mod

    return secaggplus_mod(message, context, train)
