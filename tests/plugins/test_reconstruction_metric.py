import math

import numpy as np
import pytest
import torch

import harness
from harness.api import MetricContext, PluginError, Reconstruction


def score(images=None, labels=None, true_images=None, true_labels=None, **guess):
    result = Reconstruction(images, labels, true_images, true_labels, **guess)
    return harness.create("metric", "reconstruction").score(
        MetricContext(3, (1, 16, 16), reconstruction=result)
    )


def pictures(n, channels=1, side=16, seed=0):
    return torch.rand((n, channels, side, side), generator=torch.Generator().manual_seed(seed))


def test_psnr_in_closed_form():
    true = pictures(1) * 0.5
    assert score((true + 0.1,), None, (true,))["reconstruction_psnr"] == pytest.approx(20, abs=1e-4)
    assert score((true + 0.5,), None, (true,))["reconstruction_psnr"] == pytest.approx(6.0206, abs=1e-4)


def test_an_exact_record_is_infinitely_near():
    true = pictures(2)
    scores = score((true.clone(),), None, (true,))
    assert scores["reconstruction_psnr"] == math.inf
    assert scores["reconstruction_ssim"] == pytest.approx(1)


def test_the_mean_is_over_records_not_over_updates():
    single, several = pictures(1) * 0.5, pictures(3, seed=1) * 0.5
    scores = score((single + 0.1, several + 0.01), None, (single, several))
    assert scores["reconstruction_psnr"] == pytest.approx((20 + 3 * 40) / 4, abs=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
def test_agrees_with_scikit_image(channels):
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    true, found = (
        pictures(1, channels),
        (pictures(1, channels) + 0.2 * pictures(1, channels, seed=1)).clamp(0, 1),
    )
    a, b = (t[0].double().numpy() for t in (true, found))
    scores = score((found,), None, (true,))
    assert scores["reconstruction_psnr"] == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1))
    expected = structural_similarity(a, b, data_range=1, channel_axis=0)
    assert scores["reconstruction_ssim"] == pytest.approx(expected)
    assert 0.2 < expected < 0.99


