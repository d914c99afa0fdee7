"""The further model compressors against closed forms, their libraries and what they claim."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from test_compressors import CLASSES, SHAPE, compressor, context, images, residual, through_file
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.nn import functional

import harness
from harness.api import EvasionAttack, MetricContext, PluginError
from harness.evaluation.blank import blank
from harness.federation.apply import Apply
from harness.functional import cross_entropy
from harness_plugins.compressors.weight_clustering import clustered, kmeans


def macs(module):
    metric = harness.create("metric", "macs")
    return metric.score(MetricContext(num_classes=CLASSES, input_shape=SHAPE, module=module))["macs"]


def linear_network(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, CLASSES)).eval()


def disturb(module, rounds, *hooks):
    """A stand-in for training that moves every parameter."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module


# straight-through twins -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("small-cnn", {}), ("lenet5", {}), ("mlp", {}), ("logistic", {}), ("resnet9", {"width": 4}),
        ("resnet9", {"width": 4, "norm": "batch"}), ("resnet18", {"width": 4}),
    ],
)  # fmt: skip
def test_the_twin_answers_as_the_int8_network_and_has_gradients(model, parameters):
    shape = (1, 16, 16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = harness.create("model", model, **parameters).build(shape, CLASSES).eval()
    method = compressor("static-int8")
    made = method.compress(net, context(images(40, shape=shape), shape=shape))
    restored = method.restore(net, through_file(made.state), context(shape=shape))
    x = images(64, seed=5, shape=shape)
    answers, twin = restored.module(x), restored.twin(x)
    apart = (twin - answers).abs().max()
    # Roundings at the edge of a step, at most. LeNet-5 averages whole numbers, which lie on one half of the time, and
    # processors' kernels break such ties in different ways.
    averages = model == "lenet5"
    assert apart <= (0.25 if averages else 0.1) * answers.std()
    assert (twin.argmax(1) == answers.argmax(1)).float().mean() >= 0.95
    assert averages or apart < 0.5 * (net(x) - answers).abs().max()  # much nearer than the float network
    moved = x.clone().requires_grad_()
    functional.cross_entropy(restored.twin(moved), answers.argmax(1)).backward()
    assert moved.grad.flatten(1).abs().amax(1).min() > 0


def between(layer):
    """A network with a layer between two convolutions, which hand 8-bit values on."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = nn.Conv2d(SHAPE[0], 8, 3, padding=1), layer, nn.Conv2d(8, 8, 3, padding=1)
        return nn.Sequential(*parts, nn.Flatten(), nn.Linear(8 * SHAPE[1] * SHAPE[2], CLASSES)).eval()


def assert_one_network(method, net):
    """The file gives the compressed network back, which is near the float one, and the twin answers as it does."""
    made = method.compress(net, context())
    restored = method.restore(blank(copy.deepcopy(net)), through_file(made.state), context())
    x = images(64, seed=5)
    answers = made.module(x)
    assert torch.equal(restored.module(x), answers)
    assert (answers - net(x)).abs().mean() < 0.2 * net(x).std()
    assert (restored.twin(x) - answers).abs().max() < 0.1 * answers.std()


@pytest.mark.parametrize("name", ["static-int8", "qat-int8"])
@pytest.mark.parametrize(
    "layer",
    [
        nn.PReLU(init=0.4), nn.PReLU(8), nn.ELU(), nn.Softmax(1), nn.LeakyReLU(0.3), nn.Hardswish(),
        nn.LayerNorm([8, *SHAPE[1:]]), nn.InstanceNorm2d(8, affine=True),
    ],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_layers_that_file_or_twin_could_not_hold_in_8_bits_stay_in_float(name, layer):
    assert_one_network(compressor(name), between(layer))


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(8, 8, 3, padding=1),
        nn.Sequential(
            nn.Conv2d(8, 12, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(12, 8, 3, stride=2, padding=1, output_padding=1, groups=4),
        ),
        nn.Conv2d(8, 8, (3, 5), padding=(1, 2), padding_mode="reflect"),
        nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8)),
        nn.Sequential(nn.Tanh(), nn.BatchNorm2d(8), nn.ReLU()),
    ],
    ids=["transposed", "strided", "reflect", "norm", "norm-relu"],
)
def test_the_twin_has_convolutions_and_norms_of_every_kind(layer):
    assert_one_network(compressor("static-int8"), between(layer))


def test_an_attack_through_the_twin_fools_the_quantised_network():
    model = residual()
    made = compressor("static-int8").compress(model, context())
    x = images(60, seed=4)
    y = made.module(x).argmax(1)
    attack = harness.create("attack", "pgd", eps=0.1, steps=10)
    adversarial = attack(made.twin, x, y)
    assert (made.module(adversarial).argmax(1) == y).float().mean() < 0.5
    with pytest.raises(RuntimeError):
        attack(made.module, x, y)  # which has no gradients


# quantisation -----------------------------------------------------------------------------------------


def test_dynamic_int8_is_integer_arithmetic_row_by_row():
    model = linear_network()
    made = compressor("dynamic-int8").compress(model, context())
    x = images(20, seed=3)

    def layer(values, linear):
        weight_scale = linear.weight.abs().amax(1, keepdim=True) / 127.5
        row_scale = values.abs().amax(1, keepdim=True) / 127.5
        w = (linear.weight / weight_scale).round().clamp(-128, 127).double()
        v = (values / row_scale).round().clamp(-128, 127).double()
        return ((v @ w.T) * row_scale * weight_scale.T + linear.bias).float()

    expected = layer(layer(x.flatten(1), model[1]).relu(), model[3])
    for answers in (made.module(x), made.twin(x)):  # but for roundings at the very edge of a step
        assert (answers - expected).abs().median() < 1e-6
        assert (answers - expected).abs().max() < 2e-3
    alone = torch.cat([made.module(x[i : i + 1]) for i in range(20)])
    torch.testing.assert_close(made.module(x), alone)  # a prediction does not depend on its batch
    assert made.state["1.weight"].dtype == torch.int8
    with pytest.raises(PluginError, match="no linear layer"):
        compressor("dynamic-int8").compress(nn.Sequential(nn.Conv2d(1, 5, 8), nn.Flatten()), context())


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.block(x.flatten(1).unflatten(1, (-1, 8))).mean(1))


def transformer(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Transformer().eval()


def test_dynamic_int8_leaves_the_layer_inside_attention_as_torchao_does():
    net, method, x = transformer(), compressor("dynamic-int8"), images(8)
    made = method.compress(net, context())
    assert made.facts["quantized_layers"] == 3
    assert made.state["block.self_attn.out_proj.weight"].dtype == torch.float32
    answers = made.module(x)
    torch.testing.assert_close(answers, net(x), atol=0.05, rtol=0)
    torch.testing.assert_close(made.twin(x), answers, atol=0.02, rtol=0)
    restored = method.restore(blank(net), through_file(made.state), context())
    assert torch.equal(restored.module(x), answers)


def test_a_torchao_that_keeps_the_integers_elsewhere_is_named(monkeypatch):
    """As before 0.18; here it leaves the weights as they are."""
    monkeypatch.setattr("torchao.quantization.quantize_", lambda *_: None)
    with pytest.raises(PluginError, match=r"^dynamic-int8 needs torchao 0\.18 or newer"):
        compressor("dynamic-int8").compress(linear_network(), context())


@pytest.mark.parametrize("method", ["dynamic-int8", "static-int8"])
def test_attacks_that_ask_questions_can_ask_the_integer_network_itself(method):
    module = compressor(method).compress(linear_network(), context()).module
    x = images(16, seed=3)
    y = module(x).argmax(1)
    found = harness.create("attack", "square", eps=0.3, queries=100)(module, x, y)
    assert (module(found).argmax(1) == y).float().mean() < 1


def test_an_attack_that_changes_integer_weights_is_found_out():
    class Meddles(EvasionAttack):
        """Doubles a layer's scales."""

        name = "meddles"

        def perturb(self, model, x, y, context):
            model[1].weight.scale.mul_(2)
            return x

    module = compressor("dynamic-int8").compress(linear_network(), context()).module
    with pytest.raises(PluginError, match="meddles changed parameters"):
        Meddles()(module, images(4), torch.zeros(4, dtype=torch.int64))


def test_weight_only_int8_equals_torchao_on_linear_layers():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    theirs, x = linear_network(), images(20, seed=3)
    made = compressor("weight-only").compress(theirs, context())
    quantize_(theirs, Int8WeightOnlyConfig())
    torch.testing.assert_close(made.module(x), theirs(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.state["1.weight"], theirs[1].weight.qdata)


@pytest.mark.parametrize(("bits", "group"), [(8, None), (8, 7), (4, None), (4, 32), (4, 5)])
def test_weight_only_errors_are_half_a_step_and_bytes_are_as_claimed(bits, group):
    model = residual()
    made = compressor("weight-only", bits=bits, group=group).compress(model, context())
    for name, layer in model.named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        weight = layer.weight.detach().flatten(1)
        columns = weight.shape[1]
        size = columns if group is None else min(group, columns)
        stored, scale = made.state[f"{name}.weight"], made.state[f"{name}.weight.scale"]
        assert stored.nbytes == -(-weight.numel() * bits // 8)
        assert scale.shape == (len(weight), -(-columns // size))
        after = dict(made.module.named_modules())[name].weight.detach().flatten(1)
        for j in range(scale.shape[1]):
            part = slice(j * size, (j + 1) * size)
            wide = weight[:, part].abs().amax(1)
            torch.testing.assert_close(scale[:, j], wide / (2**bits - 1) * 2)
            step = scale[:, j, None]
            assert ((after - weight)[:, part].abs() <= 0.5001 * step).all() or bits == 4
            assert ((after - weight)[:, part].abs() <= 0.5001 * step).float().mean() > 0.8
            assert torch.equal((after[:, part] / step).round() * step, after[:, part])
    assert made.differentiable


def test_a_lone_weight_has_its_own_scale():
    """As each filter of a 1x1 convolution over grey images has: torchao takes such blocks together."""
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Flatten(), nn.Linear(256, CLASSES)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.01, -0.5, 3.0, 0.2]).view(4, 1, 1, 1))
    method = compressor("weight-only")
    made = method.compress(model, context())
    weight = model[0].weight.flatten(1)
    torch.testing.assert_close(made.state["0.weight.scale"], weight.abs() * 2 / 255)
    torch.testing.assert_close(made.module[0].weight.flatten(1), weight, rtol=0.5001 / 127, atol=0)
    restored = method.restore(model, made.state, context())
    assert torch.equal(restored.module[0].weight, made.module[0].weight)
    with pytest.raises(PluginError, match="group must be at least 2, not 1"):
        compressor("weight-only", group=1)


def test_training_for_quantisation_sees_rounded_weights_and_inputs():
    seen = {}

    def fine_tune(module, rounds, *hooks):
        seen["rounds"] = rounds
        seen["names"] = {name for name, _ in module.named_parameters()}
        seen["out"] = module.eval()(images(40))
        loss = module(images(40)).square().sum()
        seen["grads"] = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)
        return module

    model = linear_network()
    method = compressor("qat-int8", fine_tune_rounds=3)
    made = method.compress(model, context(fine_tune=fine_tune))
    plain = compressor("static-int8").compress(model, context())
    assert seen["rounds"] == method.fine_tuning_rounds == 3
    assert all(g is not None and g.abs().max() > 0 for g in seen["grads"])

    def rounded(values, low, high):
        observer = get_default_qconfig_mapping(plain.facts["engine"]).global_qconfig.activation()
        scale = (high - low) / (observer.quant_max - observer.quant_min)
        zero = torch.tensor(-low / scale).round()
        return ((values * (1 / scale)).round() + zero).clamp(0, 255).sub(zero) * scale

    def weight(w):
        scale = w.abs().amax(1, keepdim=True) / 127.5
        return (w * (1 / scale)).round().clamp(-128, 127) * scale

    x = images(40).flatten(1)
    hidden = functional.linear(x, model[1].weight, model[1].bias).relu()
    first = functional.linear(rounded(x, 0.0, float(x.max())), weight(model[1].weight), model[1].bias).relu()
    expected = functional.linear(
        rounded(first, 0.0, hidden.max().item()), weight(model[3].weight), model[3].bias
    )
    torch.testing.assert_close(seen["out"], expected, rtol=1e-4, atol=1e-5)
    assert made.state.keys() == plain.state.keys()  # nothing of the training is left in the file


def mixed(transposed):
    """A convolution, perhaps a transposed one, and a linear layer."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        back = nn.ConvTranspose2d(6, 4, 3) if transposed else nn.Conv2d(6, 4, 1)
        size = 256 if transposed else 144
        return nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.ReLU(), back, nn.Flatten(), nn.Linear(size, CLASSES)
        ).eval()


ENGINES = sorted({"x86", "fbgemm", "qnnpack", "onednn"} & set(torch.backends.quantized.supported_engines))


@pytest.fixture(params=ENGINES)
def engine(request):
    """Kernels that have steps of their own."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = request.param
    yield request.param
    torch.backends.quantized.engine = before


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_weights_train_with_the_rounding_that_is_deployed(engine, granularity):
    seen = {}

    def fine_tune(module, rounds, *hooks):
        seen.update({n: module.get_submodule(n).weight.detach().clone() for n in ("0", "2", "4")})
        return module

    qat = compressor("qat-int8", granularity=granularity)
    transposed = engine in ("x86", "fbgemm")  # the others refuse a scale for each channel of these
    made = qat.compress(mixed(transposed), context(fine_tune=fine_tune))
    for name, simulated in seen.items():
        stored, scale = made.state[f"{name}.weight"], made.state[f"{name}.weight.scale"]
        deployed = stored * scale.view(-1, *[1] * (stored.ndim - 1))
        assert torch.equal(simulated, deployed), name
        assert torch.equal(simulated, made.module.get_submodule(name).weight().dequantize()), name


@pytest.mark.parametrize("shift", [0.0, -0.3])
def test_inputs_train_with_the_steps_that_are_deployed(engine, shift):
    """Of a range that the calibration leaves whole, but for one of its histogram's 2048 bins."""
    seen = {}

    def fine_tune(module, rounds, *hooks):
        ramp = torch.linspace(shift - 0.2, shift + 2.5, 40 * 64).view(40, 1, 8, 8)
        first = module.get_submodule("1")
        handle = first.register_forward_hook(lambda _, inputs, out: seen.update(got=inputs[0]))
        module(ramp)
        handle.remove()
        return module

    data = (images(40) > 0.5).float() + shift
    made = compressor("qat-int8").compress(linear_network(), context(data, fine_tune=fine_tune))
    scale, zero = (
        next(v for k, v in made.state.items() if k.endswith(e)) for e in ("scale_0", "zero_point_0")
    )
    values = seen["got"].unique()
    torch.testing.assert_close(values.diff().median(), scale, rtol=1e-3, atol=0)
    ends = (torch.tensor([0, 255]) - zero) * scale  # beyond what was calibrated where steps are twice as wide
    torch.testing.assert_close(values[[0, -1]], ends, rtol=1e-3, atol=1.01 * float(scale))


@pytest.mark.parametrize(("dtype", "size"), [("float16", 2), ("bfloat16", 2)])
def test_half_precision_is_the_cast_network(dtype, size):
    model = linear_network()
    made = compressor("half-precision", dtype=dtype).compress(model, context())
    x, kind = images(10), getattr(torch, dtype)
    assert torch.equal(made.module(x), copy.deepcopy(model).to(kind)(x.to(kind)).float())
    assert all(t.element_size() == size for t in made.state.values())
    assert made.module(x).dtype == torch.float32
    with torch.no_grad():
        model[1].weight[0, 0] = 1e6
    if dtype == "float16":
        with pytest.raises(PluginError, match="does not fit float16"):
            compressor("half-precision", dtype=dtype).compress(model, context())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("confident", [1.0, 1e-6, 1e-30])
def test_half_precision_has_gradients_however_confident_the_network_is(dtype, confident):
    """A gradient of 1e-8 at the logits is below the smallest float16."""
    model = linear_network()
    module = compressor("half-precision", dtype=dtype).compress(model, context()).module
    x = images(6)
    weights = torch.linspace(0.5, 1, 6)[:, None] * confident ** torch.linspace(0.5, 1, 6)[:, None]

    def gradient(network):
        leaf = x.clone().requires_grad_()
        (found,) = torch.autograd.grad((weights * network(leaf)[:, :2]).sum(), leaf)
        return found

    found, exact = gradient(module), gradient(model)
    assert found.flatten(1).any(1).all()
    torch.testing.assert_close(found / exact.abs().amax((1, 2, 3), keepdim=True),
                               exact / exact.abs().amax((1, 2, 3), keepdim=True), rtol=0, atol=0.02)  # fmt: skip


# pruning ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["magnitude-pruning", "random-pruning"])
def test_what_was_pruned_stays_zero_while_the_rest_trains(name):
    calls = []

    def fine_tune(module, rounds, *hooks):
        calls.append(rounds)
        return disturb(module, rounds)

    model = residual()
    method = compressor(name, ratio=0.75, steps=2, fine_tune_rounds=3)
    made = method.compress(model, context(fine_tune=fine_tune))
    assert calls == [3, 3]
    assert method.fine_tuning_rounds == 6
    assert made.facts["sparsity"] == pytest.approx(0.75, abs=1e-3)
    assert made.state.keys() == model.state_dict().keys()
    moved = (made.module.conv.weight != model.conv.weight) & (made.module.conv.weight != 0)
    assert moved.float().mean() > 0.1


@pytest.mark.parametrize("name", ["magnitude-pruning", "random-pruning", "structured-pruning"])
def test_steps_are_planned_one_by_one_and_need_training_between_them(name):
    assert compressor(name, steps=3, fine_tune_rounds=2).fine_tunings == (2, 2, 2)
    assert compressor(name, fine_tune_rounds=0).fine_tunings == ()
    with pytest.raises(PluginError, match="the same as one"):
        compressor(name, steps=2, fine_tune_rounds=0)


def test_pruning_by_layer_takes_the_same_share_of_each():
    made = compressor("magnitude-pruning", ratio=0.6, scope="layer").compress(residual(), context())
    for layer in made.module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            assert int((layer.weight == 0).sum()) == int(0.6 * layer.weight.numel() + 1e-9)


def test_random_pruning_is_seeded_and_blind_to_magnitudes():
    first, again = (
        compressor("random-pruning", ratio=0.5).compress(residual(), context()).module.conv.weight == 0
        for _ in range(2)
    )
    other = compressor("random-pruning", ratio=0.5).compress(residual(), context(seed=1)).module
    assert torch.equal(first, again)
    assert not torch.equal(first, other.conv.weight == 0)
    large = residual().conv.weight.abs() > residual().conv.weight.abs().median()
    assert abs(float(first[large].float().mean()) - 0.5) < 0.05


def chain(norm=None):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        middle = [norm] if norm is not None else []
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False), *middle, nn.ReLU(), nn.Flatten(), nn.Linear(288, CLASSES)
        ).eval()


