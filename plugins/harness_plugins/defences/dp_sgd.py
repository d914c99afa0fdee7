"""Differentially private stochastic gradient descent, at every client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import PrivateAttr, model_validator

from harness.api import (
    Defence,
    Field,
    Guarantee,
    Local,
    NotApplicable,
    PluginError,
    PrepareContext,
    Reference,
    Sampling,
    StackContext,
    accounting,
    batch_norms,
)
from harness_plugins.defences._ghost import GhostClipping
from harness_plugins.defences._ghost_formulas import NotFinite, Unsupported, clip_scales

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.api import Batch, GradientFn, LossFn, Params

WAY, GHOST, ONE_BY_ONE = "per-record gradients", "ghost clipping", "one by one (vmap)"  # told in the record
CHUNK_ELEMENTS = 1 << 27  # per-sample gradients held at once: 512 MiB in float32


class DPSGD(Defence):
    """Clips every record's gradient, adds Gaussian noise, and accounts for it: record-level DP per client.

    step: g = (sum_i g_i min(1, C / |g_i|) + N(0, (sigma C)^2 I)) / (q n), over a batch to which each of the
    client's n records belongs by an independent coin of probability q = min(1, batch_size / n); g_i: the
    gradient of record i's loss over all parameters jointly, |.| its L2 norm, C = max_grad_norm, sigma the
    noise multiplier, q n the expected batch size. A record whose gradient is not finite counts as zero.
    `clipping` per-layer bounds each of the L parameter tensors by C / sqrt(L) instead; automatic scales every
    record's gradient by C / (|g_i| + 0.01), so that C only scales the step. No record moves the sum by more than
    C either way, so noise and epsilon are the same.
    Client i spends (epsilon_i, delta) over all its own steps; the data of clients are disjoint, so the
    guarantee is the maximum. A group (a patient) counts with all its records, at whatever clients they lie.

    With `epsilon`, sigma is set per client so that its own steps spend just that. A later training of the
    same weights keeps each client's sigma and adds to what was spent.

    Raises PluginError where delta is not below one over the number of training records, or epsilon cannot be
    reached. Not applicable to BatchNorm, beside a defence that couples records, behind one that changes the
    gradient, or before one that replaces it.
    The record says under `training.execution.ways` whether per-record gradients were taken by ghost clipping or one by
    one. Cost per step: 1.6 of undefended training with ghost clipping, 3.5 with a gradient per sample, whose
    memory is b d. Sources: Abadi et al. (2016), algorithm 1; McMahan et al.
    (2018), section 2, for per-layer clipping; Bu et al. (2023), AUTO-S with gamma = 0.01, for automatic clipping.
    """

    name = "dp-sgd"
    requires = ("opacus",)
    replaces_gradient: ClassVar[bool] = True
    vectorises: ClassVar[bool] = True
    protects: ClassVar[str | None] = "record"
    reference = Reference(
        title="Deep learning with differential privacy",
        authors="Abadi, Chu, Goodfellow, McMahan, Mironov, Talwar, Zhang",
        venue="ACM CCS 2016",
        year=2016,
        url="https://arxiv.org/abs/1607.00133",
    )

    epsilon: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="target epsilon of a record over the whole training"
    )
    noise_multiplier: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="noise standard deviation over max_grad_norm; 0: no guarantee",
    )
    max_grad_norm: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="C: the largest L2 norm of a record's gradient"
    )
    delta: float | None = Field(
        None, gt=0, lt=1, description="delta; None: 1 / (10 N), N all training records; must be below 1 / N"
    )
    accountant: Literal["rdp", "prv", "pld", "gdp"] = Field(
        "rdp",
        description="rdp, prv and pld are upper bounds; gdp can fall short, and gives no guarantee",
    )
    clipping: Literal["flat", "per-layer", "automatic"] = Field(
        "flat", description="over all parameters jointly, each tensor by itself, or normalised"
    )
    per_sample: Literal["auto", "ghost", "vmap"] = Field(
        "auto", description="how gradients are clipped; auto: ghost where the model and loss allow, else vmap"
    )

    _stacked: Any = PrivateAttr(None)  # of clients that train as one program: what their first batch showed

    @model_validator(mode="after")
    def _one_target(self) -> DPSGD:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give exactly one of epsilon and noise_multiplier")
        return self

    def cost(self) -> float:
        return 3.5 if self.per_sample == "vmap" else 1.6

    def check(self, context: StackContext) -> None:
        if context.module is not None:
            self._check_module(context.module)
        for position, other in enumerate(context.defences):
            if position == context.position:
                continue
            if isinstance(other, DPSGD):
                raise NotApplicable("dp-sgd can stand once in a stack")
            if other.couples_samples:
                raise NotApplicable(
                    f"{other.name} couples the records of a batch, so dp-sgd cannot bound one's part"
                )
            if position > context.position and type(other).sampling is not Defence.sampling:
                raise NotApplicable(f"{other.name} after dp-sgd would replace its Poisson sampling")

    def _check_module(self, module: nn.Module) -> None:
        if names := batch_norms(module):
            raise NotApplicable(
                f"dp-sgd needs records kept apart, but {', '.join(names)} normalise over the batch: "
                "use a model with group normalisation"
            )
        if names := [
            n for n, layer in module.named_modules() if getattr(layer, "track_running_stats", False)
        ]:
            raise NotApplicable(
                f"dp-sgd does not protect the running statistics that {', '.join(names)} keep"
            )

    def sampling(self, size: int, batch_size: int) -> Sampling:
        return Sampling("poisson", min(1.0, batch_size / size))

    def prepare(self, context: PrepareContext) -> dict[str, Any]:
        first = context.history[0] if context.history else None
        delta = self._delta(context.records) if first is None else first["delta"]
        clients = []
        for i, (size, steps) in enumerate(zip(context.sizes, context.steps, strict=True)):
            rate = min(1.0, context.batch_size / size)
            sigma = self._noise(i, rate, steps, delta, context.history)
            clients.append({"noise_multiplier": sigma, "sample_rate": rate, "steps": steps})
        return {
            "clients": clients,
            "delta": delta,
            "accountant": self.accountant,
            "max_grad_norm": self.max_grad_norm,
            "largest_group": context.largest_group,
        }

    def _delta(self, records: int) -> float:
        delta = 1 / (10 * records) if self.delta is None else self.delta
        if delta >= 1 / records:
            raise PluginError(
                f"dp-sgd: delta {delta:g} must be below 1 / {records} = {1 / records:.3g}, one over the "
                "training records, or revealing one record outright would be allowed"
            )
        return delta

    def _noise(
        self, client: int, rate: float, steps: int, delta: float, history: list[dict[str, Any]]
    ) -> float:
        if self.noise_multiplier is not None:
            return self.noise_multiplier
        for earlier in history:
            if earlier["clients"][client]["steps"]:
                return earlier["clients"][client]["noise_multiplier"]
        # A client that takes no step is given the noise of one, so that it is never left without.
        return accounting.noise_multiplier(self.epsilon, delta, rate, max(steps, 1), self.accountant)

    def guarantee(self, history: list[dict[str, Any]]) -> Guarantee | None:
        """What the trainings spend together: per client, composed over them; None without any."""
        if not history:
            return None
        delta = max(training["delta"] for training in history)
        segments = [
            [(c["noise_multiplier"], c["sample_rate"], c["steps"]) for c in client]
            for client in zip(*(training["clients"] for training in history), strict=True)
        ]
        spent = [accounting.epsilon(client, delta, self.accountant) for client in segments]
        worst = max(range(len(spent)), key=spent.__getitem__)
        largest = history[0]["largest_group"]
        grouped = None
        if largest is not None:
            grouped = accounting.group_epsilon(segments, delta, largest, self.accountant)
        broken = accounting.caveats(self.name, spent[worst], self.accountant)
        return Guarantee(
            unit="record",
            epsilon=spent[worst],
            delta=delta,
            accountant=self.accountant,
            sampling={
                "method": "poisson",
                "rate": max(rate for _, rate, _ in segments[worst]),
                "steps": sum(steps for _, _, steps in segments[worst]),
            },
            noise_multiplier=min(sigma for sigma, _, _ in segments[worst]),
            max_grad_norm=self.max_grad_norm,
            client_epsilon={str(i): value for i, value in enumerate(spent)},
            group_epsilon=grouped,
            largest_group=largest,
            holds=not broken,
            broken_by=broken,
        )

    def gradient(self, local: Local) -> GradientFn:
        import torch

        sigma = local.own(lambda client: local.prepared["clients"][client]["noise_multiplier"])
        clipped = self._clipped_sum(local)

        def gradient(params: Params, batch: Batch, key: Tensor) -> Params:
            if len(batch[1]):
                sums = clipped(params, batch, key)
            else:
                sums = {name: torch.zeros_like(p) for name, p in params.items()}
            return self._noisy(sums, sigma, local)

        return gradient

    def _noisy(self, sums: Params, sigma: float | Tensor, local: Local) -> Params:
        """(sum + N(0, (sigma C)^2 I)) / expected batch size."""
        import torch

        flat = torch.cat([g.reshape(-1) for g in sums.values()])
        if not isinstance(sigma, float | int) or sigma:
            flat = flat + sigma * self.max_grad_norm * local.normal(flat)
        parts = (flat / local.batch_size).split([g.numel() for g in sums.values()])
        return {name: part.view_as(g) for (name, g), part in zip(sums.items(), parts, strict=True)}

    def _clipped_sum(self, local: Local) -> GradientFn:
        """Sum of the clipped per-sample gradients. The path is chosen at the first batch."""

        def vmapped(params: Params, batch: Batch, key: Tensor) -> Params:
            local.report(WAY, ONE_BY_ONE)
            return vmapped_sum(local.loss, params, batch, key, self.max_grad_norm, self.clipping, local.mask)

        if self.per_sample == "vmap":
            return vmapped
        attempt = self._alone(local) if local.module is not None else self._together(local)
        supported = True

        def summed(params: Params, batch: Batch, key: Tensor) -> Params:
            nonlocal supported
            if supported:
                try:
                    sums = attempt(params, batch, key)
                    local.report(WAY, GHOST)
                    return sums
                except NotFinite:
                    return vmapped(params, batch, key)
                except Unsupported as error:
                    if self.per_sample == "ghost":
                        raise PluginError(f"dp-sgd: ghost clipping cannot be used: {error}") from None
                    supported = False
            return vmapped(params, batch, key)

        return summed

    def _alone(self, local: Local) -> GradientFn:
        ghost = GhostClipping(local.module, local.loss, self.max_grad_norm, self.clipping)  # type: ignore[arg-type]
        return ghost.clipped_sum

    def _together(self, local: Local) -> GradientFn:
        from harness_plugins.defences._ghost_stacked import StackedGhostClipping

        if self._stacked is None:
            self._stacked = StackedGhostClipping(self.max_grad_norm, self.clipping)
        stacked: StackedGhostClipping = self._stacked

        def clipped_sum(params: Params, batch: Batch, key: Tensor) -> Params:
            return stacked.clipped_sum(local.loss, params, batch, key, local.mask)

        return clipped_sum


def vmapped_sum(
    loss: LossFn,
    params: Params,
    batch: Batch,
    key: Tensor,
    max_grad_norm: float,
    clipping: str = "flat",
    mask: Tensor | None = None,
) -> Params:
    """Sum of clipped per-sample gradients, see DPSGD for the ways; one that is not finite counts as zero.

    mask (b,) bool: the records that are real, None for all.
    """
    import torch

    x, y = batch
    values = {name: p.detach() for name, p in params.items()}

    def one(values: Params, x: Tensor, y: Tensor) -> Tensor:
        # The batch's own key: losses make a record's from it and the record, as they do on the whole batch.
        return loss(values, (x.unsqueeze(0), y.unsqueeze(0)), key).squeeze(0)

    per_sample = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0), randomness="different")
    step = max(1, CHUNK_ELEMENTS // max(1, sum(p.numel() for p in values.values())))
    total: Params = {}
    for start in range(0, len(y), step):
        part = slice(start, start + step)
        grads = per_sample(values, x[part], y[part])
        squared = torch.stack([g.flatten(1).square().sum(1) for g in grads.values()])  # (tensors, b)
        counted = squared.sum(0).isfinite()
        if mask is not None:
            counted = counted & mask[part]
        scales = clip_scales(squared, max_grad_norm, clipping)
        for (name, g), scale in zip(grads.items(), scales.where(counted, 0), strict=True):
            g = g.where(counted.view(-1, *[1] * (g.ndim - 1)), 0)
            summed = torch.tensordot(scale, g, dims=1)
            total[name] = total[name] + summed if name in total else summed
    return total


PLUGINS = (DPSGD,)
