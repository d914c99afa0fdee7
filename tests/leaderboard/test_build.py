"""The published pages: boards, pooled numbers, and what becomes of text from strangers."""

from __future__ import annotations

import copy
import csv
import io
import json
import math
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import synthetic
from synthetic import HEX, cell, claim, plain, put

from harness.console.pooling import QUANTITIES, best, pool
from harness.errors import HarnessError
from harness.leaderboard import build as module
from harness.leaderboard.board import boards, pooled
from harness.leaderboard.build import build
from harness.leaderboard.citations import bibtex, command, selects, used
from harness.leaderboard.columns import BY_KEY, COLUMNS, HOLLOW, MARKS, SIGNS
from harness.leaderboard.comparisons import pareto_front
from harness.leaderboard.escaping import cell as csv_cell
from harness.leaderboard.escaping import link, markdown, script, script_json, tex
from harness.leaderboard.markdown import ROWS, readme, shown
from harness.leaderboard.page import SCRIPTS
from harness.leaderboard.page_data import data
from harness.leaderboard.page_rows import CONSTANT, INTERVAL, SIGN_BITS
from harness.leaderboard.page_rows import number as page_number
from harness.leaderboard.submission import Plugin, Submission, parse

T2 = 4.302652729911275  # Student's t, 97.5 %, 2 degrees of freedom
BASE = ("none", "mean", "none")
HOSTILE = "</script><script>pwned=1</script><img src=x onerror=pwned=1>\"'&`|](x)\\{{7*7}}$x$"


def small(name: str = "lab", base: tuple[str, str, str] = BASE, **fields: Any) -> dict[str, Any]:
    """One configuration: clean, two evasion attacks, one Byzantine one, an inversion; three seeds."""
    return plain(
        name,
        [
            cell(
                (*base, "none", "none"),
                "clean",
                {"accuracy": [0.8, 0.9, 0.7], "serialized_bytes": [2000.0] * 3},
                name,
            ),
            cell(
                (*base, "evasion", "fgsm"),
                "evasion",
                {"accuracy": [0.8, 0.9, 0.7], "robust_accuracy": [0.5, 0.3, 0.4]},
                name,
                eps=0.1,
                norm="linf",
            ),
            cell(
                (*base, "evasion", "pgd"),
                "evasion",
                {"accuracy": [0.8, 0.9, 0.7], "robust_accuracy": [0.2, 0.6, 0.4]},
                name,
                eps=0.1,
                norm="linf",
            ),
            cell((*base, "byzantine", "alie"), "byzantine", {"accuracy": [0.6, 0.5, 0.1]}, name),
            cell(
                (*base, "server", "dlg"),
                "privacy",
                {"accuracy": [0.8, 0.9, 0.7], "reconstruction_psnr": [20.0, 30.0, 25.0]},
                name,
            ),
        ],
        **fields,
    )


def board_of(*submissions: dict[str, Any]):
    (found,) = boards([parse(one, "test") for one in submissions])
    return found


def rows_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / "leaderboard.csv").read_text(encoding="utf-8"))))


def page_data(folder: Path) -> dict[str, Any]:
    text = (folder / "index.html").read_text(encoding="utf-8")
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


# numbers ------------------------------------------------------------------------------------------


def test_worst_attack_of_each_seed_then_mean_and_interval_over_seeds():
    (row,) = board_of(small()).rows
    worst = row.values["robust"].estimate
    assert worst.mean == pytest.approx((0.2 + 0.3 + 0.4) / 3)
    half = T2 * 0.1 / math.sqrt(3)  # 0.2, 0.3, 0.4 deviate by 0.1
    assert worst.low == pytest.approx(0.3 - half)
    assert worst.high == pytest.approx(0.3 + half)
    assert worst.seeds == 3
    assert row.values["robust_mean"].mean == pytest.approx((0.35 + 0.45 + 0.4) / 3)
    assert row.values["accuracy"].mean == pytest.approx(0.8)
    assert row.values["byzantine"].mean == pytest.approx(0.4)
    assert row.values["inversion"].mean == pytest.approx(25.0)
    assert row.values["size"].estimate[:3] == (2000.0, 2000.0, 2000.0)
    assert "mia" not in row.values
    assert not any(value.incomplete for value in row.values.values())


def test_a_mean_over_radii_leaves_out_the_one_at_which_nothing_is_attacked():
    submission = small()
    still = cell(
        (*BASE, "curve", "pgd"), "evasion", {"robust_accuracy": [0.8, 0.9, 0.7]}, "lab", eps=0.0, norm="linf"
    )
    submission["cells"].append(still)
    (row,) = board_of(submission).rows
    assert row.values["robust_mean"].mean == pytest.approx((0.35 + 0.45 + 0.4) / 3)


def test_scores_that_only_some_boards_have_get_columns_there():
    base = ("none", "mean", "none")
    clean = {"accuracy": [0.8] * 3, "balanced_accuracy": [0.7] * 3, "auroc": [0.9] * 3}
    cells = [
        cell((*base, "none", "none"), "clean", clean),
        cell((*base, "server", "property-inference"), "privacy", {"property_auc": [0.75, 0.85, 0.65]}),
        cell((*base, "server", "canary-exposure"), "privacy", {"exposure_mean": [3.0, 4.0, 5.0]}),
    ]
    found = board_of(plain("lab", cells))
    values = found.rows[0].values
    assert {key: values[key].mean for key in ("balanced", "auroc", "property", "exposure")} == pytest.approx(
        {"balanced": 0.7, "auroc": 0.9, "property": 0.75, "exposure": 4.0}
    )
    headers = [column.header for column in found.columns]
    assert {"Property AUC ↓", "Canary exposure [bits] ↓", "AUROC ↑", "Balanced accuracy [%] ↑"} <= set(
        headers
    )
    assert not {"property", "exposure"} & {column.key for column in board_of(small()).columns}


