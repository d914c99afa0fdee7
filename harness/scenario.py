"""Scenarios: YAML in, a validated model out; every mistake of a file in one error, by line and column."""

from __future__ import annotations

import difflib
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.contracts.data import Splits, loaded
from harness.errors import HarnessError, ScenarioError
from harness.options import (
    SGD,
    Adam,
    ClientOptimizer,
    Constant,
    Cosine,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    Linear,
    NAdam,
    Schedule,
    ServerOptimizer,
    Step,
)
from harness.scenario_data import unusable
from harness.scenario_errors import render
from harness.scenario_models import Scenario
from harness.scenario_parts import Compute, Evaluation, Federation, LocalTraining
from harness.scenario_reader import Reader
from harness.scenario_threats import Budget, Threat
from harness.yaml_loader import Document, Problem, parse

__all__ = [
    "SGD",
    "Adam",
    "Budget",
    "ClientOptimizer",
    "Compute",
    "Constant",
    "Cosine",
    "Evaluation",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedYogi",
    "Federation",
    "Linear",
    "LocalTraining",
    "NAdam",
    "Scenario",
    "Schedule",
    "ServerOptimizer",
    "Step",
    "Threat",
    "check_data",
    "load",
    "load_many",
    "load_text",
]


LARGEST = 16 * 2**20  # bytes of a scenario's file


def load(path: str | Path) -> Scenario:
    """The scenario in a file. Raises ScenarioError that lists every mistake; the data is not looked at."""
    return load_many([path])[0]


def load_text(text: str, path: str | Path | None = None) -> Scenario:
    """The scenario in a text. Raises ScenarioError.

    path: where the text comes from, for messages and for the data's relative paths.
    """
    source = _read_text(text, None if path is None else Path(path))
    if source.scenario is None:
        raise ScenarioError(source.message())
    return source.scenario


def load_many(paths: Iterable[str | Path]) -> list[Scenario]:
    """The scenarios in several files, in order. Raises ScenarioError with the mistakes of all of them.

    Two files that use the same scenario name are a mistake too: records tell scenarios apart by it.
    """
    messages: list[str] = []
    sources: list[_Source] = []
    for path in map(Path, paths):
        try:
            sources.append(_read_text(_read_file(path), path))
        except ScenarioError as error:
            messages.append(str(error))
    names: dict[str, str] = {}
    for source in sources:
        name = source.declared_name
        if name is not None and name in names:
            mark = source.document.values[("name",)]
            source.problems.append(
                Problem(mark, f"the scenario name {name!r} is already used by {names[name]}")
            )
        elif name is not None:
            names[name] = source.label
    messages += [source.message() for source in sources if source.problems]
    if messages:
        raise ScenarioError("\n".join(messages))
    return [source.scenario for source in sources if source.scenario is not None]


def check_data(scenario: Scenario, text: str | None = None) -> Splits:
    """The scenario's dataset, loaded and checked. Raises ScenarioError where it is missing or malformed.

    text: what the scenario was read from; by default its file is read again, for lines and columns.
    """
    try:
        splits = loaded(scenario.dataset, scenario.root)
        splits.check(scenario.dataset.name)
    except HarnessError as error:
        raise unusable(scenario, error, text) from error
    return splits


@dataclass
class _Source:
    """A file that was read, whether or not it holds a valid scenario."""

    label: str
    document: Document
    problems: list[Problem]
    scenario: Scenario | None

    @property
    def declared_name(self) -> str | None:
        """The scenario's name as the file states it, even where the rest is wrong."""
        data = self.document.data
        name = data.get("name") if isinstance(data, dict) else None
        return name if isinstance(name, str) else None

    def message(self) -> str:
        return render(self.problems, self.label, self.document.lines)


def _read_text(text: str, path: Path | None) -> _Source:
    document = parse(text)
    reader = Reader(document, path.parent if path is not None else Path())
    scenario = reader.scenario() if document.complete else None
    if scenario is not None and path is not None:
        scenario = scenario.model_copy(update={"path": path, "root": path.parent.absolute()})
    label = "<scenario>" if path is None else str(path)
    return _Source(label, document, reader.problems, scenario)


def _read_file(path: Path) -> str:
    if path.is_dir():
        raise ScenarioError(f"{path} is a folder; give a scenario file such as {path / 'quickstart.yaml'}")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)  # reading a device may never end
        if len(content) > LARGEST:
            raise ScenarioError(f"{path}: larger than {LARGEST >> 20} MiB, and so no scenario")
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()
    except FileNotFoundError:
        if path.is_symlink():
            raise ScenarioError(f"{path}: a link to {os.readlink(path)}, which is not there") from None
        if not path.parent.is_dir():
            raise ScenarioError(f"{path}: no such file; there is no folder {path.parent}") from None
        names = sorted(p.name for p in path.parent.iterdir() if p.suffix in (".yaml", ".yml") and p.is_file())
        near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.4)
        hint = (
            f"; did you mean {path.with_name(near[0])}?" if near else f"; {path.parent} has {_listed(names)}"
        )
        raise ScenarioError(f"{path}: no such file{hint}") from None
    except UnicodeDecodeError as error:
        *above, before = error.object[: error.start].split(b"\n")
        place = f"{len(above) + 1}:{len(before.decode(errors='replace')) + 1}"
        raise ScenarioError(
            f"{path}:{place}: not a text file in UTF-8 (byte {error.start} of the file); save it in that encoding"
        ) from None
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read: {error.strerror}") from None


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) if names else "no scenario files"
