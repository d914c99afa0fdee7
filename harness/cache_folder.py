"""The folder for files that can be made again at any time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$HARNESS_CACHE, by default in the user's cache folder; it may not exist yet.

    Where the system knows no home of this user, as in containers that run under any number, it is a place where nothing
    can be made: whatever keeps files here does without.
    """
    own = os.environ.get("HARNESS_CACHE")
    if own:
        return Path(own)
    default = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.devnull if default.startswith("~") else default) / "psr-harness"
