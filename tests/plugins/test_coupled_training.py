"""Defences that couple records, curricula and PGD's restarts, against their papers' algorithms written out."""

from __future__ import annotations

import pytest
import torch
from test_defences import KEY, flat, make_local, network, parameters_of, records
from torch import nn
from torch.nn import functional

import harness
from harness.api import NotApplicable, PluginError, StackContext, record_keys, split, uniform
from harness.federation.apply import Apply
from harness.functional import cross_entropy, mean_gradient
from harness.scenario import load_text

COUPLED = ("free-adversarial-training", "adversarial-weight-perturbation", "clean-logit-pairing")


def create(name, **parameters):
    return harness.create("defence", name, **parameters)


def base(module):
    return cross_entropy(Apply(module))


def step(module, gradient, batch, lr):
    params = parameters_of(module)
    found = gradient(params, batch, KEY)
    with torch.no_grad():
        for name, parameter in params.items():
            parameter -= lr * found[name]


def test_free_training_is_algorithm_1():
    eps, replays, lr = 0.1, 3, 0.05
    ours, theirs = network(torch.float64), network(torch.float64)
    batches = [records(6, torch.float64, seed) for seed in range(7)]
    defence = create("free-adversarial-training", eps=eps, replays=replays)
    gradient = defence.gradient(make_local(ours, base(ours)))
    for batch in batches:
        step(ours, gradient, batch, lr)
    delta = torch.zeros(6, 1, 8, 8, dtype=torch.float64)
    for x, y in (batches[0], batches[3]):
        for _ in range(replays):
            moved = (x + delta).clamp(0, 1).requires_grad_()
            loss = functional.cross_entropy(theirs(moved), y)
            *grads, pixels = torch.autograd.grad(loss, [*theirs.parameters(), moved])
            with torch.no_grad():
                for parameter, grad in zip(theirs.parameters(), grads, strict=True):
                    parameter -= lr * grad
                delta = (delta + eps * pixels.sign()).clamp(-eps, eps)
    x, y = batches[6]
    moved = (x + delta).clamp(0, 1)
    grads = torch.autograd.grad(functional.cross_entropy(theirs(moved), y), list(theirs.parameters()))
    with torch.no_grad():
        for parameter, grad in zip(theirs.parameters(), grads, strict=True):
            parameter -= lr * grad
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_free_training_moves_images_of_which_the_model_is_sure():
    """From a lead of 17 logits on the cross-entropy's gradient is off in float32, and from 104 on it is 0."""
    weight = torch.randn(10, 64, generator=torch.Generator().manual_seed(0))
    x, _ = records(64)
    y = ((x.flatten(1) - 0.5) @ weight.T).argmax(1)
    fooled = []
    for scale in (1.0, 2000.0):
        seen = []

        def logits(params, images, scale=scale, seen=seen):
            seen.append(images.detach())
            return scale * (images.flatten(1) - 0.5) @ params["weight"].T

        params = {"weight": weight.clone().requires_grad_()}
        defence = create("free-adversarial-training", eps=0.05)
        gradient = defence.gradient(make_local(None, cross_entropy(logits)))
        for _ in range(defence.replays):
            gradient(params, (x, y), KEY)
        fooled.append(int(max((((i.flatten(1) - 0.5) @ weight.T).argmax(1) != y).sum() for i in seen)))
    assert fooled[0] > 20
    assert fooled[1] >= fooled[0] - 4


@pytest.mark.parametrize("scale", [1.0, 2000.0])
def test_free_training_shows_a_batch_to_batch_norms_once_a_replay(scale):
    """As the paper's m passes in training mode do; the further pass where the model is sure shows them nothing."""

    class Sure(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.flatten, self.linear = nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10)

        def forward(self, x):
            return scale * self.linear(self.flatten(self.norm(x)))

    ours, theirs = Sure().double(), nn.BatchNorm2d(1).double()
    x, _ = records(32, torch.float64)
    y = ours(x).argmax(1)
    ours.norm.reset_running_stats()
    defence = create("free-adversarial-training", eps=0.0, replays=3)
    gradient = defence.gradient(make_local(ours, base(ours)))
    for _ in range(3):
        gradient(parameters_of(ours), (x, y), KEY)
        theirs(x)
    assert int(ours.norm.num_batches_tracked) == 3
    torch.testing.assert_close(ours.norm.running_mean, theirs.running_mean)


def test_free_training_carries_its_perturbation_over_smaller_batches():
    module = network()
    gradient = create("free-adversarial-training", replays=1).gradient(make_local(module, base(module)))
    for n in (6, 4, 6, 9):
        assert flat(gradient(parameters_of(module), records(n), KEY)).isfinite().all()


