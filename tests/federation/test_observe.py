"""Observed updates: against plain PyTorch, step by step, and through every defence and compressor in the way."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import combinations, product

import pytest
import torch
from torch.nn import functional

from harness.contracts.privacy import Observation
from harness.errors import PluginError
from harness.federation.observe import observe
from harness.federation.vector import flatten
from harness.functional import batch_norms
from harness.grid import cells
from harness.plan import Planner
from harness.scenario import load_text
from harness.scenario_plan import data_facts, metrics_of
from harness.training import Training
from harness_plugins.attacks.privacy._inversion import simulate

SGD = "sgd: {lr: 0.1}"
MLP = "mlp: {hidden: [16]}"
BATCH_NORM = "resnet9: {width: 2, norm: batch}"
SCENARIO = """
schema: 1
name: observed
dataset: digits
holdout: 0.9
model: {{{model}}}
federation: {{clients: 4, rounds: 5, {federation}
  local: {{epochs: 1, batch_size: 8, schedule: {schedule}, proximal: {proximal}, optimizer: {{{optimizer}}}}}}}
defences: [[{defences}]]
compressors: [[{compressors}]]
"""


def training(
    tmp_path,
    model=MLP,
    optimizer=SGD,
    defences="",
    compressors="",
    federation="",
    schedule="constant",
    proximal=0.0,
) -> Training:
    text = SCENARIO.format(
        model=model,
        optimizer=optimizer,
        defences=defences,
        compressors=compressors,
        federation=federation and federation + ",",
        schedule=schedule,
        proximal=proximal,
    )
    text = text.replace("defences: [[]]\n", "").replace("compressors: [[]]\n", "")
    scenario = load_text(text, tmp_path / "x.yaml")
    planner = Planner("cpu")
    plan = planner.add(next(iter(cells(scenario))), data_facts(scenario, None), metrics_of(scenario))
    stage = planner.stages[plan.stages["train"]]
    return Training(stage.spec, stage.key, "cpu")


def look(found: Training, module=None, number=0, **wanted):
    module = found.initial_module() if module is None else module
    prepared = found._prepare([list(range(4))] * 5, [])
    return observe(found, module, Observation(**wanted), prepared, number)


def gradient(module, images, labels):
    """The mean loss's gradient (d,), by plain autograd."""
    loss = functional.cross_entropy(module(images), labels)
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(module.parameters()))])


def after(module, batches, make):
    """Update (d,) of torch's own optimiser over these batches."""
    own = copy.deepcopy(module)
    start, optimizer = flatten(own), make(own.parameters())
    for images, labels in batches:
        optimizer.zero_grad()
        functional.cross_entropy(own(images), labels).backward()
        optimizer.step()
    return flatten(own) - start


def holder(found: Training, images) -> int:
    """The client that has all of these images."""
    rows = {}
    for client, positions in enumerate(found.pool.clients):
        for row in found.data.train.take(positions)[0]:
            rows.setdefault(row.numpy().tobytes(), set()).add(client)
    bytes_ = [(image * 255).round().to(torch.uint8).numpy().tobytes() for image in images]
    common = set.intersection(*(rows[b] for b in bytes_))
    assert common, "images of several clients, or of none"
    return common.pop()


@pytest.mark.parametrize("records", [1, 5])
def test_one_step_is_minus_lr_times_the_gradient(records, tmp_path):
    found = training(tmp_path)
    module = found.initial_module()
    seen, images, labels = look(found, module, records=records)
    assert images.shape == (records, 1, 8, 8)
    assert images.is_floating_point()
    assert images.max() <= 1
    expected = gradient(found.initial_module(), images, labels)
    assert expected.norm() > 0.1
    torch.testing.assert_close(seen.update, -0.1 * expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(seen.gradient(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(seen.weights, flatten(found.initial_module()))
    assert (seen.records, seen.batch_size, seen.epochs, seen.clients) == (records, records, 1, 1)
    assert (seen.num_classes, seen.input_shape, seen.attribute) == (10, (1, 8, 8), None)
    assert (seen.optimizer["name"], seen.optimizer["lr"]) == ("sgd", 0.1)
    assert sum(part.stop - part.start for part in seen.layout.values()) == len(seen.update)
    holder(found, images)


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        (
            "sgd: {lr: 0.1, momentum: 0.9, weight_decay: 0.01}",
            lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.01),
        ),
        ("adam: {lr: 0.01}", lambda p: torch.optim.Adam(p, 0.01)),
    ],
    ids=["sgd", "adam"],
)
def test_several_epochs_are_torch_s_optimiser_by_hand(settings, make, tmp_path):
    found = training(tmp_path, optimizer=settings)
    seen, images, labels = look(found, records=6, epochs=3)
    expected = after(found.initial_module(), [(images, labels)] * 3, make)
    torch.testing.assert_close(seen.update, expected, rtol=1e-4, atol=1e-6)
    assert (seen.records, seen.batch_size, seen.epochs) == (6, 6, 3)
    if "momentum" in settings:
        assert (seen.optimizer["momentum"], seen.optimizer["weight_decay"]) == (0.9, 0.01)
        one = look(found, records=6, epochs=1)[0].update
        assert (seen.update - 3 * one).norm() > 0.1 * seen.update.norm()  # momentum and curvature are in it


