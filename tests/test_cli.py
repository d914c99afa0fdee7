"""The command line: exit statuses, streams, and what is passed on. The engine is replaced by fakes."""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import small
import typer

from harness import __version__, cli
from harness.api import Aggregator, hookimpl
from harness.console import group
from harness.console.named import find
from harness.doctor import data_report, findings, requirements, store_report
from harness.errors import HarnessError, ScenarioError
from harness.registry import Registry

ENGINE = importlib.import_module("harness.engine")
SCENARIO = importlib.import_module("harness.scenario")
RECORD = {
    "id": "c1",
    "scenario": {"name": "quick", "version": 1, "hash": "h"},
    "cell": {
        "defence": "none", "aggregator": "mean", "compressor": "none",
        "threat": "none", "attack": "none", "seed": 0,
    },
    "status": "scored",
    "reason": None,
    "error": None,
    "scores": {"accuracy": 0.875, "epsilon": float("inf")},
    "units": {},
    "flags": [],
    "guarantee": None,
}  # fmt: skip
PLAN = {
    "scenarios": [{"name": "quick", "cells": [{"id": "c1", "axes": {}, "status": "ready", "stages": {}}]}],
    "stages": {"train": {"total": 1, "cached": 0}},
    "estimate_seconds": 3.0,
    "jobs": 2,
    "skipped": [],
}


@dataclass
class Result:
    records: list[dict[str, Any]] = field(default_factory=lambda: [RECORD])
    store: Path = Path("runs")
    seconds: float = 1.0
    executed: dict[str, int] = field(default_factory=lambda: {"train": 2, "clean": 1})
    cached: dict[str, int] = field(default_factory=lambda: {"train": 4})
    interrupted: bool = False
    skipped: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    scored: int = 1
    failed: int = 0
    not_applicable: int = 0
    planned: int = 1


