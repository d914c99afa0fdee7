"""Boards as one self-contained web page: its data, and the template with scripts and styles put in."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from importlib import resources
from statistics import fmean
from typing import Any

from harness.errors import HarnessError
from harness.leaderboard.board import Board, Estimate, Row, Value, counts, pooled, score
from harness.leaderboard.citations import bibtex, selection, selects, used
from harness.leaderboard.columns import ARROWS, BY_KEY, BY_SCORE, COLUMNS, SIGNS, TABS, Column
from harness.leaderboard.escaping import link, script, script_json
from harness.leaderboard.rank_figures import ranks
from harness.leaderboard.statistics import too_few
from harness.leaderboard.submission import Cell, Environment, Submission

PACKAGE = "harness.leaderboard"
# In the order in which they are run; what one declares the later ones use.
SCRIPTS = (
    "tabulator.min.js", "dom.js", "rows.js", "table.js", "scatter.js", "ranks.js", "card.js", "comparison.js",
    "export.js", "main.js",
)  # fmt: skip
DIGITS = 5  # significant, of numbers in the page; leaderboard.csv has all of them
CURVE_POINTS = 40
# How a score's numbers are to be read: mean and 95 % interval over seeds, or of a bootstrap within the only seed;
# a mean without an interval; the same at every seed; a score that the clean cell has and this one lacks.
INTERVAL, BOOTSTRAP, BARE, CONSTANT, LOST = range(5)
PLACES = {column.key: place for place, column in enumerate(COLUMNS)}
SIGN_BITS = {"incomplete": 1, "masked": 2, "clients": 4, "violated": 8, "best": 16}


Numbers = tuple[Any, ...]


_sorted = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode  # made once: pages have 10^5 of them


class Table:
    """Each distinct value once; rows refer to it by its position."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._positions: dict[Hashable, int] = {}

    def add(self, value: Any, key: Hashable = None) -> int:
        """The value's position. key: what tells it apart, the value itself if it can be hashed."""
        mark = value if key is None else key
        if mark not in self._positions:
            self._positions[mark] = len(self.values)
            self.values.append(value)
        return self._positions[mark]

    def position(self, key: Hashable) -> int | None:
        """Where a value is, if it is there."""
        return self._positions.get(key)

    def json(self, value: Any) -> int:
        """The same for lists and dictionaries."""
        return self.add(value, _sorted(value))


class Tables:
    """What rows have in common."""

    def __init__(self) -> None:
        self.text, self.lists, self.attack = Table(), Table(), Table()
        self.guarantee, self.lineage, self.rounds, self.view = Table(), Table(), Table(), Table()

    def texts(self, parts: Iterable[str]) -> int:
        """The position of a list of texts."""
        return self.lists.json([self.text.add(part) for part in parts])

    def to_json(self) -> dict[str, Any]:
        return {name: table.values for name, table in vars(self).items()}


