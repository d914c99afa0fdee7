"""Defences: pure functions hooked into local training, composed left to right.

The types here are what those functions take and return:

    Params       dict name -> tensor, the trainable parameters
    Batch        (x (b, c, h, w) float in [0, 1], y (b,) int64)
    Key          int64 scalar tensor: counter-based randomness, see harness.random
    LossFn       loss(params, batch, key) -> (b,) losses, one per record
    LogitsFn     logits(params, x (b, c, h, w)) -> (b, k), the network with these parameters
    GradientFn   gradient(params, batch, key) -> dict name -> tensor, what the optimiser steps along
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.contracts.base import Plugin
from harness.contracts.choices import Chosen

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from harness.contracts.aggregator import Aggregator

# Quoted, as torch is not imported here.
Params = dict[str, "Tensor"]
Batch = tuple["Tensor", "Tensor"]
LossFn = Callable[[Params, Batch, "Tensor"], "Tensor"]
LogitsFn = Callable[[Params, "Tensor"], "Tensor"]
GradientFn = Callable[[Params, Batch, "Tensor"], Params]

Epsilon = Annotated[float, Field(ge=0)]  # infinite where nothing is promised; NaN is refused


class Guarantee(BaseModel):
    """A differential-privacy guarantee of one release, with everything needed to check it.

    unit: what is protected. neighbours: whether neighbouring data differ by one unit added or removed, or by one
    replaced by any other. against: whom it protects from: the server, which sees every update, or the recipients of the
    global models of all rounds; the server is then trusted. by: the defence, filled in by the engine. epsilon: the
    maximum over clients (their data are disjoint), infinite where nothing is promised; client_epsilon: that of each
    honest client, as nobody accounts for what malicious ones do to their records. accountant: the method by which
    epsilon was computed. sampling: method, rate and steps of the client with the largest epsilon. group_epsilon: for
    the largest group, of largest_group records. simulated: the noise comes from a seed. `holds` turns false, and
    `broken_by` says why, where another part of the plan touches protected data without accounting for it.
    """

    model_config = ConfigDict(extra="forbid")

    unit: Literal["record", "group", "client"]
    # `replace`: a client's data replaced by any other.
    neighbours: Literal["add-remove", "replace"] = "add-remove"
    # server: even from a server that sees every update. recipients: only from those who get the global models of all
    # rounds; the server is trusted, and the noise is right only for a uniform mean of clipped updates.
    against: Literal["server", "recipients"] = "server"
    by: str = ""  # the defence that gives it; set by the engine
    epsilon: Epsilon
    delta: float = Field(ge=0, lt=1)
    accountant: str = Field(min_length=1)  # the method by which epsilon was computed
    sampling: dict[str, Any] = {}  # method, rate, steps: of the client with the largest epsilon
    noise_multiplier: float | None = Field(default=None, ge=0)
    max_grad_norm: float | None = Field(default=None, ge=0)
    client_epsilon: dict[str, Epsilon] = {}
    group_epsilon: Epsilon | None = None  # for the largest group, where the data have groups
    largest_group: int | None = Field(default=None, ge=1)
    simulated: bool = True  # the noise comes from a seed: reproducible, so not for release
    holds: bool = True
    broken_by: list[str] = []

    @model_validator(mode="after")
    def _largest(self) -> Self:
        client, most = max(self.client_epsilon.items(), key=lambda item: item[1], default=("", 0.0))
        if self.epsilon < most * (1 - 1e-9):
            raise ValueError(f"epsilon is the largest over clients, and client {client} has {most:g}")
        return self


@dataclass(frozen=True)
class StackContext:
    """What `Defence.check` knows before training: enough to say what cannot work."""

    defences: tuple[Defence, ...]  # the whole stack, in order
    position: int  # of the defence whose `check` is called
    module: nn.Module | None = None  # the model, on the meta device


@dataclass(frozen=True)
class PrepareContext:
    """What a defence knows of the federation when it plans. sizes and steps hold one number per client.

    steps: local steps that each client will take over all its rounds of this training. schedule: the clients of each
    round. client_rate: probability with which each client, by an independent coin, takes part in a round (Poisson
    sampling of clients); None: the schedule is drawn in another way, and no amplification may be claimed for it.
    history: what `prepare` returned for earlier trainings of the same weights (fine-tuning composes).
    """

    sizes: list[int]  # records per client
    steps: list[int]
    batch_size: int
    records: int  # training records in all
    rounds: int
    largest_group: int | None = None  # records of the largest group, at all clients together
    schedule: list[list[int]] = field(default_factory=list)
    client_rate: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Sampling(Chosen):
    """How a client draws its batches: `shuffle` (epochs without replacement) or `poisson` (each record by a coin)."""

    method: Literal["shuffle", "poisson"] = "shuffle"
    rate: float | None = None  # poisson: inclusion probability of a record, per step


@dataclass
class Local:
    """One client's training, as seen by `Defence.gradient`.

    loss: the composed per-sample loss. gradient: what the optimiser would step along after the hooks before this one.
    module: the client's network when one client runs alone, else None (vectorised clients). To use its own
    parameters, call loss or gradient with `dict(module.named_parameters())`.
    start (d,): the global weights training started from. moved (d,): how they moved in the last round, which
    every client that keeps what it receives can see; None in the first. layout: name -> slice of d.

    Where clients are vectorised there is no module, no client number and no generator, the batch size may be a
    scalar tensor, and `mask` may say which records of the batch are real: a hook that declares `vectorises`
    reads its client's numbers with `own`, draws noise with `normal`, and leaves out the records outside the mask
    where it calls `loss` itself. `gradient` leaves them out already.

    report(name, value), both short texts: which way the hook does its work, where it has a choice; the record lists the
    reported values. An audit shows where its own training took another way than the training that is scored.
    """

    loss: LossFn
    gradient: GradientFn
    client: int
    batch_size: int
    sampling: Sampling
    prepared: dict[str, Any]  # what this defence's `prepare` returned
    module: nn.Module | None
    generator: torch.Generator  # mechanism noise: seeded by stage, client and round; on the data's device
    logits: LogitsFn | None = None
    start: Tensor | None = None
    moved: Tensor | None = None
    layout: dict[str, slice] = field(default_factory=dict)
    mask: Tensor | None = None  # (b,) bool; None: all records are real
    report: Callable[[str, str], None] = lambda name, value: None

    def own(self, number: Callable[[int], float]) -> float | Tensor:
        """number(client) for this client; a scalar tensor where vectorised clients differ in it.

        Clients of several trainings may differ in what was prepared: while `number` runs, `prepared` is that client's.
        """
        return number(self.client)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal numbers of this shape and type, from the client's own generator."""
        import torch

        drawn = torch.randn(
            like.shape, generator=self.generator, device=self.generator.device, dtype=like.dtype
        )
        return drawn.to(like.device)


