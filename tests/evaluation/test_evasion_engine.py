import random
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import harness
from harness.contracts.attack import EvasionAttack
from harness.errors import HarnessError, PluginError
from harness.evaluation import evasion
from harness.evaluation.evasion import BudgetExceeded, attack_batch, check_budget, distances, evade, right
from harness.evaluation.expectation import Expectation
from harness.evaluation.predict import predict
from harness_plugins.attacks.evasion.fgsm import FGSM
from harness_plugins.attacks.evasion.pgd import PGD

EPS = 0.1


class Scripted(EvasionAttack):
    """Adds what `move(x)` says; counts and looks around through `spy`."""

    name = "scripted"
    norm: ClassVar = "linf"
    moves: ClassVar = staticmethod(lambda x: x)
    spy: ClassVar = staticmethod(lambda *given: None)

    def perturb(self, model, x, y, context):
        type(self).spy(model, x, y, context)
        return type(self).moves(x)


def scripted(move=lambda x: x, spy=lambda *given: None, norm="linf"):
    return type("Test", (Scripted,), {"moves": staticmethod(move), "spy": staticmethod(spy), "norm": norm})()


def network(classes=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(64, classes),
    )  # fmt: skip


def data(n=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 4, 4, generator=generator), torch.randint(0, 3, (n,), generator=generator)


# the budget ---------------------------------------------------------------------------------------


def test_distances_are_those_of_the_norms():
    x = torch.full((1, 2, 2, 2), 0.5)
    moved = x.clone()
    moved[0, :, 0, 0] += torch.tensor([0.25, -0.125])
    moved[0, 0, 1, 1] += 0.125
    assert distances(x, moved, "linf").tolist() == [0.25]
    assert distances(x, moved, "l2").tolist() == [pytest.approx((0.25**2 + 2 * 0.125**2) ** 0.5)]
    assert distances(x, moved, "l0").tolist() == [2]  # two positions, though three values
    with pytest.raises(PluginError, match="l7"):
        distances(x, moved, "l7")


@pytest.mark.parametrize(("norm", "size"), [("linf", 0.05), ("l2", 0.05 * 8**0.5), ("l0", 4)])
def test_the_ball_s_edge_is_inside_and_a_little_more_is_not(norm, size):
    x = torch.full((3, 2, 2, 2), 0.5)
    moved = x.clone()
    moved[1] += 0.05
    check_budget(x, moved, norm, size)
    with pytest.raises(BudgetExceeded, match="sample 1 moves"):
        check_budget(x, moved, norm, size * 0.999)


def test_the_message_says_by_how_much():
    x = torch.full((2, 1, 2, 2), 0.5)
    moved = x.clone()
    moved[1, 0, 0, 0] = 0.75
    with pytest.raises(
        BudgetExceeded, match=r"the attack: sample 1 moves 0.25 in linf, 0.05 more than eps = 0.2"
    ):
        check_budget(x, moved, "linf", 0.2)


def test_the_range_binds_even_without_a_norm():
    x = torch.full((2, 1, 2, 2), 0.99)
    low, high, missing = x.clone(), x.clone(), x.clone()
    low[1, 0, 0, 0], high[1, 0, 0, 0], missing[1, 0, 0, 0] = -0.01, 1.01, float("nan")
    for norm, eps in (("linf", 1.0), (None, None)):
        with pytest.raises(BudgetExceeded, match=r"sample 1 leaves \[0, 1\] by 0.01"):
            check_budget(x, low, norm, eps)
        with pytest.raises(BudgetExceeded, match=r"sample 1 leaves \[0, 1\] by 0.01"):
            check_budget(x, high, norm, eps)
        with pytest.raises(BudgetExceeded, match="sample 1 is not finite"):
            check_budget(x, missing, norm, eps)
    check_budget(x, torch.zeros_like(x), None, None)


