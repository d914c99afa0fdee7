"""Keys of stages: the hash of everything that decides a stage's output.

A key covers the plugins (name, parameters, distribution, version, sources, libraries they require), the seed, the
content of data sets, also of those that other plugins hold, the keys of the stages it needs, the engine's numerics
version, device type, precision, threads and how clients train, and the versions of the numeric libraries. It does not
cover paths, names or labels.

It is the hash of canonical JSON. Most of that JSON describes plugins and settings that many stages have in common, so
an identity is kept as parts that are each written once: name -> canonical JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from harness.identity import canonical, general_versions, identities, identity_of, sha256

if TYPE_CHECKING:
    from pydantic import BaseModel

    from harness.contracts.base import Plugin
    from harness.contracts.compressor import ModelCompressor
    from harness.contracts.metric import Metric
    from harness.contracts.privacy import TrainingVariant
    from harness.data_root import DataRoot
    from harness.grid import Memo
    from harness.scenario import Compute, Evaluation, Federation, Threat
    from harness.stage_specs import AttackSpec, TrainSpec

NUMERICS = 11  # raise it whenever a change to the engine changes a number

Identity = dict[str, str]


def key_of(kind: str, identity: Identity, needs: Sequence[str], environment: str) -> str:
    """A stage's key. needs: keys of the stages whose results it reads."""
    parts = {
        "kind": canonical(kind),
        "identity": _object(identity),
        "needs": canonical(needs),
        "environment": environment,
    }
    return sha256(_object(parts))


def signature_of(identity: Identity, upstream: Sequence[str], environment: str) -> str:
    """A hash of what a stage's cost depends on: no seed enters it. upstream: signatures of the stages it needs."""
    parts = {
        "identity": _object({name: text for name, text in identity.items() if name != "seed"}),
        "upstream": canonical(upstream),
        "environment": environment,
    }
    return sha256(_object(parts))


def environment_of(compute: Compute, device_type: str) -> str:
    """Canonical JSON of where and how a stage is computed, as far as that decides numbers."""
    facts = {
        "numerics": NUMERICS,
        "libraries": general_versions(),
        "device": device_type,
        "threads": compute.threads,
        "precision": compute.precision,
        "tf32": compute.tf32,
        # Ways to train that give the same numbers only to float tolerance. On a GPU, timings decide what auto does, so
        # one key may have numbers of either way; the record says which, and merging allows for it (harness.comparable).
        "clients": compute.clients,
        "chunk": compute.chunk,
        "trainings": compute.trainings,
        "channels_last": compute.channels_last,
    }
    return canonical(facts)


# identities ---------------------------------------------------------------------------------------


def training_identity(spec: TrainSpec, data: DataRoot, memo: Memo) -> Identity:
    """The identity of a training, whatever engine runs its rounds. data: where the scenario's data are, as below."""
    return {
        "dataset": memo.of(_plugin, (data, spec.dataset)),
        "model": memo.of(_plugin, (data, spec.model)),
        "normalization": memo.of(_settings, spec.normalization),
        "federation": memo.of(_federation, (data, spec.federation)),
        "holdout": canonical(spec.holdout),
        "tolerance": canonical(spec.tolerance),
        "defences": memo.of(_plugins, (data, *spec.defences)),
        "aggregators": memo.of(_plugins, (data, *spec.aggregators)),
        "compressors": memo.of(_plugins, (data, *spec.compressors)),
        "threat": memo.of(_threat, spec.threat),
        "attack": memo.of(_plugin, (data, spec.attack)),
        "seed": canonical(spec.seed),
        "variant": variant_text(spec.variant),
    }


def compression_identity(
    compressors: tuple[ModelCompressor, ...], unprotected: tuple[str, ...], data: DataRoot, memo: Memo
) -> Identity:
    """The identity of a chain of model compressors."""
    return {"compressors": memo.of(_plugins, (data, *compressors)), "unprotected": canonical(unprotected)}


def scoring_identity(
    metrics: tuple[Metric, ...],
    evaluation: Evaluation,
    unprotected: tuple[str, ...],
    data: DataRoot,
    memo: Memo,
) -> Identity:
    """The identity of the scores of a released model."""
    return {
        "metrics": memo.of(_plugins, (data, *metrics)),
        "evaluation": memo.of(_settings, evaluation),
        "unprotected": canonical(unprotected),
    }


def attack_identity(spec: AttackSpec, scoring: Identity, data: DataRoot, memo: Memo) -> Identity:
    """The identity of an attack on a released model. scoring: the identity of the model's own scores."""
    return {
        **scoring,
        "threat": memo.of(_threat, spec.threat),
        "attack": memo.of(_plugin, (data, spec.attack)),
        "ways": canonical(spec.ways),
        "surrogate": canonical(spec.surrogate_needs),
    }


def variant_text(variant: TrainingVariant | None) -> str:
    """Canonical JSON of a training's variant."""
    return "null" if variant is None else canonical(asdict(variant))


def _plugin(placed: tuple[DataRoot, Plugin | None]) -> str:
    data, plugin = placed
    return "null" if plugin is None else canonical(identity_of(plugin, data.fingerprint))


def _plugins(placed: tuple[Any, ...]) -> str:
    """placed: a DataRoot, then plugins."""
    data, *plugins = placed
    return canonical(identities(plugins, data.fingerprint))


def _settings(settings: BaseModel | None) -> str:
    return "null" if settings is None else canonical(settings.model_dump(mode="json"))


def _federation(placed: tuple[DataRoot, Federation]) -> str:
    data, federation = placed
    plain = federation.model_dump(mode="json", exclude={"partition", "byzantine_tolerance"})
    names = {
        "server_name": federation.server.name,
        "optimizer_name": federation.local.optimizer.name,
        "schedule_name": federation.local.schedule.name,
    }
    return canonical({**plain, **names, "partition": identity_of(federation.partition, data.fingerprint)})


def _threat(threat: Threat | None) -> str:
    return (
        "null" if threat is None else canonical(threat.model_dump(mode="json", exclude={"name", "attacks"}))
    )


def _object(members: dict[str, str]) -> str:
    """The canonical JSON of an object from that of its members."""
    return "{" + ",".join(f'"{name}":{members[name]}' for name in sorted(members)) + "}"
