"""TRADES, MART and adversarial logit pairing: losses on a record and its own adversarial example."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from harness.api import (
    Defence,
    Field,
    Reference,
    detached,
    held_back,
    in_place_of,
    input_gradient,
    kept_in_range,
    pgd,
    record_keys,
    split,
    uniform,
)

if TYPE_CHECKING:
    from torch import Tensor

    from harness.api import Batch, LogitsFn, LossFn, Params

    Predict = Callable[[Tensor], Tensor]


class PairLoss(Defence):
    """A loss on a record x and an adversarial example x' of it in an L-inf ball; one record never sees another.

    Random numbers come from the key and the record's own pixels, so a guarantee for single records holds.
    """

    eps: float = Field(8 / 255, ge=0, le=1, description="L-inf radius, in [0, 1] pixels")
    alpha: float | None = Field(
        None, gt=0, le=1, description="step size in [0, 1] pixels; null: 2.5 eps / steps"
    )
    steps: int = Field(10, ge=1, description="gradient steps to the adversarial example")

    def cost(self) -> float:
        return 2.0 + self.steps

    def step_size(self) -> float:
        return 2.5 * self.eps / self.steps if self.alpha is None else self.alpha

    def loss(self, loss: LossFn, logits: LogitsFn) -> LossFn:
        def paired(params: Params, batch: Batch, key: Tensor) -> Tensor:
            x, y = batch
            if not len(y):
                return loss(params, batch, key)
            fixed = detached(params)
            moved = self.adversarial(lambda images: logits(fixed, images), x.detach(), y, record_keys(key, x))
            return self.pair(loss, logits, params, batch, in_place_of(moved, x), key)

        return paired

    @abstractmethod
    def adversarial(self, logits: Predict, x: Tensor, y: Tensor, key: Tensor) -> Tensor:
        """logits: images -> (b, k) at fixed weights; x (b, c, h, w) in [0, 1]. Returns x'."""

    @abstractmethod
    def pair(
        self, loss: LossFn, logits: LogitsFn, params: Params, batch: Batch, moved: Tensor, key: Tensor
    ) -> Tensor:
        """The loss (b,) on the batch and its adversarial examples."""

    def by_cross_entropy(self, logits: Predict, x: Tensor, y: Tensor, key: Tensor) -> Tensor:
        """PGD on cross-entropy from a random start."""
        from torch.nn import functional

        def error(images: Tensor) -> Tensor:
            return functional.cross_entropy(held_back(logits(images), y), y, reduction="none")

        return pgd(error, x, split(key, 0), self.eps, self.step_size(), self.steps)


class TRADES(PairLoss):
    """loss(x, y) + beta KL(p(x) || p(x')), x' maximising that divergence in the ball around x.

    x' starts at x + 0.001 N(0, 1) (here uniform of the same deviation) and takes `steps` sign steps; equation
    5 with 1/lambda = beta. The first term is the loss so far, so label smoothing may stand before it. Batch
    normalisation has the batch's statistics while x' is made, where the authors' code takes the running ones.
    """

    name = "trades"
    reference = Reference(
        title="Theoretically Principled Trade-off between Robustness and Accuracy",
        authors="Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan", venue="ICML", year=2019,
        url="https://arxiv.org/abs/1901.08573",
    )  # fmt: skip

    beta: float = Field(6.0, ge=0, description="weight of the divergence (1/lambda)")

    def adversarial(self, logits: Predict, x: Tensor, y: Tensor, key: Tensor) -> Tensor:
        there = logits(x).detach()
        likeliest = there.argmax(1)
        clean = held_back(there, likeliest).log_softmax(1)

        def divergence(images: Tensor) -> Tensor:
            moved = held_back(logits(images), likeliest, like=there).log_softmax(1)
            return (clean.exp() * (clean - moved)).sum(1)

        half = 0.001 * 3**0.5  # a uniform number in [-half, half] has deviation 0.001
        moved = kept_in_range(x + uniform(split(key, 0), x.shape, -half, half), x)
        for _ in range(self.steps):
            stepped = moved + self.step_size() * input_gradient(divergence, moved).sign()
            moved = kept_in_range(x + (stepped - x).clamp(-self.eps, self.eps), x).detach()
        return moved

    def pair(
        self, loss: LossFn, logits: LogitsFn, params: Params, batch: Batch, moved: Tensor, key: Tensor
    ) -> Tensor:
        clean = logits(params, batch[0]).log_softmax(1)
        divergence = (clean.exp() * (clean - logits(params, moved).log_softmax(1))).sum(1)
        return loss(params, batch, key) + self.beta * divergence


