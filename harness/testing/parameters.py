"""What every plugin owes its users: documentation, a source, and parameters that are typed, bounded and portable."""

from __future__ import annotations

import ast
import copy
import inspect
import json
import pickle
import sys
import types
import typing
from typing import Any

from pydantic import ValidationError

from harness.console.describe import annotated_bounds, bounds
from harness.errors import PluginError
from harness.testing.core import CheckFailed, CheckSkipped, Subject, check, require

# Kinds whose plugins are published methods.
METHODS = ("partitioner", "defence", "aggregator", "compressor", "attack")
HEAVY = ("torch", "torchvision", "torchattacks", "torch_pruning", "torchao", "opacus", "sklearn", "flwr", "ray",
         "tensorflow", "jax", "transformers")  # fmt: skip


def _has_parameters(plugin: Any) -> bool:
    return bool(plugin.model_fields if isinstance(plugin, type) else type(plugin).model_fields)  # type: ignore[attr-defined]


@check()
def documented(subject: Subject) -> None:
    """The class has documentation of its own, in whole sentences."""
    text = inspect.cleandoc(vars(subject.cls).get("__doc__") or "")
    require(
        bool(text),
        f"{subject.name} has no docstring: it is what `harness show` prints. Say what the method does, the "
        "formula, shapes, units, errors and cost",
    )
    first = text.split("\n\n")[0]
    require(
        len(first.split()) >= 4 and "." in text,
        f"the docstring of {subject.name} is {text!r}: begin with a whole sentence, which `harness list` shows",
    )


@check()
def reference_present(subject: Subject) -> None:
    """A published method names its publication; what is named has a title and an address."""
    reference = subject.cls.reference
    if reference is None:
        require(
            subject.cls.kind not in METHODS,
            f"{subject.name} has no reference: set `reference = Reference(title=..., url=...)` to the paper, or to "
            "your own repository where there is none",
        )
        return
    require(bool(reference.title.strip()), f"the reference of {subject.name} has no title")
    require(
        reference.url.startswith(("https://", "http://")),
        f"the reference of {subject.name} has no address: give `url`, a DOI or arXiv link, not {reference.url!r}",
    )


@check(when=_has_parameters)
def parameters_described(subject: Subject) -> None:
    """Every parameter says what it is, and its unit."""
    for name, field in subject.cls.model_fields.items():
        require(
            len((field.description or "").strip()) >= 3,
            f"parameter {name!r} of {subject.name} has no description: "
            f'write `{name}: ... = Field(..., description="what it is, in which unit")`',
        )


@check(when=_has_parameters)
def parameters_typed(subject: Subject) -> None:
    """Every parameter has a type that says what it takes."""
    for name, field in subject.cls.model_fields.items():
        require(
            not {Any, object} & set(_leaves(field.annotation)),
            f"parameter {name!r} of {subject.name} is not typed: Any checks nothing that a scenario says",
        )


@check(when=_has_parameters)
def parameters_bounded(subject: Subject) -> None:
    """Numeric parameters have bounds, or say that they have none."""
    for name, field in subject.cls.model_fields.items():
        extra = field.json_schema_extra
        if not _numeric(field.annotation) or (isinstance(extra, dict) and extra.get("unbounded")):
            continue
        require(
            bool([*bounds(field.metadata), *annotated_bounds(field.annotation)]),
            f"parameter {name!r} of {subject.name} is a number without bounds: add ge, gt, le or lt to its Field, "
            'or json_schema_extra={"unbounded": True} where every number makes sense',
        )


