"""The apps of `engine: flower` against training in one process: the same weights, to the bit."""

from __future__ import annotations

import random

import numpy as np
import pytest
import strays
import torch

from harness.errors import PluginError
from harness.flower import apps
from harness.flower.job import Job, simulated
from harness.flower.strategy import FederationStrategy, NodesLost
from harness.grid import cells
from harness.registry import registry
from harness.scenario import load_text
from harness.stage_specs import train_spec
from harness.stages.isolation import isolated
from harness.training import Training

BASE = """
schema: 1
name: apps
dataset: digits
model: {model}
federation:
  clients: 5
  rounds: 3
  participation: {participation}
  partition: {partition}
  buffers: {buffers}
  server: {server}
  local: {{steps: 2, batch_size: 16, schedule: cosine, optimizer: {{sgd: {{lr: 0.1, momentum: 0.9}}}}}}
defences: [{defence}]
aggregators: [{rule}]
compressors: [{compressor}]
threats: [{threat}]
"""
DEFAULTS = {
    "model": "logistic", "participation": 1.0, "buffers": "average", "server": "fedavg", "defence": "none",
    "rule": "mean", "compressor": "none", "threat": "{name: none}", "partition": "{dirichlet: {alpha: 1.0}}",
}  # fmt: skip
ATTACK = "{{name: t, phase: training, malicious: 0.2, knowledge: {knowledge}, attacks: [{attack}]}}"


def spec(**changes):
    (cell,) = cells(load_text(BASE.format(**DEFAULTS | changes)))
    return train_spec(cell)


def locally(job):
    training = Training(job.spec, job.stage_key, job.device)
    return training.run(training.initial_module(), lambda *_: None)


def by_flower(job, grid_class, tmp_path, nodes=5, **options):
    path = tmp_path / "job.pickle"
    job.write(path)
    apps._simulated.cache_clear()
    apps.read.cache_clear()
    grid = grid_class(apps.engine_client(), nodes, {"job": str(path)})
    own = simulated(apps.read(str(path)))
    strategy = FederationStrategy(
        own.ready, {i: grid.ids[i % nodes] for i in range(own.training.clients)}, lambda *_: None, **options
    )
    strategy.train(grid)
    return own, grid


def attack(name, knowledge="omniscient"):
    return ATTACK.format(attack=name, knowledge=knowledge)


