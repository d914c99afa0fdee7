"""Datasets: exact pixels, labels and splits from tiny files, and real files where $HARNESS_DATA has them."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import harness
from harness import HarnessError, PluginError


def make(name, **parameters):
    return harness.create("dataset", name, **parameters)


def parts(splits):
    return [splits.train, splits.val, splits.test]


def pooled(splits):
    """Every record as (pixels, label), sorted: what stays the same however the data is split."""
    return sorted(
        (image.tobytes(), int(label))
        for part in parts(splits)
        for image, label in zip(part.images, part.labels, strict=True)
    )


def same(a, b):
    return a.fingerprint() == b.fingerprint()


def real(relative):
    """A file below $HARNESS_DATA, else the test is skipped."""
    if "HARNESS_DATA" not in os.environ:
        pytest.skip("HARNESS_DATA is not set")
    file = Path(os.environ["HARNESS_DATA"]) / relative
    if not file.exists():
        pytest.skip(f"{file} is missing")
    return file


# digits -----------------------------------------------------------------------------------------


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    peer = load_digits()
    exact, bytes_ = make("digits", dtype="float32").load(), make("digits").load()
    expected = sorted(
        ((image / 16).astype(np.float32).tobytes(), int(label))
        for image, label in zip(peer.images, peer.target, strict=True)
    )
    assert pooled(exact) == expected
    assert bytes_.train.images.dtype == np.uint8
    assert bytes_.input_shape == (1, 8, 8)
    assert bytes_.class_names == tuple("0123456789")
    # v in 0..16 becomes round(255 v / 16): 8 is 127.5, rounded to the even 128
    levels = np.unique(np.concatenate([p.images.ravel() for p in parts(bytes_)]))
    assert list(levels) == [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]
    np.testing.assert_array_equal(bytes_.train.labels, exact.train.labels)
    assert np.abs(bytes_.train.images / 255 - exact.train.images).max() <= 0.5 / 255 + 1e-6


def test_digits_splits_are_stratified_and_seeded():
    splits = make("digits", val_fraction=0.2, test_fraction=0.3).load()
    total = sum(np.bincount(p.labels, minlength=10) for p in parts(splits))
    for part, fraction in ((splits.val, 0.2), (splits.test, 0.3)):
        assert np.abs(np.bincount(part.labels, minlength=10) - fraction * total).max() <= 1
    assert same(splits, make("digits", val_fraction=0.2, test_fraction=0.3).load())
    assert not same(splits, make("digits", val_fraction=0.2, test_fraction=0.3, split_seed=1).load())
    with pytest.raises(HarnessError, match="below 1"):
        make("digits", val_fraction=0.5, test_fraction=0.5).load()


def test_digits_and_npz_need_no_torch(tmp_path):
    import subprocess

    np.savez(tmp_path / "a.npz", **archive())
    code = (
        "import sys, harness; harness.create('dataset', 'digits').load();"
        "harness.create('dataset', 'npz', path=sys.argv[1]).load();"
        "print('torch' in sys.modules, 'sklearn' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.npz")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


# npz --------------------------------------------------------------------------------------------


def archive(channels=None, **changes):
    """MedMNIST's layout: 40 training records of 20 patients, 6 val, 9 test."""
    rng = np.random.default_rng(1)
    arrays = {}
    for split, n in (("train", 40), ("val", 6), ("test", 9)):
        shape = (n, 4, 5) if channels is None else (n, 4, 5, channels)
        arrays[f"{split}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(n) % 3)[:, None]
    arrays.update(changes)
    return {key: value for key, value in arrays.items() if value is not None}


def npz(tmp_path, arrays, **parameters):
    np.savez(tmp_path / "data.npz", **arrays)
    return make("npz", path="data.npz", **parameters)


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_npz_keeps_pixels_labels_and_order(tmp_path, channels):
    arrays = archive(channels)
    splits = npz(tmp_path, arrays).load(tmp_path)
    for split, part in zip(("train", "val", "test"), parts(splits), strict=True):
        images = arrays[f"{split}_images"]
        expected = images[:, None] if channels is None else np.moveaxis(images, -1, 1)
        np.testing.assert_array_equal(part.images, expected)
        np.testing.assert_array_equal(part.labels, arrays[f"{split}_labels"][:, 0])
        assert part.labels.dtype == np.int64
        assert part.groups is None
    assert splits.class_names == ("0", "1", "2")


def test_npz_floats_become_float32(tmp_path):
    images = np.random.default_rng(0).random((40, 4, 5))
    arrays = archive(train_images=images, val_images=images[:6], test_images=images[:9])
    assert npz(tmp_path, arrays).load(tmp_path).train.images.dtype == np.float32
    with pytest.raises(HarnessError, match=r"\[0, 1\]"):
        npz(tmp_path, arrays | {"test_images": 2 * images[:9] + 1}).load(tmp_path)


def test_npz_holds_out_val_by_group(tmp_path):
    groups = np.repeat(np.arange(20), 2)
    arrays = archive(val_images=None, val_labels=None, train_groups=groups, test_groups=np.arange(100, 109))
    splits = npz(tmp_path, arrays, val_fraction=0.25).load(tmp_path)
    assert len(splits.train) + len(splits.val) == 40
    assert 6 <= len(splits.val) <= 14
    assert not set(splits.train.groups) & set(splits.val.groups)
    assert sorted(np.concatenate([splits.train.groups, splits.val.groups])) == sorted(groups)
    assert same(splits, npz(tmp_path, arrays, val_fraction=0.25).load(tmp_path))
    assert not same(splits, npz(tmp_path, arrays, val_fraction=0.25, split_seed=1).load(tmp_path))


def test_npz_groups_may_be_text(tmp_path):
    names = {
        s: np.array([f"{s}-{i // 2}" for i in range(n)]) for s, n in (("train", 40), ("val", 6), ("test", 9))
    }
    splits = npz(tmp_path, archive(**{f"{s}_groups": v for s, v in names.items()})).load(tmp_path)
    for split, part in zip(names, parts(splits), strict=True):
        np.testing.assert_array_equal(part.groups[::2][: len(part) // 2], part.groups[1::2])
        assert len(np.unique(part.groups)) == len(np.unique(names[split]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_images": None}, "lacks test_images; it has"),
        ({"val_labels": None}, "lacks val_labels"),
        ({"train_images": np.zeros((40, 4, 5), dtype=np.uint16)}, "uint16"),
        ({"train_images": np.zeros((40, 3, 4, 5), dtype=np.uint8)}, "at most 4"),
        ({"train_labels": np.zeros((40, 14), dtype=np.int64)}, "multi-label"),
        ({"train_labels": np.zeros(40)}, "float64"),
        ({"train_labels": np.zeros(39, dtype=np.int64)}, r"\(40, 1, 4, 5\) and \(39,\)"),
        ({"train_labels": np.full(40, -1)}, "from -1"),
        ({"train_groups": np.arange(40)}, "val_groups, test_groups missing"),
        (
            {
                "train_groups": np.arange(40),
                "val_groups": np.arange(39, 45),
                "test_groups": np.arange(50, 59),
            },
            "share 1 groups",
        ),
    ],
)
def test_npz_says_what_is_wrong(tmp_path, changes, message):
    with pytest.raises(HarnessError, match=message):
        npz(tmp_path, archive(**changes)).load(tmp_path)


def test_npz_unreadable_missing_and_class_names(tmp_path):
    with pytest.raises(HarnessError, match="is not there"):
        make("npz", path="nowhere.npz").load(tmp_path)
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(HarnessError, match="not a readable"):
        make("npz", path="text.npz").load(tmp_path)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(HarnessError, match="not a readable"):
        make("npz", path="array.npy").load(tmp_path)
    assert npz(tmp_path, archive(), class_names=["a", "b", "c", "d"]).load(tmp_path).class_names == (
        "a",
        "b",
        "c",
        "d",
    )
    with pytest.raises(HarnessError, match="2 class names, but labels up to 2"):
        npz(tmp_path, archive(), class_names=["a", "b"]).load(tmp_path)
    with pytest.raises(HarnessError, match="repeat"):
        npz(tmp_path, archive(), class_names=["a", "b", "b"]).load(tmp_path)


def test_npz_fingerprint_is_of_content_and_parameters(tmp_path):
    dataset = npz(tmp_path, archive())
    first = dataset.fingerprint(tmp_path)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "data.npz").rename(moved / "other.npz")
    assert make("npz", path="elsewhere/other.npz").fingerprint(tmp_path) == first
    assert make("npz", path="elsewhere/other.npz", split_seed=1).fingerprint(tmp_path) != first
    assert npz(tmp_path, archive(test_labels=np.ones(9, dtype=np.int64))).fingerprint(tmp_path) != first


# imagefolder ------------------------------------------------------------------------------------


def write_images(folder, counts, size=(6, 5), mode="RGB"):
    """{class: number}; two files a patient. Returns {relative path: pixels (h, w, 3)}."""
    rng = np.random.default_rng(len(counts))
    written = {}
    for name, number in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(number):
            path = f"{name}/{name}{i // 2}_{i}.png"
            values = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(values).convert(mode).save(folder / path)
            written[path] = values
    return written


def test_imagefolder_with_splits(tmp_path):
    written = {s: write_images(tmp_path / s, {"b": 3, "a": 4}) for s in ("train", "val", "test")}
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "a" / ".hidden.png").write_text("not an image")
    splits = make("imagefolder", path=str(tmp_path)).load()
    assert splits.class_names == ("a", "b")
    for split, part in zip(written, parts(splits), strict=True):
        paths = sorted(written[split])
        np.testing.assert_array_equal(part.images, [written[split][p].transpose(2, 0, 1) for p in paths])
        np.testing.assert_array_equal(part.labels, ["ab".index(p[0]) for p in paths])
    grey = make("imagefolder", path=str(tmp_path), channels=1).load()
    luma = written["train"]["a/a0_0.png"] @ [0.299, 0.587, 0.114]
    assert grey.input_shape == (1, 5, 6)
    assert np.abs(grey.train.images[0, 0] - luma).max() <= 1


def test_imagefolder_single_tree_is_split_by_group(tmp_path):
    write_images(tmp_path, {"cat": 40, "dog": 20})
    dataset = make("imagefolder", path=str(tmp_path), groups=r"/(\w+)_", val_fraction=0.2, test_fraction=0.3)
    splits = dataset.load()
    assert [np.bincount(p.labels).tolist() for p in parts(splits)] == [[20, 10], [8, 4], [12, 6]]
    assert len(np.unique(np.concatenate([p.groups for p in parts(splits)]))) == 30
    assert not set(splits.train.groups) & (set(splits.val.groups) | set(splits.test.groups))
    assert same(splits, dataset.load())
    with pytest.raises(HarnessError, match="does not match"):
        make("imagefolder", path=str(tmp_path), groups="cat").load()
    with pytest.raises(HarnessError, match="regular expression"):
        make("imagefolder", path=str(tmp_path), groups="(").load()


def test_imagefolder_sizes(tmp_path):
    write_images(tmp_path / "train", {"a": 20, "b": 20})
    write_images(tmp_path / "test", {"a": 3, "b": 2}, size=(8, 8))
    with pytest.raises(HarnessError, match="image shape"):
        make("imagefolder", path=str(tmp_path)).load()
    splits = make("imagefolder", path=str(tmp_path), size=4, resample="lanczos").load()
    assert splits.input_shape == (3, 4, 4)
    with Image.open(tmp_path / "test/a/a0_0.png") as image:
        expected = np.asarray(image.resize((4, 4), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    np.testing.assert_array_equal(splits.test.images[0], expected)
    write_images(tmp_path / "val", {"a": 1}, size=(7, 7))
    Image.new("RGB", (5, 7)).save(tmp_path / "val/a/b.png")
    with pytest.raises(HarnessError, match=r"7x5 but .* is 7x7; set size"):
        make("imagefolder", path=str(tmp_path)).load()


def test_imagefolder_says_what_is_wrong(tmp_path):
    with pytest.raises(HarnessError, match="no class folders"):
        make("imagefolder", path=str(tmp_path)).load()
    write_images(tmp_path / "train", {"a": 4})
    (tmp_path / "test").mkdir()
    with pytest.raises(HarnessError, match="no images"):
        make("imagefolder", path=str(tmp_path)).load()
    write_images(tmp_path / "test", {"z": 1})
    with pytest.raises(HarnessError, match="classes that train lacks: z"):
        make("imagefolder", path=str(tmp_path)).load()
    bad = tmp_path / "train/a/a9.png"
    bad.write_text("no image")
    with pytest.raises(HarnessError, match=r"a9.png is not a readable image"):
        make("imagefolder", path=str(tmp_path)).load()
    Image.fromarray(np.full((5, 6), 40_000, dtype=np.uint16)).save(bad)
    with pytest.raises(HarnessError, match="more than 8 bits"):
        make("imagefolder", path=str(tmp_path)).load()
    with pytest.raises(HarnessError, match="is not a folder"):
        make("imagefolder", path=str(bad)).load()


def test_imagefolder_fingerprint(tmp_path):
    write_images(tmp_path, {"a": 2, "b": 2})
    dataset = make("imagefolder", path=str(tmp_path))
    first = dataset.fingerprint()
    assert dataset.fingerprint() == first
    (tmp_path / "notes.txt").write_text("not read")
    assert dataset.fingerprint() == first
    assert make("imagefolder", path=str(tmp_path), size=4).fingerprint() != first
    (tmp_path / "a/a0_0.png").rename(tmp_path / "b/a0_0.png")
    assert dataset.fingerprint() != first


# parquet ----------------------------------------------------------------------------------------


def write_parquet(file, n, seed=0, names=("cat", "dog"), metadata=True, **columns):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 5, 6, 3), dtype=np.uint8)
    records = []
    for i, image in enumerate(images):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG")
        records.append({"bytes": buffer.getvalue(), "path": f"p{seed}-{i // 2}_{i}.png"})
    table = pa.table({"img": records, "label": np.arange(n) % len(names), **columns})
    if metadata:
        features = {"img": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)
    return images.transpose(0, 3, 1, 2)


def test_parquet_folder_with_shards(tmp_path):
    train = [write_parquet(tmp_path / f"data/train-0000{i}-of-00002.parquet", 8, seed=i) for i in (0, 1)]
    val = write_parquet(tmp_path / "data/validation-00000-of-00001.parquet", 4, seed=2)
    test = write_parquet(tmp_path / "data/test-00000-of-00001.parquet", 6, seed=3)
    splits = make("parquet", path=str(tmp_path)).load()
    for part, images in zip(parts(splits), (np.concatenate(train), val, test), strict=True):
        np.testing.assert_array_equal(part.images, images)
        np.testing.assert_array_equal(part.labels, np.arange(len(images)) % 2)
    assert splits.class_names == ("cat", "dog")
    assert make("parquet", path=str(tmp_path), size=3, channels=1).load().input_shape == (1, 3, 3)


def test_parquet_single_file_is_split_by_group(tmp_path):
    images = write_parquet(tmp_path / "all.parquet", 60)
    dataset = make(
        "parquet", path=str(tmp_path / "all.parquet"), groups=r"^(p.*)_", val_fraction=0.2, test_fraction=0.2
    )
    splits = dataset.load()
    assert [len(p) for p in parts(splits)] == [36, 12, 12]
    assert not set(splits.train.groups) & (set(splits.val.groups) | set(splits.test.groups))
    assert pooled(splits) == sorted((image.tobytes(), i % 2) for i, image in enumerate(images))
    assert same(splits, dataset.load())


def test_parquet_without_metadata(tmp_path):
    write_parquet(tmp_path / "train.parquet", 40, metadata=False, other=np.arange(40))
    path = str(tmp_path)
    assert make("parquet", path=path).load().class_names == ("0", "1")
    assert make("parquet", path=path, class_names=["a", "b"]).load().class_names == ("a", "b")
    with pytest.raises(HarnessError, match="no column 'y'; it has img, label, other"):
        make("parquet", path=path, label_column="y").load()
    with pytest.raises(HarnessError, match="no image bytes"):
        make("parquet", path=path, image_column="other").load()


def test_parquet_says_what_is_wrong(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    with pytest.raises(HarnessError, match=r"no train\*.parquet"):
        make("parquet", path=str(tmp_path)).load()
    file = tmp_path / "train.parquet"
    file.write_text("not parquet")
    with pytest.raises(HarnessError, match="cannot read"):
        make("parquet", path=str(tmp_path)).load()
    pq.write_table(pa.table({"img": [{"bytes": None, "path": "a.png"}], "label": [0]}), file)
    with pytest.raises(HarnessError, match="row 0: no image bytes"):
        make("parquet", path=str(tmp_path)).load()
    pq.write_table(pa.table({"image": [b"x"], "label": [0]}), file)
    with pytest.raises(HarnessError, match=r"0 struct.* columns; set image_column"):
        make("parquet", path=str(tmp_path)).load()
    pq.write_table(pa.table({"img": [{"bytes": b"x"}], "y": [0]}), file)
    with pytest.raises(HarnessError, match="set label_column to one of img, y"):
        make("parquet", path=str(tmp_path)).load()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(HarnessError, match=r"pip install 'psr-harness\[hf\]'"):
        make("parquet", path=str(tmp_path)).load()


# torchvision ------------------------------------------------------------------------------------


def write_idx(folder, compress, n=(60, 20)):
    rng = np.random.default_rng(5)
    folder.mkdir(parents=True)
    written = []
    for prefix, number in zip(("train", "t10k"), n, strict=True):
        arrays = (
            rng.integers(0, 256, (number, 28, 28), dtype=np.uint8),
            (np.arange(number) % 10).astype(np.uint8),
        )
        for array, what in zip(arrays, ("images-idx3", "labels-idx1"), strict=True):
            head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            name, content = f"{prefix}-{what}-ubyte", head + array.tobytes()
            (folder / (name + ".gz" * compress)).write_bytes(gzip.compress(content) if compress else content)
        written.append(arrays)
    return written


@pytest.mark.parametrize(("below", "compress"), [("MNIST/raw", False), ("mnist", True), ("", True)])
def test_torchvision_reads_idx_files(tmp_path, below, compress):
    (images, labels), (test_images, test_labels) = write_idx(tmp_path / "data" / below, compress)
    splits = make("torchvision", dataset="mnist", path="data", val_fraction=0.1).load(tmp_path)
    np.testing.assert_array_equal(splits.test.images[:, 0], test_images)
    np.testing.assert_array_equal(splits.test.labels, test_labels)
    assert [len(p) for p in parts(splits)] == [50, 10, 20]
    train = [(i.tobytes(), int(y)) for i, y in zip(images, labels, strict=True)]
    test = [(i.tobytes(), int(y)) for i, y in zip(test_images, test_labels, strict=True)]
    assert pooled(splits) == sorted(train + test)
    assert splits.class_names == tuple("0123456789")


def test_torchvision_reads_what_torchvision_reads(tmp_path):
    from torchvision import datasets

    write_idx(tmp_path / "FashionMNIST" / "raw", compress=False)
    peer = datasets.FashionMNIST(tmp_path, train=False)
    splits = make("torchvision", dataset="fashion-mnist", path=str(tmp_path)).load()
    np.testing.assert_array_equal(splits.test.images[:, 0], peer.data.numpy())
    np.testing.assert_array_equal(splits.test.labels, peer.targets.numpy())
    assert list(splits.class_names) == peer.classes


def test_torchvision_idx_errors(tmp_path, monkeypatch):
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(HarnessError, match=r"mnist is not there \(tried .*MNIST/raw.*download: true"):
        make("torchvision", dataset="mnist").load(tmp_path)
    with pytest.raises(HarnessError, match="cifar10 is not there"):
        make("torchvision", dataset="cifar10").load(tmp_path)
    with pytest.raises(HarnessError, match="nowhere is not there"):
        make("torchvision", dataset="mnist", path="nowhere").load(tmp_path)
    write_idx(tmp_path / "mnist", compress=False)
    file = tmp_path / "mnist" / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(HarnessError, match="not an IDX file"):
        make("torchvision", dataset="mnist").load(tmp_path)
    file.write_bytes(b"\0\0")
    with pytest.raises(HarnessError, match="not a readable IDX"):
        make("torchvision", dataset="mnist").load(tmp_path)


@pytest.mark.parametrize("present", [True, False])
def test_torchvision_cifar(tmp_path, monkeypatch, present):
    from torchvision import datasets

    calls = []
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)

    def cifar(root, train, download):
        calls.append((Path(root), train, download))
        n = 40 if train else 10
        data = pixels[:n]
        return SimpleNamespace(
            data=data, targets=[i % 10 for i in range(n)], classes=[f"c{i}" for i in range(10)]
        )

    monkeypatch.setattr(datasets, "CIFAR10", cifar)
    if present:
        (tmp_path / "cifar-10-batches-py").mkdir()
    splits = make(
        "torchvision", dataset="cifar10", path=str(tmp_path), download=True, val_fraction=0.25
    ).load()
    assert calls == [(tmp_path, True, not present), (tmp_path, False, not present)]
    np.testing.assert_array_equal(splits.test.images, pixels[:10].transpose(0, 3, 1, 2))
    assert [len(p) for p in parts(splits)] == [30, 10, 10]
    assert splits.class_names[3] == "c3"


# medmnist ---------------------------------------------------------------------------------------


def fake_medmnist(monkeypatch, root):
    """The parts of the package's interface that are used, over one tiny file."""
    info = {
        "pneumoniamnist": {
            "python_class": "P",
            "task": "binary-class",
            "label": {"0": "normal", "1": "pneumonia"},
        },
        "chestmnist": {"python_class": "P", "task": "multi-label, binary-class", "label": {"0": "a"}},
        "organmnist3d": {"python_class": "P", "task": "multi-class", "label": {"0": "a"}},
    }

    def dataset(split, root, size, download):
        file = Path(root) / "pneumoniamnist.npz"
        if not file.exists():
            raise RuntimeError("Dataset not found.\n You can set `download=True`")
        arrays = np.load(file)
        return SimpleNamespace(imgs=arrays[f"{split}_images"], labels=arrays[f"{split}_labels"])

    inner = SimpleNamespace(DEFAULT_ROOT=str(root))
    package = SimpleNamespace(INFO=info, P=dataset, info=inner, dataset=SimpleNamespace())
    for name, module in (
        ("medmnist", package),
        ("medmnist.info", inner),
        ("medmnist.dataset", package.dataset),
    ):
        monkeypatch.setitem(sys.modules, name, module)


def test_medmnist_official_splits(tmp_path, monkeypatch):
    monkeypatch.delenv("HARNESS_DATA", raising=False)
    fake_medmnist(monkeypatch, tmp_path)
    with pytest.raises(HarnessError, match="pneumoniamnist is not there"):
        make("medmnist", flag="pneumoniamnist").load()
    arrays = archive(
        **{f"{s}_labels": (np.arange(n) % 2)[:, None] for s, n in (("train", 40), ("val", 6), ("test", 9))}
    )
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays)
    for dataset in (
        make("medmnist", flag="pneumoniamnist"),
        make("medmnist", flag="pneumoniamnist", path=str(tmp_path)),
    ):
        splits = dataset.load()
        assert splits.class_names == ("normal", "pneumonia")
        np.testing.assert_array_equal(splits.val.images[:, 0], arrays["val_images"])
        np.testing.assert_array_equal(splits.train.labels, arrays["train_labels"][:, 0])


