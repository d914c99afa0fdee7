"""Plugins as parameters of plugins, at whatever depth."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from harness.contracts.base import Plugin


def plugins_in(value: Any) -> Iterator[Plugin]:
    """The plugins that a value holds, in order, without those nested in them; the value itself if it is a plugin."""
    if isinstance(value, Plugin):
        yield value
    elif (inner := members(value)) is not None:
        for item in inner.values() if isinstance(inner, dict) else inner:
            yield from plugins_in(item)


def with_nested(plugin: Plugin) -> Iterator[Plugin]:
    """A plugin, and then all plugins nested in it, at any depth."""
    yield plugin
    for name in type(plugin).model_fields:
        for inner in plugins_in(getattr(plugin, name)):
            yield from with_nested(inner)


def members(value: Any) -> dict[str, Any] | list[Any] | None:
    """What a container, model or dataclass holds, by name or in order; None for anything else."""
    if isinstance(value, BaseModel):
        return {name: getattr(value, name) for name in type(value).model_fields}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)  # the order of a set differs from process to process
    return list(value) if isinstance(value, tuple | list) else None
