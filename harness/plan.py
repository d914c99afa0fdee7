"""Cells → stages: what has to be computed, once each, and the hash of everything that decides its output.

    train ─► compress ─► clean
                     └─► attack

A stage's key covers the plugins (name, parameters, distribution, version, source of their package), the seed,
the dataset's content, the keys of the stages it needs, the engine's numerics version, device type,
precision, threads, and the versions of the numeric libraries. It does not cover paths, names or labels.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.contracts.base import Plugin
from harness.contracts.compressor import ModelCompressor, UpdateCompressor
from harness.contracts.privacy import PrivacyAttack, TrainingVariant
from harness.errors import HarnessError
from harness.grid import Cell, DataFacts, stack_label
from harness.registry import registry, source_hash

if TYPE_CHECKING:
    from harness.contracts.aggregator import Aggregator
    from harness.contracts.attack import Attack
    from harness.contracts.data import Dataset
    from harness.contracts.defence import Defence
    from harness.contracts.metric import Metric
    from harness.contracts.model import Model, Normalization
    from harness.scenario import Compute, Evaluation, Federation, Threat

NUMERICS = 1  # raise it whenever a change to the engine changes a number
LIBRARIES = ("torch", "numpy", "opacus", "torchattacks", "torch-pruning", "scikit-learn", "scipy", "pillow")


@dataclass(frozen=True)
class TrainSpec:
    """Everything that decides a training."""

    dataset: Dataset
    root: Path
    model: Model
    normalization: Normalization | None
    federation: Federation
    holdout: float
    tolerance: float
    compute: Compute
    defences: tuple[Defence, ...]
    aggregators: tuple[Aggregator, ...]
    compressors: tuple[UpdateCompressor, ...]
    threat: Threat | None  # only where the attack acts during training
    attack: Attack | None
    seed: int
    variant: TrainingVariant | None = None
    engine: str = "local"  # what runs the rounds
    noise_key: str | None = (
        None  # seeds mechanism noise instead of the stage's key: the same for every engine
    )


@dataclass(frozen=True)
class CompressSpec:
    """A training and the chain of model compressors applied to it."""

    train: TrainSpec
    compressors: tuple[ModelCompressor, ...]
    unprotected: tuple[str, ...]


@dataclass(frozen=True)
class CleanSpec:
    """The released model's own scores."""

    model: CompressSpec
    metrics: tuple[Metric, ...]
    evaluation: Evaluation


@dataclass(frozen=True)
class AttackSpec:
    """One attack on the released model, or, for a backdoor, the trigger it was trained with."""

    model: CompressSpec
    metrics: tuple[Metric, ...]
    evaluation: Evaluation
    threat: Threat
    attack: Attack
    released: tuple[str, ...]  # keys of the stages behind the model
    ways: tuple[str, ...] = ()  # see Cell.ways
    surrogate: CompressSpec | None = None
    surrogate_name: str = ""
    surrogate_needs: tuple[str, ...] = ()
    variants: tuple[TrainingVariant, ...] = ()
    variant_needs: tuple[tuple[str, ...], ...] = ()  # for each: its training, and its compression if any


Spec = TrainSpec | CompressSpec | CleanSpec | AttackSpec


def training_of(spec: Spec) -> TrainSpec:
    """The training behind any stage."""
    if isinstance(spec, TrainSpec):
        return spec
    return spec.train if isinstance(spec, CompressSpec) else spec.model.train


@dataclass(frozen=True, eq=False)
class Stage:
    """A unit of work. needs: keys of the stages whose results it reads, nearest last."""

    key: str
    kind: str  # train | compress | clean | attack
    label: str
    spec: Spec
    needs: tuple[str, ...]
    signature: str  # what its cost depends on: the key without seed and upstream


@dataclass
class CellPlan:
    """A cell and its stages by role, or why it is not run."""

    cell: Cell
    stages: dict[str, str] = field(
        default_factory=dict
    )  # role -> key: train, compress, clean, attack, variant:NAME, surrogate train
    reason: str | None = None
    error: dict[str, Any] | None = None  # planning itself failed


@dataclass
class Plan:
    """All cells of a run and the unique stages behind them, in an order in which they can be run."""

    cells: list[CellPlan]
    stages: dict[str, Stage]
    facts: dict[str, DataFacts]  # scenario name -> its dataset
    device: str
    shard: dict[str, int] | None = (
        None  # where it is a part of a plan: index, count, cells, and cells of the whole
    )

    def count(self, kind: str) -> int:
        return sum(stage.kind == kind for stage in self.stages.values())


