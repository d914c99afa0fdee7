"""`harness init`: every answer ends in a scenario that validates; nothing is overwritten or half written."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.cli import main
from harness.console.starter_commands import QUESTIONS
from harness.errors import HarnessError
from harness.federation.counts import malicious_count
from harness.grid import cells
from harness.scenario import load, load_text
from harness.starter import THREATS, Answers, compose, write_scenario


@pytest.mark.parametrize("threats", [t for n in range(5) for t in itertools.combinations(THREATS, n)])
@pytest.mark.parametrize(("epsilon", "device"), [(0, 0), (4, 100_000)])
def test_every_combination_of_answers_validates(threats, epsilon, device, tmp_path):
    answers = Answers(threats=threats, epsilon=epsilon, device_bytes=device, seeds=2)
    scenario = load_text(compose(answers, tmp_path / "x.yaml"))
    families = {t.name for t in scenario.threats}
    assert families == {"none", *threats} - {"privacy"} | ({"membership"} if "privacy" in threats else set())
    private = [d for stack in scenario.defences for d in stack if d.name == "dp-sgd"]
    alone_and_stacked = 2 if "evasion" in threats else 1
    assert [d.epsilon for d in private] == [4.0] * (alone_and_stacked if epsilon else 0)
    assert (len(scenario.compressors) > 1) is bool(device)
    assert scenario.seeds == (0, 1)
    assert list(cells(scenario))


def test_the_data_is_found_by_what_it_is(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 60), ("val", 20), ("test", 20)):
        arrays[f"{split}_images"] = rng.integers(0, 255, (n, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(n) % 2
    np.savez(tmp_path / "x rays.npz", **arrays)
    folder = tmp_path / "images"
    for label, number in itertools.product("ab", range(20)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(arrays["train_images"][number]).save(folder / label / f"{number}.png")
    file = tmp_path / "scenario.yaml"
    write_scenario(Answers(data=str(tmp_path / "x rays.npz")), file)
    assert load(file).dataset.path == "x rays.npz"
    write_scenario(Answers(data=str(folder)), file, force=True)
    assert load(file).dataset.spec()["imagefolder"]["path"] == "images"
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere" / "deep" / "scenario.yaml"
    write_scenario(Answers(data=str(tmp_path / "x rays.npz"), model="mlp"), elsewhere)
    assert load(elsewhere).dataset.path == "${HARNESS_DATA}/x rays.npz"
    assert load(elsewhere).model.name == "mlp"


def listed(folder, header, place="", suffix=".png", delimiter=","):
    """table.csv with two images of every patient, of two classes; the images are in `place`."""
    rng = np.random.default_rng(0)
    (folder / place).mkdir(exist_ok=True)
    rows = [header]
    for number in range(40):
        Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(
            folder / place / f"{number}.png"
        )
        split = "test" if number >= 30 else "train"
        rows.append((f"{number}{suffix}", "ab"[number % 2], f"p{number // 2}", split)[: len(header)])
    (folder / "table.csv").write_text("\n".join(delimiter.join(row) for row in rows))
    return folder / "table.csv"


@pytest.mark.parametrize(
    ("header", "how", "found"),
    [
        (("file_name", "label"), {}, {"label_column": "label"}),
        (
            ("Image Index", "Finding Labels", "Patient ID", "Split"),
            {"place": "xrays", "suffix": "", "delimiter": ";"},
            {
                "image_column": "Image Index",
                "label_column": "Finding Labels",
                "group_column": "Patient ID",
                "split_column": "Split",
                "suffix": ".png",
                "folder": "xrays",
            },
        ),
        (
            ("label", "dx", "subject"),
            {},
            {"image_column": "label", "label_column": "dx", "group_column": "subject"},
        ),
    ],
)
def test_the_columns_of_a_table_are_found(header, how, found, tmp_path):
    file = tmp_path / "mine.yaml"
    write_scenario(Answers(data=str(listed(tmp_path, header, **how))), file)
    spec = load(file).dataset.spec()["imagecsv"]
    assert spec == spec | {"path": "table.csv", "size": 28} | found
    assert ("folder:" in file.read_text()) == ("folder" in found)
    assert ("Several images per patient?" in file.read_text()) == ("group_column" not in found)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (("file_name", "kind"), "which column is the class.*it has file_name, kind"),
        (("file_name", "class", "target"), "which column is the class"),
    ],
)
def test_a_table_that_is_unclear_is_not_guessed_at(header, words, tmp_path):
    with pytest.raises(HarnessError, match=words):
        write_scenario(Answers(data=str(listed(tmp_path, header))), tmp_path / "x.yaml")
    (tmp_path / "table.csv").write_text(f"file_name,label\n{'far' * 200},a\n")
    with pytest.raises(HarnessError, match=r"no column names an image .* it has file_name, label"):
        write_scenario(Answers(data=str(tmp_path / "table.csv")), tmp_path / "x.yaml")
    (tmp_path / "table.csv").write_text("")
    with pytest.raises(HarnessError, match="needs a row of names"):
        write_scenario(Answers(data=str(tmp_path / "table.csv")), tmp_path / "x.yaml")
    assert not (tmp_path / "x.yaml").exists()


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (Answers(data="digist"), "did you mean 'digits'"),
        (Answers(data="nowhere.npz"), "no file or folder"),
        (Answers(model="small-cn"), "did you mean 'small-cnn'"),
        (Answers(threats=("evason",)), "did you mean 'evasion'"),
    ],
)
def test_a_bad_answer_is_said_and_nothing_is_written(answers, words, tmp_path):
    with pytest.raises(HarnessError, match=words):
        write_scenario(answers, tmp_path / "x.yaml")
    assert not list(tmp_path.iterdir())


def test_data_that_cannot_be_read_writes_nothing(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"not an archive")
    with pytest.raises(HarnessError, match="not a readable") as caught:
        write_scenario(Answers(data=str(tmp_path / "bad.npz")), tmp_path / "x.yaml")
    assert "x.yaml" not in str(caught.value)  # places in a file that is not there help nobody
    assert [p.name for p in tmp_path.iterdir()] == ["bad.npz"]


@pytest.mark.parametrize("stem", ["2024", "1e5", "null", "true", "0x1f", "on", "plain"])
def test_a_file_may_be_called_what_yaml_takes_for_something_else(stem, tmp_path):
    file = tmp_path / f"{stem}.yaml"
    write_scenario(Answers(threats=()), file)
    assert load(file).name == stem


def test_the_commands_that_a_scenario_names_work_as_they_stand(tmp_path):
    text = compose(Answers(threats=()), tmp_path / "Röntgen bilder.yaml")
    (command,) = re.findall("harness plan (.*?)  ", text)
    assert shlex.split(command) == ["Röntgen bilder.yaml"]
    assert "name: rontgen-bilder\n" in text


@pytest.mark.parametrize("name", ["x # y", "'q'", "a: b", "{a}"])
def test_a_name_is_refused_as_it_was_given(name, tmp_path):
    with pytest.raises(HarnessError, match=f"{re.escape(repr(name))} cannot be a name"):
        write_scenario(Answers(threats=(), name=name), tmp_path / "a.yaml")


def test_a_home_that_nobody_has_is_a_name_like_any_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HarnessError, match="there is no file or folder ~nobody-here/data"):
        write_scenario(Answers(data="~nobody-here/data"), tmp_path / "a.yaml")


def test_a_model_that_cannot_take_the_data_writes_nothing(tmp_path):
    images = _folder(tmp_path / "images", [f"{i}.png" for i in range(10)])
    (images / "b").rename(tmp_path / "elsewhere")
    file = tmp_path / "scenario.yaml"
    with pytest.raises(HarnessError, match="lenet5 needs images of at least 12x12 pixels"):
        write_scenario(Answers(model="lenet5"), file)
    with pytest.raises(HarnessError, match="of one class"):
        write_scenario(Answers(data=str(images)), file)
    assert not file.exists()


def test_the_command_is_scripted_and_never_overwrites(tmp_path, capsys):
    (tmp_path / "my scenarios").mkdir()
    file = str(tmp_path / "my scenarios" / "mine.yaml")
    arguments = ["init", file, "--data", "digits", "--epsilon", "2", "--threats", "evasion,privacy", "--yes"]
    assert main(arguments) == 0
    assert f"wrote {file}; next: harness plan '{file}', then harness run '{file}'" in capsys.readouterr().out
    first = Path(file).read_text()
    assert load(file).name == "mine"
    assert main(arguments) == 2
    assert "is there already; give --force" in capsys.readouterr().err
    assert main([*arguments, "--force", "--seeds", "1"]) == 0
    assert Path(file).read_text() != first
    assert load(file).seeds == (0,)
    assert main(["validate", file]) == 0


# images -------------------------------------------------------------------------------------------


def _folder(base, names, pixels=None):
    """Two classes of images by name; pixels: (h, w) or (h, w, 3), by default grey ones."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(names):
        (base / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        shade = rng.integers(0, 255, (28, 28), dtype=np.uint8) if pixels is None else pixels
        Image.fromarray(shade).save(base / "ab"[i % 2] / name)
    return base


@pytest.mark.parametrize(
    ("names", "pattern", "numbers"),
    [
        ([f"person{i // 3}_bacteria_{i}.png" for i in range(30)], r"person(\d+)_", 10),
        ([f"IM-{i // 2:04}-{i % 2:04}.png" for i in range(30)], "IM-(\\d+)-", 15),
        ([f"{i // 2}_{i % 2}.jpg" for i in range(30)], r"/(\d+)_", 15),
        ([f"chest.{i}.v{i // 2} a.png" for i in range(30)], r"v(\d+) ", 15),
    ],
)
def test_numbers_that_images_share_may_be_patients(names, pattern, numbers, tmp_path, capsys):
    _folder(tmp_path / "images", names)
    file = tmp_path / "x.yaml"
    assert main(["init", str(file), "--data", str(tmp_path / "images"), "--clients", "2"]) == 0
    said = f"the file names hold {numbers} numbers in 30 images"
    assert f"{said}: if these are patients, add groups: '{pattern}'" in capsys.readouterr().out
    text = file.read_text()
    assert f"# `groups: '{pattern}'`" in text
    grouped = load_text(text.replace("size: 28", f"size: 28, groups: '{pattern}'"), file).dataset.load(
        tmp_path
    )
    assert sum(len(set(split.groups)) for split in (grouped.train, grouped.val, grouped.test)) == numbers


@pytest.mark.parametrize("split", ["", "train", "Training"])
def test_folders_below_those_of_the_classes_may_be_patients(split, tmp_path, capsys):
    base = tmp_path / "images" / split
    for patient in range(12):
        for image in range(3):
            path = base / "ab"[patient % 2] / f"patient {patient // 2}" / f"view{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((28, 28), 20 * patient + image, dtype=np.uint8)).save(path)
    file = tmp_path / "x.yaml"
    assert main(["init", str(file), "--data", str(tmp_path / "images"), "--clients", "2"]) == 0
    said = "the class folders hold 6 folders of 36 images: if these are patients, add groups: '/([^/]+)/'"
    assert said in capsys.readouterr().out
    text = file.read_text().replace("size: 28", "size: 28, groups: '/([^/]+)/'")
    splits = load_text(text, file).dataset.load(tmp_path)
    sides = [set(part.groups.tolist()) for part in (splits.train, splits.val, splits.test)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 6  # in both classes, and in one split


def test_one_folder_below_each_class_names_nobody(tmp_path, capsys):
    for i in range(12):
        path = tmp_path / "images" / "ab"[i % 2] / "png" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((28, 28), 20 * i, dtype=np.uint8)).save(path)
    arguments = ["init", str(tmp_path / "x.yaml"), "--data", str(tmp_path / "images"), "--clients", "2"]
    assert main(arguments) == 0
    assert "patients" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "names",
    [
        [f"{i}.png" for i in range(30)],  # a number each
        [f"image_{i}_small.png" for i in range(30)],
        [f"visit1_{i}.png" for i in range(30)],  # the same in all
        [f"class{i % 2}_{i}.png" for i in range(30)],  # of the folder
        [f"person{i // 3}_{i}.png" if i else "other.png" for i in range(30)],
        ["one.png", *(f"person{i // 3}_{i}.png" for i in range(30))],
    ],
)
def test_other_numbers_are_not(names, tmp_path, capsys):
    _folder(tmp_path / "images", names)
    write_scenario(Answers(data=str(tmp_path / "images"), clients=2), tmp_path / "x.yaml")
    assert "Add e.g. `groups: 'person(\\d+)_'`, in single quotes" in (tmp_path / "x.yaml").read_text()


