"""The catalogue of poisoning attacks: what is stamped, what is trained on, what is sent."""

from __future__ import annotations

import pytest
import torch
from test_poisoning import context, create, records
from torch import nn
from torch.nn import functional

import harness
from harness.api import ClientData, NotApplicable, PluginError, PoisonContext, UpdateContext
from harness.contracts.defence import Sampling
from harness.federation.local import Client, LocalTrainer, Start
from harness.federation.vector import flatten
from harness.random import make_key
from harness.scenario import SGD, LocalTraining

BACKDOORS = ("badnets", "blended", "dba", "model-replacement", "neurotoxin")
SHAPES = [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 17, 23)]


def network(seed=0, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, classes))


def client(hooks, n=48, steps=4, seed=0):
    data = records(n, (1, 8, 8), 3, seed=seed)
    return Client(0, data.images, data.labels, steps, Sampling(), tuple(hooks), [{} for _ in hooks])


def train(module, member, lr=0.1, batch=16, **start):
    local = LocalTraining(batch_size=batch, optimizer=SGD(lr=lr))
    trainer = LocalTrainer(module, local, 0, "stage", "float32", "cpu")
    return trainer.train(member, Start(0, flatten(module), **start))


# What is stamped ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", BACKDOORS)
def test_backdoors_work_at_any_size_and_channel_count(name, shape):
    attack = create(name)
    for dtype in (torch.uint8, torch.float32):
        data = records(60, shape, 10, dtype=dtype)
        before = data.images.clone(), data.labels.clone()
        poisoned = attack.poison(data, context())
        assert torch.equal(data.images, before[0])
        assert torch.equal(data.labels, before[1])
        assert poisoned.images.dtype == dtype
        changed = (poisoned.images != data.images).flatten(1).any(1)
        assert int(changed.sum()) == 30
        assert (poisoned.labels[changed] == 0).all()
        assert torch.equal(poisoned.labels[~changed], data.labels[~changed])
        assert not (data.labels[changed] == 0).any()
    x = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    kept = x.clone()
    triggered = attack.trigger(x)
    assert torch.equal(x, kept)
    assert triggered.min() >= 0
    assert triggered.max() <= 1
    assert (triggered != x).flatten(1).any(1).all()
    attack.check(10, shape)
    with pytest.raises(NotApplicable, match="classes run"):
        create(name, **({"backdoor": {"badnets": {"target": 12}}} if "backdoor" in type(attack).model_fields
                        else {"target": 12})).check(10, shape)  # fmt: skip


def test_blended_is_the_weighted_mean_with_one_pattern():
    attack = create("blended", alpha=0.25)
    black, white = torch.zeros(1, 1, 6, 6), torch.ones(1, 1, 6, 6)
    pattern = attack.trigger(black) / 0.25
    torch.testing.assert_close(attack.trigger(white), 0.75 + 0.25 * pattern)
    assert 0.1 < pattern.std() < 0.4
    assert not torch.equal(
        create("blended", alpha=0.25, pattern_seed=1).trigger(black), attack.trigger(black)
    )
    data = ClientData(torch.full((8, 1, 6, 6), 100, dtype=torch.uint8), torch.ones(8, dtype=torch.int64))
    poisoned = attack.poison(data, context(2)).images
    changed = poisoned[(poisoned != data.images).flatten(1).any(1)]
    assert torch.equal(changed[0, 0], (75 + 63.75 * pattern[0, 0]).round().to(torch.uint8))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_parts_of_a_distributed_trigger_are_the_whole_trigger(shape):
    attack = create("dba", fraction=1.0)
    union = torch.zeros(shape[1:], dtype=torch.int64)
    for rank in range(5):
        data = ClientData(torch.zeros(3, *shape), torch.ones(3, dtype=torch.int64))
        told = PoisonContext(10 + rank, 4, torch.Generator().manual_seed(0), tuple(range(10, 15)))
        part = (attack.poison(data, told).images[0, 0] > 0).long()
        assert part.any()
        if rank < 4:
            union += part
        else:  # the fifth attacker has the first one's part
            assert torch.equal(
                part,
                (attack.poison(data, PoisonContext(10, 4, torch.Generator(), (10,))).images[0, 0] > 0).long(),
            )
    assert union.max() == 1  # no part overlaps another
    assert torch.equal(union, (attack.trigger(torch.zeros(1, *shape))[0, 0] > 0).long())


