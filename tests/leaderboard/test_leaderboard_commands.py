"""`harness leaderboard`, as people call it."""

import json
import math
import sys
from types import ModuleType

import handmade
import pytest
import synthetic

from harness.errors import HarnessError
from harness.leaderboard.commands import leaderboard
from harness.leaderboard.side_by_side import compare_rows, compare_submissions, row_of
from harness.leaderboard.submission import parse, read, write
from harness.store import Store

NONE, SMOOTH = ("none", "none"), ("label-smoothing", "none")


@pytest.fixture
def official(call, ran, tmp_path):
    """The file that `submit` writes."""
    status, *_ = call(
        "submit", ran.store, "--scenario", ran.path, "--name", "base", "--out", tmp_path / "records"
    )
    assert status == 0
    return tmp_path / "records" / "small-v1--base.json"


def save(folder, submission):
    path = folder / f"{submission.scenario.name}-v{submission.scenario.version}--{submission.name}.json"
    write(submission, path)
    return path


# submit -------------------------------------------------------------------------------------------


def test_submit_check_verify(call, ran, tmp_path, official):
    status, out, _ = call("check", official)
    assert (status, out) == (0, f"{official}: ok, official\n")
    before = read(official)
    assert before.verification is None
    status, out, err = call(
        "verify", official, "--sample", "1", "--seed", "1", "--jobs", "0", "--device", "cpu", "-q"
    )
    assert status == 0, out
    assert out.startswith(
        f"{official}: verified, 1 of 16 cells, one seed of each, run again, drawn by --seed 1\n"
    )
    stamped = read(official)
    assert stamped.verification.verdict == "verified"
    assert stamped.model_copy(update={"verification": None}) == before
    status, out, err = call("check", official)
    assert status == 0
    assert "it comes with a verification of its own (verified, " in err


def test_an_edited_score_diverges(call, official):
    data = json.loads(official.read_text())
    for cell in data["cells"]:
        for seed in cell["seeds"].values():
            if seed["scores"]:
                seed["scores"]["macro_f1"] = 0.99
    official.write_text(json.dumps(data))
    before = official.read_bytes()
    again = ("verify", official, "--sample", "1", "--seed", "3", "--jobs", "0", "--device", "cpu", "-q")
    status, out, _ = call(*again, "--no-write")
    assert status == 1
    assert "diverged, 1 of 16 cells, one seed of each, run again, drawn by --seed 3" in out
    assert ": macro_f1: 0.99 in the file, 0." in out
    assert official.read_bytes() == before
    status, *_ = call(*again)
    assert status == 1
    stamped = read(official).verification
    assert stamped.verdict == "diverged"
    assert "macro_f1: 0.99 in the file" in stamped.differences[0]


def test_verify_draws_another_seed_each_time(call, official, monkeypatch):
    import harness.leaderboard.verify as module

    seeds = []

    def refuse(submission, *, seed, **_):
        seeds.append(seed)
        raise HarnessError("enough")

    monkeypatch.setattr(module, "verify", refuse)
    for _ in range(2):
        assert call("verify", official, "--jobs", "0")[0] == 2
    assert seeds[0] != seeds[1]


def test_submit_says_what_it_wrote(call, ran, tmp_path):
    arguments = ("submit", ran.store, "--scenario", ran.path, "--name", "base", "--out", tmp_path)
    path = tmp_path / "small-v1--base.json"
    written = f"wrote {path}: 16 cells scored, 0 cells failed, official\n"
    asked = f"next: harness leaderboard check {path}, and a pull request with the file\n"
    assert call(*arguments) == (0, written + asked, "")
    _, out, _ = call(*arguments, "--note", "again", "--authors", "Us", "--url", "https://example.org")
    assert out.startswith(f"replaced {path}: ")
    made = read(path)
    assert (made.note, made.authors, made.url) == ("again", "Us", "https://example.org")


