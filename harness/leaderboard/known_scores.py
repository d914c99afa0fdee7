"""What scores mean to this installation, whatever a file says of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.contracts.metric import Metric
from harness.contracts.privacy import PrivacyAttack
from harness.entry_points import BUILTIN
from harness.evaluation.metrics import ATTACK_FIELDS
from harness.leaderboard.columns import COLUMNS
from harness.leaderboard.ranges import Range, range_of
from harness.registry import registry

if TYPE_CHECKING:
    from harness.contracts.metric import Score
    from harness.leaderboard.submission import Submission
    from harness.registry import Entry


@dataclass(frozen=True)
class Known:
    """A score's meaning here. unit: None if only the board's column is known.

    metrics: names of the metrics that compute it. clean: it describes the released model, whatever attacks that.
    measured: it is a time or a size of memory.
    """

    unit: str | None
    direction: str
    metrics: tuple[str, ...] = ()
    clean: bool = False
    measured: bool = False


def known_scores() -> dict[str, Known]:
    """Score -> meaning: from built-in metrics, then other installed ones, privacy attacks, and the board's columns.

    The first of these that knows a score decides what it means: the board writes all scores of a name the same way.
    """
    found: dict[str, Known] = {}
    for entry, scores in declared():
        metric = entry.plugin if issubclass(entry.plugin, Metric) else None
        clean = metric is not None and not set(metric.needs) & set(ATTACK_FIELDS)
        for name, score in scores.items():
            found.setdefault(name, _known(score, () if metric is None else (metric.name,), clean))
    for column in COLUMNS:
        found.setdefault(column.score, Known(None, column.better))
    return found


def declared() -> Iterator[tuple[Entry, dict[str, Score]]]:
    """The plugins that declare scores, with these: metrics, the built-in ones first, then privacy attacks."""
    for entry in sorted(registry().entries("metric"), key=lambda entry: entry.distribution != BUILTIN):
        if issubclass(entry.plugin, Metric):
            yield entry, entry.plugin.scores
    for entry in registry().entries("attack"):
        if issubclass(entry.plugin, PrivacyAttack):
            yield entry, entry.plugin.scores


def bounds(name: str, submission: Submission, known: dict[str, Known]) -> Range:
    """The least and the most that a score can be, by its unit here, or else by its unit in the file."""
    unit = known[name].unit if name in known else None
    if unit is None and name in submission.units:
        unit = submission.units[name].unit
    return range_of(name, unit)


def asked(submission: Submission, names: Iterable[str], known: dict[str, Known]) -> set[str]:
    """Which of the named scores a file's run computed, judged by the units, scores and metrics that the file lists."""
    there = set(submission.units) | {
        name for cell in submission.cells for seed in cell.seeds.values() for name in seed.values
    }
    metrics = {plugin.name for plugin in submission.plugins if plugin.kind == "metric"}
    there |= {name for name, score in known.items() if metrics & set(score.metrics)}
    return there & set(names)


def _known(score: Score, metrics: tuple[str, ...], clean: bool) -> Known:
    return Known(score.unit, score.direction, metrics, clean, score.measured)
