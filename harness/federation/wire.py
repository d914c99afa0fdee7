"""What lies between clients and the server: chains of compressors, and the bytes of every message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from harness.contracts.compressor import Exchanged, Payload, UpdateCompressionContext, UpdateCompressor
from harness.errors import PluginError
from harness.federation.chain import check_chain
from harness.federation.local import seeded_modules
from harness.federation.vector import trainable
from harness.random import torch_generator

if TYPE_CHECKING:
    from torch import Tensor

    from harness.federation.local import LocalTrainer
    from harness.federation.outcome import Outcome

SERVER = -1  # the server's key among the clients' ids, for the state that the wire keeps


class Wire:
    """Takes updates from clients to the server through a chain of compressors, which keep state at both ends.

    local_buffers: whether a model's float buffers stay with the clients and are thus sent neither way.
    """

    def __init__(
        self,
        compressors: Sequence[UpdateCompressor],
        trainer: LocalTrainer,
        seed: int,
        outcome: Outcome,
        local_buffers: bool = False,
    ) -> None:
        check_chain(compressors)
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
        """The updates as the server receives them. Counts all bytes sent, those of the model's buffers included."""
        if not updates:
            return updates
        extra = 0 if self._local_buffers else sum(b.nbytes for b in buffers.values())
        ids, rows = list(updates), list(updates.values())
        with seeded_modules(self._device, self._seed, "wire", round):
            made = self._through(0, round, ids, rows)
        self._outcome.messages += len(ids)
        self._outcome.uplink_bytes += sum(made.before) + sum(made.sent) + len(ids) * extra
        self._outcome.downlink_bytes += sum(made.answered) + len(ids) * (rows[0].nbytes + extra)
        return dict(zip(ids, made.updates, strict=True))

    def _through(self, link: int, round: int, ids: list[int], rows: list[Tensor]) -> Exchanged:
        """Sends vectors, one per client, through the chain from this link on; returns what the server makes of them."""
        if link == len(self._compressors):
            return Exchanged(rows, [row.nbytes for row in rows], [0] * len(rows), [0] * len(rows))
        compressor = self._compressors[link]
        states = [self._state.setdefault((i, link), {}) for i in ids]
        contexts = [partial(self._context, round, i, link) for i in ids]
        if link == len(self._compressors) - 1:
            server = self._state.setdefault((SERVER, link), {})
            made = compressor.exchange(rows, states, server, contexts)
        else:
            made = self._followed(link, round, ids, rows, states, contexts)
        if len(made.updates) != len(rows):
            raise PluginError(f"{compressor.name} decoded {len(made.updates)} updates, not {len(rows)}")
        for row, found in zip(rows, made.updates, strict=True):
            if found.shape != row.shape:
                raise PluginError(f"{compressor.name} decoded {tuple(found.shape)}, not {tuple(row.shape)}")
        return made

    def _followed(
        self,
        link: int,
        round: int,
        ids: list[int],
        rows: list[Tensor],
        states: list[dict[str, Any]],
        contexts: Sequence[Callable[[], UpdateCompressionContext]],
    ) -> Exchanged:
        """Exchange by a link that others follow: they encode the numbers that it passes on."""
        codec = self._compressors[link]
        payloads = [codec.encode(row, s, at()) for row, s, at in zip(rows, states, contexts, strict=True)]
        # A payload in another form than usual, such as of an update that is not finite, is sent as it is.
        numbers = {p: passed for p, payload in enumerate(payloads) if (passed := _passed_on(codec, payload))}
        vectors = [torch.cat([t.flatten().float() for t in passed.values()]) for passed in numbers.values()]
        inner = self._through(link + 1, round, [ids[p] for p in numbers], vectors)
        sent, before, answered = [p.nbytes for p in payloads], [0] * len(rows), [0] * len(rows)
        arrived = list(payloads)
        for place, (p, passed) in enumerate(numbers.items()):
            parts = inner.updates[place].split([t.numel() for t in passed.values()])
            back = {name: part.view_as(passed[name]) for name, part in zip(passed, parts, strict=True)}
            arrived[p] = Payload({**payloads[p].tensors, **back}, payloads[p].facts)
            sent[p] += inner.sent[place] - Payload(passed).nbytes
            before[p], answered[p] = inner.before[place], inner.answered[place]
        received = [codec.decode(payload, at()) for payload, at in zip(arrived, contexts, strict=True)]
        for p in numbers if codec.remembers else ():
            meant = codec.decode(payloads[p], contexts[p]())
            scale, lost = _least_lost(meant, received[p])
            received[p] = scale * received[p]
            sent[p] += 4
            if bool(lost.isfinite().all()):
                codec.add_lost(lost, states[p])
        return Exchanged(received, sent, before, answered)

    def _context(self, round: int, client: int, link: int) -> UpdateCompressionContext:
        own = torch_generator(self._seed, "compressor", link, client, round, device=self._device)
        shared = torch_generator(self._seed, "shared compressor", link, round, device=self._device)
        known = all(codec.places_stay for codec in self._compressors[:link])
        places = (self._layout, self._shapes) if known else ({}, {})
        return UpdateCompressionContext(round, client, own, shared, *places)


def _passed_on(codec: UpdateCompressor, payload: Payload) -> dict[str, Tensor]:
    return {name: payload.tensors[name] for name in codec.passed_on if name in payload.tensors}


def _least_lost(meant: Tensor, received: Tensor) -> tuple[Tensor, Tensor]:
    """The a (float32) for which |meant - a received| is least, and meant - a received (d,).

    The loss's norm is at most |meant|, whatever links follow, so that error feedback contracts. For an unbiased
    quantiser of relative variance beta its expected square is at most beta / (1 + beta) |meant|^2, which is what
    Basu et al. get with a = 1 / (1 + beta).
    """
    length = received.double().square().sum()
    a = (meant.double() @ received.double() / length).float() if length else received.new_ones(())
    return a, meant - a * received
