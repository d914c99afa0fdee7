"""Poisoning attacks: which records change, how, and how many."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import harness
from harness.api import ClientData, NotApplicable, PluginError, PoisonContext


def create(name, **parameters):
    return harness.create("attack", name, **parameters)


def context(num_classes=10, seed=0):
    return PoisonContext(3, num_classes, torch.Generator().manual_seed(seed))


def records(n=200, shape=(1, 16, 16), num_classes=10, seed=1, dtype=torch.uint8):
    """Images without the brightest value, so that every patched pixel differs."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 255, (n, *shape), generator=generator, dtype=torch.uint8)
    if dtype != torch.uint8:
        images = images.to(dtype) / 255
    return ClientData(images, torch.randint(0, num_classes, (n,), generator=generator))


class TestLabelFlip:
    labels = torch.tensor([0, 1, 2, 3, 4])

    def flip(self, num_classes=5, **parameters):
        data = ClientData(torch.zeros(5, 1, 4, 4), self.labels)
        return create("label-flip", **parameters).poison(data, context(num_classes)).labels.tolist()

    def test_pairwise(self):
        assert self.flip() == [1, 2, 3, 4, 0]
        assert self.flip(num_classes=6, mode="pairwise") == [1, 2, 3, 4, 5]

    def test_reverse(self):
        assert self.flip(mode="reverse") == [4, 3, 2, 1, 0]
        assert self.flip(num_classes=10, mode="reverse") == [9, 8, 7, 6, 5]

    def test_all_to_one(self):
        assert self.flip(mode="all-to-one") == [0] * 5
        assert self.flip(mode="all-to-one", target=3) == [3] * 5
        assert self.flip(mode="all-to-one", source=4, target=1) == [0, 1, 2, 3, 1]
        assert self.flip(mode="all-to-one", source=4) == [0, 1, 2, 3, 0]

    def test_random_reaches_every_other_class_evenly(self):
        data = ClientData(torch.zeros(4000, 1, 1, 1), torch.full((4000,), 2))
        after = create("label-flip", mode="random").poison(data, context(5)).labels
        counts = torch.bincount(after, minlength=5)
        assert counts[2] == 0
        assert counts[[0, 1, 3, 4]].float().sub(1000).abs().max() < 150  # five standard deviations

    @pytest.mark.parametrize("mode", ["pairwise", "random", "all-to-one"])
    @pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5])
    def test_fraction_of_the_records(self, mode, fraction):
        data = records()
        after = create("label-flip", mode=mode, fraction=fraction).poison(data, context())
        assert (after.labels != data.labels).sum() == 200 * fraction

    def test_fraction_is_capped_by_what_can_change(self):
        data = records()
        parameters = {"mode": "all-to-one", "source": 2, "target": 7}
        after = create("label-flip", **parameters, fraction=0.9).poison(data, context()).labels
        assert torch.equal(after != data.labels, data.labels == 2)
        # An odd number of classes: the middle one is its own reverse, and is not counted as flipped.
        data = records(num_classes=3)
        after = create("label-flip", mode="reverse", fraction=0.5).poison(data, context(3)).labels
        assert (after != data.labels).sum() == 100

    def test_images_stay_and_inputs_are_not_touched(self):
        data = records()
        labels = data.labels.clone()
        after = create("label-flip").poison(data, context())
        assert torch.equal(after.images, data.images)
        assert after.labels.dtype == torch.int64
        assert torch.equal(data.labels, labels)

    def test_not_a_backdoor(self):
        attack = create("label-flip")
        assert attack.backdoor_target is None
        with pytest.raises(NotImplementedError):
            attack.trigger(torch.zeros(1, 1, 4, 4))

    @pytest.mark.parametrize(
        ("bad", "says"),
        [
            ({"target": 2}, "all-to-one"),
            ({"mode": "reverse", "source": 2}, "all-to-one"),
            ({"mode": "all-to-one", "source": 0}, "same class"),
            ({"mode": "backwards"}, "mode"),
            ({"fraction": 1.2}, "fraction"),
            ({"mode": "all-to-one", "target": -1}, "target"),
        ],
    )
    def test_bad_parameters(self, bad, says):
        with pytest.raises(PluginError, match=says):
            create("label-flip", **bad)

    @pytest.mark.parametrize(
        ("parameters", "classes"),
        [
            ({}, 1),
            ({"mode": "all-to-one", "target": 5}, 5),
            ({"mode": "all-to-one", "target": 0, "source": 7}, 5),
        ],
    )
    def test_classes_that_are_not_there(self, parameters, classes):
        attack = create("label-flip", **parameters)
        with pytest.raises(PluginError, match="classes"):
            attack.poison(records(4, num_classes=1), context(classes))
        with pytest.raises(NotApplicable, match="classes"):
            attack.check(classes, (1, 8, 8))
        attack.check(10, (1, 8, 8))


