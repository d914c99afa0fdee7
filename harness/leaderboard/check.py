"""What can be said of submissions without running anything: for the review of pull requests."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.entry_points import BUILTIN
from harness.errors import HarnessError
from harness.leaderboard.official import missing_cells
from harness.leaderboard.publishable import AXES, cell_name, line, plain, unportable
from harness.leaderboard.submission import Cell as CellScores
from harness.leaderboard.submission import Seed, Submission, file_name, read

if TYPE_CHECKING:
    from harness.grid import Cell
    from harness.scenario import Scenario

MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
AMOUNT = (0.0, math.inf)
# What a score of a unit can be.
RANGES = {
    "share": (0.0, 1.0), "probability": (0.0, 1.0), "s": AMOUNT, "ms": AMOUNT, "B": AMOUNT, "bytes": AMOUNT,
    "bytes per client": AMOUNT, "MAC": AMOUNT,
}  # fmt: skip
SIGNED = ("reconstruction_ssim",)  # a share that can be negative: images can be each other's negative


@dataclass
class Checked:
    """What was found in files. problems refuse a pull request; notes are for whoever reviews it."""

    submissions: dict[Path, Submission] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check(paths: Sequence[Path]) -> Checked:
    """Each file by itself, against the scenario that it holds, and beside the others of its board."""
    found = Checked()
    for path in dict.fromkeys(paths):
        try:
            found.submissions[path] = read(path)
        except HarnessError as error:
            found.problems.append(str(error))
    rows: dict[tuple[str, str], Path] = {}
    boards: dict[str, Path] = {}
    for path, submission in found.submissions.items():
        found.problems += [f"{path}: {problem}" for problem in _alone(path, submission)]
        _against_its_scenario(path, submission, found)
        board = submission.scenario.board
        row = (board, submission.name.casefold())
        if row in rows:
            found.problems.append(
                f"{path}: {submission.name} is on the board {board} already, from {rows[row]}"
            )
        rows.setdefault(row, path)
        if submission.official:
            first = boards.setdefault(board, path)
            if found.submissions[first].scenario.hash != submission.scenario.hash:
                found.problems.append(
                    f"{path}: its {board} is another scenario than in {first}: a changed scenario needs a new version"
                )
        if submission.verification is not None:
            by = submission.verification
            found.notes.append(f"{path}: it comes with a verification of its own ({by.verdict}, {by.when})")
    return found


def open_scenario(submission: Submission) -> Scenario:
    """The scenario that a submission holds, without its trackers, which write files.

    Raises HarnessError where its text is not portable, is no scenario, or needs plugins that are not installed.
    """
    from harness.scenario import load_text

    problem = unportable(submission.scenario.text)
    if problem is not None:
        raise HarnessError(problem)
    try:
        return load_text(submission.scenario.text).model_copy(update={"trackers": ()})
    except HarnessError as error:
        first, *rest = str(error).splitlines()
        more = f" (and {len(rest)} more lines)" if rest else ""
        raise HarnessError(f"its scenario cannot be used here: {line(first)}{more}") from None


def contradictions(submission: Submission, scenario: Scenario) -> list[str]:
    """Where a submission is not about the scenario that it holds, in sentences; `scenario` from `open_scenario`."""
    from harness.grid import cells

    facts, found = submission.scenario, []
    if scenario.hash() != facts.hash:
        found.append(f"its scenario has the hash {scenario.hash()[:12]} here, {facts.hash[:12]} in the file")
    for name, there, here in (
        ("name", facts.name, scenario.name),
        ("version", facts.version, scenario.version),
        ("data set", facts.dataset, line(scenario.dataset.label())),
        ("model", facts.model, line(scenario.model.label())),
        ("seeds", list(facts.seeds), list(scenario.seeds)),
    ):
        if there != here:
            found.append(f"its scenario's text says {name} {here}, the file {there}")
    planned = {cell.id: cell for cell in cells(scenario)}
    given = {seed.id for cell in submission.cells for seed in cell.seeds.values()}
    lost = [cell_name(cell.axes, cell.seed) for cell in planned.values() if cell.id not in given]
    if lost and submission.official:
        found.append("it says that it is official, and " + missing_cells(lost, len(planned)))
    for cell in submission.cells:
        for number, seed in cell.seeds.items():
            if planned.get(seed.id) is None:
                found.append(f"{cell_name(cell.axes, number)}: its scenario has no cell {seed.id}")
                continue
            real = planned[seed.id]
            if (*cell.axes, number) != (*labels(real), str(real.seed)):
                found.append(
                    f"{cell_name(cell.axes, number)}: the cell {seed.id} of its scenario is "
                    f"{cell_name(real.axes, real.seed)}"
                )
            elif cell.config and cell.config != settings(real):
                found.append(f"{cell_name(cell.axes, number)}: its parameters are not the scenario's")
    return found


def labels(cell: Cell) -> tuple[str, ...]:
    """A cell's axes as a submission has them."""
    return tuple(line(cell.axes[axis]) for axis in AXES)


def settings(cell: Cell) -> dict[str, object]:
    """A cell's plugins with their parameters, as a submission has them."""
    return plain({axis: cell.config[axis] for axis in AXES})  # type: ignore[no-any-return]


def _alone(path: Path, submission: Submission) -> list[str]:
    expected = file_name(submission.name, submission.scenario)
    found = [] if path.name == expected else [f"the file must be called {expected}"]
    if not MOMENT.fullmatch(submission.created):
        found.append(f"created is {submission.created!r}, not a time such as 2026-01-31T23:59:59Z")
    for cell in submission.cells:
        spent = max((seed.values.get("epsilon", 0.0) for seed in cell.seeds.values()), default=0.0)
        for number, seed in cell.seeds.items():
            name = cell_name(cell.axes, number)
            found += [f"{name}: {text}" for text in _impossible(submission, cell, seed, spent)]
    return found


def _impossible(submission: Submission, cell: CellScores, seed: Seed, spent: float) -> Iterator[str]:
    """What no run can have written: no scores, scores out of their range, another epsilon than the guarantee's.

    spent: the worst epsilon of the cell's seeds.
    """
    if cell.status == "scored" and not (seed.values or seed.error):
        yield "it is scored, and has neither scores nor an error"
    for name, value in seed.values.items():
        unit = submission.units.get(name)
        low, high = RANGES.get("" if unit is None else unit.unit, (-math.inf, math.inf))
        low = -1.0 if name in SIGNED else low
        if not math.isnan(value) and not low <= value <= high:
            yield f"{name} is {value:g}, which is not from {low:g} to {high:g}"
    claim = cell.guarantee
    if claim is None or "epsilon" not in seed.values:
        return
    guaranteed = math.inf if claim.epsilon is None or not claim.holds else claim.epsilon
    if not math.isclose(spent, guaranteed, rel_tol=1e-9):
        yield f"the worst epsilon of its seeds is {spent:g}, the guarantee's {guaranteed:g}"


def _against_its_scenario(path: Path, submission: Submission, found: Checked) -> None:
    try:
        scenario = open_scenario(submission)
    except HarnessError as error:
        foreign = {plugin.distribution for plugin in submission.plugins} - {BUILTIN}
        if foreign:
            found.notes.append(f"{path}: not compared with its scenario, for lack of a plugin? {error}")
        else:
            found.problems.append(f"{path}: {error}")
        return
    found.problems += [f"{path}: {problem}" for problem in contradictions(submission, scenario)]
