"""How submissions write things: portable text without invisible characters, cells in words, plain JSON."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.leaderboard.submission import unseen
from harness.yaml_loader import parse as parse_yaml

AXES = ("defence", "aggregator", "compressor", "threat", "attack")
_ABSOLUTE = re.compile(r"/[\w.-]|~[\w.-]*/|\\\\\w|[A-Za-z]:[\\/]|file:", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)")
_FOLDERS = re.compile(r"(?<![\w/.:~}-])(?:~|[A-Za-z]:)?[\\/](?:[^\s'\":,;()<>\\/]+[\\/])+")


def unportable(text: str) -> str | None:
    """Why a scenario's text works on one machine only, in a sentence; None if it is portable.

    In a portable text, paths are relative or begin with ${HARNESS_DATA}, no other variable is used, and this machine's
    home is not named.
    """
    home = os.path.expanduser("~")  # stays as it is where no home is known
    if len(home) > 1 and re.search(rf"(?<![\w.}}/-]){re.escape(home)}(?![\w-])", text):
        return f"its text names this machine's home, {home}; write paths relative to the scenario or $HARNESS_DATA"
    for value in _texts(parse_yaml(text).data):
        if _ABSOLUTE.match(value.strip()):
            return (
                f"its text holds the absolute path {value[:100]!r}, which is of no use elsewhere; "
                "write it relative to the scenario, or to ${HARNESS_DATA}"
            )
        for variable in _VARIABLE.findall(value):
            if variable != "HARNESS_DATA":
                return f"its text uses the variable {variable}; others have $HARNESS_DATA alone"
    return None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


def without_folders(text: str) -> str:
    """The text without the folders of absolute paths: `/home/me/x.npz is gone` -> `x.npz is gone`."""
    return _FOLDERS.sub("", text)


def shorten(text: str, length: int) -> str:
    """The text, cut to at most `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def line(text: str, length: int = 400) -> str:
    """The text on one line, without invisible characters, cut to at most `length` characters."""
    flat = " ".join(str(text).split())
    return shorten("".join(c for c in flat if unseen(c) is None), length)


def cell_name(axes: Mapping[str, Any] | Sequence[str], seed: Any = None, width: int = 200) -> str:
    """`dp-sgd / mean / static-int8, evasion pgd, seed 0`: a cell in words, cut in the middle where it is long."""
    from harness.console.output import shorten as cut

    values = [axes[axis] for axis in AXES] if isinstance(axes, Mapping) else list(axes)
    defence, aggregator, compressor, threat, attack = map(str, values)
    under = threat if attack == "none" else f"{threat} {attack}"
    named = f"{defence} / {aggregator} / {compressor}" + f", {under}" * (under != "none")
    return cut(named, width) + ("" if seed is None else f", seed {seed}")


def plain(value: Any) -> Any:
    """A value as plain JSON; numbers that JSON lacks become the texts inf, -inf and nan."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value
