"""What compression changed of a model's answers, and what is proven of them."""

from __future__ import annotations

from typing import ClassVar

from harness.api import Metric, MetricContext, PluginError, Reference, Score
from harness_plugins.metrics.classification import predicted

RADII = (0.25, 0.5, 1.0)


class Agreement(Metric):
    """Share of test samples to which the compressed model gives the class that it gave before compression.

    A prediction that is undefined (NaN logits) agrees with nothing.
    """

    name = "agreement"
    needs: ClassVar[tuple[str, ...]] = ("logits", "uncompressed_logits")
    scores: ClassVar[dict[str, Score]] = {
        "agreement": Score("higher", "share", "test samples predicted as before compression")
    }

    def score(self, context: MetricContext) -> dict[str, float]:
        before, after = context.uncompressed_logits, context.logits
        if before is None or after is None or before.shape != after.shape or not len(after):
            raise PluginError("agreement needs logits of the same samples before and after compression")
        first, second = predicted(before), predicted(after)
        return {"agreement": float(((first == second) & (first >= 0)).mean())}


class CertifiedAccuracy(Metric):
    """Share of test samples predicted right with a certified L2 radius of at least r, and the mean radius.

    r in [0, 1] pixels, over the samples that were certified; a wrong or withheld prediction counts as radius 0.
    A defence may be unable to state a radius beyond some limit, however robust its model is: smoothing by n votes at
    level alpha stops at sigma Phi^-1(alpha^(1/n)). `certified_radius_limit` is that limit, shares at a larger r are
    left out, not zero, and the mean radius cannot exceed it: compare it between equal limits alone, and with the
    literature at the literature's n = 100,000.
    """

    name = "certified-accuracy"
    reference = Reference(
        title="Certified Adversarial Robustness via Randomized Smoothing", authors="Cohen, Rosenfeld, Kolter",
        venue="ICML", year=2019, url="https://arxiv.org/abs/1902.02918",
    )  # fmt: skip
    needs: ClassVar[tuple[str, ...]] = ("certificate",)
    scores: ClassVar[dict[str, Score]] = {
        "certified_accuracy": Score("higher", "share", "test samples right with any certified L2 radius"),
        **{
            f"certified_accuracy_{r:g}": Score(
                "higher", "share", f"test samples right with an L2 radius >= {r:g}"
            )
            for r in RADII
        },
        "mean_certified_radius": Score(
            "higher", "[0, 1] pixels", "mean certified L2 radius, 0 where not right"
        ),
        "certified_radius_limit": Score(
            "none", "[0, 1] pixels", "largest L2 radius that can be certified, however robust the model"
        ),
    }

    def score(self, context: MetricContext) -> dict[str, float]:
        import numpy as np

        found = context.certificate
        if found is None or not len(found.labels):
            raise PluginError("certified-accuracy needs a certificate of some test samples")
        right = found.predicted == found.labels
        radii = np.where(right, found.radii, 0.0)
        limit = {} if np.isinf(found.limit) else {"certified_radius_limit": float(found.limit)}
        if found.limit <= 0:  # too few votes for any certificate
            return limit
        reached = [r for r in RADII if r <= found.limit]
        return {
            "certified_accuracy": float(right.mean()),
            **{f"certified_accuracy_{r:g}": float((right & (radii >= r)).mean()) for r in reached},
            "mean_certified_radius": float(radii.mean()),
            **limit,
        }


PLUGINS = (Agreement, CertifiedAccuracy)
