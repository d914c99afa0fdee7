"""The trackers, read back: rounds, scores and parameters of a run, also where it failed or was cut short."""

from __future__ import annotations

import json
import math
import sqlite3
from typing import ClassVar

import pytest

import harness
from harness.observers import Observers
from harness.testing.trackers import events

SCENARIO = """
schema: 1
name: tracked
dataset: digits
model: logistic
federation: {clients: 2, rounds: 2, evaluate_every: 1}
aggregators: [mean, median]
threats: [{name: none}]
seeds: [0]
trackers:
  - jsonl: {path: events.jsonl}
"""


def follow(tracker, happened):
    for name, arguments in happened:
        hook = getattr(tracker, name, None)
        if hook is not None:
            hook(**arguments)


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# JSON lines -------------------------------------------------------------------------------------


def test_jsonl_has_every_event(here):
    follow(harness.create("tracker", "jsonl"), events())
    written = lines(here / "runs" / "events.jsonl")
    assert [line["event"] for line in written] == [
        "run_started", "round_finished", "round_finished", "round_finished", "cell_finished", "run_finished",
    ]  # fmt: skip
    assert {line["run"] for line in written} == {"run-1"}
    assert (written[2]["stage"], written[2]["round"], written[2]["val_accuracy"]) == (
        "train none mean",
        2,
        0.75,
    )
    cell = written[4]
    assert cell["scores"] == {"accuracy": 0.75}
    assert cell["parameters"]["aggregator"] == "mean"
    assert cell["parameters"]["seed"] == "0"


def test_jsonl_is_whole_after_every_event(here):
    """A run that is killed keeps what was written: each line is complete as soon as its event is over."""
    tracker = harness.create("tracker", "jsonl", path="deep/down/events.jsonl")
    for number, event in enumerate(events()[:4], 1):
        follow(tracker, [event])
        assert len(lines(here / "deep/down/events.jsonl")) == number - (
            number > 1
        )  # no line for a cell's start


def test_jsonl_writes_null_for_nan_and_reasons_for_failures(here):
    follow(harness.create("tracker", "jsonl", path="a.jsonl"), events(value=float("nan")))
    assert lines(here / "a.jsonl")[4]["scores"] == {"accuracy": None}
    follow(harness.create("tracker", "jsonl", path="b.jsonl"), events(status="failed"))
    failed = lines(here / "b.jsonl")[4]
    assert (failed["status"], failed["error"], failed["scores"]) == ("failed", "E: m", {})


def test_real_run_is_tracked(here):
    (here / "tracked.yaml").write_text(SCENARIO)
    result = harness.run(here / "tracked.yaml", device="cpu", jobs=0, store=here / "store")
    assert result.problems == []
    written = lines(here / "events.jsonl")
    rounds = [line for line in written if line["event"] == "round_finished"]
    assert len(rounds) == 4  # two trainings of two rounds
    for record in result.records:
        cell = next(
            line for line in written if line["event"] == "cell_finished" and line["id"] == record["id"]
        )
        assert cell["scores"]["accuracy"] == record["scores"]["accuracy"]
        assert cell["cell"] == record["cell"]
        last = record["history"][-1]
        assert any(r["val_accuracy"] == last["val_accuracy"] and r["round"] == 2 for r in rounds)
    assert written[-1]["event"] == "run_finished"
    assert written[-1]["scored"] == 2


# MLflow -----------------------------------------------------------------------------------------


def mlflow_runs(here):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{here}/m.db")
    experiment = client.get_experiment_by_name("psr-harness")
    found = client.search_runs([experiment.experiment_id])
    return client, {run.info.run_name: run for run in found}


def mlflow_tracker(here):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    return harness.create("tracker", "mlflow", uri=f"sqlite:///{here}/m.db")


def test_mlflow_has_rounds_scores_and_parameters(here):
    follow(mlflow_tracker(here), events())
    client, runs = mlflow_runs(here)
    parent, cell = runs["run run-1"], runs["cell 0123456789ab"]
    history = client.get_metric_history(parent.info.run_id, "train none mean/val_accuracy")
    assert [(point.step, point.value) for point in history] == [(1, 0.75), (2, 0.75)]
    assert parent.info.status == "FINISHED"
    assert cell.data.metrics == {"accuracy": 0.75}
    assert cell.data.params["aggregator"] == "mean"
    assert cell.data.params["seed"] == "0"
    assert cell.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert cell.info.status == "FINISHED"


