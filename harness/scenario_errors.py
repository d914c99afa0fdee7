"""Turns findings into lines a reader can act on: the place, what is wrong, what was expected."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from harness.errors import nearest
from harness.yaml_loader import Location, Problem, parse

# What pydantic says -> the same in the words of a scenario's author.
_EXPECTED = (
    (r"should be a valid integer", "a whole number such as 3"),
    (r"should be a finite number", "a finite number such as 0.5"),
    (r"should be a valid number", "a number such as 0.5 or 8/255"),
    (r"should be a valid string", "text such as 'abc', in quotes if it looks like a number"),
    (r"should be a valid boolean", "true or false"),
    (r"should be a valid (list|tuple|set)", "a list such as {list}"),
    (r"should be (a valid dictionary|an object)", "a mapping such as {mapping}"),
    (r"(list|tuple|set) should have at least 1 item", "a list of at least one value"),
    (r"(list|tuple|set) should have at (?P<bound>(?:least|most) \d+)", "a list of at {bound} values"),
    (r"tring should have at least 1 character", "text of at least one character"),
    (r"tring should have at (?P<bound>(?:least|most) \d+)", "text of at {bound} characters"),
    (r"tring should match pattern '(?P<bound>.*)'$", "text that matches the pattern {bound}"),
    (r"should be greater than or equal to (?P<bound>\S+)", "at least {bound}"),
    (r"should be greater than (?P<bound>\S+)", "greater than {bound}"),
    (r"should be less than or equal to (?P<bound>\S+)", "at most {bound}"),
    (r"should be less than (?P<bound>\S+)", "less than {bound}"),
    (r"should be a multiple of (?P<bound>\S+)", "a multiple of {bound}"),
    (r"should be (?P<bound>(?:'[^']*'|-?\d+)(?:(?:, | or )(?:'[^']*'|-?\d+))*)$", "{bound}"),
)

# Such a phrase -> the types that it asks for, of values without quotes.
_PLAIN = (
    ("a whole number", (int,)),
    ("a number", (int, float)),
    ("a finite number", (int, float)),
    ("true or false", (bool,)),
)
_SHARE = re.compile(r"malicious|participation|byzantine_tolerance|holdout|(?:.*_)?(?:fraction|share|ratio)")
_EXCERPT = 70  # characters of a source line that are shown: with indent and dots they fit 80 columns


def expected(message: str, example: Any = None) -> str | None:
    """What completes "x must be ...", from a message of pydantic; None for a message that can be shown as it is."""
    for pattern, phrase in _EXPECTED:
        if match := re.search(pattern, message):
            mapping = flow(example) if isinstance(example, dict) else "{name: value}"
            items = flow(example) if isinstance(example, list) else "[1, 2]"
            return phrase.format(bound=match.groupdict().get("bound"), list=items, mapping=mapping)
    return None


def sentences(details: Iterable[tuple[Location, str, Any]]) -> list[str]:
    """Findings as sentences, where there is no file to point at; of pydantic's own findings only the innermost."""
    found = list(details)
    lines = []
    for location, message, value in found:
        where = ".".join(map(str, location))
        phrase = expected(message)
        if phrase is None:
            lines.append(f"{where}: {message}" if where else message)
        elif not any(other != location and other[: len(location)] == location for other, _, _ in found):
            text = repr(value) if isinstance(value, str) else str(value)
            lines.append(f"{where or 'this'} must be {phrase}, not {shown(value, text, phrase)}")
    return lines


def suggestion(messages: Iterable[str], value: Any) -> str:
    """`; did you mean ...?` where the message lists the choices and the value is close to one."""
    choices = [c for m in messages if "should be '" in m for c in re.findall(r"'([^']*)'", m)]
    hint = nearest(value, choices) if isinstance(value, str) else ""
    return f"; {hint}" if hint else ""


def unquoted(phrases: Iterable[str], value: Any, text: str) -> str:
    """`; remove the quotes` where nothing else is wrong with a value. text: the value as it stands in the file."""
    if not isinstance(value, str) or text[:1] not in ("'", '"'):
        return ""
    plain = parse(value).data
    good = any(
        phrase == value or any(phrase.startswith(start) and type(plain) in types for start, types in _PLAIN)
        for phrase in phrases
    )
    return "; remove the quotes" if good else ""


