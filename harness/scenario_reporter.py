"""Finds the place in the file of every mistake, whether the reader, pydantic or a plugin found the mistake."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from harness.errors import PluginError
from harness.scenario_errors import expected, other_unit, shown, suggestion, unquoted, unwritten
from harness.sweeps import Choices
from harness.yaml_loader import Document, Location, Problem


class Reporter:
    """Collects the mistakes of one document."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems = list(document.problems)
        # Sweeps shift the positions of axis values: path after expansion -> place in the file.
        self.origins: dict[Location, Location] = {}

    def report(self, path: Location, message: str, *, key: bool = False) -> None:
        """Report a mistake at the value of a path, or at its key; if the file lacks the path, at its parent's key."""
        marks, keys = self.document.values, self.document.keys
        while path and path not in marks and path not in keys:
            path, key = path[:-1], True
        mark = keys.get(path) if key or path not in marks else marks[path]
        if not key and path in keys and (isinstance(self.at(path), dict) or not marks[path].text):
            mark = keys[path]  # a mapping or an empty value: its key is the better place
        if mark is None:
            mark = next((m for p, m in keys.items() if p[:-1] == path), marks[path])
        self.problems.append(Problem(mark, message))

    def at(self, path: Location) -> Any:
        """The raw value at a path that exists."""
        value = self.document.data
        for part in path:
            value = value[part]
        return value

    def shown(self, path: Location, raw: Any, phrase: str = "") -> str:
        mark = self.document.values.get(path)
        text = mark.text if mark else str(raw)
        if isinstance(raw, str) and text[:1] not in ("'", '"') and text != raw:
            # It goes on below its first line, or begins there, after `|` or `>`: then it is text, as in quotes.
            line = " ".join(raw.split())
            text = f"the text {line}" if text[:1] in ("|", ">") else line
        return shown(raw, text, phrase)

    def trace(self, path: Location, steps: Location, choices: Choices) -> Location:
        """The place of `steps` below an axis item, by the items taken of its sweeps; steps not in there are skipped."""
        path, node = self.enter(path, choices)
        for step in steps:
            known = (isinstance(node, dict) and step in node) or (
                isinstance(node, list) and isinstance(step, int) and step < len(node)
            )
            if known:
                path, node = self.enter((*path, step), choices)
        return path

    def enter(self, path: Location, choices: Choices) -> tuple[Location, Any]:
        while path in choices:
            path = (*path, "sweep", choices[path])
        return path, self.at(path)

    # what pydantic and plugins found --------------------------------------------------------------

    def plugin_error(
        self,
        error: PluginError,
        spec: Any,
        path: Location,
        inner: Location,
        choices: Choices,
    ) -> None:
        if not error.details:
            self.finding(path, inner, [str(error)], spec, choices)
        details = [((*inner, *loc), text, value) for loc, text, value in error.details]
        self.findings(details, path, choices)

    def validation(self, error: ValidationError, raw: Any, path: Location, example: Any = None) -> None:
        details: list[tuple[Location, str, Any]] = []
        for item in error.errors():
            cause = item.get("ctx", {}).get("error")
            if isinstance(cause, PluginError) and cause.details:
                details += [((*item["loc"], *loc), text, value) for loc, text, value in cause.details]
            else:
                text = str(cause) if item["type"] == "value_error" else item["msg"]
                details.append((tuple(item["loc"]), text, item["input"]))
        self.findings(details, path, {}, example)

    def findings(
        self, details: list[tuple[Location, str, Any]], path: Location, choices: Choices, example: Any = None
    ) -> None:
        """Report details, grouped by place: the branches of a union make one mistake."""
        places: dict[Location, list[tuple[Location, str, Any]]] = {}
        for location, text, value in details:
            places.setdefault(self.trace(path, location, choices), []).append((location, text, value))
        for place, group in places.items():
            deeper = any(other != place and other[: len(place)] == place for other in places)
            phrases = [text for _, text, _ in group if not (deeper and expected(text))]
            plain = [text for text in phrases if not expected(text)]
            for text in plain:
                location, _, value = next(g for g in group if g[1] == text)
                self.finding(path, location, [text], value, choices, example)
            rest = [text for text in phrases if expected(text)]
            if rest:
                self.finding(path, group[0][0], rest, group[0][2], choices, example)

    def finding(
        self,
        path: Location,
        location: Location,
        texts: list[str],
        value: Any,
        choices: Choices,
        example: Any = None,
    ) -> None:
        place = self.trace(path, location, choices)
        phrases = list(dict.fromkeys(p for text in texts if (p := expected(text, example))))
        if not phrases:
            known = isinstance(value, dict) and len(value) == 1 and repr(next(iter(value))) in texts[0]
            if known:  # about the name of a plugin: point at it, not at its parameters
                place = self.trace(path, (*location, next(iter(value))), choices)
            self.report(place, texts[0], key=known or " has no parameter " in texts[0])
            return
        last = next((part for part in reversed(place) if isinstance(part, str) and part != "sweep"), "this")
        name = (
            f"each of {last}" if place and isinstance(place[-1], int) and "sweep" not in place[-2:] else last
        )
        text = " or ".join(phrases)
        given = self.shown(place, value, text)
        hint = suggestion(texts, value) or unquoted(phrases, value, given) or unwritten(phrases, value, given)
        hint = hint or other_unit(last, phrases, value)
        self.report(place, f"{name} must be {text}, not {given}{hint}")
