"""The figures and pictures that README takes from boards show what the published records say."""

import html
import json
import math
import re
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import yaml

ROOT = Path(__file__).parents[2]
BOARDS = ROOT / "leaderboard"
TEXT = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())


@cache
def cells(board):
    (file,) = (BOARDS / "records").glob(f"{board}-v*--baselines.json")
    return json.loads(file.read_text(encoding="utf-8"))["cells"]


def chosen(board, defence="none", attack="none", rule="mean", compressor="none", eps=None):
    """The cell whose labels begin with these words, stacks of as many parts; eps: where several radii are attacked."""
    (cell,) = (
        cell
        for cell in cells(board)
        if all(
            label.startswith(word) and label.count(" + ") == word.count(" + ")
            for label, word in ((cell["defence"], defence), (cell["aggregator"], rule))
        )
        and cell["compressor"].startswith(compressor)
        and cell["attack"].startswith(attack)
        and (eps is None or math.isclose(cell["eps"], eps))
    )
    return cell


def values(cell, score):
    """Over seeds, in the score's own unit."""
    return np.array([seed["scores"][score] for seed in cell["seeds"].values()])


def percent(board, score="accuracy", spread=False, **cell):
    """Mean over seeds in percent, with their sample standard deviation where asked for."""
    found = 100 * values(chosen(board, **cell), score)
    return f"{found.mean():.1f} ± {found.std(ddof=1):.1f}" if spread else f"{found.mean():.1f}"


def test_pneumonia():
    def of(**cell):
        return percent("pneumonia-small", spread=True, **cell)

    backdoor = {"score": "attack_success_rate", "attack": "badnets"}
    mixed = {"rule": "nnm + trimmed-mean", **backdoor}
    assert f"DP-SGD at epsilon 8 reached {of(defence='dp-sgd')} % accuracy" in TEXT
    assert f"undefended training {of()} %" in TEXT
    assert f"from {of(**backdoor)} to {of(**mixed)} %" in TEXT
    assert f"stayed at {of(defence='dp-sgd', **mixed)} %" in TEXT


def test_byzantine():
    def spread(found):
        return f"{100 * found.mean():.1f} ± {100 * found.std(ddof=1):.1f} %"

    def kept(rule):
        """Accuracy under the worst attack of each seed."""
        attacked = [cell for cell in cells("byzantine-fashion") if cell["aggregator"] == rule]
        attacked = [cell for cell in attacked if cell["threat"] == "byzantine"]
        assert len(attacked) == 7
        return np.min([values(cell, "accuracy") for cell in attacked], axis=0)

    def backdoor(rule):
        return spread(
            values(chosen("byzantine-fashion", attack="model-replacement", rule=rule), "attack_success_rate")
        )

    mixed = "nnm + trimmed-mean"
    assert f"{len({cell['aggregator'] for cell in cells('byzantine-fashion')})} rules, Fashion-MNIST" in TEXT
    clean = spread(values(chosen("byzantine-fashion"), "accuracy"))
    assert f"averaging reached {clean} without attackers and {100 * kept('mean').mean():.1f} % under" in TEXT
    assert (
        f"DnC kept {spread(kept('dnc'))}, CAF {spread(kept('caf'))} and `{mixed}` {spread(kept(mixed))};"
        in TEXT
    )
    assert f"`trimmed-mean` alone kept {spread(kept('trimmed-mean'))}." in TEXT
    assert f"`geometric-median` kept {spread(kept('geometric-median'))} accuracy" in TEXT
    assert f"in {backdoor('geometric-median')} of cases, where `{mixed}` left it {backdoor(mixed)}." in TEXT


def test_usynin():
    def of(**cell):
        return percent("usynin-2022", **cell)

    int8 = {"compressor": "static-int8"}
    linf = {"score": "robust_accuracy", "attack": "pgd("}
    trained = {"defence": "adversarial-training"}
    assert f"either undefended ({of()} to {of(**int8)} %)" in TEXT
    private = chosen("usynin-2022", defence="dp-sgd")
    epsilon = {round(seed["scores"]["epsilon"], 2) for seed in private["seeds"].values()}
    assert f"at epsilon {max(epsilon)} ({of(defence='dp-sgd')} to {of(defence='dp-sgd', **int8)} %)" in TEXT
    size = "serialized_bytes"
    spread = max(
        values(chosen("usynin-2022", defence=defence, **cell), "accuracy").std(ddof=1)
        for defence in ("none", "dp-sgd", "adversarial-training")
        for cell in ({}, int8)
    )
    assert f"with a standard deviation of up to {100 * spread:.0f} points" in TEXT
    share = values(chosen("usynin-2022", **int8), size) / values(chosen("usynin-2022"), size)
    assert f"{100 * share.mean():.0f} % of the bytes" in TEXT
    assert f"private model {of(defence='dp-sgd', **linf)} %" in TEXT
    transfer = {"score": "robust_accuracy", "attack": "transfer(attack=pgd(alpha=2/255,steps=20))"}
    assert (
        f"kept {of(defence='dp-sgd', **transfer)} % on adversarial examples made for the undefended" in TEXT
    )
    assert f"{of(**trained)} % without an attack, {of(**trained, **linf)} % under PGD" in TEXT
    defence = chosen("usynin-2022", **trained)["defence"]
    attacked = [
        values(cell, "robust_accuracy")
        for cell in cells("usynin-2022")
        if (cell["defence"], cell["compressor"]) == (defence, "none") and cell["attack"] != "none"
    ]
    assert len(attacked) == 6
    assert f"{100 * np.min(attacked, axis=0).mean():.1f} % under the worst attack" in TEXT


