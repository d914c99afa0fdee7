"""Pure functions for use inside training."""

from __future__ import annotations

import pytest
import torch

from harness.api import detached, input_gradient, mean_gradient

W = torch.tensor([0.3, -0.5, 0.2], dtype=torch.float64)
X = torch.tensor([[0.1, 0.4, 0.9], [0.7, 0.2, 0.5]], dtype=torch.float64)


def square(params, x):
    """(w x)^2 / 2 a record, whose gradient by x is (w x) w."""
    return (x @ params["w"]).square() / 2


def penalty(params, batch, key):
    return input_gradient(lambda moved: square(params, moved), batch[0]).square().sum(1)


def penalty_gradient():
    """The mean of (w x)^2 |w|^2 by w: 2 (w x) |w|^2 x + 2 (w x)^2 w."""
    along = X @ W
    return (2 * along[:, None] * W.square().sum() * X + 2 * along.square()[:, None] * W).mean(0)


@pytest.mark.parametrize("program", [False, True])
def test_a_penalty_on_the_input_gradient_trains(program):
    gradient, batch, key = mean_gradient(penalty), (X, torch.zeros(2)), torch.tensor(0)
    if program:
        stacked = torch.func.vmap(gradient)({"w": W[None]}, (X[None], batch[1][None]), key[None])
        found = stacked["w"][0]
    else:
        found = gradient({"w": W}, batch, key)["w"]
    torch.testing.assert_close(found, penalty_gradient())


def test_the_input_gradient_of_such_a_penalty_is_its_own():
    """As an attack on a penalised loss climbs it: the gradient of (w x)^2 |w|^2 by x is 2 (w x) |w|^2 w."""
    found = input_gradient(lambda x: penalty({"w": W}, (x, None), None), X)
    torch.testing.assert_close(found, 2 * (X @ W)[:, None] * W.square().sum() * W)
    assert not found.requires_grad


def test_a_graph_is_kept_only_where_something_could_use_it():
    params = {"w": W.clone().requires_grad_()}
    assert input_gradient(lambda x: square(params, x), X).requires_grad
    assert not input_gradient(lambda x: square(detached(params), x), X).requires_grad
    with torch.no_grad():
        assert not input_gradient(lambda x: square(params, x), X).requires_grad
