"""Writes the reference of hooks, everything in harness.api, and commands as Markdown, from their own documentation.

python -m harness.plugin_kit.reference > docs/reference.md
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel

from harness import api, hookspecs
from harness.contracts.base import Plugin

# Names that cannot carry a docstring.
CONSTANTS = {
    "API_VERSION": f"The version of harness.api, {api.API_VERSION}: what `requires_api` of a plugin's module is "
    "compared with.",
    "Batch": "(x (b, c, h, w) float in [0, 1], y (b,) int64): the records of one step.",
    "Field": "pydantic's: declares a parameter, with default, bounds and description.",
    "GradientFn": "gradient(params, batch, key) -> dict name -> tensor: what the optimiser steps along.",
    "LogitsFn": "logits(params, x (b, c, h, w)) -> (b, k): the network with these parameters.",
    "LossFn": "loss(params, batch, key) -> (b,): one loss a record.",
    "MERGED": "The client id of a row that several clients share.",
    "Params": "dict name -> tensor: trainable parameters.",
    "Register": "register(cls): what harness_register is given.",
    "accounting": "Module: the epsilon that Gaussian mechanisms spend, and the noise for an epsilon; see above.",
    "hookimpl": "Decorator: marks a function or method as the implementation of the hook of its name.",
}


def reference() -> str:
    """The whole page."""
    lines = [
        "# Reference",
        "",
        "Made by `python -m harness.plugin_kit.reference > docs/reference.md`; a test fails where it is out of date.",
        "How to write a plugin is in the [guide](plugins.md).",
        "",
        "## Hooks",
        "",
        "A plugin package implements those it needs, each marked with `harness.api.hookimpl`; a hook may leave out",
        "arguments that it does not use. Observers are called in the main process; one that raises is not called",
        "again in that run, and the run goes on.",
        *hooks(),
        "",
        "## harness.api",
        *names(),
        "",
        "## Commands",
        "",
        "Each takes `--help`, which lists its options.",
        *commands(),
    ]
    return "\n".join(lines) + "\n"


def hooks() -> Iterator[str]:
    """One section per hook."""
    for name, function in sorted(vars(hookspecs).items()):
        if name.startswith("harness_"):
            yield from ("", f"### {name}({', '.join(inspect.signature(function).parameters)})", "")
            yield documentation(function, name)


def names() -> Iterator[str]:
    """Base classes of plugins first, then what their methods take and return, then functions and constants."""
    values = {name: getattr(api, name) for name in api.__all__}
    classes = {n: v for n, v in values.items() if inspect.isclass(v) and n not in CONSTANTS}
    bases = {n: v for n, v in classes.items() if issubclass(v, Plugin)}
    functions = {n: v for n, v in values.items() if inspect.isfunction(v) and n not in CONSTANTS}
    for title, chosen in (
        ("What a plugin is", bases),
        ("What methods take and return, and errors", {n: v for n, v in classes.items() if n not in bases}),
    ):
        yield from ("", f"### {title}")
        for name, cls in chosen.items():
            yield from ("", f"#### {name}", "", documentation(cls, name))
            yield from declared(cls)
            yield from data(cls)
            yield from members(cls)
    yield from ("", "### Functions", "", "| function | does |", "|---|---|")
    for name, function in functions.items():
        yield f"| `{name}({signature(function)})` | {cell(sentence(documentation(function, name)))} |"
    module = api.accounting
    yield from ("", "### Functions of accounting", "", documentation(module, "accounting"))
    yield from ("", "| function | does |", "|---|---|")
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ == module.__name__ and not name.startswith("_"):
            yield f"| `accounting.{name}({signature(function)})` | {cell(documentation(function, name))} |"
    yield from ("", "### Other names", "", "| name | is |", "|---|---|")
    rest = sorted(values.keys() - classes.keys() - functions.keys() - CONSTANTS.keys())
    if rest:
        raise LookupError(f"without documentation: {', '.join(rest)}: a docstring, or an entry in CONSTANTS")
    for name, text in CONSTANTS.items():
        yield f"| `{name}` | {cell(text)} |"


def declared(cls: type) -> Iterator[str]:
    """What a plugin of this class may declare: the class variables except those that the base class itself sets."""
    own = {"kind", "family", "acts_on", "pre"}
    said, rows = remarks(cls), []
    kinds = vars(cls)["__declared__"] if issubclass(cls, Plugin) else inspect.get_annotations(cls)
    for name, kind in kinds.items():
        if str(kind).startswith("ClassVar[") and not name.startswith("_") and name not in own:
            of = cell(str(kind).removeprefix("ClassVar[").removesuffix("]"))
            rows.append(
                f"| `{name}` | `{of}` | `{cell(shown(getattr(cls, name)))}` | {cell(said[name])}".rstrip()
                + " |"
            )
    if rows:
        yield from ("", "| declares | type | default | |", "|---|---|---|---|", *rows)


def remarks(cls: type) -> dict[str, str]:
    """The comment above and behind each annotated name in the body of a class; empty where there is none."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(cls).splitlines():
        if comment := re.fullmatch(r"    # (.*)", line):
            above.append(comment[1])
            continue
        if named := re.match(r"    (\w+): [^#]*?(?:  # (.*))?$", line):
            found[named[1]] = " ".join([*above, named[2] or ""]).strip()
        above = []
    return found


