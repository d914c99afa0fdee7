"""Seeds of a cell, and shadow models, as one program: the numbers of trainings that run alone, and what falls back."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import harness
from harness.api import Defence, Field
from harness.bundles import bundles
from harness.evaluation.predict import to_pixels
from harness.federation.local import LocalTrainer
from harness.federation.together import run_together
from harness.federation.vector import flatten, float_buffers
from harness.federation.vectorised import VectorisedTrainer
from harness.grid import cells
from harness.plan import Planner
from harness.scenario import load_text
from harness.scenario_plan import data_facts, metrics_of
from harness.store import Store
from harness.training import Training

SCENARIO = """
schema: 1
name: bundles
dataset: digits
model: {model}
federation:
  clients: 4
  rounds: 2
  partition: {partition}
  byzantine_tolerance: 0.25
  local: {{epochs: 1, batch_size: 64, optimizer: {{sgd: {{lr: 0.1, momentum: 0.9}}}}, proximal: {proximal}}}
defences: [{defences}]
aggregators: [{aggregators}]
compute: {{clients: vectorised, trainings: {trainings}}}
seeds: [0, 1, 2]
"""


def text(defences="none", model="{small-cnn: {width: 2, hidden: 8}}", partition="{dirichlet: {alpha: 1.0}}",
         proximal=0.0, aggregators="mean", trainings=3, more=""):  # fmt: skip
    return SCENARIO.format(
        defences=defences, model=model, partition=partition, proximal=proximal, aggregators=aggregators,
        trainings=trainings,
    ) + more  # fmt: skip


def planned(tmp_path, scenario):
    """Every stage of a scenario."""
    loaded = load_text(scenario, tmp_path / "x.yaml")
    planner, facts, metrics = Planner("cpu"), data_facts(loaded, None), metrics_of(loaded)
    for cell in cells(loaded):
        planner.add(cell, facts, metrics)
    return planner.stages


def ready(stage, kind):
    """A training in float64 before its first round, with a trainer of this kind."""
    training = Training(stage.spec, stage.key, "cpu")
    found = training.set_up(training.initial_module().double())
    federation = found.federation
    federation.trainer.__class__ = kind
    for client in federation.clients:
        for one in filter(None, (client, client.attacking)):
            one.images = to_pixels(one.images).double()
    found.evaluate = lambda _: {}
    return found


BYZANTINE = """
threats:
  - {name: byzantine, malicious: 0.25, knowledge: omniscient, attacks: [alie: {z: 1.0}]}
"""
POISONING = """
threats:
  - {name: flips, malicious: 0.25, attacks: [label-flip]}
