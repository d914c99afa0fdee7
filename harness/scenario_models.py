"""A scenario as a frozen model: its parts, the rules between them, its canonical form and its hash."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import ConfigDict, Field

from harness import registry
from harness.contracts.aggregator import Aggregator
from harness.contracts.compressor import Compressor
from harness.contracts.data import Dataset
from harness.contracts.defence import Defence
from harness.contracts.metric import Metric, shared_scores
from harness.contracts.model import Model, Normalization
from harness.contracts.privacy import PrivacyAttack
from harness.contracts.tracker import Tracker
from harness.entry_points import BUILTIN
from harness.federation.counts import clients_per_round, malicious_count
from harness.scenario_parts import (
    Axis,
    Compute,
    Evaluation,
    Federation,
    Found,
    Part,
    Slug,
    builtin,
    default,
    independent,
    repeated,
    spec_of,
)
from harness.scenario_threats import Threat, identifying


def _default_aggregators() -> tuple[tuple[Aggregator, ...], ...]:
    return ((cast(Aggregator, builtin("aggregator", "mean")),),)


def _default_threats() -> tuple[Threat, ...]:
    return (Threat.model_validate({"name": "none"}),)


class Scenario(Part):
    """What is compared: data, federation, the axes to combine, threats, metrics and seeds."""

    model_config = ConfigDict(populate_by_name=True)
    schema_version: Literal[1] = Field(alias="schema", examples=[1], description="version of this format")
    name: Slug = Field(description="unique: letters, digits, '-', '_', '.'", examples=["pneumonia-private"])
    description: str = Field("", description="free text", examples=["What this scenario asks."])
    version: int = Field(1, ge=1, description="raise it when the scenario changes after publication")
    dataset: Dataset = Field(examples=[{"npz": {"path": "images.npz"}}], description="the images")
    unprotected: tuple[Literal["val"], ...] = Field(
        (), strict=False, examples=[["val"]], description="splits whose privacy needs no protection"
    )
    holdout: float = Field(
        0.0,
        ge=0,
        le=0.9,
        description="share of the training pool's groups kept as non-members; with privacy threats 0.2, "
        "with shadow models 0.5",
    )
    engine: Literal["local", "flower"] = Field(
        "local", description="what trains the federation: this process, or a Flower run of its own"
    )
    model: Model = Field(examples=["small-cnn"], description="the network")
    normalization: Normalization | None = Field(
        None, examples=[{"mean": 0.5, "std": 0.25}], description="declared statistics, in [0, 1] pixels"
    )
    federation: Federation = Field(
        default_factory=default(Federation), examples=[{"clients": 10, "rounds": 20}]
    )
    defences: Annotated[tuple[tuple[Defence, ...], ...], Axis("defence")] = Field(
        ((),),
        examples=[["none", {"dp-sgd": {"epsilon": 8}}]],
        description="one value per item; a list is a stack",
    )
    aggregators: Annotated[tuple[tuple[Aggregator, ...], ...], Axis("aggregator", none=False)] = Field(
        default_factory=_default_aggregators,
        examples=[["mean", ["nnm", "trimmed-mean"]]],
        description="one value per item; a list is a chain, all but its last pre-aggregators; default: mean",
    )
    compressors: Annotated[tuple[tuple[Compressor, ...], ...], Axis("compressor")] = Field(
        ((),), examples=[["none", "static-int8"]], description="one value per item; a list is a chain"
    )
    threats: tuple[Threat, ...] = Field(
        default_factory=_default_threats,
        strict=False,
        examples=[[{"name": "none"}]],
        description="the adversaries",
    )
    metrics: tuple[Metric, ...] | None = Field(
        None, strict=False, examples=[["accuracy"]], description="the metrics; default: all built-in ones"
    )
    evaluation: Evaluation = Field(default_factory=default(Evaluation), examples=[{"batch_size": 256}])
    compute: Compute = Field(default_factory=default(Compute), examples=[{"threads": 1}])
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0,), strict=False, examples=[[0, 1, 2]], description="one repetition each"
    )
    trackers: tuple[Tracker, ...] = Field(
        (), strict=False, examples=[["jsonl"]], description="observers of the run; they decide no score"
    )
    plugins: tuple[str, ...] = Field(
        (),
        strict=False,
        examples=[["my_rule.py"]],
        description="Python files that hold plugins still in development, relative to this file",
    )
    path: Path | None = Field(None, exclude=True)
    root: Path = Field(Path(), exclude=True)
    files: tuple[Any, ...] = Field((), exclude=True)  # LocalFile: what `plugins` names, as it was read

    # Fields that decide no score. The code that `plugins` names does: it is in the keys of stages and in provenance.
    unscored: ClassVar[tuple[str, ...]] = ("description", "trackers", "plugins")

    @classmethod
    def problems(cls, values: Mapping[str, Any], given: Collection[str]) -> Found:
        for axis in ("defences", "aggregators", "compressors"):
            stacks = values.get(axis)
            if stacks == ():
                yield (
                    (axis,),
                    f"{axis} needs at least one value, e.g. [{'mean' if axis == 'aggregators' else 'none'}]",
                )
            yield from repeated(stacks or (), axis, axis[:-1])
        for i, stack in enumerate(values.get("defences") or ()):
            for (_, j), _ in repeated(stack, "", "defence"):
                again = f"{stack[int(j)].label()} stands twice in this stack with the same parameters; name it once"
                yield ("defences", i, j), again
        for i, chain in enumerate(values.get("aggregators") or ()):
            yield from _chain_problems(i, chain)
        metrics = values.get("metrics") or ()
        yield from repeated(metrics, "metrics", "metric")
        yield from repeated(values.get("trackers") or (), "trackers", "tracker")
        unprotected = values.get("unprotected") or ()
        for i, split in enumerate(unprotected):
            if split in unprotected[:i]:
                yield ("unprotected", i), f"{split} is repeated; list each split only once"
        for i, problem in shared_scores(metrics):
            yield ("metrics", i), f"{problem}; list one of them"
        yield from _score_problems(values.get("threats") or (), values.get("metrics"))
        seeds: tuple[int, ...] | None = values.get("seeds")
        if seeds == ():
            yield ("seeds",), "seeds needs at least one number, e.g. [0, 1, 2]"
        known: set[int] = set()
        for i, seed in enumerate(seeds or ()):
            if seed in known:
                yield ("seeds", i), f"the seed {seed} is repeated"
            known.add(seed)
        yield from cls._threat_problems(values, given)

    @classmethod
    def _threat_problems(cls, values: Mapping[str, Any], given: Collection[str]) -> Found:
        threats = values.get("threats")
        if threats == ():
            yield ("threats",), "threats needs at least one, e.g. [{name: none}]"
        names: Counter[str] = Counter()
        clients = getattr(values.get("federation"), "clients", None)
        for i, threat in enumerate(threats or ()):
            name, share = getattr(threat, "name", None), getattr(threat, "malicious", 0.0)
            if name is not None and names[name]:
                yield ("threats", i, "name"), f"the threat name {name!r} is used twice"
            names[name or ""] += 1
            if clients and share:
                yield from _share_problems(i, share, clients)
            yield from _round_problems(i, threat, values.get("federation"))
            if values.get("holdout") == 0 and "holdout" in given:
                for attack in getattr(threat, "attacks", ()):
                    if getattr(attack, "needs_non_members", False):
                        yield ("holdout",), f"{attack.name} needs non-members: holdout must be greater than 0"
                        break

    def _settle(self) -> None:
        if "holdout" not in self.model_fields_set and any(t.phase == "privacy" for t in self.threats):
            attacks = [attack for threat in self.threats for attack in threat.attacks]
            shares = [attack.holdout for attack in attacks if isinstance(attack, PrivacyAttack)]
            self._set("holdout", max(shares, default=PrivacyAttack.holdout))

    @property
    def tolerance(self) -> float:
        """The share of malicious clients that robust rules are told, the same in every cell."""
        if self.federation.byzantine_tolerance is not None:
            return self.federation.byzantine_tolerance
        return max((t.malicious for t in self.threats), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """The scenario in full, as JSON values: defaults spelled out, sweeps expanded; load_text reads it."""
        with registry.registry().seeing(self.files):
            plain = self.model_dump(mode="json", by_alias=True)
            for axis in ("defences", "aggregators", "compressors"):
                plain[axis] = [[spec_of(p) for p in stack] or "none" for stack in getattr(self, axis)]
            plain["federation"]["partition"] = spec_of(self.federation.partition)
            for threat, written in zip(self.threats, plain["threats"], strict=True):
                written["attacks"] = [spec_of(attack) for attack in threat.attacks]
        return plain

    def hash(self) -> str:
        """sha256 of the name and everything that decides a score, so not of the file's path or the description."""
        written = independent(self, self.to_dict())
        plain = {key: value for key, value in written.items() if key not in self.unscored}
        plain["compute"].pop("stage_timeout")
        for name in ("clients", "chunk", "trainings", "channels_last"):
            # They count only where they are not the default: scenarios had hashes before there was a choice.
            if getattr(self.compute, name) == Compute.model_fields[name].default:
                plain["compute"].pop(name)
        plain["threats"] = [identifying(threat) for threat in plain["threats"]]
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _share_problems(index: int, share: float, clients: int) -> Found:
    """A threat's share of malicious clients must make at least one, and leave at least one honest."""
    count = malicious_count(clients, share)
    if count == 0:
        yield (
            ("threats", index, "malicious"),
            f"malicious {share:g} of {clients} clients is {share * clients:g}: less than one client; "
            f"at least {1 / clients:.3g} makes one",
        )
    elif count == clients:
        yield (
            ("threats", index, "malicious"),
            f"malicious is a share, and {share:g} of {clients} clients is all of them; {1 / clients:.3g} is one",
        )


