"""Checks of a plugin class and of its module before either is used, with a message for each fault."""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import inspect
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

from harness._version import API_VERSION
from harness.contracts.base import Plugin
from harness.contracts.choices import check_choice, choices
from harness.errors import PluginError, nearest
from harness.kinds import KINDS


def check_class(plugin: Any) -> None:
    """Raises PluginError where a class cannot be used as a plugin."""
    if not (isinstance(plugin, type) and issubclass(plugin, Plugin)):
        raise PluginError(f"register() takes plugin classes, not {plugin!r}")
    _check_parameters(plugin)
    if plugin.kind not in KINDS:
        raise PluginError(
            f"{plugin.__qualname__} needs a kind: subclass Aggregator, Defence or another of harness.api"
        )
    if not plugin.name:
        raise PluginError(
            f'{plugin.__qualname__} needs a name: `name = "..."` in the class, what scenarios call it'
        )
    if not isinstance(plugin.aliases, tuple):
        raise PluginError(f"{plugin.__qualname__}: aliases must be a tuple of names, not {plugin.aliases!r}")
    for name in spellings(plugin):
        if not isinstance(name, str) or not name or any(c.isspace() or c == "/" for c in name):
            raise PluginError(f"{plugin.__qualname__}: the name {name!r} must be text without '/' and spaces")
    if inspect.isabstract(plugin):
        missing = ", ".join(sorted(plugin.__abstractmethods__))
        raise PluginError(f"{plugin.kind} {plugin.name!r} does not implement {missing}{_misspelt(plugin)}")
    family = getattr(plugin, {"attack": "family", "compressor": "acts_on"}.get(plugin.kind, "name"))
    if not family:
        raise PluginError(
            f"{plugin.kind} {plugin.name!r} must subclass one of the families, "
            f"such as {'EvasionAttack' if plugin.kind == 'attack' else 'ModelCompressor'}"
        )
    hooks = _hooks(plugin)
    if hooks and not any(hooks & vars(owner).keys() for owner in _own(plugin)):
        raise PluginError(
            f"{plugin.kind} {plugin.name!r} implements nothing of {_contract(plugin).__name__}, and would change "
            f"nothing{_misspelt(plugin)}"
        )


def spellings(plugin: type[Plugin]) -> tuple[str, ...]:
    """A plugin's name and its aliases."""
    return (plugin.name, *plugin.aliases)


def _check_parameters(plugin: type[Plugin]) -> None:
    """Raises PluginError where parameters or attributes break the contract.

    One that takes the place of something the engine calls would otherwise end a run midway.
    """
    contract = _contract(plugin)
    what = f"{plugin.__qualname__} ({contract.__name__})"
    theirs = _attributes(contract)
    for name, field in plugin.model_fields.items():
        if name not in contract.model_fields and name in theirs:
            constant = not (inspect.isroutine(theirs[name]) or isinstance(theirs[name], property))
            advice = f"as an attribute it has no annotation: `{name} = ...`" if constant else "rename it"
            raise PluginError(f"{what}: the parameter {name!r} hides {contract.__name__}.{name}; {advice}")
        if {field.alias, field.validation_alias, field.serialization_alias} != {None}:
            raise PluginError(f"{what}: the parameter {name!r} has an alias; a parameter has one name")
        if field.exclude or getattr(field, "exclude_if", None) is not None:
            raise PluginError(
                f"{what}: the parameter {name!r} is declared with `exclude`, so that scores of two of its values could "
                "not be told apart; remove that"
            )
    for owner in _own(plugin):
        for name in vars(owner).keys() & theirs.keys():
            own = inspect.getattr_static(plugin, name)
            if inspect.isroutine(theirs[name]):
                if not callable(getattr(plugin, name, None)):
                    raise PluginError(f"{what}: {name!r} must stay a method, not {own!r}; rename yours")
                _check_signature(what, name, own, theirs[name])
            elif isinstance(own, FunctionType):
                raise PluginError(f"{what}: {name!r} is no method: write `@property` above it")
            elif name in (listed := _choices(contract)) and not isinstance(own, property):
                check_choice(what, name, own, listed[name])