def test_scale_importance_keeps_the_channels_of_the_largest_scales():
    model = chain(nn.BatchNorm2d(8))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.1, -3.0, 0.2, 2.0, 0.3, 1.0, -4.0, 0.05]))
    made = compressor("structured-pruning", importance="scale").compress(model, context())
    assert made.module[1].weight.tolist() == pytest.approx([-3.0, 2.0, 1.0, -4.0])
    with pytest.raises(PluginError, match="no normalisation"):
        compressor("structured-pruning", importance="scale").compress(chain(), context())


def test_taylor_importance_is_the_squared_sum_of_gradient_times_weight():
    model, data = chain(), images(40)
    labels = torch.arange(40) % CLASSES
    given = context(data)
    given.data = lambda: (data, labels)
    method = compressor("structured-pruning", importance="taylor", samples=40)
    assert method.data_access == "private"
    assert compressor("structured-pruning").data_access == "none"
    made = method.compress(model, given)
    loss = functional.cross_entropy(model(data), labels)
    kernel, head = torch.autograd.grad(loss, [model[0].weight, model[3].weight])
    joint = (kernel * model[0].weight).flatten(1).sum(1)
    joint = joint + (head * model[3].weight).view(CLASSES, 8, 36).sum((0, 2))
    kept = joint.square().argsort(descending=True)[:4].sort().values
    assert torch.equal(made.module[0].weight, model[0].weight[kept])