@pytest.fixture
def engine(monkeypatch):
    """The arguments of the last call; `engine.result` is what the next one returns or raises."""

    class Fake:
        result: Any = Result()
        arguments: Any = None

    def answer(scenarios, **options):
        Fake.arguments = (scenarios, options)
        if isinstance(Fake.result, BaseException):
            raise Fake.result
        return Fake.result

    class Planned:
        def to_dict(self):
            return Fake.result if isinstance(Fake.result, dict) else PLAN

    def plan(scenarios, **options):
        Fake.arguments = (scenarios, options)
        return Planned()

    monkeypatch.setattr(ENGINE, "run", answer)
    monkeypatch.setattr(ENGINE, "plan", plan)
    return Fake


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with two scenario files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("schema: 1\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.yml").write_text("schema: 1\n")
    (tmp_path / "more" / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    return tmp_path


def harness(*arguments: str) -> int:
    return cli.main(list(arguments))


# run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (Result(), 0),
        (Result(not_applicable=3), 0),
        (Result(scored=0, not_applicable=3), 1),
        (Result(scored=0), 0),
        (Result(failed=1), 1),
        (Result(skipped=[("b.yaml", "no data")]), 1),
        (Result(failed=1, interrupted=True), 130),
        (HarnessError("bad"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_status(engine, here, result, status):
    engine.result = result
    assert harness("run", "a.yaml") == status


def test_ctrl_c_is_said_by_commands_that_do_not_sum_up(engine, here, capsys):
    engine.result = KeyboardInterrupt()
    assert harness("run", "a.yaml") == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_no_applicable_cell_is_said(engine, here, capsys):
    engine.result = Result(scored=0, not_applicable=3)
    assert harness("run", "a.yaml") == 1
    assert "nothing was scored: no cell is applicable" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["run", "a.yaml"], ["plan", "a.yaml"], ["explain", "0"]])
def test_an_empty_store_option_is_bad_input(engine, here, capsys, command):
    assert harness(*command, "--store", "") == 2
    assert "a folder is needed for the store" in capsys.readouterr().err
    assert engine.arguments is None


def test_run_passes_its_options_on(engine, here):
    assert harness(
        "run", "more", "a.yaml", "a.yaml", "--device", "cpu", "--jobs", "3", "--store", "s",
        "--select", "seed=0",
        "--select", "defence=none,attack=pgd*", "--fail-fast", "--timeout", "60",
    ) == 0  # fmt: skip
    scenarios, options = engine.arguments
    assert scenarios == [Path("more/b.yml"), Path("a.yaml")]
    observer = options.pop("observer")
    assert all(
        callable(getattr(observer, name)) for name in ("plan_ready", "stage_progress", "cell_finished")
    )
    assert options == {
        "device": "cpu", "jobs": 3, "store": Path("s"), "select": ["seed=0", "defence=none,attack=pgd*"],
        "fail_fast": True, "timeout": 60.0, "shard": None, "executor": "local", "address": "auto",
        "artifacts": "objects",
    }  # fmt: skip


def test_run_defaults(engine, here):
    assert harness("run", "a.yaml") == 0
    options = engine.arguments[1]
    assert (options["device"], options["jobs"], options["store"]) == ("auto", "auto", Path("runs"))
    assert (options["select"], options["fail_fast"], options["timeout"]) == (None, False, None)


def test_run_prints_the_table_and_what_was_reused(engine, here, capsys):
    engine.result = Result(skipped=[("b.yaml", "its data is not there")], problems=["tracker x raised"])
    harness("run", "a.yaml")
    out, err = capsys.readouterr()
    assert "87.5" in out
    assert "3 stages computed, 4 taken from runs" in out
    assert err.splitlines() == ["skipped b.yaml: its data is not there", "warning: tracker x raised"]


def test_run_json_is_one_value_and_nothing_else(engine, here, capsys):
    assert harness("run", "a.yaml", "--json") == 0
    value = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert value["scored"] == 1
    assert value["executed"] == {"train": 2, "clean": 1}
    assert value["records"][0]["scores"] == {"accuracy": 0.875, "epsilon": {"$float": "inf"}}
    assert value["store"] == "runs"


def test_interrupted_runs_say_how_to_go_on(engine, here, capsys):
    engine.result = Result(interrupted=True)
    harness("run", "a.yaml")
    assert "run the same command again to resume" in capsys.readouterr().err


def test_an_interrupted_run_counts_against_what_was_planned(engine, here, capsys):
    engine.result = Result(records=[], interrupted=True, planned=64)
    assert harness("run", "a.yaml") == 130
    assert "0 of 64 cells scored\n" in capsys.readouterr().out
    failed = {**RECORD, "status": "failed", "error": {"type": "ValueError", "message": "boom"}}
    engine.result = Result(records=[RECORD, failed], interrupted=True, planned=64)
    assert harness("run", "a.yaml") == 130
    assert "1 of 64 cells scored, 1 failed\n" in capsys.readouterr().out


def test_dry_run_is_plan(engine, here, capsys):
    assert harness("run", "a.yaml", "--dry-run", "--jobs", "2", "--json") == 0
    first = capsys.readouterr().out
    assert engine.arguments[1] == {
        "device": "auto",
        "jobs": 2,
        "store": Path("runs"),
        "select": None,
        "shard": None,
    }
    assert harness("plan", "a.yaml", "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(first) == PLAN


def test_plan_table_and_skipped_scenarios(engine, here, capsys):
    engine.result = {**PLAN, "skipped": [{"scenario": "b", "reason": "no data"}]}
    assert harness("plan", "a.yaml") == 1
    out, err = capsys.readouterr()
    assert "quick" in out
    assert "about 3.0 s, with 2 jobs" in out
    assert err == "skipped b: no data\n"


def test_an_export_into_a_closed_folder_is_refused_before_the_run(engine, here, monkeypatch, capsys):
    monkeypatch.setattr("harness.export.os.access", lambda path, mode: False)
    assert harness("run", "a.yaml", "--export", "out.csv") == 2
    assert f"--export out.csv: no write access to the folder {here}" in capsys.readouterr().err
    assert engine.arguments is None


def test_export_writes_every_record(engine, here):
    assert harness("run", "a.yaml", "--export", "out.jsonl") == 0
    (line,) = Path("out.jsonl").read_text().splitlines()
    assert json.loads(line)["scores"]["accuracy"] == 0.875


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "a.yaml", "--export", "x.xls"], "--export x.xls: unknown ending '.xls'; "),
        (["run", "a.yaml", "--export", "no/x.csv"], "does not exist"),
        (["run", "a.yaml", "--export", "folder.csv"], "--export folder.csv: a folder is there; name a file"),
        (["run", "a.yaml", "--jobs", "-1"], "--jobs takes auto or a number from 0 on, not '-1'"),
        (["run", "a.yaml", "--jobs", "many"], "--jobs takes auto or a number from 0 on, not 'many'"),
        (["run", "a.yaml", "--timeout", "0"], "--timeout must be greater than 0 seconds, not 0"),
        (["run", "a.yaml", "--timeout", "nan"], "--timeout must be greater than 0 seconds, not nan"),
        (["run", "empty", "zz*.yaml"], "error: no scenario (.yaml or .yml) in empty, zz*.yaml"),
        (["run", "a.yaml", ""], "error: a scenario is a file, a folder or a pattern, not an empty text"),
        (["validate", "x" * 5000], f"error: {'x' * 100}...{'x' * 97}: File name too long\n"),
        (["list", "attak"], "error: unknown kind 'attak'; did you mean 'attack'?"),
        (["show", "attack", "pdg"], "unknown attack 'pdg'; did you mean 'pgd'"),
        (["show", "pdg"], "unknown plugin 'pdg'; did you mean 'pgd'"),
        (
            ["show", "attack"],
            "'attack' is a kind of plugin: say which one, `attack NAME`; see `harness list attack`",
        ),
        (["show", "a", "b", "c"], "one plugin at a time: NAME, or KIND NAME, not 'a b c'"),
        (["schema", "--out", "no/such/file"], "--out no/such/file: "),
    ],
)
def test_bad_input_is_said_before_anything_runs(engine, here, capsys, arguments, message):
    Path("folder.csv").mkdir()
    assert harness(*arguments) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert engine.arguments is None


