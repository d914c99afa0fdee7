"""Defences against gradient inversion that change what is sent and give no guarantee: noise, pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from harness.api import Defence, Field, Reference, UpdateContext

if TYPE_CHECKING:
    from torch import Tensor

_REFERENCE = Reference(
    title="Deep leakage from gradients",
    authors="Zhu, Liu, Han",
    venue="NeurIPS 2019",
    year=2019,
    url="https://arxiv.org/abs/1906.08935",
)


class GradientNoise(Defence):
    """Adds noise of a fixed size to what a client sends: x <- x + scale n, n standard Gaussian or Laplacian.

    The update is not clipped, so there is no bound on what a record contributes: no privacy guarantee. The scale
    is absolute, in units of the update (local minus global weights), as the paper's is in units of the gradient;
    Laplacian noise has this standard deviation too. Source: Zhu et al. (2019), section 5.1. Cost: O(d) a client.
    """

    name = "gradient-noise"
    reference = _REFERENCE

    scale: float = Field(1e-3, ge=0, allow_inf_nan=False, description="standard deviation of the noise")
    distribution: Literal["gaussian", "laplacian"] = Field("gaussian", description="of the noise")

    def update(self, delta: Tensor, context: UpdateContext) -> Tensor:
        import torch

        generator = context.generator
        if self.distribution == "gaussian":
            noise = torch.randn(delta.shape, generator=generator, device=generator.device)
        else:
            u = torch.rand(delta.shape, generator=generator, device=generator.device, dtype=torch.float64)
            u = (u - 0.5).clamp(-0.5 + 1e-12, 0.5 - 1e-12)
            noise = -u.sign() * torch.log1p(-2 * u.abs()) / 2**0.5
        return delta + self.scale * noise.to(delta)


class GradientPruning(Defence):
    """Sends only the largest coordinates of a client's update; the others are zero.

    Kept are the round((1 - ratio) d) coordinates, at least one, of largest magnitude over the whole update. Nothing
    is carried over to later rounds: what it hides stays hidden. It gives no guarantee; Zhu et al. found that
    pruning above 20 to 30 % stops their attack, Huang et al. (2021) that stronger attacks need far more.
    Source: Zhu et al. (2019), section 5.2. Cost: O(d) a client. For compression, with residuals and counted bytes,
    take top-k.
    """

    name = "gradient-pruning"
    reference = _REFERENCE

    ratio: float = Field(0.9, ge=0, lt=1, description="share of the coordinates set to zero")

    def update(self, delta: Tensor, context: UpdateContext) -> Tensor:
        import torch

        keep = max(1, round((1 - self.ratio) * len(delta)))
        if keep == len(delta):
            return delta
        largest = delta.abs().topk(keep).indices
        sent = torch.zeros_like(delta)
        sent[largest] = delta[largest]
        return sent


PLUGINS = (GradientNoise, GradientPruning)
