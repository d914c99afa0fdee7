"""Turns what was typed into values."""

from __future__ import annotations

import glob
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from harness.errors import HarnessError, StoreError

ENDINGS = (".yaml", ".yml")


def find_scenarios(arguments: Sequence[str]) -> list[Path]:
    """Files, in the order given, each once; a folder stands for the YAML files directly inside it.

    Raises HarnessError where a folder or pattern holds none. A file that is not there is left to the
    loader, which names the nearest one.
    """
    found: list[Path] = []
    empty: list[str] = []
    for argument in arguments:
        # `Path("")` is the working directory: with an unset shell variable, everything in it would run.
        if not argument:
            raise HarnessError("a scenario is a file, a folder or a pattern, not an empty text")
        path = Path(argument)
        if path.is_dir():
            matches = sorted(p for p in path.iterdir() if p.suffix in ENDINGS and p.is_file())
        elif not path.exists() and glob.has_magic(argument):
            matches = sorted(
                Path(p) for p in glob.glob(argument, recursive=True) if Path(p).suffix in ENDINGS
            )
        else:
            matches = [path]
        found += matches
        if not matches:
            empty.append(argument)
    if empty:
        raise HarnessError(f"no scenario ({' or '.join(ENDINGS)}) in {', '.join(empty)}")
    return list(dict.fromkeys(found))


def parse_jobs(text: str) -> int | Literal["auto"]:
    """`auto` or a number of processes, at least 0. Raises HarnessError for anything else."""
    if text == "auto":
        return "auto"
    if text.isascii() and text.isdigit():
        return int(text)
    raise HarnessError(f"--jobs takes auto or a number from 0 on, not {text!r}")


def stored_records(store: Path, scenario: str | None = None) -> list[dict[str, Any]]:
    """The whole records of an existing store; damaged ones are left out and named on stderr. Raises HarnessError."""
    from harness.database import is_store
    from harness.store import Store as Records

    if not is_store(store):
        what = " is no store" if store.exists() else ": there is no such folder"
        raise HarnessError(f"--store {store}{what}; run a scenario first")
    with Records.reading(store) as records:
        lost: list[StoreError] = []
        found = records.records(scenario, lost=lost)
    for error in lost:
        print(f"warning: left out: {error}", file=sys.stderr)
    return found
