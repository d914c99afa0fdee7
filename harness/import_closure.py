"""Which modules of a package decide what one of them does: those that it imports, and what they import in turn."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path

from harness.python_files import code_files, imports_of, package_of


class ImportClosure:
    """The modules of one package as they lie on disk, and which of them reach which.

    Imports are found in the sources, wherever in them they stand: at the top, in a function, under a condition. What is
    imported by a name that is worked out, or changed from outside, is not found; a package whose modules do so needs
    the hash of all that it holds.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self._read: dict[str, tuple[bytes, frozenset[str]]] = {}

    @cached_property
    def files(self) -> dict[str, Path]:
        """Module -> file, of all that the package holds."""
        return dict(code_files(self.name, self.folder))

    def of(self, module: str) -> frozenset[str]:
        """A module of the package, all that it reaches, and the packages that these lie in. Empty: there is none."""
        found: set[str] = set()
        waiting = self._within(module)
        while waiting:
            reached = waiting.pop()
            if reached not in found:
                found.add(reached)
                waiting |= self._module(reached)[1]
        return frozenset(found)

    def digest(self, module: str) -> str:
        """Of the names and contents of all these modules."""
        digest = hashlib.sha256()
        for name in sorted(self.of(module)):
            digest.update(name.encode() + b"\0" + self._module(name)[0])
        return digest.hexdigest()

    def _module(self, name: str) -> tuple[bytes, frozenset[str]]:
        """The hash of a module's file, and what it imports of the package."""
        if name not in self._read:
            file = self.files[name]
            source = file.read_bytes()
            imported = imports_of(source, package_of(name, file)) if file.suffix == ".py" else ()
            within = frozenset(reached for wanted in imported for reached in self._within(wanted))
            self._read[name] = hashlib.sha256(source).digest(), within
        return self._read[name]

    def _within(self, wanted: str) -> set[str]:
        """Of a dotted name, the modules of the package that importing it runs: itself and the packages above it."""
        parts = wanted.split(".")
        above = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
        return {name for name in above if name in self.files}