def test_other_code_is_not_called_verified(call, official):
    data = json.loads(official.read_text())
    for plugin in data["plugins"]:
        if plugin["name"] == "dp-sgd":
            plugin["source"] = "0" * 64
    official.write_text(json.dumps(data))
    status, out, _ = call(
        "verify", official, "--sample", "1", "--seed", "1", "--jobs", "0", "--device", "cpu", "-q"
    )
    assert status == 1
    assert out.startswith(
        f"{official}: other-code, 1 of 16 cells, one seed of each, run again, drawn by --seed 1\n"
    )
    assert "note: other code of dp-sgd in psr-harness: 0.1.0, source 000000000000 in the file, " in out
    assert read(official).verification.verdict == "other-code"


def test_submit_says_that_the_code_is_another_now(call, ran, tmp_path, monkeypatch):
    from harness.registry import Entry

    true = Entry.source_hash.fget
    monkeypatch.setattr(
        Entry, "source_hash", property(lambda self: "ab" * 32 if self.plugin.name == "dp-sgd" else true(self))
    )
    status, out, err = call("submit", ran.store, "--scenario", ran.path, "--name", "base", "--out", tmp_path)
    assert (status, out.count("official")) == (0, 1)
    assert err.startswith("note: other code of dp-sgd in psr-harness: 0.1.0, source ")
    assert err.endswith(
        " in the records, 0.1.0, source abababababab here; the file describes the code of the records, not this code\n"
    )
    assert (tmp_path / "small-v1--base.json").exists()


@pytest.fixture
def partial(ran, tmp_path):
    """A store that lacks the first cell, and in which the second has failed."""
    with Store(ran.store) as full, Store(tmp_path / "partial") as store:
        records = [r for r in full.records("small") if r["status"] == "scored"]
        records[1] |= {"status": "failed", "scores": {}, "units": {}, "guarantee": None}
        records[1]["error"] = {"type": "OSError", "message": "no room", "traceback": "", "stage": "train"}
        for record in records[1:]:
            store.put_record(record, "x")
    return tmp_path / "partial"


def test_a_partial_grid_needs_the_flag(call, ran, partial, tmp_path):
    arguments = ("submit", partial, "--scenario", ran.path, "--name", "some", "--out", tmp_path / "records")
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: some cannot be official: 9 of 24 cells are missing: ")
    assert err.endswith("; give --unofficial to write it as unofficial\n")
    assert not (tmp_path / "records").exists()
    status, out, _ = call(*arguments, "--unofficial")
    assert status == 0
    assert "unofficial: 9 of 24 cells are missing: " in out
    assert "failed: none / mean / " in out
    assert ": OSError: no room\n" in out
    made = read(tmp_path / "records" / "small-v1--some.json")
    assert not made.official
    assert call("check", tmp_path / "records" / "small-v1--some.json")[0] == 0


def test_submit_refuses_what_it_cannot_use(call, ran, tmp_path):
    common = ("--scenario", ran.path, "--name")
    store = tmp_path / "my store"
    status, _, err = call("submit", store, *common, "x")
    assert status == 2
    command = f"harness run {ran.path} --store '{store}'"
    assert f"error: {store} is no store; run the scenario first: {command}\n" in err
    assert not store.exists()
    status, _, err = call("submit", ran.store, *common, "../x", "--out", tmp_path)
    assert status == 2
    assert "name: '../x' cannot be a name: use letters a to z, digits, '-', '_' and '.'" in err
    file = tmp_path / "mine.json"
    status, _, err = call("submit", ran.store, *common, "x", "--out", file)
    assert status == 2
    assert f"error: --out takes a folder, not the file {file}" in err
    assert not file.exists()
    changed = tmp_path / "changed.yaml"
    changed.write_text(ran.text.replace("rounds: 2", "rounds: 1"))
    status, _, err = call("submit", ran.store, "--scenario", changed, "--name", "x", "--unofficial")
    assert status == 2
    assert "records of small are of another content of the scenario; run it again" in err


