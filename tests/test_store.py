"""The store: atomic, content-addressed, strict."""

from __future__ import annotations

import math
import os

import pytest
import torch

from harness.errors import StoreError
from harness.store import Store, dumps, loads


def test_tensors_round_trip_by_content(tmp_path):
    with Store(tmp_path) as store:
        tensors = {"w": torch.arange(6.0).view(2, 3), "q": torch.tensor([-3, 7], dtype=torch.int8)}
        digest, size = store.save_tensors(tensors)
        assert store.save_tensors(tensors) == (digest, size)
        back = store.load_tensors(digest)
        assert all(torch.equal(back[k], v) and back[k].dtype == v.dtype for k, v in tensors.items())
        files = [p for p in tmp_path.rglob("*") if p.is_file() and "artifacts" in p.parts]
        assert [f.name for f in files] == [f"{digest}.safetensors"]
        assert files[0].stat().st_size == size


def test_a_damaged_artifact_is_noticed(tmp_path):
    with Store(tmp_path) as store:
        digest, _ = store.save_tensors({"w": torch.zeros(3)})
        file = next(tmp_path.rglob("*.safetensors"))
        file.write_bytes(file.read_bytes()[:-1] + b"\1")
        with pytest.raises(StoreError, match="damaged"):
            store.load_tensors(digest)


def test_a_stage_without_its_artifact_is_not_done(tmp_path):
    with Store(tmp_path) as store:
        digest, _ = store.save_tensors({"w": torch.zeros(3)})
        store.put_stage("k", "train", "s", "label", "done", {"artifacts": [digest], "x": 1}, 2.0)
        assert store.stage_result("k")["x"] == 1
        next(tmp_path.rglob("*.safetensors")).unlink()
        assert store.stage_result("k") is None


def test_a_failed_stage_is_not_done(tmp_path):
    with Store(tmp_path) as store:
        store.put_stage("k", "train", "s", "label", "failed", {"type": "X"}, 2.0)
        assert store.stage_result("k") is None
        assert store.seconds_by_signature() == {}


def test_records_keep_infinities_and_nan():
    value = {"a": [math.inf, -math.inf, math.nan, 1.5, None, True], "b": {"c": "NaN"}}
    text = dumps(value)
    assert "Infinity" not in text
    back = loads(text)
    assert back["a"][:2] == [math.inf, -math.inf]
    assert math.isnan(back["a"][2])
    assert back["a"][3:] == [1.5, None, True]
    assert back["b"] == {"c": "NaN"}


def test_one_run_at_a_time_and_the_other_is_named(tmp_path):
    named = pytest.raises(StoreError, match=f"process {os.getpid()}")
    with Store(tmp_path) as first, Store(tmp_path) as second, first.lock(), named, second.lock():
        pass


def test_the_lock_is_free_again(tmp_path):
    with Store(tmp_path) as store:
        with store.lock():
            pass
        with store.lock():
            pass


def test_a_store_of_another_schema_is_refused(tmp_path):
    with Store(tmp_path) as store:
        store._db.execute("PRAGMA user_version=99")
    with pytest.raises(StoreError, match="schema 99"):
        Store(tmp_path)


def test_a_file_in_the_way_is_a_clear_error(tmp_path):
    (tmp_path / "runs").write_text("x")
    with pytest.raises(StoreError, match="cannot use the store"):
        Store(tmp_path / "runs")