def test_iterative_structured_pruning_reaches_the_ratio_and_trains_between():
    sizes = []

    def fine_tune(module, rounds, *hooks):
        sizes.append(module[0].out_channels)
        return disturb(module, rounds)

    method = compressor("structured-pruning", ratio=0.5, steps=2, fine_tune_rounds=1)
    made = method.compress(chain(), context(fine_tune=fine_tune))
    assert sizes == [6, 4]
    assert made.facts["channels_removed"] == pytest.approx(0.5)
    assert macs(made.module) == macs(chain()) / 2


# other ways -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("energy", [0.5, 0.8, 0.9])
def test_low_rank_is_the_best_of_its_rank(energy):
    model = linear_network()
    made = compressor("low-rank", energy=energy).compress(model, context())
    for name, rank in made.facts["ranks"].items():
        weight = model.get_submodule(name).weight.detach().double()
        first, second = made.module.get_submodule(name)
        product = (second.weight @ first.weight).double()
        singular = torch.linalg.svdvals(weight)
        # Eckart and Young: the error is what the singular values beyond the rank hold.
        expected = singular[rank:].square().sum().sqrt()
        torch.testing.assert_close((weight - product).norm(), expected, rtol=1e-3, atol=1e-5)
        assert singular[:rank].square().sum() >= energy * singular.square().sum() * (1 - 1e-6)
        assert singular[: rank - 1].square().sum() < energy * singular.square().sum()
    assert made.facts["layers_factorised"] == len(made.facts["ranks"]) > 0


