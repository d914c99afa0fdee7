"""What every plugin is: a frozen, strict set of parameters with a name, a kind and a reference."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, PydanticUserError, ValidationError
from pydantic_core import PydanticSerializationError, core_schema

from harness.errors import PluginError
from harness.numerals import short

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class Reference(BaseModel):
    """Where a method was published."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    authors: str = ""
    venue: str = ""
    year: int | None = None
    url: str = ""


class _Made(ModelMetaclass):
    """Makes plugin classes; what Pydantic rejects becomes an error that names class, attribute and what to write."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **settings: Any) -> Any:
        try:
            return super().__new__(mcs, name, bases, namespace, **settings)
        except PydanticUserError as error:
            raise PluginError(_unannotated(name, bases, error)) from error


def _unannotated(name: str, bases: tuple[type, ...], error: PydanticUserError) -> str:
    """What is wrong with a class, in a sentence; nearly always it is an attribute without an annotation."""
    found = re.search(r"detected: `(\w+) = ", error.message)
    if found is None:
        return f"{name}: {error.message}"
    attribute = found[1]
    for base in bases:
        if isinstance(inspect.getattr_static(base, attribute, None), property):
            return (
                f"{name}: {attribute!r} is a property of {base.__name__}: write `@property def {attribute}(self): "
                "return ...`, not an attribute"
            )
    return (
        f"{name}: the attribute {attribute!r} has no annotation; annotate it: `{attribute}: ClassVar = ...` for a "
        "constant, or as a field for a parameter"
    )


class Plugin(BaseModel, metaclass=_Made):
    """A method with its parameters: the fields are the parameters, the docstring is the documentation.

    Subclass one of the kinds (Aggregator, Defence, ...), set `name`, declare parameters as pydantic
    fields with defaults, units and bounds, and register the class through `harness_register`.
    Instances are frozen, hashable by their parameters, and picklable. An abstract kind can be used as
    the type of a field (`attack: EvasionAttack`): it then accepts `name` or `{name: {parameter: value}}`.
    """

    # allow_inf_nan: a field that has a use for infinity is declared with Field(..., allow_inf_nan=True).
    # defer_build: validators are built only for the plugins that are used, not for all that are installed.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        validate_default=True,
        defer_build=True,
    )

    __declared__: ClassVar[dict[str, Any]] = {}  # the annotations of its class attributes
    kind: ClassVar[str] = ""
    name: ClassVar[str] = ""  # what scenarios call it: text without '/' and spaces
    aliases: ClassVar[tuple[str, ...]] = ()  # other names
    reference: ClassVar[Reference | None] = None  # where it was published
    # Library modules that it imports inside its methods: workers preload them, and stage keys hold their versions.
    requires: ClassVar[tuple[str, ...]] = ()
    # Optional dependencies: top-level module -> what pip must install for it, such as
    # {"mlflow": "psr-harness[mlflow]"}. Where one is missing, `harness list` says so and scenarios that use the plugin
    # are refused.
    extras: ClassVar[dict[str, str]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        _forget_class_variables(cls)

    @classmethod
    def create(cls, parameters: dict[str, Any] | None = None) -> Self:
        """A validated instance. Raises PluginError that lists every bad parameter."""
        try:
            made = cls(**(parameters or {}))
        except ValidationError as error:
            raise default_error(cls, error, parameters or {}) or parameter_error(cls, error) from None
        _check_plain(made)
        return made

    if not TYPE_CHECKING:  # to a type checker, a __setattr__ means that every attribute may be set

        def __setattr__(self, name: str, value: Any) -> None:
            """Sets private attributes only; for any other, raises PluginError that says where the value belongs."""
            try:
                super().__setattr__(name, value)
            except ValidationError as error:
                raise PluginError(
                    f"{type(self).__name__} sets its attribute {name!r}, and a plugin cannot be changed. A parameter "
                    f"is a field of the class, `{name}: int = Field(1, ge=0, description=...)`, without an __init__; "
                    "what is kept from call to call goes into `state` of the context, where that has one"
                ) from error

    def parameters(self, *, explicit: bool = False) -> dict[str, Any]:
        """The parameters as plain JSON values; only those given (not defaults) with `explicit`."""
        return self.model_dump(mode="json", exclude_unset=explicit)

    def spec(self) -> dict[str, Any]:
        """`{name: parameters}`: what a scenario would say, defaults spelled out."""
        return {_shown().name_of(self): self.parameters()}

    def label(self) -> str:
        """A short name for tables: the name and the parameters that were given, numbers to six digits or as `8/255`.

        Where such labels would be ambiguous, harness.naming makes them longer through `Shown`.
        """
        name = _shown().name_of(self)
        given = {f: getattr(self, f) for f in type(self).model_fields if f in self.model_fields_set}
        if not given:
            return name
        return f"{name}({','.join(f'{k}={_short(v)}' for k, v in given.items())})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        if cls.name or not cls.kind:
            return handler(source)
        # An abstract kind as a field type: resolved by name, written back as its spec.
        return core_schema.no_info_plain_validator_function(
            cls._resolve,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value.spec()),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        if cls.name or not cls.kind:
            return handler(schema)
        return {"x-plugin-kind": cls.kind, "anyOf": [{"type": "string"}, {"type": "object"}]}

    @classmethod
    def _resolve(cls, value: Any) -> Plugin:
        if isinstance(value, cls):
            return value
        from harness.registry import resolve

        plugin = resolve(cls.kind, value)
        if not isinstance(plugin, cls):
            raise PluginError(f"{plugin.name!r} is not a {cls.__name__}")
        return plugin


def _forget_class_variables(plugin: type[Plugin]) -> None:
    """Removes the annotations of class attributes from a finished class, once Pydantic has read them.

    Otherwise Pydantic evaluates those of all parents again for each subclass, which took a third of the time that
    making the classes takes.
    """
    annotations = inspect.get_annotations(plugin)
    plugin.__declared__ = {k: v for k, v in annotations.items() if k in plugin.__class_vars__}
    plugin.__annotations__ = {k: v for k, v in annotations.items() if k not in plugin.__class_vars__}


_forget_class_variables(Plugin)


def parameter_error(plugin: type[Plugin], error: ValidationError) -> PluginError:
    """Pydantic's findings as one PluginError, each with its location, a plain sentence and the value."""
    from harness.findings import findings
    from harness.scenario_errors import sentences

    details = findings(plugin.name, plugin.model_fields, error)
    return PluginError(f"{plugin.kind} {plugin.name}: " + "; ".join(sentences(details)), details)


