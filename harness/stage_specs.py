"""What each kind of stage is given: everything that decides its output, except the code behind it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.grid import Cell, Memo
from harness.naming import stack_label

if TYPE_CHECKING:
    from harness.contracts.aggregator import Aggregator
    from harness.contracts.attack import Attack
    from harness.contracts.base import Plugin
    from harness.contracts.compressor import ModelCompressor, UpdateCompressor
    from harness.contracts.data import Dataset
    from harness.contracts.defence import Defence
    from harness.contracts.metric import Metric
    from harness.contracts.model import Model, Normalization
    from harness.contracts.privacy import TrainingVariant
    from harness.scenario import Compute, Evaluation, Federation, Threat


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
    # Seeds mechanism noise instead of the stage's key, so that it is the same with every engine.
    noise_key: str | None = None

    @property
    def weighting(self) -> str:
        """How clients are weighted: as the scenario says, but uniformly where a defence protects whole clients.

        Weights by records would tell recipients how many records a client has.
        """
        protected = any(defence.protects == "client" for defence in self.defences)
        return "uniform" if protected else self.federation.weighting


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


def plugins_behind(spec: Spec) -> tuple[Plugin, ...]:
    """All plugins that a stage works with, except those nested in others."""
    if isinstance(spec, TrainSpec):
        settings = (spec.dataset, spec.model, spec.federation.partition)
        attack = () if spec.attack is None else (spec.attack,)
        return (*settings, *spec.defences, *spec.aggregators, *spec.compressors, *attack)
    if isinstance(spec, CompressSpec):
        return (*plugins_behind(spec.train), *spec.compressors)
    found = (*plugins_behind(spec.model), *spec.metrics)
    if isinstance(spec, CleanSpec):
        return found
    surrogate = () if spec.surrogate is None else plugins_behind(spec.surrogate)
    return (*found, spec.attack, *surrogate)


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


_PARTS = [f.name for f in fields(TrainSpec) if f.name not in ("seed", "variant")]


def shared_parts(spec: TrainSpec) -> tuple[Any, ...]:
    """A tuple that is equal for trainings of one run if they differ in nothing but seed or variant."""
    return tuple(_mark(getattr(spec, name)) for name in _PARTS)


def _mark(part: Any) -> Any:
    """Plain values as they are; plugins and settings by identity, as the cells of a scenario share these objects."""
    if isinstance(part, tuple):
        return tuple(map(_mark, part))
    return part if isinstance(part, str | float | Path) else id(part)


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
