import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from observed import observe
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

import harness
from harness.api import NotApplicable, PluginError, PrivacyContext, PrivacyView
from harness_plugins.attacks.privacy import _inversion as inversion


def run(attack, *observed, classes=10, seed=0, progress=lambda done, total: None):
    nobody = (torch.empty(0), torch.empty(0))
    context = PrivacyContext(classes, torch.Generator().manual_seed(seed), progress)
    return attack.run(PrivacyView(None, nobody, nobody, observed=observed), context)


def psnr(a, b):
    return -10 * torch.log10((a - b).square().mean()).item()


def smooth():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.Sigmoid(),
        nn.Conv2d(12, 12, 3, padding=1),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(768, 10),
    )
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return module


def normed():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 10)
    )


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images).float().div(16)[:, None], torch.tensor(data.target)


# simulate ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"epochs": 3},
        {"epochs": 3, "momentum": 0.9, "weight_decay": 0.1},
        {"epochs": 3, "momentum": 0.9, "nesterov": True, "lr": 0.2},
        {"epochs": 2, "batch_size": 4, "momentum": 0.5, "weight_decay": 0.01},
    ],
)
def test_the_simulated_update_is_torchs_own(digits, settings, mode):
    x, y = digits[0][:6], digits[1][:6]
    module = normed().double()
    module[1].running_mean += 0.3
    module.train(mode == "train")
    buffers = copy.deepcopy(dict(module.named_buffers()))
    observed = observe(module, x.double(), y, **settings)
    update = inversion.simulate(observed, x.double(), y)
    torch.testing.assert_close(update, observed.update, rtol=1e-9, atol=1e-12)
    assert observed.update.abs().max() > 1e-3
    for name, before in buffers.items():
        torch.testing.assert_close(dict(module.named_buffers())[name], before, rtol=0, atol=0)
    one_hot = functional.one_hot(y, 10).double()
    torch.testing.assert_close(inversion.simulate(observed, x.double(), one_hot), update)


def test_batch_normalisation_makes_the_modes_differ(digits):
    x, y = digits[0][:6], digits[1][:6]
    trained, frozen = (inversion.simulate(observe(normed().train(m), x, y), x, y) for m in (True, False))
    assert (trained - frozen).abs().max() > 1e-2 * trained.abs().max()


def test_the_simulation_is_differentiable_in_images_and_targets(digits):
    x = digits[0][:2].double().requires_grad_()
    soft = torch.full((2, 10), 0.1, dtype=torch.float64).requires_grad_()
    observed = observe(smooth().double(), x.detach(), digits[1][:2], epochs=2, momentum=0.5)
    direction = torch.linspace(-1, 1, len(observed.weights), dtype=torch.float64)

    def value(images, targets):
        return (inversion.simulate(observed, images, targets) @ direction).sum()

    by_image, by_target = torch.autograd.grad(value(x, soft), (x, soft))
    step = 1e-5
    for gradient, moved in ((by_image, 0), (by_target, 1)):
        shift = torch.randn_like(gradient)
        sides = [[x.detach(), soft.detach()], [x.detach(), soft.detach()]]
        sides[0][moved] = sides[0][moved] + step * shift
        sides[1][moved] = sides[1][moved] - step * shift
        slope = (value(*sides[0]) - value(*sides[1])) / (2 * step)
        assert (gradient * shift).sum().item() == pytest.approx(slope.item(), rel=1e-5)


def test_only_sgd_can_be_simulated(digits):
    observed = observe(smooth(), digits[0][:1], digits[1][:1])
    observed.optimizer = {"name": "adam", "lr": 1e-3}
    for name in ("dlg", "idlg", "inverting-gradients"):
        with pytest.raises(NotApplicable, match="sgd, not adam"):
            run(harness.create("attack", name, iterations=1), observed)


def test_total_variation():
    image = torch.tensor([[[[0.0, 1.0], [0.5, 0.25]]]])
    assert inversion.total_variation(image).item() == pytest.approx((0.5 + 0.75) / 2 + (1 + 0.25) / 2)
    assert inversion.total_variation(torch.rand(2, 1, 1, 1)).item() == 0


# attacks -------------------------------------------------------------------------------------------


