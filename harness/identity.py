"""What decides numbers beside settings and seeds, as JSON values: the code of plugins, the numeric libraries."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from harness.contracts.base import Plugin
from harness.errors import HarnessError
from harness.registry import registry

LIBRARIES = ("torch", "numpy", "opacus", "torchattacks", "torch-pruning", "scikit-learn", "scipy", "pillow")


def identity_of(plugin: Plugin) -> dict[str, Any]:
    """What decides a plugin's behaviour: name, parameters, package, version, source; nested plugins' too."""
    entry = registry().entry_of(plugin)
    values = [getattr(plugin, f) for f in type(plugin).model_fields]
    flat = [item for v in values for item in (v if isinstance(v, tuple | list) else (v,))]
    nested = [identity_of(item) for item in flat if isinstance(item, Plugin)]
    return {
        "kind": plugin.kind,
        "name": plugin.name,
        "parameters": plugin.parameters(),
        "distribution": entry.distribution,
        "version": entry.version,
        "source": entry.source_hash,
        "nested": nested,
    }


def identities(plugins: Sequence[Plugin]) -> list[dict[str, Any]]:
    """identity_of each."""
    return [identity_of(p) for p in plugins]


@cache
def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that numbers depend on."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


@cache
def engine_version(engine: str) -> str:
    """The installed version of what trains federations. Raises HarnessError where it is not installed."""
    try:
        return importlib.metadata.version({"flower": "flwr"}[engine])
    except importlib.metadata.PackageNotFoundError:
        raise HarnessError(
            f"engine: {engine} needs an extra that is not installed: pip install 'psr-harness[{engine}]'"
        ) from None


def digest(value: Any) -> str:
    """sha256 of canonical JSON."""
    return sha256(canonical(value))


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values, equal texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def sha256(text: str) -> str:
    """The hash of a text, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()
