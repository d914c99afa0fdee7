"""The threat model end to end: when attackers act, who takes part, what rules are given, who is found."""

from __future__ import annotations

import itertools
from typing import ClassVar

import pytest
import torch

import harness
from harness.api import (
    MERGED,
    Aggregator,
    ByzantineAttack,
    ClientData,
    PoisoningAttack,
    PreAggregator,
    UpdateContext,
    hookimpl,
)
from harness.engine import plan
from harness.errors import ScenarioError
from harness.federation.counts import participants
from harness.registry import registry
from harness.scenario import load_text

BASE = """
schema: 1
name: threats
dataset: digits
model: {mlp: {hidden: [8]}}
federation: {clients: 6, rounds: 4, local: {steps: 1, batch_size: 16, optimizer: {sgd: {lr: 0.2}}}}
"""

CALLS: list[dict] = []


class Look(Aggregator):
    """Writes down what a rule is given; keeps all but the clients named."""

    name = "look"
    drop: int = -5
    root: int = 0
    access: str = "private"

    @property
    def data_access(self):
        return self.access if self.root else "none"

    @property
    def root_records(self):
        return self.root

    def aggregate(self, updates, context):
        x = torch.rand(3, *context.input_shape, generator=context.generator)
        root = context.root_update() if context.root_update else None
        CALLS.append(
            {
                "updates": updates.clone(),
                "ids": list(context.client_ids),
                "round": (context.round, context.rounds),
                "x": x,
                "logits": context.logits(context.global_weights, x),
                "weights": context.global_weights.clone(),
                "root": root,
            }
        )
        kept = [i for i, c in enumerate(context.client_ids) if c != self.drop]
        context.report(kept=kept)
        return updates[kept].mean(0)


class Weigh(Aggregator):
    """Reports weights: nothing for the last row."""

    name = "weigh"

    def aggregate(self, updates, context):
        context.report(weights=[1.0] * (len(updates) - 1) + [0.1])
        return updates.mean(0)


class Merge(PreAggregator):
    """Means of pairs."""

    name = "merge"

    def transform(self, updates, context):
        rows = updates.reshape(-1, 2, updates.shape[1]).mean(1)
        n = len(rows)
        return rows, context.with_rows(torch.full((n,), 1 / n), [MERGED] * n)


class Ones(ByzantineAttack):
    """A row of ones."""

    name = "ones"
    uses_own: ClassVar[bool] = False

    def craft(self, honest, context):
        CALLS.append({"crafted": context.round, "whose": list(context.ids), "honest": honest.clone()})
        return torch.ones(context.m, honest.shape[1])


class Probe(Ones):
    """Needs the server's rule."""

    name = "needs-rule"
    knowledge: ClassVar[str] = "omniscient"


class Mark(PoisoningAttack):
    """Labels become 0; updates become a thousand; says what its hooks are told. Success is scored on its own."""

    name = "mark"

    @property
    def backdoor_target(self):
        return 0

    def poison(self, data, context):
        return ClientData(data.images, torch.zeros_like(data.labels))

    def gradient(self, local):
        CALLS.append({"start": local.start.clone(), "moved": local.moved, "logits": local.logits})

    def update(self, delta, context: UpdateContext):
        CALLS.append({"poisoned": context.round, "counts": (context.clients, context.malicious)})
        return delta * 0 + 1000

    def success_records(self, input_shape, root):
        return ClientData(torch.zeros(7, *input_shape), torch.tensor([1, 2, 3, 4, 5, 6, 0]))


