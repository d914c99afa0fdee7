"""Models that predict one class for everything: attacks hardly change such answers, and none needs to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# On the records of a released model that does so. Its robust accuracy is close to its clean accuracy, as only an
# input at the border of the class changes its answer, and a backdoor's success is near all or nothing, whatever the
# defence: neither says anything about the method.
FLAG = "constant-predictions"


def constant(logits: np.ndarray, labels: np.ndarray) -> bool:
    """Whether test records of several classes are all predicted as one. logits (n, k), labels (n,).

    A row with a NaN predicts no class, as in `evasion.right`: a model that has diverged is not constant.
    """
    predicted = logits.argmax(1)
    several = (labels != labels[0]).any()
    answered = (logits == logits).all()  # only a NaN differs from itself
    return bool(several and answered and (predicted == predicted[0]).all())
