"""Recommendations: limits, fronts and intervals by hand-computed numbers; nothing that cannot be trusted fits."""

from __future__ import annotations

import copy
import io
import json
from dataclasses import replace

import pytest
from rich.console import Console
from scipy.stats import ttest_rel
from synthetic import cell, claim, environment, plain, put, realistic

from harness.cli import main
from harness.console.advice import render_advice
from harness.console.arguments import stored_records
from harness.errors import HarnessError
from harness.leaderboard.columns import BY_KEY
from harness.leaderboard.recommend import Limit, recommend, submissions_of, with_audits
from harness.leaderboard.submission import parse
from harness.leaderboard.submit import of_store

GOOD, FAST, WEAK, PRIVATE = ([0.90, 0.91, 0.92], [0.80, 0.84, 0.82], [0.70, 0.71, 0.69], [0.75, 0.76, 0.74])


def board(**changes):
    """Four configurations. good: most accurate, large. fast: small. weak: beaten by fast. private: epsilon 2."""
    rows = {
        "good": (GOOD, 4000.0, None),
        "fast": (FAST, 1000.0, None),
        "weak": (WEAK, 1000.0, None),
        "private": (PRIVATE, 4000.0, claim(2.0)),
    }
    cells = []
    for name, (accuracy, size, guarantee) in rows.items():
        scores = {"accuracy": accuracy, "serialized_bytes": [size] * 3}
        axes = (name, "mean", "none", "none", "none")
        claimed = {"guarantee": guarantee} if guarantee else {}
        cells.append(cell(axes, "clean", scores, **claimed))
        robust = changes.get(name, [0.5, 0.5, 0.5])
        axes = (name, "mean", "none", "evasion", "pgd")
        cells.append(cell(axes, "evasion", {**scores, "robust_accuracy": robust}, **claimed))
    return plain("lab", cells)


def limit(key: str, bound: float) -> Limit:
    return Limit(f"--{key}", BY_KEY[key], bound)


def advise(*limits: Limit, objectives=("accuracy", "size"), data=None):
    (advice,) = recommend([parse(data or board(), "test")], limits, objectives)
    return advice, [s.row.axes[0] for s in advice.suggestions]


def test_the_front_comes_first_and_the_first_objective_orders_it():
    advice, names = advise()
    assert names == ["good", "fast", "private", "weak"]
    assert [s.front for s in advice.suggestions] == [True, True, False, False]
    _, names = advise(objectives=("size", "accuracy"))
    assert names == ["fast", "good", "weak", "private"]
    advice, names = advise(objectives=("accuracy", "size", "epsilon"))
    assert {s.row.axes[0] for s in advice.suggestions if s.front} == {"good", "fast", "private"}


def test_equal_means_beat_each_other_in_nothing():
    """0.1 and 0.2, 0.3 and 0.0 have one mean, which floats round to two numbers."""
    for seeds in ([0.1, 0.2], [0.3, 0.0]), ([0.3, 0.0], [0.1, 0.2]):
        cells = [
            cell((name, "mean", "none", "none", "none"), "clean", {"accuracy": accuracy})
            for name, accuracy in zip("ab", seeds, strict=True)
        ]
        advice, names = advise(objectives=("accuracy",), data=plain("lab", cells, scenario={"seeds": [0, 1]}))
        assert names == ["a", "b"]
        assert [s.front for s in advice.suggestions] == [True, True]


@pytest.mark.parametrize(
    ("key", "score", "bound", "values"),
    [
        # As floats, a mean of 0.9499999999999998.
        ("accuracy", "accuracy", 0.95, [341 / 360, 342 / 360, 343 / 360]),
        ("accuracy", "accuracy", 0.173, [0.173] * 3),
        ("size", "serialized_bytes", 0.022, [0.022] * 3),
    ],
)
def test_a_mean_that_equals_the_bound_meets_it(key, score, bound, values):
    data = plain("lab", [cell(("a", "mean", "none", "none", "none"), "clean", {score: values})])
    advice, names = advise(limit(key, bound), objectives=(key,), data=data)
    assert names == ["a"]
    assert [e.failed for e in advice.exclusions] == [0]
    wrong = bound + 1e-9 if key == "accuracy" else bound - 1e-9
    assert advise(limit(key, wrong), objectives=(key,), data=data)[1] == []


