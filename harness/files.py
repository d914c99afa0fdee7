"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(target: Path, *, sync: bool = False) -> Iterator[Path]:
    """The path of a draft beside `target`, which takes its place in one step when the block ends.

    Where the block raises, the draft is removed and the target is what it was. Each writer has a draft of its own.
    The block creates it, so its permissions are those of any new file. sync: its content is on the disk before it is
    in place. Errors of the system about the draft name the target.
    """
    draft = target.with_name(f".{target.name}.{os.urandom(4).hex()}.partial")
    try:
        yield draft
        if sync:
            with draft.open("rb") as written:
                os.fsync(written.fileno())
        draft.replace(target)
    except OSError as error:
        if error.filename != str(draft):
            raise
        raise OSError(error.errno, error.strerror, str(target)) from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def drafts(folder: Path) -> Iterator[Path]:
    """What writers that were killed left in a folder and below, where nobody writes now."""
    return folder.rglob(".*.partial")