def test_a_distributed_trigger_that_does_not_fit():
    with pytest.raises(NotApplicable, match="do not fit images of 8x8"):
        create("dba", offset=0.9).check(10, (1, 8, 8))


# Adversarial samples --------------------------------------------------------------------------------------------------


def test_adversarial_samples_are_labelled_as_the_model_sees_them():
    module = network()
    params = dict(module.named_parameters())
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    y = torch.randint(0, 3, (20,), generator=torch.Generator().manual_seed(2))
    seen = []

    def loss(p, batch, key):
        seen.append(batch)
        return functional.cross_entropy(
            torch.func.functional_call(module, p, (batch[0],)), batch[1], reduction="none"
        )

    def logits(p, images):
        return torch.func.functional_call(module, p, (images,))

    for labels in ("predicted", "true"):
        attack = create("adversarial-samples", fraction=1.0, labels=labels, attack={"fgsm": {"eps": 0.1}})
        attack.loss(loss, logits)(params, (x, y), make_key(0))
        images, told = seen[-1]
        leaf = x.clone().requires_grad_()
        gradient = torch.autograd.grad(functional.cross_entropy(module(leaf), y, reduction="sum"), leaf)[0]
        torch.testing.assert_close(images, (x + 0.1 * gradient.sign()).clamp(0, 1))
        assert torch.equal(told, module(images).argmax(1) if labels == "predicted" else y)


@pytest.mark.parametrize("per", ["batch", "record"])
def test_the_coin_is_thrown_for_batches_or_records(per):
    module = network()
    params = dict(module.named_parameters())
    attack = create("adversarial-samples", fraction=0.5, per=per, attack={"fgsm": {"eps": 0.1}})
    shares = []

    def loss(p, batch, key):
        shares.append(float((batch[0] != x).flatten(1).any(1).double().mean()))
        return batch[0].flatten(1).sum(1) * 0

    def logits(p, images):
        return torch.func.functional_call(module, p, (images,))

    for step in range(60):
        x = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(step))
        attack.loss(loss, logits)(params, (x, torch.zeros(32, dtype=torch.int64)), make_key(step))
    mean = sum(shares) / 60
    assert 0.3 < mean < 0.7
    assert (set(shares) == {0.0, 1.0}) == (per == "batch")


def test_adversarial_samples_need_a_functional_attack():
    with pytest.raises(PluginError, match="attack"):
        create("adversarial-samples", attack={"pgd": {"stepps": 3}})
    assert create("adversarial-samples").backdoor_target is None


# Model replacement ----------------------------------------------------------------------------------------------------


def test_the_scaled_update_replaces_the_mean():
    delta = torch.randn(9, generator=torch.Generator().manual_seed(0))
    attack = create("model-replacement")
    sizes = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0, 5.0, 4.0]) / 40  # the last two attack
    at = UpdateContext(0, 0, torch.Generator(), clients=10, malicious=2, share=9 / 40)
    sent = attack.update(delta, at)
    honest = torch.zeros(8, 9)
    torch.testing.assert_close(sizes @ torch.cat([honest, sent.expand(2, -1)]), delta)
    nobody = UpdateContext(0, 0, torch.Generator(), clients=10)
    torch.testing.assert_close(attack.update(delta, nobody), delta)
    torch.testing.assert_close(create("model-replacement", scale=3.0).update(delta, at), 3 * delta)
    bounded = create("model-replacement", bound=0.5).update(delta, at)
    assert float(bounded.norm()) == pytest.approx(0.5)
    torch.testing.assert_close(bounded / bounded.norm(), delta / delta.norm())


def test_an_inner_attack_must_be_a_backdoor():
    for name in ("model-replacement", "neurotoxin", "alternating-minimisation"):
        with pytest.raises(PluginError, match="is no backdoor"):
            create(name, backdoor="label-flip")
        inner = create(name, backdoor={"badnets": {"target": 2, "patch": 3}})
        assert inner.backdoor_target == 2
        assert inner.spec()[name]["backdoor"]["badnets"]["patch"] == 3


