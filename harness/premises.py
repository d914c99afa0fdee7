"""What a stage was planned on (its plugins' code, and data that they read themselves), checked where it is computed.

The stage's key was made from that code and those data. A worker imports and reads both later, from files that may have
been edited meanwhile: a result must not be kept under a key that belongs to other code or data.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness import source_code
from harness.contracts.data import Dataset
from harness.data_root import data_changed, fingerprint_now
from harness.errors import HarnessError
from harness.nesting import with_nested
from harness.registry import registry

if TYPE_CHECKING:
    from harness.contracts.base import Plugin
    from harness.data_root import DataRoot


# Seconds for which a look at the files counts: it takes as long as all else about a small stage, a few milliseconds.
AGE = 1.0


@dataclass(frozen=True, order=True)
class Code:
    """A package and the hash of its sources. module: its top-level name."""

    distribution: str
    module: str
    source: str

    def check(self) -> None:
        """Raises HarnessError where the code that is imported here, or the code on disk, is not this code."""
        try:
            source_code.check_unchanged(self.distribution, self.module, AGE)
            same = source_code.source_hash(self.distribution, self.module) == self.source
        except HarnessError:
            same = False
        if not same:
            raise HarnessError(
                f"the code of {self.distribution} changed since this run was planned; run again"
            )


@dataclass(frozen=True)
class Content:
    """Data that a plugin reads itself. fingerprint: None where the data could not be read."""

    dataset: Dataset
    root: Path
    fingerprint: str | None

    def described(self) -> dict[str, str | None]:
        """The data's entry in a record's provenance."""
        distribution = registry().entry_of(self.dataset).distribution
        return {"name": self.dataset.name, "distribution": distribution, "fingerprint": self.fingerprint}

    def check(self) -> None:
        """Raises HarnessError where the data have changed.

        Hashes them every time: the plugin reads them anew in each stage, so no earlier look counts.
        """
        if fingerprint_now(self.dataset, self.root) != self.fingerprint:
            raise data_changed(self.dataset)


@dataclass(frozen=True)
class Premises:
    """What a stage was planned on. code: its plugins' packages. data: data sets that plugins hold as parameters."""

    code: tuple[Code, ...] = ()
    data: tuple[Content, ...] = ()

    def check_code(self) -> None:
        """Raises HarnessError, naming the package, where code changed."""
        for code in self.code:
            code.check()

    def check(self) -> None:
        """Raises HarnessError where code or data changed."""
        self.check_code()
        for content in self.data:
            content.check()


def premises_of(plugin: Plugin, data: DataRoot, main: Dataset | None = None) -> Premises:
    """The premises of a plugin and of the plugins nested in it.

    main: the scenario's own data set, which is left out: loading it checks its content. Raises PluginError for a plugin
    that is not registered. Local plugins (single files) have no code to check: workers get the text that was hashed.
    """
    code: dict[Code, None] = {}
    contents: dict[Content, None] = {}
    for part in with_nested(plugin):
        entry = registry().entry_of(part)
        if entry.file is None:
            top = entry.plugin.__module__.partition(".")[0]
            source = source_code.source_hash(entry.distribution, top)
            code[Code(entry.distribution, top, source)] = None
        if isinstance(part, Dataset) and part is not main:
            contents[Content(part, data.path, data.fingerprint(part))] = None
    return Premises(tuple(code), tuple(contents))


def joined(parts: Iterable[Premises]) -> Premises:
    """The premises of all parts together, each code and content once."""
    parts = list(parts)
    code = sorted({code for part in parts for code in part.code})
    data = dict.fromkeys(content for part in parts for content in part.data)
    return Premises(tuple(code), tuple(data))
