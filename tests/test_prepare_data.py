"""The data of the published boards, made from their sources."""

from __future__ import annotations

import hashlib
import io
import re
import struct
import sys
from importlib.util import module_from_spec, spec_from_file_location

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def script(root):
    spec = spec_from_file_location("prepare_data", root / "scenarios" / "prepare_data.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["prepare_data.py", *map(str, arguments)])
    return script.main()


def test_every_file_that_a_scenario_needs_can_be_made(script, root):
    texts = [file.read_text(encoding="utf-8") for file in (root / "scenarios").glob("*.yaml")]
    needed = {name for text in texts for name in re.findall(r"\$\{HARNESS_DATA\}/([\w-]+\.npz)", text)}
    assert needed == set(script.PUBLISHED)
    guide = (root / "docs" / "data.md").read_text(encoding="utf-8")
    for name, content in script.PUBLISHED.items():
        assert f"| `{name}` |" in guide
        assert f"`{content[:8]}…{content[-5:]}`" in guide


def test_file_names_tell_patients_and_labels(script, tmp_path):
    names = {
        "NORMAL/IM-0115-0001.jpeg": (("IM", 115), 0),
        "NORMAL/NORMAL2-IM-0115-0001.jpeg": (("IM", 115), 0),
        "PNEUMONIA/person7_bacteria_24.jpeg": (("person", 7), 1),
        "PNEUMONIA/person7_virus_6.jpeg": (("person", 7), 2),
    }
    assert {n: (script.patient(tmp_path / n), script.label(tmp_path / n)) for n in names} == names
    with pytest.raises(script.DataError, match=r"scan\.jpeg: expected a name such as person1_virus_6"):
        script.patient(tmp_path / "NORMAL" / "scan.jpeg")
    with pytest.raises(script.DataError, match=r"person1_fungus_1\.jpeg: expected"):
        script.label(tmp_path / "PNEUMONIA" / "person1_fungus_1.jpeg")


def x_rays(folder):
    """60 training images of 30 patients and four test images, 16x16, whose grey is their own."""
    rng = np.random.default_rng(0)
    names = [f"train/NORMAL/IM-{i:04}-000{j}.jpeg" for i in range(20) for j in (1, 2)]
    names += [
        f"train/PNEUMONIA/person{i}_{kind}_{i}.jpeg" for i in range(10) for kind in ("bacteria", "virus")
    ]
    names += ["test/NORMAL/IM-0001-0001.jpeg", "test/NORMAL/NORMAL2-IM-0002-0001.jpeg"]
    names += ["test/PNEUMONIA/person1_virus_1.jpeg", "test/PNEUMONIA/person9_bacteria_1.jpeg"]
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).convert("RGB").save(file)
    (folder / ".DS_Store").touch()


def test_x_rays_are_split_by_patient(script, tmp_path, monkeypatch, capsys):
    x_rays(tmp_path / "source")
    monkeypatch.setattr(script, "PNEUMONIA_COUNTS", {"train": 60, "test": 4})
    assert call(script, monkeypatch, "pneumonia", tmp_path / "source", "--out", tmp_path / "out") == 1
    told = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1][:12] for line in told] == ["NOT the file"] * 2
    with np.load(tmp_path / "out" / "pneumonia-28.npz") as archive:
        made = dict(archive)
    assert made["train_images"].shape == (54, 28, 28)  # a tenth of 40 and of 20 images is held out
    assert made["train_images"].dtype == np.uint8
    assert np.bincount(made["val_labels"][:, 0]).tolist() == [4, 1, 1]  # two patients, and one with both
    assert not set(made["train_groups"]) & set(made["val_groups"])
    assert len({*made["train_groups"], *made["val_groups"]}) == 30
    assert sorted(made["test_groups"]) == [1_000_001, 1_000_009, 1_100_001, 1_100_002]
    whole, half = (np.load(tmp_path / "out" / f"pneumonia-{n}.npz")["test_images"] for n in (64, 28))
    assert np.abs(whole.mean((1, 2)) - half.mean((1, 2))).max() < 2  # the same images


def test_parquet_holds_the_source_s_bytes(script, tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    x_rays(tmp_path / "source")
    monkeypatch.setattr(script, "PNEUMONIA_COUNTS", {"train": 60, "test": 4})
    assert call(script, monkeypatch, "pneumonia-224", tmp_path / "source", "--out", tmp_path) == 0
    rows = parquet.read_table(tmp_path / "pneumonia-224" / "test.parquet").to_pylist()
    assert len(rows) == 4
    for row in rows:
        path = tmp_path / "source" / "test" / row["image"]["path"]
        assert row["image"]["bytes"] == path.read_bytes()
        assert row["label"] == script.label(path)
    assert sorted(row["patient"] for row in rows) == [1_000_001, 1_000_009, 1_100_001, 1_100_002]


@pytest.mark.parametrize("source", ["empty", "incomplete"])
def test_another_folder_is_refused_before_anything_is_written(script, tmp_path, monkeypatch, capsys, source):
    if source == "incomplete":
        x_rays(tmp_path / source)
    assert call(script, monkeypatch, "pneumonia", tmp_path / source, "--out", tmp_path / "out") == 2
    found = {"empty": 0, "incomplete": 60}[source]
    told = "train: expected 5,216 images in NORMAL/*.jpeg and PNEUMONIA/*.jpeg, found"
    assert f"{told} {found}\n" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_fashion_mnist_keeps_its_order(script, tmp_path, monkeypatch):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(1)
    parts = {"train": 12, "t10k": 5}
    images = {part: rng.integers(0, 256, (n, 28, 28), dtype=np.uint8) for part, n in parts.items()}
    labels = {part: rng.integers(0, 10, n, dtype=np.uint8) for part, n in parts.items()}
    for part, n in parts.items():
        header = struct.pack(">HBB3I", 0, 8, 3, n, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images[part].tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">HBBI", 0, 8, 1, n) + labels[part].tobytes()
        )
    monkeypatch.setattr(script, "FASHION_VALIDATION", 4)
    assert call(script, monkeypatch, "fashion-mnist", tmp_path, "--out", tmp_path) == 1
    with np.load(tmp_path / "fashion-mnist.npz") as made:
        assert np.array_equal(made["train_images"], images["train"][:8])
        assert np.array_equal(made["val_labels"][:, 0], labels["train"][8:])
        assert np.array_equal(made["test_images"], images["t10k"])


def test_the_x_rays_of_the_boards_are_made_from_their_source(script, data_root, tmp_path):
    """Array by array; bytes depend on the compression library too, and are so far the published ones."""
    parquet = pytest.importorskip("pyarrow.parquet")
    for part in ("train", "test"):
        for image in parquet.read_table(data_root / "pneumonia-224" / f"{part}.parquet")["image"].to_pylist():
            file = tmp_path / part / image["path"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image["bytes"])
    for name, content in script.pneumonia(tmp_path).items():
        published = (data_root / name).read_bytes()
        assert hashlib.sha256(published).hexdigest() == script.PUBLISHED[name]
        with np.load(io.BytesIO(content)) as made, np.load(io.BytesIO(published)) as wanted:
            assert made.files == wanted.files
            for key in wanted.files:
                assert np.array_equal(made[key], wanted[key]), (name, key)
                assert made[key].dtype == wanted[key].dtype