def test_intervals_of_an_audit_and_of_exposure_end_at_zero():
    base = ("none", "mean", "none")
    cells = [
        cell((*base, "none", "none"), "clean", {"accuracy": [0.8] * 3}),
        cell((*base, "audit", "audit"), "privacy", {"epsilon_audited": [0.0, 0.0, 0.3]}),
        cell((*base, "server", "canary-exposure"), "privacy", {"exposure_mean": [0.0, 0.0, 3.0]}),
    ]
    (row,) = board_of(plain("lab", cells)).rows
    # 0, 0, 3 deviate by sqrt(3), so that half an interval is T2 and the lower end would be negative.
    assert row.values["exposure"].estimate[:3] == pytest.approx((1.0, 0.0, 1 + T2))
    assert row.values["audited"].estimate[:3] == pytest.approx((0.1, 0.0, (1 + T2) / 10))


def test_the_pooled_numbers_are_those_of_the_statistics_and_of_the_terminal(tmp_path):
    made = put(tmp_path, synthetic.realistic("base"))
    (found,) = boards([made])
    records = [
        {
            "cell": {
                "defence": c.defence,
                "aggregator": c.aggregator,
                "compressor": c.compressor,
                "threat": c.threat,
                "attack": c.attack,
                "seed": int(number),
            },
            "status": "scored",
            "scores": dict(seed.scores),
            "flags": list(seed.flags),
            "config": {},
            "guarantee": c.guarantee.model_dump() if c.guarantee else None,
        }
        for c in made.cells
        for number, seed in c.seeds.items()
    ]
    terminal = {row.axes: row for row in pool(records)}
    for row in found.rows:
        for key, value in terminal[row.axes].values.items():
            ours = row.values[key]
            scale = BY_KEY[key].scale
            assert ours.mean * scale == pytest.approx(value.mean), (row.axes, key)
            assert (ours.incomplete, ours.clients) == (value.incomplete, value.clients)
            assert ours.text == (value.text or "")
        frame = pandas.DataFrame(
            [
                (number, (c.threat, c.attack), seed.scores["robust_accuracy"])
                for c in row.cells
                if c.family == "evasion"
                for number, seed in c.seeds.items()
            ],
            columns=["seed", "attack", "value"],
        )
        seeds = frame.groupby("seed")["value"]
        assert row.values["robust"].mean == pytest.approx(seeds.min().mean())
        assert row.values["robust_mean"].mean == pytest.approx(seeds.mean().mean())


def test_one_seed_has_no_interval_and_the_page_says_so(tmp_path):
    one = small(scenario={"seeds": [0]})
    for item in one["cells"]:
        item["seeds"] = {"0": item["seeds"]["0"]}
    put(tmp_path, one)
    build(tmp_path)
    (line,) = rows_of(tmp_path)
    assert line["accuracy_low"] == line["accuracy_high"] == ""
    assert line["accuracy_seeds"] == "1"
    assert "one seed" in page_data(tmp_path)["few"]["1"]


def test_an_infinite_score_is_kept_and_an_undefined_one_is_no_score():
    one = small()
    inverted = one["cells"][4]["seeds"]
    del inverted["0"]["scores"]["reconstruction_psnr"], inverted["1"]["scores"]["reconstruction_psnr"]
    inverted["0"]["undefined"] = {"reconstruction_psnr": "nan"}
    inverted["1"]["undefined"] = {"reconstruction_psnr": "inf"}
    (row,) = board_of(one).rows
    value = row.values["inversion"]
    assert (value.mean, value.estimate.low, value.estimate.seeds, value.text) == (math.inf, None, 2, "inf")
    assert value.incomplete


def test_a_missing_attack_is_marked_and_not_compared():
    poor = small("poor", ("krum", "mean", "none"))
    poor["cells"] = [c for c in poor["cells"] if c["attack"] != "pgd"]
    poor["cells"][1]["seeds"]["0"]["scores"]["robust_accuracy"] = 0.99
    found = board_of(small("full"), small("full-too", ("a", "mean", "none")), poor)
    values = {row.submission.name: row.values["robust"] for row in found.rows}
    assert values["poor"].incomplete
    assert not values["poor"].best
    assert "†" in values["poor"].signs
    assert not values["full"].incomplete


def two(outcome: str) -> dict[str, Any]:
    """Two configurations under fgsm, and under pgd not applicable; for the second, pgd had this outcome."""
    one, other = small("lab"), small("lab", ("b", "mean", "none"))
    found = {
        **one,
        "cells": [c for c in (*one["cells"], *other["cells"]) if c["family"] in ("clean", "evasion")],
    }
    pgd = [c for c in found["cells"] if c["attack"] == "pgd"]
    for item, status in zip(pgd, ("not-applicable", outcome), strict=True):
        if status != "scored":
            item |= {"status": status, "reason": "it makes no sense"}
            item["seeds"] = {n: {**seed, "scores": {}} for n, seed in item["seeds"].items()}
    return found


@pytest.mark.parametrize(
    ("outcome", "asked"), [("not-applicable", False), ("failed", True), ("scored", True)]
)
def test_an_attack_is_asked_for_where_it_was_run_on_some_row(outcome, asked):
    first, second = (row.values["robust"] for row in board_of(two(outcome)).rows)
    assert first.incomplete is asked
    assert second.incomplete is (outcome == "failed")
    records = [
        {
            "cell": {"defence": item["defence"], "threat": item["threat"], "attack": item["attack"], "seed": number},
            "config": {"threat": {"phase": "inference"}}, "status": item["status"], "scores": seed["scores"],
        }
        for item in two(outcome)["cells"] for number, seed in item["seeds"].items()
    ]  # fmt: skip
    first, second = (row.values["robust"] for row in pool(records))  # the terminal asks alike
    assert (first.incomplete, second.incomplete) == (asked, outcome == "failed")


