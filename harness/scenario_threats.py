"""Threats: who attacks, when, with what knowledge and within what bounds."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from harness.contracts.attack import KNOWLEDGE, Attack, radius_problem
from harness.contracts.privacy import PrivacyAttack
from harness.scenario_parts import Axis, Found, Part, Slug, repeated

TRAINING_FIELDS = {  # and their defaults
    "capability": None, "participation": "sampled", "start_round": 1, "stop_round": None,
}  # fmt: skip
# Fields newer than the ids of cells and the hashes of scenarios, where they count only if they are not the default.
LATER = ("capability",)


def identifying(threat: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a threat, as JSON values, that enters ids and hashes."""
    return {
        name: value for name, value in threat.items() if name not in LATER or value != TRAINING_FIELDS[name]
    }


class Budget(Part):
    """How far an input may be moved, in [0, 1] pixels."""

    norm: Literal["linf", "l2", "l0"] = Field(
        examples=["linf"], description="the norm that bounds the change"
    )
    eps: float = Field(
        ge=0,
        examples=["8/255"],
        description="radius: in [0, 1] pixels, or the number of pixels for l0; a sweep makes one threat of each",
        json_schema_extra={"x-sweep": True},
    )

    @classmethod
    def problems(cls, values: Mapping[str, Any], given: Collection[str]) -> Found:
        problem = radius_problem(values.get("norm"), values.get("eps"))
        if problem:
            yield ("eps",), problem


class Threat(Part):
    """An adversary: when it acts, what it knows and controls, and the attacks it tries."""

    name: Slug = Field(description="unique; `none` is the benign case", examples=["evasion"])
    phase: Literal["none", "training", "inference", "privacy"] = Field(
        "none", description="when it acts; default: taken from the attacks"
    )
    malicious: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of malicious clients (training-time threats), rounded down",
    )
    capability: Literal["data", "training"] | None = Field(
        None,
        examples=["training"],
        description="what malicious clients control (training-time threats): their data, so that they run the "
        "clients' defences, or their training, so that they run none; default: what each attack's paper assumes",
    )
    participation: Literal["sampled", "always"] = Field(
        "sampled",
        description="malicious clients are drawn for a round like any other, or take part in every round",
    )
    start_round: int = Field(1, ge=1, description="first round attacked, from 1 (training)")
    stop_round: int | None = Field(None, ge=1, description="last round attacked; default: to the end")
    knowledge: str | None = Field(
        None,
        examples=["white-box"],
        description="inference: white-box (default) or black-box; training: omniscient (default), updates or "
        "own; privacy: black-box, white-box or server, by default what the attacks need",
    )
    budget: Budget | None = Field(
        None,
        examples=[{"norm": "linf", "eps": "8/255"}],
        description="bound on the change of an input (inference)",
    )
    surrogate: Literal["uncompressed"] | None = Field(
        None, description="model that gradients come from where the target has none (inference)"
    )
    subset: int | None = Field(
        None, ge=1, description="test records attacked, seeded and class-stratified; default: all"
    )
    attacks: Annotated[tuple[Attack, ...], Axis("attack", stack=False, none=False)] = Field(
        (), examples=[["fgsm", {"pgd": {"steps": 20}}]], description="each makes a cell of its own"
    )

    @classmethod
    def problems(cls, values: Mapping[str, Any], given: Collection[str]) -> Found:
        name, attacks = values.get("name"), values.get("attacks")
        declared = values.get("phase") if "phase" in given else None
        known = tuple(attacks or ())
        if name == "none" or (declared == "none" and name is not None):
            if name != "none":
                yield ("phase",), f"only the threat named none has phase none, not {name!r}"
                return
            if known:
                yield ("name",), "the threat named none has no attacks; give this one another name"
            elif declared not in (None, "none"):
                yield ("phase",), f"the threat named none has no phase, not {declared}"
            for field in ("malicious", "knowledge", "budget", "surrogate", "subset", *TRAINING_FIELDS):
                if values.get(field) not in (None, 0, TRAINING_FIELDS.get(field)) and not known:
                    yield (field,), f"the threat named none takes no {field}"
            return
        if attacks == ():
            yield (
                ("attacks",),
                "a threat needs attacks, e.g. `attacks: [pgd]`; only the one named none has none",
            )
        inferred = known[0].phase if known and "attacks" in given else None  # not if some are mistakes
        phase = inferred if declared in (None, "none") else declared
        for i, attack in enumerate(known if phase else ()):
            if attack.phase != phase:
                owner = f"this threat is of phase {phase}" if declared else f"{known[0].name} acts at {phase}"
                yield (
                    ("attacks", i),
                    f"{attack.name} is of phase {attack.phase}, but {owner}; make two threats",
                )
        yield from cls._phase_problems(phase, values)
        # The clean scores show what an attack on training did, over all test records, unless it is a backdoor.
        backdoor = any(getattr(attack, "backdoor_target", None) is not None for attack in known)
        if phase == "training" and known and values.get("subset") is not None and not backdoor:
            yield (
                ("subset",),
                "subset is of the test records that are attacked, and no attack of this threat attacks any; "
                "evaluation.subset is for all scores",
            )
        yield from repeated(known, "attacks", "attack")

    @classmethod
    def _phase_problems(cls, phase: str | None, values: Mapping[str, Any]) -> Found:
        malicious, knowledge = values.get("malicious"), values.get("knowledge")
        if phase == "training" and malicious == 0:
            yield (
                ("malicious",),
                "a training threat needs malicious, the share of clients, e.g. `malicious: 0.2`",
            )
        if phase is None:  # attacks or phase are mistakes themselves: knowledge that fits no phase is one too
            levels = sorted(set().union(*KNOWLEDGE.values()))
            if knowledge is not None and knowledge not in levels:
                yield (
                    ("knowledge",),
                    f"knowledge is one of {', '.join(levels)}, by the phase, not {knowledge!r}",
                )
            return
        if phase != "training" and malicious:
            yield ("malicious",), f"malicious clients act in training; this threat is of phase {phase}"
        if phase != "training":
            for field, default in TRAINING_FIELDS.items():
                if values.get(field, default) != default:
                    yield (field,), f"{field} is for threats of phase training; this one is of phase {phase}"
        start, stop = values.get("start_round"), values.get("stop_round")
        if start is not None and stop is not None and stop < start:
            yield ("stop_round",), f"stop_round {stop} comes before start_round {start}"
        if knowledge is not None and knowledge not in KNOWLEDGE[phase]:
            choices = " or ".join(repr(k) for k in sorted(KNOWLEDGE[phase]))
            yield ("knowledge",), f"knowledge of a threat of phase {phase} is {choices}, not {knowledge!r}"
        if phase != "inference":
            for field in ("budget", "surrogate"):
                if values.get(field) is not None:
                    yield (field,), f"{field} is for threats of phase inference; this one is of phase {phase}"

    def capability_with(self, attack: Attack) -> str:
        """What malicious clients control under this attack: `data` alone, or their `training`."""
        return self.capability or ("training" if attack.controls_training else "data")

    def active(self, done: int = 0) -> range:
        """The rounds attacked, from 0, in a training that continues after `done` rounds."""
        stop = sys.maxsize if self.stop_round is None else self.stop_round - done
        return range(self.start_round - 1 - done, stop)

    def _settle(self) -> None:
        if self.attacks:
            self._set("phase", self.attacks[0].phase)
            if self.knowledge is None:
                levels = KNOWLEDGE[self.phase]
                needed = [levels.index(a.knowledge) for a in self.attacks if isinstance(a, PrivacyAttack)]
                self._set("knowledge", levels[min(needed, default=0)])
