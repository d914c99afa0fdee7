"""Consoles, JSON and labels that fit."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console

from harness.console.machine import expect_value, own_output, value_is_due
from harness.errors import HarnessError, ScenarioError, with_file


def make_console(*, stderr: bool = False) -> Console:
    """A console on stdout (results) or stderr (progress). Characters that the terminal's encoding lacks become '?'."""
    stream = sys.stderr if stderr else sys.stdout
    with contextlib.suppress(AttributeError, ValueError):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    return Console(file=stream, highlight=False, markup=False, emoji=False)


def print_json(value: Any) -> None:
    """One JSON value on stdout. Numbers that are not finite are null: JSON has none."""
    output = own_output()
    output.write(json.dumps(plain(value), indent=2, ensure_ascii=True, default=str) + "\n")
    output.flush()
    expect_value(False)


def print_error(error: HarnessError) -> None:
    """Prints an error on stderr; also as JSON, with the place of each mistake, if the command still owes a value."""
    scenario = isinstance(error, ScenarioError)
    # Each line of a scenario's mistakes begins with file:line:column, which editors can follow.
    print(error if scenario else f"error: {error}", file=sys.stderr)
    if value_is_due():
        from harness.scenario_errors import mistakes

        print_json({"error": str(error), "problems": mistakes(str(error)) if scenario else []})


def run_values(result: Any) -> Any:
    """A RunResult as JSON values; numbers that are not finite are written as in the store's records."""
    from harness.strict_json import dumps

    names = ("records", "scored", "failed", "not_applicable", "interrupted", "seconds", "executed", "cached")
    values = {name: getattr(result, name) for name in names}
    skipped = [{"path": str(path), "reason": reason} for path, reason in result.skipped]
    return json.loads(dumps({**values, "skipped": skipped, "store": str(result.store)}))


def leave(result: Any, bad: bool = False, part: bool = False) -> int:
    """Says on stderr what was skipped in a run, what went wrong, and if it was interrupted; returns the exit status.

    bad: the caller found something that makes it 1, as failed cells do. part: only part of a grid was run, which may
    have no applicable cell.
    """
    for path, reason in result.skipped:
        print(f"skipped {with_file(path, reason)}", file=sys.stderr)
    for problem in result.problems:
        print(f"warning: {problem}", file=sys.stderr)
    if result.interrupted:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    lost = sum((record.get("error") or {}).get("type") == "WorkerLost" for record in result.records)
    if lost:
        print(
            f"{count_of(lost, 'cell')} failed because a worker process was lost; run the same command again to retry "
            "(with fewer --jobs if memory ran out)",
            file=sys.stderr,
        )
    nothing = not part and result.not_applicable and not result.scored and not result.failed
    if nothing:
        print("nothing was scored: no cell is applicable; the reasons are in the results", file=sys.stderr)
    return 1 if bad or nothing or result.failed or result.skipped else 0


def plain(value: Any) -> Any:
    """The same value with tuples as lists and numbers that are not finite as None."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def shorten(text: str, width: int) -> str:
    """At most `width` characters on one line, cut in the middle: both ends of a label tell it apart."""
    text = " ".join(text.split())
    if len(text) <= width:
        return text
    if width < 5:
        return text[:width]
    left = (width - 1) * 2 // 3
    return text[:left] + "…" + text[len(text) - (width - 1 - left) :]


def without_parameters(label: str) -> str:
    """`pgd(steps=20)+x(a=b(c=1))` -> `pgd+x`: a label without everything in parentheses."""
    depth, kept = 0, []
    for character in label:
        depth += character == "("
        if depth == 0:
            kept.append(character)
        depth -= character == ")" and depth > 0
    return "".join(kept)


def told_apart(labels: Sequence[str]) -> dict[str, str]:
    """Label -> the label without its parameters if that is unique among these, else the label itself."""
    bare = {label: without_parameters(label) for label in labels}
    counts = Counter(bare.values())
    return {label: short if counts[short] == 1 else label for label, short in bare.items()}


def kept_apart(labels: Iterable[str], width: int) -> dict[str, str]:
    """Label -> the label `shorten`ed, or all of it in lines of that width if another would look the same."""
    short = {label: shorten(label, width) for label in labels}
    counts = Counter(short.values())
    return {label: form if counts[form] == 1 else in_lines(label, width) for label, form in short.items()}


def in_lines(label: str, width: int) -> str:
    """The label in lines of at most `width` characters that end between words or parameters, where they can."""
    between = re.compile(r"(?<=[,( ])|(?<=[^\W\d_]{2}-)")
    lines = [line for own in label.split("\n") for line in packed(between.split(own), width)]
    return "\n".join(part for line in lines for part in textwrap.wrap(line, width, break_on_hyphens=False))


def short_labels(labels: Sequence[str], width: int) -> dict[str, str]:
    """A form of at most `width` characters for each label; distinct labels stay distinct, by a number if need be."""
    unique = list(dict.fromkeys(labels))
    short = {
        label: label if len(label) <= width else shorten(without_parameters(label), width) for label in unique
    }
    for form in set(short.values()):
        same = [label for label in unique if short[label] == form]
        if len(same) > 1:
            for number, label in enumerate(same, 1):
                mark = f"[{number}]"
                short[label] = shorten(form, width - len(mark)) + mark
    return short


def packed(pieces: Sequence[str], width: int) -> list[str]:
    """Lines of the pieces in order, as many to a line as fit; a piece that begins a line loses its leading space."""
    lines = [pieces[0].lstrip()]
    for piece in pieces[1:]:
        if len(lines[-1]) + len(piece) <= width:
            lines[-1] += piece
        else:
            lines.append(piece.lstrip())
    return lines


def count_of(number: int, noun: str) -> str:
    """`1 cell`, `2 cells`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
