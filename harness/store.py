"""Where results live: content-addressed artifacts (safetensors), and stages and records in a database.

Layout of a store folder:

    store.sqlite              stages (key -> result), records (cell -> JSON), facts (cached small JSON objects);
                              each carries a hash of itself
    artifacts/ab/abcd….safetensors
    pictures/abcd….png        what privacy attacks reconstructed, beside the originals

Everything is written atomically, so a store is valid whenever a process is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.artifacts import Artifacts, artifact_name, cannot_write
from harness.database import DATABASE, Database, is_store, may_write
from harness.errors import StoreError
from harness.files import drafts
from harness.sealed import seal, unseal

# One part of a stage's result in a JSON array, NULL where the result is damaged: json_extract would fail on it.
_PART = """CASE WHEN json_valid(CAST(result AS TEXT)) AND intact(CAST(result AS BLOB))
    THEN CASE json_type(result) WHEN 'object' THEN json_array(json_extract(result, ?)) END END"""


def take_away(path: Path, *, folder: bool = True) -> None:
    """Removes a store that holds no results. folder: its folder as well, unless other files are in it."""
    with contextlib.suppress(OSError):  # the lock last: until then nobody else writes here
        for empty in (*(path / "artifacts").iterdir(), path / "artifacts"):
            empty.rmdir()
        for name in (DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", "lock"):
            (path / name).unlink(missing_ok=True)
        if folder:
            path.rmdir()


class StageRow(NamedTuple):
    """A finished stage as a store keeps it. finished: seconds since the epoch."""

    key: str
    kind: str
    signature: str
    label: str
    result: dict[str, Any]
    seconds: float
    finished: float


class Store(Artifacts):
    """One store folder. Open it in each process; do not carry a connection across a fork.

    read_only: nothing is made or written, not even a cached fact. Raises StoreError where it cannot be used.
    """

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        self.read_only = read_only
        self._made, self._new = not is_store(Path(path)), not Path(path).exists()
        if read_only:
            self.path = Path(path)
        else:
            super().__init__(path)
        try:
            self._db = Database(self.path, read_only=read_only)
        except StoreError:
            # Where there is a lock file, another process has begun to use it.
            if self._made and not read_only and not (self.path / "lock").exists():
                take_away(self.path, folder=self._new)
            raise

    def check(self) -> str | None:
        """What is wrong with the database file, or None if nothing is wrong."""
        return self._db.check()

    @classmethod
    def reading(cls, path: str | Path) -> Store:
        """Opens a store for a caller that only reads: read_only where the user or the file system may not write it."""
        return cls(path, read_only=is_store(Path(path)) and not may_write(Path(path)))

    def close(self) -> None:
        """Close the database connection."""
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Held by the one run that may write. Raises StoreError that names the process holding it.

        Half-written files that a killed run left are removed, and damaged indexes are made again. The store itself is
        removed if the block raises, provided that this object has made it and it holds no results: anyone who found it
        would look for results in it. With a read-only store nothing is changed; a run that writes it is kept away.
        """
        path = self.path / "lock"
        if self.read_only and not path.exists():  # a copy without it: no run writes here
            yield
            return
        try:
            file = path.open("r" if self.read_only else "a+")
        except OSError as error:
            if self.read_only:
                raise StoreError(
                    f"the store {self.path} cannot be read: {error.strerror or error}"
                ) from error
            raise cannot_write(self.path, error.strerror or error) from error
        try:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if self.read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise StoreError(
                    f"the store {self.path} is in use by {owner}; wait for it, or use --store DIR"
                ) from None
            except OSError as error:  # a file system without locks: what is only read needs none
                if not self.read_only:
                    text = (
                        f"the store {self.path} cannot be locked: {error.strerror or error}; use --store DIR"
                    )
                    raise StoreError(text) from error
            if self.read_only:
                yield
                return
            # This may fail on a full disk. The name only tells others who holds the lock, which is held anyway.
            with contextlib.suppress(OSError):
                file.seek(0)
                file.truncate()
                file.write(f"process {os.getpid()}")
                file.flush()
            with contextlib.suppress(OSError):
                for draft in drafts(self.path):
                    draft.unlink()
            self._db.mend()
            try:
                yield
            except BaseException:
                if self._made and self.in_place() and self.empty():
                    self.close()
                    take_away(self.path, folder=self._new)
                raise
        finally:
            with contextlib.suppress(OSError):
                file.close()

    def in_place(self) -> bool:
        """Whether a store that is locked is still where it was opened: a new one made in its place has no lock file."""
        return (self.path / "lock").exists()

    # stages -------------------------------------------------------------------------------------

    def put_stage(
        self,
        key: str,
        kind: str,
        signature: str,
        label: str,
        status: str,
        result: dict[str, Any],
        seconds: float,
    ) -> None:
        """Record a stage as `done` with its result, or `failed` with its error."""
        row = (key, kind, signature, label, status, seal(result), seconds, time.time())
        self._db.execute("INSERT OR REPLACE INTO stages VALUES (?,?,?,?,?,?,?,?)", row)

    def stage_result(self, key: str) -> dict[str, Any] | None:
        """The result of a finished stage, or None, also where it is damaged or one of its artifacts is missing."""
        rows = self._db.execute("SELECT result FROM stages WHERE key=? AND status='done'", (key,))
        result = _object(rows[0][0]) if rows else None
        if result is None:
            return None
        there = all((self.path / artifact_name(a)).exists() for a in result.get("artifacts", ()))
        return result if there else None

    def heal(self, key: str) -> bool:
        """Whether a stage is finished and all its artifacts are intact; damaged ones are removed.

        Once an artifact is removed, no result of a stage that refers to it counts any more. Reads every file.
        """
        result = self.stage_result(key)
        if result is None:
            return False
        names = [artifact_name(digest) for digest in result.get("artifacts", ())]
        whole = True
        for name in names:
            try:
                self.read_file(name)
            except StoreError:
                whole = False
                with contextlib.suppress(OSError):
                    (self.path / name).unlink()
        return whole

    def empty(self) -> bool:
        """Whether the store holds no stage, no record and no artifact."""
        rows = self._db.execute("SELECT 1 FROM stages UNION ALL SELECT 1 FROM records LIMIT 1")
        return not rows and not any(p.is_file() for p in (self.path / "artifacts").rglob("*"))

    def stage_rows(self) -> list[StageRow]:
        """Every finished stage, the earliest first. Raises StoreError for a damaged one."""
        rows = self._db.execute(
            "SELECT key, kind, signature, label, result, seconds, finished FROM stages WHERE status='done' "
            "ORDER BY finished, key"
        )
        found = []
        for row in rows:
            result = _object(row[4])
            if result is None:
                raise self._damaged(f"the result of the stage {row[1]} {row[3]} ({row[0][:12]})")
            found.append(StageRow(*row)._replace(result=result))
        return found

    def finished(self, keys: Collection[str]) -> set[str]:
        """Those of these stages that `stage_result` would find: done, with every artifact there."""
        rows = self._db.execute(f"SELECT key, {_PART} FROM stages WHERE status='done'", ("$.artifacts",))
        there: dict[str, bool] = {}

        def exists(digest: str) -> bool:
            if digest not in there:
                there[digest] = (self.path / artifact_name(digest)).exists()
            return there[digest]

        return {
            key
            for key, part in rows
            if part is not None and key in keys and all(map(exists, json.loads(part)[0] or ()))
        }

    def seconds_by_signature(self) -> dict[tuple[str, str], float]:
        """(kind, signature) -> mean seconds of the finished stages, for estimates."""
        rows = self._db.execute(
            "SELECT kind, signature, AVG(seconds) FROM stages WHERE status='done' GROUP BY kind, signature"
        )
        return {(kind, signature): seconds for kind, signature, seconds in rows}

    def peak_memory(self, signatures: Collection[tuple[str, str]]) -> int | None:
        """The most bytes that any finished stage of these (kind, signature) used; None where there is no such stage."""
        rows = self._db.execute(
            f"SELECT kind, signature, {_PART} FROM stages WHERE status='done'", ("$.peak_memory_bytes",)
        )
        peaks = (json.loads(part)[0] for *of, part in rows if part is not None and tuple(of) in signatures)
        return max(filter(None, peaks), default=None)

    # records ------------------------------------------------------------------------------------

    def put_record(self, record: dict[str, Any], fingerprint: str) -> None:
        """Insert or replace one cell's record."""
        row = (
            record["scenario"]["name"],
            record["id"],
            record["status"],
            fingerprint,
            seal(record),
            time.time(),
        )
        self._db.execute("INSERT OR REPLACE INTO records VALUES (?,?,?,?,?,?)", row)

    def record(self, scenario: str, cell: str, fingerprint: str | None = None) -> dict[str, Any] | None:
        """A cell's record, or None; with a fingerprint, only if it is intact and made from exactly those stages.

        Raises StoreError for a damaged record where no fingerprint is given: a caller with one can make it again.
        """
        rows = self._db.execute(
            "SELECT record, fingerprint FROM records WHERE scenario=? AND id=?", (scenario, cell)
        )
        if not rows or (fingerprint is not None and rows[0][1] != fingerprint):
            return None
        record = _record(rows[0][0])
        if record is None and fingerprint is None:
            raise self._damaged(f"the record of the cell {cell} of {scenario}")
        return record

    def marked_records(self) -> list[tuple[dict[str, Any], str]]:
        """Every record with its fingerprint, in insertion order. Raises StoreError for a damaged one."""
        return list(self._records("", ()))

    def records(
        self, scenario: str | None = None, *, lost: list[StoreError] | None = None
    ) -> list[dict[str, Any]]:
        """Every record, of one scenario or all, in insertion order. Raises StoreError for a damaged one.

        lost: a list to which these errors are added instead; damaged records are then left out.
        """
        return list(self.each_record(scenario, lost=lost))

    def each_record(
        self, scenario: str | None = None, *, lost: list[StoreError] | None = None
    ) -> Iterator[dict[str, Any]]:
        """As `records`, but one at a time, for stores whose records would fill the memory."""
        # The plus keeps SQLite from using the index: it would then sort, and for that copy, all these records.
        where, values = ("", ()) if scenario is None else (" WHERE +scenario=?", (scenario,))
        for record, _ in self._records(where, values, lost):
            yield record

    def _records(
        self, where: str, values: Sequence[Any], lost: list[StoreError] | None = None
    ) -> Iterator[tuple[dict[str, Any], str]]:
        statement = f"SELECT scenario, id, record, fingerprint FROM records{where} ORDER BY rowid"
        for scenario, cell, text, mark in self._db.each(statement, values):
            record = _record(text)
            if record is not None:
                yield record, mark
                continue
            error = self._damaged(f"the record of the cell {cell} of {scenario}")
            if lost is None:
                raise error
            lost.append(error)

    def _damaged(self, what: str) -> StoreError:
        return StoreError(
            f"the store {self.path}: {what} is damaged; run its scenario again with --store {self.path}, "
            "which computes it again and keeps everything else"
        )

    # facts --------------------------------------------------------------------------------------

    def fact(self, key: str) -> dict[str, Any] | None:
        """A small cached object, or None; a damaged one does not count."""
        rows = self._db.execute("SELECT value FROM facts WHERE key=?", (key,))
        return _object(rows[0][0]) if rows else None

    def facts(self) -> dict[str, dict[str, Any]]:
        """All small cached objects by key, except damaged ones."""
        found = {key: _object(value) for key, value in self._db.execute("SELECT key, value FROM facts")}
        return {key: value for key, value in found.items() if value is not None}

    def put_fact(self, key: str, value: dict[str, Any]) -> None:
        """Cache a small JSON object; does nothing in a read-only store."""
        if not self.read_only:
            self._db.execute("INSERT OR REPLACE INTO facts VALUES (?,?)", (key, seal(value)))

    def adopt(
        self,
        stages: Iterable[StageRow],
        records: Iterable[tuple[dict[str, Any], str]],
        facts: Mapping[str, dict[str, Any]],
    ) -> None:
        """Take over stages, records with their fingerprints, and facts of other stores: all of it or nothing."""
        with self._db.transaction():
            for row in stages:
                values = (*row[:4], "done", seal(row.result), row.seconds, row.finished)
                self._db.execute("INSERT OR REPLACE INTO stages VALUES (?,?,?,?,?,?,?,?)", values)
            for record, mark in records:
                self.put_record(record, mark)
            for key, value in facts.items():
                self.put_fact(key, value)


def _object(text: Any) -> dict[str, Any] | None:
    """An object as it was written, or None where it is damaged."""
    try:
        found = unseal(text)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _record(text: Any) -> dict[str, Any] | None:
    found = _object(text)
    return found if found is not None and found.keys() >= {"id", "scenario", "status"} else None
