"""Mechanisms that protect clients: closed forms, a matrix of tree nodes, Opacus, the exact Gaussian, the normal law."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from opacus.accountants import RDPAccountant
from scipy.stats import kstest, norm
from torch import nn

import harness
from harness.api import (
    MERGED,
    Aggregator,
    Defence,
    NotApplicable,
    PluginError,
    PrepareContext,
    StackContext,
    torch_generator,
)
from harness.contracts.aggregator import AggregationContext
from harness.contracts.defence import Sampling, UpdateContext
from harness.federation.counts import participants
from harness.federation.local import Client, LocalTrainer
from harness.federation.rounds import Federation, Rules
from harness.federation.together import Run, run_together
from harness.federation.vector import flatten
from harness.grid import cells
from harness.plan import Planner
from harness.privacy.lineage import Parts, apply_lineage
from harness.scenario import SGD, FedAvg, LocalTraining, load_text
from harness.scenario_plan import data_facts, metrics_of
from harness.training import Training
from harness_plugins.aggregators.coordinatewise import Median
from harness_plugins.aggregators.krum import Krum
from harness_plugins.aggregators.mean import Mean
from harness_plugins.defences._client_level import NoisyMean, clip_rows
from harness_plugins.defences.dp_fedavg import DPFedAvg
from harness_plugins.defences.dp_ftrl import DPFTRL, own_share, tree_sensitivity
from harness_plugins.defences.dp_sgd import DPSGD
from harness_plugins.defences.local_dp import LocalDP

MECHANISMS = [DPFedAvg, DPFTRL, LocalDP]


# helpers ------------------------------------------------------------------------------------------


def plan(clients=8, rounds=6, rate=None, schedule=None, history=(), records=400):
    """A federation as a defence plans for it: everybody in every round, unless said otherwise."""
    if schedule is None:
        schedule = [list(range(clients))] * rounds
    return PrepareContext(
        sizes=[records // clients] * clients, steps=[10] * clients, batch_size=16, records=records,
        rounds=rounds, schedule=schedule, client_rate=rate, history=list(history),
    )  # fmt: skip


def server(rows, weights=None, state=None, noise=None, d=None, round=0):
    """What the server knows in a round."""
    n = len(rows)
    weights = torch.full((n,), 1 / max(n, 1)) if weights is None else weights
    d = rows.shape[1] if d is None else d
    return AggregationContext(
        round=round, f=0, weights=weights.to(rows), client_ids=list(range(n)), layout={"all": slice(0, d)},
        generator=torch_generator("rule", round), global_weights=torch.zeros(d, dtype=rows.dtype),
        state={} if state is None else state, noise=torch_generator("server", round) if noise is None else noise,
    )  # fmt: skip


def updates(n=5, d=40, seed=0, dtype=torch.float64):
    """Rows of very different norms."""
    rows = torch.randn(n, d, generator=torch_generator("rows", seed), dtype=dtype)
    return rows * torch.logspace(-1.5, 1.5, n, dtype=dtype)[:, None] / d**0.5


def clipped_sum(rows, c):
    """The formula, one row after another, in float64."""
    total = np.zeros(rows.shape[1])
    for row in rows.double().numpy():
        total += row * min(1.0, c / np.sqrt((row * row).sum()))
    return torch.from_numpy(total)


def is_normal(values, deviation):
    """A Kolmogorov-Smirnov test against N(0, deviation^2), and the variance within five standard errors."""
    values = torch.as_tensor(values).double() / deviation
    assert kstest(values.numpy(), "norm").pvalue > 0.001
    relative = float(values.square().mean())
    assert abs(relative - 1) < 5 * math.sqrt(2 / values.numel())


def opacus_epsilon(segments, delta):
    """Opacus' accountant for (noise multiplier, rate, steps); 0 where nothing was released."""
    accountant = RDPAccountant()
    accountant.history = [segment for segment in segments if segment[2]]
    return accountant.get_epsilon(delta) if accountant.history else 0.0


def gaussian_delta(eps, mu):
    """Exact: Balle and Wang 2018, theorem 8, with mu = sensitivity / standard deviation."""
    return norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu)


BASE = """
schema: 1
name: clients
dataset: digits
model: {mlp: {hidden: [8]}}
"""


def federation(clients=6, rounds=4, more="", partition="iid"):
    local = "local: {steps: 2, batch_size: 16, optimizer: {sgd: {lr: 0.2}}}"
    return (
        f"federation: {{clients: {clients}, rounds: {rounds}, evaluate_every: 0, partition: {partition}, "
        f"{local}{more}}}\n"
    )


def training(text, tmp_path, position=0):
    scenario = load_text(BASE + text, tmp_path / "x.yaml")
    planner = Planner("cpu")
    plan = planner.add(list(cells(scenario))[position], data_facts(scenario, None), metrics_of(scenario))
    stage = planner.stages[plan.stages["train"]]
    return Training(stage.spec, stage.key, "cpu")


def silent(*_):
    pass


def final(stage, **options):
    module = stage.initial_module()
    done = stage.run(module, silent, **options)
    return flatten(module).double(), done


# dp-fedavg: the server's sum -------------------------------------------------------------------------


def fedavg(rows, expected, z=0.0, c=1.0, context=None, **parameters):
    defence = DPFedAvg(noise_multiplier=z, clip_norm=c, **parameters)
    prepared = {"noise_multiplier": z, "update_noise": z, "expected_clients": expected}
    return defence.aggregator(Mean(), prepared).aggregate(rows, context or server(rows))


