"""A scenario that cannot work with its data is refused before it runs, at the place in its file."""

from __future__ import annotations

import json
import os
import re
import sys

import numpy as np
import pytest
from PIL import Image

import harness
from harness.cli import main
from harness.contracts.data import Split, Splits, find_file, hash_file
from harness.engine import plan, run
from harness.errors import HarnessError, PluginError, ScenarioError
from harness.scenario import check_data, load_text
from harness.scenario_data import check_fit
from harness.scenario_plan import data_facts
from harness.starter import Answers, write_scenario
from harness.store import Store

BASE = "schema: 1\nname: x\ndataset: digits\nmodel: mlp\n"


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("federation: {clients: 5000}\n", ["5:23: 5000 clients cannot share the"]),
        ("holdout: 0.9\nfederation: {clients: 900}\n", ["6:23: 900 clients cannot share the"]),
        ("normalization: {mean: [0.1, 0.2, 0.3], std: 0.5}\n", ["5:23: normalization.mean has 3 values"]),
        (
            "normalization: {mean: 127.5, std: [0.5, 64]}\n",
            ["5:23: mean must be at most 1", "5:41: each of std must be at most 1, not 64"],
        ),
        (
            "normalization: {mean: [0.1, 0.2], std: [0.5, 1]}\n",
            ["5:23: normalization.mean has 2", "5:40: normalization.std has 2"],
        ),
        (
            "federation: {clients: 500, partition: {dirichlet: {alpha: 0.5}}}\n",
            ["5:28: no partition can be drawn with seed 0: dirichlet: in 1000 draws some client of 500"],
        ),
        (
            "federation:\n  clients: 5\n  partition: by-group\n",
            ["7:14: no partition can be drawn with seed 0: by-group needs a dataset with groups"],
        ),
        (
            "holdout: 0.1\nfederation: {clients: 800}\nthreats: [{name: m, attacks: [loss-threshold, lira]}]\n",
            ["7:47: no partition can be drawn with seed 0 for shadow-0, which lira trains on 50% of"],
        ),
        (
            "defences: [none, dp-sgd: {epsilon: 8, delta: 0.01}]\n",
            ["5:46: dp-sgd: delta 0.01 must be below 1 / "],
        ),
        (
            "defences:\n  - none\n  - dp-sgd:\n      epsilon: {sweep: [4, 8]}\n      delta: 0.5\n",
            ["9:14: dp-sgd: delta 0.5 must be below 1 / "],
        ),
        (
            "defences:\n  - none\n  - [label-smoothing, dp-sgd: {epsilon: 8, delta: {sweep: [1e-5, 0.5, 0.1]}}]\n",
            ["7:66: dp-sgd: delta 0.5 must be below 1 / ", "7:71: dp-sgd: delta 0.1 must be below 1 / "],
        ),
        (
            "federation: {clients: 4}\ndefences: [dp-fedavg: {epsilon: 8, delta: 0.25}, dp-ftrl: {epsilon: 8}]\n",
            ["6:43: dp-fedavg: delta 0.25 must be below 1 / 4 = 0.25, one over the number of clients"],
        ),
        (
            "defences: [none, dp-sgd: {epsilon: {sweep: [8, 1e-9, 1e-3]}}]\n",
            [
                "5:48: dp-sgd: no noise reaches epsilon 1e-09: at delta 7.95e-05 the accountant rdp gives at least",
                "5:54: dp-sgd: no noise reaches epsilon 0.001: at delta 7.95e-05 the accountant rdp gives at least",
            ],
        ),
        (
            "defences: [dp-fedavg: {epsilon: 1e-3, accountant: prv}, dp-ftrl: {epsilon: 1e-3, accountant: gdp}]\n",
            ["5:33: dp-fedavg: no noise reaches epsilon 0.001: "],
        ),
        (
            "compressors: [none, distillation: {student: {mlp: {hidden: [1000000000000]}}}]\n",
            ["5:36: the weights of mlp(hidden=[1000000000000]) take 273 TiB, more than can be trained"],
        ),
        (
            "compressors: [none, distillation, [top-k: {ratio: 0.1}, distillation: {rounds: 2, student: lenet5}]]\n",
            [
                "5:21: lenet5 needs images of at least 12x12 pixels, not 8x8",
                "5:92: lenet5 needs images of at least 12x12 pixels, not 8x8",
            ],
        ),
        (
            "threats:\n"
            "  - {name: eps, budget: {norm: linf, eps: {sweep: [0.1, 0.2]}}, attacks: [fgsm]}\n"
            "  - {name: edge, malicious: 0.2, attacks: [badnets, edge-case: {source: {sweep: [3, 99]}}]}\n"
            "  - {name: right, malicious: 0.2, attacks: [edge-case: {target: 7}, edge-case: {target: 2}]}\n"
            "  - {name: server, attacks: [dlg, property-inference: {threshold: 1.0}]}\n",
            [
                "7:53: edge-case: digits has no images of class 99",
                "8:45: edge-case(target=7): every image that it wants answered with the class 7 is a test image of",
                "9:35: property-inference(threshold=1): no training image has the attribute",
            ],
        ),
    ],
)
@pytest.mark.parametrize("command", ["validate", "plan", "run"])
def test_the_place_is_named_before_anything_runs(command, text, places, tmp_path, capsys):
    file = tmp_path / "x.yaml"
    file.write_text(BASE + text)
    store = [] if command == "validate" else ["--store", str(tmp_path / "runs"), "--device", "cpu"]
    assert main([command, str(file), *store]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(str(file))]
    assert len(lines) == len(places)
    for line, place in zip(lines, places, strict=True):
        assert line.startswith(f"{file}:{place}")
    assert not (tmp_path / "runs").exists()