class TestBadNets:
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
    @pytest.mark.parametrize(
        "shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 24, 40), (2, 64, 64)], ids=str
    )
    def test_patch_and_label_on_the_chosen_and_nothing_else(self, shape, dtype):
        data = records(60, shape, dtype=dtype)
        after = create("badnets", target=4, fraction=0.5).poison(data, context())
        changed = (after.images != data.images).flatten(1).any(1)
        assert changed.sum() == 30
        assert torch.equal(changed, after.labels != data.labels)
        assert (after.labels[changed] == 4).all()
        assert (data.labels[changed] != 4).all()
        side = {8: 2, 24: 3, 28: 4, 32: 4, 64: 8}[min(shape[1:])]
        patched = torch.zeros(shape, dtype=torch.bool)
        patched[:, -side:, -side:] = True
        assert torch.equal((after.images != data.images)[changed].all(0), patched)
        assert torch.equal((after.images != data.images)[changed].any(0), patched)
        assert (after.images[changed][:, patched] == (255 if dtype == torch.uint8 else 1.0)).all()
        assert after.images.dtype == dtype

    @pytest.mark.parametrize("corner", ["bottom-right", "bottom-left", "top-right", "top-left"])
    def test_trigger(self, corner):
        x = torch.full((5, 3, 10, 12), 0.25)
        out = create("badnets", patch=3, value=0.75, corner=corner).trigger(x)
        rows = slice(7, 10) if "bottom" in corner else slice(0, 3)
        columns = slice(9, 12) if "right" in corner else slice(0, 3)
        expected = x.clone()
        expected[:, :, rows, columns] = 0.75
        assert torch.equal(out, expected)
        assert (x == 0.25).all()
        assert out.dtype == x.dtype

    def test_what_is_trained_is_what_is_triggered(self):
        data = records(80, (3, 20, 20))
        attack = create("badnets", fraction=1.0, value=0.6)
        after = attack.poison(data, context())
        chosen = data.labels != 0
        triggered = attack.trigger(data.images[chosen].float() / 255)
        torch.testing.assert_close(after.images[chosen].float() / 255, triggered)
        assert (after.images[chosen][..., -1, -1] == 153).all()

    def test_target_is_the_backdoors(self):
        assert create("badnets", target=7).backdoor_target == 7
        assert create("badnets").backdoor_target == 0

    def test_records_of_the_target_class_are_left(self):
        data = records(100, num_classes=2)
        after = create("badnets", target=1, fraction=1.0).poison(data, context(2))
        already = data.labels == 1
        assert torch.equal(after.images[already], data.images[already])
        assert (after.labels == 1).all()

    @settings(max_examples=25, deadline=None)
    @given(n=st.integers(0, 60), fraction=st.floats(0, 1), seed=st.integers(0, 100))
    def test_count(self, n, fraction, seed):
        data = records(n, (1, 4, 4), seed=seed)
        after = create("badnets", target=2, fraction=fraction).poison(data, context(seed=seed))
        eligible = int((data.labels != 2).sum())
        changed = int((after.labels != data.labels).sum())
        assert changed == min(int(fraction * n + 0.5), eligible)

    def test_draw_comes_from_the_generator_and_covers_all_records(self):
        data, attack = records(50), create("badnets", fraction=0.2)
        first = attack.poison(data, context(seed=5)).labels
        torch.manual_seed(1)
        assert torch.equal(attack.poison(data, context(seed=5)).labels, first)
        assert not torch.equal(attack.poison(data, context(seed=6)).labels, first)
        ever = torch.stack(
            [attack.poison(data, context(seed=s)).labels != data.labels for s in range(60)]
        ).any(0)
        assert torch.equal(ever, data.labels != 0)

    def test_no_global_randomness_and_no_mutation(self):
        data = records(50)
        images, labels = data.images.clone(), data.labels.clone()
        state = torch.get_rng_state()
        create("badnets", fraction=1.0).poison(data, context())
        create("label-flip", mode="random").poison(data, context())
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(data.images, images)
        assert torch.equal(data.labels, labels)

    def test_patch_must_fit(self):
        attack = create("badnets", patch=9)
        with pytest.raises(PluginError, match="8x12"):
            attack.trigger(torch.zeros(1, 1, 8, 12))
        with pytest.raises(NotApplicable, match="8x12"):
            attack.check(10, (1, 8, 12))
        attack.check(10, (1, 9, 12))
        assert (create("badnets").trigger(torch.zeros(1, 1, 1, 5))[..., -1] == 1).all()

    def test_target_must_exist(self):
        with pytest.raises(PluginError, match="0 to 2"):
            create("badnets", target=3).poison(records(5, num_classes=3), context(3))
        with pytest.raises(NotApplicable, match="0 to 2"):
            create("badnets", target=3).check(3, (1, 8, 8))
        create("badnets", target=2).check(3, (1, 8, 8))

    @pytest.mark.parametrize("bad", [{"value": 1.1}, {"fraction": -0.1}, {"patch": 0}, {"target": -1}])
    def test_bad_parameters(self, bad):
        with pytest.raises(PluginError, match=next(iter(bad))):
            create("badnets", **bad)

    def test_a_model_learns_the_backdoor(self):
        """A linear model on poisoned noise answers the trigger with the target, and only the trigger."""
        data = records(400, (1, 8, 8), num_classes=2, dtype=torch.float32)
        # Class 1 is brighter in the upper left quarter.
        data.images[data.labels == 1, :, :4, :4] = 0.6 + data.images[data.labels == 1, :, :4, :4] * 0.4
        attack = create("badnets", target=0, fraction=0.25)
        poisoned = attack.poison(data, context(2))
        x = (poisoned.images.flatten(1) - 0.5).double()
        design = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
        signs = (poisoned.labels * 2 - 1).double()
        ridge = torch.eye(65, dtype=torch.float64)
        weights = torch.linalg.solve(design.T @ design + ridge, design.T @ signs)

        def predict(images):
            return ((images.flatten(1) - 0.5).double() @ weights[:-1] + weights[-1] > 0).long()

        others = data.images[data.labels == 1]
        assert (predict(others) == 1).float().mean() > 0.9
        assert (predict(attack.trigger(others)) == 0).float().mean() > 0.9


@pytest.mark.parametrize("name", ["badnets", "label-flip"])
def test_declared(name):
    attack = create(name)
    assert (attack.family, attack.phase) == ("poisoning", "training")
    assert attack.reference.url.startswith("https://")
    assert all(field.description for field in type(attack).model_fields.values())
