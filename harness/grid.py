"""Scenario → cells: one value on each axis, one threat, one attack, one seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from harness.contracts.attack import Attack, EvasionAttack, Surrogate
from harness.contracts.base import Plugin
from harness.contracts.compressor import Compressor, ModelCompressor, UpdateCompressor
from harness.contracts.defence import Defence
from harness.errors import HarnessError, did_you_mean
from harness.naming import Naming
from harness.scenario_threats import identifying

if TYPE_CHECKING:
    from harness.contracts.aggregator import Aggregator
    from harness.scenario import Scenario, Threat
T = TypeVar("T")


class Memo:
    """Results of functions of the few objects that many cells share, each computed once.

    Objects are told apart by identity, because equal ones may still be written differently, as 1 and 1.0 are.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], tuple[Any, Any]] = {}

    def of(self, function: Callable[[Any], T], thing: Any) -> T:
        """function(thing). A tuple is identified by its members."""
        members = tuple(map(id, thing)) if isinstance(thing, tuple) else id(thing)
        found = self._known.get((function, members))
        if found is None:
            # The object is kept with the result, so that its id cannot pass to another one.
            found = self._known[function, members] = thing, function(thing)
        return found[1]  # type: ignore[no-any-return]


AXES = ("defence", "aggregator", "compressor", "threat", "attack", "seed")


@dataclass(frozen=True, eq=False)
class Cell:
    """The unit that gets a score."""

    scenario: Scenario
    defences: tuple[Defence, ...]
    aggregators: tuple[Aggregator, ...]
    compressors: tuple[Compressor, ...]
    threat: Threat
    attack: Attack | None
    seed: int
    memo: Memo = field(default_factory=Memo, repr=False)
    naming: Naming = field(default_factory=Naming, repr=False)

    @property
    def axes(self) -> dict[str, Any]:
        """Axis -> label, as tables and `--select` show it."""
        label = partial(self.memo.of, self.naming.label)
        return {
            "defence": label(self.defences),
            "aggregator": label(self.aggregators),
            "compressor": label(self.compressors),
            "threat": self.threat.name,
            "attack": "none" if self.attack is None else label((self.attack,)),
            "seed": self.seed,
        }

    @property
    def config(self) -> dict[str, Any]:
        """The cell's own part of the configuration, every parameter spelled out. Not to be changed: cells share it."""
        values = {axis: self.memo.of(self.naming.specs, stack) for axis, stack in self._stacks.items()}
        return {
            **values,
            "threat": self.memo.of(_threat_spec, self.threat),
            "attack": None if self.attack is None else self.memo.of(self.naming.specs, (self.attack,))[0],
            "seed": self.seed,
        }

    @cached_property
    def id(self) -> str:
        """12 hex digits, the same for the same axis values in a scenario of the same name."""
        texts = {axis: self.memo.of(self.naming.json, stack) for axis, stack in self._stacks.items()}
        # [1:-1]: the attack without the brackets of its list
        attack = "null" if self.attack is None else self.memo.of(self.naming.json, (self.attack,))[1:-1]
        texts |= {
            "threat": self.memo.of(_json_of_threat, self.threat),
            "attack": attack,
            "seed": str(self.seed),
        }
        # The text of json.dumps([name, config], sort_keys=True), put together from parts that cells share.
        config = ", ".join(f'"{axis}": {texts[axis]}' for axis in sorted(texts))
        text = f"[{json.dumps(self.scenario.name)}, {{{config}}}]"
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def _stacks(self) -> dict[str, tuple[Plugin, ...]]:
        return {"defence": self.defences, "aggregator": self.aggregators, "compressor": self.compressors}

    @property
    def model_compressors(self) -> tuple[ModelCompressor, ...]:
        return tuple(c for c in self.compressors if isinstance(c, ModelCompressor))

    @property
    def update_compressors(self) -> tuple[UpdateCompressor, ...]:
        return tuple(c for c in self.compressors if isinstance(c, UpdateCompressor))

    @property
    def trains_under_attack(self) -> bool:
        """Whether the attack acts during training, so that the cell needs a training of its own."""
        return self.attack is not None and self.attack.phase == "training"

    @property
    def ways(self) -> tuple[str, ...]:
        """How an evasion attack reaches the released model; where there are several ways, the worst result counts.

        `direct`: on the model itself; `twin`: on its straight-through twin; `transfer`: from a surrogate. Empty for
        other attacks, and where the attack needs gradients that it cannot get.
        """
        attack = self.attack
        if not isinstance(attack, EvasionAttack):
            return ()
        if attack.surrogate is not None:
            return ("transfer",)
        chain = self.model_compressors
        if attack.access != "gradients" or all(c.differentiable for c in chain):
            return ("direct",)
        twin = chain[-1].straight_through and all(c.differentiable for c in chain[:-1])
        ways = {"twin": twin, "transfer": self.threat.surrogate is not None}
        return tuple(way for way, possible in ways.items() if possible)

    @property
    def surrogate(self) -> Surrogate | None:
        """The model that examples are transferred from; None without the way `transfer`."""
        if "transfer" not in self.ways:
            return None
        own = self.attack.surrogate if isinstance(self.attack, EvasionAttack) else None
        return Surrogate("uncompressed", compressed=False) if own is None else own

    @property
    def behind_transfer(self) -> Cell | None:
        """The cell whose released model is the surrogate; None without one."""
        wanted = self.surrogate
        if wanted is None:
            return None
        parts = {axis: getattr(wanted, axis) for axis in ("defences", "aggregators", "compressors")}
        behind = replace(self, **{axis: part for axis, part in parts.items() if part is not None})
        return behind if wanted.compressed else replace(behind, compressors=behind.update_compressors)


