"""Scores that no built-in plugin declares, on boards, in their files and in what is recommended, by files alone."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from synthetic import cell, plain, put

import harness.leaderboard
from harness.cli import main
from harness.console.advice import render_advice
from harness.errors import HarnessError
from harness.evaluation.constant import FLAG as CONSTANT
from harness.leaderboard.board import boards
from harness.leaderboard.build import build, to_frame
from harness.leaderboard.columns import COLUMNS
from harness.leaderboard.contributed import RESERVED
from harness.leaderboard.page_data import data
from harness.leaderboard.recommend import recommend
from harness.leaderboard.side_by_side import compare_submissions
from harness.leaderboard.submission import parse

STATIC = Path(harness.leaderboard.__file__).parent / "static"
KAPPA = {"unit": "", "direction": "higher", "description": "agreement beyond chance"}
UNITS = {
    "kappa": KAPPA,
    "gap.mean": {"unit": "share", "direction": "lower", "description": "how far off the confidence is"},
    "leak": {"unit": "bits", "direction": "lower", "description": "what a record gives away"},
    "classes": {"unit": "", "direction": "none", "description": "of which none is better"},
}


def entry(name: str = "lab", units=UNITS, **fields):
    """Two configurations, three seeds, two privacy attacks. Of `b` a seed's gap is undefined."""
    cells = []
    for defence, shift in (("a", 0.0), ("b", 0.1)):
        clean = {
            "accuracy": [0.8, 0.8, 0.9], "kappa": [0.5 + shift, 0.6 + shift, 0.7 + shift],
            "gap.mean": [0.25, 0.5, 0.75], "classes": [3.0] * 3,
        }  # fmt: skip
        cells.append(cell((defence, "mean", "none", "none", "none"), "clean", clean, name))
        for attack, leaks in (("x", [1.0, 2.0, 3.0]), ("y", [2.0, 1.0, 4.0])):
            axes = (defence, "mean", "none", "curious", attack)
            cells.append(cell(axes, "privacy", clean | {"leak": [leak - shift for leak in leaks]}, name))
    for one in cells[3:]:
        del one["seeds"]["0"]["scores"]["gap.mean"]
        one["seeds"]["0"]["undefined"] = {"gap.mean": "nan"}
    made = plain(name, cells, **fields)
    return made | {"units": made["units"] | units}


def parsed(*files):
    return [parse(file, file["name"]) for file in files]


def values(board, key: str):
    return {row.axes[0]: row.values[key] for row in board.rows if key in row.values}


def test_a_board_has_a_column_for_each_that_has_a_direction():
    (board,) = boards(parsed(entry()))
    assert [c.key for c in board.columns if c not in COLUMNS] == ["kappa", "gap.mean", "leak"]
    kappa, leak = values(board, "kappa"), values(board, "leak")
    assert [kappa[name].mean for name in "ab"] == pytest.approx([0.6, 0.7])
    assert [leak[name].mean for name in "ab"] == pytest.approx([(2 + 2 + 4) / 3, (2 + 2 + 4) / 3 - 0.1])
    assert [kappa[name].best for name in "ab"] == [False, True]
    assert [leak[name].best for name in "ab"] == [False, True]
    under = {row.axes[0]: row.under for row in board.rows}
    assert under["a"]["curious", "x"]["leak"].mean == pytest.approx(2.0)
    assert "kappa" not in under["a"]["curious", "x"]
    gap = values(board, "gap.mean")
    assert [gap[name].incomplete for name in "ab"] == [False, True]
    assert [gap[name].estimate.seeds for name in "ab"] == [3, 2]
    low, high = gap["a"].estimate[1:3]
    assert (low, high) == (0.0, 1.0)  # cut off at what a share can be


