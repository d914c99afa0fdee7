"""Networks that hold more than what is trained: as one program every training still has its own."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from test_bundles import planned, ready, scores, text
from torch import nn

import harness
from harness.federation.cohort import alike
from harness.federation.local import LocalTrainer
from harness.federation.together import run_together
from harness.federation.vector import flatten
from harness.federation.vectorised import VectorisedTrainer
from harness.scenario import load_text


def frozen(inputs, classes):
    """Random features that are not trained, and norms whose scale is not either."""
    features, norm = nn.Linear(inputs, 32), nn.LayerNorm(32)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    return nn.Sequential(
        nn.Flatten(),
        features.requires_grad_(False),
        norm.requires_grad_(False),
        nn.ReLU(),
        nn.Linear(32, classes),
    )


class Projects(nn.Module):
    """By a matrix that is neither a parameter nor a buffer."""

    def __init__(self, inputs, classes):
        super().__init__()
        self.matrix = torch.randn(inputs, 32) / 8
        self.last = nn.Linear(32, classes)

    def forward(self, x):
        return self.last((x.flatten(1) @ self.matrix).relu())


class Hides(nn.Module):
    """Scales by a number that is in no attribute, and in training alone."""

    def __init__(self, inputs, classes):
        super().__init__()
        scale = torch.rand(()) + 0.5
        self.scaled = lambda x: x * scale
        self.last = nn.Linear(inputs, classes)

    def forward(self, x):
        return self.last(self.scaled(x.flatten(1)) if self.training else x.flatten(1))


NETWORKS = {"frozen": (frozen, 3), "plain": (Projects, None), "hidden": (Hides, None)}


def build_with(monkeypatch, network):
    def build(self, shape, classes, normalization):
        return network(math.prod(shape), classes)

    monkeypatch.setattr(type(harness.create("model", "mlp")), "build", build)


@pytest.mark.parametrize(("network", "trainings"), NETWORKS.values(), ids=NETWORKS)
def test_a_run_scores_as_one_without_programs(tmp_path, monkeypatch, network, trainings):
    build_with(monkeypatch, network)
    whole = text(model="{mlp: {hidden: [8]}}")
    one, beside = (
        harness.run(
            load_text(written, tmp_path / "x.yaml"), device="cpu", jobs=0, store=tmp_path / str(number)
        )
        for number, written in enumerate([whole.replace("clients: vectorised", "clients: sequential"), whole])
    )
    assert beside.executed == one.executed
    assert [status for status, _ in scores(beside).values()] == ["scored"] * 3
    for a, b in zip(one.records, beside.records, strict=True):
        assert a["cell"]["seed"] == b["cell"]["seed"]
        assert [entry["val_loss"] for entry in b["history"]] == pytest.approx(
            [entry["val_loss"] for entry in a["history"]], rel=1e-4
        )
        execution = b["training"]["execution"]
        assert execution["clients"] == "vectorised"
        assert execution.get("trainings") == trainings
        said = ["differ from its own in more than parameters" in reason for reason in execution["alone"]]
        assert said == ([] if trainings else [True])


@pytest.mark.parametrize("defences", ["none", "dp-sgd: {noise_multiplier: 1.0}"])
def test_frozen_parameters_are_each_training_s_own(tmp_path, monkeypatch, defences):
    build_with(monkeypatch, frozen)
    stages = [
        s for s in planned(tmp_path, text(defences, "{mlp: {hidden: [8]}}")).values() if s.kind == "train"
    ]
    # Whichever comes first: what is frozen in it is another's, too, and not all others'.
    stages = 2 * stages[:2]
    alone = [ready(stage, LocalTrainer) for stage in stages]
    for one in alone:
        run_together([one.run(lambda *_: None)])
    together = [ready(stage, VectorisedTrainer) for stage in stages]
    before = [copy.deepcopy(one.federation.module) for one in together]
    run_together([one.run(lambda *_: None) for one in together])
    for a, b, start in zip(alone, together, before, strict=True):
        expected, found = flatten(a.federation.module), flatten(b.federation.module)
        assert float((expected - flatten(start)).norm()) > 0.01
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
        assert torch.equal(b.federation.module[1].weight, start[1].weight)
    facts = together[0].federation.trainer.facts
    assert (facts["clients"], facts["alone"]) == ("vectorised", [])
    assert facts["chunk"] > 4  # more than one training has clients


def test_networks_are_alike_where_values_differ_alone():
    x = torch.rand(3, 1, 4, 4)

    def norms(features=6, **settings):
        return nn.Sequential(
            nn.Conv2d(1, features, 3),
            nn.BatchNorm2d(features, **settings),
            nn.Flatten(),
            nn.Linear(features * 4, 3),
        )

    first, other = norms(), norms()
    other[1].running_mean += 1
    states = [copy.deepcopy(module.state_dict()) for module in (first, other)]
    assert alike([first, other], x)
    for module, state in zip((first, other), states, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
        assert module.training
    assert not alike([first, norms(features=5)], x)
    assert not alike([first, other, norms(eps=0.1)], x)
    counts = norms()
    counts[3].until = 5  # of which nothing is seen as yet
    assert not alike([first, counts], x)
    half = norms()
    half[0].weight.requires_grad_(False)
    assert not alike([first, half], x)
