"""Whether another machine computes the same numbers as this one: its engine, plugins, numeric libraries and data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness import __version__
from harness.entry_points import BUILTIN
from harness.errors import PluginError
from harness.identity import libraries_of, library_version, library_versions
from harness.nesting import with_nested
from harness.plan import Plan
from harness.provenance import plugin_list
from harness.registry import registry
from harness.source_code import source_hash

if TYPE_CHECKING:
    from harness.contracts.metric import Metric


class Code(NamedTuple):
    """A version, and the sha256 of the sources."""

    version: str
    source: str


@dataclass(frozen=True)
class Identity:
    """What decides the numbers that a machine computes. plugins: by (kind, name, distribution)."""

    engine: Code
    libraries: dict[str, str]
    plugins: dict[tuple[str, str, str], Code]

    @classmethod
    def of(cls, plan: Plan, metrics: dict[str, tuple[Metric, ...]]) -> Identity:
        """This machine's identity, as far as it matters to a plan."""
        cells = [p.cell for p in plan.cells]
        plugins = {
            id(plugin): plugin
            for cell in cells
            for plugin in (
                cell.scenario.dataset,
                cell.scenario.model,
                cell.scenario.federation.partition,
                *cell.defences,
                *cell.aggregators,
                *cell.compressors,
                *([cell.attack] if cell.attack else []),
                *metrics[cell.scenario.name],
            )
        }
        found = {
            (item["kind"], item["name"], item["distribution"]): Code(item["version"], item["source"])
            for item in plugin_list(plugins.values())
        }
        libraries = library_versions()
        for part in (part for plugin in plugins.values() for part in with_nested(plugin)):
            libraries = libraries | libraries_of(part)
        return cls(_engine(), libraries, found)

    def differences(self) -> list[str]:
        """How the machine that this is called on differs, one line per difference.

        The lines call that machine `there`, and the one that this identity describes `here`.
        """
        return [*self._differences()]

    def _differences(self) -> Iterator[str]:
        yield from _compare("the engine", _engine(), self.engine)
        for name, version in self.libraries.items():
            if (there := library_version(name)) != version:
                yield f"{name} {there} there, {version} here"
        for (kind, name, distribution), expected in self.plugins.items():
            try:
                entry = registry().find(kind, f"{distribution}/{name}")
            except PluginError as error:
                yield f"{kind} {name} of {distribution} {expected.version} is missing there: {error}"
                continue
            code = Code(entry.version, source_hash(entry.distribution, entry.plugin.__module__))
            yield from _compare(f"{kind} {name} of {distribution}", code, expected)


def data_differences(datasets: list[tuple[Any, Path, str]]) -> list[str]:
    """The data sets that this machine cannot read or has with other content, one line each.

    datasets: (plugin, root, expected fingerprint).
    """
    found = []
    for dataset, root, fingerprint in datasets:
        try:
            there = dataset.fingerprint(root)
        except Exception as error:  # a plugin may raise anything
            found.append(f"the data set {dataset.label()} cannot be read there: {error}")
            continue
        if there != fingerprint:
            found.append(
                f"the data set {dataset.label()} has another content: {there[:12]} there, {fingerprint[:12]} here"
            )
    return found


def _engine() -> Code:
    return Code(__version__, source_hash(BUILTIN, "harness"))


def _compare(what: str, there: Code, here: Code) -> Iterator[str]:
    if there.version != here.version:
        yield f"{what} {there.version} there, {here.version} here"
    elif there.source != here.source:
        yield f"{what} {here.version} has other sources: {there.source[:12]} there, {here.source[:12]} here"
