"""What `harness init` sees in somebody's images: file names that may name patients, and pictures without colour."""

from __future__ import annotations

import mimetypes
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.contracts.data import Splits

_AT_ONCE = 1000  # images compared at a time: most coloured ones are told by the first


@dataclass(frozen=True)
class Numbered:
    """Image files whose names share a number, such as person12_1.png and person12_2.png.

    pattern: a regular expression for their paths, whose group is the number; numbers: how many there are, in so many
    images.
    """

    pattern: str
    numbers: int
    images: int


def numbered(folder: Path) -> Numbered | None:
    """The first number in all file names below the folders of a folder that several images share, if there is one.

    A number that only tells the folder, as in cats1/cat1_05.png, names nobody.
    """
    paths = sorted(
        file.relative_to(folder).as_posix() for file in folder.rglob("*") if _is_image(file, folder)
    )
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
                return Numbered(pattern, len(together), len(paths))
    return None


def _is_image(file: Path, folder: Path) -> bool:
    parts = file.relative_to(folder).parts
    kind = mimetypes.guess_type(file.name, strict=False)[0] or ""
    return len(parts) > 1 and kind.startswith("image/") and not any(part.startswith(".") for part in parts)


def _patterns(path: str) -> list[str]:
    """One for each number of a file's name that a separator follows, with the word before it."""
    name = path.rpartition("/")[2]
    found = re.finditer(r"((?:[^\W\d_]+[-_ ]?)?)\d+(?=([-_ .]))", name.rpartition(".")[0] + " ")
    return [
        f"{_plain(match[1]) if match[1] else '/' if match.start() == 0 else ''}(\\d+){_plain(match[2])}"
        for match in found
        if match.end() < len(name.rpartition(".")[0])
    ]


def _plain(text: str) -> str:
    """For a pattern that people read: `-` and ` ` need no backslash outside brackets."""
    return re.escape(text).replace("\\-", "-").replace("\\ ", " ")


def is_grey(splits: Splits) -> bool:
    """Whether all images have three channels that say the same."""
    for split in (splits.train, splits.val, splits.test):
        images = split.images
        if images.shape[1] != 3:
            return False
        for start in range(0, len(images), _AT_ONCE):
            part = images[start : start + _AT_ONCE]
            if not (part == part[:, :1]).all():
                return False
    return True