def test_a_guarantee_meets_no_bound_below_it():
    axes = ("a", "mean", "none", "none", "none")
    cells = [cell(axes, "clean", {"accuracy": [0.8] * 3}, guarantee=claim(4.0000000000001))]
    assert advise(limit("epsilon", 4.0), objectives=("accuracy",), data=plain("lab", cells))[1] == []


def test_guarantees_for_records_and_for_clients_are_not_compared():
    rows = {
        "none": (0.60, None),
        "client": (0.80, claim(5.0, unit="client")),
        "weaker": (0.80, claim(6.0, unit="client")),
        "record": (0.81, claim(4.0)),
    }
    cells = [
        cell(
            (name, "mean", "none", "none", "none"), "clean", {"accuracy": [accuracy] * 3}, guarantee=guarantee
        )
        for name, (accuracy, guarantee) in rows.items()
    ]
    for objectives in (("accuracy", "epsilon"), ("epsilon", "accuracy")):
        advice, names = advise(objectives=objectives, data=plain("lab", cells))
        assert names == ["record", "client", "weaker", "none"]
        assert [s.front for s in advice.suggestions] == [True, True, False, False]


def guarantees() -> dict:
    claims = {"none": None, "client": claim(5.0, unit="client"), "record": claim(4.0), "loose": claim(7.0)}
    cells = [
        cell((name, "mean", "none", "none", "none"), "clean", {"accuracy": [0.8] * 3}, guarantee=guarantee)
        for name, guarantee in claims.items()
    ]
    return plain("lab", cells)


@pytest.mark.parametrize(
    ("protects", "fitting", "excluded", "best"),
    [(None, {"client", "record"}, 2, 4.0), ("client", {"client"}, 3, 5.0), ("record", {"record"}, 3, 4.0)],
)
def test_a_limit_on_epsilon_says_whose(protects, fitting, excluded, best):
    advice, names = advise(
        replace(limit("epsilon", 6.0), protects=protects), objectives=("accuracy",), data=guarantees()
    )
    assert set(names) == fitting
    (exclusion,) = advice.exclusions
    assert (exclusion.failed, exclusion.unknown, exclusion.best) == (excluded, 0, best)
    assert any("not comparable" in note for note in advice.notes) is (protects is None)


