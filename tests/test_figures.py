"""The figures of `harness plot` beside the curves: what is drawn from which records, and what is refused."""

from __future__ import annotations

import json
import re
from collections import Counter
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.text import Text

from harness import cli
from harness.console import figures
from harness.console.curves import draw_curves
from harness.console.drawing import figure, series_style
from harness.console.figures import SHARED, Front, draw_heatmap, draw_pareto, draw_ranks
from harness.errors import HarnessError
from harness.evaluation.constant import FLAG as CONSTANT
from harness.evaluation.masking import FLAG
from harness.grid import cells
from harness.leaderboard.comparisons import Omnibus
from harness.provenance import plugin_list
from harness.records import common_settings, other_settings
from harness.scenario import load, load_text
from harness.store import Store

AXES = {"aggregator": "mean", "compressor": "none", "threat": "none", "attack": "none", "seed": 0}


def record(number, accuracy, robust=None, **cell):
    scores = {"accuracy": accuracy} | ({} if robust is None else {"robust_accuracy": robust})
    return {
        "id": f"{number:012x}", "status": "scored", "scores": scores, "flags": [], "guarantee": None,
        "cell": {"defence": "none", **AXES, **cell}, "config": {"threat": {"phase": cell.get("phase", "none")}},
    }  # fmt: skip


def settings_of(path):
    """What says that a record is of the scenario as its file is."""
    scenario = load(path)
    return {
        "scenario": {"hash": scenario.hash()},
        "config": common_settings(scenario) | {"threat": {"malicious": 0.0}},
        "provenance": {"plugins": []},
        "flags": [],
    }


def trade_off():
    """Three defences: a and b each better in one thing, c worse than a in both."""
    found, number = [], 0
    for defence, clean, robust in (("a", 0.9, 0.2), ("b", 0.7, 0.5), ("c", 0.8, 0.1)):
        found.append(record(number, clean, defence=defence))
        found.append(record(number + 1, clean, robust, defence=defence, threat="e", attack="pgd"))
        number += 2
    return found


@pytest.mark.parametrize("ending", ["svg", "pdf", "png"])
def test_the_front_holds_what_nothing_else_beats(tmp_path, ending):
    out = tmp_path / f"pareto.{ending}"
    assert draw_pareto(trade_off(), out, "t", "accuracy", "robust").points == 2
    assert out.stat().st_size > 1000
    if ending == "svg":
        text = out.read_text()
        assert all(f">{name}<" in text for name in "abc")
        assert "t: filled on the Pareto front" in text


def test_labels_of_points_side_by_side_hide_nothing(tmp_path, monkeypatch):
    """Points of a front are often close: their names must not be written over each other."""
    boxes = []

    def looked_at(out, width, height):
        @contextmanager
        def go():
            with figure(out, width, height) as drawn:
                yield drawn
                boxes.extend((note.get_text(), note.get_window_extent()) for note in drawn.axes[0].texts)

        return go()

    monkeypatch.setattr("harness.console.figures.figure", looked_at)
    records, number = [], 0
    for defence in ("first", "second"):
        for place in range(4):
            cell = {"defence": defence, "aggregator": f"some-long-rule-{place}"}
            clean, robust = 0.9 + place / 1000, 0.5 - place / 1000 - (defence == "second") / 5
            records.append(record(number, clean, **cell))
            records.append(record(number + 1, clean, robust, threat="e", attack="pgd", **cell))
            number += 2
    assert draw_pareto(records, tmp_path / "x.svg", "t", "accuracy", "robust").points == 4
    assert sorted(text for text, _ in boxes) == [f"some-long-rule-{place}" for place in range(4)]
    assert not [1 for (_, a), (_, b) in combinations(boxes, 2) if a.overlaps(b)]


@pytest.fixture
def axes_drawn(monkeypatch):
    """The axes of every figure that is drawn."""
    found = []

    @contextmanager
    def looked_at(out, width, height):
        with figure(out, width, height) as drawn:
            yield drawn
            found.extend(drawn.axes)

    monkeypatch.setattr("harness.console.figures.figure", looked_at)
    return found


