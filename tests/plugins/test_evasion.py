import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import harness
from harness.api import PluginError, make_key
from harness.api import fgsm as pure_fgsm
from harness.api import pgd as pure_pgd
from harness.evaluation.evasion import attack_batch
from harness_plugins.attacks.evasion.fgsm import FGSM
from harness_plugins.attacks.evasion.pgd import PGD

EPS = 8 / 255


def network(channels, classes=3, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.Tanh(), nn.Flatten(),
        nn.Linear(6 * 64, classes),
    ).to(dtype).eval()  # fmt: skip


def data(channels, n=5, classes=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, channels, 8, 8, generator=generator, dtype=dtype)
    x[0, :, :2] = 0.0  # the range binds here
    x[1, :, :2] = 1.0
    return x, torch.randint(0, classes, (n,), generator=generator)


def per_sample_loss(model, y):
    return lambda x: functional.cross_entropy(model(x), y, reduction="none")


class Linear(nn.Module):
    """Logits W x + b; the gradient of the loss is W^T (softmax - onehot)."""

    def __init__(self, weight, bias):
        super().__init__()
        self.linear = nn.Linear(weight.shape[1], len(weight), dtype=torch.float64)
        self.linear.weight.data = torch.from_numpy(weight)
        self.linear.bias.data = torch.from_numpy(bias)

    def forward(self, x):
        return self.linear(x.flatten(1))


