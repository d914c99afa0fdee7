"""What a release guarantees, and what it leaks."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import Metric, MetricContext, PluginError, Reference, Score
from harness_plugins.metrics.classification import auroc

if TYPE_CHECKING:
    import numpy as np

# A rate below which fewer than ten non-members fall is an estimate from a handful of records.
RATES = {"mia_tpr_at_1pct_fpr": 0.01, "mia_tpr_at_0_1pct_fpr": 0.001}
TAIL = 10


def roc(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False- and true-positive counts of "score >= t", t from above all scores down to the least.

    scores (n,), positive (n,) bool; one point per distinct score, so that ties fall together; O(n log n).
    """
    import numpy as np

    order = np.argsort(-scores, kind="stable")
    ranked, truth = scores[order], positive[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    true = np.concatenate([[0], np.cumsum(truth)[last]])
    false = np.concatenate([[0], np.cumsum(~truth)[last]])
    return false, true


def tpr_at_fpr(scores: np.ndarray, positive: np.ndarray, alpha: float) -> float:
    """The largest true-positive rate of a threshold whose false-positive rate is at most alpha."""
    false, true = roc(scores, positive)
    # Room for the rounding of alpha * n alone: in floats, 0.29 * 100 is less than 29.
    return float(true[false <= alpha * false[-1] * (1 + 1e-12)].max() / true[-1])


class Epsilon(Metric):
    """The differential-privacy guarantee of the release, as accounted: epsilon at delta.

    epsilon is infinite where the guarantee does not hold, as some part of the plan touched protected data
    without being accounted; the guarantee's `broken_by` names it. Source: Dwork et al. (2006) for (epsilon,
    delta).
    """

    name = "epsilon"
    reference = Reference(
        title="Our data, ourselves: privacy via distributed noise generation",
        authors="Dwork, Kenthapadi, McSherry, Mironov, Naor",
        venue="EUROCRYPT 2006",
        year=2006,
        url="https://doi.org/10.1007/11761679_29",
    )
    needs: ClassVar[tuple[str, ...]] = ("guarantee",)
    scores: ClassVar[dict[str, Score]] = {
        "epsilon": Score("lower", "nats", "privacy loss; infinite where the guarantee is broken"),
        "delta": Score("lower", "probability", "at which epsilon is stated"),
    }

    def score(self, context: MetricContext) -> dict[str, float]:
        guarantee = context.guarantee
        if guarantee is None:
            raise PluginError("a guarantee is needed")
        return {"epsilon": guarantee.epsilon if guarantee.holds else float("inf"), "delta": guarantee.delta}


class MembershipInference(Metric):
    """How well a membership attack tells members from non-members.

    mia_auc: area under its ROC curve (0.5: no better than chance). mia_balanced_accuracy: (TPR + 1 - FPR) / 2
    at the best threshold *in hindsight*, chosen on the very records it is scored on, so it exceeds 0.5 by
    chance too. mia_tpr_at_..._fpr: the largest true-positive rate at a false-positive rate of at most alpha =
    1 % and 0.1 %, only with at least 10 / alpha non-members (1000 and 10000). Left out where a side is empty
    or a score is NaN. Intervals: 95 %, by the percentile bootstrap with 1000 resamples of whole groups (patients),
    or of records where there are none, members and non-members apart. They take the model as given: another
    training is another seed. Source: Carlini et al. (2022) for the rates. O(n log n).
    """

    name = "mia"
    reference = Reference(
        title="Membership inference attacks from first principles",
        authors="Carlini, Chien, Nasr, Song, Terzis, Tramèr",
        venue="IEEE S&P 2022",
        year=2022,
        url="https://arxiv.org/abs/2112.03570",
    )
    needs: ClassVar[tuple[str, ...]] = ("membership",)
    scores: ClassVar[dict[str, Score]] = {
        "mia_auc": Score("lower", "share", "area under the membership attack's ROC curve"),
        "mia_balanced_accuracy": Score(
            "lower", "share", "of the best threshold in hindsight: an upper estimate"
        ),
        "mia_tpr_at_1pct_fpr": Score("lower", "share", "members found at 1 % false positives"),
        "mia_tpr_at_0_1pct_fpr": Score("lower", "share", "members found at 0.1 % false positives"),
    }

    def score(self, context: MetricContext) -> dict[str, float]:
        known = _usable(context)
        if known is None:
            return {}
        scores, member, _ = known
        false, true = roc(scores, member)
        result = {
            "mia_auc": auroc(scores, member),
            "mia_balanced_accuracy": float((1 + true / true[-1] - false / false[-1]).max() / 2),
        }
        for name, alpha in RATES.items():
            if false[-1] * alpha >= TAIL:
                result[name] = tpr_at_fpr(scores, member, alpha)
        return result

    def intervals(self, context: MetricContext) -> dict[str, tuple[float, float]]:
        """(2.5 %, 97.5 %) of each score above."""
        known = _usable(context)
        return {} if known is None else bootstrap(*known)


def _usable(context: MetricContext) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(scores, is_member, groups), each (n,); None where nothing can be said."""
    import numpy as np

    if context.membership is None:
        raise PluginError("a membership attack's result is needed")
    scores = np.asarray(context.membership.scores, dtype=np.float64)
    member = np.asarray(context.membership.is_member, dtype=bool)
    if scores.ndim != 1 or scores.shape != member.shape:
        raise PluginError(f"scores and is_member must be (n,), not {scores.shape} and {member.shape}")
    groups = np.arange(len(scores)) if context.membership.groups is None else context.membership.groups
    if member.all() or not member.any() or np.isnan(scores).any():
        return None
    return scores, member, np.asarray(groups)


def bootstrap(
    scores: np.ndarray, member: np.ndarray, groups: np.ndarray, resamples: int = 1000, chunk: int = 50
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the membership scores, from `resamples` draws of groups with replacement."""
    import numpy as np

    rng = np.random.default_rng(0)
    values = np.unique(scores)[::-1]
    place = np.searchsorted(-values, -scores)  # 0 for the highest score: ties share a place
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        true, false = (
            _mass(place[side], groups[side], len(values), count, rng) for side in (member, ~member)
        )
        for name, value in _resampled(true, false, int((~member).sum())).items():
            found.setdefault(name, []).append(value)
    ends = {name: np.percentile(np.concatenate(parts), [2.5, 97.5]) for name, parts in found.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def _mass(
    place: np.ndarray, groups: np.ndarray, places: int, count: int, rng: np.random.Generator
) -> np.ndarray:
    """(count, places): how many records of one side fall on each distinct score, in each resample of groups."""
    import numpy as np

    units = np.unique(groups, return_inverse=True)[1]
    size = int(units.max()) + 1
    weights = rng.multinomial(size, np.full(size, 1 / size), size=count)[:, units]
    mass = np.zeros((count, places))
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    mass[:, place[order][starts]] = np.add.reduceat(weights[:, order], starts, axis=1)
    return mass


def _resampled(true: np.ndarray, false: np.ndarray, non_members: int) -> dict[str, np.ndarray]:
    import numpy as np

    above = false.cumsum(1)
    all_true, all_false = true.sum(1), above[:, -1]
    tpr, fpr = true.cumsum(1) / all_true[:, None], above / all_false[:, None]
    beaten = (true * (all_false[:, None] - above + false / 2)).sum(1)
    result = {
        "mia_auc": beaten / (all_true * all_false),
        "mia_balanced_accuracy": np.maximum((1 + tpr - fpr).max(1), 1) / 2,
    }
    for name, alpha in RATES.items():
        if non_members * alpha >= TAIL:
            result[name] = np.where(fpr <= alpha * (1 + 1e-12), tpr, 0).max(1)
    return result


class AuditedEpsilon(Metric):
    """What an audit proved: no smaller epsilon can be true of this training, at the audit's confidence.

    0 means that nothing was found. A value above the guarantee's epsilon refutes the guarantee; the record then
    carries the flag audit-violation. Source: Steinke, Nasr and Jagielski (2023).
    """

    name = "audit"
    reference = Reference(
        title="Privacy auditing with one (1) training run",
        authors="Steinke, Nasr, Jagielski",
        venue="NeurIPS 2023",
        year=2023,
        url="https://arxiv.org/abs/2305.08846",
    )
    needs: ClassVar[tuple[str, ...]] = ("audit",)
    scores: ClassVar[dict[str, Score]] = {
        "epsilon_audited": Score("lower", "nats", "empirical lower bound on epsilon")
    }

    def score(self, context: MetricContext) -> dict[str, float]:
        if context.audit is None:
            raise PluginError("an audit's result is needed")
        return {"epsilon_audited": context.audit.epsilon}


PLUGINS = (Epsilon, MembershipInference, AuditedEpsilon)
