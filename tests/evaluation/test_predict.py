import numpy as np
import pytest
import torch
from torch import nn

from harness.errors import HarnessError
from harness.evaluation.predict import gather, own_pixels, predict, to_pixels


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def _images(n=10):
    return np.random.default_rng(0).integers(0, 256, (n, 3, 2, 2), dtype=np.uint8)


def test_pixels_are_divided_by_255_and_floats_are_kept():
    pixels = to_pixels(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert pixels.dtype == torch.float32
    assert pixels.tolist() == [0.0, pytest.approx(0.2), 1.0]
    half = torch.tensor([0.5], dtype=torch.float64)
    assert to_pixels(half) is half
    with pytest.raises(HarnessError, match="int64"):
        to_pixels(torch.tensor([1]))


def test_predict_equals_one_forward_in_eval_mode_for_every_batch_size_and_kind_of_images(network):
    images = _images()
    floats = images.astype(np.float32) / 255
    network.eval()
    with torch.no_grad():
        expected = network(torch.from_numpy(floats)).numpy()
    network.train()
    for given in (images, floats, torch.from_numpy(images), torch.from_numpy(floats)):
        for batch_size in (1, 3, 10, 64):
            logits = predict(network, given, batch_size, "cpu")
            assert logits.dtype == np.float32
            np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_predict_restores_each_module_s_mode_and_changes_no_buffer(network):
    network.train()
    network[2].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    predict(network, _images(), 4, "cpu")
    assert [m.training for m in network] == [True, True, False, True, True]
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_predict_reads_memory_mapped_images_and_leaves_them_alone(network, tmp_path):
    np.save(tmp_path / "images.npy", _images())
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    np.testing.assert_array_equal(predict(network, mapped, 4, "cpu"), predict(network, _images(), 4, "cpu"))


def test_predict_says_what_is_wrong(network):
    with pytest.raises(HarnessError, match="no images"):
        predict(network, _images(0), 4, "cpu")
    with pytest.raises(HarnessError, match="batch_size"):
        predict(network, _images(), 0, "cpu")
    with pytest.raises(HarnessError, match=r"\(4, 3, 2, 2\)"):
        predict(nn.Identity(), _images(), 4, "cpu")


def test_a_batch_that_does_not_fit_is_halved_and_no_image_is_lost_or_doubled():
    import torch

    from harness.evaluation.predict import predict

    sizes = []

    class Small(torch.nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            if len(x) > 5:
                raise torch.OutOfMemoryError("no room for more than five")
            return x.flatten(1)[:, :3]

    images = torch.rand(23, 1, 2, 2)
    assert (predict(Small(), images, 16, "cpu") == images.flatten(1)[:, :3].numpy()).all()
    assert sizes == [16, 8, 4, 4, 4, 4, 4, 3]

    class Never(torch.nn.Module):
        def forward(self, x):
            raise torch.OutOfMemoryError("no room at all")

    with pytest.raises(torch.OutOfMemoryError, match="at all"):
        predict(Never(), images, 16, "cpu")


def test_images_that_do_not_fit_are_halved_before_any_model_sees_them(monkeypatch):
    import torch

    from harness.evaluation import predict as module

    real, sizes = module.gather, []

    def small(images, where, device):
        found = real(images, where, device)
        sizes.append(len(found))
        if len(found) > 5:
            raise torch.OutOfMemoryError("no room for more than five")
        return found

    monkeypatch.setattr(module, "gather", small)
    images = torch.rand(23, 1, 2, 2)
    assert (module.predict(nn.Flatten(), images, 16, "cpu") == images.flatten(1).numpy()).all()
    assert sizes == [16, 8, 4, 4, 4, 4, 4, 3]


def test_pixels_of_its_own_share_no_memory_with_the_images():
    floats, bytes_ = torch.rand(4, 1, 2, 2), torch.full((4, 1, 2, 2), 255, dtype=torch.uint8)
    for images in (floats, floats[1:3], bytes_):
        kept = images.clone()
        own = own_pixels(images)
        assert torch.equal(own, to_pixels(images))
        own.zero_()
        gather(images, slice(0, 2), "cpu").zero_()
        gather(images, np.array([0, 1]), "cpu").zero_()
        gather(images.numpy(), slice(0, 2), "cpu").zero_()
        assert torch.equal(images, kept)
