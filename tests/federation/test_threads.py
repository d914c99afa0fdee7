"""Clients that train at the same time: to the last bit the numbers of clients that train one after another."""

from __future__ import annotations

import copy
import math
import random
import threading
from functools import partial

import numpy as np
import pytest
import torch
from test_vectorised import FEDERATION, LOCAL, PGD, POISONS, STACKS, UsesGenerator, members, training
from torch import nn

import harness
from harness.contracts.defence import ClientHooks
from harness.federation import threads
from harness.federation.local import LocalTrainer, Start
from harness.federation.threads import ThreadedTrainer, plain_values
from harness.federation.vector import buffer_names, flatten, float_buffers, load_buffers, load_vector
from harness.random import generator_states, global_generators, torch_generator

ROUNDS = 4  # two each way


class AlwaysThreads(ThreadedTrainer):
    """Whatever the clock says."""

    def _in_threads_next(self):
        return True


def both(stage, module, clients, rounds=ROUNDS, kind=AlwaysThreads):
    """(updates and buffers of every round, the module's buffers after it) from both trainers; the threaded one.

    Each has a copy of the module.
    """
    weights, buffers = flatten(module), float_buffers(module, buffer_names(module))
    moved = torch.randn(weights.shape, generator=torch_generator("moved"), dtype=weights.dtype)
    arguments = (stage.spec.federation.local, 3, "stage", stage.spec.compute.precision, "cpu")
    found, given = [], module
    for made in (LocalTrainer, partial(kind, at_a_time=3)):
        module, own = copy.deepcopy(given), []
        trainer = made(module, *arguments)
        for round in range(rounds):
            at = Start(round, weights, moved=moved, multiplier=0.5, rounds=4, clients=5, malicious=2)
            trained = trainer.train_all(trainer.tasks(clients, at, [buffers] * len(clients)))
            own.append((trained, {n: b.clone() for n, b in module.named_buffers() if n not in buffers}))
            load_vector(module, weights)
            load_buffers(module, buffers)
        found.append(own)
    return *found, trainer


def same(stage, module=None, clients=None, rounds=ROUNDS, kind=AlwaysThreads):
    """Trains both ways and compares; the threaded trainer."""
    module = stage.initial_module() if module is None else module
    one, beside, trainer = both(stage, module, members(stage) if clients is None else clients, rounds, kind)
    for (alone, counts), (together, others) in zip(one, beside, strict=True):
        for (a, buffers), (b, own) in zip(alone, together, strict=True):
            assert a.isfinite().all()
            assert float(a.norm()) > 0
            assert torch.equal(a, b)
            assert all(torch.equal(buffer, own[name]) for name, buffer in buffers.items())
        assert all(torch.equal(counts[name], others[name]) for name in counts)
    return trainer


def floats(clients):
    for client in clients:
        client.images = client.images.float()
    return clients


MORE = [
    "free-adversarial-training",
    "soteria: {ratio: 0.3}",
    "dp-sgd: {noise_multiplier: 1.0, per_sample: ghost}",
    "clean-logit-pairing",
    f"adversarial-weight-perturbation: {{{PGD}}}",
]


@pytest.mark.parametrize("defences", [*STACKS, *MORE])
def test_every_stack_trains_in_threads(tmp_path, defences):
    stage = training(tmp_path, defences, local="{steps: 3, batch_size: 20, optimizer: {adam: {lr: 0.01}}}")
    clients = floats(members(stage, limit=60))
    facts = same(stage, clients=clients, rounds=2).facts
    ways = facts.pop("ways", {})  # what is reported in threads is kept, too
    assert list(ways) == ["per-record gradients"] * ("dp-sgd" in str(defences))
    assert facts == {"clients": "sequential", "at_a_time": 3}


@pytest.mark.parametrize("attack", [*POISONS, "alternating-minimisation: {backdoor: {badnets: {target: 0}}}"])
def test_poisoned_clients(tmp_path, attack):
    threats = f"threats: [{{name: p, phase: training, malicious: 0.4, attacks: [{attack}]}}]\n"
    stage = training(tmp_path, threats=threats)
    assert same(stage, clients=floats(members(stage)), rounds=2).facts["at_a_time"] == 3


def test_counts_of_batch_normalisation_go_on(tmp_path):
    stage = training(tmp_path, model="{resnet9: {width: 2, norm: batch}}")
    module = stage.initial_module()
    assert same(stage, module, floats(members(stage, limit=60))).facts["at_a_time"] == 3


def test_bf16(tmp_path):
    stage = training(tmp_path, local="{steps: 3, batch_size: 50}")
    object.__setattr__(stage.spec.compute, "precision", "bf16")
    assert same(stage, clients=floats(members(stage))).facts["at_a_time"] == 3


