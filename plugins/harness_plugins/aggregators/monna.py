"""MoNNA: the neighbours of a vector that is trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from harness.api import AggregationContext, Field, PluginError, Reference
from harness_plugins.aggregators._tolerance import NeedsMajority, tolerated
from harness_plugins.columns import mean_of, squared_distances_to

if TYPE_CHECKING:
    from torch import Tensor


class NearestNeighborAveraging(NeedsMajority):
    """The mean of the n - f updates nearest to a trusted one (nearest-neighbour averaging).

    Published for peers, each of which trusts itself. A server has to trust somebody: the client `trusted`, whose own
    row counts among the nearest, or with `root` the update that the server computes on a root dataset (which does
    not enter the mean). A trusted client that is malicious leaves no protection: such cells are not applicable.
    Ties go to the lower row. Weights are ignored.

    updates (n, d) -> (d,). Needs n > 2f, else PluginError, as where the trusted client is not in the round.
    Costs O(n d). Reports the rows kept.
    """

    name: ClassVar[str] = "monna"
    reference: ClassVar[Reference | None] = Reference(
        title="Robust Collaborative Learning with Linear Gradient Overhead",
        authors="Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan",
        venue="ICML",
        year=2023,
        url="https://arxiv.org/abs/2209.10931",
    )

    trusted: Annotated[int, Field(ge=0)] | Literal["root"] = Field(
        "root",
        description="number of the trusted client, or root: the server's own update on a root dataset",
    )
    root_size: int = Field(100, ge=1, description="records in the root dataset")
    root: Literal["private", "public"] = Field(
        "private", description="where the root dataset comes from: the validation split, or public data"
    )

    @property
    def root_records(self) -> int:
        return self.root_size if self.trusted == "root" else 0

    @property
    def data_access(self) -> str:
        return self.root if self.trusted == "root" else "none"

    @property
    def follows_clients(self) -> bool:  # type: ignore[override]
        return self.trusted != "root"

    @property
    def trusts(self) -> tuple[int, ...]:  # type: ignore[override]
        return () if self.trusted == "root" else (self.trusted,)

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        f = tolerated(self, updates, context)
        pivot = self._pivot(updates, context)
        distances = squared_distances_to(updates, pivot)
        kept = sorted(distances.sort(stable=True).indices[: len(updates) - f].tolist())
        context.report(kept=kept)
        return mean_of(updates, kept)

    def _pivot(self, updates: Tensor, context: AggregationContext) -> Tensor:
        if self.trusted == "root":
            if context.root_update is None:
                raise PluginError("monna: there is no root dataset in this context")
            return context.root_update()
        if self.trusted not in context.client_ids:
            raise PluginError(
                f"monna trusts client {self.trusted}, which takes no part in this round of "
                f"{len(updates)} clients: use participation 1 or trusted: root"
            )
        return updates[context.client_ids.index(self.trusted)]


PLUGINS = (NearestNeighborAveraging,)
