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
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.contracts.base import Plugin
from harness.contracts.compressor import ModelCompressor, UpdateCompressor
from harness.contracts.privacy import PrivacyAttack, TrainingVariant
from harness.errors import HarnessError
from harness.grid import Cell, DataFacts, Memo, stack_label
from harness.registry import registry

if TYPE_CHECKING:
    from pydantic import BaseModel

    from harness.contracts.aggregator import Aggregator
    from harness.contracts.attack import Attack
    from harness.contracts.data import Dataset
    from harness.contracts.defence import Defence
    from harness.contracts.metric import Metric
    from harness.contracts.model import Model, Normalization
    from harness.scenario import Compute, Evaluation, Federation, Threat

NUMERICS = 3  # raise it whenever a change to the engine changes a number
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
    fingerprint: str = ""  # of the dataset's content; without it no cache of decoded data is used
    engine: str = "local"  # what runs the rounds
    noise_key: str | None = (
        None  # seeds mechanism noise instead of the stage's key: the same for every engine
    )


_PARTS = [f.name for f in fields(TrainSpec) if f.name not in ("seed", "variant")]


def shared_parts(spec: TrainSpec) -> tuple[Any, ...]:
    """Equal for trainings of one run that differ in seed or variant at most."""
    return tuple(_mark(getattr(spec, name)) for name in _PARTS)


def _mark(part: Any) -> Any:
    """Plain values as they are; plugins and settings, which the cells of a scenario have in common, by identity."""
    if isinstance(part, tuple):
        return tuple(map(_mark, part))
    return part if isinstance(part, str | float | Path) else id(part)


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
    beside: tuple[Stage, ...] = ()  # trainings that run as one program with this one; see harness.bundles
    at_a_time: int = 1  # its clients that may train at the same time; see harness.lending


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
    """Builds stages, sharing those with equal keys.

    A key is the hash of canonical JSON. Most of that JSON is about plugins and settings that many stages have in
    common, so it is put together from parts that are each written once.
    """

    def __init__(self, device: str) -> None:
        self.device_type = device.split(":")[0]
        self.stages: dict[str, Stage] = {}
        self._memo = Memo()
        self._trained: dict[tuple[Any, ...], tuple[str, TrainSpec]] = {}
        self._scored: dict[tuple[Any, ...], tuple[CompressSpec, tuple[str, ...], str, str]] = {}

    def add(self, cell: Cell, facts: DataFacts, metrics: tuple[Metric, ...]) -> CellPlan:
        """The stages of one cell."""
        scenario = cell.scenario
        environment = self._memo.of(self._environment, scenario.compute)
        train = train_spec(cell, facts.fingerprint)
        plan = CellPlan(cell)
        trained, train = self._train(train, environment)
        plan.stages["train"] = trained
        scoring = {
            "metrics": self._memo.of(_identities_text, metrics),
            "evaluation": self._memo.of(_dump_text, scenario.evaluation),
            "unprotected": canonical(scenario.unprotected),
        }
        chain = cell.model_compressors
        address = (trained, tuple(map(id, chain)), *scoring.values())
        if address not in self._scored:
            model = CompressSpec(train, chain, scenario.unprotected)
            released = self._released(model, trained, environment)
            label = released_label(model, self._memo)
            clean = CleanSpec(model, metrics, scenario.evaluation)
            key = self._stage("clean", f"clean scores of {label}", clean, scoring, released, environment)
            self._scored[address] = model, released, key, label
        model, released, plan.stages["clean"], described = self._scored[address]
        if model.compressors:
            plan.stages["compress"] = released[-1]
        if cell.attack is not None and self._scores_attack(cell):
            wanted = tuple(cell.attack.trainings(cell)) if isinstance(cell.attack, PrivacyAttack) else ()
            variants = []
            for variant in wanted:
                key, other = self._train(replace(train, variant=variant), environment)
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
            spec = self._with_surrogate(spec, cell, environment)
            identity = {
                **scoring,
                "threat": self._memo.of(_threat_text, cell.threat),
                "attack": self._memo.of(_identity_text, cell.attack),
                "ways": canonical(spec.ways),
                "surrogate": canonical(spec.surrogate_needs),
            }
            label = f"{self._memo.of(Plugin.label, cell.attack)} on {described}"
            for role, key in zip(("train", "compress"), spec.surrogate_needs, strict=False):
                if key not in plan.stages.values():  # a model that the cell has otherwise nothing to do with
                    plan.stages[f"surrogate {role}"] = key
            further = (key for keys in spec.variant_needs for key in keys)
            needs = tuple(dict.fromkeys((*further, *spec.surrogate_needs, *released)))
            plan.stages["attack"] = self._stage("attack", label, spec, identity, needs, environment)
        return plan

    def _released(self, model: CompressSpec, trained: str, environment: str) -> tuple[str, ...]:
        """Keys of the stages that make a model: its training, and its compression if there is any."""
        if not model.compressors:
            return (trained,)
        chain = {
            "compressors": self._memo.of(_identities_text, model.compressors),
            "unprotected": canonical(model.unprotected),
        }
        label = f"{self._memo.of(stack_label, model.compressors)} on {self.stages[trained].label}"
        return trained, self._stage("compress", label, model, chain, (trained,), environment)

    def _with_surrogate(self, spec: AttackSpec, cell: Cell, environment: str) -> AttackSpec:
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
        key, other = self._train(other, environment)
        model = CompressSpec(other, chain, spec.model.unprotected)
        needs = self._released(model, key, environment)
        return replace(spec, surrogate=model, surrogate_name=wanted.name, surrogate_needs=needs)

    @staticmethod
    def _scores_attack(cell: Cell) -> bool:
        """A training-time attack is scored by the clean scores, unless it is a backdoor."""
        return not cell.trains_under_attack or getattr(cell.attack, "backdoor_target", None) is not None

    def _train(self, spec: TrainSpec, environment: str) -> tuple[str, TrainSpec]:
        """The key of a training, and the one specification that all stages after it share."""
        variant = "null" if spec.variant is None else canonical(asdict(spec.variant))
        address = (shared_parts(spec), spec.seed, variant)
        known = self._trained.get(address)
        if known is not None:
            return known
        identity = {
            "dataset": canonical(spec.fingerprint),
            "model": self._memo.of(_identity_text, spec.model),
            "normalization": self._memo.of(_dump_text, spec.normalization),
            "federation": self._memo.of(_federation_text, spec.federation),
            "holdout": canonical(spec.holdout),
            "tolerance": canonical(spec.tolerance),
            "defences": self._memo.of(_identities_text, spec.defences),
            "aggregators": self._memo.of(_identities_text, spec.aggregators),
            "compressors": self._memo.of(_identities_text, spec.compressors),
            "threat": self._memo.of(_threat_text, spec.threat),
            "attack": self._memo.of(_identity_text, spec.attack),
            "seed": canonical(spec.seed),
            "variant": variant,
        }
        if spec.engine != "local":
            spec = replace(spec, noise_key=_key("train", identity, (), environment))
            identity["engine"] = canonical({spec.engine: engine_version(spec.engine)})
        key = self._stage("train", training_label(spec, self._memo), spec, identity, (), environment)
        found = self._trained[address] = key, spec
        return found

    def _stage(
        self,
        kind: str,
        label: str,
        spec: Spec,
        identity: dict[str, str],
        needs: tuple[str, ...],
        environment: str,
    ) -> str:
        """identity: name -> canonical JSON."""
        key = _key(kind, identity, needs, environment)
        if key not in self.stages:
            without_seed = _object({k: v for k, v in identity.items() if k != "seed"})
            upstream = canonical([self.stages[k].signature for k in needs])
            signature = _hash(
                _object({"identity": without_seed, "upstream": upstream, "environment": environment})
            )
            self.stages[key] = Stage(key, kind, label, spec, needs, signature)
        return key

    def _environment(self, compute: Compute) -> str:
        facts = {
            "numerics": NUMERICS,
            "libraries": library_versions(),
            "device": self.device_type,
            "threads": compute.threads,
            "precision": compute.precision,
            "tf32": compute.tf32,
            # Equal to float tolerance only. What auto resolves to follows from the device type.
            "clients": compute.clients,
            "chunk": compute.chunk,
            "trainings": compute.trainings,
            "channels_last": compute.channels_last,
        }
        return canonical(facts)


