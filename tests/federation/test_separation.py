"""What a guarantee needs of networks and hooks: nothing that leaves past the defence, records that stay apart."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from small import SCENARIO
from torch import nn

import harness
from harness.api import record_keys, uniform
from harness.contracts.defence import ClientHooks, Defence
from harness.errors import NotApplicable
from harness.federation.separation import check_separation
from harness.grid import cells
from harness.scenario import load_text
from harness.stage_specs import train_spec
from harness.training import Training

RECORD = harness.create("defence", "dp-sgd", noise_multiplier=1.0)
CLIENT = harness.create("defence", "dp-fedavg", noise_multiplier=1.0)
SHAPE = (1, 4, 4)


class Average(nn.Module):
    """A running mean of its inputs, under no name that anybody knows."""

    def __init__(self, persistent=True, size=16):
        super().__init__()
        self.register_buffer("mean", torch.zeros(size), persistent=persistent)

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x


class Frozen(Average):
    """The same in a parameter that is not trained."""

    def __init__(self):
        super().__init__(persistent=False)
        self.kept = nn.Parameter(torch.zeros(16), requires_grad=False)

    def forward(self, x):
        with torch.no_grad():
            self.kept.add_(x.mean(0))
        return x


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x) * np.random.rand() * random.random()


def network(*layers, last=16):
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(last, 3))


def silent():
    """Records meet before a layer that starts at zero."""
    net = network(nn.Linear(16, 16), Centred())
    nn.init.zeros_(net[-1].weight)
    return net


@pytest.mark.parametrize("defence", [RECORD, CLIENT], ids=lambda d: d.name)
@pytest.mark.parametrize(("layer", "name"), [(Average, "1.mean"), (Frozen, "1.kept")])
def test_what_leaves_past_a_defence_is_refused_by_name(defence, layer, name):
    with pytest.raises(NotApplicable, match=rf"{defence.name} does not protect {name}, "):
        check_separation((defence,), network(layer()), SHAPE)


def test_what_stays_is_not():
    check_separation((RECORD, CLIENT), network(Average(persistent=False)), SHAPE)
    check_separation((harness.create("defence", "secure-aggregation"),), network(Average()), SHAPE)


@pytest.mark.parametrize("build", [lambda: network(Centred()), lambda: network(Centred(), Noisy()), silent])
def test_networks_where_records_meet_are_refused_where_records_are_protected(build):
    with pytest.raises(NotApplicable, match="dp-sgd needs records kept apart"):
        check_separation((RECORD,), build(), SHAPE)
    check_separation((CLIENT,), build(), SHAPE)


class First(nn.Module):
    """What is made of a record depends on the first one alone, as in attention over the wrong axis."""

    def forward(self, x):
        return x - x[:1].detach()


class Before(nn.Module):
    def forward(self, x):
        return x + torch.cat([x[:1], x[:-1]]).detach()


def quiet(layer, scale):
    """In front of a head whose weights are small."""
    net = network(nn.Linear(16, 16), layer)
    nn.init.normal_(net[-1].weight, std=scale)
    return net


@pytest.mark.parametrize("scale", [1.0, 1e-7, 0.0])
@pytest.mark.parametrize("layer", [First(), Before(), Centred()])
def test_records_meet_wherever_in_the_batch_they_stand(layer, scale):
    with pytest.raises(NotApplicable, match="dp-sgd needs records kept apart"):
        check_separation((RECORD,), quiet(layer, scale), SHAPE)


def hook(part, apart=False):
    """A hook with this loss or batch, which says that it keeps records apart."""

    class Hook(Defence):
        name = "third-party"
        couples_samples = apart

    setattr(Hook, *part)
    return Hook()


def weighted(weights):
    """Losses times weights that are made of them without a gradient."""

    def loss(self, loss, logits):
        def made(params, batch, key):
            losses = loss(params, batch, key)
            return losses * weights(losses.detach())

        return made

    return "loss", loss


LIES = [
    weighted(lambda losses: (losses >= losses.median()).float()),
    weighted(lambda losses: torch.ones_like(losses) / len(losses)),
    weighted(lambda losses: torch.softmax(4 * losses, 0)),
    ("batch", lambda self, x, y, key: ((x - x.mean(0)) / (x.std(0) + 0.1), y)),
]


@pytest.mark.parametrize("part", LIES)
def test_hooks_that_do_not_say_that_they_couple_records_are_tried(part):
    """`Defence.couples_samples` is False where nobody says otherwise."""
    own = hook(part)
    with pytest.raises(NotApplicable, match="what third-party makes of a record depends on the others"):
        check_separation((own, RECORD), network(nn.Linear(16, 16)), SHAPE)
    check_separation((own, CLIENT), network(nn.Linear(16, 16)), SHAPE)


COPIES = ("batch", lambda self, x, y, key: (x.repeat_interleave(4, 0), y.repeat_interleave(4)))
SOME_COPIES = ("batch", lambda self, x, y, key: tuple(v.repeat_interleave(1 + (y == 1), 0) for v in (x, y)))


@pytest.mark.parametrize("part", [COPIES, SOME_COPIES])
def test_hooks_that_make_several_records_of_one_are_refused_where_records_are_protected(part):
    """Each copy is clipped by itself, so that four move the sum by four times as much as noise is made for."""
    own, net = hook(part), network(nn.Linear(16, 16))
    with pytest.raises(NotApplicable, match="third-party makes several of one, each of which is clipped"):
        check_separation((own, RECORD), net, SHAPE)
    check_separation((own, CLIENT), net, SHAPE)


MIXES = ("batch", lambda self, x, y, key: (x.flip(0) * 0.5 + x * 0.5, y))
RANKS = ("batch", lambda self, x, y, key: (x, y[torch.argsort(x.flatten(1).sum(1)).argsort()]))
FLATTENS = weighted(lambda losses: 1 + 0.3 * (losses - losses.mean()).tanh())


@pytest.mark.parametrize("part", [*LIES, MIXES, RANKS, FLATTENS])
@pytest.mark.parametrize("name", ["lenet5", "small-cnn", "resnet9", "mlp"])
def test_they_are_found_on_networks_that_have_learned_nothing(name, part):
    """Initial weights answer all records nearly alike."""
    for seed in range(3):
        torch.manual_seed(seed)
        net = harness.create("model", name).build((1, 28, 28), 10)
        with pytest.raises(NotApplicable, match="what third-party makes of a record depends on the others"):
            check_separation((hook(part), RECORD), net, (1, 28, 28))


@pytest.mark.parametrize("name", ["lenet5", "small-cnn", "resnet9", "mlp"])
@pytest.mark.parametrize(
    "defence",
    [
        "label-smoothing",
        "trades",
        "mart",
        "adversarial-training",
        "bit-depth",
        "jpeg-compression",
        "median-smoothing",
    ],
)
def test_built_in_hooks_that_keep_records_apart_pass_on_them(name, defence):
    for seed in range(3):
        torch.manual_seed(seed)
        net = harness.create("model", name).build((1, 28, 28), 10)
        check_separation((harness.create("defence", defence), RECORD), net, (1, 28, 28))


@pytest.mark.parametrize("seed", range(6))
def test_signs_that_fall_by_rounding_are_no_meeting_of_records(seed):
    """Where an attack starts, TRADES has almost no gradient, and its sign depends on the size of the batch."""
    torch.manual_seed(seed)
    net = harness.create("model", "resnet9", width=4).build((3, 16, 16), 10)
    check_separation((harness.create("defence", "trades", steps=2), RECORD), net, (3, 16, 16))


def test_hooks_that_keep_records_apart_pass():
    def noisy(self, x, y, key):
        draws = torch.func.vmap(lambda own, image: uniform(own, image.shape, 0, 0.1))(record_keys(key, x), x)
        return x + draws, y

    for part in [weighted(lambda losses: losses.exp()), ("batch", noisy)]:
        check_separation((hook(part), RECORD), network(nn.Linear(16, 16)), SHAPE)


@pytest.mark.parametrize(
    "layer", [nn.Dropout(0.5), Noisy(), nn.GroupNorm(4, 16), nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))]
)  # fmt: skip
def test_other_layers_pass_and_nothing_changes(layer):
    net = network(layer).double().eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    check_separation((RECORD,), net, SHAPE)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]


class TestATraining:
    @pytest.fixture
    def training(self):
        text = SCENARIO + "defences: [dp-sgd: {noise_multiplier: 1.0}]\n"
        return Training(train_spec(next(iter(cells(load_text(text))))), "key", "cpu")

    def test_asks_the_network(self, training):
        with pytest.raises(NotApplicable, match=r"1\.mean"):
            training.set_up(nn.Sequential(nn.Flatten(), Average(size=64), nn.Linear(64, 10)))

    @pytest.mark.parametrize("says", [None, True])
    def test_asks_the_hooks_before_the_defences(self, training, says):
        class Paired(ClientHooks):
            def loss(self, loss, logits):
                return lambda params, batch, key: loss(params, batch, key).mean().expand(len(batch[1]))

        if says is not None:
            Paired.couples_samples = says
        module = training.initial_module()
        with pytest.raises(NotApplicable, match="Paired does not say that it keeps"):
            training.run(module, lambda *_: None, purpose="fine-tune", hooks=(Paired(),))
        Paired.couples_samples = False
        with pytest.raises(NotApplicable, match="what Paired makes of a record depends on the others"):
            training.set_up(module, hooks=(Paired(),))
        training.set_up(module, hooks=(ClientHooks(),))  # changes nothing
        training.spec = replace(training.spec, defences=())
        Paired.couples_samples = True
        training.set_up(module, hooks=(Paired(),))

    def test_takes_the_hook_of_the_distillation(self, training):
        from harness_plugins.compressors.distillation import TowardsTeacher

        module = training.initial_module()
        training.set_up(module, hooks=(TowardsTeacher(training.initial_module().eval(), 2.0, 0.5),))
