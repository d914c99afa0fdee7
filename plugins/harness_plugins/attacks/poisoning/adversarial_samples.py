"""The train-time attack of the seed paper: batches replaced by adversarial samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import field_validator

from harness.api import (
    EvasionAttack,
    Field,
    PoisoningAttack,
    Reference,
    detached,
    held_back,
    in_place_of,
    record_keys,
    split,
    uniform,
)
from harness_plugins._functional import trainable

if TYPE_CHECKING:
    from torch import Tensor

    from harness.api import Batch, LogitsFn, LossFn, Params


class AdversarialSamples(PoisoningAttack):
    """Malicious clients train on adversarial samples of the current model instead of a share of their batches.

    By an independent coin of probability `fraction`, a batch (or, `per` record, a record) is replaced by what
    `attack` makes of it against cross-entropy at the current weights. With labels `predicted` it keeps the
    class that the model gives the adversarial sample, as in the published train-time attack, so that training
    drives the decision the wrong way; with `true` its own label, which is adversarial training.

    Raises PluginError for an attack that has no functional form. Costs 1 + the attack's gradient evaluations,
    of honest training.
    """

    name: ClassVar[str] = "adversarial-samples"
    couples_samples: ClassVar[bool] = False
    reference: ClassVar[Reference | None] = Reference(
        title="Can Collaborative Learning Be Private, Robust and Scalable?",
        authors="Usynin, Klause, Paetzold, Rueckert, Kaissis",
        venue="DeCaF / FAIR at MICCAI",
        year=2022,
        url="https://arxiv.org/abs/2205.02652",
    )

    attack: EvasionAttack = Field(
        "pgd", description="evasion attack with a functional form, such as pgd or fgsm"
    )
    fraction: float = Field(0.5, ge=0, le=1, description="probability that a batch, or a record, is replaced")
    per: Literal["batch", "record"] = Field("batch", description="what the coin is thrown for")
    labels: Literal["predicted", "true"] = Field("predicted", description="labels of the adversarial samples")

    _functional = field_validator("attack")(trainable)

    def loss(self, loss: LossFn, logits: LogitsFn) -> LossFn:
        import torch
        from torch.nn import functional

        if self.fraction == 0:
            return loss
        attack = self.attack.functional(self.attack.radius())
        assert attack is not None

        def poisoned(params: Params, batch: Batch, key: Tensor) -> Tensor:
            x, y = batch
            if not len(y):
                return loss(params, batch, key)
            fixed = detached(params)

            def error(images: Tensor) -> Tensor:
                return functional.cross_entropy(held_back(logits(fixed, images), y), y, reduction="none")

            keys = record_keys(key, x)
            moved = attack(error, x.detach(), split(keys, 0)).detach()
            told = logits(fixed, moved).argmax(1) if self.labels == "predicted" else y
            coin = uniform(
                split(keys if self.per == "record" else key, 1), y.shape if self.per == "record" else (1,)
            )
            chosen = (coin < self.fraction).expand(y.shape)
            images = torch.where(chosen.view(-1, *[1] * (x.ndim - 1)), in_place_of(moved, x), x)
            return loss(params, (images, torch.where(chosen, told, y)), key)

        return poisoned


PLUGINS = (AdversarialSamples,)
