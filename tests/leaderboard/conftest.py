"""A scenario that is run once, its store, and the command line with the leaderboard in it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from harness.leaderboard.submit import collect
from harness.scenario import load
from harness.store import Store

CLEAN = {"version": "0.1.0", "commit": "1f" * 20, "dirty": False}

# Two seeds; a guarantee that int8's calibration breaks; an attack that does not fit its budget's norm.
TEXT = """schema: 1
name: small
description: What is left of it?
dataset: digits
model: logistic
federation: {clients: 3, rounds: 2, local: {batch_size: 64, optimizer: {sgd: {lr: 0.1}}}}
defences: [none, dp-sgd: {epsilon: 2}]
compressors: [none, static-int8]
threats:
  - {name: none}
  - {name: evasion, budget: {norm: linf, eps: 0.1}, surrogate: uncompressed, attacks: [fgsm, pgd-l2]}
seeds: [0, 1]
"""


@pytest.fixture(scope="session")
def ran(tmp_path_factory):
    """scenario, path, store (a folder) and records, as a run from a clean checkout leaves them."""
    from harness.engine import run

    folder = tmp_path_factory.mktemp("leaderboard")
    path = folder / "small.yaml"
    path.write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("harness.provenance.engine", lambda: CLEAN)
        result = run(path, device="cpu", jobs=0, store=folder / "runs")
    assert result.scored == 16
    assert result.not_applicable == 8
    return SimpleNamespace(scenario=load(path), path=path, store=folder / "runs", text=TEXT)


@pytest.fixture
def clean_checkout(monkeypatch):
    """Runs of the test are from the commit that the run above is from."""
    monkeypatch.setattr("harness.provenance.engine", lambda: CLEAN)


@pytest.fixture
def records(ran):
    """The run's records, fresh copies that a test may change."""
    with Store(ran.store) as opened:
        return opened.records("small")


@pytest.fixture
def made(ran, records):
    """The official submission of that run."""
    return collect(records, ran.scenario, name="base", authors="A. Author", created="2026-01-02T03:04:05Z")


@pytest.fixture
def call(capsys):
    """harness(arguments) -> (exit status, stdout, stderr)."""
    from harness.cli import main

    def run(*arguments):
        capsys.readouterr()
        status = main(["leaderboard", *map(str, arguments)])
        return (status, *capsys.readouterr())

    return run
