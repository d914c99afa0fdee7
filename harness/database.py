"""The SQLite database of a store: how it is opened, what its errors mean, and how damaged indexes are made again."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from harness.artifacts import cannot_write, damaged
from harness.errors import StoreError
from harness.sealed import intact

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

# Whether a record's text names another cell than its row does.
_MISNAMED = """CASE WHEN json_valid(CAST(record AS TEXT)) THEN
    json_extract(record, '$.id') IS NOT id OR json_extract(record, '$.scenario.name') IS NOT scenario END"""


def is_store(path: Path) -> bool:
    """Whether a folder holds a store; whether the store can be opened is found out by opening it."""
    return (path / DATABASE).is_file()


def may_write(folder: Path) -> bool:
    """Whether a store's database can be written, and its folder, where SQLite makes further files."""
    return all(os.access(path, os.W_OK) for path in (folder / DATABASE, folder))


class Database:
    """A connection to the database of a store folder. Every error of SQLite is raised as a StoreError.

    Statements can call `intact(blob)`, which says whether a sealed text is as it was written; see harness.sealed.
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self.folder = folder
        try:
            self._connection = _open_to_read(folder) if read_only else _open(folder)
            self._connection.text_factory = _text
            self._connection.create_function("intact", 1, intact, deterministic=True)
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version not in ((SCHEMA,) if read_only else (0, SCHEMA)):
                raise StoreError(f"{folder}: a store of schema {version}; this version reads schema {SCHEMA}")
            if not read_only:
                self._connection.executescript(_TABLES)
            if version == 0:  # only in a new store: an old one can then be read even where the disk is full
                self._connection.execute(f"PRAGMA user_version={SCHEMA}")
        except (sqlite3.Error, OSError) as error:
            raise _unusable(folder, error, read_only) from error

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows of a statement."""
        return list(self.each(statement, values))

    def each(self, statement: str, values: Sequence[Any] = ()) -> Iterator[Any]:
        """The rows of a statement, one at a time."""
        try:
            yield from self._connection.execute(statement, values)
        except sqlite3.Error as error:
            if _is_damage(error):
                raise damaged(self.folder, error) from error
            if statement.startswith("SELECT"):
                raise StoreError(f"the store {self.folder} cannot be read: {error}") from error
            raise cannot_write(self.folder, error) from error

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All that the block writes, or nothing of it."""
        self.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # on a full disk SQLite has rolled it back already
                self.execute("ROLLBACK")
            raise

    def check(self) -> str | None:
        """What is wrong with the file, or None if nothing is wrong."""
        try:
            (found,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
            for table in ("stages", "records", "facts"):
                self._connection.execute(f"SELECT * FROM {table} LIMIT 1").fetchall()
        except sqlite3.Error as error:
            return str(error)
        return None if found == "ok" else str(found)

    def mend(self) -> None:
        """Makes indexes that lack rows again: the row of a cell would not be found, and a second be written beside it.

        A record under another name than its own is removed. Raises StoreError where the tables are damaged as well.
        """
        if self.execute("PRAGMA integrity_check(1)")[0][0] == "ok":
            return
        try:
            self._connection.execute("REINDEX")
            self._connection.execute(f"DELETE FROM records WHERE {_MISNAMED}")
        except sqlite3.Error as error:
            said = damaged if _is_damage(error) or _is_double(error) else cannot_write
            raise said(self.folder, error) from error


def _unusable(folder: Path, error: Exception, read_only: bool) -> StoreError:
    """Why a store cannot be opened, and what can be done about it."""
    if _is_damage(error):
        return damaged(folder, error)
    places = (folder, folder / DATABASE)
    closed = [path for path in places if path.exists() and not os.access(path, os.W_OK)]
    if closed and not read_only:
        return cannot_write(folder, f"no write access to {closed[0]} ({error})")
    return StoreError(f"cannot use the store {folder}: {error}")


def _is_damage(error: Exception) -> bool:
    """Whether an error says that the database file is damaged, or is no database."""
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def _is_double(error: Exception) -> bool:
    """Whether an error says that two rows have one key, as they can only where the index was damaged before."""
    return isinstance(error, sqlite3.IntegrityError)


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
