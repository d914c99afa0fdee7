"""Which modules of a package decide what one of them does."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import harness_plugins
from harness.import_closure import ImportClosure
from harness.python_files import code_files
from harness.registry import registry
from harness.source_code import source_hash

BUILT_IN = Path(harness_plugins.__file__).parent
NAME = "harness_test_closure"


@pytest.fixture
def package(tmp_path) -> Path:
    files = {
        "__init__.py": "",
        "rules/__init__.py": "",
        "rules/krum.py": "from harness_test_closure.rules._distances import squared\n",
        "rules/_distances.py": "import torch\n",
        "rules/median.py": "",
        "attacks/__init__.py": "",
        "attacks/fang.py": "def craft():\n    from ..rules import krum\n",
        "attacks/lazy.py": "import importlib\nimportlib.import_module('harness_test_closure.rules.median')\n",
        "attacks/round.py": "import harness_test_closure.attacks.trip\n",
        "attacks/trip.py": "if False:\n    from .round import *\n",
    }
    for name, text in files.items():
        file = tmp_path / NAME / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / NAME


def reached(package: Path, module: str) -> set[str]:
    found = ImportClosure(NAME, package).of(f"{NAME}.{module}")
    return {name.removeprefix(NAME).lstrip(".") for name in found}


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("rules.median", {"", "rules", "rules.median"}),
        ("rules.krum", {"", "rules", "rules.krum", "rules._distances"}),
        ("attacks.fang", {"", "attacks", "attacks.fang", "rules", "rules.krum", "rules._distances"}),
        ("attacks.lazy", {"", "attacks", "attacks.lazy", "rules", "rules.median"}),
        ("attacks.round", {"", "attacks", "attacks.round", "attacks.trip"}),
        ("attacks.trip", {"", "attacks", "attacks.round", "attacks.trip"}),
    ],
)
def test_what_a_module_reaches(package, module, expected):
    assert reached(package, module) == expected


@pytest.mark.parametrize(
    ("edited", "changed"),
    [
        ("rules/_distances.py", {"rules.krum", "attacks.fang"}),
        ("rules/median.py", {"rules.median", "attacks.lazy"}),
        ("rules/__init__.py", {"rules.krum", "rules.median", "attacks.fang", "attacks.lazy"}),
        ("__init__.py", {"rules.krum", "rules.median", "attacks.fang", "attacks.lazy", "attacks.round"}),
        ("attacks/trip.py", {"attacks.round"}),
    ],
)
def test_an_edit_changes_the_hash_of_what_reaches_it_and_of_nothing_else(package, edited, changed):
    modules = ["rules.krum", "rules.median", "attacks.fang", "attacks.lazy", "attacks.round"]

    def digests() -> dict[str, str]:
        closure = ImportClosure(NAME, package)
        return {module: closure.digest(f"{NAME}.{module}") for module in modules}

    before = digests()
    assert digests() == before
    with open(package / edited, "a") as file:
        file.write("x = 1\n")
    after = digests()
    assert {module for module in modules if after[module] != before[module]} == changed


def test_a_module_that_changes_its_name_is_another(package):
    before = ImportClosure(NAME, package).digest(f"{NAME}.rules.median")
    (package / "rules" / "median.py").rename(package / "rules" / "mean.py")
    assert ImportClosure(NAME, package).digest(f"{NAME}.rules.mean") != before


# the built-in plugins -------------------------------------------------------------------------------


def test_an_edit_of_one_built_in_method_leaves_the_hashes_of_others(tmp_path):
    copy = tmp_path / "harness_plugins"
    shutil.copytree(BUILT_IN, copy, ignore=shutil.ignore_patterns("__pycache__"))
    modules = [
        f"harness_plugins.{name}" for name in ("defences.dp_sgd", "aggregators.krum", "models.resnet9")
    ]

    def digests() -> list[str]:
        closure = ImportClosure("harness_plugins", copy)
        return [closure.digest(module) for module in modules]

    before = digests()
    with open(copy / "defences" / "_ghost_formulas.py", "a") as file:
        file.write("EPS = 1\n")
    same = [a == b for a, b in zip(digests(), before, strict=True)]
    assert same == [False, True, True]


def test_plugins_of_one_module_have_its_hash_and_those_of_others_another():
    found = registry()
    mean, krum, multi = (found.find("aggregator", name) for name in ("mean", "krum", "multi-krum"))
    assert krum.source_hash == multi.source_hash == source_hash("psr-harness", krum.plugin.__module__)
    assert mean.source_hash != krum.source_hash
    assert source_hash("psr-harness", "harness_plugins") not in (mean.source_hash, krum.source_hash)


def test_what_importing_a_built_in_module_runs_is_what_its_hash_covers():
    """Each is imported as if it were the first, and every module of the package that comes along is compared."""
    script = """
import importlib, sys
from pathlib import Path
from harness.import_closure import ImportClosure
import harness_plugins
closure = ImportClosure("harness_plugins", Path(harness_plugins.__file__).parent)
for module in closure.files:
    for name in [name for name in sys.modules if name.startswith("harness_plugins")]:
        del sys.modules[name]
    importlib.import_module(module)
    run = {name for name in sys.modules if name.startswith("harness_plugins")}
    assert module in run
    assert run <= closure.of(module), (module, run - closure.of(module))
print(len(closure.files))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


def test_built_in_modules_reach_each_other_by_written_imports_alone():
    """What else would let one decide numbers of another: names that are worked out, and the table of modules."""
    users_choice = "harness_plugins.aggregators.flower"  # imports the strategy that the scenario names
    found = []
    for module, file in code_files("harness_plugins", BUILT_IN):
        for node in ast.walk(ast.parse(file.read_text())):
            name = getattr(node, "attr", getattr(node, "id", ""))
            if name in ("import_module", "__import__", "modules", "walk_packages") and isinstance(
                node, ast.Attribute | ast.Name
            ):
                owner = ast.unparse(node).partition(".")[0]
                if owner in ("importlib", "sys", "pkgutil", "__import__", "import_module"):
                    found.append(module)
    assert set(found) <= {"harness_plugins", users_choice}