def test_whose_epsilon_on_the_command_line(tmp_path, capsys):
    put(tmp_path, guarantees())
    (file,) = (tmp_path / "records").iterdir()
    assert main(["recommend", str(file), "--max-epsilon", "6", "--protects", "client", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert [s["defence"] for s in found["suggestions"]] == ["client"]
    assert main(["recommend", str(file), "--max-epsilon", "2", "--protects", "client"]) == 1
    assert "none of 4 configurations fits --max-epsilon 2 --protects client" in capsys.readouterr().out
    assert main(["recommend", str(file), "--protects", "client"]) == 2
    assert "give --max-epsilon too" in capsys.readouterr().err


def test_whose_epsilon_it_is_and_at_which_delta_is_said_beneath_the_rows(tmp_path, capsys):
    made = guarantees()
    for one in made["cells"]:
        if one["defence"] == "record":
            one["guarantee"] |= {"delta": 1e-4, "group_epsilon": 103410.0, "largest_group": 18}
    put(tmp_path, made)
    (file,) = (tmp_path / "records").iterdir()
    assert main(["recommend", str(file), "--max-epsilon", "6"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert (
        out.count("§: for a client with all its data; without it, for one record; at delta 1e-05 to 0.0001")
        == 1
    )
    assert "§ for a client" not in out  # once is enough
    assert "for the largest group, 18 records (such as the patient with most images): epsilon 103410" in out
    assert main(["recommend", str(file), "--max-epsilon", "6", "--protects", "client", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["suggestions"][0]["guarantee"]["delta"] == 1e-5
    assert main(["recommend", str(file), "--objective", "accuracy"]) == 0
    assert "delta" not in capsys.readouterr().out


def test_an_attack_below_chance_is_no_merit():
    made = board()
    aucs = {"good": 0.5, "fast": 0.42, "weak": 0.3, "private": 0.7}
    for name, auc in aucs.items():
        made["cells"].append(
            cell((name, "mean", "none", "curious", "loss"), "privacy", {"mia_auc": [auc] * 3})
        )
    advice, names = advise(objectives=("mia", "accuracy"), data=made)
    assert names == ["good", "fast", "weak", "private"]  # three guess, and the first of them is most accurate
    assert [s.front for s in advice.suggestions] == [True, False, False, False]
    assert advice.suggestions[1].behind.mean == 0
    assert advise(limit("mia", 0.5), data=made)[1] == ["good", "fast", "weak"]
    assert not advise(limit("mia", 0.45), data=made)[1]
    assert advise(limit("mia", 0.45), data=made)[0].exclusions[0].best == 0.5


def test_limits_are_met_by_means_and_said_to_be_sure_by_intervals():
    advice, names = advise(limit("accuracy", 0.8))
    assert names == ["good", "fast"]
    # fast: 0.82 ± 4.303 · 0.02 / √3 = [0.770, 0.870]; good: 0.91 ± 0.025
    assert [s.sure for s in advice.suggestions] == [True, False]
    advice, names = advise(limit("epsilon", 2.0))
    assert names == ["private"]
    assert advice.suggestions[0].sure is True


def test_the_lead_of_the_first_is_a_paired_test_adjusted_for_all():
    advice, names = advise()
    leads = {n: s.behind for n, s in zip(names, advice.suggestions, strict=True)}
    assert leads["good"] is None
    assert leads["fast"].mean == pytest.approx((0.10 + 0.07 + 0.10) / 3)
    raw = {
        name: ttest_rel(GOOD, other).pvalue
        for name, other in (("fast", FAST), ("weak", WEAK), ("private", PRIVATE))
    }
    order = sorted(raw, key=raw.get)
    adjusted, highest = {}, 0.0
    for position, name in enumerate(order):  # Holm: the i-th smallest of m times m - i, never falling
        highest = max(highest, min(1.0, raw[name] * (3 - position)))
        adjusted[name] = highest
    for name in raw:
        assert leads[name].p == pytest.approx(adjusted[name])
    level = {n: s.level for n, s in zip(names, advice.suggestions, strict=True)}
    assert level == {"good": None, **{name: p > 0.05 for name, p in adjusted.items()}}


def test_what_excludes_the_most_is_said_first():
    advice, names = advise(limit("accuracy", 0.85), limit("epsilon", 4.0), limit("size", 2000.0))
    assert names == []
    said = [(e.limit.column.key, e.failed, e.unknown, e.would_fit, e.best) for e in advice.exclusions]
    assert [s[:4] for s in said] == [("accuracy", 3, 0, 0), ("epsilon", 3, 0, 0), ("size", 2, 0, 0)]
    assert [s[4] for s in said] == [pytest.approx(0.91), 2.0, 1000.0]


def test_a_limit_that_alone_stands_in_the_way_is_named():
    advice, _ = advise(limit("accuracy", 0.8), limit("size", 500.0))
    assert {e.limit.column.key: e.would_fit for e in advice.exclusions} == {"accuracy": 0, "size": 2}


def test_values_that_cannot_be_trusted_meet_no_limit():
    data = board()
    for one in data["cells"]:
        if one["attack"] == "pgd" and one["defence"] == "good":
            for seed in one["seeds"].values():
                seed["flags"] = ["gradient-masking-suspected"]
        if one["attack"] == "pgd" and one["defence"] == "fast":
            del one["seeds"]["2"]  # a seed is missing
    advice, names = advise(limit("robust", 0.1), data=data)
    assert set(names) == {"weak", "private"}
    (exclusion,) = advice.exclusions
    assert (exclusion.failed, exclusion.unknown) == (0, 2)


def stuck(data: dict, *names: str) -> dict:
    """The same, where these configurations predict one class for everything at one of the seeds."""
    for one in data["cells"]:
        if one["defence"] in names:
            one["seeds"]["1"]["flags"] = ["constant-predictions"]
    return data


def test_a_model_that_predicts_one_class_is_not_recommended():
    data = stuck(board(good=[0.9, 0.91, 0.92]), "good")
    for objectives in (("accuracy", "size"), ("robust",), ("size",)):
        advice, names = advise(objectives=objectives, data=data)
        assert set(names) == {"fast", "weak", "private"}
        assert advice.left_out == 1
    advice, names = advise(limit("accuracy", 0.85), data=data)
    assert names == []
    (exclusion,) = advice.exclusions
    assert (exclusion.failed, exclusion.unknown, exclusion.would_fit) == (3, 0, 3)
    assert exclusion.best == pytest.approx(0.82)  # what is left out is not the best there is


@pytest.mark.parametrize(
    "change",
    [
        {"status": "failed", "seeds": {}},
        {"status": "not-applicable", "reason": "no gradients", "seeds": {}},
        {"flags": ["attack-unscored"]},
        {"error": "it crashed"},
    ],
)
def test_attacks_that_were_not_scored_in_what_fits_are_named(change):
    data = board()
    advice, _ = advise(data=data)
    assert not any("have no score" in note for note in advice.notes)
    for one in data["cells"]:
        if one["attack"] == "pgd" and one["defence"] in ("good", "fast", "weak"):
            one.update({key: value for key, value in change.items() if key in one})
            for seed in one["seeds"].values():
                seed.update({key: value for key, value in change.items() if key not in one})
    advice, names = advise(limit("accuracy", 0.75), data=data)
    assert names == ["good", "fast", "private"]
    (note,) = (note for note in advice.notes if "have no score" in note)
    assert note.endswith("rows that fit have no score under these attacks: pgd (evasion) in 2 of 3")


def test_rows_that_are_left_out_are_counted(tmp_path, capsys):
    put(tmp_path, stuck(board(), "good", "weak"))
    (file,) = (tmp_path / "records").iterdir()
    assert main(["recommend", str(file), "--min-accuracy", "0.8", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert [s["defence"] for s in found["suggestions"]] == ["fast"]
    assert (found["configurations"], found["left_out_as_constant"]) == (4, 2)
    assert main(["recommend", str(file), "--min-accuracy", "0.8"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 of 2 configurations fits" in said
    assert "left out: 2 configurations, whose models predict one class for every test image" in said
    assert "excludes 1 of 2; " in said


def unscored(data, *names):
    """Configurations none of whose cells is applicable, or whose training failed."""
    for one in data["cells"]:
        if one["defence"] in names:
            one |= {"status": "not-applicable", "reason": "nnm needs every update", "seeds": {}}
    return data


def test_a_configuration_without_any_score_does_not_fit(tmp_path, capsys):
    advice, names = advise(data=unscored(board(), "good"))
    assert (names, advice.unscored, advice.left_out) == (["fast", "private", "weak"], 1, 0)
    put(tmp_path, unscored(board(), "good", "fast", "weak", "private"))
    (file,) = (tmp_path / "records").iterdir()
    assert main(["recommend", str(file), "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["fitting"], found["left_out_as_unscored"], found["suggestions"]) == (0, 4, [])
    assert main(["recommend", str(file)]) == 1
    said = capsys.readouterr()
    assert "left out: 4 configurations without any score: failed, or not applicable" in said.out
    assert " fit" not in said.out
    assert said.err == "nothing fits\n"


def test_where_all_rows_are_left_out_nothing_is_said_of_the_others(tmp_path, capsys):
    put(tmp_path, stuck(board(), "good", "fast", "weak", "private"))
    (file,) = (tmp_path / "records").iterdir()
    assert main(["recommend", str(file), "--min-accuracy", "0.8"]) == 1
    said = capsys.readouterr()
    assert "left out: 4 configurations, whose models predict one class" in " ".join(said.out.split())
    assert " 0" not in said.out
    assert said.err == "nothing fits\n"


def test_a_file_that_is_given_twice_counts_once(tmp_path, capsys, monkeypatch):
    put(tmp_path, board())
    (file,) = (tmp_path / "records").iterdir()
    monkeypatch.chdir(tmp_path)
    assert main(["recommend", str(file), str(file.relative_to(tmp_path)), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["configurations"], found["fitting"]) == (4, 4)


def test_a_model_that_an_attack_left_with_one_class_meets_no_limit_on_it():
    data = board()
    for name in ("good", "fast"):
        axes = (name, "mean", "none", "b", "badnets")
        data["cells"].append(cell(axes, "backdoor", {"attack_success_rate": [0.0] * 3}))
    for seed in data["cells"][-1]["seeds"].values():
        seed["flags"] = ["constant-predictions"]
    advice, names = advise(limit("backdoor", 0.1), data=data)
    assert names == ["good"]
    assert advice.left_out == 0


def test_what_is_not_to_be_trusted_is_not_tested_either():
    """A row that is suspected of masking has no lead, and does not count in Holm's correction for the others."""
    data = board(fast=[0.4, 0.41, 0.43], weak=[0.3, 0.32, 0.35], private=[0.2, 0.23, 0.21])
    for one in data["cells"]:
        if one["attack"] == "pgd" and one["defence"] == "good":
            for seed in one["seeds"].values():
                seed["flags"] = ["gradient-masking-suspected"]
    advice, names = advise(objectives=("robust",), data=data)
    leads = {n: s.behind for n, s in zip(names, advice.suggestions, strict=True)}
    assert names[0] == "fast"
    assert leads["good"] is None
    raw = sorted(
        ttest_rel([0.4, 0.41, 0.43], other).pvalue for other in ([0.3, 0.32, 0.35], [0.2, 0.23, 0.21])
    )
    assert min(leads[n].p for n in ("weak", "private")) == pytest.approx(2 * raw[0])  # of two, not of three


def test_contents_of_a_scenario_are_not_one_board():
    """A scenario that was changed between two runs into one store."""
    before, after = board(), board()
    after["scenario"]["hash"] = "cd" * 32
    found = recommend([parse(before, "a"), parse(after, "b")], [], ("accuracy",))
    marks = [one["scenario"]["hash"][:8] for one in (before, after)]
    assert [advice.board.label for advice in found] == [f"chest v1 (scenario {mark})" for mark in marks]
    assert all(len(advice.suggestions) == 4 for advice in found)
    after["scenario"].update(hash=before["scenario"]["hash"], fingerprint="ef" * 32)
    found = recommend([parse(before, "a"), parse(after, "b")], [], ("accuracy",))
    assert [advice.board.label[:15] for advice in found] == ["chest v1 (data "] * 2


def test_a_submission_whose_re_run_diverged_is_left_out():
    cheat = board()
    cheat["name"] = "cheat"
    cheat["verification"] = {
        "verdict": "diverged", "when": "2026-01-02T03:04:05Z", "cells": 3, "environment": environment()
    }  # fmt: skip
    (advice,) = recommend([parse(board(), "a"), parse(cheat, "b")], [], ("accuracy",))
    assert {s.row.submission.name for s in advice.suggestions} == {"lab"}
    assert "a re-run diverged from cheat: left out" in advice.notes
    (advice,) = recommend([parse(cheat, "b")], [], ("accuracy",))
    assert not advice.suggestions
    assert advice.notes == ["a re-run diverged from cheat: left out"]
    for one in cheat["cells"]:
        for seed in one["seeds"].values():
            seed["scores"]["accuracy"] = 0.99
    (advice,) = recommend([parse(board(), "a"), parse(cheat, "b")], [limit("accuracy", 0.95)], ("accuracy",))
    (exclusion,) = advice.exclusions
    assert exclusion.would_fit == 4  # nothing of the other submission does, with or without a limit
    assert exclusion.best == pytest.approx(0.91)


def record(scenario, defence, compressor="none", flags=()):
    cell = {"defence": defence, "aggregator": "mean", "compressor": compressor}
    return {"scenario": {"name": scenario}, "cell": cell, "flags": list(flags)}


def test_an_audit_beside_the_scenario_refutes_its_rows():
    records = [
        record("x", "dp-sgd"), record("x", "dp-sgd", "static-int8"), record("x", "dp-sgd", "top-k"),
        record("x", "dp-ftrl"), record("y", "dp-sgd"),
        record("x-audit", "dp-sgd", flags=["audit-violation"]), record("x-audit", "dp-ftrl"),
    ]  # fmt: skip
    flagged = [bool(one["flags"]) for one in with_audits(records)]
    assert flagged == [True, True, True, False, False, True, False]
    records[-2] = record("x-audit", "dp-sgd", "top-k", ["audit-violation"])
    assert [bool(one["flags"]) for one in with_audits(records)][:3] == [False, False, True]
    assert not records[0]["flags"]


@pytest.mark.parametrize(("audited", "fitting"), [(1.9, ["private"]), (2.1, [])])
def test_an_audit_above_the_guarantee_refutes_it_without_a_flag_too(audited, fitting):
    data = board()
    axes = ("private", "mean", "none", "audit", "one-run-audit")
    data["cells"].append(cell(axes, "privacy", {"epsilon_audited": [audited] * 3}, guarantee=claim(2.0)))
    _, names = advise(limit("epsilon", 4.0), data=data)
    assert names == fitting


def test_choosing_is_said_not_to_be_accounted():
    advice, _ = advise()
    assert [n for n in advice.notes if "no epsilon here accounts for" in n]
    data = board()
    for one in data["cells"]:
        one["seeds"] = {"0": one["seeds"]["0"]}
    advice, _ = advise(limit("accuracy", 0.8), data=data)
    assert [n for n in advice.notes if n.startswith("one seed")]
    assert advice.suggestions[0].sure is None
    assert advice.suggestions[1].level is None


def test_unknown_objectives_and_limits_on_what_nobody_measured():
    with pytest.raises(HarnessError, match="did you mean 'accuracy'"):
        advise(objectives=("acuracy",))
    with pytest.raises(HarnessError, match="no result has membership auc"):
        advise(limit("mia", 0.6))


def test_the_command(tmp_path, capsys):
    put(tmp_path, board())
    (file,) = (tmp_path / "records").iterdir()
    assert main(["recommend", str(file), "--min-accuracy", "0.8", "--objective", "accuracy", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert [s["defence"] for s in found["suggestions"]] == ["good", "fast"]
    assert found["suggestions"][1]["limits_met_by_intervals"] is False
    assert main(["recommend", str(file), "--min-accuracy", "0.8"]) == 0
    out = capsys.readouterr().out
    assert "2 of 4 configurations fit" in out
    said = "limits: met by the mean; the interval over seeds reaches beyond; first row ahead by 9.0 % ["
    assert said in " ".join(out.split())
    assert "ahead: in clean accuracy, in percentage points, over the seeds that both have" in out
    assert main(["recommend", str(file), "--min-accuracy", "0.99"]) == 1
    out, err = capsys.readouterr()
    assert "none of 4 configurations fits --min-accuracy 0.99" in out
    assert (
        "--min-accuracy 0.99 excludes 4 of 4; without it 4 would fit; the best here is 91.0 % (clean accuracy)"
        in " ".join(out.split())
    )
    assert "nothing fits" in err
    assert main(["recommend", str(file), "--max-bytes", "10", "--objective", "size"]) == 1
    assert "the best here is 1.0 kB (size)" in " ".join(capsys.readouterr().out.split())
    assert main(["recommend", str(file), "--objective", "size"]) == 0
    assert "3.0 kB, not testable" in capsys.readouterr().out
    assert main(["recommend", str(file), "--max-mia", "55"]) == 2
    assert "from 0 to 1 with 0.5 for chance, not 55: write 0.55 for 55 %" in capsys.readouterr().err
    assert main(["recommend", str(file), "--objective", "nonsense"]) == 2
    err = capsys.readouterr().err
    assert "--objective nonsense: no such column; valid: accuracy, agreement, audited" in err
    assert all(key in err for key in BY_KEY)
    assert main(["recommend", "--help"]) == 0
    help = capsys.readouterr().out
    assert all(key in help for key in BY_KEY)
    assert main(["recommend", str(file), "--min-accuracy", "80"]) == 2
    assert "write 0.8 for 80 %" in capsys.readouterr().err
    for option in ("--max-epsilon", "--min-accuracy"):
        assert main(["recommend", str(file), option, "nan"]) == 2
        assert f"{option} must be a number, not nan" in capsys.readouterr().err


def test_a_store_is_looked_at_without_its_scenario(ran):
    (submission,) = submissions_of(ran.store)
    (advice,) = recommend([submission], [limit("epsilon", 2.5)], ("accuracy",))
    assert advice.suggestions
    assert not any("official" in note for note in advice.notes)  # nobody submitted it
    for suggestion in advice.suggestions:
        assert suggestion.row.axes[0].startswith("dp-sgd")
        assert suggestion.row.values["epsilon"].mean <= 2.5


def test_a_store_of_two_codes_of_a_plugin_says_so(ran):
    """Seeds before and after an edit are pooled into one mean, which is of neither code."""
    first, *others = copy.deepcopy(stored_records(ran.store))
    edited = next(item for item in first["provenance"]["plugins"] if item["kind"] == "model")
    edited["source"] = "0" * 64
    (advice,) = recommend(of_store([first, *others], "store"), [], ("accuracy",))
    assert f"the records are of different code of {edited['name']}" in advice.notes


def test_what_is_neither_a_store_nor_a_submission(tmp_path):
    with pytest.raises(HarnessError, match="neither a submission nor a store"):
        submissions_of(tmp_path)
    with pytest.raises(HarnessError, match=r"hosp\.yaml is a scenario.*give the store that it was run into"):
        submissions_of(tmp_path / "hosp.yaml")


EIGHT = ("accuracy", "robust", "byzantine", "backdoor", "mia", "epsilon", "size", "uplink")
RULE = "nnm + trimmed-mean"
NAMES = {
    "adversarial-training(attack=pgd(eps=0.1,steps=3))": (
        "adversarial-training(attack=pgd(eps=0.00784314,steps=5),curriculum=0.5) + dp-sgd(epsilon=8,max_grad_norm=1)"
    ),
    "top-k(ratio=0.1)": "structured-pruning(ratio=0.5,fine_tune_rounds=2)",
    "static-int8": "distillation(student=small-cnn(width=8,hidden=32),temperature=2,weight=0.5)",
}


def stacks(seeds: int, name: str = "lab") -> dict:
    """15 configurations, some with very long names; all use one rule."""
    made = realistic(name, seeds=seeds)
    made["cells"] = [one for one in made["cells"] if one["aggregator"] == RULE]
    for one in made["cells"]:
        one |= {axis: NAMES.get(one[axis], one[axis]) for axis in ("defence", "compressor")}
    return made


def drawn(advice, width: int, top: int = 10) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False)
    render_advice(advice, top, console)
    return console.file.getvalue()


def numbers(suggestion, column) -> list[str]:
    """What is to be read of a value: the number with its signs, and the interval."""
    value = suggestion.row.values.get(column.key)
    if value is None or value.text:
        return [] if value is None else [value.text + value.signs]
    low, high = value.estimate.low, value.estimate.high
    bounds = [] if low is None or low == high else [f"[{column.show(low)}, {column.show(high)}]"]
    return [column.show(value.mean) + value.signs, *bounds]


def entries(text: str) -> list[tuple[str, list[str]]]:
    """Of a list, each configuration in full and the lines beneath it."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines()[2 : text[: text.index("in every row")].count("\n")]:
        if line.startswith("    "):
            found[-1][1].append(line.strip())
        elif line.startswith(("  / ", "  + ")):
            found[-1] = (found[-1][0] + line[1:], [])
        else:
            found.append((line[2:], []))
    return found


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("width", [80, 100])
def test_a_narrow_console_gets_a_list_in_which_nothing_is_cut(seeds, width):
    advice, _ = advise(limit("accuracy", 0.7), objectives=EIGHT, data=stacks(seeds))
    text = drawn(advice, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert len(advice.suggestions) > 10
    found = entries(text)
    assert len(found) == 10
    assert any(len(name) > width for name, _ in found)
    for (name, lines), suggestion in zip(found, advice.suggestions, strict=False):
        assert name == " / ".join(suggestion.row.axes[i] for i in (0, 2))
        assert lines[0].startswith("Clean accuracy ")
        for column in advice.objectives:
            unit = f" {column.unit}".rstrip()
            for number in numbers(suggestion, column):
                assert any(f" {number}" in line for line in lines), (number, lines)
            if len(numbers(suggestion, column)) == 2:
                number, bounds = numbers(suggestion, column)
                assert any(f" {number}{unit} {bounds}" in line for line in lines)
    stars = [line for line in text.splitlines() if line.startswith("* ")]
    assert len(stars) == sum(s.front for s in advice.suggestions[:10])


def test_what_all_rows_share_is_said_once():
    text = drawn(advise(limit("accuracy", 0.7), objectives=EIGHT, data=stacks(1))[0], 80)
    assert text.count(RULE) == text.count("too few seeds to be sure") == 1
    assert f"in every row: aggregator {RULE}" in text
    assert "limits in every row: too few seeds to be sure" in text
    advice, _ = advise(limit("accuracy", 0.8), objectives=("accuracy", "size"))
    text = drawn(advice, 80)  # good is sure to meet the limit, fast is not
    assert "limits in every row" not in text
    assert "in every row: aggregator mean, compressor none" in text


def test_a_single_row_is_named_in_full():
    advice, _ = advise(limit("epsilon", 2.0))
    for width in (30, 80):
        text = drawn(advice, width)
        assert "private / mean / none" in text
        assert "in every row" not in text


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_wide_console_gets_a_table_of_everything(seeds):
    advice, _ = advise(limit("accuracy", 0.7), objectives=EIGHT, data=stacks(seeds))
    text = drawn(advice, 200)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 200
    assert any(line.startswith("───") for line in lines)
    assert "first row ahead by" in text
    body = text[text.index("───") :]
    for suggestion in advice.suggestions[:10]:
        for column in advice.objectives:
            assert all(number in body for number in numbers(suggestion, column))
        for label in suggestion.row.axes:
            assert all(plugin in body for plugin in label.split(" + "))


def test_whose_rows_they_are_is_said_where_several_submissions_fit():
    advice = recommend(
        [parse(board(), "test"), parse(board() | {"name": "other"}, "test")], [], ("accuracy",)
    )[0]
    text = drawn(advice, 80)
    assert "defence / submission" in text
    assert "good / lab" in text
    assert "good / other" in text


@pytest.mark.parametrize("width", [20, 40, 60, 90, 120, 160])
def test_every_width_shows_every_number(width):
    advice, _ = advise(limit("accuracy", 0.7), objectives=EIGHT, data=stacks(3))
    text = drawn(advice, width)
    for suggestion in advice.suggestions[:10]:
        for column in advice.objectives:
            assert all(number in text for number in numbers(suggestion, column))


def test_the_lead_in_what_should_be_low_is_how_much_lower():
    advice, names = advise(objectives=("size", "accuracy"))
    assert names[0] == "fast"
    line = next(line for line in drawn(advice, 120).splitlines() if "good" in line)
    assert " 3.0 kB, not testable" in line  # kilobytes: 4.0 less 1.0
