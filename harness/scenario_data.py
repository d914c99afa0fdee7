"""What of a scenario does not fit its data: found before a run, and shown at its place in the file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from harness.contracts.data import hold_out
from harness.errors import HarnessError, PluginError, ScenarioError
from harness.random import numpy_generator
from harness.scenario_errors import render
from harness.scenario_parts import Found
from harness.scenario_reporter import Reporter
from harness.yaml_loader import Document, Location, parse

if TYPE_CHECKING:
    from harness.contracts.data import Splits
    from harness.scenario_models import Scenario


def check_fit(scenario: Scenario, splits: Splits, text: str | None = None) -> None:
    """Raises ScenarioError with every part of a scenario that cannot work with its data.

    text: what the scenario was read from; by default its file is read again, for lines and columns.
    """
    found = list(misfits(scenario, splits))
    if found:
        raise _error(scenario, _document(scenario, text), found)


def unusable(scenario: Scenario, error: HarnessError, text: str | None = None) -> ScenarioError:
    """The error of a scenario whose data cannot be loaded, at what it is about: a path, else the dataset's name.

    text: as for `check_fit`.
    """
    document = _document(scenario, text)
    place = _dataset_place(document, error) if document is not None else ()
    message = f"the dataset {scenario.dataset.name} cannot be used: {error}"
    return _error(scenario, document, [(place, message)])


def _dataset_place(document: Document, error: HarnessError) -> Location:
    """Of the value that the error's details name, by their location in the dataset or by what it is."""
    spec = document.data.get("dataset")
    base: Location = ("dataset", *spec) if isinstance(spec, dict) else ("dataset",)
    if not isinstance(error, PluginError) or not error.details:
        return base
    location, _, value = error.details[0]
    return (*base, *location) if location else _place_of(value, base, document)


def _place_of(value: Any, base: Location, document: Document) -> Location:
    """Where a value stands below a place, else that place."""
    below = (place for place in document.values if place[: len(base)] == base)
    reporter = Reporter(document)
    return next((place for place in below if reporter.at(place) == value), base)


def _document(scenario: Scenario, text: str | None) -> Document | None:
    """What the scenario was read from, None where that is not there or was broken since."""
    if text is None:
        try:
            text = "" if scenario.path is None else scenario.path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError):
            text = ""
    document = parse(text)
    return document if document.complete and isinstance(document.data, dict) else None


def _error(
    scenario: Scenario, document: Document | None, found: Iterable[tuple[Location, str]]
) -> ScenarioError:
    """All findings in one, at their places where there is a file that has them."""
    if document is None:
        return ScenarioError("; ".join(message for _, message in found))
    reporter = Reporter(document)
    for place, message in found:
        reporter.report(place, message)
    return ScenarioError(render(reporter.problems, str(scenario.path or "<scenario>"), document.lines))


def misfits(scenario: Scenario, splits: Splits) -> Found:
    """(location, what is wrong) of each."""
    labels, clients = splits.train.labels, scenario.federation.clients
    records = len(labels)
    if scenario.holdout:
        rng = numpy_generator(scenario.seeds[0], "holdout")
        try:
            records = len(hold_out(labels, splits.train.groups, scenario.holdout, rng)[0])
        except HarnessError as error:
            yield ("holdout",), str(error)
    if clients > records:
        kept = f", of which {records} are trained on" if records < len(labels) else ""
        yield (
            ("federation", "clients"),
            f"{clients} clients cannot share the {len(labels)} training records{kept}: at most {records}",
        )
    channels = splits.input_shape[0]
    for name in ("mean", "std"):
        value = getattr(scenario.normalization, name, None)
        if isinstance(value, list) and len(value) != channels:
            yield (
                ("normalization", name),
                f"normalization.{name} has {len(value)} values, the images {channels} channels; one number serves all",
            )
    for stack in scenario.defences:
        for defence in stack:
            delta = getattr(defence, "delta", None)
            if defence.protects == "record" and isinstance(delta, float) and delta >= 1 / records:
                yield (
                    ("defences",),
                    f"{defence.name}: delta {delta:g} must be below 1 / {records} = {1 / records:.3g}, one over the "
                    "number of training records",
                )