def test_points_of_the_front_lie_over_the_others(axes_drawn, tmp_path):
    """A hollow marker is white inside: it hid the filled one of an earlier series close to it."""
    draw_pareto(trade_off(), tmp_path / "x.svg", "t", "accuracy", "robust")
    points = [
        (one.get_zorder(), tuple(one.get_facecolor()[0][:3]) == (1, 1, 1))
        for one in axes_drawn[0].collections
    ]
    front, others = ({order for order, hollow in points if hollow is which} for which in (False, True))
    assert min(front) > max(others)


def test_numbers_of_the_heatmap_contrast_with_their_cells(axes_drawn, tmp_path):
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    found = [
        record(number, number / 50, aggregator=f"r{number}", threat="b", attack="alie", phase="training")
        for number in range(51)
    ]
    draw_heatmap(found, tmp_path / "x.png", "t")
    texts = axes_drawn[0].texts
    assert len(texts) == 51
    for text in texts:
        pair = (to_rgb(text.get_color()), colormaps["viridis"](float(text.get_text()) / 100)[:3])
        dark, light = sorted(map(luminance, pair))
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # as WCAG asks for


def test_an_axis_with_a_chance_level_says_what_less_counts_as(tmp_path):
    records = []
    for number, (defence, auc) in enumerate((("a", 0.42), ("b", 0.49))):
        records.append(record(2 * number, 0.9, defence=defence))
        one = record(2 * number + 1, 0.9, defence=defence, threat="m", attack="loss", phase="privacy")
        records.append(one | {"scores": {"mia_auc": auc}})
    out = tmp_path / "x.svg"
    assert draw_pareto(records, out, "t", "accuracy", "mia").points == 2
    assert "0.50 is chance, and less counts as chance" in out.read_text()
    draw_pareto(trade_off(), out, "t", "accuracy", "robust")
    assert "chance" not in out.read_text()


def test_a_front_of_nothing_is_an_error_and_no_empty_picture(tmp_path):
    records = [r | {"flags": ["constant-predictions"]} for r in trade_off()]
    with pytest.raises(
        HarnessError, match=r"accuracy and robust that .*; not drawn: \d+ predicting one class"
    ):
        draw_pareto(records, tmp_path / "x.svg", "t", "accuracy", "robust")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_compared_is_not_on_the_front(tmp_path):
    records = trade_off()
    masked = record(10, 0.9, defence="d"), record(11, 0.9, 0.9, defence="d", threat="e", attack="pgd")
    out = tmp_path / "x.svg"
    assert draw_pareto([*records, *masked], out, "t", "accuracy", "robust").points == 1
    masked[1]["flags"] = [FLAG]
    assert draw_pareto([*records, *masked], out, "t", "accuracy", "robust").points == 2
    assert ">d<" not in out.read_text()


def test_guarantees_for_records_and_for_clients_have_fronts_of_their_own(tmp_path):
    out = tmp_path / "x.svg"

    def fronts(*rows):
        records = [
            record(number, accuracy, defence=f"d{number}")
            | {"guarantee": {"epsilon": epsilon, "unit": unit, "holds": True}}
            for number, (accuracy, epsilon, unit) in enumerate(rows)
        ]
        return draw_pareto(records, out, "t", "epsilon", "accuracy").points

    assert fronts((0.80, 5.0, "client"), (0.81, 4.0, "record")) == 2
    assert all(f">epsilon for a {unit}<" in out.read_text() for unit in ("client", "record"))
    assert fronts((0.80, 5.0, "client"), (0.81, 4.0, "record"), (0.79, 6.0, "client")) == 2
    assert fronts((0.80, 5.0, "record"), (0.81, 4.0, "record")) == 1
    assert "epsilon for" not in out.read_text()