def test_free_training_needs_a_second_local_step(tmp_path):
    """The first one is on clean images, so that with one a round it would be undefended training by another name."""
    text = """
schema: 1
name: free
dataset: digits
model: {mlp: {hidden: [4]}}
federation: {clients: 3, rounds: 1, local: {steps: STEPS, batch_size: 8, optimizer: {sgd: {lr: 0.1}}}}
defences: [none, free-adversarial-training]
"""
    spent = {}
    for steps in (1, 2):
        scenario = load_text(text.replace("STEPS", str(steps)), tmp_path / "t.yaml")
        result = harness.run(scenario, device="cpu", jobs=0, store=tmp_path / "runs")
        spent[steps] = [record["error"] for record in result.records]
    assert spent[2] == [None, None]
    assert spent[1][0] is None
    assert "with one step a round no client gets to adversarial ones" in str(spent[1][1])


def test_weight_perturbation_follows_the_paper():
    module, (x, y) = network(torch.float64), records(6, torch.float64)
    loss, params = base(module), parameters_of(module)
    defence = create(
        "adversarial-weight-perturbation", gamma=0.02, attack={"pgd": {"eps": 0.1, "steps": 2, "alpha": 0.06}}
    )
    got = defence.gradient(make_local(module, loss))(params, (x, y), KEY)
    moved = (x + uniform(split(record_keys(KEY, x), 0), x.shape, -0.1, 0.1)).clamp(0, 1)
    for _ in range(2):
        leaf = moved.clone().requires_grad_()
        grad = torch.autograd.grad(functional.cross_entropy(module(leaf), y, reduction="sum"), leaf)[0]
        moved = (x + (moved + 0.06 * grad.sign() - x).clamp(-0.1, 0.1)).clamp(0, 1).detach()
    at_w = torch.autograd.grad(functional.cross_entropy(module(moved), y), list(params.values()))
    there = {
        name: (p + 0.02 * p.norm() * g / g.norm() if p.ndim > 1 else p).detach().requires_grad_()
        for (name, p), g in zip(params.items(), at_w, strict=True)
    }
    value = functional.cross_entropy(torch.func.functional_call(module, there, (moved,)), y)
    expected = torch.autograd.grad(value, list(there.values()))
    torch.testing.assert_close(flat(got), torch.cat([g.reshape(-1) for g in expected]))
    assert defence.cost() == 2 + 2
    # gamma = 0 is plain adversarial training
    plain = create("adversarial-weight-perturbation", gamma=0.0, attack={"pgd": {"eps": 0.1, "steps": 2}})
    at = create("adversarial-training", attack={"pgd": {"eps": 0.1, "steps": 2}})
    expected = mean_gradient(at.loss(loss, Apply(module)))(params, (x, y), KEY)
    torch.testing.assert_close(
        flat(plain.gradient(make_local(module, loss))(params, (x, y), KEY)), flat(expected)
    )