def test_evasion():
    def of(attack, **cell):
        return percent("evasion-compression", "robust_accuracy", attack=attack, eps=2 / 255, **cell)

    int8 = {"compressor": "static-int8"}
    assert f"int8 network kept {of('square', **int8)} % accuracy under the black-box Square" in TEXT
    assert f"{of('autoattack', **int8)} % under AutoAttack on its twin" in TEXT
    assert f"the float network kept {of('square')} % and {of('autoattack')} %" in TEXT


def test_privacy():
    def of(score, **cell):
        return values(chosen("privacy", attack="inverting-gradients", **cell), score).mean()

    psnr, gain = "reconstruction_psnr", "reconstruction_psnr_gain"
    assert f"the X-ray at {of(psnr):.0f} dB, {of(gain):.1f} dB above guessing" in TEXT
    private = {"defence": "dp-sgd(epsilon=1"}
    assert f"it gets {of(psnr, **private):.0f} dB, {-of(gain, **private):.0f} dB below that guess" in TEXT
    accuracy = 100 * values(chosen("privacy", **private), "accuracy")
    assert f"accuracy ranged from {accuracy.min():.0f} to {accuracy.max():.0f} %" in TEXT


@pytest.mark.parametrize(
    ("defence", "attack", "said"),
    [
        ("none", "rmia", "RMIA finds {} % of the members at 1 % false positives (three seeds)"),
        ("none", "lira", "LiRA {} %; thresholding"),
        ("none", "loss-threshold", "thresholding the loss finds {} %"),
        ("dp-sgd", "rmia", "RMIA and LiRA fall to {} %"),
        ("dp-sgd", "lira", "and {} %, where chance is 1 %"),
    ],
)
def test_membership(defence, attack, said):
    found = percent("membership-fashion", "mia_tpr_at_1pct_fpr", spread=True, defence=defence, attack=attack)
    assert said.format(found) in TEXT


# pictures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("board", ["quickstart", "privacy"])
def test_the_picture_of_a_table_has_the_accuracies_of_the_records(board):
    text = (BOARDS / f"{board}.svg").read_text(encoding="utf-8")
    rows: dict[float, list[tuple[float, str]]] = {}
    for x, y, shown in re.findall(r'<text class="[^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)</text>', text):
        rows.setdefault(float(y), []).append((float(x), html.unescape(shown)))
    words = [" ".join(part for _, part in sorted(row)).split() for row in rows.values()]
    numbers = [[w for w in row if re.fullmatch(r"\d+\.\d+", w)] for row in words]
    found = sorted(row[0] for row in numbers if len(row) > 5)  # accuracy is the first column
    clean = [cell for cell in cells(board) if cell["threat"] == "none"]
    assert len(clean) > 5
    assert found == sorted(f"{100 * values(cell, 'accuracy').mean():.1f}" for cell in clean)


def test_the_curves_have_the_accuracies_of_the_records():
    scenario = yaml.safe_load((ROOT / "scenarios" / "evasion-compression.yaml").read_text(encoding="utf-8"))
    shape = len(scenario["compressors"]), len(scenario["defences"]), 6  # panels, lines, radii
    text = (BOARDS / "evasion-compression.svg").read_text(encoding="utf-8")
    # Marks of ticks have no fill; those of the legend come last.
    marks = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: #\w+; stroke', text)[
        : np.prod(shape)
    ]
    drawn = np.array(marks, dtype=float).reshape(*shape, 2)
    swept = [c for c in cells("evasion-compression") if c["attack"] == "pgd(steps=50)"]
    axes = [
        list(dict.fromkeys(c[key] for c in swept)) for key in ("compressor", "defence")
    ]  # as in the scenario
    known = {(c["compressor"], c["defence"], c["eps"]): values(c, "robust_accuracy").mean() for c in swept}
    expected = np.array([known[place] for place in product(*axes, sorted({c["eps"] for c in swept}))])
    expected = expected.reshape(shape)
    # Positions are linear in what they show, the same way in every panel.
    up = drawn[..., 1].max() - drawn[..., 1]
    np.testing.assert_allclose(up / up.max() * np.ptp(expected) + expected.min(), expected, atol=1e-4)
    np.testing.assert_allclose(np.ptp(drawn[..., 0], axis=2), np.ptp(drawn[0, 0, :, 0]), atol=1e-4)
