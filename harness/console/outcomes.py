"""What became of a run's cells: how many were scored, what their flags say, and why the others have no scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from harness.console.output import count_of
from harness.errors import place_of
from harness.evaluation.constant import FLAG as CONSTANT
from harness.evaluation.diverged import FLAG as UNANSWERED
from harness.evaluation.dropped import FLAG as DROPPED
from harness.evaluation.dropped import dropped
from harness.evaluation.unscored import FLAG as UNSCORED
from harness.evaluation.unscored import undefined

REASONS = 3  # shown for each outcome
# Each is told in a line of its own, with how many cells have it: where a whole column, or every attack, is affected,
# no mark in the table would show it.
FLAGGED = {
    CONSTANT: "constant predictions ×{count}: the model predicts one class for every test image",
    UNANSWERED: "NaN predictions ×{count}: the model has diverged and answers NaN to some test images, which count as "
    "wrong",
    UNSCORED: "attacks without a score ×{count} ({attacks}): no metric of the scenario covers what they found, "
    "or the score is NaN",
}


def render_outcomes(records: Sequence[dict[str, Any]], console: Console, planned: int) -> None:
    counts = Counter(record["status"] for record in records)
    parts = [
        f"{counts[s]} {s.replace('-', ' ')}" for s in ("scored", "failed", "not-applicable") if counts[s]
    ]
    if planned > len(records):
        others = [part for part in parts if not part.endswith(" scored")]
        console.print(Text(", ".join([f"{counts['scored']} of {count_of(planned, 'cell')} scored", *others])))
    else:
        console.print(Text(f"{count_of(len(records), 'cell')}: {', '.join(parts) or 'none'}"))
    if (lost := _lost_updates(records)) is not None:
        console.print(Text(lost, style="yellow"))
    for flag, said in FLAGGED.items():
        if own := [record["cell"] for record in records if flag in (record.get("flags") or ())]:
            attacks = ", ".join(dict.fromkeys(str(cell["attack"]) for cell in own))
            console.print(Text(f"  {said.format(count=len(own), attacks=attacks)}", style="yellow"))
    if silent := _undefined(records):
        console.print(Text(f"  NaN in every cell: {', '.join(silent)}", style="yellow"))
    for status, style in (("failed", "red"), ("not-applicable", "")):
        reasons = Counter(reason(record) for record in records if record["status"] == status)
        for text, count in reasons.most_common(REASONS):
            console.print(Text(f"  {status.replace('-', ' ')} ×{count}: {text}", style=style))
        if len(reasons) > REASONS:
            console.print(Text(f"  … and {len(reasons) - REASONS} other reasons; --json lists all"))
        if any(place_of(record.get("error") or {}) for record in records if record["status"] == status):
            console.print(Text("  --json has the tracebacks"))


def _lost_updates(records: Sequence[dict[str, Any]]) -> str | None:
    """One line on the cells whose training could use little of what its clients sent."""
    found = [dropped(record) for record in records if DROPPED in (record.get("flags") or ())]
    if not found:
        return None
    worst = max(found, key=lambda each: (each.updates / max(each.of, 1), each.empty))
    return (
        f"  updates dropped ×{len(found)}: not finite, {worst.updates} of {worst.of} in the worst training, which had "
        f"{worst.empty} of {count_of(worst.rounds, 'round')} without a usable update"
    )


def _undefined(records: Sequence[dict[str, Any]]) -> list[str]:
    """Scores that have a value in no record, so that no column of the table shows that they were asked for."""
    scores = [(name, value) for record in records for name, value in (record.get("scores") or {}).items()]
    known = {name for name, value in scores if not undefined(value)}
    return [name for name in dict.fromkeys(name for name, _ in scores) if name not in known]


def reason(record: dict[str, Any]) -> str:
    """Why a record has no scores, on one line."""
    error = record.get("error")
    if error:
        message = next(
            (line.strip() for line in str(error.get("message", "")).splitlines() if line.strip()), ""
        )
        place = place_of(error)
        said = f"{error.get('type', 'error')}: {message}" if message else str(error.get("type", "error"))
        return said + (f" ({place})" if place else "")
    return str(record.get("reason") or "no reason given")
