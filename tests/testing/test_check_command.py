"""`harness plugin check`, and what `harness.testing` offers to test suites."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import broken
import pytest
import sound

import harness.api
from harness.cli import main
from harness.registry import registry
from harness.testing import Check, CheckFailed, check_plugin, checks_of, parametrize_with_checks


@pytest.fixture
def package(monkeypatch):
    """Two plugins of a package of its own, one of them broken, beside the built-in ones."""

    class Module:
        @staticmethod
        @harness.api.hookimpl
        def harness_register(register):
            for plugin in (sound.Mean, broken.Short):
                register(plugin)

    module = Module()
    registry().add(module, "mine", "my-package", "1.2")
    yield
    registry.cache_clear()


def test_report_of_a_sound_plugin(package, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["plugin", "check", "sound-mean"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] == "aggregator sound-mean, my-package 1.2"
    assert printed.splitlines()[-1] == "28 passed"
    assert max(map(len, printed.splitlines())) <= 80


def test_report_of_a_broken_plugin(package, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["plugin", "check", "my-package/broken-short"]) == 1
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines() if not line.startswith(" ")]
    statuses = [row[1] for row in rows if len(row) > 2 and row[1] in ("passed", "skipped", "failed")]
    assert statuses == ["passed"] * 20 + ["skipped"] * 7 + ["failed"]  # what to change is at the end
    assert "not one update" in " ".join(printed.split())
    assert printed.splitlines()[-1] == "20 passed, 1 failed, 7 skipped"
    assert max(map(len, printed.splitlines())) <= 80


def test_failures_alone(package, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["plugin", "check", "broken-short", "--failed"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("result_well_formed") == 1
    assert "passed " not in printed.replace("20 passed,", "")
    assert printed.splitlines()[-1] == "20 passed, 1 failed, 7 skipped"
    assert main(["plugin", "check", "sound-mean", "--failed"]) == 0
    assert capsys.readouterr().out == "aggregator sound-mean, my-package 1.2\n28 passed\n"


def test_report_as_json(package, capsys):
    assert main(["plugin", "check", "aggregator", "broken-short", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["name"], report["distribution"], report["failed"]) == ("broken-short", "my-package", 1)
    failed = [item for item in report["checks"] if item["status"] == "failed"]
    assert [item["check"] for item in failed] == ["result_well_formed"]


def test_several_plugins_have_a_table_of_verdicts_and_one_exit_status(package, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    named = ["sound-mean", "aggregator", "broken-short"]
    assert main(["plugin", "check", *named]) == 1
    *_, first, second = capsys.readouterr().out.splitlines()
    assert " ".join(first.split()) == "aggregator sound-mean my-package 1.2 28 passed"
    assert " ".join(second.split()) == "aggregator broken-short my-package 1.2 20 passed, 1 failed, 7 skipped"
    assert main(["plugin", "check", "sound-mean", "sound-mean", "--json"]) == 0
    assert [report["failed"] for report in json.loads(capsys.readouterr().out)] == [0, 0]


def test_parameters_may_be_given(package, capsys):
    assert main(["plugin", "check", "sound-mean", "--with", "{scale: 2}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["failed"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["krumm"], "unknown plugin 'krumm'; did you mean 'krum'?"),
        (["aggregator", "krumm"], "unknown aggregator 'krumm'"),
        (["agregator", "krum"], "unknown plugin 'agregator'; did you mean 'aggregator'"),
        (["nobody/krum"], "no package 'nobody' has the aggregator 'krum'"),
        (["krum", "krumm"], "unknown plugin 'krumm'; did you mean 'krum'?"),
        (
            ["krum", "median", "--with", "{f: 1}"],
            "--with '{f: 1}': parameters are for one plugin, but 2 are named",
        ),
        (["krum", "--with", "{f: many}"], "krum"),
        (["krum", "--with", "{f: -1}"], "aggregator krum: f must be at least 0, not -1"),
        (["mlp", "--with", "{hidden: [-3]}"], "model mlp: hidden.0 must be at least 1, not -3\n"),
        (["mlp", "--with", "{hidden: []}"], "hidden must be a list of at least one value, not an empty list"),
        (["lira", "--with", "{shadows: 3}"], "attack lira: shadows must be a multiple of 2, not 3\n"),
        (["krum", "--with", "[1]"], "parameters are a mapping such as '{f: 2}'"),
        (["krum", "--with", "{f: 1, f: 2}"], "appears twice"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments, words, capsys):
    assert main(["plugin", "check", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.strip().splitlines()) == 1


def test_a_package_that_was_made_and_not_installed_is_told_apart(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["plugin", "new", "aggregator", "my-fresh-rule"]) == 0
    for where, path in ((tmp_path, "my-fresh-rule"), (tmp_path / "my-fresh-rule", ".")):
        monkeypatch.chdir(where)
        assert main(["plugin", "check", "my-fresh-rule"]) == 2
        said = capsys.readouterr().err
        assert said.endswith(f"; its package is here, and not installed: python -m pip install -e {path}\n")
    assert main(["plugin", "check", "my-fresh-role"]) == 2
    assert "not installed" not in capsys.readouterr().err


def test_help_has_an_example(capsys):
    assert main(["plugin", "check", "--help"]) == 0
    assert "Example: harness plugin check" in capsys.readouterr().out


def test_command_line_stays_light():
    """Asking for help loads neither torch nor the checks."""
    code = """
        import sys
        from harness.cli import main
        main(["plugin", "check", "--help"])
        assert not [m for m in sys.modules if m.split(".")[0] == "torch" or m.startswith("harness.testing")]
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# for test suites --------------------------------------------------------------------------------