def test_data_that_nothing_can_be_planned_with_take_no_folder_away_that_was_there(tmp_path):
    scenario = load_text(BASE + "federation: {clients: 5000}\n")
    (tmp_path / "own").mkdir()
    with Store(tmp_path / "runs") as store:
        store.put_fact("kept", {"n": 1})
    for folder in ("own", "runs", "new/runs"):
        with pytest.raises(ScenarioError, match="5000 clients cannot share"):
            run(scenario, device="cpu", jobs=0, store=tmp_path / folder)
    assert (tmp_path / "own").is_dir()
    assert not (tmp_path / "new" / "runs").exists()
    with Store(tmp_path / "runs") as store:
        assert store.fact("kept") == {"n": 1}


def test_a_model_that_cannot_take_the_images_is_named_at_its_place():
    text = BASE.replace("mlp", "lenet5")
    scenario = load_text(text)
    with pytest.raises(ScenarioError, match="4:8: lenet5 needs images of at least 12x12 pixels, not 8x8"):
        check_fit(scenario, check_data(scenario), text)


def test_a_model_with_nothing_to_train_is_named_at_its_place(monkeypatch):
    from harness_plugins.models.linear import Mlp

    real = Mlp.build
    monkeypatch.setattr(Mlp, "build", lambda self, *given: real(self, *given).requires_grad_(False))
    text = BASE
    scenario = load_text(text)
    with pytest.raises(
        ScenarioError, match=r"4:8: mlp has nothing to train: it has no parameter, or all are frozen"
    ):
        check_fit(scenario, check_data(scenario), text)


def test_every_seed_is_drawn_for_and_a_crash_is_left_to_the_run(monkeypatch):
    from harness_plugins.partitioners.iid import Iid

    scenario = load_text(BASE + "seeds: [3, 1, 2]\n")
    splits, drawn, real = check_data(scenario), [], Iid.partition

    def partition(self, labels, groups, clients, rng):
        drawn.append(rng)
        if len(drawn) == 2:
            raise error
        return real(self, labels, groups, clients, rng)

    monkeypatch.setattr(Iid, "partition", partition)
    error: Exception = PluginError("not today")
    with pytest.raises(ScenarioError, match=r"^no partition can be drawn with seed 1: not today$"):
        check_fit(scenario, splits)
    drawn.clear()
    error = ZeroDivisionError()
    check_fit(scenario, splits)
    drawn[:] = [None, None]
    monkeypatch.setattr("harness.scenario_data.DRAWING", -1.0)  # too slow for a second seed
    check_fit(scenario, splits)
    assert len(drawn) == 3