def test_a_radius_of_nothing_moves_nothing_at_all():
    x = torch.full((1, 1, 2, 2), 0.5)
    moved = x.clone()
    moved[0, 0, 0, 0] += 1e-7
    check_budget(x, moved, "linf", 1e-8)  # rounding
    for norm in ("linf", "l2", "l0"):
        check_budget(x, x.clone(), norm, 0.0)
        with pytest.raises(BudgetExceeded):
            check_budget(x, moved, norm, 0.0)


def test_shape_and_dtype_are_kept():
    x = torch.full((2, 1, 2, 2), 0.5)
    with pytest.raises(BudgetExceeded, match=r"\(1, 1, 2, 2\)"):
        check_budget(x, x[:1], "linf", 0.1)
    with pytest.raises(BudgetExceeded, match="images on meta for images on cpu"):
        check_budget(x, x.to("meta"), "linf", 0.1)
    with pytest.raises(BudgetExceeded, match="float64"):
        check_budget(x, x.double(), "linf", 0.1)


# one batch ----------------------------------------------------------------------------------------


def test_the_attack_s_own_radius_comes_before_the_threat_s():
    x, y = data(2)
    seen = []
    spy = scripted(
        spy=lambda model, x, y, context: seen.append((context.eps, context.norm, context.num_classes))
    )
    attack_batch(spy, network(), x, y, budget=0.3)
    assert seen == [(0.3, "linf", 3)]
    with pytest.raises(PluginError, match="needs eps"):
        attack_batch(spy, network(), x, y)
    for attack, budget, size in ((FGSM(eps=0.02), 0.3, 0.02), (FGSM(), 0.3, 0.3), (FGSM(), None, 8 / 255)):
        inside = 0.5 * torch.ones_like(x) + 0.001 * x
        moved = attack_batch(attack, network(), inside, y, budget=budget) - inside
        torch.testing.assert_close(moved.abs().amax(), torch.tensor(size))


def test_what_breaks_its_budget_is_refused_by_name():
    x, y = data(2)
    far = scripted(lambda x: (x + 0.2).clamp(0, 1))
    with pytest.raises(BudgetExceeded, match="scripted"):
        attack_batch(far, network(), x, y, budget=0.1)
    assert torch.equal(attack_batch(far, network(), x, y, budget=0.1, verify=False), (x + 0.2).clamp(0, 1))


def _global_state():
    return torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()


def _reseeding(x):
    noise = torch.rand_like(x) + torch.from_numpy(np.random.rand(*x.shape)).float() + random.random()
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    return (noise / 3).clamp(0, 1)


def test_global_generators_are_seeded_inside_and_untouched_outside():
    x, y = data(2)
    attack, model = scripted(_reseeding, norm=None), network()
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    before = _global_state()
    first = attack_batch(attack, model, x, y, seed=3)
    after = _global_state()
    assert torch.equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])
    assert before[2] == after[2]
    torch.rand(5), np.random.rand(5), random.random()
    assert torch.equal(first, attack_batch(attack, model, x, y, seed=3))
    assert not torch.equal(first, attack_batch(attack, model, x, y, seed=4))


def test_the_model_is_as_before_even_after_a_failure():
    x, y = data(4)
    model = network()
    model.train()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    kept = torch.ones_like(model[5].bias)
    model[5].bias.grad = kept
    buffers = {name: value.clone() for name, value in model.named_buffers()}

    def fail(model, x, y, context):
        assert not any(m.training for m in model.modules())
        x.requires_grad_(True)
        functional.cross_entropy(model(x), y).backward()
        model.train()
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        attack_batch(scripted(spy=fail), model, x, y, budget=0.1)
    assert [m.training for m in model] == [True, False, True, True, True, True]
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True, True, True]
    assert [p.grad for p in model.parameters()][:5] == [None] * 5
    assert model[5].bias.grad is kept
    assert torch.equal(kept, torch.ones_like(kept))
    assert all(torch.equal(buffers[name], value) for name, value in model.named_buffers())
    assert not x.requires_grad


