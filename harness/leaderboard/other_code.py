"""Which plugins of a submission have other code than what is installed here.

A hash does not show what was hashed: one that is unknown here may be of other code, or made up. So a submission with
such a hash is never verified, and numbers are compared less strictly only in the cells that use that plugin.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from harness.errors import HarnessError
from harness.leaderboard.publishable import line
from harness.leaderboard.submission import Plugin, Submission
from harness.registry import registry


def other_code(submission: Submission, where: str = "the file") -> list[str]:
    """Plugins whose version or source is not what is installed here, one sentence per package and its versions."""
    return _other_plugins(submission.plugins, where)


def records_of_other_code(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The same, of the plugins behind records of a store."""
    every = {tuple(item.items()): item for record in records for item in record["provenance"]["plugins"]}
    return _other_plugins(map(Plugin.model_validate, every.values()), "the store")


def _other_plugins(plugins: Iterable[Plugin], where: str) -> list[str]:
    changed: dict[tuple[str, str, str | None], list[tuple[str, str, str | None]]] = {}
    for plugin in plugins:
        version, source = _installed(plugin) or (None, None)
        if (version, source) != (plugin.version, plugin.source):
            of_package = changed.setdefault((plugin.distribution, plugin.version, version), [])
            of_package.append((plugin.name, plugin.source, source))
    return [
        f"other code of {_named(names)} in {package}: {_said(there, theirs)} in {where}, {_said(here, ours)} here"
        for (package, there, here), plugins in changed.items()
        for names, theirs, ours in [zip(*plugins, strict=True)]
    ]


def lacking_packages(submission: Submission, besides: str) -> list[str]:
    """What the submission needs of packages other than `besides` and this installation lacks, in words, sorted."""
    found = set()
    for plugin in submission.plugins:
        installed = _installed(plugin)
        if plugin.distribution == besides or installed == (plugin.version, plugin.source):
            continue
        name, version = line(plugin.distribution), line(plugin.version)
        if installed is None:
            found.add(f"{name} {version}, which `harness list` does not show here")
        elif installed[0] == plugin.version:
            found.add(f"{name} {version} with other code than what is installed")
        else:
            found.add(f"{name} {version}, and {installed[0]} is installed")
    return sorted(found)


def unlisted(submission: Submission, record: Mapping[str, Any]) -> Iterator[str]:
    """The plugins, as `kind name`, that are behind a record made here and that the submission does not list."""
    listed = {(plugin.kind, plugin.name) for plugin in submission.plugins}
    for item in record["provenance"]["plugins"]:
        if (item["kind"], item["name"]) not in listed:
            yield f"{item['kind']} {item['name']}"


def same_code(submission: Submission, record: Mapping[str, Any]) -> bool:
    """Whether the submission lists every plugin behind a record made here, with the code that it has here.

    If it lists a plugin more than once, every entry must have that code.
    """
    for item in record["provenance"]["plugins"]:
        own = [p for p in submission.plugins if (p.kind, p.name) == (item["kind"], item["name"])]
        of_package = [p for p in own if p.distribution == item["distribution"]]
        here = item["version"], item["source"]
        if not of_package or any((p.version, p.source) != here for p in of_package):
            return False
    return True


def _installed(plugin: Plugin) -> tuple[str, str] | None:
    """Version and source of that package's plugin as installed here; None if it is not."""
    try:
        entry = registry().find(plugin.kind, f"{plugin.distribution}/{plugin.name}")
        return entry.version, entry.source_hash
    except HarnessError:  # not installed, or edited since its import, so that nobody knows what code runs
        return None


def _named(names: Sequence[str], most: int = 4) -> str:
    """The first names, and how many more there are."""
    more = [f"{len(names) - most} more"] if len(names) > most else []
    *first, last = [*names[:most], *more]
    return f"{', '.join(first)} and {last}" if first else last


def _said(version: str | None, sources: Sequence[str | None]) -> str:
    """A package's code in words. sources: one per plugin; built-in plugins have one per module."""
    if version is None:
        return "nothing"
    first, *others = dict.fromkeys(sources)
    return f"{version}, {f'{1 + len(others)} sources' if others else f'source {str(first)[:12]}'}"
