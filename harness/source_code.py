"""The code of plugin packages: its hash, and whether the code that this process imported is still what lies on disk.

Python imports a module once and never looks at its file again: the files show what runs only as long as they are as
they were at the import. A package's state (times, sizes and inodes, no content) is therefore noted before the import.

A plugin's code is its top-level package, whatever else its distribution installs, and modules outside of site-packages
that these import. The code of a built-in plugin is its module and what that imports of its package. Which files these
are depends on files alone, so that workers find the same ones.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import importlib.util
import os
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from harness.entry_points import BUILTIN, GROUP, normalized
from harness.errors import HarnessError
from harness.import_closure import ImportClosure
from harness.python_files import CODE, code_files, files_in, imports_of, package_of

ENGINE = ("harness", "harness_plugins")  # in keys by other means; see harness.stage_keys
SITE = {"site-packages", "dist-packages"}
# Endings of the names of modules that make an editable install importable.
EDITABLE = ("_editable", "_editable_loader")

State = dict[str, tuple[int, int, int]]  # file -> its modification time in ns, size and inode


@dataclass
class _Package:
    """A top-level package or module. roots: its folders, or its one file.

    noted: when its state was noted, if that was before the import.
    """

    roots: tuple[Path, ...]
    state: State
    noted: int | None = None
    others: dict[str, tuple[Path, ...]] | None = None  # more code of its plugins; None until asked for
    module: ModuleType | None = None  # what was imported; None until somebody asks for the hash
    digest: str | None = None
    modules: dict[str, str] = field(default_factory=dict)  # module of a built-in plugin -> hash
    closure: ImportClosure | None = None  # finds what these modules reach
    looked: tuple[int, float] | None = None  # at the last check: how many modules were imported, and the time

    @property
    def every_root(self) -> tuple[Path, ...]:
        return self.roots + tuple(root for roots in (self.others or {}).values() for root in roots)


_PACKAGES: dict[str, _Package] = {}


def remember(module: str) -> None:
    """Notes the state of the package that holds a module which is about to be imported."""
    top = module.partition(".")[0]
    if top in sys.modules and top in _PACKAGES:
        return
    with suppress(Exception):  # importing the package will say what is wrong with it
        noted = time.time_ns()
        roots = _roots(importlib.util.find_spec(top))
        _PACKAGES[top] = _Package(roots, _state(roots), noted)


def source_hash(distribution: str, module: str) -> str:
    """sha256 over every file, except bytecode and hidden files, of the top-level package that holds a module.

    It also covers other packages and modules of the distribution, and modules outside of site-packages that any of
    them imports. The built-in plugins import nothing but the engine and libraries, so for one of their modules it
    covers only what the module reaches by imports within the package: a change to one method leaves the results of
    the others valid. For the package of the built-in plugins itself, it covers every file.
    Worked out once per process and kept from then on, as it stands for the code that runs here. Raises HarnessError
    where that code is no longer known, because files changed between the import and the first call.
    """
    package = _package(distribution, module)
    if package.digest is None:
        digest = _digest(package)
        _compare(package, distribution)  # after hashing: what was hashed is then what was imported
        package.digest = digest
    own = package.digest
    if distribution == BUILTIN and "." in module:
        own = _digest_of_module(package, module)
    return hashlib.sha256(f"{distribution}\0{own}".encode()).hexdigest()


def check_unchanged(distribution: str, module: str, age: float = 0.0) -> None:
    """Raises HarnessError where a package's files are no longer those that were imported.

    Once the package's hash is known, a file that was touched but not changed is no reason. age: seconds for which the
    last check counts, as long as no module was imported since.
    """
    package = _package(distribution, module)
    now = len(sys.modules), time.monotonic()
    if package.looked is not None and package.looked[0] == now[0] and now[1] - package.looked[1] < age:
        return
    _compare(package, distribution)
    package.looked = now


def _digest_of_module(package: _Package, module: str) -> str:
    """The hash of a module of the built-in plugins and of all that it reaches by imports in their package."""
    if module not in package.modules:
        if package.closure is None:
            package.closure = ImportClosure(module.partition(".")[0], package.roots[0])
        digest = package.closure.digest(module)
        _compare(package, BUILTIN)
        package.modules[module] = digest
    return package.modules[module]


def _package(distribution: str, module: str) -> _Package:
    top = module.partition(".")[0]
    imported = sys.modules.get(top)
    package = _PACKAGES.get(top)
    # Where it was imported again, the state noted before is out of date.
    if package is None or package.module not in (None, imported):
        roots = _roots(getattr(imported, "__spec__", None), imported)
        package = _PACKAGES[top] = _Package(roots, _state(roots))
    package.module = imported
    if package.others is None:
        package.others = {} if distribution == BUILTIN else _others(distribution, top, package.roots)
        _note_others(package)
    return package


def _others(distribution: str, top: str, roots: tuple[Path, ...]) -> dict[str, tuple[Path, ...]]:
    """Name -> roots of the code outside of a package that also decides what its distribution's plugins do."""
    found: dict[str, tuple[Path, ...]] = {}
    for name in sorted(_top_level(distribution) - {top, *ENGINE}):
        with suppress(Exception):
            if places := _roots(importlib.util.find_spec(name)):
                found[name] = places
    own = [root for places in (roots, *found.values()) for root in places]
    texts = (text for root in own for text in _texts(root, ""))
    return found | {name: (place,) for name, place in outside(texts, own).items()}