# Neurotoxin -----------------------------------------------------------------------------------------------------------


def test_neurotoxin_keeps_off_what_moved_most():
    module = network()
    moved = torch.randn(len(flatten(module)), generator=torch.Generator().manual_seed(3))
    attack = create("neurotoxin", top=0.25)
    masked = moved.abs().topk(round(0.25 * len(moved))).indices
    delta = train(module, client([attack]), moved=moved)
    assert not delta[masked].any()
    free = torch.ones_like(delta, dtype=torch.bool)
    free[masked] = False
    plain = train(network(), client([create("badnets")]), moved=moved)
    assert (delta[free] != 0).float().mean() > 0.9
    assert plain[masked].any()
    first = train(network(), client([attack]))  # nothing moved yet: nothing is masked
    torch.testing.assert_close(first, plain)


# Alternating minimisation ---------------------------------------------------------------------------------------------


def test_alternating_steps_are_the_two_objectives_gradients():
    module = network()
    start = flatten(module)
    previous = 0.05 * torch.randn(len(start), generator=torch.Generator().manual_seed(5))
    boost, rho, lr = 4.0, 0.3, 0.1
    attack = create("alternating-minimisation", boost=boost, rho=rho, backdoor={"badnets": {"target": 1}})
    member = client([attack], n=16, steps=4)
    delta = train(module, member, lr=lr, moved=previous)

    reference = network()
    trigger = create("badnets", target=1).trigger
    parameters = list(reference.parameters())
    order = torch.arange(16)
    x, y = member.images[order].float() / 255, member.labels[order]
    for step in range(4):  # a batch holds all records, so their order does not matter
        if step % 2 == 0:
            loss = boost * functional.cross_entropy(reference(trigger(x)), torch.ones_like(y))
        else:
            flat = torch.cat([p.reshape(-1) for p in parameters])
            loss = functional.cross_entropy(reference(x), y) + rho * (flat - start - previous).norm()
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p -= lr * g
    torch.testing.assert_close(delta, flatten(reference) - start, rtol=1e-4, atol=1e-6)


def test_the_stealth_term_pulls_towards_the_last_move():
    module = network()
    previous = 0.2 * torch.ones(len(flatten(module)))
    apart = []
    for rho in (0.0, 20.0):
        attack = create("alternating-minimisation", boost=1e-9, rho=rho)
        delta = train(network(), client([attack], steps=20), moved=previous)
        apart.append(float((delta - previous).norm()))
    assert apart[1] < 0.5 * apart[0]


# Edge cases -----------------------------------------------------------------------------------------------------------


def test_edge_cases_are_mixed_in_and_scored_on_held_out_ones():
    attack = create("edge-case", images="digits", source=7, target=2, fraction=0.25)
    digits = harness.create("dataset", "digits").load()
    data = records(40, (3, 12, 12), 5)
    told = context(5)
    poisoned = attack.poison(data, told)
    changed = (poisoned.images != data.images).flatten(1).any(1)
    assert int(changed.sum()) == 10
    assert (poisoned.labels[changed] == 2).all()
    assert poisoned.images.dtype == torch.uint8
    held = attack.success_records((1, 8, 8), None)
    expected = torch.from_numpy(digits.test.images[digits.test.labels == 7])
    expected = expected.float() / 255 if expected.dtype == torch.uint8 else expected
    torch.testing.assert_close(held.images, expected)
    assert (held.labels == -1).all()
    assert attack.success_records((3, 12, 12), None).images.shape == (len(expected), 3, 12, 12)
    assert attack.backdoor_target == 2
    with pytest.raises(PluginError, match="no images of class 99"):
        create("edge-case", source=99).success_records((1, 8, 8), None)
    with pytest.raises(NotApplicable):
        attack.check(2, (1, 8, 8))


@pytest.mark.parametrize(
    "name",
    [
        "adversarial-samples",
        "dba",
        "blended",
        "model-replacement",
        "neurotoxin",
        "edge-case",
        "alternating-minimisation",
    ],
)
def test_documented(name):
    plugin = harness.plugins("attack")[name]
    assert "Costs " in plugin.__doc__
    assert plugin.reference.url
    assert all(field.description for field in plugin.model_fields.values())