def test_submit_looks_at_the_other_files_of_its_board(call, ran, made, tmp_path):
    def board(name, **changes):
        facts = made.scenario.model_copy(update=changes)
        return save(tmp_path, made.model_copy(update={"name": name, "scenario": facts}))

    other = board("earlier", hash="ab" * 32)
    broken = tmp_path / "small-v1--broken.json"
    broken.write_text("{")
    arguments = ("submit", ran.store, "--scenario", ran.path, "--out", tmp_path, "--name")
    status, out, err = call(*arguments, "base")
    assert (status, out) == (2, "")
    path = tmp_path / "small-v1--base.json"
    assert err == (
        f"error: {path}: its small v1 is another scenario than in {other}: a changed scenario needs a new version\n"
    )
    assert not path.exists()
    board("earlier", fingerprint="ab" * 32)
    assert (
        f"{path}: its small v1 is of another content of the data set than in {other}\n"
        in call(*arguments, "base")[2]
    )
    board("earlier")
    assert call(*arguments, "Earlier")[2].endswith(
        f"Earlier is on the board small v1 already, from {other}\n"
    )
    assert call(*arguments, "base")[0] == 0
    assert call(*arguments, "earlier")[1].startswith(f"replaced {other}: ")


# check --------------------------------------------------------------------------------------------


def test_check_names_every_problem(call, tmp_path):
    good = save(tmp_path, handmade.submission("good"))
    misnamed = tmp_path / "other.json"
    write(handmade.submission("GOOD"), misnamed)
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    status, out, err = call("check", good, misnamed, bad)
    assert (status, out) == (2, "")
    lines = err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"error: {bad}: not a submission: ")
    assert lines[1] == f"{misnamed}: the file must be called hand-v1--GOOD.json"
    assert lines[2] == f"{misnamed}: GOOD is on the board hand v1 already, from {good}"
    assert call("check", good, good)[0] == 0  # the same file twice is one file


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"accuracy": 5.0}, "accuracy is 5, which is not from 0 to 1"),
        ({"accuracy": -0.5}, "accuracy is -0.5, which is not from 0 to 1"),
        ({}, "it is scored, and has neither scores nor an error"),
        ({"accuracy": 0.5, "epsilon": 7.9}, "the worst epsilon of its seeds is 7.9, the guarantee's 0.1"),
    ],
)
def test_check_refuses_what_no_run_can_have_written(change, said, call, tmp_path):
    from harness.leaderboard.submission import parse

    data = handmade.plain("odd")
    cell = data["cells"][0]
    cell["seeds"]["0"]["scores"] = change
    cell["guarantee"] = {"unit": "record", "epsilon": 0.1, "delta": 1e-5, "accountant": "rdp"}
    status, _, err = call("check", save(tmp_path, parse(data, "odd")))
    assert status == 2
    assert "none / mean / none, seed 0: " in err
    assert said in err


def test_check_refuses_a_time_that_is_none(call, tmp_path):
    from harness.leaderboard.submission import parse

    status, _, err = call(
        "check", save(tmp_path, parse(handmade.plain("odd") | {"created": "yesterday"}, "odd"))
    )
    assert status == 2
    assert "created is 'yesterday', not a time such as" in err


def test_a_changed_scenario_needs_a_new_version(call, tmp_path):
    first = save(tmp_path, handmade.submission("a"))
    other = save(tmp_path, handmade.submission("b", text=handmade.TEXT.replace("rounds: 2", "rounds: 3")))
    status, _, err = call("check", first, other)
    assert status == 2
    assert (
        f"{other}: its hand v1 is another scenario than in {first}: a changed scenario needs a new version"
        in err
    )
    newer = handmade.TEXT.replace("rounds: 2", "rounds: 3") + "version: 2\n"
    assert call("check", first, save(tmp_path, handmade.submission("b", text=newer)))[0] == 0


def test_methods_of_packages_that_are_not_here_are_a_note(call, tmp_path):
    from harness.leaderboard.submission import parse

    data = handmade.plain("mine")
    data["scenario"]["text"] = handmade.TEXT.replace("label-smoothing", "my-defence")
    path = save(tmp_path, parse(data, "x"))
    status, _, err = call("check", path)
    assert status == 2  # all it names is built in, and yet its scenario cannot be read
    assert "its scenario cannot be used here: " in err
    own = {**data["plugins"][0], "name": "my-defence", "distribution": "my-package", "version": "2.1"}
    data["plugins"].append(own)
    save(tmp_path, parse(data, "x"))
    status, _, err = call("check", path)
    assert status == 0
    assert f"note: {path}: not compared with its scenario" in err
    assert "it needs my-package 2.1, which `harness list` does not show here; " in err
    assert "unknown defence 'my-defence'" in err