def test_inputs_are_not_mutated_and_inference_mode_outside_does_not_matter():
    x, y = data(4)
    copy = x.clone()
    model = network()
    expected = attack_batch(FGSM(eps=EPS), model, x, y)
    assert torch.equal(x, copy)
    assert not expected.requires_grad
    with torch.inference_mode():
        assert torch.equal(attack_batch(FGSM(eps=EPS), model, x.clone(), y.clone()), expected)
    attack_batch(scripted(lambda x: x.zero_(), norm=None), model, x, y)
    assert torch.equal(x, copy)


def test_bad_input_is_refused_and_an_empty_batch_is_not():
    x, y = data(4)
    model, attack = network(), FGSM(eps=EPS)
    for bad, labels in ((x * 2, y), (x - 0.5, y), (x * float("nan"), y), ((x * 255).byte(), y), (x[0], y),
                        (x, y[:3]), (x, y.float())):  # fmt: skip
        with pytest.raises(PluginError):
            attack_batch(attack, model, bad, labels)
    with pytest.raises(PluginError, match="eps"):
        attack_batch(FGSM(), model, x, y, budget=-0.1)
    assert attack_batch(attack, model, x[:0], y[:0]).shape == (0, 1, 4, 4)


# the whole set ------------------------------------------------------------------------------------


def _learned_labels(model, x, wrong=6):
    """The model's own predictions, but for the first few."""
    labels = torch.from_numpy(predict(model, x, 64, "cpu").argmax(1))
    labels[:wrong] = (labels[:wrong] + 1) % 3
    return labels


def _evade(attack, model, x, y, **given):
    given = {"batch_size": 8, "seed": 0, "budget": None, "num_classes": 3, "device": "cpu"} | given
    return evade(attack, model, x, y, **given)


def _robust(clean, adversarial, y):
    return float(((clean.argmax(1) == y.numpy()) & (adversarial.argmax(1) == y.numpy())).mean())


