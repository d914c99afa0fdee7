"""Count sketches of updates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from harness.api import Field, Payload, Reference, UpdateCompressionContext, UpdateCompressor
from harness_plugins.compressors._updates import check_update, raw_update

if TYPE_CHECKING:
    from torch import Tensor


class CountSketch(UpdateCompressor):
    """A table of `rows` hashed sums with random signs, off which the server reads the coordinates.

    Coordinate i adds s_j(i) u_i to cell h_j(i) of row j; its estimate is the median over rows of s_j(i) times that
    cell (Charikar, Chen and Farach-Colton 2002, section 3). Rows have round(ratio d / rows) cells. One row is
    unbiased, with a variance of about |u|^2 / cells for a coordinate; several, with `keep` below 1, are for updates
    in which few coordinates are large: the server keeps the k = max(1, round(keep d)) estimates of largest
    magnitude and takes the others for zero. Hashes and signs are fresh for each round and the same for all clients,
    drawn from a seed that both sides know, so sketches of one round can be added. A following link encodes the
    table. There is no error feedback: what collides would come back larger. FetchSGD (Rothchild et al. 2020), which
    keeps momentum and error at the server, is another method.

    update (d,) float; 4 rows round(ratio d / rows) bytes. No state. Cost: O(rows d).
    """

    name: ClassVar[str] = "count-sketch"
    requires: ClassVar[tuple[str, ...]] = ("torch",)
    reference: ClassVar[Reference | None] = Reference(
        title="Finding Frequent Items in Data Streams", authors="Charikar, Chen, Farach-Colton",
        venue="ICALP", year=2002, url="https://doi.org/10.1007/3-540-45465-9_59",
    )  # fmt: skip

    passed_on: ClassVar[tuple[str, ...]] = ("table",)

    ratio: float = Field(0.25, gt=0, le=1, description="numbers sent, as a share of d")
    rows: int = Field(1, ge=1, le=99, description="rows of the table, of which estimates take the median")
    keep: float = Field(1.0, gt=0, le=1, description="share k/d of the coordinates that the server takes")

    @property
    def summable(self) -> bool:  # type: ignore[override]
        """Sketches always add up; what is read from their sum is the sum where no estimate is left out."""
        return self.rows == 1 and self.keep == 1

    def encode(self, update: Tensor, state: dict[str, Any], context: UpdateCompressionContext) -> Payload:
        import torch

        check_update(self, update)
        if (raw := raw_update(update)) is not None:
            return raw
        cells, signs = self._hashes(len(update), context)
        table = torch.zeros(self.rows, self._width(len(update)), device=update.device)
        for row, cell, sign in zip(table, cells, signs, strict=True):
            row.index_add_(0, cell, update.detach().float() * sign)
        return Payload({"table": table}, {"d": len(update)})

    def decode(self, payload: Payload, context: UpdateCompressionContext) -> Tensor:
        if "raw" in payload.tensors:
            return payload.tensors["raw"]
        import torch

        cells, signs = self._hashes(int(payload.facts["d"]), context)
        estimates = (payload.tensors["table"].gather(1, cells) * signs).quantile(0.5, dim=0)
        k = max(1, round(self.keep * len(estimates)))
        largest = estimates.abs().topk(k).indices
        result = torch.zeros_like(estimates)
        result[largest] = estimates[largest]
        return result

    def _width(self, d: int) -> int:
        return max(1, round(self.ratio * d / self.rows))

    def _hashes(self, d: int, context: UpdateCompressionContext) -> tuple[Tensor, Tensor]:
        """Cells (rows, d) int64 and signs (rows, d): drawn coordinate by coordinate, so wholly independent."""
        import torch

        generator = context.shared
        device = generator.device
        cells = torch.randint(self._width(d), (self.rows, d), generator=generator, device=device)
        signs = torch.randint(2, (self.rows, d), generator=generator, device=device) * 2.0 - 1
        return cells, signs


PLUGINS = (CountSketch,)
