"""Sizes, operations and times of released models."""

from __future__ import annotations

import gzip
import itertools

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import harness
from harness.api import CompressionContext, MetricContext, PluginError

SHAPE = (1, 8, 8)
CLASSES = 5


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),  # 8 · 9 · 64 multiply-accumulates, 80 parameters
            nn.GroupNorm(2, 8),  # 16
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=8, stride=2, padding=1, bias=False),  # 8 · 9 · 16, 72
            nn.Conv2d(8, 12, 1),  # 12 · 8 · 16, 108
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(192, CLASSES),  # 960, 965
        ).eval()


MACS = 8 * 9 * 64 + 8 * 9 * 16 + 12 * 8 * 16 + 192 * CLASSES
PARAMETERS = 80 + 16 + 72 + 108 + 965


def int8(module):
    context = CompressionContext(
        input_shape=SHAPE,
        num_classes=CLASSES,
        generator=torch.Generator().manual_seed(0),
        data=lambda: (torch.rand(16, *SHAPE, generator=torch.Generator().manual_seed(1)), torch.zeros(16)),
        build=lambda model: module,
        fine_tune=lambda module, rounds: module,
    )
    return harness.create("compressor", "static-int8").compress(module, context)


def score(name, **context):
    metric = harness.create("metric", name)
    scores = metric.score(MetricContext(num_classes=CLASSES, input_shape=SHAPE, **context))
    assert set(scores) <= set(metric.scores)
    assert all(type(value) is float for value in scores.values())
    return scores


def test_parameters_and_macs_equal_a_count_by_hand():
    assert score("parameters", module=network()) == {"parameters": PARAMETERS}
    assert score("macs", module=network()) == {"macs": MACS}


def test_int8_has_the_parameters_and_macs_of_its_float_network():
    module = int8(network()).module
    assert not any(isinstance(layer, (nn.Conv2d, nn.Linear)) for layer in module.modules())
    # Its kernels need no bias of zeros, but keep one.
    assert score("parameters", module=module)["parameters"] in (PARAMETERS, PARAMETERS + 8)
    assert score("macs", module=module) == {"macs": MACS}


def test_transposed_convolutions_have_the_macs_of_their_inputs_in_int8_too():
    with torch.random.fork_rng():
        float_network = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1),  # 4 · 9 · 16
            nn.ConvTranspose2d(
                4, 6, 3, stride=2, padding=1, output_padding=1, groups=2
            ),  # 4 · 16 inputs, 3 · 9
            nn.Flatten(),
            nn.Linear(6 * 64, CLASSES),
        ).eval()
    expected = {"macs": 4 * 9 * 16 + 4 * 16 * 3 * 9 + 6 * 64 * CLASSES}
    assert score("macs", module=float_network) == expected
    assert score("macs", module=int8(float_network).module) == expected


def test_macs_count_functional_products_that_no_layer_makes():
    class Products(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(CLASSES, 64))
            self.shared = nn.Linear(64, 64)

        def forward(self, x):
            x = self.shared(self.shared(x.flatten(1)))  # one layer, twice
            return functional.linear(x @ torch.ones(64, 64), self.weight)

    assert score("macs", module=Products()) == {"macs": 3 * 64 * 64 + 64 * CLASSES}
    assert score("parameters", module=Products()) == {"parameters": 64 * 64 + 64 + 64 * CLASSES}


class Calls(nn.Module):
    """A function of the 64 pixels as an (8, 8) matrix, and of a layer's own."""

    def __init__(self, function, layer):
        super().__init__()
        self.function, self.layer = function, layer

    def forward(self, x):
        return self.function(x[0, 0], self.layer)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda a, _: a @ a[0], 8 * 8),
        (lambda a, _: torch.addmv(a[0], a[:, :4], a[0, :4]), 8 * 4),
        (lambda a, _: a[0] @ a[1], 8),
        (lambda a, _: torch.vdot(a[0], a[1]), 8),
        (lambda a, _: torch.einsum("ij,j->i", a[:2], a[0]), 2 * 8),
        (lambda a, _: torch.addbmm(a, a.view(2, 8, 4), a.view(2, 4, 8)), 2 * 8 * 4 * 8),
        (lambda a, layer: layer(a[:, :3], a[:, 3:]), 8 * 7 * 3 * 5),
        (lambda a, layer: layer(a.view(2, 4, 8)[..., :3], a.view(2, 4, 8)[..., 3:]), 8 * 7 * 3 * 5),
    ],
    ids=["mv", "addmv", "dot", "vdot", "einsum", "addbmm", "bilinear", "bilinear of sequences"],
)
def test_macs_count_products_with_vectors_and_bilinear_layers(function, expected):
    assert score("macs", module=Calls(function, nn.Bilinear(3, 5, 7)).eval()) == {"macs": expected}


