"""Evasion attacks: within budget and range, using no more of the model than they declare."""

from __future__ import annotations

from typing import Any

from harness.contracts.attack import EvasionAttack
from harness.errors import NotApplicable, PluginError
from harness.testing.core import (
    FAMILIES,
    CheckFailed,
    CheckSkipped,
    Family,
    Setting,
    Subject,
    Trial,
    after,
    check,
    require,
)
from harness.testing.watch import same

ACCESS = ("gradients", "logits", "labels", "none")
RECORDS = 6
BUDGETS = {"linf": 8 / 255, "l2": 0.5, "l0": 4.0}


def _budget(attack: EvasionAttack) -> float | None:
    return None if attack.norm is None else BUDGETS.get(attack.norm, 0.1)


def withheld(attack: EvasionAttack, world: Any, setting: Setting) -> Any:
    """The toy network, revealing no more than the attack's `access` declares.

    Unless that is gradients, its weights cannot be seen, and asking for what is not declared raises Touched.
    """
    import torch

    network = world.net.requires_grad_(False)
    access = attack.access
    no_answer = setting.forbid(
        f"{attack.name} asks the model and declares access = 'none': declare logits, labels or gradients"
    )
    no_gradient = setting.forbid(
        f"{attack.name} uses the model's gradients and declares access = {access!r}: it would be run against "
        "models that "
        "have none. Declare access = 'gradients', or ask for outputs only, under torch.no_grad()"
    )

    class Barrier(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits: Any) -> Any:
            return logits.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return no_gradient()

    class Withheld(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            if access == "none":
                return no_answer()
            logits = network(x)
            return logits if access == "gradients" else Barrier.apply(logits)

    return Withheld().eval() if access != "gradients" else network.eval()


def _attack(attack: Any, model: Any, x: Any, y: Any, budget: float | None) -> Any:
    from harness.evaluation.evasion import attack_batch

    return attack_batch(attack, model, x, y, seed=0, budget=budget, num_classes=3, verify=False)


def _trial(attack: EvasionAttack, setting: Setting) -> Trial:
    from harness.testing.toy import CLASSES, toy

    world = toy(setting)
    attack.check(CLASSES, world.shape)
    if attack.access not in ACCESS:
        raise CheckFailed(f"{attack.name} declares access = {attack.access!r}: one of {', '.join(ACCESS)}")
    model = withheld(attack, world, setting)
    x, y = world.images[:RECORDS].clone(), world.labels[:RECORDS].clone()
    given = {"the images": x.clone(), "the labels": y.clone(), "the model": []}

    def call() -> dict[str, Any]:
        return {"adversarial": _attack(_Watched(attack, given), model, x, y, _budget(attack))}

    inputs = {"x": x, "y": y, "the model": model}
    return Trial(
        inputs | {f"{name} that `perturb` gets": value for name, value in given.items()},
        call,
        ("adversarial",),
    )


class _Watched:
    """The attack, given tensors that are compared afterwards: the engine hands it copies, on which changes do not show.

    given: these tensors, and a list that collects what the attack changed in the model, as the engine restores its
    modes.
    """

    def __init__(self, attack: EvasionAttack, given: dict[str, Any]) -> None:
        self._attack, self._given = attack, given

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attack, name)

    def perturb(self, model: Any, x: Any, y: Any, context: Any) -> Any:
        from harness.evaluation.untouched import Untouched

        before = Untouched(model)
        found = self._attack.perturb(model, self._given["the images"], self._given["the labels"], context)
        self._given["the model"] += filter(None, [before.changed()])
        return found


# The engine seeds the global generators around an evasion attack, as its libraries draw from them.
FAMILIES["evasion"] = Family("evasion", _trial, own_random=True)


@check("evasion")
def examples_well_formed(subject: Subject) -> None:
    """Adversarial examples have the shape of x and are finite."""
    outcome = subject.outcome()
    x, found = outcome.trial.inputs["x"], outcome.output["adversarial"]
    require(
        found.shape == x.shape, f"{subject.name} returns {tuple(found.shape)} for images {tuple(x.shape)}"
    )
    require(
        bool(found.isfinite().all()),
        f"{subject.name} returns examples that are not finite: guard divisions by a norm that may be zero",
    )


@check("evasion")
def pixel_range_kept(subject: Subject) -> None:
    """Adversarial examples are images: within [0, 1]."""
    found = subject.outcome().output["adversarial"]
    low, high = float(found.min()), float(found.max())
    require(
        low >= -1e-6 and high <= 1 + 1e-6,
        f"{subject.name} leaves the range of pixels: [{low:.4g}, {high:.4g}]. End with `.clamp(0, 1)`",
    )


@check("evasion")
def budget_kept(subject: Subject) -> None:
    """No example is further from its image than the radius, in the declared norm."""
    from harness.evaluation.evasion import distances

    attack, outcome = subject.plugin, subject.outcome()
    if attack.norm is None:
        return
    require(attack.norm in BUDGETS, f"{attack.name} declares norm = {attack.norm!r}: linf, l2, l0 or None")
    x, found = outcome.trial.inputs["x"], outcome.output["adversarial"]
    eps = attack.radius(_budget(attack))
    worst = float(distances(x, found, attack.norm).max())
    require(
        worst <= eps + 1e-6 * max(1.0, eps) + 1e-6,
        f"{attack.name} moves an image by {worst:.4g} in {attack.norm}, and eps is {eps:.4g}: project onto the ball of "
        "radius context.eps around x, and clamp to [0, 1] after that",
    )


