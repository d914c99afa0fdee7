"""What plugins may return in a round, and report of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.errors import PluginError
from harness.federation.returned import checked, kept_rows


@pytest.mark.parametrize(
    "kept",
    [
        [0, 2],
        (0, 2),
        np.array([0, 2]),
        torch.tensor([0, 2]),
        torch.tensor([True, False, True, False]),
        [True, False] * 2,
    ],
)
def test_rows_are_kept_by_position_or_by_mask(kept):
    assert kept_rows(kept, 4, "rule") == [0, 2]
    assert kept_rows([], 4, "rule") == []


@pytest.mark.parametrize("kept", [[4], [-1], [0.5], "ab", [[0], [1]], [True], {0: 1}, 3])
def test_other_rows_are_refused(kept):
    with pytest.raises(PluginError, match=r"^rule reported"):
        kept_rows(kept, 4, "rule")


def test_integers_are_taken_only_where_they_may_be():
    found = torch.zeros(2, 3, dtype=torch.int64)
    assert checked(found, (2, 3), "attack", whole=True) is found
    with pytest.raises(PluginError, match=r"^attack returned torch\.int64, not floating point"):
        checked(found, (2, 3), "attack")
    with pytest.raises(PluginError, match=r"^attack returned \(2, 3\), not \(3,\)"):
        checked(found, (3,), "attack")


def test_a_tensor_without_numbers_is_refused():
    with pytest.raises(PluginError, match=r"^rule returned a tensor on the meta device"):
        checked(torch.zeros(3, device="meta"), (3,), "rule")
