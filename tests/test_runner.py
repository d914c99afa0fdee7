"""Runs: determinism, resuming, interruption, and plugins that must not take anything down."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import engine_plugins
import pytest
from rich.console import Console

import harness
from harness.console.tables import render_leaderboard
from harness.errors import HarnessError, StoreError
from harness.evaluation.dropped import Dropped, dropped
from harness.registry import registry
from harness.scenario import load_text
from harness.store import Store

BASE = """
schema: 1
name: small
dataset: digits
model: {mlp: {hidden: [8]}}
federation: {clients: 4, rounds: 2, local: {epochs: 1, batch_size: 16, optimizer: {sgd: {lr: 0.2}}}}
"""
GRID = """
defences: [none, gradient-clipping: {max_norm: 1.0}]
aggregators: [[nnm, trimmed-mean]]
compressors: [none, static-int8]
threats:
  - {name: none}
  - {name: evasion, budget: {norm: linf, eps: 0.1}, surrogate: uncompressed, attacks: [pgd: {steps: 2}]}
  - {name: byzantine, malicious: 0.25, attacks: [sign-flip]}
  - {name: backdoor, malicious: 0.25, attacks: [badnets: {target: 1}]}
  - {name: membership, attacks: [loss-threshold]}
"""


@pytest.fixture(scope="module", autouse=True)
def _misbehaving():
    if "crash-in-round" not in registry().names("aggregator"):
        registry().add(engine_plugins, "engine_plugins", "engine-tests")
    assert not [d for d in registry().disabled if d.distribution == "engine-tests"]


def run(text: str, tmp_path: Path, **options):
    base = "".join(line for line in BASE.splitlines(True) if line.split(":")[0] != text.split(":")[0])
    scenario = load_text(base + text, tmp_path / "small.yaml")
    return harness.run(scenario, **{"device": "cpu", "jobs": 0, "store": tmp_path / "runs", **options})


def comparable(record: dict) -> dict:
    """Everything that must not depend on when or how a cell was computed."""
    measured = {name for name, unit in record["units"].items() if unit["measured"]}
    keep = ("id", "cell", "status", "guarantee", "flags", "attack", "config", "test_samples")
    history = [{k: v for k, v in entry.items() if k != "seconds"} for entry in record["history"]]
    scores = {k: v for k, v in record["scores"].items() if k not in measured}
    return {
        **{k: record[k] for k in keep},
        "scores": scores,
        "history": history,
        "stages": record["provenance"]["stages"],
    }


def test_the_same_records_whatever_the_number_of_jobs(tmp_path):
    inline = run(GRID, tmp_path, jobs=0, store=tmp_path / "a")
    workers = run(GRID, tmp_path, jobs=2, store=tmp_path / "b")
    assert inline.failed == workers.failed == 0
    assert inline.scored == len(inline.records) == 2 * 2 * 5
    assert inline.executed == workers.executed
    for a, b in zip(inline.records, workers.records, strict=True):
        assert comparable(a) == comparable(b)


def test_a_second_run_computes_nothing(tmp_path):
    first = run("compressors: [none, static-int8]", tmp_path)
    second = run("compressors: [none, static-int8]", tmp_path)
    assert sum(first.executed.values()) == 4
    assert sum(second.executed.values()) == 0
    assert second.records == first.records


def test_adding_to_a_scenario_computes_only_what_is_new(tmp_path):
    run("", tmp_path)
    more = run(
        "compressors: [none, static-int8]\nthreats: [{name: none}, {name: e, attacks: [fgsm]}]\nmetrics: [accuracy]",
        tmp_path,
    )
    assert more.executed["train"] == 0
    assert more.executed["compress"] == 1


def test_a_cell_of_a_lost_artifact_is_made_again(tmp_path):
    first = run("", tmp_path)
    for file in (tmp_path / "runs").rglob("*.safetensors"):
        file.unlink()
    again = run("threats: [{name: none}, {name: e, attacks: [fgsm]}]", tmp_path)
    assert again.executed["train"] == 1
    assert comparable(again.records[0]) == comparable(first.records[0])


@pytest.mark.parametrize(
    ("text", "kind", "message", "stage"),
    [
        ("aggregators: [mean, crash-in-round]", "RuntimeError", "the disk is made of cheese", "train"),
        ("aggregators: [mean, wrong-shape]", "PluginError", "wrong-shape returned", "train"),
        ("aggregators: [mean, exits]", "SystemExit", "5", "train"),
        ("aggregators: [mean, mute]", "Broken", "mute: Broken, whose text failed with ValueError", "train"),
        (
            "threats: [{name: none}, {name: e, budget: {norm: linf, eps: 0.1}, attacks: [too-far]}]",
            "BudgetExceeded",
            "too-far",
            "attack",
        ),
    ],
)
def test_a_crash_fails_its_cell_and_nothing_else(text, kind, message, stage, tmp_path):
    result = run(text, tmp_path)
    good, bad = result.records
    assert (good["status"], bad["status"]) == ("scored", "failed")
    assert bad["error"]["type"] == kind
    assert message in bad["error"]["message"]
    assert bad["error"]["stage"].startswith(stage)
    assert "Traceback" in bad["error"]["traceback"]
    assert bad["scores"] == {}
    kept = Store(tmp_path / "runs").records("small")
    assert sorted(r["status"] for r in kept) == ["failed", "scored"]


def test_a_worker_survives_an_interrupt_of_a_plugin_and_a_process_that_it_forked(tmp_path):
    interrupted, forked, good = run("aggregators: [interrupts, forks, mean]", tmp_path, jobs=1).records
    assert interrupted["error"]["type"] == "KeyboardInterrupt"
    assert "not the user" in interrupted["error"]["traceback"]
    assert [forked["status"], good["status"]] == ["scored", "scored"]


def test_what_a_plugin_keeps_on_itself_ends_with_its_stage(tmp_path):
    text = "aggregators: [remembers]\nmetrics: [loss]\nseeds: [{}]"
    both, alone = (run(text.format(seeds), tmp_path / seeds) for seeds in ("0, 1", "1"))
    assert both.records[1]["scores"] == alone.records[0]["scores"]


def test_failed_cells_are_tried_again(tmp_path):
    assert run("aggregators: [crash-in-round]", tmp_path).executed["train"] == 0
    assert run("aggregators: [crash-in-round]", tmp_path).failed == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("aggregators: [whole]", "whole returned torch.int64, not floating point"),
        ("aggregators: [no-update]", "no-update returned NoneType, not a tensor ("),
        ("aggregators: [array]", "array returned ndarray, not a tensor ("),
        ("aggregators: [[no-rows, mean]]", "no-rows returned Tensor, not (updates, context)"),
        (
            "aggregators: [keeps-strangers]",
            "keeps-strangers reported the kept row 99, and has the rows 0 to 3",
        ),
        ("defences: [[gradient-clipping: {max_norm: 1.0}, shortens]]", "shortens returned ("),
        (
            "defences: [[no-delta, gradient-clipping: {max_norm: 1.0}]]",
            "no-delta returned NoneType, not a tensor",
        ),
        ("defences: [no-network]", "no-network.inference returned NoneType, not a network"),
        ("threats: [{name: e, attacks: [no-images: {eps: 0.1}]}]", "no-images returned NoneType, not images"),
        ("metrics: [no-scores]", "metric no-scores returned NoneType, not a dictionary"),
        (
            "model: too-few-logits",
            "model too-few-logits: the network returns (1, 2) for 1 image, not logits (1, 10)",
        ),
        (
            "model: {too-few-logits: {logits: 20}}",
            "model too-few-logits: the network returns (1, 20) for 1 image, not logits (1, 10)",
        ),
        ("defences: [drops-records]", "drops-records.batch returned 8 images with 16 labels"),
        (
            "defences: [nine-logits]",
            "defence nine-logits, model mlp: the model returns 9 logits for 10 classes",
        ),
        ("defences: [model-lost]", "defence model-lost: model returned NoneType, not a network"),
        (
            "threats: [{name: b, malicious: 0.25, knowledge: omniscient, attacks: [few-rows]}]",
            "few-rows: context.aggregator takes 4 rows (610,), the 3 of `honest`, then the 1 crafted ones, not (1,",
        ),
    ],
)
def test_a_wrong_return_value_names_its_plugin(text, message, tmp_path):
    (record,) = run(text, tmp_path).records
    assert record["error"]["type"] == "PluginError"
    assert message in record["error"]["message"]


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("metrics: [accuracy, divides]", "ZeroDivisionError", "metric divides: integer division"),
        ("metrics: [writes]", "ValueError", "metric writes writes into an array of its context"),
        ("defences: [prepares-badly]", "KeyError", "defence prepares-badly: 'noise'"),
        ("aggregators: [crash-in-round]", "RuntimeError", "aggregator crash-in-round: the disk"),
        ("threats: [{name: e, attacks: [raises: {eps: 0.1}]}]", "RuntimeError", "attack raises: no way"),
    ],
)
def test_an_error_of_any_kind_says_whose_it_is(text, kind, message, tmp_path):
    (record,) = run(text, tmp_path).records
    assert record["error"]["type"] == kind
    assert record["error"]["message"].startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: no-module", "model no-module: build returned NoneType, not a network"),
        ("dataset: pair", "the dataset pair cannot be used: load returned tuple, not Splits"),
        ("dataset: exits-in-load", "dataset exits-in-load raised SystemExit: download it first"),
    ],
)
def test_what_cannot_even_be_planned_names_its_plugin(text, message, tmp_path):
    with pytest.raises(HarnessError) as error:
        run(text, tmp_path)
    assert message in str(error.value)


def test_nan_updates_are_dropped_counted_and_survived(tmp_path):
    result = run("defences: [nan-update]\naggregators: [mean, median]", tmp_path)
    assert result.failed == 0
    for record in result.records:
        assert record["training"]["dropped_updates"] == 2
        assert record["scores"]["accuracy"] > 0.3
        assert record["flags"] == ["updates-dropped"], "a quarter of all updates is many"


def test_a_training_that_lost_all_updates_has_no_score(tmp_path):
    """It would be that of the initial weights."""
    scenario = load_text(BASE.replace("lr: 0.2", "lr: 1e30"), tmp_path / "small.yaml")
    (record,) = harness.run(scenario, device="cpu", jobs=0, store=tmp_path / "runs").records
    said = "nothing was trained: all 8 updates were dropped, as none was finite; lower the learning rate"
    assert (record["status"], record["error"]["message"]) == ("failed", said)
    scenario = load_text(BASE + "defences: [trades: {beta: 1e30}]\n", tmp_path / "small.yaml")
    (record,) = harness.run(scenario, device="cpu", jobs=0, store=tmp_path / "runs").records
    own = ", or what scales the loss or the noise in the defences' parameters"
    assert (record["status"], record["error"]["message"]) == ("failed", said + own)


def test_a_training_that_lost_many_updates_is_flagged_and_said(tmp_path):
    text = BASE.replace("lr: 0.2", "lr: 1e30").replace("epochs: 1", "steps: 1")
    scenario = load_text(
        text + "threats: [{name: none}, {name: e, attacks: [fgsm]}]", tmp_path / "small.yaml"
    )
    result = harness.run(scenario, device="cpu", jobs=0, store=tmp_path / "runs")
    assert result.failed == 0, [r["error"] for r in result.records]
    for record in result.records:
        assert "updates-dropped" in record["flags"]
        assert dropped(record) == Dropped(updates=4, of=8, empty=1, rounds=2)
    assert [r["flags"] for r in run("", tmp_path).records] == [[]], "nothing was dropped: no flag"
    console = Console(file=io.StringIO(), width=200)
    render_leaderboard(result.records, console)
    (line,) = (line for line in console.file.getvalue().splitlines() if "updates dropped" in line)
    assert "×2: not finite, 4 of 8 in the worst training, which had 1 of 2 rounds without a usable" in line


@pytest.mark.parametrize(
    ("rounds", "matters"),
    [
        ([{"clients": 20, "dropped": 1}] * 2, False),
        ([{"clients": 20, "dropped": 2}] * 2, True),
        ([{"clients": 20}] * 30 + [{"clients": 1, "dropped": 1}], True),
        ([{"clients": 0}, {"clients": 3}], False),  # nobody was drawn: nothing was lost
        ([], False),
    ],
)
def test_how_many_dropped_updates_are_flagged(rounds, matters):
    assert dropped({"history": rounds}).matters is matters
    assert dropped({"compression": {"fine_tuning": [{"history": rounds}]}}).matters is matters


def test_a_score_that_is_not_declared_fails_the_cell(tmp_path):
    result = run("metrics: [accuracy, undeclared]", tmp_path)
    assert "does not declare" in result.records[0]["error"]["message"]


def test_a_defence_that_fits_nothing_is_not_run(tmp_path):
    result = run("defences: [none, never-fits]", tmp_path)
    assert [r["status"] for r in result.records] == ["scored", "not-applicable"]
    assert result.records[1]["reason"] == "never-fits fits nothing"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("crashes-in-check", "defence crashes-in-check: check divided by zero"),
        ("exits-in-check", "defence exits-in-check: 0"),
    ],
)
def test_a_check_that_crashes_fails_its_cell(name, message, tmp_path):
    good, bad = run(f"defences: [none, {name}]", tmp_path).records
    assert (good["status"], bad["status"]) == ("scored", "failed")
    assert bad["error"]["message"] == message


def test_a_model_that_cannot_be_built_is_bad_input(tmp_path):
    text = BASE.replace("{mlp: {hidden: [8]}}", "no-build")
    with pytest.raises(HarnessError, match="at least 1000 pixels"):
        harness.run(load_text(text, tmp_path / "x.yaml"), device="cpu", jobs=0, store=tmp_path / "runs")


def test_fail_fast_stops(tmp_path):
    result = run("aggregators: [crash-in-round, mean, median]", tmp_path, fail_fast=True)
    assert result.stopped
    assert result.executed["train"] == 0


def test_a_surrogate_that_no_other_cell_trains_is_trained(tmp_path):
    text = """