def _leaves(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is typing.Literal:
        return [typing.Literal]
    arguments = typing.get_args(annotation)
    if not arguments:
        return [annotation]
    return [leaf for argument in arguments for leaf in _leaves(argument)]


def _numeric(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType, typing.Annotated):
        return any(_numeric(part) for part in typing.get_args(annotation))
    return annotation in (int, float)


@check()
def constructs(subject: Subject) -> None:
    """The defaults make an instance, with the examples of those parameters that have none."""
    try:
        subject.plugin  # noqa: B018
    except PluginError as error:
        raise CheckFailed(
            f"{subject.name} cannot be made without parameters: {error}. Give defaults, or `examples=[...]` in the "
            "Field of each parameter that has none"
        ) from error


@check()
def unknown_parameters_refused(subject: Subject) -> None:
    """A parameter that does not exist is an error, never dropped."""
    given = {**subject.plugin.parameters(explicit=True), "no_such_parameter": 1}
    try:
        subject.cls.create(given)
    except PluginError:
        return
    raise CheckFailed(
        f"{subject.name} takes a parameter that it does not have: a mistyped name would change nothing, in silence. "
        'Leave model_config alone (extra="forbid")'
    )


@check()
def immutable(subject: Subject) -> None:
    """An instance cannot be changed, and equal ones count as one."""
    plugin = subject.plugin
    name = next(iter(subject.cls.model_fields), "anything")
    value = getattr(plugin, name, 1)
    copied = copy.deepcopy(plugin)
    try:
        setattr(copied, name, value)
    except (PluginError, ValidationError, AttributeError, ValueError, TypeError):
        pass
    else:
        raise CheckFailed(
            f"{name!r} of a {subject.name} can be set after it was made: results are stored under its parameters, so "
            "leave model_config alone (frozen=True) and keep state in the context"
        )
    require(
        copied == plugin, f"a copy of {subject.name} is not equal to it: compare by parameters, nothing else"
    )


@check()
def parameters_round_trip(subject: Subject) -> None:
    """Written into a scenario and read again, the parameters are the same."""
    import yaml

    from harness.yaml_loader import parse

    plugin = subject.plugin

    try:
        text = yaml.safe_dump(plugin.parameters(), allow_unicode=True)
    except yaml.YAMLError as error:
        raise CheckFailed(
            f"the parameters of {subject.name} cannot be written as YAML: {error}. Use numbers, text, lists, "
            "mappings and other plugins as types"
        ) from error
    read = parse(text).data
    try:
        again = subject.cls.create(read)
    except PluginError as error:
        raise CheckFailed(
            f"the parameters of {subject.name} cannot be read back from YAML: {error}. Strict types take what a "
            "scenario can say: a list where YAML has a list, text where it has text"
        ) from error
    require(
        dict(again) == dict(plugin) and again.parameters() == plugin.parameters(),
        f"{subject.name} is another after its parameters were written to YAML and read again: {plugin.parameters()} "
        f"became {again.parameters()}",
    )


@check(when=_has_parameters)
def parameters_in_schema(subject: Subject) -> None:
    """The JSON Schema lists every parameter, for editors, and allows what the plugin writes."""
    plugin = subject.plugin
    try:
        schema = subject.cls.model_json_schema(by_alias=True)
    except Exception as error:
        raise CheckFailed(
            f"the parameters of {subject.name} have no JSON Schema: {error}. Use types that JSON has"
        ) from error
    missing = set(subject.cls.model_fields) - set(schema.get("properties", {}))
    require(not missing, f"the JSON Schema of {subject.name} lacks {', '.join(sorted(missing))}")
    try:
        import jsonschema
    except ImportError:
        return
    try:
        jsonschema.validate(json.loads(json.dumps(plugin.parameters())), schema)
    except jsonschema.ValidationError as error:
        raise CheckFailed(
            f"the JSON Schema of {subject.name} refuses the plugin's own parameters: {error.message}"
        ) from error


@check()
def pickles(subject: Subject) -> None:
    """A copy that was sent to a worker process is equal to the original."""
    plugin = subject.plugin
    try:
        copied = pickle.loads(pickle.dumps(plugin))
    except Exception as error:
        raise CheckFailed(
            f"{subject.name} cannot be sent to a worker process: {type(error).__name__}: {error}. Define the class "
            "at the top of a module, and keep functions, files and locks out of its fields"
        ) from error
    require(
        type(copied) is type(plugin) and copied == plugin,
        f"{subject.name} is not equal to itself after it was sent to a worker process: keep everything that "
        "decides a result in its parameters",
    )


@check()
def heavy_imports_deferred(subject: Subject) -> None:
    """Commands such as `harness list` need not wait for torch: it is imported inside the methods that use it."""
    module = sys.modules.get(subject.cls.__module__)
    try:
        tree = ast.parse(inspect.getsource(module))  # type: ignore[arg-type]
    except (OSError, TypeError, SyntaxError) as error:
        raise CheckSkipped(f"its source cannot be read: {error}") from None
    for node in tree.body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        heavy = [name for name in names if name.split(".")[0] in HEAVY]
        require(
            not heavy,
            f"{subject.cls.__module__} imports {heavy[0] if heavy else ''} at the top (line {node.lineno}): every "
            "command would wait for it. Import it inside the methods, and for annotations under TYPE_CHECKING",
        )
