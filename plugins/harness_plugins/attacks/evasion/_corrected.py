"""Classes of torchattacks 3.3.0 that depart from their papers, put right, and what its other attacks need."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from harness.api import EvasionContext, held_back
from harness_plugins.attacks.evasion._torchattacks import TorchattacksAttack

if TYPE_CHECKING:
    from torch import Tensor


class CorrectedAttack(TorchattacksAttack):
    """An attack run by a class of torchattacks, or by the corrected form of it below."""

    @staticmethod
    def build(*arguments: Any, **named: Any) -> Any:
        """As the bridge builds it: nothing but methods differs."""
        attack = TorchattacksAttack.build(*arguments, **named)
        attack.__class__ = _corrected_classes().get(type(attack).__name__, type(attack))
        return attack


def library_seed(context: EvasionContext) -> int:
    """For torchattacks' `seed`, which is 0 by default: every batch and every run would draw the same."""
    import torch

    generator = context.generator
    return int(torch.randint(2**31, (), generator=generator, device=generator.device))


def finite_or_same(x: Tensor, found: Tensor) -> Tensor:
    """What was found, and x itself for samples that are not finite there: without a gradient some divide 0 by 0."""
    import torch

    finite = found.flatten(1).isfinite().all(1)
    return torch.where(finite[:, None, None, None], found, x)


@cache
def _corrected_classes() -> dict[str, type]:
    """By torchattacks' class name. Made at the first use: the module must load without torch."""
    import torch
    import torchattacks

    class CW(torchattacks.CW):  # type: ignore[misc]
        """Its f takes z_y for 0 among the other classes: where all of theirs are below 0, no gradient is left.

        It also ends all images of a batch where the cost of them all together has grown since a tenth of the steps.
        """

        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            """Of each image the nearest point that fooled, after all the steps; where none did, the image."""
            towards = self.get_target_label(images, labels) if self.targeted else labels
            w = self.inverse_tanh_space(images.detach()).requires_grad_()
            found = images.detach().clone()
            least = torch.full((len(images),), torch.inf, device=images.device, dtype=images.dtype)
            optimizer = torch.optim.Adam([w], lr=self.lr)
            for _ in range(self.steps):
                tried = self.tanh_space(w)
                distance = (tried - images).square().flatten(1).sum(1)
                outputs = self.get_logits(tried)
                cost = (distance + self.c * self.f(outputs, towards)).sum()
                optimizer.zero_grad()
                cost.backward()
                optimizer.step()
                nearer = (outputs.argmax(1) != labels) & (distance < least)
                found[nearer], least[nearer] = tried.detach()[nearer], distance.detach()[nearer]
            return found

        def f(self, outputs: Tensor, labels: Tensor) -> Tensor:
            """(b,): max(z_y - max of the others, -kappa), or its opposite towards a target (section V.A, f6)."""
            own = torch.nn.functional.one_hot(labels, outputs.shape[1]).bool()
            gap = outputs[own] - outputs.masked_fill(own, -torch.inf).amax(1)
            return (-gap if self.targeted else gap).clamp(min=-self.kappa)

    class APGDT(torchattacks.APGDT):  # type: ignore[misc]
        """Its steps in an L2 ball all have the size of the first sample's, which halves where that one stalls.

        torchattacks' APGD has each sample's own, and is the same but for the loss. Of a sample that the model gets
        wrong to begin with, as a surrogate may, the second likeliest class can be its own: no target at all.
        """

        loss = "dlr"

        def attack_single_run(self, x_in: Tensor, y_in: Tensor) -> Any:
            with torch.no_grad():
                others = self.get_logits(x_in).scatter(1, y_in[:, None], -torch.inf)
                self.y_target = others.sort(dim=1)[1][:, 1 - self.target_class]
            return torchattacks.APGD.attack_single_run(self, x_in, y_in)

        def dlr_loss(self, x: Tensor, y: Tensor) -> Tensor:
            return self.dlr_loss_targeted(x, y, self.y_target)  # type: ignore[no-any-return]

    class Square(torchattacks.Square):  # type: ignore[misc]
        """It hands back the clean image unless it fools: no attempt at all where another model is scored.

        It also ends at a tie, which logits of 8 bits often have, though of equal ones the first is predicted.
        """

        def margin_and_loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            """(b,) each: z_y - max of the others, above 0 at a tie in which y is predicted; the loss, to go down."""
            logits = self.get_logits(x)
            own = torch.nn.functional.one_hot(y, logits.shape[1]).bool()
            margin = logits[own] - logits.masked_fill(own, -torch.inf).amax(1)
            held = (margin == 0) & (logits.argmax(1) == y)
            margin = margin.masked_fill(held, torch.finfo(margin.dtype).tiny)
            if self.loss == "margin":
                return margin, margin
            return margin, -torch.nn.functional.cross_entropy(logits, y, reduction="none")

        def perturb(self, x: Tensor, y: Tensor) -> Tensor:
            """Of each sample the point of the least margin over all restarts, which end once it is below 0."""
            self.init_hyperparam(x)
            torch.manual_seed(self.seed)
            found = x.clone()
            least = torch.full((len(x),), torch.inf, device=x.device, dtype=x.dtype)
            left = torch.arange(len(x), device=x.device)
            for _ in range(self.n_restarts):
                if not len(left):
                    break
                _, best = self.attack_single_run(x[left], y[left])
                with torch.no_grad():
                    margin, _ = self.margin_and_loss(best, y[left])
                better = margin < least[left]
                found[left[better]] = best[better]
                least[left[better]] = margin[better]
                left = left[margin >= 0]
            return found

    class TPGD(torchattacks.TPGD):  # type: ignore[misc]
        """Of a sure model both its distributions are one-hot in float32: no gradient, and images stay as they are."""

        def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
            self.unmoved = None
            return super().forward(images)  # type: ignore[no-any-return]

        def get_logits(self, inputs: Tensor) -> Tensor:
            """(b, k): the likeliest class of the images held back, by as much wherever they are moved to."""
            logits: Tensor = super().get_logits(inputs)
            self.unmoved = logits.detach() if self.unmoved is None else self.unmoved
            return held_back(logits, self.unmoved.argmax(1), like=self.unmoved)

    class OnePixel(torchattacks.OnePixel):  # type: ignore[misc]
        """Where float32 rounds the probability to 1, all its candidates are equal, and the search learns nothing."""

        def _loss(self, image: Tensor, label: Tensor, delta: Any) -> Any:
            """(candidates,): in the order of p_y / (1 - p_y), and within (-1, 1), as its stopping test asks."""
            with torch.no_grad():
                logits = self.get_logits(self._perturb(image, delta)).double()
            odds = logits[:, label].squeeze(1) - logits.index_fill(1, label, -torch.inf).logsumexp(1)
            return torch.nn.functional.softsign(odds).cpu().numpy()

    return {made.__name__: made for made in (CW, APGDT, Square, TPGD, OnePixel)}
