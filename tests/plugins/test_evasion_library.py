"""Where torchattacks' own classes and defaults do not do what their papers or the engine ask for."""

from __future__ import annotations

import re

import pytest
import torch
import torchattacks
from torch import nn

import harness
from harness.api import EvasionContext

CLASSES = 6


def create(name, **parameters):
    return harness.create("attack", name, **parameters)


def network(side=8, seed=0):
    torch.manual_seed(seed)
    layers = nn.Flatten(), nn.Linear(side * side, 24), nn.Tanh(), nn.Linear(24, CLASSES)
    return nn.Sequential(*layers).eval()


def images(n=16, side=8):
    return torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(1))


def margin(model, x, y):
    logits = model(x)
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return logits.gather(1, y[:, None])[:, 0] - others


def moved(adversarial, x):
    return (adversarial != x).flatten(1).any(1)


def test_the_classes_named_as_examples_exist():
    documentation = type(create("torchattack", attack="PGD")).__doc__
    named = re.findall(r"\b[A-Z0-9]*FGSM\b", documentation)
    assert len(named) == 2
    for name in named:
        create("torchattack", attack=name)


@pytest.mark.parametrize(
    ("attack", "settings"),
    [("Square", {"n_queries": 5}), ("APGD", {"steps": 5}), ("APGDT", {"steps": 2, "n_classes": CLASSES})],
)
def test_random_numbers_are_the_run_s_own_unless_a_seed_is_given(attack, settings):
    model, x = network(), images()
    y = model(x).argmax(1)
    free = create("torchattack", attack=attack, eps=0.1, settings=settings)
    first, second = (free(model, x, y, seed=seed) for seed in (1, 2))
    assert not torch.equal(first, second)
    assert torch.equal(first, free(model, x, y, seed=1))
    fixed = create("torchattack", attack=attack, eps=0.1, settings={**settings, "seed": 7})
    assert torch.equal(*(fixed(model, x, y, seed=seed) for seed in (1, 2)))


@pytest.mark.parametrize("ball", ["linf", "l2"])
@pytest.mark.parametrize("restarts", [1, 3])
def test_square_ends_at_the_best_point_that_it_reached(ball, restarts):
    model, x = network(16), images(side=16)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % CLASSES  # wrong already
    eps = 0.002 if ball == "linf" else 0.02
    attack = create("square", ball=ball, eps=eps, queries=200, restarts=restarts)
    adversarial = attack(model, x, y)  # the engine raises where the ball is left
    right = margin(model, adversarial, y) > 0
    assert right.sum() > len(x) / 2  # most are not fooled at this radius
    assert moved(adversarial, x).all()
    assert (margin(model, adversarial, y) < margin(model, x, y))[right].all()
    few = create("square", ball=ball, eps=eps, queries=2)(model, x, y)
    gained = margin(model, few, y) - margin(model, adversarial, y)
    assert gained[right].min() > -1e-3
    assert gained[right].mean() > 0
    library = create(
        "torchattack", attack="Square", ball=ball, eps=eps,
        settings={"norm": "Linf" if ball == "linf" else "L2", "n_queries": 20},
    )  # fmt: skip
    assert moved(library(model, x, y), x).all()


class Tied(nn.Module):
    """For images of equal rows equal logits, as int8 often has: argmax takes the first class. For others the second."""

    def forward(self, x):
        gap = -(x != x[:, :, :1]).flatten(1).any(1).float()
        return torch.stack([gap, torch.zeros_like(gap)], 1)


@pytest.mark.parametrize("loss", ["margin", "ce"])
def test_square_goes_on_at_a_tie_that_the_label_wins(loss):
    """Its first squares, after the vertical stripes that it begins with, fool this model."""
    model, x, y = Tied(), torch.full((4, 1, 8, 8), 0.5), torch.zeros(4, dtype=torch.int64)
    attack = create("torchattack", attack="Square", eps=0.1, settings={"n_queries": 20, "loss": loss})
    assert (model(attack(model, x, y)).argmax(1) == 1).all()


def test_restarts_of_square_keep_the_best():
    model, x = network(), images()
    y = model(x).argmax(1)
    one, three = (create("square", eps=0.01, queries=20, restarts=r)(model, x, y, seed=3) for r in (1, 3))
    assert (margin(model, three, y) <= margin(model, one, y)).all()
    assert (margin(model, three, y) < margin(model, one, y)).any()


def test_fab_keeps_the_image_where_it_finds_nothing():
    model, x = network(), images()
    y = model(x).argmax(1)
    adversarial = create("fab", eps=0.04, steps=10)(model, x, y)
    changed = moved(adversarial, x)
    assert 0 < changed.sum() < len(x)
    assert torch.equal(changed, model(adversarial).argmax(1) != y)


def test_the_schedule_of_squares_is_autoattack_s_or_the_paper_s():
    """p_init / 64 from query 2,000 of 10,000 on, and / 128 from 4,000 on: half as many where it is scaled to 5,000."""

    def share(part):
        arguments = part.arguments(EvasionContext(CLASSES, torch.Generator(), 0.1, "linf"))
        built = part.build(part.implementation, network(), images(1), arguments)
        return 0.8 / built.p_selection(part.queries // 2 + 100)

    standard, fast = (create(name).parts(CLASSES)[-1] for name in ("autoattack", "autoattack-fast"))
    assert (standard.queries, fast.queries) == (5000, 500)
    assert share(standard) == pytest.approx(64)
    assert share(create("square")) == pytest.approx(128)
    assert share(fast) == pytest.approx(256)


def test_targeted_apgd_takes_each_sample_s_own_steps_in_an_l2_ball():
    model, x = network(), images(60)
    y = model(x).argmax(1)
    attack = create("apgd", loss="targeted", ball="l2", eps=0.1, steps=20)
    sure = margin(model, x, y).argsort(descending=True)[:8]
    watched, found = sure[-4:], []
    for first in sure[:4]:
        batch = torch.cat([first[None], watched])
        adversarial = attack(model, x[batch], y[batch], seed=1)
        assert (model(adversarial).argmax(1) == y[batch]).all()  # so that all draw the same numbers
        found.append(adversarial[1:])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-6)


def test_targeted_apgd_is_the_library_s_in_an_linf_ball():
    model, x = network(), images()
    y = model(x).argmax(1)
    settings = {"steps": 10, "n_classes": CLASSES, "seed": 5}
    found = create("torchattack", attack="APGDT", eps=0.03, settings=settings)(model, x, y)
    expected = torchattacks.APGDT(network(), eps=0.03, **settings)(x, y)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
