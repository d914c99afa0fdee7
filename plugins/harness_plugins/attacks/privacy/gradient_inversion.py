"""Images recovered from an update: dummy records are fitted until their update is the one that was sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from harness.api import (
    Field,
    ObservedUpdate,
    PrivacyContext,
    PrivacyView,
    Reconstruction,
    Reference,
)
from harness_plugins.attacks.privacy._updates import UpdateAttack

if TYPE_CHECKING:
    from torch import Tensor

TICK = 20  # iterations between two reports of progress


class _Inversion(UpdateAttack):
    """One reconstruction per observed update; subclasses say how one start is carried to its end."""

    requires = ("torch._dynamo",)  # which torch.optim imports

    records: int = Field(1, ge=1, le=8, description="records of each client behind an update")
    iterations: int = Field(100, ge=1, description="steps of the attack's optimiser from each start")
    restarts: int = Field(1, ge=1, description="random starts, of which the best match is kept")

    @property
    def effort(self) -> int:
        return self.targets * self.restarts * self.iterations * self.epochs * self.records

    def run(self, view: PrivacyView, context: PrivacyContext) -> Reconstruction:
        """images (b, c, h, w) in [0, 1] and labels (b,) int64 for every observed update, in its order."""
        updates = self.updates(view)
        total = len(updates) * self.restarts * self.iterations
        found = []
        for number, observed in enumerate(updates):
            tries = []
            known = self._known_labels(observed, context)
            for restart in range(self.restarts):
                done = (number * self.restarts + restart) * self.iterations
                tries.append(
                    self._invert(observed, known, context, lambda i, d=done: _tick(context, d + i, total))
                )
            found.append(min(tries, key=lambda t: t[0]))
        context.progress(total, total)
        return Reconstruction(tuple(t[1] for t in found), tuple(t[2] for t in found))

    def _known_labels(self, observed: ObservedUpdate, context: PrivacyContext) -> Tensor | None:
        """Labels (b,) found before the images; None: found with them."""
        return None

    def _invert(
        self,
        observed: ObservedUpdate,
        labels: Tensor | None,
        context: PrivacyContext,
        tick: Callable[[int], None],
    ) -> tuple[float, Tensor, Tensor]:
        """(distance, infinite where undefined; images in [0, 1]; labels) from one random start."""
        raise NotImplementedError


def _tick(context: PrivacyContext, done: int, total: int) -> None:
    if done % TICK == 0:
        context.progress(done, total)


class DLG(_Inversion):
    """Deep leakage from gradients: images and labels whose gradient is nearest to the client's.

    min over x (b, c, h, w), z (b, k) of |g(x, softmax(z)) - g*|^2 by L-BFGS (lr 1, 20 inner iterations and a
    history of 100 a step), where g = -update / lr: the gradient for one step of SGD, for several the sum of
    theirs, with the client's steps simulated. Where |g*| < 1, as of records of which the model is sure, the distance is
    divided by |g*|^2: torch's L-BFGS has absolute tolerances, and would stop at once. x and z start from N(0, 1)
    and are free; the best point seen is clamped to [0, 1], with the labels argmax z. Works for smooth networks
    (sigmoid, tanh) on one or a few records, and far less well with ReLU and max-pooling. About one start in four
    gets stuck or diverges, so the best of three is the default, where the paper takes one of 300 steps.
    Source: Zhu, Liu and Han (2019), section 3.2, algorithm 1; settings of section 4. Cost: up to 25 iterations
    forward and double backward passes an update and restart.
    Raises PluginError without observed updates, NotApplicable where clients do not step with SGD.
    """

    name = "dlg"
    reference = Reference(
        title="Deep leakage from gradients",
        authors="Zhu, Liu, Han",
        venue="NeurIPS 2019",
        year=2019,
        url="https://arxiv.org/abs/1906.08935",
    )

    restarts: int = Field(3, ge=1, description="random starts, of which the best match is kept")

    def _invert(
        self,
        observed: ObservedUpdate,
        labels: Tensor | None,
        context: PrivacyContext,
        tick: Callable[[int], None],
    ) -> tuple[float, Tensor, Tensor]:
        import torch

        from harness_plugins.attacks.privacy._inversion import sgd_settings, simulate

        lr = sgd_settings(observed)[0]
        length = float((observed.update / lr).norm())
        unit = lr * length if 0 < length < 1 else lr
        device, normal = observed.weights.device, context.generator
        shape = (observed.records, *observed.input_shape)
        x = torch.randn(shape, generator=normal, device=device).requires_grad_()
        free = [x]
        if labels is None:
            z = torch.randn((len(x), observed.num_classes), generator=normal, device=device).requires_grad_()
            free.append(z)
        optimizer = torch.optim.LBFGS(free, lr=1.0)
        best = (float("inf"), *_snapshot(free, labels))

        def distance() -> Tensor:
            nonlocal best
            optimizer.zero_grad()
            targets = free[1].softmax(1) if labels is None else labels
            loss = ((simulate(observed, x, targets) - observed.update) / unit).square().sum()
            reached = float(loss.detach())
            if reached < best[0]:
                best = (reached, *_snapshot(free, labels))
            for leaf, grad in zip(free, torch.autograd.grad(loss, free), strict=True):
                leaf.grad = grad
            return loss

        for iteration in range(self.iterations):
            tick(iteration)
            before = [leaf.detach().clone() for leaf in free]
            optimizer.step(distance)
            if all(torch.equal(a, b) for a, b in zip(before, free, strict=True)) or not x.isfinite().all():
                break  # at a stationary point, or lost: the steps that remain would change nothing
        return best


def _snapshot(free: list[Tensor], labels: Tensor | None) -> tuple[Tensor, Tensor]:
    images = free[0].detach().clamp(0, 1).clone()
    return images, free[1].detach().argmax(1) if labels is None else labels


class IDLG(DLG):
    """Improved deep leakage from gradients: as dlg for one record, with its label read off the gradient first.

    The label is the one class whose bias gradient in the last layer (whose row of the weights' gradient, without
    a bias) is negative: exact for undefended updates. Then min over x of |g(x, label) - g*|^2 as in dlg. Where the
    server sees the mean over clients of one record each, labels are LLG*'s.
    Source: Zhao, Mopuri and Bilen (2020), section 3, algorithm 1. Raises as dlg does, and NotApplicable where
    the network does not end in a linear layer.
    """

    name = "idlg"
    reference = Reference(
        title="iDLG: improved deep leakage from gradients",
        authors="Zhao, Mopuri, Bilen",
        venue="arXiv",
        year=2020,
        url="https://arxiv.org/abs/2001.02610",
    )

    records: Literal[1] = Field(1, description="records of each client behind an update: only one")

    def _known_labels(self, observed: ObservedUpdate, context: PrivacyContext) -> Tensor:
        from harness_plugins.attacks.privacy._inversion import idlg_label, recover_labels

        if observed.clients > 1:
            return recover_labels(observed, context.generator)
        return idlg_label(observed)


class InvertingGradients(_Inversion):
    """Inverting gradients: images whose update points the way the client's does, and that are smooth.

    min over x in [0, 1] of 1 - <u(x), u*> / (|u(x)| |u*|) + tv TV(x), with u(x) the update that the dummy records
    would give, its steps simulated as the client takes them (for one step of SGD, minus the gradient; where the server
    sees the mean over clients, the records of all of them at once, and the mean), and TV the
    mean absolute difference of neighbours. Adam on the sign of the gradient, its lr divided by 10 after 3/8, 5/8
    and 7/8 of the iterations, x clamped after each step; of the restarts, uniform in [0, 1], the one with the
    smallest cosine distance. Labels come first: iDLG's for one record, LLG* for several, who then keep the order
    of classes where there are several batches. Source: Geiping et al. (2020), equation 4 and sections 4 to 6.
    The paper takes 4800 to 24000 iterations, several restarts, a tv that differs from network to network, and
    starts from N(0, 1) in normalised pixels. The defaults here are for small-cnn: two single 64x64 X-rays, one
    step of SGD from the start, gave 31.5 dB on average after 1000 iterations (10 s on one core), 30.9 after 250,
    31.7 after 2000; with 500 iterations, tv = 0 gave 26.9, 1e-3 29.4, 1e-2 31.5, 1e-1 26.4. Cost: `iterations`
    forward and double backward passes an update and restart, times the client's steps.
    Raises PluginError without observed updates, NotApplicable where clients do not step with SGD or the network
    does not end in a linear layer.
    """

    name = "inverting-gradients"
    aliases: ClassVar[tuple[str, ...]] = ("gradient-inversion",)
    reference = Reference(
        title="Inverting gradients: how easy is it to break privacy in federated learning?",
        authors="Geiping, Bauermeister, Dröge, Moeller",
        venue="NeurIPS 2020",
        year=2020,
        url="https://arxiv.org/abs/2003.14053",
    )

    iterations: int = Field(1000, ge=1, description="steps of the attack's optimiser from each start")
    tv: float = Field(1e-2, ge=0, allow_inf_nan=False, description="weight of the total variation")
    lr: float = Field(0.1, gt=0, allow_inf_nan=False, description="first learning rate, in [0, 1] pixels")

    def _known_labels(self, observed: ObservedUpdate, context: PrivacyContext) -> Tensor:
        from harness_plugins.attacks.privacy._inversion import recover_labels

        return recover_labels(observed, context.generator)

    def _invert(
        self,
        observed: ObservedUpdate,
        labels: Tensor | None,
        context: PrivacyContext,
        tick: Callable[[int], None],
    ) -> tuple[float, Tensor, Tensor]:
        import torch
        from torch.nn.functional import cosine_similarity

        from harness_plugins.attacks.privacy._inversion import simulate, total_variation

        shape = (observed.records, *observed.input_shape)
        x = torch.rand(shape, generator=context.generator, device=observed.weights.device).requires_grad_()
        optimizer = torch.optim.Adam([x], lr=self.lr)
        milestones = [round(self.iterations * share) for share in (3 / 8, 5 / 8, 7 / 8)]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)

        def distance() -> Tensor:
            return 1 - cosine_similarity(simulate(observed, x, labels), observed.update, dim=0)

        for iteration in range(self.iterations):
            tick(iteration)
            loss = distance() + self.tv * total_variation(x)
            (gradient,) = torch.autograd.grad(loss, x)
            x.grad = gradient.sign().nan_to_num()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                x.clamp_(0, 1)
        reached = float(distance().detach())
        return reached if reached == reached else float("inf"), x.detach(), labels


PLUGINS = (DLG, IDLG, InvertingGradients)
