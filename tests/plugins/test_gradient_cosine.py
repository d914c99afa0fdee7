"""gradient-cosine, against gradients taken one record at a time."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import harness
from harness.api import (
    MetricContext,
    PluginError,
    PrivacyContext,
    PrivacyView,
    RecordedRound,
    TrainingVariant,
    VariantView,
)
from harness_plugins.attacks.privacy import gradient_cosine
from harness_plugins.attacks.privacy.gradient_cosine import GradientCosine

CONTEXT = PrivacyContext(num_classes=3, generator=torch.Generator())
D = 35


def small(weights, images):
    """4 pixels -> 5 hidden -> 3 classes."""
    hidden = torch.tanh(images.flatten(1) @ weights[:20].view(4, 5))
    return hidden @ weights[20:].view(5, 3)


def linear(weights, images):
    """6 pixels -> 2 classes: records with no pixel in common have orthogonal gradients."""
    return images.flatten(1) @ weights.view(6, 2)


def records(rng, n, classes=3, shape=(1, 2, 2), dtype=torch.float64):
    images = torch.from_numpy(rng.normal(size=(n, *shape))).to(dtype)
    return images, torch.from_numpy(rng.integers(0, classes, n))


def kept(number, weights, updates, clients=None):
    clients = tuple(range(len(updates))) if clients is None else clients
    return RecordedRound(number, weights, updates, clients)


def view(rounds, members, non_members, apply=small, name="recorded-3"):
    variant = VariantView(lambda images: images, np.ones(1, dtype=bool), rounds=tuple(rounds))
    return PrivacyView(lambda images: images, members, non_members, variants={name: variant}, apply=apply)


def gradient(weights, image, label, apply=small):
    weights = weights.clone().requires_grad_()
    loss = functional.cross_entropy(apply(weights, image.unsqueeze(0)), label.unsqueeze(0))
    return torch.autograd.grad(loss, weights)[0]


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def made(seed=0, rounds=3, updates=4):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: torch.from_numpy(rng.normal(size=shape))  # noqa: E731
    found = [kept(5 * i, draw(D), draw(updates, D)) for i in range(rounds)]
    return found, records(rng, 7), records(rng, 9)


def scores_of(*args, **more):
    return GradientCosine().run(view(*args, **more), CONTEXT).scores


def test_it_is_the_mean_over_rounds_of_the_best_cosine():
    rounds, members, others = made()
    expected = []
    for image, label in [*zip(*members, strict=True), *zip(*others, strict=True)]:
        best = [
            max(cosine(-update, gradient(each.weights, image, label)) for update in each.updates)
            for each in rounds
        ]
        expected.append(sum(best) / 3)
    result = GradientCosine().run(view(rounds, members, others), CONTEXT)
    np.testing.assert_allclose(result.scores, expected, rtol=1e-9)
    assert result.scores.dtype == np.float64
    assert result.is_member.tolist() == [True] * 7 + [False] * 9


def test_the_chunks_change_nothing(monkeypatch):
    whole = scores_of(*made())
    monkeypatch.setattr(gradient_cosine, "RECORDS", 5)
    np.testing.assert_allclose(scores_of(*made()), whole, rtol=1e-12)
    monkeypatch.setattr(gradient_cosine, "ELEMENTS", 3 * D + 1)
    np.testing.assert_allclose(scores_of(*made()), whole, rtol=1e-12)
    monkeypatch.setattr(gradient_cosine, "ELEMENTS", 1)
    np.testing.assert_allclose(scores_of(*made()), whole, rtol=1e-12)


def test_gradients_are_held_for_a_few_records_at_a_time(monkeypatch):
    held = []
    normalize = functional.normalize

    def watched(rows, **more):
        held.append(tuple(rows.shape))
        return normalize(rows, **more)

    monkeypatch.setattr(functional, "normalize", watched)
    monkeypatch.setattr(gradient_cosine, "ELEMENTS", 3 * D + 1)
    scores_of(*made(rounds=1))
    assert held == [(4, D)] + [(3, D)] * 5 + [(1, D)]


def test_a_step_on_one_record_alone_points_at_it():
    rng = np.random.default_rng(1)
    weights = torch.from_numpy(rng.normal(size=12))
    images = torch.zeros(3, 1, 1, 6, dtype=torch.float64)
    for i in range(3):
        images[i, ..., 2 * i : 2 * i + 2] = torch.from_numpy(rng.normal(size=2))
    labels = torch.tensor([0, 1, 1])
    update = -0.1 * gradient(weights, images[0], labels[0], linear)
    found = scores_of(
        [kept(0, weights, torch.stack([update, torch.zeros(12, dtype=torch.float64)]))],
        (images[:1], labels[:1]),
        (images[1:], labels[1:]),
        apply=linear,
    )
    np.testing.assert_allclose(found, [1, 0, 0], atol=1e-12)
    ascent = [kept(0, weights, -update.unsqueeze(0))]
    found = scores_of(ascent, (images[:1], labels[:1]), (images[1:], labels[1:]), apply=linear)
    np.testing.assert_allclose(found, [-1, 0, 0], atol=1e-12)


def test_a_record_fitted_so_well_that_its_loss_vanishes_is_found():
    # In float32 the loss, and with it the gradient, is exactly 0.
    weights = torch.zeros(12)
    weights[0] = 200.0
    image = torch.zeros(2, 1, 1, 6)
    image[0, ..., 0], image[1, ..., 1] = 1.0, 1.0
    labels = torch.tensor([0, 0])
    assert gradient(weights, image[0], labels[0], linear).abs().max() == 0
    update = torch.zeros(1, 12)
    update[0, 0], update[0, 1] = 1e-3, -1e-3  # its loss falls with its own class's logit
    found = scores_of(
        [kept(0, weights, update)], (image[:1], labels[:1]), (image[1:], labels[1:]), apply=linear
    )
    np.testing.assert_allclose(found, [1, 0], atol=1e-6)


def test_the_scale_of_an_update_does_not_matter():
    rounds, *sides = made()
    larger = [kept(r.round, r.weights, r.updates * 1e3) for r in rounds]
    np.testing.assert_allclose(scores_of(larger, *sides), scores_of(rounds, *sides), rtol=1e-9)


@pytest.mark.parametrize("factor", [1e-30, 1e-14, 1e19, 1e30])
def test_neither_do_scales_whose_squares_leave_float32(factor):
    draw = torch.Generator().manual_seed(0)
    weights, updates = torch.randn(D, generator=draw), torch.randn(4, D, generator=draw)
    sides = [records(np.random.default_rng(seed), 5, dtype=torch.float32) for seed in (1, 2)]
    scores = [scores_of([kept(0, weights, each)], *sides) for each in (updates, factor * updates)]
    np.testing.assert_allclose(*scores, atol=1e-6)


def test_the_order_of_clients_and_records_does_not_matter():
    rounds, members, others = made()
    turned = [kept(r.round, r.weights, r.updates.flip(0)) for r in rounds]
    expected = scores_of(rounds, members, others)
    flipped = [tuple(part.flip(0) for part in side) for side in (members, others)]
    order = np.concatenate([np.arange(7)[::-1], 7 + np.arange(9)[::-1]])
    np.testing.assert_allclose(scores_of(turned, *flipped), expected[order], rtol=1e-9)


def test_rounds_without_an_update_are_passed_over():
    rounds, *sides = made()
    empty = kept(1, rounds[0].weights, torch.empty(0, D, dtype=torch.float64))
    np.testing.assert_array_equal(scores_of([empty, *rounds], *sides), scores_of(rounds, *sides))


def test_an_undefined_update_is_worth_nothing():
    rounds, *sides = made(rounds=1, updates=1)
    broken = torch.stack([torch.full((D,), float("nan")), torch.full((D,), float("inf"))]).double()
    together = kept(0, rounds[0].weights, torch.cat([rounds[0].updates, broken]))
    alone = scores_of(rounds, *sides)
    assert (alone < 0).any()
    assert (alone > 0).any()
    np.testing.assert_allclose(scores_of([together], *sides), np.maximum(alone, 0), rtol=1e-12)


def test_updates_that_know_nothing_give_nothing_away():
    rng = np.random.default_rng(2)
    rounds, *_ = made(seed=3)
    membership = GradientCosine().run(view(rounds, records(rng, 1000), records(rng, 1000)), CONTEXT)
    scores = harness.create("metric", "mia").score(MetricContext(3, (1, 2, 2), membership=membership))
    assert scores["mia_auc"] == pytest.approx(0.5, abs=4 * np.sqrt(1 / 6 / 1000))


def test_clients_of_a_convolutional_network_give_their_records_away():
    torch.manual_seed(0)
    rng = np.random.default_rng(4)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8 * 36, 3)
    ).eval()
    shapes = {name: value.shape for name, value in network.named_parameters()}
    flat = torch.cat([value.detach().flatten() for value in network.parameters()])

    def apply(weights, images):
        parts = weights.split([shape.numel() for shape in shapes.values()])
        values = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return torch.func.functional_call(network, values, (images,))

    members = records(rng, 40, shape=(1, 8, 8), dtype=torch.float32)
    others = records(rng, 200, shape=(1, 8, 8), dtype=torch.float32)
    updates = []
    for client in range(20):
        images, labels = (part[2 * client : 2 * client + 2] for part in members)
        weights = flat.clone().requires_grad_()
        loss = functional.cross_entropy(apply(weights, images), labels)
        updates.append(-0.1 * torch.autograd.grad(loss, weights)[0])
    rounds = [kept(0, flat, torch.stack(updates))]
    membership = GradientCosine().run(view(rounds, members, others, apply), CONTEXT)
    expected = [
        max(cosine(-update, gradient(flat, image, label, apply)) for update in updates)
        for image, label in zip(*members, strict=True)
    ]
    np.testing.assert_allclose(membership.scores[:40], expected, atol=1e-5)
    scores = harness.create("metric", "mia").score(MetricContext(3, (1, 8, 8), membership=membership))
    assert scores["mia_auc"] > 0.95


def test_it_asks_for_the_targets_own_training_with_rounds_kept():
    attack = harness.create("attack", "gradient-cosine", rounds=7)
    assert attack.trainings(None) == [
        TrainingVariant("recorded-7", keep=None, recorded_rounds=7, compressed=False)
    ]
    assert attack.knowledge == "server"
    assert attack.phase == "privacy"


def test_progress_is_told():
    told = []
    context = PrivacyContext(3, torch.Generator(), lambda done, total: told.append((done, total)))
    GradientCosine().run(view(*made()), context)
    assert told == [(16, 48), (32, 48), (48, 48)]


def test_what_is_missing_is_named():
    rounds, members, others = made()
    with pytest.raises(PluginError, match="knowledge `server`"):
        scores_of(rounds, members, others, apply=None)
    with pytest.raises(PluginError, match="needs the training 'recorded-3'"):
        scores_of(rounds, members, others, name="recorded-2")
    for none in ([], [kept(0, rounds[0].weights, torch.empty(0, D))]):
        with pytest.raises(PluginError, match="recorded no round with an update"):
            scores_of(none, members, others)
    with pytest.raises(PluginError, match="members and non-members"):
        scores_of(rounds, members, (others[0][:0], others[1][:0]))
    with pytest.raises(PluginError, match="labels from 0 to 3 for 3 classes"):
        scores_of(rounds, members, (others[0][:2], torch.tensor([0, 3])))
    with pytest.raises(PluginError, match="rounds"):
        GradientCosine.create({"rounds": 0})
