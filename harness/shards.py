"""A part of a plan's cells, for one of several machines: `--shard 2/8`, joined later by `harness merge`.

Every machine divides the same cells in the same way without asking the others, so nothing decides the division but
the scenarios themselves: neither what a store holds, nor how fast a machine is.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.estimate import OVERHEAD, work
from harness.plan import Plan
from harness.stage_specs import training_of

if TYPE_CHECKING:
    from harness.grid import DataFacts
    from harness.plan import CellPlan, Stage
    from harness.stage_specs import TrainSpec

# A nominal machine: only proportions of costs matter, and they have to be the same everywhere.
PASS = 1e-9  # seconds of a forward pass, per parameter and image
STEP = 1e-3  # seconds that a local step costs beside its passes
BACKWARD = 3  # what a step's forward and backward pass cost together, in forward passes


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard that a text `i/n` names. Raises HarnessError for any other text."""
        found = re.fullmatch(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})", text.strip())
        if found is None or int(found[1]) > int(found[2]):
            raise HarnessError(f"a shard is i/n with i from 1 to n, such as 2/8, not {text!r}")
        return cls(int(found[1]), int(found[2]))

    def of(self, plan: Plan) -> Plan:
        """The plan of this shard's cells alone."""
        cells = divide(plan, self.count)[self.index - 1]
        needed = _needed(plan, (key for cell in cells for key in cell.stages.values()))
        stages = {key: stage for key, stage in plan.stages.items() if key in needed}
        facts = {"index": self.index, "count": self.count, "cells": len(cells), "of": len(plan.cells)}
        return Plan(cells, stages, plan.facts, plan.device, facts)


def divide(plan: Plan, count: int) -> list[list[CellPlan]]:
    """The plan's cells in `count` parts, each in the plan's order; a part may be empty.

    Cells of one training stay together. So do groups whose stages share a training, such as a surrogate's, unless
    together they cost more than an even share. Groups are dealt out from the most expensive to the least, each to the
    part whose cost is then least; stages that the part has already cost nothing (longest processing time first; Graham
    1969, Bounds on multiprocessing timing anomalies, SIAM Journal on Applied Mathematics 17).
    """
    costs = _costs(plan)
    needs = {id(cell): _needed(plan, cell.stages.values()) for cell in plan.cells}
    groups: dict[object, list[CellPlan]] = defaultdict(list)
    for cell in plan.cells:
        groups[cell.stages.get("train", cell.cell.id)].append(cell)  # cells that are not run stand alone
    stages = {key: set().union(*(needs[id(c)] for c in cells)) for key, cells in groups.items()}

    # As whole numbers of one unit, so that sums are exact, and the order of a set does not matter.
    ratios = {key: cost.as_integer_ratio() for key, cost in costs.items()}
    unit = max((below for _, below in ratios.values()), default=1)  # a power of two, which the others divide
    units = {key: above * (unit // below) for key, (above, below) in ratios.items()}

    def cost(keys: Iterable[str]) -> int:
        return sum(units[key] for key in keys)

    def union(item: Iterable[object]) -> set[str]:
        return set().union(*(stages[key] for key in item))

    share = cost(plan.stages) / count
    items: list[list[object]] = []
    for linked in _linked(plan, stages):
        items += [linked] if cost(union(linked)) <= share else [[key] for key in linked]
    held: list[set[str]] = [set() for _ in range(count)]
    loads = [0] * count  # the costs of `held`, kept up to date: adding them up anew would take quadratic time
    parts: list[list[CellPlan]] = [[] for _ in range(count)]
    for item in sorted(items, key=lambda item: -cost(union(item))):  # stable: equal ones in the plan's order
        wanted = union(item)
        then = [load + cost(wanted - own) for load, own in zip(loads, held, strict=True)]
        best = min(range(count), key=lambda i: (then[i], len(parts[i]), i))
        held[best] |= wanted
        loads[best] = then[best]
        parts[best] += [cell for key in item for cell in groups[key]]
    position = {id(cell): number for number, cell in enumerate(plan.cells)}
    return [sorted(part, key=lambda cell: position[id(cell)]) for part in parts]


def _needed(plan: Plan, keys: Iterable[str]) -> set[str]:
    """These stages and all that they need."""
    found: set[str] = set()
    open_keys = list(keys)
    while open_keys:
        key = open_keys.pop()
        if key not in found:
            found.add(key)
            open_keys += plan.stages[key].needs
    return found


def _linked(plan: Plan, stages: dict[object, set[str]]) -> list[list[object]]:
    """The groups, joined where they have a training in common, in the plan's order. stages: group -> all it needs."""
    owner: dict[str, int] = {}
    sets: list[list[object]] = []
    owned: list[list[str]] = []  # the trainings of each set
    for key, own in stages.items():
        trainings = [k for k in own if plan.stages[k].kind == "train"]
        met = sorted({owner[k] for k in trainings if k in owner})
        target = met[0] if met else len(sets)
        if not met:
            sets.append([])
            owned.append([])
        new = [k for k in trainings if k not in owner]
        for other in met[1:]:
            sets[target] += sets[other]
            new += owned[other]
            sets[other], owned[other] = [], []
        sets[target].append(key)
        owned[target] += new
        owner.update(dict.fromkeys(new, target))
    return [linked for linked in sets if linked]


def _costs(plan: Plan) -> dict[str, float]:
    facts = {id(c.cell.scenario.dataset): plan.facts[c.cell.scenario.name] for c in plan.cells}
    sizes: dict[tuple[object, ...], int] = {}
    return {key: _cost(stage, facts, sizes) for key, stage in plan.stages.items()}


def _cost(stage: Stage, facts: dict[int, DataFacts], sizes: dict[tuple[object, ...], int]) -> float:
    train = training_of(stage.spec)
    data = facts[id(train.dataset)]
    mark = (train.model, data.input_shape, data.num_classes)
    if mark not in sizes:
        sizes[mark] = _parameters(train, data)
    forward = PASS * sizes[mark]
    step = STEP + BACKWARD * forward * train.federation.local.batch_size
    return OVERHEAD + work(stage.spec, train, data, step, forward)


def _parameters(train: TrainSpec, facts: DataFacts) -> int:
    import torch

    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        module = train.model.build(facts.input_shape, facts.num_classes, train.normalization)
    return sum(p.numel() for p in module.parameters())