def test_low_rank_layers_lose_nothing_and_cost_less():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 6, 3),
            nn.Conv2d(6, 24, 3, padding=1, stride=2),
            nn.Flatten(),
            nn.Linear(216, CLASSES),
        ).eval()
        thin = torch.randn(24, 3) @ torch.randn(3, 54)
        with torch.no_grad():
            model[1].weight.copy_(thin.view_as(model[1].weight))
    made = compressor("low-rank", energy=1.0).compress(model, context())
    assert made.facts["ranks"] == {"1": 3}
    x = images(12)
    torch.testing.assert_close(made.module(x), model(x), rtol=1e-4, atol=1e-4)
    before, after = 24 * 54 * 9, 3 * 54 * 9 + 24 * 3 * 9
    assert macs(model) - macs(made.module) == before - after


def test_low_rank_factors_work_inside_a_transformer_layer():
    """Whose fused form, in eval mode, takes the weights of its two linear layers itself."""
    net, method, x = transformer(), compressor("low-rank", energy=0.5), images(8)
    made = method.compress(net, context())
    assert {"block.linear1", "block.linear2"} < made.facts["ranks"].keys()
    with torch.no_grad():
        answers = made.module(x)
        for name in made.facts["ranks"]:
            first, second = made.module.get_submodule(name)
            net.get_submodule(name).weight.copy_(second.weight @ first.weight)
        torch.testing.assert_close(answers, net(x), rtol=1e-4, atol=1e-5)
        restored = method.restore(transformer(seed=1), through_file(made.state), context())
        assert torch.equal(restored.module.eval()(x), answers)
        encoder = nn.Sequential(nn.TransformerEncoder(net.block, 1)).eval()
        thin, mask = method.compress(encoder, context()).module, torch.zeros(8, 6, dtype=torch.bool)
        assert thin[0](torch.ones(8, 6, 8), src_key_padding_mask=mask).isfinite().all()


