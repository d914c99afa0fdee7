"""Tables, progress and plugin pages: numbers by hand, widths counted."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from statistics import stdev

import pytest
from pydantic import BaseModel
from rich.console import Console

from harness.api import Aggregator, EvasionAttack, Field, Metric, Score
from harness.console.describe import describe, example, parameter, summary, type_name
from harness.console.estimate import Estimate
from harness.console.outcomes import reason
from harness.console.output import duration, leave, plain, short_labels, shorten, without_parameters
from harness.console.pages import reflowed, usage
from harness.console.plan_table import render_plan
from harness.console.pooling import QUANTITIES, Row, Value, best, family, pool
from harness.console.progress import LiveObserver, LogObserver, Observer, make_observer
from harness.console.tables import render_leaderboard
from harness.contracts.privacy import VIOLATION
from harness.errors import PluginError, describe_error, place_of
from harness.registry import Entry

BY_KEY = {quantity.key: quantity for quantity in QUANTITIES}
BASE = {"serialized_bytes": 61500.0, "uplink_bytes_per_round": 2_500_000.0}


def record(threat="none", attack="none", seed=0, status="scored", **given):
    axes = {"defence": "none", "aggregator": "mean", "compressor": "none"}
    axes = {axis: given.pop(axis, value) for axis, value in axes.items()}
    name = given.pop("name", "quick")
    scores = {} if status != "scored" else {**BASE, "accuracy": 0.9, **given.pop("scores", {})}
    return {
        "id": f"{name}{axes}{threat}{attack}{seed}",
        "scenario": {"name": name, "version": 1, "hash": "h"},
        "cell": {**axes, "threat": threat, "attack": attack, "seed": seed},
        "status": status,
        "reason": None,
        "error": None,
        "scores": scores,
        "flags": [],
        "guarantee": None,
        **given,
    }


def console(width=80, color=False):
    return Console(
        file=io.StringIO(), width=width, force_terminal=color, color_system="standard" if color else None,
        highlight=False, markup=False, legacy_windows=False,
    )  # fmt: skip


def drawn(records, width=80, color=False):
    target = console(width, color)
    render_leaderboard(records, target)
    return target.file.getvalue()


def row_of(text, label):
    """The numbers of the line that begins with a label."""
    (line,) = (line for line in text.splitlines() if line.startswith(label))
    return line[len(label) :].split()


# pooling --------------------------------------------------------------------------------------------


def test_the_worst_attack_of_each_seed_counts_then_the_mean_over_seeds():
    robust = {("fgsm", 0): 0.5, ("pgd", 0): 0.3, ("fgsm", 1): 0.2, ("pgd", 1): 0.6}
    records = [record("evasion", a, s, scores={"robust_accuracy": v}) for (a, s), v in robust.items()]
    (row,) = pool(records)
    value = row.values["robust"]
    assert value.mean == pytest.approx(100 * (0.3 + 0.2) / 2)  # not the 35 of the worst attack on average
    assert value.deviation == pytest.approx(100 * stdev([0.3, 0.2]))
    assert not value.incomplete
    assert row.values["accuracy"].mean == pytest.approx(90.0)
    assert row.values["accuracy"].deviation == pytest.approx(0.0)


def test_backdoor_and_membership_take_the_highest():
    records = [
        record("backdoor", "badnets", scores={"attack_success_rate": 0.4, "accuracy": 0.1}),
        record("backdoor", "blend", scores={"attack_success_rate": 0.7}),
        record("server", "lira", scores={"mia_auc": 0.6}),
        record("server", "yeom", scores={"mia_auc": 0.55}),
    ]
    (row,) = pool(records)
    assert row.values["backdoor"].mean == pytest.approx(70)
    assert row.values["mia"].mean == pytest.approx(0.6)
    assert row.values["accuracy"].mean == pytest.approx(
        90
    )  # a backdoored training's accuracy is not the clean one
    assert "byzantine" not in row.values
    assert row.values["uplink"].mean == pytest.approx(2500)


def test_accuracy_under_byzantine_attacks_is_kept_apart_from_clean_accuracy():
    records = [
        record(),
        record("byzantine", "sign-flip", scores={"accuracy": 0.5}),
        record("byzantine", "alie", scores={"accuracy": 0.6}),
    ]
    (row,) = pool(records)
    assert (row.values["accuracy"].mean, row.values["byzantine"].mean) == (
        pytest.approx(90),
        pytest.approx(50),
    )


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ((math.inf, 20.0), "inf"),
        ((math.inf, math.inf), "inf"),
        ((20.0, -math.inf), "-inf"),
        ((math.inf, -math.inf), "nan"),
    ],
)
def test_an_infinite_score_has_no_deviation(values, mean):
    records = [
        record("server", "yeom", seed=seed, scores={"mia_auc": 0.5, "reconstruction_psnr": value})
        for seed, value in enumerate(values)
    ]
    (row,) = pool(records)
    assert (str(row.values["inversion"].mean), row.values["inversion"].deviation) == (mean, None)
    assert f" {mean} " in drawn(records)


def test_a_missing_attack_makes_a_value_incomplete_and_it_cannot_win():
    records = [
        record("evasion", "fgsm", scores={"robust_accuracy": 0.3}),
        record("evasion", "pgd", scores={"robust_accuracy": 0.2}),
        record("evasion", "fgsm", compressor="int8", scores={"robust_accuracy": 0.8}),
        record("evasion", "pgd", compressor="int8", status="failed"),
        record("evasion", "fgsm", compressor="pruned", scores={"robust_accuracy": 0.1}),
        record("evasion", "pgd", compressor="pruned", scores={"robust_accuracy": 0.1}),
    ]
    rows = pool(records)
    assert [row.values["robust"].incomplete for row in rows] == [False, True, False]
    assert best(rows, BY_KEY["robust"]) == {0}
    assert not rows[1].values["accuracy"].incomplete  # clean accuracy needs no attack


def test_a_missing_seed_makes_a_value_incomplete():
    records = [
        record(seed=0),
        record(seed=1),
        record(seed=0, defence="x"),
        record(seed=1, defence="x", status="failed"),
    ]
    rows = pool(records)
    assert [row.values["accuracy"].incomplete for row in rows] == [False, True]


def test_an_attack_that_gives_another_score_is_not_missed():
    records = [
        record("s", "yeom", scores={"mia_auc": 0.6}),
        record("s", "inversion", scores={"mia_none": 1.0}),
    ]
    (row,) = pool(records)
    assert not row.values["mia"].incomplete


@pytest.mark.parametrize(
    ("guarantees", "text", "mean"),
    [
        ([None, None], "none", float("inf")),
        ([{"epsilon": 4.0, "holds": True}, {"epsilon": 8.0, "holds": True}], None, 8.0),
        ([{"epsilon": 4.0, "holds": True}, {"epsilon": 4.0, "holds": False}], "broken", float("inf")),
        ([{"epsilon": float("inf"), "holds": True}, {"epsilon": 4.0, "holds": True}], "inf", float("inf")),
        ([{"epsilon": 4.0, "holds": True}, None], "none", float("inf")),
    ],
)
def test_epsilon_is_the_largest_and_says_when_it_promises_nothing(guarantees, text, mean):
    (row,) = pool([record(seed=i, guarantee=g) for i, g in enumerate(guarantees)])
    assert (row.values["epsilon"].text, row.values["epsilon"].mean) == (text, mean)


def test_an_epsilon_that_an_audit_refutes_cannot_win():
    records = [
        record(defence="sound", guarantee={"epsilon": 8.0, "holds": True}),
        record(defence="refuted", guarantee={"epsilon": 1.0, "holds": True}),
        record(
            "server", "audit", defence="refuted", flags=[VIOLATION], guarantee={"epsilon": 1.0, "holds": True}
        ),
    ]
    rows = pool(records)
    assert [row.values["epsilon"].violated for row in rows] == [False, True]
    assert best(rows, BY_KEY["epsilon"]) == {0}


def test_family_from_scores_phase_or_plugin():
    assert family(record()) == "clean"
    assert (
        family(record("t", "unheard-of", status="failed", config={"threat": {"phase": "inference"}}))
        == "evasion"
    )
    assert (
        family(record("t", "unheard-of", status="failed", config={"threat": {"phase": "privacy"}}))
        == "privacy"
    )
    assert family(record("t", "pgd(steps=20)", status="failed")) == "evasion"
    assert family(record("t", "badnets(target=0)", status="failed")) == "backdoor"
    assert family(record("t", "label-flip", status="failed")) == "byzantine"
    assert family(record("t", "unheard-of")) == "byzantine"


def test_best_needs_a_difference():
    def rows(*values):
        return [Row((str(i),), {"accuracy": v}) for i, v in enumerate(values)]

    accuracy = BY_KEY["accuracy"]
    assert best(rows(Value(90.0), Value(91.0), Value(91.04)), accuracy) == {1, 2}  # equal as shown
    assert best(rows(Value(90.0)), accuracy) == set()
    assert best(rows(Value(90.0), Value(90.0)), accuracy) == set()
    assert best(rows(Value(90.0), Value(99.0, incomplete=True)), accuracy) == {0}
    assert best(rows(Value(90.0), Value(99.0, masked=True)), accuracy) == {0}
    assert best(rows(Value(90.0), Value(99.0, violated=True)), accuracy) == {0}
    assert best(rows(Value(90.0), Value(99.0, constant=True)), accuracy) == {0}
    assert best(rows(Value(90.0, masked=True), Value(99.0, masked=True)), accuracy) == set()
    epsilon = [
        Row(("a",), {"epsilon": Value(8.0)}),
        Row(("b",), {"epsilon": Value(float("inf"), text="none")}),
    ]
    assert best(epsilon, BY_KEY["epsilon"]) == {0}


# the table --------------------------------------------------------------------------------------------

LONG = "adversarial-training(attack=pgd(steps=5)) + dp-sgd(epsilon={},max_grad_norm=1.2)"


def crowd(seeds=3):
    """Every column, three axes, long labels."""
    records = []
    for d, defence in enumerate(("none", "dp-sgd(epsilon=8)", LONG.format(8), LONG.format(1))):
        for aggregator in ("mean", "nnm + trimmed-mean"):
            for compressor in ("none", "static-int8"):
                for seed in range(seeds):
                    own = {
                        "defence": defence,
                        "aggregator": aggregator,
                        "compressor": compressor,
                        "seed": seed,
                    }
                    low = 0.1 + 0.01 * d + 0.001 * seed
                    records += [
                        record(
                            **own, guarantee={"epsilon": 8.0, "holds": compressor == "none"} if d else None
                        ),
                        record("evasion", "pgd", **own, scores={"robust_accuracy": low}),
                        record("byzantine", "alie", **own, scores={"accuracy": low}),
                        record("backdoor", "badnets", **own, scores={"attack_success_rate": low}),
                        record("server", "yeom", **own, scores={"mia_auc": 0.5 + low}),
                    ]
    return records


@pytest.mark.parametrize("width", [50, 60, 80, 100, 160])
def test_every_line_fits(width):
    lines = drawn(crowd(), width).splitlines()
    assert max(map(len, lines)) <= width
    assert any("not shown for lack of width" in line for line in lines) == (width < 80)


def test_eighty_columns_hold_all_quantities_and_a_key_for_long_labels():
    text = drawn(crowd())
    header = " ".join(text.splitlines()[1:3])
    for word in ("clean", "robust", "attacked", "backdoor", "MIA", "epsilon", "size", "uplink"):
        assert word in header
    assert header.count("↑") == 3
    assert header.count("↓") == 5
    for epsilon in (8, 1):
        assert LONG.format(epsilon) in text.replace("\n", "").replace("+ dp", " + dp").replace("  +", " +")
    assert len(set(re.findall(r"\[\d\]", text))) == 2
    assert "standard deviation over 3 seeds" in text


def test_numbers_and_units_of_one_seed():
    text = drawn(
        [record(defence="dp-sgd", guarantee={"epsilon": 8.0, "holds": True}), record(defence="none")]
    )
    assert row_of(text, "dp-sgd") == ["90.0", "8.00", "61.5", "2500"]
    assert row_of(text, "none") == ["90.0", "none", "61.5", "2500"]
    assert "±" not in text
    assert "in every row: aggregator mean, compressor none" in text


def test_the_best_value_is_bold_and_nothing_else_in_its_column():
    records = [record(defence=d, scores={"accuracy": a}) for d, a in (("a", 0.71), ("b", 0.93), ("c", 0.82))]
    text = drawn(records, color=True)
    bold = re.findall(r"\x1b\[1m([^\x1b]*)\x1b\[0m", text)
    assert any("93.0" in part for part in bold)
    assert not any("71.0" in part or "82.0" in part for part in bold)
    assert not any("61.5" in part for part in bold)  # all are equal
    assert "bold: best of the column" in text
    assert "bold" not in drawn(records)  # off a terminal nothing is


def test_of_very_many_configurations_the_best_and_the_first_are_shown():
    accuracies = [0.5 + 0.0001 * (i % 1000) for i in range(3000)]
    accuracies[2777] = 0.99
    records = [record(defence=f"d{i:04d}", scores={"accuracy": a}) for i, a in enumerate(accuracies)]
    text = drawn(records)
    shown = re.findall(r"^d(\d{4}) ", text, flags=re.MULTILINE)
    assert shown == [*(f"{i:04d}" for i in range(59)), "2777"]
    assert row_of(text, "d2777")[0] == "99.0"
    assert "… and 2940 other configurations" in text
    assert "3000 cells: 3000 scored" in text
    assert "other configurations" not in drawn(records[:60])


def test_marks_are_explained_where_they_are_used():
    plainly = drawn([record()])
    assert "†" not in plainly
    assert "‡" not in plainly
    records = [
        record("evasion", "fgsm", scores={"robust_accuracy": 0.3}, flags=["gradient-masking-suspected"]),
        record("evasion", "pgd", status="failed", error={"type": "ValueError", "message": "boom\nmore"}),
    ]
    text = drawn(records)
    assert "30.0†‡" in text
    assert "†: lacks attacks" in text
    assert "‡: gradient masking" in text
    assert "failed ×1: ValueError: boom" in text


def test_a_broken_guarantee_names_a_cell_that_explain_takes():
    broken = {"epsilon": 4.0, "holds": False}
    whole = {"epsilon": 4.0, "delta": 1e-5, "unit": "record", "holds": True}
    text = drawn(
        [
            record(guarantee=whole, id="aaaa1111bbbb"),
            record(guarantee=broken, compressor="static-int8", id="cccc2222dddd"),
        ]
    )
    assert "`harness explain cccc2222dddd` says what" in text


def test_a_legend_speaks_of_the_epsilons_that_are_shown():
    """A row shows what its weakest cell is promised, so what its other cells are promised is not in the table."""
    whole = {"epsilon": 4.0, "delta": 1e-5, "unit": "record", "holds": True}
    broken = whole | {"holds": False}
    found = [
        record(defence="a", guarantee=broken, id="aaaa1111bbbb"),
        record("e", "fgsm", defence="a", id="bbbb1111cccc"),  # without any: the row shows `none`
        record(defence="b", guarantee=whole, id="cccc1111dddd"),
        record("e", "fgsm", defence="b", guarantee=broken, id="dddd1111eeee"),
    ]
    text = drawn(found)
    assert re.search(r"^a +.* none ", text, re.MULTILINE)
    assert re.search(r"^b +.* broken ", text, re.MULTILINE)
    assert "delta" not in text
    assert "`harness explain dddd1111eeee` says what" in text
    assert "at delta 1e-05" in drawn([*found, record(defence="c", guarantee=whole)])


def test_an_epsilon_says_for_whom_at_which_delta_and_what_is_left_for_the_patient_with_most_images():
    def told(*guarantees):
        text = drawn(
            [record(defence=f"d{i}", guarantee=given) for i, given in enumerate(guarantees)], width=200
        )
        return [line for line in text.splitlines() if "delta" in line or "largest group" in line]

    record_level = {"epsilon": 8.0, "delta": 1e-5, "unit": "record", "holds": True}
    grouped = record_level | {"group_epsilon": 103410.2, "largest_group": 18}
    assert told(None, record_level | {"holds": False}) == []
    assert told(None, record_level) == ["epsilon: for one record; at delta 1e-05"]
    line, patient = told(grouped, grouped | {"delta": 2e-4, "group_epsilon": 40.0})
    assert line == "epsilon: for one record; at delta 1e-05 to 0.0002"
    assert (
        patient
        == "for the largest group, 18 records (such as the patient with most images): epsilon 40 to 103410"
    )
    assert told(grouped, grouped)[1].endswith("images): epsilon 103410")
    unbounded = grouped | {"group_epsilon": math.inf}
    assert told(grouped, unbounded)[1].endswith("images): epsilon 103410 to no finite one")
    assert told(unbounded)[1].endswith("images): no finite epsilon")
    (line,) = told(record_level, record_level | {"unit": "client"})
    assert line == "epsilon §: for a client with all its data; without it, for one record; at delta 1e-05"
    # Where the column does not fit, neither is it explained.
    narrow = drawn(
        [record(defence="d" * 30, guarantee=record_level, scores={"robust_accuracy": 0.5})], width=30
    )
    assert "not shown for lack of width" in narrow
    assert "delta" not in narrow


def test_what_has_no_value_is_said_in_words():
    nan = float("nan")
    text = drawn([
        record(scores={"accuracy": 0.5, "odd": nan}),
        record("m", "nothing", flags=["attack-unscored"], scores={"accuracy": 0.5, "leak": None}),
        record("m", "yeom", scores={"accuracy": nan, "mia_auc": 0.5}),
    ], width=160)  # fmt: skip
    assert (
        "attacks without a score ×1 (nothing): no metric of the scenario covers what they found, or the score is NaN"
        in text
    )
    assert "NaN in every cell: odd, leak\n" in text
    assert "NaN wherever" not in drawn([record(scores={"accuracy": 0.5})])


def test_of_a_model_that_predicts_one_class_nothing_is_compared_that_attacks_left():
    flags = ["constant-predictions"]
    records = []
    for defence, own in (("useless", flags), ("fair", [])):
        useless = defence == "useless"
        given = {"defence": defence, "flags": own}
        accuracy = 0.375 if useless else 0.85
        records += [
            record(**given, scores={"accuracy": accuracy}),
            record("e", "pgd", **given, scores={"accuracy": accuracy, "robust_accuracy": 0.375 if useless else 0.2}),
            record("z", "alie", **given, scores={"accuracy": 0.375 if useless else 0.3}),
            record("b", "badnets", **given, scores={"attack_success_rate": 0.0 if useless else 0.4}),
            record("s", "yeom", **given, scores={"accuracy": accuracy, "mia_auc": 0.5 if useless else 0.6}),
        ]  # fmt: skip
    useless, fair = pool(records)
    assert {key for key, value in useless.values.items() if value.constant} == {"robust", "backdoor"}
    winners = {q.key: best([useless, fair], q) for q in BY_KEY.values()}
    assert winners["robust"] == winners["backdoor"] == winners["accuracy"] == {1}
    assert winners["mia"] == {0}  # nothing leaks from it: that is so
    text = drawn(records, width=120)
    assert "37.5‖" in text
    assert "‖: the model predicts one class for every test image" in text
    assert "constant predictions ×5: the model predicts one class for every test image" in text
    without = drawn([one for one in records if one["cell"]["defence"] == "fair"])
    assert "‖" not in without
    assert "one class" not in without


def test_without_attacks_a_model_that_predicts_one_class_is_named_too():
    text = drawn([record(flags=["constant-predictions"]), record(defence="a")])
    assert "‖" not in text
    assert "constant predictions ×1" in text


def test_scores_of_a_part_of_the_test_set_say_so():
    whole = record("e", "pgd", scores={"robust_accuracy": 0.3}, test_samples=1000) | {
        "attack": {"samples": 1000}
    }
    assert "test records" not in drawn([whole])
    text = drawn([{**whole, "attack": {"samples": 100}}])
    assert "30.0¶" in text
    assert "¶: on fewer test records than the clean accuracy: the threat's subset" in text
    text = drawn([{**whole, "provenance": {"dataset": {"test": 2000}}}])
    assert "¶" not in text
    assert "scores are of 1000 of the 2000 test records: the scenario's evaluation.subset" in text


def test_outcomes_are_counted_with_their_first_reasons():
    records = [
        record(),
        *(record("e", f"a{i}", status="not-applicable", reason="pgd needs gradients") for i in range(4)),
    ]
    records += [
        record("e", f"b{i}", status="failed", error={"type": "E", "message": f"number {i}"}) for i in range(5)
    ]
    text = drawn(records)
    assert "10 cells: 1 scored, 5 failed, 4 not applicable" in text
    assert "not applicable ×4: pgd needs gradients" in text
    assert "… and 2 other reasons" in text


def test_scenarios_are_apart_and_nothing_scored_is_said():
    text = drawn(
        [record(name="one"), record(name="two", status="failed", error={"type": "E", "message": ""})]
    )
    assert text.index("one") < text.index("two")
    assert "no configuration has a score" in text
    assert "failed ×1: E" in text
    assert "0 cells: none" in drawn([])


def test_plan_page():
    cell = {"id": "1", "axes": {}, "stages": {}}
    plan = {
        "scenarios": [
            {
                "name": "quick",
                "cells": [
                    {**cell, "status": "ready", "reason": None},
                    {**cell, "status": "cached", "reason": None},
                    {**cell, "status": "not-applicable", "reason": "pgd needs gradients"},
                    {**cell, "status": "not-applicable", "reason": "pgd needs gradients"},
                ],
            }
        ],
        "stages": {"train": {"total": 5, "cached": 2}},
        "estimate_seconds": 200.0,
        "jobs": 2,
    }
    target = console()
    render_plan(plan, target)
    text = target.file.getvalue()
    assert row_of(text, "quick") == ["4", "1", "1", "2"]
    assert row_of(text, "train") == ["5", "2", "3"]
    assert "not applicable ×2: pgd needs gradients" in text
    assert "about 3 min 20 s, with 2 jobs" in text
    render_plan({**plan, "estimate_seconds": None}, target)
    assert "time: unknown" in target.file.getvalue()


# progress ---------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


PLAN = {
    "scenarios": [{"name": "q", "cells": [
        {"id": "c1", "status": "ready"}, {"id": "c2", "status": "ready"},
        {"id": "c3", "status": "not-applicable"},
    ]}],
    "stages": {"train": {"total": 3, "cached": 1}, "attack": {"total": 4, "cached": 0}},
    "estimate_seconds": 100.0,
    "jobs": 2,
}  # fmt: skip


def test_time_left_by_hand():
    estimate = Estimate.from_plan(PLAN, 0.0)
    assert estimate.total_stages == 6
    assert estimate.seconds_left(30.0) == 70.0  # nothing seen: the plan's own estimate less the time gone
    estimate.start("t1", "train", 30.0)
    estimate.progress("t1", 0.5)
    # 10 s for half of one training: 20 s each; 1.5 trainings and 4 attacks (unseen: as the mean) on 2 jobs
    assert estimate.seconds_left(40.0) == pytest.approx((1.5 * 20 + 4 * 20) / 2)
    estimate.finish("t1", "train", "done", 24.0)
    estimate.start("a1", "attack", 54.0)
    estimate.finish("a1", "attack", "done", 4.0)
    assert estimate.seconds_left(58.0) == pytest.approx((1 * 24 + 3 * 4) / 2)
    assert estimate.share == pytest.approx(2 / 6)
    estimate.finish("x", "attack", "cached", 0.0)  # was never work
    assert estimate.finished_stages == 2


def test_time_left_by_what_the_plan_says_of_each_stage():
    seconds = {"train": {"t1": 10.0, "t2": 20.0}, "attack": {"a1": 1.0, "a2": 1.0, "a3": 1.0, "a4": 97.0}}
    estimate = Estimate.from_plan({**PLAN, "stage_seconds": seconds}, 0.0)
    estimate.start("t1", "train", 0.0)
    estimate.progress("t1", 0.5)
    # 10 s for half of what was put at 10 s: all takes twice as long
    assert estimate.seconds_left(10.0) == pytest.approx(2 * (5 + 20 + 100) / 2)
    estimate.finish("t1", "train", "done", 20.0)
    estimate.start("a1", "attack", 20.0)
    estimate.finish("a1", "attack", "done", 3.0)
    assert estimate.seconds_left(23.0) == pytest.approx(
        (2 * 20 + 3 * 99) / 2
    )  # not 3 attacks as short as the first
    estimate.start("x", "attack", 23.0)
    estimate.finish("x", "attack", "done", 5.0)  # the plan did not count it
    assert estimate.seconds_left(23.0) == pytest.approx((2 * 20 + 8 * 99) / 2)


def test_nothing_known_is_unknown():
    estimate = Estimate.from_plan({**PLAN, "estimate_seconds": None}, 0.0)
    assert estimate.seconds_left(5.0) is None


def play(observer):
    with observer:
        observer.plan_ready(PLAN)
        observer.stage_started("t1", "train", "none + mean")
        observer.stage_progress("t1", 3, 10, "round 3/10")
        observer.stage_finished("t1", "train", "none + mean", "done", 12.0, None)
        observer.stage_started("a1", "attack", "pgd [x]")
        observer.stage_finished("a1", "attack", "pgd [x]", "failed", 1.0, "ValueError: no [bold]luck\nmore")
        observer.cell_finished({"id": "c1", "status": "scored"})
        observer.cell_finished({"id": "c2", "status": "failed"})
        observer.cell_finished({"id": "c3", "status": "not-applicable"})
        observer.run_finished(None)


def test_log_has_one_line_an_event():
    target = console()
    play(LogObserver(target, Clock()))
    assert target.file.getvalue().splitlines() == [
        "3 cells; 6 stages to compute, 1 in the store; 2 jobs, about 1 min 40 s",
        "[1/6] train none + mean: 12 s",
        "failed: attack pgd [x]: ValueError: no [bold]luck",
    ]


def test_log_tells_of_long_stages_now_and_then():
    target, clock = console(), Clock()
    observer = LogObserver(target, clock)
    observer.plan_ready(PLAN)
    observer.stage_started("t1", "train", "x")
    for second in range(0, 200, 10):
        clock.now = float(second)
        observer.stage_progress("t1", second, 200, f"round {second}/200")
    assert re.findall(r"running train x: round (\d+)/200", target.file.getvalue()) == ["60", "120", "180"]


def test_quiet_still_says_what_failed():
    target = console()
    play(make_observer(target, quiet=True))
    assert target.file.getvalue() == "failed: attack pgd [x]: ValueError: no [bold]luck\n"


def test_live_bars_count_and_leave_failures_above():
    target = console(color=True)
    observer = make_observer(target)
    assert isinstance(observer, LiveObserver)
    play(observer)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", target.file.getvalue())
    assert "failed: attack pgd [x]: ValueError: no [bold]luck" in text
    (overall,) = observer.progress.tasks
    assert overall.description == "stages 2/6 · cells 3/3 · 1 failed"
    assert overall.completed == pytest.approx(1000 * 2 / 6, abs=1)
    assert observer.progress.finished is False
    assert not observer.progress.live.is_started


def test_there_is_a_line_before_there_is_a_plan():
    target = console(color=True)
    with LiveObserver(target, Clock()) as observer:
        (overall,) = observer.progress.tasks
        assert overall.description == "reading scenarios and data"
        assert overall.total is None
    assert "reading scenarios and data" in target.file.getvalue()


def test_the_terminal_is_given_back_after_an_error():
    observer = LiveObserver(console(color=True), Clock())
    with pytest.raises(RuntimeError), observer:
        raise RuntimeError
    assert not observer.progress.live.is_started


def test_off_a_terminal_it_logs():
    assert type(make_observer(console())) is LogObserver
    assert type(make_observer(console(), quiet=True)) is Observer


# words ------------------------------------------------------------------------------------------------


def test_words():
    assert without_parameters("a(b=c(d=1)) + e") == "a + e"
    assert shorten("abcdefghij", 7) == "abcd…ij"
    assert shorten("abc", 7) == "abc"
    assert [duration(s) for s in (0.04, 9.94, 59.4, 200, 7500)] == [
        "0.0 s",
        "9.9 s",
        "59 s",
        "3 min 20 s",
        "2 h 5 min",
    ]
    assert plain({"a": (1, float("nan")), 2: float("inf")}) == {"a": [1, None], "2": None}


@pytest.mark.parametrize("width", [10, 16, 24])
def test_short_labels_fit_and_stay_distinct(width):
    labels = [LONG.format(1), LONG.format(8), "none", "adversarial-training", "adversarial-trainings"]
    short = short_labels(labels, width)
    assert len(set(short.values())) == len(labels)
    assert all(len(text) <= width for text in short.values())
    assert short["none"] == "none"


# pages ------------------------------------------------------------------------------------------------


class Rule(Aggregator):
    """Keeps the rows, e.g. all of them. A second sentence.

    More.
    """

    name = "rule"
    aliases = ("law",)
    f: int | None = Field(None, ge=0, description="clients")
    tau: float = Field(1.5, gt=0, lt=3)

    def aggregate(self, updates, context):
        return updates[0]


class Choosy(EvasionAttack):
    """Needs exactly one of two."""

    name = "choosy"
    norm = "l2"
    eps: float | None = Field(None, ge=0)
    inner: EvasionAttack | None = None

    def model_post_init(self, _):
        if self.eps is None:
            raise ValueError("eps is needed")

    def perturb(self, model, x, y, context):
        return x


class Counter(Metric):
    """Counts."""

    name = "counter"
    needs = ("labels", "logits")
    scores = {"count": Score("lower", "B", "a count", measured=True)}

    def score(self, context):
        return {}


def test_page_of_a_plugin():
    page = describe(Entry(Rule, "pack", "1.2"))
    assert page["summary"] == "Keeps the rows, e.g. all of them."
    assert page["aliases"] == ["law"]
    assert page["facts"] == {"pre": False, "data_access": "none", "sum_only": False}
    assert page["source"].startswith(__file__)
    f, tau = page["parameters"]
    assert f == {
        "name": "f", "type": "integer or none", "required": False, "default": None, "bounds": "≥ 0",
        "description": "clients",
    }  # fmt: skip
    assert (tau["type"], tau["default"], tau["bounds"]) == ("number", 1.5, "> 0, < 3")
    assert (page["distribution"], page["version"]) == ("pack", "1.2")
    assert usage(page) == "aggregators: [{rule: {tau: 1.5}}]"


def test_page_of_a_metric_says_what_its_scores_mean():
    page = describe(Entry(Counter, "pack", "1.2"))
    assert page["facts"] == {"needs": ["labels", "logits"]}
    assert page["scores"]["count"] == {
        "direction": "lower",
        "unit": "B",
        "description": "a count",
        "measured": True,
    }


def test_examples_validate():
    assert example(Choosy) == "choosy: {eps: 1.0}"
    assert facts_of(Choosy)["norm"] == "l2"
    assert example(Counter) == "counter"


class Part(BaseModel):
    size: int = 3


class Nested(Aggregator):
    """Has defaults that are no plain values."""

    name = "nested"
    part: Part = Field(Part(), description="a model")
    kept: Path = Field(Path("a/b"), description="a place")
    many: tuple[Part, ...] = Field((Part(size=1),), description="models")

    def aggregate(self, updates, context):
        return updates.mean(0)


def test_defaults_that_are_models_or_paths_are_shown_as_a_scenario_writes_them():
    """`harness show` ended in a traceback."""
    assert example(Nested) == "nested: {part: {size: 3}}"
    shown = {one["name"]: one["default"] for one in describe(Entry(Nested, "pack", "1"))["parameters"]}
    assert shown == {"part": {"size": 3}, "kept": "a/b", "many": [{"size": 1}]}
    assert json.loads(json.dumps(shown)) == shown


def facts_of(plugin):
    return describe(Entry(plugin, "pack", "1"))["facts"]


def test_types_in_words():
    assert type_name(float | None) == "number or none"
    assert type_name(list[float] | float) == "list of number or number"
    assert type_name(tuple[int, ...]) == "list of integer"
    assert type_name(EvasionAttack) == "evasion attack"
    assert parameter("inner", Choosy.model_fields["inner"])["type"] == "evasion attack or none"


def test_summary_stops_at_the_first_sentence():
    class Paper(Rule):
        """As in Yin et al. (2018), for n > 2f. Then more."""

    assert summary(Paper) == "As in Yin et al. (2018), for n > 2f."


def test_prose_is_reflowed_and_blocks_are_not():
    text = "one two\nthree\n\n    code a\n    code b"
    assert reflowed(text, 6) == "one two three\n\n    code a\n    code b"
    assert reflowed(text, 60) == text


def test_an_error_that_nobody_meant_is_shown_with_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "raises.py"
    file.write_text("def aggregate():\n    return [].index(3)\n")
    names: dict = {}
    exec(compile(file.read_text(), str(file), "exec"), names)
    with pytest.raises(ValueError, match="is not in list") as caught:
        names["aggregate"]()
    described = describe_error(caught.value)
    assert place_of(described) == "raises.py:2"
    assert reason({"error": described}).endswith("is not in list (raises.py:2)")
    assert place_of(describe_error(PluginError("krum needs n > 2f + 2"))) is None
    assert place_of({"type": "WorkerLost", "message": "exited with 3", "traceback": ""}) is None


def test_a_lost_worker_is_said_to_be_worth_another_try(capsys):
    from types import SimpleNamespace

    def ended(*kinds, interrupted=False):
        records = [{"status": "failed", "error": {"type": kind, "message": "it ended"}} for kind in kinds]
        return SimpleNamespace(
            records=[*records, {"status": "scored"}, {"status": "scored", "error": None}], scored=2, not_applicable=0,
            failed=len(kinds), skipped=[], problems=[], interrupted=interrupted,
        )  # fmt: skip

    assert leave(ended("WorkerLost", "ValueError", "WorkerLost")) == 1
    assert (
        "2 cells failed because a worker process was lost; run the same command again"
        in capsys.readouterr().err
    )
    assert leave(ended("WorkerLost", interrupted=True)) == 130
    assert capsys.readouterr().err == "interrupted; run the same command again to resume\n"
    assert leave(ended("ValueError")) == 1
    assert leave(ended()) == 0
    assert not capsys.readouterr().err
