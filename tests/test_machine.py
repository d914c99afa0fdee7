"""--json: one JSON value on standard output, whatever plugins print."""

from __future__ import annotations

import json

import pytest
import small

from harness import cli
from harness.registry import registry

SCENARIO = small.SCENARIO + "aggregators: [loud]\ntrackers: [loud]\nplugins: [own.py]\n"
PLUGINS = """
from harness.api import Aggregator, Tracker, hookimpl
print("imported")

class Loud(Aggregator):
    \"\"\"A mean that talks.\"\"\"
    name = "loud"

    def aggregate(self, updates, context):
        print("aggregated")
        return updates.mean(0)

class Tells(Tracker):
    \"\"\"Talks when a run begins.\"\"\"
    name = "loud"

    def harness_run_started(self, run):
        print("started")

@hookimpl
def harness_register(register):
    register(Loud)
    register(Tells)
"""


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["run", "{file}", "--jobs", "0", "--device", "cpu"], ["imported", "started", "aggregated"]),
        (["run", "{file}", "--dry-run", "--plugin", "{plugin}"], ["imported"]),
        (["show", "aggregator", "loud", "--plugin", "{plugin}"], ["imported"]),
    ],
)
def test_what_plugins_print_is_kept_out_of_json(command, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file, plugin = tmp_path / "small.yaml", tmp_path / "own.py"
    file.write_text(SCENARIO)
    plugin.write_text(PLUGINS + f"# {tmp_path}\n")  # a file of its own for each test: it is imported again
    monkeypatch.setattr(registry(), "_seen", registry()._seen)
    arguments = [part.format(file=file, plugin=plugin) for part in command]
    assert cli.main([*arguments, "--json"]) == 0
    printed = capsys.readouterr()
    assert isinstance(json.loads(printed.out), dict)
    for word in said:
        assert word in printed.err
    print("to standard output again")
    assert capsys.readouterr().out == "to standard output again\n"
