"""Cells → stages: the work to do, each stage once, under a key made from everything that decides its output.

    train ─► compress ─► clean
                     └─► attack

harness.stage_keys makes the keys that tell stages apart; harness.stage_specs defines what each stage is given.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import source_code
from harness.contracts.base import Plugin
from harness.contracts.privacy import PrivacyAttack
from harness.data_root import DataRoot
from harness.grid import Cell, DataFacts, Memo
from harness.identity import canonical, engine_version
from harness.naming import stack_label
from harness.premises import Code, Premises, joined, premises_of
from harness.stage_keys import (
    Identity,
    attack_identity,
    compression_identity,
    environment_of,
    key_of,
    scoring_identity,
    signature_of,
    training_identity,
    variant_text,
)
from harness.stage_specs import (
    AttackSpec,
    CleanSpec,
    CompressSpec,
    Spec,
    TrainSpec,
    plugins_behind,
    released_label,
    shared_parts,
    train_spec,
    training_label,
    training_of,
)

if TYPE_CHECKING:
    from harness.contracts.metric import Metric
    from harness.scenario import Scenario


@dataclass(frozen=True, eq=False)
class Stage:
    """A unit of work. needs: keys of the stages whose results it reads, the one directly before it last."""

    key: str
    kind: str  # train | compress | clean | attack
    label: str
    spec: Spec
    needs: tuple[str, ...]
    signature: str  # what its cost depends on: made as the key is, but without any seed, its own or upstream
    beside: tuple[Stage, ...] = ()  # trainings that run as one program with this one; see harness.bundles
    at_a_time: int = 1  # how many of its clients may train at the same time; see harness.lending
    premises: Premises = field(default_factory=Premises)


@dataclass
class CellPlan:
    """A cell and its stages by role, or why it is not run."""

    cell: Cell
    # Role -> key: train, compress, clean, attack, variant:NAME, variant:NAME compress, surrogate train,
    # surrogate compress.
    stages: dict[str, str] = field(default_factory=dict)
    reason: str | None = None
    error: dict[str, Any] | None = None  # where planning itself failed
    # Data sets that its plugins hold as parameters: name, distribution, fingerprint of the content.
    data: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Plan:
    """All cells of a run and the unique stages behind them, in an order in which they can be run."""

    cells: list[CellPlan]
    stages: dict[str, Stage]
    facts: dict[str, DataFacts]  # scenario name -> facts of its dataset
    device: str
    # Where this is one shard of a plan: its index, the count of shards, its cells, and the cells of the whole plan.
    shard: dict[str, int] | None = None

    def count(self, kind: str) -> int:
        return sum(stage.kind == kind for stage in self.stages.values())


class Planner:
    """Builds stages, sharing those with equal keys."""

    def __init__(self, device: str) -> None:
        self.stages: dict[str, Stage] = {}
        self._memo = Memo()
        self._environment = partial(environment_of, device_type=device.split(":")[0])
        self._data: dict[Path, DataRoot] = {}
        self._unchanged: set[Code] = set()
        # By ids of plugins, which stay unique because the stages keep the plugins alive.
        self._premised: dict[tuple[object, ...], Premises] = {}
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
        data = self._data_of(train)
        scoring = scoring_identity(metrics, scenario.evaluation, scenario.unprotected, data, self._memo)
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
            identity = attack_identity(spec, scoring, data, self._memo)
            attack = self._memo.of(Plugin.label, cell.attack)
            if attack in self._memo.of(_repeated, scenario):
                attack = f"{attack} of {cell.threat.name}"
            label = f"{attack} on {described}"
            for role, key in zip(("train", "compress"), spec.surrogate_needs, strict=False):
                if key not in plan.stages.values():  # a model that has no other role in this cell
                    plan.stages[f"surrogate {role}"] = key
            further = (key for keys in spec.variant_needs for key in keys)
            needs = tuple(dict.fromkeys((*further, *spec.surrogate_needs, *released)))
            plan.stages["attack"] = self._stage("attack", label, spec, identity, needs, environment)
        held = (content for key in plan.stages.values() for content in self.stages[key].premises.data)
        plan.data = [content.described() for content in dict.fromkeys(held)]
        return plan

    def _data_of(self, spec: TrainSpec) -> DataRoot:
        """A training's DataRoot, which is told the fingerprint of the scenario's data set where the spec has one."""
        data = self._data.setdefault(spec.root, DataRoot(spec.root))
        if spec.fingerprint:
            data.know(spec.dataset, spec.fingerprint)
        return data

    def _premises(self, spec: Spec) -> Premises:
        """Code and data that a stage is planned on. Raises HarnessError where code on disk is not what was imported."""
        plugins, train = plugins_behind(spec), training_of(spec)
        address = (train.root, *map(id, plugins))  # the same for stages that differ in nothing but the seed
        if address in self._premised:
            return self._premised[address]
        data = self._data_of(train)
        found = joined(self._memo.of(_premises, (data, train.dataset, plugin)) for plugin in plugins)
        self._premised[address] = found
        for code in found.code:
            if code not in self._unchanged:
                source_code.check_unchanged(code.distribution, code.module)
                self._unchanged.add(code)
        return found

    def _released(self, model: CompressSpec, trained: str, environment: str) -> tuple[str, ...]:
        """Keys of the stages that make a model: its training, and its compression if there is any."""
        if not model.compressors:
            return (trained,)
        data = self._data_of(model.train)
        chain = compression_identity(model.compressors, model.unprotected, data, self._memo)
        label = f"{self._memo.of(stack_label, model.compressors)} on {self.stages[trained].label}"
        return trained, self._stage("compress", label, model, chain, (trained,), environment)

    def _with_surrogate(self, spec: AttackSpec, cell: Cell, environment: str) -> AttackSpec:
        """The spec with the surrogate of a transfer attack: a model trained, compressed and shared like any other."""
        wanted, behind = cell.surrogate, cell.behind_transfer
        if wanted is None or behind is None:
            return spec
        other = replace(
            spec.model.train,
            defences=behind.defences,
            aggregators=behind.aggregators,
            compressors=behind.update_compressors,
        )
        key, other = self._train(other, environment)
        model = CompressSpec(other, behind.model_compressors, spec.model.unprotected)
        needs = self._released(model, key, environment)
        return replace(spec, surrogate=model, surrogate_name=wanted.name, surrogate_needs=needs)

    @staticmethod
    def _scores_attack(cell: Cell) -> bool:
        """Whether an attack needs a stage of its own.

        The clean scores show what an attack on training did, unless it is a backdoor.
        """
        return not cell.trains_under_attack or getattr(cell.attack, "backdoor_target", None) is not None

    def _train(self, spec: TrainSpec, environment: str) -> tuple[str, TrainSpec]:
        """The key of a training, and its specification, one object that all later stages share."""
        address = (shared_parts(spec), spec.seed, variant_text(spec.variant))
        known = self._trained.get(address)
        if known is not None:
            return known
        identity = training_identity(spec, self._data_of(spec), self._memo)
        if spec.engine != "local":
            spec = replace(spec, noise_key=key_of("train", identity, (), environment))
            identity["engine"] = canonical({spec.engine: engine_version(spec.engine)})
        key = self._stage("train", training_label(spec, self._memo), spec, identity, (), environment)
        found = self._trained[address] = key, spec
        return found

    def _stage(
        self, kind: str, label: str, spec: Spec, identity: Identity, needs: tuple[str, ...], environment: str
    ) -> str:
        key = key_of(kind, identity, needs, environment)
        if key not in self.stages:
            upstream = [self.stages[need].signature for need in needs]
            signature = signature_of(identity, upstream, environment)
            premises = self._premises(spec)
            self.stages[key] = Stage(key, kind, label, spec, needs, signature, premises=premises)
        return key


def _repeated(scenario: Scenario) -> frozenset[str]:
    """Labels of attacks that several threats have in common, as they do where a radius is swept."""
    known = Counter(label for t in scenario.threats for label in {attack.label() for attack in t.attacks})
    return frozenset(label for label, count in known.items() if count > 1)


def _premises(placed: tuple[Any, ...]) -> Premises:
    """`premises_of` with one argument, for a Memo. placed: a DataRoot, the scenario's data set, and a plugin."""
    data, main, plugin = placed
    return premises_of(plugin, data, main)
