"""PowerSGD: updates as products of two thin matrices, found by one power iteration a round."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from harness.api import (
    Exchanged,
    Field,
    Payload,
    PluginError,
    Reference,
    UpdateCompressionContext,
    UpdateCompressor,
)
from harness_plugins.compressors._updates import check_update, keep_residual, with_residual

if TYPE_CHECKING:
    from torch import Tensor


class PowerSGD(UpdateCompressor):
    """Each layer's update M (n, m) is sent as P Q^T of rank r; P is agreed between the clients of a round.

    With Q from the last round (at first Gaussian): every client sends M Q; the server returns the orthonormalised mean
    P; every client sends M^T P, and its decoded update is P (M^T P)^T (algorithm 1). The mean of these is the paper's,
    as all steps after P are linear. What a client's own decoding leaves out it adds to its next update (algorithm 2);
    in the authors' code, what the mean of all decodings leaves out of its own update, which is the same on average over
    the clients of a round. Layers of one dimension, and those where rank r would not save bytes, are sent as they are.
    M is a layer's weight flattened to (outputs, everything else).

    The decoded updates of a round share P, so one client's message alone says little, and robust rules see all
    updates in one subspace of rank r a layer. Without the other clients (`encode`) the mean is the client's own.
    An update that is not finite, or so long that sums over the round do not fit float32, is sent as such and takes no
    part in P. Bytes: r (n + m) floats up; n r and m r down,
    P and Q. No compressor can follow, as clients and server answer each other. State: the residual at the clients, Q
    at the server.
    Cost: O(d r).
    """

    name: ClassVar[str] = "powersgd"
    summable: ClassVar[bool] = True
    couples_clients: ClassVar[bool] = True  # through P
    remembers: ClassVar[bool] = True  # Q belongs to the layers, with error feedback or without
    requires: ClassVar[tuple[str, ...]] = ("torch",)
    reference: ClassVar[Reference | None] = Reference(
        title="PowerSGD: Practical Low-Rank Gradient Compression for Distributed Optimization",
        authors="Vogels, Karimireddy, Jaggi", venue="NeurIPS", year=2019, url="https://arxiv.org/abs/1905.13727",
    )  # fmt: skip

    rank: int = Field(2, ge=1, description="rank r of each layer's update")
    error_feedback: bool = Field(True, description="add what was not sent to the client's next update")

    def exchange(
        self,
        updates: list[Tensor],
        states: list[dict[str, Any]],
        server: dict[str, Any],
        contexts: Sequence[Callable[[], UpdateCompressionContext]],
    ) -> Exchanged:
        for update in updates:
            check_update(self, update)
        carried = [with_residual(u, s, self.error_feedback) for u, s in zip(updates, states, strict=True)]
        raw = [_as_it_is(c, len(carried)) for c in carried]
        finite = [i for i, r in enumerate(raw) if r is None]
        received = [c if r is None else r.tensors["raw"] for c, r in zip(carried, raw, strict=True)]
        sent = [0 if r is None else r.nbytes for r in raw]
        for c, r, row, state in zip(carried, raw, received, states, strict=True):
            if r is not None:
                keep_residual(c, row, state, self.error_feedback)
        before, answered = [0] * len(updates), [0] * len(updates)
        if not finite:
            return Exchanged(received, sent, before, answered)
        context = contexts[0]()
        rows = carried[finite[0]].new_zeros((len(finite), len(updates[0]))).float()
        first_up = up = down = 0
        for name, part in _layers(context, len(updates[0])).items():
            own = [carried[i][part].float() for i in finite]
            columns = self._columns(context.shapes.get(name, ()))
            if columns is None:
                up += 4 * len(own[0])
                for row, value in zip(rows, own, strict=True):
                    row[part] = value
                continue
            matrices = [value.view(-1, columns) for value in own]
            first = self._start(server, name, columns, context)
            small = _scaled(*matrices)
            left = self._orthonormal(sum(m @ first for m in small) / len(small))
            rights = [m.T @ left for m in matrices]
            for row, right in zip(rows, rights, strict=True):
                row[part] = (left @ right.T).flatten()
            server[name] = sum(rights) / len(rights)
            first_up += 4 * left.numel()  # M Q has the shape of P
            up += 4 * rights[0].numel()
            down += 4 * (left.numel() + first.numel())
        for row, i in zip(rows, finite, strict=True):
            received[i], sent[i], before[i], answered[i] = row, up, first_up, down
            keep_residual(carried[i], row, states[i], self.error_feedback)
        return Exchanged(received, sent, before, answered)

    def encode(self, update: Tensor, state: dict[str, Any], context: UpdateCompressionContext) -> Payload:
        check_update(self, update)
        carried = with_residual(update, state, self.error_feedback)
        if (raw := _as_it_is(carried, 1)) is not None:
            keep_residual(carried, raw.tensors["raw"], state, self.error_feedback)
            return raw
        tensors: dict[str, Tensor] = {}
        for name, part in _layers(context, len(update)).items():
            columns = self._columns(context.shapes.get(name, ()))
            own = carried[part].float()
            if columns is None:
                tensors[name] = own.clone()
                continue
            matrix = own.view(-1, columns)
            left = self._orthonormal(_scaled(matrix)[0] @ self._start(state, name, columns, context))
            tensors[f"{name}.P"], tensors[f"{name}.Q"] = left, matrix.T @ left
            state[name] = tensors[f"{name}.Q"]
        payload = Payload(tensors)
        keep_residual(carried, self.decode(payload, context), state, self.error_feedback)
        return payload

    def decode(self, payload: Payload, context: UpdateCompressionContext) -> Tensor:
        import torch

        if "raw" in payload.tensors:
            return payload.tensors["raw"]
        parts = []
        for name in context.layout or {"all": slice(0)}:
            if name in payload.tensors:
                parts.append(payload.tensors[name].flatten())
            else:
                parts.append((payload.tensors[f"{name}.P"] @ payload.tensors[f"{name}.Q"].T).flatten())
        return torch.cat(parts)

    def _columns(self, shape: tuple[int, ...]) -> int | None:
        """m of the layer's matrix (n, m); None where it is sent as it is."""
        if len(shape) < 2:
            return None
        n, m = shape[0], math.prod(shape[1:])
        return m if self.rank * (n + m) < n * m else None

    def _start(
        self, state: dict[str, Any], name: str, columns: int, context: UpdateCompressionContext
    ) -> Tensor:
        """Q (m, r) of the last round, its length of no account; in the first one Gaussian, the same for all."""
        import torch

        kept: Tensor | None = state.get(name)
        if kept is None:
            generator = context.shared
            kept = torch.randn(columns, self.rank, generator=generator, device=generator.device)
        if kept.shape != (columns, self.rank):
            raise PluginError(f"{self.name}: the layer {name!r} has changed its shape")
        return _scaled(kept)[0]

    def _orthonormal(self, matrix: Tensor) -> Tensor:
        """Orthonormal columns (n, r) that span the matrix's; a zero matrix gives any."""
        import torch

        return torch.linalg.qr(matrix).Q


def _as_it_is(carried: Tensor, clients: int) -> Payload | None:
    """What is sent of an update that is not finite, or of which as many as there are clients could not be added up."""
    import torch

    length = float(torch.linalg.vector_norm(carried, dtype=torch.float64))
    fits = clients * length <= torch.finfo(torch.float32).max
    return None if fits else Payload({"raw": carried.detach().float()})


def _scaled(*matrices: Tensor) -> list[Tensor]:
    """All times one power of two that brings their largest value to about 1.

    M Q grows with the square of an update's length, which need not fit float32; the columns of P do not depend on it.
    """
    import torch

    largest = torch.stack([m.abs().max() for m in matrices]).max()
    exponent = torch.frexp(largest).exponent.clamp(-126, 126)
    factor = torch.ldexp(torch.ones_like(largest), -exponent)
    return [m * factor for m in matrices]


def _layers(context: UpdateCompressionContext, d: int) -> dict[str, slice]:
    return context.layout or {"all": slice(0, d)}


PLUGINS = (PowerSGD,)
