"""Single Python files as plugins, for development: loaded only where a scenario or the command line names them.

A file is taken as it is when it is read. It is imported under a module name made from its path and content, so that an
edited file is another module, two files with the same name are two modules, and worker processes, which get the text
and not the path, import exactly what was hashed.

A file may import its neighbours: modules that Python finds beside it, or anywhere else outside of installed packages.
They are part of its hash and are sent with it, but keep their own names: a process has only one module `helper`, so
once that is edited, a new process is needed.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import source_hash, spec_from_file_location, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.errors import PluginError, did_you_mean
from harness.python_files import code_files
from harness.source_code import is_outside, outside

PREFIX = "local:"  # of the distribution that such plugins are recorded under: local:my_rule.py
MAIN_AGAIN = "__mp_main__"  # the main program's second name, which importing multiprocessing adds


@dataclass(frozen=True)
class Neighbour:
    """A module that a local file imports, as it was at that time. path: absolute. mark: the file's time and size."""

    module: str
    path: Path
    source: bytes
    mark: tuple[int, int] | None = field(default=None, compare=False)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.source).hexdigest()

    @property
    def changed(self) -> bool:
        """Whether its file has other content by now; another modification time alone does not count."""
        return _mark(self.path) != self.mark and _bytes(self.path) != self.source

    def spec(self) -> ModuleSpec | None:
        """A spec that imports the module from `source`; data files in its folder are read from the disk as usual."""
        folder = [str(self.path.parent)] if self.path.name == "__init__.py" else None
        loader = _Loader(self.module, str(self.path))
        loader.text = self.source
        return spec_from_file_location(
            self.module, self.path, loader=loader, submodule_search_locations=folder
        )


