"""Membership inference from the loss alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import Membership, PluginError, PrivacyAttack, PrivacyContext, PrivacyView, Reference

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class LossThreshold(PrivacyAttack):
    """A record is the more likely a member the lower its loss: score = -CE(logits(x), y), in nats.

    Yeom et al.'s adversary predicts "member" below a threshold on the loss; the score leaves the threshold
    open, so that the membership metrics cover every one. Black-box: one query a record. The loss is computed
    in float64, as float32 makes ties of the confident predictions; a NaN loss counts as infinite. Source:
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
        import torch
        from torch.nn import functional

        if not len(images):
            return torch.empty(0, dtype=torch.float64).numpy()
        with torch.no_grad():
            logits = view.logits(images).double()
            if logits.shape[:1] != labels.shape:
                raise PluginError(f"{self.name}: {len(logits)} predictions for labels {tuple(labels.shape)}")
            loss = functional.cross_entropy(logits, labels.to(logits.device), reduction="none")
        return -loss.nan_to_num(nan=float("inf"), posinf=float("inf")).cpu().numpy()


PLUGINS = (LossThreshold,)
