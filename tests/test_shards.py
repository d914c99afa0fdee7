"""Shards: every cell in exactly one, whole trainings, balanced, and the same everywhere."""

from __future__ import annotations

import pytest

from harness.errors import HarnessError
from harness.scenario import load_text
from harness.scenario_plan import plan_scenarios
from harness.shards import Shard, divide

BASE = """
schema: 1
name: {name}
dataset: digits
model: {{mlp: {{hidden: [{width}]}}}}
federation: {{clients: 4, rounds: 2}}
defences: [none, gradient-clipping: {{max_norm: 1.0}}]
aggregators: [mean, median, trimmed-mean, {{krum: {{f: 3}}}}]
compressors: [none, static-int8]
threats:
  - {{name: none}}
  - {{name: evasion, budget: {{norm: linf, eps: 0.1}}, surrogate: uncompressed, attacks: [fgsm, pgd: {{steps: 2}}]}}
  - {{name: byzantine, malicious: 0.25, attacks: [sign-flip]}}
seeds: [0, 1]
"""
SURROGATE = """
threats:
  - {name: e, budget: {norm: linf, eps: 0.1}, attacks: [transfer: {attack: fgsm, source: other, defences: []}]}
"""


def planned(*texts: str, store=None):
    return plan_scenarios([load_text(text) for text in texts], "cpu", store, [])[0]


def text(name: str = "small", width: int = 8) -> str:
    return BASE.format(name=name, width=width)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 60])
def test_every_cell_is_in_one_shard_and_no_training_in_two(count):
    plan = planned(text(), text("large", 512))
    parts = divide(plan, count)
    assert len(parts) == count
    ids = [(c.cell.scenario.name, c.cell.id) for part in parts for c in part]
    assert sorted(ids) == sorted((c.cell.scenario.name, c.cell.id) for c in plan.cells)
    trainings = [{c.stages["train"] for c in part if c.stages} for part in parts]
    assert sum(map(len, trainings)) == len(set().union(*trainings))
    order = [c.cell.id for c in plan.cells]
    for part in parts:
        positions = [order.index(c.cell.id) for c in part]
        assert positions == sorted(positions)


def test_not_applicable_cells_are_shared_out_too():
    plan = planned(text())
    reasons = [c for c in plan.cells if c.reason]
    assert reasons  # krum with f = 3 of 4 clients
    parts = divide(plan, 4)
    assert sum(bool(c.reason) for part in parts for c in part) == len(reasons)


def test_shards_cost_about_the_same():
    from harness.shards import _costs, _needed

    plan = planned(text(), text("large", 512))
    costs = _costs(plan)

    def cost(cells) -> float:
        return sum(costs[key] for key in _needed(plan, (k for c in cells for k in c.stages.values())))

    loads = [cost(part) for part in divide(plan, 4)]
    trainings = [key for key, stage in plan.stages.items() if stage.kind == "train"]
    largest = max(cost([c for c in plan.cells if c.stages.get("train") == key]) for key in trainings)
    mean = sum(loads) / 4
    # What longest-processing-time-first guarantees: no shard exceeds the mean by more than one group.
    assert max(loads) <= mean + largest
    assert max(loads) < 1.2 * mean


def test_a_store_and_the_machine_change_nothing(tmp_path, monkeypatch):
    import harness
    from harness.store import Store

    def ids(plan):
        return [[c.cell.id for c in part] for part in divide(plan, 3)]

    first = ids(planned(text()))
    scenario = load_text(text())
    harness.run(
        scenario, device="cpu", jobs=0, store=tmp_path / "runs", select="defence=none,aggregator=mean,seed=0"
    )
    with Store(tmp_path / "runs") as store:
        assert ids(planned(text(), store=store)) == first
    from harness import estimate

    monkeypatch.setattr(
        estimate, "_measure", lambda *_: pytest.fail("a shard must not depend on a measurement")
    )
    assert ids(planned(text())) == first


def test_a_surrogate_is_trained_where_it_is_needed():
    plan = planned(text().split("threats:")[0] + SURROGATE)
    for number in range(1, 9):
        part = Shard(number, 8).of(plan)
        for cell in part.cells:
            assert set(cell.stages.values()) <= set(part.stages)
        for stage in part.stages.values():
            assert set(stage.needs) <= set(part.stages)


def test_trainings_that_share_a_surrogate_stay_together_where_that_is_fair():
    base = text().replace("{krum: {f: 3}}", "geometric-median").split("threats:")[0] + SURROGATE
    plan = planned(base)
    parts = divide(plan, 2)
    trained = [
        {k for c in part for k in c.stages.values() if plan.stages[k].kind == "train"} for part in parts
    ]
    assert all(part for part in parts)
    assert not trained[0] & trained[1]


@pytest.mark.parametrize("wrong", ["0/3", "4/3", "1", "1/", "a/b", "1/0", "-1/2", "1.0/2"])
def test_a_shard_that_is_none_is_said(wrong):
    with pytest.raises(HarnessError, match="such as 2/8"):
        Shard.parse(wrong)


def test_a_shard_needs_every_scenario(tmp_path):
    absent = text("absent").replace("dataset: digits", "dataset: {npz: {path: nowhere.npz}}")
    loaded = [load_text(text()), load_text(absent)]
    with pytest.raises(HarnessError, match="a shard needs every scenario") as error:
        plan_scenarios(loaded, "cpu", None, [], Shard(1, 2))
    assert "nowhere.npz" in str(error.value)


def test_plan_shows_the_shard():
    from harness.engine import plan

    found = plan(load_text(text()), device="cpu", jobs=1, store="nowhere", shard="2/3").to_dict()
    listed = [c for s in found["scenarios"] for c in s["cells"]]
    assert found["shard"] == {"index": 2, "count": 3, "cells": len(listed), "of": 2 * 4 * 2 * 4 * 2}
    assert 0 < len(listed) < 128


def test_costs_are_not_added_up_anew_for_every_group_of_cells(monkeypatch):
    from harness import shards

    class Counted(dict):
        read = 0

        def __getitem__(self, key):
            Counted.read += 1
            return super().__getitem__(key)

    costs = shards._costs
    monkeypatch.setattr(shards, "_costs", lambda plan: Counted(costs(plan)))
    plan = planned(text().replace("[0, 1]", str([*range(12)])))
    divide(plan, 4)
    assert Counted.read <= 4 * len(plan.stages)  # anew, it was 282 times as many here
