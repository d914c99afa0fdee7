"""Numbers in labels: short, as the field writes them, and never of another value than they say."""

from __future__ import annotations

import math

import pytest

from harness.numerals import short
from harness.scenario import load_text


@pytest.mark.parametrize("halves", range(1, 129))
def test_whole_and_half_grey_levels_are_written_as_in_a_scenario_and_read_back_exactly(halves):
    value = halves / 2 / 255
    text = short(value)
    assert text == f"{halves / 2:g}/255" or float(text) == value  # 25.5/255 is 0.1
    budget = f"budget: {{norm: linf, eps: {text}}}"
    scenario = load_text(
        f"schema: 1\nname: n\ndataset: digits\nmodel: logistic\nthreats: [{{name: t, {budget}, attacks: [pgd]}}]"
    )
    assert scenario.threats[0].budget.eps == value


def test_other_numbers_keep_six_digits_or_all():
    value = 8 / 255
    for number, text in (
        (0.0, "0"), (0.1, "0.1"), (1 / 3, "0.333333"), (0.00784314, "0.00784314"), (2.0, "2"), (1e-5, "1e-05"),
        (math.nextafter(value, 1), "0.0313725"), (math.inf, "inf"), (math.nan, "nan"),
    ):  # fmt: skip
        assert short(number) == text
    assert short(1 / 3, full=True) == repr(1 / 3)
    assert short(-value) == "-8/255"
    assert short(value, full=True) == "8/255"