def _threat_spec(threat: Threat) -> dict[str, Any]:
    return identifying(threat.model_dump(mode="json", exclude={"attacks"}))


def _json_of_threat(threat: Threat) -> str:
    return json.dumps(_threat_spec(threat), sort_keys=True)


def cells(scenario: Scenario) -> Iterator[Cell]:
    """Every combination, with the values of each axis in the file's order.

    Threats vary faster than seeds, so that cells that are compared in pairs, those of the same seed, finish together.
    Raises HarnessError where two values of an axis cannot be told apart by their labels.
    """
    memo, naming = Memo(), Naming(scenario)
    for defences in scenario.defences:
        for aggregators in scenario.aggregators:
            for seed in scenario.seeds:
                for threat in scenario.threats:
                    for attack in threat.attacks or (None,):
                        for compressors in scenario.compressors:
                            yield Cell(
                                scenario,
                                defences,
                                aggregators,
                                compressors,
                                threat,
                                attack,
                                seed,
                                memo,
                                naming,
                            )


class Addressed(Protocol):
    """A cell, or a record of one."""

    @property
    def id(self) -> str: ...

    @property
    def axes(self) -> dict[str, Any]: ...


C = TypeVar("C", bound=Addressed)


def select(found: Sequence[C], expressions: Sequence[str], option: str = "--select") -> list[C]:
    """The cells that match every `axis=glob[,axis=glob]` expression. Raises HarnessError where none does.

    option: the command-line option that the expressions were given to, for messages.
    """
    conditions = []
    for expression in expressions:
        for part in _split_outside_brackets(expression) or [expression]:
            axis, sign, pattern = part.partition("=")
            axis = axis.strip()
            if not sign:
                raise HarnessError(f"{option} takes axis=value, not {part!r}; axes: {', '.join(AXES)}")
            if axis not in AXES:
                raise HarnessError(f"{option}: unknown axis {axis!r}; {did_you_mean(axis, AXES)}")
            conditions.append((axis, pattern.strip()))
    chosen = list(found)
    for axis, pattern in conditions:
        matching = [c for c in chosen if fnmatchcase(str(c.axes[axis]), pattern)]
        if not matching:
            values = dict.fromkeys(str(c.axes[axis]) for c in chosen)
            raise HarnessError(f"{option} {axis}={pattern} matches no cell; {did_you_mean(pattern, values)}")
        chosen = matching
    return chosen


def _split_outside_brackets(text: str) -> list[str]:
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [p for p in parts if p.strip()]


@dataclass(frozen=True)
class DataFacts:
    """What planning needs to know of a dataset."""

    fingerprint: str
    num_classes: int
    input_shape: tuple[int, int, int]
    train: int
    val: int
    test: int