def test_a_partition_that_breaks_the_contract_is_refused_before_a_run(monkeypatch):
    from harness_plugins.partitioners.iid import Iid

    scenario = load_text(BASE + "federation: {clients: 3}\n")
    splits, real = check_data(scenario), Iid.partition

    def twice(*given):
        first, *others = real(*given)
        return [np.concatenate([first, others[0][:1]]), *others]

    monkeypatch.setattr(Iid, "partition", twice)
    with pytest.raises(ScenarioError, match="partitioner iid must give every record to exactly one client"):
        check_fit(scenario, splits)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda parts: None, "returned NoneType, not a list of positions"),
        (
            lambda parts: [part.astype(float) for part in parts],
            r"returned a part \(\d+,\) of float64, not positions",
        ),
        (
            lambda parts: [part[:, None] for part in parts],
            r"returned a part \(\d+, 1\) of int64, not positions",
        ),
        (lambda parts: parts[0], r"returned a part \(\) of int64, not positions"),
        (lambda parts: [np.concatenate(parts), [], []], "left a client without records"),
    ],
)
def test_what_is_no_partition_is_refused_before_a_run(returned, words, monkeypatch):
    from harness_plugins.partitioners.iid import Iid

    scenario = load_text(BASE + "federation: {clients: 3}\n")
    splits, real = check_data(scenario), Iid.partition
    monkeypatch.setattr(Iid, "partition", lambda *given: returned(real(*given)))
    with pytest.raises(ScenarioError, match=f"partitioner iid {words}"):
        check_fit(scenario, splits)


def test_lists_of_positions_are_a_partition(monkeypatch):
    from harness_plugins.partitioners.iid import Iid

    scenario = load_text(BASE + "federation: {clients: 3}\n")
    splits, real = check_data(scenario), Iid.partition
    monkeypatch.setattr(Iid, "partition", lambda *given: (part.tolist() for part in real(*given)))
    check_fit(scenario, splits)


def test_groups_that_the_holdout_took_are_not_a_riddle(tmp_path):
    arrays = {}
    for i, part in enumerate(("train", "val", "test")):
        arrays[f"{part}_images"] = np.zeros((20, 8, 8), np.uint8)
        arrays[f"{part}_labels"] = np.arange(20) % 2
        arrays[f"{part}_groups"] = 10 * i + np.arange(20) // 4
    np.savez(tmp_path / "sites.npz", **arrays)
    text = (
        BASE.replace("digits", "{npz: {path: sites.npz}}") + "federation: {clients: 5, partition: by-group}\n"
    )
    scenario = load_text(text + "threats: [{name: m, attacks: [loss-threshold]}]\n", tmp_path / "x.yaml")
    words = r"4 groups cannot be dealt to 5 clients; holdout: 0\.2 removed that share before"
    with pytest.raises(ScenarioError, match=words):
        check_fit(scenario, check_data(scenario))
    check_fit(load_text(text, tmp_path / "x.yaml"), check_data(scenario))


def test_a_plan_draws_once_for_what_fits(tmp_path, monkeypatch):
    from harness_plugins.partitioners.iid import Iid

    drawn, real = [], Iid.partition
    monkeypatch.setattr(Iid, "partition", lambda *given: drawn.append(1) or real(*given))
    (tmp_path / "x.yaml").write_text(BASE)
    Store(tmp_path / "runs").close()  # a plan keeps what it learns where there is a store
    for _ in range(2):
        plan(tmp_path / "x.yaml", device="cpu", store=tmp_path / "runs")
    assert len(drawn) == 1
    (tmp_path / "x.yaml").write_text(BASE + "federation: {clients: 7}\n")
    plan(tmp_path / "x.yaml", device="cpu", store=tmp_path / "runs")
    assert len(drawn) == 2
    assert main(["validate", str(tmp_path / "x.yaml")]) == 0
    assert len(drawn) == 3


def test_what_fits_is_fine(tmp_path):
    text = (
        "normalization: {mean: [0.1], std: 0.5}\nfederation: {clients: 100}\nholdout: 0.5\n"
        "defences: [none, dp-sgd: {epsilon: 8, delta: 1e-5}, dp-sgd: {epsilon: 8}]\n"
    )
    scenario = load_text(BASE + text)
    check_fit(scenario, check_data(scenario))


def test_a_scenario_without_a_file_is_refused_too():
    scenario = load_text(BASE + "federation: {clients: 5000}\n")
    with pytest.raises(ScenarioError, match=r"^5000 clients cannot share the"):
        check_fit(scenario, check_data(scenario))


