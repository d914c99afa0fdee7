"""AutoAttack at its published settings, and its parts: APGD, FAB and Square."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness.api import EvasionAttack, EvasionContext, Field, NotApplicable, Reference
from harness_plugins.attacks.evasion._corrected import CorrectedAttack, library_seed
from harness_plugins.attacks.evasion._torchattacks import check_square, run

if TYPE_CHECKING:
    from torch import Tensor, nn

CROCE = Reference(
    title="Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
    authors="Croce, Hein", venue="ICML", year=2020, url="https://arxiv.org/abs/2003.01690",
)  # fmt: skip
SMALLEST = 16  # side of an image: torchattacks' first squares do not fit some smaller ones
TARGETS = 9  # most target classes of the targeted parts, as published
NORMS = {"linf": "Linf", "l2": "L2"}
RADII = {"linf": 8 / 255, "l2": 0.5}


class _Part(CorrectedAttack):
    """A part of AutoAttack, in the ball of `ball`."""

    reference = CROCE
    single_precision: ClassVar[bool] = True  # FAB is; the parts of one attack agree
    ball: Literal["linf", "l2"] = Field("linf", description="norm of the ball")
    eps: float | None = Field(
        None,
        ge=0,
        description="radius in [0, 1] pixels; None: the threat's budget, else 8/255 (linf) or 0.5 (l2)",
    )

    @property
    def norm(self) -> str | None:  # type: ignore[override]
        return self.ball

    def radius(self, budget: float | None = None) -> float | None:
        found = super().radius(budget)
        return RADII[self.ball] if found is None else found

    def common(self, context: EvasionContext) -> dict[str, Any]:
        return {"eps": context.eps, "norm": NORMS[self.ball], "seed": library_seed(context)}


def _targets(num_classes: int) -> int:
    """Other classes that a targeted part goes towards, the likeliest first."""
    return min(TARGETS, num_classes - 1)


def _reachable(passes: int, num_classes: int) -> int:
    """Of the passes towards TARGETS other classes, those towards the ones there are."""
    return passes // TARGETS * _targets(num_classes)


def _restarted(attack: Any, x: Tensor, y: Tensor, runs: list[int | None]) -> Tensor:
    """One APGD run after another, each with its target rank if any, on the samples that the ones before left right.

    Of a sample that a run fools the point that does, of the others the one of the highest loss: torchattacks' own
    loop hands back the clean image for these, and for all that the model gets wrong to begin with, which is no attempt
    at all where another model is scored.
    """
    import torch

    images, labels = x.float(), y
    torch.manual_seed(attack.seed)
    found = images.clone()
    highest = torch.full((len(x),), -torch.inf, device=x.device, dtype=torch.float64)
    left = torch.arange(len(x), device=x.device)
    for target in runs:
        if not len(left):
            break
        attack.target_class = target
        best, right, loss, fooling = attack.attack_single_run(images[left], labels[left])
        better = ~right | (loss > highest[left])
        found[left[better]] = torch.where(right[:, None, None, None], best, fooling)[better].detach()
        highest[left] = torch.maximum(highest[left], loss.double())
        left = left[right]
    return found.to(x.dtype)


class APGD(_Part):
    """Auto-PGD: PGD with momentum whose step size halves where progress stalls, restarting from the best point.

    loss ce, dlr (difference of logits ratio, untargeted: needs three classes), or targeted: dlr towards each
    of the nine likeliest other classes in turn (needs four classes). x (b, c, h, w) in [0, 1].
    """

    name = "apgd"
    implementation: ClassVar[str] = "APGD"
    loss: Literal["ce", "dlr", "targeted"] = Field("ce", description="what is ascended")
    steps: int = Field(100, ge=1, description="gradient steps, for each target class")
    restarts: int = Field(1, ge=1, description="random starts")

    @property
    def effort(self) -> int:
        return self.steps * self.restarts * (TARGETS if self.loss == "targeted" else 1)

    def passes(self, num_classes: int) -> int:
        passes = super().passes(num_classes)
        return _reachable(passes, num_classes) if self.loss == "targeted" else passes

    def check(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        needed = {"ce": 2, "dlr": 3, "targeted": 4}[self.loss]
        if num_classes < needed:
            raise NotApplicable(f"apgd with loss {self.loss} needs {needed} classes, not {num_classes}")

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, context: EvasionContext) -> Tensor:
        if context.eps == 0:
            return x
        if self.loss != "targeted":
            arguments = self.arguments(context)
            attack = self.build(self.implementation, model, x, arguments, cross_entropy=self.loss == "ce")
            return _restarted(attack, x, y, [None] * self.restarts)
        settings = {**self.common(context), "steps": self.steps, "n_classes": context.num_classes}
        attack = self.build("APGDT", model, x, settings)
        targets = range(2, _targets(context.num_classes) + 2)  # ranks: 1 is the likeliest class
        return _restarted(attack, x, y, [target for target in targets for _ in range(self.restarts)])

    def arguments(self, context: EvasionContext) -> dict[str, Any]:
        return {**self.common(context), "steps": self.steps, "loss": self.loss}


class APGDCE(APGD):
    """Auto-PGD on cross-entropy; see apgd."""

    name = "apgd-ce"
    loss: Literal["ce"] = Field("ce", description="what is ascended; apgd has others")


class FAB(_Part):
    """The fast adaptive boundary attack: the nearest point of the linearised boundary, again and again.

    Finds small changes; what lies beyond eps is not used, and where nothing else is found x stays. `targeted`: towards
    each of the nine likeliest other classes in turn, as in AutoAttack. Source: Croce and Hein (ICML 2020, arXiv
    1907.02044).
    """

    name = "fab"
    implementation: ClassVar[str] = "FAB"
    reference = Reference(
        title="Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack",
        authors="Croce, Hein", venue="ICML", year=2020, url="https://arxiv.org/abs/1907.02044",
    )  # fmt: skip
    steps: int = Field(100, ge=1, description="steps, for each target class")
    restarts: int = Field(1, ge=1, description="random starts")
    targeted: bool = Field(True, description="towards each likely class in turn")

    @property
    def effort(self) -> int:
        return self.steps * self.restarts * (TARGETS if self.targeted else 1)

    def passes(self, num_classes: int) -> int:
        passes = super().passes(num_classes)
        return _reachable(passes, num_classes) if self.targeted else passes

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, context: EvasionContext) -> Tensor:
        if context.eps == 0:
            return x
        settings = {
            **self.common(context), "steps": self.steps, "n_restarts": self.restarts,
            "multi_targeted": self.targeted, "n_classes": context.num_classes,
        }  # fmt: skip
        attack = self.build("FAB", model, x, settings)
        attack.n_target_classes = _targets(context.num_classes)
        return run(attack, x, y)

    def arguments(self, context: EvasionContext) -> dict[str, Any]:
        return {}


class Square(_Part):
    """The Square attack: random search over square patches of the ball's corners. Queries logits only.

    A sample ends at the point of the least margin that the search reached, whether it fools the model or not. Squares
    shrink by a schedule made for 10,000 queries, scaled to `queries` as in the paper.
    """

    name = "square"
    implementation: ClassVar[str] = "Square"
    rescaled: ClassVar[bool] = True
    access: ClassVar[str] = "logits"
    reference = Reference(
        title="Square Attack: a query-efficient black-box adversarial attack via random search",
        authors="Andriushchenko, Croce, Flammarion, Hein", venue="ECCV", year=2020,
        url="https://arxiv.org/abs/1912.00049",
    )  # fmt: skip
    queries: int = Field(5000, ge=1, description="queries a sample, at most")
    restarts: int = Field(1, ge=1, description="random starts")
    p_init: float = Field(0.8, gt=0, le=1, description="share of the image in the first squares")

    def check(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        if self.ball == "l2":
            check_square(self.name, input_shape)
            if input_shape[1] < SMALLEST:
                raise NotApplicable(
                    f"square in an l2 ball takes images of {SMALLEST} pixels a side or more, not {input_shape[1]}"
                )

    @property
    def effort(self) -> int:
        return self.queries * self.restarts

    def arguments(self, context: EvasionContext) -> dict[str, Any]:
        return {
            **self.common(context),
            "n_queries": self.queries,
            "n_restarts": self.restarts,
            "p_init": self.p_init,
            "resc_schedule": self.rescaled,
        }


class AutoAttackSquare(Square):
    """Square as AutoAttack's authors run it: its schedule is not scaled, and of it the first 5,000 queries are seen."""

    rescaled: ClassVar[bool] = False


