"""Any Strategy of Flower as a rule."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import model_validator

from harness.api import AggregationContext, Aggregator, Field, PluginError, Reference, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

# Arguments of Flower's FedAvg that decide who takes part, or that are functions: both are the harness's affair.
OURS = (
    "fraction_train", "fraction_evaluate", "min_train_nodes", "min_evaluate_nodes", "min_available_nodes",
    "weighted_by_key", "arrayrecord_key", "configrecord_key", "train_metrics_aggr_fn", "evaluate_metrics_aggr_fn",
)  # fmt: skip
FEWEST = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")
REFUSED = {
    "train_loss_key": "weighs clients by their training loss, which a rule is not told",
    "strategy": "wraps another strategy; the harness has such noise as defences, dp-fedavg for instance",
    "proximal_mu": "asks clients to train otherwise, which a rule cannot; take FedAvg and federation.local.proximal",
}
TOLD = {"server-round"}  # what every strategy of Flower tells clients, which need not heed it
EXAMPLES = "num-examples"


class FlowerStrategy(Aggregator):
    """A Strategy of Flower's message API, run unchanged: what it makes of clients that return global + update.

    Any class of `flwr.serverapp.strategy`, or one of yours as `package.module:Class`. `options` go to its
    constructor and are checked against its signature; who takes part, and when, is the federation's to say. A
    `num_malicious_nodes` that is not given is the f of the round. A strategy keeps its state over the rounds
    (FedAdam's moments). Weights reach it as the number of examples, models as float64, so that nothing is rounded.
    With the server optimiser fedavg, lr 1, the new global model is the strategy's own.

    updates (n, d) -> (d,). Needs `context.global_weights`, else the origin. Raises PluginError where the
    strategy skips the round, leaves clients out of its messages, tells them how to train (a rule is asked when they
    have trained), or raises. Costs O(s), with s the strategy's own work on n models of d numbers.
    """

    name: ClassVar[str] = "flower"
    reference: ClassVar[Reference | None] = Reference(
        title="Flower: A Friendly Federated Learning Research Framework",
        authors="Beutel et al.",
        venue="arXiv 2007.14390",
        year=2020,
        url="https://arxiv.org/abs/2007.14390",
    )
    requires: ClassVar[tuple[str, ...]] = ("flwr.serverapp.strategy",)
    extras: ClassVar[dict[str, str]] = {"flwr": "psr-harness[flower]"}

    strategy: str = Field(
        description="a class of flwr.serverapp.strategy, or module:Class", examples=["FedMedian"]
    )
    options: dict[str, int | float | bool | str] = Field(
        default_factory=dict, description="arguments of its constructor", examples=[{"beta": 0.2}]
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        names = self._signature()
        for name in self.options:
            if name in OURS:
                raise ValueError(f"{name} is decided by the scenario's federation, not by the strategy")
            if name not in names:
                raise ValueError(f"{self.strategy} has no argument {name!r}; {did_you_mean(name, names)}")
        self._build(0, strict=True)
        return self

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        import random

        import torch
        from flwr.app import ArrayRecord, ConfigRecord

        n = len(updates)
        strategy = context.state.get("strategy")
        if strategy is None:
            strategy = context.state["strategy"] = self._build(context.f)
        if "num_malicious_nodes" in self._signature() and "num_malicious_nodes" not in self.options:
            strategy.num_malicious_nodes = context.f
        origin = (
            updates.new_zeros(updates.shape[1]) if context.global_weights is None else context.global_weights
        )
        start = origin.detach().double().cpu()
        models = start + updates.detach().double().cpu()
        sent = self._arrays(start, context.layout)
        state = random.getstate()
        try:
            with _a_task():
                asked = list(strategy.configure_train(context.round + 1, sent, ConfigRecord(), _nodes(n)))
                replies = self._replies(asked, models, context)
                arrays, _ = strategy.aggregate_train(context.round + 1, replies)
        except PluginError:
            raise
        except Exception as error:
            raise PluginError(f"{self.strategy} raised {type(error).__name__}: {error}") from error
        finally:
            random.setstate(state)  # Flower samples nodes with the global generator
        if arrays is None:
            raise PluginError(f"{self.strategy} skipped the round of {n} updates with f = {context.f}")
        if not isinstance(arrays, ArrayRecord) or set(arrays) != set(sent):
            raise PluginError(f"{self.strategy} returned other arrays than it was sent")
        flat = [torch.from_numpy(arrays[name].numpy().reshape(-1)).double() for name in context.layout]
        return (torch.cat(flat) - start).to(updates)

    def _replies(self, asked: list[Any], models: Tensor, context: AggregationContext) -> list[Any]:
        """The clients' answers, in the order of the rows."""
        from flwr.app import Message, MetricRecord, RecordDict

        by_row = {message.metadata.dst_node_id - 1: message for message in asked}
        if sorted(by_row) != list(range(len(models))):
            raise PluginError(f"{self.strategy} asked {len(by_row)} of {len(models)} clients to train")
        told = {
            key for each in asked for record in each.content.config_records.values() for key in record
        } - TOLD
        if told:
            raise PluginError(
                f"{self.strategy} tells clients {', '.join(sorted(told))}, but they have trained as the scenario says; "
                "set it there, under federation.local"
            )
        weights = context.weights.double().tolist()
        replies = []
        for row, weight in enumerate(weights):
            arrays = self._arrays(models[row], context.layout)
            metrics = MetricRecord({EXAMPLES: weight})
            content = RecordDict({"arrays": arrays, "metrics": metrics})
            replies.append(Message(content, reply_to=by_row[row]))
        return replies

    @staticmethod
    def _arrays(vector: Tensor, layout: dict[str, slice]) -> Any:
        from flwr.app import Array, ArrayRecord

        return ArrayRecord({name: Array(vector[part].numpy().copy()) for name, part in layout.items()})

    def _class(self) -> type:
        import importlib
        import inspect

        try:
            from flwr.serverapp import strategy as known
        except ImportError:
            raise ValueError("Flower is not installed: pip install 'psr-harness[flower]'") from None
        module, colon, name = self.strategy.partition(":")
        if colon:
            try:
                found = getattr(importlib.import_module(module), name, None)
            except ImportError as error:
                raise ValueError(f"{module} cannot be imported: {error}") from None
        else:
            found = getattr(known, self.strategy, None)
        if not (inspect.isclass(found) and issubclass(found, known.Strategy)):
            names = [n for n in known.__all__ if n not in ("Strategy", "Result")]
            raise ValueError(
                f"Flower has no strategy {self.strategy!r}; {did_you_mean(self.strategy, names)}"
            )
        if inspect.isabstract(found):
            raise ValueError(f"{self.strategy} is abstract")
        return found

    def _signature(self) -> dict[str, Any]:
        """Argument -> parameter of the class."""
        import inspect

        found = self._class()
        if "Xgb" in found.__name__:
            raise ValueError(f"{self.strategy} aggregates trees, not weights")
        signature = dict(inspect.signature(found).parameters)
        for name, reason in REFUSED.items():
            if name in signature:
                raise ValueError(f"{self.strategy} {reason}")
        return signature

    def _build(self, f: int, strict: bool = False) -> Any:
        """A fresh strategy. strict: what its constructor raises becomes a ValueError of ours."""
        signature = self._signature()
        given = {name: 1 for name in FEWEST if name in signature}
        if "num_malicious_nodes" in signature:
            given["num_malicious_nodes"] = f
        try:
            return self._class()(**{**given, **self.options})
        except Exception as error:
            if strict:
                raise ValueError(f"{self.strategy}: {error}") from None
            raise PluginError(f"{self.strategy}: {error}") from error


@contextlib.contextmanager
def _a_task() -> Iterator[None]:
    """Messages name the task that sends them, which exists inside Flower's processes only: one of ours stands in."""
    try:
        from flwr.supercore.task_identity import TaskIdentity
    except ImportError:  # releases before 1.42 ask for none
        yield
        return
    before = TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.ERROR)  # a line or two for every round are no news
    if before[1] is None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    try:
        yield
    finally:
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before
        logger.setLevel(level)


def _nodes(n: int) -> Any:
    """A Grid of n nodes, 1 to n, with no messages: strategies only ask it who is there."""
    from flwr.app import Message
    from flwr.serverapp import Grid

    class Nodes(Grid):
        def set_run(self, run: Any) -> None:
            raise PluginError("a strategy run as a rule has no Flower run")

        @property
        def run(self) -> Any:
            raise PluginError("a strategy run as a rule has no Flower run")

        def create_message(self, *args: Any, **kwargs: Any) -> Message:
            raise PluginError("a strategy run as a rule sends no messages of its own")

        def get_node_ids(self) -> Iterable[int]:
            return range(1, n + 1)

        def get_nodes(self) -> Iterable[Any]:
            raise PluginError("a strategy run as a rule is told nothing about nodes but their number")

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            raise PluginError("a strategy run as a rule sends no messages of its own")

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            raise PluginError("a strategy run as a rule sends no messages of its own")

        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Iterable[Message]:
            raise PluginError("a strategy run as a rule sends no messages of its own")

    return Nodes()


PLUGINS = (FlowerStrategy,)
