"""`harness leaderboard check`: what an edited file gives away without anything being run."""

import json
from pathlib import Path

import handmade
import pytest

from harness.leaderboard import check_cells, check_scores
from harness.leaderboard.check import check
from harness.leaderboard.submission import Seed, parse
from harness.registry import registry

PUBLISHED = Path(__file__).parents[2] / "leaderboard" / "records"
PRIVATE = "dp-sgd(epsilon=2)"
FILE = "small-v1--base.json"


def cell_at(data, **wanted):
    """The first cell with these values."""
    return next(c for c in data["cells"] if all(c[name] == value for name, value in wanted.items()))


def clean(data, defence="none", compressor="none"):
    return cell_at(data, defence=defence, compressor=compressor, attack="none")


def fgsm(data, defence="none", compressor="none"):
    return cell_at(data, defence=defence, compressor=compressor, attack="fgsm")


def scores(cell, seed="0"):
    return cell["seeds"][seed]["scores"]


def checked(folder, data, name=FILE):
    path = folder / name
    path.write_text(json.dumps(data))
    return check([path])


@pytest.fixture
def data(made):
    """The decoded file of an official run, which a test may change."""
    return json.loads(made.model_dump_json(by_alias=True))


@pytest.fixture
def quickstart():
    """A published file, with attacks of all families."""
    return json.loads((PUBLISHED / "quickstart-v1--baselines.json").read_text())


def test_honest_files_are_in_order(data, quickstart, tmp_path):
    found = checked(tmp_path, data)
    assert (found.problems, found.notes) == ([], [])
    assert checked(tmp_path, quickstart, "quickstart-v1--baselines.json").problems == []


def test_published_files_are_in_order():
    paths = sorted(PUBLISHED.glob("*.json"))
    assert paths
    found = check(paths)
    assert found.problems == []
    assert all("it comes with a verification of its own" in note for note in found.notes)


# Each returns nothing: they change decoded JSON in place.


def other_family(data):
    fgsm(data)["family"] = "privacy"


def clean_family(data):
    clean(data)["family"] = "byzantine"


def hidden(data):
    cell = fgsm(data)
    cell |= {"status": "not-applicable", "reason": "fgsm makes no sense", "eps": None, "norm": None}
    for seed in cell["seeds"].values():
        seed |= {"scores": {}, "undefined": {}, "curve": []}


def scores_without_a_status(data):
    clean(data)["status"] = "failed"


def scores_that_make_no_sense(data):
    cell = cell_at(data, attack="pgd-l2")
    cell["seeds"]["1"]["scores"] = {"robust_accuracy": 0.9}


def no_robust_accuracy(data):
    del scores(fgsm(data))["robust_accuracy"]


def no_robust_accuracy_anywhere(data):
    del data["units"]["robust_accuracy"]
    for cell in data["cells"]:
        for seed in cell["seeds"].values():
            seed["scores"].pop("robust_accuracy", None)


def undefined_robust_accuracy(data):
    del scores(fgsm(data))["robust_accuracy"]
    fgsm(data)["seeds"]["0"]["undefined"] = {"robust_accuracy": "nan"}


def no_accuracy(data):
    del scores(clean(data), "1")["accuracy"]


def unit_renamed(data):
    data["units"]["accuracy"]["unit"] = "points"


def unit_deleted(data):
    del data["units"]["robust_accuracy"]


def direction_turned(data):
    data["units"]["robust_accuracy"]["direction"] = "lower"


def out_of_range_in_an_own_unit(data):
    data["units"]["accuracy"]["unit"] = "points"
    scores(clean(data))["accuracy"] = 5.0


def robust_above_attacked_clean(data):
    scores(fgsm(data))["robust_accuracy"] = scores(fgsm(data))["attacked_clean_accuracy"] + 0.01


def robust_above_clean(data):
    scores(fgsm(data)).update(robust_accuracy=1.0, attacked_clean_accuracy=1.0)


def clean_score_of_one_attack(data):
    scores(fgsm(data, compressor="static-int8"))["macro_f1"] = 0.99


def clean_score_without_an_attack(data):
    scores(clean(data), "1")["auroc"] = 0.999


def clean_score_left_out(data):
    del scores(fgsm(data))["balanced_accuracy"]


def no_epsilon(data):
    del scores(clean(data, PRIVATE))["epsilon"]