defences: [none, gradient-clipping: {max_norm: 1.0}]
threats: [{name: e, budget: {norm: linf, eps: 0.1}, attacks: [transfer: {attack: fgsm, source: other, defences: []}]}]
"""
    result = run(text, tmp_path, select="defence=gradient-clipping*")
    (record,) = result.records
    assert (record["status"], result.executed["train"]) == ("scored", 2)
    assert "surrogate train" in record["provenance"]["stages"]


def test_missing_data_skips_one_of_several_scenarios(tmp_path):
    other = BASE.replace("name: small", "name: absent").replace(
        "dataset: digits", "dataset: {npz: {path: nowhere.npz}}"
    )
    loaded = [load_text(BASE, tmp_path / "a.yaml"), load_text(other, tmp_path / "b.yaml")]
    result = harness.run(loaded, device="cpu", jobs=0, store=tmp_path / "runs")
    assert result.scored == 1
    ((name, reason),) = result.skipped
    assert "b.yaml" in name
    assert "nowhere.npz" in reason
    with pytest.raises(HarnessError, match=r"nowhere\.npz"):
        harness.run(loaded[1], device="cpu", jobs=0, store=tmp_path / "runs")


def test_records_hold_what_is_needed_to_trust_them(tmp_path):
    (record,) = run("defences: [gradient-clipping: {max_norm: 1.0}]", tmp_path).records
    provenance = record["provenance"]
    assert record["units"]["accuracy"]["direction"] == "higher"
    assert record["config"]["model"] == {"mlp": record["config"]["model"]["mlp"]}
    assert record["config"]["defence"] == [{"gradient-clipping": {"max_norm": 1.0}}]
    assert record["config"]["seed"] == 0
    assert provenance["engine"]["version"] == harness.__version__
    assert provenance["libraries"]["torch"]
    names = {(p["kind"], p["name"]) for p in provenance["plugins"]}
    assert {
        ("dataset", "digits"),
        ("aggregator", "mean"),
        ("defence", "gradient-clipping"),
        ("metric", "accuracy"),
    } <= names
    assert all(len(p["source"]) == 64 and p["distribution"] for p in provenance["plugins"])
    assert record["train_seconds"] > 0
    assert record["peak_memory_bytes"] > 1e6
    json.dumps(record["provenance"])


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_observers_see_everything_and_cannot_break_a_run(error, tmp_path):
    from harness.api import Tracker

    seen, rounds = [], []

    class Watcher(Tracker):
        """Writes down what happens, then falls over."""

        name = "watcher"

        def harness_run_started(self, run):
            seen.append("started")

        def harness_round_finished(self, stage, round):
            rounds.append((stage, round["round"], round["rounds"], "val_accuracy" in round))

        def harness_cell_finished(self, cell, record):
            seen.append((cell["aggregator"], record["status"]))
            raise error("watcher fell over")

        def harness_run_finished(self, run):
            seen.append(("finished", run["scored"]))

    scenario = load_text(BASE + "aggregators: [mean, median]", tmp_path / "x.yaml")
    scenario = scenario.model_copy(update={"trackers": (Watcher(),)})
    result = harness.run(scenario, device="cpu", jobs=0, store=tmp_path / "runs")
    assert seen == ["started", ("mean", "scored"), ("finished", 2)]
    labels = ("none · mean · seed 0", "none · median · seed 0")
    assert rounds == [(label, number, 2, True) for label in labels for number in (1, 2)]
    assert ["watcher fell over" in p for p in result.problems] == [True]


def test_two_runs_cannot_write_one_store(tmp_path):
    with Store(tmp_path / "runs") as store, store.lock(), pytest.raises(StoreError, match="in use"):
        run("", tmp_path)


# worker processes ---------------------------------------------------------------------------------


PROGRAM = """
    import signal, sys
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for what they run in background
    sys.path.insert(0, {tests!r})
    import engine_plugins, harness
    from harness.registry import registry
    registry().add(engine_plugins, "engine_plugins", "engine-tests")
    result = harness.run({scenario!r}, device="cpu", jobs=2, store={store!r}, timeout={timeout!r})
    print("executed", result.executed["train"], "interrupted", result.interrupted)
    for record in result.records:
        print(record["cell"]["aggregator"], record["status"], (record["error"] or {{}}).get("message"))
