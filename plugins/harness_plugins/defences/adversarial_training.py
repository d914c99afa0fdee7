"""Training on adversarial examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import field_validator

from harness.api import (
    Defence,
    EvasionAttack,
    Field,
    Reference,
    detached,
    in_place_of,
    record_keys,
    split,
    to_climb,
    uniform,
)
from harness_plugins._functional import trainable

if TYPE_CHECKING:
    from torch import Tensor

    from harness.api import Batch, LogitsFn, LossFn, Params


class AdversarialTraining(Defence):
    """Minimises the loss at adversarial examples made for the current weights.

    min over w of E max over |x' - x| <= eps of loss(w, x', y): each record is replaced, by an independent
    coin of probability `fraction`, by what `attack` makes of it against the loss so far at fixed weights.
    x in [0, 1] pixels; the budget is the attack's own eps or its default. Coins and random starts come from
    the key and the record's own pixels, so a record's loss does not depend on its batch.

    With a `curriculum` c the radius of round t = 1, 2, ... of R is eps min(1, t / (c R)), and the step size with it
    where the attack sets none: from easy examples to hard ones, as Cai et al. (2018, arXiv 1805.04807) propose,
    who let the number of steps grow.

    Raises PluginError for an attack that has no functional form. Cost: 1 + the attack's gradient
    evaluations, of undefended training, whatever the fraction. Source: Madry et al. (2018), equation 2.1 and
    section 4; fraction below 1 mixes clean records in, as Goodfellow et al. (2015) do.
    """

    name = "adversarial-training"
    reference = Reference(
        title="Towards deep learning models resistant to adversarial attacks",
        authors="Madry, Makelov, Schmidt, Tsipras, Vladu",
        venue="ICLR",
        year=2018,
        url="https://arxiv.org/abs/1706.06083",
    )

    attack: EvasionAttack = Field(
        "pgd", description="evasion attack with a functional form, such as pgd or fgsm"
    )
    fraction: float = Field(1.0, ge=0, le=1, description="probability that a record is replaced, in [0, 1]")
    curriculum: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the rounds over which the radius grows to its full size, in [0, 1]",
    )

    _functional = field_validator("attack")(trainable)

    def at(self, round: int, rounds: int) -> AdversarialTraining:
        grown = self.curriculum * rounds
        radius = self.attack.radius()
        if round + 1 >= grown or radius is None:
            return self
        attack = self.attack.model_copy(update={"eps": radius * (round + 1) / grown})
        return self.model_copy(update={"attack": attack})

    def cost(self) -> float:
        return 1.0 if self.fraction == 0 else 1.0 + self.attack.effort

    def loss(self, loss: LossFn, logits: LogitsFn) -> LossFn:
        if self.fraction == 0:
            return loss
        attack, climbed = self.attack.functional(self.attack.radius()), to_climb(loss)

        def adversarial(params: Params, batch: Batch, key: Tensor) -> Tensor:
            x, y = batch
            if not len(y):
                return loss(params, batch, key)
            fixed = detached(params)
            keys = record_keys(key, x)
            found = attack(lambda images: climbed(fixed, (images, y), key), x.detach(), split(keys, 0))
            moved = in_place_of(found, x)
            if self.fraction < 1:
                coin = uniform(split(keys, 1), y.shape) < self.fraction
                moved = moved.where(coin.view(-1, *[1] * (x.ndim - 1)), x)
            return loss(params, (moved, y), key)

        return adversarial


PLUGINS = (AdversarialTraining,)