def mean_of(*updates):
    """What the server sees of clients that count by their records where it sees their mean alone."""
    sizes = tuple(u.records for u in updates)
    shares = tuple(size / sum(sizes) for size in sizes)
    mean = sum(share * u.update for share, u in zip(shares, updates, strict=True))
    known = {"records": sum(sizes), "clients": len(updates), "sizes": sizes, "shares": shares}
    return replace(updates[0], update=mean, **known)


@pytest.mark.parametrize("name", ["dlg", "idlg", "inverting-gradients"])
def test_digits_of_all_clients_come_back_from_the_mean_of_their_updates(digits, name):
    x, y = digits[0][[0, 3]], digits[1][[0, 3]]
    seen = mean_of(*(observe(smooth(), x[i : i + 1], y[i : i + 1]) for i in range(2)))
    parameters = {"iterations": 200, "tv": 1e-4} if name == "inverting-gradients" else {"iterations": 40}
    result = run(harness.create("attack", name, **parameters), seen)
    (images,), (labels,) = result.images, result.labels
    assert sorted(labels.tolist()) == sorted(y.tolist())
    for image in x:
        assert max(psnr(image, found) for found in images) > 20


@pytest.mark.parametrize("name", ["dlg", "idlg"])
def test_a_digit_comes_back_from_a_smooth_network(digits, name):
    x, y = digits[0][[0, 3]], digits[1][[0, 3]]
    observed = [observe(smooth(), x[i : i + 1], y[i : i + 1]) for i in range(2)]
    result = run(harness.create("attack", name, iterations=20), *observed)
    for i, (image, label) in enumerate(zip(result.images, result.labels, strict=True)):
        assert image.shape == (1, 1, 8, 8)
        assert image.min() >= 0
        assert image.max() <= 1
        assert psnr(image, x[i : i + 1]) > 25
        assert label.tolist() == [y[i].item()]


@pytest.mark.parametrize("name", ["dlg", "idlg"])
def test_a_digit_comes_back_from_a_network_that_is_sure_of_it(digits, name):
    """Its gradient is short, and L-BFGS's tolerances are absolute: it stopped where it began."""
    module, (x, y) = smooth(), (digits[0][3:4], digits[1][3:4])
    observed = observe(module, x, y)
    while observed.gradient().norm() > 3e-3:
        with torch.no_grad():
            module[-1].bias[y] += 0.1
        observed = observe(module, x, y)
    found = run(harness.create("attack", name), observed)
    assert psnr(found.images[0], x) > 40
    assert torch.equal(found.labels[0], y)


def test_dlg_follows_several_local_steps(digits):
    x, y = digits[0][:1], digits[1][:1]
    observed = observe(smooth(), x, y, epochs=3, momentum=0.9, weight_decay=0.01)
    result = run(harness.create("attack", "dlg", epochs=3, iterations=12), observed)
    assert psnr(result.images[0], x) > 25
    # As one step, the same update does not fit any image so well.
    observed.epochs = 1
    other = run(harness.create("attack", "dlg", iterations=12), observed)
    assert psnr(other.images[0], x) < psnr(result.images[0], x) - 10


def small_cnn(side=8):
    torch.manual_seed(0)
    return harness.create("model", "small-cnn").build((1, side, side), 10)


def enlarged(images):
    return functional.interpolate(images, size=(16, 16), mode="bilinear")


def test_inverting_gradients_finds_a_digit_in_an_update_and_none_in_noise(digits):
    x, y = enlarged(digits[0][:1]), digits[1][:1]
    observed = observe(small_cnn(16), x, y)
    attack = harness.create("attack", "inverting-gradients", iterations=250)
    found = run(attack, observed)
    grey = psnr(x.mean().expand_as(x), x)  # better than any image that knows nothing of the digit
    assert grey > psnr(torch.rand(x.shape, generator=torch.Generator().manual_seed(1)), x)
    assert found.labels[0].tolist() == y.tolist()
    assert psnr(found.images[0], x) > grey + 10
    noise = torch.randn(len(observed.update), generator=torch.Generator().manual_seed(2))
    observed.update = noise * observed.update.norm() / noise.norm()
    assert psnr(run(attack, observed).images[0], x) < grey


def test_inverting_gradients_follows_several_local_steps(digits):
    x, y = enlarged(digits[0][:1]), digits[1][:1]
    observed = observe(small_cnn(16), x, y, epochs=3, momentum=0.9)
    attack = harness.create("attack", "inverting-gradients", iterations=150, epochs=3)
    assert psnr(run(attack, observed).images[0], x) > psnr(x.mean().expand_as(x), x) + 8


