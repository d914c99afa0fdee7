"""The folder that paths of data resolve against, and fingerprints of what they lead to."""

from __future__ import annotations

from pathlib import Path

from harness.contracts.data import Dataset
from harness.errors import HarnessError
from harness.identity import digest, identity_of


class DataRoot:
    """Fingerprints of data sets, each worked out once: it is as short-lived as the plan that it is made for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[Dataset, str | None] = {}

    def know(self, dataset: Dataset, fingerprint: str) -> None:
        """Takes over what was worked out elsewhere."""
        self._known[dataset] = fingerprint

    def fingerprint(self, dataset: Dataset) -> str | None:
        """Of the data now; None where they cannot be read: the stage that needs them says why."""
        if dataset not in self._known:
            self._known[dataset] = fingerprint_now(dataset, self.path)
        return self._known[dataset]


def fingerprint_now(dataset: Dataset, root: Path) -> str | None:
    """Of a data set's content under a root, None where it cannot be read."""
    try:
        return dataset.fingerprint(root)
    except Exception:  # a plugin's own
        return None


def data_changed(dataset: Dataset) -> HarnessError:
    """The data that a run was planned with are no longer there."""
    return HarnessError(f"the data of {dataset.label()} changed during the run; run again")


def dataset_key(dataset: Dataset, root: Path, fingerprint: str) -> str:
    """Of everything that decides what loading gives: the content, the plugin's code, and its parameters but for paths.

    fingerprint: `dataset.fingerprint(root)`. Raises PluginError where the plugin is not registered.
    """
    data = DataRoot(root)
    data.know(dataset, fingerprint)
    return digest(identity_of(dataset, data.fingerprint))
