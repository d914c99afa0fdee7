"""What becomes of a training's guarantee in a plan: every later use of protected data breaks it, by name.

Protected are the training records, always, and the validation split unless the scenario declares it
unprotected. What reads nothing but noised updates or the released model is post-processing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.contracts.compressor import DATA_ACCESS, ModelCompressor
from harness.errors import PluginError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from harness.contracts.aggregator import Aggregator
    from harness.contracts.compressor import Compressor
    from harness.contracts.defence import Guarantee


def apply_lineage(
    guarantee: Guarantee | None,
    *,
    compressors: tuple[Compressor, ...],
    aggregators: tuple[Aggregator, ...],
    unprotected: tuple[str, ...],
) -> Guarantee | None:
    """A copy of the guarantee with `holds` and `broken_by` settled for these parts; None stays None.

    Model compressors calibrate on the validation split, so those that need data break the guarantee unless
    "val" is unprotected; their fine-tuning is accounted by the training's own history. Update compressors see
    updates after the noise: post-processing. An aggregator's root dataset is drawn from the validation split
    too, so it breaks the guarantee unless "val" is unprotected. Raises PluginError for a data access that is not known.
    """
    if guarantee is None:
        return None
    broken = list(guarantee.broken_by)
    for reason in _reasons(compressors, aggregators, "val" not in unprotected):
        if reason not in broken:
            broken.append(reason)
    holds = guarantee.holds and not broken
    return guarantee.model_copy(update={"holds": holds, "broken_by": broken}, deep=True)


def _reasons(
    compressors: Iterable[Compressor], aggregators: Iterable[Aggregator], val_protected: bool
) -> Iterable[str]:
    for compressor in compressors:
        if isinstance(compressor, ModelCompressor):
            access = _known(compressor.name, compressor.data_access)
            if access != "none" and val_protected:
                yield f"{compressor.name} reads the validation split, which is protected, without accounting"
    for aggregator in aggregators:
        access = _known(aggregator.name, aggregator.data_access)
        if access != "none" and val_protected:
            yield f"{aggregator.name} takes root data from the validation split, which is protected"


def _known(name: str, access: str) -> str:
    if access not in DATA_ACCESS:
        raise PluginError(f"{name}: data access is none, public or private, not {access!r}")
    return access
