"""What the datasets share: completing missing splits, class names, group codes and fingerprints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.api import HarnessError, Split, Splits, hold_out, numpy_generator

if TYPE_CHECKING:
    import numpy as np

# What folders and files call each split, in whatever case.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


def by_split(where: str, names: Collection[str]) -> dict[str, str]:
    """train, val and test, in this order, each with the name that means it, where there is one.

    Raises HarnessError where two names mean the same split. where: what begins the message, `dataset NAME: FILE`.
    """
    found: dict[str, str] = {}
    for split, known in SPLIT_NAMES.items():
        meant = sorted(name for name in names if name.lower() in known)
        if len(meant) > 1:
            raise HarnessError(
                f"{where} has {' and '.join(meant)}, which mean the same split; keep one {split}"
            )
        if meant:
            found[split] = meant[0]
    return found


def held_out(split: Split, fraction: float, name: str, purpose: str, seed: int) -> tuple[Split, Split]:
    """(kept, held out): a stratified share of the records, whole groups only, seeded by what it is for."""
    rng = numpy_generator("split", purpose, seed)
    try:
        kept, out = hold_out(split.labels, split.groups, fraction, rng)
    except HarnessError as error:
        raise HarnessError(f"dataset {name}, {purpose}: {error}") from None
    return split.take(kept), split.take(out)


def complete(
    name: str,
    parts: dict[str, Split],
    class_names: Sequence[str],
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> Splits:
    """Splits from a dict with `train` and maybe `val` and `test`; the missing ones are held out of train.

    Fractions are of the records in `train` as given: test first, then val from what is left.
    """
    train, val, test = parts["train"], parts.get("val"), parts.get("test")
    if test is None:
        if val is None and val_fraction + test_fraction >= 1:
            raise HarnessError(
                f"dataset {name}: val_fraction + test_fraction must be below 1, "
                f"not {val_fraction + test_fraction:g}"
            )
        train, test = held_out(train, test_fraction, name, "test", seed)
        val_fraction /= 1 - test_fraction
    if val is None:
        train, val = held_out(train, val_fraction, name, "val", seed)
    splits = Splits(train, val, test, tuple(class_names))
    splits.check(name)
    return splits


def limited(name: str, splits: Splits, limit: int | None, seed: int) -> Splits:
    """With about `limit` training records, whole groups only, stratified by class; None or enough: as they are."""
    size = len(splits.train.labels)
    if limit is None or limit >= size:
        return splits
    _, kept = held_out(splits.train, limit / size, name, "train_limit", seed)
    return replace(splits, train=kept)


def name_classes(where: str, given: Sequence[str] | None, labels: Iterable[np.ndarray]) -> tuple[str, ...]:
    """The names given, else the numbers 0 to the largest label.

    Raises HarnessError on too few names, and where there are none and the largest label is not below the number
    of records: then it is no class but a mark such as -1 read without its sign.
    """
    filled = [part for part in labels if len(part)]
    highest = max((int(part.max()) for part in filled), default=0)
    if given is None:
        records = sum(len(part) for part in filled)
        if highest >= max(records, 1):
            raise HarnessError(
                f"{where}: the largest label is {highest}, with {records} records in all; "
                "number the classes from 0, or give class_names"
            )
        return tuple(str(i) for i in range(highest + 1))
    if len(given) <= highest:
        raise HarnessError(f"{where}: {len(given)} class names, but labels up to {highest}")
    if len(set(given)) < len(given):
        raise HarnessError(f"{where}: class names repeat: {', '.join(given)}")
    return tuple(given)


def group_codes(where: str, parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Group ids as int64; names (text) become numbers by their sorted order over all splits together.

    Whole numbers held as floats are integers first, so that an id is the same in every split. Raises HarnessError on
    other floats and other types.
    """
    import numpy as np

    parts = {key: _ids(f"{where}, {key} groups", part) for key, part in parts.items()}
    if all(np.issubdtype(part.dtype, np.integer) for part in parts.values()):
        return {key: part.astype(np.int64) for key, part in parts.items()}
    names = np.unique(np.concatenate([part.astype(str) for part in parts.values()]))
    return {key: np.searchsorted(names, part.astype(str)).astype(np.int64) for key, part in parts.items()}


def _ids(where: str, groups: np.ndarray) -> np.ndarray:
    """Groups as integers or text. Raises HarnessError where they are, or may be, something else."""
    import numpy as np

    if groups.dtype.kind in "iuSU":
        return groups
    if groups.dtype.kind != "f":
        raise HarnessError(f"{where}: must be integers or text, not {groups.dtype}")
    exact = 2.0 ** min(np.finfo(groups.dtype).nmant + 1, 53)  # beyond it, two integers may be the same float
    whole = (groups == np.floor(groups)) & (np.abs(groups) <= exact)  # false for NaN and infinity, too
    if len(wrong := groups[~whole]):
        raise HarnessError(
            f"{where}: {len(wrong)} are not whole numbers that {groups.dtype} holds exactly (e.g. {wrong[0]}); "
            "must be integers or text"
        )
    return groups.astype(np.int64)


def content_hash(content: Iterable[str], parameters: dict[str, Any]) -> str:
    """sha256 over hashes or names of the content, in order, and the parameters that shape what is loaded."""
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode())
    for item in content:
        digest.update(b"\0" + item.encode(errors="surrogateescape"))  # a name may be of no encoding
    return digest.hexdigest()
