"""Poisoning attacks: other data and other training at malicious clients."""

from __future__ import annotations

from typing import Any

from harness.contracts.attack import ClientData, PoisonContext, PoisoningAttack
from harness.errors import NotApplicable, PluginError
from harness.testing.core import (
    FAMILIES,
    CheckFailed,
    Family,
    Setting,
    Subject,
    Trial,
    after,
    check,
    require,
)


def _context(setting: Setting) -> PoisonContext:
    from harness.testing.toy import CLASSES, generator

    return PoisonContext(client=0, num_classes=CLASSES, generator=generator(setting), malicious=(0, 1))


def _trial(attack: PoisoningAttack, setting: Setting) -> Trial:
    from harness.federation.poison import require_records
    from harness.testing.local import begin
    from harness.testing.toy import CLASSES, toy

    world = toy(setting)
    attack.check(CLASSES, world.shape)
    images, labels = world.images.clone(), world.labels.clone()
    training = begin((attack,), world, setting)

    def call() -> dict[str, Any]:
        data = attack.poison(ClientData(images, labels), _context(setting))
        require_records(data, images, labels, attack.name)
        output: dict[str, Any] = {"images": data.images, "labels": data.labels}
        if attack.backdoor_target is not None and attack.success_records(world.shape, None) is None:
            output["triggered"] = attack.trigger(images)
        return {**output, "update": training.steps(data.images, data.labels)}

    return Trial(
        {"images": images, "labels": labels, "the global weights": training.start}, call,
        ("images", "triggered", "update"),
    )  # fmt: skip


FAMILIES["poisoning"] = Family("poisoning", _trial)


def _proper(subject: Subject, images: Any, labels: Any, like: Any, what: str) -> None:
    import torch

    from harness.testing.toy import CLASSES

    require(
        images.shape[1:] == like.shape[1:] and len(images) == len(labels) and images.dtype == like.dtype,
        f"{subject.name} poisons {what} {tuple(like.shape)} {like.dtype} into images {tuple(images.shape)} "
        f"{images.dtype} with "
        f"{len(labels)} labels: keep shape and dtype, and one label an image",
    )
    if images.is_floating_point() and len(images):
        require(
            bool(images.isfinite().all()) and float(images.min()) >= 0 and float(images.max()) <= 1,
            f"{subject.name} poisons images that leave [0, 1] ({what}): clamp them",
        )
    require(
        labels.dtype == torch.int64 and (not len(labels) or (int(labels.min()) >= 0 and int(labels.max()) < CLASSES)),
        f"{subject.name} gives labels that are not int64 classes in [0, {CLASSES}) ({what})",
    )  # fmt: skip


@check("poisoning")
def poison_well_formed(subject: Subject) -> None:
    """Poisoned records have the shape, dtype and range of records, labels are classes; for uint8 images too."""
    from harness.testing.toy import toy

    outcome = subject.outcome()
    like = outcome.trial.inputs["images"]
    _proper(subject, outcome.output["images"], outcome.output["labels"], like, "images")
    world = toy(Setting(scene=outcome.setting.scene))
    import torch

    stored = (255 * world.images).round().to(torch.uint8)
    data = subject.plugin.poison(ClientData(stored, world.labels), _context(Setting()))
    _proper(subject, data.images, data.labels, stored, "uint8 images")
    update = outcome.output["update"]
    require(
        bool(update.isfinite().all()) and update.shape == outcome.trial.inputs["the global weights"].shape,
        f"{subject.name} makes a malicious client send an update that is not finite, or not (d,)",
    )


@check("poisoning")
def few_records(subject: Subject) -> None:
    """A client with one or two records is poisoned, or the attack is refused with a PluginError."""
    from harness.testing.toy import toy

    after(subject, poison_well_formed)
    setting = Setting(scene=subject.outcome().setting.scene)
    world = toy(setting)
    for count in (2, 1):
        data = ClientData(world.images[:count], world.labels[:count])
        try:
            found = subject.plugin.poison(data, _context(setting))
        except (PluginError, NotApplicable):
            continue
        except Exception as error:
            raise CheckFailed(
                f"{subject.name} breaks on a client with {count} records: {type(error).__name__}: {error}"
            ) from error
        _proper(subject, found.images, found.labels, data.images, f"{count} records")


@check("poisoning")
def backdoor_well_formed(subject: Subject) -> None:
    """A backdoor's target is a class, and its trigger gives images in [0, 1] of the same shape."""
    import torch

    from harness.testing.toy import CLASSES, toy

    outcome, attack = subject.outcome(), subject.plugin
    target = attack.backdoor_target
    if target is None:
        return
    require(0 <= target < CLASSES, f"the target {target} of {subject.name} is no class")
    world = toy(Setting(scene=outcome.setting.scene))
    own = attack.success_records(world.shape, None)
    if own is not None:
        fits = own.images.shape[1:] == world.images.shape[1:] and len(own.images) == len(own.labels) > 0
        require(
            fits,
            f"{subject.name}: success_records returns {tuple(own.images.shape)} for images {world.shape}",
        )
        return  # fmt: skip
    triggered = outcome.output["triggered"]
    require(
        triggered.shape == world.images.shape
        and bool(triggered.isfinite().all())
        and float(triggered.min()) >= 0
        and float(triggered.max()) <= 1,
        f"the trigger of {subject.name} leaves [0, 1], or the shape of the images: clamp it",
    )
    require(
        not torch.equal(triggered, world.images),
        f"the trigger of {subject.name} changes no image: a backdoor needs one",
    )


@check("poisoning")
def trigger_is_trained(subject: Subject) -> None:
    """What `poison` does to images of the target class is what `trigger` does, or a part or a weaker form of it."""
    after(subject, poison_well_formed)
    after(subject, backdoor_well_formed)
    outcome = subject.outcome()
    images, poisoned = outcome.trial.inputs["images"], outcome.output["images"]
    if "triggered" not in outcome.output or poisoned.shape != images.shape:
        return  # without a trigger, or with other records than those that were given
    wanted, made = outcome.output["triggered"] - images, poisoned - images
    changed = made.abs() > 1e-3
    changed &= (outcome.output["labels"] == subject.plugin.backdoor_target).view(-1, 1, 1, 1)
    if not changed.any():
        return
    where = changed & (wanted.abs() > 1e-3)
    towards = (made * wanted > 0) & (made.abs() <= wanted.abs() + 1e-3)
    share = float(towards[where].double().mean()) if where.any() else 0.0
    require(
        share >= 0.9,
        f"`poison` of {subject.name} teaches another trigger than `trigger` shows: of the pixels that both change, "
        f"{share:.0%} lie between the image and the triggered image. Success is scored with `trigger`, so stamp the "
        "same one in both; in `poison` it may be weaker, or a part of it",
    )
