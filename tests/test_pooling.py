"""Cheaper max-pooling: the same numbers to the last bit, and a module as before afterwards."""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

import harness
from harness import pooling
from harness.pooling import cheap_pooling

POOLS = {
    "2x2": {"kernel_size": 2},
    "overlapping": {"kernel_size": 3, "stride": 1, "padding": 1},
    "dilated": {"kernel_size": 2, "dilation": 2, "ceil_mode": True},
}


@pytest.fixture(params=[0, pooling.LARGE], ids=["by slices", "by torch"])
def kernel(request, monkeypatch):
    """Images of tests are small: torch's kernel would pool them all."""
    monkeypatch.setattr(pooling, "LARGE", request.param)


def network(pool: nn.Module, inplace: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    convolution = nn.Conv2d(1, 4, 3, padding=1)
    with torch.no_grad():
        convolution.weight.mul_(6).round_()  # of whole numbers many are equal, and many zero
        convolution.bias.mul_(6).round_()
    block = nn.Sequential(convolution, nn.ReLU(inplace), pool)
    return nn.Sequential(
        block, nn.Conv2d(4, 4, 3), nn.ReLU(inplace), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(3)
    )


def found(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Outputs, gradients of weights and images, and the gradient of a gradient, as attacks on gradients need it."""
    parameters = list(module.parameters())
    x = x.clone().requires_grad_()
    logits = module(x)
    loss = nn.functional.cross_entropy(logits, torch.arange(len(x)) % logits.shape[1])
    first = torch.autograd.grad(loss, [x, *parameters], create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), [x, *parameters])
    return [t.detach() for t in (logits, *first, *second)]


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("pool", POOLS)
def test_outputs_and_gradients_are_the_same_to_the_last_bit(pool, inplace, layout):
    module = network(nn.MaxPool2d(**POOLS[pool]), inplace)
    x = torch.randint(-2, 3, (6, 1, 12, 12)).float()
    module(x)  # sizes the last layer
    module.to(memory_format=layout)
    as_ever = found(module, x)
    with cheap_pooling(module):
        sooner = found(module, x)
    assert all(t.any() for t in as_ever)
    assert all(torch.equal(a, b) for a, b in zip(as_ever, sooner, strict=True))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("small-cnn", {}, (1, 28, 28)),
        ("lenet5", {"pooling": "max"}, (1, 28, 28)),
        ("resnet9", {"width": 4}, (3, 32, 32)),
        ("vgg11", {}, (3, 32, 32)),
    ],
)
def test_of_the_networks_that_come_along_too(name, options, shape):
    torch.manual_seed(0)
    module = harness.create("model", name, **options).build(shape, 4).eval()
    x = torch.rand(3, *shape)
    as_ever = found(module, x)
    with cheap_pooling(module):
        assert all(torch.equal(a, b) for a, b in zip(as_ever, found(module, x), strict=True))


@pytest.mark.usefixtures("kernel")
def test_what_is_not_a_number_or_not_finite_goes_through_alike():
    """Of gradients, only which place of a window with a NaN has them differs."""
    module = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))
    x = (
        torch.tensor([[torch.nan, 1], [-1, 2], [torch.inf, 3], [-torch.inf, -4]])
        .reshape(1, 1, 4, 2)
        .requires_grad_()
    )
    rows = []
    for when in (nullcontext(), cheap_pooling(module)):
        with when:
            y = module(x)
            (gradient,) = torch.autograd.grad(y.sum(), x)
            rows.append((y.detach(), gradient[:, :, 2:], gradient[:, :, :2].sum()))
    for a, b in zip(*rows, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3, 7, 9), (3, 1, 2, 2), (1, 2, 6, 5), (0, 2, 4, 4)])
def test_slices_pool_as_torch_does(shape, dtype, monkeypatch):
    """Odd sizes lose their last row or column; of equal values the first of a window has the gradient."""
    monkeypatch.setattr(pooling, "LARGE", 0)
    x = torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    module, found = nn.MaxPool2d(2), []
    for when in (nullcontext(), cheap_pooling(module)):
        with when:
            images = x.clone().requires_grad_()
            y = module(images)
            assert ("Halve" in type(y.grad_fn).__name__) == (type(module) is not nn.MaxPool2d)
            weights = torch.arange(y.numel(), dtype=torch.float32).view_as(y).to(dtype)
            found.append((y.detach(), torch.autograd.grad((y * weights).sum(), images)[0]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def order(module: nn.Sequential, x: torch.Tensor) -> list[str]:
    """The layers in the order in which they are called, told without hooks."""
    called: list[str] = []
    kept = {kind: kind.forward for kind in (nn.ReLU, nn.MaxPool2d)}
    try:
        for kind, forward in kept.items():

            def told(self, given, forward=forward, kind=kind):
                called.append(kind.__name__)
                return forward(self, given)

            kind.forward = told
        module(x)
    finally:
        for kind, forward in kept.items():
            kind.forward = forward
    return called


def test_the_pooling_is_called_first_in_its_copies_too_and_then_no_more():
    module, x = network(nn.MaxPool2d(2)), torch.rand(2, 1, 12, 12)
    module(x)
    names = [name for name, _ in module.named_modules()]
    usual, sooner = ["ReLU", "MaxPool2d"] * 2, ["MaxPool2d", "ReLU"] * 2
    with cheap_pooling(module):
        assert order(module, x) == sooner
        assert [name for name, _ in module.named_modules()] == names
        assert isinstance(module[2], nn.ReLU)  # who walks over the layers finds them where they are
        copied = copy.deepcopy(module)
        copied[0][0].weight.data.zero_()
        assert order(copied, x) == sooner
        assert copied(x).ne(module(x)).any()  # a copy calls layers of its own
        shallow = copy.copy(module)
        shallow._modules = dict(copied._modules)
        assert torch.equal(shallow(x), copied(x))
        assert torch.equal(pickle.loads(pickle.dumps(module))(x), module(x))
        with cheap_pooling(module):
            assert order(module, x) == sooner
        assert order(module, x) == sooner
    assert order(module, x) == usual


def test_an_error_meanwhile_leaves_the_module_as_it_was():
    module, x = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), torch.rand(2, 1, 12, 12)

    def fail():
        with cheap_pooling(module):
            module(x[0, 0])
            raise AssertionError("pooling takes no single matrix")

    with pytest.raises(RuntimeError):
        fail()
    assert order(module, x) == ["ReLU", "MaxPool2d"]
    assert type(module) is nn.Sequential


def test_layers_with_hooks_and_poolings_that_tell_their_indices_are_called_as_ever():
    module, x = network(nn.MaxPool2d(2)), torch.rand(2, 1, 12, 12)
    module(x)
    with cheap_pooling(module):
        handle = module[2].register_forward_hook(lambda *_: None)
        assert order(module, x) == ["MaxPool2d", "ReLU", "ReLU", "MaxPool2d"]
        handle.remove()
    told = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2, return_indices=True))
    with cheap_pooling(told):
        assert order(told, x) == ["ReLU", "MaxPool2d"]
        assert len(told(x)) == 2  # values and indices

    class Own(nn.Sequential):
        def forward(self, x):
            return super().forward(-x)

    own = Own(nn.ReLU(), nn.MaxPool2d(2))
    with cheap_pooling(own):
        assert order(own, x) == ["ReLU", "MaxPool2d"]
        assert torch.equal(own(x), nn.functional.max_pool2d((-x).relu(), 2))


@pytest.mark.usefixtures("kernel")
def test_gradients_per_record_are_the_same():
    module, x = network(nn.MaxPool2d(2)), torch.randint(-2, 3, (5, 1, 12, 12)).float()
    module(x)
    weights = {name: p.detach() for name, p in module.named_parameters()}

    def loss(weights, image):
        return functional_call(module, weights, (image[None],)).square().sum()

    as_ever = vmap(grad(loss), (None, 0))(weights, x)
    with cheap_pooling(module):
        sooner = vmap(grad(loss), (None, 0))(weights, x)
    assert all(torch.equal(as_ever[name], sooner[name]) for name in weights)
