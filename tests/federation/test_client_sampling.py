"""Coins and noise: what an audit of one run cannot see. Who is drawn, how often, and that no noise comes twice."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import harness
from harness.contracts.attack import ByzantineAttack
from harness.contracts.defence import Defence, Sampling
from harness.federation.batches import batches
from harness.federation.counts import participants
from harness.federation.local import Client, LocalTrainer, Start
from harness.federation.rounds import Federation, Rules
from harness.federation.together import Run, run_together
from harness.federation.vector import flatten
from harness.grid import cells
from harness.plan import Planner
from harness.random import torch_generator
from harness.scenario import SGD, FedAvg, LocalTraining, load_text
from harness.scenario_plan import data_facts, metrics_of
from harness.training import Training
from harness_plugins.aggregators.mean import Mean
from harness_plugins.defences.dp_fedavg import DPFedAvg
from harness_plugins.defences.dp_sgd import DPSGD

# checks ----------------------------------------------------------------------------------------------


def coins(table, rate):
    """Asserts that a table (draws, members) of 0 and 1 may come from independent coins of this probability.

    Each member's number of draws, how much the size of a draw varies, and whether a draw depends on the last.
    """
    table = np.asarray(table, dtype=float)
    draws, members = table.shape
    variance = rate * (1 - rate)
    counts = table.sum(0)
    assert np.abs(counts - draws * rate).max() < 5 * math.sqrt(draws * variance), "some come too often"
    # sums of squares in units of their variance: chi-square distributed, too small a sum being as telling
    among = ((counts - draws * rate) ** 2).sum() / (draws * variance)
    assert 1e-4 < stats.chi2.cdf(among, members) < 1 - 1e-4, "members differ too much or too little"
    sizes = ((table.sum(1) - members * rate) ** 2).sum() / (members * variance)
    assert 1e-4 < stats.chi2.cdf(sizes, draws) < 1 - 1e-4, "sizes vary too much or too little"
    centred = (table - rate) / math.sqrt(variance)
    for lag in (1, 2, 3):
        products = centred[lag:] * centred[:-lag]
        assert abs(products.sum()) < 5 * math.sqrt(products.size), f"draws depend on those {lag} before"


def pairs(table):
    """Asserts that no two members are drawn together more, or less, often than chance."""
    table = np.asarray(table, dtype=float)
    found = np.corrcoef(table.T) - np.eye(table.shape[1])
    assert np.abs(found).max() < 5 / math.sqrt(len(table))


def fresh(rows):
    """Asserts that of these noise vectors no two have anything in common."""
    rows = torch.stack(list(rows)).double()
    found = torch.corrcoef(rows) - torch.eye(len(rows), dtype=torch.float64)
    assert float(found.abs().max()) < 4 / math.sqrt(rows.shape[1])


def inclusion(drawn, members):
    table = np.zeros((len(drawn), members))
    for row, index in zip(table, drawn, strict=True):
        row[list(map(int, index))] = 1
    return table


def is_normal(values, deviation):
    values = values.double() / deviation
    assert stats.kstest(values.numpy(), "norm").pvalue > 0.001
    assert abs(float(values.square().mean()) - 1) < 5 * math.sqrt(2 / values.numel())


# clients ---------------------------------------------------------------------------------------------


def drawn_clients(rate, clients=30, rounds=3000, seed=0, purpose="train", **more):
    return participants(clients, rate, rounds, seed, purpose, sampling="poisson", **more)


@pytest.mark.parametrize(("seed", "purpose"), [(0, "train"), (7, "fine-tune 0.0")])
@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
def test_clients_are_drawn_by_coins(rate, seed, purpose):
    found = drawn_clients(rate, seed=seed, purpose=purpose)
    table = inclusion(found, 30)
    coins(table, rate)
    pairs(table)
    assert all(ids == sorted(set(ids)) for ids in found)


def test_the_number_of_clients_is_binomial():
    sizes = [len(ids) for ids in drawn_clients(0.2, clients=12, rounds=4000, seed=3)]
    seen = np.bincount(sizes, minlength=13)
    chance = stats.binom.pmf(np.arange(13), 12, 0.2)
    merged = [[*values[:6], values[6:].sum()] for values in (seen, 4000 * chance)]
    assert stats.chisquare(*merged).pvalue > 0.001
    assert seen[0] == pytest.approx(4000 * 0.8**12, abs=5 * math.sqrt(4000 * 0.8**12))  # a round may be empty


def test_a_fixed_number_of_clients_is_not_drawn_by_coins():
    with pytest.raises(AssertionError, match="sizes vary"):
        coins(inclusion(participants(30, 0.3, 3000, 0, "train"), 30), 0.3)


def test_seeds_purposes_and_rounds_have_coins_of_their_own():
    drawn = [
        inclusion(drawn_clients(0.5, clients=20, rounds=1000, **given), 20).ravel()
        for given in ({}, {"seed": 1}, {"purpose": "fine-tune"})
    ]
    assert np.abs(np.corrcoef(drawn) - np.eye(3)).max() < 5 / math.sqrt(20_000)
    assert drawn_clients(0.5, rounds=50) == drawn_clients(0.5, rounds=80)[:50]
    assert drawn_clients(0.5, rounds=50) == drawn_clients(0.5, rounds=50)


def test_at_rate_one_everybody_comes():
    assert drawn_clients(1.0, clients=5, rounds=20) == [list(range(5))] * 20


def test_those_who_always_come_leave_the_others_coins_alone():
    plain, with_two = drawn_clients(0.2), drawn_clients(0.2, always=(4, 17))
    for before, after in zip(plain, with_two, strict=True):
        assert {4, 17} <= set(after)
        assert set(after) - {4, 17} == set(before) - {4, 17}
        assert after == sorted(after)
    assert any(4 not in ids for ids in plain)
    fixed = participants(30, 0.2, 200, 0, "train", (4, 17))
    assert all(len(set(ids)) == 6 and {4, 17} <= set(ids) for ids in fixed)


# records ---------------------------------------------------------------------------------------------

SIZE, RATE, STEPS = 60, 0.2, 2500


def test_records_are_drawn_by_coins():
    drawn = list(batches(SIZE, 12, STEPS, Sampling("poisson", RATE), torch.Generator().manual_seed(2)))
    table = inclusion(drawn, SIZE)
    coins(table, RATE)
    pairs(table)


def test_shuffling_is_not_coins():
    """Every record comes as often as under coins, but batches never vary in size, and an epoch has each once."""
    drawn = list(batches(SIZE, 12, STEPS, Sampling("shuffle"), torch.Generator().manual_seed(2)))
    table = inclusion(drawn, SIZE)
    assert (table.sum(0) == STEPS * RATE).all()
    with pytest.raises(AssertionError):
        coins(table, RATE)


def planted(kind, rng):
    """Samplers that get one thing wrong."""
    steps = []
    if kind == "a batch of fixed size":
        return [rng.choice(SIZE, round(SIZE * RATE), replace=False) for _ in range(STEPS)]
    if kind == "a shuffled order, cut at random":
        while len(steps) < STEPS:
            order, start = rng.permutation(SIZE), 0
            while start < SIZE:
                size = rng.binomial(SIZE, RATE)
                steps.append(order[start : start + size])
                start += size
        return steps[:STEPS]
    table = rng.random((STEPS, SIZE)) < (0.2 * RATE + RATE if kind == "a larger rate" else RATE)
    if kind == "one record more often":
        table[:, 7] = rng.random(STEPS) < 1.5 * RATE
    if kind == "coins thrown once":
        table[:] = table[0]
    if kind == "coins thrown for two steps":
        table[1::2] = table[::2]
    return [np.flatnonzero(row) for row in table]


@pytest.mark.parametrize(
    "kind",
    [
        "a batch of fixed size",
        "a shuffled order, cut at random",
        "a larger rate",
        "one record more often",
        "coins thrown once",
        "coins thrown for two steps",
    ],
)
def test_the_check_rejects_what_is_not_coins(kind):
    with pytest.raises(AssertionError):
        coins(inclusion(planted(kind, np.random.default_rng(0)), SIZE), RATE)


def test_the_check_accepts_coins():
    for seed in range(20):
        coins(np.random.default_rng(seed).random((500, SIZE)) < RATE, RATE)


DIGITS = """
schema: 1
name: coins
dataset: digits
model: {mlp: {hidden: [32]}}
"""


def training(text, tmp_path, key=None):
    scenario = load_text(DIGITS + text, tmp_path / "x.yaml")
    planner = Planner("cpu")
    plan = planner.add(next(iter(cells(scenario))), data_facts(scenario, None), metrics_of(scenario))
    stage = planner.stages[plan.stages["train"]]
    return Training(stage.spec, stage.key if key is None else key, "cpu")


class Witness(Defence):
    """Writes down which records each step sees: a record's number is in its first pixels."""

    name = "test-witness"

    def batch(self, x, y, key):
        first = (255 * x[:, 0, 0, :2]).round().long()
        STEPS_SEEN.append((256 * first[:, 0] + first[:, 1]).tolist())
        return x, y


