"""The clean and attack stages: the scores of a released model."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.borders import named
from harness.contracts.aggregator import Aggregator
from harness.contracts.attack import EvasionAttack, PoisoningAttack
from harness.contracts.base import Plugin
from harness.contracts.defence import Defence, Guarantee
from harness.contracts.metric import Certificate, MetricContext
from harness.contracts.privacy import PrivacyAttack
from harness.errors import HarnessError, PluginError, blamed
from harness.evaluation.constant import constant
from harness.evaluation.diverged import unanswered
from harness.evaluation.evasion import evade, right
from harness.evaluation.expectation import Expectation
from harness.evaluation.masking import ITSELF, TRANSFER, TWIN
from harness.evaluation.metrics import compute_metrics
from harness.evaluation.predict import gather, own_pixels, predict
from harness.federation.data import Part
from harness.federation.local import seeded_modules
from harness.federation.returned import checked
from harness.plan import Stage
from harness.privacy.lineage import Parts, lineage, strongest
from harness.random import derive, numpy_generator, torch_generator
from harness.stage_specs import AttackSpec, CleanSpec
from harness.stages.compress import load_released
from harness.stages.train import Progress
from harness.training import Training

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.store import Store


class Scoring:
    """What clean and attack stages share: the released model, the test split, the training's facts."""

    def __init__(self, stage: Stage, spec: CleanSpec | AttackSpec, store: Store, device: str) -> None:
        model = spec.model
        keys = spec.released if isinstance(spec, AttackSpec) else stage.needs
        self.store = store
        self.spec = spec
        self.base = self.result(keys[0])
        compressed = self.result(keys[1]) if model.compressors else None
        self.training = Training(model.train, keys[-1], device)
        self.released = load_released(self.training, model, store, self.base, compressed)
        self.device = self.released.device
        source = compressed or self.base
        self.guarantee = self.settled(source)
        self.facts = dict(self.base["training"])
        self.fine_tuning: list[dict[str, Any]] = compressed["fine_tuning"] if compressed else []
        self.facts["train_seconds"] += sum(part["train_seconds"] for part in self.fine_tuning)

    def settled(self, source: dict[str, Any]) -> Guarantee | None:
        """The guarantee of a training's or compression's result, after all that this plan does with protected data."""
        return strongest([Guarantee.model_validate(each) for each in source["guarantees"]], self.parts)

    @property
    def parts(self) -> Parts:
        """What the guarantee's chain is made of."""
        model = self.spec.model
        return Parts.of(model.train, compressors=model.compressors, unprotected=model.unprotected)

    def test(self) -> Part:
        """The whole test split, or its declared subset."""
        own = self.spec.threat.subset if isinstance(self.spec, AttackSpec) else None
        subset = own if own is not None else self.spec.evaluation.subset
        part = self.training.data.test
        part = replace(part, labels=part.labels.clone())  # metrics and attacks get them, and may change them
        return part if subset is None else stratified(part, subset)

    def certificate(self) -> Certificate | None:
        """What the defences prove about a subset of the test records; None if they prove nothing.

        Raises PluginError where a radius exceeds the limit that the defences state.
        """
        certify = self.released.certify
        if certify is None:
            return None
        part = stratified(self.test(), self.spec.evaluation.certified)
        generator = torch_generator(self.spec.model.train.seed, "certificate", device=self.device)
        predicted, radii = [], []
        with torch.no_grad():
            for start in range(0, len(part), self.spec.evaluation.batch_size):
                x = gather(part.images, slice(start, start + self.spec.evaluation.batch_size), self.device)
                found = certify(x, generator)
                if found is None:
                    return None
                predicted.append(found[0].cpu().numpy())
                radii.append(found[1].double().cpu().numpy())
        limit, found_radii = self.released.radius_limit, np.concatenate(radii)
        if not found_radii.max() <= limit * (1 + 1e-6):
            raise PluginError(
                f"a defence certifies a radius of {found_radii.max():g}, and its radius_limit is {limit:g}"
            )
        return Certificate(part.labels.cpu().numpy(), np.concatenate(predicted), found_radii, limit)

    def context(self, **known: Any) -> MetricContext:
        data = self.training.data
        return MetricContext(num_classes=data.num_classes, input_shape=data.input_shape, **known)

    def result(self, key: str) -> dict[str, Any]:
        found = self.store.stage_result(key)
        if found is None:
            raise HarnessError("a result that this stage needs is gone from the store; run again")
        return found

    def predict(self, images: Tensor, module: nn.Module | None = None) -> np.ndarray:
        """Logits (n, k) of the released model, or of `module`; a model that answers at random draws from the seed.

        Raises PluginError where k is not the number of classes.
        """
        seed = derive(self.spec.model.train.seed, "inference")
        with seeded_modules(self.device, seed):
            chosen = self.released.module if module is None else module
            logits = predict(chosen, images, self.spec.evaluation.batch_size, self.device)
        classes = self.training.data.num_classes
        if logits.shape[1] != classes:
            raise PluginError(
                f"{named(self._makers())}: the model returns {logits.shape[1]} logits for {classes} classes"
            )
        return logits

    def _makers(self) -> list[Plugin]:
        """The plugins that decide what the released model returns, the nearest to its output first."""
        train, compressors = self.spec.model.train, self.spec.model.compressors
        deployed = [d for d in train.defences if type(d).inference is not Defence.inference]
        rules = [a for a in train.aggregators if type(a).inference is not Aggregator.inference]
        return [*reversed(deployed), *reversed(rules), *reversed(compressors), train.model]


