"""What `harness list` shows, kept on disk: creating the classes of all installed plugins takes most of a second.

A kept list is used until something changes that it depends on: the source files of this package and of all packages
that offer plugins, the installed packages, the version of Python. If a plugin could not be loaded, nothing is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.machinery
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness._version import __version__
from harness.cache_folder import cache_folder
from harness.entry_points import Offer, offers
from harness.files import replacing

HARNESS = Path(__file__).resolve().parents[1]


def listing_file() -> Path | None:
    """Where a listing is kept, named by a hash of all that decides it; None if a package's sources cannot be found."""
    offered = offers()
    folders = {HARNESS}
    for offer in offered:
        place = _sources(offer)
        if place is None:
            return None
        folders.add(place)
    facts = [
        sys.version,
        __version__,
        [
            [offer.distribution, offer.version, offer.entry_point.name, offer.entry_point.value]
            for offer in offered
        ],
        [list(mark) for place in sorted(folders) for mark in _marks(place)],
        [_changed(Path(place)) for place in sys.path],  # installing or removing any package shows here
    ]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return cache_folder() / "listings" / f"{digest[:32]}.json"


def kept_listing(file: Path) -> list[dict[str, Any]] | None:
    """The kept listing, as `listing` returned it; None where there is none that can be read."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, list) else None


def keep_listing(file: Path, plugins: list[dict[str, Any]]) -> None:
    """Keeps a listing of all kinds in place of older ones; does nothing where the folder cannot be written."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        for old in file.parent.glob("*.json"):
            old.unlink(missing_ok=True)
        with replacing(file) as draft:
            draft.write_text(json.dumps(plugins), encoding="utf-8")


def _sources(offer: Offer) -> Path | None:
    """The folder, or the one file, of the top-level package behind an entry point, without importing it."""
    spec = importlib.machinery.PathFinder.find_spec(offer.entry_point.module.partition(".")[0])
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.origin and spec.has_location else None


def _marks(place: Path) -> Iterator[tuple[str, int, int]]:
    """(file, time, size) of every Python source."""
    if place.is_file():
        yield str(place), place.stat().st_mtime_ns, place.stat().st_size
        return
    for folder, below, names in os.walk(place):
        below[:] = sorted(name for name in below if name != "__pycache__")
        for name in sorted(names):
            if name.endswith(".py"):
                status = os.stat(os.path.join(folder, name))
                yield os.path.join(folder, name), status.st_mtime_ns, status.st_size


def _changed(place: Path) -> int:
    try:
        return place.stat().st_mtime_ns if place.is_dir() else 0
    except OSError:
        return 0
