"""The 2D datasets of MedMNIST, through its package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, Literal

from harness.api import Dataset, Field, HarnessError, PluginError, Reference, Splits
from harness_plugins.datasets._downloads import given, made
from harness_plugins.datasets._splits import complete
from harness_plugins.datasets.npz import SPLITS, UNREADABLE, read_arrays


class MedMnist(Dataset):
    """One of MedMNIST's 2D datasets, by its flag (pathmnist, pneumoniamnist, bloodmnist, ...), pixels uint8.

    Splits are the official train, val and test. MedMNIST names no patients, so there are no groups.
    The file ({flag}.npz, {flag}_64.npz, ...) is taken from path if given, else from $HARNESS_DATA or
    MedMNIST's own folder (~/.medmnist); `download: true` downloads it there, or to path, if it is missing.

    Needs the medmnist package (`pip install 'psr-harness[medmnist]'`). Raises PluginError for an unknown
    flag and for 3D and multi-label datasets (chestmnist); HarnessError where package or file is missing.
    """

    name = "medmnist"
    reference = Reference(
        title="MedMNIST v2 - A large-scale lightweight benchmark for 2D and 3D "
        "biomedical image classification",
        authors="Yang, Shi, Wei, Liu, Zhao, Ke, Pfister, Ni",
        venue="Scientific Data 10, 41",
        year=2023,
        url="https://doi.org/10.1038/s41597-022-01721-8",
    )

    extras: ClassVar[dict[str, str]] = {"medmnist": "psr-harness[medmnist]"}

    flag: str = Field(
        description="the dataset's name in MedMNIST, such as pneumoniamnist", examples=["pneumoniamnist"]
    )
    size: Literal[28, 64, 128, 224] = Field(28, description="height and width in pixels")
    path: str | None = Field(None, description="the folder that holds the file; default: the usual places")
    download: bool = Field(False, description="download the file where it is not found")

    def load(self, root: Path | None = None) -> Splits:
        package = _package()
        info = self._info(package)
        folder = self._folder(package, root)
        arrays = {}
        for split in SPLITS:
            try:
                part = getattr(package, info["python_class"])(
                    split=split, root=str(folder), size=self.size, download=self.download
                )
            except (*UNREADABLE, KeyError) as error:  # KeyError: the archive lacks an array
                message = " ".join(str(error).split())
                raise HarnessError(f"dataset medmnist, {self.flag} in {folder}: {message}") from None
            arrays[f"{split}_images"], arrays[f"{split}_labels"] = part.imgs, part.labels
        names = tuple(info["label"][str(i)] for i in range(len(info["label"])))
        where = f"dataset medmnist: {self.flag} in {folder}"
        return complete(self.name, read_arrays(where, arrays, list(SPLITS)), names, 0.0, 0.0, 0)

    def _info(self, package: Any) -> dict[str, Any]:
        flat = [flag for flag in package.INFO if not flag.endswith("3d")]
        if self.flag not in flat:
            raise PluginError(f"medmnist has no 2D dataset {self.flag!r}; valid: {', '.join(sorted(flat))}")
        info: dict[str, Any] = package.INFO[self.flag]
        if "multi-label" in info["task"]:
            raise PluginError(f"{self.flag} has several labels a record; multi-label data is not supported")
        return info

    def _folder(self, package: Any, root: Path | None) -> Path:
        """Where the file is, or where it is to be downloaded."""
        file = self.flag + ("" if self.size == 28 else f"_{self.size}") + ".npz"
        places = self._places(package, root)
        holder = next((place for place in places if (place / file).is_file()), None)
        if holder is not None:
            return holder
        target = self.path or package.info.DEFAULT_ROOT
        if not (self.download and target):
            tried = ", ".join(str(place / file) for place in places)
            raise HarnessError(f"{self.flag} is not there (tried {tried}); set path, or download: true")
        return made(target)

    def _places(self, package: Any, root: Path | None) -> list[Path]:
        if self.path is not None:
            return given(self.path, root, self.download)
        return [Path(p) for p in (root, os.environ.get("HARNESS_DATA"), package.info.DEFAULT_ROOT) if p]


def _package() -> Any:
    try:
        import medmnist
        import medmnist.dataset
        import medmnist.info
    except ImportError as error:
        raise HarnessError(
            f"dataset medmnist needs the medmnist package: pip install 'psr-harness[medmnist]' ({error})"
        ) from None
    return medmnist


PLUGINS = (MedMnist,)