def test_medmnist_refusals(tmp_path, monkeypatch):
    fake_medmnist(monkeypatch, tmp_path)
    with pytest.raises(PluginError, match="multi-label"):
        make("medmnist", flag="chestmnist").load()
    for flag in ("organmnist3d", "nothing"):
        with pytest.raises(PluginError, match="no 2D dataset"):
            make("medmnist", flag=flag).load()
    with pytest.raises(HarnessError, match=r"Dataset not found. You can"):
        make("medmnist", flag="pneumoniamnist", path=str(tmp_path)).load()
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(HarnessError, match=r"pip install 'psr-harness\[medmnist\]'"):
        make("medmnist", flag="pneumoniamnist").load()


# real data --------------------------------------------------------------------------------------


def test_real_pneumonia_npz():
    splits = make(
        "npz", path=str(real("pneumonia-28.npz")), class_names=["normal", "bacterial", "viral"]
    ).load()
    counts = [np.bincount(p.labels).tolist() for p in parts(splits)]
    assert counts == [[1207, 2275, 1213], [134, 255, 132], [234, 242, 148]]
    assert splits.input_shape == (1, 28, 28)
    assert [len(np.unique(p.groups)) for p in parts(splits)][:2] == [2360, 275]


def test_real_pneumonia_parquet_gives_the_npz_pixels():
    file = real("pneumonia-224/test.parquet")
    with np.load(real("pneumonia-28.npz")) as arrays:
        expected = sorted(
            (image.tobytes(), int(label))
            for image, label in zip(arrays["test_images"], arrays["test_labels"][:, 0], strict=True)
        )
    pattern = r"/(person\d+|(?:NORMAL2-)?IM-\d+)"
    splits = make("parquet", path=str(file), size=28, resample="lanczos", channels=1, groups=pattern).load()
    assert splits.class_names == ("normal", "bacterial", "viral")
    assert pooled(splits) == expected


