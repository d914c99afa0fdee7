"""Values that a contract lists in a `Literal`: what they may be is read off its annotations, and asked in one way."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, ClassVar, get_args, get_origin

from harness.errors import PluginError, did_you_mean


def choices(owner: type, annotations: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Name -> the values that it may have, of those that a class annotates with a Literal."""
    found = {}
    for name, written in annotations.items():
        if "Literal[" in str(written):
            # Only these are evaluated: others may name what is imported for type checkers alone.
            hint = eval(written, vars(sys.modules[owner.__module__])) if isinstance(written, str) else written
            found[name] = get_args(get_args(hint)[0] if get_origin(hint) is ClassVar else hint)
    return found


def check_choice(what: str, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raises PluginError, with the nearest that there is, for a value that is none of those allowed."""
    if value not in allowed:
        raise PluginError(f"{what}: {name} = {value!r}; {did_you_mean(str(value), map(str, allowed))}")


class Chosen:
    """A dataclass whose Literals are held to: type checkers alone would not see what a plugin says."""

    _allowed: ClassVar[dict[str, tuple[Any, ...]]]

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        cls._allowed = choices(cls, cls.__annotations__)

    def __post_init__(self) -> None:
        for name, allowed in self._allowed.items():
            check_choice(type(self).__name__, name, getattr(self, name), allowed)
