"""How long 20,000 cells take to become a page, how large it is, and how long its first sort takes in a browser.

    python tests/benchmarks/leaderboard.py --json leaderboard.json

The submissions are made up. A sort is timed in the page, from the click on a column's header until the next frame
after the table was drawn; it needs Chromium and Playwright and is left out without them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "leaderboard")]

import synthetic  # noqa: E402

from harness.leaderboard.build import build  # noqa: E402

CELLS_A_ROW = len(synthetic.ATTACKS)
SORT = """title => new Promise(done => {
  const start = performance.now();
  table.on("dataSorted", () => requestAnimationFrame(() => setTimeout(() => done(performance.now() - start))));
  [...document.querySelectorAll("#table button.head")].find(head => head.textContent.startsWith(title)).click();
})"""


def make(folder: Path, cells: int, submissions: int) -> None:
    """So many cells of one board, in so many files."""
    rows = cells // CELLS_A_ROW // submissions
    for number in range(submissions):
        synthetic.put(
            folder, synthetic.realistic(f"lab{number}", rows=rows, start=rows * number, numbers=number)
        )


def first_sort(page: Path, repeats: int) -> list[float] | None:
    """Milliseconds of the first sort of a freshly opened page; None without a browser."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if chromium is None:
        return None
    found = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        for _ in range(repeats):
            opened = browser.new_page(viewport={"width": 1400, "height": 900})
            opened.set_default_timeout(300_000)
            opened.goto(page.as_uri())
            opened.locator("body[data-ready]").wait_for()
            found.append(float(opened.evaluate(SORT, "Robust, worst")))
            opened.close()
        browser.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--submissions", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, args.cells, args.submissions)
        start = time.perf_counter()
        facts = build(folder)
        rows: dict[str, Any] = {"cells": facts["cells"], "build_seconds": time.perf_counter() - start}
        rows["page_megabytes"] = (folder / "index.html").stat().st_size / 1e6
        sorts = first_sort(folder / "index.html", args.repeats)
    rows["first_sort_milliseconds"] = None if sorts is None else statistics.median(sorts)
    print(
        f"{rows['cells']:,} cells: built in {rows['build_seconds']:.1f} s, a page of {rows['page_megabytes']:.1f} MB"
    )
    print(
        "no browser: no sort was timed" if sorts is None else f"first sort: {statistics.median(sorts):.0f} ms"
    )
    if args.json:
        settings = vars(args) | {"json": str(args.json)}
        args.json.write_text(json.dumps({"settings": settings, "rows": [rows], "sorts": sorts}, indent=2))


if __name__ == "__main__":
    main()
