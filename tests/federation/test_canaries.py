"""Canaries: fair coins, exact gradients, honest counts; and what the recorder says of rounds and canaries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import harness
from harness.contracts.defence import Sampling
from harness.contracts.privacy import Canaries, TrainingVariant
from harness.errors import PluginError
from harness.federation.apply import Apply
from harness.federation.canaries import GradientCanaries, plant
from harness.federation.counts import participants
from harness.federation.local import Client, LocalTrainer, Start
from harness.federation.recorder import Recorder
from harness.federation.vector import flatten, layout
from harness.functional import cross_entropy
from harness.grid import cells
from harness.plan import Planner
from harness.random import make_key
from harness.scenario import SGD, LocalTraining, load_text
from harness.scenario_plan import data_facts, metrics_of
from harness.training import Training

KEY = make_key("canary tests")
CLASSES = 10
PIXELS = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)

SCENARIO = """
schema: 1
name: canaries
dataset: digits
holdout: 0.9
model: {{small-cnn: {{width: 2, hidden: 8}}}}
federation: {{clients: {clients}, rounds: {rounds}, evaluate_every: 0, {federation}
  local: {{epochs: 1, batch_size: {batch}, optimizer: {{sgd: {{lr: 0.1}}}}}}}}
defences: [{defence}]
"""


def training(
    tmp_path, canaries, clients=1, rounds=2, batch=1000, defence="none", recorded=0, federation="", seed=0
):
    text = SCENARIO.format(
        clients=clients,
        rounds=rounds,
        batch=batch,
        defence=defence,
        federation=federation and federation + ",",
    )
    scenario = load_text(text + f"seeds: [{seed}]", tmp_path / "x.yaml")
    planner = Planner("cpu")
    plan = planner.add(next(iter(cells(scenario))), data_facts(scenario, None), metrics_of(scenario))
    stage = planner.stages[plan.stages["train"]]
    variant = TrainingVariant("planted", keep=None, recorded_rounds=recorded, canaries=canaries)
    return Training(replace(stage.spec, variant=variant), stage.key, "cpu")


def trained(found: Training):
    """The module before and the outcome after."""
    first = flatten(found.initial_module())
    return first, found.run(found.initial_module(), lambda *_: None)


def planted(count=20, name="a", seed=0, clients=range(3), d=1000, images=PIXELS, **settings):
    return plant(Canaries(count, **settings), name, seed, clients, d, images, CLASSES)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return harness.create("model", "small-cnn", width=2, hidden=8).build((1, 8, 8), CLASSES).double()


def ordinary(n: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (n,), generator=generator)


def unit(d: int, coordinate: int) -> torch.Tensor:
    row = torch.zeros(d, dtype=torch.float64)
    row[coordinate] = 1.0
    return row


# Planting -------------------------------------------------------------------------------------------


def test_coins_are_fair_and_independent():
    coins = np.stack([planted(50, seed=seed).included for seed in range(400)])
    # 20,000 coins: a deviation of 0.0035; 400 of each canary: 0.025; five deviations of room each.
    assert abs(coins.mean() - 0.5) < 0.018
    assert np.abs(coins.mean(0) - 0.5).max() < 0.125
    # How many are in varies as Binomial(50, 1/2) does (variance 12.5, known to 7 %): nobody made it half of them.
    assert 8.1 < coins.sum(1).var() < 16.9
    pairs = np.corrcoef(coins.T)[np.triu_indices(50, 1)]
    assert np.abs(pairs).max() < 0.28  # 1,225 correlations of deviation 0.05


def test_name_and_seed_decide_everything():
    one, same = planted(), planted()
    assert np.array_equal(one.included, same.included)
    assert torch.equal(one.coordinates, same.coordinates)
    assert one.client == same.client
    for other in (planted(seed=1), planted(name="b")):
        assert not np.array_equal(one.included, other.included)
        assert not torch.equal(one.coordinates, other.coordinates)


def test_coordinates_are_distinct_and_of_the_whole_vector():
    everywhere = planted(1000, d=1000).coordinates
    assert torch.equal(everywhere.sort().values, torch.arange(1000))
    some = torch.cat([planted(20, seed=seed, d=1000).coordinates for seed in range(100)])
    thirds = torch.bincount(some // 334, minlength=3) / 2000
    assert (thirds - 1 / 3).abs().max() < 0.06


def test_every_client_may_be_the_one_that_holds_them():
    drawn = [planted(1, seed=seed).client for seed in range(120)]
    assert np.bincount(drawn, minlength=3).min() > 20  # of 40 expected, deviation 5.2
    assert set(drawn) == {0, 1, 2}
    assert {planted(1, seed=seed, clients=[1, 4]).client for seed in range(20)} == {1, 4}
    with pytest.raises(PluginError, match="takes part in some round, and none does"):
        planted(1, clients=[])


def test_they_are_planted_where_some_round_sees_them(tmp_path):
    """Of eight clients two take part in a round: the chance that one never does in two rounds is 0.56."""
    for seed in range(12):
        canaries = Canaries(10, form="image")
        found = training(tmp_path, canaries, clients=8, federation="participation: 0.25", seed=seed)
        schedule = participants(8, 0.25, 2, seed, "train")
        assert any(found.planting.client in ids for ids in schedule)


@pytest.mark.parametrize("images", [PIXELS, PIXELS.float()], ids=["uint8", "float"])
def test_image_canaries_are_noise_with_labels_of_the_data(images):
    found = planted(200, form="image", repeats=3, images=images)
    assert found.images.dtype == images.dtype
    assert found.images.shape == (200, 1, 8, 8)
    values = found.images.double() / (255 if images.dtype == torch.uint8 else 1)
    assert 0 <= values.min() < 0.01
    assert 0.99 < values.max() <= 1
    assert values.mean() == pytest.approx(0.5, abs=0.02)
    assert set(found.labels.tolist()) == set(range(CLASSES))
    x, y = found.records
    index = torch.from_numpy(np.flatnonzero(found.included)).repeat_interleave(3)
    assert torch.equal(x, found.images[index])
    assert torch.equal(y, found.labels[index])


def test_gradient_canaries_carry_their_number_in_the_label():
    found = planted(30)
    _, labels = found.records
    assert (labels - CLASSES).tolist() == np.flatnonzero(found.included).tolist()
    assert found.clients == []


def test_canary_clients_are_those_included_or_all_where_the_coin_is_a_sign():
    present = planted(30, unit="client")
    assert present.clients == np.flatnonzero(present.included).tolist()
    signed = planted(30, unit="client", opposite=True)
    assert signed.clients == list(range(30))
    assert [signed.sign(j) for j in range(30)] == [1.0 if coin else -1.0 for coin in signed.included]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 11, "d": 10}, "between 1 and 10"),
        ({"count": 0}, "between 1"),
        ({"repeats": 0}, "between 1"),
        ({"unit": "client", "form": "image"}, "send a gradient"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(PluginError, match=message):
        planted(**settings)


# Gradients ------------------------------------------------------------------------------------------


def test_a_canary_s_gradient_is_its_coordinate_and_a_record_s_is_untouched():
    module = network()
    d = len(flatten(module))
    found = planted(20, d=d, scale=7.0, images=torch.zeros(1, 1, 8, 8, dtype=torch.float64))
    plain = cross_entropy(Apply(module))
    loss = GradientCanaries(found, CLASSES).loss(plain, Apply(module))
    x, y = ordinary(3)
    params = dict(module.named_parameters())
    own = torch.cat([x, found.images]), torch.cat([y, found.labels])
    values = loss(params, own, KEY)
    start = flatten(module)
    assert torch.equal(values[:3], plain(params, (x, y), KEY))
    torch.testing.assert_close(values[3:], 7.0 * start[found.coordinates])
    for row in range(23):
        grads = torch.autograd.grad(values[row], list(params.values()), retain_graph=True)
        got = torch.cat([g.reshape(-1) for g in grads])
        if row < 3:
            alone = functional.cross_entropy(module(x[row : row + 1]), y[row : row + 1])
            expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(alone, list(params.values()))])
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)
        else:
            assert torch.equal(got, 7.0 * unit(d, int(found.coordinates[row - 3])))


def test_the_same_under_vmap_and_grad():
    module = network()
    d = len(flatten(module))
    found = planted(6, d=d, scale=7.0, images=torch.zeros(1, 1, 8, 8, dtype=torch.float64))
    loss = GradientCanaries(found, CLASSES).loss(cross_entropy(Apply(module)), Apply(module))
    params = {name: p.detach() for name, p in module.named_parameters()}

    def one(values, x, y):
        return loss(values, (x[None], y[None]), KEY).squeeze(0)

    per_record = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0))
    grads = per_record(params, found.images, found.labels)
    rows = torch.cat([g.flatten(1) for g in grads.values()], 1)
    assert torch.equal(rows, 7.0 * torch.stack([unit(d, int(j)) for j in found.coordinates]))


def test_other_hooks_on_the_loss_do_not_reach_a_canary(tmp_path):
    """Label smoothing changes a record's gradient, and the canaries, planted outside of it, stay exact."""
    canaries = Canaries(40, scale=5.0)
    for defence in ("none", "label-smoothing: {smoothing: 0.5}"):
        found = training(tmp_path, canaries, defence=defence, rounds=1)
        included = found.planting.included
        first, after = trained(found)
        with_canaries = flatten(after.module) - first
        without = training(tmp_path, None, defence=defence, rounds=1)
        _, plain = trained(without)
        own = flatten(plain.module) - first
        n, k = len(found.pool.members), int(included.sum())
        expected = own * n / (n + k)  # the step on the mean over n records, over n + k now
        expected[found.planting.coordinates[torch.from_numpy(included)]] -= 0.1 * 5.0 / (n + k)
        torch.testing.assert_close(with_canaries, expected, rtol=1e-4, atol=1e-6)


