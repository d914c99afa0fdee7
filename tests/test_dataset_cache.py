"""Decoded data sets are mapped from files that come and go whole."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from harness import dataset_cache
from harness.cache_folder import cache_folder
from harness.console.catalogue import keep_listing, kept_listing
from harness.dataset_cache import load_splits
from harness.errors import HarnessError
from harness.federation.data import load
from harness.leaderboard.publishable import unportable
from harness.registry import registry
from harness.scenario import load_text
from harness.scenario_plan import data_facts


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dataset_cache, "SMALLEST", 0)
    return tmp_path / "cache" / "datasets"


@pytest.fixture
def dataset(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 40), ("val", 10), ("test", 10)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 3
        arrays[f"{split}_groups"] = np.arange(count) // 2 + 1000 * len(arrays)
    np.savez(tmp_path / "data.npz", **arrays)
    return registry().create("dataset", "npz", {"path": str(tmp_path / "data.npz")})


def test_the_cache_gives_back_what_was_decoded(cache, dataset, tmp_path):
    plain = dataset.load(tmp_path)
    for _ in range(2):  # written, then read
        found = load_splits(dataset, tmp_path, dataset.fingerprint(tmp_path))
        assert found.fingerprint() == plain.fingerprint()
        assert found.class_names == plain.class_names
        assert found.train.groups.dtype == np.int64
    assert len(list(cache.iterdir())) == 1


def test_data_in_the_cache_is_not_decoded_again(cache, dataset, tmp_path, monkeypatch):
    mark = dataset.fingerprint(tmp_path)
    load_splits(dataset, tmp_path, mark)
    monkeypatch.setattr(type(dataset), "load", lambda *_: pytest.fail("decoded again"))
    assert len(load_splits(dataset, tmp_path, mark).train) == 40


def test_a_training_maps_the_file_and_never_writes_to_it(cache, dataset, tmp_path):
    mark = dataset.fingerprint(tmp_path)
    load.cache_clear()
    images = load(dataset, tmp_path, "cpu", mark).train.images
    (file,) = cache.rglob("train-images.npy")
    before = file.read_bytes()
    maps = Path("/proc/self/maps").read_text()
    assert str(file) in maps
    address = images.untyped_storage().data_ptr()
    ranges = [line.split()[0].split("-") for line in maps.splitlines() if str(file) in line]
    assert any(int(a, 16) <= address < int(b, 16) for a, b in ranges)  # no copy
    images.zero_()  # what a misbehaving plugin might do stays in its process
    assert file.read_bytes() == before
    load.cache_clear()
    assert torch.equal(
        load(dataset, tmp_path, "cpu", mark).train.images, torch.from_numpy(dataset.load().train.images)
    )
    load.cache_clear()


@pytest.mark.parametrize(
    "harm",
    [
        "folder",
        "file",
        "half a file",
        "an empty file",
        "no facts",
        "a pixel",
        "a label",
        "a group",
        "a class",
    ],
)
def test_a_cache_may_be_deleted_or_damaged_at_any_time(cache, dataset, tmp_path, harm):
    mark = dataset.fingerprint(tmp_path)
    load_splits(dataset, tmp_path, mark)
    (entry,) = cache.iterdir()
    names = {"no facts": "facts.json", "a class": "facts.json", "a label": "test-labels.npy"}
    victim = entry / names.get(harm, "train-groups.npy" if harm == "a group" else "test-images.npy")
    if harm == "folder":
        for file in entry.iterdir():
            file.unlink()
        entry.rmdir()
    elif harm == "half a file":
        victim.write_bytes(victim.read_bytes()[:-40])
    elif harm == "an empty file":
        victim.write_bytes(b"")
    elif harm == "a class":
        victim.write_text(victim.read_text().replace('"class_names": ["0"', '"class_names": ["1"'))
    elif harm.startswith("a "):
        data = bytearray(victim.read_bytes())
        data[-8] ^= 1
        victim.write_bytes(data)
    else:
        victim.unlink()
    assert load_splits(dataset, tmp_path, mark).fingerprint() == dataset.load().fingerprint()
    (entry,) = cache.iterdir()
    assert (entry / "facts.json").exists()  # made whole again


def test_a_cache_that_cannot_be_written_is_gone_without(dataset, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(dataset_cache, "SMALLEST", 0)
    found = load_splits(dataset, tmp_path, dataset.fingerprint(tmp_path))
    assert found.fingerprint() == dataset.load().fingerprint()


def test_a_user_without_a_home_does_without_a_cache(dataset, tmp_path, monkeypatch):
    for name in ("HARNESS_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**30 + 7)  # a number that the system has no user for
    monkeypatch.setattr(dataset_cache, "SMALLEST", 0)
    monkeypatch.chdir(tmp_path)
    there = set(tmp_path.iterdir())
    found = load_splits(dataset, tmp_path, dataset.fingerprint(tmp_path))
    assert found.fingerprint() == dataset.load().fingerprint()
    assert kept_listing(cache_folder() / "listing.json") is None
    keep_listing(cache_folder() / "listing.json", [])
    assert unportable("name: mine\n") is None
    assert set(tmp_path.iterdir()) == there


def test_other_content_parameters_or_decoders_have_entries_of_their_own(
    cache, dataset, tmp_path, monkeypatch
):
    mark = dataset.fingerprint(tmp_path)
    load_splits(dataset, tmp_path, mark)
    less = registry().create("dataset", "npz", {"path": dataset.path, "train_limit": 20})
    assert len(load_splits(less, tmp_path, less.fingerprint(tmp_path)).train) < 40
    monkeypatch.setattr(dataset_cache, "library_versions", lambda: {"pillow": "another"})
    load_splits(dataset, tmp_path, mark)
    assert len(list(cache.iterdir())) == 3


def test_many_at_once_leave_one_whole_entry(cache, dataset, tmp_path):
    mark = dataset.fingerprint(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: load_splits(dataset, tmp_path, mark).fingerprint(), range(16)))
    assert set(found) == {dataset.load().fingerprint()}
    assert [entry.name for entry in cache.iterdir() if entry.name.startswith("draft-")] == []
    assert len(list(cache.iterdir())) == 1


def test_what_is_not_used_for_a_month_goes(cache, dataset, tmp_path):
    mark = dataset.fingerprint(tmp_path)
    load_splits(dataset, tmp_path, mark)
    (old,) = cache.iterdir()
    past = time.time() - dataset_cache.UNUSED - 60
    os.utime(old, (past, past))
    load_splits(dataset, tmp_path, mark)  # a use makes it young again
    less = registry().create("dataset", "npz", {"path": dataset.path, "train_limit": 20})
    load_splits(less, tmp_path, less.fingerprint(tmp_path))
    assert old.exists()
    os.utime(old, (past, past))
    third = registry().create("dataset", "npz", {"path": dataset.path, "train_limit": 10})
    load_splits(third, tmp_path, third.fingerprint(tmp_path))
    assert not old.exists()


def test_bad_data_is_refused_before_anything_is_kept(cache, tmp_path):
    arrays = {f"{s}_{w}": np.zeros((4, 3, 3) if w == "images" else 4, np.uint8) for s in ("train", "val", "test")
              for w in ("images", "labels")}  # fmt: skip
    arrays["val_images"] = np.zeros((4, 5, 5), np.uint8)
    np.savez(tmp_path / "bad.npz", **arrays)
    bad = registry().create("dataset", "npz", {"path": str(tmp_path / "bad.npz")})
    with pytest.raises(HarnessError, match="differs from the training images"):
        load_splits(bad, tmp_path, bad.fingerprint(tmp_path))
    assert not cache.exists()


def test_planning_decodes_for_the_workers_too(cache, dataset, tmp_path):
    text = (
        f"schema: 1\nname: x\ndataset: {{npz: {{path: {dataset.path}}}}}\nmodel: {{mlp: {{hidden: [4]}}}}\n"
    )
    text += "federation: {clients: 2, rounds: 1, local: {epochs: 1, batch_size: 8}}\n"
    facts = data_facts(load_text(text, tmp_path / "x.yaml"), None)
    assert facts.train == 40
    assert len(list(cache.iterdir())) == 1


# data that change -----------------------------------------------------------------------------------


def replaced(dataset) -> None:
    """The same file with other pixels."""
    with np.load(dataset.path) as archive:
        arrays = dict(archive)
    arrays["train_images"] = 255 - arrays["train_images"]
    np.savez(dataset.path, **arrays)


def test_data_that_are_not_those_of_the_plan_are_neither_used_nor_kept(cache, dataset, tmp_path):
    mark = dataset.fingerprint(tmp_path)
    replaced(dataset)
    load.cache_clear()
    with pytest.raises(HarnessError, match=r"the data of npz.* changed during the run; run again"):
        load(dataset, tmp_path, "cpu", mark)
    assert not cache.exists()
    now = dataset.fingerprint(tmp_path)
    assert load_splits(dataset, tmp_path, now).fingerprint() == dataset.load().fingerprint()


def test_data_that_change_while_they_are_decoded_are_not_kept(cache, dataset, tmp_path, monkeypatch):
    mark, decode = dataset.fingerprint(tmp_path), type(dataset).load

    def slow(self, root=None):
        found = decode(self, root)
        replaced(self)
        return found

    monkeypatch.setattr(type(dataset), "load", slow)
    with pytest.raises(HarnessError, match="changed during the run"):
        load_splits(dataset, tmp_path, mark)
    assert not cache.exists()


def test_data_are_hashed_once_more_where_they_are_decoded_and_not_where_they_are_mapped(
    cache, dataset, tmp_path, monkeypatch
):
    mark, calls = dataset.fingerprint(tmp_path), []
    real = type(dataset).fingerprint
    monkeypatch.setattr(type(dataset), "fingerprint", lambda *given: calls.append(1) or real(*given))
    for _ in range(3):
        load_splits(dataset, tmp_path, mark)
    assert len(calls) == 1


def test_data_without_a_hash_of_files_are_not_decoded_twice(cache, tmp_path, monkeypatch):
    digits = registry().create("dataset", "digits")
    mark, calls, decode = digits.fingerprint(), [], type(digits).load
    monkeypatch.setattr(type(digits), "load", lambda *given: calls.append(1) or decode(*given))
    load_splits(digits, tmp_path, mark)
    assert len(calls) == 1


RULES = """
from harness.api import Dataset, Split, Splits, Field, find_file, hash_file, hookimpl