"""


def program(tmp_path: Path, text: str, timeout: float | None = None) -> list[str]:
    file = tmp_path / "small.yaml"
    file.write_text(f"{BASE}{text}\nmetrics: [accuracy]\n")  # the others import what takes seconds
    tests = str(Path(__file__).parent)
    code = textwrap.dedent(PROGRAM).format(
        tests=tests, scenario=str(file), store=str(tmp_path / "runs"), timeout=timeout
    )
    return [sys.executable, "-c", code]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}


def test_a_worker_that_dies_exits_or_hangs_fails_its_cell(tmp_path):
    text = "aggregators: [mean, dies, exits, hangs, median]"
    done = subprocess.run(
        program(tmp_path, text, timeout=12.0), capture_output=True, text=True, timeout=120, env=environment()
    )
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines()[1:])
    assert lines["mean"].startswith("scored")
    assert lines["median"].startswith("scored")
    assert "exited with 3" in lines["dies"]
    assert lines["exits"].startswith("failed")
    assert "longer than the limit of 12 s" in lines["hangs"]


def test_plugins_may_use_processes_and_none_is_left_when_their_worker_has_ended(tmp_path):
    fifo = tmp_path / "open while the process lives"
    os.mkfifo(fifo)
    held = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    text = f"aggregators: [uses-processes, leaves-a-process: {{file: {str(fifo)!r}}}]\nmetrics: [accuracy]"
    uses, leaves = run(text, tmp_path, jobs=1).records
    assert [uses["status"], leaves["status"]] == ["scored", "scored"]
    assert select.select([held], [], [], 30)[0]  # nobody can write any more
    assert os.read(held, 1) == b""
    os.close(held)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on_where_it_was(how, tmp_path):
    command = program(tmp_path, "aggregators: [mean, slow, median]")
    counted = Store(tmp_path / "runs")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not counted.seconds_by_signature():
        time.sleep(0.02)
    before = counted._db.execute("SELECT key, finished FROM stages WHERE status='done'")
    process.send_signal(how)
    output, _ = process.communicate(timeout=60)
    assert before
    if how == signal.SIGINT:
        assert "interrupted True" in output
    # The lock is free at once: nothing of the first run is left holding it.
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment())
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("scored") == 3
    after = dict(counted._db.execute("SELECT key, finished FROM stages WHERE status='done'"))
    for key, finished in before:
        assert after[key] == finished  # not done a second time


@pytest.mark.parametrize("where", ["stage", "runner"])
def test_an_interrupt_that_compiled_code_made_an_error_of_its_own_is_one(where, tmp_path, monkeypatch):
    """pydantic raises PydanticSerializationError where SIGINT falls into its serialiser; its cause is the interrupt."""

    def serialise(*_, **__):
        raise ValueError("Error calling function") from KeyboardInterrupt()

    monkeypatch.setattr("harness.stages.execute" if where == "stage" else "harness.records.scored", serialise)
    result = run("aggregators: [mean, median]", tmp_path)
    assert result.interrupted
    assert not result.records
    monkeypatch.undo()
    again = run("aggregators: [mean, median]", tmp_path)
    assert [record["status"] for record in again.records] == ["scored", "scored"]
    assert again.cached["train"] == (where == "runner")


TINY = """
schema: 1
name: tiny
dataset: digits
model: {mlp: {hidden: [4]}}
metrics: [accuracy]
evaluation: {subset: 16}
federation: {clients: 2, rounds: 1, local: {steps: 1, batch_size: 4}}
"""
TOLERANCE = (
    8 * 2**20
)  # bytes: an allocator's play; one kept model with its gradients a cell would be far more in 150


def test_memory_is_flat_over_two_hundred_cells(tmp_path):
    from harness.api import Tracker

    page, parent, worker = os.sysconf("SC_PAGE_SIZE"), [], []

    class Watcher(Tracker):
        """Reads this process' memory and that of the worker whenever a cell is done."""

        name = "memory-watcher"

        def harness_cell_finished(self, cell, record):
            parent.append(int(Path("/proc/self/statm").read_text().split()[1]) * page)
            worker.append(record["peak_memory_bytes"])  # of the cell's stages alone

    scenario = load_text(f"{TINY}seeds: {list(range(200))}\n", tmp_path / "tiny.yaml")
    scenario = scenario.model_copy(update={"trackers": (Watcher(),)})
    result = harness.run(scenario, device="cpu", jobs=1, store=tmp_path / "runs")
    assert result.scored == len(worker) == 200
    assert max(parent[50:]) - min(parent[50:]) < TOLERANCE
    assert max(worker[100:]) - max(worker[50:100]) < TOLERANCE