def test_what_a_front_leaves_out_is_counted_with_its_reason(tmp_path):
    claim = {"epsilon": 1.0, "holds": True, "unit": "record"}
    claims = {"a": claim, "b": claim | {"epsilon": 2.0}, "c": None, "d": None, "e": claim | {"holds": False},
              "f": claim | {"epsilon": None}}  # fmt: skip
    records = [
        record(i, 0.5 + i / 10, defence=name) | {"guarantee": g} for i, (name, g) in enumerate(claims.items())
    ]
    front = draw_pareto(records, tmp_path / "x.svg", "t", "epsilon", "accuracy")
    assert front.said == (
        "2 on the front; not drawn: 2 without a guarantee, 1 with a broken guarantee, 1 with an infinite epsilon"
    )
    assert draw_pareto(records[:2], tmp_path / "x.svg", "t", "epsilon", "accuracy").said == "2 on the front"
    alone = record(9, 0.9, defence="g")
    front = draw_pareto([*trade_off(), alone], tmp_path / "x.svg", "t", "accuracy", "robust")
    assert front.said.endswith("not drawn: 1 without robust")
    records = trade_off()
    records[-1]["flags"] = [CONSTANT]
    front = draw_pareto(records, tmp_path / "x.svg", "t", "accuracy", "robust")
    assert front.said == "2 on the front; not drawn: 1 predicting one class for every test image"


def test_what_has_no_front_says_so(tmp_path):
    with pytest.raises(HarnessError, match="fewer than two configurations have both accuracy and mia"):
        draw_pareto(trade_off(), tmp_path / "x.svg", "t", "accuracy", "mia")
    with pytest.raises(HarnessError, match="unknown quantity 'acuracy'; did you mean"):
        draw_pareto(trade_off(), tmp_path / "x.svg", "t", "acuracy", "robust")
    with pytest.raises(HarnessError, match=r"unknown ending '\.gif'"):
        draw_pareto(trade_off(), tmp_path / "x.gif", "t", "accuracy", "robust")
    assert list(tmp_path.iterdir()) == []


def test_the_heatmap_shows_means_over_seeds(tmp_path):
    found, number = [], 0
    for rule, attacked in (("mean", (0.10, 0.20)), ("krum", (0.80, 0.90))):
        for seed, value in enumerate(attacked):
            found.append(record(number, 0.95, aggregator=rule, seed=seed))
            found.append(
                record(
                    number + 1,
                    value,
                    aggregator=rule,
                    seed=seed,
                    threat="b",
                    attack="sign-flip",
                    phase="training",
                )
            )
            number += 2
    out = tmp_path / "heat.svg"
    assert draw_heatmap(found, out, "t") == 1
    text = out.read_text()
    assert [value for value in (">15<", ">85<", ">95<") if value in text] == [">15<", ">85<", ">95<"]
    assert "†" not in text
    draw_heatmap(found[:-1], out, "t")  # without a seed of krum under attack
    assert all(f">{value}<" in out.read_text() for value in ("15", "80†", "95", "t; †: lacks seeds"))
    with pytest.raises(HarnessError, match="no attack on training"):
        draw_heatmap(found[::2], out, "t")


def test_the_heatmap_rounds_ties_as_the_tables_do(tmp_path):
    found = [record(0, 0.125), record(1, 0.625, threat="b", attack="sign-flip", phase="training")]
    draw_heatmap(found, tmp_path / "heat.svg", "t")
    text = (tmp_path / "heat.svg").read_text()
    assert [value for value in (">12<", ">13<", ">62<", ">63<") if value in text] == [">13<", ">63<"]


def test_the_heatmap_keeps_threats_apart(tmp_path):
    found = [
        record(0, 0.9),
        record(1, 0.8, threat="few", attack="alie", phase="training"),
        record(2, 0.2, threat="many", attack="alie", phase="training"),
        record(3, 0.6, threat="few", attack="ipm", phase="training"),
    ]
    out = tmp_path / "heat.svg"
    draw_heatmap(found, out, "t")
    text = out.read_text()
    assert all(f">{value}<" in text for value in (90, 80, 20, 60))
    assert [text.count(f">{name}<") for name in ("alie", "few", "many", "ipm")] == [2, 1, 1, 1]
    draw_heatmap(found[:2], out, "t")
    assert ">few<" not in out.read_text()


def test_panels_of_a_sweep_are_told_apart_and_compressed_models_are_left_out_aloud(tmp_path):
    defences = ("none", "dp-sgd(epsilon=4)", "dp-sgd(epsilon=16)", "trades(eps=0.1)")
    found = [
        record(10 * i + j, 0.9 - 0.1 * j, defence=name, **attack)
        for i, name in enumerate(defences)
        for j, attack in enumerate(({}, {"threat": "b", "attack": "alie", "phase": "training"}))
    ]
    out = tmp_path / "heat.svg"
    assert draw_heatmap(found, out, "t") == 4
    text = out.read_text()
    assert all(f">{title}<" in text for title in (*defences[:3], "trades"))
    assert "uncompressed" not in text
    draw_heatmap([*found, record(99, 0.5, compressor="static-int8")], out, "t")
    assert ">t, uncompressed models<" in out.read_text()


