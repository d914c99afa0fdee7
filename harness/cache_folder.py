"""The folder for files that can be made again at any time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$HARNESS_CACHE, by default in the user's cache folder; it may not exist yet."""
    own = os.environ.get("HARNESS_CACHE")
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "psr-harness"
    return Path(own) if own else default
