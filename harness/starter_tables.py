"""What `harness init` looks for in a CSV file that lists images: the columns of image, class and patient."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from harness.errors import HarnessError

LABELS = ("label", "labels", "class", "target", "diagnosis", "dx", "finding", "findings", "finding labels")
SPLITS = ("split", "dataset_split")
PATIENTS = ("patient", "subject")  # words in a column's name
SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class Columns:
    """The columns of a table of images.

    folder: of the images, where they do not lie beside the table; suffix: what the names of their files leave out.
    """

    image: str
    label: str
    group: str | None
    split: str | None
    folder: Path | None
    suffix: str


def columns(file: Path) -> Columns:
    """The columns of a CSV file by what they say: the image's by the first row's file, the others' by their names.

    Images lie beside the file, or in a folder beside it. Raises HarnessError where the file cannot be read, where no
    column names an image, or where it is unclear which one names the class.
    """
    header, row = _head(file)
    folders = (file.parent, *sorted(each for each in file.parent.iterdir() if each.is_dir()))
    images = (
        (name, folder, suffix)
        for (name, cell), folder, suffix in product(zip(header, row, strict=False), folders, SUFFIXES)
        if cell and os.path.isfile(folder / (cell + suffix))  # false for a text too long for a name
    )
    name, folder, suffix = next(images, (None, file.parent, ""))
    if name is None:
        raise HarnessError(
            f"{file}: no column names an image in its folder or one beside it; it has {', '.join(header)}"
        )
    labels = [each for each in header if each.casefold() in LABELS and each != name]
    label = labels[0] if len(labels) == 1 else "label"
    if label not in labels:
        raise HarnessError(f"{file}: which column is the class? Call it label; it has {', '.join(header)}")
    return Columns(
        image=name,
        label=label,
        group=_first(each for each in header if any(word in each.casefold() for word in PATIENTS)),
        split=_first(each for each in header if each.casefold() in SPLITS),
        folder=None if folder == file.parent else folder,
        suffix=suffix,
    )


def _head(file: Path) -> tuple[list[str], list[str]]:
    """The names of the columns and the first row, parted by whatever makes most columns: comma, semicolon or tab."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    parted = [list(csv.reader(lines[:2], delimiter=delimiter)) for delimiter in (",", ";", "\t")]
    rows = max(parted, key=lambda rows: len(rows[0]) if rows else 0)
    if len(rows) < 2:
        raise HarnessError(f"{file}: a table of images needs a row of names and one for each image")
    header, row = ([cell.strip() for cell in cells] for cells in rows)
    return header, row


def _first(names: Iterable[str]) -> str | None:
    return next(iter(names), None)
