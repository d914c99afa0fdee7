"""Randomised smoothing: a majority vote under noise, with a certified radius."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from harness.api import Defence, Field, Reference, record_keys
from harness_plugins.defences._gaussian import gaussian

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

BATCH = 1000  # noisy copies of an image in one forward pass


class RandomizedSmoothing(Defence):
    """Trains on x + N(0, sigma^2), answers by the noisy copies' mean probability, and certifies an L2 radius.

    Training: every record of a batch gets noise of its own, by its own pixels and the key. Inference: log of
    the mean over `samples` noisy copies of the class probabilities, new noise for every call, so gradient
    attacks average over several answers. Certificate (Certify of Cohen et al.): the class with most votes
    among n0 copies is candidate A; from its count among n more copies, p_A is bounded below at confidence 1 -
    alpha (Clopper-Pearson); if the bound is above 1/2 the vote cannot change within the L2 radius sigma
    Phi^-1(p_A), in [0, 1] pixels; else it abstains.

    Of n votes that all agree the bound is alpha^(1/n), so no radius above sigma Phi^-1(alpha^(1/n)) can be stated,
    whatever the model: 0.62 at the defaults (2.46 sigma). Scores at larger radii are left out. Radii to be compared
    with published ones need the paper's n = 100,000, whose limit is 3.81 sigma.

    Noise is not clipped to [0, 1], as published. Cost: training as without; a prediction takes `samples`
    forward passes, a certificate n0 + n of them.
    """

    name = "randomized-smoothing"
    reference = Reference(
        title="Certified Adversarial Robustness via Randomized Smoothing", authors="Cohen, Rosenfeld, Kolter",
        venue="ICML", year=2019, url="https://arxiv.org/abs/1902.02918",
    )  # fmt: skip

    sigma: float = Field(
        0.25, gt=0, allow_inf_nan=False, description="deviation of the noise, in [0, 1] pixels"
    )
    samples: int = Field(16, ge=1, description="noisy copies averaged in a prediction")
    n0: int = Field(100, ge=1, description="copies that choose the class to certify")
    n: int = Field(1000, ge=1, description="copies that bound its probability; the paper takes 100,000")
    alpha: float = Field(0.001, gt=0, lt=1, description="probability that a certificate is wrong")

    @property
    def stochastic(self) -> bool:
        return True

    def batch(self, x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        if not len(y):
            return x, y
        return x + self.sigma * gaussian(record_keys(key, x), x.shape).to(x), y

    def inference(self, model: nn.Module) -> nn.Module:
        return _smoothed_class()(model, self.sigma, self.samples)

    def certify(self, model: nn.Module, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        import torch

        first = self._votes(model, x, self.n0, generator)
        chosen = first.argmax(1)
        counts = self._votes(model, x, self.n, generator).gather(1, chosen[:, None])[:, 0]
        radii = torch.tensor([self.radius(int(count)) for count in counts], dtype=torch.float64)
        abstain = radii <= 0
        labels = chosen.cpu().masked_fill(abstain, -1)
        return labels, radii.clamp(min=0)

    @property
    def radius_limit(self) -> float:
        """sigma Phi^-1(alpha^(1/n)): the radius of n votes that all agree."""
        return max(0.0, self.radius(self.n))

    def radius(self, count: int) -> float:
        """sigma Phi^-1(lower bound of p_A) for `count` of n votes; 0 or less: no certificate."""
        from scipy.stats import beta, norm

        lower = float(beta.ppf(self.alpha, count, self.n - count + 1)) if count else 0.0
        return self.sigma * float(norm.ppf(lower)) if lower > 0.5 else 0.0

    def _votes(self, model: nn.Module, x: Tensor, copies: int, generator: torch.Generator) -> Tensor:
        """(b, k) votes of noisy copies."""
        import torch

        votes: Tensor | None = None
        with torch.no_grad():
            for image, position in zip(x, range(len(x)), strict=True):
                for start in range(0, copies, BATCH):
                    size = min(BATCH, copies - start)
                    noise = torch.randn((size, *image.shape), generator=generator, device=generator.device)
                    answers = model(image + self.sigma * noise.to(image))
                    if votes is None:
                        votes = torch.zeros((len(x), answers.shape[1]), dtype=torch.int64, device=x.device)
                    valid = answers[~answers.isnan().any(1)]  # a diverged network votes for nothing
                    votes[position] += torch.bincount(valid.argmax(1), minlength=answers.shape[1])
        assert votes is not None
        return votes


@cache
def _smoothed_class() -> type[nn.Module]:
    """Made at the first use: the module must load without torch."""
    import math

    import torch

    class Smoothed(torch.nn.Module):
        """log of the mean probability over noisy copies; the noise is torch's own, which the engine seeds."""

        def __init__(self, model: nn.Module, sigma: float, samples: int) -> None:
            super().__init__()
            self.model = model
            self.sigma = sigma
            self.samples = samples
            self.training = model.training

        def forward(self, x: Tensor) -> Tensor:
            answers = [
                self.model(x + self.sigma * torch.randn_like(x)).log_softmax(1) for _ in range(self.samples)
            ]
            return torch.stack(answers).logsumexp(0) - math.log(self.samples)

    return Smoothed


PLUGINS = (RandomizedSmoothing,)
