"""JSON Schema (draft 2020-12) of a scenario, for editors: the models and every registered plugin.

It is as strict as a schema can be; the rules that relate several fields are left to `harness validate`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import GenerateJsonSchema

from harness import registry
from harness.contracts.base import Plugin
from harness.kinds import KINDS
from harness.options import CHOICES, Option
from harness.scenario_models import Scenario
from harness.scenario_parts import Axis
from harness.scenario_threats import Threat

Schema = dict[str, Any]

# Editors that read YAML 1.1 take 1e-3 for text, and all of them 8/255.
NUMBER_AS_TEXT = r"^[-+]?[0-9.]+([eE][-+]?[0-9]+|\s*/\s*[0-9.]+)$"
Choice = tuple[str, tuple[str, ...], type[Any]]  # (place in $defs, every way to write it, class)
SWEEPING = ("defence", "aggregator", "compressor", "attack")  # kinds whose parameters may be swept


def scenario_schema() -> Schema:
    """The JSON Schema of a scenario file, with the plugins of this installation."""
    definitions: Schema = {}
    root = _model_schema(Scenario, definitions)
    for kind in KINDS:
        definitions[kind] = _kind_schema(kind, definitions)
    for name, choice in CHOICES.items():
        options: list[Choice] = [(n, (n,), option) for n, option in choice.choices().items()]
        definitions[name] = _named(f"A {choice.what}.", options, definitions)
    for name, field in Scenario.model_fields.items():
        for axis in field.metadata:
            if isinstance(axis, Axis):
                _axis(root["properties"][name], axis)
    attacks = next(m for m in Threat.model_fields["attacks"].metadata if isinstance(m, Axis))
    _axis(definitions["Threat"]["properties"]["attacks"], attacks)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **root,
        "title": "psr-harness scenario",
        "$defs": dict(sorted(definitions.items())),
    }


class _Generator(GenerateJsonSchema):
    """Leaves out defaults that are objects, and does not warn of it: they are plugins, described elsewhere."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}


def _model_schema(
    model: type[BaseModel], definitions: Schema, sweeps: bool = False, prefix: str = ""
) -> Schema:
    """A model's schema, with plugins and options as references to their kind; other parts go into `definitions`."""
    try:
        schema = model.model_json_schema(
            by_alias=True, ref_template=f"#/$defs/{prefix}{{model}}", schema_generator=_Generator
        )
    except PydanticInvalidForJsonSchema:  # a third party's parameter of a type that JSON cannot describe
        schema = {"type": "object", "title": model.__name__}
    inner = schema.pop("$defs", {})
    hidden = [f for f, field in model.model_fields.items() if field.exclude]
    for name in hidden:
        schema.get("properties", {}).pop(name, None)
    for name, part in inner.items():
        definitions[prefix + name] = _translate(part, sweeps)
    return _translate(schema, sweeps)


def _translate(node: Any, sweeps: bool) -> Any:
    """The same schema with references to kinds, numbers that may be fractions and, where allowed, sweeps."""
    if isinstance(node, list):
        return [_translate(item, sweeps) for item in node]
    if not isinstance(node, dict):
        return node
    if "x-plugin-kind" in node or "x-option" in node:
        rest = {k: v for k, v in node.items() if k in ("title", "description", "examples")}
        return {"$ref": f"#/$defs/{node.get('x-plugin-kind') or node['x-option']}", **rest}
    if "x-sweep" in node:
        return _maybe_swept(_translate({k: v for k, v in node.items() if k != "x-sweep"}, False), True)
    result: Schema = {}
    for key, value in node.items():
        if key in ("default", "examples", "enum", "const", "required"):
            result[key] = value  # data, not schemas
        elif key in ("properties", "patternProperties"):
            result[key] = {name: _maybe_swept(_translate(v, sweeps), sweeps) for name, v in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, dict):
            result[key] = _maybe_swept(_translate(value, sweeps), sweeps)
        elif key == "prefixItems":
            result[key] = [_maybe_swept(_translate(v, sweeps), sweeps) for v in value]
        else:
            result[key] = _translate(value, sweeps)
    if result.get("type") == "number":
        about = ("title", "description", "default", "examples")
        bounds = {k: v for k, v in result.items() if k not in about}
        text = {"type": "string", "pattern": NUMBER_AS_TEXT}
        result = {**{k: v for k, v in result.items() if k in about}, "anyOf": [bounds, text]}
    return result


