"""The table of a run as a picture, with all the lines that a terminal shows below it."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.console.drawing import written
from harness.console.output import count_of
from harness.console.tables import render_leaderboard
from harness.errors import HarnessError, did_you_mean

FORMATS = (".svg",)
FONTS = "ui-monospace, SFMono-Regular, Menlo, DejaVu Sans Mono, monospace"


def draw_table(records: Sequence[dict[str, Any]], out: Path, title: str, width: int = 80) -> str:
    """Draws what a terminal of `width` columns shows of these records, with `title` above; returns `12 cells`.

    The file names fonts that most machines have, and loads none. Raises HarnessError.
    """
    if out.suffix not in FORMATS:
        raise HarnessError(f"--out {out}: a table is drawn as SVG alone; {did_you_mean(out.suffix, FORMATS)}")
    console = Console(
        record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor",
        legacy_windows=False, highlight=False, markup=False, emoji=False,
    )  # fmt: skip
    render_leaderboard(records, console)
    svg = re.sub(r"\s*@font-face \{.*?\}\n", "", console.export_svg(title=title), flags=re.DOTALL)
    svg = svg.replace("Fira Code, monospace", FONTS)
    with written(out) as draft:
        draft.write_text(svg, encoding="utf-8")
    return count_of(len(records), "cell")
