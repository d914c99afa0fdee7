"""The published leaderboard: index.html, README.md, leaderboard.csv and leaderboard.parquet from records/*.json.

The same records give the same bytes: no clock is read, and files are taken in order of their names.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.console.pooling import AXES
from harness.errors import HarnessError
from harness.files import replacing
from harness.leaderboard import submission as submissions
from harness.leaderboard.board import Board, boards, counts, every_column
from harness.leaderboard.escaping import cell
from harness.leaderboard.markdown import readme
from harness.leaderboard.page import page

if TYPE_CHECKING:
    import pandas

PAGE, README, CSV, PARQUET = "index.html", "README.md", "leaderboard.csv", "leaderboard.parquet"
NO_PARQUET = f"{PARQUET} was not written: pyarrow is not installed (pip install 'psr-harness[hf]')"


def build(folder: Path, out: Path | None = None) -> dict[str, Any]:
    """Writes the pages of the submissions in `folder`/records into `out`, by default `folder` itself.

    Every file is made before the first one is put into place. Returns the paths written, how many boards,
    submissions, rows and cells they show, and notes. Raises HarnessError for a folder without submissions, for a
    file that is not a submission, and for two submissions of one name on one board.
    """
    with _no_collection():
        return _build(folder, folder if out is None else out)


def _build(folder: Path, target: Path) -> dict[str, Any]:
    found = boards(load(folder))
    table = to_frame(found)
    notes = []
    files: dict[str, Callable[[Path], object]] = {CSV: lambda path: _write_csv(table, path)}
    try:
        import pyarrow  # noqa: F401

        files[PARQUET] = lambda path: table.to_parquet(path, index=False)
    except ImportError:
        notes.append(NO_PARQUET)
    beside = list(files)
    index, text = page(found, beside), readme(found, beside)
    files[PAGE] = lambda path: path.write_text(index, encoding="utf-8", newline="\n")
    files[README] = lambda path: path.write_text(text, encoding="utf-8", newline="\n")
    written = _write(target, files)
    if PARQUET not in files and (target / PARQUET).exists():
        notes.append(f"{target / PARQUET} is of an earlier build")
    return {
        "written": written,
        **counts(found),
        "superseded": [board.label for board in found if board.superseded],
        "notes": notes,
    }


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Turns the garbage collector off.

    Submissions are millions of objects that live to the end: looking for garbage among them doubles the time.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def load(folder: Path) -> list[submissions.Submission]:
    """Every submission in `folder`/records, by file name. Raises HarnessError as `build` does."""
    records = folder / "records"
    if not records.is_dir():
        raise HarnessError(f"{records}: no such folder; submissions are the files in it that end in .json")
    paths = sorted(records.glob("*.json"), key=lambda path: path.name)
    if not paths:
        raise HarnessError(f"{records}: no submission; `harness leaderboard submit` writes one")
    found = [submissions.read(path) for path in paths]
    names: dict[tuple[str, str], Path] = {}
    for path, one in zip(paths, found, strict=True):
        key = (one.scenario.board, one.name)
        if key in names:
            raise HarnessError(f"{path}: {names[key].name} is already the submission {one.name} of {key[0]}")
        names[key] = path
    return found


def to_frame(found: Sequence[Board]) -> pandas.DataFrame:
    """One row per configuration of a submission. Numbers are in the scores' own units, with the number of seeds."""
    import pandas

    rows, columns = [], every_column(found)
    for board in found:
        for row in board.rows:
            one = row.submission
            claim = row.claim
            epsilon = row.values.get("epsilon")
            line: dict[str, Any] = {
                "id": row.id, "scenario": board.name, "version": board.version, "superseded": board.superseded,
                "dataset": one.scenario.dataset, "submission": one.name, "created": one.created,
                "official": one.official,
                "verification": one.verification.verdict if one.verification else "unverified",
                **dict(zip(AXES, row.axes, strict=True)),
                "guarantee": (epsilon.text if epsilon and epsilon.text else "holds") if epsilon else "",
                "guarantee_unit": claim.unit if claim else "",
                "delta": claim.delta if claim else math.nan,
                "flags": " ".join(row.flags),
            }  # fmt: skip
            for column in columns:
                value = row.values.get(column.key)
                mean, low, high, seeds = value.estimate if value else (math.nan, None, None, 0)
                line[column.key] = mean
                if column.pooling != "claim":
                    line[f"{column.key}_low"] = math.nan if low is None else low
                    line[f"{column.key}_high"] = math.nan if high is None else high
                line[f"{column.key}_seeds"] = seeds
                line[f"{column.key}_signs"] = value.signs if value else ""
            rows.append(line)
    return pandas.DataFrame(rows)


def _write_csv(table: pandas.DataFrame, path: Path) -> None:
    """Text that a spreadsheet would take for a formula is prefixed with an apostrophe; numbers stay as they are."""
    safe = table.copy()
    for name in safe.columns:
        if safe[name].dtype.kind not in "biuf":
            safe[name] = [cell(str(value)) for value in safe[name]]
    safe.to_csv(path, index=False, lineterminator="\n", encoding="utf-8")


def _write(target: Path, files: dict[str, Callable[[Path], object]]) -> list[str]:
    """Writes all files as drafts first, then moves each into its place in one step, in their order."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as drafts:
            for name, make in reversed(files.items()):  # the last one made is the first one put into place
                make(drafts.enter_context(replacing(target / name)))
    except OSError as error:
        raise HarnessError(f"{error.filename or target}: {error.strerror or error}") from None
    return [str(target / name) for name in files]