def test_patterns_and_folders(here):
    from harness.console.arguments import find_scenarios

    assert find_scenarios(["*.yaml", "more"]) == [Path("a.yaml"), Path("more/b.yml")]
    assert find_scenarios(["**/*.y*ml"]) == [Path("a.yaml"), Path("more/b.yml")]
    assert find_scenarios(["missing.yaml"]) == [Path("missing.yaml")]  # the loader names the nearest file


def test_a_bug_keeps_its_traceback(engine, here):
    engine.result = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        harness("run", "a.yaml")


# validate, schema ---------------------------------------------------------------------------------------


@dataclass
class Loaded:
    path: Path
    name: str = "quick"

    def hash(self):
        return "h"


def test_validate_checks_text_and_data(here, monkeypatch, capsys):
    checked = []

    def check(scenario):
        checked.append(scenario.path)
        if scenario.path.suffix == ".yml":
            raise ScenarioError("no data")

    monkeypatch.setattr(SCENARIO, "load_many", lambda paths: [Loaded(path) for path in paths])
    monkeypatch.setattr(SCENARIO, "check_data", check)
    monkeypatch.setattr("harness.scenario_data.check_installed", lambda scenario: None)
    monkeypatch.setattr("harness.scenario_data.check_fit", lambda scenario, splits: None)
    monkeypatch.setattr("harness.scenario_data.remarks", lambda scenario, splits: [])
    refused = {}
    monkeypatch.setattr("harness.scenario_plan.not_applicable", lambda loaded: refused)
    assert harness("validate", "a.yaml") == 0
    assert capsys.readouterr().out == "a.yaml: ok\n"
    refused["quick"] = {"krum needs n > 2f + 2 updates": 3}
    assert harness("validate", "a.yaml") == 0
    assert capsys.readouterr().out == "a.yaml: ok\n  not applicable ×3: krum needs n > 2f + 2 updates\n"
    assert harness("validate", "a.yaml", "more") == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "more/b.yml: no data\n")
    checked.clear()
    assert harness("validate", "more", "--no-data", "--json") == 0
    expected = {"path": "more/b.yml", "name": "quick", "hash": "h", "not_applicable": {}, "notes": []}
    assert json.loads(capsys.readouterr().out) == [expected]
    assert checked == []


