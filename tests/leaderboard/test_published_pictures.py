"""README's pictures of boards show what the published records say, not what an earlier run did."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "leaderboard"


def cells(board):
    (file,) = (FOLDER / "records").glob(f"{board}-v*--baselines.json")
    return json.loads(file.read_text(encoding="utf-8"))["cells"]


def mean(cell, score):
    return np.mean([seed["scores"][score] for seed in cell["seeds"].values()])


@pytest.mark.parametrize("board", ["quickstart", "privacy"])
def test_the_picture_of_a_table_has_the_accuracies_of_the_records(board):
    text = (FOLDER / f"{board}.svg").read_text(encoding="utf-8")
    rows: dict[float, list[tuple[float, str]]] = {}
    for x, y, shown in re.findall(r'<text class="[^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)</text>', text):
        rows.setdefault(float(y), []).append((float(x), html.unescape(shown)))
    words = [" ".join(part for _, part in sorted(row)).split() for row in rows.values()]
    numbers = [[w for w in row if re.fullmatch(r"\d+\.\d+", w)] for row in words]
    found = sorted(row[0] for row in numbers if len(row) > 5)  # accuracy is the first column
    clean = [cell for cell in cells(board) if cell["threat"] == "none"]
    assert len(clean) > 5
    assert found == sorted(f"{100 * mean(cell, 'accuracy'):.1f}" for cell in clean)


def test_the_curves_have_the_accuracies_of_the_records():
    scenario = yaml.safe_load((ROOT / "scenarios" / "evasion-compression.yaml").read_text(encoding="utf-8"))
    shape = len(scenario["compressors"]), len(scenario["defences"]), 6  # panels, lines, radii
    text = (FOLDER / "evasion-compression.svg").read_text(encoding="utf-8")
    # Marks of ticks have no fill; those of the legend come last.
    marks = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: #', text)[: np.prod(shape)]
    drawn = np.array(marks, dtype=float).reshape(*shape, 2)
    swept = [c for c in cells("evasion-compression") if c["attack"] == "pgd(steps=50)"]
    labels = [list(dict.fromkeys(c[axis] for c in swept)) for axis in ("compressor", "defence")]
    by_place = {(c["compressor"], c["defence"], c["eps"]): mean(c, "robust_accuracy") for c in swept}
    radii = sorted({c["eps"] for c in swept})
    lines = {(p, d): [by_place[p, d, eps] for eps in radii] for p in labels[0] for d in labels[1]}
    assert len(lines) == shape[0] * shape[1]
    assert len(radii) == shape[2]
    # Positions are linear in what they show, the same way in every panel.
    low, high = drawn[..., 1].max(), drawn[..., 1].min()
    values = np.array(list(lines.values()))
    shown = values.min() + (low - drawn[..., 1]) / (low - high) * (values.max() - values.min())
    shown = shown.reshape(-1, shape[2])
    order = np.lexsort(np.round(shown, 4).T)
    expected = values[np.lexsort(np.round(values, 4).T)]
    np.testing.assert_allclose(shown[order], expected, atol=1e-4)
    np.testing.assert_allclose(np.ptp(drawn[..., 0], axis=2), np.ptp(drawn[0, 0, :, 0]), atol=1e-4)
