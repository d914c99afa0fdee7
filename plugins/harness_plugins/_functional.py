"""Evasion attacks that can be part of a training loss."""

from __future__ import annotations

from harness.api import EvasionAttack


def trainable(attack: EvasionAttack) -> EvasionAttack:
    """The attack. Raises ValueError where it has no functional form."""
    if attack.functional() is None:
        raise ValueError(f"{attack.name} has no functional form to train with: use pgd or fgsm")
    return attack
