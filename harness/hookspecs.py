"""The pluggy hooks. A plugin package implements the ones it needs, marked with harness.api.hookimpl."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pluggy

from harness.contracts.base import Plugin

PROJECT = "harness"
Register = Callable[[type[Plugin]], None]
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def harness_register(register: Register) -> None:
    """Call `register(cls)` for every plugin class; the class says its kind and name."""


@hookspec
def harness_commands(cli: Any) -> None:
    """Add subcommands to `cli`, the Typer application of the `harness` command."""


@hookspec
def harness_run_started(run: dict[str, Any]) -> None:
    """A run begins. run: id, scenarios, cells, stages, jobs, device, store."""


@hookspec
def harness_run_finished(run: dict[str, Any]) -> None:
    """A run ends, also when interrupted. run: as at the start, with scored, failed, not_applicable, seconds."""


@hookspec
def harness_cell_started(cell: dict[str, Any]) -> None:
    """A cell's first stage that is not in the store begins. cell: id, scenario and one value per axis."""


@hookspec
def harness_cell_finished(cell: dict[str, Any], record: dict[str, Any]) -> None:
    """A cell has its record: scored, failed or not applicable."""


@hookspec
def harness_round_finished(stage: str, round: dict[str, Any]) -> None:
    """A federated round ended. round: round (from 1), rounds, clients, and val_loss and val_accuracy where evaluated.

    Called in the main process with what the workers report.
    """
