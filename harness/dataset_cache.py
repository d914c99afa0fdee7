"""Datasets decoded once per machine: arrays in files that all processes map instead of holding copies.

The cache is $HARNESS_CACHE/datasets, by default in the user's cache folder: one folder per dataset, named by its
content, its parameters and what decoded it. Entries are written under another name and then renamed, so they are whole
or absent; deleting any of them is safe at any time. Entries not used for a month go when a new one is written.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from harness.cache_folder import cache_folder
from harness.contracts.data import Dataset, Split, Splits, loaded
from harness.data_root import data_changed, dataset_key
from harness.errors import PluginError
from harness.identity import digest, library_versions

LAYOUT = 2
SMALLEST = 2**20  # bytes of images; less is loaded as fast without
UNUSED = 30 * 24 * 3600.0  # seconds after which an entry may be removed
NAMES = ("train", "val", "test")


def folder() -> Path:
    """Where entries are."""
    return cache_folder() / "datasets"


def load_splits(dataset: Dataset, root: Path, fingerprint: str) -> Splits:
    """The dataset, checked: from the cache if it is there, else decoded and, unless it is small, put there.

    fingerprint: `dataset.fingerprint(root)`, which identifies content and parameters; "": no cache. Arrays from the
    cache are private copy-on-write maps of its files: they take no memory of their own until something writes to them,
    and nothing written reaches the file. If the cache is damaged, or cannot be read or written, loading does without.
    Raises HarnessError as loading does, and where the decoded data do not have this fingerprint, because somebody
    replaced them meanwhile.
    """
    key = None
    if fingerprint:
        with contextlib.suppress(PluginError):  # not registered: nothing tells which code decodes it
            key = dataset_key(dataset, root, fingerprint)
    entry = folder() / digest([LAYOUT, key, library_versions()])[:32]
    if key is not None and entry.exists():
        try:
            return _read(entry)
        except Exception:  # half deleted, or a disk's fault: NumPy's reader raises many kinds
            shutil.rmtree(entry, ignore_errors=True)
    splits = loaded(dataset, root)
    splits.check(dataset.name)
    if fingerprint and _fingerprint_of(splits, dataset, root) != fingerprint:
        raise data_changed(dataset)
    size = sum(getattr(splits, name).images.nbytes for name in NAMES)
    if key is not None and size >= SMALLEST:
        with contextlib.suppress(OSError, ValueError):
            _write(entry, splits)
            return _read(entry)  # so that this process gives back the memory that decoding took
    return splits


def _fingerprint_of(splits: Splits, dataset: Dataset, root: Path) -> str:
    """The fingerprint of what was just decoded. Taken afterwards, so that a change during decoding shows."""
    if type(dataset).fingerprint is Dataset.fingerprint:  # the default, which would decode everything again
        return splits.fingerprint()
    return dataset.fingerprint(root)


def _read(entry: Path) -> Splits:
    """The dataset in a cache entry. Raises where the entry is not what was written."""
    facts = json.loads((entry / "facts.json").read_text(encoding="utf-8"))

    def split(name: str) -> Split:
        images, labels = (
            np.load(entry / f"{name}-{part}.npy", mmap_mode="c") for part in ("images", "labels")
        )
        groups = np.load(entry / f"{name}-groups.npy") if name in facts["grouped"] else None
        return Split(images.view(np.ndarray), np.array(labels), groups)

    splits = Splits(split("train"), split("val"), split("test"), tuple(facts["class_names"]))
    if splits.fingerprint() != facts["content"]:  # 0.05 s for 100 MB, once a process
        raise ValueError("an altered byte would be trained on, or scored")
    with contextlib.suppress(OSError):  # in a read-only cache, its owner decides how old entries are
        os.utime(entry)
    return splits


def _write(entry: Path, splits: Splits) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    _forget(entry.parent)
    draft = Path(tempfile.mkdtemp(prefix="draft-", dir=entry.parent))
    try:
        grouped = []
        for name in NAMES:
            split = getattr(splits, name)
            np.save(draft / f"{name}-images.npy", np.ascontiguousarray(split.images))
            np.save(draft / f"{name}-labels.npy", split.labels)
            if split.groups is not None:
                np.save(draft / f"{name}-groups.npy", split.groups)
                grouped.append(name)
        content = splits.fingerprint()
        facts = {"class_names": list(splits.class_names), "grouped": grouped, "content": content}
        (draft / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        for file in draft.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        with contextlib.suppress(OSError):  # another process was first, with the same content
            draft.rename(entry)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _forget(place: Path) -> None:
    """Remove entries that were not used for `UNUSED` seconds, and drafts as old, of processes that were killed."""
    for entry in place.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - entry.stat().st_mtime > UNUSED:
                shutil.rmtree(entry, ignore_errors=True)
