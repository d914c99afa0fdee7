"""Merging: shards equal the unsharded run, what overlaps is said, what contradicts is never mixed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from test_runner import BASE, comparable

import harness
from harness.artifacts import artifact_name
from harness.cli import main
from harness.comparable import comparable_result, depends_on_rounding
from harness.errors import HarnessError, StoreError
from harness.merge import merge
from harness.scenario import load_text
from harness.store import Store

GRID = """
aggregators: [mean, [nnm, trimmed-mean]]
compressors: [none, magnitude-pruning: {ratio: 0.5}]
threats:
  - {name: none}
  - {name: evasion, budget: {norm: linf, eps: 0.1}, attacks: [pgd: {steps: 2}]}
  - {name: backdoor, malicious: 0.25, attacks: [badnets: {target: 1}]}
  - {name: membership, attacks: [loss-threshold]}
"""
SMALL = """
aggregators: [mean, median]
compressors: [none, magnitude-pruning: {ratio: 0.5}]
threats: [{name: none}, {name: e, budget: {norm: linf, eps: 0.1}, attacks: [fgsm]}]
"""


def run(store: Path, text: str = SMALL, **options):
    scenario = load_text(BASE + text, store.parent / "small.yaml")
    return harness.run(scenario, device="cpu", jobs=0, store=store, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """Three stores of SMALL: all of it, and a shard for each aggregator. Tests work on copies."""
    folder = tmp_path_factory.mktemp("stores")
    run(folder / "all")
    for name in ("mean", "median"):
        run(folder / name, select=f"aggregator={name}")
    return {name: folder / name for name in ("all", "mean", "median")}


@pytest.fixture
def stores(made, tmp_path):
    """Copies a store of `made` to a new place."""

    def copy(**wanted: str) -> list[Path]:
        return [Path(shutil.copytree(made[kind], tmp_path / name)) for name, kind in wanted.items()]

    return copy


def records(store: Path) -> dict[str, dict]:
    with Store(store) as opened:
        return {r["id"]: r for r in opened.records()}


def altered(store: Path, aggregator: str, change) -> str:
    """Changes the record of one cell in place; returns its id."""
    with Store(store) as opened:
        record, mark = next(
            (r, m)
            for r, m in opened.marked_records()
            if r["cell"]["aggregator"] == aggregator and r["cell"]["attack"] == "none"
        )
        change(record)
        opened.put_record(record, mark)
        return record["id"]


def test_merged_shards_equal_the_unsharded_run(tmp_path):
    whole = run(tmp_path / "whole", GRID)
    shards = [run(tmp_path / f"s{i}", GRID, shard=f"{i}/3") for i in (1, 2, 3)]
    assert [len(s.records) > 0 for s in shards] == [True] * 3
    report = merge([tmp_path / f"s{i}" for i in (1, 2, 3)], tmp_path / "all")
    assert (report.conflicts, report.damaged, report.notes, report.overlapping) == ([], [], [], 0)
    assert report.cells == report.new_cells == len(whole.records)
    found = records(tmp_path / "all")
    for record in whole.records:
        assert comparable(found[record["id"]]) == comparable(record)
    again = run(tmp_path / "all", GRID)
    assert sum(again.executed.values()) == 0
    assert sum(again.cached.values()) == sum(whole.executed.values())


def test_what_overlaps_is_kept_once_and_said(stores, tmp_path):
    stores(a="mean", b="all")
    before = records(tmp_path / "a")
    report = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert not report.conflicts
    assert (report.cells, report.overlapping) == (8, 4)
    assert {k: v for k, v in records(tmp_path / "all").items() if k in before} == before
    twice = merge([tmp_path / "b"], tmp_path / "all")
    assert (twice.new_cells, twice.stages, twice.files, twice.overlapping) == (0, 0, 0, 8)


def test_other_scores_of_one_cell_are_reported_and_not_taken(stores, tmp_path, capsys):
    stores(a="all", b="all")
    bad = altered(tmp_path / "b", "median", lambda r: r["scores"].update(accuracy=0.123456))
    status = main(
        ["merge", str(tmp_path / "a"), str(tmp_path / "b"), "--into", str(tmp_path / "all"), "--json"]
    )
    assert status == 1
    report = json.loads(capsys.readouterr().out)
    (conflict,) = report["conflicts"]
    assert bad in conflict
    assert "none / median / none" in conflict
    assert "scores.accuracy" in conflict
    assert "0.123456" in conflict
    assert str(tmp_path / "a") in conflict
    assert str(tmp_path / "b") in conflict
    found = records(tmp_path / "all")
    assert bad not in found
    assert len(found) == 7
    again = run(tmp_path / "all")  # the cell is made again from stages that nobody contradicts
    assert len(again.records) == 8


def test_measured_times_are_no_contradiction(stores, tmp_path):
    stores(a="all", b="all")

    def slower(record):
        record["train_seconds"] += 5
        record["scores"]["train_seconds"] += 5
        record["provenance"]["device_name"] = "another processor"

    altered(tmp_path / "b", "mean", slower)
    report = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert not report.conflicts
    assert report.overlapping == 8


def test_another_training_of_one_key_taints_all_that_was_made_from_it(stores, tmp_path):
    """Two machines whose processors round differently: other weights, though the scores may agree."""
    stores(a="all", b="all")
    with Store(tmp_path / "b") as store:
        row = next(r for r in store.stage_rows() if r.kind == "train" and "median" in r.label)
        weights = store.load_tensors(row.result["artifacts"][0])
        other, _ = store.save_tensors({n: torch.nextafter(t, t + 1) for n, t in weights.items()})
        store.adopt([row._replace(result={**row.result, "artifacts": [other]})], [], {})
    report = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert sum(text.startswith("stage train none · median") for text in report.conflicts) == 1
    assert sum("made from a stage that is in conflict" in text for text in report.conflicts) == 4
    found = records(tmp_path / "all")
    assert {r["cell"]["aggregator"] for r in found.values()} == {"mean"}
    with Store(tmp_path / "all") as store:
        assert not [r for r in store.stage_rows() if "median" in r.label]
        assert not (tmp_path / "all" / artifact_name(other)).exists()
    again = run(tmp_path / "all")
    assert (again.scored, again.executed["train"], again.cached["train"]) == (8, 1, 1)


def test_cells_of_other_versions_of_a_scenario_are_not_mixed(stores, tmp_path):
    stores(a="mean")
    run(tmp_path / "b", SMALL + "metrics: [accuracy, robust-accuracy]")
    report = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert len(report.conflicts) == 4
    assert all("another content of the scenario" in text for text in report.conflicts)
    assert len(records(tmp_path / "all")) == 4


def test_many_cells_in_conflict_for_one_reason_are_one_line(stores, tmp_path):
    stores(a="all")
    run(tmp_path / "b", SMALL + "metrics: [accuracy, robust-accuracy]")
    (conflict,) = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "into").conflicts
    assert ": 8 cells: made from other stages (another content of the scenario) in " in conflict


def test_shards_of_other_libraries_are_noted(stores, tmp_path):
    stores(a="mean", b="median")
    altered(tmp_path / "b", "median", lambda r: r["provenance"]["libraries"].update(torch="1.0"))
    report = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert not report.conflicts
    assert [note for note in report.notes if "different versions of torch" in note]


def test_a_success_replaces_a_failure(stores, tmp_path):
    stores(a="all", b="all")

    def fail(record):
        record.update(
            status="failed", scores={}, error={"type": "MemoryError", "message": "", "traceback": ""}
        )

    cell = altered(tmp_path / "a", "mean", fail)
    report = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert not report.conflicts
    assert [note for note in report.notes if cell in note and "failed in" in note]
    assert records(tmp_path / "all")[cell]["status"] == "scored"


def test_a_damaged_file_is_left_out_and_named(stores, tmp_path):
    stores(a="all")
    with Store(tmp_path / "a") as store:
        row = next(r for r in store.stage_rows() if r.kind == "train" and "median" in r.label)
    file = tmp_path / "a" / artifact_name(row.result["artifacts"][0])
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    report = merge([tmp_path / "a"], tmp_path / "all")
    assert [text for text in report.damaged if row.result["artifacts"][0][:12] in text]
    assert len(records(tmp_path / "all")) == 8
    with Store(tmp_path / "all") as store:
        assert store.stage_result(row.key) is None
    # Another store has it whole.
    stores(b="all")
    assert merge([tmp_path / "a", tmp_path / "b"], tmp_path / "both").stages == 12
    with Store(tmp_path / "both") as store:
        assert store.stage_result(row.key) is not None


def test_a_store_in_use_is_not_merged(stores, tmp_path):
    stores(a="mean")
    with (
        Store(tmp_path / "a") as store,
        store.lock(),
        pytest.raises(StoreError, match="in use by process"),
    ):
        merge([tmp_path / "a"], tmp_path / "all")
    assert records(tmp_path / "all") == {}


@pytest.mark.parametrize("locked", [True, False])
def test_a_source_that_cannot_be_written_is_only_read(locked, stores, tmp_path, monkeypatch):
    (source,) = stores(a="mean")
    if not locked:  # as in a copy of what matters
        (source / "lock").unlink()
    (source / "artifacts" / ".draft.partial").touch()
    before = {p: p.read_bytes() for p in source.rglob("*") if p.is_file()}
    monkeypatch.setattr("harness.store.may_write", lambda folder: folder != source)
    report = merge([source], tmp_path / "all")
    assert report.cells == report.new_cells == len(records(tmp_path / "all")) == 4
    assert {p: p.read_bytes() for p in before} == before
    if locked:
        monkeypatch.undo()
        with Store(source) as running, running.lock():
            monkeypatch.setattr("harness.store.may_write", lambda folder: folder != source)
            with pytest.raises(StoreError, match="in use by process"):
                merge([source], tmp_path / "other")
        assert not (tmp_path / "other").exists()


def test_an_interrupted_merge_leaves_a_valid_store_and_goes_on(stores, tmp_path):
    stores(a="all")

    def stop(done: int, total: int, name: str) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge([tmp_path / "a"], tmp_path / "all", stop)
    assert records(tmp_path / "all") == {}
    report = merge([tmp_path / "a"], tmp_path / "all")
    assert report.new_cells == 8
    assert 0 < report.files < len(list((tmp_path / "all" / "artifacts").rglob("*.safetensors")))
    assert sum(run(tmp_path / "all").executed.values()) == 0


def test_flags_of_masking_are_found_again(tmp_path):
    """Attacks of one model that were run apart are compared when they come together."""
    text = """
