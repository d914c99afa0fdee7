"""What malicious clients run in rounds in which they attack: the stack's defences, or none of them."""

from __future__ import annotations

import json

import pytest
import torch

import harness
from harness.applicability import reason_not_applicable
from harness.grid import cells
from harness.plan import Planner
from harness.scenario import load_text
from harness.scenario_plan import data_facts, metrics_of
from harness.training import Training

SCENARIO = """
schema: 1
name: attackers
dataset: digits
model: {{mlp: {{hidden: [8]}}}}
federation: {{clients: 4, rounds: 2, weighting: uniform,
  local: {{steps: 2, batch_size: 16, optimizer: {{sgd: {{lr: 0.1}}}}}}}}
defences: [[{defence}]]
threats: [{{name: backdoor, phase: training, malicious: 0.25, attacks: [{attack}]{more}}}]
"""
PLAIN = "gradient-noise: {scale: 0}"
DEFENCES = [
    "gradient-noise: {scale: 1.0}",
    "local-dp: {noise_multiplier: 1, clip_norm: 0.01}",
    "dp-sgd: {noise_multiplier: 1}",
    "adversarial-training: {attack: {fgsm: {eps: 0.3}}}",
]


def training_of(text, tmp_path) -> Training:
    """The training of a scenario's first cell."""
    scenario = load_text(text, tmp_path / "x.yaml")
    planner = Planner("cpu")
    plan = planner.add(next(iter(cells(scenario))), data_facts(scenario, None), metrics_of(scenario))
    stage = planner.stages[plan.stages["train"]]
    return Training(stage.spec, stage.key, "cpu")


def sent(tmp_path, attack, defence, more="") -> tuple[torch.Tensor, torch.Tensor]:
    """What the malicious client and an honest one send in the first round."""
    training = training_of(SCENARIO.format(attack=attack, defence=defence, more=more), tmp_path)
    (attacker,) = training.malicious
    ready = training.set_up(training.initial_module())
    federation = ready.federation
    federation.begin(ready.schedule, ready.multiplier)
    start = federation.open(0).start
    ids = [attacker, (attacker + 1) % 4]
    updates, _ = federation.train(start, ids, [attacker], {})
    return updates[ids[0]], updates[ids[1]]


@pytest.mark.parametrize("defence", DEFENCES)
@pytest.mark.parametrize("attack", ["model-replacement", "neurotoxin", "alternating-minimisation", "dba"])
def test_attackers_who_control_their_training_run_no_defence(attack, defence, tmp_path):
    plain, honest = sent(tmp_path, attack, PLAIN)
    attacker, defended = sent(tmp_path, attack, defence)
    assert torch.equal(attacker, plain)
    assert not torch.allclose(defended, honest)


@pytest.mark.parametrize("defence", DEFENCES)
@pytest.mark.parametrize("attack", ["badnets", "label-flip"])
def test_attackers_who_poison_data_alone_run_the_defences(attack, defence, tmp_path):
    assert not torch.allclose(sent(tmp_path, attack, defence)[0], sent(tmp_path, attack, PLAIN)[0])


@pytest.mark.parametrize("defence", DEFENCES)
def test_a_threat_can_give_any_poisoning_its_training(defence, tmp_path):
    plain, honest = sent(tmp_path, "badnets", PLAIN)
    attacker, defended = sent(tmp_path, "badnets", defence, ", capability: training")
    assert torch.equal(attacker, plain)
    assert not torch.allclose(defended, honest)


@pytest.mark.parametrize("attack", ["model-replacement", "neurotoxin", "sign-flip"])
def test_attacks_beyond_data_are_not_applicable_where_a_threat_grants_data_alone(attack, tmp_path):
    text = SCENARIO.format(attack=attack, defence=PLAIN, more=", capability: data")
    scenario = load_text(text, tmp_path / "x.yaml")
    (cell,) = cells(scenario)
    reason = reason_not_applicable(cell, data_facts(scenario, None), None)
    assert reason == f"{attack} needs capability: training; the threat 'backdoor' grants data alone"


def test_a_record_says_what_the_attackers_controlled(tmp_path):
    text = SCENARIO.format(attack="badnets, model-replacement, sign-flip", defence=PLAIN, more="")
    result = harness.run(load_text(text, tmp_path / "x.yaml"), device="cpu", jobs=0, store=tmp_path / "runs")
    found = {record["cell"]["attack"]: record["attack"]["capability"] for record in result.records}
    assert found == {"badnets": "data", "model-replacement": "training", "sign-flip": "training"}


@pytest.mark.parametrize("attack", ["badnets", "model-replacement", "sign-flip"])
@pytest.mark.parametrize("defence", DEFENCES[1:3])
def test_attackers_are_promised_nothing(defence, attack, tmp_path):
    """They run no defence, or poison some records by what the others are: one then changes many."""
    training = training_of(SCENARIO.format(attack=attack, defence=defence, more=""), tmp_path)
    (attacker,) = training.malicious
    (found,) = training.guarantees([training.set_up(training.initial_module()).prepared])
    assert set(found.client_epsilon) == {str(i) for i in range(4) if i != attacker}
    assert found.epsilon >= max(found.client_epsilon.values()) > 0


def test_the_default_capability_changes_no_hash(tmp_path):
    """Boards name scenarios by it."""
    texts = [
        SCENARIO.format(attack="badnets", defence=PLAIN, more=more) for more in ("", ", capability: data")
    ]
    plain, data = (load_text(text, tmp_path / "x.yaml") for text in texts)
    assert plain.hash() != data.hash()
    written = plain.to_dict()
    assert written["threats"][0].pop("capability") is None
    older = load_text(json.dumps(written), tmp_path / "x.yaml")
    assert older.hash() == plain.hash()


def test_what_is_trained_is_the_same_for_attackers_who_control_their_training(tmp_path):
    """In fine-tuning a compressor's own hook, such as a distillation loss, is the task and no defence."""
    training = training_of(
        SCENARIO.format(attack="model-replacement", defence=DEFENCES[0], more=""), tmp_path
    )
    task = harness.create("defence", "label-smoothing")
    module = training.initial_module()
    members = training.set_up(module, hooks=(task,)).federation.clients
    (attacker,) = training.malicious
    attacking = members[attacker].attacking
    assert [hook.name for hook in attacking.hooks] == ["label-smoothing", "model-replacement"]
    assert len(attacking.prepared) == 2
    assert [hook.name for hook in members[attacker].hooks] == ["label-smoothing", "gradient-noise"]
