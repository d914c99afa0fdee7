"""Property inference: whether a client's records share an attribute that has nothing to do with the task."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from harness.api import (
    Field,
    Observation,
    PluginError,
    PrivacyAttack,
    PrivacyContext,
    PrivacyView,
    Reference,
    Score,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class PropertyInference(PrivacyAttack):
    """Tells from an update whether all of a client's records have an attribute or none has.

    The server simulates updates of undefended clients on its own records (the validation split), half of them with
    the attribute and half without, each of as many clients and records, drawn with replacement, as an observed update
    chosen at random is of; trains a random forest of 50 trees on the updates, and applies it to the updates it
    observes. attribute `bright` is a mean pixel above `threshold`, such as an exposure typical of one site's scanner;
    `class` is membership of one class, where the forest learns the label distribution.

    property_auc: area under the ROC curve over the observed updates; property_accuracy: share told right, at the
    forest's majority. Of `targets` observed updates half have the attribute; their clients are drawn by the seed. Under
    secure aggregation all clients of the round have it or none has. The adversary does not adapt to defences. The
    forest sees the updates as they are, and one of each client; the authors' code takes magnitudes without biases, the
    largest of each kernel or row of a large layer, normalised, from many rounds. Source: Melis et al. (2019), section
    4.4, passive property inference, random forest on the updates. Raises PluginError where the server's records do not
    have both sides.
    """

    name = "property-inference"
    knowledge: ClassVar[str] = "server"
    needs_sgd: ClassVar[bool] = True
    needs_non_members: ClassVar[bool] = False
    requires = ("sklearn.ensemble",)
    reference = Reference(
        title="Exploiting unintended feature leakage in collaborative learning",
        authors="Melis, Song, De Cristofaro, Shmatikov",
        venue="IEEE S&P 2019",
        year=2019,
        url="https://arxiv.org/abs/1805.04049",
    )
    scores: ClassVar[dict[str, Score]] = {
        "property_auc": Score("lower", "share", "area under the property attack's ROC curve, 0.5 is chance"),
        "property_accuracy": Score("lower", "share", "updates whose property is told right"),
    }

    attribute: Literal["bright", "class"] = Field("bright", description="what the records have in common")
    threshold: float = Field(0.5, ge=0, le=1, description="bright: mean pixel above which an image is bright")
    target: int = Field(0, ge=0, description="class: the class in question")
    records: int = Field(
        8, ge=1, description="records of each client behind an update, or all that it has on a side"
    )
    targets: int = Field(40, ge=4, description="updates observed, half of them with the attribute")
    simulated: int = Field(100, ge=10, description="updates simulated to learn from, half of them with it")
    at: Literal["start", "end"] = Field(
        "end", description="observed at the initial weights or the trained model"
    )

    @property
    def observation(self) -> Observation:
        return Observation(self.records, at=self.at, count=self.targets, attribute=self._has)

    @property
    def effort(self) -> int:
        return self.simulated * self.records

    def _has(self, images: Tensor, labels: Tensor) -> Tensor:
        if self.attribute == "class":
            return labels == self.target
        return images.flatten(1).mean(1) > self.threshold

    def run(self, view: PrivacyView, context: PrivacyContext) -> dict[str, float]:
        import numpy as np
        import torch
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.metrics import roc_auc_score

        from harness_plugins.attacks.privacy._inversion import simulate

        if view.population is None or not view.observed:
            raise PluginError(f"{self.name} needs updates and records of the server's own")
        images, labels = view.population
        mask = self._has(images, labels)
        features, truth = [], []
        for number in range(self.simulated):
            has = number % 2 == 0
            pool = torch.nonzero(mask == has).squeeze(1)
            if not len(pool):
                side = "with" if has else "without"
                raise PluginError(f"{self.name}: the server has no record {side} the attribute")
            other = torch.randint(len(view.observed), (), generator=context.generator, device=pool.device)
            observed = view.observed[int(other)]
            drawn = torch.randint(
                len(pool), (observed.records,), generator=context.generator, device=pool.device
            )
            index = pool[drawn]
            update = simulate(observed, images[index], labels[index])
            features.append(_seen(update))
            truth.append(has)
            context.progress(number + 1, self.simulated)
        seed = int(torch.randint(2**31 - 1, (1,), generator=context.generator, device=images.device))
        forest = RandomForestClassifier(50, random_state=seed).fit(np.stack(features), truth)
        given = forest.predict_proba(np.stack([_seen(o.update) for o in view.observed]))[:, 1]
        real = np.array([bool(o.attribute) for o in view.observed])
        return {
            "property_auc": float(roc_auc_score(real, given)),
            "property_accuracy": float(((given > 0.5) == real).mean()),
        }


def _seen(update: Tensor) -> np.ndarray:
    """(d,) float32, as the forest takes it: what is infinite there is the largest number; NaN is a missing value."""
    return update.detach().cpu().float().nan_to_num(nan=float("nan")).numpy()  # type: ignore[no-any-return]


PLUGINS = (PropertyInference,)
