"""Runs on a Ray cluster: the same records as here, nothing lost with a node, and nodes that differ refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_runner import comparable

import harness
from harness.engine import plan
from harness.errors import HarnessError
from harness.scenario import load_text

pytestmark = pytest.mark.slow

SCENARIO = """
schema: 1
name: quickstart-reduced
dataset: digits
model: {mlp: {hidden: [8]}}
normalization: {mean: 0.3, std: 0.38}
federation: {clients: 5, rounds: 2, partition: {dirichlet: {alpha: 3.0}}, local: {epochs: 1, batch_size: 32}}
"""
GRID = """
defences: [none, dp-sgd: {epsilon: 8}]
aggregators: [gated-mean, [nnm, trimmed-mean]]
compressors: [none, magnitude-pruning: {ratio: 0.5}]
threats: [{name: none}, {name: evasion, budget: {norm: linf, eps: 0.1}, attacks: [fgsm]}]
"""
PICTURES = """
threats: [{name: server, knowledge: server, attacks: [dlg: {records: 1, iterations: 1, restarts: 1}]}]
"""


class Watch:
    """A display that does something when a stage has begun a round."""

    def __init__(self, action) -> None:
        self.action = action
        self.problems: list[str] = []

    def problem(self, text: str) -> None:
        self.problems.append(text)

    def stage_progress(self, key, done, total, text) -> None:
        self.action(key, done)

    def __getattr__(self, name):
        return lambda *_: None


def run(text: str, store: Path, *more: str, **options):
    """One scenario, or several."""
    scenarios = [
        load_text(SCENARIO.replace("reduced", f"reduced-{number}") + one, store.parent / f"{number}.yaml")
        for number, one in enumerate((text, *more))
    ]
    return harness.run(scenarios, store=store, **{"device": "cpu", "executor": "ray", **options})


def by_aggregator(result) -> dict[str, dict]:
    return {record["cell"]["aggregator"].split("(")[0]: record for record in result.records}


@pytest.fixture(scope="module")
def workers(nodes):
    """Two nodes like this machine, and one with another version of a plugin."""
    found = [nodes.add(wait=False), nodes.add(wait=False), nodes.add("1.3", wait=False)]
    nodes.wait_for(3)
    return found


def test_a_cluster_gives_the_records_that_this_machine_gives(workers, tmp_path):
    here = run(GRID, tmp_path / "here", PICTURES, executor="local", jobs=0)
    rounds = []
    there = run(
        GRID, tmp_path / "there", PICTURES, observer=Watch(lambda key, done: rounds.append((key, done)))
    )
    assert here.failed == there.failed == 0
    assert here.executed == there.executed
    assert len(there.records) == 2 * 2 * 2 * 2 + 1
    for a, b in zip(here.records, there.records, strict=True):
        assert comparable(a) == comparable(b)
    # Everything that the stages left is in the driver's store, and nothing else.
    for name in ("artifacts", "pictures"):
        left = [sorted(p.name for p in (tmp_path / s / name).rglob("*.*")) for s in ("here", "there")]
        assert left[0] == left[1]
        assert left[0]
    # Each round of each training was told, in order.
    trained = {r["provenance"]["stages"]["train"] for r in there.records}
    for key in trained:
        assert [done for k, done in rounds if k == key] == [1, 2]
    # The third node computed nothing.
    (problem,) = there.problems
    assert "is refused" in problem
    assert "aggregator gated-mean of lab-plugin 1.3 there, 1.2 here" in problem
    again = run(GRID, tmp_path / "there", PICTURES)
    assert sum(again.executed.values()) == 0


def test_stages_that_fail_and_workers_that_die(workers, tmp_path):
    text = f"""
aggregators:
  - dies-once: {{file: {tmp_path / "died"}}}
  - raises: {{file: {tmp_path / "tried"}}}
  - mean
"""
    result = run(text, tmp_path / "runs", artifacts="shared")
    found = by_aggregator(result)
    assert {name: r["status"] for name, r in found.items()} == {
        "dies-once": "scored",
        "raises": "failed",
        "mean": "scored",
    }
    # A lost worker process is no failure of the stage; a failure is not tried again.
    assert [p for p in result.problems if "started again, 1 of 3" in p]
    assert (tmp_path / "tried").read_text().count("tried") == 1
    assert "the disk is made of cheese" in found["raises"]["error"]["message"]
    assert "in aggregate" in found["raises"]["error"]["traceback"]
    here = run(text, tmp_path / "here", executor="local", jobs=0, select="aggregator=dies-once*")
    assert comparable(found["dies-once"]) == comparable(here.records[0])
    assert not list((tmp_path / "runs").glob("*ray-*"))


def test_ctrl_c_and_a_time_limit_end_what_runs(workers, tmp_path):
    """The other stages stay done."""
    text = f"aggregators: [mean, gated-mean: {{gate: {tmp_path / 'never'}}}]"

    def stop(key, done):
        if key == gated:
            raise KeyboardInterrupt

    run("aggregators: [mean]", tmp_path / "runs")
    gated = _training(text, tmp_path, "gated-mean")
    stopped = run(text, tmp_path / "runs", observer=Watch(stop))
    assert stopped.interrupted
    assert [r["cell"]["aggregator"] for r in stopped.records] == ["mean"]
    limited = by_aggregator(run(text, tmp_path / "runs", timeout=2.0))
    assert limited["mean"]["status"] == "scored"
    assert "longer than the limit of 2 s" in limited["gated-mean"]["error"]["message"]


def test_a_node_that_is_killed_half_way_loses_nothing(workers, nodes, tmp_path):
    gate = tmp_path / "gate"
    text = f"aggregators: [gated-mean: {{gate: {gate}}}, median]\nseeds: [0, 1]"
    waiting: set[str] = set()

    def kill(key, done):
        waiting.add(key)
        if len(waiting) == 2 and not gate.exists():  # one training on each node, in its second round
            nodes.kill(workers[1])
            gate.touch()

    watch = Watch(kill)
    there = run(text, tmp_path / "there", observer=watch)
    assert gate.exists()
    assert len([p for p in watch.problems if "started again, 1 of 3" in p]) == 1
    assert there.failed == 0
    here = run(text, tmp_path / "here", executor="local", jobs=0)
    assert len(there.records) == len(here.records) == 4
    assert there.executed == here.executed
    for a, b in zip(here.records, there.records, strict=True):
        assert comparable(a) == comparable(b)
    # With the other one gone too, only the node with the other version is left.
    nodes.kill(workers[0])
    nodes.wait_for(1)
    with pytest.raises(HarnessError, match="no node of the Ray cluster can be used") as error:
        run(text, tmp_path / "none")
    assert "gated-mean of lab-plugin 1.3 there, 1.2 here" in str(error.value)


def _training(text: str, folder: Path, aggregator: str) -> str:
    """The key of the training of an aggregator's cell."""
    planned = plan(load_text(SCENARIO + text, folder / "x.yaml"), device="cpu", store=folder / "none")
    cells = [c for s in planned.to_dict()["scenarios"] for c in s["cells"]]
    return next(c["stages"]["train"] for c in cells if c["axes"]["aggregator"].startswith(aggregator))