def step_of(module, records, defence, found, batch_size):
    """-update of one plain SGD step of size 1 on all the records: what the optimiser stepped along."""
    hooks = (defence, GradientCanaries(found, CLASSES))
    prepared = [{"clients": [{"noise_multiplier": 0.0}]}, {}]
    client = Client(0, *records, 1, Sampling("poisson", 1.0), hooks, prepared)
    local = LocalTraining(batch_size=batch_size, optimizer=SGD(lr=1.0))
    trainer = LocalTrainer(module, local, 0, "stage", "float32", "cpu")
    return -trainer.train(client, Start(0, flatten(module)))


@pytest.mark.parametrize("per_sample", ["auto", "vmap"])
@pytest.mark.parametrize("scale", [10.0, 0.3], ids=["clipped", "below the clipping norm"])
def test_dp_sgd_sums_clipped_canaries_and_clipped_records(per_sample, scale):
    module, c = network(), 0.8
    d = len(flatten(module))
    found = planted(20, d=d, scale=scale, images=torch.zeros(1, 1, 8, 8, dtype=torch.float64))
    x, y = ordinary(7)
    both = torch.cat([x, found.records[0]]), torch.cat([y, found.records[1]])
    expected = torch.zeros(d, dtype=torch.float64)
    for j in np.flatnonzero(found.included):
        expected += min(c, scale) * unit(d, int(found.coordinates[j]))
    norms = []
    for i in range(7):
        loss = functional.cross_entropy(module(x[i : i + 1]), y[i : i + 1])
        g = torch.cat([p.reshape(-1) for p in torch.autograd.grad(loss, list(module.parameters()))])
        norms.append(float(g.norm()))
        expected += g * min(1.0, c / norms[-1])
    assert max(norms) > c  # some record is clipped, so that the test is about clipping
    defence = harness.create(
        "defence", "dp-sgd", noise_multiplier=0.0, max_grad_norm=c, per_sample=per_sample
    )
    got = step_of(module, both, defence, found, 16)
    torch.testing.assert_close(got * 16, expected, rtol=1e-5, atol=1e-6)


