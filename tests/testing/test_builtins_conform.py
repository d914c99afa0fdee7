"""Every built-in plugin keeps the contract of its kind, as third-party ones are asked to."""

from __future__ import annotations

import atexit
import gzip
import io
import json
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.entry_points import BUILTIN
from harness.kinds import KINDS
from harness.registry import registry
from harness.testing import checks_of, parametrize_with_checks

# What makes a plugin quick enough for a test: fewer steps, samples or channels. All others are tried as they are.
QUICK: dict[tuple[str, str], dict[str, Any]] = {
    ("model", "resnet18"): {"width": 4},
    ("model", "resnet9"): {"width": 4},
    ("model", "vgg11"): {"width": 4},
    ("aggregator", "deepsight"): {"samples": 40},
    ("aggregator", "crfl"): {"copies": 5},
    ("compressor", "distillation"): {"student": "logistic", "rounds": 1},
    ("defence", "randomized-smoothing"): {"n": 60, "n0": 20, "samples": 4},
    # A radius at which every image falls at once: its parts have checks of their own.
    ("attack", "autoattack"): {"eps": 0.6},
    ("attack", "autoattack-fast"): {"eps": 0.6},
    ("attack", "apgd"): {"steps": 10},
    ("attack", "apgd-ce"): {"steps": 10},
    ("attack", "fab"): {"steps": 5},
    ("attack", "square"): {"queries": 100},
    ("attack", "cw"): {"steps": 10},
    ("attack", "dlg"): {"targets": 1, "restarts": 1, "iterations": 2},
    ("attack", "idlg"): {"targets": 1, "restarts": 1, "iterations": 2},
    ("attack", "inverting-gradients"): {"targets": 1, "iterations": 5},
    ("attack", "label-inference"): {"targets": 2, "draws": 2},
    ("attack", "property-inference"): {"attribute": "class", "targets": 4, "simulated": 10, "records": 2},
    ("attack", "lira"): {"shadows": 8},
    ("attack", "rmia"): {"shadows": 4},
    ("attack", "calibrated-loss"): {"shadows": 4},
}

# Data that a dataset of files finds, written for the purpose.
FOLDER = Path(tempfile.mkdtemp(prefix="conformance-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
FILES: dict[str, dict[str, Any]] = {
    "npz": {"path": str(FOLDER / "data.npz")},
    "imagefolder": {"path": str(FOLDER / "images")},
    "imagecsv": {"path": str(FOLDER / "images.csv"), "split_column": "split"},
    "parquet": {"path": str(FOLDER / "tables")},
    "torchvision": {"dataset": "mnist", "path": str(FOLDER / "mnist")},
    "medmnist": {"flag": "pneumoniamnist"},
}


def _write_files() -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (90, 6, 6), dtype=np.uint8)
    splits = {"train": slice(0, 50), "val": slice(50, 70), "test": slice(70, 90)}
    labels = np.arange(90) % 2
    arrays = {f"{name}_images": images[part] for name, part in splits.items()}
    np.savez(
        FOLDER / "data.npz", **arrays, **{f"{name}_labels": labels[part] for name, part in splits.items()}
    )
    rows: dict[str, list[Any]] = {"image": [], "label": []}
    listed = ["file_name,label,split"]
    for number, image in enumerate(images):
        name = next(n for n, part in splits.items() if part.start <= number < part.stop)
        folder = FOLDER / "images" / name / f"class{labels[number]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
        listed.append(f"images/{name}/{folder.name}/{number}.png,{labels[number]},{name}")
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG")
        rows["image"].append({"bytes": buffer.getvalue(), "path": f"{number}.png"})
        rows["label"].append(int(labels[number]))
    (FOLDER / "images.csv").write_text("\n".join(listed))
    (FOLDER / "tables").mkdir()
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    features = {"image": {"_type": "Image"}, "label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for name, part in splits.items():
        table = pa.table({column: values[part] for column, values in rows.items()})
        table = table.replace_schema_metadata(metadata)
        shard = "validation" if name == "val" else name
        pq.write_table(table, FOLDER / "tables" / f"{shard}-00000-of-00001.parquet")
    (FOLDER / "mnist").mkdir()
    for prefix, number in (("train", 60), ("t10k", 20)):
        digits = rng.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        classes = (np.arange(number) % 10).astype(np.uint8)
        for array, what in ((digits, "images-idx3"), (classes, "labels-idx1")):
            head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (FOLDER / "mnist" / f"{prefix}-{what}-ubyte.gz").write_bytes(
                gzip.compress(head + array.tobytes())
            )


_write_files()


def _built_in() -> list[Any]:
    found: list[Any] = []
    for kind in KINDS:
        for entry in registry().entries(kind):
            if entry.distribution != BUILTIN:
                continue
            parameters = (
                FILES.get(entry.plugin.name) if kind == "dataset" else QUICK.get((kind, entry.plugin.name))
            )
            found.append(entry.plugin if parameters is None else entry.plugin.create(parameters))
    return found


@parametrize_with_checks(_built_in())
def test_conforms(check):
    check()


def test_every_kind_is_covered():
    kinds = {plugin.kind for plugin in _built_in()}
    assert kinds == set(KINDS)
    assert all(len(checks_of(plugin)) >= 14 for plugin in _built_in())


def test_quick_parameters_name_plugins():
    """A renamed plugin would be tried with its slow defaults, unseen."""
    for kind, name in (*QUICK, *(("dataset", name) for name in FILES)):
        assert registry().find(kind, name).distribution == BUILTIN
