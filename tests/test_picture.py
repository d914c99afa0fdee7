"""`harness picture`: what a backdoor's trigger looks like."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from harness.cli import main
from harness.console.picture import strips
from harness.scenario import load_text

BASE = """
schema: 1
name: backdoors
dataset: digits
model: {mlp: {hidden: [8]}}
threats:
"""
ATTACKS = "  - {name: b, malicious: 0.2, attacks: [badnets: {target: 3}, dba, edge-case, label-flip]}\n"


def test_rows_are_the_images_the_triggered_ones_and_the_difference():
    badnets, dba, edge = strips(load_text(BASE + ATTACKS), 5)
    plain, triggered, difference = badnets.rows
    assert plain.shape == (5, 1, 8, 8)
    np.testing.assert_allclose(difference.numpy(), ((triggered - plain) / 2 + 0.5).numpy())
    assert (triggered[..., -2:, -2:] == 1).all()
    assert badnets.caption.startswith("badnets(target=3), target class 3")
    assert len(dba.rows) == 3
    assert len(edge.rows) == 1


def test_the_file_is_an_image(tmp_path, capsys):
    path, out = tmp_path / "s.yaml", tmp_path / "t.png"
    path.write_text(BASE + ATTACKS)
    assert main(["picture", str(path), "--out", str(out), "--count", "3"]) == 0
    assert "3 backdoors" in capsys.readouterr().out
    width, height = Image.open(out).size
    assert width >= 3 * 96
    assert height >= 7 * 96


@pytest.mark.parametrize(
    ("threat", "out", "message"),
    [
        ("  - {name: none}\n", "t.png", "no threat has a backdoor"),
        (ATTACKS, "t.nonsense", "ends in .png"),
        (ATTACKS, "nowhere/t.png", "nowhere/t.png: No such file or directory\n"),
        (
            "  - {name: b, malicious: 0.2, attacks: [badnets: {target: 12}]}\n",
            "t.png",
            "classes run from 0 to 9",
        ),
    ],
)
def test_bad_input_is_one_clear_error(threat, out, message, tmp_path, capsys):
    path = tmp_path / "s.yaml"
    path.write_text(BASE + threat)
    assert main(["picture", str(path), "--out", str(tmp_path / out)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / out).exists()