@pytest.mark.parametrize(
    "optimizer", [SGD, "sgd: {lr: 0.1, momentum: 0.5, weight_decay: 0.1, nesterov: true}"]
)
def test_a_client_kept_near_the_global_weights_is_simulated_as_it_trains(optimizer, tmp_path):
    """FedProx pulls in every step but the first; an attack that left it out would look for other images."""
    target = training(tmp_path, optimizer=optimizer, proximal=4.0)
    seen, images, labels = look(target, records=3, epochs=4)
    torch.testing.assert_close(simulate(seen, images, labels), seen.update, rtol=1e-4, atol=1e-6)
    plain, *_ = look(training(tmp_path, optimizer=optimizer), records=3, epochs=4)
    torch.testing.assert_close(simulate(plain, images, labels), plain.update, rtol=1e-4, atol=1e-6)
    assert (plain.update - seen.update).norm() > 0.1 * seen.update.norm()


def test_mini_batches_are_one_of_the_orders_there_are(tmp_path):
    found = training(tmp_path, optimizer="sgd: {lr: 0.5, momentum: 0.5}")
    seen, images, labels = look(found, records=3, epochs=2, batch_size=2)
    assert (seen.records, seen.batch_size, seen.epochs) == (3, 2, 2)
    splits = [
        ((0, 1), (2,)),
        ((0, 2), (1,)),
        ((1, 2), (0,)),
    ]  # of three records into a batch of 2 and one of 1
    distances = []
    for order in product(splits, repeat=2):
        batches = [(images[list(part)], labels[list(part)]) for epoch in order for part in epoch]
        update = after(found.initial_module(), batches, lambda p: torch.optim.SGD(p, 0.5, 0.5))
        distances.append(float((update - seen.update).norm() / seen.update.norm()))
    nearest, second, *_ = sorted(distances)
    assert nearest < 1e-4
    assert second > 1e-2


def test_a_batch_larger_than_the_records_is_all_of_them(tmp_path):
    found = training(tmp_path)
    wide, plain = (look(found, records=3, batch_size=size)[0] for size in (50, None))
    assert wide.batch_size == 3
    assert torch.equal(wide.update, plain.update)


