"""Datasets and partitioners: NumPy in, NumPy out; the engine moves data to the device."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from harness.contracts.base import Plugin
from harness.errors import HarnessError, PluginError, blamed, nearest

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Split:
    """images (n, c, h, w) uint8 or float32 in [0, 1]; labels (n,) int64; groups (n,) int64 or None.

    A group, such as a patient or a site, must lie in only one of train, val and test.
    """

    images: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: np.ndarray) -> Split:
        """The records at these positions. Raises HarnessError where there are not as many images as labels."""
        if len(self.images) != len(self.labels):  # positions in one would be other records in the other
            raise HarnessError(f"{len(self.images)} images, but {len(self.labels)} labels")
        groups = None if self.groups is None else self.groups[index]
        return Split(self.images[index], self.labels[index], groups)


@dataclass(frozen=True)
class Splits:
    """A dataset in the form that the engine needs: disjoint train, val and test, and the names of the classes."""

    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        c, h, w = self.train.images.shape[1:]
        return int(c), int(h), int(w)

    def fingerprint(self) -> str:
        """sha256 over every pixel, label, group and class name."""
        import numpy as np

        digest = hashlib.sha256(repr(self.class_names).encode())
        for split in (self.train, self.val, self.test):
            for array in (split.images, split.labels, split.groups):
                if array is not None:
                    digest.update(f"{array.dtype}{array.shape}".encode())
                    digest.update(np.ascontiguousarray(array).data)
                else:
                    digest.update(b"none")
        return digest.hexdigest()

    def repeated(self) -> float:
        """The share of test images that are also training images, pixel by pixel.

        A sample of each image's pixels is compared first, so that hardly any training image is read in full.
        """
        import numpy as np

        train, test = self.train.images, self.test.images
        if train.dtype != test.dtype or train.shape[1:] != test.shape[1:]:
            return 0.0
        step = max(1, int(np.prod(train.shape[1:])) // 512)

        def sample(image: np.ndarray) -> int:
            return hash(image.reshape(-1)[::step].tobytes())

        wanted = {sample(image) for image in test}
        known = {image.tobytes() for image in train if sample(image) in wanted}
        return float(np.mean([image.tobytes() in known for image in test])) if known else 0.0

    def check(self, name: str) -> None:
        """Raises HarnessError where a split is empty, malformed, or shares a group with another."""
        import numpy as np

        for label, split in (("train", self.train), ("val", self.val), ("test", self.test)):
            images, labels = split.images, split.labels
            where = f"dataset {name}, {label}"
            if images.ndim != 4 or labels.ndim != 1 or len(images) != len(labels) or not len(labels):
                raise HarnessError(
                    f"{where}: images must be (n, c, h, w) and labels (n,), n >= 1, "
                    f"not {images.shape} and {labels.shape}"
                )
            if images.shape[1:] != self.train.images.shape[1:]:
                raise HarnessError(
                    f"{where}: image shape {images.shape[1:]} differs from the training images'"
                )
            if images.dtype != np.uint8:
                if images.dtype != np.float32:
                    raise HarnessError(f"{where}: images must be uint8 or float32, not {images.dtype}")
                if not (np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1):
                    raise HarnessError(f"{where}: float images must lie in [0, 1]")
            if not np.issubdtype(labels.dtype, np.integer):
                raise HarnessError(f"{where}: labels must be integers, not {labels.dtype}")
            if labels.min() < 0 or labels.max() >= self.num_classes:
                raise HarnessError(
                    f"{where}: labels run from {labels.min()} to {labels.max()}, "
                    f"but there are {self.num_classes} classes"
                )
            if split.groups is not None and len(split.groups) != len(labels):
                raise HarnessError(f"{where}: {len(split.groups)} groups for {len(labels)} labels")
        pairs = (("train", self.train, "val", self.val), ("train", self.train, "test", self.test),
                 ("val", self.val, "test", self.test))  # fmt: skip
        for a, first, b, second in pairs:
            if first.groups is not None and second.groups is not None:
                shared = np.intersect1d(first.groups, second.groups)
                if len(shared):
                    raise HarnessError(
                        f"dataset {name}: {a} and {b} share {len(shared)} groups (e.g. {shared[0]}); "
                        "a patient or site must lie in one split"
                    )


class Dataset(Plugin):
    """Images with labels: `load` returns train, val and test, disjoint by group where there are groups."""

    kind: ClassVar[str] = "dataset"
    # Parameters that only say where the data lie or how they get there: the same content in another place has the same
    # stage keys.
    locations: ClassVar[tuple[str, ...]] = ("path", "download")

    @abstractmethod
    def load(self, root: Path | None = None) -> Splits:
        """The data. root: the folder that relative paths are tried against first (the scenario's).

        Raises HarnessError with the places tried where a file is missing.
        """

    def fingerprint(self, root: Path | None = None) -> str:
        """A hash of the content, for stage keys. Override it where hashing files is faster than loading them.

        Different content must have a different hash. Where parameters decide the content, hash those too.
        """
        return loaded(self, root).fingerprint()


def loaded(dataset: Dataset, root: Path | None) -> Splits:
    """`dataset.load(root)`. Raises PluginError where that is not a Splits of three Split."""
    with blamed(dataset):
        found: object = dataset.load(root)
    if not isinstance(found, Splits):
        raise PluginError(f"dataset {dataset.name}: load returned {type(found).__name__}, not Splits")
    for name in ("train", "val", "test"):
        part: object = getattr(found, name)
        if not isinstance(part, Split):
            raise PluginError(f"dataset {dataset.name}: {name} is {type(part).__name__}, not a Split")
    return found


class Partitioner(Plugin):
    """Deals the training records out to clients."""

    kind: ClassVar[str] = "partitioner"

    @abstractmethod
    def partition(
        self, labels: np.ndarray, groups: np.ndarray | None, clients: int, rng: np.random.Generator
    ) -> list[np.ndarray]:
        """One array of positions per client; every position is in exactly one of them, and no client is empty.

        Raises PluginError where no such partition exists.
        """


def find_file(path: str, root: Path | None = None) -> Path:
    """An existing file or folder; a relative path is tried against root, $HARNESS_DATA and the working directory.

    Environment variables in the path are filled in. Devices and pipes are refused, since reading one may never end.
    Raises PluginError that lists what was tried and carries the path, so that a scenario's error can point at the place
    where it is written.
    """
    expanded = os.path.expanduser(os.path.expandvars(path))
    if "$" in expanded:
        variable = expanded[expanded.index("$") :].split("/")[0].strip("${}")
        if not variable:
            raise _about(path, f"{path}: a $ must be followed by the name of an environment variable")
        known = (name for name in os.environ if not name.startswith("_"))
        raise _about(
            path, f"{path}: the environment variable {variable} is not set", nearest(variable, known)
        )
    target = Path(expanded)
    if target.is_absolute():
        candidates = [target]
    else:
        bases = [root, Path(os.environ["HARNESS_DATA"]) if "HARNESS_DATA" in os.environ else None, Path()]
        candidates = list(dict.fromkeys(base / target for base in bases if base is not None))
    for candidate in candidates:
        try:
            if _may_never_end(candidate):
                raise _about(path, f"{candidate} is a device or a pipe, and a file or folder is needed")
            if candidate.exists():
                return candidate
        except OSError as error:  # too long a name, or a folder that may not be entered
            raise _about(path, f"{candidate}: {error.strerror}") from None
    unset = "" if "HARNESS_DATA" in os.environ else "set HARNESS_DATA to the folder that holds your data"
    tried = ", ".join(map(str, candidates))
    raise _about(path, f"{path} is not there (tried {tried})", _similar(candidates), unset)


def _may_never_end(path: Path) -> bool:
    """Whether this is a device or a pipe, rather than a file, a folder, or nothing."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _about(path: str, *parts: str) -> PluginError:
    """An error that carries the path it is about; empty parts of the message are left out."""
    message = "; ".join(filter(None, parts))
    return PluginError(message, [((), message, path)])


def _similar(missing: list[Path]) -> str:
    """`did you mean ...?` with a name that lies beside a missing one, of the same suffix if possible; else empty."""
    places = [_first_missing(path) for path in missing]
    lacking = [len(path.parts) - len(place.parts) for path, place in zip(missing, places, strict=True)]
    wanted = places[lacking.index(min(lacking))].name
    beside = {name for place in places if place.name == wanted for name in _names(place.parent)} - {wanted}
    alike = {name for name in beside if Path(name).suffix == Path(wanted).suffix}
    return nearest(wanted, alike) or nearest(wanted, beside)


def _first_missing(path: Path) -> Path:
    """A missing path, cut off after its first part that does not exist."""
    while path.parent != path and not path.parent.exists():
        path = path.parent
    return path


def _names(folder: Path) -> Iterator[str]:
    """The names in a folder without the hidden ones; none where it cannot be read."""
    try:
        yield from (entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes. Raises PluginError where it cannot be read, or is a device or a pipe."""
    try:
        if _may_never_end(path):
            raise PluginError(f"{path} is a device or a pipe, and a file is needed")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except IsADirectoryError:
        raise PluginError(f"{path} is a folder, and a file is needed") from None
    except OSError as error:
        raise PluginError(f"{path}: {error.strerror}") from None


def hold_out(
    labels: np.ndarray, groups: np.ndarray | None, fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (kept, held out), about `fraction` of the records of each class held out, whole groups only.

    A group counts towards its most frequent class. The classes are drawn one after another in random order, and what
    rounding to whole groups leaves too much or too little in one class, up to half an average group, the next class
    makes up for. A group that is more than twice as large as what its class still lacks is passed over while more than
    half of the class's share is lacking; after that it ends the draw of the class. Both results are sorted; neither is
    empty. Raises HarnessError where fraction is not in (0, 1), where there are too few groups, or not one for each
    label.
    """
    import numpy as np

    if groups is not None and len(groups) != len(labels):
        raise HarnessError(f"{len(groups)} groups for {len(labels)} labels")
    if not 0 < fraction < 1:
        raise HarnessError(f"the fraction held out must lie in (0, 1), not {fraction}")
    units = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(units.max()) + 1
    size = np.bincount(units, minlength=count)
    classes = int(labels.max()) + 1
    table = np.zeros((count, classes), dtype=np.int64)
    np.add.at(table, (units, labels), 1)
    stratum = table.argmax(1)
    out = np.zeros(count, dtype=bool)
    half, wanted = size.mean() / 2, 0.0
    for value in rng.permutation(np.unique(stratum)):
        members = rng.permutation(np.flatnonzero(stratum == value))
        wanted = np.clip(wanted, -half, half) + fraction * size[members].sum()
        few = wanted / 2
        for member in members:
            if size[member] / 2 > wanted:
                if wanted > few:  # too large, and smaller ones may follow
                    continue
                break
            out[member] = True
            wanted -= size[member]
    held = out[units]
    if held.all() or not held.any():
        what = "records" if groups is None else "groups"
        taken, other, share = (
            ("all", "smaller", 1 - 1 / count) if held.all() else ("none", "larger", 1 / count)
        )
        advice = (
            f"try a {other} share, about {share:.2g}, or more {what}" if count > 1 else f"give more {what}"
        )
        raise HarnessError(
            f"cannot hold out {fraction:g} of {count} {what}: whole ones are taken, and that comes to {taken} of them; "
            + advice
        )
    return np.flatnonzero(~held), np.flatnonzero(held)
