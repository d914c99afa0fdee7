"""The labels behind a client's update."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from harness.api import (
    Field,
    PluginError,
    PrivacyContext,
    PrivacyView,
    Reconstruction,
    Reference,
)
from harness_plugins.attacks.privacy._updates import UpdateAttack

if TYPE_CHECKING:
    from torch import Tensor


class LabelInference(UpdateAttack):
    """Label leakage from gradients: the labels of all records behind an update, each as often as it occurs.

    With g_c the gradient of class c in the last layer (its bias, or the sum over its row of weights; an update of
    several steps as -update / lr), m < 0 the impact of one record and s_c the offset: each class with g_c < 0
    occurs at least once, and g_c <- g_c - m; then g <- g - s, and the class of the smallest g is counted
    once more and its g lessened by m, until all b records have a label. m and s come from `auxiliary`:

    none: m = (1 + 1/k) / b sum of the negative g_c, s = 0 (LLG). Too small an m where b is large and classes
    few: then below the class shares alone. dummies: the client's training simulated on uniform noise, a class
    at a time (LLG*). population: on the adversary's own records of the class, the validation split (LLG+).

    b is what the server knows of the client, or of all clients together whose mean it sees. The paper sums rows of
    weights, which needs features that are not negative (ReLU); the bias serves any activation. Exact for one
    undefended record; worse on trained models and after many local steps. Source: Wainakh et al. (2022), section 4,
    algorithm 1. Cost: none: O(b k); else `draws` k simulated trainings of the client an update.
    Raises PluginError without observed updates, or with `population` but no such records; NotApplicable where
    clients do not step with SGD or the network does not end in a linear layer.
    """

    name = "label-inference"
    reference = Reference(
        title="User-level label leakage from gradients in federated learning",
        authors="Wainakh, Ventola, Müßig, Keim, Garcia Cordero, Zimmer, Grube, Kersting, Mühlhäuser",
        venue="PoPETs 2022(2)",
        year=2022,
        url="https://arxiv.org/abs/2105.09369",
    )

    records: int | None = Field(
        None, ge=1, description="records of each client behind an update; None: all it has"
    )
    auxiliary: Literal["none", "dummies", "population"] = Field(
        "dummies",
        description="records of its own by which the attacker gauges m and s: none, noise, real ones",
    )
    draws: int = Field(10, ge=1, description="simulated trainings of each class, unless auxiliary is none")

    def run(self, view: PrivacyView, context: PrivacyContext) -> Reconstruction:
        """labels (b,) int64, sorted, for every observed update, in its order; no images."""
        from harness_plugins.attacks.privacy._inversion import dummies, llg, llg_knowledge

        updates, found = self.updates(view), []
        for number, observed in enumerate(updates):
            context.progress(number, len(updates))
            known = None
            if self.auxiliary != "none":
                own = self.auxiliary == "population"
                draw = _own(view, context) if own else dummies(observed, context.generator)
                known = llg_knowledge(observed, draw, self.draws)
            found.append(llg(observed, known))
        context.progress(len(updates), len(updates))
        return Reconstruction(labels=tuple(found))


def _own(view: PrivacyView, context: PrivacyContext) -> Callable[[int, int], Tensor | None]:
    import torch

    if view.population is None or not len(view.population[1]):
        raise PluginError("label-inference with auxiliary: population needs records of the adversary's own")
    images, labels = view.population

    def draw(label: int, count: int) -> Tensor | None:
        of_class = images[labels == label]
        if not len(of_class):
            return None
        device = of_class.device
        chosen = torch.randint(len(of_class), (count,), generator=context.generator, device=device)
        return of_class[chosen]

    return draw


PLUGINS = (LabelInference,)