"""


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"proximal": 0.5},
        {"defences": "dp-sgd: {noise_multiplier: 1.0}", "partition": "iid"},
        {"defences": "[adversarial-training: {attack: {pgd: {eps: 0.1, steps: 2}}}, gradient-noise]"},
        {"defences": "dp-sgd: {epsilon: 4.0}"},
        {"defences": "dp-ftrl: {noise_multiplier: 1.0}"},
        {"defences": "local-dp: {noise_multiplier: 1.0}"},
        {"defences": "local-dp: {noise_multiplier: 1.0}", "partition": "iid"},
        {"model": "{resnet9: {width: 2, norm: batch}}", "partition": "iid"},
        {"aggregators": "[nnm, trimmed-mean]", "more": BYZANTINE},
        {"more": POISONING},
    ],
    ids=str,
)
def test_trainings_together_are_the_trainings_alone(tmp_path, settings):
    stages = [s for s in planned(tmp_path, text(**settings)).values() if s.kind == "train"][:3]
    seeds = {stage.spec.seed for stage in stages}
    if "more" in settings:  # those under attack
        stages = [
            s for s in planned(tmp_path, text(**settings)).values() if s.kind == "train" and s.spec.attack
        ]
        seeds = {stage.spec.seed for stage in stages}
    assert seeds == {0, 1, 2}
    alone = [ready(stage, LocalTrainer) for stage in stages]
    for one in alone:
        run_together([one.run(lambda *_: None)])
    together = [ready(stage, VectorisedTrainer) for stage in stages]
    run_together([one.run(lambda *_: None) for one in together])
    for a, b in zip(alone, together, strict=True):
        expected, found = flatten(a.federation.module), flatten(b.federation.module)
        initial = flatten(Training(stages[0].spec, "", "cpu").initial_module().double())
        assert float((expected - initial).norm()) > 0.1
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
        names = a.federation.trainer.buffer_names
        for name, buffer in float_buffers(a.federation.module, names).items():
            torch.testing.assert_close(
                float_buffers(b.federation.module, names)[name], buffer, rtol=1e-8, atol=1e-9
            )
        for (name, one), (_, other) in zip(
            a.federation.module.named_buffers(), b.federation.module.named_buffers(), strict=True
        ):
            if not one.is_floating_point():
                assert torch.equal(one, other), name
        assert a.federation.outcome.uplink_bytes == b.federation.outcome.uplink_bytes
    facts = together[0].federation.trainer.facts
    assert facts["clients"] == "vectorised"
    assert facts["chunk"] > 4  # more than one training has clients


class Looks(Defence):
    """A third party's gradient, scaled by what was prepared for the training."""

    name = "test-looks"
    vectorises = True
    inside: bool = Field(True)

    def prepare(self, context):
        return {"scale": 1 / context.sizes[0]}

    def gradient(self, local):
        inner = local.gradient
        scale = local.own(lambda client: local.prepared["scale"]) if self.inside else local.prepared["scale"]
        return lambda *given: {name: g * scale for name, g in inner(*given).items()}


@pytest.mark.parametrize("inside", [True, False])
def test_what_was_prepared_is_each_training_s_own(tmp_path, inside):
    stages = [s for s in planned(tmp_path, text()).values() if s.kind == "train"]
    hook = Looks(inside=inside)
    found = []
    for kind in (LocalTrainer, VectorisedTrainer):
        readies = [ready(stage, kind) for stage in stages]
        for one in readies:
            clients = one.federation.clients
            scale = 1 / clients[0].size
            for client in clients:
                client.hooks, client.prepared = (hook,), [{"scale": scale}]
        for group in [readies] if kind is VectorisedTrainer else [[one] for one in readies]:
            run_together([one.run(lambda *_: None) for one in group])
        found.append(readies)
    assert len({one.federation.clients[0].size for one in found[0]}) == 3  # three scales
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(
            flatten(b.federation.module), flatten(a.federation.module), rtol=1e-8, atol=1e-9
        )
    facts = found[1][0].federation.trainer.facts
    if inside:
        assert facts["alone"] == []
        assert facts["chunk"] > 4
    else:
        assert "inside of own()" in facts["alone"][0]
        assert facts["clients"] == "sequential"


def scores(result):
    return {r["id"]: (r["status"], r["scores"]) for r in result.records}


def close(one, other):
    assert one.keys() == other.keys()
    for key, (status, found) in one.items():
        assert status == other[key][0] == "scored"
        timed = ("seconds", "memory", "latency")
        kept = {name: value for name, value in found.items() if not any(word in name for word in timed)}
        assert {name: other[key][1][name] for name in kept} == pytest.approx(kept, abs=0.006, nan_ok=True)


@pytest.mark.parametrize("jobs", [0, 2])
def test_a_run_scores_the_same_and_says_what_trained_together(tmp_path, jobs):
    loaded = [load_text(text("none, gradient-clipping", trainings=n), tmp_path / "x.yaml") for n in (1, 2)]
    alone = harness.run(loaded[0], device="cpu", jobs=0, store=tmp_path / "alone")
    together = harness.run(loaded[1], device="cpu", jobs=jobs, store=tmp_path / "together")
    assert together.executed["train"] == 6
    close(scores(alone), dict(zip(scores(alone), scores(together).values(), strict=True)))
    with Store(tmp_path / "together") as store:
        rows = store._db.execute("SELECT result FROM stages WHERE kind='train'")
        assert len(rows) == 6
    said = [record["training"]["execution"].get("trainings") for record in together.records]
    assert sorted(said, key=str) == [2, 2, 2, 2, None, None]  # three seeds of each defence, two at a time


