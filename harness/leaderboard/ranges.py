"""The range of values that a score can have, by its unit."""

from __future__ import annotations

import math

Range = tuple[float, float]

ANYTHING: Range = (-math.inf, math.inf)
_SHARE: Range = (0.0, 1.0)
_AMOUNT: Range = (0.0, math.inf)
_BY_UNIT = {
    "share": _SHARE, "probability": _SHARE, "s": _AMOUNT, "ms": _AMOUNT, "B": _AMOUNT, "bytes": _AMOUNT,
    "bytes per client": _AMOUNT, "MAC": _AMOUNT,
}  # fmt: skip
# Shares that can be negative: images can be each other's negative, and a guess can be better than an attack.
_SIGNED = ("reconstruction_ssim", "label_recovery_gain")
# Never negative, though their units have no range: a lower bound on epsilon is at least 0, and so is an exposure, which
# is 0 for a canary of the last rank.
_UNSIGNED = ("epsilon_audited", "exposure_mean", "exposure_max")


def range_of(name: str, unit: str | None) -> Range:
    """The least and the most that a score can be."""
    low, high = _AMOUNT if name in _UNSIGNED else _BY_UNIT.get(unit or "", ANYTHING)
    return (-1.0 if name in _SIGNED else low), high
