"""The code of plugin packages: its hash, and whether what this process imported is still what lies on disk.

Python imports a module once and never looks at its file again. What files say is what runs only as long as they
are as they were then, so a package's state (times and sizes, no content) is noted before it is imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from harness.errors import HarnessError

BYTECODE = (".pyc", ".pyo")

State = dict[str, tuple[int, int, int]]  # file -> its modification time in ns, size and inode


@dataclass
class _Package:
    """A top-level package or module. roots: its folders, or its one file."""

    roots: tuple[Path, ...]
    state: State
    module: ModuleType | None = None  # what was imported; None until somebody asks for the hash
    digest: str | None = None
    looked: tuple[int, float] | None = None  # how many modules there were, and when


_PACKAGES: dict[str, _Package] = {}


def remember(module: str) -> None:
    """Notes the state of the package that holds a module which is about to be imported."""
    top = module.partition(".")[0]
    if top in sys.modules and top in _PACKAGES:
        return
    with suppress(Exception):  # what is wrong with the package, importing it will say
        roots = _roots(importlib.util.find_spec(top))
        _PACKAGES[top] = _Package(roots, _state(roots))


def source_hash(distribution: str, module: str) -> str:
    """sha256 over every file of the top-level package that holds a module, bytecode and hidden files apart.

    Worked out once a process, and the same from then on: it is of the code that runs here. Raises HarnessError where
    that is no longer known, because files changed between the import and the first question.
    """
    package = _package(module)
    if package.digest is None:
        digest = _digest(package)
        _compare(package, distribution)  # after hashing: what was hashed is then what was imported
        package.digest = digest
    return hashlib.sha256(f"{distribution}\0{package.digest}".encode()).hexdigest()


def check_unchanged(distribution: str, module: str, age: float = 0.0) -> None:
    """Raises HarnessError where a package's files are no longer those that were imported; a touched file is none.

    age: seconds for which the last look counts, as long as no module was imported since.
    """
    package = _package(module)
    now = len(sys.modules), time.monotonic()
    if package.looked is not None and package.looked[0] == now[0] and now[1] - package.looked[1] < age:
        return
    _compare(package, distribution)
    package.looked = now


def _package(module: str) -> _Package:
    top = module.partition(".")[0]
    imported = sys.modules.get(top)
    package = _PACKAGES.get(top)
    if package is None or package.module not in (None, imported):  # imported anew: what was noted is history
        roots = _roots(getattr(imported, "__spec__", None), imported)
        package = _PACKAGES[top] = _Package(roots, _state(roots))
    package.module = imported
    return package


def _compare(package: _Package, distribution: str) -> None:
    now = _state(package.roots)
    if now == package.state:
        return
    if package.digest is not None and _digest(package) == package.digest:
        package.state = now
        return
    changed = sorted(now.items() ^ package.state.items())
    raise HarnessError(
        f"the code of {distribution} changed after this process imported it ({changed[0][0]}): start Python, or "
        "the notebook's kernel, again, so that what runs is what is recorded"
    )


def _roots(spec: ModuleSpec | None, module: ModuleType | None = None) -> tuple[Path, ...]:
    folders = (spec.submodule_search_locations if spec is not None else None) or []
    file = spec.origin if spec is not None and spec.has_location else None
    if module is not None and spec is None:  # made by hand
        folders, file = list(getattr(module, "__path__", [])), getattr(module, "__file__", None)
    return tuple(map(Path, folders)) or ((Path(file),) if file else ())


def _state(roots: tuple[Path, ...]) -> State:
    found = {}
    for _, file in _files(roots):
        with suppress(FileNotFoundError):  # deleted this moment
            facts = os.stat(file)
            found[file] = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
    return found


def _digest(package: _Package) -> str:
    """Of names, relative to their root, and contents."""
    digest = hashlib.sha256()
    for name, file in sorted(_files(package.roots)):
        content = b""
        with suppress(OSError), open(file, "rb") as opened:
            content = hashlib.file_digest(opened, "sha256").digest()
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()


def _files(roots: tuple[Path, ...]) -> Iterator[tuple[str, str]]:
    """(name relative to its root, path). Hidden files are what editors and tools leave behind."""
    for root in roots:
        if not root.is_dir():
            yield root.name, str(root)
            continue
        start = len(str(root)) + 1
        for folder, folders, names in os.walk(root):  # in plain text: this runs at every stage
            folders[:] = [f for f in folders if f != "__pycache__" and not f.startswith(".")]
            for name in names:
                if not name.startswith(".") and not name.endswith(BYTECODE):
                    path = f"{folder}{os.sep}{name}"
                    yield path[start:].replace(os.sep, "/"), path