def test_grey_images_have_one_channel(tmp_path):
    coloured = np.random.default_rng(0).integers(0, 255, (28, 28, 3), dtype=np.uint8)
    names = [f"{i}.png" for i in range(30)]
    for kind, pixels, channels in (
        ("grey", None, 1),
        ("grey-as-rgb", coloured[:, :, :1].repeat(3, axis=2), 1),
        ("colour", coloured, 3),
    ):
        folder = _folder(tmp_path / kind, names, pixels)
        write_scenario(Answers(data=str(folder), clients=2), tmp_path / f"{kind}.yaml")
        scenario = load(tmp_path / f"{kind}.yaml")
        assert scenario.dataset.channels == channels
        assert scenario.dataset.load(tmp_path).input_shape == (channels, 28, 28)


# questions ----------------------------------------------------------------------------------------


@pytest.fixture
def terminal(monkeypatch):
    """terminal(answers) gives them, by the beginning of the question, and returns what was asked, in order."""
    import sys

    def answers(given):
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        asked, left = [], {start: list(texts) for start, texts in given.items()}

        def prompt(question, default, type):
            asked.append(question.split(":")[0])
            texts = next((texts for start, texts in left.items() if question.startswith(start)), [])
            text = texts.pop(0) if texts else default
            if isinstance(text, BaseException):
                raise text
            return text

        monkeypatch.setattr("typer.prompt", prompt)
        return asked

    return answers


