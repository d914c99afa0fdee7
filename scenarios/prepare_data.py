"""Makes the data files of the published boards from public sources, byte for byte.

    python scenarios/prepare_data.py fashion-mnist FOLDER --out DATA
    python scenarios/prepare_data.py pneumonia FOLDER --out DATA
    python scenarios/prepare_data.py pneumonia-224 FOLDER --out DATA

Sources, licences and what each file holds: docs/data.md.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

# SHA-256 of the files that the published boards were computed on.
PUBLISHED = {
    "fashion-mnist.npz": "99da9f2868343506fb17aa7b6a77a2a9bbdb639dd1cb48890b1eaeedeb59910d",
    "pneumonia-28.npz": "da6549850e5012112ed7b4d7523fc5084910e9cf532911ebc024127e4c029d74",
    "pneumonia-64.npz": "19ed88b91f72c4ad51c9693d39458af5ae8ace25c6dd7708417698e5188b8253",
}
FASHION_VALIDATION = 5000  # the last images of the official training part
PNEUMONIA_SIZES = (28, 64)  # pixels a side
PNEUMONIA_COUNTS = {"train": 5216, "test": 624}
PNEUMONIA_VALIDATION = 0.1  # share of each stratum's training images
ORDER = 2018  # seed of the order of images and patients


class DataError(Exception):
    """What is wrong with the source, for the reader."""


def fashion_mnist(source: Path) -> dict[str, bytes]:
    """File -> content. source: torchvision's folder of FashionMNIST; what it lacks is downloaded and checked."""
    from torchvision.datasets import FashionMNIST

    parts = [FashionMNIST(source, train=train, download=True) for train in (True, False)]
    (images, labels), (test_images, test_labels) = ((p.data.numpy(), p.targets.numpy()) for p in parts)
    cut = len(images) - FASHION_VALIDATION
    splits = {
        "train": (images[:cut], labels[:cut]),
        "val": (images[cut:], labels[cut:]),
        "test": (test_images, test_labels),
    }
    return {"fashion-mnist.npz": _npz(splits)}


def pneumonia(source: Path) -> dict[str, bytes]:
    """File -> content. source: a folder {train,test}/{NORMAL,PNEUMONIA}/*.jpeg; labels normal, bacterial, viral."""
    paths = {part: _images_of(source, part) for part in PNEUMONIA_COUNTS}
    held_out = validation_patients(paths["train"])
    rows = {
        "train": [p for p in paths["train"] if patient(p) not in held_out],
        "val": [p for p in paths["train"] if patient(p) in held_out],
        "test": paths["test"],
    }
    groups = {
        f"{split}_groups": np.array([_group(p, split) for p in of_split]) for split, of_split in rows.items()
    }
    files = {}
    for size in PNEUMONIA_SIZES:
        splits = {
            split: (np.stack([_grey(p, size) for p in of_split]), np.array([label(p) for p in of_split]))
            for split, of_split in rows.items()
        }
        files[f"pneumonia-{size}.npz"] = _npz(splits, groups)
    return files


