"""The estimate of a plan: arithmetic at a measured speed, corrected by what stages alike took."""

from __future__ import annotations

import itertools

import pytest
import torch

from harness import create, estimate
from harness.scenario import load_text
from harness.scenario_plan import plan_scenarios

MEASURE = estimate._measure
STEP, FORWARD = 0.25, 1e-3  # seconds of a local step, and of an image through the network
SCENARIO = """
schema: 1
name: small
dataset: digits
model: {mlp: {hidden: [8]}}
federation: {clients: 4, rounds: 3, local: {steps: 2, batch_size: 16}}
evaluation: {subset: 50}
defences: [none, gradient-clipping: {max_norm: 1.0}]
compressors: [none, static-int8]
threats:
  - {name: none}
  - {name: evasion, budget: {norm: linf, eps: 0.1}, surrogate: uncompressed, attacks: [ATTACKS]}
  - {name: part, subset: 20, budget: {norm: linf, eps: 0.2}, attacks: [bim: {steps: 4}]}
seeds: [0]
"""


@pytest.fixture(autouse=True)
def speed(monkeypatch):
    monkeypatch.setattr(estimate, "_measure", lambda *_: (STEP, FORWARD))


def planned(attacks: str = "fgsm, pgd: {steps: 2}"):
    return plan_scenarios([load_text(SCENARIO.replace("ATTACKS", attacks))], "cpu", None, [])[0]


def stage(plan, kind, *names):
    found = [s for s in plan.stages.values() if s.kind == kind and all(n in s.label for n in names)]
    return min(found, key=lambda s: len(s.label))


def seconds(plan, *stages, known=None, jobs=1):
    return estimate.elapsed(estimate.estimate(plan, list(stages), known or {}).values(), jobs)


def test_a_training_costs_its_steps():
    plan = planned()
    assert seconds(plan, stage(plan, "train")) == pytest.approx(estimate.OVERHEAD + 3 * 2 * 4 * STEP)


def test_scores_cost_the_images_of_the_subset():
    plan = planned()
    assert seconds(plan, stage(plan, "clean")) == pytest.approx(estimate.OVERHEAD + 0.5 + 50 * FORWARD)
    pgd = stage(plan, "attack", "pgd")
    assert seconds(plan, pgd) == pytest.approx(estimate.OVERHEAD + 50 * FORWARD * (3 * 2 + 2))
    assert seconds(plan, stage(plan, "attack", "bim")) == pytest.approx(
        estimate.OVERHEAD + 20 * FORWARD * (3 * 4 + 2)
    )


def test_an_attack_in_two_ways_costs_twice():
    plan = planned()
    pgd = stage(plan, "attack", "pgd", "static-int8")
    assert len(pgd.spec.ways) == 2
    assert seconds(plan, pgd) == pytest.approx(estimate.OVERHEAD + 50 * FORWARD * (2 * 3 * 2 + 2))


@pytest.mark.parametrize(
    ("name", "parameters", "classes", "passes"),
    [
        ("fgsm", {}, 10, 3),
        ("pgd", {"steps": 20, "restarts": 2}, 10, 120),
        ("square", {"queries": 500}, 10, 500),  # a question is one pass, a gradient three
        ("apgd", {"loss": "targeted"}, 10, 3 * 100 * 9),
        ("apgd", {"loss": "targeted"}, 5, 3 * 100 * 4),  # only towards the classes there are
        ("fab", {}, 3, 3 * 100 * 2),
        ("autoattack", {}, 10, 3 * (100 + 900 + 900) + 5000),
        ("autoattack", {}, 3, 3 * (100 + 100 + 200) + 5000),
        ("autoattack", {}, 2, 3 * (100 + 100) + 5000),
        ("multi-attack", {"attacks": ["fgsm", {"square": {"queries": 7}}]}, 10, 3 + 7),
        ("transfer", {"attack": {"square": {"queries": 7}}}, 10, 7),
        ("one-pixel", {"steps": 2, "population": 4}, 10, 8),
    ],
)
def test_passes_of_an_attack(name, parameters, classes, passes):
    assert create("attack", name, **parameters).passes(classes) == passes