def test_questions_are_asked_on_a_terminal(tmp_path, terminal):
    asked = terminal({"Clients": ["7"]})
    assert main(["init", str(tmp_path / "asked.yaml"), "--rounds", "3"]) == 0
    assert len(asked) == 7  # all but what was given
    scenario = load(tmp_path / "asked.yaml")
    assert (scenario.federation.clients, scenario.federation.rounds) == (7, 3)


def test_a_bad_answer_is_refused_when_it_is_given_and_asked_for_again(tmp_path, terminal, capsys):
    (tmp_path / "bad.npz").write_bytes(b"not an archive")
    wrong = {
        "Data": ["nonsense.npz", str(tmp_path / "bad.npz")],
        "Model": ["/some/path", "small-cn"],
        "Clients": ["many", "1", "5000"],
        "Rounds": ["0", "2.5"],
        "Privacy": ["-1", "nan", "inf", "much"],
        "Threats": ["-3", "evason"],
        "Largest model file": ["-1"],
        "Seeds": ["0"],
    }
    asked = terminal(wrong)
    file = tmp_path / "asked.yaml"
    assert main(["init", str(file), "--name", "mine"]) == 0
    assert len(asked) == len(wrong) + sum(map(len, wrong.values()))
    assert asked == sorted(asked, key=[q.split(":")[0] for q in QUESTIONS.values()].index)  # none comes back
    said = capsys.readouterr().out
    for reason in (
        "there is no file or folder nonsense.npz",
        "not a readable",
        "unknown model '/some/path'",
        "did you mean 'small-cnn'?",
        "a whole number of at least 2, not 'many'",
        "  5000 clients cannot share",
        "a whole number of at least 1, not '2.5'",
        "at least 0, such as 8, not 'nan'",
        "unknown threat '-3'",
        "did you mean 'evasion'?",
    ):
        assert reason in said
    assert f"{file}:" not in said  # no place in a file that is not there
    assert load(file).name == "mine"


