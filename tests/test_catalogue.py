"""The kept list of `harness list`: used while nothing has changed, and never shown when something has."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from harness.cli import main as harness
from harness.console import catalogue

PLUGIN = """
from harness.api import Aggregator, hookimpl


class Rule(Aggregator):
    \"\"\"{sentence}\"\"\"

    name = "catalogue-rule"

    def aggregate(self, updates, context):
        return updates.mean(0)


@hookimpl
def harness_register(register):
    register(Rule)
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "listings"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """put(sentence): installs a package whose rule says it, or writes it anew."""
    place = tmp_path / "site"
    info = place / "catalogue_pack-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: catalogue-pack\nVersion: 1.0\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(place), *sys.path]))

    def put(sentence: str) -> None:
        (place / "catalogue_pack.py").write_text(PLUGIN.format(sentence=sentence))
        (info / "entry_points.txt").write_text("[harness]\nmain = catalogue_pack\n")

    return put


def listed(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness", "list", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_second_list_loads_no_plugin_and_says_the_same(cache):
    first = listed()
    assert first.returncode == 0, first.stderr
    assert len(list(cache.iterdir())) == 1
    code = (
        "import sys; from harness.cli import main; status = main(['list']); "
        "loaded = [m for m in sys.modules if m.startswith(('harness_plugins.', 'harness.contracts', 'pydantic'))]; "
        "print(loaded, file=sys.stderr); sys.exit(status)"
    )
    second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert second.returncode == 0
    assert second.stdout == first.stdout
    assert second.stderr.strip() == "[]"


def test_every_kind_and_json_come_from_the_kept_list(cache, capsys):
    assert harness(["list", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert harness(["list", "aggregator", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plugins"] == [
        plugin for plugin in whole["plugins"] if plugin["kind"] == "aggregator"
    ]
    assert harness(["list", "agregator"]) == 2
    assert "did you mean 'aggregator'" in capsys.readouterr().err


def test_a_changed_package_is_listed_as_it_is_now(cache, package):
    package("The first sentence.")
    assert "The first sentence." in listed("aggregator").stdout
    assert "The first sentence." in listed("aggregator").stdout
    package("The second sentence, which is longer.")
    found = listed("aggregator").stdout
    assert "The second sentence, which is longer." in " ".join(found.split())
    assert "The first sentence." not in found
    assert len(list(cache.iterdir())) == 1  # the older list is gone


def test_where_something_is_disabled_nothing_is_kept(cache, package):
    package('A rule."""\nraise RuntimeError("no")\n"""')
    for _ in range(2):
        found = " ".join(listed("aggregator").stdout.split())
        assert "disabled: catalogue-pack 1.0" in found
    assert not cache.exists()


def test_a_damaged_or_unwritable_cache_is_gone_without(cache, monkeypatch, capsys, tmp_path):
    assert harness(["list"]) == 0
    expected = capsys.readouterr().out
    (file,) = cache.iterdir()
    file.write_text("{")
    assert catalogue.kept_listing(catalogue.listing_file()) is None
    assert harness(["list"]) == 0
    assert capsys.readouterr().out == expected
    (tmp_path / "occupied").write_text("a file")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "occupied"))
    assert harness(["list"]) == 0
    assert capsys.readouterr().out == expected


def test_a_package_without_sources_is_not_kept(cache, monkeypatch):
    point = SimpleNamespace(module="no_such_package.main", name="main", value="no_such_package.main")
    monkeypatch.setattr(
        catalogue, "offers", lambda: [SimpleNamespace(distribution="x", version="1", entry_point=point)]
    )
    assert catalogue.listing_file() is None
    assert harness(["list"]) == 0
    assert not cache.exists()
    assert importlib.util.find_spec("no_such_package") is None


def test_a_plugin_that_lacks_its_extra_is_marked(cache, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert harness(["list", "tracker"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("Cannot be used yet") == 1
    assert "Cannot be used yet: pip install 'psr-harness[mlflow]'" in said
    assert harness(["list", "tracker", "--json"]) == 0
    found = {p["name"]: p["to_install"] for p in json.loads(capsys.readouterr().out)["plugins"]}
    assert found["mlflow"] == "pip install 'psr-harness[mlflow]'"
    assert found["jsonl"] is None
