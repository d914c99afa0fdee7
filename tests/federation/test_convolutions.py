"""Convolutions client by client: torch's own numbers and gradients, of any order, and no grouped convolution."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from harness.federation.convolutions import ConvolutionsApart

CLIENTS = 3
HOW = [
    {},
    {"stride": 2, "padding": 1},
    {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    {"groups": 2, "padding": 1},
    {"padding": "same", "dilation": 2},
]


def drawn(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def inputs(how):
    """x, weight and bias of each client."""
    return (
        drawn(CLIENTS, 2, 4, 7, 6),
        drawn(CLIENTS, 4, 4 // how.get("groups", 1), 3, 2),
        drawn(CLIENTS, 4),
    )


class Groups(TorchDispatchMode):
    """Notes the groups of the convolutions that run, forward and backward."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.seen.append(args[8])
        if func is torch.ops.aten.convolution_backward.default:
            self.seen.append(args[9])
        return func(*args, **(kwargs or {}))


def both_ways(run):
    """What a function returns with torch's own convolutions and with these."""
    expected = run()
    with ConvolutionsApart():
        return expected, run()


def close(pair):
    expected, found = pair
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape
        assert one.abs().sum() > 0
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("how", HOW, ids=str)
def test_values_and_gradients_are_torch_s(how):
    def loss(x, weight, bias):
        return functional.conv2d(x, weight, bias, **how).tanh().square().sum()

    def run():
        values = torch.vmap(lambda *own: functional.conv2d(*own, **how))(*inputs(how))
        return values, *torch.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(*inputs(how))

    close(both_ways(run))


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("second", [0, 1])
@pytest.mark.parametrize("how", HOW[:4], ids=str)
def test_second_gradients_are_torch_s(how, first, second):
    """With respect to inputs and weights in turn, as an attack inside of a loss takes them."""

    def loss(x, weight):
        return functional.conv2d(x, weight, **how).tanh().square().sum()

    def length(*own):
        return torch.func.grad(loss, argnums=first)(*own).square().sum()

    def third(*own):
        return torch.func.grad(length, argnums=second)(*own).square().sum()

    def run():
        own = inputs(how)[:2]
        return (
            torch.vmap(torch.func.grad(length, argnums=second))(*own),
            *torch.vmap(torch.func.grad(third, argnums=(0, 1)))(*own),
        )

    close(both_ways(run))


def test_plain_autograd_through_the_stacked_program():
    def run():
        own = [value.requires_grad_() for value in inputs({})]
        out = torch.vmap(functional.conv2d)(*own)
        first = torch.autograd.grad(out.tanh().square().sum(), own, create_graph=True)
        return *first, *torch.autograd.grad(sum(g.square().sum() for g in first), own)

    close(both_ways(run))


@pytest.mark.parametrize(("of_x", "of_weight"), [(0, None), (None, 0), (0, 0)])
@pytest.mark.parametrize("how", HOW[:4], ids=str)
def test_further_vmaps_inside_of_the_one_over_clients(how, of_x, of_weight):
    """Gradients record by record, of one set of weights, or of several."""
    x, weight, _ = inputs(how)
    x = torch.stack([x, x + 1]) if of_x == 0 else x[None]
    weight = torch.stack([weight, -weight]) if of_weight == 0 else weight[None]
    x, weight = x.transpose(0, 1), weight.transpose(0, 1)  # (clients, 2 or 1, ...)

    def client(own, w):
        own, w = (own, w) if of_x == 0 else (own[0], w)
        w = w if of_weight == 0 else w[0]

        def loss(one, kernel):
            return functional.conv2d(one, kernel, **how).tanh().square().sum()

        each = torch.func.grad(loss, argnums=(0, 1))
        return torch.vmap(each, in_dims=(of_x, of_weight))(own, w)

    close(both_ways(lambda: torch.vmap(client)(x, weight)))


@pytest.mark.parametrize(("of_x", "of_weight"), [(0, None), (None, 0)])
def test_clients_that_share_weights_or_records(of_x, of_weight):
    x, weight, _ = inputs({})
    own = (x if of_x == 0 else x[0], weight if of_weight == 0 else weight[0])
    each = torch.func.grad(lambda a, b: functional.conv2d(a, b).tanh().square().sum(), argnums=(0, 1))
    close(both_ways(lambda: torch.vmap(each, in_dims=(of_x, of_weight))(*own)))


def test_no_convolution_is_grouped():
    def run():
        each = torch.func.grad(lambda a, b: functional.conv2d(a, b).tanh().sum(), argnums=(0, 1))
        with Groups() as groups:
            torch.vmap(each)(*inputs({})[:2])
        return groups.seen

    grouped, apart = both_ways(run)
    assert max(grouped) >= CLIENTS
    assert apart == [1] * 3 * CLIENTS  # forward, and the two gradients, of each client


def test_one_image_without_a_batch_and_one_client_are_left_to_torch():
    x, weight, bias = inputs({})
    close(both_ways(lambda: [functional.conv2d(x[0, 0], weight[0], bias[0])]))
    close(both_ways(lambda: [functional.conv2d(x[0], weight[0], bias[0])]))


@pytest.mark.parametrize("autocast", [False, True])
def test_reduced_precision_is_that_of_clients_one_after_another(autocast):
    own = [value.float() for value in inputs({})]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = torch.stack([functional.conv2d(*each) for each in zip(*own, strict=True)])
        with ConvolutionsApart():
            found = torch.vmap(functional.conv2d)(*own)
    assert found.dtype == expected.dtype == (torch.bfloat16 if autocast else torch.float32)
    tolerance = 0.02 if autocast else 1e-5  # the bias is added in that precision, not within the sum
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=2 * tolerance)