@pytest.mark.parametrize("expected", [5.0, 9.0, 3.2], ids=["as many", "fewer came", "more came"])
@pytest.mark.parametrize("c", [0.01, 0.7, 100.0])
def test_the_sum_of_clipped_rows_over_the_expected_clients(expected, c):
    rows = updates()
    before = rows.clone()
    found = fedavg(rows, expected, c=c)
    torch.testing.assert_close(found, clipped_sum(rows, c) / expected, rtol=1e-11, atol=1e-14)
    assert torch.equal(rows, before)


def test_the_mean_of_buckets_is_not_divided_by_the_clients_once_more():
    rows = updates(6)
    buckets = rows.view(3, 2, -1).mean(1)
    context = server(buckets).with_rows(torch.full((3,), 1 / 3, dtype=rows.dtype), [MERGED] * 3)
    found = fedavg(buckets, 6, c=100.0, context=context)
    torch.testing.assert_close(found, rows.mean(0), rtol=1e-11, atol=1e-14)


def test_one_client_moves_the_sum_by_at_most_the_clip_norm():
    rows, c = updates(8) * 50, 0.7
    whole = fedavg(rows, 8, c=c)
    for i in range(8):
        kept = [j for j in range(8) if j != i]
        moved = 8 * float((whole - fedavg(rows[kept], 8, c=c)).norm())
        assert moved <= c * (1 + 1e-12)
    assert moved > 0.99 * c


@pytest.mark.parametrize("shape", ["normal", "one large", "constant"])
def test_what_is_clipped_is_no_longer_than_the_clip_norm_in_float32(shape):
    """Ten million squares summed up in float32 are off by more than epsilon's slack."""
    d = 10**7
    rows = torch.ones(1, d) if shape == "constant" else torch.randn(1, d, generator=torch_generator("rows"))
    if shape == "one large":
        rows[0, 0] = 3e4
    for c in (1.0, 0.3):
        length = float(clip_rows(rows, c).double().norm())
        assert c * (1 - 1e-6) < length <= c
    assert torch.equal(clip_rows(rows, 1e9), rows)


def test_rows_of_zeros_stay_zero():
    assert torch.equal(clip_rows(torch.zeros(2, 5), 1.0), torch.zeros(2, 5))