def _check_signature(what: str, name: str, own: Any, theirs: Any) -> None:
    """Raises PluginError where a method cannot be called as the contract's is; positional parameters may be renamed."""
    if not isinstance(theirs, FunctionType) or not isinstance(own, FunctionType | staticmethod | classmethod):
        return
    asked = theirs.__code__
    if isinstance(own, FunctionType) and not asked.co_kwonlyargcount:
        code = own.__code__
        if (code.co_argcount, code.co_kwonlyargcount) == (asked.co_argcount, 0):
            return  # nearly always: a closer look at every method would slow down every command
    expected = inspect.signature(theirs).parameters
    by_place = [p.name for p in expected.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    by_name = {p.name: p for p in expected.values() if p.kind is p.KEYWORD_ONLY}
    function = own if isinstance(own, FunctionType) else own.__func__
    given = inspect.signature(function, follow_wrapped=False)
    try:
        given.bind(*by_place[isinstance(own, staticmethod) :], **by_name)
    except TypeError:
        wrong, right = (f"{name}({', '.join(each)})" for each in (given.parameters, expected))
        raise PluginError(f"{what}: {wrong} must take what it is given: {right}") from None


def _contract(plugin: type[Plugin]) -> type[Plugin]:
    """The contract that a plugin implements: its nearest base class that is harness's own."""
    return next(
        base for base in plugin.__mro__ if issubclass(base, Plugin) and base.__module__.startswith("harness.")
    )


def _own(plugin: type[Plugin]) -> tuple[type, ...]:
    """The plugin class and the classes between it and its contract."""
    return plugin.__mro__[: plugin.__mro__.index(_contract(plugin))]


def _hooks(plugin: type[Plugin]) -> set[str]:
    """The public attributes of a plugin's contract that not every plugin has."""
    return _attributes(_contract(plugin)).keys() - _attributes(Plugin).keys()


def _misspelt(plugin: type[Plugin]) -> str:
    """For messages: the methods that resemble one of the contract's but have another name, each with that one."""
    hooks = _hooks(plugin)
    methods = (name for owner in _own(plugin) for name, own in vars(owner).items() if inspect.isroutine(own))
    near = {name: nearest(name, hooks) for name in methods if name not in hooks and name[0] != "_"}
    return "".join(f"; it has {name!r}: {said}" for name, said in near.items() if said)


@cache
def _attributes(contract: type[Plugin]) -> dict[str, Any]:
    """The public attributes of a contract as its classes define them: methods unbound, properties not evaluated."""
    public = [name for name in dir(contract) if not name.startswith("_")]
    return {name: inspect.getattr_static(contract, name) for name in public}


@cache
def _choices(contract: type[Plugin]) -> dict[str, tuple[Any, ...]]:
    """The attributes, properties included, whose values a contract lists in a Literal, with those values."""
    found: dict[str, tuple[Any, ...]] = {}
    for owner in reversed(contract.__mro__):
        attributes = dict(vars(owner).get("__declared__", {}))
        for name, value in vars(owner).items():
            if isinstance(value, property) and value.fget is not None:
                attributes[name] = value.fget.__annotations__.get("return")
        found |= choices(owner, attributes)
    return found


# the version of the interface ---------------------------------------------------------------------


def check_api(required: Any) -> None:
    """Raises PluginError where `requires_api` of a plugin module excludes this version of harness.api."""
    if required is None:
        return
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        accepted = SpecifierSet(required)
    except (InvalidSpecifier, TypeError, AttributeError):
        raise PluginError(f"requires_api must be text such as '>=1.0', not {required!r}") from None
    if API_VERSION not in accepted:
        raise PluginError(
            f"it requires harness.api {accepted}; this is version {API_VERSION}: upgrade psr-harness"
        )


def declared_api(module: str) -> Any:
    """The `requires_api` of a module, read from its source, as importing it may fail without that very version."""
    file = _source_file(module)
    try:
        tree = ast.parse(file.read_bytes()) if file else ast.Module([], [])
    except (OSError, SyntaxError, ValueError):
        return None  # importing it will say what is wrong
    for node in tree.body:
        match node:
            case (
                ast.Assign(targets=[ast.Name("requires_api")], value=ast.Constant(value))
                | ast.AnnAssign(target=ast.Name("requires_api"), value=ast.Constant(value))
            ):
                return value
    return None


def _source_file(module: str) -> Path | None:
    """The source file of a module, found without importing it or its parents; None where there is none."""
    top, *parts = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    name = top
    for part in parts:
        name = f"{name}.{part}"
        inside = list(spec.submodule_search_locations or ()) if spec else []
        spec = importlib.machinery.PathFinder.find_spec(name, inside)
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
