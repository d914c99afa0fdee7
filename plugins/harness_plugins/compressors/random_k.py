"""Randomly chosen coordinates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from harness.api import Field, Payload, Reference, UpdateCompressionContext, UpdateCompressor
from harness_plugins.compressors._updates import (
    add_to_residual,
    check_update,
    keep_residual,
    raw_update,
    with_residual,
)
from harness_plugins.compressors.top_k import index_dtype

if TYPE_CHECKING:
    from torch import Tensor


class RandomK(UpdateCompressor):
    """Sends k = max(1, round(ratio d)) coordinates drawn at random.

    With error feedback (Stich et al., algorithm 1 with rand_k) the rest is kept for the client's next update.
    Without it the values are scaled by d / k, which makes the result unbiased. `shared`: server and clients
    draw the same coordinates in a round from a common seed, so positions are not sent. An update that is not
    finite is sent as such. A following link encodes the values, and with error feedback what it loses of them
    is kept too. 4 k bytes, and 4 k more for positions. Cost: O(d).
    """

    name: ClassVar[str] = "random-k"
    reference: ClassVar[Reference | None] = Reference(
        title="Sparsified SGD with Memory", authors="Stich, Cordonnier, Jaggi", venue="NeurIPS", year=2018,
        url="https://arxiv.org/abs/1809.07599",
    )  # fmt: skip

    passed_on: ClassVar[tuple[str, ...]] = ("values",)

    ratio: float = Field(0.01, gt=0, le=1, description="share k/d of the coordinates sent, in (0, 1]")
    error_feedback: bool = Field(True, description="add what was not sent to the client's next update")
    shared: bool = Field(
        False, description="coordinates from a seed common to the round: positions are not sent"
    )

    @property
    def remembers(self) -> bool:  # type: ignore[override]
        return self.error_feedback

    def encode(self, update: Tensor, state: dict[str, Any], context: UpdateCompressionContext) -> Payload:
        check_update(self, update)
        carried = with_residual(update, state, self.error_feedback)
        # The coordinates drawn need not show that it has diverged.
        if (raw := raw_update(carried)) is not None:
            return raw
        positions = self._draw(len(update), context)
        values = carried[positions].float()
        if not self.error_feedback:
            values = values * (len(update) / len(positions))
        tensors = {"values": values}
        if not self.shared:
            tensors["indices"] = positions.to(index_dtype(len(update)))
        payload = Payload(tensors, {"d": len(update)})
        keep_residual(carried, self.decode(payload, context), state, self.error_feedback)
        return payload

    def decode(self, payload: Payload, context: UpdateCompressionContext) -> Tensor:
        import torch

        if "raw" in payload.tensors:
            return payload.tensors["raw"]
        d, values = int(payload.facts["d"]), payload.tensors["values"]
        positions = payload.tensors["indices"].long() if not self.shared else self._draw(d, context)
        return torch.zeros(d, dtype=values.dtype, device=values.device).index_copy_(0, positions, values)

    def add_lost(self, lost: Tensor, state: dict[str, Any]) -> None:
        add_to_residual(lost, state)

    def _draw(self, d: int, context: UpdateCompressionContext) -> Tensor:
        """k positions; the common stream is read from its start, so server and client find the same ones."""
        import torch

        generator = context.generator
        if self.shared:
            generator = torch.Generator(context.shared.device)
            generator.set_state(context.shared.get_state())
        k = max(1, round(self.ratio * d))
        return torch.randperm(d, generator=generator, device=generator.device)[:k].sort().values


PLUGINS = (RandomK,)
