"""`harness plugin new`: names, refusals, and packages that are as tidy as the project."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib

import pytest
import yaml

from harness.cli import main
from harness.errors import HarnessError
from harness.plugin_kit.names import Names, names_of
from harness.plugin_kit.scaffold import KINDS, scaffold


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("my-rule", Names("my-rule", "my_rule", "MyRule")),
        ("My_Rule.2", Names("my-rule-2", "my_rule_2", "MyRule2")),
        ("krumble", Names("krumble", "krumble", "Krumble")),
    ],
)
def test_one_name_gives_the_others(given, expected):
    assert names_of(given) == expected


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("", "cannot be the name of a package"),
        ("-rule", "cannot be the name of a package"),
        ("rule.", "cannot be the name of a package"),
        ("a/b", "cannot be the name of a package"),
        ("..", "cannot be the name of a package"),
        ("my rule", "such as my-rule"),
        ("règle", "cannot be the name of a package"),
        ("rule\n", "cannot be the name of a package"),
        ("2-krum", "begin with a letter, such as rule-2-krum"),
        ("class", "taken by Python or the system; say more, such as class-rule"),
        ("json", "taken by Python"),
        ("Con", "taken by Python or the system"),  # Windows has no folder of that name
        ("com1", "taken by Python or the system"),
        ("torch", "a module 'torch' is installed already"),
        ("harness", "a module 'harness' is installed already"),
        ("psr-harness", "a package 'psr-harness' is installed already and would be replaced"),
        ("Scikit.Learn", "a package 'scikit-learn' is installed already"),
        ("PyYAML", "a package 'pyyaml' is installed already"),
        ("a" * 41, "longer than 40 characters"),
    ],
)
def test_names_that_cannot_be(given, reason, tmp_path):
    with pytest.raises(HarnessError, match=reason):
        scaffold("metric", given, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        ("agregator", "did you mean 'aggregator'"),
        ("defense", "did you mean 'defence'"),
        ("attack", "say which: evasion-attack, poisoning-attack, byzantine-attack, privacy-attack"),
        ("zzz", "valid: aggregator, byzantine-attack"),
    ],
)
def test_unknown_kinds_get_the_nearest(kind, hint, tmp_path):
    with pytest.raises(HarnessError, match=f"unknown kind '{kind}'; .*{hint}"):
        scaffold(kind, "mine", tmp_path)


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(HarnessError, match="exists already"):
        scaffold("metric", "mine", tmp_path)
    assert [p.name for p in tmp_path.rglob("*")] == ["mine", "thesis.txt"]
    (tmp_path / "other").symlink_to(tmp_path / "nowhere")
    with pytest.raises(HarnessError, match="exists already"):
        scaffold("metric", "other", tmp_path)
    with pytest.raises(HarnessError, match="no such folder"):
        scaffold("metric", "mine", tmp_path / "absent")


def test_what_cannot_be_written_whole_is_not_written_at_all(tmp_path, monkeypatch):
    from pathlib import Path

    write = Path.write_text

    def full_disk(self, *arguments, **options):
        if self.name == "README.md":
            raise OSError(28, "No space left on device")
        return write(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(HarnessError, match="mine cannot be written: No space left on device"):
        scaffold("metric", "mine", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_is_whole_and_says_what_it_is(kind, tmp_path):
    folder = scaffold(kind, "My.Sample", tmp_path)
    assert folder == tmp_path / "my-sample"
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {
        ".github/workflows/ci.yml", ".gitignore", "README.md", "pyproject.toml", "scenario.yaml",
        "src/my_sample/__init__.py", "src/my_sample/py.typed", "tests/test_my_sample.py",
    }  # fmt: skip
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["entry-points"]["harness"] == {"my-sample": "my_sample"}
    steps = yaml.safe_load((folder / ".github/workflows/ci.yml").read_text())["jobs"]["test"]["steps"]
    installs = [step["run"] for step in steps if "pip install" in step.get("run", "")]
    # The harness first, from where the author says: the package itself asks an index for it.
    assert installs == [
        "python -m pip install \"${{ vars.PSR_HARNESS || 'psr-harness' }}\"",
        'python -m pip install -e ".[dev]"',
    ]
    source = (folder / "src/my_sample/__init__.py").read_text(encoding="utf-8")
    assert 'name = "my-sample"' in source
    assert "Reference(" in source or kind == "tracker"
    for file in folder.rglob("*"):
        if file.is_file():
            text = file.read_bytes()
            assert b"{{ " not in text or file.name == "ci.yml", file
            assert b"\r" not in text
            assert text.endswith(b"\n") or not text, file


@pytest.mark.parametrize("name", ["x", "a-name-that-is-as-long-as-one-may-choose"])
def test_packages_are_linted_and_formatted_whatever_they_are_called(name, tmp_path):
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        scaffold(kind, name, tmp_path / kind)
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", str(tmp_path)],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


def test_the_command_says_what_comes_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["plugin", "new", "pre-aggregator", "my-rule"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "wrote my-rule: 8 files",
        "next:",
        "  cd my-rule",
        '  python -m pip install -e ".[dev]"',
        "  harness list aggregator",
        "  harness plugin check my-rule",
        "  python -m pytest",
        "  harness run scenario.yaml",
    ]
    assert main(["plugin", "new", "pre-aggregator", "my-rule"]) == 2
    assert capsys.readouterr().err == "error: my-rule exists already; choose another name or --out\n"


def test_a_name_that_is_taken_is_said(tmp_path, capsys):
    assert main(["plugin", "new", "aggregator", "krum", "--out", str(tmp_path)]) == 0
    assert (
        "note: the aggregator 'krum' exists already; scenarios must say krum/krum" in capsys.readouterr().out
    )


def test_the_command_can_be_pasted(tmp_path, capsys):
    (tmp_path / "my rules").mkdir()
    assert main(["plugin", "new", "metric", "mine", "--out", str(tmp_path / "my rules")]) == 0
    assert f"  cd '{tmp_path / 'my rules' / 'mine'}'" in capsys.readouterr().out.splitlines()


def test_a_new_rule_leaves_none_of_its_checks_out(tmp_path, capsys):
    scaffold("aggregator", "whole-rule", tmp_path)
    file = tmp_path / "whole-rule" / "src" / "whole_rule" / "__init__.py"
    assert main(["plugin", "check", "whole-rule", "--plugin", str(file), "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [item["check"] for item in checks if item["status"] != "passed"] == []