def default_error(
    plugin: type[Plugin], error: ValidationError, given: Mapping[str, Any]
) -> PluginError | None:
    """The error where the class's own defaults are invalid, which is no fault of the scenario; None: they are valid."""
    from harness.findings import findings
    from harness.scenario_errors import sentences

    wrong = {item["loc"][0] for item in error.errors() if item["loc"] and item["type"] != "missing"}
    wrong &= plugin.model_fields.keys() - given.keys()
    details = [d for d in findings(plugin.name, plugin.model_fields, error) if d[0] and d[0][0] in wrong]
    if not details:
        return None
    return PluginError(
        f"{plugin.kind} {plugin.name}: its own default is not allowed: {'; '.join(sentences(details))}. Correct it in "
        f"the class {plugin.__name__}"
    )


def _check_plain(plugin: Plugin) -> None:
    """Raises PluginError where a parameter's value, such as a function, cannot be written into a scenario."""
    with suppress(PydanticSerializationError):
        plugin.model_dump(mode="json")
        return
    for name in type(plugin).model_fields:  # which of them it is
        try:
            plugin.model_dump(mode="json", include={name})
        except PydanticSerializationError:
            raise PluginError(
                f"{plugin.kind} {plugin.name}: the parameter {name!r} is {getattr(plugin, name)!r:.60}, which cannot "
                "be written into a scenario: make it a number, a text, a list or another plugin, and what is no "
                f"parameter a method of the class {type(plugin).__name__}"
            ) from None


class Shown:
    """How plugins, nested ones included, write their names and labels inside a `with` block.

    names: the full names of the classes whose short name is ambiguous. full: whether labels hold values in full,
    however long.
    """

    def __init__(self, names: Mapping[type[Plugin], str] | None = None, full: bool = False) -> None:
        self.names = names or {}
        self.full = full

    def name_of(self, plugin: Plugin) -> str:
        return self.names.get(type(plugin), plugin.name)

    def __enter__(self) -> None:
        self._token = _SHOWN.set(self)

    def __exit__(self, *_: object) -> None:
        _SHOWN.reset(self._token)


_PLAIN = Shown()
_SHOWN: ContextVar[Shown] = ContextVar("shown", default=_PLAIN)
_shown = _SHOWN.get


def _short(value: Any) -> str:
    if isinstance(value, Plugin):
        return value.label()
    if isinstance(value, float):
        return short(value, _shown().full)
    if isinstance(value, tuple | list):
        return f"[{','.join(map(_short, value))}]"
    return str(value) if _shown().full else str(value).replace(" ", "")
