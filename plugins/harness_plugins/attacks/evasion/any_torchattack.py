"""Any attack of torchattacks, by its class name."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from harness.api import EvasionContext, Field, NotApplicable, Reference, did_you_mean
from harness_plugins.attacks.evasion._corrected import CorrectedAttack, finite_or_same, library_seed
from harness_plugins.attacks.evasion._torchattacks import ZERO_GUARD, check_square, run

# What an attack object is given by the engine, or what this plugin has a parameter for.
OURS = ("self", "model", "eps", "alpha", "args", "kwargs", "device")
# Classes that ask for less than gradients.
ACCESS = {
    "Square": "logits",
    "OnePixel": "logits",
    "Pixle": "logits",
    "SPSA": "logits",
    "GN": "none",
    "VANILA": "none",
}
# Classes whose loss is the cross-entropy alone; the latter add up gradients, or probabilities, of several passes.
CROSS_ENTROPY = ("BIM", "DIFGSM", "FFGSM", "FGSM", "MIFGSM", "NIFGSM", "PGD", "PGDL2", "RFGSM", "TIFGSM")
SEVERAL_PASSES = ("EOTPGD", "PGDRS", "PGDRSL2", "SINIFGSM", "VMIFGSM", "VNIFGSM")
# Classes whose parameters say which loss it is, and over how many passes they average.
ONE_OF_LOSSES = ("APGD", "UPGD")
# Classes that stop short of the boundary, and the plugins that don't: steps of its DeepFool lead out of [0, 1], are cut
# back there, and shrink to nothing.
SHORT = {"DeepFool": "deepfool"}
# The norms that `norm` of some classes names, and the classes of others than L-inf that do not ask.
NORMS = {"Linf": "linf", "L2": "l2"}
IN_L2 = ("PGDL2", "PGDRSL2")
# What some classes take images and models to be, without a look at them.
SQUARE = ("DIFGSM", "Pixle", "TIFGSM")
COLOURED = ("Pixle", "TIFGSM")
TARGETED = ("APGDT", "AutoAttack")  # their difference of logits ratio is of four classes, the other of three
COUNTS = ("steps", "n_queries", "max_iterations")  # what they call the number of their evaluations


class AnyTorchattack(CorrectedAttack):
    """An attack of torchattacks under its own class name, such as SINIFGSM or VNIFGSM, with its own parameters.

    `settings` are checked against the class's signature. Where it takes eps, the radius is passed on, and
    where it takes alpha, 2.5 eps / steps unless given: the library's own alpha may never reach a larger eps.
    Where it takes eps_for_division, that is 1e-35 unless given: the library's own 1e-10 outweighs the gradients
    of a confident model. The gradient of the cross-entropy, where that is the class's loss, is taken as the plugins of
    the same attacks take it, in float64. Where it takes a seed, that is the run's own unless given: the library's is
    always 0. Where it takes n_classes, that is the data's number of classes unless given, 10 at most as in the library,
    which takes it for 10 and fails with fewer. CW, APGDT, Square and OnePixel are put right as in cw, apgd, square and
    one-pixel, and TPGD as in trades; DeepFool is refused, as `deepfool` finds what it misses, and so is UPGD's margin
    loss, which does not move where all logits are negative. A sample whose result is not finite stays as it was.
    The engine holds the result to `ball` and eps, as of any attack; `ball` is the norm of the class's own eps, and none
    for a class that takes no eps. Classes that need what no setting gives, as MultiAttack other attacks, are refused.
    Raises NotApplicable for images and numbers of classes that the class cannot take.
    """

    name = "torchattack"
    reference = Reference(
        title="Torchattacks: A PyTorch Repository for Adversarial Attacks", authors="Kim",
        venue="arXiv 2010.01950", year=2020, url="https://arxiv.org/abs/2010.01950",
    )  # fmt: skip
    default_eps: ClassVar[float | None] = 8 / 255

    attack: str = Field(description="name of a class in torchattacks", examples=["VNIFGSM"])
    settings: dict[str, int | float | bool | str] = Field(
        default_factory=dict, description="its parameters, beside eps and alpha", examples=[{"steps": 20}]
    )
    ball: Literal["linf", "l2", "none"] = Field("linf", description="norm that bounds it; none: no radius")
    eps: float | None = Field(
        None, ge=0, description="radius in [0, 1] pixels; None: the threat's budget, else 8/255"
    )
    alpha: float | None = Field(None, gt=0, description="step size in [0, 1] pixels; None: 2.5 eps / steps")

    @property
    def norm(self) -> str | None:  # type: ignore[override]
        return None if self.ball == "none" else self.ball

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.attack in SHORT:
            raise ValueError(
                f"torchattacks' {self.attack} leaves samples right that can be fooled; take {SHORT[self.attack]}"
            )
        if self.attack == "UPGD" and self.settings.get("loss") == "margin":
            # It takes z_y for 0 among the other classes, as CW's f does: no gradient below, as of log-probabilities.
            raise ValueError(
                "torchattacks' UPGD stays still where all logits are below 0; take loss ce or dlr"
            )
        names = self._signature()
        unknown = sorted(set(self.settings) - set(names))
        if unknown:
            raise ValueError(
                f"{self.attack} has no parameter {unknown[0]!r}; {did_you_mean(unknown[0], names)}"
            )
        needed = [n for n, default in names.items() if default is inspect.Parameter.empty]
        if needed:
            raise ValueError(f"torchattacks' {self.attack} needs {needed[0]!r}, which is no number or text")
        own = self._own_ball({**names, **self.settings})
        if self.ball != own:
            radius = "has no radius" if own == "none" else f"has its radius in {own}"
            raise ValueError(f"torchattacks' {self.attack} {radius} with these settings: set `ball: {own}`")
        return self

    def _own_ball(self, given: dict[str, Any]) -> str:
        """The norm of the radius that the class takes; none where it takes no radius."""
        if "eps" not in given:
            return "none"
        if "norm" not in given:
            return "l2" if self.attack in IN_L2 else "linf"
        if given["norm"] not in NORMS:
            raise ValueError(
                f"{self.attack} has no norm {given['norm']!r}; {did_you_mean(str(given['norm']), NORMS)}"
            )
        return NORMS[given["norm"]]

    def _signature(self) -> dict[str, Any]:
        """Parameter -> default of the class, without those given by the engine."""
        import torchattacks
        from torchattacks.attack import Attack

        found = {n: c for n, c in vars(torchattacks).items() if inspect.isclass(c) and issubclass(c, Attack)}
        if self.attack not in found:
            raise ValueError(
                f"torchattacks has no attack {self.attack!r}; {did_you_mean(self.attack, found)}"
            )
        signature = inspect.signature(found[self.attack]).parameters
        return {n: p.default for n, p in signature.items() if n not in OURS or n in ("eps", "alpha")}

    @property
    def access(self) -> str:  # type: ignore[override]
        return ACCESS.get(self.attack, "gradients")

    @property
    def effort(self) -> int:
        given = {**self._signature(), **self.settings}
        count = next((given[name] for name in COUNTS if name in given), 1)
        return count if isinstance(count, int) else 1

    def check(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        name, loss = self.attack, {**self._signature(), **self.settings}.get("loss")
        if name in SQUARE:
            check_square(name, input_shape)
        if name in COLOURED and input_shape[0] != 3:
            raise NotApplicable(f"torchattacks' {name} takes images of 3 channels, not {input_shape[0]}")
        needed = 4 if name in TARGETED else 3 if loss == "dlr" else 2
        if num_classes < needed:
            raise NotApplicable(f"torchattacks' {name} needs {needed} classes here, not {num_classes}")

    def perturb(self, model: Any, x: Any, y: Any, context: EvasionContext) -> Any:
        if context.eps == 0:
            return x
        adds_passes = self.attack in SEVERAL_PASSES
        cross_entropy = adds_passes or self.attack in CROSS_ENTROPY
        if self.attack in ONE_OF_LOSSES:
            given = {**self._signature(), **self.settings}
            adds_passes, cross_entropy = given["eot_iter"] > 1, given["loss"] == "ce"
        loss = {"cross_entropy": cross_entropy, "adds_passes": adds_passes}
        found = run(self.build(self.attack, model, x, self.arguments(context), **loss), x, y)
        return finite_or_same(x, found)

    def arguments(self, context: EvasionContext) -> dict[str, Any]:
        names, given = self._signature(), dict(self.settings)
        if "eps_for_division" in names:
            given.setdefault("eps_for_division", ZERO_GUARD)
        if "n_classes" in names:
            given.setdefault("n_classes", min(names["n_classes"], context.num_classes))
        if "seed" in names:
            given.setdefault("seed", library_seed(context))
        if "eps" in names and context.eps is not None:
            given["eps"] = context.eps
            if "alpha" in names:
                given["alpha"] = self.alpha if self.alpha is not None else 2.5 * context.eps / self.effort
        return given


PLUGINS = (AnyTorchattack,)
