"""Where a number comes from: versions, source state, device."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import __version__
from harness.contracts.base import Plugin
from harness.grid import Memo
from harness.identity import library_versions
from harness.nesting import with_nested
from harness.registry import registry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@cache
def engine() -> dict[str, Any]:
    """The engine's version and, where it runs from a checkout, its commit and whether it has changes."""
    folder = Path(__file__).parent
    facts: dict[str, Any] = {"version": __version__, "commit": None, "dirty": None}

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout

    # The engine's own checkout is one that tracks this very file, not that of a project it is installed into.
    if git("ls-files", "--error-unmatch", str(Path(__file__))) is not None:
        commit, status = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", ".", "../plugins")
        facts |= {
            "commit": commit.strip() if commit else None,
            "dirty": None if status is None else bool(status.strip()),
        }
    return facts


UNKNOWN: dict[str, Any] = {"version": "unknown", "commit": None, "dirty": None}  # for stages that do not say


def of_stage(device: str) -> dict[str, Any]:
    """Where a stage is computed, for its result: a record may be written at another time, on another machine."""
    return {
        "engine": engine(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device_name": device_name(device),
    }


def of_stages(results: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the stages behind a record were computed.

    engines: each distinct state of the engine. engine: that state, or all versions without a commit where there are
    several. python, platform, device_name: all distinct values, in one text. Stages of older stores do not say, and
    count as `unknown`. Where none names its device, device_name is left out: the record's own is then the best guess.
    """
    found = list(results)
    engines: list[dict[str, Any]] = []
    for result in found:
        state = result.get("engine", UNKNOWN)
        if state not in engines:
            engines.append(state)
    versions = ", ".join(dict.fromkeys(state["version"] for state in engines))
    facts: dict[str, Any] = {
        "engines": engines,
        "engine": engines[0] if len(engines) == 1 else {**UNKNOWN, "version": versions},
    }
    for name in ("python", "platform"):
        facts[name] = ", ".join(sorted({result.get(name, "unknown") for result in found}))
    places = {result["device_name"] for result in found if "device_name" in result}
    return facts | ({"device_name": ", ".join(sorted(places))} if places else {})


def environment(device: str) -> dict[str, Any]:
    """Versions of Python and the numeric libraries, the platform and the device."""
    return {
        "engine": engine(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": library_versions(),
        "device": device,
        "device_name": device_name(device),
    }


@cache
def device_name(device: str) -> str:
    """The name of a device; `remote GPU` for a GPU where this machine has none."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device)) if torch.cuda.is_available() else "remote GPU"
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def plugin_list(plugins: Iterable[Plugin], memo: Memo | None = None) -> list[dict[str, Any]]:
    """Name, package, version and source hash of every plugin, nested ones included, each once.

    memo: shared by lists that have plugins in common, whose entries are then the same objects.
    """
    memo = memo or Memo()
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for plugin in plugins:
        for entry in memo.of(_entries, plugin):
            found[entry["kind"], entry["name"], entry["distribution"]] = entry
    return list(found.values())


def _entries(plugin: Plugin) -> list[dict[str, Any]]:
    found = []
    for part in with_nested(plugin):
        entry = registry().entry_of(part)
        facts = {"distribution": entry.distribution, "version": entry.version, "source": entry.source_hash}
        found.append({"kind": part.kind, "name": part.name, **facts})
    return found
