"""Adversarial defences that couple the records of a batch: free training, weight perturbation, clean logit pairing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import field_validator

from harness.api import (
    Defence,
    EvasionAttack,
    Field,
    NotApplicable,
    PluginError,
    PrepareContext,
    Reference,
    StackContext,
    detached,
    input_gradient,
    kept_in_range,
    mean_gradient,
    record_keys,
    split,
    to_climb,
)
from harness_plugins._functional import trainable
from harness_plugins.defences._gaussian import gaussian
from harness_plugins.defences.adversarial_training import AdversarialTraining
from harness_plugins.defences.trades import PairLoss

if TYPE_CHECKING:
    from torch import Tensor

    from harness.api import Batch, GradientFn, Local, LogitsFn, LossFn, Params


SURE = 1e-6  # a cross-entropy below which its gradient by the images rounds away in float32


def _check_alone(context: StackContext, name: str) -> None:
    """Raises NotApplicable in a stack with another defence that makes adversarial examples inside its loss."""
    for other in context.defences:
        if isinstance(other, (AdversarialTraining, PairLoss)):
            raise NotApplicable(
                f"{name} makes its own adversarial examples: not in a stack with {other.name}"
            )


class FreeAdversarialTraining(Defence):
    """Adversarial training at the price of plain training: one backward pass gives both gradients.

    Every batch is trained on `replays` times in a row. One pass at x + delta gives the weights' gradient, which the
    optimiser steps along, and the input's, with which delta <- clip(delta + eps sign(grad_x), -eps, eps); delta
    goes over from step to step and from batch to batch, by position (algorithm 1). The number of steps stays
    what the federation says, so an epoch looks at one batch in `replays`, as the paper's N / m epochs do.

    x in [0, 1]; x + delta is clipped to it. Where it was clipped, the gradient is that at the clipped pixel, so that
    delta moves there too; the authors' code has none there, and delta stays until another image takes the place. delta
    starts at zero in each local training. Takes the stack's loss and a gradient of its own: not applicable behind a
    defence that changes the gradient. A record's loss depends on those that stood in its place before, so no guarantee
    for single records holds. Cost: that of undefended training, and a further pass for batches with a record of which
    the model is sure (a loss below 1e-6): float32 has no gradient by the pixels for it where the weights' one is as
    good as 0. Raises PluginError where no client takes more than one local step a round: the first sees clean images.
    """

    name = "free-adversarial-training"
    reference = Reference(
        title="Adversarial Training for Free!",
        authors="Shafahi, Najibi, Ghiasi, Xu, Dickerson, Studer, Davis, Taylor, Goldstein",
        venue="NeurIPS", year=2019, url="https://arxiv.org/abs/1904.12843",
    )  # fmt: skip
    couples_samples: ClassVar[bool] = True
    replaces_gradient: ClassVar[bool] = True

    eps: float = Field(8 / 255, ge=0, le=1, description="L-inf radius, in [0, 1] pixels")
    replays: int = Field(4, ge=1, description="times each batch is trained on in a row (m)")

    def check(self, context: StackContext) -> None:
        _check_alone(context, self.name)

    def prepare(self, context: PrepareContext) -> dict[str, Any]:
        # Steps of each client over all rounds that it takes part in.
        taking_part = [sum(client in ids for ids in context.schedule) for client in range(len(context.steps))]
        if all(steps <= rounds for steps, rounds in zip(context.steps, taking_part, strict=True)):
            raise PluginError(
                f"{self.name}: a local training starts at clean images, and with one step a round no client gets to "
                "adversarial ones: give clients more local steps or epochs, or a smaller batch_size"
            )
        return {}

    def gradient(self, local: Local) -> GradientFn:
        import torch

        state: dict[str, Any] = {"left": 0, "batch": None, "delta": None}
        climbed = to_climb(local.loss)

        def gradient(params: Params, batch: Batch, key: Tensor) -> Params:
            if not state["left"]:
                state["left"], state["batch"] = self.replays, batch
            state["left"] -= 1
            x, y = state["batch"]
            if state["delta"] is None:
                state["delta"] = torch.zeros_like(x)
            delta = state["delta"][: len(x)]
            if len(delta) < len(x):  # only where batches grow: the further places start at zero
                delta = torch.cat([delta, torch.zeros_like(x[len(delta) :])])
            moved = kept_in_range(x + delta, x).requires_grad_()
            with torch.enable_grad():
                losses = local.loss(params, (moved, y), key)
                found = torch.autograd.grad(losses.mean(), [*params.values(), moved], allow_unused=True)
            *weights, pixels = found
            if bool((losses < SURE).any()):
                fixed = detached(params)
                pixels = input_gradient(lambda images: climbed(fixed, (images, y), key), moved)
            stepped = (delta + self.eps * pixels.sign()).clamp(-self.eps, self.eps).detach()
            state["delta"] = torch.cat([stepped, state["delta"][len(stepped) :]])
            return {
                name: torch.zeros_like(p) if g is None else g
                for (name, p), g in zip(params.items(), weights, strict=True)
            }

        return gradient


class AdversarialWeightPerturbation(Defence):
    """Adversarial training at weights moved to where the adversarial loss is higher.

    For adversarial examples x' of the batch at the weights w, each layer's weights move by v = gamma ||w|| g / ||g||,
    g the gradient of the mean loss at (w, x'); the optimiser steps from w along the gradient at (w + v, x')
    (equations 7 to 10, one step, as the paper uses). Parameters of one dimension (biases, normalisation) do
    not move. v depends on all records of the batch, so no guarantee for single records holds.

    Takes the stack's loss and makes its own examples of it: not applicable with adversarial-training, or behind a
    defence that changes the gradient. Raises PluginError for an attack without a functional form. Cost: 2
    + the attack's gradient evaluations.
    """

    name = "adversarial-weight-perturbation"
    reference = Reference(
        title="Adversarial Weight Perturbation Helps Robust Generalization", authors="Wu, Xia, Wang",
        venue="NeurIPS", year=2020, url="https://arxiv.org/abs/2004.05884",
    )  # fmt: skip
    couples_samples: ClassVar[bool] = True
    replaces_gradient: ClassVar[bool] = True
    vectorises: ClassVar[bool] = True

    attack: EvasionAttack = Field(
        "pgd", description="evasion attack with a functional form, such as pgd or fgsm"
    )
    gamma: float = Field(5e-3, ge=0, description="size of a layer's move, as a share of its norm")

    _functional = field_validator("attack")(trainable)

    def check(self, context: StackContext) -> None:
        _check_alone(context, self.name)

    def cost(self) -> float:
        return 2.0 + self.attack.effort

    def gradient(self, local: Local) -> GradientFn:
        attack = self.attack.functional(self.attack.radius())
        mean_gradients, climbed = mean_gradient(local.loss), to_climb(local.loss)

        def gradient(params: Params, batch: Batch, key: Tensor) -> Params:
            x, y = batch
            fixed = detached(params)
            start = split(record_keys(key, x), 0)
            moved = attack(lambda images: climbed(fixed, (images, y), key), x.detach(), start).detach()
            ascent = mean_gradients(fixed, (moved, y), key)
            there = {
                name: w + self.gamma * w.norm() * ascent[name] / (ascent[name].norm() + 1e-20)
                if w.ndim > 1
                else w
                for name, w in fixed.items()
            }
            if local.module is None:
                return mean_gradients(there, (moved, y), key)
            with _set_to(params, there):  # the network's own parameters, so that batch norms see the batch
                return mean_gradients(params, (moved, y), key)

        return gradient


@contextmanager
def _set_to(params: Params, values: Params) -> Iterator[None]:
    """Inside, the parameters hold these values; afterwards what they held before."""
    import torch

    before = {name: p.detach().clone() for name, p in params.items()}
    with torch.no_grad():
        for name, p in params.items():
            p.copy_(values[name])
    try:
        yield
    finally:
        with torch.no_grad():
            for name, p in params.items():
                p.copy_(before[name])


class CleanLogitPairing(Defence):
    """The loss so far on noisy images, plus weight ||z_i - z_j||^2 / k for the logits of two records of a batch.

    Images get Gaussian noise of deviation sigma, clipped to [0, 1]; record i is paired with i + b / 2 of its
    batch, and both bear the penalty (section 3.2; no attack takes part). The last record of an odd batch is
    its own partner. The pairing couples records, so no guarantee for single records holds. No further cost.
    """

    name = "clean-logit-pairing"
    reference = Reference(
        title="Adversarial Logit Pairing", authors="Kannan, Kurakin, Goodfellow", venue="arXiv 1803.06373",
        year=2018, url="https://arxiv.org/abs/1803.06373",
    )  # fmt: skip
    couples_samples: ClassVar[bool] = True

    weight: float = Field(0.5, ge=0, description="weight of the squared distance of the logits")
    sigma: float = Field(0.5, ge=0, description="deviation of the noise, in [0, 1] pixels")

    def batch(self, x: Tensor, y: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        if not self.sigma or not len(y):
            return x, y
        return (x + self.sigma * gaussian(record_keys(key, x), x.shape)).clamp(0, 1), y

    def loss(self, loss: LossFn, logits: LogitsFn) -> LossFn:
        import torch

        def paired(params: Params, batch: Batch, key: Tensor) -> Tensor:
            x, y = batch
            z = logits(params, x)
            half = len(y) // 2
            order = torch.arange(len(y), device=y.device)
            partner = torch.cat([order[half : 2 * half], order[:half], order[2 * half :]])
            return loss(params, batch, key) + self.weight * (z - z[partner]).square().mean(1)

        return paired


PLUGINS = (FreeAdversarialTraining, AdversarialWeightPerturbation, CleanLogitPairing)