def test_an_attack_that_does_worse_than_guessing_is_no_better_than_one_that_guesses():
    rows = {"chance": [0.5] * 3, "below": [0.31, 0.42, 0.35], "leaks": [0.7] * 3}
    cells = [
        cell((name, "mean", "none", "curious", "loss"), "privacy", {"accuracy": [0.9] * 3, "mia_auc": values})
        for name, values in rows.items()
    ]
    board = board_of(plain("lab", cells))
    for key in ("mia", "mia_mean"):
        values = {row.axes[0]: row.values[key] for row in board.rows}
        assert {name for name, value in values.items() if value.best} == {"chance", "below"}
        assert BY_KEY[key].show(values["below"].mean) == "0.36"  # shown as it is
    records = [
        {"cell": {"defence": name, "threat": "curious", "attack": "loss", "seed": seed}, "status": "scored",
         "scores": {"mia_auc": value}}
        for name, values in rows.items() for seed, value in enumerate(values)
    ]  # fmt: skip
    pooled_rows = pool(records)
    (mia,) = (q for q in QUANTITIES if q.key == "mia")
    assert {pooled_rows[i].axes[0] for i in best(pooled_rows, mia)} == {"chance", "below"}
    assert mia.show(pooled_rows[1].values["mia"].mean) == "0.36"


def test_a_value_of_fewer_test_records_says_so():
    made = small()
    for item in made["cells"]:
        item["tested"] = 1000
        if item["family"] == "evasion":
            item["attacked"] = 100
    (row,) = board_of(made).rows
    assert {key for key, value in row.values.items() if "¶" in value.signs} == {"robust", "robust_mean"}
    assert row.values["robust"].fair
    made["scenario"]["test_records"] = 2000
    assert (
        "scores are of 1000 of the 2000 test records: the scenario's evaluation.subset"
        in board_of(made).notes
    )
    (row,) = board_of(small()).rows  # a file from before these numbers
    assert not row.values["robust"].subset


def test_an_unofficial_submission_cannot_ask_more_of_official_ones_or_win():
    strange = small("strange", official=False, unofficial_because=["other attacks"])
    for item in strange["cells"]:
        for seed in item["seeds"].values():
            seed["scores"]["accuracy"] = 1.0
    strange["cells"].append(cell((*BASE, "evasion", "zzz"), "evasion", {"robust_accuracy": [0.0] * 3}, "zzz"))
    other = small("other", ("a", "mean", "none"))
    for seed in other["cells"][0]["seeds"].values():
        seed["scores"]["serialized_bytes"] = 1000.0
    found = board_of(small("lab"), strange, other)
    by = {row.submission.name: row for row in found.rows}
    assert not by["lab"].values["robust"].incomplete
    assert not by["strange"].values["accuracy"].best
    assert by["other"].values["size"].best
    assert not by["lab"].values["size"].best


def test_masked_and_refuted_values_are_marked_and_do_not_win():
    masked = small("masked", ("mask", "mean", "none"))
    for seed in masked["cells"][1]["seeds"].values():
        seed["scores"]["robust_accuracy"], seed["flags"] = 0.99, ["gradient-masking-suspected"]
    for seed in masked["cells"][2]["seeds"].values():
        seed["scores"]["robust_accuracy"] = 0.99
    weaker = small("weaker", ("weak", "mean", "none"))
    for item in weaker["cells"][1:3]:
        for seed in item["seeds"].values():
            seed["scores"]["robust_accuracy"] = 0.01
    by = {row.submission.name: row.values["robust"] for row in board_of(small("lab"), masked, weaker).rows}
    assert (by["masked"].masked, by["masked"].best, by["lab"].best, by["weaker"].best) == (
        True,
        False,
        True,
        False,
    )

    refuted = small("refuted")
    refuted["cells"].append(cell((*BASE, "audit", "audit"), "privacy", {"epsilon_audited": [9.0] * 3}, "a"))
    for item in refuted["cells"]:
        item["guarantee"] = claim(8.0)
    for seed in refuted["cells"][-1]["seeds"].values():
        seed["flags"] = ["audit-violation"]
    (row,) = board_of(refuted).rows
    assert row.values["audited"].signs == "!"
    assert row.values["epsilon"].violated


def useless(name: str) -> dict[str, Any]:
    """One whose model predicts one class for everything: what attacks leave is all that there was."""
    made = small(name, ("stuck", "mean", "none"))
    backdoor = cell(
        ("stuck", "mean", "none", "b", "badnets"), "backdoor", {"attack_success_rate": [0.0] * 3}, name
    )
    made["cells"].append(backdoor)
    for item in made["cells"]:
        for seed in item["seeds"].values():
            seed["flags"] = ["constant-predictions"]
            for score in ("accuracy", "robust_accuracy"):
                if score in seed["scores"]:
                    seed["scores"][score] = 0.95
    return made


