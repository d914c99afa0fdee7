"""Membership inference from the loss alone."""

from __future__ import annotations

from harness.api import Membership, PluginError, PrivacyAttack, PrivacyContext, PrivacyView, Reference
from harness_plugins.attacks.privacy._shadows import log_odds


class LossThreshold(PrivacyAttack):
    """A record is the more likely a member the lower its loss: score = phi, where the loss is log(1 + exp(-phi)).

    Yeom et al.'s adversary predicts "member" below a threshold on the loss; the score leaves the threshold
    open, so that the membership metrics cover every one. phi, the label's log-odds z_y - log sum_{j != y} exp(z_j) in
    float64, has the order of the loss and keeps the most confident predictions apart: their losses are all exactly 0,
    as those of records that noise drove far from the boundary. A NaN loss counts as the largest. Black-box: one query
    a record. Source: Yeom et al. (2018), section 3, the adversary that thresholds the loss. Raises PluginError where
    the two sides are not both there, or labels and logits do not fit.
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

        sides = [log_odds(self.name, view.logits, *side) for side in (view.members, view.non_members)]
        if not all(len(scores) for scores in sides):
            raise PluginError(f"{self.name} needs members and non-members")
        is_member = np.repeat([True, False], [len(scores) for scores in sides])
        return Membership(np.concatenate(sides), is_member)


PLUGINS = (LossThreshold,)
