"""Sparsified updates with error feedback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from harness.api import (
    Field,
    Payload,
    PluginError,
    Reference,
    UpdateCompressionContext,
    UpdateCompressor,
)
from harness_plugins.compressors._updates import add_to_residual, check_update, keep_residual, with_residual

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def index_dtype(d: int) -> torch.dtype:
    """The smaller of int32 and int64 that holds the positions 0 .. d-1."""
    import torch

    return torch.int32 if d - 1 <= torch.iinfo(torch.int32).max else torch.int64


class TopK(UpdateCompressor):
    """Sends the k = max(1, round(ratio · d)) largest coordinates; the client keeps the rest for later.

    With error feedback (Stich et al., algorithm 1; Karimireddy et al. 2019, "Error Feedback Fixes SignSGD",
    algorithm 2), with e_0 = 0 the client's residual, in the units of the update:

        p_t = u_t + e_t,    sent_t = top_k(p_t),    e_{t+1} = p_t − sent_t,

    so sent_t + e_{t+1} = u_t + e_t holds exactly. `state["residual"]` (d,) has the update's dtype and
    device, so what rounding to the wire's float32 takes from a float64 update is kept too. Without error
    feedback the rest is lost and `state` is not touched.

    update (d,) float; values go as float32 and positions, ascending, as int32 (int64 from d > 2^31):
    8 k bytes against 4 d. `decode` returns (d,) float32. An update that is not finite is sent as such,
    for the server to see and drop, and leaves the residual as it was.
    Raises PluginError for an update that is not (d,) with d >= 1, or another d than the residual's.

    A following link encodes the values, and what it loses of them stays in e too (Basu et al. 2019,
    Qsparse-local-SGD): sent_t is then what the server makes of both links' message.
    Cost: O(d) time, d floats of memory per client.
    """

    name: ClassVar[str] = "top-k"
    requires: ClassVar[tuple[str, ...]] = ("torch",)
    passed_on: ClassVar[tuple[str, ...]] = ("values",)
    reference: ClassVar[Reference | None] = Reference(
        title="Sparsified SGD with Memory",
        authors="Sebastian U. Stich, Jean-Baptiste Cordonnier, Martin Jaggi",
        venue="NeurIPS 2018",
        year=2018,
        url="https://arxiv.org/abs/1809.07599",
    )

    ratio: float = Field(0.01, gt=0, le=1, description="share k/d of the coordinates sent, in (0, 1]")
    error_feedback: bool = Field(True, description="add what was not sent to the client's next update")

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        return self.error_feedback

    def encode(self, update: Tensor, state: dict[str, Any], context: UpdateCompressionContext) -> Payload:
        import torch

        check_update(self, update)
        d = len(update)
        carried = with_residual(update, state, self.error_feedback)
        k = max(1, round(self.ratio * d))
        positions = carried.abs().topk(k, sorted=False).indices.sort().values
        values = carried[positions].to(torch.float32)
        sent = torch.zeros_like(carried).index_copy_(0, positions, values.to(carried))
        keep_residual(carried, sent, state, self.error_feedback)
        return Payload({"values": values, "indices": positions.to(index_dtype(d))}, {"d": d})

    def decode(self, payload: Payload, context: UpdateCompressionContext) -> Tensor:
        import torch

        values, positions = payload.tensors["values"], payload.tensors["indices"].to(torch.int64)
        d = int(payload.facts["d"])
        if values.shape != positions.shape or not 0 < len(values) <= d:
            raise PluginError(
                f"top-k: {len(values)} values and {len(positions)} positions for {d} coordinates"
            )
        if int(positions.min()) < 0 or int(positions.max()) >= d:
            raise PluginError(f"top-k: positions must lie in [0, {d})")
        return torch.zeros(d, dtype=values.dtype, device=values.device).index_copy_(0, positions, values)

    def add_lost(self, lost: Tensor, state: dict[str, Any]) -> None:
        add_to_residual(lost, state)


PLUGINS = (TopK,)
