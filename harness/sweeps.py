"""Sweeps: `{sweep: [1, 4, 8]}` anywhere in an axis value stands for several values."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from typing import Any

from harness.yaml_loader import Location

MAX_SWEEP = 1000  # values that one item may expand to

Choices = dict[Location, int]  # place of a sweep -> the item taken of it


def variants(node: Any, path: Location) -> Iterator[tuple[Any, Choices]]:
    """The value for every combination of the sweeps in a node, in file order, with the item taken of each sweep."""
    if isinstance(node, dict) and "sweep" in node:
        for i, item in enumerate(node["sweep"]):
            for value, choices in variants(item, (*path, "sweep", i)):
                yield value, {path: i, **choices}
    elif isinstance(node, (dict, list)):
        pairs = list(node.items()) if isinstance(node, dict) else list(enumerate(node))
        for combination in product(*(list(variants(item, (*path, key))) for key, item in pairs)):
            values = [value for value, _ in combination]
            choices = {place: i for _, chosen in combination for place, i in chosen.items()}
            yield (dict(zip(node, values, strict=True)) if isinstance(node, dict) else values), choices
    else:
        yield node, {}


def count(node: Any) -> int:
    if isinstance(node, dict) and "sweep" in node:
        return sum(map(count, node["sweep"]))
    if isinstance(node, (dict, list)):
        return prod(map(count, node.values() if isinstance(node, dict) else node))
    return 1


def walk(node: Any, path: Location) -> Iterator[tuple[Location, Any]]:
    yield path, node
    if isinstance(node, (dict, list)):
        for key, item in node.items() if isinstance(node, dict) else enumerate(node):
            yield from walk(item, (*path, key))


def origin(path: Location, choices: Choices) -> Location:
    """Where an expanded value stands in the file: the item taken of its last sweep, or the axis item itself."""
    return (*(place := list(choices)[-1]), "sweep", choices[place]) if choices else path
