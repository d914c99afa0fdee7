"""What `harness init` looks for in a user's images: paths that may name patients, and images without colour."""

from __future__ import annotations

import mimetypes
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.contracts.data import Splits

_AT_ONCE = 1000  # images compared at a time: where there is colour, the first of them mostly show it


@dataclass(frozen=True)
class Shared:
    """What images of a folder share that may be of one patient: a folder, or a number in their names.

    pattern: a regular expression for their paths below the split; its group is what they share. said: how many there
    are, in words.
    """

    pattern: str
    said: str


def shared(folder: Path) -> Shared | None:
    """What may name patients: folders below the class folders, else a number in every file name; None for neither.

    The number is the first that several images share. One that is the same throughout each folder, as in
    cats1/cat1_05.png, names nobody.
    """
    paths = sorted(
        file.relative_to(folder).as_posix() for file in folder.rglob("*") if _is_image(file, folder)
    )
    if 1 < (folders := len(set(_below_classes(paths)))) < len(paths):
        return Shared("/([^/]+)/", f"the class folders hold {folders} folders of {len(paths)} images")
    for pattern in _patterns(paths[0]) if paths else ():
        matches = [(path.rpartition("/")[0], re.search(pattern, path)) for path in paths]
        found: dict[str, set[str]] = defaultdict(set)
        for parent, match in matches:
            if match is None:
                break
            found[parent].add(match[1])
        else:
            together = set.union(*found.values())
            if len(together) < len(paths) and any(len(numbers) > 1 for numbers in found.values()):
                return Shared(pattern, f"the file names hold {len(together)} numbers in {len(paths)} images")
    return None


def _below_classes(paths: list[str]) -> list[str]:
    """For each image the folder below its class folder; empty where some images lie directly in a class folder."""
    parts = [path.split("/") for path in paths]
    if any(part[0].lower().startswith("train") for part in parts):
        parts = [part[1:] for part in parts]  # without the folder of the split
    return [part[1] for part in parts] if all(len(part) > 2 for part in parts) else []


def _is_image(file: Path, folder: Path) -> bool:
    parts = file.relative_to(folder).parts
    kind = mimetypes.guess_type(file.name, strict=False)[0] or ""
    return len(parts) > 1 and kind.startswith("image/") and not any(part.startswith(".") for part in parts)


def _patterns(path: str) -> list[str]:
    """A pattern for each number in a file's name that a separator follows, with the word before the number."""
    name = path.rpartition("/")[2]
    found = re.finditer(r"((?:[^\W\d_]+[-_ ]?)?)\d+(?=([-_ .]))", name.rpartition(".")[0] + " ")
    return [
        f"{_plain(match[1]) if match[1] else '/' if match.start() == 0 else ''}(\\d+){_plain(match[2])}"
        for match in found
        if match.end() < len(name.rpartition(".")[0])
    ]


def _plain(text: str) -> str:
    """Text escaped for a pattern that people read: `-` and ` ` need no backslash outside brackets."""
    return re.escape(text).replace("\\-", "-").replace("\\ ", " ")


def is_grey(splits: Splits) -> bool:
    """Whether all images have three channels that are equal."""
    for split in (splits.train, splits.val, splits.test):
        images = split.images
        if images.shape[1] != 3:
            return False
        for start in range(0, len(images), _AT_ONCE):
            part = images[start : start + _AT_ONCE]
            if not (part == part[:, :1]).all():
                return False
    return True