@pytest.mark.parametrize("kind", ["pareto", "heatmap", "ranks", "curves"])
def test_long_names_are_told_apart_and_stay_within_the_figure(kind, tmp_path, monkeypatch):
    """Methods that differ only in the middle of their names, in a scenario with a long name of its own."""
    seen: list[str] = []

    def looked_at(out, width, height):
        @contextmanager
        def go():
            with figure(out, width, height) as drawn:
                yield drawn
                drawn.draw_without_rendering()
                whole = drawn.bbox.padded(1)
                for text in drawn.findobj(Text):
                    if re.search("[a-z]", text.get_text()):  # not the numbers of axes: some are out of sight
                        x0, y0, x1, y1 = text.get_window_extent().extents
                        assert whole.contains(x0, y0), text.get_text()
                        assert whole.contains(x1, y1), text.get_text()
                        seen.append("".join(text.get_text().split()))

        return go()

    for module in ("figures", "curves"):
        monkeypatch.setattr(f"harness.console.{module}.figure", looked_at)
    defences = [f"adversarial-training(attack=pgd(eps={eps},steps=2),curriculum=0.5)" for eps in (0.1, 0.2)]
    rules = [f"geometric-median(iterations=5,nu={nu},tolerance=1e-06)" for nu in (0.1, 0.2, 0.3)]
    found = []
    for i, defence in enumerate(defences):
        for j, rule in enumerate(rules):
            attacks = [("none", "none", "none"), ("t", "alie", "training"), ("u", "alie", "training")]
            for threat, attack, phase in [*attacks, ("e", "fgsm", "inference")]:
                cell = {
                    "defence": defence,
                    "aggregator": rule,
                    "threat": threat,
                    "attack": attack,
                    "phase": phase,
                }
                found.append(
                    record(
                        len(found), 0.9 - i / 10 - j / 100, 0.5 + j / 100 if threat == "e" else None, **cell
                    )
                )
    title, out = "-".join(["a-scenario-with-a-long-name"] * 3), tmp_path / "x.svg"
    if kind == "pareto":
        draw_pareto(found, out, title, "accuracy", "robust")
        names = defences
    elif kind == "heatmap":
        draw_heatmap(found, out, title)
        names = [*defences, *rules]
    elif kind == "ranks":
        draw_ranks(found, out, title, "aggregator", "byzantine")
        names = rules
    else:
        points = [(0.0, 0.5, False), (0.1, 0.4, False)]
        draw_curves({("fgsm in linf", "none"): dict.fromkeys(defences, points)}, out, title)
        names = defences
    for name in (title, *names):
        assert any(text.startswith(name) for text in seen), name


def test_a_dollar_in_a_name_is_no_formula(tmp_path):
    found = [record(i, 0.9, a / 10, defence=f"{a}$\\frac$") for i, a in enumerate((1, 2))]
    for one in found:
        one["cell"] |= {"threat": "e", "attack": "pgd"}
    draw_pareto(found, tmp_path / "x.svg", "a$_$b", "accuracy", "robust")
    assert all(text in (tmp_path / "x.svg").read_text() for text in ("1$\\frac$", "a$_$b"))


def test_series_look_apart():
    styles = [series_style(number) for number in range(40)]
    assert len({(style.color, style.marker) for style in styles}) == 40
    assert len({style.color for style in styles[:7]}) == len({style.marker for style in styles[:7]}) == 7


def test_a_store_without_the_scenario_is_said_to_lack_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text("schema: 1\nname: s\ndataset: digits\nmodel: logistic\n")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("hi")
    for arguments in (["plot", "s.yaml", "--store", "thesis"], ["explain", "61bc", "--store", "thesis"]):
        assert cli.main(arguments) == 2
        assert "--store thesis is no store; run a scenario first" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]
    Store(tmp_path / "runs").close()
    assert cli.main(["plot", "s.yaml"]) == 2
    message = "the store runs holds no cell of s; run it first: harness run s.yaml --store runs"
    assert message in capsys.readouterr().err


