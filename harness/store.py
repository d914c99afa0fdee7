"""Where results live: content-addressed artifacts (safetensors) and a SQLite database of stages and records.

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
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from harness.artifacts import Artifacts, artifact_name, cannot_write, damaged
from harness.errors import StoreError
from harness.files import drafts
from harness.sealed import intact, seal, unseal

SCHEMA = 1
DATABASE = "store.sqlite"

_TABLES = """
CREATE TABLE IF NOT EXISTS stages (
    key TEXT PRIMARY KEY, kind TEXT NOT NULL, signature TEXT NOT NULL, label TEXT NOT NULL,
    status TEXT NOT NULL, result TEXT NOT NULL, seconds REAL NOT NULL, finished REAL NOT NULL);
CREATE INDEX IF NOT EXISTS stages_signature ON stages (kind, signature);
CREATE TABLE IF NOT EXISTS records (
    scenario TEXT NOT NULL, id TEXT NOT NULL, status TEXT NOT NULL, fingerprint TEXT NOT NULL,
    record TEXT NOT NULL, updated REAL NOT NULL, PRIMARY KEY (scenario, id));
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""

# One part of a stage's result in a JSON array, NULL where the result is damaged: json_extract would fail on it.
_PART = """CASE WHEN json_valid(CAST(result AS TEXT)) AND intact(CAST(result AS BLOB))
    THEN CASE json_type(result) WHEN 'object' THEN json_array(json_extract(result, ?)) END END"""

# Whether a record's text names another cell than its row does.
_MISNAMED = """CASE WHEN json_valid(CAST(record AS TEXT)) THEN
    json_extract(record, '$.id') IS NOT id OR json_extract(record, '$.scenario.name') IS NOT scenario END"""


