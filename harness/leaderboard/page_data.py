"""Boards as the JSON value behind the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.entry_points import BUILTIN
from harness.leaderboard.board import Board, every_column
from harness.leaderboard.citations import entries
from harness.leaderboard.columns import ARROWS, BY_KEY, SIGNS, TABS
from harness.leaderboard.conditions import conditions
from harness.leaderboard.escaping import link
from harness.leaderboard.page_rows import SIGN_BITS, Tables, compact, number
from harness.leaderboard.statistics import too_few
from harness.leaderboard.submission import Environment, Submission


def data(found: Sequence[Board]) -> dict[str, Any]:
    """Everything that the page shows, as JSON values. Infinite numbers are the texts inf and -inf."""
    tables, columns = Tables(), every_column(found)
    submissions = [submission for board in found for submission in board.submissions]
    places = {id(submission): place for place, submission in enumerate(submissions)}
    citations: dict[tuple[int, ...], tuple[int, int]] = {}
    known = entries(plugin for submission in submissions for plugin in submission.plugins)
    rows = [
        compact(row, place, places[id(row.submission)], columns, tables, citations, known)
        for place, board in enumerate(found)
        for row in board.rows
    ]
    return {
        "tabs": TABS,
        "arrows": ARROWS,
        "signs": SIGNS,
        "bits": SIGN_BITS,
        "columns": [
            {
                "key": c.key, "title": c.title, "unit": c.unit, "score": c.score, "family": c.family,
                "better": c.better, "note": c.note, "scale": c.scale, "digits": c.digits, "tabs": list(c.tabs),
                "pooling": c.pooling, "measured": c.measured, "chance": c.chance,
            }
            for c in columns
        ],
        "boards": [_board(board) for board in found],
        "start": _start(found),
        "submissions": [
            _submission(submission, any(submission is one for one in board.reference))
            for board in found
            for submission in board.submissions
        ],
        "units": _units(submissions),
        "few": {str(seeds): too_few(seeds) for seeds in (1, 2)},
        "quantiles": _quantiles(found),
        "tables": tables.to_json(),
        "rows": rows,
    }  # fmt: skip


def _board(board: Board) -> dict[str, Any]:
    return {
        "label": board.label,
        "superseded": board.superseded,
        "description": board.reference[0].scenario.description,
        "conditions": conditions(board),
        "notes": board.notes,
        "columns": [column.key for column in board.columns],
    }


def _start(found: Sequence[Board]) -> str:
    """The board that readers see first: the current one with most overview columns, and among equals most rows.

    Columns of contributed scores do not count, because boards do not have them in common.
    """

    def richness(board: Board) -> tuple[int, int]:
        return sum("overview" in c.tabs and c.key in BY_KEY for c in board.columns), len(board.rows)

    return max([board for board in found if not board.superseded], key=richness).label


def _submission(submission: Submission, competes: bool) -> dict[str, Any]:
    scenario, check = submission.scenario, submission.verification
    return {
        "name": submission.name,
        "authors": submission.authors,
        "url": submission.url,
        "link": link(submission.url),
        "note": submission.note,
        "created": submission.created,
        "official": submission.official,
        "competes": competes,
        "because": list(submission.unofficial_because),
        "model": scenario.model,
        "dataset": scenario.dataset,
        "hash": scenario.hash,
        "fingerprint": scenario.fingerprint,
        "seeds": list(scenario.seeds),
        "text": scenario.text,
        "file": f"{scenario.name}-v{scenario.version}.yaml",
        "environment": _environment(submission.environment),
        "packages": sorted(
            {f"{p.distribution} {p.version}" for p in submission.plugins if p.distribution != BUILTIN}
        ),
        "verification": None
        if check is None
        else {
            "verdict": check.verdict,
            "when": check.when,
            "cells": check.cells,
            "differences": list(check.differences),
            "environment": _environment(check.environment),
        },
    }


def _environment(environment: Environment) -> list[list[str]]:
    commit = environment.commit or "unknown"
    state = {True: ", with changes that are in no commit", False: "", None: ""}[environment.dirty]
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(environment.libraries.items()))
    return [
        ["psr-harness", environment.version],
        ["commit", commit + state],
        ["device", f"{environment.device} ({environment.device_name})"],
        ["python", environment.python],
        ["platform", environment.platform],
        ["libraries", libraries],
    ]


def _units(submissions: Sequence[Submission]) -> dict[str, list[Any]]:
    """Score -> unit, direction, description, by the first submission that has the score."""
    found: dict[str, list[Any]] = {}
    for submission in submissions:
        for name, unit in submission.units.items():
            found.setdefault(name, [unit.unit, unit.direction, unit.description])
    return {name: found[name] for name in sorted(found)}


def _quantiles(found: Sequence[Board]) -> list[float]:
    """Student's t at 97.5 %, by degrees of freedom from 1 on: for differences paired over shared seeds."""
    from scipy.special import stdtrit

    seeds = {value.estimate.seeds for board in found for row in board.rows for value in row.values.values()}
    return [number(float(stdtrit(freedom, 0.975))) for freedom in range(1, max(seeds, default=1))]