def test_what_attacks_do_to_a_model_that_predicts_one_class_is_marked_and_does_not_win(tmp_path):
    other = small()
    other["cells"].append(cell((*BASE, "b", "badnets"), "backdoor", {"attack_success_rate": [0.4] * 3}))
    board = board_of(other, useless("useless"))
    by = {row.submission.name: row for row in board.rows}
    stuck, fair = by["useless"], by["lab"]
    assert (stuck.constant, fair.constant) == (True, False)
    attacked = {"robust", "robust_mean", "backdoor", "backdoor_mean"}
    assert {key for key, value in stuck.values.items() if value.signs == "‖"} == attacked
    assert not any(stuck.values[key].best or stuck.values[key].fair for key in attacked)
    assert all(fair.values[key].best for key in attacked)
    assert stuck.values["accuracy"].best  # its accuracy is what it is
    assert not any(
        value.best for values in stuck.under.values() for key, value in values.items() if key in attacked
    )
    text = readme([board], [])
    assert "95.0‖" in text
    assert "\n- ‖ predicts one class for every test image" in text
    assert "Flagged constant-predictions: stuck / mean / none." in text


def test_a_model_that_an_attack_left_with_one_class_counts_with_the_accuracy_that_is_left():
    made = small()
    for seed in made["cells"][3]["seeds"].values():
        seed["flags"] = ["constant-predictions"]
    board = board_of(made)
    (row,) = board.rows
    assert not row.constant
    assert row.values["byzantine"].fair
    assert not any(value.constant for value in row.values.values())
    said = "Flagged constant-predictions only after an attack on training: none / mean / none."
    assert said in readme([board], [])


def test_a_board_says_at_which_delta_its_guarantees_hold():
    text = readme([board_of(synthetic.realistic("lab"))], [])
    assert "Guaranteed ε holds at δ = 1e-05." in text
    assert "at δ" not in readme([board_of(small())], [])


def test_the_page_knows_every_mark(tmp_path):
    rows = (Path(module.__file__).parent / "static" / "rows.js").read_text(encoding="utf-8")
    (named,) = re.findall(r"const names = \{(.*)\};", rows)
    assert dict(re.findall(r'(\w+): "(.)"', named)) == MARKS
    assert MARKS.keys() <= SIGN_BITS.keys()
    assert set(MARKS.values()) == set(SIGNS)
    assert set(BY_KEY) >= HOLLOW


def test_the_epsilon_shown_is_the_weakest_guarantee_and_says_for_whom():
    def with_claims(*claims: dict[str, Any] | None) -> Any:
        """A row whose cells claim these, and the first those that are left."""
        one = small()
        for item, given in zip_longest(one["cells"], claims, fillvalue=claims[0]):
            item["guarantee"] = given
        return board_of(one).rows[0].values["epsilon"]

    assert (with_claims(None).text, with_claims(None).mean) == ("none", math.inf)
    assert with_claims(claim(2.0), None).text == "none"  # with a scored cell that has none
    assert with_claims(claim(2.0), claim(3.0)).mean == 3.0
    assert with_claims(claim(2.0), claim(1.0, holds=False)).text == "broken"
    assert with_claims(claim(None), claim(1.0)).text == "inf"
    assert with_claims(claim(2.0, unit="client")).signs == "§"


def test_epsilons_for_records_and_for_clients_are_not_compared():
    def named(name: str, **fields: Any) -> dict[str, Any]:
        one = small(name, (name, "mean", "none"))
        for item in one["cells"]:
            item["guarantee"] = claim(**fields)
        return one

    assert not any(
        r.values["epsilon"].best for r in board_of(named("a", epsilon=1.0, unit="client"), named("b")).rows
    )
    assert [r.values["epsilon"].best for r in board_of(named("a", epsilon=1.0), named("b")).rows] == [
        True,
        False,
    ]


def test_failed_and_inapplicable_cells_have_no_scores_and_keep_their_reason(tmp_path):
    one = small()
    one["cells"][2] |= {"status": "failed", "reason": "RuntimeError: out of memory"}
    for seed in one["cells"][2]["seeds"].values():
        seed["scores"], seed["error"] = {}, "RuntimeError: out of memory"
    put(tmp_path, one)
    build(tmp_path)
    found = page_data(tmp_path)
    failed = found["rows"][0]["c"][2]
    assert failed["x"] == "failed"
    assert found["tables"]["text"][failed["r"]] == "RuntimeError: out of memory"
    assert "s" not in failed
    assert rows_of(tmp_path)[0]["robust_signs"] == "†"


# boards -------------------------------------------------------------------------------------------


def test_versions_are_boards_of_their_own_and_the_older_is_superseded(tmp_path):
    put(tmp_path, small("old"))
    put(tmp_path, small("new", scenario={"version": 2}))
    put(tmp_path, small("else", scenario={"name": "digits"}))
    result = build(tmp_path)
    assert (result["boards"], result["superseded"]) == (3, ["chest v1"])
    found = page_data(tmp_path)
    assert [(b["label"], b["superseded"]) for b in found["boards"]] == [
        ("chest v2", False),
        ("chest v1", True),
        ("digits v1", False),
    ]
    assert "superseded" in found["boards"][1]["notes"][0]
    text = (tmp_path / "README.md").read_text()
    assert text.index("## chest v2") < text.index("<details><summary>chest v1, superseded")
    assert [line["superseded"] for line in rows_of(tmp_path)] == ["False", "True", "False"]


def test_rows_of_one_configuration_by_two_submissions_stay_apart():
    found = board_of(small("b"), small("a"))
    assert [row.submission.name for row in found.rows] == ["a", "b"]
    assert len({row.id for row in found.rows}) == 2