def is_store(path: Path) -> bool:
    """Whether a folder holds a store; whether the store can be opened is found out by opening it."""
    return (path / DATABASE).is_file()


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
            self._db = _open_to_read(self.path) if read_only else _open(self.path)
            self._db.text_factory = _text
            self._db.create_function("intact", 1, intact, deterministic=True)
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version not in ((SCHEMA,) if read_only else (0, SCHEMA)):
                raise StoreError(
                    f"{self.path}: a store of schema {version}; this version reads schema {SCHEMA}"
                )
            if not read_only:
                self._db.executescript(_TABLES)
            if version == 0:  # only in a new store: an old one can then be read even where the disk is full
                self._db.execute(f"PRAGMA user_version={SCHEMA}")
        except (sqlite3.Error, OSError) as error:
            # Where there is a lock file, another process has begun to use it.
            if self._made and not read_only and not (self.path / "lock").exists():
                take_away(self.path, folder=self._new)
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> StoreError:
        """Why a store cannot be opened, and what can be done about it."""
        if _is_damage(error):
            return damaged(self.path, error)
        file = self.path / DATABASE
        closed = [path for path in (self.path, file) if path.exists() and not os.access(path, os.W_OK)]
        if closed and not self.read_only:
            return cannot_write(self.path, f"no write access to {closed[0]} ({error})")
        return StoreError(f"cannot use the store {self.path}: {error}")

    def check(self) -> str | None:
        """What is wrong with the database file, or None if nothing is wrong."""
        try:
            (found,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
            for table in ("stages", "records", "facts"):
                self._db.execute(f"SELECT * FROM {table} LIMIT 1").fetchall()
        except sqlite3.Error as error:
            return str(error)
        return None if found == "ok" else str(found)

    @classmethod
    def reading(cls, path: str | Path) -> Store:
        """Opens a store for a caller that only reads: read_only where the user or the file system may not write it."""
        file = Path(path) / DATABASE
        return cls(path, read_only=file.exists() and not _may_write(file))

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
        would look for results in it.
        """
        path = self.path / "lock"
        try:
            file = path.open("a+")
        except OSError as error:
            raise cannot_write(self.path, error.strerror or error) from error
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise StoreError(
                    f"the store {self.path} is in use by {owner}; wait for it, or use --store DIR"
                ) from None
            # This may fail on a full disk. The name only tells others who holds the lock, which is held anyway.
            with contextlib.suppress(OSError):
                file.seek(0)
                file.truncate()
                file.write(f"process {os.getpid()}")
                file.flush()
            with contextlib.suppress(OSError):
                for draft in drafts(self.path):
                    draft.unlink()
            self._mend()
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

    def _mend(self) -> None:
        """Makes indexes that lack rows again: the row of a cell would not be found, and a second be written beside it.

        A record under another name than its own is removed. Raises StoreError where the tables are damaged as well.
        """
        if self._made or self._execute("PRAGMA integrity_check(1)")[0][0] == "ok":
            return
        try:
            self._db.execute("REINDEX")
            self._db.execute(f"DELETE FROM records WHERE {_MISNAMED}")
        except sqlite3.Error as error:
            raise (damaged if _is_damage(error) or _is_double(error) else cannot_write)(
                self.path, error
            ) from error

    def in_place(self) -> bool:
        """Whether a store that is locked is still where it was opened: a new one made in its place has no lock file."""
        return (self.path / "lock").exists()

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows of a statement. Raises StoreError for whatever the database reports."""
        return list(self._each(statement, values))

    def _each(self, statement: str, values: Sequence[Any] = ()) -> Iterator[Any]:
        try:
            yield from self._db.execute(statement, values)
        except sqlite3.Error as error:
            if _is_damage(error):
                raise damaged(self.path, error) from error
            if statement.startswith("SELECT"):
                raise StoreError(f"the store {self.path} cannot be read: {error}") from error
            raise cannot_write(self.path, error) from error

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
        self._execute("INSERT OR REPLACE INTO stages VALUES (?,?,?,?,?,?,?,?)", row)

    def stage_result(self, key: str) -> dict[str, Any] | None:
        """The result of a finished stage, or None, also where it is damaged or one of its artifacts is missing."""
        rows = self._execute("SELECT result FROM stages WHERE key=? AND status='done'", (key,))
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
        rows = self._execute("SELECT 1 FROM stages UNION ALL SELECT 1 FROM records LIMIT 1")
        return not rows and not any(p.is_file() for p in (self.path / "artifacts").rglob("*"))

    def stage_rows(self) -> list[StageRow]:
        """Every finished stage, the earliest first. Raises StoreError for a damaged one."""
        rows = self._execute(
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
        rows = self._execute(f"SELECT key, {_PART} FROM stages WHERE status='done'", ("$.artifacts",))
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
        rows = self._execute(
            "SELECT kind, signature, AVG(seconds) FROM stages WHERE status='done' GROUP BY kind, signature"
        )
        return {(kind, signature): seconds for kind, signature, seconds in rows}

    def peak_memory(self, signatures: Collection[tuple[str, str]]) -> int | None:
        """The most bytes that any finished stage of these (kind, signature) used; None where there is no such stage."""
        rows = self._execute(
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
        self._execute("INSERT OR REPLACE INTO records VALUES (?,?,?,?,?,?)", row)

    def record(self, scenario: str, cell: str, fingerprint: str | None = None) -> dict[str, Any] | None:
        """A cell's record, or None; with a fingerprint, only if it is intact and made from exactly those stages.

        Raises StoreError for a damaged record where no fingerprint is given: a caller with one can make it again.
        """
        rows = self._execute(
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
        where, values = ("", ()) if scenario is None else (" WHERE scenario=?", (scenario,))
        for record, _ in self._records(where, values, lost):
            yield record

    def _records(
        self, where: str, values: Sequence[Any], lost: list[StoreError] | None = None
    ) -> Iterator[tuple[dict[str, Any], str]]:
        statement = f"SELECT scenario, id, record, fingerprint FROM records{where} ORDER BY rowid"
        for scenario, cell, text, mark in self._each(statement, values):
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
        rows = self._execute("SELECT value FROM facts WHERE key=?", (key,))
        return _object(rows[0][0]) if rows else None

    def facts(self) -> dict[str, dict[str, Any]]:
        """All small cached objects by key, except damaged ones."""
        found = {key: _object(value) for key, value in self._execute("SELECT key, value FROM facts")}
        return {key: value for key, value in found.items() if value is not None}

    def put_fact(self, key: str, value: dict[str, Any]) -> None:
        """Cache a small JSON object; does nothing in a read-only store."""
        if not self.read_only:
            self._execute("INSERT OR REPLACE INTO facts VALUES (?,?)", (key, seal(value)))

    def adopt(
        self,
        stages: Iterable[StageRow],
        records: Iterable[tuple[dict[str, Any], str]],
        facts: Mapping[str, dict[str, Any]],
    ) -> None:
        """Take over stages, records with their fingerprints, and facts of other stores: all of it or nothing."""
        with self._transaction():
            for row in stages:
                values = (*row[:4], "done", seal(row.result), row.seconds, row.finished)
                self._execute("INSERT OR REPLACE INTO stages VALUES (?,?,?,?,?,?,?,?)", values)
            for record, mark in records:
                self.put_record(record, mark)
            for key, value in facts.items():
                self.put_fact(key, value)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # on a full disk SQLite has rolled it back already
                self._execute("ROLLBACK")
            raise


def _is_damage(error: Exception) -> bool:
    """Whether an error says that the database file is damaged, or is no database."""
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def _is_double(error: Exception) -> bool:
    """Whether an error says that two rows have one key, as they can only where the index was damaged before."""
    return isinstance(error, sqlite3.IntegrityError)


def _may_write(database: Path) -> bool:
    """Whether the database can be written, and its folder, where SQLite makes further files."""
    return all(os.access(path, os.W_OK) for path in (database, database.parent))


def _open(folder: Path) -> sqlite3.Connection:
    database = sqlite3.connect(folder / DATABASE, timeout=60, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=NORMAL")
    return database


def _open_to_read(folder: Path) -> sqlite3.Connection:
    """A connection that writes nothing. Raises sqlite3.Error, OSError."""
    file = folder / DATABASE
    if not is_store(folder):
        raise FileNotFoundError(f"it holds no {DATABASE}")
    address = f"file:{quote(str(file.absolute()))}?mode=ro"
    try:
        database = sqlite3.connect(address, uri=True, timeout=60, isolation_level=None)
        database.execute("SELECT 1 FROM sqlite_schema").fetchone()
        return database
    except sqlite3.OperationalError:
        # SQLite wants to make files beside the database, and cannot. `immutable` does without them, but does not
        # see what a killed run has left in the log.
        log = file.with_name(f"{DATABASE}-wal")
        if log.exists() and log.stat().st_size:
            raise
        return sqlite3.connect(f"{address}&immutable=1", uri=True, isolation_level=None)


def _text(data: bytes) -> str:
    """Text as it was written. Damaged bytes are replaced instead of raising here; whoever reads the text rejects it."""
    return data.decode(errors="replace")


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
