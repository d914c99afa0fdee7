"""Membership inference from the loss alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import Membership, PluginError, PrivacyAttack, PrivacyContext, PrivacyView, Reference
from harness_plugins.attacks.privacy._shadows import log_odds, log_probability

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class LossThreshold(PrivacyAttack):
    """A record is the more likely a member the lower its loss: score = -CE(logits(x), y), in nats.

    Yeom et al.'s adversary predicts "member" below a threshold on the loss; the score leaves the threshold
    open, so that the membership metrics cover every one. Black-box: one query a record. The loss is computed from
    the log-odds of the label in float64: from the probability the most confident predictions would all have the loss
    0, as records that noise drove far from the boundary have. A NaN loss counts as the largest. Source:
    Yeom et al. (2018), section 3, the adversary that thresholds the loss. Raises PluginError where the two
    sides are not both there, or labels and logits do not fit.
    """

    name = "loss-threshold"
    reference = Reference(
        title="Privacy risk in machine learning: analyzing the connection to overfitting",
        authors="Yeom, Giacomelli, Fredrikson, Jha",
        venue="CSF 2018",
        year=2018,
        url="https://arxiv.org/abs/1709.01604",
    )

    def run(self, view: PrivacyView, context: PrivacyContext) -> Membership:
        """scores (members then non-members,) float64 and the truth beside them."""
        import numpy as np

        sides = [self._scores(view, *side) for side in (view.members, view.non_members)]
        if not all(len(scores) for scores in sides):
            raise PluginError(f"{self.name} needs members and non-members")
        is_member = np.repeat([True, False], [len(scores) for scores in sides])
        return Membership(np.concatenate(sides), is_member)

    def _scores(self, view: PrivacyView, images: Tensor, labels: Tensor) -> np.ndarray:
        return log_probability(log_odds(self.name, view.logits, images, labels))


PLUGINS = (LossThreshold,)
