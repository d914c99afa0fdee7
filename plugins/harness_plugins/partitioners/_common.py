"""What the partitioners share: input checks, and cutting sequences by proportions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import PluginError

if TYPE_CHECKING:
    import numpy as np


def check_request(labels: np.ndarray, clients: int, at_least: int = 1) -> None:
    """Raises PluginError unless `clients` clients can have `at_least` records each."""
    import numpy as np

    if clients < 1:
        raise PluginError(f"clients must be at least 1, not {clients}")
    if np.ndim(labels) != 1:
        raise PluginError(f"labels must be (n,), not {np.shape(labels)}")
    if len(labels) < clients * at_least:
        each = "one record" if at_least == 1 else f"{at_least} records"
        raise PluginError(f"{len(labels)} records cannot give {clients} clients {each} each")


def cuts(proportions: np.ndarray, n: int) -> np.ndarray:
    """Where to cut n records into pieces of these proportions (k,), sum 1: (k - 1,) positions."""
    import numpy as np

    return np.minimum((np.cumsum(proportions)[:-1] * n).astype(np.int64), n)


def ordered(parts: list[np.ndarray]) -> list[np.ndarray]:
    """Each client's positions as sorted int64."""
    import numpy as np

    return [np.sort(np.asarray(part, dtype=np.int64)) for part in parts]


def too_uneven(name: str, clients: int, min_size: int, tries: int) -> PluginError:
    """The error after the last draw that left a client short."""
    return PluginError(
        f"{name}: in {tries} draws some client of {clients} always had fewer than {min_size} records; "
        "use a larger alpha, fewer clients, or a smaller min_size"
    )