# compare ------------------------------------------------------------------------------------------

# Differences 0.1, 0.2, 0.3: mean 0.2, deviation 0.1; t(0.975; 2) = 4.302653, so 0.2 -+ 4.302653 * 0.1 / sqrt(3).
A = {NONE: {"accuracy": [0.6, 0.8, 1.0], "train_seconds": [1.0, 2.0, 3.0]}, SMOOTH: {"accuracy": [0.25, 0.5]}}
B = {NONE: {"accuracy": [0.5, 0.6, 0.7], "train_seconds": [2.0, 2.0, 2.0]}, SMOOTH: {"accuracy": [0.75]}}
LOW, HIGH = 0.2 - 4.302653 * 0.1 / math.sqrt(3), 0.2 + 4.302653 * 0.1 / math.sqrt(3)


def test_two_submissions_by_hand():
    pairs = compare_submissions(handmade.submission("a", A), handmade.submission("b", B))
    assert [(p.row, p.score) for p in pairs] == [
        ("none / mean / none", "accuracy"),
        ("label-smoothing / mean / none", "accuracy"),
    ]
    first, second = pairs
    assert (first.first, first.second) == (pytest.approx(0.8), pytest.approx(0.6))
    assert first.difference.mean == pytest.approx(0.2)
    assert first.difference.low == pytest.approx(LOW, abs=1e-6)
    assert first.difference.high == pytest.approx(HIGH, abs=1e-6)
    assert first.difference.pairs == 3
    assert first.better is None  # the interval holds zero: [-0.048, 0.448]
    # One shared seed: a difference (0.25 - 0.75) and no interval, though the means are over all seeds.
    assert (second.first, second.second) == (0.375, 0.75)
    assert second.difference.mean == -0.5
    assert math.isnan(second.difference.low)
    assert second.difference.pairs == 1


def test_what_is_better_depends_on_the_direction():
    near = {NONE: {"accuracy": [0.5, 0.5, 0.5], "loss": [2.0, 2.0, 2.0]}}
    far = {NONE: {"accuracy": [0.75, 0.75, 0.751], "loss": [1.0, 1.0, 1.001]}}
    accuracy, loss = compare_submissions(handmade.submission("a", near), handmade.submission("b", far))
    assert (accuracy.score, accuracy.better) == ("accuracy", "second")
    assert (loss.score, loss.better, loss.direction) == ("loss", "second", "lower")
    accuracy, loss = compare_submissions(handmade.submission("a", far), handmade.submission("b", near))
    assert (accuracy.better, loss.better) == ("first", "first")


def test_the_same_difference_at_every_seed_proves_nothing(call, tmp_path):
    rows = ([0.91, 0.92, 0.93], [0.90, 0.91, 0.92])
    a, b = (
        handmade.submission(name, {NONE: {"accuracy": row, "loss": row}, SMOOTH: {"accuracy": row}})
        for name, row in zip("ab", rows, strict=True)
    )
    for pair in compare_submissions(a, b):
        assert math.isnan(pair.difference.p)
        assert pair.better is None
    status, out, _ = call("compare", save(tmp_path, a), save(tmp_path, b))
    assert status == 0
    assert "lines are not adjusted for their number" in out


def test_scores_of_one_model_are_compared_once_however_many_attacks_met_it():
    base = ("none", "mean", "none")
    clean, size = {"accuracy": [0.8, 0.7, 0.9]}, {"serialized_bytes": [2000.0] * 3}
    cells = [
        synthetic.cell(
            (*base, "evasion", name), "evasion", {**clean, **size, "robust_accuracy": [robust] * 3}, eps=0.1
        )
        for name, robust in (("fgsm", 0.5), ("pgd", 0.4))
    ]
    cells.append(synthetic.cell((*base, "none", "none"), "clean", {**clean, **size}))
    cells.append(
        synthetic.cell((*base, "byzantine", "alie"), "byzantine", {"accuracy": [0.5, 0.4, 0.6], **size})
    )
    pairs = compare_submissions(*(parse(synthetic.plain(name, cells), name) for name in ("a", "b")))
    found = [(pair.row.split()[-1], pair.score) for pair in pairs]
    assert sorted(found) == [
        ("alie", "accuracy"), ("fgsm", "robust_accuracy"), ("none", "accuracy"), ("none", "serialized_bytes"),
        ("pgd", "robust_accuracy"),
    ]  # fmt: skip


