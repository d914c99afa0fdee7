"""Files that are written whole or not at all, and folders that do not outlive their use."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
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


FRESH = 60.0  # seconds for which a temporary folder may not be locked yet


@contextlib.contextmanager
def temporary_folder(prefix: str, place: str | None = None) -> Iterator[Path]:
    """A folder that is deleted when the block ends. Those that killed processes left go when the next one is made.

    prefix: of its name, for this use alone. place: where to make it; None for the system's temporary folder.
    """
    with tempfile.TemporaryDirectory(prefix=prefix, dir=place, ignore_cleanup_errors=True) as name:
        held = os.open(name, os.O_RDONLY)
        try:
            # On a file system without locks nobody else gets one either, and nothing is removed.
            with contextlib.suppress(OSError):
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for other in Path(name).parent.glob(f"{prefix}*"):
                with contextlib.suppress(OSError):
                    _remove_abandoned(other)
            yield Path(name)
        finally:
            os.close(held)


def _remove_abandoned(folder: Path) -> None:
    """Removes a temporary folder of this user that no process has locked. Raises OSError where it must stay."""
    facts = folder.lstat()
    if facts.st_uid != os.getuid() or time.time() - facts.st_mtime < FRESH:
        return
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(held)
