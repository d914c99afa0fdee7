"""Optional libraries: whether they are installed, found out without importing them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec


def to_install(extras: Mapping[str, str]) -> str | None:
    """The pip command that installs the missing ones; None where none is missing. extras: as in `Plugin.extras`."""
    missing = dict.fromkeys(wanted for module, wanted in extras.items() if find_spec(module) is None)
    return f"pip install {' '.join(map(repr, missing))}" if missing else None
