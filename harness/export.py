"""Records as tables: pandas, JSON lines, CSV and Parquet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, did_you_mean
from harness.files import replacing
from harness.strict_json import dumps

if TYPE_CHECKING:
    import pandas

FORMATS = (".jsonl", ".csv", ".parquet")


def to_frame(records: list[dict[str, Any]]) -> pandas.DataFrame:
    """One row per record: scenario, axes, status, reason, then one column per score.

    A score with the name of an earlier column gets the suffix `-score`.
    """
    import pandas

    facts = [
        {
            "scenario": r["scenario"]["name"],
            "id": r["id"],
            **r["cell"],
            "status": r["status"],
            "reason": r["reason"] or (r["error"] or {}).get("message"),
            "flags": ",".join(r["flags"]),
            "guarantee_holds": None if r["guarantee"] is None else r["guarantee"]["holds"],
        }
        for r in records
    ]
    rows = [
        fact | {f"{name}-score" if name in fact else name: value for name, value in r["scores"].items()}
        for fact, r in zip(facts, records, strict=True)
    ]
    return pandas.DataFrame(rows)


def check_format(path: str | Path) -> None:
    """Raises HarnessError where no file can be written, or its ending is not one of FORMATS or lacks its library.

    Called before a run, so that this is not found out hours later.
    """
    suffix, folder = Path(path).suffix, Path(path).resolve().parent
    if suffix not in FORMATS:
        raise HarnessError(f"--export {path}: unknown ending {suffix!r}; {did_you_mean(suffix, FORMATS)}")
    if not folder.is_dir():
        raise HarnessError(f"--export {path}: the folder {folder} does not exist")
    # The file is written under another name in its folder, and then renamed.
    if not os.access(folder, os.W_OK | os.X_OK):
        raise HarnessError(f"--export {path}: no write access to the folder {folder}")
    if Path(path).is_dir():
        raise HarnessError(f"--export {path}: a folder is there; name a file")
    if suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise HarnessError("--export to Parquet needs pyarrow: pip install 'psr-harness[hf]'") from None


def export(records: list[dict[str, Any]], path: str | Path) -> None:
    """Write records in the format of the ending of `path`: JSON lines keep whole records, tables one row per cell.

    Raises HarnessError where the file cannot be written; one that was there before is then left as it was.
    """
    check_format(path)
    target = Path(path)
    try:
        with replacing(target) as draft:
            if target.suffix == ".jsonl":
                draft.write_text("".join(dumps(record) + "\n" for record in records))
            elif target.suffix == ".csv":
                to_frame(records).to_csv(draft, index=False)
            else:
                to_frame(records).to_parquet(draft, index=False)
    except OSError as error:
        raise HarnessError(f"--export {path}: {error.strerror or error}") from error
