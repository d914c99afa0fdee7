"""What the figures share: colours, a canvas that needs no display, and files that are written whole or not at all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness.console.output import in_lines
from harness.errors import HarnessError, did_you_mean
from harness.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".pdf", ".png", ".svg")
# Okabe and Ito's colours, told apart with any colour vision; the marker tells series apart in black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"
LINES = ("-", "--", ":", "-.")
CHARACTER = 0.06  # inches that a character takes at most, in eight points
HANDLE = 8  # characters that the line before a legend's text takes


class Style(NamedTuple):
    """How a series is drawn, by matplotlib's names."""

    color: str
    marker: str
    linestyle: str


def series_style(number: int) -> Style:
    """The style of a series by its number: seven colours, then the same colours with other markers and lines."""
    turn, place = divmod(number, len(COLOURS))
    return Style(COLOURS[place], MARKERS[(place + turn) % len(MARKERS)], LINES[turn % len(LINES)])


def heading(text: str, width: float) -> str:
    """A title of nine points in lines that fit into a figure `width` inches wide."""
    return in_lines(text, int(8 * width / CHARACTER / 9))


class Legend(NamedTuple):
    """The labels of a legend, in lines; how many stand side by side; how many inches they are high together."""

    labels: list[str]
    columns: int
    height: float


def legend_within(labels: Sequence[str], width: float, most: int) -> Legend:
    """A legend that fits into a figure `width` inches wide, with as many columns as fit, at most so many."""
    room = int(width / CHARACTER)
    filled = [in_lines(label, room - HANDLE) for label in labels]
    columns = min(most, len(labels))
    while columns > 1 and sum(map(_characters, _columns(filled, columns))) > room:
        columns -= 1
    rows = math.ceil(len(labels) / columns) * max(label.count("\n") + 1 for label in filled)
    return Legend(filled, columns, 0.14 * rows)


def _columns(labels: Sequence[str], columns: int) -> list[Sequence[str]]:
    """The labels of each column, as matplotlib divides them: the first columns have one more where it is uneven."""
    rows, longer = divmod(len(labels), columns)
    ends = [rows * number + min(number, longer) for number in range(columns + 1)]
    return [labels[start:end] for start, end in pairwise(ends)]


def _characters(labels: Sequence[str]) -> int:
    """How many characters a column of a legend is wide."""
    return HANDLE + max(len(line) for label in labels for line in label.split("\n"))


def check_format(out: Path) -> None:
    """Raises HarnessError if the ending names no format of figures."""
    if out.suffix not in FORMATS:
        raise HarnessError(f"--out {out}: unknown ending {out.suffix!r}; {did_you_mean(out.suffix, FORMATS)}")


@contextmanager
def written(out: Path) -> Iterator[Path]:
    """The path of a draft, which takes the place of `out` when the block ends. Raises HarnessError."""
    try:
        with replacing(out) as draft:
            yield draft
    except OSError as error:
        raise HarnessError(f"--out {out}: {error.strerror or error}") from None


@contextmanager
def figure(out: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure of width x height inches, written to `out` when the block ends. Raises HarnessError."""
    check_format(out)
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(
        {"font.size": 8, "svg.fonttype": "none", "svg.hashsalt": "harness", "text.parse_math": False}
    ):
        drawn = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(drawn)
        yield drawn
        metadata = {"Date": None} if out.suffix == ".svg" else None
        with written(out) as draft:
            drawn.savefig(draft, format=out.suffix[1:], dpi=200, metadata=metadata)