def test_clusters_of_few_different_weights_lose_nothing():
    model = linear_network()
    with torch.no_grad():
        model[1].weight.copy_((model[1].weight * 20).round() / 20)
    values = len(model[1].weight.unique())
    made = compressor("weight-clustering", clusters=16).compress(model, context())
    assert values <= 16
    assert torch.allclose(made.module[1].weight, model[1].weight, atol=1e-6)
    assert made.state["1.weight.indices"].nbytes == 64 * 32 // 2  # four bits each
    assert made.state["1.weight.codebook"].shape == (16,)


def emptied(share):
    """A network of which this share of the weights is zero."""
    return compressor("magnitude-pruning", ratio=share).compress(residual(), context()).module


@pytest.mark.parametrize("rounds", [0, 1])
@pytest.mark.parametrize(("share", "clusters"), [(0.9, 16), (0.5, 2), (0.9999, 200)])
def test_what_pruning_has_removed_stays_removed(share, clusters, rounds):
    model = emptied(share)
    method = compressor("weight-clustering", clusters=clusters, fine_tune_rounds=rounds)
    made = method.compress(model, context(fine_tune=disturb))
    restored = method.restore(residual(1), through_file(made.state), context()).module
    layers = dict(model.named_modules())
    large = [
        n for n, m in layers.items() if isinstance(m, (nn.Conv2d, nn.Linear)) and m.weight.numel() > clusters
    ]
    assert len(large) == made.facts["layers_clustered"] >= 2
    for name in large:
        before, after = layers[name].weight, made.module.get_submodule(name).weight
        assert torch.equal(before == 0, after == 0), name
        assert torch.equal(restored.get_submodule(name).weight, after)
        assert len(after.unique()) <= clusters
        # What is left has the values that it has by itself.
        left = before[before != 0].detach()
        if len(left) >= clusters and not rounds:
            values = kmeans(left, clusters - 1)
            torch.testing.assert_close(after[before != 0], values[0][values[1]])
    if not rounds:
        metric = harness.create("metric", "nonzero-share")
        shares = [
            metric.score(MetricContext(num_classes=CLASSES, input_shape=SHAPE, module=m))
            for m in (model, made.module)
        ]
        assert shares[0] == shares[1]


def test_clusters_of_weights_are_a_fixed_point_of_lloyd_s_algorithm():
    """scikit-learn's own tolerance stops before, on weights with heavy tails."""
    weight = torch.from_numpy(np.random.default_rng(0).standard_t(3, 4000))
    centroids, indices = kmeans(weight, 16)
    assert torch.equal((weight[:, None] - centroids).abs().argmin(1), indices)
    means = torch.stack([weight[indices == i].mean() for i in range(16)])
    torch.testing.assert_close(centroids, means, rtol=1e-12, atol=1e-12)


TRAINING_ON = [
    ("qat-int8", {}), ("magnitude-pruning", {"ratio": 0.2, "fine_tune_rounds": 1}),
    ("random-pruning", {"ratio": 0.2, "fine_tune_rounds": 1, "steps": 2}),
    ("weight-clustering", {"clusters": 30, "fine_tune_rounds": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "parameters"), TRAINING_ON)
def test_what_pruning_has_removed_does_not_grow_back_in_a_later_training(name, parameters):
    """In small layers too, and though the training moves every number, those behind the masks included."""
    pruned = (
        compressor("magnitude-pruning", ratio=0.9, scope="layer").compress(mixed(False), context()).module
    )
    seen = {}

    def fine_tune(module, rounds, *hooks):
        disturb(module, rounds)
        seen.update({n: module.get_submodule(n).weight.detach().clone() for n in ("0", "2", "4")})
        return module

    made = compressor(name, **parameters).compress(pruned, context(fine_tune=fine_tune)).module
    for layer, trained in seen.items():
        weight = made.get_submodule(layer).weight
        after = weight().dequantize() if callable(weight) else weight
        gone = pruned.get_submodule(layer).weight == 0
        assert gone.float().mean() > 0.85
        assert not trained[gone].any(), "the training sees what will be deployed"
        assert not after[gone].any()
        assert (
            after[~gone] - pruned.get_submodule(layer).weight[~gone]
        ).abs().max() > 0.01  # the others train
        if name != "random-pruning":
            assert after[~gone].bool().float().mean() > 0.7


@pytest.mark.parametrize("importance", ["magnitude", "random"])
def test_channels_pruned_after_weights_leave_a_network_as_sparse(importance):
    pruned = compressor("magnitude-pruning", ratio=0.9).compress(residual(), context()).module
    settings = {"ratio": 0.5, "importance": importance, "steps": 2}

    def nonzero(**parameters):
        method = compressor("structured-pruning", **settings, **parameters)
        seen = []

        def fine_tune(module, rounds, *hooks):
            convolutions = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
            seen.append((convolutions, [m.weight == 0 for m in convolutions]))
            return disturb(module, rounds)

        made = method.compress(pruned, context(fine_tune=fine_tune)).module
        assert not any(hasattr(m, "parametrizations") for m in made.modules())
        layers, zeros = seen[-1]
        for layer, zero in zip(layers, zeros, strict=True):
            assert torch.equal(layer.weight == 0, zero)
        return sum(int(zero.sum()) for zero in zeros) / sum(zero.numel() for zero in zeros)

    assert nonzero(fine_tune_rounds=1) > 0.5


def test_networks_without_zeros_train_as_they_are():
    """Their parameters keep their names and identity, so that nothing of what was published changes."""
    from harness_plugins.compressors._layers import zeros_held

    model = linear_network()
    before = dict(model.named_parameters())
    with zeros_held(model):
        assert {name: id(p) for name, p in model.named_parameters()} == {n: id(p) for n, p in before.items()}
    layer = shared(False)
    with zeros_held(layer):  # only where it has zeros, a shared weight cannot be held
        assert not hasattr(layer.a, "parametrizations")
    with torch.no_grad():
        layer.a.weight[0] = 0
    with pytest.raises(PluginError, match="share a weight"), zeros_held(layer):
        pass


def test_layers_without_zeros_are_clustered_as_a_whole():
    weight = linear_network()[1].weight.detach()
    assert weight.all()
    whole, expected = clustered(weight, 16), kmeans(weight, 16)
    assert all(torch.equal(a, b) for a, b in zip(whole, expected, strict=True))


class Shared(nn.Module):
    """Two layers with one weight, or one layer under two names."""

    def __init__(self, one_layer):
        super().__init__()
        self.a = nn.Linear(64, 64, bias=False)
        self.b = self.a if one_layer else nn.Linear(64, 64, bias=False)
        self.b.weight = self.a.weight
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x):
        return self.head(self.b(self.a(x.flatten(1)).relu()))


