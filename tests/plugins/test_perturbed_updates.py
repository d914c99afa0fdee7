"""Defences that promise nothing: noise and pruning of updates, and what secure aggregation leaves to see."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import kstest

import harness
from harness.api import PluginError, UpdateContext, torch_generator
from harness.scenario import load_text
from harness_plugins.defences.perturbed_updates import GradientNoise, GradientPruning
from harness_plugins.defences.secure_aggregation import SecureAggregation


def context(seed=0):
    return UpdateContext(0, 0, torch_generator("update", seed))


def update(d=1000, seed=0, dtype=torch.float32):
    return torch.randn(d, generator=torch_generator("delta", seed), dtype=dtype)


# noise -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-3, 2.5])
@pytest.mark.parametrize("distribution", ["gaussian", "laplacian"])
def test_noise_has_its_distribution_and_deviation(distribution, scale, dtype):
    d = 40_000
    defence = GradientNoise(scale=scale, distribution=distribution)
    noise = defence.update(torch.zeros(d, dtype=dtype), context()).double() / scale
    law, other = (
        ("norm", ()),
        ("laplace", (0.0, 1 / math.sqrt(2))),
    )  # Laplace of scale b has deviation b sqrt 2
    if distribution == "laplacian":
        law, other = other, law
    assert kstest(noise.numpy(), law[0], args=law[1]).pvalue > 0.001
    assert kstest(noise.numpy(), other[0], args=other[1]).pvalue < 1e-10
    fourth = 3.0 if distribution == "gaussian" else 6.0
    assert abs(float(noise.square().mean()) - 1) < 5 * math.sqrt((fourth - 1) / d)
    assert abs(float(noise.mean())) < 5 / math.sqrt(d)


@pytest.mark.parametrize("distribution", ["gaussian", "laplacian"])
def test_noise_is_added_whatever_the_update(distribution):
    defence, delta = GradientNoise(scale=0.1, distribution=distribution), 100 * update(dtype=torch.float64)
    before = delta.clone()
    found = defence.update(delta, context())
    assert torch.equal(delta, before)
    assert found.dtype == delta.dtype
    noise = defence.update(torch.zeros_like(delta), context())
    torch.testing.assert_close(found - delta, noise, rtol=0, atol=1e-12)  # not clipped, not scaled
    assert not torch.equal(noise, defence.update(torch.zeros_like(delta), context(1)))
    assert torch.equal(GradientNoise(scale=0.0, distribution=distribution).update(delta, context()), delta)


def test_two_draws_from_one_generator_differ():
    shared = context()
    first, second = (GradientNoise(scale=1.0).update(torch.zeros(20_000), shared) for _ in range(2))
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 4 / math.sqrt(20_000)


# pruning ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 7, 1000])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9, 0.999])
def test_pruning_keeps_exactly_the_largest_coordinates(ratio, d):
    delta = update(d)
    before = delta.clone()
    found = GradientPruning(ratio=ratio).update(delta, context())
    assert torch.equal(delta, before)
    kept = max(1, round((1 - ratio) * d))
    order = sorted(range(d), key=lambda i: -abs(float(delta[i])))
    assert found.nonzero().squeeze(1).tolist() == sorted(order[:kept])
    assert torch.equal(found[order[:kept]], delta[order[:kept]])  # as they were, signs included
    assert {float(v) for v in found[order[kept:]]} <= {0.0}


def test_pruning_keeps_as_many_where_all_are_alike():
    found = GradientPruning(ratio=0.7).update(-torch.ones(10), context())
    assert [int((found == -1).sum()), int((found == 0).sum())] == [3, 7]


def test_pruning_nothing_is_the_identity():
    delta = update()
    delta[3] = 0.0
    assert torch.equal(GradientPruning(ratio=0.0).update(delta, context()), delta)


def test_pruning_looks_at_the_whole_update_at_once():
    """One layer's coordinates are all larger: the other layer's go, all of them."""
    delta = torch.cat([0.01 * update(50), 10 + update(50).abs()])
    found = GradientPruning(ratio=0.5).update(delta, context())
    assert torch.equal(found, torch.cat([torch.zeros(50), delta[50:]]))


@pytest.mark.parametrize(
    ("defence", "parameters"),
    [
        (GradientNoise, {"scale": -1.0}),
        (GradientNoise, {"scale": math.inf}),
        (GradientNoise, {"distribution": "uniform"}),
        (GradientPruning, {"ratio": 1.0}),
        (GradientPruning, {"ratio": -0.1}),
    ],
)
def test_bad_parameters(defence, parameters):
    with pytest.raises(PluginError):
        defence.create(parameters)


@pytest.mark.parametrize("defence", [GradientNoise(), GradientPruning(), SecureAggregation()])
def test_none_of_them_gives_a_guarantee(defence):
    assert defence.guarantee([{}]) is None
    assert defence.protects is None


# whole runs ------------------------------------------------------------------------------------------

BASE = """
schema: 1
name: views
dataset: digits
model: {mlp: {hidden: [8]}}
federation: {clients: 6, rounds: 2, local: {steps: 2, batch_size: 16, optimizer: {sgd: {lr: 0.2}}}}
metrics: [accuracy]
"""


def records(text, tmp_path):
    scenario = load_text(BASE + text, tmp_path / "views.yaml")
    result = harness.run(scenario, device="cpu", jobs=0, store=tmp_path / "runs")
    assert result.failed == 0, [r["error"] for r in result.records if r["error"]]
    return result.records


def test_a_run_with_them_claims_nothing(tmp_path):
    text = "defences: [none, gradient-noise: {scale: 0.05}, gradient-pruning: {ratio: 0.9}]\n"
    found = records(text, tmp_path)
    assert [r["guarantee"] for r in found] == [None] * 3
    losses = [r["history"][-1]["val_loss"] for r in found]
    assert len(set(losses)) == 3  # and yet they do something


def test_secure_aggregation_takes_rules_that_need_only_the_sum(tmp_path):
    text = (
        "defences: [secure-aggregation]\n"
        "aggregators: [mean, median, krum, [nnm, mean], [bucketing: {s: 2}, mean], norm-clipping]\n"
    )
    reasons = {r["cell"]["aggregator"]: (r["status"], r["reason"]) for r in records(text, tmp_path)}
    assert len(reasons) == 6
    assert [name for name, (status, _) in reasons.items() if status == "scored"] == ["mean"]
    for name, (status, reason) in reasons.items():
        if name != "mean":
            first = name.split(" ")[0].split("(")[0]
            assert status == "not-applicable"
            assert reason.startswith(f"{first} needs every update; with secure-aggregation")


@pytest.mark.parametrize("mechanism", ["dp-fedavg", "dp-ftrl"])
def test_a_server_that_clips_each_update_must_see_it(tmp_path, mechanism):
    found = records(f"defences: [[secure-aggregation, {mechanism}: {{noise_multiplier: 1}}]]\n", tmp_path)
    assert {r["status"] for r in found} == {"not-applicable"}
    assert found[0]["reason"].startswith(f"{mechanism} needs every update; with secure-aggregation")


def test_secure_aggregation_takes_compressors_whose_payloads_add_up(tmp_path):
    text = (
        "defences: [none, secure-aggregation]\n"
        "compressors: [none, powersgd, qsgd, top-k: {ratio: 0.1}, static-int8]\n"
    )
    found = records(text, tmp_path)
    assert {r["status"] for r in found if r["cell"]["defence"] == "none"} == {"scored"}
    hidden = {r["cell"]["compressor"].split("(")[0]: r for r in found if r["cell"]["defence"] != "none"}
    scored = {name for name, r in hidden.items() if r["status"] == "scored"}
    assert scored == {"none", "powersgd", "static-int8"}
    for name in ("qsgd", "top-k"):
        assert hidden[name]["reason"].startswith(f"{name} needs every update; with secure-aggregation")
    # Nothing of the training changes: the same scores, compressor by compressor.
    plain = {r["cell"]["compressor"].split("(")[0]: r for r in found if r["cell"]["defence"] == "none"}
    for name in scored:
        assert hidden[name]["scores"]["accuracy"] == plain[name]["scores"]["accuracy"]
        for ours, theirs in zip(hidden[name]["history"], plain[name]["history"], strict=True):
            assert ours["val_loss"] == theirs["val_loss"]


@pytest.mark.parametrize("knowledge", ["own", "updates", "omniscient"])
def test_with_secure_aggregation_attackers_see_their_own_updates_alone(tmp_path, knowledge):
    text = (
        "defences: [none, secure-aggregation]\n"
        f"threats: [{{name: liars, malicious: 0.2, knowledge: {knowledge}, attacks: [ipm, gaussian]}}]\n"
    )
    found = records(text, tmp_path)
    assert len(found) == 4
    assert {r["status"] for r in found if r["cell"]["defence"] == "none"} == {"scored"}
    for record in found[2:]:
        assert record["cell"]["defence"] == "secure-aggregation"
        if knowledge == "own":
            assert record["status"] == "scored"
        else:
            assert record["status"] == "not-applicable"
            assert "knowledge: own" in record["reason"]
            assert "'liars'" in record["reason"]
    if knowledge == "own":
        assert [r["scores"]["accuracy"] for r in found[:2]] == [r["scores"]["accuracy"] for r in found[2:]]


def test_poisoned_data_needs_nobodys_updates(tmp_path):
    text = (
        "defences: [secure-aggregation]\n"
        "threats: [{name: poison, malicious: 0.2, attacks: [label-flip, badnets: {target: 1}]}]\n"
    )
    assert [r["status"] for r in records(text, tmp_path)] == ["scored"] * 2