def test_ranks_tell_a_better_rule_from_others(tmp_path):
    found = []
    for block in range(12):
        for rule, value in (("best", 0.9), ("middle", 0.6), ("worst", 0.3)):
            for seed in (0, 1):  # by the first seed alone the worst would be the best
                off = (1 - 2 * seed) * (rule == "worst")
                score = value + 0.001 * block + off
                found.append(record(len(found), score, aggregator=rule, compressor=f"c{block}", seed=seed))
    out = tmp_path / "ranks.svg"
    test = draw_ranks(found, out, "t", "aggregator", "accuracy")
    assert test.blocks == 12  # seeds are no blocks
    assert test.p < 0.001
    assert test.test == "friedman"
    text = out.read_text()
    assert "bars join what Nemenyi's test" in text
    assert "best  1.00" in text
    assert "middle  2.00" in text
    assert "worst  3.00" in text
    assert SHARED in text
    assert "not ranked" not in text
    with pytest.raises(HarnessError, match="ranks need two or more values of defence"):
        draw_ranks(found, out, "t", "defence", "accuracy")
    with pytest.raises(
        HarnessError, match="two or more blocks in which every aggregator has accuracy, not 1"
    ):
        draw_ranks(found[:6], out, "t", "aggregator", "accuracy")
    alike = [one for one in found if one["cell"]["compressor"] in ("c0", "c1")]
    draw_ranks(alike, out, "t", "aggregator", "accuracy")
    assert "the order may be chance" in out.read_text()


@pytest.mark.parametrize("lost", ["failed", "flagged", "infinite"])
def test_ranks_compare_no_means_over_different_seeds(lost, tmp_path):
    """Seed 1 is hard for every rule: without it the worse rule would look like the better one."""
    found = []
    for block in range(4):
        for rule, value in (("better", 0.6), ("worse", 0.5), ("third", 0.1)):
            for seed in (0, 1):
                score = value + block / 100 - 0.3 * seed
                one = record(len(found), 0.9, score, aggregator=rule, compressor=f"c{block}", seed=seed)
                one["cell"] |= {"threat": "e", "attack": "pgd"}
                one["config"]["threat"]["phase"] = "inference"
                if (block, rule, seed) == (0, "worse", 1):
                    if lost == "failed":
                        one |= {"status": "failed", "scores": {}}
                    elif lost == "flagged":
                        one["flags"] = [FLAG]
                    else:
                        one["scores"]["robust_accuracy"] = float("inf")
                found.append(one)
    out = tmp_path / "ranks.svg"
    test = draw_ranks(found, out, "t", "aggregator", "robust")
    assert (test.blocks, test.dropped) == (3, 1)
    assert "better  1.00" in out.read_text()
    assert "worse  2.00" in out.read_text()
    assert "not ranked: some method in 1 block" in out.read_text()


def test_ranks_name_what_they_leave_out_within_the_figure(tmp_path, monkeypatch):
    """Long names of a scenario and of defences that are flagged everywhere: no line reaches beyond the edges."""
    drawn = []

    @contextmanager
    def kept(*arguments):
        with figure(*arguments) as one:
            yield one
        drawn.append(one)

    monkeypatch.setattr(figures, "figure", kept)
    names = ["a", "b", "c", *(f"adversarial-training(attack=pgd(eps=0.{i},steps=2))" for i in range(5))]
    found = []
    for place, name in enumerate(names):
        for block in range(8):
            one = record(
                len(found), 0.9, 0.1 * place, defence=name, compressor=f"c{block}", threat="e", attack="p"
            )
            one["config"]["threat"]["phase"] = "inference"
            one["flags"] = [FLAG] * (place > 2)
            found.append(one)
    draw_ranks(found, tmp_path / "ranks.svg", "a-long-name-of-a-scenario-of-ours", "defence", "robust")
    (axes,) = drawn[0].axes
    drawn[0].draw_without_rendering()
    for text in (axes.title, axes.xaxis.label):
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= drawn[0].bbox.x1
        assert box.y0 >= 0
        assert box.y1 <= drawn[0].bbox.y1


