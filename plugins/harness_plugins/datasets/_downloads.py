"""Where data sets that can be downloaded are looked for, and where they go."""

from __future__ import annotations

import os
from pathlib import Path

from harness.api import HarnessError, find_file


def given(path: str, root: Path | None, download: bool) -> list[Path]:
    """What a path means, in a list; an empty one where it is not there and `download` is set.

    Raises HarnessError where it is not there and nothing may be downloaded.
    """
    try:
        return [find_file(path, root)]
    except HarnessError:
        if not download:
            raise
        return []


def made(path: str | Path) -> Path:
    """The folder that downloads go to, made if need be; environment variables in the path are filled in."""
    folder = Path(os.path.expanduser(os.path.expandvars(path)))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