class Planner:
    """Builds stages, sharing those with equal keys."""

    def __init__(self, device: str) -> None:
        self.device_type = device.split(":")[0]
        self.stages: dict[str, Stage] = {}

    def add(self, cell: Cell, facts: DataFacts, metrics: tuple[Metric, ...]) -> CellPlan:
        """The stages of one cell."""
        scenario = cell.scenario
        environment = self._environment(scenario.compute)
        train = train_spec(cell)
        plan = CellPlan(cell)
        trained = self._train(train, facts, environment)
        plan.stages["train"] = trained
        model = CompressSpec(train, cell.model_compressors, scenario.unprotected)
        released = self._released(model, trained, environment)
        if model.compressors:
            plan.stages["compress"] = released[-1]
        scoring: dict[str, Any] = {
            "metrics": identities(metrics),
            "evaluation": scenario.evaluation.model_dump(mode="json"),
            "unprotected": scenario.unprotected,
        }
        clean = CleanSpec(model, metrics, scenario.evaluation)
        label = f"clean scores of {released_label(model)}"
        plan.stages["clean"] = self._stage("clean", label, clean, scoring, released, environment)
        if cell.attack is not None and self._scores_attack(cell):
            wanted = tuple(cell.attack.trainings(cell)) if isinstance(cell.attack, PrivacyAttack) else ()
            variants = []
            for variant in wanted:
                other = replace(train, variant=variant)
                key = self._train(other, facts, environment)
                chain = model.compressors if variant.compressed else ()
                variants.append(
                    self._released(replace(model, train=other, compressors=chain), key, environment)
                )
                plan.stages[f"variant:{variant.name}"] = key
                if chain:
                    plan.stages[f"variant:{variant.name} compress"] = variants[-1][-1]
            spec = AttackSpec(
                model,
                metrics,
                scenario.evaluation,
                cell.threat,
                cell.attack,
                released,
                ways=cell.ways,
                variants=wanted,
                variant_needs=tuple(variants),
            )
            spec = self._with_surrogate(spec, cell, facts, environment)
            identity = {
                **scoring,
                "threat": _threat_identity(cell.threat),
                "attack": identity_of(cell.attack),
                "ways": spec.ways,
                "surrogate": spec.surrogate_needs,
            }
            label = f"{cell.attack.label()} on {released_label(model)}"
            for role, key in zip(("train", "compress"), spec.surrogate_needs, strict=False):
                if key not in plan.stages.values():  # a model that the cell has otherwise nothing to do with
                    plan.stages[f"surrogate {role}"] = key
            further = (key for keys in spec.variant_needs for key in keys)
            needs = tuple(dict.fromkeys((*further, *spec.surrogate_needs, *released)))
            plan.stages["attack"] = self._stage("attack", label, spec, identity, needs, environment)
        return plan

    def _released(self, model: CompressSpec, trained: str, environment: dict[str, Any]) -> tuple[str, ...]:
        """Keys of the stages that make a model: its training, and its compression if there is any."""
        if not model.compressors:
            return (trained,)
        chain = {"compressors": identities(model.compressors), "unprotected": model.unprotected}
        label = f"{stack_label(model.compressors)} on {training_label(model.train)}"
        return trained, self._stage("compress", label, model, chain, (trained,), environment)

    def _with_surrogate(
        self, spec: AttackSpec, cell: Cell, facts: DataFacts, environment: dict[str, Any]
    ) -> AttackSpec:
        """The surrogate of a transfer attack is a model like any other: trained, compressed and shared as such."""
        wanted, train = cell.surrogate, spec.model.train
        if wanted is None:
            return spec
        compressors = cell.compressors if wanted.compressors is None else wanted.compressors
        other = replace(
            train,
            defences=train.defences if wanted.defences is None else wanted.defences,
            aggregators=train.aggregators if wanted.aggregators is None else wanted.aggregators,
            compressors=tuple(c for c in compressors if isinstance(c, UpdateCompressor)),
        )
        chain = tuple(c for c in compressors if isinstance(c, ModelCompressor))
        model = CompressSpec(other, chain, spec.model.unprotected)
        needs = self._released(model, self._train(other, facts, environment), environment)
        return replace(spec, surrogate=model, surrogate_name=wanted.name, surrogate_needs=needs)

    @staticmethod
    def _scores_attack(cell: Cell) -> bool:
        """A training-time attack is scored by the clean scores, unless it is a backdoor."""
        return not cell.trains_under_attack or getattr(cell.attack, "backdoor_target", None) is not None

    def _train(self, spec: TrainSpec, facts: DataFacts, environment: dict[str, Any]) -> str:
        identity = {
            "dataset": facts.fingerprint,
            "model": identity_of(spec.model),
            "normalization": None
            if spec.normalization is None
            else spec.normalization.model_dump(mode="json"),
            "federation": _federation_identity(spec.federation),
            "holdout": spec.holdout,
            "tolerance": spec.tolerance,
            "defences": identities(spec.defences),
            "aggregators": identities(spec.aggregators),
            "compressors": identities(spec.compressors),
            "threat": None if spec.threat is None else _threat_identity(spec.threat),
            "attack": None if spec.attack is None else identity_of(spec.attack),
            "seed": spec.seed,
            "variant": None if spec.variant is None else asdict(spec.variant),
        }
        if spec.engine != "local":
            spec = replace(spec, noise_key=self._key("train", identity, (), environment))
            identity["engine"] = {spec.engine: engine_version(spec.engine)}
        return self._stage("train", training_label(spec), spec, identity, (), environment)

    def _stage(
        self,
        kind: str,
        label: str,
        spec: Spec,
        identity: dict[str, Any],
        needs: tuple[str, ...],
        environment: dict[str, Any],
    ) -> str:
        key = self._key(kind, identity, needs, environment)
        if key not in self.stages:
            parts = {k: v for k, v in identity.items() if k != "seed"}
            upstream = [self.stages[k].signature for k in needs]
            signature = digest({"identity": parts, "upstream": upstream, "environment": environment})
            self.stages[key] = Stage(key, kind, label, spec, needs, signature)
        return key

    @staticmethod
    def _key(kind: str, identity: dict[str, Any], needs: tuple[str, ...], environment: dict[str, Any]) -> str:
        return digest({"kind": kind, "identity": identity, "needs": needs, "environment": environment})

    def _environment(self, compute: Compute) -> dict[str, Any]:
        return {
            "numerics": NUMERICS,
            "libraries": library_versions(),
            "device": self.device_type,
            "threads": compute.threads,
            "precision": compute.precision,
            "tf32": compute.tf32,
            # Equal to float tolerance only. What auto resolves to follows from the device type.
            "clients": compute.clients,
            "chunk": compute.chunk,
            "channels_last": compute.channels_last,
        }


