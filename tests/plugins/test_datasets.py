"""Datasets: exact pixels, labels and splits from tiny files, and real files where $HARNESS_DATA has them."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import struct
import sys
import zlib
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": np.zeros(39, dtype=np.int64)}, "40 images, but 39 labels"),
        ({"train_labels": np.zeros(41, dtype=np.int64)}, "40 images, but 41 labels"),
        ({"train_groups": np.arange(39), "test_groups": np.arange(50, 59)}, "39 groups for 40 labels"),
    ],
)
def test_npz_holds_nothing_out_of_records_that_do_not_match(tmp_path, changes, message):
    """39 labels for 40 images: one label is missing, and each after it is another image's."""
    archived = archive(val_images=None, val_labels=None, **changes)
    with pytest.raises(HarnessError, match=message):
        npz(tmp_path, archived).load(tmp_path)


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


def test_npz_patients_are_the_same_whatever_the_type_of_their_ids(tmp_path):
    train, val, test = np.arange(40) // 4, np.arange(50, 56), np.arange(60.0, 69.0)
    groups = {"train_groups": train, "val_groups": val.astype(np.float32), "test_groups": test}
    splits = npz(tmp_path, archive(**groups)).load(tmp_path)
    for part, expected in zip(parts(splits), (train, val, test), strict=True):
        np.testing.assert_array_equal(part.groups, expected)
        assert part.groups.dtype == np.int64
    with pytest.raises(HarnessError, match=r"train and test share 1 groups \(e.g. 9\)"):
        npz(tmp_path, archive(**groups | {"test_groups": test - 51})).load(tmp_path)
    texts = {key: value.astype(int).astype(str) for key, value in groups.items()}
    with pytest.raises(HarnessError, match="train and test share 1 groups"):
        npz(tmp_path, archive(**texts | {"test_groups": test - 51})).load(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.full(9, np.nan), r"9 are not whole numbers that float64 holds exactly \(e.g. nan\)"),
        (np.full(9, np.inf), "9 are not whole"),
        (np.arange(9) + np.array([0.5] + [0] * 8), r"1 are not whole .*\(e.g. 0.5\)"),
        (np.full(9, 2**25, dtype=np.float32), "9 are not whole numbers that float32"),
        (np.full(9, True), "must be integers or text, not bool"),
    ],
)
def test_npz_groups_that_name_no_patient(tmp_path, wrong, message):
    groups = {"train_groups": np.arange(40.0), "val_groups": np.arange(50.0, 56.0), "test_groups": wrong}
    with pytest.raises(HarnessError, match=rf"data.npz, test groups: .*{message}"):
        npz(tmp_path, archive(**groups)).load(tmp_path)


def test_npz_labels_that_are_no_classes(tmp_path):
    labels = (np.arange(40) % 3).astype(np.int32)
    labels[7] = -1
    arrays = archive(train_labels=labels.view(np.uint32))
    with pytest.raises(HarnessError, match=r"data.npz: the largest label is 4294967295, with 55 records"):
        npz(tmp_path, arrays).load(tmp_path)
    with pytest.raises(HarnessError, match="3 class names, but labels up to 4294967295"):
        npz(tmp_path, arrays, class_names=["a", "b", "c"]).load(tmp_path)
    few = archive(train_labels=np.full(40, 54))
    assert npz(tmp_path, few).load(tmp_path).num_classes == 55
    many = [f"c{i}" for i in range(100)]
    sparse = archive(train_labels=np.full(40, 99))
    assert npz(tmp_path, sparse, class_names=many).load(tmp_path).class_names == tuple(many)
    with pytest.raises(HarnessError, match="number the classes from 0, or give class_names"):
        npz(tmp_path, sparse).load(tmp_path)


def refusals(load, file, message, step=1):
    """How often the file with one wrong byte, every step-th in turn, is refused; any other error passes through."""
    content, refused = file.read_bytes(), 0
    for position in range(0, len(content), step):
        wrong = bytes([content[position] ^ 0xFF])
        file.write_bytes(content[:position] + wrong + content[position + 1 :])
        try:
            load()
        except HarnessError as error:
            refused += bool(re.search(message, str(error)))
    return refused


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_with_one_wrong_byte(tmp_path, save):
    file = tmp_path / "data.npz"
    save(file, **archive())
    dataset = make("npz", path=str(file))
    assert refusals(dataset.load, file, "data.npz is not a readable .npz file: ", step=9) > 100


