"""Models: parameter counts, shapes, peers from torchvision, and what training and attacks ask of them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import harness
from harness import PluginError
from harness.api import Normalization
from harness.nn import Normalize

# Narrow versions, and the smallest side each works at.
MODELS = {
    "logistic": ({}, 1),
    "mlp": ({"hidden": [8]}, 1),
    "small-cnn": ({"width": 4}, 4),
    "lenet5": ({}, 12),
    "resnet9": ({"width": 4}, 8),
    "resnet18": ({"width": 4}, 8),
    "vgg11": ({"width": 4}, 8),
}
each_model = pytest.mark.parametrize("name", MODELS)


def build(name, shape, classes=3, normalization=None, seed=0, **parameters):
    plugin = harness.create("model", name, **(parameters or MODELS[name][0]))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return plugin.build(shape, classes, normalization)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "parameters", "shape", "classes", "expected"),
    [
        ("resnet9", {"width": 64}, (1, 28, 28), 3, 2_439_619),
        ("resnet9", {"width": 64, "activation": "mish"}, (1, 224, 224), 3, 2_439_619),
        # two more layers of normalisation: 2 (128 + 256)
        ("resnet9", {"width": 64, "scale_norm": True}, (1, 28, 28), 3, 2_439_619 + 768),
        ("resnet9", {"width": 64}, (3, 32, 32), 10, 2_439_619 + 2 * 9 * 64 + 7 * 1025),
        ("resnet18", {"stem": "imagenet"}, (3, 224, 224), 1000, 11_689_512),
        ("resnet18", {"norm": "batch", "stem": "imagenet"}, (3, 224, 224), 1000, 11_689_512),
        # a 3x3 stem in place of the 7x7, and ten classes
        ("resnet18", {"stem": "auto"}, (3, 32, 32), 10, 11_689_512 - (49 - 9) * 3 * 64 - 990 * 513),
        ("lenet5", {"activation": "tanh"}, (1, 28, 28), 10, 61_706),
        ("lenet5", {"activation": "relu"}, (1, 32, 32), 10, 61_706),
        ("mlp", {"hidden": [200, 200]}, (1, 28, 28), 10, 199_210),
        ("logistic", {}, (3, 5, 7), 4, 4 * (3 * 5 * 7 + 1)),
        ("small-cnn", {"width": 16}, (1, 28, 28), 10, 160 + 4_640 + (32 * 49 + 1) * 64 + 65 * 10),
        ("small-cnn", {"width": 16}, (3, 9, 15), 2, 448 + 4_640 + (32 * 2 * 3 + 1) * 64 + 65 * 2),
    ],
)
def test_parameter_counts(name, parameters, shape, classes, expected):
    assert count(build(name, shape, classes, **parameters)) == expected


def test_vgg11_has_the_papers_parameters():
    # On the meta device: 133 million numbers need not exist to be counted.
    with torch.device("meta"):
        net = harness.create("model", "vgg11").build((3, 224, 224), 1000)
    assert count(net) == 132_863_336
    assert len([m for m in net if isinstance(m, nn.MaxPool2d)]) == 5


@each_model
@pytest.mark.parametrize("side", ["smallest", 28, 33])
@pytest.mark.parametrize("channels", [1, 3])
def test_output_shapes(name, side, channels):
    side = MODELS[name][1] if side == "smallest" else side
    net = build(name, (channels, side, side + 3), 5)
    assert net(torch.rand(2, channels, side, side + 3)).shape == (2, 5)


@each_model
def test_too_small_is_said(name):
    smallest = MODELS[name][1]
    if smallest > 1:
        with pytest.raises(PluginError, match=f"at least {smallest}x{smallest}"):
            build(name, (1, smallest - 1, 64))
    with pytest.raises(PluginError, match="2 classes"):
        build(name, (1, 32, 32), classes=1)
    with pytest.raises(PluginError, match="input_shape"):
        build(name, (32, 32))


@each_model
def test_normalisation_is_inside_and_applied_once(name):
    normalization = Normalization(mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.5])
    plain, inside = build(name, (3, 16, 16)), build(name, (3, 16, 16), normalization=normalization)
    x = torch.rand(2, 3, 16, 16)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (normalization.mean, normalization.std))
    torch.testing.assert_close(inside(x), plain((x - mean) / std))
    assert not torch.allclose(inside(x), plain(x))
    assert sum(isinstance(m, Normalize) for m in inside.modules()) == 1
    assert [k for k, _ in inside.named_parameters()] == [k for k, _ in plain.named_parameters()]
    with pytest.raises(PluginError, match="3 values"):
        build(name, (1, 16, 16), normalization=normalization)


@each_model
def test_seeded_builds_are_equal(name):
    first, again, other = (build(name, (1, 16, 16), seed=seed) for seed in (0, 0, 1))
    states = [net.state_dict() for net in (first, again, other)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not all(torch.equal(states[0][k], states[2][k]) for k in states[0])


@each_model
def test_gradient_reaches_every_parameter_and_the_pixels(name):
    net = build(name, (1, 16, 16))
    x = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    nn.functional.cross_entropy(net(x), torch.arange(8) % 3).backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key
    assert x.grad.abs().sum() > 0


@each_model
def test_traces_copies_and_pickles(name):
    net = build(name, (1, 16, 16), normalization=Normalization(mean=0.5, std=0.25)).eval()
    x = torch.rand(2, 1, 16, 16)
    expected = net(x)
    torch.testing.assert_close(torch.fx.symbolic_trace(net)(x), expected)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x), expected)


@each_model
def test_nothing_works_in_place_or_draws_numbers(name):
    net = build(name, (1, 16, 16))
    assert not any(getattr(m, "inplace", False) for m in net.modules())
    before = torch.get_rng_state()
    x = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(x), net(x))
    assert torch.equal(torch.get_rng_state(), before)


@each_model
def test_per_sample_gradients_by_vmap_equal_a_loop(name):
    net = build(name, (1, 16, 16)).double()
    parameters = dict(net.named_parameters())
    x = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([0, 2, 1])

    def loss(params, image, label):
        logits = torch.func.functional_call(net, params, (image[None],))
        return nn.functional.cross_entropy(logits, label[None])

    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    for i in range(3):
        alone = torch.autograd.grad(loss(parameters, x[i], y[i]), list(parameters.values()))
        for key, gradient in zip(parameters, alone, strict=True):
            torch.testing.assert_close(together[key][i], gradient)


@pytest.mark.parametrize("name", ["resnet9", "resnet18", "vgg11"])
def test_kinds_of_normalisation_layers(name):
    def kinds(norm):
        net = build(name, (1, 16, 16), width=8, norm=norm)
        return {type(m) for m in net.modules()} & {nn.GroupNorm, nn.BatchNorm2d}

    assert kinds("group") == {nn.GroupNorm}
    assert kinds("batch") == {nn.BatchNorm2d}


@pytest.mark.parametrize("name", ["resnet9", "resnet18"])
def test_group_counts(name):
    def groups(width, wanted):
        net = build(name, (1, 16, 16), width=width, norm="group", groups=wanted)
        return {(m.num_channels, m.num_groups) for m in net.modules() if isinstance(m, nn.GroupNorm)}

    assert {g for _, g in groups(64, 32)} == {32}
    assert {(16, 8), (32, 16), (64, 32)} <= groups(16, 32)
    assert {(12, 6), (24, 12), (48, 24)} <= groups(12, 32)
    assert {(6, 3), (12, 4), (24, 4)} <= groups(6, 4)


def test_narrow_resnet9_still_sees_its_input_at_one_pixel():
    net = build("resnet9", (1, 8, 8), width=4)
    branch = net.residual2.branch
    x = torch.rand(2, 16, 1, 1, generator=torch.Generator().manual_seed(0))
    assert (branch(x)[0] - branch(x)[1]).abs().max() > 1e-3


def test_resnet9_is_the_papers_graph():
    net = build("resnet9", (1, 28, 28), width=8, norm="group", groups=4, activation="mish", scale_norm=True)
    f = nn.functional
    state = [p for p in net.parameters() if p.ndim == 4]
    norms = [m for m in net.modules() if isinstance(m, nn.GroupNorm)]
    for i, layer in enumerate(norms):  # affine parameters that tell layers apart
        nn.init.constant_(layer.weight, 1 + 0.1 * i)
        nn.init.constant_(layer.bias, 0.05 * i)

    def block(x, i):
        # Order of construction: conv1 conv2 res1 res1 (norm) conv3 conv4 res2 res2 (norm).
        layer = norms[i if i < 4 else i + 1]
        return f.mish(f.group_norm(f.conv2d(x, state[i], padding=1), 4, layer.weight, layer.bias))

    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    y = f.max_pool2d(block(block(x, 0), 1), 2)
    y = norms[4](block(block(y, 2), 3) + y)
    y = f.max_pool2d(block(f.max_pool2d(block(y, 4), 2), 5), 2)
    y = norms[9](block(block(y, 6), 7) + y)
    y = f.linear(f.adaptive_max_pool2d(y, 2).flatten(1), net.classifier.weight, net.classifier.bias)
    torch.testing.assert_close(net(x), y)


def copy_parameters(source, target):
    """In the order of definition; shapes must agree."""
    theirs = list(target.parameters())
    ours = list(source.parameters())
    assert [p.shape for p in ours] == [p.shape for p in theirs]
    with torch.no_grad():
        for p, q in zip(ours, theirs, strict=True):
            p.uniform_(-0.2, 0.2, generator=torch.Generator().manual_seed(p.numel()))
            q.copy_(p)


def test_resnet18_equals_torchvisions():
    from torchvision.models.resnet import BasicBlock, ResNet

    def norm(channels):
        return nn.GroupNorm(32, channels)

    peer = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=7, norm_layer=norm).eval()
    net = build("resnet18", (3, 64, 64), 7, norm="group").eval()
    copy_parameters(net, peer)
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(x), peer(x))


def test_vgg11_convolutions_equal_torchvisions():
    from torchvision.models.vgg import cfgs, make_layers

    peer = make_layers(cfgs["A"])
    net = build("vgg11", (3, 32, 32), 7, norm="none")
    end = next(i for i, layer in enumerate(net) if isinstance(layer, nn.AdaptiveAvgPool2d))
    features = net[1:end]
    copy_parameters(features, peer)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(features(x), peer(x))
    head = [(m.in_features, m.out_features) for m in net if isinstance(m, nn.Linear)]
    assert head == [(512, 512), (512, 512), (512, 7)]
    # Below 32 pixels the last pooling would leave nothing, and is not there.
    small = build("vgg11", (1, 28, 28))
    assert sum(isinstance(m, nn.MaxPool2d) for m in small) == 4


def test_listing_models_does_not_import_torch():
    import subprocess
    import sys

    code = "import sys, harness; assert 'resnet9' in harness.plugins('model'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
