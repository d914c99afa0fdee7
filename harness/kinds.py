"""The kinds of plugins and their sorts, by name. Light: `harness list` needs no more."""

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
# What a kind has of its own sorts -> the kind, and what `harness list` calls the sort.
SORTS = {
    "pre-aggregator": ("aggregator", "pre"),
    "model-compressor": ("compressor", "model"),
    "update-compressor": ("compressor", "update"),
    "evasion-attack": ("attack", "evasion"),
    "poisoning-attack": ("attack", "poisoning"),
    "byzantine-attack": ("attack", "byzantine"),
    "privacy-attack": ("attack", "privacy"),
}

# A sort by the name that `harness list` has for it, where no kind is called so.
SHORT = {sort: (kind, sort) for kind, sort in SORTS.values() if sort not in KINDS}


def kind_of(name: str) -> tuple[str, str | None]:
    """A kind's name, or a sort's, such as `evasion-attack` or `evasion`, as (kind, sort); any other stays as it is."""
    return SORTS.get(name) or SHORT.get(name) or (name, None)