class Keeps(nn.Module):
    """Keeps something from one batch for the next."""

    def __init__(self):
        super().__init__()
        self.register_buffer("last", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.last.copy_(x.detach().mean())
        return x


class Counts(nn.Module):
    """Counts its calls in an attribute, and warms up by them."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * min(1.0, 0.2 + self.calls / 200)


class Averages(nn.Module):
    """Follows what goes through it in tensors that are no buffers."""

    def __init__(self):
        super().__init__()
        self.seen = {"mean": torch.zeros(())}

    def forward(self, x):
        self.seen["mean"].mul_(0.9).add_(0.1 * x.detach().mean())
        return x - self.seen["mean"]


class Shows(nn.Module):
    """Keeps its output, with the graph behind it, for whoever wants to see it: then it cannot be copied."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.shown = None

    def forward(self, x):
        self.shown = x * self.scale
        return self.shown


ALONE = {
    "dropout": nn.Dropout(0.5),
    "keeps values": Keeps(),
    "counts": Counts(),
    "averages": Averages(),
    "shows": Shows(),
    "cumulative": nn.BatchNorm1d(64, momentum=None),
}


@pytest.mark.parametrize("layer", ALONE.values(), ids=ALONE)
def test_what_threads_would_change_trains_one_by_one(tmp_path, layer):
    stage = training(tmp_path)
    module = nn.Sequential(nn.Flatten(), layer, nn.Linear(64, 10))
    before = torch.get_rng_state()
    trainer = same(stage, module, floats(members(stage)))
    assert torch.equal(torch.get_rng_state(), before)
    assert trainer.facts == {"clients": "sequential"}
    assert trainer.spared == 0


class InTurns(ThreadedTrainer):
    """One round without threads, then always with them."""

    turns = 0

    def _in_threads_next(self):
        self.turns += 1
        return self.turns > 1


def test_a_network_that_cannot_be_copied_trains_one_by_one(tmp_path):
    module = nn.Sequential(nn.Flatten(), Shows(), nn.Linear(64, 10))
    assert same(training(tmp_path), module, floats(members(training(tmp_path))), kind=InTurns).facts == {
        "clients": "sequential"
    }


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = 1.0

    def forward(self, x):
        return x * self.scale


def test_what_a_network_was_given_since_it_was_copied_counts(tmp_path):
    stage = training(tmp_path)
    clients, found = floats(members(stage)), []
    given = nn.Sequential(nn.Flatten(), Scaled(), nn.Linear(64, 10))
    for made in (LocalTrainer, partial(AlwaysThreads, at_a_time=3)):
        module = copy.deepcopy(given)
        weights = flatten(module)
        trainer = made(module, stage.spec.federation.local, 3, "stage", "float32", "cpu")
        for scale in (1.0, 0.5):
            module[1].scale = scale
            load_vector(module, weights)
            tasks = trainer.tasks(clients, Start(0, weights), [{}] * len(clients))
            found.append([update for update, _ in trainer.train_all(tasks)])
    one, halved, beside, then = found
    assert all(torch.equal(a, b) for a, b in zip(one, beside, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(halved, then, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, halved, strict=True))


class Holds(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("mean", torch.zeros(2))
        self.tied = [self.linear.weight, self.mean]  # looked at elsewhere
        self.nothing, self.action = None, print
        self.count, self.rate, self.name = 0, math.nan, "holds"
        self.tensor, self.array = torch.full((2,), math.nan), np.zeros(2)
        self.log, self.by_class, self.kinds = [], {"a": [0, torch.zeros(1, dtype=torch.bfloat16)]}, {1, 2}


CHANGES = {
    "number": lambda m: setattr(m, "count", 1),
    "float": lambda m: setattr(m, "rate", 0.5),
    "text": lambda m: setattr(m, "name", "held"),
    "new": lambda m: setattr(m, "nothing", False),
    "tensor": lambda m: m.tensor[0].fill_(1),
    "type": lambda m: setattr(m, "tensor", m.tensor.double()),
    "array": lambda m: m.array.fill(1),
    "list": lambda m: m.log.append("x"),
    "inside": lambda m: m.by_class["a"][1].fill_(1),
    "set": lambda m: m.kinds.add(3),
    "gone": lambda m: delattr(m, "count"),
    "layer": lambda m: setattr(m.linear, "calls", 1),
}


def test_plain_values_are_those_of_a_copy():
    module = Holds()
    values = plain_values(module)
    assert plain_values(copy.deepcopy(module)) == values
    with torch.no_grad():
        module.linear.weight += 1
        module.mean += 1
    module.action = len
    assert plain_values(module.eval()) == values
    torch.func.vmap(lambda x: setattr(module, "nothing", x) or x)(torch.zeros(3))  # a dead wrapper
    assert plain_values(module) == values


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_plain_values_show_a_change(change):
    module = Holds()
    values = plain_values(module)
    change(module)
    assert plain_values(module) != values


def test_a_client_s_own_generator_is_its_own(tmp_path):
    stage = training(tmp_path)
    clients = floats(members(stage))
    for client in clients:
        client.hooks, client.prepared = (UsesGenerator(),), [{}]
    assert same(stage, clients=clients).facts["at_a_time"] == 3


class DrawsGlobally(ClientHooks):
    def __init__(self, draw):
        self.draw = draw

    def update(self, delta, context):
        return delta + self.draw()


GLOBAL = {
    "torch": lambda: float(torch.rand(())),
    "numpy": lambda: np.random.random(),
    "numpy's normals": lambda: np.random.normal(),  # which keep the second of a pair for the next call
    "python": lambda: random.random(),
}


@pytest.mark.parametrize("draw", GLOBAL.values(), ids=GLOBAL)
def test_clients_that_draw_from_a_global_generator_train_one_by_one(tmp_path, draw):
    stage = training(tmp_path)
    clients = floats(members(stage))
    for client in clients:
        client.hooks, client.prepared = (DrawsGlobally(draw),), [{}]
    weights, found = flatten(stage.initial_module()), []
    for made in (LocalTrainer, partial(AlwaysThreads, at_a_time=3)):
        trainer = made(stage.initial_module(), stage.spec.federation.local, 3, "stage", "float32", "cpu")
        with global_generators(7, "cpu"):
            tasks = trainer.tasks(clients, Start(0, weights), [{}] * len(clients))
            trained = [update for update, _ in trainer.train_all(tasks)]
            found.append((trained, generator_states()))
    (alone, after), (together, then) = found
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert after == then
    assert trainer.facts == {"clients": "sequential"}


def test_the_first_client_s_error_is_the_one_that_is_raised(tmp_path):
    class Broken(ClientHooks):
        def __init__(self, number):
            self.number = number

        def loss(self, loss, logits):
            raise ZeroDivisionError(f"client {self.number}")

    stage = training(tmp_path)
    clients = floats(members(stage))
    for client in clients[1:]:
        client.hooks, client.prepared = (Broken(client.id),), [{}]
    with pytest.raises(ZeroDivisionError, match="client 1"):
        both(stage, stage.initial_module(), clients)


@pytest.mark.parametrize("threads_faster", [True, False])
def test_the_clock_decides_after_two_rounds_each_way(tmp_path, monkeypatch, threads_faster):
    ways, now = [], [0.0]

    class Seen(ThreadedTrainer):
        def _in_threads(self, tasks):
            ways.append("threads")
            now[0] += 1.0 if threads_faster else 3.0
            return super()._in_threads(tasks)

        def train_all(self, tasks):
            before = len(ways)
            trained = super().train_all(tasks)
            if len(ways) == before:
                ways.append("one by one")
            return trained

        def finish(self, *args):  # the trainer's own clients, not its twins'
            now[0] += 0.4
            return super().finish(*args)

    monkeypatch.setattr(threads.time, "perf_counter", lambda: now[0])
    same(training(tmp_path), clients=floats(members(training(tmp_path))), rounds=7, kind=Seen)
    chosen = "threads" if threads_faster else "one by one"
    assert ways == ["one by one", "threads", "one by one", "threads", *[chosen] * 3]


def test_what_was_spared_is_the_time_of_clients_that_trained_beside_each_other(tmp_path, monkeypatch):
    clock = threading.local()

    def each_thread_its_second():
        clock.now = getattr(clock, "now", 0.0) + 1.0
        return clock.now

    monkeypatch.setattr(threads.time, "thread_time", each_thread_its_second)
    monkeypatch.setattr(threads.time, "perf_counter", lambda: 0.0)
    stage = training(tmp_path)
    assert same(stage, clients=floats(members(stage)), rounds=1).spared == 5.0  # five clients of a second


def test_no_thread_outlives_a_training(tmp_path):
    """A worker in which a thread is left gets no other stage."""
    stage = training(tmp_path)
    stage.at_a_time, before = 3, set(threading.enumerate())  # other tests' threads may end at any time
    started = set()
    stage.run(stage.initial_module(), lambda *_: started.update(threading.enumerate()), rounds=3)
    assert started - before
    assert not any(thread.is_alive() for thread in started - before)


@pytest.mark.parametrize("jobs", [0, 3])
def test_a_run_lends_free_places_and_scores_the_same(tmp_path, jobs):
    text = FEDERATION.replace("{defences}", "none").replace("{model}", "{small-cnn: {width: 2, hidden: 8}}")
    text = text.replace("{partition}", "iid").replace("{local}", LOCAL).replace("rounds: 4", "rounds: 6")
    (tmp_path / "run.yaml").write_text(text)
    (record,) = harness.run(tmp_path / "run.yaml", device="cpu", jobs=jobs, store=tmp_path / "runs").records
    assert record["training"]["execution"].get("at_a_time") == (3 if jobs else None)
    (tmp_path / "alone.yaml").write_text(text)
    (other,) = harness.run(tmp_path / "alone.yaml", device="cpu", jobs=1, store=tmp_path / "one").records
    assert record["history"] == other["history"]
    assert record["provenance"]["stages"] == other["provenance"]["stages"]
