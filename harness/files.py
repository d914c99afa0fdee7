"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(target: Path, *, sync: bool = False) -> Iterator[Path]:
    """The path of a draft beside `target`; when the block ends, the draft replaces the target in one step.

    Where the block raises, the draft is removed and the target stays as it was. Each writer has a draft of its own. The
    block creates the draft, so its permissions are those of any new file. sync: its content is on the disk before it
    replaces the target. The system's errors about the draft are raised with the target's name.
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
    """The drafts in a folder and below. If nobody writes there now, they are what killed writers left behind."""
    return folder.rglob(".*.partial")