def test_mlflow_tells_failures_and_interruptions(here):
    happened = events(status="failed")
    happened[-1][1]["run"].update(scored=0, failed=0)  # the run was interrupted before its cells were done
    follow(mlflow_tracker(here), happened)
    _, runs = mlflow_runs(here)
    assert runs["run run-1"].info.status == "KILLED"
    assert runs["cell 0123456789ab"].info.status == "FAILED"
    assert runs["cell 0123456789ab"].data.tags["harness.reason"] == "E: m"


def test_mlflow_has_written_before_the_run_ends(here):
    """What was tracked of a run that is killed is in the database."""
    follow(mlflow_tracker(here), events()[:4])
    with sqlite3.connect(here / "m.db") as database:
        stored = database.execute(
            "select key, value, step from metrics where key like '%val_accuracy'"
        ).fetchall()
    assert stored == [("train none mean/val_accuracy", 0.75, 1), ("train none mean/val_accuracy", 0.75, 2)]


# TensorBoard ------------------------------------------------------------------------------------


def curves(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_tensorboard_has_rounds_scores_and_parameters(here):
    pytest.importorskip("tensorboard")
    follow(harness.create("tracker", "tensorboard"), events())
    run = curves(here / "tensorboard" / "run-1")
    points = [(point.step, point.value) for point in run.Scalars("train none mean/val_accuracy")]
    assert points == [(1, 0.75), (2, 0.75)]
    cell = curves(here / "tensorboard" / "run-1" / "0123456789ab")
    assert [point.value for point in cell.Scalars("scores/accuracy")] == [0.75]
    content = cell.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"aggregator" in content
    assert b"mean" in content


def test_tensorboard_tells_failures_and_flushes(here):
    pytest.importorskip("tensorboard")
    tracker = harness.create("tracker", "tensorboard", folder="curves")
    follow(tracker, events(status="failed")[:-1])  # killed before the run's end
    run = curves(here / "curves" / "run-1")
    assert run.Scalars("train none mean/val_loss")[-1].step == 2
    text = run.Tensors("cells/0123456789ab/text_summary")[0].tensor_proto.string_val[0]
    assert text == b"failed: E: m"


def test_tensorboard_takes_nan(here):
    pytest.importorskip("tensorboard")
    follow(harness.create("tracker", "tensorboard"), events(value=float("nan")))
    assert math.isnan(curves(here / "tensorboard/run-1").Scalars("train none mean/val_loss")[0].value)


# whatever a tracker does, the run goes on ---------------------------------------------------------


class Failing(harness.create("tracker", "jsonl").__class__):  # type: ignore[misc]
    """Raises at every round."""

    name = "failing"

    def harness_round_finished(self, stage, round):
        raise OSError("no space left")


def test_exception_is_reported_once_and_stops_nothing(here):
    failing, sound = Failing(path="a.jsonl"), harness.create("tracker", "jsonl", path="b.jsonl")
    observers = Observers(None, [failing, sound])
    run = {"id": "r", "store": "runs", "cells": 1}
    observers.run_started(run, {})
    for number in (1, 2):
        observers.stage_progress("key", number, 2, "", {"round": number, "clients": 3})
    observers.run_finished(run, None)
    assert observers.problems == [
        "tracker failing.harness_round_finished raised OSError: no space left; it is not called again in this run"
    ]
    assert [line["event"] for line in lines(here / "a.jsonl")] == ["run_started", "run_finished"]
    assert len([line for line in lines(here / "b.jsonl") if line["event"] == "round_finished"]) == 2


class Unready(Failing):
    """Cannot begin."""

    name = "unready"

    def harness_run_started(self, run):
        raise OSError("no server")


def test_a_tracker_that_could_not_begin_is_not_told_the_rest(here):
    observers = Observers(None, [Unready(path="a.jsonl")])
    run = {"id": "r", "store": "runs", "cells": 1}
    observers.run_started(run, {})
    observers.stage_progress("key", 1, 1, "", {"round": 1, "clients": 3})
    observers.run_finished(run, None)
    assert observers.problems == [
        "tracker unready.harness_run_started raised OSError: no server; it is not called again in this run"
    ]
    assert not (here / "a.jsonl").exists()


def test_a_display_that_raises_is_reported_once_and_stops_nothing():
    class Display:
        """Lacks most methods that a display has."""

        said: ClassVar = []

        def stage_started(self, key, kind, label):
            self.said.append(key)
            raise ValueError("no such colour")

    observers = Observers(Display())
    observers.stage_started("first", "train", "none")
    observers.stage_started("second", "train", "none")
    observers.stage_finished("first", "train", "none", "done", 1.0, None)
    assert Display.said == ["first"]
    assert observers.problems == [
        "the display raised ValueError: no such colour; it is not called again in this run"
    ]