def test_what_does_not_compare_has_no_better_side():
    """A record's guarantee and a client's, and two attacks that do worse than guessing."""
    rows = {"a": ("record", 2.0, [0.40, 0.41, 0.42]), "b": ("client", 9.0, [0.30, 0.31, 0.33])}
    cells = [
        synthetic.cell(
            (name, "mean", "none", "curious", "loss"),
            "privacy",
            {"epsilon": [epsilon + 0.01 * i for i in range(3)], "mia_auc": auc},
            guarantee=synthetic.claim(epsilon + 0.02, unit=unit),
        )
        for name, (unit, epsilon, auc) in rows.items()
    ]
    pairs = {p.score: p for p in compare_rows(parse(synthetic.plain("x", cells), "x"), "a", "b")}
    assert pairs["epsilon"].whose == "of a record, of a client"
    assert pairs["epsilon"].better is None
    assert (pairs["mia_auc"].first, pairs["mia_auc"].second) == (pytest.approx(0.41), pytest.approx(0.94 / 3))
    assert pairs["mia_auc"].difference.mean == 0
    assert pairs["mia_auc"].better is None


def test_an_epsilon_that_guarantees_nothing_is_written_in_words(call, tmp_path):
    guarantees = {
        "broken": ({"epsilon": [math.inf] * 2}, synthetic.claim(4.0, holds=False)),
        "sound": ({"epsilon": [4.0] * 2}, synthetic.claim(4.0)),
        "bare": ({"accuracy": [0.5] * 2}, None),
    }
    cells = []
    for name, (scores, claimed) in guarantees.items():
        axes = (name, "mean", "none", "none", "none")
        cells.append(synthetic.cell(axes, "clean", {"accuracy": [0.5] * 2} | scores, guarantee=claimed))
    for seed in cells[0]["seeds"].values():
        del seed["scores"]["epsilon"]
        seed["undefined"] = {"epsilon": "inf"}
    one = parse(synthetic.plain("x", cells), "x")
    written = {
        pair: next(p for p in compare_rows(one, *pair) if p.score == "epsilon").written
        for pair in (("broken", "sound"), ("sound", "broken"), ("sound", "bare"), ("bare", "broken"))
    }
    assert written == {
        ("broken", "sound"): ["broken", "4.00"],
        ("sound", "broken"): ["4.00", "broken"],
        ("sound", "bare"): ["4.00", "none"],
        ("bare", "broken"): ["none", "broken"],
    }
    status, out, _ = call("compare", save(tmp_path, one), "broken", "sound", "--score", "epsilon")
    assert status == 0
    assert "inf" not in out


def test_undefined_scores_are_compared_as_what_they_are():
    from harness.leaderboard.submission import parse

    data = handmade.plain("a")
    for cell in data["cells"]:
        cell["seeds"]["0"] = {"id": cell["seeds"]["0"]["id"], "undefined": {"accuracy": "inf"}}
    pair = compare_submissions(parse(data, "a"), handmade.submission("b"))[0]
    assert pair.first == math.inf
    assert math.isnan(pair.difference.mean)
    assert pair.better is None


def test_compare_prints_a_table(call, tmp_path):
    a, b = (save(tmp_path, handmade.submission(name, scores)) for name, scores in (("a", A), ("b", B)))
    status, out, _ = call("compare", a, b)
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    bounds = [f"[{100 * LOW:.4g},", f"{100 * HIGH:.4g}]"]
    assert ["accuracy", "[%]", "↑", "80.0", "60.0", "20", *bounds] in lines
    assert ["accuracy", "[%]", "↑", "37.5", "75.0", "-50", "-"] in lines
    assert "train_seconds" not in out
    assert "at least 1" in out
    assert "one seed: " in out
    status, out, _ = call("compare", a, b, "--score", "train_seconds")
    assert ["train_seconds", "[s]", "↓", "2.0", "2.0", "0", "[-2.484,", "2.484]"] in [
        line.split() for line in out.splitlines()
    ]
    assert "accuracy" not in out
    status, _, err = call("compare", a, b, "--score", "acuracy")
    assert status == 2
    assert "--score acuracy: no such score here; did you mean 'accuracy'?" in err


