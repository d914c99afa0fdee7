"""Compressors: what they remove, what their files hold, and that a file gives the network back."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional

import harness
from harness.api import CompressionContext, PluginError
from harness.evaluation.blank import blank
from harness.nn import Normalize
from harness.testing.watch import same

SHAPE = (1, 8, 8)
CLASSES = 5


class Residual(nn.Module):
    """Group and batch normalisation, a depthwise convolution, an addition, and a scaled head."""

    def __init__(self, width=16, groups=4):
        super().__init__()
        self.normalize = Normalize([0.5], [0.2])
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.group_norm = nn.GroupNorm(groups, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.batch_norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveMaxPool2d(2)
        self.hidden = nn.Linear(4 * width, 12)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x):
        x = self.relu(self.group_norm(self.stem(self.normalize(x))))
        y = self.relu(self.batch_norm(self.conv(x)))
        x = self.depthwise(y) + x
        return self.head(self.relu(self.hidden(self.pool(x).flatten(1)))) * 0.5


def residual(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = Residual(**options)
        module.batch_norm.running_mean.normal_()
        module.batch_norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(module.batch_norm.weight, 0.5, 2)
        nn.init.uniform_(module.group_norm.weight, 0.5, 2)
    return module.eval()


def images(n, seed=1, shape=SHAPE):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))


def context(data=None, shape=SHAPE, fine_tune=None, seed=0):
    data = images(40) if data is None else data
    return CompressionContext(
        input_shape=shape,
        num_classes=CLASSES,
        generator=torch.Generator().manual_seed(seed),
        data=lambda: (data, torch.zeros(len(data), dtype=torch.int64)),
        build=lambda model: built(model, shape),
        fine_tune=fine_tune or (lambda module, rounds, *hooks: module),
    )


def built(model, shape=SHAPE):
    with torch.random.fork_rng():
        return model.build(shape, CLASSES)


def compressor(name, **parameters):
    return harness.create("compressor", name, **parameters)


def through_file(state):
    """The state as it comes back from disk."""
    return load(save(state))


MODEL_COMPRESSORS = [
    ("static-int8", {}),
    ("static-int8", {"granularity": "tensor"}),
    ("structured-pruning", {"ratio": 0.5}),
    ("structured-pruning", {"ratio": 0.5, "importance": "scale"}),
    ("structured-pruning", {"ratio": 0.5, "importance": "taylor"}),
    ("structured-pruning", {"ratio": 0.5, "importance": "random", "steps": 2}),
    ("magnitude-pruning", {"ratio": 0.7}),
    ("magnitude-pruning", {"ratio": 0.7, "scope": "layer", "steps": 3, "fine_tune_rounds": 1}),
    ("random-pruning", {"ratio": 0.7}),
    ("qat-int8", {"fine_tune_rounds": 1}),
    ("dynamic-int8", {}),
    ("weight-only", {}),
    ("weight-only", {"bits": 4, "group": 5}),
    ("half-precision", {}),
    ("half-precision", {"dtype": "float16"}),
    ("low-rank", {"energy": 0.6}),
    ("weight-clustering", {"clusters": 5}),
    ("distillation", {"student": {"logistic": {}}, "rounds": 1}),
]


@pytest.mark.parametrize("values", ["other", "none"])
@pytest.mark.parametrize(("name", "parameters"), MODEL_COMPRESSORS)
def test_the_file_gives_the_same_network_back(name, parameters, values):
    method, model = compressor(name, **parameters), residual()
    before = copy.deepcopy(model.state_dict())
    rng = torch.get_rng_state()
    compressed = method.compress(model, context())
    other = residual(seed=9)  # the architecture with other weights: everything has to come from the file
    if values == "none":
        blank(other)
    other_before = copy.deepcopy(other.state_dict())
    restored = method.restore(other, through_file(compressed.state), context())

    x = images(32, seed=2)
    expected = compressed.module(x)
    assert torch.equal(restored.module(x), expected)
    assert not torch.equal(expected, model(x))  # it did change something
    assert (restored.device, restored.differentiable) == (compressed.device, compressed.differentiable)
    assert not restored.module.training
    assert not compressed.module.training
    assert torch.equal(torch.get_rng_state(), rng)  # no draw from the global generator
    for module, state in ((model, before), (other, other_before)):
        assert module.state_dict().keys() == state.keys()
        assert all(same(value, state[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize(("name", "parameters"), MODEL_COMPRESSORS)
def test_a_file_of_another_architecture_is_refused(name, parameters):
    method = compressor(name, **parameters)
    state = method.compress(residual(), context()).state
    gone = list(state)[-1]
    missing = {key: value for key, value in state.items() if key != gone}
    with pytest.raises(PluginError, match=f"missing: {re.escape(gone)}"):
        method.restore(residual(), missing, context())
    with pytest.raises(PluginError, match="unknown: extra"):
        method.restore(residual(), {**state, "extra": torch.zeros(1)}, context())


@pytest.mark.parametrize(("name", "parameters"), MODEL_COMPRESSORS)
def test_weights_that_are_not_finite_are_refused(name, parameters):
    model = residual()
    with torch.no_grad():
        model.conv.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(PluginError, match=r"conv\.weight"):
        compressor(name, **parameters).compress(model, context())


# static-int8 ------------------------------------------------------------------------------------------------


def test_a_network_that_diverged_is_refused_in_plain_words():
    model = residual()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e30)  # finite weights whose outputs are not
    with pytest.raises(PluginError, match="has diverged"):
        compressor("static-int8").compress(model, context())


class Linear(nn.Module):
    def __init__(self, inputs=16, outputs=4):
        super().__init__()
        self.fc = nn.Linear(inputs, outputs)

    def forward(self, x):
        return self.fc(x.flatten(1))


def wide_linear(seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = Linear()
        with torch.no_grad():  # rows of very different size tell the two granularities apart
            module.fc.weight *= torch.tensor([[0.01], [0.1], [1.0], [10.0]])
    return module.eval()


def test_int8_weights_per_channel_follow_the_formula():
    model = wide_linear()
    state = compressor("static-int8").compress(model, context(images(64, shape=(1, 4, 4)), (1, 4, 4))).state
    weight = model.fc.weight.detach().double()
    scale = weight.abs().amax(1) / 127.5  # symmetric: 255 steps over [-max, max]
    torch.testing.assert_close(state["fc.weight.scale"].double(), scale, rtol=1e-6, atol=0)
    real = weight / state["fc.weight.scale"].double()[:, None]
    assert state["fc.weight"].dtype == torch.int8
    assert (state["fc.weight"].double() - real).abs().max() < 0.501
    clear = (real - real.floor() - 0.5).abs() > 1e-3  # the largest of each row is a tie, at 127.5
    assert clear.sum() >= 58
    assert torch.equal(state["fc.weight"].double()[clear], real.round()[clear])
    assert not state["fc.weight.zero_point"].any()
    assert torch.equal(state["fc.bias"], model.fc.bias)


def test_int8_weights_per_tensor_share_one_scale():
    model = wide_linear()
    method = compressor("static-int8", granularity="tensor")
    state = method.compress(model, context(images(64, shape=(1, 4, 4)), (1, 4, 4))).state
    expected = float(model.fc.weight.detach().abs().max()) / 127.5
    assert state["fc.weight.scale"].shape == ()
    assert float(state["fc.weight.scale"]) == pytest.approx(expected, rel=1e-6)
    assert not state["fc.weight"][0].any()  # the smallest row is below half a step of the largest
    with pytest.raises(PluginError, match="granularity"):
        compressor("static-int8").restore(model, state, context(shape=(1, 4, 4)))


def test_int8_outputs_equal_the_arithmetic_of_the_file():
    """Integers only: y = S_y (round(S_x S_w / S_y · Σ (q_x − Z_x) q_w + b / S_y) + Z_y), in float64."""
    model, x = wide_linear(), images(64, shape=(1, 4, 4))
    compressed = compressor("static-int8").compress(model, context(x, (1, 4, 4)))
    state = {key: value.double() for key, value in compressed.state.items()}
    (scale_name,) = [key for key in state if key.endswith("scale_0")]
    zero_name = scale_name.replace("scale_0", "zero_point_0")
    scale_x, zero_x = state[scale_name], state[zero_name]
    q_x = (x.flatten(1).double() / scale_x).round().add(zero_x).clamp(0, 255)
    sums = (q_x - zero_x) @ state["fc.weight"].T * scale_x * state["fc.weight.scale"] + state["fc.bias"]
    q_y = (sums / state["fc.scale"]).round().add(state["fc.zero_point"]).clamp(0, 255)
    expected = (q_y - state["fc.zero_point"]) * state["fc.scale"]
    difference = (compressed.module(x).double() - expected).abs()
    step = float(state["fc.scale"])
    assert difference.max() <= 1.01 * step  # ties of rounding
    assert (difference > 0.01 * step).double().mean() < 0.05


def test_int8_stays_close_to_the_float_network():
    model, x = residual(), images(64, seed=4)
    compressed = compressor("static-int8").compress(model, context(images(256)))
    error = (compressed.module(x) - model(x)).square().mean().sqrt()
    assert error < 0.1 * model(x).std()
    assert compressed.differentiable is False
    assert compressed.device == "cpu"
    assert compressed.facts["engine"] in torch.backends.quantized.supported_engines
    assert compressed.facts["quantized_layers"] == 5
    assert compressed.facts["calibration_samples"] == 256
    assert compressed.state["group_norm.weight"].dtype == torch.float32  # no 8-bit form: left in float


def test_int8_ranges_come_from_the_calibration_images():
    model = wide_linear()
    dark, bright = images(64, shape=(1, 4, 4)) * 0.1, images(64, shape=(1, 4, 4))
    scales = []
    for data in (dark, bright):
        state = compressor("static-int8").compress(model, context(data, (1, 4, 4))).state
        scales.append(float(next(value for key, value in state.items() if key.endswith("scale_0"))))
    assert scales[1] == pytest.approx(10 * scales[0], rel=0.05)


def test_int8_draws_its_samples_with_the_generator_given():
    model, data = wide_linear(), images(200, shape=(1, 4, 4)) * torch.linspace(0.1, 1, 200).view(-1, 1, 1, 1)
    method = compressor("static-int8", samples=3)
    first, again, other = (
        method.compress(model, context(data, (1, 4, 4), seed=seed)).state for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    assert method.compress(model, context(data, (1, 4, 4))).facts["calibration_samples"] == 3


def test_int8_file_is_near_a_quarter_of_the_float_file():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, CLASSES)).eval()
    state = compressor("static-int8").compress(model, context()).state
    assert 0.24 < len(save(state)) / len(save(model.state_dict())) < 0.30


def test_int8_takes_identity_first_functional_relu_and_layers_without_bias():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Identity()
            self.conv = nn.Conv2d(1, 8, 3, bias=False)
            self.fc = nn.Linear(8, CLASSES, bias=False)

        def forward(self, x):
            return self.fc(functional.relu(self.conv(self.first(x))).mean((2, 3)))

    method, model = compressor("static-int8"), Net().eval()
    compressed = method.compress(model, context())
    assert any(type(layer).__name__ == "ConvReLU2d" for layer in compressed.module.modules())
    assert not [key for key in compressed.state if key.endswith("bias")]
    x = images(8)
    restored = method.restore(Net(), through_file(compressed.state), context())
    assert torch.equal(restored.module(x), compressed.module(x))


def test_int8_access_and_bad_input():
    assert compressor("static-int8").data_access == "private"
    assert compressor("static-int8", calibration="public").data_access == "public"
    with pytest.raises(PluginError, match="no private images"):
        compressor("static-int8").compress(residual(), context(images(0)))
    with pytest.raises(PluginError, match="calibrates on float images"):
        compressor("static-int8").compress(residual(), context((images(4) * 255).to(torch.uint8)))
    with pytest.raises(PluginError, match="no convolution or linear"):
        compressor("static-int8").compress(nn.Sequential(nn.Flatten(), nn.ReLU()), context())

    class Branches(Linear):
        def forward(self, x):
            return self.fc(x.flatten(1)) if x.sum() > 0 else self.fc(-x.flatten(1))

    with pytest.raises(PluginError, match="cannot trace"):
        compressor("static-int8").compress(Branches(64, CLASSES), context())
    with pytest.raises(PluginError, match="samples"):
        compressor("static-int8", samples=0)


# structured-pruning -----------------------------------------------------------------------------------------


def chain_of_convs():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(
            nn.Conv2d(1, 10, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(10, 6, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, CLASSES),
        ).eval()


def test_structured_pruning_removes_the_channels_of_least_group_norm():
    model = chain_of_convs()
    pruned = compressor("structured-pruning", ratio=0.5, fine_tune_rounds=0).compress(model, context()).module
    first, second, head = model[0].weight.double(), model[2].weight.double(), model[6].weight.double()
    importance = first.square().sum((1, 2, 3)) + second.square().sum((0, 2, 3))
    kept = importance.argsort()[5:].sort().values
    assert torch.equal(pruned[0].weight, model[0].weight[kept])
    assert torch.equal(pruned[0].bias, model[0].bias[kept])
    importance = second.square().sum((1, 2, 3)) + head.square().sum(0)
    kept_2 = importance.argsort()[3:].sort().values
    assert torch.equal(pruned[2].weight, model[2].weight[kept_2][:, kept])
    assert torch.equal(pruned[6].weight, model[6].weight[:, kept_2])
    assert torch.equal(pruned[6].bias, model[6].bias)


def group_importance_of_residual(model):
    """Channels of the addition in float64: all convolutions, the scales, and four columns each."""
    weight = {name: p.detach().double().square() for name, p in model.named_parameters()}
    return (
        weight["stem.weight"].sum((1, 2, 3))
        + weight["conv.weight"].sum((1, 2, 3))
        + weight["conv.weight"].sum((0, 2, 3))
        + weight["depthwise.weight"].sum((1, 2, 3))
        + weight["group_norm.weight"]
        + weight["batch_norm.weight"]
        + weight["hidden.weight"].view(12, 16, 4).sum((0, 2))
    )


def test_structured_pruning_ranks_coupled_layers_as_one_and_within_group_normalisation():
    model = residual()
    pruned = compressor("structured-pruning", ratio=0.25).compress(model, context()).module
    position = group_importance_of_residual(model).view(4, 4).mean(0).argmin()
    kept = [c for c in range(16) if c % 4 != int(position)]
    assert torch.equal(pruned.stem.weight, model.stem.weight[kept])
    assert torch.equal(pruned.conv.weight, model.conv.weight[kept][:, kept])
    assert torch.equal(pruned.depthwise.weight, model.depthwise.weight[kept])
    assert torch.equal(pruned.batch_norm.running_var, model.batch_norm.running_var[kept])
    columns = [4 * c + i for c in kept for i in range(4)]
    rows, heads = model.hidden.weight.double().square().sum(1), model.head.weight.double().square().sum(0)
    kept = (rows + heads).argsort()[3:].sort().values
    assert torch.equal(pruned.hidden.weight, model.hidden.weight[kept][:, columns])


def test_group_magnitude_equals_torch_pruning_where_that_is_defined():
    import torch_pruning

    from harness_plugins.compressors.structured_pruning import Importance

    group_magnitude = Importance(compressor("structured-pruning"), nn.Identity(), context())

    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ConvTranspose2d(8, 6, 2, stride=2),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(2),
            nn.Flatten(),
            nn.Linear(24, 7),
            nn.Linear(7, CLASSES),
        ).eval()
        nn.init.normal_(model[1].weight)
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=images(1))
    theirs = torch_pruning.importance.MagnitudeImportance(p=2, group_reduction="sum", normalizer=None)
    groups = list(graph.get_all_groups(ignored_layers=[model[7]]))
    assert sorted(len(group_magnitude(group)) for group in groups) == [6, 7, 8]
    for group in groups:
        torch.testing.assert_close(group_magnitude(group), theirs(group))


@pytest.mark.parametrize(("ratio", "left"), [(0.1, 9), (0.2, 8), (0.25, 7), (0.7, 3), (0.8, 2), (0.9, 1)])
def test_structured_pruning_is_exact_per_layer(ratio, left):
    model = nn.Sequential(nn.Conv2d(1, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(360, CLASSES)).eval()
    compressed = compressor("structured-pruning", ratio=ratio).compress(model, context())
    assert compressed.module[0].out_channels == left
    assert compressed.facts["channels_removed"] == pytest.approx(1 - left / 10)
    parameters = 10 * 10 + 360 * CLASSES + CLASSES
    remaining = left * 10 + left * 36 * CLASSES + CLASSES
    assert compressed.facts["parameters_removed"] == pytest.approx(1 - remaining / parameters)


def test_removing_channels_that_give_nothing_changes_nothing():
    model = chain_of_convs()
    dead = [1, 4, 6, 7, 9]
    with torch.no_grad():
        model[0].weight[dead] = 0
        model[0].bias[dead] = 0
        model[2].weight[:, dead] = 0
        model[2].weight[[0, 2, 5]] = 0
        model[2].bias[[0, 2, 5]] = 0
        model[6].weight[:, [0, 2, 5]] = 0
    compressed = compressor("structured-pruning", ratio=0.5).compress(model, context())
    x = images(8)
    assert compressed.facts["channels_removed"] == pytest.approx(0.5)
    torch.testing.assert_close(compressed.module(x), model(x), rtol=1e-5, atol=1e-6)


def test_structured_pruning_keeps_groups_couplings_and_the_output():
    compressed = compressor("structured-pruning", ratio=0.5).compress(residual(), context())
    module = compressed.module
    assert module.stem.out_channels == module.depthwise.out_channels == module.depthwise.groups == 8
    assert (module.group_norm.num_groups, module.group_norm.num_channels) == (4, 8)
    assert module.batch_norm.num_features == len(module.batch_norm.running_mean) == 8
    assert (module.hidden.in_features, module.hidden.out_features) == (32, 6)
    assert module.head.out_features == CLASSES  # though a multiplication follows it
    assert compressed.facts["channels_removed"] == pytest.approx(0.5)
    assert "warning" not in compressed.facts
    assert compressed.differentiable
    assert all(p.requires_grad and p.grad is None for p in module.parameters())


def test_structured_pruning_restores_every_size_of_a_layer():
    method, model = compressor("structured-pruning", ratio=0.5), residual()
    compressed = method.compress(model, context())
    restored = method.restore(residual(seed=9), through_file(compressed.state), context())
    assert repr(restored.module) == repr(compressed.module)


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm2d(8, affine=False), nn.InstanceNorm2d(8, affine=True), nn.GroupNorm(2, 8, affine=False)],
)
def test_structured_pruning_restores_other_normalisations_and_transposed_convolutions(norm):
    def build():
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), copy.deepcopy(norm), nn.ConvTranspose2d(8, 6, 2), nn.PReLU(6), nn.Flatten(),
            nn.Linear(294, CLASSES),
        ).eval()  # fmt: skip

    method = compressor("structured-pruning", ratio=0.5)
    compressed = method.compress(build(), context())
    assert compressed.module[2].weight.shape == (4, 3, 2, 2)
    restored = method.restore(build(), through_file(compressed.state), context()).module
    assert (restored[2].in_channels, restored[2].out_channels, restored[3].num_parameters) == (4, 3, 3)
    assert torch.equal(restored(images(8)), compressed.module(images(8)))


def test_structured_pruning_refuses_a_file_of_other_kernels():
    method = compressor("structured-pruning", ratio=0.5)
    state = method.compress(residual(), context()).state
    state["conv.weight"] = torch.zeros(8, 8, 5, 5)
    with pytest.raises(PluginError, match=r"conv\.weight"):
        method.restore(residual(), state, context())


def test_structured_pruning_by_multiples_says_what_it_reached():
    # Two channels a group: of each, one goes, which is half and not 0.3.
    compressed = compressor("structured-pruning", ratio=0.3).compress(residual(groups=8), context())
    assert compressed.module.stem.out_channels == 8
    assert compressed.facts["channels_removed"] > 0.3 * 1.25
    assert "not 0.3" in compressed.facts["warning"]


def test_structured_pruning_that_removes_nothing_is_an_error():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.GroupNorm(4, 4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, CLASSES),
    ).eval()
    with pytest.raises(PluginError, match="removed no channel"):
        compressor("structured-pruning", ratio=0.5).compress(model, context())
    with pytest.raises(PluginError, match="removed no channel"):  # only the output's layer
        compressor("structured-pruning").compress(
            nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)), context()
        )
    with pytest.raises(PluginError, match="ratio"):
        compressor("structured-pruning", ratio=1.0)


def test_structured_pruning_fine_tunes_the_small_network():
    calls = []

    def fine_tune(module, rounds):
        calls.append((module.stem.out_channels, rounds))
        with torch.no_grad():
            module.head.bias.add_(1)
        return module.train()

    method = compressor("structured-pruning", ratio=0.5, fine_tune_rounds=3)
    model = residual()
    compressed = method.compress(model, context(fine_tune=fine_tune))
    assert calls == [(8, 3)]
    assert method.fine_tuning_rounds == 3
    assert torch.equal(compressed.state["head.bias"], model.head.bias + 1)
    assert not compressed.module.training
    calls.clear()
    method = compressor("structured-pruning", fine_tune_rounds=0)
    method.compress(model, context(fine_tune=fine_tune))
    assert calls == []


def test_structured_pruning_works_on_frozen_parameters_and_keeps_them_frozen():
    model = residual().requires_grad_(False)
    model.head.requires_grad_(True)
    module = compressor("structured-pruning", ratio=0.5).compress(model, context()).module
    assert {name for name, p in module.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    assert module.stem.out_channels == 8


# magnitude-pruning ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.0, 0.29, 0.5, 0.97])
def test_magnitude_pruning_zeroes_exactly_the_smallest(ratio):
    model = residual()
    compressed = compressor("magnitude-pruning", ratio=ratio).compress(model, context())
    names = ["stem", "conv", "depthwise", "hidden", "head"]
    old = torch.cat([model.get_submodule(n).weight.detach().flatten() for n in names])
    new = torch.cat([compressed.module.get_submodule(n).weight.detach().flatten() for n in names])
    k = int(ratio * len(old) + 1e-9)
    expected = old.clone()
    expected[old.abs().argsort()[:k]] = 0
    assert torch.equal(new, expected)
    assert int((new == 0).sum()) == k
    assert compressed.facts == {"weights": len(old), "zeros": k, "sparsity": k / len(old)}
    for name in ("stem.bias", "batch_norm.weight", "group_norm.weight", "batch_norm.running_var"):
        assert torch.equal(compressed.state[name], model.state_dict()[name])


def test_magnitude_pruning_is_exact_among_ties():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)).eval()
    nn.init.constant_(model[1].weight, -0.5)
    compressed = compressor("magnitude-pruning", ratio=0.29).compress(model, context())
    flat = compressed.module[1].weight.detach().flatten()
    assert flat.tolist() == [0.0] * 92 + [-0.5] * (320 - 92)  # floor(0.29 · 320) = 92
    with pytest.raises(PluginError, match="no convolution or linear"):
        compressor("magnitude-pruning").compress(nn.Flatten(), context())


# chains -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [("structured-pruning", "static-int8"), ("structured-pruning", "magnitude-pruning", "static-int8")],
)
def test_chains_compress_and_restore_link_by_link(names):
    model, links, states = residual(), [compressor(name) for name in names], []
    module = model
    for link in links:
        compressed = link.compress(module, context())
        module = compressed.module
        states.append(through_file(compressed.state))
    restored = residual(seed=9)
    for link, state in zip(links, states, strict=True):
        restored = link.restore(restored, state, context()).module
    x = images(16, seed=6)
    assert torch.equal(restored(x), module(x))
    assert states[-1]["conv.weight"].shape == (8, 8, 3, 3)
    assert states[-1]["conv.weight"].dtype == torch.int8
    floats, bytes_left = model.state_dict().values(), sum(t.nbytes for t in states[-1].values())
    assert bytes_left < sum(t.nbytes for t in floats) / 6  # half the channels, a quarter of the bytes of each


@pytest.mark.parametrize("name", ["structured-pruning", "magnitude-pruning"])
def test_pruning_a_quantised_network_is_refused(name):
    module = compressor("static-int8").compress(residual(), context()).module
    with pytest.raises(PluginError):
        compressor(name).compress(module, context())


# top-k ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_top_k_conserves_the_update_exactly(dtype):
    method, state = compressor("top-k", ratio=0.05), {}
    generator = torch.Generator().manual_seed(0)
    residual_before = torch.zeros(200, dtype=dtype)
    for _ in range(5):
        update = torch.randn(200, generator=generator, dtype=dtype)
        copied = update.clone()
        decoded = method.decode(method.encode(update, state, None), None)
        assert torch.equal(decoded.to(dtype) + state["residual"], update + residual_before)
        assert torch.equal(update, copied)
        assert decoded.dtype == torch.float32
        assert state["residual"].dtype == dtype
        residual_before = state["residual"].clone()


def test_top_k_sends_the_largest_magnitudes_of_update_and_residual():
    method, state = compressor("top-k", ratio=0.4), {}
    payload = method.encode(torch.tensor([1.0, -5.0, 0.5, 4.0, -2.0]), state, None)
    assert payload.tensors["indices"].tolist() == [1, 3]
    assert payload.tensors["values"].tolist() == [-5.0, 4.0]
    assert state["residual"].tolist() == [1.0, 0.0, 0.5, 0.0, -2.0]
    payload = method.encode(torch.tensor([1.5, 0.0, 0.0, 0.25, -1.0]), state, None)
    assert method.decode(payload, None).tolist() == [2.5, 0.0, 0.0, 0.0, -3.0]
    assert state["residual"].tolist() == [0.0, 0.0, 0.5, 0.25, 0.0]


def test_top_k_sends_everything_in_the_end():
    """With a constant update the mean of what was sent tends to it: nothing is lost, only late."""
    method, state = compressor("top-k", ratio=0.1), {}
    update = torch.linspace(-1, 1, 50)
    sent = sum(method.decode(method.encode(update, state, None), None) for _ in range(400)) / 400
    assert (sent - update).abs().max() < 0.05


def test_top_k_without_error_feedback_forgets():
    method, state = compressor("top-k", ratio=0.2, error_feedback=False), {}
    for _ in range(2):
        decoded = method.decode(method.encode(torch.tensor([1.0, -5.0, 0.5, 4.0, -2.0]), state, None), None)
        assert decoded.tolist() == [0.0, -5.0, 0.0, 0.0, 0.0]
    assert state == {}


@pytest.mark.parametrize(
    ("ratio", "d", "k"), [(0.01, 1000, 10), (0.29, 100, 29), (0.001, 10, 1), (1.0, 7, 7)]
)
def test_top_k_bytes(ratio, d, k):
    payload = compressor("top-k", ratio=ratio).encode(torch.arange(1.0, d + 1), {}, None)
    assert payload.nbytes == 8 * k
    assert payload.facts == {"d": d}
    assert payload.tensors["values"].tolist() == [float(v) for v in range(d - k + 1, d + 1)]


def test_top_k_index_dtype_grows_with_d():
    from harness_plugins.compressors.top_k import index_dtype

    assert index_dtype(2**31) == torch.int32  # the last position is 2^31 - 1
    assert index_dtype(2**31 + 1) == torch.int64


def test_top_k_sends_what_is_not_finite_and_keeps_its_residual():
    method = compressor("top-k", ratio=0.2)
    state = {"residual": torch.tensor([0.5, 0, 0, 0, 0])}
    update = torch.tensor([1.0, 2.0, float("nan"), 3.0, 1e30])
    assert not method.decode(method.encode(update, state, None), None).isfinite().all()
    assert state["residual"].tolist() == [0.5, 0, 0, 0, 0]


def test_top_k_bad_input():
    method = compressor("top-k")
    for bad in (torch.zeros(2, 3), torch.zeros(0), torch.zeros(3, dtype=torch.int64)):
        with pytest.raises(PluginError, match="top-k needs"):
            method.encode(bad, {}, None)
    with pytest.raises(PluginError, match="residual"):
        method.encode(torch.ones(4), {"residual": torch.ones(3)}, None)
    payload = method.encode(torch.ones(4), {}, None)
    payload.tensors["indices"] = torch.tensor([4], dtype=torch.int32)
    with pytest.raises(PluginError, match="positions"):
        method.decode(payload, None)
    with pytest.raises(PluginError, match="ratio"):
        compressor("top-k", ratio=0.0)
