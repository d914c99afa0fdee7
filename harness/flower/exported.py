"""The apps of an exported cell.

The nodes decide what the apps do. Nodes that say where their own data is (`data` in their node configuration) make
a deployment: sampling and noise come from the operating system's entropy and no number of the cell's seeds is used.
Nodes that only have a partition, as in a simulation, train the cell itself: its data, its partition, its seeds.
"""

from __future__ import annotations

import copy
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common import log
from flwr.serverapp import Grid, ServerApp

from harness.contracts.defence import Sampling, hiding
from harness.dealing import Pool
from harness.devices import resolve_device
from harness.errors import HarnessError, PluginError
from harness.evaluation.evasion import right
from harness.evaluation.predict import predict
from harness.federation.data import DeviceData, Part
from harness.federation.local import Client, seeded_modules
from harness.federation.rounds import Rules
from harness.flower import messages
from harness.flower.apps import answer_training, settled_nodes
from harness.flower.discretion import breaches, conflict, discreet, own_entries
from harness.flower.job import Job, Simulated, simulated
from harness.flower.secure import SecureStrategy, mask, unwrap, wrap
from harness.flower.strategy import FederationStrategy, NodesLost, RemoteAttackers
from harness.grid import cells
from harness.privacy.lineage import Parts, strongest
from harness.random import derive, secret_generator
from harness.scenario import load_text
from harness.stage_specs import TrainSpec, train_spec
from harness.stages.compress import deployed as deployed_by
from harness.stages.isolation import settle
from harness.stages.score import stratified
from harness.training import Training

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.contracts.aggregator import Aggregator
    from harness.contracts.defence import Defence, Guarantee
    from harness.scenario import Evaluation

LoadData = Callable[[str], tuple[np.ndarray, np.ndarray]]  # a path -> images (n, c, h, w), labels (n,)


@dataclass(frozen=True)
class Pinned:
    """An exported cell: what is trained, and what its data look like."""

    spec: TrainSpec
    facts: dict[str, Any]
    evaluation: Evaluation
    unprotected: tuple[str, ...] = ()

    @property
    def discreet(self) -> bool:
        """Whether a deployment keeps to itself what a client-level guarantee hides."""
        return discreet(self.spec.defences)

    def job(self, context: Context) -> Job:
        root = Path(str(context.run_config.get("data-root") or "."))
        device = resolve_device(str(context.run_config.get("device", "auto")))
        return Job(replace(self.spec, root=root), self.facts["noise_key"], device)


@lru_cache(maxsize=2)
def pinned(path: Path) -> Pinned:
    """The cell in a YAML file, with its facts in the JSON file and its local plugins in the folder beside it."""
    (cell,) = cells(load_text(path.read_text(encoding="utf-8"), path))
    facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    spec = replace(train_spec(cell), tolerance=facts["tolerance"])
    return Pinned(spec, facts, cell.scenario.evaluation, tuple(cell.scenario.unprotected))