def test_identical_files_are_one_line(call, made, tmp_path):
    a = save(tmp_path, made)
    again = made.model_copy(update={"name": "again"})
    scored = next(n for n, cell in enumerate(again.cells) if cell.status == "scored")
    b = save(tmp_path, again)
    said = f"{a} and {b} are identical in all scores, but for times and memory: 24 cells compared\n"
    assert call("compare", a, b) == (0, said, "")
    assert (
        call("compare", a, b, "--score", "accuracy")[1]
        == f"{a} and {b} are identical in accuracy: 24 cells compared\n"
    )
    cell = again.cells[scored]
    seed = cell.seeds["0"].model_copy(update={"scores": {**cell.seeds["0"].scores, "macro_f1": 0.5}})
    other = cell.model_copy(update={"seeds": {**cell.seeds, "0": seed}})
    cells = (*again.cells[:scored], other, *again.cells[scored + 1 :])
    b = save(tmp_path, again.model_copy(update={"cells": cells}))
    assert "identical" not in call("compare", a, b)[1]
    assert "identical in accuracy" in call("compare", a, b, "--score", "accuracy")[1]


def test_two_rows_of_one_file(call, tmp_path):
    one = handmade.submission("a", {**A, ("none", "fgsm"): {"accuracy": [0.1]}})
    (pair,) = compare_rows(one, "none", "label-smoothing")
    assert (pair.row, pair.first, pair.second) == ("no attack", pytest.approx(0.8), 0.375)
    assert pair.difference.mean == pytest.approx(0.325)  # (0.6 - 0.25 + 0.8 - 0.5) / 2
    assert pair.difference.pairs == 2
    assert row_of(one, "label-smoothing / mean / none") == ("label-smoothing", "mean", "none")
    with pytest.raises(HarnessError, match="a has no row 'smoothing'; did you mean 'label-smoothing'"):
        row_of(one, "smoothing")
    path = save(tmp_path, one)
    status, out, _ = call("compare", path, "none", "label-smoothing")
    assert status == 0
    assert out.startswith("A: none\nB: label-smoothing\nno attack")
    status, _, err = call("compare", path, "none", "none / mean / none")
    assert status == 2
    assert "are the same row" in err
    for row in ("none", "none / meen / none"):
        status, _, err = call("compare", path, row)
        assert status == 2
        assert f"error: {row!r} is a row: two rows are needed" in err


def test_a_row_that_guarantees_nothing_stands_beside_one_that_does(call, tmp_path):
    def row(name, attack, scores, **fields):
        axes = (name, "mean", "none", "t" if attack != "none" else "none", attack)
        own = {"accuracy": [0.8] * 3, "serialized_bytes": [206_700.0 if name == "none" else 54_360.0] * 3}
        return synthetic.cell(axes, "clean" if attack == "none" else "evasion", own | scores, **fields)

    spent = {"epsilon": [8.0] * 3, "delta": [1e-5] * 3}
    cells = [row("none", attack, {}) for attack in ("none", "pgd")]
    cells += [row("dp-sgd", attack, spent, guarantee=synthetic.claim(8.0)) for attack in ("none", "pgd")]
    path = save(tmp_path, parse(synthetic.plain("x", cells), "x"))
    status, out, _ = call("compare", path, "none", "dp-sgd")
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines.count(["epsilon", "↓", "none", "8.00", "-", "-"]) == 1
    assert ["serialized_bytes", "[kB]", "↓", "206.7", "54.4", "152.3", "-"] in [
        [*line[:6], "-"] for line in lines
    ]
    assert "at least 3" in out  # what has no other side does not count
    assert "delta" not in out
    status, out, _ = call("compare", path, "dp-sgd", "none")
    assert ["epsilon", "↓", "8.00", "none", "-", "-"] in [line.split() for line in out.splitlines()]