def test_inverting_gradients_finds_several_records(digits):
    x, y = enlarged(digits[0][[0, 1]]), digits[1][[0, 1]]
    observed = observe(small_cnn(16), x, y)
    attack = harness.create("attack", "inverting-gradients", records=2, iterations=250)
    result = run(attack, observed)
    assert result.labels[0].tolist() == [0, 1]
    for image, record in zip(result.images[0], x, strict=True):
        assert psnr(image, record) > psnr(record.mean().expand_as(record), record) + 4


def test_the_best_of_several_starts_is_kept(digits):
    x, y = digits[0][:1], digits[1][:1]
    observed = observe(small_cnn(), x, y)
    parameters = {"iterations": 20, "tv": 0.0}

    def distance(images):
        sent = inversion.simulate(observed, images, y)
        return 1 - functional.cosine_similarity(sent, observed.update, dim=0).item()

    generator = torch.Generator().manual_seed(0)
    nobody = (torch.empty(0), torch.empty(0))
    view, context = PrivacyView(None, nobody, nobody, observed=(observed,)), PrivacyContext(10, generator)
    single = harness.create("attack", "inverting-gradients", **parameters)
    each = [distance(single.run(view, context).images[0]) for _ in range(4)]
    best = run(harness.create("attack", "inverting-gradients", restarts=4, **parameters), observed)
    assert max(each) > min(each)
    assert distance(best.images[0]) == pytest.approx(min(each), rel=1e-5)


def test_an_undefined_update_gives_an_image_all_the_same(digits):
    observed = observe(smooth(), digits[0][:1], digits[1][:1])
    observed.update = torch.full_like(observed.update, torch.nan)
    for name in ("dlg", "idlg", "inverting-gradients"):
        result = run(harness.create("attack", name, iterations=3), observed)
        assert result.images[0].isfinite().all()
        assert 0 <= result.labels[0].item() < 10


def test_the_same_seed_gives_the_same_images_and_another_seed_others(digits):
    observed = observe(small_cnn(), digits[0][:1], digits[1][:1])
    attack = harness.create("attack", "gradient-inversion", iterations=10)
    first, again, other = (run(attack, observed, seed=s).images[0] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_progress_runs_to_the_end(digits):
    observed = observe(small_cnn(), digits[0][:1], digits[1][:1])
    calls = []
    attack = harness.create("attack", "inverting-gradients", iterations=40, restarts=2)
    run(attack, observed, observed, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (160, 160)
    assert len(calls) > 4
    assert [c[0] for c in calls] == sorted(c[0] for c in calls)


def test_what_is_asked_to_be_observed():
    attack = harness.create(
        "attack", "dlg", records=2, epochs=3, batch_size=1, at="end", targets=5, batch_norm="eval"
    )
    seen = attack.observation
    assert (seen.records, seen.epochs, seen.batch_size) == (2, 3, 1)
    assert (seen.at, seen.count, seen.batch_norm) == ("end", 5, "eval")
    assert attack.knowledge == "server"
    assert not attack.needs_non_members
    assert harness.create("attack", "gradient-inversion").name == "inverting-gradients"


def test_bounds_of_parameters():
    for bad in ({"records": 0}, {"records": 9}, {"iterations": 0}, {"at": "middle"}):
        with pytest.raises(PluginError):
            harness.create("attack", "inverting-gradients", **bad)
    with pytest.raises((PluginError, ValidationError)):
        harness.create("attack", "idlg", records=2)


def test_missing_updates_and_wrong_counts_are_refused(digits):
    with pytest.raises(PluginError, match="observed updates"):
        run(harness.create("attack", "dlg"))
    observed = observe(smooth(), digits[0][:2], digits[1][:2])
    with pytest.raises(PluginError, match="one record, not 2"):
        run(harness.create("attack", "idlg", iterations=1), observed)


def test_numpy_seeds_are_left_alone(digits):
    observed = observe(small_cnn(), digits[0][:1], digits[1][:1])
    state, before = torch.get_rng_state(), np.random.get_state()[1].copy()
    run(harness.create("attack", "inverting-gradients", iterations=2), observed)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