class MART(PairLoss):
    """Boosted cross-entropy on x' plus a divergence that weighs what is misclassified.

    BCE(p(x'), y) = -log p_y(x') - log(1 - max_{k != y} p_k(x')), plus beta KL(p(x) || p(x')) (1 - p_y(x)),
    with x' by PGD on cross-entropy (equations 9 to 11). Takes the place of the loss so far: not applicable behind a
    defence with a loss of its own. Batch normalisation has the batch's statistics while x' is made, where the authors'
    code takes the running ones.
    """

    name = "mart"
    reference = Reference(
        title="Improving Adversarial Robustness Requires Revisiting Misclassified Examples",
        authors="Wang, Zou, Yi, Bailey, Ma, Gu", venue="ICLR", year=2020,
        url="https://openreview.net/forum?id=rklOg6EFwS",
    )  # fmt: skip
    replaces_loss: ClassVar[bool] = True

    beta: float = Field(5.0, ge=0, description="weight of the divergence (lambda)")

    def adversarial(self, logits: Predict, x: Tensor, y: Tensor, key: Tensor) -> Tensor:
        return self.by_cross_entropy(logits, x, y, key)

    def pair(
        self, loss: LossFn, logits: LogitsFn, params: Params, batch: Batch, moved: Tensor, key: Tensor
    ) -> Tensor:
        import torch

        x, y = batch
        clean, adversarial = (logits(params, images).log_softmax(1) for images in (x, moved))
        # Not one_hot, which looks at its values and so cannot be vectorised over records.
        own = (torch.arange(clean.shape[1], device=y.device) == y[:, None]).to(clean)
        # log(1 - p) of the likeliest wrong class, summed over the others: 1 - p itself rounds to zero near p = 1.
        wrong = adversarial.masked_fill(own > 0, -torch.inf)
        rival = torch.arange(clean.shape[1], device=y.device) == wrong.argmax(1)[:, None]
        boosted = -(adversarial * own).sum(1) - adversarial.masked_fill(rival, -torch.inf).logsumexp(1)
        divergence = (clean.exp() * (clean - adversarial)).sum(1)
        return boosted + self.beta * divergence * (1 - (clean.exp() * own).sum(1))


class LogitPairing(PairLoss):
    """Adversarial logit pairing: the loss so far, mean of x and x', plus weight ||z(x) - z(x')||^2 / k.

    z are the logits of k classes, x' is made by PGD on cross-entropy. Half of the paper's minibatch is clean and half
    adversarial (section 4.1), and its loss is the mean over both. Clean logit pairing, which pairs different records,
    is not part of it.
    """

    name = "logit-pairing"
    reference = Reference(
        title="Adversarial Logit Pairing", authors="Kannan, Kurakin, Goodfellow", venue="arXiv 1803.06373",
        year=2018, url="https://arxiv.org/abs/1803.06373",
    )  # fmt: skip

    weight: float = Field(0.5, ge=0, description="weight of the squared distance of the logits")

    def adversarial(self, logits: Predict, x: Tensor, y: Tensor, key: Tensor) -> Tensor:
        return self.by_cross_entropy(logits, x, y, key)

    def pair(
        self, loss: LossFn, logits: LogitsFn, params: Params, batch: Batch, moved: Tensor, key: Tensor
    ) -> Tensor:
        x, y = batch
        apart = (logits(params, x) - logits(params, moved)).square().mean(1)
        both = (loss(params, batch, key) + loss(params, (moved, y), key)) / 2
        return both + self.weight * apart


PLUGINS = (TRADES, MART, LogitPairing)