class Attends(nn.Module):
    """Four patches of 16 pixels, as vectors of 16."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(16, CLASSES)

    def forward(self, x):
        patches = x.unflatten(2, (-1, 4)).unflatten(4, (-1, 4)).transpose(3, 4).reshape(len(x), -1, 16)
        found = self.layer(*[patches] * (3 if isinstance(self.layer, nn.MultiheadAttention) else 1))
        return self.head((found[0] if isinstance(found, tuple) else found).mean(1))


def test_macs_of_fused_layers_are_those_of_their_products():
    """Attention, transformer and recurrent layers are one call each for torch, of which it counts nothing."""
    n, d = 4, 16
    attention = n * d * 3 * d + 2 * n * n * d + n * d * d
    head, before = d * CLASSES, torch.backends.mha.get_fastpath_enabled()
    for layer, expected in (
        (nn.MultiheadAttention(d, 2, batch_first=True), attention),
        (nn.TransformerEncoderLayer(d, 2, 32, batch_first=True), attention + 2 * n * d * 32),
        (nn.LSTM(d, d, batch_first=True), n * 4 * d * 2 * d),
        (nn.GRU(d, d, batch_first=True), n * 3 * d * 2 * d),
    ):
        assert score("macs", module=Attends(layer).eval()) == {"macs": expected + head}
    assert torch.backends.mkldnn.enabled
    assert torch.backends.cudnn.enabled
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_macs_are_those_of_one_image_and_half_of_torchs_operations():
    module = network()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.rand(7, *SHAPE))
    assert score("macs", module=module)["macs"] == counter.get_total_flops() / 2 / 7


def test_tied_parameters_count_once():
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64))
    module[2].weight = module[1].weight
    assert score("parameters", module=module) == {"parameters": 64 * 64 + 2 * 64}


def test_nonzero_share_of_float_and_int8():
    module = network()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(0.5, 1, generator=torch.Generator().manual_seed(0))
        module[7].weight[:, :96] = 0
    zeros = CLASSES * 96
    expected = 1 - zeros / PARAMETERS
    assert score("nonzero-share", module=module)["nonzero_share"] == pytest.approx(expected)
    quantized = int8(module).module
    weights = score("parameters", module=quantized)["parameters"]
    no_bias = weights - PARAMETERS  # zeros that stand for a missing bias
    share = score("nonzero-share", module=quantized)["nonzero_share"]
    assert share == pytest.approx(1 - (zeros + no_bias) / weights)
    assert score("nonzero-share", module=nn.Flatten()) == {}


def test_size_is_that_of_the_file_on_disk(tmp_path):
    for state in (network().state_dict(), int8(network()).state):
        scores = score("size", state=state)
        save_file(state, tmp_path / "model.safetensors")
        data = (tmp_path / "model.safetensors").read_bytes()
        assert scores["serialized_bytes"] == len(data)
        assert scores["gzip_bytes"] == len(gzip.compress(data, 6, mtime=0))


def test_size_takes_tensors_that_share_memory_and_shrinks_with_sparsity():
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    alone = score("size", state={"a": weight, "b": weight.clone()})
    assert score("size", state={"a": weight, "b": weight}) == alone
    assert score("size", state={"a": weight.T, "b": weight})["serialized_bytes"] == alone["serialized_bytes"]
    sparse = weight * (weight.abs() > 1.5)
    after = score("size", state={"a": sparse, "b": sparse})
    assert after["serialized_bytes"] == alone["serialized_bytes"]
    assert after["gzip_bytes"] < alone["gzip_bytes"] / 2


def test_latency_of_float_and_int8_is_marked_as_measured():
    metric = harness.create("metric", "latency")
    assert all(s.measured and s.unit == "ms" and s.direction == "lower" for s in metric.scores.values())
    shapes = []
    module = network()
    module.register_forward_hook(
        lambda _, args, output: shapes.append((len(args[0]), torch.is_inference_mode_enabled()))
    )
    scores = score("latency", module=module)
    assert set(scores) == {"latency_ms_1", "latency_ms_64"}
    assert all(value > 0 for value in scores.values())
    assert {n for n, _ in shapes} == {1, 64}
    assert min(sum(n == size for n, _ in shapes) for size in (1, 64)) >= 4
    assert all(inference for _, inference in shapes)


def ticking(steps):
    """A clock that advances by these steps, the last for ever."""
    now = 0.0
    yield now
    for step in itertools.chain(steps, itertools.repeat(steps[-1])):
        now += step
        yield now


@pytest.mark.parametrize(
    ("steps", "calls", "median"),
    [
        (
            [0.1, 0.01, 0.03, 0.02, 0.02],
            4,
            0.02,
        ),  # the slow first pass is warm-up; three more fill the budget
        ([0.01, 0.02], 8, 0.02),  # 0.01 + 7 · 0.02 = 0.15
        ([0.1, 0.2, 0.4, 0.3], 4, 0.3),  # at least three
        ([0.5, 0.1], 1, 0.5),  # too slow to repeat
    ],
)
def test_median_seconds(steps, calls, median):
    from harness_plugins.metrics.size import median_seconds

    clock, ran = ticking(steps), []
    result = median_seconds(lambda: ran.append(1), budget=0.1499, clock=lambda: next(clock))
    assert result == pytest.approx(median)
    assert len(ran) == calls


@pytest.mark.parametrize("name", ["macs", "latency"])
def test_the_module_is_left_as_it_was(name):
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, CLASSES)
    ).train()
    module[0].eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    rng = torch.get_rng_state()
    score(name, module=module)
    assert [layer.training for layer in module] == [False, True, True, True]
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert not any(layer._forward_hooks for layer in module.modules())


@pytest.mark.parametrize("name", ["parameters", "nonzero-share", "size", "macs", "latency"])
def test_needs_are_declared_and_enforced(name):
    metric = harness.create("metric", name)
    context = MetricContext(num_classes=CLASSES, input_shape=SHAPE)
    assert metric.needs == (("state",) if name == "size" else ("module",))
    assert not context.has(metric.needs)
    with pytest.raises(PluginError, match="needs"):
        metric.score(context)