@pytest.mark.parametrize("differs", ["hash", "fingerprint"])
def test_other_contents_and_other_data_are_boards_of_their_own(differs):
    lab, own = small("lab"), small("own")
    other = small("other", scenario={differs: "ab" * 32})
    for submission, accuracy in ((other, 1.0), (own, 0.3)):
        for seed in submission["cells"][0]["seeds"].values():
            seed["scores"]["accuracy"] = accuracy
    one, two = boards([parse(submission, "test") for submission in (lab, other, own)])
    assert {one.label, two.label} != {one.name}
    assert len({one.label, two.label}) == 2
    assert sorted(s.name for s in (*one.submissions, *two.submissions)) == ["lab", "other", "own"]
    (mixed,) = (board for board in (one, two) if len(board.submissions) == 2)
    assert any(row.values["accuracy"].best for row in mixed.rows)  # whatever was reached elsewhere
    for board in (one, two):
        assert any("never compared" in note for note in board.notes)


def test_a_diverged_submission_does_not_set_the_standard():
    check = {"verdict": "diverged", "when": "2026-02-01", "cells": 3, "environment": synthetic.environment()}
    wrong = small("wrong", ("a", "mean", "none"), verification=check)
    for seed in wrong["cells"][0]["seeds"].values():
        seed["scores"]["accuracy"] = 1.0
    found = board_of(wrong, small("right"), small("right-too", ("b", "mean", "none")))
    assert [s.name for s in found.reference] == ["right", "right-too"]
    assert not any(row.values["accuracy"].best for row in found.rows if row.submission.name == "wrong")


# what is written ----------------------------------------------------------------------------------


def test_build_writes_four_files_of_the_same_rows(tmp_path):
    put(tmp_path, synthetic.realistic("base"))
    result = build(tmp_path, tmp_path / "out")
    assert {Path(p).name for p in result["written"]} == {
        "index.html",
        "README.md",
        "leaderboard.csv",
        "leaderboard.parquet",
    }
    assert {p.name for p in (tmp_path / "out").iterdir()} == {Path(p).name for p in result["written"]}
    assert (result["rows"], result["cells"]) == (45, 3 * 450)
    table = pandas.read_parquet(tmp_path / "out" / "leaderboard.parquet")
    assert list(table["robust"]) == pytest.approx(
        [float(line["robust"]) for line in rows_of(tmp_path / "out")]
    )
    assert len(page_data(tmp_path / "out")["rows"]) == 45


