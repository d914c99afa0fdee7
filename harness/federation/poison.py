"""A malicious client's records as its attack changes them, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from harness.contracts.attack import ClientData
from harness.errors import PluginError, blamed

if TYPE_CHECKING:
    from torch import Tensor

    from harness.contracts.attack import PoisonContext, PoisoningAttack

ROUNDING = 1e-5  # tolerated in float pixels


def poison(
    attack: PoisoningAttack, images: Tensor, labels: Tensor, context: PoisonContext
) -> tuple[Tensor, Tensor]:
    """(images, labels) that a malicious client trains on instead of its own.

    Its own stay as they are, for the rounds without an attack, in which it is honest. Raises PluginError where the
    attack does not return records of this data's form.
    """
    with blamed(attack):
        poisoned = attack.poison(ClientData(images.clone(), labels.clone()), context)
    require_records(poisoned, images, labels, attack.name)
    n, classes = len(poisoned.labels), context.num_classes
    if poisoned.images.shape[1:] != images.shape[1:] or len(poisoned.images) != n or n == 0:
        raise PluginError(f"{attack.name} returned images {tuple(poisoned.images.shape)} for {n} labels")
    inside = int(poisoned.labels.min()) >= 0 and int(poisoned.labels.max()) < classes
    if poisoned.images.dtype != images.dtype or not inside:
        raise PluginError(f"{attack.name} must keep the image type and give labels in [0, {classes})")
    if poisoned.images.is_floating_point():
        # No threat grants pixels outside [0, 1]: a larger input makes a larger gradient.
        least, greatest = (float(end) for end in torch.aminmax(poisoned.images))
        if not (least >= -ROUNDING and greatest <= 1 + ROUNDING):
            raise PluginError(
                f"{attack.name} returned pixels from {least:.3g} to {greatest:.3g}, not in [0, 1]"
            )
    return poisoned.images, poisoned.labels


def require_records(poisoned: Any, images: Tensor, labels: Tensor, who: str) -> None:
    """Raises PluginError, which names the attack `who`, unless it returned records on the data's device."""
    if not isinstance(poisoned, ClientData):
        raise PluginError(f"{who} returned {type(poisoned).__name__}, not ClientData(images, labels)")
    for what, found, given in (
        ("images", poisoned.images, images),
        ("labels", poisoned.labels, labels),
    ):
        if not isinstance(found, torch.Tensor):
            raise PluginError(f"{who} returned {what} as {type(found).__name__}, not as a tensor")
        if found.device != given.device:
            raise PluginError(f"{who} returned {what} on {found.device}, not on {given.device}")
    if poisoned.labels.ndim != 1 or poisoned.labels.dtype != labels.dtype:
        raise PluginError(
            f"{who} returned labels {tuple(poisoned.labels.shape)} {poisoned.labels.dtype}, "
            f"not (n,) {labels.dtype}"
        )