def test_ranks_of_equal_means_are_tied(tmp_path):
    """0.1 and 0.2, 0.3 and 0.0 have one mean, which floats round to two numbers."""
    found = [
        record(0, score, aggregator=rule, compressor=f"c{block}", seed=seed)
        for block in range(4)
        for rule, scores in (("one", (0.1, 0.2)), ("other", (0.3, 0.0)), ("worst", (0.05, 0.05)))
        for seed, score in enumerate(scores)
    ]
    out = tmp_path / "ranks.svg"
    draw_ranks(found, out, "t", "aggregator", "accuracy")
    assert all(f"{rule}  1.50" in out.read_text() for rule in ("one", "other"))


def test_two_methods_are_told_apart_by_the_test_that_the_figure_names(tmp_path, monkeypatch, capsys):
    path = tmp_path / "s.yaml"
    path.write_text("schema: 1\nname: s\ndataset: digits\nmodel: logistic\naggregators: [mean, krum]\n")
    ids = {str(cell.axes["aggregator"]): cell.id for cell in cells(load(path))}
    found = [
        record(0, value + block / 100, aggregator=rule, compressor=f"c{block}")
        | {"id": ids[rule], **settings_of(path)}
        for block in range(8)
        for rule, value in (("mean", 0.3), ("krum", 0.6))
    ]
    monkeypatch.setattr("harness.console.arguments.stored_records", lambda *_: found)
    out = tmp_path / "ranks.svg"
    arguments = ["--figure", "ranks", "--by", "aggregator", "--y", "accuracy", "--out", str(out)]
    assert cli.main(["plot", str(path), *arguments]) == 0
    said = capsys.readouterr().out
    assert "8 blocks, Wilcoxon p = 0.0078" in said  # 2 / 2^8: every difference has one sign
    assert "Friedman" not in said
    for number, one in enumerate(found):
        code = {
            "kind": "model",
            "name": "logistic",
            "distribution": "d",
            "version": "1",
            "source": f"{number}",
        }
        one["provenance"] = {"plugins": [code]}
    assert cli.main(["plot", str(path), *arguments]) == 0
    assert capsys.readouterr().err == "note: the records are of different code of logistic\n"
    assert "Wilcoxon p = 0.0078" in out.read_text()