def shared(one_layer, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Shared(one_layer).eval()


@pytest.mark.parametrize("one_layer", [False, True], ids=["two layers", "one layer"])
@pytest.mark.parametrize(
    ("name", "parameters", "values"),
    [
        ("weight-only", {}, 256), ("weight-only", {"bits": 4}, 16), ("dynamic-int8", {}, 256),
        ("weight-clustering", {"clusters": 16}, 16), ("half-precision", {}, None), ("static-int8", {}, 256),
    ],
)  # fmt: skip
def test_a_shared_weight_is_compressed_wherever_it_is_used(name, parameters, values, one_layer):
    model, x = shared(one_layer), images(20, seed=3)
    method = compressor(name, **parameters)
    if name == "weight-clustering" and not one_layer:  # each would train its own centroids
        with pytest.raises(PluginError, match=r"share a weight .*: a, b"):
            method.compress(model, context())
        return
    made = method.compress(model, context())
    network = made.module.module if name == "half-precision" else made.module
    # The only sizes of what a file holds for it: whole in the compressed form, never in float32.
    large = {k: v for k, v in made.state.items() if k[0] in "ab" and v.numel() >= 64 * 32}
    assert large
    assert all(v.element_size() < 4 for v in large.values())
    for layer in (network.a, getattr(network, "b", network.a)):
        weight = layer.weight() if callable(layer.weight) else layer.weight
        weight = weight.dequantize() if name.endswith("int8") else weight.detach()
        assert not torch.equal(weight.float(), model.a.weight)
        assert values is None or all(len(row.unique()) <= values for row in weight)
    restored = method.restore(shared(one_layer, seed=1), through_file(made.state), context())
    torch.testing.assert_close(restored.module(x), made.module(x), rtol=0, atol=0)
    if name.startswith("weight"):
        assert not any(key.startswith("b.") for key in made.state)


@pytest.mark.parametrize("one_layer", [False, True], ids=["two layers", "one layer"])
def test_a_shared_weight_is_factorised_once(one_layer):
    model, x = shared(one_layer), images(20, seed=3)
    method = compressor("low-rank", energy=0.6)
    made = method.compress(model, context())
    ranks = made.facts["ranks"]
    assert ranks["a"] == ranks["b"]
    expected = ranks["a"] * 128 + ranks["head"] * (64 + CLASSES) + CLASSES
    assert sum(p.numel() for p in made.module.parameters()) == expected
    product = made.module.a[1].weight @ made.module.a[0].weight
    hidden = functional.linear(functional.linear(x.flatten(1), product).relu(), product)
    torch.testing.assert_close(made.module(x), made.module.head(hidden))
    restored = method.restore(shared(one_layer, seed=1), through_file(made.state), context())
    assert sum(p.numel() for p in restored.module.parameters()) == expected
    assert torch.equal(restored.module(x), made.module(x))


def test_a_weight_that_another_kind_of_layer_uses_too_is_not_factorised():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, CLASSES), nn.Embedding(64, 64))
    model[3].weight = model[1].weight
    made = compressor("low-rank", energy=0.5).compress(model.eval(), context())
    assert set(made.facts["ranks"]) == {"2"}
    assert made.module[3].weight is made.module[1].weight


