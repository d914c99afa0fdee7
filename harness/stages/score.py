"""The clean and attack stages: the scores of a released model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.contracts.attack import (
    EvasionAttack,
    Membership,
    PoisoningAttack,
    PrivacyAttack,
    PrivacyContext,
    PrivacyView,
)
from harness.contracts.data import hold_out
from harness.contracts.defence import Guarantee
from harness.contracts.metric import CONTEXT_FIELDS, Metric, MetricContext
from harness.errors import HarnessError, PluginError
from harness.evaluation.evasion import evade
from harness.evaluation.membership import draw_members
from harness.evaluation.predict import predict, to_pixels
from harness.federation.data import Part
from harness.plan import AttackSpec, CleanSpec, Stage
from harness.privacy.lineage import apply_lineage
from harness.random import derive, numpy_generator, torch_generator
from harness.stages.compress import load_released
from harness.stages.train import Progress, load_trained
from harness.training import Training

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.store import Store


class _Scoring:
    """What clean and attack stages share: the released model, the test split, the training's facts."""

    def __init__(self, stage: Stage, spec: CleanSpec | AttackSpec, store: Store, device: str) -> None:
        results = [store.stage_result(key) for key in stage.needs]
        if any(r is None for r in results):
            raise HarnessError("a result that this stage needs is gone from the store; run again")
        model = spec.model
        compressed = results[-1] if model.compressors else None
        self.base: dict[str, Any] = results[-2 if model.compressors else -1]  # type: ignore[assignment]
        self.variants = results[: -2 if model.compressors else -1]
        self.training = Training(model.train, stage.needs[-1], device)
        self.store = store
        self.spec = spec
        with torch.no_grad():
            self.released = load_released(self.training, model, store, self.base, compressed)
        self.device = self.released.device or device
        source = compressed or self.base
        guarantee = None if source["guarantee"] is None else Guarantee.model_validate(source["guarantee"])
        self.guarantee = apply_lineage(
            guarantee,
            compressors=(*model.train.compressors, *model.compressors),
            aggregators=model.train.aggregators,
            unprotected=model.unprotected,
        )
        self.facts = dict(self.base["training"])
        if compressed:
            self.facts["train_seconds"] += sum(f["train_seconds"] for f in compressed["fine_tuning"])

    def test(self) -> Part:
        """The whole test split, or its declared, seeded, class-stratified subset."""
        part, subset = self.training.data.test, self.subset()
        if subset is None or subset >= len(part):
            return part
        labels = part.labels.cpu().numpy()
        _, chosen = hold_out(labels, None, subset / len(labels), numpy_generator("test subset", subset))
        images, chosen_labels = part.take(chosen)
        return Part(images, chosen_labels, None)

    def subset(self) -> int | None:
        own = self.spec.threat.subset if isinstance(self.spec, AttackSpec) else None
        return own if own is not None else self.spec.evaluation.subset

    def context(self, **known: Any) -> MetricContext:
        data = self.training.data
        return MetricContext(num_classes=data.num_classes, input_shape=data.input_shape, **known)

    def predict(self, images: Tensor) -> np.ndarray:
        return predict(self.released.module, images, self.spec.evaluation.batch_size, self.device)


ATTACK_FIELDS = ("adversarial_logits", "triggered_logits", "membership")


def compute_metrics(metrics: tuple[Metric, ...], context: MetricContext, *, attack: bool) -> dict[str, float]:
    """The scores of every metric that has what it needs; those that need an attack only where asked for them."""
    scores: dict[str, float] = {}
    for metric in metrics:
        unknown = set(metric.needs) - set(CONTEXT_FIELDS)
        if unknown:
            raise PluginError(
                f"metric {metric.name} needs {', '.join(sorted(unknown))}, which nobody provides"
            )
        about_attack = any(name in ATTACK_FIELDS for name in metric.needs)
        if about_attack is attack and context.has(metric.needs):
            for name, value in metric.score(context).items():
                if name not in metric.scores:
                    raise PluginError(f"metric {metric.name} returned {name!r}, which it does not declare")
                scores[name] = float(value)
    return scores


def clean(stage: Stage, spec: CleanSpec, store: Store, device: str) -> dict[str, Any]:
    scoring = _Scoring(stage, spec, store, device)
    test = scoring.test()
    context = scoring.context(
        labels=test.labels.cpu().numpy(),
        logits=scoring.predict(test.images),
        module=scoring.released.module,
        state=scoring.released.state,
        training=scoring.facts,
        guarantee=scoring.guarantee,
    )
    return {
        "scores": compute_metrics(spec.metrics, context, attack=False),
        "guarantee": None if scoring.guarantee is None else scoring.guarantee.model_dump(),
        "samples": len(test),
    }


def attack(stage: Stage, spec: AttackSpec, store: Store, device: str, progress: Progress) -> dict[str, Any]:
    scoring = _Scoring(stage, spec, store, device)
    plugin = spec.attack
    if isinstance(plugin, EvasionAttack):
        return _evasion(scoring, spec, plugin, progress)
    if isinstance(plugin, PoisoningAttack):
        return _backdoor(scoring, spec, plugin)
    if isinstance(plugin, PrivacyAttack):
        return _privacy(scoring, spec, plugin)
    raise PluginError(f"{plugin.name}: the {plugin.family} family has no scores of its own")