class AutoAttack(EvasionAttack):
    """AutoAttack, standard: APGD-CE 100 steps, APGD-T 100, FAB-T 100, Square 5,000 queries, one after another.

    Each part gets only the samples that are still right. As in the authors' code Square's schedule is the one for
    10,000 queries, of which 5,000 see half. The targeted DLR loss needs four classes: with three
    APGD runs on the untargeted DLR instead, with two that part is dropped; the record's `parts` say what ran.
    torchattacks' attack of the same name takes 10 steps and fails for three classes; only its parts are used
    here.

    x (b, c, h, w) in [0, 1]; the ball is linf (eps 8/255) or l2 (0.5). Up to 1,900 gradients and 5,000
    queries.
    """

    name = "autoattack"
    reference = CROCE
    steps: ClassVar[int] = 100
    queries: ClassVar[int] = 5000
    square: ClassVar[type[Square]] = AutoAttackSquare
    ball: Literal["linf", "l2"] = Field("linf", description="norm of the ball")
    eps: float | None = Field(
        None,
        ge=0,
        description="radius in [0, 1] pixels; None: the threat's budget, else 8/255 (linf) or 0.5 (l2)",
    )

    @property
    def norm(self) -> str | None:  # type: ignore[override]
        return self.ball

    @property
    def effort(self) -> int:
        return self.steps * (1 + 2 * TARGETS) + self.queries

    def passes(self, num_classes: int) -> int:
        return sum(part.passes(num_classes) for part in self.parts(num_classes))

    def radius(self, budget: float | None = None) -> float | None:
        found = super().radius(budget)
        return RADII[self.ball] if found is None else found

    def check(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        for part in self.parts(num_classes):
            part.check(num_classes, input_shape)

    def details(self, num_classes: int) -> dict[str, Any]:
        return {"parts": [part.label() for part in self.parts(num_classes)]}

    def parts(self, num_classes: int) -> list[EvasionAttack]:
        of = {"ball": self.ball, "eps": self.eps}
        second = {2: [], 3: [APGD(loss="dlr", steps=self.steps, **of)]}.get(
            num_classes, [APGD(loss="targeted", steps=self.steps, **of)]
        )
        return [
            APGD(loss="ce", steps=self.steps, **of),
            *second,
            FAB(steps=self.steps, **of),
            self.square(queries=self.queries, **of),
        ]

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, context: EvasionContext) -> Tensor:
        from harness_plugins.attacks.evasion.multi_attack import one_after_another

        return one_after_another(self.model_copy(update={"eps": context.eps}), model, x, y, context)


class StandardFast(AutoAttack):
    """AutoAttack's parts with 20 steps and 500 queries: a quick look, not comparable with autoattack.

    The squares' schedule is scaled to the 500 queries: cut short it would stay at large squares, and find less.
    """

    name = "autoattack-fast"
    steps: ClassVar[int] = 20
    queries: ClassVar[int] = 500
    square: ClassVar[type[Square]] = Square


PLUGINS = (APGD, APGDCE, FAB, Square, AutoAttack, StandardFast)
