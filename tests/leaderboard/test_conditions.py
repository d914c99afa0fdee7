"""What readers are told of the conditions under which a board's numbers were measured."""

from __future__ import annotations

import pytest
import synthetic

from harness.leaderboard.board import boards
from harness.leaderboard.conditions import conditions
from harness.leaderboard.submission import parse

AXES = ("none", "mean", "none")


def of(*cells, **scenario) -> str:
    made = [
        synthetic.cell((*AXES, threat, f"attack {number}"), scores={"accuracy": [0.5]}, **fields)
        for number, (threat, fields) in enumerate(cells)
    ]
    (board,) = boards([parse(synthetic.plain("one", made, scenario={"seeds": [0], **scenario}), "test")])
    return conditions(board)


def threat(**fields) -> dict:
    return {"config": {"threat": fields}}


def test_data_model_and_seeds_are_said():
    assert of(("none", {"family": "clean"})) == "Data: pneumonia. Model: resnet9(width=16). Seeds: 1."
    assert of(("none", {"family": "clean"}), test_records=10_000).startswith(
        "Data: pneumonia, 10,000 test records."
    )


def test_radii_are_said_from_the_smallest_to_the_largest():
    cells = [("curve", {"family": "evasion", "norm": "linf", "eps": eps}) for eps in (8 / 255, 0.0, 2 / 255)]
    other = ("ball", {"family": "evasion", "norm": "l2", "eps": 1.0, **threat(knowledge="white-box")})
    assert of(*cells, other).endswith(" Attacks at inference: linf 0 to 8/255, l2 1, white-box.")


def test_shares_of_malicious_clients_are_said():
    byzantine = ("b", {"family": "byzantine", **threat(malicious=0.4, knowledge="omniscient")})
    stronger = ("c", {"family": "byzantine", **threat(malicious=0.1, knowledge="own")})
    backdoor = ("d", {"family": "backdoor", **threat(malicious=0.2, knowledge="omniscient")})
    assert of(byzantine, stronger, backdoor).endswith(
        " Attacks in training: 10 or 40 % of the clients malicious, omniscient, own."
        " Backdoors: 20 % of the clients malicious."
    )


@pytest.mark.parametrize("value", ["all of them", True, 7, -1.0, [], {}, None])
def test_a_configuration_that_is_none_is_not_repeated(value):
    for config in ({"threat": value}, {"threat": {"malicious": value, "knowledge": value}}):
        assert of(("b", {"family": "byzantine", "config": config})).endswith("Seeds: 1.")
