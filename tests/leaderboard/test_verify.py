"""Cells of a submission are run again, and what differs is said."""

import copy
import math

import pytest

from harness.api import Tracker
from harness.errors import HarnessError
from harness.evaluation.constant import FLAG as CONSTANT
from harness.evaluation.masking import FLAG
from harness.leaderboard.other_code import lacking_packages
from harness.leaderboard.submission import Submission, Unit, parse, read, write
from harness.leaderboard.submit import collect
from harness.leaderboard.verify import ELSEWHERE, EXACT, NOTE, Tolerance, compare, draw, verify

SCORED = 8  # cells with scores


def changed(submission: Submission, change) -> Submission:
    """A copy whose decoded JSON was changed."""
    data = copy.deepcopy(submission.model_dump(mode="json", by_alias=True))
    change(data)
    return parse(data, "changed")


def cell_at(data, **axes):
    (found,) = [c for c in data["cells"] if all(c[axis] == value for axis, value in axes.items())]
    return found


PRIVATE = "dp-sgd(epsilon=2)"
CELL = {"defence": "none", "compressor": "none", "attack": "fgsm"}


@pytest.fixture
def again(ran):
    """Verifies every scored cell against the store that the run left: no training."""

    def run(submission, **options):
        given = {"sample": SCORED, "seed": 0, "device": "cpu", "jobs": 0, "store": ran.store}
        return verify(submission, **{**given, **options})

    return run


def differences(found):
    return [text for text in found.differences if not text.startswith(NOTE)]


class Counting:
    """Counts the stages that are computed."""

    def __init__(self):
        self.stages = 0

    def __getattr__(self, name):
        def seen(*arguments):
            self.stages += name == "stage_started"

        return seen


def test_a_true_submission_is_verified_by_computing_it_again(made, tmp_path):
    observer = Counting()
    found = verify(made, sample=1, seed=1, device="cpu", jobs=0, observer=observer)
    assert (found.verdict, found.cells, differences(found)) == ("verified", 1, [])
    assert observer.stages >= 2  # a training and its scores: nothing was taken from anywhere
    stamped = made.model_copy(update={"verification": found})
    write(stamped, tmp_path / "x.json")
    assert read(tmp_path / "x.json") == stamped
    assert found.environment.libraries == made.environment.libraries


def test_all_cells_agree_with_the_store_they_came_from(made, again):
    found = again(made, sample=100)
    assert (found.verdict, found.cells, found.differences) == ("verified", SCORED, ())


def test_one_edited_score_is_named(made, again):
    def edit(data):
        for seed in cell_at(data, **CELL)["seeds"].values():
            seed["scores"]["robust_accuracy"] = 0.987654321

    found = again(changed(made, edit))
    assert found.verdict == "diverged"
    (said,) = differences(found)
    seed = said.split(", seed ")[1][0]
    true = next(c for c in made.cells if c.attack == "fgsm" and c.axes[:3] == ("none", "mean", "none"))
    here = true.seeds[seed].scores["robust_accuracy"]
    assert said == (
        f"none / mean / none, evasion fgsm, seed {seed}: robust_accuracy: 0.987654321 in the file, {here:.9g} here"
    )


def test_measurements_may_differ_and_nothing_else_is_one(made, again):
    def slower(data):
        for cell in data["cells"]:
            for seed in cell["seeds"].values():
                if seed["scores"]:
                    seed["scores"]["train_seconds"] = 1e6

    assert again(changed(made, slower)).verdict == "verified"

    def pretend(data):  # the file's own word on what is a measurement does not count
        data["units"]["accuracy"] = Unit(direction="higher", measured=True).model_dump()
        for seed in cell_at(data, **CELL)["seeds"].values():
            seed["scores"]["accuracy"] = 1.0

    (said,) = differences(again(changed(made, pretend)))
    assert "accuracy: 1 in the file" in said


def _seeds(change):
    return lambda data: [change(seed) for seed in cell_at(data, **CELL)["seeds"].values()]


def _dp(**values):
    def change(data):
        cell_at(data, defence="dp-sgd(epsilon=2)", compressor="none", attack="none")["guarantee"].update(
            values
        )

    return change


