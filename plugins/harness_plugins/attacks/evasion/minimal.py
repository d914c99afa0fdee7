"""Attacks that look for a small change instead of the worst one in a ball."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from harness.api import EvasionAttack, EvasionContext, Field, Reference
from harness_plugins.attacks.evasion._corrected import CorrectedAttack

if TYPE_CHECKING:
    from torch import Tensor, nn

INSIDE = 0.999999  # how far from 1/2 to 0 and 1 a pixel may lie in tanh space


class CarliniWagner(CorrectedAttack):
    """Carlini and Wagner's L2 attack: minimises ||x' - x||^2 + c max(z_y - max_{k != y} z_k, -kappa) by Adam.

    In tanh space, so that x' stays in [0, 1]; x is first drawn towards 1/2 by a millionth, as in the authors' code,
    as a pixel of exactly 0 or 1 lies at infinity there and could never move. Not bounded by a radius: the change that
    fools is as small as it finds. torchattacks keeps c fixed, where the paper searches for it. x (b, c, h, w) in
    [0, 1]. One gradient a step.
    """

    name = "cw"
    reference = Reference(
        title="Towards Evaluating the Robustness of Neural Networks", authors="Carlini, Wagner",
        venue="IEEE S&P", year=2017, url="https://arxiv.org/abs/1608.04644",
    )  # fmt: skip
    implementation: ClassVar[str] = "CW"
    c: float = Field(1.0, gt=0, description="weight of the misclassification term")
    kappa: float = Field(0.0, ge=0, description="margin wanted, in logits")
    steps: int = Field(100, ge=1, description="Adam steps")
    lr: float = Field(0.01, gt=0, description="Adam's learning rate")

    @property
    def effort(self) -> int:
        return self.steps

    def arguments(self, context: EvasionContext) -> dict[str, Any]:
        return {"c": self.c, "kappa": self.kappa, "steps": self.steps, "lr": self.lr}

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, context: EvasionContext) -> Tensor:
        import torch

        inside = 0.5 + INSIDE * (x - 0.5)
        found = super().perturb(model, inside, y, context)
        still = (found == inside).flatten(1).all(1)  # nothing was found
        return torch.where(still[:, None, None, None], x, found)


class DeepFool(EvasionAttack):
    """DeepFool: steps to the nearest boundary of the linearised model until the label changes.

    r <- r + |f_l| w_l / ||w_l||^2 at x' = clip(x + (1 + overshoot) r), where f_k = z_k - z_y, w_k its gradient and l
    the class of the least |f_k| / ||w_k|| (algorithm 2). Where z_l = z_y exactly, as happens in half precision, the
    step is 0 and y may still come first: each such step doubles the image's overshoot. The paper knows no box: here a
    pixel at 0 or 1 that a step would push out takes no part in w_k, without which steps shrink before the boundary and
    none crosses it. Not bounded by a radius. x (b, c, h, w) in [0, 1]; k gradients a step for k classes, of all images
    at once.
    """

    name = "deepfool"
    reference = Reference(
        title="DeepFool: a simple and accurate method to fool deep neural networks",
        authors="Moosavi-Dezfooli, Fawzi, Frossard", venue="CVPR", year=2016, url="https://arxiv.org/abs/1511.04599",
    )  # fmt: skip
    steps: int = Field(50, ge=1, description="steps at most")
    overshoot: float = Field(0.02, ge=0, description="how far beyond the boundary, as a share")

    @property
    def effort(self) -> int:
        return self.steps

    def passes(self, num_classes: int) -> int:
        return super().passes(num_classes) * num_classes

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, context: EvasionContext) -> Tensor:
        import torch

        found, moved = x.clone(), torch.zeros_like(x)
        reach = torch.full((len(x), 1, 1, 1), 1 + self.overshoot, device=x.device, dtype=x.dtype)
        greatest = torch.finfo(x.dtype).max
        left = torch.arange(len(x), device=x.device)
        for _ in range(self.steps):
            at = found[left].requires_grad_()
            logits = model(at)
            right = logits.argmax(1) == y[left]
            if not bool(right.any()):
                break
            step = self._step(logits, at, y[left])[right]
            left = left[right]
            stuck = left[(step == 0).flatten(1).all(1)]
            reach[stuck] = (2 * reach[stuck] - 1).clamp(max=greatest)
            moved[left] += step
            found[left] = (x[left] + reach[left] * moved[left]).clamp(0, 1)
        return found

    @staticmethod
    def _step(logits: Tensor, at: Tensor, y: Tensor) -> Tensor:
        """(b, c, h, w): to the nearest boundary of the linearised model, by the pixels that are free to go there."""
        import torch

        gradients = torch.stack(
            [torch.autograd.grad(z.sum(), at, retain_graph=True)[0] for z in logits.unbind(1)], 1
        )
        rows, image = torch.arange(len(y), device=y.device), at.detach()[:, None]
        w = gradients - gradients[rows, y][:, None]
        w = w.masked_fill(((image <= 0) & (w < 0)) | ((image >= 1) & (w > 0)), 0)
        f = (logits - logits.gather(1, y[:, None])).detach().abs()
        norm = w.flatten(2).norm(dim=2)
        distance = torch.where(norm > 0, f / norm, torch.inf)
        nearest = distance.scatter(1, y[:, None], torch.inf).argmin(1)
        length = distance[rows, nearest] / norm[rows, nearest]
        return length.where(length.isfinite(), 0.0)[:, None, None, None] * w[rows, nearest]


class SparseFool(EvasionAttack):
    """SparseFool: few coordinates, by DeepFool's boundary and a sparse linear solver. Not bounded by a radius.

    From x_i, which is x at first, `deepfool` finds x_B beyond the boundary, whose unit normal there is w. x_{i+1} is
    x_i with as few coordinates moved as bring it by 0.001 across the plane through x_i + lam (x_B - x_i): those of the
    greatest |w| first, each as far as needed or as [0, 1] allows (algorithms 1 and 2). What is tried is
    clip(x + (1 + overshoot) (x_{i+1} - x)), as in the authors' code, until the label changes. torchattacks starts again
    from x instead of x_i, takes w at the far plane, and its DeepFool stops short. An image without a gradient stays as
    it is. x (b, c, h, w) in [0, 1]; each step costs a run of `deepfool`.
    """

    name = "sparsefool"
    reference = Reference(
        title="SparseFool: a few pixels make a big difference", authors="Modas, Moosavi-Dezfooli, Frossard",
        venue="CVPR", year=2019, url="https://arxiv.org/abs/1811.02248",
    )  # fmt: skip
    steps: int = Field(10, ge=1, description="steps at most")
    lam: float = Field(3.0, gt=0, description="how far beyond the boundary the sparse step aims")
    overshoot: float = Field(0.02, ge=0, description="how far beyond the boundary, as a share")

    @property
    def effort(self) -> int:
        return self.steps

    def passes(self, num_classes: int) -> int:
        return self.steps * DeepFool().passes(num_classes)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, context: EvasionContext) -> Tensor:
        import torch

        found, reached = x.clone(), x.clone()
        boundary = DeepFool(overshoot=self.overshoot)
        left = torch.arange(len(x), device=x.device)
        for _ in range(self.steps):
            with torch.no_grad():
                left = left[model(found[left]).argmax(1) == y[left]]
            if not len(left):
                break
            at, labels = reached[left], y[left]
            beyond = boundary.perturb(model, at, labels, context)
            reached[left] = self._solved(at, self._normal(model, beyond, labels), beyond)
            found[left] = (x[left] + (1 + self.overshoot) * (reached[left] - x[left])).clamp(0, 1)
        return found

    @staticmethod
    def _normal(model: nn.Module, at: Tensor, y: Tensor) -> Tensor:
        """(b, c, h, w): the unit gradient of z_k - z_y, k the likeliest other class; 0 where there is none."""
        import torch

        at = at.detach().requires_grad_()
        logits = model(at)
        others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
        lead = others - logits.gather(1, y[:, None])[:, 0]
        return torch.nn.functional.normalize(
            torch.autograd.grad(lead.sum(), at)[0].flatten(1), dim=1
        ).view_as(at)

    def _solved(self, at: Tensor, normal: Tensor, beyond: Tensor) -> Tensor:
        """Algorithm 1, with the coordinates in the order in which it takes them."""
        w, start = normal.flatten(1), at.flatten(1)
        needed = (w * self.lam * (beyond - at).flatten(1)).sum(1, keepdim=True).abs() + 0.001
        room = (1 - start).where(w > 0, start)
        slopes, order = w.abs().sort(dim=1, descending=True)
        most = slopes * room.gather(1, order)
        part = (needed - (most.cumsum(1) - most)).clamp(min=0).minimum(most)
        move = (part / slopes).where(slopes > 0, 0.0)
        return (start + move.new_zeros(move.shape).scatter(1, order, move) * w.sign()).clamp(0, 1).view_as(at)


class OnePixel(CorrectedAttack):
    """The one-pixel attack: differential evolution over positions and colours of `pixels` pixels.

    Bounded in L0: `pixels` positions change. Queries probabilities only, and compares their odds: a sure model's
    round to 1. A generation has at most `population` candidates, a multiple of the numbers that are sought (2 + c a
    pixel), and one for each at least. The paper takes 400 candidates and 100 generations; the small defaults are
    torchattacks'.
    """

    name = "one-pixel"
    reference = Reference(
        title="One Pixel Attack for Fooling Deep Neural Networks", authors="Su, Vargas, Sakurai",
        venue="IEEE Transactions on Evolutionary Computation", year=2019, url="https://arxiv.org/abs/1710.08864",
    )  # fmt: skip
    implementation: ClassVar[str] = "OnePixel"
    access: ClassVar[str] = "logits"
    norm: ClassVar[str | None] = "l0"
    pixels: int = Field(1, ge=1, description="pixels changed at most")
    steps: int = Field(10, ge=1, description="generations")
    population: int = Field(10, ge=4, description="candidates in a generation, of all pixels together")

    @property
    def effort(self) -> int:
        return self.steps * self.population

    def radius(self, budget: float | None = None) -> float | None:
        return float(self.pixels)

    def arguments(self, context: EvasionContext) -> dict[str, Any]:
        return {"pixels": self.pixels, "steps": self.steps, "popsize": self.population}


PLUGINS = (CarliniWagner, DeepFool, SparseFool, OnePixel)
