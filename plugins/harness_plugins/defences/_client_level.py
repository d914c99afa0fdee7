"""What the client-level mechanisms share: delta, calibration, guarantees, and the server's clipped mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from harness.api import (
    MERGED,
    AggregationContext,
    Aggregator,
    Defence,
    Field,
    Guarantee,
    NotApplicable,
    PluginError,
    PrepareContext,
    StackContext,
    accounting,
)

if TYPE_CHECKING:
    from torch import Tensor


class ClientLevelDP(Defence):
    """The parameters that mechanisms for whole clients share, and what follows from them."""

    requires = ("opacus",)
    protects: ClassVar[str | None] = "client"

    epsilon: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="target epsilon of a client over the whole training"
    )
    noise_multiplier: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="noise over the clip norm; 0: no guarantee"
    )
    clip_norm: float = Field(1.0, gt=0, allow_inf_nan=False, description="C: largest L2 norm of an update")
    delta: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="None: 1 / (10 N), N all training records, in a deployment all clients; must be below one over "
        "the clients",
    )
    accountant: Literal["rdp", "prv", "pld", "gdp"] = Field(
        "rdp", description="rdp, prv and pld are upper bounds; gdp can fall short, and gives no guarantee"
    )

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give exactly one of epsilon and noise_multiplier")
        return self

    def check(self, context: StackContext) -> None:
        if context.module is not None:
            kept = [n for n, m in context.module.named_modules() if getattr(m, "track_running_stats", False)]
            if kept:
                raise NotApplicable(
                    f"{self.name} does not protect the running statistics that {', '.join(kept)} send: use a "
                    "model with group normalisation"
                )
        for position, other in enumerate(context.defences):
            if position != context.position and other.protects == "client":
                raise NotApplicable(
                    f"{self.name} and {other.name} both noise clients' updates: take one of them"
                )

    def settled_delta(self, context: PrepareContext) -> float:
        """As in the first training; 1 / (10 N), N all training records, where none is given.

        Raises PluginError from one over the clients on.
        """
        if context.history:
            return float(context.history[0]["delta"])
        clients = len(context.sizes)
        value = 1 / (10 * context.records) if self.delta is None else self.delta
        if value >= 1 / clients:
            raise PluginError(
                f"{self.name}: delta {value:g} must be below 1 / {clients} = {1 / clients:.3g}, one over the "
                "clients, or revealing one client outright would be allowed"
            )
        return value

    def settled_noise(self, context: PrepareContext, calibrate: Callable[[float], float]) -> float:
        """As in the first training; as given; or what `calibrate` finds for the target epsilon."""
        if context.history:
            return float(context.history[0]["noise_multiplier"])
        if self.noise_multiplier is not None:
            return self.noise_multiplier
        assert self.epsilon is not None
        return calibrate(self.epsilon)


def expected_clients(context: PrepareContext) -> float:
    """How many take part in a round: exactly, or in expectation under Poisson sampling."""
    if context.client_rate is not None:
        return context.client_rate * len(context.sizes)
    return sum(map(len, context.schedule)) / max(len(context.schedule), 1)


def rounds_of(context: PrepareContext) -> list[int]:
    """Rounds in which each client may take part: all of them where coins decide."""
    if context.client_rate is not None:
        return [context.rounds] * len(context.sizes)
    return [sum(client in ids for ids in context.schedule) for client in range(len(context.sizes))]


def calibrated(target: float, delta: float, rate: float, rounds: list[int], accountant: str) -> float:
    """The noise multiplier with which the client that takes part most often spends at most the target."""
    return accounting.noise_multiplier(target, delta, rate, max(*rounds, 1), accountant)


def client_guarantee(
    name: str,
    history: list[dict[str, Any]],
    segments: list[list[tuple[float, float, int]]],
    sampling: dict[str, Any],
    **facts: Any,
) -> Guarantee:
    """The maximum over clients of what their segments spend together. segments: one list a client."""
    delta = max(training["delta"] for training in history)
    accountant = history[0]["accountant"]
    spent = [accounting.epsilon(own, delta, accountant) for own in segments]
    worst = max(range(len(spent)), key=spent.__getitem__)
    broken = accounting.caveats(name, spent[worst], accountant)
    return Guarantee(
        unit="client",
        epsilon=spent[worst],
        delta=delta,
        accountant=accountant,
        sampling=sampling,
        max_grad_norm=history[0]["clip_norm"],
        client_epsilon={str(i): value for i, value in enumerate(spent)},
        holds=not broken,
        broken_by=broken,
        **facts,
    )


def clip_rows(rows: Tensor, norm: float) -> Tensor:
    """Rows (n, d), each scaled to an L2 norm of at most `norm`, what floating point rounds included."""
    import torch

    measured = lengths(rows)
    below = norm * (1 - 2 * torch.finfo(rows.dtype).eps)
    return rows * (below / measured).where(measured > norm, 1.0).to(rows)[:, None]


def lengths(rows: Tensor) -> Tensor:
    """L2 norms (n,) in float64: summed up in float32, those of ten million numbers are off by up to a percent."""
    import torch

    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)


class NoisyMean(Aggregator):
    """The server's rule, clipped and noised: Delta = (sum_i clip(x_i, C)) / n + noise, n the expected clients.

    A rule other than a mean is given the clipped rows with equal weights and the same noise, though that noise
    is not made for it. Not registered: defences wrap rules in it.
    """

    name = "noisy-mean"
    accepts_empty = True

    rule: Aggregator
    expected: float
    mechanism: Any  # (rows (n, d), before clipping, and the context) -> (clip norm, noise (d,) on the sum)

    def check(self, n: int, f: int) -> tuple[int, int]:
        return self.rule.check(n, f)

    def with_fewer(self, dropped: int) -> NoisyMean:
        return self.model_copy(update={"rule": self.rule.with_fewer(dropped)})

    def aggregate(self, updates: Tensor, context: AggregationContext) -> Tensor:
        norm, noise = self.mechanism(updates, context)
        n = len(updates)
        if not n:
            return noise / self.expected
        clipped = clip_rows(updates, norm)
        equal = context.with_rows(context.weights.new_full((n,), 1 / n), context.client_ids)
        equal.state = context.state.setdefault("rule", {})
        result = self.rule.aggregate(clipped, equal)
        # Rows of several clients are means already.
        if self.rule.sum_only and MERGED not in context.client_ids:
            result = result * (n / self.expected)
        return result + noise / self.expected


def server_noise(like: Tensor, deviation: float, context: AggregationContext) -> Tensor:
    """N(0, deviation^2) numbers (d,), from the generator that no two trainings share. Raises PluginError."""
    import torch

    if context.noise is None:
        raise PluginError("a mechanism at the server needs the context's generator for noise")
    drawn = torch.randn(like.shape, generator=context.noise, device=context.noise.device, dtype=like.dtype)
    return deviation * drawn.to(like.device)
