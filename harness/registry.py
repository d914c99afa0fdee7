"""Finds, loads and isolates plugins; turns names into validated instances.

Every entry point of the group `harness` is registered as `distribution:entrypoint`, and loading,
registering and hook checking are guarded one by one: a broken package is listed as disabled with its
reason, and everything else works. Set HARNESS_LOAD_PLUGINS to load only named distributions beside
the built-ins (empty: none).
"""

from __future__ import annotations

import importlib.metadata
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from harness import hookspecs
from harness.contracts.base import KINDS, Plugin
from harness.errors import PluginError, did_you_mean

GROUP = "harness"
BUILTIN = "psr-harness"


@dataclass(frozen=True)
class Entry:
    """A registered plugin class and where it comes from."""

    plugin: type[Plugin]
    distribution: str
    version: str

    @property
    def source(self) -> tuple[str, int]:
        """(file, line) of the class, or its module name and 0 where there is no source."""
        try:
            return inspect.getsourcefile(self.plugin) or self.plugin.__module__, inspect.getsourcelines(self.plugin)[1]
        except (OSError, TypeError):
            return self.plugin.__module__, 0


@dataclass(frozen=True)
class Disabled:
    """An entry point that could not be used."""

    name: str
    distribution: str
    version: str
    reason: str


class Registry:
    """All plugins of one process."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.disabled: list[Disabled] = []
        self._entries: dict[str, dict[str, list[Entry]]] = {kind: {} for kind in KINDS}

    # loading ------------------------------------------------------------------------------------

    def load_entry_points(self) -> None:
        """Load every installed entry point of the group, built-ins first."""
        only = os.environ.get("HARNESS_LOAD_PLUGINS")
        wanted = None if only is None else {name.strip() for name in only.split(",") if name.strip()}
        found = {}
        for entry_point in importlib.metadata.entry_points(group=GROUP):
            distribution = entry_point.dist.name if entry_point.dist else "unknown"
            found[(distribution, entry_point.name)] = entry_point  # an editable install may be seen twice
        for (distribution, _), entry_point in sorted(found.items(), key=lambda i: (i[0][0] != BUILTIN, i[0])):
            if wanted is not None and distribution != BUILTIN and distribution not in wanted:
                continue
            version = entry_point.dist.version if entry_point.dist else "0"
            try:
                module = entry_point.load()
            except (Exception, SystemExit) as error:
                self._disable(entry_point.name, distribution, version, f"import failed: {_say(error)}")
                continue
            self.add(module, entry_point.name, distribution, version)

    def add(self, module: ModuleType | object, name: str, distribution: str, version: str = "0") -> None:
        """Register one plugin module; anything wrong with it disables it, with the reason, and undoes its part."""
        identity = f"{distribution}:{name}"
        staged: list[Entry] = []

        def register(plugin: type[Plugin]) -> None:
            _check_class(plugin)
            staged.append(Entry(plugin, distribution, version))

        try:
            self.manager.register(module, identity)
            self.manager.check_pending()
            for implementation in self.manager.hook.harness_register.get_hookimpls():
                if implementation.plugin_name == identity:
                    implementation.function(register)
            self._commit(staged)
        except (Exception, SystemExit) as error:
            if self.manager.has_plugin(identity):
                self.manager.unregister(name=identity)
            self._disable(name, distribution, version, _say(error))

    def _commit(self, staged: list[Entry]) -> None:
        for entry in staged:
            names = self._entries[entry.plugin.kind]
            for name in (entry.plugin.name, *entry.plugin.aliases):
                if any(e.distribution == entry.distribution for e in names.get(name, [])):
                    raise PluginError(f"{entry.distribution} registers {entry.plugin.kind} {name!r} twice")
                names.setdefault(name, [])
            for name in (entry.plugin.name, *entry.plugin.aliases):
                names[name] = [*names[name], entry]

    def _disable(self, name: str, distribution: str, version: str, reason: str) -> None:
        self.disabled.append(Disabled(name, distribution, version, reason))

    # looking up ---------------------------------------------------------------------------------

    def entries(self, kind: str) -> Iterator[Entry]:
        """Every plugin of a kind, by name; aliases are not repeated."""
        for name, entries in sorted(self._entries[_kind(kind)].items()):
            yield from (e for e in entries if e.plugin.name == name)

    def names(self, kind: str) -> list[str]:
        """Every name and alias that resolves, in short form."""
        return sorted(name for name, entries in self._entries[_kind(kind)].items() if entries)

    def find(self, kind: str, name: str) -> Entry:
        """The plugin called `name` or `distribution/name`. Raises PluginError with the nearest names."""
        names = self._entries[_kind(kind)]
        distribution, _, short = name.rpartition("/")
        entries = [e for e in names.get(short, []) if not distribution or e.distribution == distribution]
        if len(entries) == 1:
            return entries[0]
        if entries:
            options = " or ".join(f"{e.distribution}/{short}" for e in entries)
            raise PluginError(f"{kind} {name!r} is in several packages; say {options}")
        if distribution and names.get(short):
            options = ", ".join(e.distribution for e in names[short])
            raise PluginError(f"no package {distribution!r} has the {kind} {short!r}; {options} has")
        raise PluginError(f"unknown {kind} {name!r}; {did_you_mean(short, self.names(kind))}{self._elsewhere(kind, short)}")

    def _elsewhere(self, kind: str, name: str) -> str:
        other = [k for k in KINDS if k != kind and self._entries[k].get(name)]
        disabled = [d for d in self.disabled if d.name == name]
        text = f" ({name!r} is a {other[0]})" if other else ""
        return text + "".join(f" ({d.distribution}:{d.name} is disabled: {d.reason})" for d in disabled)

    def create(self, kind: str, name: str, parameters: dict[str, Any] | None = None) -> Plugin:
        """A validated instance. Raises PluginError."""
        return self.find(kind, name).plugin.create(parameters)

    def entry_of(self, plugin: Plugin | type[Plugin]) -> Entry:
        """Where a plugin comes from. Raises PluginError if it was never registered."""
        cls = plugin if isinstance(plugin, type) else type(plugin)
        for entry in self._entries[cls.kind].get(cls.name, []):
            if entry.plugin is cls or entry.plugin.__qualname__ == cls.__qualname__:
                return entry
        raise PluginError(f"{cls.kind} {cls.name!r} is not registered")

    def qualified(self, plugin: Plugin) -> str:
        """Its name, with the distribution in front where the short name is ambiguous."""
        entries = self._entries[plugin.kind].get(plugin.name, [])
        return plugin.name if len(entries) < 2 else f"{self.entry_of(plugin).distribution}/{plugin.name}"


@cache
def registry() -> Registry:
    """This process's registry, loaded at the first call."""
    loaded = Registry()
    loaded.load_entry_points()
    return loaded


