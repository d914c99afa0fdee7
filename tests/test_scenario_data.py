"""A scenario that cannot work with its data is refused before it runs, at the place in its file."""

from __future__ import annotations

import pytest

from harness.cli import main
from harness.errors import ScenarioError
from harness.scenario import check_data, load_text
from harness.scenario_data import check_fit
from harness.starter import Answers, write_scenario

BASE = "schema: 1\nname: x\ndataset: digits\nmodel: mlp\n"


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("federation: {clients: 5000}\n", ["5:23: 5000 clients cannot share the"]),
        ("holdout: 0.9\nfederation: {clients: 900}\n", ["6:23: 900 clients cannot share the"]),
        ("normalization: {mean: [0.1, 0.2, 0.3], std: 0.5}\n", ["5:23: normalization.mean has 3 values"]),
        (
            "normalization: {mean: [0.1, 0.2], std: [0.5, 1]}\n",
            ["5:23: normalization.mean has 2", "5:40: normalization.std has 2"],
        ),
        (
            "defences: [none, dp-sgd: {epsilon: 8, delta: 0.01}]\n",
            ["5:11: dp-sgd: delta 0.01 must be below 1 / "],
        ),
    ],
)
def test_validate_names_the_place(text, places, tmp_path, capsys):
    file = tmp_path / "x.yaml"
    file.write_text(BASE + text)
    assert main(["validate", str(file)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(str(file))]
    assert len(lines) == len(places)
    for line, place in zip(lines, places, strict=True):
        assert line.startswith(f"{file}:{place}")


def test_what_fits_is_fine(tmp_path):
    text = (
        "normalization: {mean: [0.1], std: 0.5}\nfederation: {clients: 100}\nholdout: 0.5\n"
        "defences: [none, dp-sgd: {epsilon: 8, delta: 1e-5}, dp-sgd: {epsilon: 8}]\n"
    )
    scenario = load_text(BASE + text)
    check_fit(scenario, check_data(scenario))


def test_a_scenario_without_a_file_is_refused_too():
    scenario = load_text(BASE + "federation: {clients: 5000}\n")
    with pytest.raises(ScenarioError, match=r"^5000 clients cannot share the"):
        check_fit(scenario, check_data(scenario))


def test_init_writes_no_scenario_that_cannot_work(tmp_path):
    with pytest.raises(ScenarioError, match=r"x\.yaml:\d+:\d+: 5000 clients cannot share"):
        write_scenario(Answers(clients=5000), tmp_path / "x.yaml")
    assert not (tmp_path / "x.yaml").exists()
