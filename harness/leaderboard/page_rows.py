"""A board's rows in the compact form that the page carries, because there are many.

Values that rows share are stored once, in tables, and rows refer to them by position; scores of an attacked cell that
equal those of the clean cell are left out. `static/rows.js` reads this form.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from statistics import fmean
from typing import Any

from harness.leaderboard.board import Estimate, Row, Value, pooled, score
from harness.leaderboard.citations import Publication, bibtex, selection, selects, used
from harness.leaderboard.columns import BY_SCORE, Column
from harness.leaderboard.ranges import Range
from harness.leaderboard.side_by_side import GUARANTEED
from harness.leaderboard.submission import Cell, Submission

DIGITS = 5  # significant digits of numbers in the page; leaderboard.csv has all digits
CURVE_POINTS = 40
# How to read a score's numbers: mean and 95 % interval over seeds; value and bootstrap interval of the only seed; a
# mean without an interval; a value that is the same at every seed; a score that the clean cell has and this one lacks.
INTERVAL, BOOTSTRAP, BARE, CONSTANT, LOST = range(5)
SIGN_BITS = {
    "incomplete": 1,
    "masked": 2,
    "clients": 4,
    "violated": 8,
    "best": 16,
    "subset": 32,
    "constant": 64,
}

Numbers = tuple[Any, ...]

# Made once, because pages encode 10^5 values.
_sorted = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode


class Table:
    """Holds each distinct value once; rows refer to it by its position."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._positions: dict[Hashable, int] = {}

    def add(self, value: Any, key: Hashable = None) -> int:
        """The value's position; a new value is added. key: what identifies it; by default the value, if hashable."""
        mark = value if key is None else key
        if mark not in self._positions:
            self._positions[mark] = len(self.values)
            self.values.append(value)
        return self._positions[mark]

    def position(self, key: Hashable) -> int | None:
        """The position of the value with this key; None if there is none."""
        return self._positions.get(key)

    def json(self, value: Any) -> int:
        """As `add`, for lists and dictionaries."""
        return self.add(value, _sorted(value))


class Tables:
    """The tables of values that rows share."""

    def __init__(self) -> None:
        self.text, self.lists, self.attack = Table(), Table(), Table()
        self.guarantee, self.lineage, self.rounds, self.view = Table(), Table(), Table(), Table()

    def texts(self, parts: Iterable[str]) -> int:
        """The position of a list of texts, which is stored as the texts' own positions."""
        return self.lists.json([self.text.add(part) for part in parts])

    def to_json(self) -> dict[str, Any]:
        return {name: table.values for name, table in vars(self).items()}