# FGSM and PGD against the formula and the engine's pure forms -------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_fgsm_is_the_pure_form_and_the_formula(channels):
    model, (x, y) = network(channels), data(channels)
    adversarial = FGSM(eps=EPS)(model, x, y)
    images = x.clone().requires_grad_(True)
    gradient = torch.autograd.grad(per_sample_loss(model, y)(images).sum(), images)[0]
    torch.testing.assert_close(adversarial, (x + EPS * gradient.sign()).clamp(0, 1), rtol=0, atol=1e-12)
    loss = per_sample_loss(model, y)
    torch.testing.assert_close(adversarial, pure_fgsm(loss, x, EPS), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        adversarial, FGSM(eps=EPS).functional()(loss, x, make_key(0)), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pgd_without_random_start_is_the_pure_form(channels, dtype):
    model, (x, y) = network(channels, dtype=dtype), data(channels, dtype=dtype)
    attack = PGD(eps=EPS, alpha=3 / 255, steps=7, random_start=False)
    adversarial, loss = attack(model, x, y), per_sample_loss(model, y)
    assert adversarial.dtype == dtype
    expected = pure_pgd(loss, x, make_key(0), EPS, 3 / 255, 7, random_start=False)
    torch.testing.assert_close(adversarial, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(attack.functional()(loss, x, make_key(0)), expected, rtol=0, atol=0)


def test_pgd_is_the_formula_on_a_three_class_linear_model():
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(3, 12)), rng.normal(size=3)
    x, y = rng.uniform(size=(6, 12)), rng.integers(0, 3, 6)
    x[0, :4], x[1, :4] = 0.0, 1.0
    eps, alpha, steps = 0.1, 0.03, 6
    current = x.copy()
    for _ in range(steps):
        logits = current @ weight.T + bias
        probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        gradient = (probability - np.eye(3)[y]) @ weight
        current = np.clip(x + np.clip(current + alpha * np.sign(gradient) - x, -eps, eps), 0, 1)
    attack = PGD(eps=eps, alpha=alpha, steps=steps, random_start=False)
    images = torch.from_numpy(x).view(6, 3, 2, 2)
    adversarial = attack(Linear(weight, bias), images, torch.from_numpy(y))
    np.testing.assert_allclose(adversarial.flatten(1).numpy(), current, atol=1e-12)


@pytest.mark.parametrize(
    "attack", [FGSM(eps=0.05), PGD(eps=0.05, steps=3), PGD(eps=0.05, steps=40), PGD(eps=0.05, steps=1)]
)
def test_the_margin_of_a_logistic_model_falls_by_eps_times_the_l1_norm(attack):
    # The gradient's sign is constant, so the default step takes PGD to the corner from any random start.
    rng = np.random.default_rng(0)
    weight = np.stack([np.zeros(16), rng.normal(size=16)])
    x = torch.from_numpy(rng.uniform(0.1, 0.9, (5, 1, 4, 4)))
    model = Linear(weight, np.zeros(2))
    for label, sign in ((1, 1.0), (0, -1.0)):
        adversarial = attack(model, x, torch.full((5,), label))
        with torch.no_grad():
            fall = sign * (model(x) - model(adversarial))[:, 1]
        np.testing.assert_allclose(fall.numpy(), 0.05 * np.abs(weight[1]).sum(), rtol=1e-9)


# parameters ---------------------------------------------------------------------------------------


def test_the_default_step_is_two_and_a_half_radii_shared_out():
    assert PGD(steps=20).step_size(0.1) == pytest.approx(0.0125)
    assert PGD(steps=20, alpha=0.01).step_size(0.1) == 0.01
    x, y = data(1, n=2)
    # The threat's radius, too: four steps of 2.5 * 0.4 / 4 from x itself reach it.
    moved = PGD(steps=4, random_start=False)(network(1), 0.5 + 0 * x, y, budget=0.4)
    assert float((moved - 0.5).abs().max()) == pytest.approx(0.4)


@pytest.mark.parametrize("attack", [FGSM(), PGD()])
def test_radius_norm_and_access_are_those_of_the_contract(attack):
    assert attack.radius() == 8 / 255
    assert attack.radius(0.1) == 0.1
    assert type(attack)(eps=0.0).radius(0.1) == 0.0
    assert (attack.norm, attack.access, attack.phase) == ("linf", "gradients", "inference")
    assert FGSM().effort == 1
    assert PGD(steps=7).effort == 7


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("fgsm", {"eps": -0.1}), ("fgsm", {"eps": 8.0}), ("fgsm", {"steps": 2}), ("pgd", {"alpha": 0.0}),
     ("pgd", {"alpha": 2}),
     ("pgd", {"steps": 0}), ("pgd", {"steps": 1.5}), ("pgd", {"random_start": "yes"})],
)  # fmt: skip
def test_bad_parameters_are_refused(name, parameters):
    with pytest.raises(PluginError, match=next(iter(parameters))):
        harness.create("attack", name, **parameters)


def test_they_are_registered_and_called_as_documented():
    model, (x, y) = network(1, dtype=torch.float32), data(1, dtype=torch.float32)
    adversarial = harness.create("attack", "pgd", eps=8 / 255)(model, x, y)
    assert float((adversarial - x).abs().max()) == pytest.approx(8 / 255, abs=1e-6)
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    with torch.no_grad():
        before, after = (functional.cross_entropy(model(images), y) for images in (x, adversarial))
    assert after > before


