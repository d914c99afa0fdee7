"""What the attacks with shadow models share: which trainings they ask for, and what those say of each record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from harness.api import (
    Field,
    PluginError,
    PrivacyAttack,
    PrivacyContext,
    PrivacyView,
    TrainingVariant,
    VariantView,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

# Log-odds beyond this are cut off there, and undefined ones count as the least: a model that diverged then
# gives the same finite number everywhere, which tells nothing of anybody.
LIMIT = 1e6


def shadow_variants(count: int) -> list[TrainingVariant]:
    """The trainings shadow-0 to shadow-{count - 1}: each odd one has the records that the one before leaves out.

    So every record is in exactly half of them, and trained on in so many where all clients take part. The names are
    the same for every attack and every count, so attacks share the trainings. count: even.
    """
    variants = []
    for i in range(0, count, 2):
        variants.append(TrainingVariant(f"shadow-{i}", 0.5))
        variants.append(TrainingVariant(f"shadow-{i + 1}", 0.5, complement_of=f"shadow-{i}"))
    return variants


def log_odds(name: str, model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> np.ndarray:
    """(n,) float64: phi = log(p_y / (1 - p_y)) = z_y - log sum_{j != y} exp(z_j), from the logits z (n, k).

    No probability is formed, so confident predictions stay apart. Within +-1e6; NaN becomes -1e6. The record's
    cross-entropy is log(1 + exp(-phi)). Raises PluginError (`name` in it) where labels and logits do not fit.
    """
    import torch

    if not len(images):
        return torch.empty(0, dtype=torch.float64).numpy()
    with torch.no_grad():
        logits = model(images).double()
        if logits.ndim != 2 or logits.shape[:1] != labels.shape:
            raise PluginError(f"{name}: logits {tuple(logits.shape)} for labels {tuple(labels.shape)}")
        true = labels.to(logits.device).long().unsqueeze(1)
        if true.min() < 0 or true.max() >= logits.shape[1]:
            raise PluginError(
                f"{name}: labels from {int(true.min())} to {int(true.max())} for {logits.shape[1]} classes"
            )
        others = logits.scatter(1, true, float("-inf")).logsumexp(1)
        phi = logits.gather(1, true).squeeze(1) - others
        return phi.nan_to_num(nan=-LIMIT).clamp(-LIMIT, LIMIT).cpu().numpy()


def log_probability(phi: np.ndarray) -> np.ndarray:
    """log p_y in nats, from the log-odds: minus the cross-entropy."""
    import numpy as np

    return -np.logaddexp(0.0, -phi)


@dataclass(frozen=True)
class Evidence:
    """Log-odds of n records, members first: target (n,) and shadows (m, n). trained (m, n), is_member (n,): bool."""

    target: np.ndarray
    shadows: np.ndarray
    trained: np.ndarray
    is_member: np.ndarray


class ShadowAttack(PrivacyAttack):
    """A membership attack that compares the target with models trained on random halves of the pool.

    They are other draws of the target's training, initial weights and partition among clients included. The target
    should have half of the pool too: with a `holdout` below 0.5 it has more records than they, which weakens the
    attack.
    """

    holdout: ClassVar[float] = 0.5

    shadows: int = Field(
        16, ge=2, multiple_of=2, description="shadow models, an even number; each record is in half of them"
    )

    def trainings(self, cell: Any) -> list[TrainingVariant]:
        """shadow-0, shadow-1, ...: pairs of complementary halves."""
        return shadow_variants(self.shadows)

    def models(self, view: PrivacyView) -> list[VariantView]:
        """The shadow models, in order. Raises PluginError where one is missing."""
        names = [variant.name for variant in shadow_variants(self.shadows)]
        missing = [name for name in names if name not in view.variants]
        if missing:
            raise PluginError(f"{self.name} needs the training {missing[0]!r}, which the view does not hold")
        return [view.variants[name] for name in names]

    def evidence(self, view: PrivacyView, context: PrivacyContext) -> Evidence:
        """The log-odds of every record under the target and each shadow model.

        Raises PluginError where a side is empty, a shadow model is missing or its mask does not fit.
        """
        import numpy as np

        sides = (view.members, view.non_members)
        sizes = [len(labels) for _, labels in sides]
        if not all(sizes):
            raise PluginError(f"{self.name} needs members and non-members")

        def both(model: Callable[[Tensor], Tensor]) -> np.ndarray:
            return np.concatenate([log_odds(self.name, model, *side) for side in sides])

        target, rows, masks = both(view.logits), [], []
        for done, shadow in enumerate(self.models(view), 1):
            mask = np.asarray(shadow.mask, dtype=bool)
            if mask.shape != target.shape:
                raise PluginError(
                    f"{self.name}: shadow model {done - 1} has a mask {mask.shape} for {len(target)} records"
                )
            rows.append(both(shadow.logits))
            masks.append(mask)
            context.progress(done, self.shadows)
        return Evidence(target, np.stack(rows), np.stack(masks), np.repeat([True, False], sizes))

    def counts(self, where: np.ndarray, side: str) -> np.ndarray:
        """(n,) of how many models each record has on a side. where (m, n) bool: that side; side: `in` or `out`.

        Raises PluginError where a record has none.
        """
        counts = where.sum(0)
        without = int((counts == 0).sum())
        if without:
            raise PluginError(
                f"{self.name}: {without} of {len(counts)} records have no {side}-model "
                f"among the {len(where)} shadow models; use more of them (where few clients take part, few of "
                "their records are trained on)"
            )
        return counts

    def mean(self, values: np.ndarray, where: np.ndarray, side: str) -> np.ndarray:
        """(n,) each record's mean of values (m, n) over the models of a side; raises as `counts` does."""
        import numpy as np

        return np.where(where, values, 0.0).sum(0) / self.counts(where, side)
