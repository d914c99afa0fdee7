"""Losses on pairs and smoothed labels: the papers' formulas in float64, and what one record can change."""

from __future__ import annotations

import copy

import pytest
import torch
from test_defences import KEY, dp, flat, make_local, network, parameters_of, records
from torch.nn import functional

import harness
from harness.api import PluginError, held_back, record_keys, split, uniform
from harness.federation.apply import Apply
from harness.federation.compose import composed_loss
from harness.functional import cross_entropy, input_gradient

PAIRED = ("trades", "mart", "logit-pairing")


def create(name, **parameters):
    return harness.create("defence", name, **parameters)


def losses(defence, module, batch):
    apply = Apply(module)
    return defence.loss(cross_entropy(apply), apply)(parameters_of(module), batch, KEY)


def kl(p_logits, q_logits):
    p = p_logits.softmax(1)
    return (p * (p_logits.log_softmax(1) - q_logits.log_softmax(1))).sum(1)


def slow_steps(error, x, start, eps, alpha, steps):
    moved = start
    for _ in range(steps):
        leaf = moved.clone().requires_grad_()
        gradient = torch.autograd.grad(error(leaf).sum(), leaf)[0]
        moved = (x + (moved + alpha * gradient.sign() - x).clamp(-eps, eps)).clamp(0, 1).detach()
    return moved


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_trades_is_the_loss_plus_the_divergence(dtype):
    module, (x, y) = network(dtype).eval(), records(6, dtype)
    keys = split(record_keys(KEY, x), 0)
    half = 0.001 * 3**0.5
    clean = module(x).detach()
    start = (x + uniform(keys, x.shape, -half, half)).clamp(0, 1)
    moved = slow_steps(lambda images: kl(clean, module(images)), x, start, 0.1, 0.025, 10)
    expected = functional.cross_entropy(module(x), y, reduction="none") + 3 * kl(module(x), module(moved))
    torch.testing.assert_close(losses(create("trades", eps=0.1, beta=3.0), module, (x, y)), expected)


@pytest.mark.parametrize("name", ["mart", "logit-pairing"])
def test_mart_and_logit_pairing_follow_their_papers(name):
    module, (x, y) = network(torch.float64).eval(), records(6, torch.float64)
    keys = split(record_keys(KEY, x), 0)
    start = (x + uniform(keys, x.shape, -0.1, 0.1)).clamp(0, 1)
    error = lambda images: functional.cross_entropy(module(images), y, reduction="none")  # noqa: E731
    moved = slow_steps(error, x, start, 0.1, 0.05, 5)
    clean, adversarial = module(x), module(moved)
    if name == "logit-pairing":
        # The mean cross-entropy of a minibatch that holds each record twice, clean and adversarial.
        expected = (error(x) + error(moved)) / 2 + 0.7 * ((clean - adversarial) ** 2).mean(1)
        found = losses(create(name, eps=0.1, steps=5, weight=0.7), module, (x, y))
    else:
        p, q = clean.softmax(1), adversarial.softmax(1)
        rows = torch.arange(6)
        others = q.clone()
        others[rows, y] = -1
        boosted = -q[rows, y].log() - (1 - others.max(1).values).log()
        expected = boosted + 2 * kl(clean, adversarial) * (1 - p[rows, y])
        found = losses(create(name, eps=0.1, steps=5, beta=2.0), module, (x, y))
    torch.testing.assert_close(found, expected)