def _broken(data):
    cell = cell_at(data, defence="dp-sgd(epsilon=2)", compressor="static-int8", attack="none")
    cell["guarantee"] |= {"holds": True, "broken_by": []}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_seeds(lambda s: s["scores"].pop("loss")), "loss: missing in the file, "),
        (_seeds(lambda s: s["scores"].update(beauty=1.0)), "beauty: 1 in the file, no such score here"),
        (
            _seeds(lambda s: (s["scores"].pop("loss"), s["undefined"].update(loss="nan"))),
            "loss: nan in the file, ",
        ),
        (
            _seeds(lambda s: s["flags"].append("audit-violation")),
            "flags: audit-violation in the file, none here",
        ),
        (_seeds(lambda s: s["curve"].pop()), "curve: 1 rounds in the file, 2 here"),
        (_seeds(lambda s: s["curve"][1].__setitem__(1, 0.99)), "curve, round 2: 0.99 in the file, "),
        (lambda data: cell_at(data, **CELL).update(eps=0.2), "eps: 0.2 in the file, 0.1 here"),
        (lambda data: cell_at(data, **CELL).update(norm="l2"), "norm: l2 in the file, linf here"),
        (
            lambda data: cell_at(data, **CELL).update(family="clean"),
            "family: clean in the file, evasion here",
        ),
        (
            lambda data: cell_at(data, **CELL)["config"].update(attack=None),
            "its parameters are not the scenario's",
        ),
        (_dp(epsilon=0.5), "guarantee's epsilon: 0.5 in the file, 1.99"),
        (_dp(delta=1e-9), "guarantee's delta: 1e-09 in the file"),
        (_dp(unit="client"), "guarantee's unit: client in the file, record here"),
        (_broken, "guarantee: holds in the file, broken here by static-int8 reads the validation split"),
        (
            lambda data: cell_at(data, defence="none", compressor="none", attack="none").update(
                guarantee=cell_at(data, defence="dp-sgd(epsilon=2)", compressor="none", attack="none")[
                    "guarantee"
                ]
            ),
            "guarantee: one in the file, none here",
        ),
        (
            lambda data: cell_at(data, **CELL).update(status="not-applicable", reason="no"),
            "none / mean / none, evasion fgsm, seed 0: not-applicable in the file, applicable here",
        ),
        (
            lambda data: data["cells"].remove(cell_at(data, **CELL)),
            "it says that it is official, and 2 of 24 cells",
        ),
        (lambda data: data["scenario"].update(hash="ab" * 32), "its scenario has the hash "),
        (lambda data: data["scenario"].update(version=2), "its scenario's text says version 1, the file 2"),
        (lambda data: data["scenario"].update(fingerprint="ab" * 32), "the data set is another one: "),
        (
            lambda data: cell_at(data, **CELL).update(defence="my-defence"),
            "is none / mean / none, evasion fgsm, seed 0",
        ),
        (lambda data: _seeds(lambda s: s.update(id="ab" + s["id"][2:]))(data), "its scenario has no cell ab"),
    ],
)
def test_what_differs_is_said_in_words(made, again, change, said):
    found = again(changed(made, change))
    assert found.verdict == "diverged"
    assert any(said in text for text in differences(found)), differences(found)


def test_the_flag_for_masking_depends_on_cells_that_are_not_run(made, again):
    assert again(changed(made, _seeds(lambda s: s["flags"].append(FLAG)))).verdict == "verified"


def test_a_flag_that_older_files_lack_is_noted(made, again, monkeypatch):
    from harness.leaderboard import verify as module

    def flagged(*arguments):
        return {name: record | {"flags": [CONSTANT]} for name, record in computed(*arguments).items()}

    computed = module._run
    monkeypatch.setattr(module, "_run", flagged)
    found = again(made)
    assert found.verdict == "verified"
    assert all(
        "predicts one class for every test image, which the file does not say" in t for t in found.differences
    )
    assert len(found.differences) == SCORED


def test_a_flag_for_constant_predictions_that_is_not_found_again_is_a_difference(made, again):
    found = again(changed(made, _seeds(lambda s: s["flags"].append(CONSTANT))))
    assert found.verdict == "diverged"
    assert any("flags: constant-predictions in the file, none here" in text for text in differences(found))


def test_another_version_of_the_code_is_not_verified(made, again):
    def other(data):
        for plugin in data["plugins"]:
            if plugin["name"] in ("dp-sgd", "logistic"):
                plugin |= {"version": "0.0.9", "source": "ab" * 32}
        data["plugins"].append({**data["plugins"][0], "distribution": "somebody-elses", "name": "gone"})
        data["environment"]["commit"] = "2e" * 20

    found = again(changed(made, other))
    assert (found.verdict, differences(found)) == ("other-code", [])
    notes = "\n".join(found.differences)
    assert (
        "note: other code than the file's can verify none of it: install that code, and run this again"
        in notes
    )
    assert (
        "note: other code of dp-sgd and logistic in psr-harness: 0.0.9, source abababababab in the file, "
        "0.1.0, 2 sources here" in notes
    )
    assert "note: other code of gone in somebody-elses: 0.1.0, source " in notes
    assert " in the file, nothing here" in notes
    assert (
        "note: another engine: 0.1.0, commit 2e2e2e2e2e2e in the file, 0.1.0, commit 1f1f1f1f1f1f here"
        in notes
    )