class Mine(Dataset):
    name = "my-images"
    path: str = Field("data.npz", description="file")

    def fingerprint(self, root=None):
        return hash_file(find_file(self.path, root))

    def load(self, root=None):
        import numpy as np
        arrays = np.load(find_file(self.path, root))
        parts = []
        for split in ("train", "val", "test"):
            images = arrays[split + "_images"].transpose(0, 3, 1, 2)
            parts.append(Split(np.ascontiguousarray(images), (arrays[split + "_labels"] * SCALE) % 3))
        return Splits(*parts, CLASSES)

@hookimpl
def harness_register(register):
    register(Mine)
"""


def test_a_corrected_reader_of_the_same_file_is_another_training_and_has_facts_of_its_own(
    cache, dataset, tmp_path
):
    """The data set's own code decides what is trained on, whatever the file's hash says."""
    import harness

    text = "schema: 1\nname: x\nplugins: [mine.py]\ndataset: my-images\nmodel: {mlp: {hidden: [4]}}\n"
    text += "federation: {clients: 2, rounds: 1, local: {epochs: 1, batch_size: 8}}\nmetrics: [accuracy]\n"
    records = []
    for scale, classes in (("0", "'ab'"), ("1", "'abc'")):
        source = RULES.replace("SCALE", scale).replace("CLASSES", f"tuple({classes})")
        (tmp_path / "mine.py").write_text(source)
        scenario = load_text(text, tmp_path / "x.yaml")
        run = harness.run(scenario, device="cpu", jobs=0, store=tmp_path / "runs")
        assert (run.executed["train"], run.scored) == (1, 1), run.records[0]["error"]
        records += run.records
    first, second = (record["provenance"] for record in records)
    assert first["dataset"]["fingerprint"] == second["dataset"]["fingerprint"]
    assert first["stages"]["train"] != second["stages"]["train"]