def no_epsilon_anywhere(data):
    del data["units"]["epsilon"]
    for cell in data["cells"]:
        for seed in cell["seeds"].values():
            seed["scores"].pop("epsilon", None)
            seed["undefined"].pop("epsilon", None)


def no_step_that_creates(data):
    cell = clean(data, PRIVATE)
    cell["lineage"] = [step for step in cell["lineage"] if step["effect"] != "creates"]


def claim_from_nothing(data):
    for cell in (clean(data), fgsm(data)):
        cell["guarantee"] = dict(clean(data, PRIVATE)["guarantee"])
        for seed in cell["seeds"].values():
            seed["scores"]["epsilon"] = cell["guarantee"]["epsilon"]


def broken_and_holding(data):
    cell = clean(data, PRIVATE, "static-int8")
    cell["guarantee"] |= {"holds": True, "broken_by": []}
    for seed in cell["seeds"].values():
        seed["scores"]["epsilon"] = cell["guarantee"]["epsilon"]
        seed["undefined"] = {}


def broken_by_and_holding(data):
    clean(data, PRIVATE)["guarantee"]["broken_by"] = ["a part"]


def delta_of_one(data):
    clean(data, PRIVATE)["guarantee"]["delta"] = 1.0


def delta_of_zero(data):
    clean(data, PRIVATE)["guarantee"]["delta"] = 0.0


def another_delta(data):
    clean(data, PRIVATE)["guarantee"]["delta"] = 1e-9


def delta_above_one_over_the_clients(data):
    cell = clean(data, PRIVATE)
    cell["guarantee"] |= {"unit": "client", "delta": 0.34}
    for seed in cell["seeds"].values():
        seed["scores"]["delta"] = 0.34


def claim_left_out(data):
    fgsm(data, PRIVATE, "static-int8")["guarantee"] = None


def claim_and_traces_left_out(data):
    cell = fgsm(data, PRIVATE, "static-int8")
    cell |= {"guarantee": None, "lineage": []}
    for seed in cell["seeds"].values():
        seed["undefined"] = {}


def dirty(data):
    data["environment"]["dirty"] = True


def unknown_state(data):
    data["environment"]["dirty"] = None


def no_commit(data):
    data["environment"]["commit"] = None


def smaller_radius(data):
    fgsm(data)["eps"] = 0.05


def no_radius(data):
    fgsm(data)["eps"] = None


def other_norm(data):
    fgsm(data)["norm"] = "l2"


def no_parameters(data):
    fgsm(data)["config"] = {}


def curve_above_one(data):
    clean(data)["seeds"]["0"]["curve"] = [[1, 0.5], [2, 1.5]]


def turned_interval(data):
    clean(data)["seeds"]["0"]["intervals"] = {"accuracy": [0.9, 0.8]}


def interval_out_of_range(data):
    clean(data)["seeds"]["0"]["intervals"] = {"accuracy": [0.9, 1.2]}


def error_beside_scores(data):
    clean(data)["seeds"]["0"]["error"] = "OSError: no room"


def constant_and_right(data):
    for cell in (clean(data), fgsm(data)):
        cell["seeds"]["0"]["flags"] = ["constant-predictions"]
        scores(cell)["balanced_accuracy"] = 0.4


def accuracy_of_part_of_a_record(data):
    for cell in (clean(data), fgsm(data)):
        scores(cell)["accuracy"] += 0.0005


def accuracy_of_another_model(data):
    for cell in (clean(data), fgsm(data)):
        scores(cell)["accuracy"] = scores(cell)["balanced_accuracy"] = 1.0


def accuracy_of_another_part(data):
    """Of 60 records 20 were wrong; of all records, 10."""
    for number, cell in enumerate((clean(data), fgsm(data))):
        tested = cell["tested"]
        for seed in ("0", "1"):
            scores(cell, seed)["accuracy"] = (tested - 10) / tested
            if number:
                cell["attacked"] = 60
                scores(cell, seed).update(robust_accuracy=0.0, attacked_clean_accuracy=40 / 60)


def claims(data, epsilon):
    """Every cell of the private defence that claims a guarantee claims this one, as do its seeds."""
    for cell in data["cells"]:
        if cell["defence"] == PRIVATE and cell["guarantee"]:
            cell["guarantee"]["epsilon"] = epsilon
            for seed in cell["seeds"].values():
                if "epsilon" in seed["scores"]:
                    seed["scores"]["epsilon"] = epsilon


