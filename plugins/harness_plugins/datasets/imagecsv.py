"""Image files listed in a CSV file, with their labels."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from harness.api import Field, HarnessError, Split, Splits, did_you_mean, find_file, hash_file
from harness_plugins.datasets._images import ImageFiles, grouped, stack
from harness_plugins.datasets._splits import SPLIT_NAMES, by_split, content_hash

DELIMITERS = (",", ";", "\t")
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")  # tried where a name is of no file, to say so


@dataclass(frozen=True)
class Row:
    """One record: where it stands, its split as written, its image, and what the columns say of it."""

    where: str
    split: str
    image: str
    file: Path
    label: str
    group: str


class ImageCSV(ImageFiles):
    """Images named in a CSV file, one row a record, with a column for the class.

    path is the CSV file, or a folder with one file a split: train.csv, and maybe val.csv and test.csv (also training,
    valid, validation, dev, testing, in whatever case). The first row names the columns; they are parted by comma,
    semicolon or tab, whichever finds `image_column`. An image's file is its name with `suffix` added, below `folder`,
    by default that of the CSV file. Each image may be listed once.

    Classes are the texts in `label_column` for the training records, by value where all are whole numbers, else
    alphabetically, or in the order of `class_names`; val and test may lack some, not add any. Pixels are uint8, upright
    by the EXIF orientation, converted to `channels`, and resized to (size, size) only where size is given; images of
    different sizes are else an error.

    Splits: those that `split_column` names, or those that have files. Missing test and val are held out of train:
    test_fraction, then val_fraction, of its records, whole groups only, stratified by class, seeded by split_seed. The
    text in `group_column` names the patient or site, which then never lies in two splits.

    Raises HarnessError where files, columns, cells or splits are missing, where an image is listed twice or is
    unreadable or of more than 8 bits a channel, and where two splits share a group. The fingerprint hashes what the
    columns say of every record, and the images' contents.
    """

    name = "imagecsv"

    path: str = Field(
        description="the CSV file, or a folder with one a split; relative as in the scenario, $VARIABLES allowed"
    )
    folder: str | None = Field(None, description="the folder of the images; default: that of the CSV file")
    image_column: str = Field("file_name", description="the column of the images' file names")
    suffix: str = Field("", description="what those names leave out, such as .jpg")
    label_column: str = Field("label", description="the column of the classes")
    group_column: str | None = Field(None, description="the column of the patient or site")
    split_column: str | None = Field(None, description="the column that says train, val or test")
    class_names: tuple[str, ...] | None = Field(
        None, strict=False, description="the classes, as in the column, in their order; default: sorted"
    )

    def load(self, root: Path | None = None) -> Splits:
        import numpy as np

        rows = self._rows(root)
        classes = self._classes(rows)
        numbers = {label: number for number, label in enumerate(classes)}
        parts, groups = {}, {}
        for split, records in rows.items():
            decoded = ((row.image, self.pixels(row.file, row.where)) for row in records)
            images = stack(self.name, decoded, len(records))
            labels = np.array([numbers[row.label] for row in records], dtype=np.int64)
            parts[split] = Split(images, labels)
            groups[split] = np.array([row.group for row in records])
        parts = grouped(f"dataset imagecsv: {self.path}", parts, groups if self.group_column else {})
        return self.completed(parts, classes)

    def fingerprint(self, root: Path | None = None) -> str:
        content = chain.from_iterable(
            (split, row.image, row.label, row.group, hash_file(row.file))
            for split, records in self._rows(root).items()
            for row in records
        )
        return content_hash(content, self.model_dump(mode="json", exclude={"path", "folder"}))

    def _rows(self, root: Path | None) -> dict[str, list[Row]]:
        """The records of each split, in the order of the files. Raises HarnessError, also for one listed twice."""
        base = find_file(self.path, root)
        files = self._files(base)
        folder = None if self.folder is None else find_file(self.folder, root)
        rows = [
            row for file, split in files.items() for row in self._read(file, split, folder or file.parent)
        ]
        seen: dict[Path, Row] = {}
        for row in rows:
            if (other := seen.setdefault(row.file.resolve(), row)) is not row:
                raise HarnessError(
                    f"{row.where} names {row.image}, which {other.where} names too: an image may be listed once"
                )
        names = by_split(f"dataset imagecsv: {base}", {row.split for row in rows})
        for row in rows:
            if row.split not in names.values():
                known = [name for meant in SPLIT_NAMES.values() for name in meant]
                raise HarnessError(
                    f"{row.where}: the split {row.split!r} is none ({did_you_mean(row.split.lower(), known)})"
                )
        if "train" not in names:
            raise HarnessError(f"dataset imagecsv: {base} has no record for training")
        return {split: [row for row in rows if row.split == name] for split, name in names.items()}

    def _files(self, base: Path) -> dict[Path, str]:
        """Each CSV file with the split that it is of."""
        if not base.is_dir():
            return {base: "train"}
        if self.split_column is not None:
            raise HarnessError(
                f"dataset imagecsv: split_column is for one file, and {base} is a folder with one a split"
            )
        found = {file.stem: file for file in sorted(base.glob("*.csv")) if file.is_file()}
        splits = by_split(f"dataset imagecsv: {base}", found)
        if "train" not in splits:
            raise HarnessError(
                f"dataset imagecsv: no train.csv in {base}; it has {', '.join(found) or 'none'}"
            )
        return {found[name]: split for split, name in splits.items()}

    def _read(self, file: Path, split: str, folder: Path) -> Iterator[Row]:
        columns = [self.image_column, self.label_column, self.group_column, self.split_column]
        for line, cells in _cells(file, [column for column in columns if column is not None]):
            where = f"dataset imagecsv: {file} line {line}"
            for column, cell in cells.items():
                if not cell:
                    raise HarnessError(f"{where} says nothing in {column}")
            image = cells[self.image_column] + self.suffix
            yield Row(
                where,
                split if self.split_column is None else cells[self.split_column],
                image,
                self._image(folder, image, where),
                cells[self.label_column],
                "" if self.group_column is None else cells[self.group_column],
            )

    def _image(self, folder: Path, image: str, where: str) -> Path:
        file = folder / image
        if os.path.isfile(file):  # false for a text too long for a name
            return file
        ending = next((end for end in ENDINGS if os.path.isfile(folder / (image + end))), None)
        hint = "" if ending is None else f"; {image}{ending} is: set suffix: {self.suffix}{ending}"
        raise HarnessError(f"{where}: there is no image {image} in {folder}{hint}")

    def _classes(self, rows: dict[str, list[Row]]) -> list[str]:
        """The classes in their order. Raises HarnessError for a label that is of none."""
        trained = {row.label for row in rows["train"]}
        if self.class_names is not None:
            classes = list(self.class_names)
            if len(set(classes)) < len(classes):
                raise HarnessError(f"dataset imagecsv: class names repeat: {', '.join(classes)}")
        else:
            whole = all(label.isdecimal() and label.isascii() for label in trained)
            classes = sorted(trained, key=(lambda label: (int(label), label)) if whole else None)
        for row in chain.from_iterable(rows.values()):
            if row.label not in classes:
                lacking = "the training records lack" if self.class_names is None else "class_names lacks"
                raise HarnessError(f"{row.where}: the label {row.label!r}, which {lacking}")
        return classes


def _cells(file: Path, columns: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """For each row its line in the file and the texts of these columns, without spaces around them.

    Raises HarnessError where the file or a column is missing, or a row has other cells than the first.
    """
    where = f"dataset imagecsv: {file}"
    try:
        header, rows = _parsed(file.read_text(encoding="utf-8-sig"), columns[0])
        for column in columns:
            if header.count(column) > 1:
                raise HarnessError(
                    f"{where} has {header.count(column)} columns {column!r}; rename all but one"
                )
            if column not in header:
                raise HarnessError(f"{where} has no column {column!r}; {did_you_mean(column, header)}")
        for line, row in rows:
            if len(row) != len(header):
                raise HarnessError(
                    f"{where} line {line} has {len(row)} cells, not {len(header)} as the first"
                )
            named = dict(zip(header, row, strict=True))
            yield line, {column: named[column].strip() for column in columns}
    except OSError as error:
        raise HarnessError(f"{where} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise HarnessError(f"{where} is not in UTF-8; save it so") from None
    except csv.Error as error:
        raise HarnessError(f"{where} is not a CSV file: {error}") from None


def _parsed(text: str, column: str) -> tuple[list[str], Iterable[tuple[int, list[str]]]]:
    """The names in the first row and the rows below that are not empty, parted so that `column` is among the names."""
    for delimiter in DELIMITERS:
        reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
        header = [name.strip() for name in next(reader, [])]
        if column in header:
            return header, ((reader.line_num, row) for row in reader if row)
    return [name.strip() for name in next(csv.reader(io.StringIO(text)), [])], ()


PLUGINS = (ImageCSV,)
