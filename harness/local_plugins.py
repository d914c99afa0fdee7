"""Single Python files as plugins, for development: loaded only where a scenario or the command line names them.

A file is taken as it is at that moment. What it holds is imported under a module name made of its place and its
content, so that an edited file is another module, two files of one name are two, and worker processes, which
get the text and not the path, import exactly what was hashed.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.errors import PluginError, did_you_mean

PREFIX = "local:"  # of the distribution that such plugins are recorded under: local:my_rule.py


@dataclass(frozen=True)
class LocalFile:
    """A file as it was when it was read. path: absolute."""

    path: Path
    source: bytes

    @cached_property
    def sha256(self) -> str:
        """Of the file's bytes: what `sha256sum` prints."""
        return hashlib.sha256(self.source).hexdigest()

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
    """The file at a path, relative ones from `folder`. Raises PluginError where there is none to read."""
    place = ((folder or Path()) / Path(path).expanduser()).absolute()
    if place.is_dir():
        raise PluginError(
            f"{path} is a folder; a local plugin is one Python file, a package is installed with pip"
        )
    if place.suffix != ".py":
        raise PluginError(f"{path} is not a Python file: its name must end with .py")
    try:
        return LocalFile(place.resolve(), place.read_bytes())
    except FileNotFoundError:
        if not place.parent.is_dir():
            raise PluginError(f"{path}: no such file; there is no folder {place.parent}") from None
        near = did_you_mean(place.name, (p.name for p in place.parent.glob("*.py")))
        raise PluginError(f"{path}: no such file in {place.parent}; {near}") from None
    except OSError as error:
        raise PluginError(f"{path}: cannot be read: {error.strerror}") from None


def expect(files: Iterable[LocalFile]) -> None:
    """Lets these files be imported by their module names in this process."""
    _FINDER.files.update((file.module, file) for file in files)
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)


def import_file(file: LocalFile, shown: str) -> ModuleType:
    """The module of a file, `shown` in messages. Raises PluginError with the line on which importing it failed."""
    expect([file])
    try:
        return importlib.import_module(file.module)
    except KeyboardInterrupt:
        raise
    except SyntaxError as error:
        if error.filename != str(file.path):  # of a module that it imports
            raise PluginError(f"{shown}{_line(file, error)}: SyntaxError: {error}") from error
        text = f" in {error.text.strip()!r}" if error.text and error.text.strip() else ""
        raise PluginError(f"{shown}:{error.lineno or 1}:{error.offset or 1}: {error.msg}{text}") from error
    except BaseException as error:  # also SystemExit and the panics of extension modules
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise PluginError(f"{shown}{_line(file, error)}: {text}{_hint(file, error)}") from error


def _line(file: LocalFile, error: BaseException) -> str:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file.path)]
    return f":{lines[-1]}" if lines else ""


def _hint(file: LocalFile, error: BaseException) -> str:
    neighbour = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    if not neighbour or not (file.path.parent / f"{neighbour.split('.')[0]}.py").exists():
        return ""
    return "; a local plugin is one file and cannot import its neighbours: make a package with `harness plugin new`"


class _Finder(MetaPathFinder, InspectLoader):
    """Imports files from the text that was read, whatever is on the disk by now."""

    def __init__(self) -> None:
        self.files: dict[str, LocalFile] = {}

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
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
