"""Robustness curves: which records they take, what is drawn, and what is refused."""

from __future__ import annotations

import re

import pytest

import harness
from harness import cli
from harness.console.curves import curves, draw_curves
from harness.errors import HarnessError
from harness.evaluation.constant import FLAG as CONSTANT
from harness.evaluation.masking import FLAG
from harness.scenario import load

SCENARIO = """
schema: 1
name: curves
dataset: digits
model: {mlp: {hidden: [16]}}
federation: {clients: 2, rounds: 2, local: {epochs: 1, batch_size: 32, optimizer: {sgd: {lr: 0.3}}}}
defences: [none, label-smoothing]
compressors: [none, half-precision]
threats:
  - {name: none}
  - {name: e, budget: {norm: linf, eps: {sweep: [0, 0.05, 0.1]}}, attacks: [fgsm, pgd: {eps: 0.0, steps: 2}]}
seeds: [0, 1]
"""


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curves")
    (folder / "c.yaml").write_text(SCENARIO)
    result = harness.run(load(folder / "c.yaml"), device="cpu", jobs=0, store=folder / "runs")
    return folder, result.records


def test_a_curve_has_a_point_for_each_radius_and_seed(stored):
    _, records = stored
    panels = curves(records)
    assert set(panels) == {("fgsm in linf", "none"), ("fgsm in linf", "half-precision")}  # pgd has one radius
    series = panels["fgsm in linf", "none"]
    assert set(series) == {"none", "label-smoothing"}
    assert [point[0] for point in series["none"]] == [0, 0, 0.05, 0.05, 0.1, 0.1]
    plain = [r for r in records if r["cell"]["threat"] == "none" and r["cell"]["defence"] == "none"]
    accuracy = {r["scores"]["accuracy"] for r in plain if r["cell"]["compressor"] == "none"}
    assert {point[1] for point in series["none"][:2]} == accuracy  # a radius of zero is the clean accuracy


def test_records_without_robust_accuracy_have_no_curve(stored):
    """As of a scenario whose `metrics` leave it out."""
    _, records = stored
    without = [
        r | {"scores": {k: v for k, v in r["scores"].items() if k != "robust_accuracy"}} for r in records
    ]
    assert curves(without) == {}
    assert set(curves([*without[::2], *records[1::2]])) <= set(curves(records))


@pytest.mark.parametrize("ending", ["svg", "png", "pdf"])
def test_the_command_draws_a_figure(stored, ending, capsys):
    folder, _ = stored
    out = folder / f"figure.{ending}"
    arguments = ["plot", str(folder / "c.yaml"), "--store", str(folder / "runs"), "--out", str(out)]
    assert cli.main(arguments) == 0
    assert "2 panels" in capsys.readouterr().out
    data = out.read_bytes()
    assert data[: len(b"\x89PNG")] in (b"\x89PNG", b"%PDF", b"<?xm")
    if ending == "svg":
        text = data.decode()
        assert "label-smoothing" in text
        assert "half-precision" in text
        cli.main(arguments)
        assert out.read_text() == text  # the same records, the same file
    assert sorted(p.name for p in folder.iterdir() if "partial" in p.name) == []


@pytest.mark.parametrize("flag", [FLAG, CONSTANT])
def test_what_means_little_is_hollow(flag, stored, tmp_path):
    _, records = stored
    plain, flagged = tmp_path / "a.svg", tmp_path / "b.svg"
    draw_curves(curves(records), plain, "t")
    draw_curves(curves([r | {"flags": [flag]} for r in records]), flagged, "t")
    assert flagged.read_text().count("fill: #ffffff") > plain.read_text().count("fill: #ffffff")


def test_a_mean_that_lacks_a_seed_is_hollow(stored, tmp_path):
    _, records = stored
    whole, lacking = tmp_path / "a.svg", tmp_path / "b.svg"
    lost = next(
        r for r in records if r["cell"]["threat"] != "none" and r["cell"]["attack"].startswith("fgsm")
    )
    draw_curves(curves(records), whole, "t")
    draw_curves(curves([r for r in records if r is not lost]), lacking, "t")
    assert lacking.read_text().count("fill: #ffffff") == whole.read_text().count("fill: #ffffff") + 1


def test_hollow_markers_are_explained_where_there_are_any(stored, tmp_path):
    _, records = stored
    plain, flagged = tmp_path / "a.svg", tmp_path / "b.svg"
    draw_curves(curves(records), plain, "t")
    draw_curves(curves([r | {"flags": [FLAG]} for r in records]), flagged, "t")
    assert "hollow" not in plain.read_text()
    assert "hollow: gradient masking suspected" in flagged.read_text()


