"""Shared by all tests: one thread, real data only where it is, small helpers."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

import pytest
import typer.main

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Not the user's: worker processes and commands that tests start have it too.
_CACHE = tempfile.TemporaryDirectory(prefix="harness-tests-")
os.environ.setdefault("HARNESS_CACHE", _CACHE.name)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _commands_are_made_once():
    """Typer makes all commands anew whenever an application is called, which a process does once and tests do often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the real data sets; skips, visibly, where it is absent."""
    folder = Path(os.environ.get("HARNESS_DATA", "unset"))
    if not (folder / "pneumonia-28.npz").exists():
        pytest.skip("real data not found: set HARNESS_DATA to the folder that holds pneumonia-28.npz")
    return folder