def _evasion(
    scoring: _Scoring, spec: AttackSpec, attack: EvasionAttack, progress: Progress
) -> dict[str, Any]:
    test = scoring.test()
    transfer = attack.access == "gradients" and not scoring.released.differentiable
    if transfer and spec.threat.surrogate is None:
        raise PluginError(f"{attack.name} needs gradients and the compressed model has none")
    surrogate = None
    if transfer:
        surrogate = load_trained(scoring.training, scoring.store, scoring.base).to(scoring.device)
    budget = None if spec.threat.budget is None else spec.threat.budget.eps
    data = scoring.training.data
    logits, facts = evade(
        attack,
        scoring.released.module,
        test.images,
        test.labels,
        batch_size=spec.evaluation.batch_size,
        seed=derive(spec.model.train.seed, "attack"),
        budget=budget,
        num_classes=data.num_classes,
        device=scoring.device,
        surrogate=surrogate,
        progress=lambda done, total: progress(done, total, f"{done}/{total} images"),
    )
    context = scoring.context(
        labels=test.labels.cpu().numpy(), logits=scoring.predict(test.images), adversarial_logits=logits
    )
    description = {
        "access": attack.access,
        "effort": attack.effort,
        "mode": f"transfer from {spec.threat.surrogate}" if transfer else spec.threat.knowledge,
        "norm": attack.norm,
        "eps": attack.radius(budget),
        "samples": len(test),
        **facts,
    }
    return {"scores": compute_metrics(spec.metrics, context, attack=True), "attack": description}


def _backdoor(scoring: _Scoring, spec: AttackSpec, attack: PoisoningAttack) -> dict[str, Any]:
    test = scoring.test()
    images, labels = triggered_records(attack, test, scoring.training, spec.evaluation.batch_size)
    context = scoring.context(
        labels=test.labels.cpu().numpy(),
        logits=scoring.predict(test.images),
        triggered_logits=scoring.predict(images),
        triggered_labels=labels,
        backdoor_target=attack.backdoor_target,
    )
    description = {
        "target": attack.backdoor_target,
        "samples": len(labels),
        "malicious": scoring.base["malicious"],
    }
    return {"scores": compute_metrics(spec.metrics, context, attack=True), "attack": description}


def triggered_records(
    attack: PoisoningAttack, test: Part, training: Training, batch_size: int
) -> tuple[Tensor, np.ndarray]:
    """What a backdoor's success is scored on: images (t, c, h, w) in [0, 1] and their true labels (t,).

    The attack's own test records where it has some, else the test split with the trigger. Raises PluginError.
    """
    own = attack.success_records(training.data.input_shape, training.spec.root)
    if own is not None:
        images, labels = to_pixels(own.images).to(training.device), own.labels
    else:
        triggered = [
            attack.trigger(to_pixels(test.images[start : start + batch_size]))
            for start in range(0, len(test), batch_size)
        ]
        images, labels = torch.cat(triggered), test.labels
    if images.shape[1:] != training.data.input_shape or len(images) != len(labels) or not len(images):
        raise PluginError(
            f"{attack.name}: success is scored on images (t, {', '.join(map(str, training.data.input_shape))}) "
            f"with a label each, not {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    if not (images.isfinite().all() and images.min() >= 0 and images.max() <= 1):
        raise PluginError(f"{attack.name}: a triggered image leaves [0, 1]")
    return images, labels.cpu().numpy()


def _privacy(scoring: _Scoring, spec: AttackSpec, attack: PrivacyAttack) -> dict[str, Any]:
    training = scoring.training
    pool, train, seed = training.pool, training.data.train, spec.model.train.seed
    rng = numpy_generator(seed, "membership")
    members, non_members = draw_members(pool.members, pool.non_members, train.groups, spec.threat.subset, rng)

    def logits_of(module: nn.Module, device: str) -> Callable[[Tensor], Tensor]:
        def logits(images: Tensor) -> Tensor:
            return torch.from_numpy(predict(module, images, spec.evaluation.batch_size, device))

        return logits

    def pixels_of(positions: np.ndarray) -> tuple[Tensor, Tensor]:
        images, labels = train.take(positions)
        return to_pixels(images).to(scoring.device), labels.to(scoring.device)

    variants = {}
    for variant, result in zip(spec.variants, scoring.variants, strict=True):
        other = Training(replace(spec.model.train, variant=variant), "", training.device)
        module = load_trained(other, scoring.store, result)  # type: ignore[arg-type]
        mask = np.isin(np.concatenate([members, non_members]), other.pool.members)
        variants[variant.name] = (logits_of(module, training.device), mask)
    view = PrivacyView(
        logits=logits_of(scoring.released.module, scoring.device),
        members=pixels_of(members),
        non_members=pixels_of(non_members),
        module=scoring.released.module if spec.threat.knowledge == "white-box" else None,
        variants=variants,
    )
    generator = torch_generator(seed, "privacy attack", attack.name, device=scoring.device)
    found = attack.run(view, PrivacyContext(training.data.num_classes, generator))
    description = {"access": spec.threat.knowledge, "members": len(members), "non_members": len(non_members)}
    if isinstance(found, Membership):
        context = scoring.context(membership=found)
        return {"scores": compute_metrics(spec.metrics, context, attack=True), "attack": description}
    return {"scores": {name: float(value) for name, value in found.items()}, "attack": description}