def resolve(kind: str, spec: str | dict[str, Any]) -> Plugin:
    """`name` or `{name: parameters}` -> instance. Raises PluginError."""
    name, parameters = split_spec(kind, spec)
    try:
        return registry().create(kind, name, parameters)
    except PluginError as error:
        error.details = [((name, *loc), message, value) for loc, message, value in error.details]
        raise


def split_spec(kind: str, spec: Any) -> tuple[str, dict[str, Any]]:
    """(name, parameters) of a spec as it stands in YAML. Raises PluginError for any other shape."""
    if isinstance(spec, str):
        return spec, {}
    if isinstance(spec, dict) and len(spec) == 1:
        name, parameters = next(iter(spec.items()))
        if parameters is None:
            return str(name), {}
        if isinstance(parameters, dict):
            return str(name), parameters
        raise PluginError(f"the parameters of {kind} {name!r} must be a mapping such as {{name: value}}")
    raise PluginError(f"a {kind} is `name` or `name: {{parameter: value}}`, not {spec!r}")


@cache
def source_hash(distribution: str, module: str) -> str:
    """sha256 over the Python sources of the top-level package that holds a module: what decides its behaviour."""
    import hashlib
    import sys

    top = sys.modules.get(module.split(".")[0])
    digest = hashlib.sha256(distribution.encode())
    roots = [Path(p) for p in getattr(top, "__path__", [])]
    files = sorted(f for root in roots for f in root.rglob("*.py")) or [
        Path(f) for f in [getattr(top, "__file__", None)] if f
    ]
    for file in files:
        base = next((root for root in roots if root in file.parents), file.parent)
        digest.update(str(file.relative_to(base)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _check_class(plugin: Any) -> None:
    if not (isinstance(plugin, type) and issubclass(plugin, Plugin)):
        raise PluginError(f"register() takes plugin classes, not {plugin!r}")
    if plugin.kind not in KINDS or not plugin.name:
        raise PluginError(f"{plugin.__qualname__} needs a kind and a name")
    if "/" in plugin.name or plugin.name != plugin.name.strip():
        raise PluginError(f"{plugin.__qualname__}: the name {plugin.name!r} may not hold '/' or outer spaces")
    if inspect.isabstract(plugin):
        missing = ", ".join(sorted(plugin.__abstractmethods__))
        raise PluginError(f"{plugin.kind} {plugin.name!r} does not implement {missing}")


def _kind(kind: str) -> str:
    if kind not in KINDS:
        raise PluginError(f"unknown kind {kind!r}; {did_you_mean(kind, KINDS)}")
    return kind


def _say(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


RegisterFn = Callable[[type[Plugin]], None]
