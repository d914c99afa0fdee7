"""What the figures share: colours, a canvas that needs no display, and files that are written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness.errors import HarnessError, did_you_mean
from harness.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".pdf", ".png", ".svg")
# Okabe and Ito's colours, told apart with any colour vision; the marker tells series apart in black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"
LINES = ("-", "--", ":", "-.")


class Style(NamedTuple):
    """How a series is drawn, by matplotlib's names."""

    color: str
    marker: str
    linestyle: str


def series_style(number: int) -> Style:
    """The style of a series by its number: seven colours, then the same colours with other markers and lines."""
    turn, place = divmod(number, len(COLOURS))
    return Style(COLOURS[place], MARKERS[(place + turn) % len(MARKERS)], LINES[turn % len(LINES)])


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

    with matplotlib.rc_context({"font.size": 8, "svg.fonttype": "none", "svg.hashsalt": "harness"}):
        drawn = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(drawn)
        yield drawn
        metadata = {"Date": None} if out.suffix == ".svg" else None
        with written(out) as draft:
            drawn.savefig(draft, format=out.suffix[1:], dpi=200, metadata=metadata)
