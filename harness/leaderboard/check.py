"""Checks submissions without running anything, for the review of pull requests."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.entry_points import BUILTIN
from harness.errors import HarnessError
from harness.leaderboard import check_claims, check_scores
from harness.leaderboard.check_cells import applicable, labels, misdescribed, planned_cells
from harness.leaderboard.check_code import listed_twice, unnamed_libraries, unnamed_methods
from harness.leaderboard.known_scores import Known, known_scores
from harness.leaderboard.official import missing_cells, unclean
from harness.leaderboard.other_code import lacking_packages
from harness.leaderboard.publishable import AXES, cell_name, line, plain, unportable
from harness.leaderboard.submission import Submission, file_name, read

if TYPE_CHECKING:
    from harness.grid import Cell
    from harness.scenario import Scenario

MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@dataclass
class Checked:
    """What was found in files. problems: reasons to refuse the pull request. notes: hints for its reviewer."""

    submissions: dict[Path, Submission] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def suspect(self, path: Path, submission: Submission, texts: Iterable[str]) -> None:
        """Adds what one clean state of the engine never writes.

        These are problems of an official file, and notes on an unofficial one, which may be of several states.
        """
        kept = self.problems if submission.official else self.notes
        kept += [f"{path}: {text}" for text in texts]


def check(paths: Sequence[Path]) -> Checked:
    """Checks each file by itself, against the scenario that it holds, and against the others of its board."""
    found = Checked()
    for path in dict.fromkeys(paths):
        try:
            found.submissions[path] = read(path)
        except HarnessError as error:
            found.problems.append(str(error))
    known = known_scores()
    rows: dict[tuple[str, str], Path] = {}
    boards: dict[str, Path] = {}
    for path, submission in found.submissions.items():
        found.problems += [f"{path}: {problem}" for problem in _alone(path, submission, known)]
        found.suspect(path, submission, check_scores.inconsistent(submission, known))
        found.suspect(path, submission, check_claims.inconsistent(submission, known))
        _against_its_scenario(path, submission, found)
        board = submission.scenario.board
        row = (board, submission.name.casefold())
        first = rows.setdefault(row, path)
        if first != path:
            found.problems.append(f"{path}: {twice(submission, first)}")
        if submission.official:
            first = boards.setdefault(board, path)
            texts = unlike(submission, first, found.submissions[first])
            found.problems += [f"{path}: {text}" for text in texts]
        if submission.verification is not None:
            by = submission.verification
            found.notes.append(f"{path}: it comes with a verification of its own ({by.verdict}, {by.when})")
    return found


def twice(submission: Submission, other: Path) -> str:
    """A sentence on a file, `other`, whose submission has the name of this one on the same board."""
    return f"{submission.name} is on the board {submission.scenario.board} already, from {other}"


def unlike(submission: Submission, path: Path, other: Submission) -> Iterator[str]:
    """Why two official submissions of one board, this one and the other in `path`, cannot both be on it."""
    there, here = other.scenario, submission.scenario
    if there.hash != here.hash:
        yield f"its {here.board} is another scenario than in {path}: a changed scenario needs a new version"
    if there.fingerprint != here.fingerprint:
        yield f"its {here.board} is of another content of the data set than in {path}"


def beside(submission: Submission, path: Path) -> list[str]:
    """Why a new submission, which will be written to `path`, does not fit the other files of its board beside it."""
    found = []
    for other in sorted(path.parent.glob(file_name("*", submission.scenario))):
        try:
            known = read(other)
        except HarnessError:  # `check` says what is wrong with it
            continue
        if known.scenario.board != submission.scenario.board or other == path:
            continue
        if known.name.casefold() == submission.name.casefold():
            found.append(twice(submission, other))
        if known.official and submission.official:
            found += unlike(submission, other, known)
    return found


def open_scenario(submission: Submission) -> Scenario:
    """The scenario that a submission holds, without its trackers, which write files.

    Raises HarnessError if its text is not portable, is no scenario, or needs packages, or versions of them, that are
    not installed: with other defaults of a plugin, the same text is another scenario.
    """
    from harness.scenario import load_text

    problem = unportable(submission.scenario.text)
    if problem is not None:
        raise HarnessError(problem)
    cannot = "its scenario cannot be used here: "
    lacking = lacking_packages(submission, besides=BUILTIN)
    needs = f"it needs {', '.join(lacking)}" if lacking else ""
    try:
        scenario = load_text(submission.scenario.text)
    except HarnessError as error:
        first, *rest = str(error).splitlines()
        more = f" (and {len(rest)} more lines)" if rest else ""
        raise HarnessError(f"{cannot}{needs}{'; ' if needs else ''}{line(first)}{more}") from None
    if needs and scenario.hash() != submission.scenario.hash:
        raise HarnessError(f"{cannot}{needs}, with which the same text is another scenario")
    return scenario.model_copy(update={"trackers": ()})


def contradictions(submission: Submission, scenario: Scenario) -> list[str]:
    """Where a submission contradicts the scenario that it holds, in sentences. scenario: from `open_scenario`."""
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
    found += unnamed_methods(submission, [planned[id] for id in given if id in planned])
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
            elif not cell.config and submission.official:
                found.append(f"{cell_name(cell.axes, number)}: its parameters are missing")
            elif cell.config and cell.config != settings(real):
                found.append(f"{cell_name(cell.axes, number)}: its parameters are not the scenario's")
    return found


def settings(cell: Cell) -> dict[str, object]:
    """A cell's plugins with their parameters, as a submission writes them."""
    return plain({axis: cell.config[axis] for axis in AXES})  # type: ignore[no-any-return]


def _alone(path: Path, submission: Submission, known: dict[str, Known]) -> Iterator[str]:
    expected = file_name(submission.name, submission.scenario)
    if path.name != expected:
        yield f"the file must be called {expected}"
    if not MOMENT.fullmatch(submission.created):
        yield f"created is {submission.created!r}, not a time such as 2026-01-31T23:59:59Z"
    if submission.official:
        unfit = [*unclean(submission.environment), *unnamed_libraries(submission), *listed_twice(submission)]
        yield from (f"it says that it is official, and {text}" for text in unfit)
    yield from check_scores.impossible(submission, known)
    yield from check_claims.impossible(submission)


def _against_its_scenario(path: Path, submission: Submission, found: Checked) -> None:
    try:
        scenario = open_scenario(submission)
    except HarnessError as error:
        foreign = {plugin.distribution for plugin in submission.plugins} - {BUILTIN}
        if foreign:
            found.notes.append(f"{path}: not compared with its scenario: {error}")
        else:
            found.problems.append(f"{path}: {error}")
        return
    found.problems += [f"{path}: {problem}" for problem in contradictions(submission, scenario)]
    matched = planned_cells(submission, scenario)
    found.problems += [f"{path}: {text}" for cell, real in matched for text in misdescribed(cell, real)]
    found.suspect(path, submission, check_claims.unlike_the_scenario(matched))
    found.suspect(path, submission, check_scores.unlike_its_records(submission, matched))
    try:
        found.suspect(path, submission, applicable(submission, matched))
    except HarnessError as error:
        count = sum(len(cell.seeds) for cell in submission.cells if cell.status == "not-applicable")
        say = "cell says that it is" if count == 1 else "cells say that they are"
        found.notes.append(f"{path}: {count} {say} not applicable, which is not worked out here: {error}")