CASES = {
    "fedavg": {},
    "two clients a round": {"participation": 0.4},
    "a model with buffers": {"model": "{resnet9: {width: 4}}", "defence": "none"},
    "buffers that stay local": {"model": "{resnet9: {width: 4, norm: batch}}", "buffers": "local"},
    "buffers that stay local, with another half of the clients in every round": {
        "model": "{resnet9: {width: 4, norm: batch}}",
        "buffers": "local",
        "participation": 0.5,
    },
    "buffers that are averaged": {"model": "{resnet9: {width: 4, norm: batch}}"},
    "dp-sgd and fedadam": {"defence": "dp-sgd: {epsilon: 8}", "server": "{fedadam: {lr: 0.01}}"},
    "server noise": {"defence": "dp-fedavg: {epsilon: 8}", "participation": 0.8},
    "a compressor with memory": {"compressor": "top-k: {ratio: 0.1}"},
    "a compressor with two ways": {"compressor": "powersgd"},
    "a poisoned client": {"threat": attack("label-flip")},
    "an attack that knows its own": {"threat": attack("sign-flip", "own"), "rule": "median"},
    "an attack that knows updates": {"threat": attack("alie", "updates"), "rule": "[nnm, trimmed-mean]"},
    "one that probes a rule with memory": {
        "threat": attack("optimal-ipm"),
        "rule": "{centered-clipping: {tau: 0.1}}",
    },
    "one with a memory of its own": {"threat": attack("mimic", "updates"), "rule": "krum"},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_same_weights_history_and_counts_as_in_one_process(changes, direct, tmp_path):
    job = Job(spec(**changes), "a stage's key", "cpu")
    ours = locally(job)
    own, _ = by_flower(job, direct, tmp_path)
    theirs = own.module.state_dict()
    assert set(theirs) == set(ours.module.state_dict())
    for name, value in ours.module.state_dict().items():
        if "num_batches_tracked" not in name:
            assert torch.equal(value, theirs[name]), name
    outcome, expected = own.federation.outcome, ours.outcome
    assert outcome.history == expected.history
    assert len(expected.history) == 3
    for fact in ("uplink_bytes", "downlink_bytes", "messages", "dropped", "detection"):
        assert getattr(outcome, fact) == getattr(expected, fact), fact


HOOKS = ("prepare", "model", "batch", "loss", "gradient", "update")
STRAYS = {
    "rule": {"rule": "stray-rule"},
    "model": {"model": "stray-model"},
    "craft": {"threat": attack("stray-craft"), "rule": "stray-rule"},
    "labels": {"threat": attack("stray-labels")},
    "codec": {"compressor": "stray-codec"},
    "partition": {"partition": "stray-partition"},
    **{
        f"hook {hook}": {"defence": f"stray-hooks: {{hook: {hook}}}", "model": "stray-model"}
        for hook in HOOKS
    },
}


@pytest.mark.parametrize("changes", STRAYS.values(), ids=STRAYS)
def test_what_plugins_draw_from_global_generators_is_the_same_too(changes, direct, tmp_path):
    if "stray-rule" not in registry().names("aggregator"):
        registry().add(strays, "strays", "flower-tests")
    job = Job(spec(**changes), "a stage's key", "cpu")
    with isolated("a stage's key", "cpu", 1, False):
        ours = locally(job)
    np.random.seed(5), random.seed(5), torch.manual_seed(5)  # another process, that has its own
    own, _ = by_flower(job, direct, tmp_path)
    for a, b in zip(ours.module.state_dict().values(), own.module.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert own.federation.outcome.history == ours.outcome.history


def test_what_an_import_sets_is_no_setting_of_a_training():
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)  # as a package that is imported with the job may
        assert {p.dtype for p in simulated(Job(spec(), "key", "cpu")).module.parameters()} == {torch.float32}
    finally:
        torch.set_default_dtype(before)


def test_any_number_of_nodes_can_play_the_clients(direct, tmp_path):
    job = Job(spec(model="{resnet9: {width: 4, norm: batch}}", buffers="local"), "key", "cpu")
    one, _ = by_flower(job, direct, tmp_path, nodes=1)
    two, _ = by_flower(job, direct, tmp_path, nodes=2)
    for a, b in zip(one.module.state_dict().values(), two.module.state_dict().values(), strict=True):
        assert torch.equal(a, b)


class TestTheSideChannel:
    def sent(self, knowledge, direct, tmp_path, monkeypatch):
        """What the attackers' app was given in the first round."""
        from harness.flower import messages
        from harness.flower.strategy import RemoteAttackers

        seen = []
        craft = RemoteAttackers.craft_here

        def spy(self, content):
            seen.append(messages.from_bytes(content[messages.CONFIG]["channel"]))
            return craft(self, content)

        monkeypatch.setattr(RemoteAttackers, "craft_here", spy)
        name = "sign-flip" if knowledge != "omniscient" else "optimal-alie"
        job = Job(spec(threat=attack(name, knowledge), rule="median"), "key", "cpu")
        own, grid = by_flower(job, direct, tmp_path)
        assert len(seen) == 3
        assert [kind for kind, _ in grid.log].count("train.craft") == 3
        return seen[0], own.training.malicious

    def test_own_knowledge_gets_the_attackers_updates_alone(self, direct, tmp_path, monkeypatch):
        channel, malicious = self.sent("own", direct, tmp_path, monkeypatch)
        assert sorted(channel["updates"]) == malicious
        assert channel["chain"] is None

    def test_knowledge_of_updates_does_not_show_the_rules_state(self, direct, tmp_path, monkeypatch):
        channel, _ = self.sent("updates", direct, tmp_path, monkeypatch)
        assert len(channel["updates"]) >= 4
        assert channel["chain"] is None

    def test_omniscience_does(self, direct, tmp_path, monkeypatch):
        channel, _ = self.sent("omniscient", direct, tmp_path, monkeypatch)
        assert channel["chain"] is not None


class TestClientsThatDoNotAnswer:
    def federation(self, direct, tmp_path, strict, when=1):
        job = Job(spec(), "key", "cpu")

        class Dying(direct):
            def send_and_receive(self, messages, *, timeout=None):
                if sum(kind == "train" for kind, _ in self.log) >= 5 * when:
                    self.dead = {self.ids[2]}
                return super().send_and_receive(messages, timeout=timeout)

        return by_flower(job, Dying, tmp_path, strict=strict, timeout=1)

    def test_end_a_simulation(self, direct, tmp_path):
        with pytest.raises(NodesLost, match=r"round 2: clients \[2\] did not answer"):
            self.federation(direct, tmp_path, strict=True)

    def test_are_left_out_of_a_deployment_from_then_on(self, direct, tmp_path):
        own, grid = self.federation(direct, tmp_path, strict=False)
        history = own.federation.outcome.history
        assert [entry["clients"] for entry in history] == [5, 4, 4]
        assert history[1]["lost"] == [2]
        assert [node for kind, node in grid.log if kind == "train"].count(grid.ids[2]) == 2

    def test_the_rest_is_the_mean_of_those_who_answered(self, direct, tmp_path):
        own, _ = self.federation(direct, tmp_path, strict=False, when=0)
        job = Job(spec(), "key", "cpu")
        ready = simulated(job)
        federation = ready.federation
        federation.begin([[0, 1, 3, 4]] * 3, ready.ready.multiplier)
        for r in range(3):
            opened = federation.open(r)
            updates, buffers = federation.updates(opened.start, opened.trained, [], opened.buffers)
            federation.close(opened, updates, buffers)
        for a, b in zip(own.module.state_dict().values(), ready.module.state_dict().values(), strict=True):
            assert torch.equal(a, b)

    def test_what_a_client_raised_is_said(self, direct, tmp_path, monkeypatch):
        def fail(*_):
            raise PluginError("no more disk")

        monkeypatch.setattr(apps, "answer_training", fail)
        with pytest.raises(NodesLost, match="no more disk"):
            by_flower(Job(spec(), "key", "cpu"), direct, tmp_path)


def test_tensors_travel_exactly():
    from harness.flower import messages

    values = {
        "a": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.zeros(0, 2),
    }
    back = messages.tensors(messages.arrays(values), "cpu")
    for name, value in values.items():
        assert back[name].dtype == value.dtype
        np.testing.assert_array_equal(back[name].numpy(), value.numpy())
