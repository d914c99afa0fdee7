"""The likelihood-ratio attack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import Field, Membership, PluginError, PrivacyContext, PrivacyView, Reference
from harness_plugins.attacks.privacy._shadows import ShadowAttack

if TYPE_CHECKING:
    import numpy as np

# From so many shadow models a side on, the paper estimates a variance for every record.
ENOUGH = 64
# Logits are float32: a spread below this is rounding.
LEAST_SPREAD = 1e-6


class Lira(ShadowAttack):
    """LiRA: how much likelier a record's confidence is under models trained on it than under models that were not.

    phi = log(p_y / (1 - p_y)), the logit-scaled confidence of the true class, in float64 from the logits. Over
    the shadow models trained on a record (in) and not trained on it (out), N(mu_in, s_in^2) and N(mu_out,
    s_out^2) are fitted to phi (means, maximum-likelihood variances). With the target's phi:

    online: score = log N(phi; mu_in, s_in^2) - log N(phi; mu_out, s_out^2);
    offline, where the adversary trains no model on the record: score = log-odds of Phi((phi - mu_out) / s_out),
    with the normal distribution function Phi. The paper's statistic is Phi itself, which orders records alike
    but rounds to ties in its tails.

    One variance for all records of a side is the mean square of (phi - the record's own mean) over all its
    records and models; with one model a record, when that is 0 by construction, the variance of phi over the
    records. s is at least 1e-6. One query a record: the paper's further queries, of augmented copies, are left
    out. The shadow models are trained as the target is, on random halves of the pool, in complementary pairs.

    Scores (members then non-members,), float64, finite. Raises PluginError where a side of the test is empty, a
    shadow model is missing, a record lacks an in-model (online) or an out-model, or has a single one where a
    variance of its own is asked for. Costs `shadows` trainings and O(shadows n) predictions. Source: Carlini et
    al. (2022), Algorithm 1 (online), section V-B (offline, scaling), section VI (global variance).
    """

    name = "lira"
    reference = Reference(
        title="Membership inference attacks from first principles",
        authors="Carlini, Chien, Nasr, Song, Terzis, Tramèr",
        venue="IEEE S&P 2022",
        year=2022,
        url="https://arxiv.org/abs/2112.03570",
    )

    offline: bool = Field(False, description="use only shadow models that were not trained on the record")
    fixed_variance: bool | None = Field(
        None,
        description="one variance for all records; None: where some record has fewer than 64 shadow models "
        "on a side that is used, as the paper advises",
    )

    def run(self, view: PrivacyView, context: PrivacyContext) -> Membership:
        """scores (members then non-members,) float64 and the truth beside them."""
        from scipy.special import log_ndtr

        found = self.evidence(view, context)
        used = {"out": ~found.trained} if self.offline else {"out": ~found.trained, "in": found.trained}
        fixed = self.fixed_variance
        if fixed is None:
            fixed = min(where.sum(0).min() for where in used.values()) < ENOUGH
        fits = {side: self._fit(found.shadows, where, side, fixed) for side, where in used.items()}
        if self.offline:
            mean, spread = fits["out"]
            z = (found.target - mean) / spread
            scores = log_ndtr(z) - log_ndtr(-z)
        else:
            scores = _log_density(found.target, *fits["in"]) - _log_density(found.target, *fits["out"])
        return Membership(scores, found.is_member)

    def _fit(
        self, phi: np.ndarray, where: np.ndarray, side: str, fixed: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Means (n,) and standard deviations, (n,) or one for all, of one side's models."""
        import numpy as np

        mean = self.mean(phi, where, side)
        count = where.sum(0)
        squares = np.where(where, (phi - mean) ** 2, 0.0).sum(0)
        if not fixed:
            single = int((count < 2).sum())
            if single:
                raise PluginError(
                    f"{self.name}: {single} of {len(count)} records have a single {side}-model, "
                    "which has no variance; use more shadow models or fixed_variance"
                )
            variance = squares / count
        elif count.max() > 1:
            variance = squares.sum() / count.sum()
        else:
            variance = phi[where].var()
        return mean, np.maximum(np.sqrt(variance), LEAST_SPREAD)


def _log_density(x: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """log N(x; mean, spread^2), without the constant that both sides have."""
    import numpy as np

    return -np.log(spread) - ((x - mean) / spread) ** 2 / 2


PLUGINS = (Lira,)
