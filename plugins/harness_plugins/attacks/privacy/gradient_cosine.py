"""Membership inference by the server, from the updates of the training's rounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from harness.api import (
    Field,
    Membership,
    PluginError,
    PrivacyAttack,
    PrivacyContext,
    PrivacyView,
    RecordedRound,
    Reference,
    TrainingVariant,
)

if TYPE_CHECKING:
    from torch import Tensor

ELEMENTS = 2**25  # of per-record gradients held at a time
RECORDS = 256  # at a time, at most: their activations are held as well


class GradientCosine(PrivacyAttack):
    """An update points along the gradients of the records that made it, and hardly along any other's.

    score(x) = mean over recorded rounds of max over the updates u that the server saw in the round of
    cos(-u, g), g (d,) the gradient of CE(f_w(x), y) in the round's global weights w; in [-1, 1], higher means
    more likely a member. With many parameters the gradients of different records are almost orthogonal, so that
    the cosine stands out where x was used. Only g's direction matters, and CE = log(1 + exp(-phi)) with phi =
    z_y - log sum_{j != y} exp(z_j): it is that of -grad phi, which does not vanish in float32 for records
    fitted well. A cosine with a zero or an undefined vector counts as 0.

    The paper's adversary listens to one client and asks whether a record is that client's; the server here
    hears all of them and asks whether it is anybody's, hence the maximum. Where it sees the mean of the updates
    alone, that is the one there is. Rounds, evenly spread over the training, are averaged; rounds without an
    update are passed over. The network is in eval mode (batch norm with the trained statistics), whatever loss
    the clients trained on. The paper's second attack, which compares squared norms of the update with and
    without the gradient, is left out.

    Scores (members then non-members,), float64. Raises PluginError where the view lacks `apply` or the recorded
    rounds, a side is empty or labels and logits do not fit. Costs one training, and n gradients a round, worked
    through in chunks of at most 256 records and 2^25 numbers: O(rounds n clients d). Source: Li, Li, Ribeiro
    (2023), the attack by the cosine similarity of gradients.
    """

    name = "gradient-cosine"
    reference = Reference(
        title="Effective passive membership inference attacks in federated learning against "
        "overparameterized models",
        authors="Li, Li, Ribeiro",
        venue="ICLR 2023",
        year=2023,
        url="https://openreview.net/forum?id=QsCSLPP55Ku",
    )
    knowledge: ClassVar[str] = "server"

    rounds: int = Field(3, ge=1, description="rounds whose updates are kept, evenly spread over the training")

    def trainings(self, cell: Any) -> list[TrainingVariant]:
        """The target's own training, with some of its rounds kept."""
        return [
            TrainingVariant(
                f"recorded-{self.rounds}", keep=None, recorded_rounds=self.rounds, compressed=False
            )
        ]

    def run(self, view: PrivacyView, context: PrivacyContext) -> Membership:
        """scores (members then non-members,) float64 and the truth beside them."""
        import numpy as np
        import torch

        sides = [view.members, view.non_members]
        sizes = [len(labels) for _, labels in sides]
        if not all(sizes):
            raise PluginError(f"{self.name} needs members and non-members")
        rounds = self._rounds(view)
        images, labels = (torch.cat(parts) for parts in zip(*sides, strict=True))
        total = np.zeros(len(labels))
        for number, kept in enumerate(rounds):
            best = []
            for cosines in self._cosines(view, kept, images, labels):
                best.append(cosines.amax(1).double().cpu())
                done = sum(map(len, best))
                context.progress(number * len(labels) + done, len(rounds) * len(labels))
            total += torch.cat(best).numpy()
        return Membership(total / len(rounds), np.repeat([True, False], sizes))

    def _rounds(self, view: PrivacyView) -> list[RecordedRound]:
        """The recorded rounds that have updates."""
        if view.apply is None:
            raise PluginError(f"{self.name} needs the network with other weights: knowledge `server`")
        name = self.trainings(None)[0].name
        if name not in view.variants:
            raise PluginError(f"{self.name} needs the training {name!r}, which the view does not hold")
        rounds = [kept for kept in view.variants[name].rounds if len(kept.updates)]
        if not rounds:
            raise PluginError(f"{self.name}: {name!r} recorded no round with an update")
        return rounds

    def _cosines(
        self, view: PrivacyView, kept: RecordedRound, images: Tensor, labels: Tensor
    ) -> Iterator[Tensor]:
        """(b, updates) of each chunk of records: the cosine between minus each update and their gradients."""
        import torch

        apply, weights = view.apply, kept.weights.detach()
        assert apply is not None
        images, labels = images.to(weights.device), labels.to(weights.device)
        with torch.no_grad():  # also loads, before any transform, what `apply` loads at its first call
            classes = apply(weights, images[:1]).shape[1]
        if labels.min() < 0 or labels.max() >= classes:
            raise PluginError(
                f"{self.name}: labels from {int(labels.min())} to {int(labels.max())} for {classes} classes"
            )

        def log_odds(flat: Tensor, image: Tensor, label: Tensor) -> Tensor:
            logits = apply(flat, image.unsqueeze(0)).squeeze(0)
            true = torch.arange(classes, device=logits.device) == label
            others = logits.masked_fill(true, float("-inf")).logsumexp(0)
            return torch.where(true, logits, 0.0).sum() - others

        gradients = torch.func.vmap(torch.func.grad(log_odds), in_dims=(None, 0, 0))
        directions = _directions(kept.updates.to(weights))
        chunk = max(1, min(RECORDS, ELEMENTS // len(weights)))
        for start in range(0, len(labels), chunk):
            part = slice(start, start + chunk)
            rows = _directions(gradients(weights, images[part], labels[part]).detach())
            # Minus the update with the gradient of -phi: the signs cancel.
            yield (rows @ directions.T).nan_to_num(nan=0.0).clamp(-1.0, 1.0)


def _directions(rows: Tensor) -> Tensor:
    """Rows (n, d) of length 1, at whatever scale: the squares of very large or small numbers leave float32.

    A row that is zero or undefined has NaN.
    """
    from torch.nn import functional

    return functional.normalize(rows / rows.abs().amax(1, keepdim=True), dim=1)


PLUGINS = (GradientCosine,)