def test_the_same_records_give_the_same_bytes(tmp_path):
    for number, name in enumerate(("b", "a")):
        put(tmp_path, synthetic.realistic(name, numbers=number))
    build(tmp_path, tmp_path / "one")
    code = "import sys; from pathlib import Path; from harness.leaderboard.build import build; "
    code += "build(*map(Path, sys.argv[1:]))"
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "two")],
        check=True,
        env={"PYTHONHASHSEED": "77", "PYTHONPATH": str(Path(__file__).parents[2]), "TZ": "Asia/Tokyo"},
    )
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_without_pyarrow_parquet_is_left_out_and_said(tmp_path, monkeypatch):
    put(tmp_path, small())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = build(tmp_path)
    assert "pyarrow" in result["notes"][0]
    assert not (tmp_path / "leaderboard.parquet").exists()
    assert "leaderboard.parquet" not in (tmp_path / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("records", [False, True])
def test_a_folder_without_submissions_is_an_error(tmp_path, records):
    if records:
        (tmp_path / "records").mkdir()
    with pytest.raises(HarnessError, match=r"no such folder|no submission"):
        build(tmp_path)
    assert not (tmp_path / "index.html").exists()


def test_a_bad_file_stops_the_build_and_leaves_what_was_there(tmp_path):
    put(tmp_path, small())
    build(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.glob("*.*")}
    (tmp_path / "records" / "zzz.json").write_text('{"kind": "other"}')
    with pytest.raises(HarnessError, match=r"zzz\.json: not a submission"):
        build(tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.glob("*.*")} == before


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    put(tmp_path, small())
    build(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.glob("*.*")}

    def broken(table: Any, path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(module, "_write_csv", broken)
    put(tmp_path, small("more"))
    with pytest.raises(HarnessError, match="No space left"):
        build(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*.*")} == before
    assert not list(tmp_path.glob(".*.partial"))


def test_two_files_of_one_submission_are_an_error(tmp_path):
    put(tmp_path, small())
    (path,) = (tmp_path / "records").iterdir()
    (tmp_path / "records" / "copy.json").write_text(path.read_text())
    with pytest.raises(HarnessError, match="already the submission lab of chest v1"):
        build(tmp_path)


def test_twenty_thousand_cells_make_a_page_of_less_than_15_mb(tmp_path):
    """By what a cell adds to it: the page grows no faster than the cells do, and the README not at all."""
    (tmp_path / "records").mkdir()
    page, readme = [], []
    for number in range(3):
        one = synthetic.realistic(f"lab-{number}", rows=120, start=number * 120, numbers=number)
        (tmp_path / "records" / f"{number}.json").write_text(json.dumps(one))
        result = build(tmp_path)
        assert result["cells"] == 3600 * (number + 1)  # three seeds of each of 1,200
        page.append((tmp_path / "index.html").stat().st_size)
        readme.append((tmp_path / "README.md").stat().st_size)
    first, second, third = page
    assert third - second < 1.05 * (second - first)
    assert third + (20_000 - 3600) * (third - second) / 1200 < 15e6
    assert readme[2] < 1.05 * readme[1] < 100_000


def test_the_page_repeats_no_score_of_the_clean_cell_and_loses_none():
    """Unpacked as the page's script does it, every score of every cell is there, to the page's digits."""
    made = parse(synthetic.realistic("base"), "test")
    lost = copy.deepcopy(made.model_dump(by_alias=True))
    for seed in lost["cells"][5]["seeds"].values():  # a Byzantine cell without one of the clean scores
        del seed["scores"]["macs"]
    made = parse(lost, "test")
    packed = data(boards([made]))
    text, length = packed["tables"]["text"], {0: 3, 1: 3, 2: 1, 3: 1, 4: 0}

    def unpack(flat: list[Any]) -> dict[str, float | None]:
        found, place = {}, 0
        while place < len(flat):
            count = length[flat[place + 1]]
            found[text[flat[place]]] = flat[place + 2] if count else None
            place += 2 + count
        return found

    for row, source in zip(packed["rows"], boards([made])[0].rows, strict=True):
        clean = unpack(row["c"][0]["s"])
        for one, original in zip(row["c"], source.cells, strict=True):
            scores = {k: v for k, v in (clean | unpack(one.get("s", []))).items() if v is not None}
            expected = {k: [s.scores[k] for s in original.seeds.values()] for k in original.seeds["0"].scores}
            assert scores.keys() == expected.keys()
            for name, numbers in expected.items():
                assert scores[name] == pytest.approx(sum(numbers) / len(numbers), rel=6e-4), name


def test_a_guarantee_in_the_page_is_that_of_its_worst_seed_without_an_interval():
    axes = ("dp-sgd", "mean", "none", "none", "none")
    scores = {"epsilon": [7.9956, 7.9996, 8.0035], "delta": [1e-5, 1e-5, 2e-5], "accuracy": [0.7, 0.8, 0.9]}
    made = parse(
        synthetic.plain("base", [synthetic.cell(axes, "clean", scores, guarantee=claim(8.0035))]), "test"
    )
    packed = data(boards([made]))
    flat, text = packed["rows"][0]["c"][0]["s"], packed["tables"]["text"]
    numbers = {name: flat[flat.index(text.index(name)) + 1 :] for name in scores}
    assert numbers["epsilon"][:2] == [CONSTANT, 8.0035]
    assert numbers["delta"][:2] == [CONSTANT, 2e-5]
    assert numbers["accuracy"][0] == INTERVAL


# text from strangers ------------------------------------------------------------------------------

FIXED = {"kind", "status", "family", "verdict", "direction", "id", "hash", "fingerprint", "source", "commit"}


def poisoned(value: Any, text: str, key: str = "") -> Any:
    """Every free text with the hostile one behind it; keys of dictionaries of free names, too."""
    if isinstance(value, dict):
        free = key in ("libraries", "config", "scores", "units")
        return {
            (f"{name}{text}"[:120] if free and name not in UNPOISONED else name): poisoned(inner, text, name)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [poisoned(inner, text, key) for inner in value]
    return f"{value}{text}" if isinstance(value, str) and key not in FIXED else value


UNPOISONED = ("accuracy", "robust_accuracy")


def hostile(text: str = HOSTILE) -> dict[str, Any]:
    one = small(
        official=False,
        unofficial_because=["why"],
        note="note",
        authors="A. Author",
        verification={
            "verdict": "diverged",
            "when": "2026",
            "cells": 1,
            "environment": synthetic.environment(),
            "differences": ["d"],
        },
    )
    one["plugins"].append(synthetic.plugin("defence", "x", "Title", "Doe, Roe", "Venue", 2020))
    for item in one["cells"]:
        item |= {
            "reason": "because",
            "norm": "linf",
            "config": {"defence": [{"x": {"y": "z"}}]},
            "guarantee": claim(broken_by=["b"]),
            "lineage": [{"stage": "s", "part": "p", "reads": "r", "effect": "breaks", "why": "w"}],
        }
        for seed in item["seeds"].values():
            seed["flags"] = ["flag"]
    made = poisoned(one, text)
    made["name"], made["scenario"]["name"] = one["name"], one["scenario"]["name"]
    for item, original in zip(made["plugins"], one["plugins"], strict=True):
        item["kind"] = original["kind"] + text
    return made


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_hostile_text_stays_text_in_the_page(tmp_path):
    put(tmp_path, hostile())
    build(tmp_path)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "pwned=1</script>" not in text
    assert "<img src=x" not in text
    payload = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
    assert not set("<>&\u2028\u2029") & set(payload)
    assert page_data(tmp_path)["submissions"][0]["note"] == f"note{HOSTILE}"
    tags = Tags()
    tags.feed(text)
    assert [tag for tag, _ in tags.found].count("script") == 1 + len(SCRIPTS)  # and the data
    assert not any(name.startswith("on") for _, attributes in tags.found for name in attributes)


def test_the_page_asks_for_nothing_from_outside(tmp_path):
    put(tmp_path, small())
    build(tmp_path)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(text)
    for tag, attributes in tags.found:
        assert "src" not in attributes, tag
        if tag == "link":
            assert attributes["href"].startswith("data:")
    policy = next(
        a["content"]
        for t, a in tags.found
        if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    script_source = policy.split(";")[1]
    assert "unsafe" not in script_source
    assert "http" not in policy
    assert "sourceMappingURL" not in text


def test_hostile_text_stays_text_in_the_readme(tmp_path):
    from markdown_it import MarkdownIt

    put(tmp_path, hostile())
    put(tmp_path, small("calm"))
    build(tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    html = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text)
    tags = Tags()
    tags.feed(html)
    assert {tag for tag, _ in tags.found} <= {
        "h1",
        "h2",
        "p",
        "a",
        "ul",
        "li",
        "strong",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "br",
        "blockquote",
    }
    assert all(
        a["href"].startswith(("https://example.org/", "index.html", "leaderboard."))
        for t, a in tags.found
        if t == "a"
    )
    width = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert len(set(width)) == 1
    assert html.count("pwned") == text.count("pwned") > 3


@pytest.mark.parametrize(
    "text",
    [
        "a|b",
        "`x`",
        "<b>&lt;",
        "*x* _y_ ~z~",
        "[a](b)",
        "![a](b)",
        "# x",
        "- x",
        "1. x",
        "= x",
        "@someone",
        "https://evil.example",
        "www.evil.example",
        "a\n\n## b",
        "\\|",
        "$x$",
        ":rocket:",
    ],
)
def test_markdown_is_shown_as_it_was_written(text):
    from markdown_it import MarkdownIt

    renderer = MarkdownIt("commonmark").enable("table")
    html = renderer.render(markdown(text))
    assert re.fullmatch(r"<p>[^<]*</p>\n", html), html
    shown = html[3:-5].replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")
    assert shown == " ".join(text.split())
    assert not re.search(r"[|@]|https?:|www\.", markdown(text))
    assert renderer.render(f"| {markdown(text)} | x |\n| - | - |\n").count("<th>") == 2


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "  =1", "＝1"])
def test_a_formula_in_the_csv_is_prefixed(text):
    assert csv_cell(text) == f"'{text}"
    assert csv_cell(f"a{text}") == f"a{text}"


def test_formulas_in_labels_are_prefixed_in_the_csv_and_numbers_are_not(tmp_path):
    one = small(base=("=HYPERLINK(1)", "-x", "+y"), scenario={"dataset": "@d"})
    one["cells"][0]["seeds"]["0"]["scores"]["accuracy"] = -5.0
    put(tmp_path, one)
    build(tmp_path)
    (line,) = rows_of(tmp_path)
    assert [line[k] for k in ("defence", "aggregator", "compressor", "dataset")] == [
        "'=HYPERLINK(1)",
        "'-x",
        "'+y",
        "'@d",
    ]
    assert float(line["accuracy"]) == pytest.approx((-5 + 0.9 + 0.7) / 3)
    assert pandas.read_parquet(tmp_path / "leaderboard.parquet")["defence"][0] == "=HYPERLINK(1)"


def test_json_in_a_script_element_cannot_end_it():
    value = {"a": "</script><!--<script>\u2028\u2029&amp;", "b": ["\\", '"']}
    text = script_json(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        script_json(math.inf)
    with pytest.raises(HarnessError, match="ends a script"):
        script("x = '</SCRIPT>'", "x.js")


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example",
        "javascript:alert(1)",
        'https://a.example/"onclick=x',
        "https://",
        "HTTPS://a.example",
        "https://a.example/ b",
        "https://user@a.example",
        " https://a.example",
        "https://a.example/)[x](y)<z>",
        "data:text/html,x",
        "",
    ],
)
def test_only_plain_https_addresses_become_links(url):
    assert link(url) == ""


def test_plain_https_addresses_become_links():
    for url in (
        "https://arxiv.org/abs/1607.00133",
        "https://a.example:8443/x?y=1&z=(2)#f",
        "https://a.example",
    ):
        assert link(url) == url


# citing and repeating -----------------------------------------------------------------------------


def row_with(label: str, **fields: Any):
    one = small(base=(label, "mean", "none"), **fields)
    return board_of(one).rows[0]


@pytest.mark.parametrize(
    "label",
    [
        "none",
        "dp-sgd(epsilon=8)",
        "a(x=[1, 2],y='z')+b",
        "x'; rm -rf ~; '",
        "$(reboot)`id`",
        "a,b=c",
        "a)(,b",
        'ü"\\',
        "a*?[b]{c",
    ],
)
def test_the_command_is_one_word_of_shell_a_label_and_selects_it(label):
    from fnmatch import fnmatchcase

    from harness.grid import _split_outside_brackets

    words = shlex.split(command(row_with(label)))
    assert words[:3] == ["harness", "run", "chest-v1.yaml"]
    assert words[3::2] == ["--select"] * 3
    (part,) = _split_outside_brackets(words[4])
    axis, _, pattern = part.partition("=")
    assert axis == "defence"
    assert fnmatchcase(label, pattern)


def test_a_plain_label_is_its_own_pattern():
    for label in (*synthetic.DEFENCES, *synthetic.COMPRESSORS, "mean"):
        assert selects(label) == label


def test_methods_of_the_row_are_cited_and_others_are_not():
    row = row_with("dp-sgd(epsilon=8)")
    assert [p.name for p in used(row)] == ["pneumonia", "dp-sgd"]
    (entry,) = bibtex(used(row))
    assert entry.startswith("@misc{abadi2016deep,\n")
    assert "  author = {Abadi and Chu and Goodfellow}," in entry
    assert "  url = {https://arxiv.org/abs/1607.00133}" in entry
    nested = small()
    nested["cells"][0]["config"] = {"aggregator": [{"x": {"inner": {"krum": {"f": 2}}}}]}
    assert [p.name for p in used(board_of(nested).rows[0])] == ["krum", "pneumonia"]


@pytest.mark.parametrize(
    ("authors", "key"),
    [
        ("Yin, Chen, Ramchandran, Bartlett", "yin2018median"),
        ("Gu and Dolan-Gavitt", "gu2018median"),
        ("El Mhamdi, Guerraoui", "mhamdi2018median"),
        ("Sebastian U. Stich, Martin Jaggi", "stich2018median"),
        ("Mühlhäuser et al.", "muhlhauser2018median"),
        ("", "2018median"),
    ],
)
def test_a_key_is_the_first_authors_surname(authors, key):
    (entry,) = bibtex([cited("The Median", authors)])
    assert entry.startswith(f"@misc{{{key},")


def test_a_paper_is_cited_once_however_its_title_is_written():
    assert len(bibtex([cited("BadNets: Identifying", "Gu"), cited("BadNets: identifying", "Gu")])) == 1


def test_rows_with_different_papers_have_different_keys_on_one_page(tmp_path):
    """Entries of several cards are put into one file, where a repeated key is an error."""
    titles = {"one": "Median of Means", "two": "Median of Medians", "again": "Median of means"}
    for name, title in titles.items():
        method = synthetic.plugin("dataset", "pneumonia", title, "Yin", "ICML", 2018)
        put(tmp_path, {**small(name), "plugins": [method]})
    page = data(boards(module.load(tmp_path)))
    entries = {
        "".join(page["tables"]["text"][part] for part in page["tables"]["lists"][row["t"]])
        for row in page["rows"]
    }
    keys = [re.match(r"@misc\{([^,]+),", entry)[1] for entry in entries]
    assert sorted(keys) == ["yin2018median", "yin2018median-2"]


def cited(title: str, authors: str) -> Plugin:
    return Plugin(
        kind="attack",
        name="x",
        distribution="d",
        version="1",
        source=HEX,
        title=title,
        authors=authors,
        year=2018,
    )


def test_bibtex_is_escaped_and_its_keys_are_distinct():
    def method(**fields: Any) -> Plugin:
        return Plugin(kind="attack", name="x", distribution="d", version="1", source=HEX, **fields)

    title = r"100% of {A & B_C #1 \input{x} ~^$ <|>"
    one, two = bibtex(
        [
            method(title=title, authors="Doe", year=2020, url="http://x"),
            method(title="100 more", authors="Doe", year=2020),
        ]
    )
    assert (
        r"100\% of \textbraceleft{}A \& B\_C \#1 \textbackslash{}input\textbraceleft{}x\textbraceright{} "
        r"\textasciitilde{}\textasciicircum{}\$ \textless{}\textbar{}\textgreater{}" in one
    )
    assert "url" not in one
    assert one.count("{") == one.count("}")  # BibTeX counts escaped ones too
    keys = [re.match(r"@misc\{([^,]+),", entry)[1] for entry in (one, two)]
    assert len(set(keys)) == 2
    assert all(re.fullmatch(r"[a-z0-9-]+", key) for key in keys)
    assert tex("a\nb") == "a b"


# README -------------------------------------------------------------------------------------------


def test_a_long_board_shows_its_front_in_the_readme():
    found = board_of(synthetic.realistic("base", rows=150))
    kept = shown(found)
    assert len(kept) == ROWS
    columns = [c for c in found.columns if c.key in ("accuracy", "robust", "byzantine", "epsilon", "uplink")]
    points = [[row.values[c.key].mean for c in columns] for row in found.rows]
    front = [
        row
        for row, on in zip(found.rows, pareto_front(points, [c.better for c in columns]), strict=True)
        if on
    ]
    assert front
    assert all(row in kept for row in front[:ROWS])


def test_a_front_in_the_readme_needs_no_guarantee():
    """Without a guarantee epsilon is as bad as can be, which the other columns may make up for."""
    data = synthetic.plain(
        "lab",
        [
            synthetic.cell(
                (f"d{number}", "mean", "none", "none", "none"),
                "clean",
                {
                    "accuracy": [0.9 - number / 1000],
                    "uplink_bytes_per_round": [100.0 if number == 79 else 200.0],
                },
            )
            for number in range(80)
        ],
    )
    names = [row.axes[0] for row in shown(board_of(data))]
    assert len(names) == ROWS
    assert {"d0", "d79"} <= set(names)  # the most accurate one, and the one that sends least


def test_the_readme_shows_values_intervals_and_the_best(tmp_path):
    worse = small("worse", ("a", "mean", "none"))
    for seed in worse["cells"][0]["seeds"].values():
        seed["scores"]["serialized_bytes"] = 3000.0
    put(tmp_path, small("lab"))
    put(tmp_path, worse)
    build(tmp_path)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| none | mean | none | lab | 80.0<br>[55.2, 100.0] | 30.0<br>[5.2, 54.8] |" in text
    assert "**2.0**<br>[2.0, 2.0]" in text
    assert "**3.0**" not in text


def test_every_column_has_a_key_of_its_own():
    assert len(BY_KEY) == len(COLUMNS)
    assert Submission.model_fields  # the schema is that of the submissions


def test_numbers_are_written_alike_in_all_files():
    """Shortened for the page, a number must not be rounded twice: 0.629503 is 63.0 %, and 100 × 0.6295 below 62.95."""
    column = BY_KEY["robust"]
    for value in (0.629497, 0.629503, 0.6295, 0.5, 1 / 3, -0.0349996):
        assert column.show(page_number(value, column)) == column.show(value)
    assert page_number(1 / 3, column) == 0.33333
    assert page_number(0.629503, column) == 0.629503
    assert [BY_KEY["size"].show(size) for size in (55250.0, 55350.0, 1234567.0)] == ["55.3", "55.4", "1235"]
    for score in {c.score for c in COLUMNS}:
        assert len({(c.scale, c.digits) for c in COLUMNS if c.score == score}) == 1


def test_the_terminal_and_the_board_write_a_number_alike():
    (accuracy,) = (q for q in QUANTITIES if q.key == "accuracy")
    draw = np.random.default_rng(0)
    for size in (200, 400, 1000):  # as many halves of a tenth of a percent as there are
        for right in (*((k,) for k in range(size + 1)), *draw.integers(0, size, (300, 2)).tolist()):
            scores = [k / size for k in right]
            records = [
                {"cell": {"attack": "none", "seed": seed}, "status": "scored", "scores": {"accuracy": score}}
                for seed, score in enumerate(scores)
            ]
            (row,) = pool(records)
            shown_here = accuracy.show(row.values["accuracy"].mean)
            assert shown_here == BY_KEY["accuracy"].show(pooled(tuple(scores), (0.0, 1.0)).mean)
