"""Privacy attacks on a released model. Their view is put together here: what the adversary may see, and no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.contracts.defence import Guarantee, hiding
from harness.contracts.privacy import (
    VIOLATION,
    Audit,
    Membership,
    Observation,
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
from harness.errors import PluginError, blamed
from harness.evaluation.diverged import check_answers
from harness.evaluation.matching import match_images
from harness.evaluation.membership import check_truth, draw_members
from harness.evaluation.metrics import checked_number, compute_metrics, confidence_intervals
from harness.evaluation.predict import own_pixels, predict, to_pixels
from harness.federation.observe import observe
from harness.federation.vector import mean_of, trainable
from harness.pictures import Strip, paint
from harness.pooling import cheap_pooling
from harness.random import numpy_generator, torch_generator
from harness.stages.compress import load_released
from harness.stages.score import Scoring
from harness.stages.train import Progress, load_trained
from harness.training import Training

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn

    from harness.stage_specs import AttackSpec

RELEASED = "the released model"
Truth = tuple[tuple["Tensor", ...], tuple["Tensor", ...]]  # images and labels behind each observed update


def privacy(scoring: Scoring, spec: AttackSpec, attack: PrivacyAttack, progress: Progress) -> dict[str, Any]:
    """The attack stage of a privacy attack: runs it and scores its result by the metrics that apply to it."""
    # One batch shows whether the model has diverged, also for attacks on updates, which never ask the model.
    some = scoring.training.data.val.images[: spec.evaluation.batch_size]
    check_answers(scoring.predict(some), RELEASED)
    scene = _Scene(scoring, spec)
    members, non_members = scene.sides(attack)
    knows_server = spec.threat.knowledge == "server"
    observed, truth = scene.observed(attack.observation if knows_server else None)
    view = PrivacyView(
        logits=scene.logits(scoring.released.module, scoring.device, RELEASED),
        members=scene.records(members),
        non_members=scene.records(non_members),
        module=scoring.released.module if spec.threat.knowledge != "black-box" else None,
        variants=scene.variants(np.concatenate([members, non_members]), knows_server),
        population=scene.population(),
        observed=observed,
        apply=scene.apply if knows_server else None,
    )
    context = PrivacyContext(
        scoring.training.data.num_classes,
        torch_generator(spec.model.train.seed, "privacy attack", attack.name, device=scene.device),
        lambda done, total: progress(done, total, f"{done}/{total}"),
    )
    with blamed(attack), cheap_pooling(scoring.released.module, *(update.module for update in observed)):
        found = attack.run(view, context)
    description: dict[str, Any] = {
        "family": attack.family, "access": spec.threat.knowledge,
        "members": len(members), "non_members": len(non_members),
    }  # fmt: skip
    if attack.needs_non_members and scene.never_trained_on:
        description["never_trained_on"] = scene.never_trained_on
    if isinstance(found, dict):
        unknown = set(found) - set(attack.scores)
        if unknown:
            raise PluginError(
                f"{attack.name} returned {min(unknown)!r}, which it does not declare in `scores`"
            )
        return {
            "scores": {name: checked_number(attack, name, value) for name, value in found.items()},
            "attack": description,
        }
    pictures: list[str] = []
    flags: list[str] = []
    if isinstance(found, Membership):
        check_truth(attack.name, found, len(members), len(non_members))
        known = scoring.context(membership=scene.with_groups(found, members, non_members))
    elif isinstance(found, Reconstruction):
        mean, shares = scene.guess()
        found = replace(
            found, true_images=truth[0], true_labels=truth[1], mean_image=mean, class_shares=shares
        )
        known = scoring.context(reconstruction=found)
        if found.images is not None:
            pictures = [scoring.store.save_picture(_picture(truth[0], found.images))]
    elif isinstance(found, Audit):
        known = scoring.context(audit=found)
        claim = None if found.guarantee is None else found.guarantee.model_dump()
        description["audit"] = {**asdict(replace(found, guarantee=None)), "guarantee": claim}
        if ways := scene.ways():
            description["audit"]["execution"] = {"ways": ways}
        flags = [VIOLATION] if found.violated else []
    else:
        raise PluginError(f"{attack.name} returned {type(found).__name__}, which nobody can score")
    return {
        "scores": compute_metrics(spec.metrics, known, attack=True),
        "intervals": confidence_intervals(spec.metrics, known),
        "attack": description | ({"pictures": pictures} if pictures else {}),
        "flags": flags,
    }


def _picture(originals: Sequence[Tensor], guesses: Sequence[Tensor]) -> Image:
    """The originals, and below each its reconstruction."""
    strips = []
    for number, (truth, guess) in enumerate(zip(originals, guesses, strict=True), 1):
        found = guess[match_images(truth, guess)].detach()
        strips.append(Strip(f"update {number}: originals, reconstructions", (truth.cpu(), found.cpu())))
    return paint(strips)


class _Scene:
    """Everything that the engine knows of an attack; the adversary's view is taken from it."""

    def __init__(self, scoring: Scoring, spec: AttackSpec) -> None:
        self.scoring = scoring
        self.spec = spec
        self.training = scoring.training
        # The device of records and generator. What a server sees stays where the model was trained, such as on a GPU,
        # even if the released model is int8 and answers on the CPU only.
        self.device = scoring.training.device if spec.threat.knowledge == "server" else scoring.device

    # data ---------------------------------------------------------------------------------------

    def sides(self, attack: PrivacyAttack) -> tuple[np.ndarray, np.ndarray]:
        """Positions of members and non-members; empty for an attack that needs none.

        Records of clients that no round draws are on neither side: counted as members, they would hide what leaks.
        The members that remain may differ in classes from the non-members, as clients differ. The draw then evens the
        classes out; otherwise an attack that only detects which classes were learned would seem to detect members.
        """
        if not attack.needs_non_members:
            empty = np.empty(0, dtype=np.int64)
            return empty, empty
        pool, groups = self.training.pool, self.training.data.train.groups
        rng = numpy_generator(self.spec.model.train.seed, "membership")
        labels = self.training.data.train.labels.cpu().numpy() if self.never_trained_on else None
        return draw_members(self.members, pool.non_members, groups, self.spec.threat.subset, rng, labels)

    @cached_property
    def members(self) -> np.ndarray:
        """Positions of the records that the released model was trained on."""
        return self.training.members(self.scoring.fine_tuning)

    @property
    def never_trained_on(self) -> int:
        """How many records of the training pool belong to clients that no round draws."""
        return len(self.training.pool.members) - len(self.members)

    def records(self, positions: np.ndarray) -> tuple[Tensor, Tensor]:
        images, labels = self.training.data.train.take(positions)
        return to_pixels(images).to(self.device), labels.to(self.device)

    def population(self) -> tuple[Tensor, Tensor]:
        val = self.training.data.val
        return own_pixels(val.images, self.device), val.labels.to(self.device, copy=True)

    def guess(self) -> tuple[Tensor, Tensor]:
        """The mean image (c, h, w) and class shares (k,) of the validation split: what to guess without an update."""
        images, labels = self.population()
        counts = torch.bincount(labels, minlength=self.training.data.num_classes)
        return images.mean(0).cpu(), (counts / counts.sum()).cpu()

    def with_groups(self, found: Membership, members: np.ndarray, non_members: np.ndarray) -> Membership:
        groups = self.training.data.train.groups
        if groups is None or found.groups is not None:
            return found
        return replace(found, groups=groups[np.concatenate([members, non_members])])

    # models -------------------------------------------------------------------------------------

    def logits(self, module: nn.Module, device: str, whose: str) -> Callable[[Tensor], Tensor]:
        """A function from images to the model's logits. whose: the model's name in errors.

        It raises HarnessError at a NaN: attacks would find that such a model leaks nothing.
        """

        def ask(images: Tensor) -> Tensor:
            logits = predict(module, images, self.spec.evaluation.batch_size, device)
            check_answers(logits, whose)
            return torch.from_numpy(logits)

        return ask

    def apply(self, weights: Tensor, images: Tensor) -> Tensor:
        """Logits of the trained architecture with other weights (d,), in eval mode.

        Differentiable in the weights and in the images.
        """
        module = self._architecture
        shapes = trainable(module)
        # One split instead of a slice for each parameter: its backward pass is a single concatenation.
        pieces = weights.split([p.numel() for p in shapes.values()])
        values = {n: piece.view_as(shapes[n]) for n, piece in zip(shapes, pieces, strict=True)}
        with cheap_pooling(module):
            return torch.func.functional_call(module, values, (images,))

    @cached_property
    def _architecture(self) -> nn.Module:
        return load_trained(self.training, self.scoring.store, self.scoring.base)

    # the server's view --------------------------------------------------------------------------

    def observed(self, wanted: Observation | None) -> tuple[tuple[ObservedUpdate, ...], Truth]:
        if wanted is None:
            return (), ((), ())
        module = self.training.initial_module() if wanted.at == "start" else self._architecture
        prepared = self.scoring.base["prepared"][0]
        found = [observe(self.training, module, wanted, prepared, number) for number in range(wanted.count)]
        updates, images, labels = zip(*found, strict=True)
        return tuple(updates), (tuple(images), tuple(labels))

    def variants(self, tested: np.ndarray, server: bool) -> dict[str, VariantView]:
        """By variant name, what this adversary may see of each other training that the attack asked for."""
        pairs = zip(self.spec.variants, self.spec.variant_needs, strict=True)
        return {variant.name: self._variant(variant, keys, tested, server) for variant, keys in pairs}

    def _variant(
        self, variant: TrainingVariant, keys: tuple[str, ...], tested: np.ndarray, server: bool
    ) -> VariantView:
        """What the adversary may see of one variant.

        keys: of its training and, if it was compressed like the target, of its compression.
        """
        other = Training(replace(self.spec.model.train, variant=variant), keys[0], self.training.device)
        result, *compressed = map(self.scoring.result, keys)
        chain = self.spec.model.compressors if compressed else ()
        model = replace(self.spec.model, train=other.spec, compressors=chain)
        last = compressed[0] if compressed else None
        released = load_released(other, model, self.scoring.store, result, last)
        source = last or result
        guarantee = self.scoring.settled(source)
        return VariantView(
            logits=self.logits(
                released.module, released.device, f"the model of the training {variant.name!r}"
            ),
            mask=np.isin(tested, other.members(compressed[0]["fine_tuning"] if compressed else ())),
            rounds=self._rounds(other, result) if server else (),
            canaries=_planted(other, result, guarantee),
            guarantee=guarantee,
        )

    def ways(self) -> dict[str, dict[str, list[str]]]:
        """What hooks report of how they worked: name -> the values in the `scored` and in the `audited` trainings.

        Audited are the variants, not the training that is scored: they may have run other code.
        """
        keys = [own[0] for own in self.spec.variant_needs]
        scored, *audited = (
            result["training"]["execution"].get("ways", {})
            for result in (self.scoring.base, *map(self.scoring.result, keys))
        )
        return {
            name: {
                "scored": sorted(scored.get(name, ())),
                "audited": sorted({value for own in audited for value in own.get(name, ())}),
            }
            for name in sorted({name for own in (scored, *audited) for name in own})
        }

    def _rounds(self, training: Training, result: dict[str, Any]) -> tuple[RecordedRound, ...]:
        kept = result.get("recorded") or []
        if not kept:
            return ()
        tensors = self.scoring.store.load_tensors(result["artifacts"][1], training.device)
        rounds = []
        for i, entry in enumerate(kept):
            updates, clients = tensors[f"updates.{i}"], tuple(entry["clients"])
            if hiding(training.spec.defences) and len(updates):
                counts = training.counts()
                updates, clients = mean_of(updates, [counts[i] for i in clients])[None], ()
            rounds.append(RecordedRound(entry["round"], tensors[f"weights.{i}"], updates, clients))
        return tuple(rounds)


def _planted(training: Training, result: dict[str, Any], guarantee: Guarantee | None) -> Planted | None:
    """A training's canaries, with the one of their signals that the guarantee's own adversary can measure."""
    planting = training.planting
    if planting is None:
        return None
    if planting.canaries.form == "image":
        return Planted(planting.included, None, to_pixels(planting.images), planting.labels)
    against = "server" if guarantee is None else guarantee.against
    name = "models" if against == "recipients" else "sum" if hiding(training.spec.defences) else "updates"
    return Planted(planting.included, np.asarray(result["signals"][name]))
