"""Membership inference from the loss, set against how hard the record is."""

from __future__ import annotations

from harness.api import Membership, PrivacyContext, PrivacyView, Reference
from harness_plugins.attacks.privacy._shadows import ShadowAttack, log_probability


class CalibratedLoss(ShadowAttack):
    """The loss calibrated by difficulty: a member's is lower than models that never saw the record have it.

    score = mean over the shadow models not trained on the record of CE(shadow(x), y), minus CE(target(x), y),
    in nats; the higher, the more likely a member. The uncalibrated membership score is the loss's negative;
    its expectation over models trained without the record is estimated by their mean and subtracted. Losses are
    float64 and at most 1e6, which an undefined one counts as. The shadow models are trained as the target is,
    on random halves of the pool; each record uses the half of them that it is not in.

    Scores (members then non-members,), float64, finite. Raises PluginError where a side of the test is empty, a
    shadow model is missing or a record has no out-model. Costs `shadows` trainings and O(shadows n)
    predictions. Source: Watson et al. (2022), section 3, the calibrated score with the loss as score.
    """

    name = "calibrated-loss"
    reference = Reference(
        title="On the importance of difficulty calibration in membership inference attacks",
        authors="Watson, Guo, Cormode, Sablayrolles",
        venue="ICLR 2022",
        year=2022,
        url="https://arxiv.org/abs/2111.08440",
    )

    def run(self, view: PrivacyView, context: PrivacyContext) -> Membership:
        """scores (members then non-members,) float64 and the truth beside them."""
        found = self.evidence(view, context)
        expected = self.mean(-log_probability(found.shadows), ~found.trained, "out")
        return Membership(expected + log_probability(found.target), found.is_member)


PLUGINS = (CalibratedLoss,)
