"""Scores of contributed plugins in the table of a run and in figures."""

from __future__ import annotations

import pytest
from test_console import drawn, row_of
from test_console import record as plain

from harness.console.contributed import shown_quantities
from harness.console.figures import draw_pareto, draw_ranks, quantity
from harness.console.pooling import QUANTITIES, pool
from harness.errors import HarnessError
from harness.evaluation.constant import FLAG as CONSTANT
from harness.export import to_frame

UNITS = {
    "ece": ("lower", "share", "expected calibration error"),
    "margin": ("higher", "logits", "least lead of the true class"),
    "temperature": ("none", "", "of which none is better"),
    "size": ("lower", "kB", "has the key of another column"),
    "accuracy": ("higher", "share", "a score of a built-in metric"),
    "mia_auc": ("lower", "", "another one"),
}


def record(*given, **more):
    made = plain(*given, **more)
    keys = ("direction", "unit", "description")
    units = {name: dict(zip(keys, UNITS[name], strict=True)) for name in UNITS.keys() & made["scores"].keys()}
    return {**made, "units": units}


def cells(**more):
    rows = []
    for defence, ece, margins in (("a", (0.02, 0.04), (3.0, 1.0)), ("b", (0.05, 0.05), (2.0, 2.5))):
        for seed in (0, 1):
            rows.append(record(seed=seed, defence=defence, scores={"ece": ece[seed], **more}))
            for attack, less in (("fgsm", 0.0), ("pgd", 1.0)):
                scores = {"robust_accuracy": 0.5, "ece": ece[seed], "margin": margins[seed] - less}
                rows.append(record("e", attack, seed, defence=defence, scores=scores))
    return rows


def test_the_table_has_a_column_for_each_score_that_has_a_direction():
    found = drawn(cells(temperature=1.5), width=120)
    header = [line.split() for line in found.splitlines()[1:3]]
    assert header[0] == ["clean", "robust", "epsilon", "size", "uplink", "ece", "margin"]
    assert header[1][-4:] == ["%", "↓", "logits", "↑"]
    assert row_of(found, "a")[-2:] == ["3.0", "1.000"]  # the mean over seeds, of the worst attack of each
    assert row_of(found, "b")[-2:] == ["5.0", "1.250"]
    assert "ece: expected calibration error" in found
    assert "temperature" not in found


def test_scores_of_built_in_plugins_have_no_further_column():
    assert shown_quantities([record(scores={"mia_auc": 0.5})]) == QUANTITIES


def test_a_score_with_the_name_of_another_column_takes_nothing_from_it():
    records = [record(seed=0, scores={"size": 7.0})]
    (row,) = pool(records, shown_quantities(records))
    assert row.values["size-score"].mean == 7.0
    assert row.values["size"].mean == 61.5


def test_a_constant_model_is_not_compared_under_attacks():
    records = cells()
    for one in records:
        one["flags"] = [CONSTANT] if one["cell"]["defence"] == "a" else []
    rows = pool(records, shown_quantities(records))
    assert [row.values["margin"].fair for row in rows] == [False, True]
    assert [row.values["ece"].fair for row in rows] == [True, True]


def test_where_the_console_is_narrow_accuracy_stays_longest():
    header = drawn(cells(), width=36).splitlines()[1].split()
    assert header[0] == "clean"
    assert "size" not in header


def test_figures_take_them_too(tmp_path):
    records = cells()
    assert draw_pareto(records, tmp_path / "p.svg", "t", "ece", "margin").points == 2
    assert "ece % (lower is better)" in (tmp_path / "p.svg").read_text()
    assert draw_ranks(records, tmp_path / "r.svg", "t", "defence", "margin").blocks == 2
    with pytest.raises(HarnessError, match="unknown quantity 'eec'; did you mean 'ece'"):
        quantity("eec", records)


def test_an_export_keeps_what_stands_before_the_scores():
    one = record(scores={"status": 0.5, "seed": 7.0, "ece": 0.1}) | {
        "id": "ab",
        "reason": None,
        "error": None,
    }
    (row,) = to_frame([one]).to_dict("records")
    assert (row["status"], row["seed"], row["ece"]) == ("scored", 0, 0.1)
    assert (row["status-score"], row["seed-score"]) == (0.5, 7.0)
