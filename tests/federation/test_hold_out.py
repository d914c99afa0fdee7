"""Hold-outs: whole groups, about the fraction asked for of every class and of all records together."""

from __future__ import annotations

import numpy as np
import pytest

from harness.contracts.data import hold_out
from harness.errors import HarnessError


def draw(labels, groups=None, fraction=0.1, seed=0):
    return hold_out(np.asarray(labels), groups, fraction, np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("classes", "each"), [(100, 6), (100, 4), (2, 5), (10, 1000), (3, 33)])
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
def test_small_classes_do_not_round_the_whole_up_or_down(classes, each, fraction, seed):
    labels = np.repeat(np.arange(classes), each)
    kept, out = draw(labels, fraction=fraction, seed=seed)
    assert abs(len(out) - fraction * len(labels)) <= 0.5 + 1e-9
    assert np.abs(np.bincount(labels[out], minlength=classes) - fraction * each).max() < 1
    assert sorted([*kept, *out]) == list(range(len(labels)))


def test_which_classes_are_rounded_up_is_drawn():
    labels = np.repeat(np.arange(20), 5)
    often = sum(np.bincount(labels[draw(labels, seed=s)[1]], minlength=20) for s in range(400))
    assert often.sum() == 400 * 10
    assert abs(often - 200).max() < 5 * np.sqrt(
        400 / 4
    )  # one of two classes: 0.1 of 5 records is half a record


def test_groups_stay_whole_and_a_large_one_starves_no_class():
    labels = np.r_[np.zeros(300, int), np.ones(200, int)]
    groups = np.r_[np.repeat([0, 1, 2], 100), 3 + np.arange(200)]  # three patients of 100 images, 200 of one
    for seed in range(20):
        kept, out = draw(labels, groups, 0.2, seed)
        assert not set(groups[kept]) & set(groups[out])
        assert abs((labels[out] == 1).sum() - 40) <= 2


def test_a_large_group_does_not_keep_smaller_ones_of_its_class_in():
    """One patient of 90 images and ten of one, who alone are a tenth: drawn after the large one too."""
    labels = np.r_[np.zeros(100, int), np.ones(100, int)]
    groups = np.r_[np.zeros(90, int), 1 + np.arange(110)]
    for seed in range(100):
        _, out = draw(labels, groups, 0.1, seed)
        assert 5 <= (labels[out] == 0).sum() <= 10
    sites = np.repeat([0, 1, 2], [1000, 50, 50])
    for seed in range(100):
        _, out = draw(np.zeros(1100, int), sites, 0.1, seed)  # it was refused where the large site came first
        assert len(out) == 100


def test_few_groups_in_each_class_are_still_held_out():
    labels = np.repeat(np.arange(50), 6)
    groups = np.arange(300) // 2  # three patients of two images in each class
    _, out = draw(labels, groups, 0.1)
    assert abs(len(out) - 30) <= 1


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_a_fraction_outside_the_unit_interval_is_refused(fraction):
    with pytest.raises(HarnessError, match="fraction held out"):
        draw([0, 0, 1, 1], fraction=fraction)


def test_one_group_cannot_be_shared():
    with pytest.raises(HarnessError, match=r"cannot hold out 0\.5 of 1 groups"):
        draw([0, 0, 1, 1], np.zeros(4, int), 0.5)


@pytest.mark.parametrize(
    ("fraction", "count", "words", "share"),
    [
        (0.1, 3, "of 3 groups: .* none of them; try a larger share, about 0.33, or more groups", 0.33),
        (0.9, 4, "of 4 groups: .* all of them; try a smaller share, about 0.75, or more groups", 0.75),
    ],
)
def test_too_few_groups_are_told_which_share_works(fraction, count, words, share):
    groups = np.arange(6 * count) // 6
    labels = np.arange(6 * count) % 2
    with pytest.raises(HarnessError, match=words):
        draw(labels, groups, fraction)
    kept, out = draw(labels, groups, share)
    assert min(len(kept), len(out)) == 6
