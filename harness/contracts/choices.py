"""Values that a contract restricts with a `Literal`: read off its annotations and checked in one place."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, ClassVar, get_args, get_origin

from harness.errors import PluginError, did_you_mean


def choices(owner: type, annotations: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Name -> the allowed values, for each name that a class annotates with a Literal."""
    found = {}
    for name, written in annotations.items():
        if "Literal[" in str(written):
            # Other annotations are not evaluated: they may use names that only type checkers import.
            hint = eval(written, vars(sys.modules[owner.__module__])) if isinstance(written, str) else written
            found[name] = get_args(get_args(hint)[0] if get_origin(hint) is ClassVar else hint)
    return found


def check_choice(what: str, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raises PluginError, with the nearest allowed value, for a value that is not allowed."""
    if value not in allowed:
        raise PluginError(f"{what}: {name} = {value!r}; {did_you_mean(str(value), map(str, allowed))}")


class Chosen:
    """Base of dataclasses that check their Literal fields at run time, as plugin authors may run no type checker."""

    _allowed: ClassVar[dict[str, tuple[Any, ...]]]

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        cls._allowed = choices(cls, cls.__annotations__)

    def __post_init__(self) -> None:
        for name, allowed in self._allowed.items():
            check_choice(type(self).__name__, name, getattr(self, name), allowed)
