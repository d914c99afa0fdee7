"""The data set imagecsv: images named in a CSV file, with their labels, patients and splits."""

import csv

import numpy as np
import pytest
from PIL import Image

from harness.api import HarnessError
from harness.registry import registry

HEADER = ("file_name", "label", "patient", "split")


def make(**parameters):
    return registry().create("dataset", "imagecsv", parameters)


def write(folder, rows, header=HEADER, name="all.csv", delimiter=",", encoding="utf-8", seed=0):
    """The CSV file and an image of 4 x 5 pixels for every row; returns the pixels by file name."""
    rng = np.random.default_rng(seed)
    pictures = {}
    for row in rows:
        pixels = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        file = folder / row[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
        pictures[row[0]] = pixels.transpose(2, 0, 1)
    with open(folder / name, "w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return pictures


def listed(n, split="train", prefix="i"):
    """Rows of two classes; three images in a row are of one patient."""
    return [(f"{prefix}{i}.png", ("no", "yes")[i % 2], f"{prefix}{i // 3}", split) for i in range(n)]


def same_records(part, rows, pictures, classes):
    np.testing.assert_array_equal(part.images, [pictures[row[0]] for row in rows])
    np.testing.assert_array_equal(part.labels, [classes.index(row[1]) for row in rows])


@pytest.mark.parametrize(("delimiter", "encoding"), [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-8")])
def test_records_are_those_of_the_rows(tmp_path, delimiter, encoding):
    rows = [*listed(6, "Training"), *listed(3, "dev", "v"), *listed(4, "test", "t")]
    rows = [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]
    pictures = write(tmp_path, rows, delimiter=delimiter, encoding=encoding)
    splits = make(path=str(tmp_path / "all.csv"), split_column="split", group_column="patient").load()
    assert splits.class_names == ("no", "yes")
    patients = sorted({row[2] for row in rows})
    for part, split in ((splits.train, "Training"), (splits.val, "dev"), (splits.test, "test")):
        own = [row for row in rows if row[3] == split]
        same_records(part, own, pictures, ["no", "yes"])
        assert [patients[code] for code in part.groups] == [row[2] for row in own]


def test_a_file_for_each_split(tmp_path):
    train, test = listed(20), listed(4, prefix="t")
    pictures = write(tmp_path, train, name="train.csv") | write(tmp_path, test, name="Test.csv", seed=1)
    splits = make(path=str(tmp_path)).load()
    same_records(splits.test, test, pictures, ["no", "yes"])
    assert (len(splits.train), len(splits.val)) == (18, 2)
    with pytest.raises(HarnessError, match="split_column is for one file"):
        make(path=str(tmp_path), split_column="split").load()
    (tmp_path / "train.csv").rename(tmp_path / "rest.csv")
    with pytest.raises(HarnessError, match=r"no train.csv in .*; it has Test, rest"):
        make(path=str(tmp_path)).load()


def test_one_patient_lies_in_one_split(tmp_path):
    rows = listed(60)
    pictures = write(tmp_path, rows)
    splits = make(path=str(tmp_path / "all.csv"), group_column="patient").load()
    owner = {pictures[row[0]].tobytes(): row[2] for row in rows}
    found = [
        {owner[image.tobytes()] for image in part.images} for part in (splits.train, splits.val, splits.test)
    ]
    assert sum(map(len, found)) == 20
    assert all(found)
    rows[-1] = (*rows[-1][:3], "test")
    write(tmp_path, rows)
    with pytest.raises(HarnessError, match=r"train and test share 1 groups \(e.g. i19\)"):
        make(path=str(tmp_path / "all.csv"), group_column="patient", split_column="split").load()


def test_images_elsewhere_without_their_ending(tmp_path):
    rows = listed(20)
    pictures = write(tmp_path / "images", rows)
    table = [(row[0].removesuffix(".png"), *row[1:]) for row in rows]
    with open(tmp_path / "truth.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", *HEADER[1:]), *table])
    where = {"path": str(tmp_path / "truth.csv"), "folder": str(tmp_path / "images"), "image_column": "image"}
    splits = make(**where, suffix=".png", size=2, channels=1).load()
    assert splits.input_shape == (1, 2, 2)
    assert sum(len(part) for part in (splits.train, splits.val, splits.test)) == len(pictures)
    with pytest.raises(
        HarnessError, match=r"line 2: there is no image i0 in .*images; i0.png is: set suffix: .png"
    ):
        make(**where).load()


@pytest.mark.parametrize(
    ("labels", "given", "classes"),
    [
        (["10", "9", "2"], None, ("2", "9", "10")),
        (["b", "10", "a"], None, ("10", "a", "b")),
        (["b", "c", "a"], ["c", "b", "a", "d"], ("c", "b", "a", "d")),
    ],
)
def test_classes_have_an_order(tmp_path, labels, given, classes):
    rows = [(f"{i}.png", labels[i % 3], "p", "train") for i in range(30)]
    pictures = write(tmp_path, rows)
    splits = make(path=str(tmp_path / "all.csv"), class_names=given).load()
    assert splits.class_names == classes
    label = {pictures[row[0]].tobytes(): row[1] for row in rows}
    assert [classes[k] for k in splits.train.labels] == [
        label[image.tobytes()] for image in splits.train.images
    ]


def test_the_fingerprint_is_of_what_is_read(tmp_path):
    rows = listed(20)
    write(tmp_path, rows)
    dataset = make(path=str(tmp_path / "all.csv"))
    first = dataset.fingerprint()
    write(tmp_path, [(*row[:2], "other", row[3]) for row in rows], delimiter=";")
    assert dataset.fingerprint() == first
    assert make(path=str(tmp_path / "all.csv"), group_column="patient").fingerprint() != first
    write(tmp_path, [(row[0], "yes", *row[2:]) if row[0] == "i4.png" else row for row in rows])
    changed = dataset.fingerprint()
    assert changed != first
    write(tmp_path, rows, seed=3)
    assert dataset.fingerprint() not in (first, changed)


@pytest.mark.parametrize(
    ("change", "parameters", "told"),
    [
        ({0: HEADER[1:]}, {}, r"no column 'file_name'; valid: label, patient, split"),
        ({0: ("file_name", "Label", "patient", "split")}, {}, r"no column 'label'; did you mean 'Label'"),
        (
            {0: ("file_name", "label", "label", "split")},
            {},
            r"has 2 columns 'label'; rename all but one",
        ),
        ({}, {"group_column": "patients"}, r"no column 'patients'; did you mean 'patient'"),
        ({2: ("i1.png", "yes", "i0")}, {}, r"all.csv line 3 has 3 cells, not 4 as the first"),
        ({2: ("i1.png", " ", "i0", "train")}, {}, r"all.csv line 3 says nothing in label"),
        ({2: ("i1.png", "yes", "", "train")}, {"group_column": "patient"}, r"line 3 says nothing in patient"),
        (
            {2: ("i1.png", "yes", "", "trian")},
            {"split_column": "split"},
            r"line 3: the split 'trian' .*'train'",
        ),
        (
            {2: ("./i0.png", "yes", "i0", "train")},
            {},
            r"line 3 names ./i0.png, which .*all.csv line 2 names too",
        ),
        ({2: ("gone.png", "yes", "i0", "train")}, {}, r"line 3: there is no image gone.png in "),
        ({2: ("a" * 600, "yes", "i0", "train")}, {}, r"line 3: there is no image aaa"),
        ({2: ("all.csv", "yes", "i0", "train")}, {}, r"all.csv line 3 is not a readable image"),
        (
            {20: ("i19.png", "maybe", "x", "test")},
            {"split_column": "split"},
            r"line 21: .*'maybe', which the training",
        ),
        ({}, {"class_names": ["yes", "not"]}, r"line 2: the label 'no', which class_names lacks"),
        ({}, {"class_names": ["yes", "no", "no"]}, r"class names repeat: yes, no, no"),
        ({}, {"folder": "away"}, r"away"),
    ],
)
def test_bad_files_are_refused(tmp_path, change, parameters, told):
    rows = listed(20)
    write(tmp_path, rows)
    table = dict(enumerate([HEADER, *rows])) | change
    with open(tmp_path / "all.csv", "w", newline="") as file:
        csv.writer(file).writerows(table.values())
    with pytest.raises(HarnessError, match=told):
        make(path=str(tmp_path / "all.csv"), **parameters).load()


def test_columns_without_a_name_are_let_be(tmp_path):
    rows = [("", "", *row) for row in listed(20)]
    write(tmp_path, [row[2:] for row in rows])
    with open(tmp_path / "all.csv", "w", newline="") as file:
        csv.writer(file).writerows([("", "", *HEADER), *rows])
    assert len(make(path=str(tmp_path / "all.csv")).load().train) == 14


def test_files_that_are_no_text_are_refused(tmp_path):
    file = tmp_path / "all.csv"
    for content, told in (
        ("file_name,label\nä.png,1\n".encode("latin-1"), "is not in UTF-8"),
        (b'file_name,label\n"a.png,1\n', "is not a CSV file"),
        (b"", "no column 'file_name'"),
        (b"file_name,label\n", "no record for training"),
    ):
        file.write_bytes(content)
        with pytest.raises(HarnessError, match=told):
            make(path=str(file)).load()
