"""canary-exposure, on losses that are written down."""

import math

import numpy as np
import pytest
import torch

import harness
from harness.api import (
    Canaries,
    Planted,
    PluginError,
    PrivacyContext,
    PrivacyView,
    TrainingVariant,
    VariantView,
)
from harness_plugins.attacks.privacy.canary_exposure import CanaryExposure

CONTEXT = PrivacyContext(num_classes=2, generator=torch.Generator())
NAME = "exposure-100-1"


def view(included, logits, labels=None, name=NAME, planted=True):
    """Canary i is an image of pixel i; the model's logits of it are row i."""
    rows = torch.as_tensor(np.asarray(logits, dtype=np.float64))
    images = torch.arange(len(rows), dtype=torch.float64).reshape(-1, 1, 1, 1)
    labels = torch.zeros(len(rows), dtype=torch.int64) if labels is None else torch.as_tensor(labels)
    canaries = Planted(np.asarray(included, dtype=bool), None, images, labels) if planted else None
    variant = VariantView(lambda x: rows[x.flatten().long()], np.empty(0, dtype=bool), canaries=canaries)
    empty = (images[:0], labels[:0])
    return PrivacyView(lambda x: x, empty, empty, variants={name: variant})


def exposure(included, loss):
    """The result where the canaries have these losses (two classes, label 0)."""
    with np.errstate(over="ignore"):
        phi = -np.log(np.expm1(np.asarray(loss, dtype=np.float64)))
    return CanaryExposure().run(view(included, np.stack([phi, np.zeros_like(phi)], 1)), CONTEXT)


def test_by_hand():
    # Seven left out with losses 1 to 7, so |R| = 8; three entered, at ranks 1, 4 and 8: 3, 1 and 0 bits.
    included = [True, False, False, False, True, False, False, False, False, True]
    loss = [0.5, 1, 2, 3, 3.5, 4, 5, 6, 7, 9]
    assert exposure(included, loss) == {
        "exposure_mean": pytest.approx(4 / 3),
        "exposure_max": pytest.approx(3),
    }


def test_the_order_does_not_matter():
    rng = np.random.default_rng(0)
    included, loss = rng.random(40) < 0.5, rng.exponential(size=40)
    order = rng.permutation(40)
    assert exposure(included[order], loss[order]) == pytest.approx(exposure(included, loss))


def test_against_counting():
    rng = np.random.default_rng(1)
    included, loss = rng.random(60) < 0.5, rng.exponential(size=60)
    reference = [b for b, entered in zip(loss, included, strict=True) if not entered]
    found = [
        math.log2(len(reference) + 1) - math.log2(1 + sum(r < own for r in reference))
        for own, entered in zip(loss, included, strict=True)
        if entered
    ]
    expected = {"exposure_mean": sum(found) / len(found), "exposure_max": max(found)}
    assert exposure(included, loss) == pytest.approx(expected)


def test_the_loss_is_that_of_the_canarys_own_label():
    rng = np.random.default_rng(2)
    logits, labels = rng.normal(size=(50, 4)), rng.integers(0, 4, 50)
    included = rng.random(50) < 0.5
    loss = np.log(np.exp(logits).sum(1)) - logits[np.arange(50), labels]
    found = CanaryExposure().run(view(included, logits, labels), CONTEXT)
    assert found == pytest.approx(exposure(included, loss))


def test_canaries_known_by_heart_are_exposed_to_the_full():
    included = np.arange(20) < 5
    assert exposure(included, np.where(included, 0.1, 2.0)) == pytest.approx(
        {"exposure_mean": 4.0, "exposure_max": 4.0}
    )


def test_losses_that_float32_rounds_to_zero_are_told_apart():
    found = CanaryExposure().run(view([True, False, False], [[40.0, 0], [38, 0], [39, 0]]), CONTEXT)
    assert found["exposure_max"] == pytest.approx(math.log2(3))


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_model_that_treats_all_alike_exposes_nothing(value):
    found = CanaryExposure().run(view(np.arange(12) % 2 == 0, np.full((12, 2), value)), CONTEXT)
    assert found == {"exposure_mean": 0.0, "exposure_max": 0.0}


def test_canaries_that_left_no_trace_have_the_mean_of_a_uniform_rank():
    rng = np.random.default_rng(3)
    means, size = [], 101
    for _ in range(300):
        included = np.arange(2 * size - 1) >= size - 1
        means.append(exposure(included, rng.exponential(size=2 * size - 1))["exposure_mean"])
    expected = math.log2(size) - math.lgamma(size + 1) / math.log(2) / size
    assert expected < 1.4427
    assert np.mean(means) == pytest.approx(expected, abs=4 * np.std(means) / math.sqrt(300))
    assert np.std(means) < 0.3


def test_it_plants_images_in_the_targets_own_training():
    attack = harness.create("attack", "canary-exposure", canaries=30, repeats=4)
    planted = Canaries(count=30, unit="record", form="image", repeats=4)
    assert attack.trainings(None) == [TrainingVariant("exposure-30-4", keep=None, canaries=planted)]
    assert not attack.needs_non_members
    assert set(attack.scores) == set(exposure([True, False], [1, 2]))
    assert {(s.direction, s.unit) for s in attack.scores.values()} == {("lower", "bits")}


def test_what_is_missing_is_named():
    logits = np.zeros((4, 2))
    with pytest.raises(PluginError, match="'exposure-100-1' with image canaries"):
        CanaryExposure().run(view([True] * 4, logits, name="exposure-100-2"), CONTEXT)
    with pytest.raises(PluginError, match="with image canaries"):
        CanaryExposure().run(view([True] * 4, logits, planted=False), CONTEXT)
    gradients = view([True, False] * 2, logits)
    gradients.variants[NAME].canaries.__dict__["images"] = None
    with pytest.raises(PluginError, match="with image canaries"):
        CanaryExposure().run(gradients, CONTEXT)
    for included, number in (([True] * 4, 4), ([False] * 4, 0)):
        with pytest.raises(PluginError, match=f"{number} of 4 canaries entered"):
            CanaryExposure().run(view(included, logits), CONTEXT)
    with pytest.raises(PluginError, match=r"4 canaries, but coins \(3,\)"):
        CanaryExposure().run(view([True, False, True], logits), CONTEXT)


@pytest.mark.parametrize("bad", [{"canaries": 9}, {"repeats": 0}])
def test_numbers_out_of_range_are_refused(bad):
    with pytest.raises(PluginError, match=next(iter(bad))):
        CanaryExposure.create(bad)