def _round_problems(index: int, threat: Any, federation: Any) -> Found:
    rounds, clients = getattr(federation, "rounds", None), getattr(federation, "clients", None)
    for field in ("start_round", "stop_round"):
        value = getattr(threat, field, None)
        if value is not None and rounds is not None and value > rounds:
            yield ("threats", index, field), f"{field} is {value}, but there are only {rounds} rounds"
    # With coins, attackers who always take part come on top of those drawn. Values that are mistakes are not there.
    share, drawn = getattr(threat, "malicious", 0.0), getattr(federation, "participation", None)
    fixed = getattr(federation, "sampling", None) == "fixed"
    if getattr(threat, "participation", "sampled") == "always" and clients and fixed and drawn is not None:
        count = clients_per_round(clients, drawn)
        malicious = malicious_count(clients, share)
        if malicious > count:
            yield (
                ("threats", index, "participation"),
                f"{malicious} malicious clients cannot take part in every round of {count} clients",
            )


def _score_problems(threats: Iterable[Any], metrics: Iterable[Metric] | None) -> Found:
    """Scores that two plugins declare, although a record holds one value per score.

    An attack and a metric may not share a score; two attacks may, if they mean the same by it.
    """
    attacks = [
        (i, j, attack)
        for i, threat in enumerate(threats)
        for j, attack in enumerate(getattr(threat, "attacks", ()))
    ]
    own = [(i, j, attack) for i, j, attack in attacks if isinstance(attack, PrivacyAttack) and attack.scores]
    if not own:
        return
    built_in = (e.plugin for e in registry.registry().entries("metric") if e.distribution == BUILTIN)
    computed = {name: metric.name for metric in metrics or built_in for name in metric.scores}  # type: ignore[union-attr]
    first: dict[str, PrivacyAttack] = {}
    for i, j, attack in own:
        for name, score in attack.scores.items():
            other = first.setdefault(name, attack)
            here, there = ((s.unit, s.direction, s.measured) for s in (score, other.scores[name]))
            if name in computed:
                yield (
                    ("threats", i, "attacks", j),
                    f"the attack {attack.name} and the metric {computed[name]} both declare the score {name!r}; "
                    "leave one of them out",
                )
            elif here != there:
                yield (
                    ("threats", i, "attacks", j),
                    f"the attacks {other.name} and {attack.name} do not mean the same by the score {name!r}; make two "
                    "scenarios",
                )


def _chain_problems(index: int, chain: tuple[Aggregator, ...]) -> Found:
    if not chain:
        yield ("aggregators", index), "an aggregator is needed, e.g. mean"
        return
    for j, rule in enumerate(chain[:-1]):
        if not rule.pre:
            yield (
                ("aggregators", index, j),
                f"{rule.name} ends a chain: only pre-aggregators may stand before another rule",
            )
    if chain[-1].pre:
        names = ", ".join([*(rule.name for rule in chain), "mean"])
        last = len(chain) - 1
        yield (
            ("aggregators", index, last),
            f"{chain[-1].name} is a pre-aggregator and needs a rule after it, e.g. [{names}]",
        )
