"""Models that predict one class for everything, told by their predictions alone."""

import numpy as np
import pytest

from harness.evaluation.constant import constant

LABELS = np.array([0, 1, 2, 1])


def logits(*classes: int) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[list(classes)]


@pytest.mark.parametrize(
    ("predicted", "labels", "found"),
    [
        ((1, 1, 1, 1), LABELS, True),
        ((0, 0, 0, 0), np.array([1, 2, 1, 2]), True),  # never right, and constant all the same
        ((1, 1, 1, 2), LABELS, False),
        ((0, 1, 2, 1), LABELS, False),
        ((1, 1, 1, 1), np.array([1, 1, 1, 1]), False),  # there is one class to predict
    ],
)
def test_one_class_for_test_records_of_several(predicted, labels, found):
    assert constant(logits(*predicted), labels) is found


def test_other_numbers_may_say_the_same_class():
    some = np.array([[0.1, 0.9], [-3.0, 7.0], [0.0, np.inf]], dtype=np.float32)
    assert constant(some, np.array([0, 1, 1]))


def test_a_model_that_has_diverged_predicts_nothing():
    everything = np.full((4, 3), np.nan, dtype=np.float32)
    assert not constant(everything, LABELS)
    one = logits(1, 1, 1, 1)
    one[2, 0] = np.nan
    assert not constant(one, LABELS)
