"""The robust membership-inference attack, relative to a population."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import Field, Membership, PluginError, PrivacyContext, PrivacyView, Reference
from harness_plugins.attacks.privacy._shadows import ShadowAttack, log_odds, log_probability

if TYPE_CHECKING:
    import numpy as np


class Rmia(ShadowAttack):
    """RMIA: the share of a population's records that the target favours less, by a factor gamma, than this one.

    score(x) = share of the population's z with [p(x|t) / p(x)] / [p(z|t) / p(z)] >= gamma, in [0, 1]. p(x|t) is
    the target's softmax probability of x's label. p(x), what it would be without the target, comes from the
    shadow models:

    online: the mean of their p(x|shadow) over all of them, about half of which were trained on x where every client
        takes part;
    offline: ((1 + a) p_out(x) + (1 - a)) / 2, p_out being the mean over those not trained on x.

    p(z) is made by the same formula. The population is the view's own, which no client trains on: every
    shadow model counts for it, as out. All in float64 logarithms; ratios of the population are sorted once, so
    O(shadows (n + |Z|) + (n + |Z|) log |Z|). A score takes one of |Z| + 1 values: ties are frequent, and where
    models overfit little most scores are 0 at the paper's gamma = 2, so that gamma = 1 tells records apart better.

    Of the paper's options, left out are: queries of augmented copies with a majority vote, trimmed means over
    the shadow models, and other confidences than the plain softmax (its image experiments use a soft-margin
    Taylor softmax at temperature 2). `a` is a given number here, which the paper finds with models of its own.

    Raises PluginError where a side of the test or the population is empty, a shadow model is missing, or a
    record lacks an out-model or, online, an in-model. Costs `shadows` trainings. Source: Zarifzadeh et al.
    (2024): section 3 for the score and the ratio, online and offline p(x) in its section on computing
    the likelihood ratio.
    """

    name = "rmia"
    reference = Reference(
        title="Low-cost high-power membership inference attacks",
        authors="Zarifzadeh, Liu, Shokri",
        venue="ICML 2024",
        year=2024,
        url="https://arxiv.org/abs/2312.03262",
    )

    gamma: float = Field(2.0, ge=1, description="how many times likelier than a population record it must be")
    offline: bool = Field(False, description="use only shadow models that were not trained on the record")
    a: float = Field(
        0.3, ge=0, le=1, description="offline: slope of p_in in p_out; 1: training adds nothing, 0: p_in is 1"
    )

    def run(self, view: PrivacyView, context: PrivacyContext) -> Membership:
        """scores (members then non-members,) float64 in [0, 1] and the truth beside them."""
        import numpy as np

        if view.population is None or not len(view.population[1]):
            raise PluginError(f"{self.name} needs a population of its own, such as a validation split")
        found = self.evidence(view, context)
        used = ~found.trained
        self.counts(used, "out")
        if not self.offline:
            self.counts(found.trained, "in")
            used = np.ones_like(used)
        target = log_odds(self.name, view.logits, *view.population)
        shadows = np.stack([log_odds(self.name, m.logits, *view.population) for m in self.models(view)])
        ratios = self._log_ratio(found.target, found.shadows, used)
        against = self._log_ratio(target, shadows, np.ones(shadows.shape, dtype=bool))
        beaten = np.searchsorted(np.sort(against), ratios - np.log(self.gamma), side="right")
        return Membership(beaten / len(against), found.is_member)

    def _log_ratio(self, target: np.ndarray, shadows: np.ndarray, used: np.ndarray) -> np.ndarray:
        """log p(x|t) - log p(x), (n,), from log-odds (n,) and (m, n); used (m, n) bool: the models p(x) is of."""
        import numpy as np

        logs = np.where(used, log_probability(shadows), -np.inf)
        expected = np.logaddexp.reduce(logs, axis=0) - np.log(used.sum(0))
        if self.offline:
            with np.errstate(divide="ignore"):  # log 0 at a = 1
                expected = np.logaddexp(np.log1p(self.a) + expected, np.log1p(-self.a)) - np.log(2)
        return log_probability(target) - expected


PLUGINS = (Rmia,)