def test_mart_s_gradient_is_bounded_where_the_network_is_sure_and_wrong():
    """1 - p rounds to zero in float32 from a lead of 17 on: the gradient of its logarithm would be 1e12."""
    single, (x, y) = network(torch.float32).eval(), records(4, torch.float32)
    bias = list(single.parameters())[-1].data
    bias[(int(y[0]) + 1) % len(bias)] += 30
    gradients = []
    for module, images in ((single, x), (copy.deepcopy(single).double(), x.double())):
        value = losses(create("mart", eps=0.0, steps=1), module, (images, y)).mean()
        found = torch.autograd.grad(value, list(module.parameters()))
        gradients.append(torch.cat([g.reshape(-1) for g in found]))
    assert gradients[1].norm() > 0.1
    torch.testing.assert_close(gradients[0].double(), gradients[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("defence", ["trades", "mart", "adversarial-training"])
def test_a_radius_of_zero_moves_nothing_outside_the_pixel_range_either(defence):
    """Randomised smoothing trains on noise that leaves [0, 1] on purpose (Cohen et al. 2019)."""
    module, (x, y) = network(torch.float64).eval(), records(6, torch.float64)
    noisy = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    settings = (
        {"attack": {"pgd": {"eps": 0.0}}} if defence == "adversarial-training" else {"eps": 0.0, "beta": 7.0}
    )
    found = losses(create(defence, **settings), module, (noisy, y))
    if defence == "mart":
        others = module(noisy).softmax(1).scatter(1, y[:, None], -1).amax(1)
        expected = functional.cross_entropy(module(noisy), y, reduction="none") - (1 - others).log()
    else:
        expected = functional.cross_entropy(module(noisy), y, reduction="none")
    torch.testing.assert_close(found, expected)


MAKERS = [
    ("defence", "adversarial-training", {"attack": {"pgd": {"eps": 0.1, "steps": 2}}}),
    ("defence", "adversarial-training", {"attack": {"pgd": {"eps": 0.1, "steps": 2}}, "fraction": 0.5}),
    ("defence", "logit-pairing", {"eps": 0.1, "steps": 2, "weight": 0.0}),
    ("attack", "adversarial-samples", {"attack": {"fgsm": {"eps": 0.1}}, "fraction": 1.0}),
]


@pytest.mark.parametrize("vectorised", [False, True])
@pytest.mark.parametrize(("kind", "name", "parameters"), MAKERS)
def test_a_loss_on_examples_of_its_own_has_the_images_gradient_at_these(kind, name, parameters, vectorised):
    module, (x, y) = network(torch.float64).eval(), records(6, torch.float64)
    apply, seen = Apply(module), []

    def base(params, batch, key):
        seen.append(batch)
        return functional.cross_entropy(apply(params, batch[0]), batch[1], reduction="none")

    loss = harness.create(kind, name, **parameters).loss(base, apply)
    error = lambda images: loss(parameters_of(module), (images, y), KEY)  # noqa: E731
    found = torch.func.grad(lambda images: error(images).sum())(x) if vectorised else input_gradient(error, x)
    seen.clear()
    error(x)
    assert not torch.equal(seen[-1][0], x)
    last = (
        seen[-2:] if name == "logit-pairing" else seen[-1:]
    )  # it trains on each record twice: clean, and moved
    expected = []
    for images, told in last:
        each = lambda images, told=told: functional.cross_entropy(module(images), told, reduction="none")  # noqa: E731
        expected.append(input_gradient(each, images.detach()))
    torch.testing.assert_close(found, sum(expected) / len(last))


@pytest.mark.parametrize("scale", [100.0, 2000.0])
@pytest.mark.parametrize(
    ("kind", "name", "parameters"),
    [
        ("defence", "adversarial-training", {"attack": {"pgd": {"eps": 0.05}}}),
        ("defence", "trades", {"eps": 0.05}),
        ("defence", "mart", {"eps": 0.05}),
        ("defence", "logit-pairing", {"eps": 0.05}),
        ("defence", "adversarial-weight-perturbation", {"attack": {"pgd": {"eps": 0.05}}}),
        ("attack", "adversarial-samples", {"attack": {"pgd": {"eps": 0.05}}, "fraction": 1.0}),
    ],
)
def test_examples_of_a_sure_model_are_adversarial(kind, name, parameters, scale):
    """From a lead of 17 logits on the cross-entropy's gradient is off in float32, and from 104 on it is 0."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(10, 48, generator=generator) + 2 * torch.randn(48, generator=generator)
    x = torch.rand(64, 3, 4, 4, generator=generator)
    y = ((x.flatten(1) - 0.5) @ weight.T).argmax(1)
    fooled = []
    for factor in (1.0, scale):
        seen = []

        def logits(params, images, factor=factor, seen=seen):
            seen.append(images.detach())
            return factor * (images.flatten(1) - 0.5) @ params["weight"].T

        plugin, params = harness.create(kind, name, **parameters), {"weight": weight.clone()}
        loss = composed_loss([plugin] if plugin.overrides("loss") else [], logits)
        if plugin.overrides("gradient"):
            plugin.gradient(make_local(None, loss))(params, (x, y), KEY)
        else:
            loss(params, (x, y), KEY)
        wrong = [(((images.flatten(1) - 0.5) @ weight.T).argmax(1) != y).sum() for images in seen]
        fooled.append(int(max(wrong)))
    assert fooled[0] > 15
    assert fooled[1] >= fooled[0] - 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_logits_are_held_back_where_a_class_leads_by_far_alone(dtype):
    logits = torch.tensor([[3.0, 1, 2], [40, 1, 2], [1, 40, 2], [torch.inf, 0, 1]], dtype=dtype)
    y = torch.zeros(4, dtype=torch.int64)
    expected = logits.clone()
    expected[1, 0] = 2 + 14
    assert torch.equal(held_back(logits, y), expected)
    assert torch.equal(held_back(logits[:, :1], y), logits[:, :1])
    moved = torch.ones_like(logits)
    assert held_back(moved, y, like=logits)[:, 0].tolist() == [1, 1 - 24, 1, 1]


OUTER = {"attack": {"fgsm": {"eps": 0.2}}, "fraction": 0.5}


@pytest.mark.parametrize(
    "outer",
    [
        harness.create("defence", "adversarial-training", **OUTER),
        harness.create("attack", "adversarial-samples", per="record", labels="true", **OUTER),
    ],
    ids=lambda plugin: plugin.name,
)
def test_coins_of_two_losses_are_independent(outer):
    module, seen = network(torch.float64).eval(), []

    def logits(params, images):
        seen.append(images.detach())
        return Apply(module)(params, images)

    inner = create("adversarial-training", attack={"fgsm": {"eps": 0.1}}, fraction=0.5)
    loss = composed_loss((inner, outer), logits)
    x = 0.4 + 0.2 * records(400, torch.float64)[0]
    loss(parameters_of(module), (x, torch.zeros(400, dtype=torch.int64)), KEY)
    moved = (seen[-1] - x).abs().flatten(1).amax(1)
    by_inner, by_outer = ((moved - 0.1).abs() < 1e-9, moved > 0.15)
    assert 0.15 < float(by_inner.double().mean()) < 0.35
    assert 0.4 < float(by_outer.double().mean()) < 0.6


def test_label_smoothing_mixes_the_label_with_all_classes():
    module, (x, y) = network(torch.float64).eval(), records(6, torch.float64)
    target = 0.8 * functional.one_hot(y, 3) + 0.2 / 3
    expected = -(target * module(x).log_softmax(1)).sum(1)
    torch.testing.assert_close(losses(create("label-smoothing", smoothing=0.2), module, (x, y)), expected)
    plain = functional.cross_entropy(module(x), y, reduction="none")
    torch.testing.assert_close(losses(create("label-smoothing", smoothing=0.0), module, (x, y)), plain)


@pytest.mark.parametrize("name", PAIRED)
def test_without_a_radius_the_pair_is_the_record_itself(name):
    module, (x, y) = network(torch.float64).eval(), records(5, torch.float64)
    plain = functional.cross_entropy(module(x), y, reduction="none")
    found = losses(create(name, eps=0.0), module, (x, y))
    if name == "mart":
        p = module(x).softmax(1)
        others = p.clone()
        others[torch.arange(5), y] = -1
        plain = plain - (1 - others.max(1).values).log()
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)  # trades starts a thousandth away


@pytest.mark.parametrize("name", [*PAIRED, "label-smoothing"])
def test_a_record_s_loss_is_its_own(name):
    module, (x, y) = network(torch.float64).eval(), records(8, torch.float64)
    defence = create(name)
    whole = losses(defence, module, (x, y))
    order = torch.tensor([5, 2, 7])
    torch.testing.assert_close(losses(defence, module, (x[order], y[order])), whole[order])
    assert not defence.couples_samples
    assert losses(defence, module, (x[:0], y[:0])).shape == (0,)


@pytest.mark.parametrize("path", ["auto", "ghost", "vmap"])
@pytest.mark.parametrize("name", [*PAIRED, "label-smoothing"])
def test_with_dp_sgd_a_record_more_or_less_moves_the_sum_by_its_clipped_gradient(name, path):
    module, (x, y) = network(), records(8)
    parameters = {} if name == "label-smoothing" else {"steps": 2, "eps": 0.1}
    apply = Apply(module)
    loss = create(name, **parameters).loss(cross_entropy(apply), apply)
    params, c = parameters_of(module), 0.05  # below every norm, so each record counts with just C
    gradient = dp(c, per_sample=path).gradient(make_local(module, loss))
    if path == "ghost" and name != "label-smoothing":  # several forward passes: only `auto` finds another way
        with pytest.raises(PluginError, match="times in the loss"):
            gradient(params, (x, y), KEY)
        return
    whole = flat(gradient(params, (x, y), KEY))
    for i in (0, 5):
        kept = [j for j in range(8) if j != i]
        moved = (whole - flat(gradient(params, (x[kept], y[kept]), KEY))).norm()
        assert 0.99 * c <= moved <= c * (1 + 1e-4)


def test_paths_of_dp_sgd_agree_on_two_forward_passes():
    module, batch = network(), records(6)
    apply = Apply(module)
    loss = create("trades", steps=2, eps=0.1).loss(cross_entropy(apply), apply)
    params = parameters_of(module)
    one, other = (
        flat(dp(0.3, per_sample=path).gradient(make_local(module, loss))(params, batch, KEY))
        for path in ("auto", "vmap")
    )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("trades", {"beta": -1.0}), ("mart", {"steps": 0}), ("label-smoothing", {"smoothing": 1.0}),
     ("logit-pairing", {"eps": 2.0})],
)  # fmt: skip
def test_bad_parameters_are_named(name, parameters):
    with pytest.raises(PluginError, match=next(iter(parameters))):
        create(name, **parameters)


def test_trades_trains_a_more_robust_model(tmp_path):
    from harness.scenario import load_text

    text = """
schema: 1
name: trades
dataset: digits
model: {mlp: {hidden: [32]}}
federation: {clients: 2, rounds: 12, local: {epochs: 2, batch_size: 32, optimizer: {sgd: {lr: 0.3}}}}
defences: [none, trades: {eps: 0.1, steps: 3}, [label-smoothing, dp-sgd: {epsilon: 8}]]
threats: [{name: e, budget: {norm: linf, eps: 0.1}, attacks: [pgd: {steps: 10}]}]
"""
    result = harness.run(load_text(text, tmp_path / "t.yaml"), device="cpu", jobs=0, store=tmp_path / "runs")
    assert result.failed == 0, [r["error"] for r in result.records if r["error"]]
    plain, trades, private = (r["scores"]["robust_accuracy"] for r in result.records)
    assert trades > plain + 0.05
    assert result.records[2]["guarantee"]["epsilon"] <= 8
    assert private > 0