def test_the_built_files_have_them_on_any_machine(tmp_path):
    put(tmp_path, entry())
    build(tmp_path)
    (a, b) = csv.DictReader(io.StringIO((tmp_path / "leaderboard.csv").read_text()))
    assert float(a["kappa"]) == pytest.approx(0.6)
    assert (b["gap.mean_seeds"], b["gap.mean_signs"]) == ("2", "†")
    assert "classes" not in a
    text = (tmp_path / "README.md").read_text()
    assert "| gap.mean [%] ↓ | kappa ↑ | leak [bits] ↓ |" in text
    assert "| **0.700**<br>" in text
    found = data(boards(parsed(entry())))
    places = {c["key"]: place for place, c in enumerate(found["columns"])}
    assert found["columns"][places["gap.mean"]]["scale"] == 100
    assert found["rows"][0]["v"][places["leak"]][0] == 2.6667
    assert len(found["rows"][0]["v"]) == len(found["rows"][0]["p"]) == len(found["columns"])
    assert places["leak"] in found["rows"][0]["w"][1::3]


def test_all_boards_have_one_order_of_columns_and_no_empty_one():
    other = plain("lab", [cell(("a", "mean", "none", "none", "none"), "clean", {"accuracy": [0.5]})])
    other["scenario"]["name"] = "another"
    found = boards(parsed(entry(), other))
    table = to_frame(found)
    assert table["kappa"].isna().tolist() == [True, False, False]
    only = {row["id"]: row["v"] for row in data(found)["rows"]}
    assert {len(row) for row in only.values()} == {len(COLUMNS) + 3}
    assert to_frame(boards(parsed(other))).shape[1] == table.shape[1] - 3 * 5


@pytest.mark.parametrize("name", ["flags", "accuracy", "kappa_low", "values", "__proto__", "a,b:c"])
def test_no_name_takes_the_place_of_something_else(name):
    file = entry()
    if name == "accuracy":
        name = "size"  # a column's key, and no built-in score
    text = json.dumps(file).replace('"leak"', json.dumps(name))
    (board,) = boards(parsed(json.loads(text)))
    column = board.columns[-1]
    assert re.fullmatch(r"[A-Za-z0-9_.]+(-score)?", column.key)
    assert column.score == name
    assert list(values(board, column.key)) == ["a", "b"]
    table = to_frame([board])
    assert table.columns.is_unique
    assert table["flags"].tolist() == ["", ""]


def test_reserved_are_all_names_that_stand_beside_columns():
    table = to_frame(boards(parsed(entry())))
    beside = set(table.columns[: list(table.columns).index("accuracy")])
    rows = re.search(r"return \{\n    (place,.*?)\n  \};\n\}\);", (STATIC / "rows.js").read_text(), re.DOTALL)
    flat, deeper = rows[1], ""
    while flat != deeper:  # without what the values hold
        flat, deeper = re.sub(r"\([^()]*\)|\[[^][]*\]|`[^`]*`", "", flat), flat
    beside |= set(re.findall(r"(?:^|, |\n +)(\w+)(?=[:,])", flat)) | {"short"}
    assert {"flags", "attacks", "name"} < beside <= RESERVED


def test_two_packages_that_use_one_name_have_two_columns():
    other = entry(units=UNITS | {"kappa": KAPPA | {"description": "something else"}})
    other["scenario"]["name"] = "another"
    first, second = boards(parsed(entry(), other))
    assert [c.note for c in first.columns if c.score == "kappa"] == ["something else"]
    assert {c.key for c in (*first.columns, *second.columns) if c.score == "kappa"} == {"kappa", "kappa-2"}
    third, fourth = boards(parsed(entry(), entry(scenario={"name": "another"})))
    assert [c for c in third.columns if c.score == "kappa"] == [
        c for c in fourth.columns if c.score == "kappa"
    ]