def less_than_the_target(data):
    claims(data, 1.0)


def more_than_the_target(data):
    claims(data, 2.1)


def one_seed_below_the_target(data):
    scores(clean(data, PRIVATE), "1")["epsilon"] = 0.5


def another_accountant(data):
    clean(data, PRIVATE)["guarantee"]["accountant"] = "prv"


def another_unit(data):
    clean(data, PRIVATE)["guarantee"]["unit"] = "client"


def other_neighbours(data):
    clean(data, PRIVATE)["guarantee"]["neighbours"] = "replace"


def by_another_defence(data):
    clean(data, PRIVATE)["guarantee"]["by"] = "local-dp"


def groups_better_off_than_records(data):
    clean(data, PRIVATE)["guarantee"] |= {"epsilon": 1.99906, "group_epsilon": 0.1, "largest_group": 3}


def no_plugins(data):
    data["plugins"] = []


def one_method_left_out(data):
    data["plugins"] = [plugin for plugin in data["plugins"] if plugin["name"] != "static-int8"]


def two_codes_of_one_method(data):
    data["plugins"].append({**data["plugins"][0], "source": "ab" * 32})


def no_torch(data):
    del data["environment"]["libraries"]["torch"]


def made_up_flag(data):
    clean(data)["seeds"]["1"]["flags"] = ["nonsense"]