def test_real_cifar10_parquet():
    splits = make("parquet", path=str(real("cifar10/test.parquet"))).load()
    assert splits.input_shape == (3, 32, 32)
    assert splits.class_names[0] == "airplane"
    assert sum(np.bincount(p.labels) for p in parts(splits)).tolist() == [1000] * 10


def test_fewer_training_records_keep_their_classes_and_leave_the_other_splits(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 1000), ("val", 50), ("test", 60)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.repeat([0, 1], [n // 5, n - n // 5])
    np.savez(tmp_path / "x.npz", **arrays)
    whole = harness.create("dataset", "npz", path=str(tmp_path / "x.npz"))
    few = harness.create("dataset", "npz", path=str(tmp_path / "x.npz"), train_limit=200)
    splits, all_of_it = few.load(tmp_path), whole.load(tmp_path)
    assert np.bincount(splits.train.labels).tolist() == [40, 160]
    assert np.array_equal(splits.val.images, all_of_it.val.images)
    assert np.array_equal(splits.test.images, all_of_it.test.images)
    assert few.fingerprint(tmp_path) != whole.fingerprint(tmp_path)
    other = harness.create("dataset", "npz", path=str(tmp_path / "x.npz"), train_limit=200, split_seed=1)
    assert not np.array_equal(other.load(tmp_path).train.images, splits.train.images)