def test_elsewhere_numbers_may_differ_a_little(made, again):
    def elsewhere(by):
        def change(data):
            data["environment"]["libraries"]["torch"] = "2.0.0"
            for seed in cell_at(data, **CELL)["seeds"].values():
                seed["scores"]["accuracy"] += by

        return changed(made, change)

    near = again(elsewhere(0.019))
    assert near.verdict == "verified"
    assert near.differences[0].startswith("note: another torch: 2.0.0 in the file, ")
    assert near.differences[1].startswith("note: so numbers are compared to 5 % or 0.02, whichever is more; ")
    far = again(elsewhere(0.05))
    assert far.verdict == "diverged"
    assert "accuracy: " in differences(far)[0]

    def claim(data):  # no training decides epsilon: 5 % would be a lot
        data["environment"]["libraries"]["torch"] = "2.0.0"
        _dp(epsilon=1.97)(data)

    assert again(changed(made, claim)).verdict == "diverged"


def _other_source(data, *names):
    for plugin in data["plugins"]:
        if plugin["name"] in names:
            plugin["source"] = "ab" * 32


def _raise(data, by, score="accuracy", **axes):
    for seed in cell_at(data, **{"attack": "fgsm", "compressor": "none", **axes})["seeds"].values():
        seed["scores"][score] += by


def test_noise_of_other_code_is_another_draw(made, again):
    """The stage's key seeds it, and covers the code: a defence's scores may then differ by what noise makes of them."""

    def elsewhere(by, names=("dp-sgd",), **axes):
        def change(data):
            _other_source(data, *names)
            _raise(data, by, **axes)

        return again(changed(made, change))

    assert elsewhere(0.09, defence=PRIVATE).verdict == "other-code"
    assert elsewhere(0.3, defence=PRIVATE).verdict == "diverged"
    # Of what the other cells use nothing differs, and no number of theirs may.
    assert elsewhere(1e-3, defence="none").verdict == "diverged"
    assert elsewhere(0.019, names=("mean",), defence="none").verdict == "other-code"
    assert elsewhere(0.09, names=("mean",), defence="none").verdict == "diverged"
    found = elsewhere(0.0, defence=PRIVATE)
    assert (
        f"note: so numbers of 4 of {SCORED} cells, which use it, are compared to 5 % or 0.02, "
        in "\n".join(found.differences)
    )


def test_a_made_up_source_does_not_make_a_file_pass_for_verified(made, again):
    """Of a defence's cells every accuracy is raised by what noise may make of it."""

    def forged(data):
        _other_source(data, "dp-sgd")
        for cell in data["cells"]:
            for seed in cell["seeds"].values():
                for score in ("accuracy", "attacked_clean_accuracy", "balanced_accuracy"):
                    if cell["defence"] == PRIVATE and score in seed["scores"]:
                        seed["scores"][score] += 0.09

    assert again(changed(made, forged)).verdict == "other-code"
    # Nor does it where no cell was drawn that uses it, or where the true code stands beside it.
    drawn = again(changed(made, lambda data: _other_source(data, "dp-sgd")), sample=1, seed=0)
    assert drawn.verdict == "other-code"

    def twice(data):
        true = next(plugin for plugin in data["plugins"] if plugin["name"] == "dp-sgd")
        data["plugins"].insert(0, {**true, "source": "ab" * 32})

    assert again(changed(made, twice)).verdict == "other-code"


def test_packages_that_a_file_needs_are_named_with_what_is_here_instead(made):
    from harness import __version__

    def newer(data):
        next(plugin for plugin in data["plugins"] if plugin["name"] == "dp-sgd")["version"] = "9.9"

    def lacking(change, besides="nobody"):
        return lacking_packages(changed(made, change), besides)

    assert lacking(lambda data: None) == []
    assert lacking(newer) == [f"psr-harness 9.9, and {__version__} is installed"]
    assert lacking(lambda data: _other_source(data, "dp-sgd", "mean")) == [
        f"psr-harness {__version__} with other code than what is installed"
    ]
    assert lacking(newer, besides="psr-harness") == []


