"""One NumPy archive in the MedMNIST layout."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api import Dataset, Field, HarnessError, Reference, Split, Splits, find_file, hash_file
from harness_plugins.datasets._splits import complete, content_hash, group_codes, limited, name_classes

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("train", "val", "test")

# What np.load raises on a damaged archive, by which of its bytes are wrong.
UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


class Npz(Dataset):
    """An .npz file with the keys {train,val,test}_images and {train,val,test}_labels, as MedMNIST has.

    Images are (n, h, w) or (n, h, w, c), c at most 4: uint8, or floats in [0, 1] (kept as float32). Labels
    are integers, (n,) or (n, 1). Optional {train,val,test}_groups, (n,) integers (also as floats) or text, name
    the patient or site of each record; then every split that is there needs them.

    Splits are the file's own. Without val keys, val is val_fraction of the training records, whole groups
    only, stratified by class and seeded by split_seed; train_limit is drawn from what is left in the same way.
    Raises HarnessError where the file is missing, keys are missing, a shape or type is wrong, or two splits
    share a group. The fingerprint hashes the file's bytes.
    """

    name = "npz"
    reference = Reference(
        title="MedMNIST v2 - A large-scale lightweight benchmark for 2D and 3D "
        "biomedical image classification",
        authors="Yang, Shi, Wei, Liu, Zhao, Ke, Pfister, Ni",
        venue="Scientific Data 10, 41",
        year=2023,
        url="https://doi.org/10.1038/s41597-022-01721-8",
    )

    path: str = Field(description="the .npz file; relative paths as in the scenario, $VARIABLES allowed")
    class_names: tuple[str, ...] | None = Field(
        None, strict=False, description="names of classes 0, 1, ...; default: the numbers themselves"
    )
    val_fraction: float = Field(
        0.1, gt=0, lt=1, description="share of train held out where the file has no val"
    )
    split_seed: int = Field(0, ge=0, description="seed of that hold-out")
    train_limit: int | None = Field(
        None, ge=1, description="about so many training records, drawn by split_seed; default: all"
    )

    def load(self, root: Path | None = None) -> Splits:
        import numpy as np

        file = find_file(self.path, root)
        try:
            with np.load(file, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files if key.partition("_")[0] in SPLITS}
                keys = list(archive.files)
        except UNREADABLE as error:
            raise HarnessError(
                f"dataset npz: {file} is not a readable .npz file: {_why(file, error)}"
            ) from None
        present = [s for s in SPLITS if s != "val" or f"{s}_images" in arrays or f"{s}_labels" in arrays]
        missing = [
            f"{s}_{what}" for s in present for what in ("images", "labels") if f"{s}_{what}" not in arrays
        ]
        if missing:
            raise HarnessError(
                f"dataset npz: {file} lacks {', '.join(missing)}; it has {', '.join(keys) or 'nothing'}"
            )
        where = f"dataset npz: {file}"
        parts = read_arrays(where, arrays, present)
        names = name_classes(where, self.class_names, (part.labels for part in parts.values()))
        splits = complete(self.name, parts, names, self.val_fraction, 0.0, self.split_seed)
        return limited(self.name, splits, self.train_limit, self.split_seed)

    def fingerprint(self, root: Path | None = None) -> str:
        return content_hash(
            [hash_file(find_file(self.path, root))], self.model_dump(mode="json", exclude={"path"})
        )


def _why(file: Path, error: Exception) -> str:
    """What is wrong with it, for who made the file: NumPy takes all that is no archive for a pickle."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if not zipfile.is_zipfile(file):
        return "no whole ZIP archive, such as numpy.savez writes"
    if "pickle" in str(error):
        return "an array holds Python objects; it may hold numbers or text"
    return str(error)


def read_arrays(where: str, arrays: dict[str, np.ndarray], present: list[str]) -> dict[str, Split]:
    """Splits from arrays in the MedMNIST layout. Raises HarnessError where a shape or type is wrong."""
    grouped = [s for s in present if f"{s}_groups" in arrays]
    if grouped and grouped != present:
        lacking = ", ".join(f"{s}_groups" for s in present if s not in grouped)
        raise HarnessError(f"{where}: {lacking} missing, while {', '.join(grouped)} has groups")
    groups = group_codes(where, {s: arrays[f"{s}_groups"].reshape(-1) for s in grouped}) if grouped else {}
    return {
        s: Split(
            _images(arrays[f"{s}_images"], f"{where}, {s}_images"),
            _labels(arrays[f"{s}_labels"], f"{where}, {s}_labels"),
            groups.get(s),
        )
        for s in present
    }


def _images(images: np.ndarray, where: str) -> np.ndarray:
    import numpy as np

    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or not 1 <= images.shape[-1] <= 4:
        raise HarnessError(f"{where}: must be (n, h, w) or (n, h, w, c) with c at most 4, not {images.shape}")
    if np.issubdtype(images.dtype, np.floating):
        images = images.astype(np.float32)
    elif images.dtype != np.uint8:
        raise HarnessError(f"{where}: must be uint8 or floats in [0, 1], not {images.dtype}")
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _labels(labels: np.ndarray, where: str) -> np.ndarray:
    import numpy as np

    if labels.ndim == 2 and labels.shape[1] > 1:
        raise HarnessError(f"{where}: {labels.shape[1]} labels a record; multi-label data is not supported")
    if labels.ndim not in (1, 2) or not np.issubdtype(labels.dtype, np.integer):
        raise HarnessError(f"{where}: must be integers (n,) or (n, 1), not {labels.dtype} {labels.shape}")
    return labels.reshape(-1).astype(np.int64)


PLUGINS = (Npz,)