def stratified(part: Part, size: int) -> Part:
    """`size` records, or all if there are fewer, drawn so that classes keep their shares; in their original order.

    A class with n_c of the n records gets floor(size n_c / n); the records still missing go to the classes with the
    largest remainders, ties decided by lot. The draw is seeded by the size alone: every cell has the same records.
    """
    if size >= len(part):
        return part
    labels = part.labels.cpu().numpy()
    rng = numpy_generator("test subset", size)
    classes, counts = np.unique(labels, return_counts=True)
    shares, remainders = np.divmod(size * counts, len(labels))
    lots = rng.permutation(len(classes))
    order = np.lexsort((lots, -remainders))
    shares[order[: size - shares.sum()]] += 1
    drawn = [
        rng.choice(np.flatnonzero(labels == label), share, replace=False)
        for label, share in zip(classes, shares, strict=True)
    ]
    images, chosen_labels = part.take(np.sort(np.concatenate(drawn)))
    return Part(images, chosen_labels, None)


def clean(stage: Stage, spec: CleanSpec, store: Store, device: str) -> dict[str, Any]:
    scoring = Scoring(stage, spec, store, device)
    test = scoring.test()
    before = None
    if spec.model.compressors:
        original = replace(spec.model, compressors=())
        module = load_released(scoring.training, original, store, scoring.base, None).module
        before = scoring.predict(test.images, module.to(scoring.device))
    labels, logits = test.labels.cpu().numpy(), scoring.predict(test.images)
    context = scoring.context(
        labels=labels,
        logits=logits,
        uncompressed_logits=before,
        certificate=scoring.certificate(),
        module=scoring.released.module,
        state=scoring.released.state,
        training=scoring.facts,
        guarantee=scoring.guarantee,
    )
    return {
        "scores": compute_metrics(spec.metrics, context, attack=False),
        "guarantee": None if scoring.guarantee is None else scoring.guarantee.model_dump(),
        "lineage": [asdict(step) for step in lineage(scoring.guarantee, scoring.parts)],
        "samples": len(test),
        "constant": constant(logits, labels),
        "unanswered": unanswered(logits),
    }


def attack(stage: Stage, spec: AttackSpec, store: Store, device: str, progress: Progress) -> dict[str, Any]:
    scoring = Scoring(stage, spec, store, device)
    plugin = spec.attack
    if isinstance(plugin, EvasionAttack):
        return _evasion(scoring, spec, plugin, progress)
    if isinstance(plugin, PoisoningAttack):
        return _backdoor(scoring, spec, plugin)
    if isinstance(plugin, PrivacyAttack):
        from harness.stages.privacy import privacy

        return privacy(scoring, spec, plugin, progress)
    raise PluginError(f"{plugin.name}: the {plugin.family} family has no scores of its own")