def test_what_is_no_npz_is_said_in_words(tmp_path):
    file = tmp_path / "data.npz"
    load = make("npz", path=str(file)).load

    def said():
        with pytest.raises(HarnessError) as refused:
            load()
        return str(refused.value).removeprefix(f"dataset npz: {file} is not a readable .npz file: ")

    for content in (b"", b"hello\n", b"PK\x03\x04 cut off"):
        file.write_bytes(content)
        assert said() == "no whole ZIP archive, such as numpy.savez writes"
    np.save(tmp_path / "data.npy", np.zeros(3))
    (tmp_path / "data.npy").rename(file)
    assert said() == "no whole ZIP archive, such as numpy.savez writes"
    np.savez(file, **{**archive(), "train_labels": np.array([{}], dtype=object)}, allow_pickle=True)
    assert said() == "an array holds Python objects; it may hold numbers or text"
    file.unlink()
    file.mkdir()
    assert said() == "Is a directory"


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


def test_imagefolder_classes_without_images_are_in_the_fingerprint(tmp_path):
    """They change the numbers of the other classes."""
    write_images(tmp_path, {"b": 6, "c": 6})
    dataset = make("imagefolder", path=str(tmp_path))
    before = dataset.fingerprint()
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "@eaDir").mkdir()
    (tmp_path / "b" / "@eaDir").mkdir()
    (tmp_path / "b" / "@eaDir" / "thumbnail.png").write_text("of a network drive")
    (tmp_path / "b" / "@eaDir" / "round").symlink_to("..")  # nobody walks there
    assert dataset.fingerprint() == before
    (tmp_path / "a").mkdir()
    assert dataset.load().class_names == ("a", "b", "c")
    assert dataset.fingerprint() != before


@pytest.mark.parametrize("suffix", [".dcm", ".NII", ".heic"])
def test_imagefolder_leaves_no_image_out_because_of_its_type(tmp_path, suffix):
    """Half of a class could be missing, and nothing would say so."""
    write_images(tmp_path, {"a": 6, "b": 6})
    (tmp_path / "a" / f"scan{suffix}").write_bytes(b"")
    with pytest.raises(
        HarnessError, match=rf"scan{suffix}: {suffix} is not read; convert such images to PNG"
    ):
        make("imagefolder", path=str(tmp_path)).load()


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


def test_imagefolder_names_a_patient_in_two_splits_as_the_paths_do(tmp_path):
    write_images(tmp_path / "train", {"a": 22, "b": 4})
    write_images(tmp_path / "test", {"b": 2})
    (tmp_path / "test/b/b0_0.png").rename(tmp_path / "test/b/a7_0.png")
    (tmp_path / "test/b/b0_1.png").rename(tmp_path / "test/b/a70_1.png")
    with pytest.raises(
        HarnessError, match=r"train and test share 1 groups \(e.g. a7\); a patient or site must"
    ):
        make("imagefolder", path=str(tmp_path), groups=r"/(\w+)_").load()


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


def test_imagefolder_reads_every_folder_or_says_which_it_cannot(tmp_path, monkeypatch):
    write_images(tmp_path / "data", {"a": 8, "b": 8})
    (tmp_path / "data" / "b").rename(tmp_path / "elsewhere")
    (tmp_path / "data" / "b").symlink_to(tmp_path / "elsewhere")
    found = make("imagefolder", path=str(tmp_path / "data")).load()
    assert sum(len(split) for split in (found.train, found.val, found.test)) == 16
    write_images(tmp_path, {"archive": 4})
    (tmp_path / "data" / "a" / "more").symlink_to(tmp_path / "archive")
    found = make("imagefolder", path=str(tmp_path / "data")).load()
    assert sum(np.sum(split.labels == 0) for split in parts(found)) == 12
    (tmp_path / "archive" / "again").symlink_to(tmp_path / "archive")
    with pytest.raises(
        HarnessError, match=r"data/a leads to .*/archive twice, once by the link .*/more/again$"
    ):
        make("imagefolder", path=str(tmp_path / "data")).load()
    (tmp_path / "archive" / "again").unlink()
    deep = tmp_path / "data" / "a" / "site"
    deep.mkdir()
    listed = os.scandir

    def scandir(path):
        if os.fspath(path) == str(deep):
            raise PermissionError(13, "Permission denied", str(deep))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for read in ("load", "fingerprint"):
        with pytest.raises(HarnessError, match=r"data/a/site cannot be read: Permission denied$"):
            getattr(make("imagefolder", path=str(tmp_path / "data")), read)()


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