def test_an_attack_of_another_package_is_counted_by_its_effort():
    from harness.contracts.attack import EvasionAttack

    class Theirs(EvasionAttack):
        name = "theirs"

        @property
        def effort(self):
            return 7

        def perturb(self, model, x, y, context):
            return x

    assert Theirs().passes(10) == 21


def test_what_the_store_has_seen_is_taken_as_it_is():
    plan = planned()
    train = stage(plan, "train")
    assert seconds(plan, train, known={(train.kind, train.signature): 7.5}) == 7.5


def test_stages_alike_correct_what_is_computed():
    plan = planned()
    plain, clipped = stage(plan, "train", "none"), stage(plan, "train", "gradient-clipping")
    known = {("train", plain.signature): 2 * seconds(plan, plain)}
    assert seconds(plan, clipped, known=known) == pytest.approx(2 * seconds(plan, clipped))
    clean = stage(plan, "clean")
    assert seconds(plan, clean, known=known) == pytest.approx(
        seconds(plan, clean)
    )  # nothing like it was seen


def test_the_most_alike_count():
    plan = planned()
    fgsm, int8 = stage(plan, "attack", "fgsm on none"), stage(plan, "attack", "fgsm on static-int8 of none")
    known = {("attack", s.signature): factor * seconds(plan, s) for s, factor in ((fgsm, 0.5), (int8, 3.0))}

    def factor(*names):
        wanted = stage(plan, "attack", *names)
        return seconds(plan, wanted, known=known) / seconds(plan, wanted)

    assert factor("fgsm on gradient-clipping") == pytest.approx(
        0.5
    )  # the same attack on the same compressors
    assert factor("fgsm on static-int8 of gradient-clipping") == pytest.approx(3.0)
    both = sum(known.values()) / (seconds(plan, fgsm) + seconds(plan, int8))
    assert factor("pgd(steps=2) on none") == pytest.approx(both)  # another attack: all attacks that were seen


def test_jobs_share_the_time_but_not_one_stage():
    plan = planned()
    one, other = stage(plan, "train", "none"), stage(plan, "train", "gradient-clipping")
    known = {("train", one.signature): 30.0, ("train", other.signature): 10.0}
    assert seconds(plan, one, other, known=known, jobs=1) == 40.0
    assert seconds(plan, one, other, known=known, jobs=2) == 30.0  # the longest
    assert estimate.elapsed([30.0, 30.0, 10.0], 2) == 35.0
    assert estimate.elapsed([], 2) == 0.0


@pytest.mark.parametrize(
    "change",
    [
        ("batch_size: 16", f"batch_size: {10**12}"),  # no client has as many records
        ("hidden: [8]", f"hidden: [{10**13}]"),  # no memory has room for it
    ],
)
def test_what_cannot_be_measured_stops_no_plan(change, monkeypatch):
    monkeypatch.setattr(estimate, "_measure", MEASURE)
    monkeypatch.setattr("harness.scenario_data.LARGEST", 2**70)  # a plan refuses such a network by itself
    found = plan_scenarios(
        [load_text(SCENARIO.replace("ATTACKS", "fgsm").replace(*change))], "cpu", None, []
    )[0]
    assert all(value > 0 for value in estimate.estimate(found, list(found.stages.values()), {}).values())


def test_time_in_which_other_programs_have_the_processor_is_not_counted(monkeypatch):
    wall = itertools.count(step=1000.0)
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: next(wall))
    (facts,) = planned().facts.values()
    step, forward = MEASURE(create("model", "mlp", hidden=[3, 5]), None, facts, 16, 1, "cpu")
    assert 0 < forward < step < 100


def test_a_network_is_measured_the_way_that_stages_run_it():
    from torch import nn

    seen = set()

    class Watched(nn.Sequential):
        def forward(self, x):
            # As in `cheap_pooling`, whose layers have other classes while it is on.
            seen.add((self.training, torch.is_grad_enabled(), type(self[0]) is nn.MaxPool2d))
            return super().forward(x)

    class Model:
        def build(self, shape, classes, normalization):
            return Watched(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, classes))

    (facts,) = planned().facts.values()
    assert MEASURE(Model(), None, facts, 16, 1, "cpu") != estimate.NOMINAL
    assert seen == {(True, True, False), (False, False, False)}
