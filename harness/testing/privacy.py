"""Privacy attacks: what they return, and that they look no further than their threat lets them."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from harness.contracts.defence import Guarantee
from harness.contracts.privacy import (
    Audit,
    Membership,
    ObservedUpdate,
    Planted,
    PrivacyAttack,
    PrivacyContext,
    PrivacyView,
    Reconstruction,
    RecordedRound,
    TrainingVariant,
    VariantView,
)
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
from harness.testing.watch import guarded

KNOWLEDGE = ("black-box", "white-box", "server")
SIDE = 12  # members, and as many non-members


def _guarantee() -> Guarantee:
    return Guarantee(unit="record", epsilon=4.0, delta=1e-5, accountant="rdp")


def _trial(attack: PrivacyAttack, setting: Setting) -> Trial:
    from harness.testing.toy import CLASSES, generator, toy

    world = toy(replace(setting, other=False))  # `other` exchanges members and non-members instead
    attack.check(CLASSES, world.shape)
    if attack.knowledge not in KNOWLEDGE:
        raise CheckFailed(
            f"{attack.name} declares knowledge = {attack.knowledge!r}: one of {', '.join(KNOWLEDGE)}"
        )
    variants = attack.trainings(SimpleNamespace(defences=(), aggregators=(), compressors=()))
    sides = [(world.images[i : i + SIDE].clone(), world.labels[i : i + SIDE].clone()) for i in (0, SIDE)]
    if setting.other:
        sides.reverse()
    view = PrivacyView(
        logits=_logits(world.net),
        members=sides[0],
        non_members=sides[1],
        module=world.net,
        variants={v.name: _variant(v, world, setting.other) for v in variants},
        population=(world.images[2 * SIDE :].clone(), world.labels[2 * SIDE :].clone()),
        observed=_observed(attack, world),
        apply=world.logits,
    )
    inputs = {"members": view.members, "non_members": view.non_members, "population": view.population,
              "the released network": view.module, "the observed updates": view.observed}  # fmt: skip
    if not attack.needs_non_members:
        empty = (world.images[:0], world.labels[:0])
        view.members, view.non_members = empty, empty
    closed = {
        "black-box": ("module", "observed", "apply"), "white-box": ("observed", "apply"), "server": (),
    }[attack.knowledge]  # fmt: skip
    seen = guarded(view, {name: setting.forbid(
        f"{attack.name} looks at view.{name} and declares knowledge = {attack.knowledge!r}: such a threat "
        "does not grant it. "
        "Declare what it needs"
    ) for name in closed})  # fmt: skip
    context = PrivacyContext(CLASSES, generator(setting))
    return Trial(inputs, lambda: {"result": attack.run(seen, context)})


FAMILIES["privacy"] = Family("privacy", _trial, dtypes=("float32",), scenes=1)


def _logits(module: Any) -> Any:
    import torch

    def logits(images: Any) -> Any:
        with torch.no_grad():
            return module(images)

    return logits


def _variant(variant: TrainingVariant, world: Any, exchanged: bool) -> VariantView:
    """A stand-in for another training: the toy network, moved a little, and a mask like the engine's."""
    import torch

    from harness.federation.vector import load_vector
    from harness.random import derive, torch_generator
    from harness.testing.toy import updates

    number = derive(variant.complement_of or variant.name)
    module, draw = world.net, torch_generator("variant", variant.name)
    load_vector(module, world.vector + 0.05 * torch.randn(len(world.vector), generator=draw))
    half = np.roll(np.random.default_rng(number).permutation(2 * SIDE) < SIDE, SIDE * exchanged)
    mask = np.repeat([True, False], SIDE) if variant.keep is None else half
    rounds = tuple(
        RecordedRound(i, world.vector, updates(world, 3, seed=i), (0, 1, 2))
        for i in range(variant.recorded_rounds)
    )
    planted = None
    if variant.canaries is not None:
        m = variant.canaries.count
        included = np.random.default_rng(1).permutation(m) < m // 2
        if variant.canaries.form == "image":
            images = torch.rand((m, *world.shape), generator=draw)
            planted = Planted(included, None, images, torch.randint(3, (m,), generator=draw))
        else:
            planted = Planted(included, included * 1.0 + np.random.default_rng(2).normal(size=m))
    return VariantView(
        logits=_logits(module), mask=mask if variant.complement_of is None else ~mask, rounds=rounds,
        canaries=planted, guarantee=_guarantee(),
    )  # fmt: skip


def _observed(attack: PrivacyAttack, world: Any) -> tuple[ObservedUpdate, ...]:
    """Updates of clients that step with plain SGD on a few records, as the attack asks for."""
    import torch

    from harness.federation.vector import flatten, trainable

    wanted = attack.observation
    found = []
    for number in range(0 if wanted is None else wanted.count):
        assert wanted is not None
        has = number % 2 == 0
        pool = torch.arange(len(world.labels))
        if wanted.attribute is not None:
            pool = pool[wanted.attribute(world.images, world.labels) == has]
            if not len(pool):
                raise CheckSkipped("the toy images have no record on one side of the attribute")
        count = min(wanted.records or 4, len(pool))
        index = pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(number))[:count]]
        size, module = wanted.batch_size or count, world.net.train()
        for _ in range(wanted.epochs):
            for batch in index.split(size):
                loss = torch.nn.functional.cross_entropy(module(world.images[batch]), world.labels[batch])
                gradients = torch.autograd.grad(loss, list(trainable(module).values()))
                with torch.no_grad():
                    for parameter, gradient in zip(trainable(module).values(), gradients, strict=True):
                        parameter.sub_(0.1 * gradient)
        found.append(
            ObservedUpdate(
                update=flatten(module) - world.vector, weights=world.vector, module=world.net, layout=world.layout,
                records=count, batch_size=min(size, count), epochs=wanted.epochs,
                optimizer={"name": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "nesterov": False},
                num_classes=3, input_shape=world.shape,
                attribute=None if wanted.attribute is None else has,
            )
        )  # fmt: skip
    return tuple(found)