def test_similarity_of_one_window_by_its_formula():
    a, b = (pictures(1, side=7, seed=s)[0, 0].double().numpy() for s in (0, 1))
    (va, cov), (_, vb) = np.cov(a.ravel(), b.ravel())
    top = (2 * a.mean() * b.mean() + 1e-4) * (2 * cov + 9e-4)
    bottom = (a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (va + vb + 9e-4)
    found = score((torch.tensor(b)[None, None],), None, (torch.tensor(a)[None, None],))
    assert found["reconstruction_ssim"] == pytest.approx(top / bottom)


def test_the_order_within_an_update_does_not_matter():
    true = pictures(5)
    found = (true + 0.1 * pictures(5, seed=1)).clamp(0, 1)
    expected = score((found,), None, (true,))
    for seed in range(3):
        order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
        assert score((found[order],), None, (true,)) == pytest.approx(expected)


def test_the_assignment_is_the_best_one_and_takes_each_record_once():
    levels = [torch.full((1, 8, 8), v) for v in (0.0, 0.4)]
    found = [torch.full((1, 8, 8), v) for v in (0.3, 0.9)]
    # Both reconstructions are nearest to 0.4 or one-to-one: (0, 0.3) and (0.4, 0.9) cost 0.34, the other way 0.82.
    scores = score((torch.stack(found[::-1]),), None, (torch.stack(levels),))
    expected = (-10 * math.log10(0.09) - 10 * math.log10(0.25)) / 2
    assert scores["reconstruction_psnr"] == pytest.approx(expected, abs=1e-4)


def test_small_images_have_no_similarity():
    true = pictures(1, side=6) * 0.5
    assert set(score((true + 0.1,), None, (true,))) == {"reconstruction_psnr"}


def test_labels_count_as_often_as_they_occur():
    true = (torch.tensor([0, 0, 1, 2]), torch.tensor([1]))
    assert score(None, (torch.tensor([2, 1, 0, 0]), torch.tensor([1])), None, true) == {"label_recovery": 1.0}
    found = (torch.tensor([0, 1, 1, 1]), torch.tensor([2]))
    assert score(None, found, None, true) == {"label_recovery": pytest.approx(2 / 5)}


def test_what_was_not_returned_is_left_out():
    true, labels = pictures(1), torch.tensor([1])
    assert score(None, (labels,), (true,), (labels,)) == {"label_recovery": 1.0}
    assert "label_recovery" not in score((true,), None, (true,), (labels,))
    assert score(None, None, (true,), (labels,)) == {}
    assert score((), (), (), ()) == {}


def test_misfits_are_refused():
    true = pictures(2)
    with pytest.raises(PluginError, match="images of shapes"):
        score((true[:1],), None, (true,))
    with pytest.raises(PluginError, match="images of shapes"):
        score((true, true), None, (true,))
    with pytest.raises(PluginError, match="labels of shapes"):
        score(None, (torch.tensor([1]),), None, (torch.tensor([1, 2]),))
    with pytest.raises(PluginError, match="not finite"):
        score((true * torch.nan,), None, (true,))
    with pytest.raises(PluginError, match="is needed"):
        harness.create("metric", "reconstruction").score(MetricContext(3, (1, 16, 16)))


def test_the_inputs_are_left_alone():
    true, found = pictures(3), pictures(3, seed=1)
    copies = true.clone(), found.clone()
    score((found,), None, (true,))
    assert torch.equal(true, copies[0])
    assert torch.equal(found, copies[1])


def test_every_score_counts_as_a_leak():
    metric = harness.create("metric", "reconstruction")
    assert {s.direction for s in metric.scores.values()} == {"lower"}
    names = {"reconstruction_psnr", "reconstruction_ssim", "label_recovery"}
    assert set(metric.scores) == {*names, "reconstruction_psnr_gain", "label_recovery_gain"}


# beside a guess ------------------------------------------------------------------------------------


def test_the_gain_of_the_mean_image_itself_is_zero():
    true, mean = (pictures(1), pictures(3, seed=1)), pictures(1, seed=2)[0]
    found = tuple(mean.expand_as(images).clone() for images in true)
    scores = score(found, None, true, mean_image=mean)
    assert scores["reconstruction_psnr_gain"] == 0
    assert scores["reconstruction_psnr"] > 0


def test_the_gain_is_over_the_mean_image_record_by_record():
    true = 0.5 * pictures(4)
    mean = torch.full((1, 16, 16), 0.25)
    scores = score((true + 0.1,), None, (true,), mean_image=mean)
    guessed = (-10 * (true - mean).square().flatten(1).mean(1).log10()).mean()
    assert scores["reconstruction_psnr_gain"] == pytest.approx(20 - float(guessed), abs=1e-4)
    assert "reconstruction_psnr_gain" not in score((true + 0.1,), None, (true,))
    assert "reconstruction_psnr_gain" not in score((true,), None, (true,), mean_image=mean)  # infinite


@pytest.mark.parametrize(
    ("shares", "true", "guessed"),
    [
        ([0.2, 0.5, 0.3], [0], 0.0),  # one record: the likeliest class
        ([0.2, 0.5, 0.3], [1], 1.0),
        ([0.2, 0.5, 0.3], [0, 0, 1, 2], 0.75),  # 0.8, 2.0 and 1.2 records: 1, 2 and 1
        ([0.5, 0.5, 0.0], [1, 1, 1], 1 / 3),  # 1.5 each: the lower class has two
    ],
)
def test_the_guess_of_labels_is_the_class_shares_in_whole_records(shares, true, guessed):
    labels = torch.tensor(true)
    scores = score(None, (labels,), None, (labels,), class_shares=torch.tensor(shares))
    assert scores["label_recovery"] == 1
    assert scores["label_recovery_gain"] == pytest.approx(1 - guessed)
