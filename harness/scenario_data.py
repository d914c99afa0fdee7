"""What of a scenario does not fit its data: found before a run, and shown at its place in the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.contracts.data import hold_out
from harness.errors import HarnessError, ScenarioError
from harness.random import numpy_generator
from harness.scenario_errors import render
from harness.scenario_parts import Found
from harness.scenario_reporter import Reporter
from harness.yaml_loader import parse

if TYPE_CHECKING:
    from harness.contracts.data import Splits
    from harness.scenario_models import Scenario


def check_fit(scenario: Scenario, splits: Splits, text: str | None = None) -> None:
    """Raises ScenarioError with every part of a scenario that cannot work with its data.

    text: what the scenario was read from; by default its file is read again, for lines and columns.
    """
    found = list(misfits(scenario, splits))
    if not found:
        return
    if text is None:
        try:
            text = "" if scenario.path is None else scenario.path.read_text(encoding="utf-8-sig")
        except OSError:
            text = ""
    if not text:
        raise ScenarioError("; ".join(message for _, message in found))
    document = parse(text)
    reporter = Reporter(document)
    for place, message in found:
        reporter.report(place, message)
    raise ScenarioError(render(reporter.problems, str(scenario.path or "<scenario>"), document.lines))


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