@check("privacy")
def result_well_formed(subject: Subject) -> None:
    """Memberships are finite scores of all records, reconstructions are images and labels, a dict holds
    declared scores."""
    attack, outcome = subject.plugin, subject.outcome()
    result = outcome.output["result"]
    if isinstance(result, Membership):
        _membership(subject, result)
    elif isinstance(result, Reconstruction):
        _reconstruction(subject, result, outcome.trial.inputs["the observed updates"])
    elif isinstance(result, Audit):
        require(
            attack.audits and math.isfinite(result.epsilon) and result.epsilon >= 0 and 0 <= result.delta < 1
            and 0 < result.confidence < 1,
            f"{subject.name} returns an audit with epsilon {result.epsilon}, delta {result.delta} and confidence "
            f"{result.confidence}, or does not declare audits = True",
        )  # fmt: skip
    elif isinstance(result, dict):
        unknown = sorted(set(result) - set(attack.scores))
        require(
            not unknown,
            f"{subject.name} returns the score {unknown[0] if unknown else ''!r} and does not declare it: add "
            "it to `scores` "
            "with its direction and unit",
        )
        bad = [name for name, value in result.items() if not math.isfinite(value)]
        require(not bad, f"the score {bad[0] if bad else ''!r} of {subject.name} is not finite: leave it out")
    else:
        raise CheckFailed(
            f"{subject.name} returns {type(result).__name__}, which nobody can score: return a Membership, a "
            "Reconstruction, an "
            "Audit or a dictionary of declared scores"
        )


def _membership(subject: Subject, result: Membership) -> None:
    scores, member = np.asarray(result.scores), np.asarray(result.is_member)
    require(
        scores.shape == member.shape == (2 * SIDE,),
        f"{subject.name} returns scores {scores.shape} for {SIDE} members and {SIDE} non-members",
    )
    require(
        bool(np.isfinite(scores).all()),
        f"{subject.name} returns scores that are not finite: count an undefined loss as the least",
    )  # fmt: skip
    require(
        member.dtype == bool and int(member.sum()) == SIDE,
        f"{subject.name} says of {int(member.sum())} records that they are members; there are {SIDE}",
    )


def _reconstruction(subject: Subject, result: Reconstruction, observed: Any) -> None:
    for images, seen in zip(result.images or (), observed, strict=True) if result.images is not None else ():
        require(
            tuple(images.shape) == (seen.records, *seen.input_shape) and bool(images.isfinite().all())
            and float(images.min()) >= 0 and float(images.max()) <= 1,
            f"{subject.name} reconstructs images {tuple(images.shape)} of {seen.records} records, or outside [0, 1]",
        )  # fmt: skip
    for labels, seen in zip(result.labels or (), observed, strict=True) if result.labels is not None else ():
        require(
            tuple(labels.shape) == (seen.records,)
            and not labels.is_floating_point()
            and int(labels.min()) >= 0
            and int(labels.max()) < seen.num_classes,
            f"{subject.name} reconstructs labels {tuple(labels.shape)} of {seen.records} records, or no classes",
        )


@check("privacy", when=lambda plugin: plugin.needs_non_members)
def blind_to_sides(subject: Subject) -> None:
    """A record's score does not depend on whether it lies among the members or among the non-members."""
    from sklearn.metrics import roc_auc_score

    after(subject, result_well_formed)
    result = subject.outcome().output["result"]
    if not isinstance(result, Membership):
        return
    turned = subject.again(other=True).output.get("result")
    if turned is None:
        raise CheckSkipped("it does not run with the sides exchanged")
    found = [float(roc_auc_score(one.is_member, one.scores)) for one in (result, turned)]
    require(
        sum(found) - 1 <= 0.35,
        f"{subject.name} scores the records among the members higher whichever they are (AUC {found[0]:.2f}, and "
        f"{found[1]:.2f} with the sides exchanged): a score may follow from the record and the models' answers alone, "
        "not from whether it lies in view.members",
    )


@check("privacy")
def scores_declared(subject: Subject) -> None:
    """Scores of its own have a direction, a unit and a description."""
    from harness.testing.metrics import described

    described(subject, subject.plugin.scores)


@check("privacy")
def trainings_stable(subject: Subject) -> None:
    """The further trainings it asks for are always the same, each with a name of its own."""
    cell = SimpleNamespace(defences=(), aggregators=(), compressors=())
    first, second = subject.plugin.trainings(cell), subject.plugin.trainings(cell)
    names = [variant.name for variant in first]
    require(
        first == second and len(set(names)) == len(names),
        f"{subject.name} asks for other trainings the second time, or twice for one name: they are stored under their "
        "parameters, and must follow from the attack's own",
    )