def page(found: Sequence[Board], files: Sequence[str]) -> str:
    """index.html. files: what is published beside it, to be linked."""
    from jinja2 import Environment as Templates
    from jinja2 import PackageLoader, StrictUndefined

    templates = Templates(
        loader=PackageLoader(PACKAGE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    scripts = [plotly(), *(script(_static(name), name) for name in SCRIPTS)]
    return templates.get_template("index.html.j2").render(
        data=script_json(data(found)),
        scripts=scripts,
        hashes=[_sha256(text) for text in scripts],
        styles=[_static("tabulator.min.css"), _static("leaderboard.css")],
        licences=_static("tabulator-LICENSE.txt"),
        files=files,
        tabs=TABS,
        ranks=ranks(found),
        counts=counts(found),
    )


def data(found: Sequence[Board]) -> dict[str, Any]:
    """Everything that the page shows, as JSON values. Infinite numbers are the texts inf and -inf."""
    tables = Tables()
    submissions = [submission for board in found for submission in board.submissions]
    places = {id(submission): place for place, submission in enumerate(submissions)}
    citations: dict[tuple[int, ...], tuple[int, int]] = {}
    rows = [
        _row(row, number, places[id(row.submission)], tables, citations)
        for number, board in enumerate(found)
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
                "pooling": c.pooling, "measured": c.measured,
            }
            for c in COLUMNS
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


@lru_cache(maxsize=1)
def plotly() -> str:
    """plotly.js, as the plotly package ships it."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise HarnessError("the leaderboard's page needs plotly: pip install plotly") from None
    return script(get_plotlyjs(), "plotly.js")


def _static(name: str) -> str:
    text = resources.files(PACKAGE).joinpath("static", name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "sourceMappingURL=" not in line]
    return "\n".join(lines) + "\n"


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _board(board: Board) -> dict[str, Any]:
    facts = board.reference[0].scenario
    return {
        "name": board.name,
        "version": board.version,
        "label": board.label,
        "superseded": board.superseded,
        "dataset": facts.dataset,
        "description": facts.description,
        "notes": board.notes,
        "columns": [column.key for column in board.columns],
    }


def _start(found: Sequence[Board]) -> str:
    """The board that readers see first: the current one that answers most questions, and then has most rows."""

    def richness(board: Board) -> tuple[int, int]:
        return sum("overview" in column.tabs for column in board.columns), len(board.rows)

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
    """Score -> unit, direction, description; the first submission that says so counts."""
    found: dict[str, list[Any]] = {}
    for submission in submissions:
        for name, unit in submission.units.items():
            found.setdefault(name, [unit.unit, unit.direction, unit.description])
    return {name: found[name] for name in sorted(found)}


def _quantiles(found: Sequence[Board]) -> list[float]:
    """Of Student's t at 97.5 %, by degrees of freedom from 1 on: for differences paired over shared seeds."""
    from scipy.special import stdtrit

    seeds = {value.estimate.seeds for board in found for row in board.rows for value in row.values.values()}
    return [_number(float(stdtrit(freedom, 0.975))) for freedom in range(1, max(seeds, default=1))]


def _row(
    row: Row, board: int, submission: int, tables: Tables, citations: dict[tuple[int, ...], tuple[int, int]]
) -> dict[str, Any]:
    plugins = used(row)
    key = tuple(map(id, plugins))
    if key not in citations:
        said = (f"{p.kind} {p.name}, {p.distribution} {p.version}, source {p.source[:12]}" for p in plugins)
        citations[key] = tables.texts(said), tables.texts(bibtex(plugins))
    methods, entries = citations[key]
    clean = row.clean
    baseline = _scores(clean, tables) if clean else {}
    curve = _curve(clean, tables) if clean else []
    return {
        "id": row.id,
        "b": board,
        "s": submission,
        "a": [tables.text.add(part) for part in row.axes],
        "v": [_value(row.values.get(c.key), c, tables, baseline, _seeds(clean)) for c in COLUMNS],
        "p": [_by_seed(row.values.get(c.key), row.submission.scenario.seeds) for c in COLUMNS],
        "w": _under(row, tables),
        "c": [_cell(cell, row, tables, baseline, curve) for cell in row.cells],
        "f": [tables.text.add(flag) for flag in row.flags],
        "g": None if row.claim is None else tables.guarantee.json(row.claim.model_dump()),
        "m": methods,
        "k": tables.texts(_parameters(row)),
        "t": entries,
        # The command's options, where they are not plainly the labels.
        "r": [
            0 if _plain(label) else tables.text.add(part)
            for label, part in zip(row.axes, selection(row), strict=True)
        ],
    }


def _plain(label: str) -> bool:
    return selects(label) == label and "'" not in label


def _value(
    value: Value | None, column: Column, tables: Tables, baseline: dict[int, Numbers], clean_seeds: int
) -> Any:
    """0: none. A number n: the clean cell's score, with the bits n - 1. Else [mean or text, bits, seeds, low, high].

    Low and high are left out where there are none. baseline: the clean cell's scores, over `clean_seeds`.
    """
    if value is None:
        return 0
    bits = sum(bit for name, bit in SIGN_BITS.items() if getattr(value, name))
    mean, low, high, seeds = value.estimate
    if value.text:
        return [value.text, bits, seeds]
    if column.family == "clean" and 1 < seeds == clean_seeds:
        name = tables.text.position(column.score)
        if name is not None and baseline.get(name) == _numbers(value.estimate, column):
            return 1 + bits
    bounds = [] if low is None else [_number(low, column), _number(high, column)]
    return [_number(mean, column), bits, seeds, *bounds]


def _by_seed(value: Value | None, seeds: Sequence[int]) -> Any:
    """A number for each seed of the scenario, None where there is none; 0 where all are the mean, or there is one."""
    numbers = {} if value is None else value.by_seed
    if len(numbers) < 2 or not all(map(math.isfinite, numbers.values())):
        return 0
    if len(numbers) == len(seeds) and len(set(numbers.values())) == 1:
        return 0
    return [_number(numbers.get(seed)) for seed in seeds]


def _under(row: Row, tables: Tables) -> list[Any]:
    """A view, a column's place and the value there, one after the other: what is shown of one threat or attack."""
    return [
        part
        for view, values in row.under.items()
        for key, value in values.items()
        for part in (
            tables.view.add(list(view), view),
            PLACES[key],
            _value(value, BY_KEY[key], tables, {}, 0),
        )
    ]


def _seeds(cell: Cell | None) -> int:
    """Those that have scores."""
    return 0 if cell is None else sum(bool(seed.scores or seed.undefined) for seed in cell.seeds.values())


def _cell(
    cell: Cell, row: Row, tables: Tables, baseline: dict[int, Numbers], curve: list[Any]
) -> dict[str, Any]:
    """Scores and the curve that are those of the clean cell are left out."""
    scores, own = _scores(cell, tables), _curve(cell, tables)
    if cell is not row.clean:
        lost: dict[int, Numbers] = dict.fromkeys(baseline, (LOST,)) if cell.status == "scored" else {}
        scores = {name: numbers for name, numbers in (lost | scores).items() if baseline.get(name) != numbers}
        own = own if own != curve else []
    flags = sorted({flag for seed in cell.seeds.values() for flag in seed.flags})
    reason = cell.reason or next((s.error for s in cell.seeds.values() if s.error), None)
    seeds = _seeds(cell)
    parts: dict[str, Any] = {
        "h": tables.attack.json([cell.threat, cell.attack, cell.family, cell.norm, _number(cell.eps)]),
        "x": "" if cell.status == "scored" else cell.status,
        "n": seeds if seeds != len(row.submission.scenario.seeds) else None,
        "s": [part for name, numbers in scores.items() for part in (name, *numbers)],
        "r": None if reason is None else tables.text.add(reason),
        "f": [tables.text.add(flag) for flag in flags],
        "u": own,
        "g": tables.guarantee.json(cell.guarantee.model_dump()) if cell.guarantee else None,
        "l": _lineage(cell, tables) if cell.lineage else None,
    }
    return {name: part for name, part in parts.items() if part is not None and part != "" and part != []}


def _lineage(cell: Cell, tables: Tables) -> int:
    steps = [(step.stage, step.part, step.reads, step.effect, step.why) for step in cell.lineage]
    return tables.lineage.json([tables.texts(step) for step in steps])


def _scores(cell: Cell, tables: Tables) -> dict[int, Numbers]:
    """Score -> how to read its numbers, and the numbers."""
    found: dict[int, Numbers] = {}
    seeds = list(cell.seeds.values())
    for name in dict.fromkeys(name for seed in seeds for name in (*seed.scores, *seed.undefined)):
        values = tuple(value for seed in seeds if (value := score(seed, name)) is not None)
        if not values:
            continue
        column = BY_SCORE.get(name)
        if len(seeds) == 1 and name in seeds[0].intervals:
            numbers = (_number(value, column) for value in (values[0], *seeds[0].intervals[name]))
            found[tables.text.add(name)] = (BOOTSTRAP, *numbers)
        else:
            found[tables.text.add(name)] = _pooled(values, name)
    return found


@lru_cache(maxsize=1 << 16)  # attacks on a released model repeat its clean scores
def _pooled(values: tuple[float, ...], name: str) -> Numbers:
    return _numbers(pooled(values), BY_SCORE.get(name))


def _numbers(estimate: Estimate, column: Column | None) -> Numbers:
    mean, low, high = (_number(value, column) for value in estimate[:3])
    if low is None:
        return BARE, mean
    return (CONSTANT, mean) if low == high else (INTERVAL, mean, low, high)


def _curve(cell: Cell, tables: Tables) -> list[Any]:
    """[position of the rounds, values]: validation accuracy in thousandths, averaged over the seeds that have the
    round; of long trainings every so many rounds."""
    rounds: dict[int, list[float]] = {}
    for seed in cell.seeds.values():
        for number, value in seed.curve:
            rounds.setdefault(number, []).append(value)
    if not rounds:
        return []
    numbers = sorted(rounds)
    step = math.ceil(len(numbers) / CURVE_POINTS)
    kept = sorted({*numbers[::step], numbers[-1]})
    return [tables.rounds.json(kept), [round(1000 * fmean(rounds[number])) for number in kept]]


def _parameters(row: Row) -> list[str]:
    """`axis: configuration` of everything that its cells configure, each once."""
    found: dict[str, None] = {}
    for cell in row.cells:
        for axis, value in cell.config.items():
            if value is not None and value != []:
                found[f"{axis}: {_sorted(value)}"] = None
    return list(found)


def _number(value: float | None, column: Column | None = None) -> Any:
    """With the page's digits, or as many as it takes to be written as in the other files; inf and -inf as text."""
    if value is None or math.isnan(value):
        return None
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    short = float(f"{value:.{DIGITS}g}")
    if column is not None and short != value and column.show(short) != column.show(value):
        short = value
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
