"""Stores that are damaged, full or not to be written: what is lost is made again, and what cannot be is said."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import sqlite3
import stat
from contextlib import contextmanager
from pathlib import Path

import pytest
import small

import harness
from harness import cli
from harness.artifacts import artifact_name
from harness.doctor import findings, store_report
from harness.errors import HarnessError, StoreError
from harness.export import export
from harness.merge import merge
from harness.store import Store

SCENARIO = small.SCENARIO.replace("clients: 2", "clients: 3") + "aggregators: [mean, median]\n"


@pytest.fixture
def made(tmp_path):
    """A scenario that has been run, and its store."""
    file = tmp_path / "small.yaml"
    file.write_text(SCENARIO)
    harness.run(file, device="cpu", jobs=0, store=tmp_path / "runs")
    return file, tmp_path / "runs"


def change(store, statement, *values):
    with sqlite3.connect(store / "store.sqlite") as database:
        database.execute(statement, values)
    database.close()


@contextmanager
def files_end_at(size):
    """Writing beyond this many bytes of a file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# full disks ---------------------------------------------------------------------------------------


def test_a_full_disk_ends_a_run_with_an_error_that_names_the_store(made, capsys, monkeypatch):
    file, store = made
    file.write_text(SCENARIO.replace("[mean, median]", "[mean, median, geometric-median]"))
    original = Store.__init__

    def full(self, *arguments, **named):
        original(self, *arguments, **named)
        pages = self._db.execute("PRAGMA page_count")[0][0]
        self._db.execute(f"PRAGMA max_page_count={pages}")

    monkeypatch.setattr(Store, "__init__", full)
    assert cli.main(["run", str(file), "--store", str(store), "--jobs", "0", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert f"error: the store {store} cannot be written: database or disk is full" in said
    assert "is kept" in said
    monkeypatch.undo()
    assert harness.run(file, device="cpu", jobs=0, store=store).scored == 3


@pytest.mark.parametrize("there", [False, True])
def test_a_store_that_could_not_be_made_is_not_left_behind(there, made, tmp_path):
    """An empty one was taken for a store of another schema by whoever reads."""
    file, full = made
    store = tmp_path / "new"
    if there:
        store.mkdir()
    with files_end_at(16_384):
        with pytest.raises(StoreError, match="cannot use the store"):
            harness.run(file, device="cpu", jobs=0, store=store)
        with pytest.raises(StoreError, match="cannot use the store"):
            merge([full], store)
    assert list(tmp_path.rglob("new*")) == [store] * there
    assert not there or not any(store.iterdir())


def test_a_merge_that_finds_no_room_leaves_no_part_of_a_store(made, tmp_path, monkeypatch):
    """Folders of files that were to come kept the lock, and so the folder, of a store without a database."""

    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError, match="cannot be written: No space left on device"):
        merge([made[1]], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_store_that_is_moved_ends_the_run(tmp_path, monkeypatch):
    """Stages failed one by one, or were found in neither place."""
    file, store, begun = tmp_path / "small.yaml", tmp_path / "runs", []

    def started(self, key, kind, label):
        begun.append(kind)
        if len(begun) == 2:
            store.rename(tmp_path / "moved")

    monkeypatch.setattr("harness.observers.Observers.stage_started", started)
    file.write_text(SCENARIO)
    with pytest.raises(StoreError, match="runs was moved or deleted while a run writes into it"):
        harness.run(file, device="cpu", jobs=0, store=store)
    assert len(begun) == 2
    monkeypatch.undo()
    result = harness.run(file, device="cpu", jobs=0, store=tmp_path / "moved")
    assert (result.scored, result.cached["train"]) == (2, 1)


def test_a_model_that_finds_no_room_ends_the_run_at_once_and_leaves_no_empty_store(tmp_path, monkeypatch):
    file, store = tmp_path / "wide.yaml", tmp_path / "runs"
    # A model of half a megabyte: the limit leaves room for the database alone.
    file.write_text(SCENARIO.replace("[8]", "[2000]"))
    begun = []
    monkeypatch.setattr(
        "harness.observers.Observers.stage_started", lambda self, key, kind, label: begun.append(kind)
    )
    with files_end_at(300_000), pytest.raises(StoreError, match="cannot be written: File too large"):
        harness.run(file, device="cpu", jobs=0, store=store)
    assert begun == ["train"]
    assert not store.exists()
    assert harness.run(file, device="cpu", jobs=0, store=store).scored == 2


def test_artifacts_on_a_full_disk_are_an_error_of_the_store(tmp_path):
    import torch

    full = pytest.raises(StoreError, match="cannot be written")
    with Store(tmp_path) as store, files_end_at(1000), full:
        store.save_tensors({"weights": torch.zeros(10_000)})
    assert not list(tmp_path.rglob("artifacts/*/*"))


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_an_export_on_a_full_disk_leaves_the_file_that_was_there(made, ending, tmp_path):
    with Store.reading(made[1]) as store:
        records = store.records() * 50
    old, new = tmp_path / f"old.{ending}", tmp_path / f"new.{ending}"
    old.write_text("before")
    for path in (old, new):
        with files_end_at(1000), pytest.raises(HarnessError, match=f"--export {path}"):
            export(records, path)
    assert old.read_text() == "before"
    assert not new.exists()


def test_a_schema_on_a_full_disk_leaves_the_file_that_was_there(tmp_path, capsys):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("before")
    for path in (old, new):
        with files_end_at(1000):
            assert cli.main(["schema", "--out", str(path)]) == 2
        assert f"error: --out {path}" in capsys.readouterr().err
    assert old.read_text() == "before"
    assert os.listdir(tmp_path) == ["old.json"]


# damaged rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ['{"id": "', "[]", "\ud83d".encode("utf-8", "surrogatepass")])
def test_a_run_makes_a_damaged_record_and_a_damaged_stage_again(made, text, capsys):
    file, store = made
    change(store, "UPDATE records SET record=CAST(? AS TEXT) WHERE rowid=1", text)
    change(store, "UPDATE stages SET result=CAST(? AS TEXT) WHERE kind='train' AND label LIKE '%mean%'", text)
    change(store, "UPDATE facts SET value='{'")
    with pytest.raises(
        StoreError, match=rf"the store {store}: the record of the cell \w+ of small is damaged"
    ):
        Store.reading(store).records()
    for command in (["explain", "0"], ["plot", str(file), "--out", str(store / "figures")]):
        assert cli.main([*command, "--store", str(store)]) == 2
        assert "is damaged; run its scenario again" in capsys.readouterr().err
    assert cli.main(["plan", str(file), "--store", str(store), "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"]["train"] == {"total": 2, "cached": 1}
    again = harness.run(file, device="cpu", jobs=0, store=store)
    assert (again.scored, again.executed["train"]) == (2, 1)
    assert len(Store.reading(store).records()) == 2


def test_a_number_of_images_with_an_altered_digit_is_not_taken_for_one(made):
    file, store = made
    (stated, _) = (record["provenance"]["dataset"] for record in Store.reading(store).records())
    change(
        store, "UPDATE facts SET value = replace(value, ?, ?)", f"{stated['train']}", f"{stated['train'] + 1}"
    )
    change(store, "DELETE FROM records")
    for record in harness.run(file, device="cpu", jobs=0, store=store).records:
        assert record["provenance"]["dataset"] == stated


@pytest.mark.parametrize("column", ["records.record", "stages.result"])
def test_a_score_with_an_altered_digit_is_not_taken_for_one(made, column):
    file, store = made
    before = [record["scores"]["accuracy"] for record in Store.reading(store).records()]
    table, text = column.split(".")
    digits = [f'"accuracy":{value}' for value in (before[0], before[0] + 0.25)]
    change(store, f"UPDATE {table} SET {text} = replace({text}, ?, ?)", *digits)
    if table == "stages":
        change(store, "DELETE FROM records")
    else:
        with pytest.raises(StoreError, match="is damaged; run its scenario again"):
            Store.reading(store).records()
    again = harness.run(file, device="cpu", jobs=0, store=store)
    assert [record["scores"]["accuracy"] for record in again.records] == before


def test_what_older_versions_wrote_has_no_hash_and_is_read(made):
    file, store = made
    before = Store.reading(store).records()
    for table, text in (("records", "record"), ("stages", "result")):
        change(store, f"UPDATE {table} SET {text} = '{{' || substr({text}, instr({text}, ',') + 1)")
    assert Store.reading(store).records() == before
    assert not sum(harness.run(file, device="cpu", jobs=0, store=store).executed.values())


def test_a_damaged_record_of_another_cell_does_not_stop_a_run(made):
    file, store = made
    change(store, "UPDATE records SET record='{' WHERE rowid=1")
    again = harness.run(file, device="cpu", jobs=0, store=store, select="aggregator=median")
    assert again.scored == 1


@pytest.mark.parametrize("command", ["recommend", "explain"])
def test_a_damaged_record_is_left_out_and_named(made, command, capsys):
    store = made[1]
    first, second = (record["id"] for record in Store.reading(store).records())
    change(store, "UPDATE records SET record='{' WHERE id=?", first)
    arguments = (
        ["recommend", str(store)] if command == "recommend" else ["explain", second, "--store", str(store)]
    )
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert "median" in out
    assert err.startswith(
        f"warning: left out: the store {store}: the record of the cell {first} of small is damaged"
    )
    assert err.count("\n") == 1


def test_doctor_does_not_call_a_damaged_store_ready(made):
    store = made[1]
    assert store_report(store)["error"] is None
    database = store / "store.sqlite"
    database.write_bytes(b"something else entirely" * 100)
    report = {
        "torch": {"error": None},
        "missing": [],
        "plugins": {"disabled": [], "counts": {"model": 1}},
        "data": {"path": None},
        "store": store_report(store),
    }
    problems, _ = findings(report)
    assert len(problems) == 1
    assert str(store) in problems[0]


def test_a_run_makes_a_damaged_artifact_again(made):
    file, store = made
    damaged = sorted(store.rglob("*.safetensors"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\1")
    with Store.reading(store) as opened, pytest.raises(StoreError, match=str(damaged)):
        opened.load_tensors(damaged.stem)
    file.write_text(SCENARIO + "threats: [{name: none}, {name: e, attacks: [fgsm]}]\n")
    again = harness.run(file, device="cpu", jobs=0, store=store)
    assert (again.scored, again.failed) == (4, 0)
    assert again.executed["train"] == 1
    with Store.reading(store) as opened:
        assert opened.load_tensors(damaged.stem)


@pytest.mark.parametrize("new", ["both", "one"])
def test_trainings_that_came_to_the_same_weights_share_a_damaged_artifact(made, new):
    """The second of them may be needed by nothing new: its record is there, and is not written from what is gone."""
    file, store = made
    twins = SCENARIO.replace("[mean, median]", "[mean, [clipping: {tau: 1000000.0}, mean]]")
    file.write_text(twins)
    harness.run(file, device="cpu", jobs=0, store=store.parent / "twins")
    (damaged,) = (store.parent / "twins").rglob("*.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\1")
    file.write_text(twins + "threats: [{name: none}, {name: e, attacks: [fgsm]}]\n")
    select = None if new == "both" else "aggregator=mean"
    again = harness.run(file, device="cpu", jobs=0, store=store.parent / "twins", select=select)
    assert (again.scored, again.failed) == ((4, 0) if new == "both" else (2, 0))
    file.write_text(twins + "seeds: [0]\n")
    again = harness.run(file, device="cpu", jobs=0, store=store.parent / "twins")
    assert (again.scored, again.failed) == (2, 0)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:-1] + b"\1"], ids=["cut", "changed"]
)
def test_what_is_saved_again_replaces_a_damaged_artifact(tmp_path, damage):
    import torch

    tensors = {"weights": torch.zeros(3)}
    with Store(tmp_path) as store:
        digest, _ = store.save_tensors(tensors)
        (file,) = tmp_path.rglob("*.safetensors")
        whole = file.read_bytes()
        assert not store.write_file(artifact_name(digest), whole)
        file.write_bytes(damage(whole))
        store.save_tensors(tensors)
    assert file.read_bytes() == whole


def test_a_damaged_database_says_what_can_be_done(made, capsys):
    file, store = made
    database = store / "store.sqlite"
    whole = database.read_bytes()
    options = ["--store", str(store), "--device", "cpu"]
    for content in (b"something else entirely" * 1000, whole[:4096] + b"\x5a" * (len(whole) - 4096)):
        database.write_bytes(content)
        for command in (["plan", str(file), *options], ["run", str(file), "--jobs", "0", *options]):
            assert cli.main(command) == 2
            said = capsys.readouterr().err
            assert f"error: the store {store} is damaged: " in said
            assert "or put back a copy of this one" in said
        assert cli.main(["doctor", "--store", str(store), "--json"]) == 1
        (problem,) = json.loads(capsys.readouterr().out)["problems"]
        assert problem.count("put back a copy") == 1
    database.write_bytes(whole)
    assert harness.run(file, device="cpu", jobs=0, store=store).scored == 2


@pytest.mark.parametrize("table", ["records", "stages"])
@pytest.mark.parametrize("where", ["index", "row"])
def test_an_altered_name_of_a_row_makes_no_second_row_and_stops_no_run(table, where, made):
    """Where an index lacked a cell, every later run would write one more record of it, and boards count it twice."""
    file, store = made
    before = Store.reading(store).records()
    column, after = {"records": ("id", b"scored"), "stages": ("key", b"clean")}[table]
    with sqlite3.connect(store / "store.sqlite") as database:
        kind = "" if table == "records" else " WHERE kind='clean'"
        name = database.execute(f"SELECT {column} FROM {table}{kind}").fetchone()[0].encode()
    database.close()
    data = (store / "store.sqlite").read_bytes()
    # A row is the name and then the next column; in an index its number follows. In JSON the name is in quotes.
    places = [found.start() for found in re.finditer(b'(?<!")' + name, data)]
    (place,) = (p for p in places if data[p + len(name) :].startswith(after) == (where == "row"))
    (store / "store.sqlite").write_bytes(data[:place] + b"!" + data[place + 1 :])
    if (table, where) == ("stages", "index"):
        change(store, "UPDATE records SET record='{' WHERE rowid=1")  # so that the stages are read
    for _ in range(2):
        assert harness.run(file, device="cpu", jobs=0, store=store).scored == 2
        found = Store.reading(store).records()
        assert sorted(r["id"] for r in found) == sorted(r["id"] for r in before)
    with sqlite3.connect(store / "store.sqlite") as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()


# stores that are only read ------------------------------------------------------------------------


def test_a_store_opened_to_read_is_not_written(made, tmp_path):
    store = made[1]
    before = {p: p.stat().st_mtime_ns for p in store.rglob("*") if p.name == "store.sqlite"}
    with Store(store, read_only=True) as opened:
        assert len(opened.records()) == 2
        opened.put_fact("a", {"n": 1})
        assert opened.fact("a") is None
        with pytest.raises(StoreError, match="cannot be written"):
            opened.put_record(opened.records()[0], "mark")
    assert {p: p.stat().st_mtime_ns for p in before} == before
    with pytest.raises(StoreError, match=r"holds no store\.sqlite"):
        Store(tmp_path / "none", read_only=True)
    assert not (tmp_path / "none").exists()


def test_reading_commands_take_a_store_that_cannot_be_written(made, monkeypatch, capsys):
    file, store = made
    monkeypatch.setattr("harness.store.may_write", lambda database: False)
    cell = Store(store, read_only=True).records()[0]["id"]
    monkeypatch.setattr("harness.database._open", lambda path: pytest.fail("opened to write"))
    assert cli.main(["plan", str(file), "--store", str(store), "--device", "cpu"]) == 0
    assert cli.main(["explain", cell, "--store", str(store)]) == 0


def test_a_folder_without_write_access_is_read(made):
    file, store = made
    folders = [store, *(p for p in store.rglob("*") if p.is_dir())]
    try:
        for path in [*(p for p in store.rglob("*") if p.is_file()), *folders]:
            path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
        if os.access(store, os.W_OK):
            pytest.skip("this user may write everywhere")
        found = harness.plan(file, device="cpu", jobs=1, store=store).to_dict()
        assert found["stages"]["train"]["cached"] == 2
    finally:
        for path in folders:
            path.chmod(0o755)


@pytest.mark.parametrize("closed", ["", "store.sqlite"])
def test_a_store_that_cannot_be_opened_to_write_names_what_is_closed(closed, tmp_path, monkeypatch):
    (tmp_path / "store.sqlite").mkdir()  # so that the database cannot be opened
    place = tmp_path / closed
    monkeypatch.setattr("harness.database.os.access", lambda path, mode: path != place)
    with pytest.raises(
        StoreError, match=rf"^the store {tmp_path} cannot be written: no write access to {place} \("
    ):
        Store(tmp_path)
    monkeypatch.undo()
    with pytest.raises(StoreError, match=r"^cannot use the store .*: unable to open database file$"):
        Store(tmp_path)