def test_the_learning_rate_is_that_of_the_round(tmp_path):
    found = training(tmp_path, schedule="{step: {every: 2, factor: 0.5}}")  # five rounds: 0.1 ... 0.025
    start, images, labels = look(found, records=4)
    end, same, _ = look(found, records=4, at="end")
    assert torch.equal(images, same)
    assert (start.optimizer["lr"], end.optimizer["lr"]) == (0.1, 0.025)
    expected = gradient(found.initial_module(), images, labels)
    torch.testing.assert_close(start.update, -0.1 * expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(end.update, -0.025 * expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(end.gradient(), start.gradient(), rtol=1e-3, atol=1e-5)


def test_other_weights_are_looked_at_where_they_are(tmp_path):
    found = training(tmp_path)
    module = found.initial_module()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
    seen, images, labels = look(found, module, records=4)
    torch.testing.assert_close(seen.gradient(), gradient(module, images, labels), rtol=1e-3, atol=1e-5)
    assert torch.equal(seen.weights, flatten(module))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_batch_norm_uses_the_statistics_it_is_told_to(mode, tmp_path):
    found = training(tmp_path, model=BATCH_NORM)
    module = found.initial_module()
    with (
        torch.no_grad()
    ):  # statistics of the data, so that the two modes differ and neither is the initial one
        module.train()(found.data.val.images[:100].float() / 255)
    module.eval()
    before = copy.deepcopy(module.state_dict())
    seen, images, labels = look(found, module, records=6, batch_norm=mode)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert not any(layer.training for layer in module.modules())
    other = copy.deepcopy(module).train(mode == "train")
    torch.testing.assert_close(seen.gradient(), gradient(other, images, labels), rtol=1e-3, atol=1e-4)
    wrong = gradient(copy.deepcopy(module).train(mode != "train"), images, labels)
    assert (seen.gradient() - wrong).norm() > 0.1 * wrong.norm()
    names = batch_norms(seen.module)
    assert names
    assert all(seen.module.get_submodule(name).training is (mode == "train") for name in names)
    for name, value in seen.module.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, before[name]), name
    # What the server has in its hands explains the update.
    again = gradient(seen.module, images, labels)
    torch.testing.assert_close(seen.gradient(), again, rtol=1e-3, atol=1e-4)


def test_with_secure_aggregation_the_server_sees_the_mean_of_everybody(tmp_path):
    found = training(tmp_path, defences="secure-aggregation")
    seen, images, labels = look(found, records=None)
    assert seen.clients == 4
    module, rows = found.initial_module(), []
    for positions in found.pool.clients:
        own_images, own_labels = found.data.train.take(positions)
        rows.append(-0.1 * gradient(module, own_images.float() / 255, own_labels))
    sizes = torch.tensor([len(positions) for positions in found.pool.clients])
    torch.testing.assert_close(seen.update, sizes / sizes.sum() @ torch.stack(rows), rtol=1e-4, atol=1e-6)
    # The truth is what all of them hold, one after another.
    assert seen.records == sum(seen.sizes) == len(images) == len(labels)
    assert sorted(seen.sizes) == sorted(sizes.tolist())
    for own_images, own_labels in zip(images.split(seen.sizes), labels.split(seen.sizes), strict=True):
        own = -0.1 * gradient(module, own_images, own_labels)
        assert min(float((own - row).norm()) for row in rows) < 1e-6
        assert (seen.update - own).norm() > 0.05 * own.norm()


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
@pytest.mark.parametrize("epochs", [1, 3])
def test_the_records_of_all_clients_explain_the_mean_of_their_updates(epochs, weighting, tmp_path):
    """What an attack simulates is what the server sees, for clients of unlike sizes and numbers of steps too."""
    settings = f"weighting: {weighting}, partition: {{dirichlet: {{alpha: 0.3}}}}"
    found = training(
        tmp_path,
        optimizer="sgd: {lr: 0.1, momentum: 0.9, weight_decay: 0.01}",
        defences="secure-aggregation",
        federation=settings,
    )
    seen, images, labels = look(found, records=20, epochs=epochs)
    assert seen.clients == len(seen.sizes) == len(seen.shares) == 4
    assert len(set(seen.sizes)) > 1
    assert sum(seen.shares) == pytest.approx(1)
    torch.testing.assert_close(simulate(seen, images, labels), seen.update, rtol=1e-3, atol=1e-5)
    first = slice(0, seen.sizes[0])
    alone = replace(seen, records=seen.sizes[0], sizes=(), shares=())
    assert (simulate(alone, images[first], labels[first]) - seen.update).norm() > 0.1 * seen.update.norm()


def test_the_mean_is_over_as_many_as_take_part_in_a_round(tmp_path):
    found = training(tmp_path, defences="secure-aggregation", federation="participation: 0.5")
    seen, images, _ = look(found, records=None)
    assert seen.clients == 2
    module, rows = found.initial_module(), []
    for positions in found.pool.clients:
        own_images, own_labels = found.data.train.take(positions)
        rows.append(-0.1 * gradient(module, own_images.float() / 255, own_labels))
    sizes = [len(positions) for positions in found.pool.clients]

    def mean(pair):
        return sum(sizes[i] * rows[i] for i in pair) / sum(sizes[i] for i in pair)

    distances = {pair: float((mean(pair) - seen.update).norm()) for pair in combinations(range(4), 2)}
    best = min(distances, key=distances.get)
    assert distances[best] < 1e-5 < min(d for pair, d in distances.items() if pair != best)
    assert {holder(found, own) for own in images.split(seen.sizes)} == set(best)


@pytest.mark.parametrize("records", [1, 4])
def test_dp_sgd_s_noise_has_the_right_deviation(records, tmp_path):
    defence = "dp-sgd: {noise_multiplier: 1000, max_grad_norm: 0.5}"
    found = training(tmp_path, defences=defence)
    seen, _, _ = look(found, records=records)
    d = len(seen.update)
    assert d > 1000
    expected = 0.1 * 1000 * 0.5 / records  # lr sigma C / b
    assert float(seen.update.std()) == pytest.approx(expected, rel=5 / (2 * d) ** 0.5)
    assert abs(float(seen.update.mean())) < 5 * expected / d**0.5
    other = look(found, records=records, number=1)[0].update
    assert abs(float(torch.corrcoef(torch.stack([seen.update, other]))[0, 1])) < 5 / d**0.5


def test_dp_sgd_clips_the_record_before_anybody_sees_it(tmp_path):
    found = training(tmp_path, defences="dp-sgd: {noise_multiplier: 0, max_grad_norm: 0.01}")
    seen, images, labels = look(found, records=1)
    own = gradient(found.initial_module(), images, labels)
    torch.testing.assert_close(seen.gradient(), own * 0.01 / own.norm(), rtol=1e-3, atol=1e-6)


def test_pruning_leaves_its_share_and_the_values_as_they_were(tmp_path):
    plain = look(training(tmp_path), records=8)[0].update
    seen = look(training(tmp_path, defences="gradient-pruning: {ratio: 0.75}"), records=8)[0].update
    kept = round(0.25 * len(plain))
    assert int((plain != 0).sum()) > kept
    assert int((seen != 0).sum()) == kept
    largest = plain.abs().topk(kept).indices
    assert torch.equal(seen[largest], plain[largest])


def test_top_k_sends_the_largest_coordinates(tmp_path):
    plain = look(training(tmp_path), records=8)[0].update
    seen = look(training(tmp_path, compressors="top-k: {ratio: 0.05}"), records=8)[0].update
    kept = round(0.05 * len(plain))
    assert int((seen != 0).sum()) == kept
    largest = plain.abs().topk(kept).indices
    torch.testing.assert_close(seen[largest], plain[largest])


def test_qsgd_sends_levels_of_its_buckets(tmp_path):
    plain = look(training(tmp_path), records=8)[0].update
    seen = look(training(tmp_path, compressors="qsgd: {levels: 3, bucket: 64}"), records=8)[0].update
    assert not torch.equal(plain, seen)
    inside = 0
    for before, now in zip(plain.split(64), seen.split(64), strict=True):
        norm = before.norm()
        if norm == 0:
            assert (now == 0).all()
            continue
        levels = 3 * now / norm
        assert (levels - levels.round()).abs().max() < 1e-4
        assert (levels - 3 * before / norm).abs().max() < 1 + 1e-4  # rounded up or down, to the next level
        inside += int((levels.round() != 0).sum())
    assert inside > 20


def test_defences_come_before_compressors(tmp_path):
    found = training(
        tmp_path, defences="gradient-pruning: {ratio: 0.9}", compressors="qsgd: {levels: 127, bucket: 2048}"
    )
    plain = look(training(tmp_path), records=8)[0].update
    seen = look(found, records=8)[0].update
    largest = plain.abs().topk(round(0.1 * len(plain))).indices
    mask = torch.ones_like(plain, dtype=torch.bool)
    mask[largest] = False
    assert (seen[mask] == 0).all()
    step = plain[largest].norm() / 127
    assert (seen[largest] - plain[largest]).abs().max() < step * (1 + 1e-4)
    assert (seen[largest] - plain[largest]).abs().max() > 0


def test_without_a_number_of_records_it_is_all_the_client_has(tmp_path):
    found = training(tmp_path)
    seen, images, labels = look(found, records=None)
    client = holder(found, images)
    positions = found.pool.clients[client]
    assert seen.records == len(labels) == len(positions)
    assert seen.batch_size == len(positions)
    everything = found.data.train.take(positions)
    assert torch.equal((images * 255).round().to(torch.uint8), everything[0])
    assert torch.equal(labels, everything[1])
    torch.testing.assert_close(
        seen.gradient(), gradient(found.initial_module(), images, labels), rtol=1e-3, atol=1e-5
    )


def test_more_records_than_there_are_is_all_of_them(tmp_path):
    found = training(tmp_path)
    assert look(found, records=10**6)[0].records == look(found, records=None)[0].records


def test_each_number_is_another_draw_and_the_same_one_again(tmp_path):
    found = training(tmp_path)
    draws = [look(found, records=4, number=number) for number in range(8)]
    for a, b in combinations(draws, 2):
        assert not torch.equal(a[1], b[1])
        assert not torch.equal(a[0].update, b[0].update)
    assert len({holder(found, images) for _, images, _ in draws}) > 1
    again = look(found, records=4, number=3)
    assert torch.equal(again[1], draws[3][1])
    assert torch.equal(again[0].update, draws[3][0].update)


def test_the_records_are_drawn_without_replacement(tmp_path):
    found = training(tmp_path)
    client = len(found.pool.clients[0])
    _, images, _ = look(found, records=client - 2)
    assert len({row.numpy().tobytes() for row in images}) >= client - 3  # digits hold hardly any equal images


def test_an_attribute_splits_even_draws_from_odd_ones(tmp_path):
    found = training(tmp_path)

    def small(images, labels):
        assert images.max() <= 1
        return labels < 4

    for number in range(4):
        seen, _, labels = look(found, records=6, number=number, attribute=small)
        assert seen.attribute is (number % 2 == 0)
        assert len(labels) == 6
        assert ((labels < 4) == seen.attribute).all()
    with pytest.raises(PluginError, match="no record with the attribute"):
        look(found, number=0, attribute=lambda images, labels: labels > 9)
    with pytest.raises(PluginError, match="no record without the attribute"):
        look(found, number=1, attribute=lambda images, labels: labels <= 9)
