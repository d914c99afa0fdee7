"""How far canaries planted in a training are exposed by its model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from harness.api import (
    Canaries,
    Field,
    Planted,
    PluginError,
    PrivacyAttack,
    PrivacyContext,
    PrivacyView,
    Reference,
    Score,
    TrainingVariant,
)
from harness_plugins.attacks.privacy._shadows import log_odds, log_probability

if TYPE_CHECKING:
    import numpy as np


class CanaryExposure(PrivacyAttack):
    """Plants random images with random labels, and ranks the loss of each among those left out.

    Each of `canaries` images of uniform noise enters one client's data (`repeats` times) or not, by a fair
    coin. For one that entered, R is itself and the canaries that did not, and

        exposure = log2 |R| - log2 rank,    rank = number of r in R with CE(r) <= CE(canary),

    in bits, from 0 to log2 |R|, which is about log2(canaries / 2): a canary beyond all others cannot score
    more. exposure_mean and exposure_max are over the canaries that entered. Where nothing was memorised ranks
    are uniform: the mean is then log2 |R| - log2(|R|!) / |R|, below 1.44, and the maximum is high by chance, so
    compare the two with those of a private training. Losses are float64; an undefined one is the largest; equal
    ones count against exposure, so a model that gives one loss to all exposes 0.

    R is a sample of the space of canaries, so this estimates exposure by sampling; the paper's other estimate,
    from a distribution fitted to the losses, is left out, and its canaries are texts. Black-box, one query
    a canary. Raises PluginError where the training holds no image canaries, or where none or all of them entered.
    Costs one training and O(m log m) for m canaries. Source: Carlini et al. (2019), section 4.2 (rank and
    exposure), section 4.3 (sampling).
    """

    name = "canary-exposure"
    reference = Reference(
        title="The Secret Sharer: evaluating and testing unintended memorization in neural networks",
        authors="Carlini, Liu, Erlingsson, Kos, Song",
        venue="USENIX Security 2019",
        year=2019,
        url="https://arxiv.org/abs/1802.08232",
    )
    needs_non_members: ClassVar[bool] = False
    scores: ClassVar[dict[str, Score]] = {
        "exposure_mean": Score("lower", "bits", "mean exposure of the planted canaries"),
        "exposure_max": Score("lower", "bits", "exposure of the most exposed canary"),
    }

    canaries: int = Field(100, ge=10, description="images drawn, about half of which enter the training")
    repeats: int = Field(1, ge=1, description="copies of each that enter")

    def trainings(self, cell: Any) -> list[TrainingVariant]:
        """The target's own records, with the canaries among them."""
        planted = Canaries(count=self.canaries, form="image", repeats=self.repeats)
        return [TrainingVariant(f"exposure-{self.canaries}-{self.repeats}", keep=None, canaries=planted)]

    def run(self, view: PrivacyView, context: PrivacyContext) -> dict[str, float]:
        """exposure_mean and exposure_max, in bits."""
        name = self.trainings(None)[0].name
        variant = view.variants.get(name)
        planted = None if variant is None else variant.canaries
        if variant is None or planted is None or planted.images is None or planted.labels is None:
            raise PluginError(f"{self.name} needs the training {name!r} with image canaries")
        loss = -log_probability(log_odds(self.name, variant.logits, planted.images, planted.labels))
        found = self._exposure(loss, planted)
        return {"exposure_mean": float(found.mean()), "exposure_max": float(found.max())}

    def _exposure(self, loss: np.ndarray, planted: Planted) -> np.ndarray:
        """(canaries that entered,) bits, from the losses (m,) of all."""
        import numpy as np

        entered = np.asarray(planted.included, dtype=bool)
        if entered.shape != loss.shape:
            raise PluginError(f"{self.name}: {len(loss)} canaries, but coins {entered.shape}")
        if entered.all() or not entered.any():
            raise PluginError(
                f"{self.name}: {int(entered.sum())} of {len(entered)} canaries entered; some must, and some not"
            )
        left_out = np.sort(loss[~entered])
        rank = 1 + np.searchsorted(left_out, loss[entered], side="right")
        return np.log2(len(left_out) + 1) - np.log2(rank)


PLUGINS = (CanaryExposure,)