def test_init_writes_no_scenario_that_cannot_work(tmp_path):
    with pytest.raises(HarnessError, match=r"^5000 clients cannot share"):
        write_scenario(Answers(clients=5000), tmp_path / "x.yaml")
    assert not (tmp_path / "x.yaml").exists()


# paths of data ------------------------------------------------------------------------------------

HEAD = "schema: 1\nname: x\nmodel: mlp\n"
WRONG = [
    ("dataset: {imagefolder: {path: shpaes}}", 31, "shpaes", "'shapes'"),
    ("dataset: {npz: {path: pneumonia28.npz}}", 23, "pneumonia28.npz", "'pneumonia-28.npz'"),
    ("dataset: {npz: {path: sub/bloood.npz}}", 23, "sub/bloood.npz", "'blood.npz'"),
    (
        'dataset: {npz: {path: "${HARNES_DATA}/pneumonia-28.npz"}}',
        23,
        '"${HARNES_DATA}/pneumonia-28.npz"',
        "'HARNESS_DATA'",
    ),
]


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A scenario's folder, with $HARNESS_DATA beside it."""
    for folder in ("here/shapes", "data/sub"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("data/pneumonia-28.npz", "data/sub/blood.npz"):
        (tmp_path / file).touch()
    for name in [
        name for name in os.environ if name.startswith("HARNESS")
    ]:  # names like it are suggested too
        monkeypatch.delenv(name)
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "here"


@pytest.mark.parametrize(("line", "column", "shown", "near"), WRONG)
@pytest.mark.parametrize("command", ["validate", "plan", "run"])
def test_a_wrong_path_is_shown_at_its_place(command, line, column, shown, near, places, capsys):
    file = places / "x.yaml"
    file.write_text(f"{HEAD}{line}\n")
    store = [] if command == "validate" else ["--store", str(places / "runs"), "--device", "cpu"]
    assert main([command, str(file), *store]) == 2
    first, source, carets = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{file}:4:{column}: the dataset ")
    assert first.endswith(f"; did you mean {near}?")
    assert source == f"    {line}"
    assert carets == "    " + " " * (column - 1) + "^" * len(shown)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (".", "is a folder, and a file is needed|is not a readable .npz file: Is a directory"),
        ("x" * 300, "File name too long"),
        ("$", r"a \$ must be followed by the name of an environment variable"),
    ],
)
@pytest.mark.parametrize("command", ["validate", "plan"])
def test_a_path_that_no_file_can_have_is_shown_at_its_place(command, path, message, places, capsys):
    file = places / "x.yaml"
    file.write_text(f"{HEAD}dataset: {{npz: {{path: {path}}}}}\n")
    store = [] if command == "validate" else ["--store", str(places / "runs"), "--device", "cpu"]
    assert main([command, str(file), *store]) == 2
    first, *_ = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{file}:4:")
    assert re.search(f"(?:{message})$", first)


@pytest.mark.parametrize(("line", "column", "shown", "near"), WRONG)
def test_a_wrong_path_in_a_text_is_said_without_a_place(line, column, shown, near, places):
    scenario = load_text(f"{HEAD}{line}\n").model_copy(update={"root": places})
    with pytest.raises(ScenarioError, match=rf"^the dataset \w+ cannot be used: .*did you mean {near}\?$"):
        check_data(scenario)
    for command in (plan, run):
        with pytest.raises(ScenarioError, match=rf"^x: the dataset \w+ cannot be used: .* {near}\?$"):
            command(scenario, device="cpu", jobs=0, store=places / "runs")
    with pytest.raises(ScenarioError, match=f"^<scenario>:4:{column}: "):
        check_data(scenario, f"{HEAD}{line}\n")


