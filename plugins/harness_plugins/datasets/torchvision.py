"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, as torchvision stores them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.api import Dataset, Field, HarnessError, Split, Splits
from harness_plugins.datasets._downloads import given, made
from harness_plugins.datasets._idx import is_idx_folder, read_folder
from harness_plugins.datasets._splits import complete

if TYPE_CHECKING:
    import numpy as np

    Pair = tuple[np.ndarray, np.ndarray]

CLASSES = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SYSTEM = Path("/usr/share/datasets")  # where Debian's dataset-fashion-mnist puts its files


class Torchvision(Dataset):
    """MNIST, Fashion-MNIST (28x28, 1 channel), CIFAR-10 or CIFAR-100 (32x32, 3 channels), pixels uint8.

    test is the official test part; val is val_fraction of the official training part, stratified by class and
    seeded by split_seed; train is the rest. There are no groups.

    The files are looked for below path if given, else below the scenario's folder, $HARNESS_DATA,
    $HARNESS_DATA/torchvision, the user's cache (psr-harness/torchvision) and /usr/share/datasets, in
    torchvision's layout (MNIST/raw, cifar-10-batches-py, ...). MNIST's and Fashion-MNIST's four IDX files,
    plain or gzipped, are also found in a folder called mnist or fashion-mnist, or in path itself. With
    `download: true`, torchvision downloads what is not found, to path or to the user's cache, and checks
    it. Raises HarnessError with the places tried. Loading a found MNIST or Fashion-MNIST does not import
    torch.
    """

    name = "torchvision"

    dataset: Literal["mnist", "fashion-mnist", "cifar10", "cifar100"] = Field(description="which of the four")
    path: str | None = Field(None, description="the folder that holds the files; default: the usual places")
    download: bool = Field(False, description="download the files where they are not found")
    val_fraction: float = Field(0.1, gt=0, lt=1, description="share of the official training part held out")
    split_seed: int = Field(0, ge=0, description="seed of that hold-out")

    def load(self, root: Path | None = None) -> Splits:
        read = self._idx if "mnist" in self.dataset else self._cifar
        (train, test), names = read(root)
        parts = {"train": _split(*train), "test": _split(*test)}
        return complete(self.name, parts, names, self.val_fraction, 0.0, self.split_seed)

    def _idx(self, root: Path | None) -> tuple[tuple[Pair, Pair], tuple[str, ...]]:
        names = FASHION if self.dataset == "fashion-mnist" else tuple(str(i) for i in range(10))
        inside = Path(CLASSES[self.dataset]) / "raw"
        bases = list(self._bases(root))
        folders = [base / below for base in bases for below in (inside, self.dataset)]
        if self.path is not None:
            folders += bases
        for folder in folders:
            if is_idx_folder(folder):
                return read_folder(folder), names
        if not self.download:
            raise self._missing(folders)
        target = self._target()
        self._torchvision(target, train=True, download=True)
        return read_folder(target / inside), names

    def _cifar(self, root: Path | None) -> tuple[tuple[Pair, Pair], tuple[str, ...]]:
        folder = "cifar-10-batches-py" if self.dataset == "cifar10" else "cifar-100-python"
        bases = list(self._bases(root))
        found = next((base for base in bases if (base / folder).is_dir()), None)
        if found is None and not self.download:
            raise self._missing([base / folder for base in bases])
        place = found or self._target()
        train, test = (self._torchvision(place, train=part, download=self.download) for part in (True, False))
        pairs = (_channels_first(train), _channels_first(test))
        return pairs, tuple(train.classes)

    def _bases(self, root: Path | None) -> Iterator[Path]:
        if self.path is not None:
            yield from given(self.path, root, self.download)
            return
        data = os.environ.get("HARNESS_DATA")
        yield from [root] if root is not None else []
        yield from [Path(data), Path(data) / "torchvision"] if data else []
        yield from (_cache(), SYSTEM)

    def _target(self) -> Path:
        """Where downloads go; made if need be."""
        return made(_cache() if self.path is None else self.path)

    def _torchvision(self, place: Path, train: bool, download: bool) -> Any:
        from torchvision import datasets

        try:
            return getattr(datasets, CLASSES[self.dataset])(place, train=train, download=download)
        except (RuntimeError, OSError) as error:
            message = " ".join(str(error).split()).replace("download=True", "download: true")
            raise HarnessError(f"dataset torchvision, {self.dataset} in {place}: {message}") from None

    def _missing(self, folders: list[Path]) -> HarnessError:
        tried = ", ".join(map(str, dict.fromkeys(folders)))
        return HarnessError(f"{self.dataset} is not there (tried {tried}); set path, or download: true")


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "psr-harness" / "torchvision"


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    import numpy as np

    shaped = images[:, None] if images.ndim == 3 else images
    return Split(np.ascontiguousarray(shaped), labels.astype(np.int64))


def _channels_first(part: Any) -> Pair:
    import numpy as np

    return np.asarray(part.data).transpose(0, 3, 1, 2), np.asarray(part.targets, dtype=np.int64)


PLUGINS = (Torchvision,)
