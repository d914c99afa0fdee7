"""The names of the kinds of plugins and of their sorts. Imports nothing: `harness list` needs no more than this."""

from __future__ import annotations

KINDS = (
    "dataset",
    "partitioner",
    "model",
    "defence",
    "aggregator",
    "compressor",
    "attack",
    "metric",
    "tracker",
)
# Full name of a sort -> its kind, and the short name that `harness list` shows for the sort.
SORTS = {
    "pre-aggregator": ("aggregator", "pre"),
    "model-compressor": ("compressor", "model"),
    "update-compressor": ("compressor", "update"),
    "evasion-attack": ("attack", "evasion"),
    "poisoning-attack": ("attack", "poisoning"),
    "byzantine-attack": ("attack", "byzantine"),
    "privacy-attack": ("attack", "privacy"),
}

# Short name of a sort -> (kind, sort), except where a kind has that name.
SHORT = {sort: (kind, sort) for kind, sort in SORTS.values() if sort not in KINDS}


def kind_of(name: str) -> tuple[str, str | None]:
    """(kind, sort) for the name of a sort, such as `evasion-attack` or `evasion`; (name, None) for any other name."""
    return SORTS.get(name) or SHORT.get(name) or (name, None)
