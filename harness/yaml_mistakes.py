"""Explains a parser's error to the author of the file: the place to look at, and what to change there."""

from __future__ import annotations

import re
from collections.abc import Sequence

import yaml

Place = tuple[int, int]  # line and column, counted from 1

NO_BREAK = "\u00a0"
_KEY = re.compile(r":(?:[ \t]|$)")  # what ends a key


def syntax_mistake(error: yaml.YAMLError, text: str, lines: Sequence[str]) -> tuple[Place, str]:
    """The place of a syntax error, and the message."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    # A character that YAML refuses: only its position is known.
    if mark is None:
        position = getattr(error, "position", 0)
        before = text[:position]
        place = (before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1)
        code = ord(text[position]) if position < len(text) else 0
        return place, f"not valid YAML: the character U+{code:04X} is not allowed"
    reason = getattr(error, "problem", None) or "it cannot be read"
    context, begin = getattr(error, "context", None), getattr(error, "context_mark", None)
    # The next two are noticed only at the end, or a line later: the place to look at is where they began.
    opening = "" if begin is None else _line(lines, begin.line)[begin.column : begin.column + 1]
    if begin is not None and opening and ("end of stream" in reason or "<stream end>" in reason):
        return (begin.line + 1, begin.column + 1), f"not valid YAML: this {opening} is not closed"
    if begin is not None and reason == "could not find expected ':'":
        message = "not valid YAML: a key needs a colon and a space after it"
        return (begin.line + 1, begin.column + 1), message
    if context and begin is not None and begin.line < mark.line:
        context += f" that begins on line {begin.line + 1}"
    message = f"not valid YAML: {reason}" + (f" ({context})" if context else "")
    hint = _hint(reason, mark, lines)
    return (mark.line + 1, mark.column + 1), f"{message}; {hint}" if hint else message


def _hint(reason: str, mark: yaml.Mark, lines: Sequence[str]) -> str | None:
    """What to change, or None where that is not clear."""
    line = _line(lines, mark.line)
    if re.search(r"[:,\[]\s*\$\{", line):
        return 'put text that holds ${...} in quotes, e.g. "${HARNESS_DATA}/x.npz"'
    if "unknown escape character" in reason:
        return "in double quotes a backslash starts an escape: use single quotes, e.g. '(\\d+)'"
    if "'\\t'" in reason:
        return "use spaces, not tabs"
    if "cannot start any token" in reason:
        return "put text that starts like this in quotes"
    if closing := re.fullmatch(r"expected <block end>, but found '([\]}])'", reason):
        return f"this {closing[1]} closes nothing"
    if reason.startswith("expected '<document start>'"):
        return "a file holds one document; remove what follows the `...`"
    if reason == "expected the node content, but found ','":
        return "a value is missing before this comma"
    if reason.startswith("expected <block end>"):
        return "keys of one mapping, and dashes of one list, must be indented equally"
    if reason == "mapping values are not allowed here":
        return _second_colon(mark, lines)
    return None


def _second_colon(mark: yaml.Mark, lines: Sequence[str]) -> str | None:
    """For a colon that ends no key: what is wrong before it, on its line or on the one above."""
    line = _line(lines, mark.line)
    if _KEY.search(line[: mark.column]):
        return "put a value that holds a colon and a space in quotes"
    above = min(mark.line, len(lines)) - 1
    while above >= 0 and (not lines[above].strip() or lines[above].lstrip().startswith("#")):
        above -= 1
    if above < 0:
        return None
    if not _KEY.search(lines[above]):
        return f"line {above + 1} has no colon and space after its key"
    if len(line) - len(line.lstrip()) > len(lines[above]) - len(lines[above].lstrip()):
        return f"it is indented deeper than line {above + 1}, whose key already has a value"
    if NO_BREAK in lines[above]:
        return f"line {above + 1} holds a no-break space (U+00A0), as copied from a page; use plain spaces"
    return None


def _line(lines: Sequence[str], number: int) -> str:
    """A line by the parser's number, which counts fewer kinds of line ends than Python does; "" past the last line."""
    return lines[number] if number < len(lines) else ""
