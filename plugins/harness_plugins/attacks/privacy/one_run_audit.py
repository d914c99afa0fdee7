"""Privacy auditing with one training run: an empirical lower bound on epsilon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import field_validator

from harness.api import (
    Audit,
    Canaries,
    Field,
    PluginError,
    PrivacyAttack,
    PrivacyContext,
    PrivacyView,
    Reference,
    TrainingVariant,
)

if TYPE_CHECKING:
    import numpy as np

SHARES = (1.0, 0.5, 0.25, 0.1, 0.05)  # of the canaries that are guessed; fixed before looking
DEFAULT_DELTA = 1e-5  # at which a training without a guarantee is audited


class OneRunAudit(PrivacyAttack):
    """Plants m canaries by independent fair coins, guesses the coins from what the release shows, and counts.

    Of an (epsilon, delta)-DP training, P[W >= v] <= P[B >= v] + 2 m delta max_i P[v - i <= B < v] / i for W the
    right ones of r guesses and B ~ Binomial(r, e^epsilon / (1 + e^epsilon)). The bound is the largest epsilon
    that the count refutes at the confidence asked for. The r / 2 highest signals are guessed to be in, the
    r / 2 lowest out; r is 100, 50, 25, 10 and 5 % of m, tested at a fifth of the error each (Bonferroni), and
    the best counts.

    Canaries are gradients along one coordinate each (Dirac canaries), whose part in the release is seen by the
    adversary that the guarantee is about: the server, from the client's updates (or their sum), or, where the server
    is trusted, those who receive the models. Where defences protect clients and none protects records the canaries are
    clients, and for those whose neighbours replace data the coin decides their sign. It is a lower bound: a correct
    training may be well below its claim, and only a bound above the claim says something, that the claim is false (at
    this confidence). It has no power against batches that are shuffled where Poisson sampling is claimed, nor against
    noise used twice. A canary's loss reads the parameters themselves and passes no layer, so `dp-sgd` takes its
    gradients one by one in the audited training, where its default is ghost clipping: noise, sampling and accounting
    are audited, the formulas of ghost clipping are not. Where the audited training so worked in another way than the
    scored one, the audit's `execution` and the table of `harness audit` say so. Source: Steinke, Nasr and Jagielski
    (2023), theorem 5.2 and appendix D; section 6 for the canaries.

    One further training, as long as the target's, with about m / 2 more records at one client, or m / 2 more clients.
    Raises PluginError where nothing was planted.
    """

    name = "one-run-audit"
    aliases = ("audit",)
    knowledge: ClassVar[str] = "server"
    needs_non_members: ClassVar[bool] = False
    audits: ClassVar[bool] = True
    requires = ("scipy",)
    reference = Reference(
        title="Privacy auditing with one (1) training run",
        authors="Steinke, Nasr, Jagielski",
        venue="NeurIPS 2023",
        year=2023,
        url="https://arxiv.org/abs/2305.08846",
    )

    canaries: int = Field(200, ge=20, description="m: how many are planted, each by a fair coin")
    scale: float = Field(
        10.0, gt=0, allow_inf_nan=False, description="norm of a canary's gradient: above the clipping norm"
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of the lower bound")

    @field_validator("canaries")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 20:
            raise ValueError("canaries must be a multiple of 20, so that guesses fall into equal halves")
        return value

    def _variant(self, defences: Any) -> TrainingVariant:
        # Which claim will be the strongest is not known yet. A record is part of a client, so that canaries that are
        # records refute no correct claim for clients; the other way round they would.
        records = any(d.protects == "record" for d in defences)
        client = [] if records else [d for d in defences if d.protects == "client"]
        unit = "client" if client else "record"
        opposite = any(d.neighbours == "replace" for d in client)
        canaries = Canaries(self.canaries, unit=unit, scale=self.scale, opposite=opposite)
        return TrainingVariant(
            f"audit-{self.canaries}-{self.scale:g}", keep=None, canaries=canaries, compressed=False
        )

    def trainings(self, cell: Any) -> list[TrainingVariant]:
        return [self._variant(cell.defences)]

    def run(self, view: PrivacyView, context: PrivacyContext) -> Audit:
        import numpy as np

        variant = next(iter(view.variants.values()), None)
        if variant is None or variant.canaries is None or variant.canaries.signal is None:
            raise PluginError(f"{self.name}: no canary was planted")
        guarantee = variant.guarantee
        delta = DEFAULT_DELTA if guarantee is None else guarantee.delta
        included = np.asarray(variant.canaries.included, dtype=bool)
        bound, guesses, correct = audited_epsilon(
            np.asarray(variant.canaries.signal), included, delta, self.confidence
        )
        facts = {"canaries": len(included), "guesses": guesses, "correct": correct}
        return Audit(bound, delta, self.confidence, guarantee, facts)


def audited_epsilon(
    signal: np.ndarray, included: np.ndarray, delta: float, confidence: float
) -> tuple[float, int, int]:
    """(lower bound on epsilon >= 0, guesses, right guesses) of the best number of guesses in SHARES.

    signal (m,): higher means more likely included. included (m,) bool: the coins. A signal that is NaN is never
    guessed on.
    """
    import numpy as np

    m = len(signal)
    order = np.argsort(signal, kind="stable")[: m - int(np.isnan(signal).sum())]  # NaN sorts last
    best = (0.0, 0, 0)
    for share in SHARES:
        half = min(max(1, round(share * m / 2)), len(order) // 2)
        if not half:
            continue
        correct = int(included[order[-half:]].sum() + (~included[order[:half]]).sum())
        bound = epsilon_lower_bound(m, 2 * half, correct, delta, (1 - confidence) / len(SHARES))
        if best[1] == 0 or bound > best[0]:
            best = (bound, 2 * half, correct)
    return best


def p_value(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """The largest probability that an (epsilon, delta)-DP training of m coins allows for v or more of r right."""
    import numpy as np
    from scipy.stats import binom

    right = 1 / (1 + np.exp(-epsilon))
    at_least = float(binom.sf(v - 1, r, right))
    if not v:
        return 1.0
    below = np.cumsum(binom.pmf(np.arange(v - 1, -1, -1), r, right))  # P[v - i <= B < v] for i = 1, ..., v
    steepest = float((below / np.arange(1, v + 1)).max())
    return min(1.0, at_least + 2 * m * delta * steepest)


def epsilon_lower_bound(m: int, r: int, v: int, delta: float, error: float) -> float:
    """The largest epsilon >= 0 that v of r right guesses refute with at most this error; by bisection."""
    if p_value(m, r, v, 0.0, delta) > error:
        return 0.0
    low, high = 0.0, 1.0
    while p_value(m, r, v, high, delta) <= error:
        low, high = high, 2 * high
    while high - low > 1e-4:
        middle = (low + high) / 2
        if p_value(m, r, v, middle, delta) <= error:
            low = middle
        else:
            high = middle
    return low


PLUGINS = (OneRunAudit,)