def _note_others(package: _Package) -> None:
    """Adds the present state of a package's other code to the package's own.

    A file that changed after the noted time gets a state that no file has, so that the next comparison fails.
    """
    others = package.others or {}
    state = _state(tuple(root for roots in others.values() for root in roots))
    # Where plugins are in another package than their entry point, the state of the latter was noted.
    noted = [p.noted for name in others if (p := _PACKAGES.get(name)) is not None and p.noted is not None]
    if package.noted is None:
        state = package.state | state
    moment = min(noted, default=sys.maxsize) if package.noted is None else package.noted
    for file in state:
        with suppress(FileNotFoundError):
            facts = os.stat(file)
            if max(facts.st_mtime_ns, facts.st_ctime_ns) > moment:
                state[file] = (0, 0, 0)
    package.state = package.state | state


def _top_level(distribution: str) -> set[str]:
    """Top-level names that a distribution installs for import; an editable install may not list them."""
    try:
        package = importlib.metadata.distribution(distribution)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return set()
    names = {e.module.partition(".")[0] for e in package.entry_points if e.group == GROUP}
    names.update((package.read_text("top_level.txt") or "").split())
    names.update(_recorded(package))
    # Not the modules that make an editable install importable: they hold paths of this machine.
    return {n for n in names if not n.startswith("__editable__") and not n.endswith(EDITABLE)}


def _recorded(package: importlib.metadata.Distribution) -> Iterator[str]:
    """Top-level names of the modules in RECORD, the list of files that a distribution's installer wrote."""
    for row in csv.reader((package.read_text("RECORD") or "").splitlines()):
        if row and row[0].endswith(CODE):
            name = row[0].partition("/")[0].partition(".")[0]
            if name.isidentifier():  # ../../bin/tool.py has none
                yield name


def outside(texts: Iterable[tuple[str, bytes]], own: Sequence[Path] = ()) -> dict[str, Path]:
    """What Python sources import from outside of installed packages, and what that imports in turn.

    texts: (the package that relative imports start from, source). own: places that are left out. Returns name -> file,
    or folder of a package that has an __init__.py. is_outside decides what else is left out.
    """
    found: dict[str, Path] = {}
    seen: set[str] = set()
    waiting = [name for package, source in texts for name in imports_of(source, package)]
    while waiting:
        wanted = waiting.pop()
        if wanted in seen:
            continue
        seen.add(wanted)
        name, place = _located(wanted)
        if place is None or name in found or not is_outside(name, place):
            continue
        if any(place.is_relative_to(root) for root in own):
            continue
        found[name] = place
        package = name if place.is_dir() else name.rpartition(".")[0]
        waiting += [
            other for within, source in _texts(place, package) for other in imports_of(source, within)
        ]
    return found


def is_outside(name: str, file: Path) -> bool:
    """Whether a module belongs to no installed package, nor to the standard library or the engine.

    Editable installs count as outside, since they get edited; libraries whose versions are in keys do not.
    """
    from harness.identity import DISTRIBUTIONS, GENERAL, SPECIAL

    top = name.partition(".")[0]
    if top in (*ENGINE, "__main__") or DISTRIBUTIONS.get(top, normalized(top)) in {*GENERAL, *SPECIAL}:
        return False
    if SITE.intersection(file.parts) or any(file.is_relative_to(folder) for folder in _library_folders()):
        return False
    above = file.absolute().parents
    return not above or top not in _installed_in(above[min(name.count("."), len(above) - 1)])


@cache
def _installed_in(folder: Path) -> frozenset[str]:
    """Top-level names that an installer has put into a folder, such as that of `pip install --target`."""
    packages = importlib.metadata.distributions(path=[str(folder)])
    return frozenset(name for package in packages for name in _recorded(package))


@cache
def _library_folders() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple({p for name in names for p in (Path(paths[name]), Path(paths[name]).resolve())})


def _located(wanted: str) -> tuple[str, Path | None]:
    """The first module, or package with an __init__.py, in a dotted name, and its place; None where there is none."""
    top, *rest = wanted.split(".")
    name, spec = top, _spec_of(top, None)
    while spec is not None and not spec.has_location and spec.submodule_search_locations and rest:
        name = f"{name}.{rest.pop(0)}"  # below a folder without an __init__.py
        spec = _spec_of(name, list(spec.submodule_search_locations))
    if spec is None or not spec.has_location or not spec.origin:
        return name, None
    place = Path(spec.origin)
    return name, place.parent if spec.submodule_search_locations else place


def _spec_of(name: str, folders: list[str] | None) -> ModuleSpec | None:
    """The spec of what is, or would be, imported under a name. folders: of the package that holds it, if any."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if spec is not None or not name:
        return spec
    with suppress(Exception):
        return importlib.util.find_spec(name) if folders is None else PathFinder.find_spec(name, folders)
    return None


def _texts(place: Path, name: str) -> Iterator[tuple[str, bytes]]:
    """(package that relative imports start from, source) of each Python file. name: the package's, or "": no matter."""
    for module, file in code_files(name, place):
        if file.suffix == ".py":
            with suppress(OSError):
                yield package_of(module, file) if name else "", file.read_bytes()


def _compare(package: _Package, distribution: str) -> None:
    now = _state(package.every_root)
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
    for _, file in files_in(roots):
        with suppress(FileNotFoundError):  # deleted this moment
            facts = os.stat(file)
            found[file] = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
    return found


def _digest(package: _Package) -> str:
    """The hash of a package's files, and of its other code by name where there is any."""
    own = _digest_of(package.roots)
    if not package.others:
        return own
    parts = [own, *(f"{name}\0{_digest_of(roots)}" for name, roots in sorted(package.others.items()))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _digest_of(roots: tuple[Path, ...]) -> str:
    """The hash of the files' names, relative to their root, and contents."""
    digest = hashlib.sha256()
    for name, file in sorted(files_in(roots)):
        content = b""
        with suppress(OSError), open(file, "rb") as opened:
            content = hashlib.file_digest(opened, "sha256").digest()
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()