@pytest.mark.parametrize(
    "names",
    [
        ("Training", "Validation", "Testing"),
        ("train", "valid", "test"),
        ("TRAIN", "dev", "Test"),
    ],
)
def test_imagefolder_knows_the_splits_by_their_usual_names(tmp_path, names):
    written = {name: write_images(tmp_path / name, {"b": 3, "a": 4}) for name in names}
    (tmp_path / ".cache").mkdir()
    dataset = make("imagefolder", path=str(tmp_path))
    splits = dataset.load()
    assert splits.class_names == ("a", "b")
    for name, part in zip(names, parts(splits), strict=True):
        paths = sorted(written[name])
        np.testing.assert_array_equal(part.images, [written[name][p].transpose(2, 0, 1) for p in paths])
    first = dataset.fingerprint()
    for name, usual in zip(names, ("train", "val", "test"), strict=True):
        (tmp_path / name).rename(tmp_path / f"{usual} ")
        (tmp_path / f"{usual} ").rename(tmp_path / usual)
    assert dataset.fingerprint() == first


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("cat", "Testing"), "has Testing but no folder called train or training"),
        (("valid", "test"), "has valid, test but no folder called train"),
        (("training_set", "test_set"), "has test_set, training_set but no folder called train"),
        (("train", "Training", "test"), "has Training and train, which mean the same split; keep one train"),
        (("train", "val", "validation"), "has val and validation, which mean the same split; keep one val"),
        (("train", "tset"), r"has tset beside train; rename .*did you mean 'test'"),
        (("train", "bus", "car"), "has bus, car beside train; .*put them below one called train"),
    ],
)
def test_imagefolder_does_not_guess_what_a_folder_is(tmp_path, names, message):
    for name in names:
        write_images(tmp_path / name, {"a": 3, "b": 3})
    for use in (
        make("imagefolder", path=str(tmp_path)).load,
        make("imagefolder", path=str(tmp_path)).fingerprint,
    ):
        with pytest.raises(HarnessError, match=rf"{re.escape(str(tmp_path))} {message}"):
            use()


def test_imagefolder_classes_may_have_the_names_of_splits_below_train(tmp_path):
    write_images(tmp_path / "train", {"train": 20, "bus": 20, "test": 20})
    assert make("imagefolder", path=str(tmp_path)).load().class_names == ("bus", "test", "train")
    write_images(tmp_path / "tree", {"trainer": 20, "testimony": 20, "valid-1": 20})
    names = make("imagefolder", path=str(tmp_path / "tree")).load().class_names
    assert names == ("testimony", "trainer", "valid-1")