CLEAN, EVASION = "none / mean / none", "none / mean / none, evasion fgsm"
DP, DP_INT8 = f"{PRIVATE} / mean / none", f"{PRIVATE} / mean / static-int8"
EDITS = [
    (other_family, f"{EVASION}: it is of the family privacy in the file, and evasion by its scenario"),
    (clean_family, f"{CLEAN}: it is of the family byzantine in the file, and clean by its scenario"),
    (hidden, f"{EVASION}: it is not-applicable in the file, and applicable here"),
    (scores_without_a_status, f"{CLEAN}, seed 0: it is failed, and has scores"),
    (scores_that_make_no_sense, "evasion pgd-l2, seed 1: it is not-applicable, and has scores"),
    (no_robust_accuracy, f"{EVASION}, seed 0: its robust_accuracy is missing"),
    (no_robust_accuracy_anywhere, f"{EVASION}, seed 0: its robust_accuracy is missing"),
    (undefined_robust_accuracy, f"{EVASION}, seed 0: its robust_accuracy is undefined"),
    (no_accuracy, f"{CLEAN}, seed 1: its accuracy is missing"),
    (unit_renamed, "accuracy has the unit 'points', and here 'share'"),
    (unit_deleted, "the unit of robust_accuracy is missing"),
    (direction_turned, "robust_accuracy is better lower in the file, and higher here"),
    (out_of_range_in_an_own_unit, f"{CLEAN}, seed 0: accuracy is 5, which is not from 0 to 1"),
    (robust_above_attacked_clean, f"{EVASION}, seed 0: robust_accuracy is 0."),
    (robust_above_clean, f"{EVASION}, seed 0: robust_accuracy is 1, more than the accuracy of the same records, "),
    (clean_score_of_one_attack, "none / mean / static-int8, evasion fgsm, seed 0: macro_f1 is 0.99, and 0."),
    (clean_score_without_an_attack, f", and 0.999 in {CLEAN}, seed 1, which is of the same released model"),
    (clean_score_left_out, f"{EVASION}, seed 0: balanced_accuracy is missing, and 0."),
    (no_epsilon, f"{DP}: it claims a guarantee, and epsilon is missing in its scores"),
    (no_epsilon_anywhere, f"{DP}: it claims a guarantee, and epsilon is missing in its scores"),
    (no_step_that_creates, f"{DP}: it claims a guarantee, and no step of its lineage creates one"),
    (claim_from_nothing, f"{CLEAN}: it claims a guarantee, and no step of its lineage creates one"),
    (broken_and_holding, f"{DP_INT8}: it says that its guarantee holds, and its lineage that static-int8 breaks it"),
    (broken_by_and_holding, f"{DP}: it says that its guarantee holds, and that this breaks it: a part"),
    (delta_of_one, f"{DP}: its guarantee's delta is 1, which is not between 0 and 1"),
    (delta_of_zero, f"{DP}: its guarantee's delta is 0, which is not between 0 and 1"),
    (another_delta, "the guarantee's 1e-09"),
    (delta_above_one_over_the_clients, f"{DP}: its guarantee's delta is 0.34, which is not below one over the 3"),
    (claim_left_out, f"{DP_INT8}, evasion fgsm: its seeds have an epsilon, and it claims no guarantee"),
    (claim_and_traces_left_out, f"{DP_INT8}, evasion fgsm: it claims no guarantee, and {DP_INT8}, of the same"),
    (dirty, "it says that it is official, and the engine's files had changes that are in no commit"),
    (unknown_state, "it says that it is official, and the engine's files had changes that are in no commit"),
    (no_commit, "it says that it is official, and the engine's commit is not known"),
    (smaller_radius, f"{EVASION}: its eps is 0.05 in the file, and 0.1 by its scenario"),
    (no_radius, f"{EVASION}: its eps is none in the file, and 0.1 by its scenario"),
    (other_norm, f"{EVASION}: its norm is l2 in the file, and linf by its scenario"),
    (no_parameters, f"{EVASION}, seed 0: its parameters are missing"),
    (curve_above_one, f"{CLEAN}, seed 0: its curve is 1.5 in round 2, which is not from 0 to 1"),
    (turned_interval, f"{CLEAN}, seed 0: the interval of accuracy is 0.9 to 0.8, which is none from 0 to 1"),
    (interval_out_of_range, f"{CLEAN}, seed 0: the interval of accuracy is 0.9 to 1.2, which is none from 0 to 1"),
    (constant_and_right, f"{CLEAN}, seed 0: it is flagged constant-predictions, and its balanced_accuracy is 0.4,"),


    (accuracy_of_part_of_a_record, f"{CLEAN}, seed 0: accuracy is 0."),
    (accuracy_of_another_model, f"{EVASION}, seed 0: accuracy is 1 of 359 records, and attacked_clean_accuracy 0."),
    (accuracy_of_another_part, "of 359 records, and attacked_clean_accuracy 0.666666667 of 60 of them"),
    (less_than_the_target, f"{DP}: its epsilon is 1, and dp-sgd makes its noise to spend 2 by its scenario"),
    (more_than_the_target, f"{DP}: its epsilon is 2.1, and dp-sgd spends at most 2 by its scenario"),
    (one_seed_below_the_target, f"{DP}: its epsilon is 0.5, and dp-sgd makes its noise to spend 2 by its scenario"),
    (another_accountant, f"{DP}: its guarantee's accountant is prv in the file, and rdp by its scenario"),
    (another_unit, f"{DP}: its guarantee's unit is client in the file, and record by its scenario"),
    (other_neighbours, f"{DP}: its guarantee's neighbours is replace in the file, and add-remove by its scenario"),
    (by_another_defence, f"{DP}: its guarantee is by local-dp, which is none of its defences"),
    (groups_better_off_than_records, f"{DP}: its guarantee's epsilon is 1.99906 for one, and 0.1 for a group"),
    (no_plugins, "its plugins lack what its scenario uses: dataset digits, model logistic, partitioner iid, "),
    (one_method_left_out, "its plugins lack what its scenario uses: compressor static-int8"),
    (two_codes_of_one_method, "it says that it is official, and it lists the "),
    (no_torch, "it says that it is official, and its environment does not say which torch it was"),
    (made_up_flag, f"{CLEAN}, seed 1: it has the flag 'nonsense', which this engine gives to no cell"),
    (error_beside_scores, f"{CLEAN}, seed 0: it has an error and scores beside it"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "said"), EDITS, ids=[edit.__name__ for edit, _ in EDITS])
def test_edits_of_an_official_file_are_named(edit, said, data, tmp_path):
    edit(data)
    problems = checked(tmp_path, data).problems
    assert any(said in problem for problem in problems), problems
    assert all(problem.startswith(f"{tmp_path / FILE}: ") and "\n" not in problem for problem in problems)