threats:
  - {name: e, budget: {norm: linf, eps: 0.1}, attacks: [fgsm, square: {queries: 20}]}
"""
    run(tmp_path / "a", text, select="attack=fgsm*")
    run(tmp_path / "b", text, select="attack=square*")

    with Store(tmp_path / "a") as store:
        ((record, mark),) = store.marked_records()
        record["scores"]["robust_accuracy"] = 0.99  # gradients find nothing, questions do
        store.put_record(record, mark)
    report = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert report.new_cells == 2
    flags = [r["flags"] for r in records(tmp_path / "all").values()]
    assert flags == [["gradient-masking-suspected"]] * 2


def test_a_store_that_is_older_than_a_flag_contradicts_nothing(stores, tmp_path):
    stores(a="all", b="all")
    with Store(tmp_path / "a") as store:
        rows = [row for row in store.stage_rows() if row.kind == "clean"]
        older = [{name: value for name, value in row.result.items() if name != "constant"} for row in rows]
        assert older != [row.result for row in rows]
        store.adopt([row._replace(result=result) for row, result in zip(rows, older, strict=True)], [], {})
    altered(tmp_path / "b", "median", lambda r: r["flags"].append("constant-predictions"))
    report = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert (report.conflicts, report.overlapping) == ([], 8)


def test_bad_input_is_said(stores, tmp_path):
    stores(a="mean")
    (tmp_path / "empty").mkdir()
    for sources, words in (
        (["empty"], "is no store"),
        (["a", "all"], "is no store"),
        (["a", "a"], "given twice"),
    ):
        with pytest.raises(HarnessError, match=words):
            merge([tmp_path / s for s in sources], tmp_path / "all")
    with pytest.raises(HarnessError, match="both merged and merged into"):
        merge([tmp_path / "a"], tmp_path / "a")


TOGETHER = """
seeds: [0, 1]
compute: {clients: vectorised, trainings: 2}
defences: [none, dp-sgd: {noise_multiplier: 1.0}]
"""


def test_how_many_trainings_were_one_program_is_no_contradiction(tmp_path):
    """One store has trained two seeds as one program, the other one of them alone."""
    run(tmp_path / "a", TOGETHER)
    run(tmp_path / "b", TOGETHER, select="seed=1")
    executions = [
        next(r for r in records(tmp_path / name).values() if r["cell"]["seed"] == 1)["training"]["execution"]
        for name in "ab"
    ]
    assert [execution.get("trainings") for execution in executions] == [2, None]
    report = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert report.conflicts == []
    assert (report.cells, report.overlapping) == (4, 2)


def rounded(store: Path, by: float, losses: float) -> None:
    """Every training of a store off by this share, and every loss by that one."""
    with Store(store) as opened:
        changed = []
        for row in opened.stage_rows():
            result = row.result
            if row.kind == "train":
                digest, *others = result["artifacts"]
                weights = {n: t * (1 + by) for n, t in opened.load_tensors(digest).items()}
                result = {**result, "artifacts": [opened.save_tensors(weights)[0], *others]}
            if row.kind == "clean":
                scores = {**result["scores"], "loss": result["scores"]["loss"] * (1 + losses)}
                result = {**result, "scores": scores}
            changed.append(row._replace(result=result))
        kept = []
        for record, mark in opened.marked_records():
            record["scores"]["loss"] *= 1 + losses
            kept.append((record, mark))
        opened.adopt(changed, kept, {})


@pytest.mark.parametrize(
    ("text", "by", "losses", "conflicts"),
    [
        (TOGETHER, 1e-7, 1e-7, 0),
        (TOGETHER, 1e-7, 1e-3, 0),  # as where a prediction has flipped
        (TOGETHER, 1e-7, 1.0, 8),
        (TOGETHER, 1e-2, 1e-7, 8),
        (TOGETHER.replace("vectorised", "sequential"), 1e-7, 1e-7, 12),
    ],
)
def test_last_digits_may_differ_where_clients_train_as_one_program_and_nowhere_else(
    text, by, losses, conflicts, tmp_path
):
    run(tmp_path / "a", text)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    rounded(tmp_path / "b", by, losses)
    report = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert len(report.conflicts) == conflicts
    if conflicts:
        assert report.cells == 0
        return
    assert records(tmp_path / "all") == records(tmp_path / "a")  # the first is kept, and said to be
    assert [note for note in report.notes if "12 cells and stages differ by rounding alone" in note]
    with Store(tmp_path / "a") as first, Store(tmp_path / "all") as kept:
        for row in first.stage_rows():
            assert kept.stage_result(row.key) == row.result
    assert sum(run(tmp_path / "all", text).executed.values()) == 0


def test_what_the_clock_decides_is_allowed_for():
    """Under `clients: auto` a GPU trains as one program or not, by a calibration."""
    record = {
        "config": {"compute": {"clients": "auto"}},
        "provenance": {"device": "cuda:0"},
        "training": {"execution": {"clients": "sequential", "calibration": [{}]}},
    }
    assert depends_on_rounding(record)
    assert not depends_on_rounding(record | {"provenance": {"device": "cpu"}})
    assert depends_on_rounding(record | {"config": {"compute": {"clients": "vectorised"}}})
    one = {"execution": {"clients": "vectorised", "chunk": 4, "channels_last": True}, "chunk": 2}
    assert comparable_result(one, ()) == {"execution": {"channels_last": True}, "chunk": 2}


def test_a_merge_that_does_not_begin_leaves_nothing_behind(stores, tmp_path):
    (source,) = stores(source="mean")
    target = tmp_path / "new"
    with Store(source) as opened, opened.lock(), pytest.raises(StoreError, match="in use"):
        merge([source], target)
    assert not target.exists()
    target.mkdir()
    (target / "notes.txt").touch()
    with Store(source) as opened, opened.lock(), pytest.raises(StoreError, match="in use"):
        merge([source], target)
    assert [p.name for p in target.iterdir()] == ["notes.txt"]
