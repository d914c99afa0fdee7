"""Recommendations: limits, fronts and intervals by hand-computed numbers; nothing that cannot be trusted fits."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from scipy.stats import ttest_rel
from synthetic import cell, claim, plain, put

from harness.cli import main
from harness.errors import HarnessError
from harness.leaderboard.columns import BY_KEY
from harness.leaderboard.recommend import Limit, recommend, submissions_of
from harness.leaderboard.submission import parse

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
        cells.append(cell(axes, "clean", scores, **({"guarantee": guarantee} if guarantee else {})))
        robust = changes.get(name, [0.5, 0.5, 0.5])
        axes = (name, "mean", "none", "evasion", "pgd")
        cells.append(cell(axes, "evasion", {**scores, "robust_accuracy": robust}))
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
    assert any("not of one scale" in note for note in advice.notes) is (protects is None)


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
    assert "met by the mean alone" in " ".join(out.split()) or "mean" in out
    assert main(["recommend", str(file), "--min-accuracy", "0.99"]) == 1
    out, err = capsys.readouterr()
    assert "none of 4 configurations fits --min-accuracy 0.99" in out
    assert "--min-accuracy 0.99 excludes 4 of 4; without it 4 would fit; the best here is 0.91" in out
    assert "nothing fits" in err
    assert main(["recommend", str(file), "--min-accuracy", "80"]) == 2
    assert "write 0.8 for 80 %" in capsys.readouterr().err
    for option in ("--max-epsilon", "--min-accuracy"):
        assert main(["recommend", str(file), option, "nan"]) == 2
        assert f"{option} must be a number, not nan" in capsys.readouterr().err


def test_a_store_is_looked_at_without_its_scenario(ran):
    (submission,) = submissions_of(ran.store)
    (advice,) = recommend([submission], [limit("epsilon", 2.5)], ("accuracy",))
    assert advice.suggestions
    for suggestion in advice.suggestions:
        assert suggestion.row.axes[0].startswith("dp-sgd")
        assert suggestion.row.values["epsilon"].mean <= 2.5


def test_what_is_neither_a_store_nor_a_submission(tmp_path):
    with pytest.raises(HarnessError, match="neither a submission nor a store"):
        submissions_of(tmp_path)
