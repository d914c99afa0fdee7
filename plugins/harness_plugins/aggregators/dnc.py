"""Divide and conquer: outliers along the direction of most variance."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import AggregationContext, Field, PluginError, Reference
from harness_plugins.aggregators._cosines import gram_matrix
from harness_plugins.aggregators._tolerance import Tolerant, tolerated
from harness_plugins.columns import mean_of

if TYPE_CHECKING:
    from torch import Tensor


class DivideAndConquer(Tolerant):
    """Drops the updates that project farthest onto the top singular direction of random coordinates (DnC).

    `iterations` times: draw b coordinates; centre the rows on their mean; v is the top right singular vector;
    the score of row i is <x_i - mean, v>^2; the floor(c f) highest are out (Algorithm 2). What is never out
    is averaged. The singular vector is exact, through the n x n Gram matrix. Weights are ignored.

    updates (n, d) -> (d,). Needs n > c f, else PluginError, as where different iterations leave nobody in.
    Costs O(iterations n^2 min(b, d)). Draws from the context's generator. Reports the rows kept.
    """

    name: ClassVar[str] = "dnc"
    reference: ClassVar[Reference | None] = Reference(
        title="Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated Learning",
        authors="Shejwalkar, Houmansadr",
        venue="NDSS",
        year=2021,
        url="https://www.ndss-symposium.org/ndss-paper/manipulating-the-byzantine-optimizing-model-"
        "poisoning-attacks-and-defenses-for-federated-learning/",
    )

    iterations: int = Field(1, ge=1, description="draws of coordinates (niters)")
    coordinates: int = Field(10_000, ge=1, description="coordinates in a draw (b); all where d is less")
    c: float = Field(1.0, gt=0, allow_inf_nan=False, description="rows dropped, as a multiple of f")

    def check(self, n: int, f: int) -> tuple[int, int]:
        own = self.in_force(f)
        if int(self.c * own) >= n:
            raise PluginError(f"dnc needs n > c f updates: n = {n}, c f = {self.c:g} * {own}")
        return n, f

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        import torch

        f = tolerated(self, updates, context)
        n, d = updates.shape
        good = set(range(n))
        generator = context.generator
        for _ in range(self.iterations):
            subset = updates
            if self.coordinates < d:
                drawn = torch.randperm(d, generator=generator, device=generator.device)[: self.coordinates]
                subset = updates[:, drawn.to(updates.device)]
            centred = subset.double() - subset.double().mean(0)
            values, vectors = torch.linalg.eigh(gram_matrix(centred))
            # Gram = U S^2 U': the projections on the top right singular vector are s_1 u_1.
            scores = values[-1] * vectors[:, -1].square()
            out = scores.sort(stable=True, descending=True).indices[: int(self.c * f)]
            good -= set(out.tolist())
        kept = sorted(good)
        if not kept:
            raise PluginError(f"dnc: {self.iterations} iterations left none of {n} updates in")
        context.report(kept=kept)
        return mean_of(updates, kept)


PLUGINS = (DivideAndConquer,)