def test_the_parent_keeps_no_model(tmp_path):
    import gc

    import torch

    def weights() -> int:
        gc.collect()
        return sum(isinstance(item, torch.nn.Parameter) and not item.is_meta for item in gc.get_objects())

    before = weights()
    scenario = load_text(TINY, tmp_path / "tiny.yaml")
    result = harness.run(scenario, device="cpu", jobs=1, store=tmp_path / "runs")
    assert result.scored == 1
    assert weights() == before


def test_records_are_read_when_they_are_asked_for(tmp_path):
    result = run("aggregators: [mean, median]", tmp_path)
    assert "records" not in vars(result)
    assert [(r["scenario"]["name"], r["id"], r["status"]) for r in result.records] == result.cells
    assert result.records is result.records
    assert [r["cell"]["aggregator"] for r in result.records] == ["mean", "median"]
    gone = dataclasses.replace(result)
    (tmp_path / "runs" / "store.sqlite").unlink()
    with pytest.raises(StoreError, match="is gone"):
        _ = gone.records
    assert gone.scored == 2


def test_a_surrogate_that_is_nobodys_cell_is_trained_all_the_same(tmp_path):
    text = """
defences: [gradient-clipping: {max_norm: 1.0}]
threats: [{name: e, budget: {norm: linf, eps: 0.1}, attacks: [transfer: {attack: fgsm, source: undefended}]}]
"""
    result = run(text, tmp_path)
    assert result.executed == {"train": 2, "compress": 0, "clean": 1, "attack": 1}
    assert result.scored == 1


