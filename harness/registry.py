"""Finds, loads and isolates plugins; turns names into validated instances.

Every entry point of the group `harness` is registered as `distribution:entrypoint`, and loading,
registering and hook checking are guarded one by one: a broken package is listed as disabled with its
reason, and everything else works. Set HARNESS_LOAD_PLUGINS to load only named distributions beside
the built-ins (empty: none).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from harness import hookspecs, local_plugins, source_code
from harness.contracts.base import Plugin
from harness.entry_points import normalized, offers
from harness.errors import PluginError, did_you_mean, quoted
from harness.kinds import KINDS, SORTS
from harness.local_plugins import LocalFile
from harness.plugin_checks import check_api, check_class, declared_api, spellings


@dataclass(frozen=True)
class Entry:
    """A registered plugin class and where it comes from."""

    plugin: type[Plugin]
    distribution: str
    version: str
    file: LocalFile | None = None  # of a local plugin

    @property
    def source_hash(self) -> str:
        """sha256 of the plugin's code; see source_code.source_hash and, for a local plugin, LocalFile.sha256."""
        if self.file is not None:
            return self.file.sha256
        return source_code.source_hash(self.distribution, self.plugin.__module__)

    @property
    def source(self) -> tuple[str, int]:
        """(file, line) of the class, or its module name and 0 where there is no source."""
        try:
            file = inspect.getsourcefile(self.plugin) or self.plugin.__module__
            return file, inspect.getsourcelines(self.plugin)[1]
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
        self._versions: dict[str, str] = {}
        self._local: set[LocalFile] = set()  # files whose plugins are in `_entries`
        self._seen: frozenset[LocalFile] = frozenset()  # files whose plugins are found by name now

    # loading ------------------------------------------------------------------------------------

    def load_entry_points(self) -> None:
        """Load every installed entry point of the group, built-ins first."""
        for distribution, version, entry_point in offers():
            try:  # before importing it: with the wrong version an import may fail and say less
                check_api(declared_api(entry_point.module))
            except PluginError as error:
                self._disable(entry_point.name, distribution, version, _say(error))
                continue
            source_code.remember(entry_point.module)
            try:
                module = entry_point.load()
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # also SystemExit and the panics of extension modules
                self._disable(entry_point.name, distribution, version, f"import failed: {_say(error)}")
                continue
            self.add(module, entry_point.name, distribution, version)

    def add(self, module: ModuleType | object, name: str, distribution: str, version: str = "0") -> None:
        """Register one plugin module; anything wrong with it disables all of it, with the reason."""
        distribution = _normalized(distribution)
        identity = f"{distribution}:{name}"
        self._versions[distribution] = version
        try:
            classes = _classes(self.manager, module, identity)
            self._commit([Entry(plugin, distribution, version) for plugin in classes])
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            if self.manager.has_plugin(identity):
                self.manager.unregister(name=identity)
            self._disable(name, distribution, version, _say(error))

    def load_file(self, path: str | Path, folder: Path | None = None) -> LocalFile:
        """Register the plugins of one Python file as it is now; their names resolve inside `seeing`, or after `see`.

        path: relative to folder, or else to the working directory. A file is never loaded unless it is named.
        Raises PluginError with the line of what is wrong.
        """
        file = local_plugins.read(path, folder)
        if file in self._local:
            return file
        module = local_plugins.import_file(file, str(path))
        # A manager of its own: the file's hooks are checked like a package's, but do not outlast an edit of the file.
        manager = pluggy.PluginManager(hookspecs.PROJECT)
        manager.add_hookspecs(hookspecs)
        try:
            check_api(getattr(module, "requires_api", None))
            classes = _classes(manager, module, file.distribution)
            others = {caller.name for caller in manager.get_hookcallers(module) or ()} - {"harness_register"}
            if others:
                raise PluginError(
                    f"a local plugin has the hook harness_register alone, not {', '.join(sorted(others))}; "
                    "watch runs with a tracker, or make a package with `harness plugin new`"
                )
            self._commit([Entry(plugin, file.distribution, file.version, file) for plugin in classes])
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            text = str(error) if isinstance(error, PluginError) else _say(error)
            raise PluginError(f"{path}{local_plugins.line_of(file, error)}: {text}") from error
        self._local.add(file)
        return file

    @contextmanager
    def seeing(self, files: Iterable[LocalFile]) -> Iterator[None]:
        """Within this context, names of the plugins in these files resolve too."""
        before = self._seen
        for file in files:
            self.see(file)
        try:
            yield
        finally:
            self._seen = before

    def local_files(self) -> list[LocalFile]:
        """Every local file loaded so far, for processes that need their classes."""
        return sorted(self._local, key=lambda file: file.module)

    def see(self, file: LocalFile) -> None:
        """From now on, names of the plugins in this file resolve, and no longer those of the file as it was before."""
        self._seen = frozenset(f for f in self._seen if f.path != file.path) | {file}

    def _commit(self, staged: list[Entry]) -> None:
        taken = {
            (kind, name, entry.distribution, entry.file)
            for kind, names in self._entries.items()
            for name, entries in names.items()
            for entry in entries
        }
        # All are checked before the first is kept: a package is registered whole or not at all.
        for entry in staged:
            for name in spellings(entry.plugin):
                mark = (entry.plugin.kind, name, entry.distribution, entry.file)
                if mark in taken:
                    raise PluginError(f"{entry.distribution} registers {entry.plugin.kind} {name!r} twice")
                taken.add(mark)
        for entry in staged:
            for name in spellings(entry.plugin):
                self._entries[entry.plugin.kind].setdefault(name, []).append(entry)

    def _disable(self, name: str, distribution: str, version: str, reason: str) -> None:
        self.disabled.append(Disabled(name, distribution, version, reason))

    def add_commands(self, add: Callable[[Callable[..., object], str], None]) -> None:
        """Call `add(hook, distribution)` for every harness_commands hook; one that raises is disabled."""
        for implementation in self.manager.hook.harness_commands.get_hookimpls():
            distribution, _, name = implementation.plugin_name.partition(":")
            try:
                add(implementation.function, distribution)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                reason = f"its commands are left out: {_say(error)}"
                self._disable(name, distribution, self._versions.get(distribution, "0"), reason)

    # looking up ---------------------------------------------------------------------------------

    def _visible(self, kind: str, name: str) -> list[Entry]:
        """What a short name may mean: plugins of packages, and of the local files that are made visible by `see`."""
        return [e for e in self._entries[kind].get(name, ()) if e.file is None or e.file in self._seen]

    def entries(self, kind: str) -> Iterator[Entry]:
        """Every plugin of a kind, by name; aliases are not repeated."""
        for name in sorted(self._entries[_kind(kind)]):
            yield from (e for e in self._visible(kind, name) if e.plugin.name == name)

    def names(self, kind: str) -> list[str]:
        """Every name and alias that resolves, in short form."""
        return sorted(name for name in self._entries[_kind(kind)] if self._visible(kind, name))

    def find(self, kind: str, name: str) -> Entry:
        """The plugin called `name` or `distribution/name`. Raises PluginError with the nearest names."""
        _kind(kind)
        distribution, _, short = name.rpartition("/")
        distribution = _normalized(distribution)
        known = self._visible(kind, short)
        entries = [e for e in known if not distribution or e.distribution == distribution]
        if len(entries) == 1:
            return entries[0]
        options = " or ".join(dict.fromkeys(f"{e.distribution}/{short}" for e in entries or known))
        if len({e.distribution for e in entries}) == 1:
            files = " and ".join(sorted(str(e.file.path) for e in entries if e.file))
            raise PluginError(f"{kind} {name!r} is in two files of one name, {files}; rename one")
        if entries:
            raise PluginError(f"{kind} {name!r} is in several packages; say {options}")
        if known:
            text = f"no package {quoted(distribution)} has the {kind} {short!r}; there is {options}"
        elif name == "none" and kind in ("defence", "compressor"):  # which axes of a scenario have
            text = f"unknown {kind} 'none'; in a parameter that takes a list, [] is none"
        else:
            text = f"unknown {kind} {quoted(name)}; {did_you_mean(short, self.names(kind))}"
        raise PluginError(text + self._elsewhere(kind, short, distribution))

    def _elsewhere(self, kind: str, name: str, distribution: str) -> str:
        other = [k for k in KINDS if k != kind and self._visible(k, name)]
        article = "an" if other and other[0][0] in "aeiou" else "a"
        text = f" ({name!r} is {article} {other[0]})" if other else ""
        return text + self.disabled_note(name, distribution)

    def disabled_note(self, name: str, distribution: str = "") -> str:
        """For messages: disabled packages that may hold a plugin that was not found.

        Those of its name or distribution come with their reason. Where there is none, and the distribution was not
        given, all others are named.
        """
        distribution = _normalized(distribution)
        meant = [d for d in self.disabled if distribution == d.distribution or d.name == name]
        others = [] if distribution else [d.distribution for d in self.disabled if d not in meant]
        note = "".join(f" ({d.distribution}:{d.name} is disabled: {d.reason})" for d in meant)
        if not meant and others:
            packages = ", ".join(dict.fromkeys(others))
            note = f" (disabled, so that its plugins are not found: {packages}; see `harness list`)"
        return note

    def create(self, kind: str, name: str, parameters: dict[str, Any] | None = None) -> Plugin:
        """A validated instance. Raises PluginError."""
        return self.find(kind, name).plugin.create(parameters)

    def entry_of(self, plugin: Plugin | type[Plugin]) -> Entry:
        """Where a plugin comes from. Raises PluginError if it was never registered."""
        if (entry := self._registered(plugin)) is None:
            raise PluginError(f"{plugin.kind} {plugin.name!r} is not registered")
        return entry

    def knows(self, plugin: Plugin | type[Plugin]) -> bool:
        """Whether a plugin was registered. One handed over in Python need not be, where it decides no score."""
        return self._registered(plugin) is not None

    def _registered(self, plugin: Plugin | type[Plugin]) -> Entry | None:
        cls = plugin if isinstance(plugin, type) else type(plugin)
        address = (cls.__module__, cls.__qualname__)
        for entry in self._entries[cls.kind].get(cls.name, []):
            # By module and name too: importing a module again makes new class objects for the same classes.
            if entry.plugin is cls or (entry.plugin.__module__, entry.plugin.__qualname__) == address:
                return entry
        return None

    def qualified(self, plugin: Plugin) -> str:
        """A plugin's name, with the distribution in front where the short name is ambiguous."""
        own = self.entry_of(plugin)
        rivals = [entry for entry in self._visible(plugin.kind, plugin.name) if entry is not own]
        return f"{own.distribution}/{plugin.name}" if rivals else plugin.name


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
    if isinstance(spec, dict) and spec:
        found = f"a mapping of {len(spec)} keys ({', '.join(map(str, spec))})"
    else:
        found = {type(None): "empty", list: "a list", dict: "an empty mapping"}.get(type(spec)) or repr(spec)
    article = "an" if kind[0] in "aeiou" else "a"
    raise PluginError(f"{article} {kind} is `name` or `name: {{parameter: value}}`, not {found}")