def unwritten(phrases: Iterable[str], value: Any, text: str) -> str:
    """`; put it in quotes` for a choice that YAML does not read as text, such as true."""
    choice = not isinstance(value, str) and any(f"'{text}'" in phrase for phrase in phrases)
    return "; put it in quotes" if choice else ""


def other_unit(name: str, phrases: Iterable[str], value: Any) -> str:
    """`; did you mean ...?` for a number in another unit: a radius in 255ths, a share in percent.

    Only for a number with a percent sign, or one too large to be in the unit expected. name: of the parameter.
    """
    if isinstance(value, str) and (percent := re.fullmatch(r"(\d+(?:\.\d+)?) ?%", value)):
        wanted = any(phrase.startswith("a number") for phrase in phrases)
        return f"; did you mean {float(percent[1]) / 100:g}?" if wanted else ""
    limit = next(
        (float(m[1]) for p in phrases if (m := re.fullmatch(r"(?:at most|less than) (\S+)", p))), None
    )
    if limit is None or limit > 1 or isinstance(value, bool) or not isinstance(value, (int, float)):
        return ""
    if name == "eps" and 1 < value <= 255:
        return f"; did you mean {value:g}/255?"
    if _SHARE.fullmatch(name) and 1 < value < 100 * limit and value == int(value):
        return f"; did you mean {value / 100:g}?"
    return ""


def shown(value: Any, text: str, phrase: str = "") -> str:
    """A value for use after "must be {phrase}, not": as it stands in the file where it is short."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        if "a list of at" in phrase and value:
            return str(len(value))
        return "a list" if value else "an empty list"
    if value is None:
        return "empty" if text in ("", "null", "~") else text
    return text if len(text) <= 40 else text[:37] + "..."


def flow(value: Any) -> str:
    """A value as YAML on one line, for examples."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(flow, value)) + "]"
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def render(problems: Iterable[Problem], name: str, lines: list[str]) -> str:
    """All problems by place, each once: `name:line:column: message`, the source line, and carets."""
    blocks = []
    for mark, message in sorted(set(problems), key=lambda p: (p.mark.line, p.mark.column, p.message)):
        block = f"{name}:{mark.line}:{mark.column}: {message}"
        if mark.line <= len(lines) and lines[mark.line - 1].strip():
            block += _excerpt(lines[mark.line - 1].rstrip(), mark.column - 1, len(mark.text))
        blocks.append(block)
    return "\n".join(blocks)


def mistakes(text: str) -> list[dict[str, Any]]:
    """The findings in the text of an error, as values: file, line, column, message.

    They are read back from what `render`, or other code that names a file, made of them, as an error may join the
    texts of several files. None for what a line does not say.
    """
    found = []
    for line in text.splitlines():
        if line.startswith("    "):  # the source, and carets below it
            continue
        if placed := re.match(r"(.+?):(\d+):(\d+): (.*)", line):
            file, row, column, message = placed.groups()
            found.append({"file": file, "line": int(row), "column": int(column), "message": message})
        elif named := re.match(r"(\S.*?\.ya?ml): (.*)", line):
            found.append({"file": named[1], "line": None, "column": None, "message": named[2]})
        else:
            found.append({"file": None, "line": None, "column": None, "message": line})
    return found


def _excerpt(source: str, start: int, length: int) -> str:
    """A source line and carets below it; of a long line the part around the first caret."""
    left = max(0, min(start - _EXCERPT // 3, len(source) - _EXCERPT))
    before, after = "..." if left else "", "..." if left + _EXCERPT < len(source) else ""
    source, start = source[left : left + _EXCERPT], start - left
    indent = re.sub(r"[^\t]", " ", before + source[:start]).ljust(start)
    carets = "^" * max(1, min(length, len(source) - start))
    return f"\n    {before}{source}{after}\n    {indent}{carets}"
