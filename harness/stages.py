"""Executes stages: train, compress, clean, attack. All a worker needs is in the stage and the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

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
from harness.contracts.compressor import CompressedModel, CompressionContext
from harness.contracts.data import hold_out
from harness.contracts.defence import Guarantee
from harness.contracts.metric import CONTEXT_FIELDS, Metric, MetricContext
from harness.devices import PeakMemory
from harness.errors import HarnessError, PluginError
from harness.evaluation.evasion import evade
from harness.evaluation.membership import draw_members
from harness.evaluation.predict import predict, to_pixels
from harness.federation.data import Part
from harness.plan import AttackSpec, CleanSpec, CompressSpec, Stage, TrainSpec
from harness.privacy.lineage import apply_lineage
from harness.random import derive, numpy_generator, torch_generator
from harness.training import Trained, Training

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.store import Store


class Progress(Protocol):
    """Called with what is done of a stage, in words too, and the history entry of a federated round that ended."""

    def __call__(self, done: int, total: int, text: str, round: dict[str, Any] | None = None) -> None: ...


def execute(stage: Stage, store: Store, device: str, progress: Progress) -> dict[str, Any]:
    """Compute one stage, write its artifacts and its row, and return the result. Raises what the work raises."""
    spec = stage.spec
    compute = (
        spec
        if isinstance(spec, TrainSpec)
        else spec.train
        if isinstance(spec, CompressSpec)
        else spec.model.train
    ).compute
    memory = PeakMemory(device)
    started = time.perf_counter()
    with _numerics(compute.threads, compute.tf32):
        if isinstance(spec, TrainSpec):
            result = _train(stage, spec, store, device, progress)
        elif isinstance(spec, CompressSpec):
            result = _compress(stage, spec, store, device, progress)
        elif isinstance(spec, CleanSpec):
            result = _clean(stage, spec, store, device)
        else:
            result = _attack(stage, spec, store, device, progress)
    result["peak_memory_bytes"] = memory.bytes()
    seconds = time.perf_counter() - started
    result["seconds"] = seconds
    store.put_stage(stage.key, stage.kind, stage.signature, stage.label, "done", result, seconds)
    return result


@contextmanager
def _numerics(threads: int, tf32: bool) -> Iterator[None]:
    before = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    deterministic = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[1:]
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic


# train --------------------------------------------------------------------------------------------


def _train(stage: Stage, spec: TrainSpec, store: Store, device: str, progress: Progress) -> dict[str, Any]:
    training = Training(spec, stage.key, device)
    memory = PeakMemory(device)
    trained = training.run(training.initial_module(), _rounds(progress))
    digest, _ = store.save_tensors(trained.module.state_dict())
    guarantee = training.guarantee(trained.prepared)
    return {
        "artifacts": [digest],
        "prepared": trained.prepared,
        "guarantee": None if guarantee is None else guarantee.model_dump(),
        "history": trained.outcome.history,
        "malicious": training.malicious,
        "client_sizes": [len(c) for c in training.pool.clients],
        "records": len(training.pool.members),
        "non_members": len(training.pool.non_members),
        "dropped_updates": trained.outcome.dropped,
        "training": _training_facts(trained) | {"peak_memory_bytes": memory.bytes()},
    }


def _training_facts(trained: Trained) -> dict[str, Any]:
    outcome = trained.outcome
    return {
        "train_seconds": outcome.seconds,
        "uplink_bytes_per_round": outcome.uplink_bytes / max(outcome.messages, 1),
        "downlink_bytes_per_round": outcome.downlink_bytes / max(outcome.messages, 1),
        "rounds": len(outcome.history),
    }


def _rounds(progress: Progress) -> Callable[[int, int, dict[str, Any]], None]:
    def report(done: int, total: int, entry: dict[str, Any]) -> None:
        accuracy = entry.get("val_accuracy")
        text = f"round {done}/{total}" + ("" if accuracy is None else f", val {accuracy:.3f}")
        progress(done, total, text, entry)

    return report


# compress -----------------------------------------------------------------------------------------


def _compress(
    stage: Stage, spec: CompressSpec, store: Store, device: str, progress: Progress
) -> dict[str, Any]:
    base = store.stage_result(stage.needs[-1])
    assert base is not None
    training = Training(spec.train, stage.key, device)
    module = load_trained(training, store, base)
    prepared = base["prepared"]
    links: list[dict[str, Any]] = []
    fine_tuned: list[dict[str, Any]] = []
    compressed = CompressedModel(module, module.state_dict())
    for position, compressor in enumerate(spec.compressors):

        def fine_tune(target: nn.Module, rounds: int, position: int = position) -> nn.Module:
            nonlocal prepared
            target.train()
            purpose = f"fine-tune {position}.{len(fine_tuned)}"
            trained = training.run(
                target, _rounds(progress), rounds=rounds, purpose=purpose, history=prepared
            )
            prepared = trained.prepared
            fine_tuned.append(
                {"rounds": rounds, "history": trained.outcome.history, **_training_facts(trained)}
            )
            return target

        context = CompressionContext(
            input_shape=training.data.input_shape,
            num_classes=training.data.num_classes,
            generator=torch_generator(spec.train.seed, "compress", position),
            data=_data_for(compressor.name, compressor.data_access, spec.unprotected, training.data.val),
            fine_tune=fine_tune,
        )
        source = compressed.module.to("cpu") if compressed.device == "cpu" else compressed.module
        compressed = compressor.compress(source.eval(), context)
        digest, size = store.save_tensors(compressed.state)
        links.append({"name": compressor.name, "artifact": digest, "bytes": size, "facts": compressed.facts})
    guarantee = training.guarantee(prepared)
    return {
        "artifacts": [link["artifact"] for link in links],
        "links": links,
        "prepared": prepared,
        "guarantee": None if guarantee is None else guarantee.model_dump(),
        "fine_tuning": fine_tuned,
    }


def _data_for(
    name: str, access: str, unprotected: tuple[str, ...], val: Part
) -> Callable[[], tuple[Tensor, Tensor]]:
    """What a compressor may see: nothing, or the validation split, as public data only where it is declared so."""

    def data() -> tuple[Tensor, Tensor]:
        if access == "none":
            raise PluginError(f"{name} declares no data access")
        if access == "public" and "val" not in unprotected:
            raise PluginError(f"{name} needs public data and the scenario declares none")
        return to_pixels(val.images), val.labels

    return data


def load_trained(training: Training, store: Store, result: dict[str, Any]) -> nn.Module:
    """The trained module, from its artifact."""
    module = training.initial_module()
    module.load_state_dict(store.load_tensors(result["artifacts"][0], training.device))
    return module.eval()


@torch.no_grad()
def load_released(
    training: Training,
    spec: CompressSpec,
    store: Store,
    base: dict[str, Any],
    compressed: dict[str, Any] | None,
) -> CompressedModel:
    """The model as released: trained, then every link of the compressor chain restored from its file."""
    module = load_trained(training, store, base)
    released = CompressedModel(module, module.state_dict())
    if compressed is not None:
        for compressor, link in zip(spec.compressors, compressed["links"], strict=True):
            state = store.load_tensors(link["artifact"])
            released = compressor.restore(released.module, state, training.data.input_shape)
    released.module.to(released.device or training.device).eval()
    for defence in spec.train.defences:
        released.module = defence.inference(released.module)
    return released


# scores -------------------------------------------------------------------------------------------


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


def _clean(stage: Stage, spec: CleanSpec, store: Store, device: str) -> dict[str, Any]:
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


def _attack(stage: Stage, spec: AttackSpec, store: Store, device: str, progress: Progress) -> dict[str, Any]:
    scoring = _Scoring(stage, spec, store, device)
    attack = spec.attack
    if isinstance(attack, EvasionAttack):
        return _evasion(scoring, spec, attack, progress)
    if isinstance(attack, PoisoningAttack):
        return _backdoor(scoring, spec, attack)
    if isinstance(attack, PrivacyAttack):
        return _privacy(scoring, spec, attack)
    raise PluginError(f"{attack.name}: the {attack.family} family has no scores of its own")


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
    batch = spec.evaluation.batch_size
    triggered = []
    for start in range(0, len(test), batch):
        x = attack.trigger(to_pixels(test.images[start : start + batch]))
        if not (x.isfinite().all() and x.min() >= 0 and x.max() <= 1):
            raise PluginError(f"{attack.name}: a triggered image leaves [0, 1]")
        triggered.append(scoring.predict(x))
    context = scoring.context(
        labels=test.labels.cpu().numpy(),
        logits=scoring.predict(test.images),
        triggered_logits=np.concatenate(triggered),
        backdoor_target=attack.backdoor_target,
    )
    description = {
        "target": attack.backdoor_target,
        "samples": len(test),
        "malicious": scoring.base["malicious"],
    }
    return {"scores": compute_metrics(spec.metrics, context, attack=True), "attack": description}


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