def data(cls: type) -> Iterator[str]:
    """The fields of a dataclass or a pydantic model that is no plugin: type, bounds, default and comment of each."""
    said, rows = remarks(cls) if is_dataclass(cls) or issubclass(cls, BaseModel) else {}, []
    if is_dataclass(cls):
        for f in fields(cls):
            if not f.name.startswith("_"):
                default = f.default if f.default_factory is MISSING else f.default_factory()
                rows.append((f.name, str(f.type), "" if default is MISSING else shown(default)))
    elif issubclass(cls, BaseModel) and not issubclass(cls, Plugin):
        for name, field in cls.model_fields.items():
            kind = type_name(field.annotation, field.metadata)
            rows.append((name, kind, "" if field.is_required() else shown(field.get_default())))
    if rows:
        yield from ("", "| field | type | default | |", "|---|---|---|---|")
        for name, kind, default in rows:
            value = f"`{cell(default)}`" if default else "required"
            yield f"| `{name}` | `{cell(kind)}` | {value} | {cell(said.get(name, ''))}".rstrip() + " |"


def type_name(annotation: Any, bounds: Iterable[Any] = ()) -> str:
    """A type as one would write it, followed by the bounds of its values: `float, >= 0`, `"server" | "recipients"`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        text = type_name(arguments[0], arguments[1].metadata if hasattr(arguments[1], "metadata") else ())
    elif origin is Literal:
        text = " | ".join(f'"{value}"' if isinstance(value, str) else repr(value) for value in arguments)
    elif origin in (Union, UnionType):
        text = " | ".join(map(type_name, arguments))
    elif origin is not None:
        text = f"{origin.__name__}[{', '.join(map(type_name, arguments))}]"
    else:
        text = "None" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "of length >="}
    for bound in bounds:
        text += "".join(
            f", {sign} {getattr(bound, name)}" for name, sign in signs.items() if hasattr(bound, name)
        )
    return text


def shown(default: Any) -> str:
    """A default as one would write it."""
    if inspect.isclass(default) or inspect.isfunction(default):
        return str(getattr(default, "__name__", default)).replace("<lambda>", "a function")
    return f'"{default}"' if isinstance(default, str) else repr(default)


def members(cls: type) -> Iterator[str]:
    """The methods and properties that a class itself documents."""
    rows = []
    for name, value in list(vars(cls).items()):  # a list, as reading a member may add to the class
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if name.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
            continue
        call = name if isinstance(value, property) else f"{name}({signature(function)})"
        must = "**to implement**: " if getattr(value, "__isabstractmethod__", False) else ""
        rows.append(f"| `{call}` | {must}{cell(inspect.getdoc(function) or '')} |")
    if rows:
        yield from ("", "| member | |", "|---|---|", *rows)


def commands() -> Iterator[str]:
    """One line per command; in place of a group stand its commands."""
    from harness.cli import app

    yield from ("", "| command | does |", "|---|---|")
    yield from _commands(typer.main.get_group(app), "harness")


def _commands(group: Any, path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if getattr(command, "commands", None):
            yield from _commands(command, f"{path} {name}")
            continue
        if not command.help:
            raise LookupError(f"{path} {name} has no documentation")
        arguments = [p.metavar or p.name.upper() for p in command.params if p.param_type_name == "argument"]
        call = " ".join([path, name, *arguments])
        yield f"| `{cell(call)}` | {cell(sentence(command.help))} |"


def documentation(thing: Any, name: str) -> str:
    """Its own docstring, cleaned. Raises LookupError where there is none."""
    text = inspect.cleandoc(getattr(thing, "__doc__", None) or "")
    # A dataclass without a docstring is given its signature for one.
    if not text or (is_dataclass(thing) and text.startswith(f"{name}(")):
        raise LookupError(f"{name} has no documentation")
    return text


def signature(function: Any) -> str:
    """Its parameters' names."""
    return ", ".join(p for p in inspect.signature(function).parameters if p not in ("self", "cls"))


def sentence(text: str) -> str:
    """The first paragraph, on one line."""
    first = text.split("\n\n")[0]
    return " ".join(first.split())


def cell(text: str) -> str:
    """Text that fits a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference())
