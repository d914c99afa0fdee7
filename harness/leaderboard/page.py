"""Boards as one self-contained web page: its data, and the template with scripts and styles put in."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources

from harness.leaderboard.board import Board, counts
from harness.leaderboard.columns import TABS
from harness.leaderboard.escaping import script, script_json
from harness.leaderboard.page_data import data
from harness.leaderboard.rank_figures import ranks

PACKAGE = "harness.leaderboard"
# In the order in which they run: later ones use what earlier ones declare. plotly.js is its basic bundle, which draws
# scatter plots and is a quarter of the size of the full one, which the Python package ships.
SCRIPTS = (
    "plotly-basic.min.js", "tabulator.min.js", "dom.js", "rows.js", "table.js", "scatter.js", "ranks.js", "card.js",
    "comparison.js", "export.js", "print.js", "main.js",
)  # fmt: skip


def page(found: Sequence[Board], files: Sequence[str]) -> str:
    """The text of index.html. files: what is published beside it, to be linked."""
    from jinja2 import Environment as Templates
    from jinja2 import PackageLoader, StrictUndefined

    templates = Templates(
        loader=PackageLoader(PACKAGE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    scripts = [script(_static(name), name) for name in SCRIPTS]
    return templates.get_template("index.html.j2").render(
        data=script_json(data(found)),
        scripts=scripts,
        hashes=[_sha256(text) for text in scripts],
        styles=[_static("tabulator.min.css"), _static("leaderboard.css")],
        licences={name: _static(f"{name}-LICENSE.txt") for name in ("plotly", "tabulator")},
        files=files,
        tabs=TABS,
        ranks=ranks(found),
        counts=counts(found),
    )


def _static(name: str) -> str:
    text = resources.files(PACKAGE).joinpath("static", name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "sourceMappingURL=" not in line]
    return "\n".join(lines) + "\n"


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