def test_checks_can_be_called_one_by_one():
    checks = {check.name: check for check in checks_of(broken.Short)}
    assert all(isinstance(check, Check) and check.plugin is broken.Short for check in checks.values())
    checks["documented"]()
    with pytest.raises(CheckFailed, match="not one update"):
        checks["result_well_formed"]()


def test_instance_is_checked_with_its_parameters():
    class Big(sound.Mean):
        """The mean, and infinity for a large scale."""

        name = "big"

        def aggregate(self, updates, context):
            return super().aggregate(updates, context) * (float("inf") if self.scale > 5 else 1)

    assert check_plugin(Big(scale=2)).count("failed") == 1  # a local class cannot be pickled
    failed = {r.check for r in check_plugin(Big(scale=9)).results if r.status == "failed"}
    assert failed == {"pickles", "result_well_formed"}


def test_what_is_no_plugin_of_a_kind_is_refused():
    with pytest.raises(harness.PluginError, match="is of no kind"):
        checks_of(harness.api.Plugin)


SUITE = """
    import sys
    sys.path.insert(0, {folder!r})
    import broken, sound
    from harness.testing import parametrize_with_checks

    @parametrize_with_checks([sound.Mean, broken.Short], expected_failures={expected})
    def test_conforms(check):
        check()
"""


SUITES = {
    "unexpected": ("None", {"failed": 1, "passed": 48, "skipped": 7}),
    "expected": (
        "lambda p: {'result_well_formed': 'see section 3'} if p is broken.Short else {}",
        {"passed": 48, "skipped": 7, "xfail": 1},
    ),
    "strict": (
        "{'result_well_formed': 'see section 3'}",
        {"failed": 1, "passed": 47, "skipped": 7, "xfail": 1},
    ),
}


def test_decorator_in_a_suite(tmp_path):
    """The three in one run of pytest, whose start takes longer than they do."""
    for name, (expected, _) in SUITES.items():
        suite = tmp_path / f"test_{name}.py"
        suite.write_text(textwrap.dedent(SUITE.format(folder=str(Path(__file__).parent), expected=expected)))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, "--junitxml=report.xml", "."],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    found: dict[str, Counter[str]] = {name: Counter() for name in SUITES}
    for case in ElementTree.parse(tmp_path / "report.xml").iter("testcase"):
        results = {"failure": "failed", "error": "failed"}
        kinds = [results.get(r.tag) or r.get("type", "").removeprefix("pytest.").replace("skip", "skipped")
                 for r in case if r.tag in ("failure", "error", "skipped")]  # fmt: skip
        found[case.get("classname", "").removeprefix("test_")][kinds[0] if kinds else "passed"] += 1
    assert found == {name: outcome for name, (_, outcome) in SUITES.items()}, done.stdout[-2000:]


def test_expected_failures_must_name_checks():
    with pytest.raises(ValueError, match="has no check 'no_such_check'"):
        parametrize_with_checks([sound.Mean], expected_failures=lambda plugin: {"no_such_check": "why"})


@pytest.mark.parametrize("plugin", sound.SOUND, ids=lambda plugin: plugin.name)
def test_descriptions_are_sentences_on_one_line(plugin):
    for one in checks_of(plugin):
        assert one.description.endswith("."), one.name
        assert not {'"', "\n"} & set(one.description), one.name
        assert "  " not in one.description, one.name


class Rooted(sound.Drawn):
    """Random images, drawn from a seed of its own."""

    name = "test-rooted"

    def load(self, root):
        return super().load(root)


def test_a_data_set_is_loaded_as_its_contract_says():
    """The engine gives `load` a root in every case, so a data set may ask for one."""
    report = check_plugin(Rooted)
    assert [(r.check, r.message) for r in report.results if r.status != "passed"] == []