def pneumonia_224(source: Path) -> dict[str, bytes]:
    """File -> content: the images as they are, in the schema of Hugging Face datasets, and the patients.

    source: as of `pneumonia`.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise DataError("pneumonia-224 needs pyarrow: pip install 'psr-harness[hf]'") from None

    files = {}
    for part in PNEUMONIA_COUNTS:
        paths = _images_of(source, part)
        images = [{"bytes": p.read_bytes(), "path": f"{p.parent.name}/{p.name}"} for p in paths]
        columns = {"label": [label(p) for p in paths], "patient": [_group(p, part) for p in paths]}
        buffer = io.BytesIO()
        parquet.write_table(pa.table({"image": images, **columns}), buffer)
        files[f"pneumonia-224/{part}.parquet"] = buffer.getvalue()
    return files


def label(path: Path) -> int:
    """0 normal, 1 bacterial, 2 viral, as file names tell."""
    if path.parent.name == "NORMAL":
        return 0
    kinds = [number for word, number in (("_bacteria_", 1), ("_virus_", 2)) if word in path.name]
    if len(kinds) != 1:
        raise DataError(f"{path}: expected a name such as person1_bacteria_1.jpeg or person1_virus_1.jpeg")
    return kinds[0]


def patient(path: Path) -> tuple[str, int]:
    """Kind of number and number: `person12_virus_3` is person 12, `IM-0012-0001` and `NORMAL2-IM-0012-0001` IM 12."""
    found = re.match(r"(person)(\d+)_|(?:NORMAL2-)?(IM)-(\d+)-", path.name)
    if found is None:
        raise DataError(f"{path}: expected a name such as person1_virus_6.jpeg or IM-0115-0001.jpeg")
    kind, number = (part for part in found.groups() if part is not None)
    return kind, int(number)


def validation_patients(paths: Iterable[Path]) -> set[tuple[str, int]]:
    """About a tenth of the images, in whole patients: the first that are drawn among those with the same labels."""
    labels = defaultdict(list)
    for path in paths:
        labels[patient(path)].append(label(path))
    strata = defaultdict(list)
    for who, theirs in labels.items():
        strata[frozenset(theirs)].append(who)
    chosen = set()
    for stratum in strata.values():
        room = round(PNEUMONIA_VALIDATION * sum(len(labels[who]) for who in stratum))
        for who in sorted(stratum, key=lambda who: _drawn("{}{}".format(*who))):
            if len(labels[who]) <= room:
                chosen.add(who)
                room -= len(labels[who])
    return chosen


def _images_of(source: Path, part: str) -> list[Path]:
    paths = [p for name in ("NORMAL", "PNEUMONIA") for p in (source / part / name).glob("*.jpeg")]
    if len(paths) != PNEUMONIA_COUNTS[part]:
        raise DataError(
            f"{source / part}: expected {PNEUMONIA_COUNTS[part]:,} images in NORMAL/*.jpeg and PNEUMONIA/*.jpeg, "
            f"found {len(paths):,}"
        )
    return sorted(paths, key=lambda path: _drawn(f"{part}/{path.parent.name}/{path.name}"))


def _drawn(text: str) -> str:
    return hashlib.sha256(f"{ORDER}:{text}".encode()).hexdigest()


def _group(path: Path, split: str) -> int:
    """A number for each patient; whether one number means one child in both official parts is not documented."""
    kind, number = patient(path)
    return number + 100_000 * (kind == "IM") + 1_000_000 * (split == "test")


def _grey(path: Path, size: int) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("L").resize((size, size), Image.Resampling.LANCZOS))


def _npz(
    splits: dict[str, tuple[np.ndarray, np.ndarray]], more: dict[str, np.ndarray] | None = None
) -> bytes:
    """MedMNIST's keys: images (n, h, w) uint8, labels (n, 1) int64; after them, more arrays."""
    arrays = {}
    for split, (images, labels) in splits.items():
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = images, labels.astype(np.int64)[:, None]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays, **(more or {}))
    return buffer.getvalue()


def write(files: dict[str, bytes], out: Path) -> bool:
    """Writes them, tells which are the published ones, and returns whether all are that should be."""
    same = True
    for name, content in files.items():
        file = out / name
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}")
        draft.write_bytes(content)
        draft.replace(file)
        found, published = hashlib.sha256(content).hexdigest(), PUBLISHED.get(name)
        if published is None:
            print(f"{file}: written; no board uses it")
        elif found == published:
            print(f"{file}: the file that the published boards were computed on")
        else:
            same = False
            print(f"{file}: NOT the file that the published boards were computed on; SHA-256 {found}")
    return same


MAKERS = {"fashion-mnist": fashion_mnist, "pneumonia": pneumonia, "pneumonia-224": pneumonia_224}


def main() -> int:
    description, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", choices=list(MAKERS), help="what to make")
    parser.add_argument("source", type=Path, metavar="FOLDER", help="where the source is, see docs/data.md")
    parser.add_argument("--out", type=Path, required=True, metavar="DATA", help="folder for the files made")
    arguments = parser.parse_args()
    try:
        files = MAKERS[arguments.data](arguments.source)
    except (DataError, OSError, RuntimeError) as error:  # RuntimeError: torchvision, where a download fails
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if write(files, arguments.out) else 1


if __name__ == "__main__":
    sys.exit(main())