def test_logits_under_attack_are_those_of_a_plain_loop():
    model, (x, _) = network(), data()
    y = _learned_labels(model, x)
    adversarial, facts = _evade(FGSM(eps=EPS), model, x, y)
    model.eval()
    images = x.clone().requires_grad_(True)
    gradient = torch.autograd.grad(functional.cross_entropy(model(images), y, reduction="sum"), images)[0]
    moved = (x + EPS * gradient.sign()).clamp(0, 1)
    with torch.no_grad():
        clean, attacked = model(x).numpy(), model(moved).numpy()
    np.testing.assert_allclose(adversarial[6:], attacked[6:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(adversarial[:6], clean[:6], rtol=1e-4, atol=1e-5)
    assert adversarial.dtype == np.float32
    # Wrong samples keep clean logits; attacking them too would give the same robust accuracy.
    assert _robust(clean, adversarial, y) == _robust(clean, attacked, y) < 0.75
    assert facts["attacked"] == 18
    difference = (moved - x)[6:].double()
    assert facts["mean_linf"] == pytest.approx(float(difference.abs().flatten(1).amax(1).mean()), rel=1e-5)
    assert facts["mean_l2"] == pytest.approx(float(difference.flatten(1).norm(dim=1).mean()), rel=1e-5)


@pytest.mark.parametrize("attack", [FGSM(eps=EPS), PGD(eps=EPS, steps=5, random_start=False)])
def test_a_deterministic_attack_does_not_depend_on_the_batch_size(attack):
    model, (x, _) = network(), data()
    y = _learned_labels(model, x)
    whole, _ = _evade(attack, model, x, y, batch_size=64)
    for batch_size in (1, 5):
        np.testing.assert_allclose(_evade(attack, model, x, y, batch_size=batch_size)[0], whole, atol=1e-5)


def test_the_seed_decides_a_random_attack_batch_by_batch():
    model, (x, _) = network(), data(12)
    x = torch.cat([x[:6], x[:6]])  # the same images in both batches: only the batch's own seed differs
    y = _learned_labels(model, x, wrong=0)
    attack = PGD(eps=EPS, steps=1, alpha=1e-4)
    first, _ = _evade(attack, model, x, y, batch_size=6)
    again, _ = _evade(attack, model, x, y, batch_size=6)
    other, _ = _evade(attack, model, x, y, batch_size=6, seed=1)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.abs(first[:6] - first[6:]).max() > 1e-3


def test_no_radius_means_the_clean_logits_bit_for_bit():
    model, (x, _) = network(), data()
    y = _learned_labels(model, x)
    for attack in (FGSM(eps=0.0), PGD(eps=0.0), PGD(random_start=False)):
        adversarial, facts = _evade(attack, model, x, y, budget=0.0, batch_size=5)
        assert np.array_equal(adversarial, predict(model, x, 5, "cpu"))
        assert facts == {"attacked": 18, "mean_linf": 0.0, "mean_l2": 0.0}


def test_transfer_makes_on_the_surrogate_and_scores_on_the_model():
    model, surrogate, (x, _) = network(), network(seed=1), data()
    y = _learned_labels(model, x)
    adversarial, facts = _evade(FGSM(eps=EPS), model, x, y, source=surrogate)
    moved = attack_batch(FGSM(eps=EPS), surrogate, x[6:], y[6:])
    np.testing.assert_allclose(adversarial[6:], predict(model, moved, 64, "cpu"), atol=1e-5)
    assert facts["attacked"] == 18  # those the model, not the surrogate, has right
    assert np.abs(adversarial - _evade(FGSM(eps=EPS), model, x, y)[0]).max() > 1e-2


class Noisy(nn.Module):
    """Answers at random: logits of a network, of the image with noise."""

    def __init__(self, inner, sigma):
        super().__init__()
        self.inner, self.sigma = inner, sigma

    def forward(self, x):
        return self.inner(x + self.sigma * torch.randn_like(x))


def _of(*names):
    return harness.create("attack", "multi-attack", attacks=[{name: {"eps": 0.2}} for name in names])


def test_the_worst_of_several_counts_on_the_model_that_is_scored():
    model, surrogate, (x, _) = network(), network(seed=1), data(64)
    y = _learned_labels(model, x, wrong=0)
    wrong = predict(surrogate, x, 64, "cpu").argmax(1) != y.numpy()
    assert 10 < wrong.sum() < 54
    alone = {}
    for name in ("fgsm", "pgd", "apgd-ce"):
        # As a whole batch, so that every part sees the samples it would see alone.
        logits, _ = _evade(_of(name), model, x, y, source=surrogate, batch_size=64)
        alone[name] = logits.argmax(1) == y.numpy()
    found, facts = _evade(_of("fgsm", "pgd", "apgd-ce"), model, x, y, source=surrogate, batch_size=64)
    right = found.argmax(1) == y.numpy()
    assert not (right & ~alone["fgsm"]).any()  # what the first part fools stays fooled
    assert right.sum() <= min(part.sum() for part in alone.values())
    assert right[wrong].mean() < 0.9  # what the surrogate gets wrong is attacked too
    assert facts["attacked"] == 64
    single, _ = _evade(
        harness.create("attack", "fgsm", eps=0.2), model, x, y, source=surrogate, batch_size=64
    )
    assert np.array_equal(single, _evade(_of("fgsm"), model, x, y, source=surrogate, batch_size=64)[0])


def test_trying_again_is_no_attack_on_a_model_that_answers_at_random():
    torch.manual_seed(0)
    model, (x, _) = Noisy(network(), 1.0), data(64)
    judge = Expectation(model, 16)
    y = _learned_labels(model, x, wrong=0)
    one, _ = _evade(_of("fgsm"), model, x, y, source=judge, judge=judge, batch_size=64)
    nothing = scripted(lambda x: (x + 1e-4).clamp(0, 1))
    many = type("Many", (type(nothing),), {"parts": lambda self, classes: [nothing] * 30})()
    answers, _ = _evade(many, model, x, y, source=judge, judge=judge, budget=0.2, batch_size=64)
    once, _ = _evade(nothing, model, x, y, source=judge, judge=judge, budget=0.2, batch_size=64)
    assert (answers.argmax(1) == y.numpy()).mean() == pytest.approx(
        (once.argmax(1) == y.numpy()).mean(), abs=0.15
    )
    assert (one.argmax(1) == y.numpy()).mean() < (once.argmax(1) == y.numpy()).mean()


def test_later_parts_get_what_the_model_still_has_right():
    model, surrogate, (x, _) = network().eval(), network(seed=1), data(24)
    y = model(x).argmax(1)
    sizes = []
    first = harness.create("attack", "fgsm", eps=0.3)
    second = scripted(lambda x: x, lambda model, x, *_: sizes.append(len(x)))
    both = type("Both", (type(second),), {"parts": lambda self, classes: [first, second]})()
    found, _ = _evade(both, model, x, y, source=surrogate, budget=0.3, batch_size=24)
    assert sizes == [int((found.argmax(1) == y.numpy()).sum())]
    assert 0 < sizes[0] < 24


def test_one_pixel_is_enough_for_a_part():
    class Watches(nn.Module):
        def forward(self, z):
            return torch.stack([0.5 - z[:, 0, 0, 0], z[:, 0, 0, 0] - 0.5, z[:, 0, 1, 1] - 2], 1)

    x, y = torch.full((8, 1, 4, 4), 0.45), torch.zeros(8, dtype=torch.int64)
    corner = torch.zeros(1, 1, 4, 4)
    corner[..., 0, 0] = EPS
    parts = [scripted(lambda z: z + corner), scripted(lambda z: z - corner)]
    both = type("Both", (Scripted,), {"parts": lambda self, classes: parts})()
    found, facts = _evade(both, Watches().eval(), x, y, budget=EPS)
    assert (found.argmax(1) == 1).all()
    assert facts["mean_linf"] == pytest.approx(EPS)


def test_apgd_moves_what_its_source_gets_wrong_or_never_loses():
    surrogate, (x, _) = network(seed=1), data(24)
    predicted = torch.from_numpy(predict(surrogate, x, 64, "cpu").argmax(1))
    for loss, classes in (("ce", 3), ("dlr", 3)):
        attack = harness.create("attack", "apgd", eps=1e-3, steps=5, loss=loss)
        moved = attack_batch(attack, surrogate, x, (predicted + 1) % 3, num_classes=classes)
        assert (moved != x).flatten(1).any(1).all()
        moved = attack_batch(attack, surrogate, x, predicted, num_classes=classes)
        assert (predict(surrogate, moved, 64, "cpu").argmax(1) == predicted.numpy()).mean() > 0.8
        assert (moved != x).flatten(1).any(1).all()


def test_uint8_and_float_arrays_and_tensors_are_the_same_images():
    model, (x, _) = network(), data()
    bytes_ = (x * 255).round().byte()
    y = _learned_labels(model, bytes_)
    expected, _ = _evade(FGSM(eps=EPS), model, bytes_.float() / 255, y)
    for images, labels in ((bytes_, y), (bytes_.numpy(), y.numpy()), ((bytes_.float() / 255).numpy(), y)):
        assert np.array_equal(_evade(FGSM(eps=EPS), model, images, labels)[0], expected)


def test_nothing_right_means_nothing_to_attack():
    model, (x, _) = network(), data()
    y = _learned_labels(model, x, wrong=24)
    adversarial, facts = _evade(FGSM(eps=EPS), model, x, y)
    assert facts == {"attacked": 0}
    assert np.array_equal(adversarial, predict(model, x, 8, "cpu"))
    diverged = network()
    nn.init.constant_(diverged[5].bias, float("nan"))
    assert _evade(FGSM(eps=EPS), diverged, x, torch.zeros(24, dtype=torch.int64))[1] == {"attacked": 0}


def test_progress_counts_attacked_samples():
    model, (x, _) = network(), data()
    calls = []
    _evade(FGSM(eps=EPS), model, x, _learned_labels(model, x), progress=lambda *done: calls.append(done))
    assert calls == [(8, 18), (16, 18), (18, 18)]
    with pytest.raises(HarnessError, match="24 images"):
        _evade(FGSM(eps=EPS), model, x, torch.zeros(3, dtype=torch.int64))


def test_a_batch_that_does_not_fit_is_attacked_in_halves():
    sizes = []

    def spy(model, x, y, context):
        if len(x) > 5:
            raise torch.OutOfMemoryError("does not fit")
        sizes.append(len(x))

    attack = scripted(lambda x: (x + 0.05).clamp(0, 1), spy)
    model, (x, _) = network().eval(), data(24)
    y = model(x).argmax(1)
    seen = []
    settings = {"seed": 0, "budget": EPS, "num_classes": 3, "device": "cpu"}
    logits, facts = evade(
        attack,
        model,
        x,
        y,
        batch_size=16,
        progress=lambda done, total: seen.append((done, total)),
        **settings,
    )
    assert sum(sizes) == 24
    assert max(sizes) <= 5
    assert facts["batch_size"] == 4
    assert seen[-1] == (24, 24)
    plain = scripted(lambda x: (x + 0.05).clamp(0, 1))
    whole, facts = evade(plain, model, x, y, batch_size=16, **settings)
    np.testing.assert_allclose(logits, whole, rtol=1e-5)
    assert "batch_size" not in facts
    never = scripted(spy=lambda *given: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError):
        evade(never, model, x, y, batch_size=16, **settings)


def test_images_that_do_not_fit_are_attacked_in_halves(monkeypatch):
    real, sizes = evasion.gather, []

    def small(images, where, device):
        sizes.append(len(where))
        if len(where) > 5:
            raise torch.OutOfMemoryError("does not fit")
        return real(images, where, device)

    monkeypatch.setattr(evasion, "gather", small)
    model, (x, _) = network().eval(), data(24)
    settings = {"batch_size": 16, "seed": 0, "budget": EPS, "num_classes": 3, "device": "cpu"}
    attack = scripted(lambda x: (x + 0.05).clamp(0, 1))
    _, facts = evade(attack, model, x, model(x).argmax(1), **settings)
    assert sum(size for size in sizes if size <= 5) == 24
    assert facts["batch_size"] == 4


def test_what_needs_no_gradients_asks_the_model_and_not_its_twin():
    model, twin, (x, _) = network().eval(), network(seed=1).eval(), data()
    y = _learned_labels(model, x, wrong=0)
    made_on = {}
    parts = []
    for access in ("gradients", "logits", "labels"):
        part = scripted(lambda x: x, lambda model, *_, access=access: made_on.setdefault(access, model))
        parts.append(type("Part", (type(part),), {"access": access})())
    whole = type("Whole", (Scripted,), {"parts": lambda self, classes: parts})()
    judge = nn.Sequential(model)
    _evade(whole, model, x, y, source=twin, judge=judge, asked=judge, budget=EPS)
    assert made_on == {"gradients": twin, "logits": judge, "labels": judge}
    made_on.clear()
    _evade(whole, model, x, y, source=twin, judge=judge, budget=EPS)  # a surrogate is all there is
    assert made_on == {"gradients": twin, "logits": twin, "labels": twin}


def test_square_finds_what_a_twin_without_gradients_hides():
    """AutoAttack's last part is for exactly this."""

    class Flat(nn.Module):
        def forward(self, x):
            return (x * 0).flatten(1)[:, :3] + torch.tensor([1.0, 0.0, 0.0])

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 3)).eval()
    x = torch.rand(24, 1, 16, 16)
    y = _learned_labels(model, x, wrong=0)
    attack = harness.create(
        "attack",
        "multi-attack",
        attacks=[{"pgd": {"eps": 0.2, "random_start": False}}, {"square": {"eps": 0.2, "queries": 300}}],
    )
    alone, _ = _evade(harness.create("attack", "square", eps=0.2, queries=300), model, x, y, batch_size=24)
    assert (alone.argmax(1) == y.numpy()).mean() < 0.2
    found, _ = _evade(attack, model, x, y, source=Flat().eval(), asked=model, batch_size=24)
    assert (found.argmax(1) == y.numpy()).mean() < 0.2


