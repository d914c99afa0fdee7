"""Dropout: the same masks however clients train, of the right distribution, and torch's own outside of training."""

from __future__ import annotations

import pytest
import torch
from test_threads import same as same_in_threads
from test_vectorised import PGD, members, same, training
from torch import nn

from harness.federation.dropout import Masks, dropouts, masked, seed_dropout
from harness.federation.vectorised import nature
from harness.random import torch_generator

LOCAL = "{epochs: 1, batch_size: 40, optimizer: {sgd: {lr: 0.1, momentum: 0.9}}}"


def network():
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Dropout2d(0.25), nn.Flatten(), nn.Linear(256, 16), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(16, 10),
    )  # fmt: skip
    seed_dropout(module)
    return module


DEFENCES = [
    "none",
    "gradient-clipping: {max_norm: 0.5}",
    "label-smoothing",
    f"adversarial-training: {{{PGD}}}",
]


@pytest.mark.parametrize("defences", DEFENCES)
def test_as_one_program(tmp_path, defences):
    stage = training(tmp_path, defences, local=LOCAL, partition="iid")
    clients = members(stage, limit=100)  # batches of 40, 40 and 20
    facts = same(stage, network().double(), clients)
    assert facts == {"clients": "vectorised", "chunk": 5, "alone": []}


def test_clients_of_other_sizes_are_groups_of_their_own(tmp_path):
    stage = training(tmp_path, local=LOCAL, partition="iid")
    clients = members(stage, limit=100)
    for client in clients[:2]:
        client.images, client.labels = client.images[:70], client.labels[:70]
        client.steps = stage._steps(70)
    assert same(stage, network().double(), clients)["chunk"] == 3


@pytest.mark.parametrize("defences", [*DEFENCES, "dp-sgd: {noise_multiplier: 1.0}"])
def test_in_threads(tmp_path, defences):
    stage = training(tmp_path, defences, local=LOCAL)
    clients = members(stage, limit=60)
    for client in clients:
        client.images = client.images.float()
    assert same_in_threads(stage, network(), clients, rounds=2).facts["at_a_time"] == 3


def test_private_training_takes_a_mask_for_each_record(tmp_path):
    stage = training(tmp_path, "dp-sgd: {noise_multiplier: 1.0}", local=LOCAL)
    facts = same(stage, network().double(), members(stage, limit=60), tolerance=1e-12)
    assert "Poisson batches differ in size" in facts["alone"][0]


def test_the_layers_of_a_stage_s_network_are_seeded(tmp_path, monkeypatch):
    stage = training(tmp_path)
    monkeypatch.setattr(
        type(stage.spec.model), "build", lambda *_: nn.Sequential(nn.Flatten(), nn.Dropout(0.3))
    )
    (layer,) = dropouts(stage.initial_module())
    assert isinstance(layer, nn.Dropout)
    assert layer.p == 0.3


@pytest.mark.parametrize("p", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("layer", [nn.Dropout, nn.Dropout2d])
def test_masks_keep_the_mean_and_the_share(layer, p):
    module = nn.Sequential(layer(p)).train()
    seed_dropout(module)
    x = torch.ones(50, 40, 8, 8)
    before = torch.get_rng_state()
    with masked(dropouts(module), Masks([torch_generator("masks")])):
        once, again = module(x), module(x)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(once, again) or p == 1.0
    kept = 1 / (1 - p) if p < 1 else 0.0
    assert all(value in (0.0, pytest.approx(kept)) for value in once.unique().tolist())
    share = float((once == 0).double().mean())
    assert share == pytest.approx(p, abs=5 * (p * (1 - p) / 2000) ** 0.5 + 1e-9)  # of 2,000 channels at least
    if layer is nn.Dropout2d:
        assert all(len(own.unique()) == 1 for own in once.flatten(0, 1))


def test_outside_of_training_it_is_torch_s_own():
    module = network()
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(module.eval()(x), module(x))
    torch.manual_seed(0)
    one = module.train()(x)
    torch.manual_seed(0)
    assert torch.equal(module(x), one)
    assert not torch.equal(module(x), one)
    assert nature(module, x[:1]) == "apart"
    assert all(layer.masks is None for layer in dropouts(module))


def test_records_one_by_one_have_masks_of_their_own():
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
    seed_dropout(module)
    x = torch.ones(6, 1, 8, 8)

    def one(image):
        return torch.func.functional_call(module, {}, (image[None],))[0]

    with masked(dropouts(module), Masks([torch_generator("masks")])):
        rows = torch.func.vmap(one)(x)
    with masked(dropouts(module), Masks([torch_generator("masks")])):
        assert torch.equal(rows, module(x))  # those of the batch as a whole
    assert len({tuple(row.tolist()) for row in rows}) == 6