def _key(kind: str, identity: dict[str, str], needs: tuple[str, ...], environment: str) -> str:
    """A stage's key. identity: name -> canonical JSON."""
    parts = {
        "kind": canonical(kind),
        "identity": _object(identity),
        "needs": canonical(needs),
        "environment": environment,
    }
    return _hash(_object(parts))


def train_spec(cell: Cell, fingerprint: str = "") -> TrainSpec:
    """What a cell trains. fingerprint: of the dataset's content."""
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
        fingerprint=fingerprint,
        engine=scenario.engine,
    )


def digest(value: Any) -> str:
    """sha256 of canonical JSON."""
    return _hash(canonical(value))


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values, equal texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _object(members: dict[str, str]) -> str:
    """The canonical JSON of an object from that of its members."""
    return "{" + ",".join(f'"{name}":{members[name]}' for name in sorted(members)) + "}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


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
        "source": entry.source_hash,
        "nested": nested,
    }


def identities(plugins: Sequence[Plugin]) -> list[dict[str, Any]]:
    """identity_of each."""
    return [identity_of(p) for p in plugins]


def _identity_text(plugin: Plugin | None) -> str:
    return "null" if plugin is None else canonical(identity_of(plugin))


def _identities_text(plugins: Sequence[Plugin]) -> str:
    return canonical(identities(plugins))


def _dump_text(settings: BaseModel | None) -> str:
    return "null" if settings is None else canonical(settings.model_dump(mode="json"))


def _federation_text(federation: Federation) -> str:
    plain = federation.model_dump(mode="json", exclude={"partition", "byzantine_tolerance"})
    return canonical(
        {**plain, "server_name": federation.server.name, "optimizer_name": federation.local.optimizer.name,
         "schedule_name": federation.local.schedule.name, "partition": identity_of(federation.partition)}
    )  # fmt: skip


def _threat_text(threat: Threat | None) -> str:
    return (
        "null" if threat is None else canonical(threat.model_dump(mode="json", exclude={"name", "attacks"}))
    )


def training_label(spec: TrainSpec, memo: Memo | None = None) -> str:
    """A training in words, for progress and tables."""
    label = partial((memo or Memo()).of, stack_label)
    parts = [label(spec.defences), label(spec.aggregators)]
    if spec.compressors:
        parts.append(label(spec.compressors))
    if spec.attack is not None:
        parts.append(f"under {label((spec.attack,))}")
    if spec.variant is not None:
        parts.append(f"variant {spec.variant.name}")
    return f"{' · '.join(parts)} · seed {spec.seed}"


def released_label(spec: CompressSpec, memo: Memo | None = None) -> str:
    """A released model in words."""
    memo = memo or Memo()
    chain = f"{memo.of(stack_label, spec.compressors)} of " if spec.compressors else ""
    return chain + training_label(spec.train, memo)