def test_weights_play_no_part():
    rows = updates()
    uneven = torch.tensor([0.9, 0.04, 0.03, 0.02, 0.01], dtype=torch.float64)
    found = [fedavg(rows, 5, z=0.4, context=server(rows, weights=w)) for w in (uneven, None)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("n", [0, 1, 5])
@pytest.mark.parametrize(("z", "c", "expected"), [(1.3, 0.6, 4.0), (0.2, 5.0, 2.5)])
def test_noise_has_z_times_c_over_the_expected_clients(n, z, c, expected):
    d = 20_000
    rows = updates(5, d)[:n]
    found = fedavg(rows, expected, z, c)
    signal = clipped_sum(rows, c) / expected if n else torch.zeros(d)
    is_normal(found - signal, z * c / expected)


def test_without_a_generator_for_noise_there_is_no_release():
    rows = updates()
    context = server(rows)
    context.noise = None
    with pytest.raises(PluginError, match="generator for noise"):
        fedavg(rows, 5, z=1.0, context=context)


def test_a_federations_first_round_is_noised_once(tmp_path):
    text = federation(clients=5, rounds=1)
    both = [
        final(
            training(text + f"defences: [dp-fedavg: {{noise_multiplier: {z}, clip_norm: 0.3}}]\n", tmp_path)
        )
        for z in (0.0, 2.0)
    ]
    is_normal(both[1][0] - both[0][0], 2.0 * 0.3 / 5)


def test_without_clipping_and_noise_it_is_uniform_federated_averaging(tmp_path):
    text = federation(partition="{dirichlet: {alpha: 0.5}}")
    private = "defences: [dp-fedavg: {noise_multiplier: 0, clip_norm: 1000}]\n"
    ours, _ = final(training(text + private, tmp_path))
    uniform, _ = final(
        training(federation(partition="{dirichlet: {alpha: 0.5}}", more=", weighting: uniform"), tmp_path)
    )
    examples, _ = final(training(text, tmp_path))
    torch.testing.assert_close(ours, uniform, rtol=1e-4, atol=1e-6)
    assert float((ours - examples).norm()) > 1e-2


def test_small_clip_norms_bound_how_far_a_round_goes(tmp_path):
    text = federation(rounds=3) + "defences: [dp-fedavg: {noise_multiplier: 0, clip_norm: 0.01}]\n"
    stage = training(text, tmp_path)
    start = flatten(stage.initial_module()).double()
    reached, _ = final(stage)
    assert 0.005 < float((reached - start).norm()) <= 3 * 0.01 * (1 + 1e-4)


# dp-fedavg: what is spent ----------------------------------------------------------------------------


def test_the_guarantee_is_opacus_in_every_round():
    defence = DPFedAvg(noise_multiplier=3.0)
    prepared = defence.prepare(plan(rounds=25))
    found = defence.guarantee([prepared])
    assert prepared["delta"] == pytest.approx(1 / 4000)
    assert prepared["expected_clients"] == 8
    assert found.epsilon == pytest.approx(opacus_epsilon([(3.0, 1.0, 25)], 1 / 4000), abs=1e-6)
    assert [found.unit, found.neighbours, found.against] == ["client", "add-remove", "recipients"]
    assert [found.noise_multiplier, found.max_grad_norm] == [3.0, 1.0]
    assert found.holds


def test_with_a_fixed_number_a_round_each_client_pays_for_its_own_rounds_at_full_rate(tmp_path):
    text = federation(clients=7, rounds=9, more=", participation: 0.3")
    stage = training(text + "defences: [dp-fedavg: {noise_multiplier: 2.0, delta: 1.0e-3}]\n", tmp_path)
    took: dict[int, int] = dict.fromkeys(range(7), 0)
    _, done = final(stage)
    for entry in done.outcome.history:
        assert entry["clients"] == 2
    (prepared,) = done.prepared[0]
    assert sum(prepared["rounds"]) == 18
    for ids in participants(7, 0.3, 9, 0, "train"):
        for i in ids:
            took[i] += 1
    assert len(set(took.values())) > 2
    (found,) = stage.guarantees(done.prepared)
    expected = {str(i): opacus_epsilon([(2.0, 1.0, k)], 1e-3) for i, k in took.items()}
    assert found.client_epsilon == pytest.approx(expected, abs=1e-6)
    assert found.epsilon == pytest.approx(max(expected.values()), abs=1e-6)
    assert found.sampling == {"method": "fixed", "rate": 1.0, "steps": max(took.values())}


@pytest.mark.parametrize("sampling", ["fixed", "poisson"])
def test_amplification_is_claimed_for_poisson_sampling_alone(tmp_path, sampling):
    text = federation(clients=10, rounds=12, more=f", participation: 0.2, sampling: {sampling}")
    stage = training(text + "defences: [dp-fedavg: {noise_multiplier: 1.5, delta: 1.0e-3}]\n", tmp_path)
    _, done = final(stage)
    (found,) = stage.guarantees(done.prepared)
    (prepared,) = done.prepared[0]
    amplified = opacus_epsilon([(1.5, 0.2, 12)], 1e-3)
    if sampling == "poisson":
        assert found.client_epsilon == pytest.approx({str(i): amplified for i in range(10)}, abs=1e-6)
        assert found.sampling == {"method": "poisson", "rate": 0.2, "steps": 12}
        assert prepared["expected_clients"] == 2
    else:
        worst = max(prepared["rounds"])
        assert worst >= 3  # 24 places among 10 clients
        assert found.epsilon == pytest.approx(opacus_epsilon([(1.5, 1.0, worst)], 1e-3), abs=1e-6)
        assert found.epsilon > amplified
    assert found.sampling["method"] == sampling


SPARSE = [[0, 1], [1, 2], [0, 1], [1], [3, 1], [2, 3]]  # client 1 comes five times, client 4 never


@pytest.mark.parametrize("target", [0.5, 3.0, 20.0])
@pytest.mark.parametrize("more", [{"rate": 0.3}, {"schedule": SPARSE, "clients": 5}, {}])
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_target_is_met_from_below(mechanism, target, more):
    defence = mechanism(epsilon=target)
    found = defence.guarantee([defence.prepare(plan(**more))])
    assert 0.99 * target <= found.epsilon <= target
    assert found.epsilon == max(found.client_epsilon.values())
    if "schedule" in more:
        assert found.client_epsilon["4"] == 0
        assert found.client_epsilon["0"] < found.epsilon == found.client_epsilon["1"]


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_later_training_keeps_the_noise_and_adds_up(mechanism):
    defence = mechanism(epsilon=4.0)
    first = defence.prepare(plan(schedule=SPARSE, clients=5))
    other = plan(schedule=[[0, 4]] * 3, clients=5, history=[first], records=90)
    second = defence.prepare(other)
    assert second["noise_multiplier"] == first["noise_multiplier"]
    assert second["delta"] == first["delta"]
    found = defence.guarantee([first, second])
    z, delta = first["noise_multiplier"], first["delta"]
    takes = [[sum(i in ids for ids in s) for i in range(5)] for s in (SPARSE, [[0, 4]] * 3)]
    for i in range(5):
        if mechanism is DPFTRL:
            moved = [tree_sensitivity([i in ids for ids in s]) for s in (SPARSE, [[0, 4]] * 3)]
            segments = [(z / s, 1.0, 1) for s in moved if s]
        else:
            scale = 2 if mechanism is LocalDP else 1
            segments = [(z / scale, 1.0, takes[0][i] + takes[1][i])]
        assert found.client_epsilon[str(i)] == pytest.approx(opacus_epsilon(segments, delta), rel=1e-9)
    assert found.client_epsilon["0"] > defence.guarantee([first]).client_epsilon["0"]
    assert found.client_epsilon["4"] > 0


@pytest.mark.parametrize("defence", ["dp-fedavg", "dp-ftrl", "local-dp"])
def test_fine_tuning_composes_in_a_real_training(tmp_path, defence):
    text = federation(rounds=2) + f"defences: [{defence}: {{epsilon: 6, delta: 1.0e-2}}]\n"
    stage = training(text, tmp_path)
    _, first = final(stage)
    _, second = final(stage, rounds=3, purpose="fine-tune", history=first.prepared)
    (a,), (b,) = second.prepared
    assert a["noise_multiplier"] == b["noise_multiplier"]
    z = a["noise_multiplier"] / (2 if defence == "local-dp" else 1)
    segments = [(z, 1.0, 5)]
    if defence == "dp-ftrl":
        segments = [(z / math.sqrt(1 + 1 + 4), 1.0, 1), (z / math.sqrt(1 + 1 + 1 + 4), 1.0, 1)]
    (once,), (both,) = stage.guarantees(first.prepared), stage.guarantees(second.prepared)
    assert 5.9 < once.epsilon <= 6
    assert both.epsilon == pytest.approx(opacus_epsilon(segments, 1e-2), abs=1e-6)
    assert both.epsilon > once.epsilon


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("delta", [1 / 8, 0.5])
def test_delta_must_be_below_one_over_the_clients(mechanism, delta):
    with pytest.raises(PluginError, match="1 / 8"):
        mechanism(epsilon=1.0, delta=delta).prepare(plan())
    below = 0.99 / 8
    assert mechanism(epsilon=1.0, delta=below).prepare(plan())["delta"] == below
    assert mechanism(epsilon=1.0).prepare(plan())["delta"] == pytest.approx(1 / 4000)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_no_noise_is_no_guarantee(mechanism):
    defence = mechanism(noise_multiplier=0.0)
    found = defence.guarantee([defence.prepare(plan())])
    assert found.epsilon == math.inf
    assert not found.holds
    assert defence.name in found.broken_by[0]
    assert defence.guarantee([]) is None


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_prepared_values_are_plain_json(mechanism):
    prepared = mechanism(epsilon=2.0).prepare(plan(schedule=SPARSE, clients=5))
    assert json.loads(json.dumps(prepared, allow_nan=False)) == prepared


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize(
    "parameters",
    [
        {}, {"epsilon": 1.0, "noise_multiplier": 1.0}, {"epsilon": 0.0}, {"epsilon": math.inf},
        {"noise_multiplier": -1.0}, {"noise_multiplier": 1.0, "clip_norm": 0.0}, {"epsilon": 1.0, "delta": 1.0},
    ],
)  # fmt: skip
def test_bad_parameters(mechanism, parameters):
    with pytest.raises(PluginError):
        mechanism.create(parameters)


# dp-fedavg: adaptive clipping ------------------------------------------------------------------------


def adaptive(z=0.0, expected=4.0, c=1.0, **parameters):
    """The wrapped rule, ready for rounds; what `prepare` settled for it."""
    defence = DPFedAvg(noise_multiplier=z, clip_norm=c, clipping="adaptive", **parameters)
    clients = math.ceil(expected)
    rate = None if clients == expected else expected / clients
    prepared = defence.prepare(plan(clients=clients, rate=rate))
    assert prepared["expected_clients"] == pytest.approx(expected)
    return defence.aggregator(Mean(), prepared), prepared


def rows_of_norms(norms, d=6):
    rows = torch.randn(len(norms), d, generator=torch_generator("directions"), dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True) * torch.tensor(norms, dtype=torch.float64)[:, None]


@pytest.mark.parametrize(
    ("norms", "expected", "share"),
    [
        ([0.5, 0.9, 2.0, 4.0], 4.0, 2 / 4),
        ([0.5, 0.9, 0.95, 4.0], 4.0, 3 / 4),
        ([2.0, 3.0, 5.0, 4.0], 4.0, 0.0),
        # Fewer than expected came: the count moves by +-1/2 a client from one half (section 3.1 of the paper).
        ([0.5, 0.9, 2.0], 4.0, 1 / 2 + 0.5 / 4),
        ([0.5, 0.9, 2.0, 3.0, 4.0], 3.5, 1 / 2 - 0.5 / 3.5),
    ],
)
@pytest.mark.parametrize(("quantile", "eta"), [(0.5, 0.2), (0.8, 1.0)])
def test_the_next_norm_is_that_of_the_paper(norms, expected, share, quantile, eta):
    rule, _ = adaptive(0.0, expected, quantile=quantile, eta=eta)
    rows = rows_of_norms(norms)
    context = server(rows)
    first = rule.aggregate(rows, context)
    torch.testing.assert_close(first, clipped_sum(rows, 1.0) / expected)  # the old norm clips this round
    after = math.exp(-eta * (share - quantile))
    assert context.state["clip_norm"] == pytest.approx(after, rel=1e-9)
    second = rule.aggregate(rows, context)
    torch.testing.assert_close(second, clipped_sum(rows, after) / expected)


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("start", [0.01, 50.0])
def test_the_norm_converges_to_the_quantile_of_the_norms(quantile, start):
    rule, _ = adaptive(0.0, 40.0, c=start, quantile=quantile, eta=0.2)
    norms = np.exp(np.random.default_rng(0).normal(0.5, 0.6, 40))
    rows, state = rows_of_norms(norms.tolist()), {}
    for round in range(250):
        rule.aggregate(rows, server(rows, state=state, round=round))
    below, above = np.quantile(norms, [max(0, quantile - 0.08), min(1, quantile + 0.08)])
    assert below <= state["clip_norm"] <= above


def test_the_noise_follows_the_norm_of_the_round():
    rule, prepared = adaptive(0.15, 4.0, eta=0.5)
    d, state = 20_000, {}
    rows = torch.zeros(4, d, dtype=torch.float64)
    for round in range(3):
        c = state.get("clip_norm", 1.0)
        found = rule.aggregate(rows, server(rows, state=state, round=round))
        is_normal(found, prepared["update_noise"] * c / 4)
        assert state["clip_norm"] < c  # all are inside


@pytest.mark.parametrize(("z", "expected", "count_noise"), [(0.15, 4.0, 0.05), (1.0, 100.0, 0.02)])
def test_noise_on_updates_and_count_together_cost_z(z, expected, count_noise):
    _, prepared = adaptive(z, expected, count_noise=count_noise)
    deviation = count_noise * expected
    assert prepared["update_noise"] == pytest.approx((z**-2 - (2 * deviation) ** -2) ** -0.5, rel=1e-12)
    # Two Gaussian mechanisms of sensitivities 1 and 1/2, released together: their precisions add up to that of z.
    assert prepared["update_noise"] ** -2 + (0.5 / deviation) ** 2 == pytest.approx(z**-2, rel=1e-12)
    assert prepared["update_noise"] > z
    defence = DPFedAvg(noise_multiplier=z, clipping="adaptive", count_noise=count_noise)
    fixed = DPFedAvg(noise_multiplier=z)
    clients = int(expected)
    assert (
        defence.guarantee([prepared]).epsilon
        == fixed.guarantee([fixed.prepare(plan(clients=clients))]).epsilon
    )


def test_the_count_has_its_noise():
    eta, count_noise, expected = 0.5, 0.3, 4.0
    rule, _ = adaptive(0.5, expected, eta=eta, count_noise=count_noise)
    rows, generator = rows_of_norms([0.5, 0.9, 2.0, 4.0]), torch_generator("count")
    logs = []
    for _ in range(3000):
        state: dict = {}
        rule.aggregate(rows, server(rows, state=state, noise=generator))
        logs.append(math.log(state["clip_norm"]))  # share = quantile = 1/2: noise alone
    is_normal(logs, eta * count_noise)


def test_too_little_noise_on_the_count_is_refused_with_the_least_that_will_do():
    z, clients = 3.0, 10
    with pytest.raises(PluginError, match=r"raise count_noise above 0\.15\b"):
        DPFedAvg(noise_multiplier=z, clipping="adaptive", count_noise=0.149).prepare(plan(clients))
    with pytest.raises(PluginError, match="count_noise"):
        DPFedAvg(noise_multiplier=z, clipping="adaptive", count_noise=0.15).prepare(plan(clients))
    prepared = DPFedAvg(noise_multiplier=z, clipping="adaptive", count_noise=0.151).prepare(plan(clients))
    assert prepared["update_noise"] > 20  # little is left for the updates


def test_a_round_without_clients_says_nothing_of_norms():
    rule, _ = adaptive(0.0, 4.0)
    rows = torch.zeros(0, 6, dtype=torch.float64)
    context = server(rows, d=6)
    assert torch.equal(rule.aggregate(rows, context), torch.zeros(6, dtype=torch.float64))
    assert context.state["clip_norm"] == 1.0  # half of none, and the quantile is a half


# dp-ftrl: the tree -----------------------------------------------------------------------------------


def nodes(rounds):
    """The 0/1 matrix of a binary tree over rounds: a row for each node that is complete."""
    rows = []
    for level in range(rounds.bit_length()):
        size = 2**level
        for start in range(0, rounds - size + 1, size):
            row = np.zeros(rounds)
            row[start : start + size] = 1
            rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("rounds", range(1, 18))
def test_the_sensitivity_is_that_of_the_matrix(rounds):
    tree = nodes(rounds)
    rng = np.random.default_rng(rounds)
    masks = [np.ones(rounds), *(rng.random((6, rounds)) < rng.random((6, 1))), np.eye(rounds)[rounds // 2]]
    for mask in masks:
        found = tree_sensitivity([bool(m) for m in mask])
        assert found == pytest.approx(np.linalg.norm(tree @ mask), rel=1e-12)
        for _ in range(20):  # no other updates of unit length, round by round, move the tree further
            sent = rng.normal(size=(rounds, 3))
            sent /= np.linalg.norm(sent, axis=1, keepdims=True)
            assert np.linalg.norm(tree @ (mask[:, None] * sent)) <= found * (1 + 1e-12)


@pytest.mark.parametrize("k", range(7))
def test_one_participation_touches_one_node_a_level(k):
    for position in {0, 2**k // 3, 2**k - 1}:
        took = [i == position for i in range(2**k)]
        assert tree_sensitivity(took) == pytest.approx(math.sqrt(k + 1))
    # In every round: level h has 2^(k-h) nodes of 2^h rounds each.
    assert tree_sensitivity([True] * 2**k) == pytest.approx(math.sqrt(2**k * (2 ** (k + 1) - 1)))
    assert tree_sensitivity([False] * 2**k) == 0


def released(refined, rounds, d, z=1.5, c=0.4, expected=5.0, rows=None):
    """What each round adds on the server, from the rule itself; the noise that it says it holds."""
    defence = DPFTRL(noise_multiplier=z, clip_norm=c, refined=refined)
    rule = defence.aggregator(Mean(), {"noise_multiplier": z, "expected_clients": expected})
    rows = torch.zeros(5, d, dtype=torch.float64) if rows is None else rows
    state: dict = {}
    steps, held = [], []
    for round in range(rounds):
        steps.append(rule.aggregate(rows, server(rows, state=state, round=round, d=d)) * expected)
        held.append(state["noise"].clone())
    return torch.stack(steps), torch.stack(held)


def best_variance(t):
    """Of the best linear unbiased estimate of a prefix's sum, from all nodes complete by then; a node's own is 1."""
    tree = nodes(t)
    ones = np.ones(t)
    return float(ones @ np.linalg.inv(tree.T @ tree) @ ones)


def decomposition(t):
    """The nodes that make up rounds 1..t: (start, size)."""
    found, start = set(), 0
    for bit in reversed(range(t.bit_length())):
        if t >> bit & 1:
            found.add((start, 2**bit))
            start += 2**bit
    return found


@pytest.mark.parametrize("refined", [False, True])
def test_the_noise_of_every_prefix(refined):
    rounds, d, z, c = 13, 20_000, 1.5, 0.4
    steps, held = released(refined, rounds, d, z, c)
    prefix = steps.cumsum(0)
    torch.testing.assert_close(prefix, held, rtol=0, atol=1e-12)  # increments sum to N_t
    for t in range(1, rounds + 1):
        variance = best_variance(t) if refined else t.bit_count()
        assert variance <= t.bit_count() + 1e-12
        is_normal(prefix[t - 1], math.sqrt(variance) * z * c)
    assert best_variance(4) < 1 < best_variance(5)


def test_prefixes_share_the_nodes_that_they_have_in_common():
    rounds, d = 13, 20_000
    steps, _ = released(False, rounds, d, 1.0, 1.0)
    prefix = steps.cumsum(0)
    for s, t in itertools.combinations(range(1, rounds + 1), 2):
        shared = len(decomposition(s) & decomposition(t))
        found = float((prefix[s - 1] * prefix[t - 1]).mean())
        error = math.sqrt((s.bit_count() * t.bit_count() + shared**2) / d)
        assert abs(found - shared) < 5 * error


def test_a_nodes_own_share_is_by_inverse_variance():
    variance = 1.0
    assert own_share(0) == 1.0
    for level in range(1, 8):
        weight = (1 / 1) / (1 / 1 + 1 / (2 * variance))
        variance = weight**2 + (1 - weight) ** 2 * 2 * variance
        assert own_share(level) == pytest.approx(weight, rel=1e-12)
        assert variance == pytest.approx(best_variance(2**level), rel=1e-9)


@pytest.mark.parametrize("refined", [False, True])
def test_clipped_rows_join_the_noise(refined):
    rows = updates(5, 300)
    signal = clipped_sum(rows, 0.4)
    plain, _ = released(refined, 6, 300)
    moved, _ = released(refined, 6, 300, rows=rows)
    torch.testing.assert_close(moved - plain, signal.expand(6, -1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("refined", ["true", "false"])
def test_without_noise_it_is_dp_fedavg_without_noise(tmp_path, refined):
    text = federation(rounds=5, more=", participation: 0.5", partition="{dirichlet: {alpha: 0.5}}")
    first, _ = final(
        training(text + "defences: [dp-fedavg: {noise_multiplier: 0, clip_norm: 0.05}]\n", tmp_path)
    )
    own = f"defences: [dp-ftrl: {{noise_multiplier: 0, clip_norm: 0.05, refined: {refined}}}]\n"
    second, _ = final(training(text + own, tmp_path))
    torch.testing.assert_close(second, first, rtol=1e-5, atol=1e-7)


def test_a_training_spends_one_gaussian_of_the_trees_sensitivity(tmp_path):
    text = federation(clients=7, rounds=11, more=", participation: 0.3")
    stage = training(text + "defences: [dp-ftrl: {noise_multiplier: 4.0, delta: 1.0e-3}]\n", tmp_path)
    _, done = final(stage)
    schedule = participants(7, 0.3, 11, 0, "train")
    tree = nodes(11)
    moved = [np.linalg.norm(tree @ [float(i in ids) for ids in schedule]) for i in range(7)]
    assert len({round(m, 6) for m in moved}) > 2
    expected = {str(i): opacus_epsilon([(4.0 / m, 1.0, 1)], 1e-3) for i, m in enumerate(moved) if m}
    (found,) = stage.guarantees(done.prepared)
    assert found.client_epsilon == pytest.approx(
        {**dict.fromkeys(map(str, range(7)), 0.0), **expected}, rel=1e-9
    )
    assert found.epsilon == max(found.client_epsilon.values())
    # The exact Gaussian of this sensitivity: the accountant bounds it from above, and not by much.
    mu = max(moved) / 4.0
    assert gaussian_delta(found.epsilon, mu) <= 1e-3 < gaussian_delta(0.8 * found.epsilon, mu)


def test_a_schedule_by_coins_is_no_public_schedule():
    defence = DPFTRL(noise_multiplier=4.0)
    prepared = defence.prepare(plan(rate=0.2, schedule=SPARSE, clients=5, rounds=6))
    assert prepared["sensitivities"] == pytest.approx([np.linalg.norm(nodes(6) @ np.ones(6))] * 5)
    assert prepared["expected_clients"] == 1.0


# local-dp --------------------------------------------------------------------------------------------


def sent(update, sigma=0.0, c=1.0, seed=0):
    defence = LocalDP(noise_multiplier=sigma, clip_norm=c)
    context = UpdateContext(0, 0, torch_generator("client", seed), {}, {"noise_multiplier": sigma})
    return defence.update(update, context)


def test_the_update_is_clipped_before_the_noise():
    for factor in (1e-3, 0.9, 1.1, 1e6):
        update = updates(1, 500)[0]
        update = factor * update / update.norm()
        before = update.clone()
        found = sent(update, c=0.6)
        torch.testing.assert_close(found, update * min(1.0, 0.6 / factor), rtol=1e-10, atol=1e-15)
        assert torch.equal(update, before)
        noisy = sent(update, 2.0, 0.6)
        torch.testing.assert_close(noisy - found, sent(0 * update, 2.0, 0.6), rtol=1e-9, atol=1e-9)


def test_how_many_records_a_client_has_plays_no_part(tmp_path):
    uneven = "{dirichlet: {alpha: 0.5}}"
    private = "defences: [local-dp: {noise_multiplier: 0, clip_norm: 1000}]\n"
    ours, _ = final(training(federation(partition=uneven) + private, tmp_path))
    uniform, _ = final(training(federation(partition=uneven, more=", weighting: uniform"), tmp_path))
    examples, _ = final(training(federation(partition=uneven), tmp_path))
    torch.testing.assert_close(ours, uniform, rtol=1e-4, atol=1e-6)
    assert float((ours - examples).norm()) > 1e-2


def test_two_updates_differ_by_at_most_twice_the_clip_norm():
    rows = updates(12, 30) * 40
    outputs = [sent(row, c=0.6) for row in (*rows, *-rows)]
    gaps = [float((a - b).norm()) for a, b in itertools.combinations(outputs, 2)]
    assert max(gaps) == pytest.approx(2 * 0.6, rel=1e-9)  # opposite ones, both clipped


@pytest.mark.parametrize(("sigma", "c"), [(1.7, 0.6), (0.05, 12.0)])
def test_local_noise_is_gaussian_of_sigma_c(sigma, c):
    is_normal(sent(torch.zeros(30_000, dtype=torch.float64), sigma, c), sigma * c)
    is_normal(sent(torch.zeros(30_000), sigma, c, seed=1), sigma * c)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_is_noise_alone(bad):
    update = torch.ones(20_000)
    update[77] = bad
    found = sent(update, 1.7, 0.6)
    assert torch.equal(found, sent(torch.zeros(20_000), 1.7, 0.6))
    is_normal(found, 1.7 * 0.6)


@pytest.mark.parametrize(("sigma", "rounds"), [(8.0, 1), (20.0, 6), (3.0, 1)])
def test_a_ball_of_radius_c_has_a_diameter_of_two(sigma, rounds):
    defence = LocalDP(noise_multiplier=sigma, delta=1e-4)
    found = defence.guarantee([defence.prepare(plan(rounds=rounds))])
    assert found.epsilon == pytest.approx(opacus_epsilon([(sigma / 2, 1.0, rounds)], 1e-4), abs=1e-6)
    mu = 2 * math.sqrt(rounds) / sigma  # sensitivity 2 C over the deviation sigma C
    assert gaussian_delta(found.epsilon, mu) <= 1e-4 < gaussian_delta(0.8 * found.epsilon, mu)
    assert [found.unit, found.neighbours, found.against] == ["client", "replace", "server"]
    assert found.noise_multiplier == sigma


def test_a_client_pays_for_its_own_rounds_unless_coins_decide():
    defence = LocalDP(noise_multiplier=9.0, delta=1e-3)
    found = defence.guarantee([defence.prepare(plan(schedule=SPARSE, clients=5))])
    own = {
        str(i): opacus_epsilon([(4.5, 1.0, sum(i in ids for ids in SPARSE))], 1e-3) if i < 4 else 0.0
        for i in range(5)
    }
    assert found.client_epsilon == pytest.approx(own, abs=1e-6)
    coins = defence.guarantee([defence.prepare(plan(schedule=SPARSE, clients=5, rate=0.2, rounds=6))])
    everybody = opacus_epsilon(
        [(4.5, 1.0, 6)], 1e-3
    )  # that a client takes part is public: nothing is amplified
    assert coins.client_epsilon == pytest.approx({str(i): everybody for i in range(5)}, abs=1e-6)


def test_clients_and_rounds_have_noise_of_their_own():
    """Clients that do nothing send noise, and no two of these are alike."""
    module = nn.Linear(64, 150)
    images, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    defence = LocalDP(noise_multiplier=1.0)
    clients = [
        Client(i, images, labels, 0, Sampling(), (defence,), [{"noise_multiplier": 1.0}]) for i in range(3)
    ]
    trainer = LocalTrainer(module, LocalTraining(optimizer=SGD(lr=0.1)), 0, "stage", "float32", "cpu")
    rules = Rules((Mean(),), 0.0, "uniform", "average", FedAvg())
    seen: list[torch.Tensor] = []
    watch = Federation(
        module, clients, trainer, rules, 0, "stage", lambda start, found: seen.extend(found.values())
    )
    run_together([Run(watch, [[0, 1, 2]] * 3, lambda r: 1.0, None, silent)])
    rows = torch.stack(seen).double()
    assert len(rows) == 9
    pairs = torch.corrcoef(rows) - torch.eye(9, dtype=torch.float64)
    assert float(pairs.abs().max()) < 4.5 / math.sqrt(rows.shape[1])  # 36 pairs
    for row in rows:
        is_normal(row, 1.0)


# rules other than a mean, and stacks -----------------------------------------------------------------


class Looking(Aggregator):
    """Keeps what it is given; answers with its first row."""

    name = "test-looking"

    def aggregate(self, updates, context):
        context.state["rounds"] = context.state.get("rounds", 0) + 1
        SEEN.append((updates.clone(), context.weights.clone(), context.client_ids, context.state["rounds"]))
        return updates[0]


SEEN: list = []


def test_a_robust_rule_is_given_clipped_rows_of_equal_weight():
    SEEN.clear()
    rows = updates()
    defence = DPFedAvg(noise_multiplier=0.0, clip_norm=0.5)
    rule = defence.aggregator(Looking(), {"update_noise": 0.0, "expected_clients": 9.0})
    state: dict = {}
    uneven = torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64)
    for round in range(2):
        found = rule.aggregate(rows, server(rows, weights=uneven, state=state, round=round))
        seen, weights, ids, rounds = SEEN[-1]
        for got, row in zip(seen, rows, strict=True):
            torch.testing.assert_close(got, row * min(1.0, 0.5 / float(row.norm())), rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(weights, torch.full((5,), 0.2, dtype=torch.float64))
        assert ids == [0, 1, 2, 3, 4]
        assert rounds == round + 1  # the rule keeps its own state
        torch.testing.assert_close(found, seen[0])  # no sum: it is not scaled by who was expected


@pytest.mark.parametrize("mechanism", [DPFedAvg, DPFTRL])
def test_the_median_of_clipped_rows_has_the_same_noise(mechanism):
    rows, c, z = updates(5, 20_000), 0.5, 0.7
    defence = mechanism(noise_multiplier=z, clip_norm=c)
    prepared = {"noise_multiplier": z, "update_noise": z, "expected_clients": 5.0}
    found = defence.aggregator(Median(), prepared).aggregate(rows, server(rows))
    scaled = torch.stack([row * min(1.0, c / float(row.norm())) for row in rows])
    is_normal(found - torch.from_numpy(np.median(scaled.numpy(), axis=0)), z * c / 5)


@pytest.mark.parametrize("mechanism", [DPFedAvg, DPFTRL])
def test_a_rule_other_than_a_mean_breaks_the_guarantee(mechanism):
    defence = mechanism(noise_multiplier=2.0)
    plain = defence.guarantee([defence.prepare(plan())]).model_copy(update={"by": defence.name})
    held = apply_lineage(plain, Parts(defences=(defence,), aggregators=(Mean(),)))
    broken = apply_lineage(plain, Parts(defences=(defence,), aggregators=(Median(),)))
    assert held.holds
    assert not broken.holds
    assert "median" in broken.broken_by[0]
    local = LocalDP(noise_multiplier=2.0)
    plain = local.guarantee([local.prepare(plan())]).model_copy(update={"by": local.name})
    assert apply_lineage(plain, Parts(defences=(local,), aggregators=(Median(),))).holds


class Sends(Defence):
    """Every client sends a row of its own; the first one's is not finite."""

    name = "test-sends"

    def update(self, delta, context):
        row = torch.randn(delta.shape, generator=torch_generator("sent", context.client))
        return row * (math.nan if context.client == 0 else 1.0)


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "dp-fedavg"])
def test_a_dropped_row_need_not_be_tolerated_any_more(wrapped):
    """krum(f=1) takes five rows; as one of the five is NaN, it goes on with four and f = 0, wrapped or not."""
    module = nn.Linear(64, 3)
    images, labels = torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    clients = [Client(i, images, labels, 0, Sampling(), (Sends(),), [{}]) for i in range(5)]
    rule: Aggregator = Krum(f=1)
    if wrapped:
        defence = DPFedAvg(noise_multiplier=0.0, clip_norm=1000.0)
        rule = defence.aggregator(rule, {"update_noise": 0.0, "expected_clients": 5.0})
    trainer = LocalTrainer(module, LocalTraining(optimizer=SGD(lr=0.1)), 0, "stage", "float32", "cpu")
    rules = Rules((rule,), 0.2, "uniform", "average", FedAvg())
    before = flatten(module)
    federation = Federation(module, clients, trainer, rules, 0, "stage")
    run_together([Run(federation, [[0, 1, 2, 3, 4]], lambda r: 1.0, None, silent)])
    rows = torch.stack([torch.randn(before.shape, generator=torch_generator("sent", i)) for i in range(1, 5)])
    torch.testing.assert_close(flatten(module) - before, Krum(f=0)(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_running_statistics_are_refused_by_name(mechanism):
    defence = mechanism(noise_multiplier=1.0)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3)).to("meta")
    with pytest.raises(NotApplicable, match=r"that 1 send.*group normalisation"):
        defence.check(StackContext((defence,), 0, module))
    grouped = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(72, 3))
    defence.check(StackContext((defence,), 0, grouped))


@pytest.mark.parametrize("pair", itertools.permutations(MECHANISMS, 2))
def test_two_mechanisms_for_clients_are_refused(pair):
    stack = tuple(mechanism(noise_multiplier=1.0) for mechanism in pair)
    for position in (0, 1):
        own, other = pair[position].name, pair[1 - position].name
        with pytest.raises(NotApplicable, match=f"{own} and {other} both noise"):
            stack[position].check(StackContext(stack, position, None))


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_records_and_clients_may_both_be_protected(mechanism):
    stack = (DPSGD(noise_multiplier=1.0), mechanism(noise_multiplier=1.0))
    for position in (0, 1):
        stack[position].check(StackContext(stack, position, nn.Linear(3, 2)))


def test_the_wrapper_is_no_plugin_of_its_own():
    assert issubclass(NoisyMean, Aggregator)
    assert "noisy-mean" not in harness.plugins("aggregator")