def test_ghost_clipping_says_that_it_cannot():
    module = network()
    found = planted(5, d=len(flatten(module)), images=torch.zeros(1, 1, 8, 8, dtype=torch.float64))
    defence = harness.create("defence", "dp-sgd", noise_multiplier=0.0, per_sample="ghost")
    with pytest.raises(PluginError, match="ghost clipping cannot be used"):
        step_of(module, found.records, defence, found, 5)


# In a training --------------------------------------------------------------------------------------


def test_the_client_that_holds_canaries_is_as_much_larger_and_samples_accordingly(tmp_path):
    found = training(
        tmp_path, Canaries(60), clients=3, rounds=4, batch=10, defence="dp-sgd: {noise_multiplier: 2.0}"
    )
    own, (_, result) = found.planting, trained(found)
    (prepared,) = result.prepared[0]
    sizes = [len(c) for c in found.pool.clients]
    more = int(own.included.sum())
    assert 15 < more < 45
    sizes[own.client] += more
    clients = found._clients(result.prepared[0])
    assert [c.size for c in clients] == sizes
    assert [c.sampling for c in clients] == [Sampling("poisson", 10 / size) for size in sizes]
    assert [c["sample_rate"] for c in prepared["clients"]] == [10 / size for size in sizes]
    assert [c["steps"] for c in prepared["clients"]] == [4 * -(-size // 10) for size in sizes]
    assert prepared["delta"] == 1 / (10 * sum(sizes))
    assert found.clients == 3
    labels = clients[own.client].labels
    assert sorted((labels[labels >= CLASSES] - CLASSES).tolist()) == np.flatnonzero(own.included).tolist()
    others = [c for i, c in enumerate(clients) if i != own.client]
    assert all(int(c.labels.max()) < CLASSES for c in others)


def test_repeated_image_canaries_count_as_often_as_they_are_there(tmp_path):
    found = training(tmp_path, Canaries(30, form="image", repeats=4), clients=2)
    own = found.planting
    clients = found._clients([])
    assert clients[own.client].size == len(found.pool.clients[own.client]) + 4 * int(own.included.sum())
    assert int(clients[own.client].labels.max()) < CLASSES
    assert trained(found)[1].recorder.signals(flatten(found.initial_module())) == {}


def by_hand(found: Training, rounds: int, repeats: int = 1):
    """Weights after each round of one client's full-batch SGD, and the update of every round, by plain torch."""
    own, scale = found.planting, found.planting.canaries.scale
    module = found.initial_module()
    images, labels = found.data.train.take(found.pool.clients[0])
    x, n = images.float() / 255, len(labels) + repeats * int(own.included.sum())
    chosen = own.coordinates[torch.from_numpy(own.included)]
    updates = []
    for _ in range(rounds):
        loss = functional.cross_entropy(module(x), labels, reduction="sum") / n
        grads = torch.autograd.grad(loss, list(module.parameters()))
        update = -0.1 * torch.cat([g.reshape(-1) for g in grads])
        update[chosen] -= 0.1 * scale * repeats / n
        updates.append(update)
        nn.utils.vector_to_parameters(flatten(module) + update, module.parameters())
    return updates, flatten(module)


@pytest.mark.parametrize("repeats", [1, 3])
def test_signals_are_what_the_arithmetic_says(repeats, tmp_path):
    found = training(tmp_path, Canaries(50, scale=10.0, repeats=repeats), rounds=2)
    own, (first, result) = found.planting, trained(found)
    updates, final = by_hand(found, 2, repeats)
    signals = result.recorder.signals(flatten(result.module))
    assert set(signals) == {"updates", "sum", "models"}
    expected = -sum(updates)[own.coordinates].double()
    for name in ("updates", "sum"):
        np.testing.assert_allclose(signals[name], expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        signals["models"], (first - final)[own.coordinates].double(), rtol=1e-3, atol=1e-5
    )
    n = len(found.pool.clients[0]) + repeats * int(own.included.sum())
    planted_part = 2 * 0.1 * 10.0 * repeats / n  # two rounds of lr * scale * repeats / n
    signal = np.asarray(signals["updates"])
    data = signal - planted_part * own.included
    assert np.abs(data).mean() < planted_part / 3  # what the records' own gradients add is small beside it
    assert signal[own.included].mean() - signal[~own.included].mean() == pytest.approx(planted_part, rel=0.25)


@pytest.mark.parametrize(
    "federation",
    ["weighting: uniform", "participation: 0.5, weighting: uniform"],
    ids=["everybody", "half of them"],
)
def test_with_several_clients_each_signal_is_of_its_own_adversary(federation, tmp_path):
    found = training(tmp_path, Canaries(40), clients=4, rounds=6, recorded=6, federation=federation)
    own, (first, result) = found.planting, trained(found)
    final = flatten(result.module)
    signals = result.recorder.signals(final)
    seen, mean, held = 0.0, 0.0, 0
    for number, entry in enumerate(result.recorder.rounds):
        rows = result.recorder.tensors[f"updates.{number}"]
        mean = mean + rows.mean(0)[own.coordinates]
        if own.client in entry["clients"]:
            held += 1
            seen = seen + rows[entry["clients"].index(own.client)][own.coordinates]
    assert held > 0
    assert (held < 6) == ("participation" in federation)
    np.testing.assert_allclose(signals["updates"], -seen, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(signals["sum"], -mean, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(signals["models"], (first - final)[own.coordinates], rtol=1e-6)
    np.testing.assert_allclose(signals["sum"], signals["models"], atol=1e-5)  # FedAvg adds the mean up
    assert np.abs(np.subtract(signals["sum"], signals["updates"])).max() > 1e-3


def test_a_recorder_keeps_evenly_spread_rounds():
    assert Recorder(3, 7, None, 1).wanted == {0, 3, 6}
    assert Recorder(4, 6, None, 1).wanted == {0, 2, 3, 5}  # not whole: 0, 5/3, 10/3, 5
    assert Recorder(5, 5, None, 1).wanted == {0, 1, 2, 3, 4}
    assert Recorder(9, 4, None, 1).wanted == {0, 1, 2, 3}
    assert Recorder(1, 4, None, 1).wanted == {0}
    assert Recorder(0, 4, None, 1).wanted == set()


def test_recorded_rounds_replay_the_training(tmp_path):
    found = training(
        tmp_path, None, clients=3, rounds=4, batch=16, recorded=4, federation="weighting: uniform"
    )
    first, result = trained(found)
    recorder = result.recorder
    assert recorder.rounds == [{"round": r, "clients": [0, 1, 2]} for r in range(4)]
    assert recorder.signals(first) == {}
    weights = [recorder.tensors[f"weights.{r}"] for r in range(4)] + [flatten(result.module)]
    assert torch.equal(weights[0], first)
    for r in range(4):
        updates = recorder.tensors[f"updates.{r}"]
        assert updates.shape == (3, len(first))
        assert updates.norm(dim=1).min() > 1e-3
        torch.testing.assert_close(weights[r] + updates.mean(0), weights[r + 1], rtol=1e-4, atol=1e-6)


def test_fewer_recorded_rounds_are_the_same_rounds(tmp_path):
    every, some = (training(tmp_path, None, clients=2, rounds=7, recorded=n) for n in (7, 3))
    every, some = trained(every)[1].recorder, trained(some)[1].recorder
    assert [entry["round"] for entry in some.rounds] == [0, 3, 6]
    for number, r in enumerate((0, 3, 6)):
        for what in ("weights", "updates"):
            assert torch.equal(some.tensors[f"{what}.{number}"], every.tensors[f"{what}.{r}"])


@pytest.mark.parametrize("opposite", [False, True], ids=["present or not", "sign"])
def test_canary_clients_send_their_coordinate_and_nothing_else(opposite, tmp_path):
    canaries = Canaries(12, unit="client", scale=3.0, opposite=opposite)
    found = training(tmp_path, canaries, clients=2, rounds=3, recorded=3)
    own, (first, result) = found.planting, trained(found)
    taking_part = list(range(12)) if opposite else np.flatnonzero(own.included).tolist()
    assert 0 < len(np.flatnonzero(own.included)) < 12
    assert found.clients == 2 + len(taking_part)
    assert [len(c) for c in found.pool.clients] == [c.size for c in found._clients([{}])[:2]]
    signs = np.where(own.included, 1.0, -1.0)
    for r in range(3):
        assert result.recorder.rounds[r]["clients"] == list(range(2 + len(taking_part)))
        rows = result.recorder.tensors[f"updates.{r}"][2:]
        for row, number in zip(rows, taking_part, strict=True):
            expected = -3.0 * float(signs[number]) * unit(len(first), int(own.coordinates[number]))
            assert torch.equal(row.double(), expected)
    signals = result.recorder.signals(flatten(result.module))
    np.testing.assert_allclose(signals["updates"], 9.0 * (signs if opposite else own.included), rtol=1e-6)


def test_defences_act_on_canary_clients_as_on_all(tmp_path):
    canaries = Canaries(20, unit="client", scale=3.0, opposite=True)
    defence = "local-dp: {noise_multiplier: 0, clip_norm: 0.5}"
    found = training(tmp_path, canaries, clients=2, rounds=2, recorded=1, defence=defence)
    own, (_, result) = found.planting, trained(found)
    rows = result.recorder.tensors["updates.0"][2:]
    torch.testing.assert_close(rows.norm(dim=1), torch.full((20,), 0.5))
    at = rows[torch.arange(20), own.coordinates].sign().numpy()
    assert np.array_equal(at, np.where(own.included, -1.0, 1.0))
    (prepared,) = result.prepared[0]
    assert prepared["rounds"] == [2] * 22
    assert prepared["delta"] == 1 / (10 * (len(found.pool.members) + 20))


def test_canary_clients_are_drawn_by_their_own_coins_like_all(tmp_path):
    canaries = Canaries(40, unit="client", scale=1.0)
    found = training(
        tmp_path,
        canaries,
        clients=2,
        rounds=8,
        recorded=8,
        federation="sampling: poisson, participation: 0.4",
    )
    own, (_, result) = found.planting, trained(found)
    taking_part = own.clients
    drawn = np.zeros(len(taking_part))
    for entry in result.recorder.rounds:
        for client in entry["clients"]:
            drawn[client - 2] += client >= 2
    assert len(set(drawn.tolist())) > 2  # not in every round, nor all in the same
    assert drawn.mean() == pytest.approx(3.2, abs=1.0)
    signals = np.asarray(result.recorder.signals(flatten(result.module))["updates"])
    np.testing.assert_allclose(signals[taking_part], drawn, rtol=1e-6)
    assert (signals[~own.included] == 0).all()


def test_the_layout_is_the_order_of_the_coordinates():
    module = network()
    parts = layout(module)
    flat = flatten(module)
    for name, parameter in module.named_parameters():
        assert torch.equal(flat[parts[name]], parameter.detach().reshape(-1))
