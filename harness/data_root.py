"""The folder that data paths resolve against, and fingerprints of the datasets they lead to."""

from __future__ import annotations

from pathlib import Path

from harness.contracts.data import Dataset
from harness.errors import HarnessError
from harness.identity import digest, identity_of


class DataRoot:
    """Fingerprints of the datasets under a root, each computed once; not to be kept longer than the plan it serves."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[Dataset, str | None] = {}

    def know(self, dataset: Dataset, fingerprint: str) -> None:
        """Takes over a fingerprint that was computed elsewhere."""
        self._known[dataset] = fingerprint

    def fingerprint(self, dataset: Dataset) -> str | None:
        """The data's when first asked for; None where they cannot be read: the stage that needs them says why."""
        if dataset not in self._known:
            self._known[dataset] = fingerprint_now(dataset, self.path)
        return self._known[dataset]


def fingerprint_now(dataset: Dataset, root: Path) -> str | None:
    """The fingerprint of a dataset's content under a root; None where it cannot be read."""
    try:
        return dataset.fingerprint(root)
    except Exception:  # a plugin may raise anything
        return None


def data_changed(dataset: Dataset) -> HarnessError:
    """The error for data that are no longer those that a run was planned with."""
    return HarnessError(f"the data of {dataset.label()} changed during the run; run again")


def dataset_key(dataset: Dataset, root: Path, fingerprint: str) -> str:
    """Hash of all that decides what loading gives: the content, the plugin's code, and its parameters except paths.

    fingerprint: `dataset.fingerprint(root)`. Raises PluginError where the plugin is not registered.
    """
    data = DataRoot(root)
    data.know(dataset, fingerprint)
    return digest(identity_of(dataset, data.fingerprint))