@dataclass(frozen=True)
class LocalFile:
    """A file as it was when it was read. path: absolute. beside: its neighbours, known once it has been imported."""

    path: Path
    source: bytes
    beside: tuple[Neighbour, ...] = field(default=(), compare=False, repr=False)

    @property
    def sha256(self) -> str:
        """The hash of the file's bytes, as `sha256sum` prints it; where it has neighbours, a hash of them as well.

        Raises PluginError where a neighbour is no longer what was imported.
        """
        own = hashlib.sha256(self.source).hexdigest()
        if not self.beside:
            return own
        for one in self.beside:
            if one.changed:
                raise PluginError(f"{self.path.name}: {_too_late(one)}")
        parts = [own, *(f"{one.module}\0{one.sha256}" for one in self.beside)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @property
    def distribution(self) -> str:
        name = self.path.name
        return PREFIX + (f"{self.path.parent.name}/{name}" if name == "__init__.py" else name)

    @property
    def version(self) -> str:
        return self.sha256[:12]

    @cached_property
    def module(self) -> str:
        place = hashlib.sha256(str(self.path).encode() + b"\0" + self.source).hexdigest()[:16]
        return f"harness_local_{place}_{re.sub(r'[^a-zA-Z0-9_]', '_', self.path.stem)}"


def read(path: str | Path, folder: Path | None = None) -> LocalFile:
    """The file at a path; relative ones start from `folder`. Raises PluginError unless it is a readable .py file."""
    if not str(path):
        raise PluginError("the path is empty; name a Python file, such as my_rule.py")
    try:
        place = ((folder or Path()) / Path(path).expanduser()).absolute()
        if place.is_dir():
            raise PluginError(
                f"{path} is a folder; a local plugin is one Python file, a package is installed with pip"
            )
        if place.suffix != ".py":
            raise PluginError(f"{path} is not a Python file: its name must end with .py")
        file = LocalFile(place.resolve(), place.read_bytes())
        return _READ.setdefault(file, file)
    except FileNotFoundError:
        if not place.parent.is_dir():
            raise PluginError(f"{path}: no such file; there is no folder {place.parent}") from None
        near = did_you_mean(place.name, (p.name for p in place.parent.glob("*.py")))
        raise PluginError(f"{path}: no such file in {place.parent}; {near}") from None
    except OSError as error:
        raise PluginError(f"{path}: cannot be read: {error.strerror}") from None
    except PluginError:
        raise
    except (ValueError, RuntimeError) as error:  # a null byte, half a surrogate pair, an unknown ~user
        raise PluginError(f"{str(path)!a} cannot be the path of a file: {error}") from None


def expect(files: Iterable[LocalFile]) -> None:
    """Lets this process import these files by their module names, and their neighbours by theirs."""
    for file in files:
        _FINDER.files[file.module] = file
        _FINDER.beside.update((one.module, one) for one in file.beside if one.path.suffix == ".py")
    if _FINDER not in sys.meta_path:
        # First, so that what was hashed is imported, not what is on the disk by now.
        sys.meta_path.insert(0, _FINDER)


def import_file(file: LocalFile, shown: str) -> ModuleType:
    """The module of a file, imported. shown: what messages call the file.

    Raises PluginError with the line on which importing it failed, or where a neighbour changed since it was imported.
    """
    known = set(sys.modules)
    module = _imported(file, shown)
    if not file.beside:
        beside = _beside(file, module, set(sys.modules) - known)
        for one in beside:
            if _NEIGHBOURS.setdefault(one.module, one) != one or _is_old(one):
                raise PluginError(f"{shown}: {_too_late(one)}")
        file.__dict__["beside"] = beside  # the class is frozen, but `beside` takes no part in comparisons
    return module


def _beside(file: LocalFile, module: ModuleType, new: set[str]) -> tuple[Neighbour, ...]:
    """Modules of no installed package that a file imports, at once or when called, and what these import in turn."""
    found = outside([("", file.source)])
    # Also those imported by a name that was computed as the file ran.
    named = new.union(_held(module)) - {MAIN_AGAIN, *_FINDER.files}
    for name in sorted(named):
        place = getattr(sys.modules.get(name), "__file__", None)
        if isinstance(place, str) and is_outside(name, Path(place)):
            found |= outside([("", f"import {name}".encode())])
    files = {one: path.resolve() for name, place in found.items() for one, path in code_files(name, place)}
    return tuple(Neighbour(one, path, _bytes(path), _mark(path)) for one, path in sorted(files.items()))


def _held(module: ModuleType) -> Iterator[str]:
    """The names of the modules among a module's globals, and of those in which its other globals were defined."""
    for value in vars(module).values():
        with suppress(Exception):  # a global may be any object
            name = value.__name__ if isinstance(value, ModuleType) else value.__module__
            if isinstance(name, str):
                yield name


def _is_old(one: Neighbour) -> bool:
    """Whether its bytecode shows that Python imported it from another text than its file has now."""
    spec = getattr(sys.modules.get(one.module), "__spec__", None)
    if spec is None or type(spec.loader) is not SourceFileLoader or not spec.cached:
        return False
    if sys.dont_write_bytecode or not os.access(spec.cached, os.W_OK):
        return False  # the import wrote no bytecode, so nothing can tell
    head = _bytes(Path(spec.cached))[:16]
    if any(head[4:8]):
        return head[8:] != source_hash(one.source)
    time, size = one.mark or (0, 0)
    now = (time // 10**9 & 0xFFFFFFFF).to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little")
    return head[8:] != now


def _too_late(one: Neighbour) -> str:
    return (
        f"{one.path.name}, which it imports, changed after this process imported it ({one.path}): start Python, or the "
        "notebook's kernel, again, so that what runs is what is recorded"
    )


def _mark(path: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        facts = path.stat()
        return facts.st_mtime_ns, facts.st_size
    return None


def _bytes(path: Path) -> bytes:
    with suppress(OSError):
        return path.read_bytes()
    return b""


def _imported(file: LocalFile, shown: str) -> ModuleType:
    if file.module not in _FINDER.files:
        expect([file])
    try:
        return importlib.import_module(file.module)
    except KeyboardInterrupt:
        raise
    except SyntaxError as error:
        if error.filename != str(file.path):  # of a module that it imports
            raise PluginError(f"{shown}{line_of(file, error)}: SyntaxError: {error}") from error
        text = f" in {error.text.strip()!r}" if error.text and error.text.strip() else ""
        raise PluginError(f"{shown}:{error.lineno or 1}:{error.offset or 1}: {error.msg}{text}") from error
    except BaseException as error:  # also SystemExit and the panics of extension modules
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise PluginError(f"{shown}{line_of(file, error)}: {text}{_hint(file, error)}") from error


def line_of(file: LocalFile, error: BaseException) -> str:
    """`:3`, the last line of the file in an error's traceback; "" where the file is not in it."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file.path)]
    return f":{lines[-1]}" if lines else ""


def _hint(file: LocalFile, error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return (
            "; what a local plugin reads is not in its hash: keep data in a package, see `harness plugin new`"
        )
    neighbour = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    if not neighbour or not (file.path.parent / f"{neighbour.split('.')[0]}.py").exists():
        return ""
    return "; a local plugin is one file and cannot import its neighbours: make a package with `harness plugin new`"


class _Loader(SourceFileLoader):
    text: bytes

    def get_code(self, fullname: str) -> Any:
        return compile(self.text, self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder, InspectLoader):
    """Imports files from the text that was read, whatever is on the disk by now."""

    def __init__(self) -> None:
        self.files: dict[str, LocalFile] = {}
        self.beside: dict[str, Neighbour] = {}

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if (neighbour := self.beside.get(fullname)) is not None:
            return neighbour.spec()
        file = self.files.get(fullname)
        if file is None:
            return None
        spec = spec_from_loader(fullname, self, origin=str(file.path))
        if spec is not None:
            spec.has_location = True  # gives the module its __file__
        return spec

    def get_source(self, fullname: str) -> str:
        return self.files[fullname].source.decode(errors="replace")

    def get_code(self, fullname: str) -> Any:
        file = self.files[fullname]
        return compile(file.source, str(file.path), "exec", dont_inherit=True)


_FINDER = _Finder()
_READ: dict[LocalFile, LocalFile] = {}  # one object for each path and content
_NEIGHBOURS: dict[str, Neighbour] = {}  # by module, which a process imports once
