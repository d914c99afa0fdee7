"""What a plugin class says of itself, as plain values: for pages and for --json."""

from __future__ import annotations

import inspect
import types
import typing
from typing import Any

from pydantic_core import to_jsonable_python

from harness.contracts.base import Plugin
from harness.registry import Entry

# Kind -> facts by which a user chooses a plugin; read from the class, or from an instance where they are properties.
FACTS = {
    "attack": (
        "family",
        "access",
        "knowledge",
        "controls_training",
        "norm",
        "default_eps",
        "needs_non_members",
    ),
    "aggregator": ("pre", "data_access", "sum_only"),
    "compressor": ("acts_on", "data_access", "fine_tuning_rounds", "summable"),
    "defence": ("protects", "server_view", "couples_samples", "replaces_loss", "replaces_gradient"),
    "metric": ("needs",),
}
BOUNDS = (
    ("ge", "≥"),
    ("gt", ">"),
    ("le", "≤"),
    ("lt", "<"),
    ("min_length", "length ≥"),
    ("max_length", "length ≤"),
)
CANDIDATES = {
    float: (1.0, 0.5, 0.1, 8.0, 2.0),
    int: (1, 2, 0, 5, 10),
    str: ("path/to/data",),
    bool: (True,),
}


def summary(plugin: type[Plugin]) -> str:
    """The first sentence of the documentation."""
    paragraph = " ".join((inspect.getdoc(plugin) or "").split("\n\n")[0].split())
    end = next(
        (i for i, c in enumerate(paragraph) if c == "." and paragraph[i + 1 : i + 2] in ("", " ")
         and not paragraph[:i].endswith(("e.g", "i.e", " al", "vs", "cf"))),
        None,
    )  # fmt: skip
    return paragraph if end is None else paragraph[: end + 1]


def describe(entry: Entry) -> dict[str, Any]:
    """Everything `harness show` prints."""
    plugin = entry.plugin
    file, line = entry.source
    return {
        "kind": plugin.kind,
        "name": plugin.name,
        "aliases": list(plugin.aliases),
        "summary": summary(plugin),
        "documentation": inspect.getdoc(plugin) or "",
        "reference": None if plugin.reference is None else plugin.reference.model_dump(),
        "facts": facts(plugin),
        "scores": {
            name: {
                "direction": s.direction,
                "unit": s.unit,
                "description": s.description,
                "measured": s.measured,
            }
            for name, s in getattr(plugin, "scores", {}).items()
        },
        "parameters": [parameter(name, field) for name, field in plugin.model_fields.items()],
        "example": example(plugin),
        "distribution": entry.distribution,
        "version": entry.version,
        "source": f"{file}:{line}" if line else file,
    }


def facts(plugin: type[Plugin]) -> dict[str, Any]:
    """Family, access and the like; `depends on the parameters` where the defaults give no instance to ask."""
    found: dict[str, Any] = {}
    for name in FACTS.get(plugin.kind, ()):
        value = getattr(plugin, name, None)
        if isinstance(value, property):
            try:
                value = getattr(plugin.create(), name)
            except Exception:
                value = "depends on the parameters"
        if value is not None and value != ():
            found[name] = list(value) if isinstance(value, tuple) else value
    return found


def parameter(name: str, field: Any) -> dict[str, Any]:
    """Name, type, default (None where required), bounds and description."""
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    found = [*bounds(field.metadata), *annotated_bounds(field.annotation)]
    return {
        "name": name,
        "type": type_name(field.annotation),
        "required": field.is_required(),
        "default": _value(default),
        "bounds": ", ".join(dict.fromkeys(found)),
        "description": field.description or "",
    }


def _value(value: Any) -> Any:
    if isinstance(value, Plugin):
        parameters = value.parameters(explicit=True)
        return {value.name: parameters} if parameters else value.name
    if isinstance(value, list | tuple):
        return [_value(item) for item in value]
    return to_jsonable_python(value, fallback=str)


def type_name(annotation: Any) -> str:
    """`float or none`, `one of rdp, prv`, `evasion attack`: how a person would say it."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_name(a) for a in arguments))
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if annotation is type(None):
        return "none"
    if origin in (list, tuple, dict):
        inner = [type_name(a) for a in arguments if a is not Ellipsis]
        return "mapping" if origin is dict else f"list of {' or '.join(dict.fromkeys(inner)) or 'anything'}"
    if isinstance(annotation, type) and issubclass(annotation, Plugin):
        family = getattr(annotation, "family", "") or getattr(annotation, "acts_on", "")
        return f"{family} {annotation.kind}".strip()
    names = {str: "text", int: "integer", float: "number", bool: "true or false"}
    return names.get(annotation) or str(getattr(annotation, "__name__", annotation))


def bounds(metadata: Any) -> list[str]:
    return [
        f"{sign} {value:g}" if isinstance(value, float) else f"{sign} {value}"
        for item in metadata
        for attribute, sign in BOUNDS
        if (value := getattr(item, attribute, None)) is not None
    ]


def annotated_bounds(annotation: Any) -> list[str]:
    stated = getattr(annotation, "__metadata__", ())
    own = bounds([part for item in stated for part in (item, *getattr(item, "metadata", ()))])
    return own + [bound for inner in typing.get_args(annotation) for bound in annotated_bounds(inner)]


def example(plugin: type[Plugin]) -> str:
    """The plugin as a scenario would write it, with parameters that validate where such can be found."""
    import yaml

    chosen = example_parameters(plugin)
    if not chosen:
        return plugin.name
    text = yaml.safe_dump(
        {plugin.name: chosen}, default_flow_style=True, sort_keys=False, width=1000, allow_unicode=True
    )
    return text.strip().removeprefix("{").removesuffix("}")


def example_parameters(plugin: type[Plugin]) -> dict[str, Any]:
    fields = plugin.model_fields
    needed: dict[str, Any] = {}
    for name, field in fields.items():
        if field.is_required():
            needed[name] = next(iter(_candidates(field)), "...")
    if not _valid(plugin, needed):
        for name, field in fields.items():
            for value in _candidates(field):
                if _valid(plugin, {**needed, name: value}):
                    return {**needed, name: value}
        return needed
    if needed:
        return needed
    for name, field in fields.items():
        default = _value(field.get_default(call_default_factory=True))
        if default is not None:
            return {name: default}
    return {}


def _candidates(field: Any) -> list[Any]:
    """Values worth trying, the author's own examples first."""
    inner = [field.annotation, *typing.get_args(field.annotation)]
    options = list(field.examples or [])
    for annotation in inner:
        if typing.get_origin(annotation) is typing.Literal:
            options += typing.get_args(annotation)
        elif isinstance(annotation, type):
            options += CANDIDATES.get(annotation, ())
    return options


def _valid(plugin: type[Plugin], parameters: dict[str, Any]) -> bool:
    try:
        plugin.create(parameters)
    except Exception:
        return False
    return True
