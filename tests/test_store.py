"""The store: atomic, content-addressed, strict."""

from __future__ import annotations

import errno
import math
import os

import pytest
import torch

from harness.artifacts import artifact_name
from harness.errors import StoreError
from harness.files import replacing
from harness.store import Store
from harness.strict_json import dumps, loads


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


def test_what_a_killed_run_was_writing_is_removed_by_the_next(tmp_path):
    with Store(tmp_path) as store:
        kept, _ = store.save_tensors({"w": torch.zeros(3)})
        with replacing(tmp_path / artifact_name(kept)) as draft:
            draft.write_bytes(b"half")
            with store.lock():
                assert not draft.exists()
            draft.write_bytes(store.read_file(artifact_name(kept)))


def test_a_store_of_another_schema_is_refused(tmp_path):
    with Store(tmp_path) as store:
        store._db.execute("PRAGMA user_version=99")
    with pytest.raises(StoreError, match="schema 99"):
        Store(tmp_path)


def test_a_file_in_the_way_is_a_clear_error(tmp_path):
    (tmp_path / "runs").write_text("x")
    with pytest.raises(StoreError, match=r"^cannot use the store [^:]*: Not a directory$"):
        Store(tmp_path / "runs")


def test_a_link_to_a_folder_that_is_not_there_is_said_to_be_one(tmp_path):
    (tmp_path / "runs").symlink_to("elsewhere")
    with pytest.raises(StoreError, match=r"^cannot use the store [^:]*: it is a link to what is not there$"):
        Store(tmp_path / "runs")
    (tmp_path / "elsewhere").mkdir()
    Store(tmp_path / "runs").close()


def test_finished_finds_what_stage_result_does(tmp_path):
    with Store(tmp_path) as store:
        kept, _ = store.save_tensors({"w": torch.zeros(3)})
        lost, _ = store.save_tensors({"w": torch.ones(3)})
        stages = {
            "plain": ("done", {"x": 1}),
            "kept": ("done", {"artifacts": [kept]}),
            "lost": ("done", {"artifacts": [kept, lost]}),
            "failed": ("failed", {"message": "no"}),
            "other": ("done", {"x": float("nan")}),
        }
        for key, (status, result) in stages.items():
            store.put_stage(key, "train", "s", key, status, result, 1.0)
        next(tmp_path.rglob(f"{lost}.safetensors")).unlink()
        asked = {"plain", "kept", "lost", "failed", "absent"}
        assert store.finished(asked) == {"plain", "kept"}
        assert {key for key in asked if store.stage_result(key) is not None} == {"plain", "kept"}


def test_peak_memory_is_that_of_the_stages_asked_about(tmp_path):
    with Store(tmp_path) as store:
        for key, signature, status, peak in (
            ("a", "s", "done", 5),
            ("b", "s", "done", 7),
            ("c", "t", "done", 99),
        ):
            store.put_stage(key, "train", signature, key, status, {"peak_memory_bytes": peak}, 1.0)
        store.put_stage("d", "train", "s", "d", "failed", {"message": "out of memory"}, 1.0)
        assert store.peak_memory({("train", "s")}) == 7
        assert store.peak_memory({("clean", "s"), ("train", "u")}) is None


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, 2.5, None, True, "x"], "b": {"c": ()}},
        {"a": math.inf, "b": [1.0, {"c": -math.inf}]},
        [],
        "é",
    ],
)
def test_json_is_the_same_with_and_without_numbers_that_are_not_finite(value):
    assert loads(dumps(value)) == (
        value if not isinstance(value, dict) else {**value, "b": _lists(value["b"])}
    )
    assert loads(dumps({"value": value, "nan": math.nan}))["value"] == loads(dumps(value))


def _lists(value):
    if isinstance(value, dict):
        return {k: _lists(v) for k, v in value.items()}
    return [_lists(v) for v in value] if isinstance(value, list | tuple) else value


def test_a_file_system_without_locks_is_named_and_read(tmp_path, monkeypatch):
    with Store(tmp_path / "runs") as store, store.lock():
        pass

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("harness.store.fcntl.flock", refuse)
    with Store(tmp_path / "runs") as store, pytest.raises(StoreError, match="cannot be locked: No locks"):
        store.lock().__enter__()
    with Store(tmp_path / "runs", read_only=True) as store, store.lock():
        assert store.read_only


def test_records_of_one_scenario_are_read_without_sorting_them(tmp_path):
    """Sorting copies all of them into a file in the folder for temporary files, which may be full."""
    said: list[str] = []
    with Store(tmp_path) as store:
        store._db._connection.set_trace_callback(said.append)
        assert list(store.each_record("one")) == []
        (statement,) = (text for text in said if "FROM records" in text)
        plan = store._db.execute(f"EXPLAIN QUERY PLAN {statement}")
    assert not any("TEMP B-TREE" in row[3] for row in plan)