def test_different_boards_are_not_compared(call, tmp_path):
    a = save(tmp_path, handmade.submission("a"))
    newer = save(tmp_path, handmade.submission("b", text=handmade.TEXT + "version: 2\n"))
    status, out, err = call("compare", a, newer)
    assert (status, out) == (2, "")
    assert err == (
        "error: a is of hand v1 and b of hand v2: results of different scenarios cannot be compared\n"
    )
    changed = save(tmp_path, handmade.submission("c", text=handmade.TEXT.replace("rounds: 2", "rounds: 3")))
    status, _, err = call("compare", a, changed)
    assert status == 2
    assert "a and c are of different contents of hand v1 (" in err
    assert err.endswith(") and cannot be compared\n")
    data = handmade.submission("d")
    other = data.model_copy(update={"scenario": data.scenario.model_copy(update={"fingerprint": "00" * 32})})
    status, _, err = call("compare", a, save(tmp_path, other))
    assert status == 2
    assert "a and d are of different data" in err
    silent = save(tmp_path, handmade.submission("e", {}))
    status, _, err = call("compare", a, silent)
    assert status == 2
    assert "they share no scored cell" in err


# build and help -----------------------------------------------------------------------------------


def test_build_says_what_was_written(call, tmp_path):
    (tmp_path / "records").mkdir()
    save(tmp_path / "records", handmade.submission("a", A))
    save(tmp_path / "records", handmade.submission("b", B))
    out = tmp_path / "pages"
    status, said, _ = call("build", tmp_path, "--out", out)
    assert status == 0
    lines = said.splitlines()
    written = [line.removeprefix("wrote ") for line in lines if line.startswith("wrote ")]
    assert len(written) >= 2
    assert sorted(written) == sorted(str(path) for path in out.rglob("*") if path.is_file())
    assert lines[len(written)].startswith("1 board, 2 submissions, ")
    status, _, err = call("build", tmp_path / "nothing")
    assert status == 2
    assert "there is no such folder" in err


def test_build_passes_on_what_its_reader_should_know(call, tmp_path, monkeypatch):
    given = []
    facts = {"written": [tmp_path / "x"], "boards": 2, "submissions": 1, "rows": 3, "cells": 4}
    facts |= {"superseded": ["hand v1"], "notes": ["no table"]}
    module = ModuleType("harness.leaderboard.build")
    module.build = lambda folder, out: given.append((folder, out)) or facts
    monkeypatch.setitem(sys.modules, "harness.leaderboard.build", module)
    status, out, err = call("build", tmp_path)
    assert (status, given) == (0, [(tmp_path, None)])
    assert out == (
        f"wrote {tmp_path / 'x'}\n2 boards, 1 submission, 3 rows, 4 cells\nsuperseded by a newer version: hand v1\n"
    )
    assert err == "note: no table\n"


def test_every_command_has_an_example(call):
    status, out, _ = call("--help")
    assert status == 0
    for command in leaderboard.registered_commands:
        name = command.callback.__name__
        assert name in out
        assert f"Example: harness leaderboard {name} " in " ".join(command.callback.__doc__.split())
    assert {c.callback.__name__ for c in leaderboard.registered_commands} == {
        "submit", "check", "verify", "compare", "build"
    }  # fmt: skip


def test_a_package_of_another_version_is_no_fault_of_the_file(call, tmp_path):
    """Its defaults may be others, and the cells of the same text with them."""
    from harness.leaderboard.submission import parse

    data = handmade.plain("mine")
    own = {**data["plugins"][0], "name": "my-defence", "distribution": "my-package", "version": "2.1"}
    data["scenario"]["hash"] = "ab" * 32
    path = save(tmp_path, parse(data, "x"))
    status, _, err = call("check", path)
    assert status == 2
    assert "its scenario has the hash" in err
    data["plugins"].append(own)
    save(tmp_path, parse(data, "x"))
    for status, words in ((0, ("check", path)), (2, ("verify", path))):
        found, _, err = call(*words)
        assert found == status
        assert "it needs my-package 2.1, which `harness list` does not show here, with which the same" in err