def test_numbers_beyond_pytorchs_are_one_line(tmp_path, capsys):
    file = tmp_path / "x.yaml"
    file.write_text(BASE.replace("mlp", f"{{mlp: {{hidden: [1{'0' * 18}]}}}}"))
    assert main(["validate", str(file)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"{file}: model mlp raised ")
    assert err.count("\n") == 1


def test_nothing_is_proposed_where_nothing_is_near(places):
    with pytest.raises(PluginError, match=r"zzz is not there \(tried [^;]*\)$"):
        find_file("zzz", places)
    (places / "gone").symlink_to(places / "nowhere")
    with pytest.raises(PluginError, match=r"qqq is not there \(tried [^;]*\)$"):
        find_file(f"{places}/gone/qqq")


def test_devices_and_pipes_are_no_data(tmp_path):
    """Reading one may never end."""
    pipe = tmp_path / "data.npz"
    os.mkfifo(pipe)
    for read in (lambda: find_file("data.npz", tmp_path), lambda: hash_file(pipe)):
        with pytest.raises(
            PluginError, match=r"data\.npz is a device or a pipe, and a file (or folder )?is needed"
        ):
            read()
    with pytest.raises(PluginError, match=r"^/dev/zero is a device or a pipe"):
        find_file("/dev/zero")
    os.mkfifo(tmp_path / "train.csv")
    with pytest.raises(HarnessError, match=r"no train\.csv in"):
        harness.create("dataset", "imagecsv", path=str(tmp_path)).fingerprint()


def test_one_scenario_with_a_wrong_path_is_skipped_by_its_place(places, capsys):
    (places / "a.yaml").write_text(BASE.replace("name: x", "name: a"))
    (places / "b.yaml").write_text(f"{HEAD}{WRONG[0][0]}\n")
    files = [str(places / "a.yaml"), str(places / "b.yaml")]
    assert main(["plan", *files, "--device", "cpu", "--store", str(places / "runs")]) == 1
    assert f"skipped {places}/b.yaml:4:31: the dataset imagefolder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "column"),
    [
        (HarnessError("a shard is torn"), 11),
        (PluginError("a shard is torn"), 11),
        (PluginError("a shard is torn", [(("val_fraction",), "", 0.2)]), 34),
    ],
)
def test_what_a_dataset_raises_is_shown_at_its_name_or_parameter(error, column, tmp_path, monkeypatch):
    def load(self, root=None):
        raise error

    text = HEAD + "dataset: {digits: {val_fraction: 0.2}}\n"
    scenario = load_text(text, tmp_path / "x.yaml")
    monkeypatch.setattr(type(scenario.dataset), "load", load)
    for given in (None, "name: [", "[]"):  # the file is not there, or was broken since
        with pytest.raises(ScenarioError, match=r"^the dataset digits cannot be used: a shard is torn$"):
            check_data(scenario, given)
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(
        ScenarioError, match=rf"x\.yaml:4:{column}: the dataset digits cannot be used: a shard"
    ):
        check_data(scenario)


def test_a_dataset_by_its_name_alone_is_shown_there(tmp_path, monkeypatch):
    def load(self, root=None):
        raise HarnessError("no")

    (tmp_path / "x.yaml").write_text(BASE)
    scenario = load_text(BASE, tmp_path / "x.yaml")
    monkeypatch.setattr(type(scenario.dataset), "load", load)
    with pytest.raises(ScenarioError, match=r"x\.yaml:3:10: the dataset digits cannot be used: no"):
        check_data(scenario)


@pytest.mark.parametrize(("same", "share"), [(0, 0.0), (1, 0.05), (20, 1.0)])
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 40, 40)])
def test_the_share_of_test_images_that_are_trained_on(same, share, shape):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, *shape), dtype=np.uint8)
    near = images[:20].copy()
    near[:, 0, 0, 1] ^= 1  # another pixel than those that are looked at first, in the larger images
    near[:same] = images[:same]
    labels = np.zeros(60, dtype=np.int64)
    train, test = Split(images, labels), Split(near, labels[:20])
    assert Splits(train, train, test, ("a",)).repeated() == share


def test_a_dataset_that_tests_on_what_it_trains_on_is_noted(tmp_path, capsys, caplog):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    parts = {
        f"{part}_{what}": value
        for part in ("train", "val", "test")
        for what, value in (("images", images), ("labels", np.arange(40) % 2))
    }
    np.savez(tmp_path / "same.npz", **parts)
    file = tmp_path / "x.yaml"
    file.write_text(BASE.replace("digits", "{npz: {path: same.npz}}") + "federation: {clients: 2}\n")
    assert main(["validate", str(file)]) == 0
    out = capsys.readouterr().out
    assert "note: 100.0% of the test images of npz(path=same.npz) are training images too" in out
    assert main(["validate", str(file), "--json"]) == 0
    assert "100.0% of the test images" in json.loads(capsys.readouterr().out)[0]["notes"][0]
    assert caplog.text == ""
    for _ in range(2):
        data_facts(load_text(file.read_text(), file), Store(tmp_path / "runs"))
    assert caplog.text.count("100.0% of the test images") == 1  # where a run is planned: once a content


