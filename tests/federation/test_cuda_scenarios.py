"""The scenarios of test_cuda.py, which is skipped without a GPU, are valid, and all their cells can be scored."""

from __future__ import annotations

import pytest
from test_cuda import INT8, RUN

import harness
from harness.scenario import load_text


def test_every_cell_of_the_int8_scenario_scores(tmp_path):
    run = harness.run(load_text(INT8, "int8.yaml"), device="cpu", jobs=0, store=tmp_path / "runs")
    assert [r["error"] for r in run.records if r["error"]] == []
    assert run.scored == 7


@pytest.mark.parametrize("seeds", ["", "seeds: [1]\n"])
def test_the_whole_run_is_valid(seeds):
    assert load_text(RUN + seeds, "run.yaml").name == "cuda"