def compact(
    row: Row,
    board: int,
    submission: int,
    columns: Sequence[Column],
    tables: Tables,
    citations: dict[tuple[int, ...], tuple[int, int]],
    known: Mapping[Publication, str],
) -> dict[str, Any]:
    """A row as a JSON value.

    board, submission: their positions in the page. columns: all of the page's. citations: a cache that is filled here:
    plugins -> positions of the list that names them and of their BibTeX entries. known: all BibTeX entries.
    """
    plugins = used(row)
    key = tuple(map(id, plugins))
    if key not in citations:
        said = (f"{p.kind} {p.name}, {p.distribution} {p.version}, source {p.source[:12]}" for p in plugins)
        citations[key] = tables.texts(said), tables.texts(bibtex(plugins, known))
    methods, entries = citations[key]
    clean = row.clean
    baseline = _scores(clean, row.submission, tables) if clean else {}
    curve = _curve(clean, tables) if clean else []
    return {
        "id": row.id,
        "b": board,
        "s": submission,
        "a": [tables.text.add(part) for part in row.axes],
        "v": [_value(row.values.get(c.key), c, tables, baseline, _seeds(clean)) for c in columns],
        "p": [_by_seed(row.values.get(c.key), row.submission.scenario.seeds) for c in columns],
        "w": _under(row, columns, tables),
        "c": [_cell(cell, row, tables, baseline, curve) for cell in row.cells],
        "f": [tables.text.add(flag) for flag in row.flags],
        "g": None if row.claim is None else tables.guarantee.json(row.claim.model_dump()),
        "m": methods,
        "k": tables.texts(_parameters(row)),
        "t": entries,
        # The command's options; 0 where an option is the label as it is.
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
    """A value as JSON: 0 if there is none; n > 0 for the clean cell's score with sign bits n - 1; else a list.

    The list is [mean or text, bits, seeds, low, high], without low and high if there is no interval. baseline: the
    clean cell's scores, over `clean_seeds` seeds.
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
    bounds = [] if low is None else [number(low, column), number(high, column)]
    return [number(mean, column), bits, seeds, *bounds]


def _by_seed(value: Value | None, seeds: Sequence[int]) -> Any:
    """A number for each seed of the scenario, None where it is missing; or 0, where the page needs no list.

    It needs none for fewer than two numbers, for infinite ones, and for numbers that are equal at all seeds.
    """
    numbers = {} if value is None else value.by_seed
    if len(numbers) < 2 or not all(map(math.isfinite, numbers.values())):
        return 0
    if len(numbers) == len(seeds) and len(set(numbers.values())) == 1:
        return 0
    return [number(numbers.get(seed)) for seed in seeds]


def _under(row: Row, columns: Sequence[Column], tables: Tables) -> list[Any]:
    """What is shown of one threat or attack, as one flat list: a view's position, a column's place, the value, ..."""
    places = {column.key: place for place, column in enumerate(columns)}
    return [
        part
        for view, values in row.under.items()
        for key, value in values.items()
        for part in (
            tables.view.add(list(view), view),
            places[key],
            _value(value, columns[places[key]], tables, {}, 0),
        )
    ]


def _seeds(cell: Cell | None) -> int:
    """How many seeds have scores."""
    return 0 if cell is None else sum(bool(seed.scores or seed.undefined) for seed in cell.seeds.values())


def _cell(
    cell: Cell, row: Row, tables: Tables, baseline: dict[int, Numbers], curve: list[Any]
) -> dict[str, Any]:
    """A cell as a JSON value, without the scores and the curve that equal the clean cell's."""
    scores, own = _scores(cell, row.submission, tables), _curve(cell, tables)
    if cell is not row.clean:
        lost: dict[int, Numbers] = dict.fromkeys(baseline, (LOST,)) if cell.status == "scored" else {}
        scores = {name: numbers for name, numbers in (lost | scores).items() if baseline.get(name) != numbers}
        own = own if own != curve else []
    flags = sorted({flag for seed in cell.seeds.values() for flag in seed.flags})
    reason = cell.reason or next((s.error for s in cell.seeds.values() if s.error), None)
    seeds = _seeds(cell)
    parts: dict[str, Any] = {
        "h": tables.attack.json([cell.threat, cell.attack, cell.family, cell.norm, number(cell.eps)]),
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


def _scores(cell: Cell, submission: Submission, tables: Tables) -> dict[int, Numbers]:
    """Position of a score's name -> how to read its numbers, and the numbers."""
    found: dict[int, Numbers] = {}
    seeds = list(cell.seeds.values())
    for name in dict.fromkeys(name for seed in seeds for name in (*seed.scores, *seed.undefined)):
        values = tuple(value for seed in seeds if (value := score(seed, name)) is not None)
        if not values:
            continue
        column = BY_SCORE.get(name)
        if name in GUARANTEED:  # a guarantee is that of its worst seed: it has no mean and no interval
            kind = CONSTANT if len(values) > 1 and math.isfinite(max(values)) else BARE
            found[tables.text.add(name)] = (kind, number(max(values), column))
        elif len(seeds) == 1 and name in seeds[0].intervals:
            numbers = (number(value, column) for value in (values[0], *seeds[0].intervals[name]))
            found[tables.text.add(name)] = (BOOTSTRAP, *numbers)
        else:
            found[tables.text.add(name)] = _pooled(values, name, submission.range_of(name))
    return found


@lru_cache(maxsize=1 << 16)  # attacks on a released model repeat its clean scores
def _pooled(values: tuple[float, ...], name: str, within: Range) -> Numbers:
    return _numbers(pooled(values, within), BY_SCORE.get(name))


def _numbers(estimate: Estimate, column: Column | None) -> Numbers:
    mean, low, high = (number(value, column) for value in estimate[:3])
    if low is None:
        return BARE, mean
    return (CONSTANT, mean) if low == high else (INTERVAL, mean, low, high)


def _curve(cell: Cell, tables: Tables) -> list[Any]:
    """[position of the rounds, values]: validation accuracy in thousandths; empty if there is no curve.

    Each value is averaged over the seeds that have the round. Long trainings are thinned to every n-th round.
    """
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
    """`axis: configuration` for everything that the row's cells configure, each once."""
    found: dict[str, None] = {}
    for cell in row.cells:
        for axis, value in cell.config.items():
            if value is not None and value != []:
                found[f"{axis}: {_sorted(value)}"] = None
    return list(found)


def number(value: float | None, column: Column | None = None) -> Any:
    """A number with the page's digits, or all of them if it would else be shown differently than in the other files.

    inf and -inf are texts, NaN is None.
    """
    if value is None or math.isnan(value):
        return None
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    short = float(f"{value:.{DIGITS}g}")
    if column is not None and short != value and column.show(short) != column.show(value):
        short = value
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
