"""Where the plugins of a submission are of other code than what is installed here.

A hash of a source cannot be looked into: one that is not known here may be that of other code or made up. So it never
makes a submission pass for verified, and numbers are compared less strictly only in cells that use that plugin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from harness.errors import HarnessError
from harness.leaderboard.submission import Plugin, Submission
from harness.registry import registry


def other_code(submission: Submission, where: str = "the file") -> list[str]:
    """Plugins whose version or source is not what is installed here, a sentence for each package and version."""
    changed: dict[tuple[str, str, str], list[str]] = {}
    for plugin in submission.plugins:
        here = _installed(plugin)
        if here != (plugin.version, plugin.source):
            states = _said((plugin.version, plugin.source)), _said(here)
            changed.setdefault((plugin.distribution, *states), []).append(plugin.name)
    return [
        f"other code of {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} in {package}: "
        f"{there} in {where}, {here} here"
        for (package, there, here), names in changed.items()
    ]


def unlisted(submission: Submission, record: Mapping[str, Any]) -> Iterator[str]:
    """The plugins behind a record made here, `kind name`, that the submission does not list."""
    listed = {(plugin.kind, plugin.name) for plugin in submission.plugins}
    for item in record["provenance"]["plugins"]:
        if (item["kind"], item["name"]) not in listed:
            yield f"{item['kind']} {item['name']}"


def same_code(submission: Submission, record: Mapping[str, Any]) -> bool:
    """Whether the submission lists every plugin behind a record made here with the code that it has here.

    Of a plugin that stands in the list twice, each entry must have it.
    """
    for item in record["provenance"]["plugins"]:
        own = [p for p in submission.plugins if (p.kind, p.name) == (item["kind"], item["name"])]
        of_package = [p for p in own if p.distribution == item["distribution"]]
        here = item["version"], item["source"]
        if not of_package or any((p.version, p.source) != here for p in of_package):
            return False
    return True


def _installed(plugin: Plugin) -> tuple[str, str] | None:
    """Version and source of the plugin of that package here; None: there is none."""
    try:
        entry = registry().find(plugin.kind, f"{plugin.distribution}/{plugin.name}")
        return entry.version, entry.source_hash
    except HarnessError:  # not installed, or edited between its import and now: what runs is not known then
        return None


def _said(state: tuple[str, str] | None) -> str:
    return "nothing" if state is None else f"{state[0]}, source {state[1][:12]}"