@check("evasion")
def zero_budget_moves_nothing(subject: Subject) -> None:
    """With eps = 0 every image comes back bit for bit."""
    attack, outcome = subject.plugin, subject.outcome()
    if attack.norm is None:
        return
    if "eps" in type(attack).model_fields:
        try:
            attack = type(attack).create({**attack.parameters(explicit=True), "eps": 0.0})
        except PluginError:
            raise CheckSkipped("its eps may not be 0") from None
    if attack.radius(0.0) != 0:
        raise CheckSkipped("its radius is a parameter of its own, which cannot be 0")
    inputs = outcome.trial.inputs
    found = _attack(attack, inputs["the model"], inputs["x"], inputs["y"], 0.0)
    require(
        same(found, inputs["x"]),
        f"{attack.name} moves images with eps = 0: return x itself then (a random start or a projection moves them)",
    )


@check("evasion", when=lambda plugin: plugin.access == "gradients")
def loss_does_not_fall(subject: Subject) -> None:
    """An attack that sees gradients does not make the model surer of the true classes."""
    import torch
    from torch.nn import functional

    outcome = subject.outcome()
    inputs, found = outcome.trial.inputs, outcome.output["adversarial"]
    with torch.no_grad():
        logits = [inputs["the model"](x) for x in (inputs["x"], found)]
    before, after = (float(functional.cross_entropy(z, inputs["y"])) for z in logits)
    require(
        after >= 0.99 * before,
        f"{subject.name} lowers the loss at the true classes, from {before:.3g} to {after:.3g}: step along the "
        "gradient of that loss, not against it",
    )


@check("evasion")
def labels_are_enough(subject: Subject) -> None:
    """An attack with access = labels gives the same against a model that tells only the predicted class."""
    import torch

    attack, outcome = subject.plugin, subject.outcome()
    if attack.access != "labels":
        return
    inputs = outcome.trial.inputs

    class LabelsOnly(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            logits = inputs["the model"](x)
            return torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1]).to(logits)

    found = _attack(attack, LabelsOnly(), inputs["x"], inputs["y"], _budget(attack))
    require(
        same(found, outcome.output["adversarial"]),
        f"{attack.name} declares access = 'labels', but finds other examples where the model tells only the "
        "predicted class: it "
        "reads the logits. Use logits.argmax(1) alone, or declare access = 'logits'",
    )


@check("evasion")
def single_image(subject: Subject) -> None:
    """One image works, also where the model is wrong about it."""
    from harness.testing.toy import toy

    after(subject, examples_well_formed)
    attack, setting = subject.plugin, Setting(scene=subject.outcome().setting.scene)
    world = toy(setting)
    model = withheld(attack, world, setting)
    for shift in (0, 1):
        x, y = world.images[:1], (world.labels[:1] + shift) % 3
        try:
            found = _attack(attack, model, x, y, _budget(attack))
        except (NotApplicable, PluginError):
            continue
        except Exception as error:
            raise CheckFailed(
                f"{attack.name} breaks on a batch of one image{' that is predicted wrongly' if shift else ''}: "
                f"{type(error).__name__}: {error}"
            ) from error
        require(
            found.shape == x.shape and bool(found.isfinite().all()),
            f"{attack.name} returns {tuple(found.shape)} for one image",
        )


@check("evasion")
def functional_form_agrees(subject: Subject) -> None:
    """Where there is a form for use inside losses, it keeps range and budget, and moves nothing at eps = 0."""
    import torch

    from harness.evaluation.evasion import distances
    from harness.random import make_key
    from harness.testing.toy import toy

    attack = subject.plugin
    eps = attack.radius(_budget(attack))
    functional = attack.functional(eps)
    if functional is None or attack.norm is None:
        return
    world = toy(Setting(scene=subject.outcome().setting.scene))
    x, y = world.images[:RECORDS], world.labels[:RECORDS]
    net = world.net

    def loss(images: Any) -> Any:
        return torch.nn.functional.cross_entropy(net(images), y[: len(images)], reduction="none")

    found = functional(loss, x, make_key("check"))
    worst = float(distances(x, found, attack.norm).max())
    require(
        float(found.min()) >= -1e-6 and float(found.max()) <= 1 + 1e-6 and worst <= eps * (1 + 1e-5) + 1e-6,
        f"`functional` of {attack.name} leaves [0, 1] or its eps = {eps:.4g}: it moves {worst:.4g}",
    )
    if "eps" not in type(attack).model_fields or attack.eps is None:  # type: ignore[attr-defined]
        still = attack.functional(0.0)
        require(
            still is None or same(still(loss, x, make_key("check")), x),
            f"`functional` of {attack.name} moves images with eps = 0",
        )
