"""Metrics: what a number means, which way is better, and what it needs to be computed."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness.contracts.base import Plugin
from harness.contracts.choices import Chosen, check_choice

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from harness.contracts.defence import Guarantee
    from harness.contracts.privacy import Audit, Membership, Reconstruction


@dataclass(frozen=True)
class Score(Chosen):
    """A score's meaning. measured: whether it is a time or an amount of memory, which differs from run to run."""

    direction: Literal["higher", "lower", "none"]
    unit: str = ""
    description: str = ""
    measured: bool = False


@dataclass(frozen=True)
class Certificate:
    """What is proven of a model on some test records: labels (n,) int64, predicted (n,) int64 and radii (n,).

    labels: the true ones. predicted: -1 where the model abstained. radii: L2 in [0, 1] pixels, within which the
    prediction cannot change. limit: the largest radius that the defence can state at all (`Defence.radius_limit`); inf:
    there is no limit.
    """

    labels: np.ndarray
    predicted: np.ndarray
    radii: np.ndarray
    limit: float = math.inf


@dataclass(frozen=True)
class MetricContext:
    """Everything a score may be computed from; what a cell does not have is None.

    labels (n,), logits (n, k): clean test predictions. adversarial_logits (n, k): under the attack, row by row.
    triggered_logits (t, k): with the backdoor's trigger; triggered_labels (t,): their true labels.
    module: the model as released; state: its file's tensors.
    """

    num_classes: int
    input_shape: tuple[int, int, int]
    labels: np.ndarray | None = None
    logits: np.ndarray | None = None
    adversarial_logits: np.ndarray | None = None
    triggered_logits: np.ndarray | None = None
    triggered_labels: np.ndarray | None = None
    backdoor_target: int | None = None
    membership: Membership | None = None
    reconstruction: Reconstruction | None = None
    audit: Audit | None = None
    module: nn.Module | None = None
    state: dict[str, Tensor] | None = None
    training: dict[str, Any] | None = None  # uplink_bytes_per_round, train_seconds, detection, ...
    guarantee: Guarantee | None = None
    uncompressed_logits: np.ndarray | None = None  # (n, k) of the model before its compressors
    certificate: Certificate | None = None

    def has(self, names: tuple[str, ...]) -> bool:
        """Whether all of these are known."""
        return all(getattr(self, name) is not None for name in names)


CONTEXT_FIELDS = tuple(f.name for f in fields(MetricContext))


class Metric(Plugin):
    """One or more scores, computed in every cell that has what it `needs` (fields of MetricContext)."""

    kind: ClassVar[str] = "metric"
    needs: ClassVar[tuple[str, ...]] = ()  # the fields of MetricContext that it reads
    scores: ClassVar[dict[str, Score]] = {}  # what it returns

    @classmethod
    def __pydantic_init_subclass__(cls, **settings: Any) -> None:
        super().__pydantic_init_subclass__(**settings)
        for name in cls.needs:
            check_choice(cls.__qualname__, "needs", name, CONTEXT_FIELDS)

    @abstractmethod
    def score(self, context: MetricContext) -> dict[str, float]:
        """The scores, named as in `scores`; leave one out (or return NaN) where it is undefined, never guess."""

    def intervals(self, context: MetricContext) -> dict[str, tuple[float, float]]:
        """95 % confidence intervals (low, high) of some of the scores, for the record."""
        return {}


def shared_scores(metrics: Sequence[Metric]) -> Iterator[tuple[int, str]]:
    """(position, what is wrong) of each metric that declares a score of an earlier one, which it would overwrite.

    A metric that is listed twice, with other parameters, is not reported.
    """
    owners: dict[str, Metric] = {}
    for position, metric in enumerate(metrics):
        for score in metric.scores:
            owner = owners.setdefault(score, metric)
            if type(owner) is not type(metric):
                yield position, f"the metrics {owner.name} and {metric.name} both declare the score {score!r}"
                break