LIRA = """
seeds: [0]
threats:
  - {name: membership, attacks: [lira: {shadows: 6}]}
"""


def test_shadow_models_train_together(tmp_path):
    base = text(model="{mlp: {hidden: [16]}}", partition="iid").replace("seeds: [0, 1, 2]\n", "")
    found = {}
    for trainings in (1, 4):
        loaded = load_text(
            base.replace("trainings: 3", f"trainings: {trainings}") + LIRA, tmp_path / "x.yaml"
        )
        found[trainings] = harness.run(loaded, device="cpu", jobs=0, store=tmp_path / str(trainings))
    assert found[1].executed == found[4].executed
    assert found[4].executed["train"] >= 7
    close(scores(found[1]), dict(zip(scores(found[1]), scores(found[4]).values(), strict=True)))
    with Store(tmp_path / "4") as store:
        stages = planned(tmp_path, base.replace("trainings: 3", "trainings: 4") + LIRA)
        results = [store.stage_result(key) for key, stage in stages.items() if stage.kind == "train"]
    assert max(r["training"]["execution"].get("trainings", 1) for r in results) == 4


class Noisy(nn.Module):
    """Draws from torch's global generator."""

    def forward(self, x):
        return x + torch.randn_like(x) if self.training else x


def test_networks_that_draw_random_numbers_train_alone(tmp_path, monkeypatch):
    def build(self, shape, classes, normalization):
        return nn.Sequential(nn.Flatten(), Noisy(), nn.Linear(math.prod(shape), classes))

    monkeypatch.setattr(type(harness.create("model", "mlp")), "build", build)
    loaded = load_text(text(model="{mlp: {hidden: [8]}}"), tmp_path / "x.yaml")
    result = harness.run(loaded, device="cpu", jobs=0, store=tmp_path / "store")
    assert (result.scored, result.executed["train"]) == (3, 3)
    for record in result.records:
        assert "trainings" not in record["training"]["execution"]
        assert "draws random numbers" in record["training"]["execution"]["alone"][0]


def test_one_that_fails_takes_no_other_with_it(tmp_path, monkeypatch):
    real = Training.validate

    def fails(self, module):
        if self.spec.seed == 1:
            raise RuntimeError("no such luck")
        return real(self, module)

    monkeypatch.setattr(Training, "validate", fails)
    result = harness.run(
        load_text(text(), tmp_path / "x.yaml"), device="cpu", jobs=0, store=tmp_path / "store"
    )
    status = {record["cell"]["seed"]: record["status"] for record in result.records}
    assert status == {0: "scored", 1: "failed", 2: "scored"}
    (failed,) = [r for r in result.records if r["status"] == "failed"]
    assert "no such luck" in failed["error"]["message"]


def test_bundles_hold_what_differs_in_seed_alone(tmp_path):
    stages = planned(tmp_path, text("none, gradient-clipping", trainings=2))
    found = bundles(stages, stages, "cpu")
    for lead, others in found.items():
        assert len(others) == 1
        a, b = stages[lead].spec, stages[others[0]].spec
        assert a.defences == b.defences
        assert a.seed != b.seed
    assert len(found) == 2  # of each defence two of three; the third is alone
    first = next(iter(found))
    assert first not in bundles(stages, [key for key in stages if key != first], "cpu")
    assert bundles(planned(tmp_path, text(trainings=1)), stages, "cpu") == {}
    sequential = text(trainings=3).replace("clients: vectorised", "clients: sequential")
    assert bundles(planned(tmp_path, sequential), planned(tmp_path, sequential), "cpu") == {}
    automatic = text(trainings=3).replace("clients: vectorised", "clients: auto")
    stages = planned(tmp_path, automatic)
    assert bundles(stages, stages, "cpu") == {}
    assert len(bundles(stages, stages, "cuda")) == 1
