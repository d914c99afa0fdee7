"""The IDX format of MNIST's files."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api import HarnessError

if TYPE_CHECKING:
    import numpy as np

FILES = (
    ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
)


def idx_file(folder: Path, name: str) -> Path | None:
    """The file, plain or with .gz, if it is in the folder."""
    return next((f for f in (folder / name, folder / f"{name}.gz") if f.is_file()), None)


def is_idx_folder(folder: Path) -> bool:
    """Whether all four files are there."""
    return all(idx_file(folder, name) for pair in FILES for name in pair)


def read_idx(file: Path) -> np.ndarray:
    """An array of unsigned bytes: magic 0 0 8 ndim, ndim big-endian uint32 sizes, then the values, row-major.

    Raises HarnessError where the file is cut short or of another type.
    """
    import numpy as np

    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        zero, kind, ndim = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{ndim}I", content[4 : 4 + 4 * ndim])
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise HarnessError(f"{file} is not a readable IDX file: {error}") from None
    values = content[4 + 4 * ndim :]
    if zero != 0 or kind != 8 or len(values) != math.prod(shape):
        raise HarnessError(f"{file} is not an IDX file of unsigned bytes with {shape} values")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape).copy()


def read_folder(folder: Path) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """((train images (n, h, w), labels (n,)), (test images, labels))."""
    pairs = []
    for names in FILES:
        images, labels = (read_idx(file) for name in names if (file := idx_file(folder, name)))
        pairs.append((images, labels))
    return pairs[0], pairs[1]
