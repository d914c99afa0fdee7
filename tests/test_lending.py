"""Places that no other stage could use go to a training's clients, and never more than there are."""

from __future__ import annotations

import pytest

import harness
from harness import engine
from harness.executors.inline import InlineExecutor
from harness.grid import cells
from harness.lending import places
from harness.plan import Planner
from harness.scenario import load_text
from harness.scenario_plan import data_facts, metrics_of

TEXT = """
schema: 1
name: lending
dataset: digits
model: logistic
federation: {clients: 6, rounds: 1, participation: 0.5, local: {steps: 1}}
"""


def stages(tmp_path, more=""):
    scenario = load_text(TEXT + more, tmp_path / "x.yaml")
    planner = Planner("cpu")
    for cell in cells(scenario):
        planner.add(cell, data_facts(scenario, None), metrics_of(scenario))
    return list(planner.stages.values())


@pytest.mark.parametrize(
    ("free", "ready", "expected"),
    [(1, 1, 1), (8, 1, 3), (2, 1, 2), (8, 4, 2), (8, 3, 2), (2, 5, 1), (9, 2, 3), (1, 9, 1)],
)
def test_free_places_are_shared_by_what_could_use_them(tmp_path, free, ready, expected):
    train = stages(tmp_path)[0]
    assert train.kind == "train"
    assert places(train, free, ready, "cpu") == expected  # three clients take part in a round


def test_nothing_but_a_training_on_a_cpu_takes_more_than_one(tmp_path):
    train, clean = stages(tmp_path)
    assert places(clean, 8, 1, "cpu") == 1
    assert places(train, 8, 1, "cuda") == 1
    for more in ("compute: {clients: vectorised}\n", "engine: flower\n"):
        assert places(stages(tmp_path, more)[0], 8, 1, "cpu") == 1


class FourPlaces(InlineExecutor):
    """Runs stages here, but only when it is asked what happened, as workers would."""

    capacity = 4
    lends = True
    seen: list[list[int]]

    def __init__(self, *args):
        super().__init__(*args)
        self.waiting = []

    def submit(self, stage):
        self.waiting.append(stage)

    def events(self, timeout):
        self.seen.append([stage.at_a_time for stage in self.waiting])
        super().submit(self.waiting.pop(0))
        return super().events(timeout)


def test_a_run_never_gives_more_places_than_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_executor", lambda store, device, *_: FourPlaces(store, device))
    FourPlaces.seen = []
    scenario = load_text(TEXT + "seeds: [0, 1]\n", tmp_path / "x.yaml")
    result = harness.run(scenario, device="cpu", jobs=4, store=tmp_path / "runs")
    assert result.scored == 2
    # Two trainings share four places; the first one's predictions go beside the other training.
    assert FourPlaces.seen == [[2, 2], [2, 1], [1, 1], [1]]