def test_what_two_versions_of_a_plugin_mean_is_not_compared():
    """The later one counts what is wrong, so that less is better: neither is best, or worst, of both."""
    turned = entry("later", units=UNITS | {"kappa": KAPPA | {"direction": "lower"}})
    (board,) = boards(parsed(entry(), turned))
    keys = [c.key for c in board.columns if c.score == "kappa"]
    assert keys == ["kappa-2", "kappa"] or keys == ["kappa", "kappa-2"]
    for row in board.rows:
        (own,) = (key for key in keys if key in row.values)
        assert row.values[own].incomplete is False
        assert row.values[own].best is (row.axes[0] == ("a" if row.submission.name == "later" else "b"))
    pairs = {pair.score: pair for pair in compare_submissions(*parsed(entry(), turned))}
    assert pairs["kappa"].direction == "none"
    assert "A: no unit, better higher; B: no unit, better lower" in pairs["kappa"].heading
    assert pairs["leak"].direction == "lower"


def test_a_constant_model_is_not_compared_under_evasion_and_is_otherwise():
    file = entry(units=UNITS | {"margin": {"unit": "", "direction": "higher", "description": "left"}})
    for defence in "ab":
        axes = (defence, "mean", "none", "evasion", "pgd")
        made = cell(axes, "evasion", {"margin": [1.0, 2.0, 3.0], "kappa": [0.5, 0.6, 0.7]}, "lab")
        for seed in made["seeds"].values():
            seed["flags"] = [CONSTANT] if defence == "a" else []
        file["cells"].append(made)
    (board,) = boards(parsed(file))
    assert [value.constant for value in values(board, "margin").values()] == [True, False]
    assert not any(value.constant for value in values(board, "kappa").values())


def test_a_unit_is_text_wherever_it_is_written(tmp_path):
    put(tmp_path, entry(units=UNITS | {"leak": {"unit": "a|b<i>", "direction": "lower"}}))
    build(tmp_path)
    assert "| leak [a&#124;b&lt;i&gt;] ↓ |" in (tmp_path / "README.md").read_text()
    assert "a|b<i>" not in (tmp_path / "index.html").read_text()


def test_limits_and_objectives_take_them():
    files = parsed(entry())
    (advice,) = recommend(files, [], ("kappa", "leak"), [("kappa", 0.65)])
    assert [s.row.axes[0] for s in advice.suggestions] == ["b"]
    assert [(e.failed, e.best) for e in advice.exclusions] == [(1, pytest.approx(0.7))]
    (advice,) = recommend(files, [], ("leak",), [("leak", 2.6)])
    assert [s.row.axes[0] for s in advice.suggestions] == ["b"]
    (advice,) = recommend(files, [], ("kappa", "gap.mean"))
    assert [(s.row.axes[0], s.front) for s in advice.suggestions] == [("b", True), ("a", True)]
    out = io.StringIO()
    render_advice(recommend(files, [], (), [("gap.mean", 0.6)])[0], 5, Console(file=out, width=200))
    assert (
        "--limit gap.mean=0.6 excludes 1 of 2, 1 of them without a value that can be compared"
        in out.getvalue()
    )
    assert "the best here is 50.0 % (gap.mean)" in out.getvalue()
    with pytest.raises(HarnessError, match=r"--limit kapa: no such column; did you mean 'kappa'\?"):
        recommend(files, [], (), [("kapa", 1.0)])


def test_limits_on_the_command_line(tmp_path, capsys):
    put(tmp_path, entry())
    (file,) = map(str, (tmp_path / "records").iterdir())
    assert main(["recommend", file, "--limit", "kappa=0.65", "--limit", "accuracy=0.5", "--json"]) == 0
    (advice,) = json.loads(capsys.readouterr().out)
    assert [(s["defence"], s["values"]["kappa"]["mean"]) for s in advice["suggestions"]] == [
        ("b", pytest.approx(0.7))
    ]
    assert main(["recommend", file, "--limit", "kappa=2"]) == 1
    for given, said in (
        ("kappa", "--limit kappa: write COLUMN=BOUND"),
        ("kappa=nan", "--limit kappa must be a number, not nan"),
        ("gap.mean=25", "--limit gap.mean is a share from 0 to 1: write 0.25 for 25 %"),
        ("auroc=0.5", "no result has auroc"),
    ):
        capsys.readouterr()
        assert main(["recommend", file, "--limit", given]) == 2
        assert said in capsys.readouterr().err
