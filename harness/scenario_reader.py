"""Reads a parsed document into the scenario's models, collecting every mistake with its place."""

from __future__ import annotations

import types
from functools import cache
from math import isfinite
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from harness import registry
from harness.contracts.attack import radius_problem
from harness.contracts.base import Plugin
from harness.errors import HarnessError, PluginError, did_you_mean, misspelt, nearest, quoted
from harness.local_plugins import LocalFile
from harness.options import Option
from harness.scenario_errors import flow
from harness.scenario_models import Axis, Part, Scenario
from harness.scenario_reporter import Reporter
from harness.sweeps import MAX_SWEEP, Choices, count, origin, variants, walk
from harness.yaml_loader import Document, Location


class Reader(Reporter):
    """One pass over one document."""

    def __init__(self, document: Document, root: Path = Path()) -> None:
        super().__init__(document)
        self.root = root

    def scenario(self) -> Any:
        """The scenario; None where there are problems."""
        files = self.local_plugins()
        if len(self.problems) > len(self.document.problems):
            return None  # names of what could not be loaded would all be reported as unknown
        with registry.registry().seeing(files):
            value, good = self.model(Scenario, self.document.data, ())
        # Of a value that could not be read as YAML, that is the only problem to report.
        unread = {problem.mark for problem in self.document.problems}
        known = set(self.document.problems)
        self.problems = [p for p in self.problems if p in known or p.mark not in unread]
        return value.model_copy(update={"files": files}) if good and not self.problems else None

    def local_plugins(self) -> tuple[LocalFile, ...]:
        """Load the files that `plugins` names, before anything else is read, as that may use their plugins."""
        named = self.document.data.get("plugins") if isinstance(self.document.data, dict) else None
        found = []
        for i, path in enumerate(named if isinstance(named, list) else ()):
            if isinstance(path, str):  # anything else is reported with the other fields
                try:
                    found.append(registry.registry().load_file(path, self.root))
                except PluginError as error:
                    self.report(("plugins", i), str(error))
        return tuple(found)

    # models -------------------------------------------------------------------------------------

    def model(self, cls: type[BaseModel], raw: Any, path: Location) -> tuple[Any, bool]:
        """(instance, True), or (the fields that are right, False)."""
        before = len(self.problems)
        fields = {f.alias or n: (n, f) for n, f in cls.model_fields.items() if not f.exclude}
        title = str(next((part for part in reversed(path) if isinstance(part, str)), "scenario"))
        title = {"threats": "threat"}.get(title, title)
        if not isinstance(raw, dict):
            example = self.example(cls, fields)
            self.report(path, f"{title} must be a mapping such as {example}, not {self.shown(path, raw)}")
            return SimpleNamespace(), False
        for key in raw:
            if key not in fields:
                hint = did_you_mean(key, fields, 40)
                self.report((*path, key), f"unknown key {quoted(key)} in {title}; {hint}", key=True)
        meant = misspelt((key for key in raw if key not in fields), fields.keys() - raw.keys(), fields)
        given: dict[str, Any] = {}
        values: dict[str, Any] = {}
        for key, (name, field) in fields.items():
            if key in raw:
                value, good = self.field(cls, name, raw[key], (*path, key))
                if good:
                    given[name] = value
                if good or value is not None:
                    values[name] = value
            elif key in meant:
                continue  # its misspelling is reported
            elif field.is_required():
                example = flow({key: field.examples[0] if field.examples else "..."})[1:-1]
                self.report((*path, key), f"{title} needs {key!r}, e.g. `{example}`")
            else:
                try:
                    values[name] = field.get_default(call_default_factory=True)
                except HarnessError as error:
                    self.report((*path, key), str(error))
        if issubclass(cls, Part):
            alias = {name: key for key, (name, _) in fields.items()}
            for location, message in cls.problems(values, given):
                if alias.get(str(location[0]), location[0]) in meant:
                    continue
                place = (*path, alias.get(str(location[0]), location[0]), *location[1:])
                self.report(self.origins.get(place, place), message)
        if len(self.problems) > before:
            return SimpleNamespace(**values), False
        try:
            return cls(**given), True
        except ValidationError as error:
            self.validation(error, raw, path)
        return SimpleNamespace(**values), False

    @staticmethod
    def example(cls: type[BaseModel], fields: dict[str, Any]) -> str:
        """An example mapping: the required fields if there are two, else the first one, or one with a plain default."""
        needed = [key for key, (_, field) in fields.items() if field.is_required()]
        plain = [key for key, (_, field) in fields.items() if isinstance(field.default, (int, float, str))]
        chosen = needed if len(needed) == 2 else (needed or plain)[:1]
        shown = {key: fields[key][1] for key in chosen}
        return flow(
            {k: f.examples[0] if f.examples else "..." if needed else f.default for k, f in shown.items()}
        )

    def field(self, cls: type[BaseModel], name: str, raw: Any, path: Location) -> tuple[Any, bool]:
        """(value, True) where the field is right; else (None or the parts of it that are right, False)."""
        field = cls.model_fields[name]
        axis = next((m for m in field.metadata if isinstance(m, Axis)), None)
        example = field.examples[0] if field.examples else None
        if axis is not None:
            return self.axis(axis, raw, path, example)
        inner, many = _inner_model(field.annotation)
        if inner is not None and many:
            if not isinstance(raw, list):
                return self.wrong(path, raw, f"a list such as {flow(example)}")
            before = len(self.problems)
            items: list[tuple[Any, bool]] = []
            for i, item in enumerate(raw):
                for one in self.by_radius(item, (*path, i)):
                    self.origins[(*path, len(items), "name")] = (*path, i, "name")
                    items.append(self.model(inner, one, (*path, i)))
                    if not items[-1][1]:
                        break  # the other radii would only report the same again
            good = len(self.problems) == before
            return (tuple(item for item, _ in items) if good or items else None), good
        if inner is not None and not (raw is None and type(None) in get_args(field.annotation)):
            return self.model(inner, raw, path)
        for place, node in walk(raw, path):
            if isinstance(node, dict) and "sweep" in node:
                self.report((*place, "sweep"), "sweeps belong in the axes and in attacks", key=True)
                return None, False
        try:
            return _adapter(cls, name).validate_python(raw), True
        except ValidationError as error:
            self.validation(error, raw, path, example=example)
            return self.right_items(_adapter(cls, name), raw, path), False

    def right_items(self, adapter: TypeAdapter[Any], raw: Any, path: Location) -> tuple[Any, ...] | None:
        """The valid items of a list with mistakes, as they may break other rules; None without any, or for no list."""
        found: list[Any] = []
        for i, item in enumerate(raw if isinstance(raw, list) else ()):
            try:
                value = adapter.validate_python([item])
            except ValidationError:
                continue
            if isinstance(value, tuple):
                self.origins[(*path, len(found))] = (*path, i)
                found += value
        return tuple(found) or None

    def wrong(self, path: Location, raw: Any, phrase: str) -> tuple[None, bool]:
        name = next((part for part in reversed(path) if isinstance(part, str)), "this")
        self.report(path, f"{name} must be {phrase}, not {self.shown(path, raw)}")
        return None, False

    # axes and sweeps ----------------------------------------------------------------------------

    def axis(self, axis: Axis, raw: Any, path: Location, example: Any) -> tuple[Any, bool]:
        """The values of an axis, sweeps expanded, as `field` returns them: (n stacks or n plugins, True)."""
        if not isinstance(raw, list):
            return self.wrong(path, raw, f"a list such as {flow(example)}")
        before = len(self.problems)
        values: list[Any] = []
        for i, item in enumerate(raw):
            here = (*path, i)
            if not self.sweeps(item, here):
                continue
            for value, choices in variants(item, here):
                self.origins[(*path, len(values))] = origin(here, choices)
                chain = self.chain(axis, value, here, choices)
                if chain is None:
                    continue
                if axis.stack and isinstance(value, list):
                    for j in range(len(chain)):
                        self.origins[(*path, len(values), j)] = self.trace(here, (j,), choices)
                values.append(chain if axis.stack else chain[0])
        good = len(self.problems) == before
        return (tuple(values) if good or values else None), good

    def by_radius(self, raw: Any, path: Location) -> list[Any]:
        """A threat whose budget sweeps its radius, as one threat `name-eps0.03` for each radius; others as they are."""
        budget = raw.get("budget") if isinstance(raw, dict) else None
        radius = budget.get("eps") if isinstance(budget, dict) else None
        if not (isinstance(budget, dict) and isinstance(radius, dict) and "sweep" in radius):
            return [raw]
        place, before = (*path, "budget", "eps"), len(self.problems)
        found: dict[str, dict[str, Any]] = {}
        for value, choices in variants(radius, place) if self.sweeps(radius, place) else ():
            here = origin(place, choices)
            shown = self.shown(here, value)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
                self.report(here, f"eps must be a finite number such as 0.5 or 8/255, not {shown}")
                continue
            size = f"{value:.4g}"
            if value < 0:
                self.report(here, f"eps must be at least 0, not {shown}")
            elif problem := radius_problem(budget.get("norm"), value):
                self.report(here, problem)
            elif size in found:
                self.report(here, f"the radius {shown} is repeated, to four digits; list each only once")
            name = {"name": f"{raw['name']}-eps{size}"} if isinstance(raw.get("name"), str) else {}
            found[size] = {**raw, **name, "budget": {**budget, "eps": value}}
        if len(self.problems) > before:  # what else is wrong with the threat is reported too
            return [{**raw, "budget": {**budget, "eps": 0}}]
        return list(found.values())

    def sweeps(self, node: Any, path: Location) -> bool:
        """Whether every sweep below is well-formed and they expand to at most MAX_SWEEP values."""
        before = len(self.problems)
        for place, value in walk(node, path):
            if not isinstance(value, dict) or "sweep" not in value:
                continue
            items = value["sweep"]
            if len(value) > 1:
                self.report(
                    (*place, "sweep"), "sweep must be alone in its braces: {sweep: [1, 4, 8]}", key=True
                )
            elif not isinstance(items, list) or not items:
                text = self.shown((*place, "sweep"), items)
                self.report((*place, "sweep"), f"sweep must be a list such as [1, 4, 8], not {text}")
        if len(self.problems) == before and (total := count(node)) > MAX_SWEEP:
            self.report(path, f"its sweeps expand to {total} values; at most {MAX_SWEEP} are allowed")
        return len(self.problems) == before

    def chain(self, axis: Axis, value: Any, path: Location, choices: Choices) -> tuple[Plugin, ...] | None:
        """One axis value: `none`, a plugin, or a list of them."""
        if value == "none" and axis.none:
            return ()
        if not isinstance(value, list):
            plugin = self.plugin(axis, value, path, (), choices)
            return None if plugin is None else (plugin,)
        if not axis.stack or not value:
            text = "an empty list" if not value else "a list"
            self.report(self.trace(path, (), choices), f"{_shape(axis.kind)}, not {text}")
            return None
        plugins = [self.plugin(axis, item, path, (j,), choices) for j, item in enumerate(value)]
        return None if None in plugins else tuple(p for p in plugins if p is not None)

    def plugin(
        self, axis: Axis, spec: Any, path: Location, inner: Location, choices: Choices
    ) -> Plugin | None:
        here = self.trace(path, inner, choices)
        if spec == "none" and axis.none:
            self.report(here, "none must stand alone: remove it from this list")
        elif isinstance(spec, dict) and len(spec) > 1:
            names = ", ".join(spec)
            self.report(
                here,
                f"{_shape(axis.kind)}, not a mapping of {len(spec)} keys ({names}); "
                "indent parameters below the name, or begin each plugin with a dash",
            )
        elif not isinstance(spec, (str, dict)) or not spec:
            self.report(here, f"{_shape(axis.kind)}, not {self.shown(here, spec)}")
        else:
            try:
                return registry.resolve(axis.kind, spec)
            except PluginError as error:
                if axis.none and isinstance(spec, str) and nearest(spec, ["none"]) and not error.details:
                    error = PluginError(f"unknown {axis.kind} {spec!r}; did you mean 'none'?")
                self.plugin_error(error, spec, path, inner, choices)
        return None


def _shape(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} is `name` or `name: {{parameter: value}}`"


def _inner_model(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """(model, whether many) for a field that holds parts of a scenario; plugins and options read themselves."""
    many = get_origin(annotation) is tuple
    parts = (
        get_args(annotation) if many or get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    )
    for part in parts:
        if isinstance(part, type) and issubclass(part, BaseModel) and not issubclass(part, (Plugin, Option)):
            return part, many
    return None, False


@cache
def _adapter(cls: type[BaseModel], name: str) -> TypeAdapter[Any]:
    field = cls.model_fields[name]
    annotation = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return TypeAdapter(annotation)
    constrained: Any = Annotated[(annotation, *field.metadata)] if field.metadata else annotation
    return TypeAdapter(constrained, config=ConfigDict(strict=True, allow_inf_nan=False))