def test_scenario_mistakes_begin_with_their_place(here, monkeypatch, capsys):
    def load(paths):
        raise ScenarioError("a.yaml:1:2: unknown key")

    monkeypatch.setattr(SCENARIO, "load_many", load)
    assert harness("validate", "a.yaml") == 2
    assert capsys.readouterr().err == "a.yaml:1:2: unknown key\n"


@pytest.mark.parametrize("command", ["validate", "plan", "run"])
def test_mistakes_are_values_too_where_json_was_asked_for(here, capsys, command):
    (here / "a.yaml").write_text("schema: 1\nname: a\ndatset: digits\nmodel: logistic\n")
    (here / "b.yaml").write_text("schema: 1\nname: [\n")
    assert harness(command, "a.yaml", "b.yaml", "--json") == 2
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["error"] == err.rstrip("\n")
    first = next(p for p in found["problems"] if "datset" in p["message"])
    assert (first["file"], first["line"], first["column"]) == ("a.yaml", 3, 1)
    assert {p["file"] for p in found["problems"]} == {"a.yaml", "b.yaml"}
    assert all(
        p["line"] for p in found["problems"]
    )  # no line of source, and no caret, was taken for a mistake
    assert harness(command, "a.yaml") == 2
    assert capsys.readouterr().out == ""
    assert harness(command, "gone.yaml", "--json") == 2
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert (problem["file"], problem["line"]) == ("gone.yaml", None)
    assert problem["message"].startswith("no such file")


def test_a_value_that_was_printed_is_not_followed_by_another(engine, here, capsys, monkeypatch):
    def fails(*_):
        raise HarnessError("the disk is full")

    monkeypatch.setattr("harness.export.export", fails)
    assert harness("run", "a.yaml", "--json", "--export", "x.csv") == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["scored"] == 1
    assert "error: the disk is full" in err
    engine.result = HarnessError("no room")
    assert harness("run", "a.yaml", "--json") == 2
    assert json.loads(capsys.readouterr().out) == {"error": "no room", "problems": []}


def test_schema_to_stdout_and_file(here, capsys):
    assert harness("schema") == 0
    printed = json.loads(capsys.readouterr().out)
    assert "properties" in json.dumps(printed)
    assert harness("schema", "--out", "s.json") == 0
    assert json.loads(Path("s.json").read_text()) == printed


# list, show, doctor -------------------------------------------------------------------------------------


class Rule(Aggregator):
    """Keeps the first row. More."""

    name = "mine"

    def aggregate(self, updates, context):
        return updates[0]


class Package:
    def __init__(self, commands=None):
        self.commands = commands

    @hookimpl
    def harness_register(self, register):
        register(Rule)

    @hookimpl
    def harness_commands(self, cli):
        if self.commands is not None:
            self.commands(cli)


@pytest.fixture
def private(monkeypatch):
    """A registry of its own; add(distribution, commands) puts a package into it."""
    registry = Registry()
    monkeypatch.setattr(importlib.import_module("harness.registry"), "registry", lambda: registry)
    monkeypatch.setattr("harness.entry_points.others_offer", lambda: True)
    monkeypatch.setattr("harness.console.catalogue.listing_file", lambda: None)
    group.plugin_commands.cache_clear()

    def add(distribution, commands=None):
        registry.add(Package(commands), "main", distribution, "1.0")
        return registry

    yield add
    group.plugin_commands.cache_clear()


