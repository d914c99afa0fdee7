"""Trackers: observer hooks that accept what they are called with."""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness import hookspecs
from harness.contracts.tracker import Tracker
from harness.testing.core import (
    FAMILIES,
    CheckFailed,
    CheckSkipped,
    Family,
    Setting,
    Subject,
    Trial,
    check,
    require,
)

OBSERVED = (
    "harness_run_started",
    "harness_cell_started",
    "harness_round_finished",
    "harness_cell_finished",
    "harness_run_finished",
)


def events(
    run: str = "run-1", status: str = "scored", value: float = 0.75
) -> list[tuple[str, dict[str, Any]]]:
    """The hooks of a small run, in order, each with its arguments."""
    started = {
        "id": run, "scenarios": ["toy"], "cells": 1, "stages": 2, "jobs": 0, "device": "cpu", "store": "runs",
    }  # fmt: skip
    cell = {
        "id": "0123456789ab", "scenario": "toy", "defence": "none", "aggregator": "mean", "compressor": "none",
        "threat": "none", "attack": "none", "seed": 0,
    }  # fmt: skip
    record = {
        "id": cell["id"], "status": status, "scores": {"accuracy": value} if status == "scored" else {},
        "scenario": {"name": "toy", "version": 1, "hash": "00"}, "cell": {k: v for k, v in cell.items() if k != "id"},
        "units": {}, "flags": [], "reason": None, "guarantee": None,
        "error": {"type": "E", "message": "m", "traceback": "t"} if status == "failed" else None,
    }  # fmt: skip
    rounds = [
        {"round": n, "rounds": 2, "clients": 3, "val_loss": value, "val_accuracy": value} for n in (1, 2)
    ]
    return [
        ("harness_run_started", {"run": started}),
        ("harness_cell_started", {"cell": cell}),
        *(("harness_round_finished", {"stage": "train none mean", "round": r}) for r in rounds),
        ("harness_round_finished", {"stage": "another", "round": {"round": 1, "rounds": 2, "clients": 3}}),
        ("harness_cell_finished", {"cell": cell, "record": record}),
        ("harness_run_finished", {"run": {**started, "scored": 1, "failed": 0, "not_applicable": 0, "seconds": 1.0}}),
    ]  # fmt: skip


@contextmanager
def elsewhere() -> Iterator[None]:
    """A working directory of its own: what a tracker writes there is gone afterwards."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def _call(tracker: Tracker, happened: list[tuple[str, dict[str, Any]]]) -> None:
    for name, arguments in happened:
        hook = getattr(tracker, name, None)
        if hook is not None:
            hook(**arguments)


def _trial(tracker: Tracker, setting: Setting) -> Trial:
    try:
        _hooks(type(tracker))
    except CheckFailed:
        raise CheckSkipped("see hooks_known") from None
    happened = events()

    def call() -> dict[str, Any]:
        with elsewhere():
            _call(tracker, happened)
        return {}

    return Trial({"the arguments of a hook": [arguments for _, arguments in happened]}, call)


FAMILIES["tracker"] = Family("tracker", _trial, dtypes=("float32",), scenes=1)


@check("tracker")
def hooks_known(subject: Subject) -> None:
    """Every method named harness_... is an observer hook and takes its arguments; there is at least one."""
    _hooks(subject.cls)


def _hooks(cls: type) -> None:
    own = [name for name in dir(cls) if name.startswith("harness_")]
    label = cls.__name__
    for name in own:
        require(
            name in OBSERVED,
            f"{label} has a method {name!r}, which is no observer hook and is never called: {', '.join(OBSERVED)}",
        )
        wanted = list(inspect.signature(getattr(hookspecs, name)).parameters)
        signature = inspect.signature(getattr(cls, name))
        try:
            signature.bind(None, **dict.fromkeys(wanted))
        except TypeError as error:
            raise CheckFailed(
                f"{label}.{name}{signature} is called with {', '.join(wanted)} by keyword: {error}"
            ) from error
    require(bool(own), f"{label} has no observer hook, so it sees nothing: see harness.hookspecs")


@check("tracker")
def unusual_runs(subject: Subject) -> None:
    """Failed cells, scores that are not finite, runs cut short and two runs in a row are accepted."""
    subject.outcome()
    cases = {
        "a failed cell": events("run-2", status="failed"),
        "a cell that is not applicable": events("run-3", status="not-applicable"),
        "scores that are NaN": events("run-4", value=float("nan")),
        "a run cut short, and another after it": [*events("run-5")[:3], *events("run-6")],
        "a run without cells": [events("run-7")[0], events("run-7")[-1]],
    }
    # One folder for all cases, as users keep their runs in one place, and a database takes seconds to make.
    with elsewhere():
        for what, happened in cases.items():
            try:
                _call(subject.plugin, happened)
            except Exception as error:
                raise CheckFailed(
                    f"{subject.name} breaks with {what}: {type(error).__name__}: {error}. It is then not "
                    "called again in that run"
                ) from error