def test_every_stage_that_was_done_is_in_the_store_before_the_next_begins(tmp_path):
    """So that a kill at any moment loses nothing: each start is checked against the file, by another connection."""
    seen = []

    class Watcher:
        """A display that looks at the store whenever something starts or ends."""

        def __getattr__(self, name):
            return lambda *arguments: None

        def stage_finished(self, key, kind, label, status, seconds, error):
            with Store(tmp_path / "runs") as store:
                seen.append(store.stage_result(key) is not None)

        def cell_finished(self, record):
            with Store(tmp_path / "runs") as store:
                seen.append(store.record("small", record["id"]) == record)

    run("aggregators: [mean, median]", tmp_path, observer=Watcher())
    assert len(seen) == 4 + 2
    assert all(seen)


class Backwards:
    """Runs stages in this process, two at a time, and tells of the later one first."""

    capacity = 2
    lends = False

    def __init__(self, inner):
        self.inner = inner
        self.told: list = []

    def submit(self, stage):
        self.inner.submit(stage)
        self.told = [*self.inner.events(0), *self.told]

    def events(self, timeout):
        told, self.told = self.told, []
        yield from told

    def cancel(self, key, kind, reason):
        self.inner.cancel(key, kind, reason)

    def close(self):
        self.inner.close()


def test_a_cell_fails_once_whatever_order_its_stages_end_in(tmp_path, monkeypatch):
    from harness import engine

    made = engine._executor
    monkeypatch.setattr(engine, "_executor", lambda *a: Backwards(made(*a)))
    text = "threats: [{name: e, attacks: [too-far: {eps: 0.1}]}, {name: none}]"
    result = run(text, tmp_path)
    assert [r["status"] for r in result.records] == ["failed", "scored"]
