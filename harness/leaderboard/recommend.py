"""Configurations within limits: which fit, which of these are Pareto-optimal, and how sure that is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from harness.console.arguments import ENDINGS, stored_records
from harness.console.audits import audit_name
from harness.contracts.privacy import VIOLATION
from harness.errors import HarnessError, did_you_mean
from harness.evaluation.unscored import FLAG as UNSCORED
from harness.leaderboard.board import Board, Row, Value, boards
from harness.leaderboard.columns import BY_KEY, Column
from harness.leaderboard.comparisons import by_unit, compared_mean, pareto_front
from harness.leaderboard.statistics import PairedDifference, holm, paired_difference, too_few
from harness.leaderboard.submission import Cell, Submission, read
from harness.leaderboard.submit import of_store

OBJECTIVES = ("accuracy", "robust", "byzantine", "backdoor", "mia", "epsilon", "size")
AREAS = ("auroc", "mia", "mia_mean", "property")
ALPHA = 0.05
NAMED = 5  # most attacks that a note names
Protects = Literal["record", "client"]


@dataclass(frozen=True)
class Limit:
    """A bound on a column, in the score's own unit. protects: which guarantees count; None: both kinds.

    Raises HarnessError for a bound that is NaN, and for a share or an area above 1.
    """

    option: str
    column: Column
    bound: float
    protects: Protects | None = None

    def __post_init__(self) -> None:
        option, bound = self.option, self.bound
        if math.isnan(bound):
            raise HarnessError(f"{option} must be a number, not nan")
        if self.column.unit == "%" and self.column.scale == 100 and bound > 1:
            raise HarnessError(f"{option} is a share from 0 to 1: write {bound / 100:g} for {bound:g} %")
        if self.column.key in AREAS and bound > 1:
            raise HarnessError(
                f"{option} is an area under a ROC curve, from 0 to 1 with 0.5 for chance, not {bound:g}"
                + f": write {bound / 100:g} for {bound:g} %" * (bound <= 100)
            )

    def met(self, value: float) -> bool:
        """Whether a value is within the bound.

        A mean can miss a bound that it equals by a rounding error, so both are rounded by `compared_mean`. A guarantee
        is not a mean and is compared as it is.
        """
        counted, bound = self.column.compared(value), self.bound
        if self.column.pooling != "claim":
            counted, bound = compared_mean(counted), compared_mean(bound)
        return counted >= bound if self.column.better == "higher" else counted <= bound

    def value(self, row: Row) -> Value | None:
        """The row's value that this limit bounds; None if missing, not trusted, or the other kind of guarantee."""
        value = trusted(row, self.column)
        wrong = (
            value is not None and self.protects is not None and value.clients != (self.protects == "client")
        )
        return None if wrong else value

    @property
    def text(self) -> str:
        between = "=" if " " in self.option else " "  # `--max-epsilon 8`, `--limit epsilon=8`
        whose = f" --protects {self.protects}" if self.protects else ""
        return f"{self.option}{between}{self.bound:g}{whose}"


@dataclass
class Suggestion:
    """A row that fits. front: no fitting row is at least as good in every objective and better in one; an epsilon of
    records is neither better nor worse than one of clients.

    sure: every limit is met by the whole interval over seeds, not by the mean alone; None: too few seeds to say.
    behind: the first suggestion's lead over this row in the first objective, over shared seeds; p is adjusted by Holm's
    method for all rows that are compared with the first. level: that lead cannot be told from chance.
    """

    row: Row
    front: bool
    sure: bool | None
    behind: PairedDifference | None = None
    level: bool | None = None


@dataclass
class Exclusion:
    """How many rows a limit excludes.

    failed: rows that fail it. unknown: rows without a value that can be trusted. would_fit: rows that meet all other
    limits. best: the best value there is.
    """

    limit: Limit
    failed: int
    unknown: int
    would_fit: int
    best: float | None


@dataclass
class Advice:
    """What to choose on one board: rows that fit, the best ones first, and how many rows each limit excludes.

    left_out: how many rows are not considered, because their released model predicts one class for every test image.
    unscored: how many are not considered, because none of their cells has a score: failed or not applicable.
    """

    board: Board
    objectives: list[Column]
    limits: list[Limit]
    left_out: int = 0
    unscored: int = 0
    suggestions: list[Suggestion] = field(default_factory=list)
    exclusions: list[Exclusion] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def submissions_of(path: Path) -> list[Submission]:
    """The submission in a file, or one for every scenario of a store. Raises HarnessError if the path is neither."""
    if not path.is_dir():
        if path.suffix in ENDINGS:
            raise HarnessError(
                f"{path} is a scenario, which says what to run and not what came of it; give the store that it was run "
                "into, e.g. harness recommend runs"
            )
        return [read(path)]
    from harness.database import is_store

    if not is_store(path):
        raise HarnessError(f"{path} is neither a submission nor a store")
    found = of_store(with_audits(stored_records(path)), "store")
    if not found:
        raise HarnessError(f"{path} holds no record; run a scenario first")
    return found


