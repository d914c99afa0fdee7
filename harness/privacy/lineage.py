"""What the parts of a plan do to a training's guarantee: each use of protected data without accounting breaks it.

The training records are always protected, and the validation split unless the scenario declares it
unprotected. A part that reads only noised updates or the trained model is post-processing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.contracts.attack import ByzantineAttack
from harness.contracts.compressor import DATA_ACCESS, ModelCompressor, UpdateCompressor
from harness.errors import PluginError

if TYPE_CHECKING:
    from harness.contracts.aggregator import Aggregator
    from harness.contracts.attack import Attack
    from harness.contracts.compressor import Compressor
    from harness.contracts.defence import Defence, Guarantee
    from harness.stage_specs import TrainSpec

PROTECTED_VAL = "the validation split, which is protected"
CREATES, KEEPS, ACCOUNTED, BREAKS, NOTHING = "creates", "keeps", "accounted", "breaks", "no guarantee"


@dataclass(frozen=True)
class Step:
    """One link of the chain. stage: data, partition, training, aggregation, compression or release.

    part: what acts in that stage. reads: what the part reads, which is none, public, private (protected records),
    updates or model. effect: on the guarantee, one of creates, keeps, accounted, breaks and no guarantee. why: one
    sentence.
    """

    stage: str
    part: str
    reads: str
    effect: str
    why: str


@dataclass(frozen=True)
class Parts:
    """The parts of a plan that bear on its guarantee. dataset, partition and server are names to show in the chain."""

    defences: tuple[Defence, ...] = ()
    aggregators: tuple[Aggregator, ...] = ()
    compressors: tuple[Compressor, ...] = ()
    unprotected: tuple[str, ...] = ()
    dataset: str = ""
    partition: str = ""
    server: str = ""
    attack: Attack | None = None  # None if it does not act during training
    knowledge: str | None = None  # what the threat lets the attack see

    @classmethod
    def of(
        cls,
        train: TrainSpec,
        compressors: tuple[ModelCompressor, ...] = (),
        unprotected: tuple[str, ...] = (),
    ) -> Parts:
        """The parts of a training and of what follows it. compressors: those of the trained model."""
        return cls(
            defences=train.defences,
            aggregators=train.aggregators,
            compressors=(*train.compressors, *compressors),
            unprotected=unprotected,
            dataset=train.dataset.name,
            partition=train.federation.partition.label(),
            server=train.federation.server.name,
            attack=train.attack,
            knowledge=None if train.threat is None else train.threat.knowledge,
        )

    @property
    def val_protected(self) -> bool:
        return "val" not in self.unprotected


def strongest(guarantees: Sequence[Guarantee], parts: Parts) -> Guarantee | None:
    """The guarantee of least epsilon among those that hold for these parts, or among all if none holds.

    Returned as `apply_lineage` settles it; None if there are no guarantees.
    """
    settled = [apply_lineage(guarantee, parts) for guarantee in guarantees]
    return min(settled, key=lambda g: (not g.holds, g.epsilon), default=None)


def apply_lineage(guarantee: Guarantee, parts: Parts) -> Guarantee:
    """A copy of the guarantee with `holds` and `broken_by` settled for these parts.

    Raises PluginError if a part declares an unknown data access.
    """
    broken = list(guarantee.broken_by)
    for step in lineage(guarantee, parts):
        if step.effect == BREAKS and step.why not in broken:
            broken.append(step.why)
    holds = guarantee.holds and not broken
    return guarantee.model_copy(update={"holds": holds, "broken_by": broken}, deep=True)


def lineage(guarantee: Guarantee | None, parts: Parts) -> list[Step]:
    """The chain from data to release: which part creates a guarantee, keeps it, is accounted for, or breaks it.

    Without a guarantee, the chain still says what reads protected data.
    """
    steps = [*_origin(parts), *_training(guarantee, parts), *_aggregation(guarantee, parts)]
    steps += [*_compression(parts), _release(guarantee)]
    if guarantee is None:  # there is nothing to keep or to break
        steps = [Step(s.stage, s.part, s.reads, NOTHING, s.why) for s in steps]
    return steps


def _origin(parts: Parts) -> Iterator[Step]:
    val = (
        "the validation split is protected"
        if parts.val_protected
        else "the validation split is declared public"
    )
    yield Step("data", parts.dataset, "private", KEEPS, f"training records are protected; {val}")
    yield Step(
        "partition",
        parts.partition,
        "private",
        KEEPS,
        "simulates who holds which record; nothing is released",
    )


def _training(guarantee: Guarantee | None, parts: Parts) -> Iterator[Step]:
    if not parts.defences:
        yield Step("training", "local training", "private", NOTHING, "updates carry no noise")
    for defence in parts.defences:
        if guarantee is not None and guarantee.by == defence.name:
            own = [reason for reason in guarantee.broken_by if reason.startswith(defence.name)]
            why = own[0] if own else _claim(guarantee)
            yield Step("training", defence.label(), "private", BREAKS if own else CREATES, why)
        elif defence.server_view == "sum":
            yield Step("training", defence.label(), "updates", KEEPS, "the server sees sums of updates alone")
        else:
            yield Step(
                "training", defence.label(), "private", KEEPS, "acts inside the training that is noised"
            )


def _claim(guarantee: Guarantee) -> str:
    return (
        f"epsilon {guarantee.epsilon:.3g} at delta {guarantee.delta:.2g} for a {guarantee.unit} "
        f"({guarantee.neighbours}), against {_adversary(guarantee)}"
    )


def _adversary(guarantee: Guarantee) -> str:
    if guarantee.against == "recipients":
        return "those who receive the global models; the server is trusted"
    return "the server, which sees every update"


def _aggregation(guarantee: Guarantee | None, parts: Parts) -> Iterator[Step]:
    """The links between the updates and the new global model.

    Whatever follows noise that clients add is post-processing. Noise that the server adds is made for a uniform mean of
    clipped updates: a rule that computes anything else breaks the guarantee, and so does a part through which one
    client's update reaches other clients, or changes what they send, before that noise.
    """
    central = guarantee is not None and guarantee.against == "recipients"
    after = "post-processing of updates" if guarantee is None else "post-processing of noised updates"
    for compressor in parts.compressors:
        if isinstance(compressor, UpdateCompressor):
            if central and compressor.couples_clients:
                why = f"{compressor.name} lets one client's update change what others send, before it is clipped"
                yield Step("aggregation", compressor.label(), "updates", BREAKS, why)
            else:
                why = "each client's update is clipped after it" if central else after
                yield Step("aggregation", compressor.label(), "updates", KEEPS, why)
    if central and isinstance(parts.attack, ByzantineAttack) and parts.knowledge != "own":
        why = f"{parts.attack.name} is shown other clients' updates, which only the server may see before its noise"
        yield Step("aggregation", parts.attack.label(), "updates", BREAKS, why)
    for rule in parts.aggregators:
        access = _known(rule.name, rule.data_access)
        if access != "none" and parts.val_protected:
            why = f"{rule.name} takes root data from {PROTECTED_VAL}"
            yield Step("aggregation", rule.label(), "private", BREAKS, why)
        elif central and not rule.sum_only:
            why = f"{rule.name} is no uniform mean of clipped updates, which is what the server's noise is made for"
            yield Step("aggregation", rule.label(), "updates", BREAKS, why)
        elif access != "none":
            yield Step("aggregation", rule.label(), "public", KEEPS, "its root data are declared public")
        else:
            why = "clipped, averaged and noised in one" if central else after
            yield Step("aggregation", rule.label(), "updates", KEEPS, why)
    if parts.server:
        yield Step("aggregation", parts.server, "updates", KEEPS, "post-processing of the aggregated update")


def _compression(parts: Parts) -> Iterator[Step]:
    for compressor in parts.compressors:
        if not isinstance(compressor, ModelCompressor):
            continue
        access = _known(compressor.name, compressor.data_access)
        label = compressor.label()
        if access != "none" and parts.val_protected:
            why = f"{compressor.name} reads {PROTECTED_VAL}, without accounting"
            yield Step("compression", label, "private", BREAKS, why)
        elif compressor.fine_tuning_rounds:
            why = "fine-tunes in the same federation with the same mechanism; its steps are part of epsilon"
            yield Step("compression", label, "private", ACCOUNTED, why)
        elif access != "none":
            yield Step(
                "compression", label, "public", KEEPS, "reads the validation split, which is declared public"
            )
        else:
            yield Step("compression", label, "model", KEEPS, "post-processing of the trained model")


def _release(guarantee: Guarantee | None) -> Step:
    if guarantee is None:
        return Step("release", "model", "model", NOTHING, "no part of the plan gives a guarantee")
    noise = "noise from a seed, so the method is measured, not a release protected" * guarantee.simulated
    return Step("release", "model", "model", KEEPS, noise or "noise from the operating system's entropy")


def _known(name: str, access: str) -> str:
    if access not in DATA_ACCESS:
        raise PluginError(f"{name}: data access is none, public or private, not {access!r}")
    return access
