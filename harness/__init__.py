"""A benchmark harness for private, robust and scalable federated learning.

    harness.plugins("aggregator")                     # name -> class
    harness.create("aggregator", "krum", f=2)         # a validated instance
    harness.run("scenarios/quickstart.yaml")          # scores every combination

Importing this package is cheap: torch is loaded where it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness._version import __version__
from harness.errors import HarnessError, NotApplicable, PluginError, ScenarioError

if TYPE_CHECKING:
    from harness.contracts.base import Plugin
    from harness.engine import run

__all__ = [
    "HarnessError",
    "NotApplicable",
    "PluginError",
    "ScenarioError",
    "__version__",
    "create",
    "plugins",
    "run",
]


def plugins(kind: str) -> dict[str, type[Plugin]]:
    """The plugins of a kind, name -> class; `distribution/name` where several packages share a name."""
    from harness.registry import registry

    loaded = registry()
    entries = list(loaded.entries(kind))
    names = [entry.plugin.name for entry in entries]
    return {
        entry.plugin.name
        if names.count(entry.plugin.name) == 1
        else f"{entry.distribution}/{entry.plugin.name}": entry.plugin
        for entry in entries
    }


def create(kind: str, name: str, **parameters: Any) -> Any:
    """A validated plugin. Raises PluginError for an unknown name or a bad parameter, with the nearest choice."""
    from harness.registry import registry

    return registry().create(kind, name, parameters)


def __getattr__(name: str) -> Any:
    if name == "run":
        from harness.engine import run

        return run
    raise AttributeError(f"module 'harness' has no attribute {name!r}")