EXITS = """
from harness.api import Dataset, hookimpl

class Exits(Dataset):
    \"\"\"Ends the program, as a script would.\"\"\"

    name = "exits"

    def load(self, root=None):
        exit()

@hookimpl
def harness_register(register):
    register(Exits)
"""


@pytest.mark.parametrize("command", ["run", "validate", "picture"])
def test_a_plugin_that_ends_the_program_is_an_error(command, tmp_path, monkeypatch, capsys):
    """Its status, often 0, would say that all was well."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exits.py").write_text(EXITS)
    (tmp_path / "small.yaml").write_text(
        small.SCENARIO.replace("digits", "exits")
        + "plugins: [exits.py]\nthreats: [{name: b, malicious: 0.5, attacks: [badnets]}]\n"
    )
    assert harness(command, "small.yaml") == 2
    out, said = capsys.readouterr()
    assert out == ""
    assert "dataset exits" in said
    if command != "run":
        assert f"sys.exit(), at {tmp_path / 'exits.py'}:10; a plugin says what is wrong" in said


def test_a_command_of_a_plugin_may_end_the_program(private):
    private("pack-a", lambda cli: cli.command("mine")(lambda: sys.exit(3)))
    assert harness("mine") == 3


def test_list_shows_origin_and_what_is_disabled(private, capsys):
    private("pack-a")
    private("pack-b").add(object(), "broken", "pack-c", "0.3")
    assert harness("list") == 0
    out = capsys.readouterr().out
    assert "Keeps the first row." in out
    assert "More." not in out
    assert "pack-a 1.0" in out
    assert "disabled: pack-c 0.3, entry point 'broken': PluginError: it implements no hook" in " ".join(
        out.split()
    )
    assert max(map(len, out.splitlines())) <= 80
    assert harness("list", "aggregator", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert [(p["name"], p["distribution"], p["version"]) for p in value["plugins"]] == [
        ("mine", "pack-a", "1.0"),
        ("mine", "pack-b", "1.0"),
    ]
    assert value["disabled"][0]["distribution"] == "pack-c"


def test_show_page_and_json(capsys):
    assert harness("show", "attack", "pgd") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "attack pgd" in out
    assert "steps integer 20 ≥ 1" in out
    assert "access: gradients" in out
    assert "https://arxiv.org/abs/1706.06083" in out
    assert "in a scenario: attacks: [{pgd: {steps: 20}}]" in out
    assert harness("show", "pgd") == 0
    assert " ".join(capsys.readouterr().out.split()) == out
    assert harness("show", "aggregator", "psr-harness/fedavg", "--json") == 0
    page = json.loads(capsys.readouterr().out)
    assert (page["name"], page["distribution"], page["version"]) == ("mean", "psr-harness", __version__)


@pytest.mark.parametrize(
    "kind", ["dataset", "partitioner", "model", "defence", "aggregator", "compressor", "attack", "metric"]
)
def test_every_page_can_be_drawn_and_its_example_validates(kind, capsys):
    import yaml

    from harness.console.describe import describe
    from harness.registry import registry, resolve

    for entry in registry().entries(kind):
        assert harness("show", kind, entry.plugin.name) == 0
        capsys.readouterr()
        page = describe(entry)
        spec = yaml.safe_load(page["example"])
        assert resolve(kind, spec).name == entry.plugin.name
        assert page["summary"], entry.plugin


def test_doctor_reports(here, monkeypatch, capsys):
    monkeypatch.setenv("HARNESS_DATA", str(here))
    assert harness("doctor", "--json", "--store", "new/store") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["harness"] == __version__
    assert report["libraries"]["pydantic"] == importlib.metadata.version("pydantic")
    assert report["torch"]["version"] == importlib.import_module("torch").__version__
    assert report["data"]["found"] == ["a.yaml", "empty/", "more/"]
    assert report["store"]["free_bytes"] > 0
    assert not Path("new").exists()
    assert harness("doctor") == 0
    out = capsys.readouterr().out
    assert "ready to run" in out
    assert max(map(len, out.splitlines())) <= 80


def test_doctor_says_what_is_wrong():
    report: dict[str, Any] = {
        "torch": {"error": None},
        "missing": [],
        "plugins": {"counts": {"attack": 1}, "disabled": []},
        "data": {"path": None, "exists": False},
        "store": {"path": "runs", "writable": True, "error": None},
    }
    assert findings(report) == ([], [])
    third = {"distribution": "pack", "name": "main", "reason": "import failed"}
    own = {**third, "distribution": "psr-harness"}
    problems, warnings = findings(
        {
            "torch": {"error": "ImportError: libcuda"},
            "missing": ["opacus"],
            "plugins": {"counts": {}, "disabled": [third, own]},
            "data": {"path": "/nowhere", "exists": False},
            "store": {"path": "runs", "writable": False, "error": None},
        }
    )
    assert len(problems) == 5
    assert problems[:2] == [
        "torch cannot be imported: ImportError: libcuda",
        "not installed: opacus; pip install psr-harness",
    ]
    assert warnings == [
        "plugin pack:main is disabled: import failed",
        "HARNESS_DATA is /nowhere, which is not a folder",
    ]


def test_doctor_parts(tmp_path):
    required, extras = requirements()
    assert {"torch", "pydantic", "rich"} <= set(required)
    assert "pytest" in extras["dev"]
    assert "pytest" not in required
    for i in range(15):
        (tmp_path / f"{i:02}.npz").touch()
    found = data_report(str(tmp_path))
    assert (found["count"], len(found["found"]), found["found"][0]) == (15, 12, "00.npz")
    assert data_report(None) == {"path": None, "exists": False, "found": [], "count": 0}
    assert store_report(tmp_path / "a" / "b")["writable"]
    assert not store_report(tmp_path / "00.npz" / "b")["writable"]


# commands of plugins ------------------------------------------------------------------------------------


def hello(cli):
    @cli.command()
    def hello(name: str = "you"):
        """Greet."""
        typer.echo(f"hello {name}")


def test_plugins_add_commands(private, capsys):
    private("pack", hello)
    assert harness("hello", "--name", "me") == 0
    assert capsys.readouterr().out == "hello me\n"
    assert harness("--help") == 0
    assert "Greet." in capsys.readouterr().out


def fails_half_way(cli):
    hello(cli)
    raise RuntimeError("no display")


def takes_run(cli):
    cli.command("run")(lambda: None)


@pytest.mark.parametrize(
    ("commands", "reason"),
    [
        (fails_half_way, "RuntimeError: no display"),
        (takes_run, "PluginError: the command 'run' exists already"),
    ],
)
def test_a_plugin_whose_commands_fail_is_named_and_left_out(private, capsys, commands, reason):
    private("pack", commands)
    assert harness("hello") == 2
    err = capsys.readouterr().err
    assert f"warning: plugin pack:main: its commands are left out: {reason}" in err
    assert harness("list", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["disabled"][0]["reason"] == f"its commands are left out: {reason}"
    assert [p["name"] for p in value["plugins"]] == ["mine"]


def test_two_packages_cannot_share_a_command(private, capsys):
    private("pack-a", hello)
    private("pack-b", hello)
    assert harness("hello") == 0
    assert "the command 'hello' exists already" in capsys.readouterr().err


# help and start -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sort", "kind", "inside", "outside"),
    [
        ("pre-aggregator", "aggregator", "nnm", "krum"),
        ("byzantine-attack", "attack", "alie", "pgd"),
        ("evasion-attack", "attack", "pgd", "alie"),
        ("evasion", "attack", "pgd", "alie"),
        ("update-compressor", "compressor", "top-k", "static-int8"),
    ],
)
def test_the_kinds_of_plugin_new_are_known_to_the_other_commands(sort, kind, inside, outside, capsys):
    assert harness("list", sort, "--json") == 0
    found = json.loads(capsys.readouterr().out)["plugins"]
    assert {plugin["kind"] for plugin in found} == {kind}
    names = {plugin["name"] for plugin in found}
    assert inside in names
    assert outside not in names
    assert harness("show", sort, inside, "--json") == 0
    assert json.loads(capsys.readouterr().out)["name"] == inside
    assert find([sort, inside]).plugin.name == inside


def test_unknown_commands_get_the_nearest(capsys):
    assert harness("rnu") == 2
    assert "unknown command 'rnu'; did you mean 'run'?" in capsys.readouterr().err
    for within, wrong, hint in (
        ("leaderboard", "biuld", "did you mean 'build'?"),
        ("plugin", "chek", "did you mean 'check'?"),
        ("export", "onnx", "valid: flower"),
    ):
        assert harness(within, wrong) == 2
        assert f"unknown command {wrong!r}; {hint}" in capsys.readouterr().err
    assert harness("qqqq") == 2
    said = " ".join(capsys.readouterr().err.replace("│", "").split())
    assert f"valid: {', '.join(sorted(typer.main.get_group(cli.app).commands))}" in said


def commands(group: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from commands(command, *path, name)
        else:
            yield (*path, name), command


@pytest.mark.parametrize(
    ("path", "command"),
    [pytest.param(*c, id=" ".join(c[0])) for c in commands(typer.main.get_group(cli.app))],
)
def test_every_command_has_help_with_an_example(path, command, root, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert harness(*path, "--help") == 0
    said = capsys.readouterr().out
    assert "…" not in said  # a word was cut that the column is too narrow for
    assert f"Example: harness {' '.join(path)}" in " ".join(said.split())
    for paragraph in command.help.split("\n\n"):  # no line ends where only the source's did
        assert "\n" not in paragraph or paragraph.startswith("Example: ")
    for named in re.findall(r"(?:scenarios|leaderboard)/\S*\.\w+", command.help):
        assert list(root.glob(named)), named
    words = set(said.split())
    for parameter in command.params:
        assert parameter.help, parameter.name
        assert parameter.help.split()[0] in words, parameter.name


def test_version(capsys):
    assert harness("--version") == 0
    assert capsys.readouterr().out == f"harness {__version__}\n"


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HARNESS_LOAD_PLUGINS": "", "PYTHONIOENCODING": "ascii"}
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "harness", *arguments],
        capture_output=True, text=True, env=environment, check=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "light"), [(["--version"], True), (["list"], False), (["run", "--help"], True)]
)
def test_start_imports_nothing_heavy(arguments, light):
    """`run --help` and `--version` don't even load the plugins. The output may be in ASCII."""
    imported = {line.split("|")[-1].strip() for line in start(*arguments).stderr.splitlines() if "|" in line}
    heavy = {"torch", "opacus", "torchattacks", "torch_pruning", "sklearn", "scipy", "pandas", "torchvision"}
    assert not heavy & imported
    assert "typer" in imported
    assert ("harness.api" in imported) != light


def test_reading_submissions_does_not_import_torch():
    file = Path(__file__).parents[1] / "leaderboard/records/quickstart-v1--baselines.json"
    said = start("leaderboard", "check", str(file)).stderr
    assert "torch" not in {line.split("|")[-1].strip() for line in said.splitlines() if "|" in line}


def test_output_survives_a_narrow_encoding(monkeypatch):
    from harness.console.output import make_console

    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    make_console().print("accuracy ↑")
    stream.flush()
    assert stream.buffer.getvalue() == b"accuracy ?\n"