@dataclass(frozen=True)
class UpdateContext:
    """For `update`: the round, the client and a seeded generator on the update's device.

    clients: how many take part in the round; malicious: how many of them attack, 0 for a defence; share: the
    attackers' weight in the round's mean, in [0, 1], by records or by clients as the scenario weighs them.
    """

    round: int
    client: int
    generator: torch.Generator
    layout: dict[str, slice] = field(default_factory=dict)
    prepared: dict[str, Any] = field(default_factory=dict)
    clients: int = 1
    malicious: int = 0
    share: float = 0.0


class ClientHooks:
    """What happens at a client. All hooks are optional; the defaults change nothing.

    `batch` and `loss` are pure, so that many clients can train as one program; what cannot be vectorised (a value
    that decides a branch, a global random number) makes clients train one after another.
    """

    # True: `gradient` is pure as well, and follows what Local says about vectorised clients.
    vectorises: ClassVar[bool] = False
    # True: a record's loss may depend on other records of the batch, so that batches may not be padded to one size.
    couples_samples: ClassVar[bool] = True
    # True: `loss` ignores the loss it is given, or `gradient` starts from `local.loss` and ignores `local.gradient`.
    # A hook before it that shapes that loss or gradient would have no effect, so such a stack is not applicable.
    replaces_loss: ClassVar[bool] = False
    replaces_gradient: ClassVar[bool] = False

    def overrides(self, name: str) -> bool:
        """Whether a hook is more than the default, which changes nothing."""
        return getattr(type(self), name) is not getattr(ClientHooks, name)

    def at(self, round: int, rounds: int) -> Self:
        """The hooks to use in a round (from 0) of `rounds`; hooks that follow a schedule return a changed copy."""
        return self

    def batch(self, x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """The batch to train on: x (b, c, h, w) in [0, 1], y (b,). Pure; randomness from `key` only."""
        return x, y

    def loss(self, loss: LossFn, logits: LogitsFn) -> LossFn:
        """A per-sample loss built on the one so far, or on the network's logits."""
        return loss

    def gradient(self, local: Local) -> GradientFn | None:
        """What the optimiser steps along, built on `local.gradient` or `local.loss`; None: as it was."""
        return None

    def update(self, delta: Tensor, context: UpdateContext) -> Tensor:
        """The client's update (d,), local minus global, before compression and sending."""
        return delta


class Defence(ClientHooks, Plugin):
    """A protection: hooks into training, aggregation or inference, and the guarantee it gives, if any."""

    kind: ClassVar[str] = "defence"
    protects: ClassVar[Literal["record", "client", None]] = None  # the unit of its guarantee
    neighbours: ClassVar[Literal["add-remove", "replace"]] = "add-remove"  # of that guarantee
    # What the server sees of a round's updates: each, or their sum.
    server_view: ClassVar[Literal["updates", "sum"]] = "updates"
    couples_samples: ClassVar[bool] = False  # True: a record's loss depends on other records of the batch

    def cost(self) -> float:
        """Local training time as a multiple of undefended training, for estimates."""
        return 1.0

    def check(self, context: StackContext) -> None:
        """Raises NotApplicable, with the reason, where this defence cannot work in this stack or model."""

    def prepare(self, context: PrepareContext) -> dict[str, Any]:
        """What is settled once before training, such as the noise: plain JSON values, kept in the record."""
        return {}

    def model(self, module: nn.Module) -> nn.Module:
        """The module to train instead."""
        return module

    def sampling(self, size: int, batch_size: int) -> Sampling | None:
        """How a client with `size` records draws batches; None: as it was."""
        return None

    def aggregator(self, aggregator: Aggregator, prepared: dict[str, Any]) -> Aggregator:
        """The server's last rule, wrapped. prepared: what `prepare` returned."""
        return aggregator

    def inference(self, model: nn.Module) -> nn.Module:
        """The model as deployed."""
        return model

    @property
    def stochastic(self) -> bool:
        """Whether `inference` answers at random: gradient attacks then average over draws (EOT)."""
        return False

    def certify(
        self, model: nn.Module, x: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor] | None:
        """What the deployed model provably answers around x (b, c, h, w), given the network without this defence.

        Returns labels (b,) int64, -1 where it abstains, and L2 radii (b,) in [0, 1] pixels within which the
        label cannot change; None: no certificate. There is none either where a later defence of the stack changes the
        deployed model, as it would not be about that model.
        """
        return None

    @property
    def radius_limit(self) -> float:
        """The largest L2 radius that `certify` can state of any record, however sure the model; inf: there is no limit.

        Scores at larger radii are left out: that nothing can be certified there does not mean that nothing is robust.
        """
        return float("inf")

    def guarantee(self, history: list[dict[str, Any]]) -> Guarantee | None:
        """What several trainings guarantee together; None: nothing. history: what `prepare` returned for each.

        An empty history guarantees nothing.
        """
        return None


def hiding(defences: Iterable[Defence]) -> Defence | None:
    """The defence of a stack under which the server sees only sums of updates, if there is one."""
    return next((defence for defence in defences if defence.server_view == "sum"), None)
