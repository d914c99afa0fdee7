"""A malicious client's records as its attack wants them, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.contracts.attack import ClientData
from harness.errors import PluginError, blamed

if TYPE_CHECKING:
    from torch import Tensor

    from harness.contracts.attack import PoisonContext, PoisoningAttack


def poison(
    attack: PoisoningAttack, images: Tensor, labels: Tensor, context: PoisonContext
) -> tuple[Tensor, Tensor]:
    """(images, labels) that a malicious client trains on instead of its own, which stay as they are.

    It is honest in rounds without an attack. Raises PluginError where they are no records of this data.
    """
    with blamed(attack):
        poisoned = attack.poison(ClientData(images.clone(), labels.clone()), context)
    n, classes = len(poisoned.labels), context.num_classes
    if poisoned.images.shape[1:] != images.shape[1:] or len(poisoned.images) != n or n == 0:
        raise PluginError(f"{attack.name} returned images {tuple(poisoned.images.shape)} for {n} labels")
    inside = int(poisoned.labels.min()) >= 0 and int(poisoned.labels.max()) < classes
    if poisoned.images.dtype != images.dtype or not inside:
        raise PluginError(f"{attack.name} must keep the image type and give labels in [0, {classes})")
    return poisoned.images, poisoned.labels
