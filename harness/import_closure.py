"""Which modules of a package decide what one of them does: those that it imports, and what they import in turn."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

from harness.python_files import code_files, imports_of, package_of


class ImportClosure:
    """The modules of one package as they lie on disk, and which of them reach which by imports.

    Imports are found in the sources wherever they stand: at the top, in a function, under a condition. Imports of a
    computed name, and changes made to a module from outside, are not found; a package whose modules do such things
    needs a hash of all its files.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self._read: dict[str, tuple[bytes, frozenset[str]]] = {}

    @cached_property
    def files(self) -> dict[str, Path]:
        """Module -> file, for all modules of the package."""
        return dict(code_files(self.name, self.folder))

    def of(self, module: str) -> frozenset[str]:
        """A module, all modules of the package that it reaches, and the packages above these, as far as they exist."""
        found: set[str] = set()
        waiting = self._within(module)
        while waiting:
            reached = waiting.pop()
            if reached not in found:
                found.add(reached)
                waiting |= self._module(reached)[1]
        return frozenset(found)

    def digest(self, module: str) -> str:
        """The hash of the names and contents of all modules in `of(module)`."""
        digest = hashlib.sha256()
        for name in sorted(self.of(module)):
            digest.update(name.encode() + b"\0" + self._module(name)[0])
        return digest.hexdigest()

    def _module(self, name: str) -> tuple[bytes, frozenset[str]]:
        """The hash of a module's file, and the modules of the package that it imports."""
        if name not in self._read:
            file = self.files[name]
            source = file.read_bytes()
            imported = imports_of(source, package_of(name, file)) if file.suffix == ".py" else ()
            within = frozenset(reached for wanted in imported for reached in self._within(wanted))
            self._read[name] = hashlib.sha256(source).digest(), within
        return self._read[name]

    def _within(self, wanted: str) -> set[str]:
        """The modules of the package that importing a dotted name runs: that module and the packages above it."""
        parts = wanted.split(".")
        above = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
        return {name for name in above if name in self.files}