def with_audits(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records, flagged if their scenario's audit, among the same records, refutes the guarantee of their training.

    Records whose model is compressed on top of what was audited get the flag too.
    """
    refuted: dict[str, list[tuple[Any, ...]]] = {}
    for record in records:
        if VIOLATION in record["flags"]:
            refuted.setdefault(record["scenario"]["name"], []).append(_training(record))

    def flagged(record: dict[str, Any]) -> bool:
        *own, compressors = _training(record)
        audits = refuted.get(audit_name(record["scenario"]["name"]), ())
        return any(own == audited and parts <= compressors for *audited, parts in audits)

    return [r | {"flags": [*r["flags"], VIOLATION]} if flagged(r) else r for r in records]


def _training(record: dict[str, Any]) -> tuple[Any, ...]:
    """Defence, aggregator, and the compressors as a set."""
    cell = record["cell"]
    return cell["defence"], cell["aggregator"], set(str(cell["compressor"]).split(" + ")) - {"none"}


def recommend(
    submissions: Sequence[Submission],
    limits: Sequence[Limit],
    objectives: Sequence[str] = (),
    bounds: Sequence[tuple[str, float]] = (),
) -> list[Advice]:
    """What fits on each board.

    objectives: keys of columns, the most important first; by default those of OBJECTIVES and of the limits, as far as
    the board has them. bounds: further limits, by column key; a contributed score has a key only if a result has that
    score. Raises HarnessError for an unknown key, one that no board has, and a bound that `Limit` refuses.
    """
    found = boards(submissions)
    known = {column.key: column for board in found for column in board.columns}
    valid = BY_KEY | known
    for option, key in [("--objective", k) for k in objectives] + [("--limit", k) for k, _ in bounds]:
        if key not in valid:
            hint = did_you_mean(key, valid, all_below=len(valid))
            raise HarnessError(f"{option} {key}: no such column; {hint}")
    limits = [*limits, *(Limit(f"--limit {key}", valid[key], bound) for key, bound in bounds)]
    for key in [*objectives, *(limit.column.key for limit in limits)]:
        if key not in known:
            raise HarnessError(f"no result has {valid[key].title.lower()}: no threat or metric measured it")
    return [_advise(board, limits, objectives, known) for board in found]


def _advise(
    board: Board, limits: Sequence[Limit], wanted: Sequence[str], columns: Mapping[str, Column]
) -> Advice:
    there = {column.key for column in board.columns}
    keys = wanted or [*OBJECTIVES, *(limit.column.key for limit in limits)]
    objectives = [columns[key] for key in dict.fromkeys(keys) if key in there]
    advice = Advice(board, objectives, list(limits))
    scored = [row for row in board.rows if any(cell.status == "scored" for cell in row.cells)]
    candidates = [row for row in scored if not row.constant]
    advice.unscored, advice.left_out = len(board.rows) - len(scored), len(scored) - len(candidates)
    rows = [row for row in candidates if any(row.submission is one for one in board.sound)]
    fitting = [row for row in rows if all(_meets(row, limit) for limit in limits)]
    advice.exclusions = sorted(
        (_exclusion(candidates, rows, limit, limits) for limit in limits),
        key=lambda e: -(e.failed + e.unknown),
    )
    if not fitting:
        advice.notes = _diverged(board)
        return advice
    # A row without a value that can be trusted is beaten by every row that has one.
    points = [[cost for column in objectives for cost in _costs(row, column)] for row in fitting]
    front = pareto_front(points, ["lower"] * len(points[0])) if objectives else np.ones(len(fitting), bool)
    order = sorted(range(len(fitting)), key=lambda i: (not front[i], points[i]))
    advice.suggestions = [Suggestion(fitting[i], bool(front[i]), _sure(fitting[i], limits)) for i in order]
    if objectives:
        _compare(advice.suggestions, objectives[0])
    advice.notes = _notes(advice)
    return advice


def trusted(row: Row, column: Column) -> Value | None:
    """The row's value in a column if it may be compared, else None.

    It may if it is complete, not refuted by an audit, not suspected of gradient masking, and not of a model that
    predicts one class for everything, on which attacks show nothing.
    """
    value = row.values.get(column.key)
    return value if value is not None and value.trusted else None


def _meets(row: Row, limit: Limit) -> bool:
    value = limit.value(row)
    return value is not None and limit.met(value.mean)


def _sure(row: Row, limits: Sequence[Limit]) -> bool | None:
    """`Suggestion.sure`. A guarantee has no interval and is sure; so is a size that is the same for every seed."""
    answers: list[bool | None] = []
    for limit in limits:
        value = row.values[limit.column.key]
        if limit.column.pooling == "claim":
            continue
        low, high = value.estimate.low, value.estimate.high
        if low is None or high is None:
            answers.append(None)
        else:
            answers.append(limit.met(low) and limit.met(high))
    return False if False in answers else None if None in answers else True


def _costs(row: Row, column: Column) -> tuple[float, float]:
    """The value as in `by_unit`; infinite, which is the worst, if it is missing or not trusted."""
    value = trusted(row, column)
    if value is None:
        return math.inf, math.inf
    return by_unit(column.compared(value.mean), column.better, value.clients)


def _exclusion(rows: Sequence[Row], sound: Sequence[Row], limit: Limit, limits: Sequence[Limit]) -> Exclusion:
    """What a limit excludes of `rows`. sound: those of them that can fit, since no re-run of them diverged."""
    asked = [value for row in sound if (value := limit.value(row)) is not None]
    known = [limit.column.compared(value.mean) for value in asked if math.isfinite(value.mean)]
    comparable = [row for row in rows if trusted(row, limit.column) is not None]
    others = [other for other in limits if other is not limit]
    return Exclusion(
        limit,
        failed=sum(not _meets(row, limit) for row in comparable),
        unknown=len(rows) - len(comparable),
        would_fit=sum(all(_meets(row, other) for other in others) for row in sound),
        best=(max if limit.column.better == "higher" else min)(known) if known else None,
    )


def _compare(suggestions: list[Suggestion], column: Column) -> None:
    """Compares each suggestion with the first in this column, over the seeds that both have."""
    first = trusted(suggestions[0].row, column)
    if first is None:
        return
    for suggestion in suggestions[1:]:
        value = trusted(suggestion.row, column)
        if value is not None and first.by_seed and value.by_seed:
            suggestion.behind = paired_difference(
                _counted(first.by_seed, column), _counted(value.by_seed, column)
            )
    compared = [s for s in suggestions if s.behind is not None]
    if not compared:
        return
    adjusted = holm([s.behind.p for s in compared if s.behind is not None])
    for suggestion, p in zip(compared, adjusted, strict=True):
        assert suggestion.behind is not None
        suggestion.behind = suggestion.behind._replace(p=float(p))
        if not math.isnan(p):
            suggestion.level = bool(p > ALPHA)


def _counted(by_seed: dict[int, float], column: Column) -> dict[Hashable, float]:
    return {seed: column.compared(value) for seed, value in by_seed.items()}


def _diverged(board: Board) -> list[str]:
    names = [s.name for s in board.submissions if not any(s is one for one in board.sound)]
    return [f"a re-run diverged from {', '.join(names)}: left out"] if names else []


def _unscored(advice: Advice) -> list[str]:
    """At most one note: attacks of the board under which some fitting row has no score, failed or not applicable."""
    asked = dict.fromkeys((cell.threat, cell.attack) for row in advice.board.rows for cell in row.cells)
    without: Counter[tuple[str, str]] = Counter()
    for suggestion in advice.suggestions:
        scored = {(cell.threat, cell.attack) for cell in suggestion.row.cells if _is_scored(cell)}
        without.update(attack for attack in asked if attack not in scored)
    if not without:
        return []
    total = len(advice.suggestions)
    named = [f"{attack} ({threat}) in {n} of {total}" for (threat, attack), n in without.most_common(NAMED)]
    more = f" and {len(without) - NAMED} more" * (len(without) > NAMED)
    return [f"some rows that fit have no score under these attacks: {', '.join(named)}{more}"]


def _is_scored(cell: Cell) -> bool:
    """Whether the cell has a score at every seed that it has."""
    return cell.status == "scored" and all(
        seed.error is None and UNSCORED not in seed.flags for seed in cell.seeds.values()
    )


def _notes(advice: Advice) -> list[str]:
    notes = [*_diverged(advice.board), *advice.board.notes, *_unscored(advice)]
    for limit in advice.limits:
        if (
            limit.column.key == "epsilon"
            and len({s.row.values["epsilon"].clients for s in advice.suggestions}) > 1
        ):
            notes.append(
                f"{limit.text} is met by guarantees for a record and by guarantees for a client with all its records, "
                "which are not comparable; --protects record or --protects client keeps to one kind"
            )
    seeds = [v.estimate.seeds for s in advice.suggestions for v in s.row.values.values()]
    if (warning := too_few(min(seeds, default=0))) is not None:
        notes.append(warning)
    if any(s.row.claim is not None for s in advice.suggestions):
        notes.append(
            "choosing among these rows is itself a look at the data, which no epsilon here accounts for"
        )
    else:
        notes.append(
            "the choice is made on these data: expect the chosen row to do a little worse on new data"
        )
    return notes