def test_an_answer_that_is_not_a_number_is_wrong():
    logits = np.array([[2.0, 1.0], [1.0, 2.0], [np.nan, np.nan], [1.0, np.nan], [np.nan, 1.0]])
    assert right(logits, np.zeros(5, dtype=np.int64)).tolist() == [True, False, False, False, False]
    assert not right(logits[2:], np.ones(3, dtype=np.int64)).any()

    class Breaks(nn.Module):
        """Class 0, and nothing on an image that was moved."""

        def forward(self, z):
            answers = torch.tensor([1.0, 0.0, 0.0]).repeat(len(z), 1) + z.flatten(1)[:, :3] * 0
            return torch.where((z == 0.5).flatten(1).all(1)[:, None], answers, torch.nan)

    x, y = torch.full((8, 1, 4, 4), 0.5), torch.zeros(8, dtype=torch.int64)
    tried = []
    first = scripted(lambda z: z + 0.05)
    second = scripted(lambda z: z, lambda model, z, *_: tried.append(len(z)))
    both = type("Both", (Scripted,), {"parts": lambda self, classes: [first, second]})()
    found, facts = _evade(both, Breaks().eval(), x, y, budget=EPS)
    assert facts["attacked"] == 8
    assert np.isnan(found).all()
    assert not tried  # the first took them all