def test_what_cannot_be_drawn_says_why(stored, capsys):
    folder, records = stored
    one = [r for r in records if r["cell"]["threat"] in ("none", "e-eps0.1")]
    with pytest.raises(HarnessError, match="two or more radii"):
        draw_curves(curves(one), folder / "x.svg", "t")
    with pytest.raises(HarnessError, match=r"unknown ending '\.gif'"):
        draw_curves(curves(records), folder / "x.gif", "t")
    with pytest.raises(HarnessError, match="No such file"):
        draw_curves(curves(records), folder / "nowhere" / "x.svg", "t")
    assert cli.main(["plot", str(folder / "c.yaml"), "--store", str(folder / "no")]) == 2
    assert "run a scenario first" in capsys.readouterr().err


def record(identifier, eps, accuracy=0.5, threat=None, norm="linf", **parameters):
    return {
        "id": identifier, "status": "scored", "flags": [], "scores": {"robust_accuracy": accuracy},
        "cell": {"defence": "none", "aggregator": "mean", "compressor": "none"},
        "attack": {"norm": norm, "eps": eps},
        "config": {
            "attack": {"pgd": {"steps": 20, "eps": None, **parameters}},
            "threat": {"name": identifier, "budget": {"norm": norm, "eps": eps}, **(threat or {})},
        },
    }  # fmt: skip


def test_radii_are_in_the_unit_of_their_norm(tmp_path):
    swept = {"linf": (0, 8 / 255), "l2": (0.5, 2.0), "l0": (1, 3)}
    found = {
        norm: [record(f"{norm}{eps}", eps, norm=norm, accuracy=0.9 - 0.1 * i) for i, eps in enumerate(radii)]
        for norm, radii in swept.items()
    }
    said = {"linf": "radius eps (× 1/255)", "l2": "L2 radius eps", "l0": "changed pixels"}
    for norm, own in found.items():
        draw_curves(curves(own), tmp_path / "one.svg", "t")
        text = (tmp_path / "one.svg").read_text()
        assert {other for other, label in said.items() if f">{label}<" in text} == {norm}
        assert ">510<" not in text
    draw_curves(curves([r for own in found.values() for r in own]), tmp_path / "all.svg", "t")
    text = (tmp_path / "all.svg").read_text()
    assert all(text.count(f">{label}<") == 1 for label in said.values())


def test_attacks_that_differ_in_a_parameter_have_panels_of_their_own():
    one = [record(f"a{eps}", eps, restarts=1) for eps in (0.1, 0.2)]
    five = [record(f"b{eps}", eps, restarts=5) for eps in (0.1, 0.2)]
    assert {name for name, _ in curves(one)} == {"pgd(steps=20) in linf"}
    assert {name for name, _ in curves(one + five)} == {
        "pgd(steps=20,restarts=1) in linf",
        "pgd(steps=20,restarts=5) in linf",
    }


def test_threats_that_differ_in_more_than_the_radius_have_curves_of_their_own(tmp_path):
    out = tmp_path / "x.svg"
    threats = {
        "plain": {"knowledge": "white-box"},
        "transfer": {"knowledge": "black-box", "surrogate": "uncompressed"},
        "few": {"knowledge": "white-box", "subset": 100},
    }
    found = [
        record(f"{name}{eps}", eps, accuracy - eps, threat)
        for accuracy, (name, threat) in zip((0.4, 0.9, 0.5), threats.items(), strict=True)
        for eps in (0.1, 0.2)
    ]
    ((place, panel),) = curves(found).items()
    assert place == ("pgd(steps=20) in linf", "none")
    assert {name: [point[1] for point in points] for name, points in panel.items()} == {
        "none / knowledge=white-box": pytest.approx([0.3, 0.2]),
        "none / knowledge=black-box / surrogate=uncompressed": pytest.approx([0.8, 0.7]),
        "none / knowledge=white-box / subset=100": pytest.approx([0.4, 0.3]),
    }
    draw_curves(
        {place: {"none": panel.pop("none / knowledge=white-box")}, ("fgsm in linf", "none"): panel}, out, "t"
    )
    assert all(name in " ".join(re.findall(">([^<]*)</text>", out.read_text())) for name in panel)
    ((_, alone),) = curves(found[:2]).items()
    assert list(alone) == ["none"]
    assert not curves([found[0], found[3]])  # a radius of each is no curve