def test_a_subset_larger_than_the_test_images_is_told(tmp_path, capsys):
    threats = (
        "threats:\n  - {name: near, subset: 359, budget: {norm: linf, eps: 0.1}, attacks: [fgsm]}\n"
        "  - {name: far, subset: 1000, budget: {norm: linf, eps: 0.2}, attacks: [fgsm]}\n"
        "  - {name: members, subset: 1000, attacks: [loss-threshold]}\n"
    )
    file = tmp_path / "x.yaml"
    file.write_text(BASE + "evaluation: {subset: 400}\n" + threats)
    assert main(["validate", str(file)]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  note: ")]
    assert notes == [
        "  note: threat far: subset is 1000, but there are 359 test images: all of them are used",
        "  note: evaluation: subset is 400, but there are 359 test images: all of them are used",
    ]


def test_one_class_is_refused_and_a_class_without_training_images_is_told(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name, count in (("sick", 20), ("unseen", 0)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(
                tmp_path / "images" / name / f"{i}.png"
            )
    file = tmp_path / "x.yaml"
    text = BASE.replace("digits", "{imagefolder: {path: images, channels: 1}}")
    file.write_text(text)
    assert main(["validate", str(file)]) == 0
    assert "  note: no training image of imagefolder(" in (out := capsys.readouterr().out)
    assert "is of the class unseen: no model can learn it" in out
    assert out.count("note:") == 1
    (tmp_path / "images" / "unseen").rmdir()
    for command in ("validate", "plan"):
        assert main([command, str(file)]) == 2
        assert f"{file}:3:1: all images of imagefolder are of one class (sick)" in capsys.readouterr().err


def test_a_class_without_test_images_is_told(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for place, count in (("train/sick", 6), ("train/well", 6), ("test/sick", 3)):
        (tmp_path / "images" / place).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / place / f"{i}.png")
    file = tmp_path / "x.yaml"
    file.write_text(BASE.replace("digits", "{imagefolder: {path: images, channels: 1}}"))
    assert main(["validate", str(file)]) == 0
    (note,) = (line for line in capsys.readouterr().out.splitlines() if "note:" in line)
    assert note.startswith("  note: no test image of imagefolder(")
    assert note.endswith("is of the class well: no score says anything about it")


@pytest.mark.parametrize(
    ("module", "text", "place"),
    [
        ("mlflow", "trackers: [jsonl, mlflow]\n", "5:19: mlflow needs what is not installed: {}"),
        (
            "tensorboard",
            "trackers:\n  - tensorboard: {folder: x}\n",
            "6:5: tensorboard needs what is not installed: {}",
        ),
        (
            "dp_accounting",
            "defences:\n  - none\n  - [label-smoothing, dp-sgd: {epsilon: {sweep: [4, 8]}, accountant: pld}]\n",
            "7:70: the accountant pld needs what is not installed: {}",
        ),
    ],
)
def test_what_is_not_installed_is_named_with_what_installs_it(
    module, text, place, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, module, None)
    extra = {"dp_accounting": "pld"}.get(module, module)
    (tmp_path / "x.yaml").write_text(BASE + text)
    for command in (["validate"], ["validate", "--no-data"], ["plan"], ["run"]):
        assert main([*command, str(tmp_path / "x.yaml")]) == 2
        assert place.format(f"pip install 'psr-harness[{extra}]'") in capsys.readouterr().err


def test_an_engine_that_is_not_installed_is_named_at_its_place(tmp_path, monkeypatch, capsys):
    def absent(engine):
        raise HarnessError(f"{engine} is not there")

    monkeypatch.setattr("harness.scenario_data.engine_version", absent)
    (tmp_path / "x.yaml").write_text(BASE + "engine: flower\n")
    assert main(["validate", str(tmp_path / "x.yaml")]) == 2
    assert "x.yaml:5:9: flower is not there" in capsys.readouterr().err