def _evasion(scoring: Scoring, spec: AttackSpec, attack: EvasionAttack, progress: Progress) -> dict[str, Any]:
    test = scoring.test()
    labels, clean = test.labels.cpu().numpy(), scoring.predict(test.images)
    budget = None if spec.threat.budget is None else spec.threat.budget.eps
    logits: np.ndarray | None = None
    by_way: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    released = scoring.released
    judge = Expectation(released.module, spec.evaluation.eot) if released.stochastic else released.module
    for number, way in enumerate(spec.ways):
        source, mode = _source(scoring, spec, attack, way)
        found, facts = evade(
            attack,
            released.module,
            test.images,
            test.labels,
            batch_size=spec.evaluation.batch_size,
            seed=derive(spec.model.train.seed, "attack"),
            budget=budget,
            num_classes=scoring.training.data.num_classes,
            device=scoring.device,
            source=source,
            judge=judge,
            # A twin only stands in for the model's gradients; a transfer is computed on its surrogate alone.
            asked=judge if way == "twin" else None,
            clean=clean,
            progress=lambda done, total, number=number: progress(  # type: ignore[misc]
                number * total + done, len(spec.ways) * total, f"{done}/{total} images"
            ),
        )
        kept = right(found, labels)
        by_way[mode] = {"robust_accuracy": float((right(clean, labels) & kept).mean()), **facts}
        # The worst of several ways counts, sample by sample.
        logits = found if logits is None else np.where(kept[:, None], logits, found)
    context = scoring.context(labels=labels, logits=clean, adversarial_logits=logits)
    description = {
        "access": attack.access,
        "effort": attack.effort,
        "mode": " and ".join(by_way),
        "norm": attack.norm,
        "eps": attack.radius(budget),
        "samples": len(test),
        **attack.details(scoring.training.data.num_classes),
        **(facts if len(by_way) == 1 else {"ways": by_way}),
    }
    if released.stochastic and attack.access == "gradients":
        description["eot"] = spec.evaluation.eot
    return {"scores": compute_metrics(spec.metrics, context, attack=True), "attack": description}


def _source(scoring: Scoring, spec: AttackSpec, attack: EvasionAttack, way: str) -> tuple[nn.Module, str]:
    """The model that adversarial examples are computed on, and the name of this way in the record."""
    released = scoring.released
    if way == "transfer":
        assert spec.surrogate is not None
        training = Training(spec.surrogate.train, spec.surrogate_needs[-1], scoring.training.device)
        base = scoring.result(spec.surrogate_needs[0])
        compressed = scoring.result(spec.surrogate_needs[1]) if spec.surrogate.compressors else None
        released = load_released(training, spec.surrogate, scoring.store, base, compressed)
        if attack.access == "gradients" and not released.differentiable and released.twin is None:
            raise PluginError(f"{attack.name} needs gradients and its surrogate has none")
        module = released.module if released.differentiable else released.twin or released.module
        itself = ITSELF if spec.surrogate_needs == spec.released else ""  # both were made by the same stages
        module, mode = module.to(scoring.device), f"{TRANSFER} {spec.surrogate_name}{itself}"
    elif way == "twin":
        if released.twin is None:
            raise PluginError("the compressor declares a straight-through twin and returned none")
        module, mode = released.twin, TWIN
    else:
        module, mode = released.module, spec.threat.knowledge or "white-box"
    if released.stochastic and attack.access == "gradients":
        module = Expectation(module, spec.evaluation.eot)
    return module, mode


def _backdoor(scoring: Scoring, spec: AttackSpec, attack: PoisoningAttack) -> dict[str, Any]:
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
        "capability": spec.threat.capability_with(attack),
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
        images, labels = own_pixels(own.images, training.device), own.labels
    else:
        triggered = []
        for start in range(0, len(test), batch_size):
            x = gather(test.images, slice(start, start + batch_size), test.images.device)
            wanted = tuple(x.shape)  # taken first: a trigger may change x in place
            with blamed(attack):
                triggered.append(checked(attack.trigger(x), wanted, f"{attack.name}.trigger"))
        images, labels = torch.cat(triggered), test.labels
    if images.shape[1:] != training.data.input_shape or len(images) != len(labels) or not len(images):
        raise PluginError(
            f"{attack.name}: success is scored on images (t, {', '.join(map(str, training.data.input_shape))}) "
            f"with a label each, not {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    if not (images.isfinite().all() and images.min() >= 0 and images.max() <= 1):
        raise PluginError(f"{attack.name}: a triggered image leaves [0, 1]")
    return images, labels.cpu().numpy()