@pytest.mark.parametrize("name", ["magnitude-pruning", "random-pruning"])
def test_a_shared_weight_is_pruned_once(name):
    model, x = shared(False), images(20, seed=3)
    method = compressor(name, ratio=0.5)
    made = method.compress(model, context())
    total = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    assert made.facts == {"weights": total, "zeros": total // 2, "sparsity": 0.5}
    assert made.module.b.weight is made.module.a.weight
    if name == "magnitude-pruning":
        both = torch.cat([model.a.weight.flatten(), model.head.weight.flatten()]).abs()
        expected = model.a.weight * (model.a.weight.abs() > both.sort().values[total // 2 - 1])
        assert torch.equal(made.module.a.weight, expected)
    restored = method.restore(shared(False, seed=1), through_file(made.state), context())
    assert torch.equal(restored.module(x), made.module(x))
    with pytest.raises(PluginError, match="share a weight"):
        compressor(name, fine_tune_rounds=1).compress(model, context())


def trained_codebooks(steps, make, *, zeros=0):
    """A clustered network's centroids before and after steps of an optimiser, those of a plain loop, and sizes.

    The plain loop adds up nothing: it steps centroids, as parameters, along the mean of their weights' gradients.
    """
    from harness_plugins.compressors._layers import Codebook, with_weights

    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(40, 50, generator=generator)
    weight.view(-1)[:zeros] = 0
    target = torch.randn(40, 50, generator=generator)
    first, indices = clustered(weight, 8)
    counts = torch.bincount(indices.flatten(), minlength=8)
    layer = nn.Linear(50, 40, bias=False)
    codebook = Codebook(indices, first, with_zero=bool(zeros))
    module = nn.Sequential(layer)
    with with_weights(module, {"0": codebook}, baked=True):
        assert torch.equal(layer.weight, first[indices])
        optimizer = make(list(module.parameters()))
        for _ in range(steps):
            optimizer.zero_grad()
            (layer.weight - target).pow(3).sum().backward()
            optimizer.step()
        found = codebook.centroids(layer.parametrizations.weight.original).detach()
    plain = first.clone().requires_grad_()
    optimizer = make([plain])
    for _ in range(steps):
        values = plain.detach()[indices].requires_grad_()
        (values - target).pow(3).sum().backward()
        sums = torch.zeros(8).index_add_(0, indices.flatten(), values.grad.flatten())
        plain.grad = sums / counts
        if zeros:
            plain.grad[0] = 0
        optimizer.step()
    return first, found, plain.detach(), layer.weight.detach()


@pytest.mark.parametrize("zeros", [0, 300])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 1e-4, momentum=0.9),
        lambda p: torch.optim.SGD(p, 1e-4, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, 1e-3),
        lambda p: torch.optim.NAdam(p, 1e-3),
    ],
    ids=["sgd", "weight decay", "adam", "nadam"],
)
def test_centroids_step_along_the_mean_gradient_as_weights_do(make, zeros):
    first, found, plain, weight = trained_codebooks(5, make, zeros=zeros)
    torch.testing.assert_close(found - first, plain - first, rtol=2e-3, atol=1e-7)
    assert len(weight.unique()) <= 8
    if zeros:
        assert found[0] == 0


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.NAdam])
def test_a_centroid_of_many_weights_moves_by_the_step_of_one(optimizer):
    first, found, _, _ = trained_codebooks(1, lambda p: optimizer(p, 1e-3))
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    optimizer([weight], 1e-3).step()
    step = float(1 - weight.detach())
    torch.testing.assert_close((found - first).abs(), torch.full((8,), step), rtol=1e-3, atol=1e-7)


def test_noise_on_a_gradient_is_averaged_over_a_centroid_s_weights():
    """As dp-sgd adds it: what reaches a centroid falls with the root of its weights."""
    from harness_plugins.compressors._layers import Codebook

    indices = torch.tensor([0, 1]).repeat_interleave(torch.tensor([10_000, 100]))
    book = Codebook(indices, torch.tensor([0.5, -0.5]))
    start = book.right_inverse(torch.zeros(len(indices)))
    generator = torch.Generator().manual_seed(0)
    noisy = [
        book.centroids(start + torch.randn(len(indices), generator=generator)) - book.first
        for _ in range(200)
    ]
    torch.testing.assert_close(torch.stack(noisy).std(0), torch.tensor([0.01, 0.1]), rtol=0.2, atol=0)


def test_clusters_train_under_every_optimiser_of_a_federation(tmp_path):
    """Vectorised too, and with gradients of single records."""
    from harness.scenario import load_text

    for optimizer, compute, defence in (
        ("adam: {lr: 0.003}", "sequential", "none"),
        ("nadam: {lr: 0.003}", "vectorised", "none"),
        ("sgd: {lr: 0.1}", "vectorised", "dp-sgd: {epsilon: 50}"),
    ):
        text = (
            DIGITS.replace("sgd: {lr: 0.03, momentum: 0.9}", optimizer)
            + (f"defences: [{defence}]\ncompute: {{clients: {compute}}}\n")
            + "compressors: [weight-clustering: {clusters: 3}, weight-clustering: {clusters: 3, fine_tune_rounds: 4}]\n"
        )
        result = harness.run(
            load_text(text, tmp_path / "x.yaml"), device="cpu", jobs=0, store=tmp_path / "runs"
        )
        assert result.failed == 0, [r["error"] for r in result.records]
        before, after = (r["scores"]["accuracy"] for r in result.records)
        if defence == "none":  # what noise leaves of three clusters is anybody's guess
            assert after >= before + 0.1, (optimizer, before, after)


def test_int8_is_restored_without_a_search_for_ranges_that_the_file_holds(monkeypatch):
    """It took four fifths of the time."""
    from torch.ao.quantization.observer import HistogramObserver

    method, model = compressor("static-int8"), residual().eval()
    made = method.compress(model, context())

    def searched(observer):
        raise AssertionError("an observer looks for the best range")

    monkeypatch.setattr(HistogramObserver, "_non_linear_param_search", searched)
    again = method.restore(model, made.state, context())
    x = images(8)
    assert torch.equal(again.module(x), made.module(x))
    with pytest.raises(AssertionError, match="best range"):
        method.compress(model, context())


def test_the_distillation_loss_is_the_paper_s():
    from harness_plugins.compressors.distillation import TowardsTeacher

    teacher, student = linear_network(1).double(), linear_network(2).double()
    x, y = images(12).double(), torch.arange(12) % CLASSES
    apply = Apply(student)
    loss = TowardsTeacher(teacher, 3.0, 0.7).loss(cross_entropy(apply), apply)
    got = loss(dict(student.named_parameters()), (x, y), torch.zeros((), dtype=torch.int64))
    soft, hard = teacher(x).div(3).softmax(1), student(x).log_softmax(1)
    kl = functional.kl_div(student(x).div(3).log_softmax(1), soft, reduction="none").sum(1)
    torch.testing.assert_close(got, 0.3 * -hard[range(12), y] + 0.7 * 9 * kl)
    same = TowardsTeacher(student, 3.0, 1.0).loss(cross_entropy(apply), apply)
    assert same(dict(student.named_parameters()), (x, y), None).abs().max() < 1e-12