STEPS_SEEN: list[list[int]] = []


class Shuffled(DPSGD):
    """Claims what dp-sgd does and shuffles."""

    name = "test-shuffled"

    def sampling(self, size, batch_size):
        return Sampling("shuffle")


@pytest.mark.parametrize("defence", [DPSGD, Shuffled])
def test_a_client_trains_on_the_coins_that_its_guarantee_claims(defence):
    size, batch_size, rounds, steps = 60, 12, 40, 20
    images = torch.zeros(size, 1, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(size) // 256
    images[:, 0, 0, 1] = torch.arange(size) % 256
    used = defence(noise_multiplier=1.0)
    claimed = {"noise_multiplier": 1.0, "sample_rate": batch_size / size, "steps": rounds * steps}
    sampling = used.sampling(size, batch_size)
    hooks, prepared = (used, Witness()), [{"clients": [claimed]}, {}]
    client = Client(0, images, torch.zeros(size, dtype=torch.int64), steps, sampling, hooks, prepared)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    settings = LocalTraining(batch_size=batch_size, optimizer=SGD(lr=0.01))
    trainer = LocalTrainer(module, settings, 4, "stage", "float32", "cpu")
    STEPS_SEEN.clear()
    for round in range(rounds):
        trainer.train(client, Start(round, flatten(module)))
    assert len(STEPS_SEEN) == claimed["steps"]
    table = inclusion(STEPS_SEEN, size)
    if defence is DPSGD:
        coins(table, claimed["sample_rate"])
    else:
        with pytest.raises(AssertionError):
            coins(table, claimed["sample_rate"])


# rounds without anybody ------------------------------------------------------------------------------

SPARSE = (
    "federation: {clients: 3, rounds: 10, participation: 0.3, sampling: poisson, evaluate_every: 0, "
    "local: {steps: 2, batch_size: 16, optimizer: {sgd: {lr: 0.3}}}}\n"
)


def followed(stage, **options):
    """The global weights after every round, the first ones in front, and what the training left."""
    module = stage.initial_module()
    weights = [flatten(module)]
    done = stage.run(module, lambda *_: weights.append(flatten(module)), **options)
    return torch.stack(weights).double(), done


@pytest.mark.parametrize(
    "more", ["", "aggregators: [median]\n", "defences: [dp-sgd: {noise_multiplier: 1}]\n"]
)
def test_a_round_without_clients_leaves_the_model(tmp_path, more):
    stage = training(SPARSE + more, tmp_path)
    weights, done = followed(stage)
    schedule = participants(3, 0.3, 10, 0, "train", sampling="poisson")
    assert [entry["clients"] for entry in done.outcome.history] == [len(ids) for ids in schedule]
    assert 0 < sum(not ids for ids in schedule) < 10
    for round, ids in enumerate(schedule):
        moved = float((weights[round + 1] - weights[round]).norm())
        assert (moved > 0) == bool(ids)
    assert "val_accuracy" in done.outcome.history[-1]


def test_a_round_without_clients_moves_by_noise_alone_under_dp_fedavg(tmp_path):
    z, c = 2.0, 0.05
    text = SPARSE + f"defences: [dp-fedavg: {{noise_multiplier: {z}, clip_norm: {c}}}]\n"
    weights, done = followed(training(text, tmp_path))
    empty = [r for r, entry in enumerate(done.outcome.history) if entry["clients"] == 0]
    assert empty
    for round in empty:
        is_normal(weights[round + 1] - weights[round], z * c / (0.3 * 3))


def test_a_round_without_clients_moves_by_the_trees_noise_under_dp_ftrl(tmp_path):
    z, c = 2.0, 0.05
    own = f"defences: [dp-ftrl: {{noise_multiplier: {z}, clip_norm: {c}, refined: false}}]\n"
    weights, done = followed(training(SPARSE + own, tmp_path))
    moves = weights.diff(dim=0)
    empty = [r for r, entry in enumerate(done.outcome.history) if entry["clients"] == 0]
    assert empty
    for round in empty:  # one leaf, or a parent, comes in; the nodes that it takes the place of go
        changed = 1 + (round & ~(round + 1)).bit_count()
        is_normal(moves[round], z * c / (0.3 * 3) * math.sqrt(changed))


def test_adaptive_clipping_goes_on_through_empty_rounds(tmp_path):
    own = "defences: [dp-fedavg: {noise_multiplier: 0, clip_norm: 0.1, clipping: adaptive}]\n"
    weights, done = followed(training(SPARSE + own, tmp_path))
    moved = weights.diff(dim=0).norm(dim=1).tolist()
    assert weights.isfinite().all()
    for length, entry in zip(moved, done.outcome.history, strict=True):
        assert (length > 0) == (entry["clients"] > 0)


# noise never comes twice -----------------------------------------------------------------------------


def test_the_check_rejects_noise_that_comes_again():
    rows = torch.randn(6, 10_000, generator=torch_generator("fresh"))
    fresh(rows)
    for again in (rows[2], -3 * rows[2], 0.1 * rows[2] + rows[5].roll(1)):
        with pytest.raises(AssertionError):
            fresh([*rows, again])


def idle(defence, prepared, count=3, d=150, steps=0, rate=None):
    """Clients whose records are never drawn, so that what they send is noise; their network."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, d))
    images, labels = torch.zeros(8, 1, 8, 8, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64)
    sampling = Sampling("poisson", rate) if rate is not None else Sampling()
    return module, [Client(i, images, labels, steps, sampling, (defence,), [prepared]) for i in range(count)]


def sent(module, clients, noise_seed, rules, seed=0, rounds=3):
    """Every update that the server receives, and the weights after every round."""
    seen, weights = [], [flatten(module)]
    trainer = LocalTrainer(
        module, LocalTraining(batch_size=8, optimizer=SGD(lr=1.0)), seed, noise_seed, "float32", "cpu"
    )
    watch = Federation(
        module,
        clients,
        trainer,
        rules,
        seed,
        noise_seed,
        lambda start, found: seen.extend(found.values()),
    )
    everybody = [list(range(len(clients)))] * rounds
    run_together([Run(watch, everybody, lambda r: 1.0, None, lambda *_: weights.append(flatten(module)))])
    return seen, torch.stack(weights).diff(dim=0)


def rules(rule=None, **more):
    return Rules((rule or Mean(),), 0.0, "uniform", "average", FedAvg(), **more)


def test_dp_sgd_noises_every_client_round_and_stage_anew():
    own = {"noise_multiplier": 1.0, "sample_rate": 1e-12, "steps": 6}
    defence, prepared = DPSGD(noise_multiplier=1.0), {"clients": [own] * 3}
    rows = []
    for stage in ("stage a:train:0", "stage b:train:0", "stage a:fine-tune 0.0:1"):
        module, clients = idle(defence, prepared, steps=2, rate=1e-12)
        found, _ = sent(module, clients, stage, rules(), rounds=2)
        assert len(found) == 6  # two rounds, three clients
        rows += found
    fresh(rows)
    is_normal(torch.stack(rows).ravel(), math.sqrt(2) / 8)
    module, clients = idle(defence, prepared, steps=2, rate=1e-12)
    again, _ = sent(module, clients, "stage b:train:0", rules(), rounds=2)
    with pytest.raises(AssertionError):
        fresh([*rows, *again])  # the same stage is the same noise, and the check sees it


def test_dp_fedavg_noises_every_round_and_stage_anew():
    class Silent(Defence):
        """Sends nothing."""

        name = "test-silent"

    wrapped = DPFedAvg(noise_multiplier=1.0).aggregator(
        Mean(), {"update_noise": 1.0, "expected_clients": 3.0}
    )
    rows = []
    for stage in ("stage a:train:0", "stage b:train:0", "stage a:fine-tune 0.0:1"):
        module, clients = idle(Silent(), {})
        _, moves = sent(module, clients, stage, rules(wrapped))
        rows += list(moves)
    assert len(rows) == 9
    fresh(rows)
    is_normal(torch.stack(rows).ravel(), 1 / 3)
    module, clients = idle(Silent(), {})
    with pytest.raises(AssertionError):
        fresh([*rows, *sent(module, clients, "stage a:fine-tune 0.0:1", rules(wrapped))[1]])


ONE_STEP = (
    "federation: {clients: 1, rounds: 1, evaluate_every: 0, "
    "local: {steps: 1, batch_size: 64, optimizer: {sgd: {lr: 1.0}}}}\n"
)


@pytest.mark.parametrize(
    ("silent", "noisy", "deviation"),
    [
        ("dp-sgd: {noise_multiplier: 0}", "dp-sgd: {noise_multiplier: 1}", 1 / 64),
        ("dp-fedavg: {noise_multiplier: 0}", "dp-fedavg: {noise_multiplier: 1}", 1.0),
        ("dp-ftrl: {noise_multiplier: 0}", "dp-ftrl: {noise_multiplier: 1}", 1.0),
        ("local-dp: {noise_multiplier: 0}", "local-dp: {noise_multiplier: 1}", 1.0),
    ],
)
def test_trainings_share_no_noise(tmp_path, silent, noisy, deviation):
    """Two stages, and a stage's two trainings: what the noise added to each, the rest being the same."""
    rows = []
    for key, purpose in itertools.product(
        ("stage a", "stage b"), ("train", "fine-tune 0.0", "fine-tune 1.0")
    ):
        moved = []
        for defence in (silent, noisy):
            stage = training(ONE_STEP + f"defences: [{defence}]\n", tmp_path, key)
            history = [] if purpose == "train" else followed(stage)[1].prepared
            moved.append(followed(stage, purpose=purpose, history=history)[0][-1])
        rows.append(moved[1] - moved[0])
    fresh(rows)
    for row in rows:
        is_normal(row, deviation)


def test_an_attacker_who_tries_the_rule_learns_nothing_of_its_noise():
    class Curious(ByzantineAttack):
        """Asks twice what the server would answer to nothing, and sends nothing."""

        name = "test-curious"

        def craft(self, honest, context):
            rows = torch.zeros(len(honest) + context.m, honest.shape[1])
            TOLD.extend([context.aggregator(rows), context.aggregator(rows)])
            return torch.zeros(context.m, honest.shape[1])

    class Silent(Defence):
        """Sends nothing."""

        name = "test-silent-too"

    TOLD.clear()
    wrapped = DPFedAvg(noise_multiplier=1.0).aggregator(
        Mean(), {"update_noise": 1.0, "expected_clients": 3.0}
    )
    module, clients = idle(Silent(), {})
    given = rules(wrapped, byzantine=Curious(), knowledge="omniscient", malicious=(1,))
    _, moves = sent(module, clients, "stage", given, rounds=2)
    assert len(TOLD) == 4
    is_normal(torch.cat(TOLD[::2]), 1 / 3)  # a second question in a round gets the same answer
    fresh([*TOLD[::2], *moves])


TOLD: list[torch.Tensor] = []


def test_rules_that_some_round_is_too_small_for_are_not_run(tmp_path):
    text = """schema: 1
name: coins
dataset: digits
model: logistic
federation: {clients: 10, rounds: 8, participation: 0.5, sampling: poisson, byzantine_tolerance: 0.2}
aggregators: [mean, krum]
threats: [{name: none}]
"""
    run = harness.run(load_text(text, tmp_path / "c.yaml"), device="cpu", jobs=0, store=tmp_path / "s")
    assert [record["status"] for record in run.records] == ["scored", "not-applicable"]
    assert "krum needs n > 2f + 2" in run.records[1]["reason"]
    # Where f comes from is said, as nothing in the list of rules does.
    assert (
        "f is the share federation.byzantine_tolerance of the clients, here 0.2" in run.records[1]["reason"]
    )
    assert "by default" not in run.records[1]["reason"]
