"""What this machine has: versions, devices, plugins, data, free disk space. Reads and reports; changes nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from harness._version import __version__
from harness.artifacts import REPLACE, damaged
from harness.database import DATABASE, is_store
from harness.errors import StoreError
from harness.store import Store

DISTRIBUTION = "psr-harness"


def examine(store: Path) -> dict[str, Any]:
    """The report, as plain data. `problems` keep runs from working; `warnings` are what a user should know."""
    report: dict[str, Any] = {
        "harness": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "executable": sys.executable,
        "torch": torch_report(),
        "libraries": {},
        "missing": [],
        "extras": {},
        "plugins": plugin_report(),
        "data": data_report(os.environ.get("HARNESS_DATA")),
        "cores": core_count(),
        "memory_bytes": memory_bytes(),
        "store": store_report(store),
    }
    required, extras = requirements()
    for name in required:
        version = installed(name)
        if version is None:
            report["missing"].append(name)
        else:
            report["libraries"][name] = version
    for extra, names in extras.items():
        absent = [name for name in names if installed(name) is None]
        report["extras"][extra] = {"complete": not absent, "missing": absent}
    report["problems"], report["warnings"] = findings(report)
    return report


def findings(report: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(problems, warnings) in sentences that say what to do."""
    problems: list[str] = []
    warnings: list[str] = []
    if report["torch"]["error"]:
        problems.append(f"torch cannot be imported: {report['torch']['error']}")
    if report["missing"]:
        problems.append(f"not installed: {', '.join(report['missing'])}; pip install {DISTRIBUTION}")
    for item in report["plugins"]["disabled"]:
        text = f"plugin {item['distribution']}:{item['name']} is disabled: {item['reason']}"
        (problems if item["distribution"] == DISTRIBUTION else warnings).append(text)
    if not report["plugins"]["counts"]:
        problems.append(f"no plugin is installed, not even the built-in ones; reinstall {DISTRIBUTION}")
    if report["data"]["path"] and not report["data"]["exists"]:
        warnings.append(f"HARNESS_DATA is {report['data']['path']}, which is not a folder")
    store = report["store"]
    if not store["writable"]:
        problems.append(f"the store {store['path']} cannot be written")
    if store["error"]:
        problems.append(f"{store['error'].removesuffix(f'; {REPLACE}')}; {REPLACE}")
    return problems, warnings


def torch_report() -> dict[str, Any]:
    """Version, CUDA version and devices; `error` where torch is missing or broken."""
    try:
        import torch

        devices = [
            {
                "name": properties.name,
                "memory_bytes": properties.total_memory,
                "capability": f"{properties.major}.{properties.minor}",
            }
            for properties in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        ]
        return {
            "version": str(torch.__version__),
            "cuda": torch.version.cuda,
            "devices": devices,
            "threads": torch.get_num_threads(),
            "error": None,
        }
    except Exception as error:  # a broken driver or shared library is a finding, not a crash
        reason = f"{type(error).__name__}: {error}"
        return {"version": None, "cuda": None, "devices": [], "threads": None, "error": reason}


def installed(name: str) -> str | None:
    """The installed version, from its metadata: nothing is imported."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def requirements() -> tuple[list[str], dict[str, list[str]]]:
    """(distributions that this package needs, extra -> those that it needs), from the package's metadata."""
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        lines = []
    required: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in lines:
        name = re.match(r"[A-Za-z0-9._-]+", line)
        extra = re.search(r"""extra\s*==\s*["']([^"']+)["']""", line)
        if name and extra:
            extras.setdefault(extra.group(1), []).append(name.group())
        elif name:
            required.append(name.group())
    return required, extras


def plugin_report() -> dict[str, Any]:
    """How many plugins of each kind, and those that are disabled."""
    from dataclasses import asdict

    from harness.kinds import KINDS
    from harness.registry import registry

    loaded = registry()
    counts = {kind: len(list(loaded.entries(kind))) for kind in KINDS}
    return {
        "counts": {kind: count for kind, count in counts.items() if count},
        "disabled": [asdict(item) for item in loaded.disabled],
    }


def data_report(path: str | None, limit: int = 12) -> dict[str, Any]:
    """What $HARNESS_DATA holds: the first `limit` names, and how many there are."""
    folder = Path(path).expanduser() if path else None
    if folder is None or not folder.is_dir():
        return {"path": path, "exists": False, "found": [], "count": 0}
    try:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    except OSError as error:
        return {"path": path, "exists": True, "found": [f"unreadable: {error.strerror}"], "count": 0}
    return {"path": path, "exists": True, "found": names[:limit], "count": len(names)}


def core_count() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Physical memory, or the container's limit where that is lower; None where the system doesn't say."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):
            continue
    return total


def store_report(store: Path) -> dict[str, Any]:
    """Free space and whether results can be written, judged at the nearest folder that exists."""
    place = store.absolute()
    while not place.exists():
        place = place.parent
    return {
        "path": str(store),
        "exists": store.is_dir(),
        "free_bytes": shutil.disk_usage(place).free,
        "writable": all(os.access(path, os.W_OK) for path in (place, *_inside(place))) and place.is_dir(),
        "error": _store_error(store),
    }


def _inside(store: Path) -> list[Path]:
    """The files and folders of an existing store that a run writes to."""
    names = (DATABASE, "lock", "artifacts")
    return [store / name for name in names if (store / name).exists()]


def _store_error(store: Path) -> str | None:
    """Why a run could not use this store; None where it could, or where there is none yet. Nothing is written."""
    if not is_store(store):
        return None
    try:
        with Store(store, read_only=True) as opened:
            found = opened.check()
    except StoreError as error:
        return str(error)
    return None if found is None else str(damaged(store, found))
