"""Losses and gradients of hooks: what is none is refused by the name of the hook."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from harness.contracts.defence import ClientHooks
from harness.errors import PluginError
from harness.federation.compose import composed_gradient, composed_loss

X, Y = torch.linspace(0, 1, 12).reshape(4, 3), torch.tensor([0, 1, 1, 0])
KEY = torch.zeros((), dtype=torch.int64)
PARAMS = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}


def logits(params, x):
    return x @ params["weight"].T + params["bias"]


def hook(**methods):
    return type("Hook", (ClientHooks,), {"name": "wrong", **methods})()


def losses(change):
    """The losses under a hook whose loss is `change` of those so far."""

    def of(self, loss, logits):
        return lambda params, batch, key: change(loss(params, batch, key))

    return composed_loss([hook(loss=of)], logits)(PARAMS, (X, Y), KEY)


def gradients(made):
    loss = composed_loss([], logits)
    return composed_gradient(
        [hook(gradient=lambda self, local: made(local.gradient))],
        [{}],
        loss,
        lambda loss, gradient, own: SimpleNamespace(gradient=gradient),
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (torch.sum, r"\(\), not \(4,\)"),
        (torch.mean, r"\(\), not \(4,\)"),
        (lambda found: found[:, None], r"\(4, 1\), not \(4,\)"),
        (lambda found: found[:3], r"\(3,\), not \(4,\)"),
        (lambda found: None, r"NoneType, not \(4,\)"),
        (lambda found: 0.0, r"float, not \(4,\)"),
    ],
)
def test_a_loss_is_one_number_a_record(change, words):
    with pytest.raises(PluginError, match=f"^the loss of wrong returned {words}: one loss a record"):
        losses(change)


def test_losses_of_records_are_as_the_hook_made_them():
    torch.testing.assert_close(losses(lambda found: 2 * found), 2 * losses(lambda found: found))


def test_a_hook_that_returns_no_function_is_named():
    with pytest.raises(PluginError, match=r"^wrong\.loss returned NoneType, not a function"):
        composed_loss([hook(loss=lambda self, loss, logits: None)], logits)
    with pytest.raises(PluginError, match=r"^wrong\.gradient returned dict, not a function"):
        gradients(lambda inner: {})


def test_random_numbers_inside_a_gradients_vmap_are_said_to_be_that():
    def made(inner):
        return torch.func.vmap(
            lambda params, batch, key: {n: p * torch.rand(()) for n, p in params.items()}, (None, 0, None)
        )

    words = r"^the gradient of wrong is taken by torch\.func\.vmap, and in it the network \(as in dropout\)"
    with pytest.raises(PluginError, match=words):
        gradients(made)(PARAMS, (X, Y), KEY)
    with pytest.raises(RuntimeError, match=r"^another$"):
        gradients(lambda inner: lambda *at: _fail("another"))(PARAMS, (X, Y), KEY)


def _fail(words):
    raise RuntimeError(words)


def test_a_gradient_is_of_every_parameter():
    doubled = gradients(lambda inner: lambda *at: {name: 2 * g for name, g in inner(*at).items()})
    plain = gradients(lambda inner: None)  # as it was
    for name, gradient in plain(PARAMS, (X, Y), KEY).items():
        torch.testing.assert_close(doubled(PARAMS, (X, Y), KEY)[name], 2 * gradient)
    with pytest.raises(PluginError, match=r"^the gradient of wrong returned NoneType, not a dictionary"):
        gradients(lambda inner: lambda *at: None)(PARAMS, (X, Y), KEY)
    with pytest.raises(PluginError, match=r"^the gradient of wrong has none of the parameter 'bias'"):
        gradients(lambda inner: lambda *at: {"weight": inner(*at)["weight"]})(PARAMS, (X, Y), KEY)
