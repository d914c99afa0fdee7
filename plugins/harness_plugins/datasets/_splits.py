"""What the datasets share: completing missing splits, class names, group codes and fingerprints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from harness.api import HarnessError, Split, Splits, hold_out, numpy_generator

if TYPE_CHECKING:
    import numpy as np


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


def name_classes(name: str, given: Sequence[str] | None, labels: Iterable[np.ndarray]) -> tuple[str, ...]:
    """The names given, else the numbers 0 to the largest label. Raises HarnessError on too few names."""
    highest = max((int(part.max()) for part in labels if len(part)), default=0)
    if given is None:
        return tuple(str(i) for i in range(highest + 1))
    if len(given) <= highest:
        raise HarnessError(f"dataset {name}: {len(given)} class names, but labels up to {highest}")
    if len(set(given)) < len(given):
        raise HarnessError(f"dataset {name}: class names repeat: {', '.join(given)}")
    return tuple(given)


def group_codes(parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Group ids as int64; names (text) become numbers by their sorted order over all splits together."""
    import numpy as np

    if all(np.issubdtype(part.dtype, np.integer) for part in parts.values()):
        return {key: part.astype(np.int64) for key, part in parts.items()}
    names = np.unique(np.concatenate([part.astype(str) for part in parts.values()]))
    return {key: np.searchsorted(names, part.astype(str)).astype(np.int64) for key, part in parts.items()}


def content_hash(content: Iterable[str], parameters: dict[str, Any]) -> str:
    """sha256 over hashes or names of the content, in order, and the parameters that shape what is loaded."""
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode())
    for item in content:
        digest.update(b"\0" + item.encode())
    return digest.hexdigest()