def test_a_student_as_large_as_its_teacher_is_refused():
    method = compressor("distillation", student={"mlp": {"hidden": [64, 64]}})
    with pytest.raises(PluginError, match="no fewer than"):
        method.compress(residual(width=4, groups=2), context())


# in a federation ------------------------------------------------------------------------------------------

DIGITS = """
schema: 1
name: compressed
dataset: digits
model: {small-cnn: {width: 4, hidden: 16}}
federation:
  clients: 2
  rounds: 8
  local: {epochs: 1, batch_size: 32, optimizer: {sgd: {lr: 0.03, momentum: 0.9}}}
metrics: [accuracy]
"""
TRAINED = [
    "qat-int8: {fine_tune_rounds: 1, calibration: public}",
    "magnitude-pruning: {fine_tune_rounds: 1}",
    "structured-pruning: {fine_tune_rounds: 1}",
    "weight-clustering: {fine_tune_rounds: 1}",
    "low-rank: {fine_tune_rounds: 1, energy: 0.8}",
    "distillation: {student: logistic, rounds: 2}",
]


def test_compressors_train_in_the_federation_and_privacy_is_accounted(tmp_path):
    from harness.scenario import load_text

    text = DIGITS + "unprotected: [val]\ndefences: [none, dp-sgd: {epsilon: 8, max_grad_norm: 1.0}]\n"
    text += f"compressors: [none, {', '.join('{' + c + '}' for c in TRAINED)}]\n"
    result = harness.run(load_text(text, tmp_path / "x.yaml"), device="cpu", jobs=0, store=tmp_path / "runs")
    assert [r["status"] for r in result.records] == ["scored"] * 14, [r["error"] for r in result.records]
    plain = {r["cell"]["compressor"]: r for r in result.records if r["cell"]["defence"] == "none"}
    private = {r["cell"]["compressor"]: r for r in result.records if r["cell"]["defence"] != "none"}
    for name, record in plain.items():
        if name != "none" and not name.startswith("distillation"):
            assert record["scores"]["accuracy"] > plain["none"]["scores"]["accuracy"] - 0.25, name
    for name, record in private.items():
        if name == "none":
            assert record["guarantee"]["epsilon"] <= 8.001
        else:  # further training of the same records costs more, and it is in the record
            assert record["guarantee"]["epsilon"] > 8.1, name
            assert record["guarantee"]["holds"], record["guarantee"]["broken_by"]
    unprotected = text.replace("unprotected: [val]\n", "").replace("calibration: public", "samples: 64")
    result = harness.run(
        load_text(unprotected, tmp_path / "y.yaml"), device="cpu", jobs=0, store=tmp_path / "runs",
        select=["compressor=qat-int8(samples=64,fine_tune_rounds=1)"],
    )  # fmt: skip
    (broken,) = [r for r in result.records if r["cell"]["defence"] != "none"]
    assert not broken["guarantee"]["holds"]


def test_a_pruned_network_is_clustered_in_the_federation_and_stays_sparse(tmp_path):
    from harness.scenario import load_text

    text = DIGITS.replace("[accuracy]", "[accuracy, nonzero-share]") + (
        "compressors:\n  - {magnitude-pruning: {ratio: 0.8}}\n"
        "  - [{magnitude-pruning: {ratio: 0.8}}, {weight-clustering: {fine_tune_rounds: 1}}]\n"
    )
    result = harness.run(load_text(text, tmp_path / "x.yaml"), device="cpu", jobs=0, store=tmp_path / "runs")
    pruned, both = [r["scores"] for r in result.records]
    assert both["nonzero_share"] == pytest.approx(
        pruned["nonzero_share"], abs=0.01
    )  # biases may move from zero
    assert both["accuracy"] > pruned["accuracy"] - 0.1


def test_a_pruned_network_trains_on_in_the_federation_and_stays_sparse(tmp_path):
    """With noise on every parameter too, of every step (dp-sgd) and of the rounds' means (dp-fedavg)."""
    from harness.scenario import load_text

    pruning = "{magnitude-pruning: {ratio: 0.9}}"
    after = [
        "{qat-int8: {fine_tune_rounds: 1}}",
        "{random-pruning: {ratio: 0.5, fine_tune_rounds: 1}}",
        "{structured-pruning: {ratio: 0.5, fine_tune_rounds: 0}}",
        "{structured-pruning: {ratio: 0.5, fine_tune_rounds: 2}}",
    ]
    text = DIGITS.replace("[accuracy]", "[accuracy, nonzero-share]").replace("rounds: 8", "rounds: 2") + (
        "defences: [none, soteria, dp-sgd: {noise_multiplier: 0.5}, dp-fedavg: {noise_multiplier: 0.1}]\n"
        f"compressors: [[{pruning}], {', '.join(f'[{pruning}, {other}]' for other in after)}]\n"
    )
    result = harness.run(load_text(text, tmp_path / "x.yaml"), device="cpu", jobs=0, store=tmp_path / "runs")
    assert {r["status"] for r in result.records} == {"scored"}, [r["error"] for r in result.records]
    shares = [r["scores"]["nonzero_share"] for r in result.records]
    for start in range(0, len(shares), 5):
        pruned, quantised, twice, cut, trained = shares[start : start + 5]
        assert pruned < 0.15
        assert quantised <= pruned + 0.005  # rounding makes further zeros; biases may move from zero
        assert twice < 0.75 * pruned
        assert trained == pytest.approx(cut, abs=0.02)
