"""What lies between clients and the server: compressors, and the bytes of every message."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.contracts.compressor import UpdateCompressionContext, UpdateCompressor
from harness.errors import PluginError
from harness.federation.vector import trainable
from harness.random import torch_generator

if TYPE_CHECKING:
    from torch import Tensor

    from harness.federation.local import LocalTrainer
    from harness.federation.outcome import Outcome

SERVER = -1  # the server's number among those who keep state of the wire


class Wire:
    """Takes updates from clients to the server through a chain of compressors, which keep state at both ends.

    local_buffers: whether a model's float buffers stay with the clients, and so are not sent either way.
    """

    def __init__(
        self,
        compressors: Sequence[UpdateCompressor],
        trainer: LocalTrainer,
        seed: int,
        outcome: Outcome,
        local_buffers: bool = False,
    ) -> None:
        self._compressors = compressors
        self._seed = seed
        self._local_buffers = local_buffers
        self._device = trainer.device
        self._layout = trainer.layout
        self._shapes = {name: tuple(p.shape) for name, p in trainable(trainer.module).items()}
        self._outcome = outcome
        self._state: dict[tuple[int, int], dict[str, Any]] = {}

    def exchange(
        self, round: int, updates: dict[int, Tensor], buffers: dict[str, Tensor]
    ) -> dict[int, Tensor]:
        """The updates as the server receives them, and all bytes counted, those of the model's buffers included."""
        if not updates:
            return updates
        extra = 0 if self._local_buffers else sum(b.numel() for b in buffers.values())
        ids, rows = list(updates), list(updates.values())
        size = rows[0].numel()
        sent = [4 * size] * len(ids)  # by the last message, of which the last link decides
        before = answered = 0
        for link, compressor in enumerate(self._compressors):
            states = [self._state.setdefault((i, link), {}) for i in ids]
            server = self._state.setdefault((SERVER, link), {})
            contexts = [partial(self._context, round, i, link) for i in ids]
            made = compressor.exchange(rows, states, server, contexts)
            rows, sent = made.updates, made.sent
            before += sum(made.before)
            answered += sum(made.answered)
            wrong = next((row for row in rows if row.shape != (size,)), None)
            if len(rows) != len(ids) or wrong is not None:
                shape = "other rows" if wrong is None else tuple(wrong.shape)
                raise PluginError(f"{compressor.name} decoded {shape}, not {len(ids)} of ({size},)")
        self._outcome.messages += len(ids)
        self._outcome.uplink_bytes += before + sum(sent) + len(ids) * extra * 4
        self._outcome.downlink_bytes += answered + len(ids) * (size + extra) * 4
        return dict(zip(ids, rows, strict=True))

    def _context(self, round: int, client: int, link: int) -> UpdateCompressionContext:
        own = torch_generator(self._seed, "compressor", link, client, round, device=self._device)
        shared = torch_generator(self._seed, "shared compressor", link, round, device=self._device)
        return UpdateCompressionContext(round, client, own, shared, self._layout, self._shapes)