def deep_png(values, kind):
    """A PNG of 16 bits a channel. kind: 2 for RGB, 4 for grey with alpha, 6 for RGB with alpha."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))),
        (b"IEND", b""),
    ]
    body = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def deep_tiff(values, planar=False):
    """A TIFF of three channels of 16 bits, little-endian, not compressed; planar: one strip a channel."""
    height, width, channels = values.shape
    size, start = height * width * 2, 256
    strips = 3 if planar else 1
    entries = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, channels, 200),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, strips, 210 if planar else start),
        (277, 3, 1, channels),
        (278, 3, 1, height),
        (279, 4, strips, 230 if planar else 3 * size),
        (284, 3, 1, 2 if planar else 1),
    ]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(entries))
    head += b"".join(struct.pack("<HHII", *entry) for entry in entries) + struct.pack("<I", 0)
    head = head.ljust(200, b"\0") + struct.pack("<3H", 16, 16, 16)
    head = head.ljust(210, b"\0") + struct.pack("<3I", start, start + size, start + 2 * size)
    head = head.ljust(230, b"\0") + struct.pack("<3I", size, size, size)
    order = values.transpose(2, 0, 1) if planar else values
    return head.ljust(start, b"\0") + order.astype("<u2").tobytes()


DEEP_VALUES = np.random.default_rng(2).integers(0, 65536, (5, 6, 4))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rgb.png", deep_png(DEEP_VALUES[..., :3], 2)),
        ("grey-alpha.png", deep_png(DEEP_VALUES[..., :2], 4)),
        ("rgb-alpha.png", deep_png(DEEP_VALUES, 6)),
        ("rgb.tif", deep_tiff(DEEP_VALUES[..., :3])),
        ("planes.tif", deep_tiff(DEEP_VALUES[..., :3], planar=True)),
        ("rgb.ppm", b"P6 6 5 65535\n" + DEEP_VALUES[..., :3].astype(">u2").tobytes()),
        ("plain.ppm", b"P3 6 5 1000\n" + b" ".join(b"%d" % (v % 1001) for v in DEEP_VALUES[..., :3].flat)),
    ],
)
def test_imagefolder_refuses_what_would_be_cut_to_8_bits(tmp_path, name, content):
    write_images(tmp_path, {"a": 20, "b": 20})
    (tmp_path / "a" / name).write_bytes(content)
    with Image.open(tmp_path / "a" / name) as image:
        assert image.convert("RGB").size == (6, 5)  # PIL reads it
    with pytest.raises(
        HarnessError, match=rf"a/{name}: RGBA? pixels have more than 8 bits a channel; convert"
    ):
        make("imagefolder", path=str(tmp_path)).load()


def test_imagefolder_reads_every_format_of_8_bits(tmp_path):
    write_images(tmp_path, {"a": 20, "b": 20})
    values = np.random.default_rng(3).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(values)).transpose(2, 0, 1)
    folder = tmp_path / "a"
    for suffix, options in (
        ("bmp", {}),
        ("tif", {}),
        ("tiff", {"compression": "tiff_lzw"}),
        ("ppm", {}),
        ("webp", {"lossless": True}),
    ):
        Image.fromarray(values).save(folder / f"x.{suffix}", **options)
    (folder / "y.ppm").write_bytes(b"P3 6 5 255\n" + b" ".join(b"%d" % v for v in values.flat))
    header = struct.pack("<2sIHHIIiiHHIIiiII3I", b"BM", 126, 0, 0, 66, 40, 6, 5, 1, 16, 3, 60, 0, 0, 0, 0,
                         0xF800, 0x7E0, 0x1F)  # fmt: skip
    (folder / "565.bmp").write_bytes(header + bytes(60))  # 16 bits a pixel, not a channel
    (folder / "1.ppm").write_bytes(b"P1 6 5\n" + b"1 " * 30)
    splits = make("imagefolder", path=str(tmp_path)).load()
    pixels = [image for image, _ in pooled(splits)]
    assert pixels.count(expected.tobytes()) == 6
    assert pixels.count(bytes(90)) == 2


@pytest.mark.filterwarnings("ignore:::PIL")  # of damaged files
@pytest.mark.parametrize("suffix", ["bmp", "tif", "png"])
def test_imagefolder_with_one_wrong_byte(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # else some need much memory
    write_images(tmp_path, {"a": 4, "b": 5})
    file = tmp_path / "a" / f"x.{suffix}"
    Image.new("RGB", (6, 5)).save(file)
    dataset = make("imagefolder", path=str(tmp_path), val_fraction=0.3, test_fraction=0.3)
    assert refusals(dataset.load, file, rf"a/x.{suffix} is not a readable image: ") > 10


# What a camera stores where row 0 and column 0 of its pixels are which sides of the picture (EXIF 2.3, 4.6.4 A).
STORED = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: upright.swapaxes(0, 1),
    6: np.rot90,
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_imagefolder_turns_images_as_their_exif_says(tmp_path, suffix, orientation):
    upright = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    options = {"lossless": True} if suffix == "webp" else {}
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            (folder := tmp_path / split / name).mkdir(parents=True)
            stored.save(folder / f"0.{suffix}", exif=exif, **options)
    splits = make("imagefolder", path=str(tmp_path)).load()
    for part in parts(splits):
        for image in part.images:
            np.testing.assert_array_equal(image, upright.transpose(2, 0, 1))


def test_imagefolder_keeps_images_whose_exif_is_damaged(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    for split in ("train", "val", "test"):
        for name, exif in (("a", b"Exif\0\0no header"), ("b", b"Exif\0\0II*\0")):
            (folder := tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(pixels).save(folder / "0.png", exif=exif)
    for image in make("imagefolder", path=str(tmp_path)).load().train.images:
        np.testing.assert_array_equal(image, pixels.transpose(2, 0, 1))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_imagefolder_takes_names_of_another_encoding(tmp_path):
    root = os.fsencode(tmp_path)
    for name in (b"a", b"b"):
        os.mkdir(os.path.join(root, name))
        for i in range(10):
            with open(os.path.join(root, name, b"M\xfcller%d.png" % i), "wb") as file:  # Latin-1
                Image.new("L", (3, 3), i).save(file, "png")
    made = make("imagefolder", path=str(tmp_path), channels=1)
    assert len(made.load().train) == 14
    before = made.fingerprint()
    os.rename(os.path.join(root, b"a", b"M\xfcller0.png"), os.path.join(root, b"a", b"M\xe4ller0.png"))
    assert made.fingerprint() != before


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
    table = pa.table({"img": records, "label": np.arange(n) % len(names)} | columns)
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


@pytest.mark.parametrize("kind", ["integer", "text", "category", "float"])
def test_parquet_takes_patients_from_a_column(tmp_path, kind):
    pa = pytest.importorskip("pyarrow")
    patients = np.arange(60) // 3
    values = {
        "integer": patients,
        "text": [f"p{i:02}" for i in patients],
        "category": pa.array([f"p{i:02}" for i in patients]).dictionary_encode(),
        "float": patients.astype(float),
    }
    images = write_parquet(tmp_path / "all.parquet", 60, patient=values[kind])
    splits = make("parquet", path=str(tmp_path / "all.parquet"), group_column="patient").load()
    who = {image.tobytes(): patient for image, patient in zip(images, patients, strict=True)}
    seen = [set(part.groups) for part in parts(splits)]
    assert all(seen)
    assert sum(map(len, seen)) == 20
    for part in parts(splits):
        assert [who[image.tobytes()] for image in part.images] == list(part.groups)


def test_parquet_of_shards_whose_patients_overlap_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    write_parquet(tmp_path / "train-0.parquet", 6, seed=0, who=list("aabbcc"))
    write_parquet(tmp_path / "train-1.parquet", 6, seed=1, who=list("ddeeff"))
    write_parquet(tmp_path / "test.parquet", 4, seed=2, who=list("ghgh"))
    dataset = make("parquet", path=str(tmp_path), group_column="who")
    assert list(dataset.load().test.groups) == [6, 7, 6, 7]
    write_parquet(tmp_path / "test.parquet", 4, seed=2, who=list("ghge"))
    with pytest.raises(HarnessError, match=r"train and test share 1 groups \(e.g. e\)"):
        dataset.load()


@pytest.mark.parametrize(
    ("column", "values", "told"),
    [
        ("whom", list("aabb"), r"has no column 'whom'; it has img, label, who"),
        ("who", ["a", None, "b", "b"], r"who of .*all.parquet names nobody in row 1"),
        ("who", ["a", "a", "", "b"], r"who of .*all.parquet names nobody in row 2"),
        ("who", [True, False, True, True], r"train groups: must be integers or text, not bool"),
        ("who", [0.5, 1, 1, 2], r"train groups: .*0.5"),
    ],
)
def test_parquet_says_who_has_no_patient(tmp_path, column, values, told):
    pytest.importorskip("pyarrow")
    write_parquet(tmp_path / "all.parquet", 4, who=values)
    with pytest.raises(HarnessError, match=told):
        make("parquet", path=str(tmp_path / "all.parquet"), group_column=column).load()


def test_parquet_takes_patients_from_one_place():
    with pytest.raises(HarnessError, match="groups and group_column both say who a record belongs to"):
        make("parquet", path="x", groups="a", group_column="b")


def test_parquet_classes_in_another_order_are_read_by_name(tmp_path):
    first, other = ("cat", "dog", "owl"), ("owl", "cat", "dog")
    write_parquet(tmp_path / "train-0.parquet", 9, seed=0, names=first)
    write_parquet(tmp_path / "train-1.parquet", 9, seed=1, names=other)
    write_parquet(tmp_path / "validation.parquet", 6, seed=2, names=first)
    write_parquet(tmp_path / "test.parquet", 6, seed=3, names=other)
    splits = make("parquet", path=str(tmp_path)).load()
    assert splits.class_names == first
    assert splits.train.labels.tolist() == [0, 1, 2] * 3 + [2, 0, 1] * 3
    assert splits.val.labels.tolist() == [0, 1, 2] * 2
    assert splits.test.labels.tolist() == [2, 0, 1] * 2
    named = make("parquet", path=str(tmp_path), class_names=["Katze", "Hund", "Eule"]).load()
    assert named.class_names == ("Katze", "Hund", "Eule")
    np.testing.assert_array_equal(named.test.labels, splits.test.labels)
    missing = np.array([0, 1, 2, -1, 0, 1])
    write_parquet(tmp_path / "test.parquet", 6, seed=3, names=other, label=missing)
    with pytest.raises(HarnessError, match="labels run from -1"):
        make("parquet", path=str(tmp_path)).load()


def test_parquet_files_name_the_same_classes(tmp_path):
    write_parquet(tmp_path / "train.parquet", 20)
    write_parquet(tmp_path / "test.parquet", 6, seed=1, names=("cat", "bird"))
    message = r"test.parquet and .*train.parquet name different classes in label \(only one has bird, dog\)"
    for names in (None, ["a", "b"]):
        with pytest.raises(HarnessError, match=message):
            make("parquet", path=str(tmp_path), class_names=names).load()
    write_parquet(tmp_path / "test.parquet", 6, seed=1, metadata=False)
    assert make("parquet", path=str(tmp_path)).load().class_names == ("cat", "dog")


def test_parquet_knows_the_splits_by_their_usual_names(tmp_path):
    for i, name in enumerate(("Training-0", "Training-1", "valid", "TEST")):
        write_parquet(tmp_path / f"{name}.parquet", 8, seed=i)
    dataset = make("parquet", path=str(tmp_path))
    assert [len(part) for part in parts(dataset.load())] == [16, 8, 8]
    write_parquet(tmp_path / "dev.parquet", 8)
    with pytest.raises(HarnessError, match="has dev and valid, which mean the same split; keep one val"):
        dataset.load()


def test_parquet_without_metadata(tmp_path):
    write_parquet(tmp_path / "train.parquet", 40, metadata=False, other=np.arange(40))
    path = str(tmp_path)
    assert make("parquet", path=path).load().class_names == ("0", "1")
    assert make("parquet", path=path, class_names=["a", "b"]).load().class_names == ("a", "b")
    with pytest.raises(HarnessError, match="no column 'y'; it has img, label, other"):
        make("parquet", path=path, label_column="y").load()
    with pytest.raises(HarnessError, match=r"no other of the type struct{bytes, path}.*, other \(int64\)$"):
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
    pq.write_table(pa.table({"img": [{"bytes": b"junk", "path": "a.png"}], "label": [0]}), file)
    with pytest.raises(
        HarnessError, match=r"row 0 is not a readable image: its format is none that Pillow knows$"
    ):
        make("parquet", path=str(tmp_path), label_column="label").load()
    pq.write_table(pa.table({"image": [b"x"], "label": [0]}), file)
    with pytest.raises(
        HarnessError, match=r"no column of the type struct.*; it has image \(binary\), label \(int64\)$"
    ):
        make("parquet", path=str(tmp_path)).load()
    for labels, told in (
        (["sick", "well"], "holds string, such as 'sick' in row 0"),
        ([1, None], "holds int64, such as None in row 1"),
        ([0.0, 1.0], "holds double, such as 0.0 in row 0"),
    ):
        pq.write_table(pa.table({"img": [{"bytes": b"x"}] * 2, "label": labels}), file)
        with pytest.raises(HarnessError, match=f"label of .*train.parquet {told}; it must hold integers"):
            make("parquet", path=str(tmp_path)).load()
    pq.write_table(pa.table({"img": [{"bytes": b"x"}], "y": [0]}), file)
    with pytest.raises(HarnessError, match="set label_column to one of img, y"):
        make("parquet", path=str(tmp_path)).load()
    write_parquet(file, 20)
    content = file.read_bytes()
    assert b"p0-0_0.png" in content
    file.write_bytes(content.replace(b"p0-0_0.png", b"\xff0-0_0.png"))
    with pytest.raises(HarnessError, match=r"cannot read img of .*train.parquet: .*utf-8"):
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
    assert [len(p) for p in parts(splits)] == [54, 6, 20]
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


def test_torchvision_idx_with_one_wrong_byte(tmp_path):
    write_idx(tmp_path / "mnist", compress=True)
    file = tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz"
    dataset = make("torchvision", dataset="mnist", path=str(tmp_path))
    assert refusals(dataset.load, file, "t10k-labels-idx1-ubyte.gz is not a readable IDX file: ") > 20


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
    assert calls == [(tmp_path, True, True), (tmp_path, False, True)]  # torchvision renews a damaged folder
    np.testing.assert_array_equal(splits.test.images, pixels[:10].transpose(0, 3, 1, 2))
    assert [len(p) for p in parts(splits)] == [30, 10, 10]
    assert splits.class_names[3] == "c3"


def test_torchvision_names_the_option_that_renews_damaged_files(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(HarnessError, match=r"not found or corrupted. You can use download: true to"):
        make("torchvision", dataset="cifar10", path=str(tmp_path)).load()


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


@pytest.mark.parametrize("present", [True, False])
def test_medmnist_downloads_only_what_is_not_beside_the_scenario(tmp_path, monkeypatch, present):
    (tmp_path / "scenarios" / "med").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    fake_medmnist(monkeypatch, tmp_path)
    if present:
        (tmp_path / "scenarios" / "med" / "pneumoniamnist.npz").touch()
    dataset = make("medmnist", flag="pneumoniamnist", path="med", download=True)
    place = re.escape(str(tmp_path / "scenarios" / "med")) if present else "med"
    with pytest.raises(HarnessError, match=f"pneumoniamnist in {place}: "):
        dataset.load(tmp_path / "scenarios")
    assert (tmp_path / "med").is_dir() is not present


def test_medmnist_refusals(tmp_path, monkeypatch):
    fake_medmnist(monkeypatch, tmp_path)
    with pytest.raises(PluginError, match="multi-label"):
        make("medmnist", flag="chestmnist").load()
    for flag in ("organmnist3d", "nothing"):
        with pytest.raises(PluginError, match="no 2D dataset"):
            make("medmnist", flag=flag).load()
    with pytest.raises(HarnessError, match=r"is not there \(tried .*pneumoniamnist_64.npz\)"):
        make("medmnist", flag="pneumoniamnist", size=64, path=str(tmp_path)).load()
    np.savez(tmp_path / "pneumoniamnist.npz", train_images=np.zeros((2, 28, 28), np.uint8))
    with pytest.raises(HarnessError, match=r"medmnist, pneumoniamnist in .*train_labels is not a file"):
        make("medmnist", flag="pneumoniamnist", path=str(tmp_path)).load()
    (tmp_path / "pneumoniamnist.npz").write_bytes(b"PK no archive")
    with pytest.raises(HarnessError, match=r"medmnist, pneumoniamnist in .*"):
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