# what peers got wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fgsm", "pgd", "bim", "mi-fgsm", "pgd-l2", "apgd-ce"])
def test_a_confident_model_is_attacked_as_in_float64(name):
    """In float32 the cross-entropy's gradient by the true class, p - 1, is 0 where the others' are 1e-9."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    with torch.no_grad():
        model[1].weight *= 4
        model[3].weight *= 60
    x = torch.rand(120, 1, 8, 8, dtype=torch.float64)
    logits = model(x)
    y = logits.argmax(1)
    top = logits.topk(2).values
    sure = (top[:, 0] - top[:, 1]) > 17
    assert sure.sum() > 10
    x, y = x[sure], y[sure]
    parameters = {"eps": 0.1} if name != "pgd-l2" else {"eps": 0.8}
    if name not in ("fgsm", "apgd-ce"):
        parameters["steps"] = 3
    attack = harness.create("attack", name, **parameters)

    def moved(model, x):
        found = attack_batch(attack, model, x, y, seed=1, budget=None, num_classes=3)
        return functional.cross_entropy(
            model(found).double(), y, reduction="none"
        ) - functional.cross_entropy(model(x).double(), y, reduction="none")

    exact, found = moved(model, x), moved(model.float(), x.float())
    assert float(found.mean()) > 0.9 * float(exact.mean())


@pytest.mark.parametrize(
    "attack", [FGSM(eps=0), PGD(eps=0), PGD(eps=0, alpha=0.1), PGD(eps=0, random_start=False)]
)
def test_a_radius_of_nothing_returns_the_same_pixels(attack):
    model, (x, y) = network(3, dtype=torch.float32), data(3, dtype=torch.float32)
    assert torch.equal(attack(model, x, y), x)
    assert torch.equal(attack.functional()(per_sample_loss(model, y), x, make_key(0)), x)


def test_the_random_start_is_seeded_and_uniform_in_the_ball():
    model = network(1, dtype=torch.float32)
    x, y = torch.full((64, 1, 8, 8), 0.5), torch.zeros(64, dtype=torch.int64)
    attack = PGD(eps=0.2, alpha=1e-9, steps=1)
    first = attack_batch(attack, model, x, y, seed=1)
    assert torch.equal(first, attack_batch(attack, model, x, y, seed=1))
    assert not torch.equal(first, attack_batch(attack, model, x, y, seed=2))
    start = (first - x).double() / 0.2
    # 4096 uniform numbers in [-1, 1]: mean 0 +- 5 * 0.009, variance 1/3 +- 5 * 0.0047.
    assert abs(float(start.mean())) < 0.045
    assert abs(float(start.var()) - 1 / 3) < 0.024
    pure = attack.functional()
    loss = per_sample_loss(model, y)
    assert torch.equal(pure(loss, x, make_key(1)), pure(loss, x, make_key(1)))
    assert not torch.equal(pure(loss, x, make_key(1)), pure(loss, x, make_key(2)))


def test_the_functional_form_takes_the_threat_s_radius():
    model, (x, y) = network(1), data(1)
    loss = per_sample_loss(model, y)
    for attack in (FGSM(), PGD(steps=3, random_start=False)):
        moved = attack.functional(0.05)(loss, x, make_key(0)) - x
        assert float(moved.abs().max()) == pytest.approx(0.05)
        own = type(attack)(eps=0.02).functional(0.05)(loss, x, make_key(0)) - x
        assert float(own.abs().max()) == pytest.approx(0.02)


def test_one_record_s_example_does_not_depend_on_the_others():
    model, (x, y) = network(3), data(3)
    attack = PGD(eps=EPS, steps=4, random_start=False)
    whole = attack(model, x, y)
    alone = torch.cat([attack(model, x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-12)


def test_networks_without_parameters_are_attacked_too():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weight", torch.linspace(-1, 1, 48).view(3, 16))

        def forward(self, x):
            return x.flatten(1) @ self.weight.T

    x, y = 0.5 * torch.ones(2, 1, 4, 4), torch.tensor([0, 2])
    moved = FGSM(eps=0.1)(Fixed(), x, y) - x
    assert float(moved.abs().min()) == pytest.approx(0.1)


def test_perturbing_keeps_the_mode_of_the_model_given():
    from harness.api import EvasionContext

    model, (x, y) = network(1), data(1)
    context = EvasionContext(3, torch.Generator(), EPS, "linf")
    PGD(steps=1).perturb(model, x, y, context)
    assert not model.training


def test_the_modules_load_without_torch():
    code = (
        "import sys, harness_plugins.attacks.evasion.pgd, harness_plugins.attacks.privacy.loss_threshold, "
        "harness_plugins.metrics.privacy, harness.evaluation.evasion; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'torchattacks', 'sklearn')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