@pytest.mark.parametrize(
    ("family", "score", "other"),
    [
        ("backdoor", "attack_success_rate", "byzantine"),
        ("byzantine", "accuracy", "backdoor"),
        ("privacy", None, "evasion"),
    ],
)
def test_attacks_in_training_and_on_privacy(family, score, other, quickstart, tmp_path):
    name = "quickstart-v1--baselines.json"
    cell = cell_at(quickstart, family=family)
    if score is not None:
        value = scores(cell).pop(score)
        problems = checked(tmp_path, quickstart, name).problems
        assert [p for p in problems if p.endswith(f" {cell['attack']}, seed 0: its {score} is missing")]
        scores(cell)[score] = value
    cell["family"] = other
    problems = checked(tmp_path, quickstart, name).problems
    assert [p for p in problems if f"it is of the family {other} in the file, and {family} by its" in p]


def test_attacks_in_training_may_have_another_guarantee(quickstart, tmp_path):
    """Their trainings are others: what is asked is that each claim is in order by itself."""
    cell = cell_at(quickstart, family="byzantine", defence="dp-sgd(epsilon=8)", compressor="none")
    plain = cell_at(quickstart, family="byzantine", defence="none", compressor="none")
    cell |= {"guarantee": None, "lineage": plain["lineage"]}
    for seed in cell["seeds"].values():
        seed["scores"] = {n: v for n, v in seed["scores"].items() if n not in ("epsilon", "delta")}
    assert checked(tmp_path, quickstart, "quickstart-v1--baselines.json").problems == []


def test_fine_tuning_may_spend_more_than_the_target(tmp_path):
    name = "pneumonia-small-v1--baselines.json"
    data = json.loads((PUBLISHED / name).read_text())
    tuned = cell_at(data, defence="dp-sgd(epsilon=8,max_grad_norm=1)", family="evasion",
                    compressor="structured-pruning(ratio=0.5,fine_tune_rounds=2)")  # fmt: skip
    assert tuned["guarantee"]["epsilon"] > 8.5
    assert checked(tmp_path, data, name).problems == []
    for seed in tuned["seeds"].values():
        seed["scores"]["epsilon"] = tuned["guarantee"]["epsilon"] = 4.0
    problems = checked(tmp_path, data, name).problems
    assert [
        p for p in problems if "its epsilon is 4, and dp-sgd makes its noise to spend 8 by its scenario" in p
    ]


MECHANISMS = """schema: 1
name: mechanisms
dataset: digits
model: logistic
federation: {clients: 5, rounds: 3, participation: 0.6, sampling: SAMPLING, local: {batch_size: 64}}
defences:
  - dp-sgd: {epsilon: 3}
  - dp-sgd: {noise_multiplier: 1.0, delta: 1e-5}
  - dp-fedavg: {epsilon: 8, clipping: adaptive, count_noise: 1.0}
  - dp-ftrl: {epsilon: 8, delta: 1e-4}
  - local-dp: {epsilon: 60}
  - [randomized-smoothing: {sigma: 0.1}, dp-sgd: {epsilon: 2}]
threats:
  - {name: none}
  - {name: part, subset: 50, budget: {norm: linf, eps: 0.1}, attacks: [fgsm]}
metrics: [accuracy, robust-accuracy, epsilon]
"""


@pytest.mark.parametrize("sampling", ["fixed", "poisson"])
@pytest.mark.usefixtures("clean_checkout")
def test_honest_claims_of_every_mechanism_are_in_order(sampling, tmp_path):
    from harness.engine import run
    from harness.leaderboard.submit import collect
    from harness.scenario import load
    from harness.store import Store

    path = tmp_path / "mechanisms.yaml"
    path.write_text(MECHANISMS.replace("SAMPLING", sampling))
    assert run(path, device="cpu", jobs=0, store=tmp_path / "runs").scored == 12
    with Store(tmp_path / "runs") as opened:
        made = collect(opened.records("mechanisms"), load(path), name="base")
    assert made.official
    assert all(cell.guarantee.holds for cell in made.cells)
    found = checked(tmp_path, json.loads(made.model_dump_json(by_alias=True)), "mechanisms-v1--base.json")
    assert (found.problems, found.notes) == ([], [])


def test_what_the_file_cannot_prove_is_let_be(data, tmp_path):
    """Two draws from a test set need not hold each other; another package's epsilon may be that of a round."""
    for cell in data["cells"]:
        cell["tested"] = cell["attacked"] = None  # as files are that are older than these fields
    accuracy_of_another_model(data)
    assert checked(tmp_path, data).problems == []


