"""Datasets and partitioners."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from harness.contracts.data import Dataset, Partitioner
from harness.errors import HarnessError, PluginError
from harness.testing.core import (
    FAMILIES,
    CheckFailed,
    CheckSkipped,
    Family,
    Setting,
    Subject,
    Trial,
    after,
    check,
    require,
)


def _dataset_trial(dataset: Dataset, setting: Setting) -> Trial:
    try:
        splits = dataset.load(None)
    except HarnessError as error:
        raise CheckSkipped(
            f"the data cannot be loaded here: {error}. Check an instance that finds some"
        ) from error
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}

    def call() -> dict[str, Any]:
        again = dataset.load(None)
        return {
            "splits": splits, "fingerprint": dataset.fingerprint(None),
            "content": [splits.fingerprint(), again.fingerprint()],
        }  # fmt: skip

    return Trial(parts, call)


FAMILIES["dataset"] = Family("dataset", _dataset_trial, dtypes=("float32",), scenes=1)


@check("dataset")
def splits_well_formed(subject: Subject) -> None:
    """Images (n, c, h, w) uint8 or float32 in [0, 1], integer labels of named classes, each group in one split."""
    splits = subject.outcome().output["splits"]
    try:
        splits.check(subject.name)
    except HarnessError as error:
        raise CheckFailed(f"{error}") from error
    names = splits.class_names
    require(
        len(set(names)) == len(names) >= 2, f"{subject.name} names its classes {names}: give each a name of its own"
    )  # fmt: skip
    require(
        splits.train.labels.dtype == np.int64,
        f"the labels of {subject.name} are {splits.train.labels.dtype}, not int64",
    )
    c, h, w = splits.input_shape
    require(
        not (c == h > 4 and w <= 4),
        f"{subject.name} has images of {c} channels, {h} x {w}: put channels before rows and columns, ({w}, {c}, {h})",
    )


@check("dataset")
def splits_disjoint(subject: Subject) -> None:
    """At most half of the validation images, and of the test images, are training images too."""
    splits = subject.outcome().output["splits"]
    known = {_bytes(image) for image in splits.train.images}
    for name, part in (("val", splits.val), ("test", splits.test)):
        share = np.mean([_bytes(image) in known for image in part.images[:2000]])
        require(
            bool(share <= 0.5),
            f"{share:.0%} of the {name} images of {subject.name} are training images too: split by record, "
            "and by group "
            "where one patient or site has several (harness.api.hold_out)",
        )


def _bytes(image: np.ndarray) -> bytes:
    return np.ascontiguousarray(image).tobytes()


@check("dataset")
def fingerprint_stable(subject: Subject) -> None:
    """Loaded twice, the content and its fingerprint are the same."""
    output = subject.outcome().output
    require(
        len(set(output["content"])) == 1,
        f"{subject.name} loads other content the second time: seed every draw from its parameters",
    )
    require(
        isinstance(output["fingerprint"], str)
        and len(output["fingerprint"]) >= 32
        and subject.again().output["fingerprint"] == output["fingerprint"],
        f"the fingerprint of {subject.name} is not stable: it must follow from the content alone",
    )


@check("dataset")
def fingerprint_tells_contents_apart(subject: Subject) -> None:
    """Parameters that change the content also change the fingerprint."""
    output = subject.outcome().output
    for name, dataset in _variants(subject.plugin):
        try:
            splits, fingerprint = dataset.load(None), dataset.fingerprint(None)
        except HarnessError:  # not every value suits the data at hand
            continue
        require(
            splits.fingerprint() == output["content"][0] or fingerprint != output["fingerprint"],
            f"the fingerprint of {subject.name} is the same for {name} = {getattr(dataset, name)!r}, which loads "
            "other data: hash the parameters that decide the content too",
        )


def _variants(dataset: Dataset) -> Iterator[tuple[str, Dataset]]:
    """(parameter, the dataset with another value of it), where such a value is easily found."""
    for name, value in dataset.parameters().items():
        annotation = type(dataset).model_fields[name].annotation
        others: list[Any] = []
        if typing.get_origin(annotation) is typing.Literal:
            others = [other for other in typing.get_args(annotation) if other != value][:2]
        elif isinstance(value, int | float) and name not in dataset.locations:
            others = [
                not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value / 2
            ]
        for other in others:
            with suppress(PluginError):
                yield name, dataset.create({**dataset.parameters(explicit=True), name: other})


# partitioners -----------------------------------------------------------------------------------

RECORDS, CLIENTS = 400, 5


def _records() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 4, RECORDS), np.repeat(np.arange(40), 10)


def _partition_trial(partitioner: Partitioner, setting: Setting) -> Trial:
    labels, groups = _records()

    def call() -> dict[str, Any]:
        return {"parts": partitioner.partition(labels, groups, CLIENTS, np.random.default_rng(3))}

    return Trial({"labels": labels, "groups": groups}, call)


FAMILIES["partitioner"] = Family("partitioner", _partition_trial, dtypes=("float32",), scenes=1)


@check("partitioner")
def every_record_once(subject: Subject) -> None:
    """Every position goes to exactly one client, and no client is empty."""
    _partition(subject, subject.outcome().output["parts"], CLIENTS, "5 clients")


def _partition(subject: Subject, parts: Any, clients: int, what: str) -> None:
    require(
        isinstance(parts, list) and len(parts) == clients,
        f"{subject.name} returns {len(parts)} parts for {what}: one array of positions a client",
    )
    for number, part in enumerate(parts):
        require(
            isinstance(part, np.ndarray) and part.ndim == 1 and np.issubdtype(part.dtype, np.integer),
            f"{subject.name} gives client {number} {type(part).__name__}, not a 1-d integer array ({what})",
        )
        require(
            len(part) > 0,
            f"{subject.name} leaves client {number} without records ({what}): draw again, move records over, or raise "
            "PluginError where it cannot be done",
        )
    dealt = np.concatenate(parts)
    lost = np.setdiff1d(np.arange(RECORDS), dealt)
    require(
        len(lost) == 0,
        f"{subject.name} loses {len(lost)} of {RECORDS} records ({what}), the first at position "
        f"{lost[0] if len(lost) else ''}",
    )
    require(
        len(dealt) == RECORDS and dealt.min() >= 0 and dealt.max() < RECORDS,
        f"{subject.name} deals out {len(dealt)} positions for {RECORDS} records ({what}): some twice, or outside",
    )


@check("partitioner")
def client_counts(subject: Subject) -> None:
    """One client, many clients and data without groups work, or are refused with a PluginError."""
    after(subject, every_record_once)
    labels, groups = _records()
    for clients, known in (
        (1, groups),
        (40, groups),
        (RECORDS, None),
        (CLIENTS, None),
        (RECORDS + 1, groups),
    ):
        what = f"{clients} clients" + ("" if known is not None else ", no groups")
        try:
            parts = subject.plugin.partition(labels, known, clients, np.random.default_rng(3))
        except PluginError:
            continue
        except Exception as error:
            raise CheckFailed(
                f"{subject.name} breaks with {what}: {type(error).__name__}: {error}. Raise PluginError with "
                "the numbers"
            ) from error
        _partition(subject, parts, clients, what)