class Constant(torch.nn.Module):
    """Answers one class, whatever it sees."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return torch.nn.functional.one_hot(torch.full((len(x),), 7), 10).float()


class Deployed(Aggregator):
    """Replaces the model at inference."""

    name = "deployed"

    def aggregate(self, updates, context):
        return updates.mean(0)

    def inference(self, model):
        return Constant(model)


class _Module:
    @staticmethod
    @hookimpl
    def harness_register(register):
        for plugin in (Look, Weigh, Merge, Ones, Probe, Mark, Deployed):
            register(plugin)


@pytest.fixture(scope="module", autouse=True)
def _registered():
    if "look" not in registry().names("aggregator"):
        registry().add(_Module(), "threat-model", "threat-model-tests")


@pytest.fixture(autouse=True)
def _forget():
    CALLS.clear()


def run(text, tmp_path, ok=True, base=BASE):
    scenario = load_text(base + text, tmp_path / "x.yaml")
    result = harness.run(scenario, device="cpu", jobs=0, store=tmp_path / "runs")
    if ok:
        assert result.failed == 0, [r["error"] for r in result.records if r["error"]]
    return result.records


def of(key):
    return [call[key] for call in CALLS if key in call]


def test_an_attack_lasts_from_its_start_round_to_its_stop_round(tmp_path):
    threat = "threats: [{name: b, malicious: 0.2, start_round: 2, stop_round: 3, attacks: [ones]}]"
    (record,) = run("aggregators: [look]\n" + threat, tmp_path)
    (bad,) = record["training"]["malicious"]
    assert of("crafted") == [1, 2]
    for updates, number in zip(of("updates"), range(4), strict=True):
        assert bool((updates[bad] == 1).all()) == (number in (1, 2))


def test_poisoning_too_is_honest_outside_its_rounds(tmp_path):
    threat = "threats: [{name: b, malicious: 0.2, start_round: 3, attacks: [mark]}]"
    (attacked,) = run("aggregators: [look]\n" + threat, tmp_path)
    (bad,) = attacked["training"]["malicious"]
    assert of("poisoned") == [2, 3]
    under_attack = of("updates")
    CALLS.clear()
    run("aggregators: [look]", tmp_path)
    torch.testing.assert_close(of("updates")[:2], under_attack[:2], rtol=0, atol=0)
    assert (under_attack[2][bad] == 1000).all()


def test_hooks_are_told_the_start_and_the_last_move_of_the_global_weights(tmp_path):
    run("aggregators: [look]\nthreats: [{name: b, malicious: 0.4, attacks: [mark]}]", tmp_path)
    weights, starts, moved = of("weights"), of("start")[::2], of("moved")[::2]
    torch.testing.assert_close(starts, weights, rtol=0, atol=0)
    assert moved[0] is None
    torch.testing.assert_close(moved[1:], [b - a for a, b in itertools.pairwise(weights)])
    assert of("counts") == [(6, 2)] * 8
    assert all(callable(logits) for logits in of("logits") if not torch.is_tensor(logits))


def test_a_backdoor_with_test_records_of_its_own_is_scored_on_these(tmp_path):
    (record,) = run("threats: [{name: b, malicious: 0.2, attacks: [mark]}]", tmp_path)
    assert record["attack"]["samples"] == 7
    # One image seven times: it has one prediction, and one of the seven is of the target class.
    assert record["scores"]["attack_success_rate"] in (0.0, 1.0)


@pytest.mark.parametrize("participation", ["sampled", "always"])
def test_attackers_are_drawn_like_others_or_take_part_in_every_round(participation, tmp_path):
    base = BASE.replace("rounds: 4", "rounds: 12, participation: 0.5")
    threat = f"threats: [{{name: b, malicious: 0.34, participation: {participation}, attacks: [ones]}}]"
    (record,) = run("aggregators: [look]\n" + threat, tmp_path, base=base)
    malicious = set(record["training"]["malicious"])
    assert len(malicious) == 2
    there = [malicious & set(ids) for ids in of("ids")]
    assert all(len(ids) == 3 for ids in of("ids"))
    if participation == "always":
        assert all(found == malicious for found in there)
    else:
        assert len({len(found) for found in there}) > 1


def test_the_schedule_changes_only_as_far_as_it_must():
    plain = participants(20, 0.5, 30, 0, "train")
    forced = participants(20, 0.5, 30, 0, "train", always=(3, 7))
    for a, b in zip(plain, forced, strict=True):
        assert {3, 7} <= set(b)
        assert len(b) == 10
        assert len(set(a) - set(b)) <= 2
    assert participants(20, 0.1, 3, 0, "train", always=(1, 2, 3)) == [[1, 2]] * 3


def test_a_rule_sees_rounds_and_can_ask_the_network(tmp_path):
    run("aggregators: [look]", tmp_path)
    assert [c["round"] for c in CALLS] == [(i, 4) for i in range(4)]
    first = CALLS[0]
    model = harness.create("model", "mlp", hidden=[8]).build((1, 8, 8), 10)
    torch.nn.utils.vector_to_parameters(first["weights"], model.parameters())
    torch.testing.assert_close(first["logits"], model.eval()(first["x"]))


def test_a_root_update_is_what_an_honest_client_with_the_root_data_would_send(tmp_path):
    (record,) = run("aggregators: [look: {root: 16}]", tmp_path)
    assert record["status"] == "scored"
    data = harness.create("dataset", "digits").load()
    model = harness.create("model", "mlp", hidden=[8]).build((1, 8, 8), 10)
    drawn = _root_positions(len(data.val), 16)
    x = torch.from_numpy(data.val.images[drawn]).float()
    x = x / 255 if data.val.images.dtype == "uint8" else x
    assert len(of("root")) == 4
    for root, weights in zip(of("root"), of("weights"), strict=True):  # in each round from that round's model
        torch.nn.utils.vector_to_parameters(weights.clone(), model.parameters())
        loss = torch.nn.functional.cross_entropy(model(x), torch.from_numpy(data.val.labels[drawn]))
        grads = torch.autograd.grad(loss, list(model.parameters()))
        expected = -0.2 * torch.cat([g.reshape(-1) for g in grads])
        torch.testing.assert_close(root, expected, rtol=1e-4, atol=1e-6)


def _root_positions(size, count):
    from harness.random import numpy_generator

    return sorted(numpy_generator(0, "root dataset").permutation(size)[:count].tolist())


def test_root_data_is_public_only_where_the_scenario_says_so(tmp_path):
    (refused,) = run("aggregators: [look: {root: 16, access: public}]", tmp_path)
    assert refused["status"] == "not-applicable"
    assert "unprotected: [val]" in refused["reason"]
    (allowed,) = run("unprotected: [val]\naggregators: [look: {root: 16, access: public}]", tmp_path)
    assert allowed["status"] == "scored"


@pytest.mark.parametrize(("unprotected", "holds"), [("", False), ("unprotected: [val]\n", True)])
def test_root_data_breaks_the_guarantee_unless_it_needs_no_protection(unprotected, holds, tmp_path):
    text = unprotected + "defences: [dp-sgd: {epsilon: 8}]\naggregators: [look: {root: 16}]"
    (record,) = run(text, tmp_path)
    assert record["guarantee"]["holds"] == holds
    assert bool(record["guarantee"]["broken_by"]) == (not holds)


def test_knowledge_short_of_what_an_attack_needs_is_not_applicable(tmp_path):
    threat = "threats: [{name: b, malicious: 0.2, knowledge: updates, attacks: [needs-rule]}]"
    (record,) = run(threat, tmp_path)
    assert record["status"] == "not-applicable"
    assert record["reason"] == "needs-rule needs knowledge: omniscient; the threat 'b' grants updates"


@pytest.mark.parametrize("knowledge", ["own", "updates", "omniscient"])
def test_attackers_are_told_whose_updates_they_see(knowledge, tmp_path):
    threat = f"threats: [{{name: b, malicious: 0.34, knowledge: {knowledge}, attacks: [ones]}}]"
    (record,) = run(threat, tmp_path)
    malicious = record["training"]["malicious"]
    others = [i for i in range(6) if i not in malicious]
    assert of("whose")[0] == (malicious if knowledge == "own" else others)


def test_detection_counts_clients_and_rounds(tmp_path):
    threat = "threats: [{name: none}, {name: b, malicious: 0.34, start_round: 3, attacks: [ones]}]"
    first = run("aggregators: [weigh]\n" + threat, tmp_path)[1]
    bad = first["training"]["malicious"]
    benign, attacked = run(f"aggregators: [look: {{drop: {bad[0]}}}]\n" + threat, tmp_path)
    # Two of four rounds are attacked by two of six clients; one of them is left out of all four rounds.
    assert attacked["scores"]["detection_precision"] == pytest.approx(2 / 4)
    assert attacked["scores"]["detection_recall"] == pytest.approx(2 / 4)
    assert attacked["scores"]["detection_false_positive_rate"] == pytest.approx(2 / 20)
    assert benign["scores"]["detection_false_positive_rate"] == pytest.approx(4 / 24)
    assert benign["scores"]["detection_precision"] == 0
    assert "detection_recall" not in benign["scores"]
    # Weights: the last client counts as found.
    assert first["scores"]["detection_recall"] == pytest.approx((5 in bad) / 2)


def test_rows_that_several_clients_share_single_nobody_out(tmp_path):
    threat = "threats: [{name: b, malicious: 0.34, attacks: [ones]}]"
    (record,) = run("aggregators: [[merge, weigh]]\n" + threat, tmp_path)
    assert not [name for name in record["scores"] if name.startswith("detection")]
    assert all("kept" not in entry for entry in record["history"])


def test_a_rule_may_be_part_of_the_deployed_model(tmp_path):
    plain, deployed = run("aggregators: [mean, deployed]", tmp_path)
    labels = harness.create("dataset", "digits").load().test.labels
    assert deployed["scores"]["accuracy"] == pytest.approx((labels == 7).mean())
    assert plain["scores"]["loss"] != deployed["scores"]["loss"]


@pytest.mark.parametrize(
    ("threat", "message"),
    [
        (
            "{name: b, malicious: 0.2, start_round: 9, attacks: [ones]}",
            "start_round is 9, but there are only 4",
        ),
        (
            "{name: b, malicious: 0.2, start_round: 3, stop_round: 2, attacks: [ones]}",
            "comes before start_round",
        ),
        ("{name: b, start_round: 2, attacks: [fgsm]}", "start_round is for threats of phase training"),
        (
            "{name: b, participation: always, attacks: [fgsm]}",
            "participation is for threats of phase training",
        ),
        ("{name: none, stop_round: 2}", "the threat named none takes no stop_round"),
        ("{name: b, malicious: 0.2, participation: allways, attacks: [ones]}", "always"),
    ],
)
def test_bad_rounds_and_participation_are_one_clear_error(threat, message):
    with pytest.raises(ScenarioError, match=message):
        load_text(BASE + f"threats: [{threat}]")


def test_more_attackers_than_places_is_an_error():
    base = BASE.replace("rounds: 4", "rounds: 4, participation: 0.2")
    with pytest.raises(
        ScenarioError, match="3 malicious clients cannot take part in every round of 1 clients"
    ):
        load_text(base + "threats: [{name: b, malicious: 0.5, participation: always, attacks: [ones]}]")


def test_where_coins_draw_the_round_attackers_come_on_top():
    base = BASE.replace("rounds: 4", "rounds: 4, participation: 0.2, sampling: poisson")
    load_text(base + "threats: [{name: b, malicious: 0.5, participation: always, attacks: [ones]}]")


class Blowup(Aggregator):
    """Sends the weights beyond what a network can compute with."""

    name = "blowup"

    def aggregate(self, updates, context):
        return torch.full_like(updates[0], 1e38)


def test_a_model_that_has_diverged_is_scored_as_it_is(tmp_path):
    if "blowup" not in registry().names("aggregator"):
        registry().add(_Blowup(), "threat-model-blowup", "threat-model-tests")
    threat = (
        "threats: [{name: b, malicious: 0.34, attacks: [needs-rule, min-max, fang: {target: krum}, mimic]}]"
    )
    for record in run("aggregators: [blowup]\n" + threat, tmp_path):
        assert record["status"] == "scored"
        assert record["training"]["dropped_updates"] > 0


class _Blowup:
    @staticmethod
    @hookimpl
    def harness_register(register):
        register(Blowup)


def test_a_target_that_no_class_has_is_told_before_training(tmp_path):
    class Far(PoisoningAttack):
        """A backdoor to a class that need not exist."""

        name = "far"
        target: int = 0

        @property
        def backdoor_target(self):
            return self.target

        def trigger(self, x):
            return x

    class Package:
        @hookimpl
        def harness_register(self, register):
            register(Far)

    registry.cache_clear()
    try:
        registry().add(Package(), "far", "psr-harness")
        text = (
            BASE
            + "threats: [{name: b, malicious: 0.5, attacks: [far: {target: 9}, far: {target: 10}, far: {target: -1}]}]"
        )
        planned = plan(load_text(text), device="cpu", jobs=1, store=tmp_path / "s").to_dict()
        found = [cell["reason"] for cell in planned["scenarios"][0]["cells"]]
    finally:
        registry.cache_clear()
    said = "far: its backdoor_target is {}, but the classes run from 0 to 9"
    assert found == [None, said.format(10), said.format(-1)]