def _maybe_swept(schema: Schema, sweeps: bool) -> Schema:
    if not sweeps:
        return schema
    about: Schema = {k: schema[k] for k in ("title", "description", "default") if k in schema}
    return {**about, "anyOf": [schema, _sweep_of(schema)]}


def _sweep_of(schema: Schema) -> Schema:
    return {
        "type": "object",
        "description": "one value of the axis for each item",
        "properties": {"sweep": {"type": "array", "minItems": 1, "items": schema}},
        "required": ["sweep"],
        "additionalProperties": False,
    }


def _axis(target: Schema, axis: Axis) -> None:
    """Fill in what an item of an axis may be."""
    one: Schema = {"$ref": f"#/$defs/{axis.kind}"}
    items = [one]
    if axis.none:
        items.insert(0, {"const": "none", "description": "nothing on this axis"})
    if axis.stack:
        items.append({"type": "array", "minItems": 1, "items": {"anyOf": [one, _sweep_of(one)]}})
    target.pop("default", None)
    target.update(type="array", items={"anyOf": [*items, _sweep_of({"anyOf": items})]})
    if axis.stack:
        target["minItems"] = 1


def _kind_schema(kind: str, definitions: Schema) -> Schema:
    article = "An" if kind[0] in "aeiou" else "A"
    description = f"{article} {kind}: `name` or `name: {{parameter: value}}`."
    return _named(description, list(_spellings(kind)), definitions, kind in SWEEPING)


def _spellings(kind: str) -> Iterator[Choice]:
    """Each plugin of a kind, written by its full name and, where no other has it, by its short name."""
    loaded = registry.registry()
    entries = list(loaded.entries(kind))
    short = [name for entry in entries for name in (entry.plugin.name, *entry.plugin.aliases)]
    for entry in entries:
        names = (entry.plugin.name, *entry.plugin.aliases)
        own = [name for name in names if short.count(name) == 1]
        full = [f"{entry.distribution}/{name}" for name in names]
        yield f"{kind}.{entry.distribution}:{entry.plugin.name}", (*own, *full), entry.plugin


def _named(description: str, choices: list[Choice], definitions: Schema, sweeps: bool = False) -> Schema:
    """`name` (where no parameter is needed) or `{name: parameters}`."""
    texts: list[Schema] = []
    properties: Schema = {}
    for address, names, cls in choices:
        parameters = _model_schema(cls, definitions, sweeps, f"{address}:")
        parameters["description"] = _about(cls)
        definitions[address] = parameters
        reference = {"$ref": f"#/$defs/{address}"}
        for name in names:
            if parameters.get("required"):
                properties[name] = _maybe_swept(reference, sweeps)
            else:
                texts.append({"const": name, "description": _about(cls).split("\n")[0]})
                properties[name] = _maybe_swept({"anyOf": [reference, {"type": "null"}]}, sweeps)
    mapping = {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    return {"description": description, "oneOf": [*texts, mapping]}


def _about(cls: type[Plugin] | type[Option]) -> str:
    text = inspect.cleandoc(cls.__doc__ or "")
    reference = getattr(cls, "reference", None)
    if reference is not None:
        source = ", ".join(str(part) for part in (reference.authors, reference.venue, reference.year) if part)
        text += f"\n\n{reference.title}" + (f" ({source})" if source else "")
        text += f"\n{reference.url}" if reference.url else ""
    return text.strip()
