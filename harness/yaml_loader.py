"""YAML as scenarios use it: plain data, and the place in the file of every key and value.

A restricted reading of YAML without its surprises: `1e-3` and `8/255` are numbers, `no` and `on` are
text, dates are text, a key may stand only once, and there are no tags and no merge keys. Nothing is
raised: every mistake is listed in the document, so that a caller can report all of them together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from harness.yaml_mistakes import syntax_mistake

Location = tuple[str | int, ...]

MAX_CHARACTERS = 1_000_000
MAX_DEPTH = 40
DIGITS = 400  # of a whole number: more are not even converted
LARGEST_INTEGER = 2**63 - 1
LARGEST = 3.4028235e38  # the largest float32: a larger number would fail only where a training meets it
MAX_VALUES = 20_000  # aliases are counted where they are used: nested ones would otherwise grow without bound

_INTEGER = re.compile(r"[-+]?[0-9]+")
_NUMBER = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
_FLOAT = re.compile(_NUMBER)
_FRACTION = re.compile(rf"({_NUMBER})\s*/\s*({_NUMBER})")
_CONSTANTS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}


class Mark(NamedTuple):
    """A place in the file (line and column, from 1) and the first line of the text there."""

    line: int
    column: int
    text: str


class Problem(NamedTuple):
    """A mistake and its place."""

    mark: Mark
    message: str


@dataclass
class Document:
    """A parsed file.

    data: dicts with text keys, lists, str, int, float, bool, None. keys and values: the place of each key
    and each value, by its path from the root, e.g. ("defences", 1, "dp-sgd", "epsilon"); the root is ().
    """

    data: Any = None
    keys: dict[Location, Mark] = field(default_factory=dict)
    values: dict[Location, Mark] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    complete: bool = True  # False: parsing stopped early, so `data` lacks the rest


def parse(text: str) -> Document:
    """The document in a text. Mistakes are in `problems`; `complete` is False where parsing had to stop."""
    document = Document(lines=text.splitlines())
    try:
        if len(text) > MAX_CHARACTERS:
            raise _Stop(Mark(1, 1, ""), f"the file is longer than {MAX_CHARACTERS} characters")
        _Builder(text, document).build()
    except _Stop as stop:
        document.problems.append(stop.problem)
        document.complete = False
    except yaml.YAMLError as error:
        place, message = syntax_mistake(error, text, document.lines)
        document.problems.append(Problem(Mark(*place, ""), message))
        document.complete = False
    return document


def plain_value(text: str) -> Any:
    """What an unquoted scalar means. Raises ValueError for a number that cannot be represented."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INTEGER.fullmatch(text):
        if len(text) > DIGITS or abs(int(text)) > LARGEST_INTEGER:
            raise ValueError(
                f"{_cut(text)} is too large for a whole number, of which the largest is {LARGEST_INTEGER}"
            )
        return int(text)
    if _FLOAT.fullmatch(text):
        return _finite(float(text), text)
    if match := _FRACTION.fullmatch(text):
        above, below = float(match[1]), float(match[2])
        if below == 0:
            raise ValueError(f"{text} divides by zero")
        return _finite(above / below, text)
    return text


def _finite(value: float, text: str) -> float:
    if not abs(value) <= LARGEST:  # also for NaN, from inf / inf
        raise ValueError(
            f"{_cut(text)} is too large for a number: networks compute in float32, up to {LARGEST:.3g}"
        )
    return value


def _cut(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


class _Stop(Exception):
    """Parsing cannot go on."""

    def __init__(self, mark: Mark, message: str) -> None:
        super().__init__(message)
        self.problem = Problem(mark, message)


@dataclass
class _Node:
    """A scalar (str), sequence (list of nodes) or mapping (list of node pairs) and where it stands."""

    value: Any
    mark: Mark
    kind: str
    plain: bool = True


class _Builder:
    """Builds nodes from YAML events, then the data and the marks from the nodes."""

    def __init__(self, text: str, document: Document) -> None:
        self.text = text
        self.document = document
        self.anchors: dict[str, _Node] = {}
        self.events: Iterator[Any] = iter(yaml.parse(text, Loader=yaml.SafeLoader))
        self.left = MAX_VALUES

    def build(self) -> None:
        root: _Node | None = None
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    self.problem(
                        self.mark(event), "a file holds one document; remove what follows this `---`"
                    )
                    break
                root = self.node(next(self.events), 0)
        if root is None:
            raise _Stop(Mark(1, 1, ""), "the file is empty")
        self.document.data = self.convert(root, ())

    def problem(self, mark: Mark, message: str) -> None:
        self.document.problems.append(Problem(mark, message))

    def mark(self, event: Any, end: Any = None) -> Mark:
        start, stop = event.start_mark, (end or event).end_mark
        lines = self.text[start.index : stop.index].splitlines()
        return Mark(start.line + 1, start.column + 1, lines[0].rstrip() if lines else "")

    # events -> nodes ----------------------------------------------------------------------------

    def node(self, event: Any, depth: int) -> _Node:
        if depth > MAX_DEPTH:
            raise _Stop(self.mark(event), f"values are nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.anchors:
                self.problem(self.mark(event), f"*{event.anchor} names no anchor that ends before it")
                return _Node("", self.mark(event), "scalar")
            return self.anchors[event.anchor]
        if event.tag is not None:
            self.problem(self.mark(event), f"tags such as {event.tag} are not allowed; write the plain value")
        if isinstance(event, yaml.ScalarEvent):
            node = _Node(event.value, self.mark(event), "scalar", plain=event.style is None)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self.sequence(event, depth)
        else:
            node = self.mapping(event, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = node  # only now: an alias inside its own anchor stays unknown
        return node

    def sequence(self, start: Any, depth: int) -> _Node:
        items = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.node(event, depth + 1))
        return _Node(items, self.mark(start, event), "sequence")

    def mapping(self, start: Any, depth: int) -> _Node:
        pairs = []
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.node(event, depth + 1)
            pairs.append((key, self.node(next(self.events), depth + 1)))
        return _Node(pairs, self.mark(start, event), "mapping")

    # nodes -> data and marks --------------------------------------------------------------------

    def convert(self, node: _Node, path: Location) -> Any:
        self.left -= 1
        if self.left < 0:
            raise _Stop(node.mark, f"the file holds more than {MAX_VALUES} values, aliases included")
        if len(path) > MAX_DEPTH:
            raise _Stop(node.mark, f"values are nested deeper than {MAX_DEPTH} levels")
        self.document.values[path] = node.mark
        if node.kind == "sequence":
            return [self.convert(item, (*path, i)) for i, item in enumerate(node.value)]
        if node.kind == "mapping":
            return self.convert_mapping(node, path)
        if not node.plain:
            return node.value
        try:
            return plain_value(node.value)
        except ValueError as error:
            self.problem(node.mark, str(error))
            return None

    def convert_mapping(self, node: _Node, path: Location) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in node.value:
            if key.kind != "scalar":
                self.problem(key.mark, "a key must be plain text, not a list or a mapping")
                continue
            name = key.value
            if name == "<<" and key.plain:
                self.problem(key.mark, "merge keys (<<) are not allowed; write the values out")
                continue
            here = (*path, name)
            if name in result:
                first = self.document.keys[here].line
                self.problem(key.mark, f"the key {name!r} appears twice (first on line {first})")
                continue
            self.document.keys[here] = key.mark
            result[name] = self.convert(value, here)
        return result