def test_another_package_may_mean_something_else_by_epsilon(data, tmp_path, monkeypatch):
    less_than_the_target(data)
    assert checked(tmp_path, data).problems
    monkeypatch.setattr("harness.leaderboard.check_claims.BUILTIN", "another")
    assert checked(tmp_path, data).problems == []


def test_every_flag_of_the_engine_is_known():
    """Each is a constant of the module that finds it; one that `check` does not know would be refused."""
    import re

    from harness.evaluation.flags import FLAGS

    folder = Path(check_cells.__file__).parents[1]
    sources = [*(folder / "evaluation").glob("*.py"), *(folder / "contracts").glob("*.py")]
    written = {
        flag
        for source in sources
        for flag in re.findall(r'^(?:FLAG|VIOLATION) = "([^"]+)"', source.read_text(), re.MULTILINE)
    }
    assert len(written) >= 3
    assert written == FLAGS


def test_unofficial_files_may_be_of_several_engines(data, tmp_path):
    """What their records do not have in common is for whoever reviews them."""
    scores(fgsm(data))["macro_f1"] = 0.99
    data |= {"official": False, "unofficial_because": ["the records are of different states of the engine"]}
    found = checked(tmp_path, data)
    assert found.problems == []
    assert [note for note in found.notes if ", evasion fgsm, seed 0: macro_f1 is 0.99, and " in note]
    fgsm(data)["eps"] = 0.2
    assert len(checked(tmp_path, data).problems) == 1


def test_measurements_may_differ(data, tmp_path):
    scores(fgsm(data))["latency_ms_1"] *= 2
    assert checked(tmp_path, data).problems == []


def test_a_seed_that_failed_under_one_attack_is_in_order(data, tmp_path):
    fgsm(data, PRIVATE)["seeds"]["0"] |= {"scores": {}, "undefined": {}, "curve": [], "error": "OSError: no"}
    claim = fgsm(data, PRIVATE)["guarantee"]
    claim["epsilon"] = scores(fgsm(data, PRIVATE), "1")["epsilon"]  # the worst of those that are left
    assert checked(tmp_path, data).problems == []


@pytest.mark.parametrize("balanced", [0.1, 1 / 3, 0.0, None])
def test_a_model_that_predicts_one_class_is_in_order(balanced, data, tmp_path):
    for cell in data["cells"]:
        if cell["defence"] == "none" and cell["compressor"] == "none" and "0" in cell["seeds"]:
            cell["seeds"]["0"]["flags"] = ["constant-predictions"]
            if balanced is None:
                cell["seeds"]["0"]["scores"].pop("balanced_accuracy", None)
            elif cell["status"] == "scored":
                scores(cell)["balanced_accuracy"] = balanced
                if balanced == 0:  # none is right by any way of counting
                    wrong = ("accuracy", "attacked_clean_accuracy", "robust_accuracy")
                    scores(cell).update({name: 0.0 for name in wrong if name in scores(cell)})
    assert checked(tmp_path, data).problems == []


@pytest.mark.parametrize("balanced", [5e-324, 1.0, 0.7])
def test_no_number_is_taken_for_one_over_the_classes(balanced, data, tmp_path):
    for cell in (clean(data), fgsm(data)):
        cell["seeds"]["0"]["flags"] = ["constant-predictions"]
        scores(cell)["balanced_accuracy"] = balanced
    (problem,) = [p for p in checked(tmp_path, data).problems if "is flagged constant-predictions" in p]
    assert problem.endswith("(so it is in 1 more)")


def test_a_subset_that_is_attacked_may_be_easier(data, tmp_path):
    cell = fgsm(data)
    cell["attacked"] = 10
    for seed in ("0", "1"):
        scores(cell, seed).update(robust_accuracy=1.0, attacked_clean_accuracy=1.0)
    assert checked(tmp_path, data).problems == []


def test_official_files_of_a_board_share_a_data_set(tmp_path):
    paths = []
    for name, mark in (("a", "ab"), ("b", "cd"), ("c", "ab")):
        made = handmade.plain(name)
        made["scenario"]["fingerprint"] = mark * 32
        made |= {"official": name != "c", "unofficial_because": ["why"] * (name == "c")}
        paths.append(tmp_path / f"hand-v1--{name}.json")
        paths[-1].write_text(json.dumps(made))
    problem = f"{paths[1]}: its hand v1 is of another content of the data set than in {paths[0]}"
    assert check(paths).problems == [problem]
    assert check(paths[1:]).problems == []