class Deployed(Training):
    """A training of clients whose records are elsewhere, or, at a node, of its own records alone.

    sizes: how many records each client counts for. number, records: at a node, which client it is and its images and
    labels. Every seed has 256 bits from the operating system, and so have the generators of noise and coins: see
    `secret_generator` for what they withstand.
    """

    generator = staticmethod(secret_generator)

    def __init__(
        self,
        cell: Pinned,
        device: str,
        sizes: list[int],
        number: int | None = None,
        records: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        facts = cell.facts
        federation = cell.spec.federation.model_copy(update={"clients": len(sizes)})
        self.spec = replace(cell.spec, federation=federation, holdout=0.0, seed=secrets.randbits(256))
        self.stage_key = secrets.token_hex(32)
        self.device = device
        self.at_a_time = 1  # each client is a process of its own
        shape = tuple(facts["input_shape"])
        empty = Part(
            torch.zeros((0, *shape), device=device), torch.zeros(0, dtype=torch.int64, device=device), None
        )
        own = empty
        if records is not None:
            images, labels = (torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in records)
            own = Part(images, labels.long(), None)
        self.data = DeviceData(own, empty, empty, facts["num_classes"], shape)
        nothing = np.empty(0, dtype=np.int64)
        held = [np.arange(len(own)) if i == number else nothing for i in range(len(sizes))]
        self.pool = Pool(held, np.arange(len(own)), nothing)
        self.malicious = []
        self._sizes = sizes
        self._number = number

    def sizes(self) -> list[int]:
        return self._sizes

    def _client(
        self, number: int, images: Tensor, labels: Tensor, hooks: Any, prepared: list[dict[str, Any]]
    ) -> Client:
        if not len(labels):  # the records of another client, which are not here
            return Client(number, images, labels, 0, Sampling(), hooks, list(prepared))
        return super()._client(number, images, labels, hooks, prepared)

    def rules(self, prepared: list[dict[str, Any]], done: int) -> Rules:
        """At a node no defence wraps the rule: it aggregates nothing, and is not told what was prepared for that."""
        if self._number is None:
            return super().rules(prepared, done)
        spec = self.spec
        settings = spec.federation
        return Rules(spec.aggregators, spec.tolerance, spec.weighting, settings.buffers, settings.server)

    def larger(self, schedule: list[list[int]]) -> list[dict[str, Any]] | None:
        """What the defences would prepare with one client more; None where they cannot."""
        more = copy.copy(self)
        more._sizes = [*self._sizes, self._sizes[-1]]
        try:
            return more._prepare(schedule, [])
        except Exception:  # of a plugin; nothing in the training depends on this
            return None

    def validate(self, module: nn.Module) -> dict[str, float]:
        return {}  # there are no records here


# clients ------------------------------------------------------------------------------------------


def client_app(cell: Path, load: LoadData) -> ClientApp:
    """The ClientApp of an exported cell. load: reads a node's own records, see `check_records`."""
    app = ClientApp()
    spec = pinned(cell).spec
    secure = hiding(spec.defences) is not None

    @app.query()
    def hello(message: Message, context: Context) -> Message:
        data = context.node_config.get("data")
        if data is None and "partition-id" not in context.node_config:
            raise HarnessError("start this SuperNode with --node-config 'data=\"/path/to/its/records\"'")
        records = 0 if data is None else len(_records(cell, load, str(data))[1])
        if records and pinned(cell).discreet:
            records = 1
        content = ConfigRecord({"deployed": data is not None, "records": records})
        return Message(RecordDict({messages.CONFIG: content}), reply_to=message)

    def train(message: Message, context: Context) -> Message:
        config, data = messages.settings(message.content), context.node_config.get("data")
        if data is None:
            if "deployment" in config:
                raise HarnessError("this SuperNode has no data of its own and must not train in a deployment")
            return answer_training(_simulated(pinned(cell).job(context)), message, context)
        if "deployment" not in config:
            raise HarnessError(
                "this SuperNode has data of its own and does not train with a simulation's seeds"
            )
        plan = json.loads(str(config["deployment"]))
        job, records = pinned(cell).job(context), _records(cell, load, str(data))
        own = _deployed(cell, job, plan, config["client"], records)
        return answer_training(own, message, context, pinned(cell).discreet)

    def train_masked(message: Message, context: Context) -> Message:
        """Only what Flower has masked leaves the node."""
        return mask(message, context, lambda m, c: wrap(train(unwrap(m), c), spec.weighting))

    app.train()(train_masked if secure else train)
    return app


@lru_cache(maxsize=1)
def _simulated(job: Job) -> Simulated:
    """Kept for the next message."""
    return simulated(job)


def _deployed(
    cell: Path, job: Job, plan: dict[str, Any], number: int, records: tuple[np.ndarray, np.ndarray]
) -> Simulated:
    settle(job.spec.compute.threads, job.spec.compute.tf32)
    training = Deployed(pinned(cell), job.device, [1] * plan["clients"], number, records)
    module = training.initial_module()
    return Simulated(
        training, training.set_up(module, kind=RemoteAttackers, prepared=plan["prepared"]), module
    )


@lru_cache(maxsize=1)
def _records(cell: Path, load: LoadData, data: str) -> tuple[np.ndarray, np.ndarray]:
    facts = pinned(cell).facts
    return check_records(*load(data), shape=facts["input_shape"], classes=facts["num_classes"])


def check_records(
    images: np.ndarray, labels: np.ndarray, *, shape: list[int], classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """A node's records as the cell needs them. Raises PluginError with what is wrong."""
    if images.ndim != 4 or list(images.shape[1:]) != list(shape):
        raise PluginError(f"images must be (n, {', '.join(map(str, shape))}), not {images.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise PluginError(f"labels must be integers, not {labels.dtype}")
    if len(images) != len(labels) or not len(labels):
        raise PluginError(f"{len(images)} images and {len(labels)} labels")
    if labels.min() < 0 or labels.max() >= classes:
        raise PluginError(f"labels must be in [0, {classes}), not {labels.min()} to {labels.max()}")
    if images.dtype != np.uint8 and not (
        np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1
    ):
        raise PluginError("images must be uint8, or float in [0, 1]")
    return (images if images.dtype == np.uint8 else images.astype(np.float32)), labels.astype(np.int64)


# server -------------------------------------------------------------------------------------------


def server_app(cell: Path) -> ServerApp:
    """The ServerApp of an exported cell."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run = context.run_config
        job = pinned(cell).job(context)
        timeout = float(run["round-timeout"])
        nodes = settled_nodes(grid, int(run["nodes"]))
        greetings = _greet(grid, nodes, timeout)
        deployed = [node for node, told in greetings.items() if told["deployed"]]
        if deployed and len(deployed) < len(greetings):
            raise HarnessError(
                f"{len(deployed)} of {len(greetings)} nodes have data of their own: all or none must"
            )
        if deployed:
            own = _coordinator(pinned(cell), job, [greetings[n]["records"] for n in deployed])
            places, extra = dict(enumerate(deployed)), _plans(own)
        else:
            own, extra = simulated(job), dict[int, dict[str, Any]]()
            here = sorted(greetings)
            places = {i: here[i % len(here)] for i in range(own.training.clients)}
        kind = FederationStrategy if hiding(job.spec.defences) is None else SecureStrategy
        if kind is SecureStrategy and len(set(places.values())) < len(places):
            raise HarnessError(f"secure aggregation needs a node for each of the {len(places)} clients")
        strategy = kind(
            own.ready,
            places,
            _told,
            strict=bool(run["strict"]),
            timeout=timeout,
            extra=lambda client: extra.get(client, {}),
            discreet=bool(deployed) and pinned(cell).discreet,
        )
        strategy.context = context
        strategy.train(grid)
        _leave(own, pinned(cell), Path(str(run["out"])).resolve(), deployed=bool(deployed))

    return app


def _greet(grid: Grid, nodes: Any, timeout: float) -> dict[int, dict[str, Any]]:
    """What each node says of itself. Raises NodesLost where none answers, or one answers with an error."""
    asked = [
        Message(
            RecordDict({messages.CONFIG: ConfigRecord({})}), dst_node_id=node, message_type=messages.HELLO
        )
        for node in nodes
    ]
    found: dict[int, dict[str, Any]] = {}
    reasons = []
    for reply in grid.send_and_receive(asked, timeout=timeout):
        if reply.has_error():
            reasons.append(str(reply.error.reason))
        else:
            found[reply.metadata.src_node_id] = messages.settings(reply.content)
    if reasons or not found:
        raise NodesLost("; ".join(reasons) or f"no node answered within {timeout:g} s")
    return dict(sorted(found.items()))


def _coordinator(cell: Pinned, job: Job, sizes: list[int]) -> Simulated:
    if reason := conflict(job.spec.defences):
        raise PluginError(reason)
    for rule in job.spec.aggregators:
        if rule.root_records:
            raise PluginError(
                f"{rule.name} needs a root dataset at the server, which a deployment does not have"
            )
    settle(job.spec.compute.threads, job.spec.compute.tf32)
    if cell.discreet:
        sizes = [1] * len(sizes)
    training = Deployed(cell, job.device, sizes)
    module = training.initial_module()
    ready = training.set_up(module, kind=RemoteAttackers)
    ready.federation.sizes = sizes
    return Simulated(training, ready, module)


def _plans(own: Simulated) -> dict[int, dict[str, Any]]:
    """What each client of a deployment is told: how many clients there are, and what was prepared for its own hooks."""
    training, prepared = own.training, own.ready.prepared
    assert isinstance(training, Deployed)
    clients, defences = training.clients, training.spec.defences
    larger = training.larger(own.ready.schedule) or [{}] * len(prepared)
    plans = {}
    for i in range(clients):
        entries = [
            own_entries(one, more, i, clients)
            if defence.overrides("gradient") or defence.overrides("update")
            else {}
            for defence, one, more in zip(defences, prepared, larger, strict=True)
        ]
        plans[i] = {"deployment": json.dumps({"clients": clients, "prepared": entries})}
    return plans


def _told(done: int, total: int, entry: dict[str, Any]) -> None:
    log(20, "round %d/%d: %s", done, total, {k: v for k, v in entry.items() if k != "round"})


def _leave(own: Simulated, cell: Pinned, out: Path, deployed: bool) -> None:
    """Writes the trained network as model.safetensors, and what there is to say about it as result.json."""
    from safetensors.torch import save_file

    training, outcome = own.training, own.federation.outcome
    guarantees = training.guarantees([own.ready.prepared])
    if deployed:
        guarantees = [_as_deployed(guarantee, training.spec) for guarantee in guarantees]
    guarantee = strongest(guarantees, Parts.of(training.spec, unprotected=cell.unprotected))
    result: dict[str, Any] = {
        "deployed": deployed,
        "clients": training.clients,
        "history": outcome.history,
        "guarantee": None if guarantee is None else guarantee.model_dump(),
    }
    module = own.module.eval()
    if not deployed:
        result["accuracy"] = _accuracy(training, cell.evaluation, module)
    out.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.contiguous().cpu() for name, value in module.state_dict().items()},
        out / "model.safetensors",
    )
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    log(20, "the trained model is in %s", out)


def _as_deployed(guarantee: Guarantee, spec: TrainSpec) -> Guarantee:
    """A guarantee of the training, as it is in a deployment: not simulated, and broken by what that reveals."""
    broken = list(guarantee.broken_by)
    if guarantee.unit == "client":
        broken += breaches(spec)
    return guarantee.model_copy(
        update={"simulated": False, "holds": guarantee.holds and not broken, "broken_by": broken}
    )


def _accuracy(training: Training, evaluation: Evaluation, module: nn.Module) -> float:
    """Accuracy of the network with all that acts at inference, on the test records that the cell is scored on."""
    spec, test = training.spec, training.data.test
    if evaluation.subset is not None:
        test = stratified(test, evaluation.subset)
    parts: list[Aggregator | Defence] = [*spec.aggregators, *spec.defences]
    for part in parts:
        module = deployed_by(part, module)
    module = module.to(training.device).eval()
    with seeded_modules(training.device, derive(spec.seed, "inference")):
        logits = predict(module, test.images, evaluation.batch_size, training.device)
    return float(right(logits, test.labels.cpu().numpy()).mean())