def test_weight_perturbation_lets_batch_norms_see_the_batch():
    """With gamma = 0 it is adversarial training, running statistics included."""
    attack = {"pgd": {"eps": 0.0}}
    found = {}
    for name in ("adversarial-training", "adversarial-weight-perturbation"):
        module = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
        )
        generator = torch.Generator().manual_seed(0)
        for layer in (module[0], module[4]):
            nn.init.normal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
        module = module.double().train()
        params, batch = parameters_of(module), records(6, torch.float64)
        before = flat(params).detach().clone()
        if name == "adversarial-training":
            gradient = mean_gradient(create(name, attack=attack).loss(base(module), Apply(module)))
        else:
            gradient = create(name, gamma=0.0, attack=attack).gradient(make_local(module, base(module)))
        found[name] = flat(gradient(params, batch, KEY)), module[1].running_mean.clone()
        assert torch.equal(flat(params), before)
        assert module[1].num_batches_tracked == 1
    for ours, theirs in zip(*found.values(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_clean_logit_pairing_is_the_loss_plus_the_distance_to_the_partner():
    module, (x, y) = network(torch.float64), records(7, torch.float64)
    defence = create("clean-logit-pairing", weight=0.3, sigma=0.0)
    got = defence.loss(base(module), Apply(module))(parameters_of(module), (x, y), KEY)
    z, plain = module(x), functional.cross_entropy(module(x), y, reduction="none")
    apart = [(z[i] - z[j]).square().mean() for i, j in zip(range(6), (3, 4, 5, 0, 1, 2), strict=True)]
    torch.testing.assert_close(got, plain + 0.3 * torch.stack([*apart, torch.zeros(())]))
    assert torch.equal(defence.batch(x, y, KEY)[0], x)
    noise = create("clean-logit-pairing", sigma=0.1).batch(torch.full((400, 1, 8, 8), 0.5), y, KEY)[0] - 0.5
    # Equal records share their noise, so there are 64 numbers here.
    assert 0.06 < noise[0].std() < 0.14
    grey = 0.5 + 1e-3 * torch.rand(400, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = create("clean-logit-pairing", sigma=0.1).batch(grey, y, KEY)[0] - grey
    assert abs(float(noise.mean())) < 2e-3
    assert float(noise.std()) == pytest.approx(0.1, rel=0.02)
    kurtosis = float((noise / noise.std()).pow(4).mean())
    assert kurtosis == pytest.approx(3, abs=0.1)  # Gaussian


@pytest.mark.parametrize("name", COUPLED)
def test_coupling_defences_say_so_and_do_not_stack_with_dp_sgd(name):
    defence, private = create(name), create("dp-sgd", noise_multiplier=1.0)
    assert defence.couples_samples
    with pytest.raises(NotApplicable, match=f"{name} couples the records"):
        private.check(StackContext((defence, private), 1))
    # and it is true: another record in the batch changes what this one contributes
    module, (x, y) = network(), records(4)
    other = x.clone()
    other[2] = 1 - other[2]
    loss = defence.loss(base(module), Apply(module))

    def of_first(images):
        if type(defence).gradient is not harness.api.Defence.gradient:
            gradient = defence.gradient(make_local(module, loss))
            gradient(parameters_of(module), (images, y), KEY)
            return flat(gradient(parameters_of(module), (images[:1], y[:1]), KEY))
        return loss(parameters_of(module), (images, y), KEY)[:1]

    if name == "adversarial-weight-perturbation":  # its direction is the batch's
        gradient = create(name, gamma=0.5).gradient(make_local(module, loss))
        whole = flat(gradient(parameters_of(module), (x, y), KEY)) * 4
        parts = sum(
            flat(gradient(parameters_of(module), (x[i : i + 1], y[i : i + 1]), KEY)) for i in range(4)
        )
        assert (whole - parts).abs().max() > 1e-3
    elif name == "clean-logit-pairing":
        assert not torch.equal(of_first(x), of_first(other))


@pytest.mark.parametrize("name", COUPLED[:2])
def test_defences_with_their_own_examples_do_not_stack_with_others(name):
    defence = create(name)
    for other in ("adversarial-training", "trades"):
        with pytest.raises(NotApplicable, match=f"not in a stack with {other}"):
            defence.check(StackContext((create(other), defence), 1))
    defence.check(StackContext((create("label-smoothing"), defence), 1))


def test_a_curriculum_lets_the_radius_grow_to_its_full_size():
    defence = create("adversarial-training", attack={"pgd": {"eps": 0.08}}, curriculum=0.5)
    radii = [defence.at(round, 16).attack.radius() for round in range(16)]
    assert radii == pytest.approx([0.01 * min(t, 8) for t in range(1, 17)])
    assert [defence.at(r, 16).attack.step_size(radii[r]) for r in (0, 15)] == pytest.approx([0.00125, 0.01])
    plain = create("adversarial-training", attack={"pgd": {"eps": 0.08}})
    assert plain.at(0, 16) is plain


def test_the_engine_asks_each_round_for_its_hooks(tmp_path):
    seen = []

    class Scheduled(harness.api.ClientHooks):
        def at(self, round, rounds):
            seen.append((round, rounds))
            return self

    from test_poisoning_catalogue import Start

    from harness.federation.local import Client, LocalTrainer
    from harness.federation.vector import flatten
    from harness.scenario_models import Federation

    module, (x, y) = network(), records(8)
    settings = Federation(clients=2, rounds=3).local
    trainer = LocalTrainer(module, settings, 0, "noise", "float32", "cpu")
    client = Client(0, x, y, 1, harness.api.Sampling(), (Scheduled(),), [{}])
    trainer.train(client, Start(2, flatten(module), rounds=9, done=4))
    assert seen == [(6, 9)]


# PGD's restarts ---------------------------------------------------------------------------------------


def test_restarts_never_help_the_model_and_spend_what_they_say():
    module, (x, y) = network().eval(), records(60)
    y = module(x).argmax(1)
    shares = []
    for restarts in (1, 4, 16):
        attack = harness.create("attack", "pgd", eps=0.04, steps=2, alpha=0.02, restarts=restarts)
        assert attack.effort == 2 * restarts
        moved = attack(module, x, y)
        assert (moved - x).abs().max() <= 0.04 + 1e-6
        shares.append(float((module(moved).argmax(1) == y).float().mean()))
    assert shares[0] >= shares[1] >= shares[2]
    assert shares[2] < shares[0]
    zero = harness.create("attack", "pgd", eps=0.0, restarts=3)(module, x, y)
    assert torch.equal(zero, x)
    with pytest.raises(PluginError, match="the same run"):
        harness.create("attack", "pgd", restarts=2, random_start=False)
