"""Clients that train at the same time: to the last bit the numbers of clients that train one after another."""

from __future__ import annotations

import threading

import pytest
import torch
from test_vectorised import FEDERATION, LOCAL, PGD, POISONS, STACKS, UsesGenerator, members, training
from torch import nn

import harness
from harness.contracts.defence import ClientHooks
from harness.federation import threads
from harness.federation.local import LocalTrainer, Start
from harness.federation.threads import ThreadedTrainer
from harness.federation.vector import buffer_names, flatten, float_buffers, load_buffers, load_vector
from harness.random import torch_generator

ROUNDS = 4  # two each way


class AlwaysThreads(ThreadedTrainer):
    """Whatever the clock says."""

    def _in_threads_next(self):
        return True


def both(stage, module, clients, rounds=ROUNDS, kind=AlwaysThreads):
    """(updates and buffers of every round, the module's buffers after it) from both trainers; the threaded one."""
    weights, buffers = flatten(module), float_buffers(module, buffer_names(module))
    moved = torch.randn(weights.shape, generator=torch_generator("moved"), dtype=weights.dtype)
    whole = {name: buffer.clone() for name, buffer in module.named_buffers()}
    arguments = (module, stage.spec.federation.local, 3, "stage", stage.spec.compute.precision, "cpu")
    found = []
    for trainer in (LocalTrainer(*arguments), kind(*arguments, at_a_time=3)):
        own = []
        for round in range(rounds):
            at = Start(round, weights, moved=moved, multiplier=0.5, rounds=4, clients=5, malicious=2)
            trained = trainer.train_all(trainer.tasks(clients, at, [buffers] * len(clients)))
            own.append((trained, {n: b.clone() for n, b in module.named_buffers() if n not in buffers}))
            load_vector(module, weights)
            load_buffers(module, buffers)
        found.append(own)
        for name, buffer in module.named_buffers():
            buffer.copy_(whole[name])
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
    assert same(stage, clients=clients, rounds=2).facts == {"clients": "sequential", "at_a_time": 3}


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


ALONE = {
    "dropout": nn.Dropout(0.5),
    "keeps values": Keeps(),
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


def test_a_client_s_own_generator_is_its_own(tmp_path):
    stage = training(tmp_path)
    clients = floats(members(stage))
    for client in clients:
        client.hooks, client.prepared = (UsesGenerator(),), [{}]
    assert same(stage, clients=clients).facts["at_a_time"] == 3


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
