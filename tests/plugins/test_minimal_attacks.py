"""Attacks that look for a small change, where answers have an offset, tie exactly, or have no gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import harness
from harness.evaluation.expectation import Expectation

CLASSES = 5
CARLINI_WAGNER = [
    ("cw", {"c": 10.0}),
    ("torchattack", {"attack": "CW", "ball": "none", "settings": {"c": 10, "steps": 100}}),
]


def create(name, **parameters):
    return harness.create("attack", name, **parameters)


class Linear(nn.Module):
    """Logits W (x - 1/2) + offset of 8x8 images, computed in `dtype`."""

    def __init__(self, offset=0.0, dtype=torch.float32):
        super().__init__()
        weight = torch.randn(CLASSES, 64, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(weight.to(dtype))
        self.offset = offset

    def forward(self, x):
        return ((x.flatten(1) - 0.5).to(self.weight.dtype) @ self.weight.T).to(x.dtype) + self.offset


class PartlyDead(Linear):
    """As Linear, but of images whose first pixel is dark the answer is class 0 whatever else they hold."""

    def forward(self, x):
        alive = (x[:, :1, 0, 0] > 0.1).to(x.dtype)
        return alive * super().forward(x) + (1 - alive) * torch.eye(CLASSES)[:1]


def images(n=24):
    return 0.2 + 0.6 * torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def fooled(model, adversarial, y):
    return float((model(adversarial).argmax(1) != y).float().mean())


@pytest.mark.parametrize("offset", [-64.0, 64.0])
@pytest.mark.parametrize(("name", "parameters"), CARLINI_WAGNER)
def test_cw_sees_only_differences_of_logits(name, parameters, offset):
    x = images()
    y = Linear()(x).argmax(1)
    expected = create(name, **parameters)(Linear().eval(), x, y)
    assert fooled(Linear(), expected, y) > 0.9
    found = create(name, **parameters)(Linear(offset).eval(), x, y)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("name", "parameters"), CARLINI_WAGNER)
def test_cw_succeeds_on_log_probabilities_as_on_logits(name, parameters):
    """They are what the engine shows it of a model that answers at random."""
    model, x = Linear().eval(), images()
    y = model(x).argmax(1)
    expected = create(name, **parameters)(model, x, y)
    found = create(name, **parameters)(Expectation(model, 2).eval(), x, y)
    assert fooled(model, found, y) == fooled(model, expected, y) > 0.9
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["cw", "deepfool", "sparsefool"])
def test_an_image_without_a_gradient_stays_and_the_others_are_fooled(name):
    model, x = PartlyDead().eval(), images(8)
    x[2, 0, 0, 0] = 0.0
    y = model(x).argmax(1)
    others = torch.arange(len(x)) != 2
    adversarial = create(name, **({"c": 10.0} if name == "cw" else {}))(model, x, y)
    assert torch.equal(adversarial[2], x[2])
    assert fooled(model, adversarial[others], y[others]) > 0.8
    alone = create(name)(model, x[2:3], y[2:3])
    assert torch.equal(alone, x[2:3])


def test_an_image_without_a_gradient_stays_under_a_class_of_torchattacks():
    model, x = PartlyDead().eval(), images(3)
    x[1, 0, 0, 0] = 0.0
    y = model(x).argmax(1)
    adversarial = create("torchattack", attack="SparseFool", ball="none", settings={"steps": 5})(model, x, y)
    moved = (adversarial != x).flatten(1).any(1)
    assert moved.tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_deepfool_crosses_exact_ties(dtype):
    model, x = Linear(dtype=dtype).eval(), images(200)
    y = model(x).argmax(1)
    adversarial = create("deepfool")(model, x, y)
    assert fooled(model, adversarial, y) == 1
    wide = create("deepfool")(Linear().eval(), x, y)
    length, least = ((moved - x).flatten(1).norm(dim=1).mean() for moved in (adversarial, wide))
    assert float(length) < 1.1 * float(least)


def test_an_overshoot_that_doubles_for_ever_stays_finite():
    class Flat(Linear):
        """Answers that depend on nothing, once an image has moved at all."""

        def forward(self, x):
            still = (x == start[: len(x)]).flatten(1).all(1, keepdim=True).to(x.dtype)
            return still * super().forward(x) + (1 - still) * nn.functional.one_hot(y[: len(x)], CLASSES)

    start = images(1)
    start[0, 0, 0] = 0.0
    y = Linear()(start).argmax(1)
    adversarial = create("deepfool", steps=300)(Flat().eval(), start, y)  # 2^300 is beyond float32
    assert adversarial.isfinite().all()


def reference_sparsefool(model, x, y, lam, overshoot):
    """The paper's two algorithms in float64 for one image (1, 1, 8, 8), coordinate by coordinate, with our DeepFool."""
    reached, tried = x.clone(), x.clone()
    for _ in range(10):
        if model(tried).argmax(1) != y:
            break
        beyond = create("deepfool", overshoot=overshoot)(model, reached, y).requires_grad_()
        logits = model(beyond)[0]
        second = logits.index_fill(0, y, -torch.inf).argmax()
        w = torch.autograd.grad(logits[second] - logits[y[0]], beyond)[0].flatten()
        w = w / w.norm()
        plane = (reached + lam * (beyond.detach() - reached)).flatten()
        point = reached.flatten().clone()
        for d in w.abs().argsort(descending=True):
            if w @ (point - plane) > 0:
                break
            needed = (w @ (plane - point) + 0.001) / w[d].abs()
            point[d] = (point[d] + needed * w[d].sign()).clamp(0, 1)
        reached = point.view_as(x)
        tried = (x + (1 + overshoot) * (reached - x)).clamp(0, 1)
    return tried


@pytest.mark.parametrize(("lam", "overshoot"), [(3.0, 0.02), (1.0, 0.02), (1.0, 0.2)])
def test_sparsefool_is_the_paper_s_on_images_at_the_borders_of_the_box(lam, overshoot):
    """torchattacks' own leaves images right here: it starts each step from x, and its DeepFool stops short."""
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, CLASSES)
    model = nn.Sequential(*layers).double().eval()
    x = (torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(3)) > 0.5).double()
    y = model(x).argmax(1)
    found = create("sparsefool", lam=lam, overshoot=overshoot)(model, x, y)
    assert fooled(model, found, y) == 1
    expected = [
        reference_sparsefool(model, x[i : i + 1], y[i : i + 1], lam, overshoot) for i in range(len(x))
    ]
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-9)


def test_torchattacks_deepfool_still_stops_short_which_is_why_it_is_refused():
    """Where that changes, `torchattack` may take it again."""
    import torchattacks

    generator = torch.Generator().manual_seed(3)
    model = Linear().eval()
    x = (torch.rand(64, 1, 8, 8, generator=generator) > 0.5).float()  # at the borders of the box
    y = model(x).argmax(1)
    theirs = torchattacks.DeepFool(model)(x, y)
    assert fooled(model, create("deepfool")(model, x, y), y) == 1
    assert fooled(model, theirs, y) < 0.9
