"""Pydantic's validation errors about named parameters, in words that fit parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from harness.errors import PluginError, did_you_mean, misspelt, quoted

if TYPE_CHECKING:
    from pydantic import ValidationError

Finding = tuple[tuple[str | int, ...], str, Any]  # where, what is wrong, the value


def findings(name: str, parameters: Iterable[str], error: ValidationError) -> list[Finding]:
    """What `error` finds wrong with the parameters of `name`, a plugin or an option, and of what is nested in it.

    parameters: the names of its parameters, from which the nearest is suggested for an unknown one.
    """
    found: dict[tuple[tuple[str | int, ...], str], Any] = {}
    items, parameters = error.errors(), list(parameters)
    unknown = [str(i["loc"][-1]) for i in items if i["type"] == "extra_forbidden" and len(i["loc"]) == 1]
    missing = [str(i["loc"][-1]) for i in items if i["type"] == "missing" and len(i["loc"]) == 1]
    meant = misspelt(unknown, missing, parameters)
    for item in items:
        location = tuple(item["loc"])
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, PluginError) and cause.details:
            found |= {((*location, *inner), message): value for inner, message, value in cause.details}
            continue
        if item["type"] == "extra_forbidden":
            message = f"{name} has no parameter {quoted(location[-1])}; {did_you_mean(str(location[-1]), parameters)}"
        elif item["type"] == "missing" and isinstance(location[-1], int):  # of a list of fixed length
            location = location[:-1]
            message = f"list should have at least {_length(items, location)} items"
        elif item["type"] == "missing":
            if len(location) == 1 and location[0] in meant:
                continue
            message = f"{name} needs the parameter {location[-1]!r}"
        elif item["type"] == "value_error":
            message = str(cause)
        else:
            message = item["msg"][0].lower() + item["msg"][1:]
        found[location, message] = item["input"]
    return [(location, message, value) for (location, message), value in found.items()]


def _length(items: Iterable[Any], location: tuple[str | int, ...]) -> int:
    """How many values the list at a location needs, as the last missing one tells."""
    return 1 + max(i["loc"][-1] for i in items if i["type"] == "missing" and tuple(i["loc"][:-1]) == location)