def test_methods_that_a_file_does_not_list_are_a_difference(made, again):
    def emptied(data):
        data["plugins"] = [plugin for plugin in data["plugins"] if plugin["name"] not in ("dp-sgd", "loss")]

    found = again(changed(made, emptied))
    assert found.verdict == "diverged"
    said = differences(found)
    assert "its plugins lack what its scenario uses: defence dp-sgd" in said
    assert [text for text in said if text.startswith(PRIVATE) and text.endswith("uses the defence dp-sgd, which the "
                                                                                "file does not list")]  # fmt: skip
    assert not [text for text in said if text.startswith("none / ") and "dp-sgd" in text]
    assert again(made.model_copy(update={"plugins": ()})).verdict == "diverged"


def test_tolerance():
    assert EXACT.agree(1.0, 1.0 + 9e-7)
    assert not EXACT.agree(1.0, 1.0 + 2e-6)
    assert EXACT.agree(0.0, 1e-13)
    assert not EXACT.agree(0.0, 1e-9)
    assert EXACT.agree(math.nan, math.nan)
    assert EXACT.agree(math.inf, math.inf)
    assert not EXACT.agree(math.inf, -math.inf)
    assert not EXACT.agree(math.nan, 0.0)
    assert not Tolerance(0.5, 10).agree(math.inf, 1.0)
    assert Tolerance(0.05, 0.02).agree(100.0, 105.0)
    assert not Tolerance(0.05, 0.02).agree(100.0, 106.0)


def test_a_cell_that_fails_here_is_a_difference(made, records):
    cell = next(c for c in made.cells if c.status == "scored")
    record = next(r for r in records if r["id"] == cell.seeds["0"].id)
    assert compare(cell, cell.seeds["0"], record) == []
    record |= {"status": "failed", "error": {"type": "OSError", "message": "the disk\nis full"}}
    assert compare(cell, cell.seeds["0"], record) == [
        "scored in the file, failed here: OSError: the disk is full"
    ]


def test_of_a_curve_that_is_drawn_anew_the_end_alone_counts(made, records):
    cell = next(c for c in made.cells if c.status == "scored")
    entry = cell.seeds["0"]
    record = next(r for r in records if r["id"] == entry.id)
    other = [[number, 0.0] for number, _ in entry.curve[:-1]]
    wandering = entry.model_copy(update={"curve": [*other, entry.curve[-1]]})
    assert compare(cell, wandering, record, ELSEWHERE) == []
    assert any(text.startswith("curve, round 1: 0 in the file") for text in compare(cell, wandering, record))
    last, _ = entry.curve[-1]
    ending = entry.model_copy(update={"curve": [*entry.curve[:-1], (last, 0.0)]})
    (said,) = compare(cell, ending, record, ELSEWHERE)
    assert said.startswith(f"curve, round {last}: 0 in the file")


@pytest.mark.parametrize("together", [False, True])
def test_rounding_by_chance_is_allowed_for_where_clients_train_as_one_program(
    together, made, again, monkeypatch
):
    def edit(data):
        for cell in data["cells"]:
            for entry in cell["seeds"].values():
                entry["scores"].update(
                    {n: v * 1.001 for n, v in entry["scores"].items() if n == "gzip_bytes"}
                )

    monkeypatch.setattr("harness.leaderboard.verify.depends_on_rounding", lambda record: together)
    found = again(changed(made, edit))
    assert any("gzip_bytes" in c.seeds["0"].scores for c in made.cells if c.status == "scored")
    assert found.verdict == ("verified" if together else "diverged")
    assert any("clients train as one program" in text for text in found.differences) is together
    assert all(not text.startswith(NOTE) for text in found.differences) is not together


def test_an_only_seed_has_the_claim_exactly(records, ran):
    kept = [r for r in records if r["cell"]["seed"] == 0]
    made = collect(kept, ran.scenario, name="x")
    cell = next(c for c in made.cells if c.guarantee is not None and c.attack == "none")
    record = next(r for r in kept if r["id"] == cell.seeds["0"].id)
    assert compare(cell, cell.seeds["0"], record) == []
    higher = cell.model_copy(update={"guarantee": cell.guarantee.model_copy(update={"epsilon": 5.0})})
    (said,) = compare(higher, cell.seeds["0"], record)
    assert said.startswith("guarantee's epsilon: 5 in the file, 1.99")


