"""Every kind of plugin, from `harness plugin new` to a record, as installed packages beside the project's wheel.

One test, as all of it shares one environment; what it looks at has a function each.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fresh_environment import ROOT, Environment, build_wheels

from harness.plugin_kit.scaffold import KINDS, scaffold

EVERYTHING = """\
schema: 1
name: everything
dataset: kit-dataset
model: {kit-model: {grid: 4}}
federation:
  clients: 4
  rounds: 2
  partition: kit-partitioner
  local: {epochs: 1, batch_size: 16, optimizer: {sgd: {lr: 0.1}}}
defences: [kit-defence]
aggregators: [[kit-pre-aggregator, kit-aggregator]]
compressors: [[kit-update-compressor, kit-model-compressor]]
threats:
  - {name: evasion, budget: {norm: linf, eps: 0.1}, attacks: [kit-evasion-attack]}
  - {name: poisoning, malicious: 0.25, attacks: [kit-poisoning-attack]}
  - {name: byzantine, malicious: 0.25, attacks: [kit-byzantine-attack]}
  - {name: privacy, attacks: [kit-privacy-attack]}
metrics: [accuracy, robust-accuracy, mia, kit-metric]
trackers: [kit-tracker]
"""

# Package -> (what is changed in its module, why it is left out).
BROKEN = {
    "bad-import": (
        ("from harness.api import", "import no_such_module_anywhere\nfrom harness.api import"),
        "import failed: ModuleNotFoundError: No module named 'no_such_module_anywhere'",
    ),
    "bad-hook": (("def harness_register(", "def harness_regster("), "unknown hook 'harness_regster'"),
    "bad-newer": (
        ("from harness.api import", "from harness.api import NotYetThere,"),
        "it requires harness.api >=99.0; this is version 1.0: upgrade psr-harness",
    ),
    "bad-parameter": (
        ("    f: int | None = Field(", "    label: str = Field(\"a\", description=\"x\")\n    f: int | None = Field("),
        "the parameter 'label' hides Aggregator.label; rename it",
    ),
}  # fmt: skip


@pytest.mark.slow
def test_from_nothing_to_a_record(tmp_path: Path) -> None:
    packages = {kind: scaffold(kind, f"kit-{kind}", tmp_path) for kind in KINDS}
    twins = [twin(tmp_path, name) for name in ("twin-a", "twin-b")]
    broken = [break_package(tmp_path, name) for name in BROKEN]
    wheels = build_wheels([ROOT, *packages.values(), *twins, *broken], tmp_path / "wheels")
    assert len(wheels) == 1 + 14 + 2 + 4
    wheel_holds_what_authors_need(next(w for w in wheels if w.name.startswith("psr_harness-")))
    environment = Environment(tmp_path / "env", wheels)
    types = start_type_checker(environment, list(packages.values()), tmp_path)  # it runs beside the rest
    try:
        engine_is_the_installed_one(environment, tmp_path)
        all_are_listed(environment, packages, tmp_path)
        scenarios_are_valid(environment, packages, tmp_path)
        ambiguous_names_are_an_error_where_used(environment, tmp_path)
        own_tests_pass(environment, packages, tmp_path)
        records_name_the_packages(environment, packages, tmp_path)
        said = types.communicate()[0]
        assert types.returncode == 0, said
    finally:
        types.kill()


def wheel_holds_what_authors_need(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {"harness/py.typed", "harness_plugins/py.typed"} <= set(names)
    templates = ROOT / "harness" / "plugin_kit" / "templates"
    for file in templates.rglob("*.j2"):
        assert f"harness/plugin_kit/templates/{file.relative_to(templates).as_posix()}" in names


def engine_is_the_installed_one(environment: Environment, folder: Path) -> None:
    code = "import harness, harness_plugins; print(harness.__file__, harness_plugins.__file__, sep='\\n')"
    said = environment.call([environment.python, "-c", code], folder).stdout.split()
    assert [Path(file).parent.parent for file in said] == [environment.packages] * 2


def all_are_listed(environment: Environment, packages: dict[str, Path], folder: Path) -> None:
    done = environment.harness("list", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    listed = {(p["kind"], p["name"]): (p["distribution"], p["version"]) for p in found["plugins"]}
    for kind in packages:
        assert listed[KINDS[kind], f"kit-{kind}"] == (f"kit-{kind}", "0.1.0")
    disabled = {d["distribution"]: d["reason"] for d in found["disabled"]}
    assert set(disabled) == set(BROKEN)
    for name, (_, reason) in BROKEN.items():
        assert reason in disabled[name]


def scenarios_are_valid(environment: Environment, packages: dict[str, Path], folder: Path) -> None:
    files = [package / "scenario.yaml" for package in packages.values()]
    done = environment.harness("validate", "--no-data", *files, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": ok") == len(files)


def ambiguous_names_are_an_error_where_used(environment: Environment, folder: Path) -> None:
    text = "schema: 1\nname: twins\ndataset: digits\nmodel: {{mlp: {{hidden: [4]}}}}\naggregators: [{}]\n"
    (folder / "short.yaml").write_text(text.format("twin"))
    (folder / "full.yaml").write_text(text.format("twin-b/twin"))
    done = environment.harness("validate", "--no-data", "short.yaml", cwd=folder)
    assert done.returncode == 2
    assert (
        "short.yaml:5:15: aggregator 'twin' is in several packages; say twin-a/twin or twin-b/twin"
        in done.stderr
    )
    done = environment.harness("validate", "--no-data", "full.yaml", cwd=folder)
    assert (done.returncode, done.stdout) == (0, "full.yaml: ok\n")


def own_tests_pass(environment: Environment, packages: dict[str, Path], folder: Path) -> None:
    options = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "--rootdir", folder]
    tests = [package / "tests" for package in packages.values()]
    done = environment.call(
        [environment.python, "-m", "pytest", *options, *tests, "-k", "not conformance"], folder
    )
    assert done.returncode == 0, done.stdout
    # The command itself, for each; one process, as importing torch takes longer than checking.
    code = "import sys; from harness.cli import main; sys.exit(max(main(['plugin', 'check', n]) for n in sys.argv[1:]))"
    done = environment.call([environment.python, "-c", code, *(f"kit-{kind}" for kind in packages)], folder)
    assert done.returncode == 0, done.stdout + done.stderr


def records_name_the_packages(environment: Environment, packages: dict[str, Path], folder: Path) -> None:
    (folder / "everything.yaml").write_text(EVERYTHING)
    done = environment.harness("run", "everything.yaml", "--jobs", "1", "--json", "--quiet", cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    records = json.loads(done.stdout)["records"]
    assert len(records) == 4
    assert {record["status"] for record in records} == {"scored"}
    seen = {}
    for record in records:
        for item in record["provenance"]["plugins"] + record["provenance"]["trackers"]:
            seen.setdefault((item["kind"], item["name"]), item)
    for kind, package in packages.items():
        item = seen[KINDS[kind], f"kit-{kind}"]
        assert (item["distribution"], item["version"]) == (f"kit-{kind}", "0.1.0")
        assert item["source"] == source_of(package)
    by_threat = {record["cell"]["threat"]: record for record in records}
    assert "kappa" in by_threat["byzantine"]["scores"]
    assert "robust_accuracy" in by_threat["evasion"]["scores"]
    assert "mia_auc" in by_threat["privacy"]["scores"]
    assert (folder / "cells.md").read_text().count("\n") == 2 + len(records)


def source_of(package: Path) -> str:
    """The hash of a package's files, written again from its description in harness.source_code.source_hash."""
    (module,) = (package / "src").iterdir()
    digest = hashlib.sha256()
    files = {f.relative_to(module).as_posix(): f for f in module.rglob("*") if f.is_file()}
    for name, file in sorted(files.items()):
        if "__pycache__" not in name:
            digest.update(name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return hashlib.sha256(f"{package.name}\0{digest.hexdigest()}".encode()).hexdigest()


def start_type_checker(environment: Environment, packages: list[Path], folder: Path) -> subprocess.Popen[str]:
    """mypy --strict over all packages, against what is installed."""
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(environment.python)]
    command += ["--cache-dir", str(folder / "mypy"), "--config-file="]
    command += [str(package / part) for package in packages for part in ("src", "tests")]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment.variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def twin(folder: Path, name: str) -> Path:
    """A package whose plugin is called `twin`, whatever the package is called."""
    return edited(scaffold("aggregator", name, folder), f'name = "{name}"', 'name = "twin"')


def break_package(folder: Path, name: str) -> Path:
    package = scaffold("aggregator", name, folder)
    if name == "bad-newer":
        edited(package, 'requires_api = ">=1.0"', 'requires_api = ">=99.0"')
    return edited(package, *BROKEN[name][0])


def edited(package: Path, old: str, new: str) -> Path:
    (file,) = (package / "src").glob("*/__init__.py")
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    return package