def _zeroes(model):
    for parameter in model.parameters():
        parameter.data.zero_()  # `.data`: no version counter tells of it


@pytest.mark.parametrize(
    ("meddle", "words"),
    [
        (_zeroes, "changed parameters or buffers"),
        (lambda model: model[1].running_mean.add_(1), "changed parameters or buffers"),
        (lambda model: model.train(), "left the model in training mode"),
        (lambda model: setattr(model, "0", nn.Conv2d(1, 4, 3, padding=1, bias=False)), "replaced modules"),
        (lambda model: model.register_forward_hook(lambda *given: None), "left hooks"),
    ],
)
@pytest.mark.parametrize("direct", [True, False])
def test_an_attack_that_changes_the_model_fails_by_name_also_as_a_part(meddle, words, direct):
    bad = scripted(spy=lambda model, *rest: meddle(model))
    model, (x, y) = network().eval(), data()
    several = harness.create("attack", "multi-attack", attacks=[bad, "fgsm"])
    labels = torch.from_numpy(predict(model, x, 8, "cpu").argmax(1))
    # Of several, the second part would be scored on what the first has left.
    act = attack_batch if direct else _evade
    attack = bad if direct else several
    with pytest.raises(PluginError, match=f"scripted {words}"):
        act(attack, model, x, y if direct else labels, budget=EPS)


@pytest.mark.filterwarnings("ignore:torch.quantize:UserWarning")  # the layers of static-int8 are these
def test_an_attack_that_writes_into_packed_or_sparse_weights_is_found():
    """int8 layers keep theirs as neither parameters nor buffers."""
    layer = torch.ao.nn.quantized.dynamic.Linear(16, 3)
    layer.register_buffer("spread", torch.eye(3).to_sparse())
    zeros = torch.quantize_per_tensor(torch.zeros(3, 16), 0.1, 0, torch.qint8)
    model, (x, y) = nn.Sequential(nn.Flatten(), layer).eval(), data()
    attack_batch(scripted(), model, x, y, budget=EPS)
    for meddle in (
        lambda *given: layer.set_weight_bias(zeros, None),
        lambda *given: layer.spread._values().mul_(2),
    ):
        with pytest.raises(PluginError, match="scripted changed parameters or buffers"):
            attack_batch(scripted(spy=meddle), model, x, y, budget=EPS)


def test_what_an_attack_puts_back_is_its_own_business():
    def spy(model, x, *rest):
        model.train()
        model.eval()
        model(x)

    attack_batch(scripted(spy=spy), network().train(), *data(), budget=EPS)