@pytest.mark.parametrize("name", ["epsilon", "delta"])
def test_of_several_seeds_the_claim_is_the_worst(name, made, records):
    """Patients held out differ in their numbers of images, and delta is one over the training images."""
    cell = next(c for c in made.cells if c.guarantee is not None and c.attack == "none" and len(c.seeds) == 2)
    record = next(r for r in records if r["id"] == cell.seeds["0"].id)
    worst = getattr(cell.guarantee, name)
    for factor, verdicts in ((1.01, 0), (0.99, 1)):
        claim = cell.guarantee.model_copy(update={name: factor * worst})
        said = compare(cell.model_copy(update={"guarantee": claim}), cell.seeds["0"], record)
        assert len(said) == verdicts
        assert all(text.startswith(f"guarantee's {name}:") for text in said)


def test_cells_are_drawn_by_the_seed_among_those_with_scores(made):
    drawn = [[(c.axes, number) for c, number in draw(made, 3, seed)] for seed in range(20)]
    assert drawn[7] == [(c.axes, number) for c, number in draw(made, 3, 7)]
    assert len({tuple(one) for one in drawn}) > 10
    assert all(len({axes for axes, _ in one}) == 3 for one in drawn)
    assert {number for one in drawn for _, number in one} == {"0", "1"}
    assert not any(axes[4] == "pgd-l2" for one in drawn for axes, _ in one)  # not applicable
    assert len(draw(made, 100, 0)) == SCORED
    with pytest.raises(HarnessError, match="at least one cell must be run, not 0"):
        draw(made, 0, 0)
    silent = made.model_copy(update={"cells": tuple(c for c in made.cells if c.status != "scored")})
    with pytest.raises(HarnessError, match="base: no cell has a score"):
        draw(silent, 3, 0)


def test_what_cannot_be_run_here_is_no_divergence(made, again):
    def text(old, new):
        return changed(
            made, lambda data: data["scenario"].update(text=data["scenario"]["text"].replace(old, new))
        )

    with pytest.raises(HarnessError, match=r"its scenario cannot be used here: .*unknown model 'my-model'"):
        again(text("logistic", "my-model"))
    with pytest.raises(HarnessError, match="its scenario cannot be used here: "):
        again(text("schema: 1", "schema: ["))
    with pytest.raises(HarnessError, match=r"absolute path '/data/x\.npz'"):
        again(text("dataset: digits", "dataset: {npz: {path: /data/x.npz}}"))
    with pytest.raises(
        HarnessError, match=r"small: the dataset npz cannot be used: nowhere.npz is not there \(tried "
    ):
        again(text("dataset: digits", "dataset: {npz: {path: nowhere.npz}}"))


def test_data_are_looked_up_below_the_root(made, again, tmp_path):
    """A relative path: found only where the root says."""
    import numpy as np
    from sklearn.datasets import load_digits

    pictures, labels = load_digits(return_X_y=True)
    parts = {"train": slice(0, 200), "val": slice(200, 260), "test": slice(260, 400)}
    arrays = {}
    for name, part in parts.items():
        arrays[f"{name}_images"] = (pictures[part].reshape(-1, 8, 8) * 15.9).astype(np.uint8)
        arrays[f"{name}_labels"] = labels[part].reshape(-1, 1)
    np.savez(tmp_path / "own.npz", **arrays)

    def own(data):
        data["scenario"]["text"] = data["scenario"]["text"].replace(
            "dataset: digits", "dataset: {npz: {path: own.npz}}"
        )

    found = again(changed(made, own), sample=1, store=tmp_path / "runs", root=tmp_path)
    assert any(text.startswith("the data set is another one: ") for text in found.differences)


def test_trackers_of_a_stranger_do_not_run(made, monkeypatch, ran, tmp_path):
    """They write files where they are told to."""
    from harness.leaderboard import check

    seen = []

    class Writer(Tracker):
        """Writes."""

        name = "writer"

        def harness_run_started(self, run):
            seen.append(run)

    import harness.scenario

    load = harness.scenario.load_text
    monkeypatch.setattr(
        harness.scenario, "load_text", lambda text: load(text).model_copy(update={"trackers": (Writer(),)})
    )
    assert check.open_scenario(made).trackers == ()
    found = verify(made, sample=1, seed=0, device="cpu", jobs=0, store=ran.store)
    assert found.verdict == "verified"
    assert seen == []


def test_interrupting_ends_it(made, monkeypatch):
    import harness.engine

    class Interrupted:
        interrupted = True
        records = ()

    monkeypatch.setattr(harness.engine, "run", lambda *a, **k: Interrupted)
    with pytest.raises(KeyboardInterrupt):
        verify(made, sample=1, seed=0, device="cpu", jobs=0)