@pytest.mark.parametrize("case", ["other data", "no data", "another package", "a plugin that raises"])
def test_applicability_that_cannot_be_worked_out_is_a_note(case, data, tmp_path, monkeypatch):
    hidden(data)
    dataset = registry().find("dataset", "digits").plugin
    if case == "other data":
        data["scenario"]["fingerprint"] = "ab" * 32
        said = "the data set has another content here"
    elif case == "no data":
        from harness.errors import HarnessError

        def gone(*_):
            raise HarnessError("it is gone\nfor good")

        monkeypatch.setattr(dataset, "fingerprint", gone)
        said = "it is gone"
    elif case == "another package":
        monkeypatch.setattr(check_cells, "BUILTIN", "another")
        said = "the data set digits is only loaded to run it"
    else:
        monkeypatch.setattr(dataset, "fingerprint", lambda *_: 1 / 0)
        said = "a plugin raised ZeroDivisionError: division by zero"
    found = checked(tmp_path, data)
    assert found.problems == []
    start = f"{tmp_path / FILE}: 10 cells say that they are not applicable, which is not worked out here: "
    assert found.notes == [start + said]


def test_what_is_not_applicable_takes_no_data_where_nothing_is(quickstart, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the data were looked at")

    monkeypatch.setattr(check_cells, "_premises", refuse)
    assert checked(tmp_path, quickstart, "quickstart-v1--baselines.json").problems == []


def test_scores_and_metrics_that_are_unknown_here_are_let_be(data, tmp_path):
    data["units"]["my_score"] = {"unit": "furlongs", "direction": "none"}
    scores(fgsm(data))["my_score"] = 12.0
    data["cells"][0]["seeds"]["0"]["intervals"] = {"my_score": [11.0, 13.0]}
    assert checked(tmp_path, data).problems == []


def test_a_file_without_a_score_anywhere_says_nothing_of_it():
    """Metrics are the scenario's choice: what it did not compute is missing nowhere."""
    from harness.leaderboard.check_scores import inconsistent
    from harness.leaderboard.known_scores import known_scores

    assert list(inconsistent(parse(handmade.plain(), "hand"), known_scores())) == []


@pytest.mark.parametrize(
    ("accuracy", "balanced", "sound"),
    [(1.0, 0.98, False), (0.0, 0.1, False), (0.5, 1.0, False), (0.5, 0.0, False), (1.0, 1.0, True), (0.0, 0.0, True),
     (0.5, 0.9, True)],
)  # fmt: skip
def test_all_are_right_or_wrong_by_every_way_of_counting(accuracy, balanced, sound):
    seed = Seed(id="a" * 12, scores={"accuracy": accuracy, "balanced_accuracy": balanced})
    assert (list(check_scores._balanced(seed)) == []) == sound


def test_a_perfect_accuracy_beside_a_lesser_balanced_one_is_refused(data, tmp_path):
    for cell in data["cells"]:
        if cell["family"] in ("clean", "evasion", "privacy") and cell["defence"] == "none":
            scores(cell)["accuracy"] = 1.0
    problems = checked(tmp_path, data).problems
    assert any(f"{CLEAN}, seed 0: accuracy is 1 and balanced_accuracy 0." in problem for problem in problems)


def test_one_fault_of_many_cells_is_said_once(data, tmp_path):
    edited = [
        seed for cell in data["cells"] for seed in cell["seeds"].values() if "accuracy" in seed["scores"]
    ]
    for seed in edited:
        seed["scores"]["accuracy"] = 1.5
    (problem,) = [p for p in checked(tmp_path, data).problems if "which is not from" in p]
    assert problem.endswith(
        f": accuracy is 1.5, which is not from 0 to 1 (so it is in {len(edited) - 1} more)"
    )


@pytest.mark.parametrize(
    ("whole", "packed", "sound"), [(51_057, 51_057, True), (0, 20, True), (10, 51_057, False)]
)
def test_gzip_stores_what_it_cannot_compress(whole, packed, sound):
    seed = Seed(id="a" * 12, scores={"serialized_bytes": whole, "gzip_bytes": packed})
    assert (list(check_scores._sizes(seed)) == []) == sound