def _known_hooks(manager: pluggy.PluginManager) -> None:
    """Raises PluginError, with the nearest hook, where a plugin marks a function whose name is no hook's."""
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        found = re.search(r"unknown hook '(\w+)'", str(error))
        if found is None:
            raise
        hooks = [name for name in vars(hookspecs) if name.startswith("harness_")]
        raise PluginError(f"unknown hook {found[1]!r}; {did_you_mean(found[1], hooks)}") from error


def _required(function: Callable[..., Any]) -> list[str]:
    """Names of the positional parameters without a default: those that a hook has to be given."""
    found = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [one.name for one in found if one.kind in kinds and one.default is one.empty]


def _check_parameters(manager: pluggy.PluginManager, module: ModuleType | object) -> None:
    """Raises PluginError where a hook needs an argument that it is not given, or harness_register takes none."""
    for name in dir(module):
        specification = vars(hookspecs).get(name)
        if specification is None or manager.parse_hookimpl_opts(module, name) is None:
            continue
        takes, given = map(_required, (getattr(module, name), specification))
        if not set(takes) <= set(given) or (specification is hookspecs.harness_register and not takes):
            raise PluginError(f"{name}({', '.join(takes)}) has to be {name}({', '.join(given)})")


def _classes(manager: pluggy.PluginManager, module: ModuleType | object, identity: str) -> list[type[Plugin]]:
    """The plugin classes that a module registers, each checked. Raises for whatever is wrong with it."""
    found: list[type[Plugin]] = []

    def register(plugin: type[Plugin]) -> None:
        check_class(plugin)
        found.append(plugin)

    _check_parameters(manager, module)
    manager.register(module, identity)
    _known_hooks(manager)
    if not manager.get_hookcallers(module):
        raise PluginError("it implements no hook; mark harness_register(register) with @hookimpl")
    for implementation in manager.hook.harness_register.get_hookimpls():
        if implementation.plugin_name == identity:
            implementation.function(register)
    return found


def _normalized(distribution: str) -> str:
    """A package's name in the form in which names are compared; that of a local file stays as it is."""
    return distribution if distribution.startswith(local_plugins.PREFIX) else normalized(distribution)


def _kind(kind: str) -> str:
    if kind in SORTS:
        raise PluginError(f"unknown kind {kind!r}; it is a sort of {SORTS[kind][0]}: say {SORTS[kind][0]!r}")
    if kind not in KINDS:
        raise PluginError(f"unknown kind {quoted(kind)}; {did_you_mean(kind, KINDS)}")
    return kind


def _say(error: BaseException) -> str:
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else text[:299] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