@pytest.mark.parametrize("flag", [FLAG, CONSTANT])
def test_ranks_leave_out_what_hides_gradients_and_guarantees(flag, tmp_path):
    found = []
    for rule, value in (("a", 0.3), ("b", 0.5), ("masked", 0.9)):
        for block in range(4):
            one = record(
                len(found), 0.9, value, aggregator=rule, compressor=f"c{block}", threat="e", attack="pgd"
            )
            one["config"]["threat"]["phase"] = "inference"
            one["flags"] = [flag] * (rule == "masked")
            one["scores"]["epsilon"] = value
            found.append(one)
    out = tmp_path / "ranks.svg"
    draw_ranks(found, out, "t", "aggregator", "robust")
    assert "b  1.00" in out.read_text()
    assert "masked  " not in out.read_text()
    assert "without a value to compare, and so not ranked: masked anywhere<" in out.read_text()
    with pytest.raises(HarnessError, match="epsilon is what a training guarantees"):
        draw_ranks(found, out, "t", "aggregator", "epsilon")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--figure", "paretto"], "did you mean pareto"),
        (["--figure", "ranks", "--by", "defense"], "did you mean defence"),
        (["--x", "robust"], "--x robust: an option of --figure pareto, not of curves"),
        (
            ["--figure", "heatmap", "--y", "mia"],
            "--y mia: an option of --figure pareto and ranks, not of heatmap",
        ),
        (
            ["--figure", "pareto", "--by", "defence"],
            "--by defence: an option of --figure ranks, not of pareto",
        ),
        (["--figure", "table", "--x", "robust"], "--x robust: an option of --figure pareto, not of table"),
    ],
)
def test_bad_choices_name_the_nearest(arguments, message, capsys, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("schema: 1\nname: s\ndataset: digits\nmodel: logistic\n")
    assert cli.main(["plot", str(path), *arguments]) == 2
    assert message in capsys.readouterr().err.replace("'", "")


def test_every_figure_has_a_file_of_its_own(tmp_path, monkeypatch, capsys):
    path = tmp_path / "s.yaml"
    path.write_text("schema: 1\nname: s\ndataset: digits\nmodel: logistic\n")
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    drawn = []
    (cell,) = cells(load("s.yaml"))
    found = [{"id": cell.id, **settings_of("s.yaml")}]
    monkeypatch.setattr("harness.console.arguments.stored_records", lambda *_: found)
    monkeypatch.setattr(
        "harness.console.figures.draw_pareto", lambda _, out, *__: drawn.append(out) or Front(1, Counter())
    )
    monkeypatch.setattr(
        "harness.console.figures.draw_ranks",
        lambda _, out, *__: drawn.append(out) or Omnibus(1.0, 0.5, "friedman", 1, 2),
    )
    said = {"pareto": "1 on the front", "ranks": f"1 block and 2 left out, Friedman p = 0.5; {SHARED}"}
    for kind, told in said.items():
        assert cli.main(["plot", "s.yaml", "--figure", kind]) == 0
        assert capsys.readouterr().out == f"wrote {kind}.svg: {told}\n"
    assert [out.name for out in drawn] == ["pareto.svg", "ranks.svg"]


def test_masking_is_suspected_before_the_run_has_ended(tmp_path, monkeypatch, capsys):
    """Only in the end does a run flag its records: until then a figure drew what it leaves out afterwards."""
    path = tmp_path / "s.yaml"
    path.write_text(
        "schema: 1\nname: s\ndataset: digits\nmodel: logistic\nthreats: [{name: none}, {name: e, budget: "
        "{norm: linf, eps: 0.1}, attacks: [pgd, square]}]\n"
    )
    monkeypatch.chdir(tmp_path)
    left = {"pgd": (0.6, "gradients"), "square": (0.5, "logits")}
    found = []
    for cell in cells(load("s.yaml")):
        name = "none" if cell.attack is None else cell.attack.name
        accuracy, access = left.get(name, (None, None))
        one = {**record(0, 0.9, accuracy, attack=name), "id": cell.id, **settings_of("s.yaml")}
        about = {
            "access": access,
            "effort": 1,
            "mode": "white-box",
            "norm": "linf",
            "eps": 0.1,
            "samples": 1000,
        }
        one["config"] |= {"attack": {name: {}}}
        found.append({**one, "attack": about if access else None})
    drawn = []
    monkeypatch.setattr("harness.console.arguments.stored_records", lambda *_: found)
    monkeypatch.setattr(
        "harness.console.table_picture.draw_table", lambda records, *_: drawn.extend(records) or "3 cells"
    )
    assert cli.main(["plot", "s.yaml", "--figure", "table"]) == 0, capsys.readouterr().err
    assert {r["cell"]["attack"]: r["flags"] for r in drawn} == {"none": [], "pgd": [FLAG], "square": [FLAG]}


def test_what_was_scored_before_a_setting_changed_is_not_drawn(tmp_path, monkeypatch, capsys):
    """A cell's id is of its axes: under it stood the numbers of fewer rounds, as if they were of those in the file."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "s.yaml"
    text = "schema: 1\nname: s\ndataset: digits\nmodel: logistic\naggregators: [median, mean]\n"
    text += "federation: {rounds: %d}\n"
    path.write_text(text % 1)
    assert cli.main(["run", "s.yaml", "--quiet", "--jobs", "0"]) == 0
    path.write_text("description: new\ncompute: {stage_timeout: 60}\n" + text % 1)  # these decide no score
    assert cli.main(["plot", "s.yaml", "--figure", "table"]) == 0
    assert not capsys.readouterr().err
    path.write_text(text % 2)
    assert cli.main(["plot", "s.yaml", "--figure", "table"]) == 2
    said = (
        "holds no cell of s as it is now: federation changed; run it first: harness run s.yaml --store runs"
    )
    assert said in capsys.readouterr().err
    assert cli.main(["run", "s.yaml", "--quiet", "--jobs", "0", "--select", "aggregator=mean"]) == 0
    capsys.readouterr()
    assert cli.main(["plot", "s.yaml", "--figure", "table"]) == 0
    out, err = capsys.readouterr()
    assert out == "wrote table.svg: 1 cell\n"
    assert err.startswith(
        "note: left out: 1 cell scored before federation changed; run them: harness run s.yaml"
    )


def test_a_threat_that_changes_what_rules_are_told_changes_the_setting():
    """f went from 2 to 4 with the threat that was added, and the earlier numbers were drawn beside the new ones."""
    text = "schema: 1\nname: s\ndataset: digits\nmodel: logistic\nfederation: {clients: 10%s}\naggregators: [krum]\n"
    one = "{name: a, malicious: 0.2, attacks: [alie]}"
    more = f"{one}, {{name: b, malicious: 0.4, attacks: [alie]}}"

    def scenario(threats, told=""):
        return load_text(text % told + f"threats: [{{name: none}}, {threats}]\n", Path("s.yaml"))

    def stored(of):
        for cell in cells(of):
            threat = {"malicious": cell.threat.malicious}
            config = common_settings(of) | {"threat": threat}
            yield {"id": cell.id, "scenario": {"hash": of.hash()}, "config": json.loads(json.dumps(config))}

    before = list(stored(scenario(one)))
    assert other_settings(before, scenario(one)) == {}
    changed = {record["id"]: ["byzantine_tolerance"] for record in before}
    assert other_settings(before, scenario(more)) == changed
    assert other_settings(before, scenario(one.replace("alie", "alie, ipm"))) == {}  # the same share
    fixed = ", byzantine_tolerance: 0.3"
    assert other_settings(list(stored(scenario(one, fixed))), scenario(more, fixed)) == {}


def test_numbers_of_other_code_than_installed_are_told(tmp_path, monkeypatch, capsys):
    """All records of a store were of one earlier state of a rule, and were drawn without a word."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text("schema: 1\nname: s\ndataset: digits\nmodel: logistic\n")
    (cell,) = cells(load("s.yaml"))
    here = plugin_list([load("s.yaml").model])
    earlier = [{**item, "source": "0" * 64} for item in here]
    monkeypatch.setattr("harness.console.figures.draw_heatmap", lambda *_: 1)
    for plugins, told in ((here, ""), (earlier, "note: other code of logistic in psr-harness: ")):
        found = [{"id": cell.id, **settings_of("s.yaml"), "provenance": {"plugins": plugins}}]
        monkeypatch.setattr("harness.console.arguments.stored_records", lambda *_, found=found: found)
        assert cli.main(["plot", "s.yaml", "--figure", "heatmap"]) == 0
        said = capsys.readouterr().err
        assert said.startswith(told) if told else not said


def test_the_table_is_drawn_as_a_terminal_shows_it(tmp_path, monkeypatch, capsys):
    """Every line of `harness run` in 80 columns and bold, in the grid's order, whatever the order in the store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    path = tmp_path / "s.yaml"
    path.write_text(
        "schema: 1\nname: s\ndataset: digits\nmodel: logistic\n"
        "aggregators: [median, mean]\nfederation: {rounds: 1}\n"
    )
    assert cli.main(["run", "s.yaml", "--quiet"]) == 0
    shown = capsys.readouterr().out.splitlines()[:-1]  # the last line is of the run: stages computed
    assert cli.main(["plot", "s.yaml", "--figure", "table"]) == 0
    assert capsys.readouterr().out == "wrote table.svg: 2 cells\n"
    svg = (tmp_path / "table.svg").read_text(encoding="utf-8")
    drawn = [
        "".join(row.itertext()) for row in ElementTree.fromstring(svg).iter() if row.tag.endswith("}text")
    ]
    words = [word for line in shown for word in line.split()]
    assert len(words) > 10
    told = " ".join(word for text in drawn for word in text.split())
    assert told.replace("bold: best of the column ", "", 1) == " ".join(["harness run s.yaml", *words])
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "").replace(
        "https://www.textualize.io", ""
    )
    with Store(tmp_path / "runs") as store:
        backwards = store.records("s")[::-1]
    monkeypatch.setattr("harness.console.arguments.stored_records", lambda *_: backwards)
    assert cli.main(["plot", "s.yaml", "--figure", "table", "--out", "again.svg"]) == 0
    assert (tmp_path / "again.svg").read_text(encoding="utf-8") == svg
    assert cli.main(["plot", "s.yaml", "--figure", "table", "--out", "t.png"]) == 2
    assert "a table is drawn as SVG alone" in capsys.readouterr().err
    assert not (tmp_path / "t.png").exists()