def train_spec(cell: Cell) -> TrainSpec:
    """What a cell trains."""
    scenario, during = cell.scenario, cell.trains_under_attack
    return TrainSpec(
        dataset=scenario.dataset,
        root=scenario.root,
        model=scenario.model,
        normalization=scenario.normalization,
        federation=scenario.federation,
        holdout=scenario.holdout,
        tolerance=scenario.tolerance,
        compute=scenario.compute,
        defences=cell.defences,
        aggregators=cell.aggregators,
        compressors=cell.update_compressors,
        threat=cell.threat if during else None,
        attack=cell.attack if during else None,
        seed=cell.seed,
        engine=scenario.engine,
    )


def digest(value: Any) -> str:
    """sha256 of canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@cache
def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that numbers depend on."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


@cache
def engine_version(engine: str) -> str:
    """The installed version of what trains federations. Raises HarnessError where it is not installed."""
    try:
        return importlib.metadata.version({"flower": "flwr"}[engine])
    except importlib.metadata.PackageNotFoundError:
        raise HarnessError(
            f"engine: {engine} needs an extra that is not installed: pip install 'psr-harness[{engine}]'"
        ) from None


def identity_of(plugin: Plugin) -> dict[str, Any]:
    """What decides a plugin's behaviour: name, parameters, package, version, source; nested plugins' too."""
    entry = registry().entry_of(plugin)
    values = [getattr(plugin, f) for f in type(plugin).model_fields]
    flat = [item for v in values for item in (v if isinstance(v, tuple | list) else (v,))]
    nested = [identity_of(item) for item in flat if isinstance(item, Plugin)]
    return {
        "kind": plugin.kind,
        "name": plugin.name,
        "parameters": plugin.parameters(),
        "distribution": entry.distribution,
        "version": entry.version,
        "source": source_hash(entry.distribution, type(plugin).__module__),
        "nested": nested,
    }


def identities(plugins: Sequence[Plugin]) -> list[dict[str, Any]]:
    """identity_of each."""
    return [identity_of(p) for p in plugins]


def _federation_identity(federation: Federation) -> dict[str, Any]:
    plain = federation.model_dump(mode="json", exclude={"partition", "byzantine_tolerance"})
    return {**plain, "server_name": federation.server.name, "optimizer_name": federation.local.optimizer.name,
            "schedule_name": federation.local.schedule.name,
            "partition": identity_of(federation.partition)}  # fmt: skip


def _threat_identity(threat: Threat) -> dict[str, Any]:
    return threat.model_dump(mode="json", exclude={"name", "attacks"})


def training_label(spec: TrainSpec) -> str:
    """A training in words, for progress and tables."""
    parts = [stack_label(spec.defences), stack_label(spec.aggregators)]
    if spec.compressors:
        parts.append(stack_label(spec.compressors))
    if spec.attack is not None:
        parts.append(f"under {spec.attack.label()}")
    if spec.variant is not None:
        parts.append(f"variant {spec.variant.name}")
    return f"{' · '.join(parts)} · seed {spec.seed}"


def released_label(spec: CompressSpec) -> str:
    """A released model in words."""
    chain = f"{stack_label(spec.compressors)} of " if spec.compressors else ""
    return chain + training_label(spec.train)