def test_an_option_that_no_answer_can_mend_is_refused_before_anything_is_asked(tmp_path, terminal, capsys):
    asked = terminal({})
    assert main(["init", str(tmp_path / "x.yaml"), "--threats", "evason"]) == 2
    assert "--threats evason: unknown threat 'evason'; did you mean 'evasion'?" in capsys.readouterr().err
    assert not asked


def test_ctrl_c_at_a_question_ends_as_elsewhere(tmp_path, terminal, capsys):
    import typer

    terminal({"Rounds": [typer.Abort()]})
    assert main(["init", str(tmp_path / "x.yaml")]) == 130
    assert "interrupted: nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_a_terminal_it_takes_data_or_yes(tmp_path, capsys):
    file = tmp_path / "x.yaml"
    assert main(["init", str(file), "--epsilon", "2"]) == 2
    assert "give --data, or --yes" in capsys.readouterr().err
    assert not file.exists()
    assert main(["init", str(file), "--data", "digits"]) == 0
    assert main(["init", str(file), "--yes", "--force"]) == 0


def test_every_bad_option_is_named(tmp_path, capsys):
    options = ["--data", "nonsense.npz", "--model", "small-cn", "--threats", "evason,-3", "--yes"]
    assert main(["init", str(tmp_path / "x.yaml"), *options]) == 2
    said = capsys.readouterr().err
    for word in ("nonsense.npz", "'small-cn'", "'evason'", "'-3'"):
        assert word in said


@pytest.mark.parametrize("clients", [2, 3, 4, 5])
def test_few_clients_have_a_malicious_one_too(clients, tmp_path):
    write_scenario(Answers(clients=clients), tmp_path / "x.yaml")
    threats = {t.name: t for t in load(tmp_path / "x.yaml").threats}
    assert malicious_count(clients, threats["byzantine"].malicious) == 1
