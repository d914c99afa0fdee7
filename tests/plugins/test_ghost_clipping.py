"""dp-sgd's norms and clipped sums, layer by layer, and those of clients that train as one program."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.api import Local, PluginError, Sampling, make_key, torch_generator
from harness.federation.apply import Apply
from harness.functional import cross_entropy
from harness_plugins.defences import _ghost, _ghost_stacked
from harness_plugins.defences import _ghost_formulas as formulas
from harness_plugins.defences import dp_sgd as dp_sgd_module
from harness_plugins.defences._ghost_formulas import Convolution, Owned
from harness_plugins.defences.dp_sgd import DPSGD

KEY = make_key("test")

# convolutions ------------------------------------------------------------------------------------

# kernel, stride, padding, dilation, image
SHAPES = [
    ((3, 3), (1, 1), (1, 1), (1, 1), (5, 6)),
    ((3, 3), (2, 2), (1, 1), (1, 1), (7, 6)),
    ((1, 1), (2, 1), (0, 0), (1, 1), (5, 5)),
    ((2, 3), (1, 2), (0, 2), (2, 1), (6, 5)),
    ((3, 2), (3, 2), (2, 1), (1, 3), (7, 8)),
    ((4, 4), (1, 1), (0, 0), (1, 1), (4, 4)),
]


def made_up(shape, dtype=torch.float64, channels=(3, 4), b=5):
    kernel, stride, padding, dilation, image = shape
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weight = torch.randn(channels[1], channels[0], *kernel, dtype=dtype)
        x = torch.randn(b, channels[0], *image, dtype=dtype)
        out = functional.conv2d(x, weight, None, stride, padding, dilation)
        return x, torch.randn_like(out), Convolution(tuple(weight.shape), stride, padding, dilation), weight


def by_autograd(x, g, how, weight):
    """The gradients of one record after the other, (b, out, in, height, width)."""

    def one(weight, x, g):
        return (functional.conv2d(x[None], weight, None, how.stride, how.padding, how.dilation) * g).sum()

    return torch.stack([torch.func.grad(one)(weight, *record) for record in zip(x, g, strict=True)])


WAYS = {
    "positions": lambda x, padded, g, how: formulas._by_positions(x, padded, g, "w", how),
    "rows": lambda x, padded, g, how: formulas._by_rows(padded, g, "w", how),
    "patches": lambda x, padded, g, how: formulas._by_patches(x, g, "w", how),
}


def padded(x, how):
    rows, columns = how.padding
    return functional.pad(x, (columns, columns, rows, rows))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_convolutions_have_autograds_norms_and_sums(way, shape):
    x, g, how, weight = made_up(shape)
    samples = by_autograd(x, g, how, weight)
    part = WAYS[way](x, padded(x, how), g, how)
    torch.testing.assert_close(part.squared, samples.flatten(1).square().sum(1), rtol=1e-12, atol=0)
    scale = torch.rand(len(x), dtype=x.dtype, generator=torch_generator("scale"))
    sums = part.sum(scale).reshape(weight.shape)
    torch.testing.assert_close(sums, torch.tensordot(scale, samples, 1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_convolutions_of_several_clients_are_those_of_each(way, shape):
    many = [made_up(shape, b=2) for _ in range(3)]
    how = many[0][2]
    x, g = (torch.stack([(1 + i) * own[place] for i, own in enumerate(many)]) for place in (0, 1))
    scale = torch.rand(3, 2, dtype=x.dtype, generator=torch_generator("scale"))

    def client(x, g, scale):
        part = WAYS[way](x, padded(x, how), g, how)
        return part.squared, part.sum(scale)

    squared, sums = torch.func.vmap(client)(x, g, scale)
    for i in range(3):
        part = WAYS[way](x[i], padded(x[i], how), g[i], how)
        torch.testing.assert_close(squared[i], part.squared)
        torch.testing.assert_close(sums[i], part.sum(scale[i]))


def test_the_way_that_holds_less_is_taken(monkeypatch):
    taken = []
    for name in ("_by_positions", "_by_rows", "_by_patches"):
        way = getattr(formulas, name)
        monkeypatch.setattr(formulas, name, lambda *a, way=way, name=name: (taken.append(name), way(*a))[1])
    for channels in ((8, 8), (8, 9)):  # 4 * 4 pixels with the padding: 2 * 16^2 = 512, and 576 or 648 weights
        x, g, how, _ = made_up(((3, 3), (1, 1), (1, 1), (1, 1), (2, 2)), channels=channels)
        formulas.convolution(x, g, Owned("w", "b"), how)
    x, g, how, _ = made_up(((3, 3), (1, 1), (1, 1), (1, 1), (2, 2)), channels=(8, 7))
    formulas.convolution(x, g, Owned("w", None), how)
    assert taken == ["_by_positions", "_by_positions", "_by_rows"]


def test_only_what_is_trained_counts():
    x, g, how, weight = made_up(SHAPES[0])
    samples = by_autograd(x, g, how, weight).flatten(1)
    biases = g.sum((2, 3))
    for named in ("wb", ("w", None), (None, "b")):
        parts = formulas.convolution(x, g, Owned(*named), how)
        assert [part.name for part in parts] == [name for name in named if name]
        for part in parts:
            expected = samples if part.name == "w" else biases
            torch.testing.assert_close(part.squared, expected.square().sum(1))


@pytest.mark.parametrize("mean", [0.0, 1.0, 100.0])
def test_norms_of_positions_that_cancel_are_not_too_small(mean):
    """Bright images and gradients that sum to zero, as before a normalisation: most of every product cancels."""
    x, g, how, weight = made_up(((3, 3), (1, 1), (1, 1), (1, 1), (8, 8)), torch.float32, (32, 32), b=64)
    x, g = x + mean, g - g.mean((2, 3), keepdim=True)
    exact = by_autograd(x.double(), g.double(), how, weight.double()).flatten(1).norm(dim=1)
    found = formulas._by_positions(x, padded(x, how), g, "w", how).squared.sqrt()
    assert (found >= exact * (1 - 1e-6)).all()
    assert (found <= exact * (1 + 1e-3)).all()


# clients that train as one program ---------------------------------------------------------------


def network(seed=0, dtype=torch.float64):
    """All that has a formula; the second convolution's weight is large beside its image."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1, stride=2),
            nn.GroupNorm(3, 12),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 12, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(48, 6, bias=False),
            nn.Tanh(),
            nn.Linear(6, 3),
        ).to(dtype)


CLIENTS, RECORDS = 3, 6


def cohort(build=network, dtype=torch.float64):
    modules = [build(seed) for seed in range(CLIENTS)]
    params = [dict(module.named_parameters()) for module in modules]
    stacked = {name: torch.stack([own[name].detach() for own in params]) for name in params[0]}
    generator = torch_generator("records")
    x = torch.rand(CLIENTS, RECORDS, 1, 8, 8, generator=generator, dtype=dtype)
    y = torch.randint(3, (CLIENTS, RECORDS), generator=generator)
    return modules, stacked, (x, y)


def local(loss, mask=None):
    return Local(
        loss=loss,
        gradient=None,
        client=None,
        batch_size=1,
        sampling=Sampling("poisson", 0.5),
        prepared={"clients": [{"noise_multiplier": 0.0}]},
        module=None,
        generator=None,
        mask=mask,
    )


class Single(Local):
    def own(self, number):
        return 0.0


def together(defence, make_loss, modules, stacked, batch, mask=None):
    """The clients' clipped sums, (clients, d)."""
    buffers = dict(modules[0].named_buffers())

    def client(params, batch, mask):
        own = Single(**vars(local(make_loss(Apply(modules[0], params, buffers)), mask)))
        return defence.gradient(own)(params, batch, KEY)

    dims = (0, (0, 0), None if mask is None else 0)
    return flat(torch.func.vmap(client, in_dims=dims, randomness="different")(stacked, batch, mask))


def flat(grads):
    return torch.cat([g.flatten(1) for g in grads.values()], 1)


def clipped(row, c, clipping):
    """One record's part in the sum, from its gradients, a tensor each."""
    if clipping == "per-layer":
        return [g * min(1.0, c / math.sqrt(len(row)) / (g.norm() + 1e-6)) for g in row]
    norm = torch.stack([g.norm() for g in row]).norm()
    return [g * (c / (norm + 0.01) if clipping == "automatic" else min(1.0, c / (norm + 1e-6))) for g in row]


def one_by_one(make_loss, modules, batch, max_grad_norm, mask=None, clipping="flat"):
    """The formula, client by client and record by record."""
    sums = []
    for i, module in enumerate(modules):
        loss, params = make_loss(Apply(module)), dict(module.named_parameters())
        total = 0.0
        for j in range(RECORDS):
            if mask is not None and not mask[i, j]:
                continue
            own = (batch[0][i, j : j + 1], batch[1][i, j : j + 1])
            if not own[0].isfinite().all():
                continue
            found = torch.autograd.grad(loss(params, own, KEY).sum(), list(params.values()))
            total += torch.cat([v.reshape(-1) for v in clipped(found, max_grad_norm, clipping)])
        sums.append(total)
    return torch.stack(sums)


def dp(max_grad_norm, **parameters):
    return DPSGD(noise_multiplier=0.0, max_grad_norm=max_grad_norm, **parameters)


def refused(*_):
    raise AssertionError("a gradient per sample")


@pytest.mark.parametrize("clipping", ["flat", "automatic", "per-layer"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("c", [0.3, 1.0, 30.0])
def test_stacked_sums_are_the_formula(monkeypatch, c, masked, clipping):
    monkeypatch.setattr(dp_sgd_module, "vmapped_sum", refused)
    modules, stacked, batch = cohort()
    mask = torch.rand(CLIENTS, RECORDS, generator=torch_generator("mask")) < 0.6 if masked else None
    expected = one_by_one(cross_entropy, modules, batch, c, mask, clipping)
    defence = dp(c, clipping=clipping)
    for _ in range(2):  # the first batch is where shapes are learned and sums looked at
        found = together(defence, cross_entropy, modules, stacked, batch, mask)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def attacked(apply):
    """Adversarial training with a step of the sign, on detached parameters."""
    inner = cross_entropy(apply)

    def loss(params, batch, key):
        x, y = batch
        held = {name: p.detach() for name, p in params.items()}
        step = torch.func.grad(lambda x: inner(held, (x, y), key).sum())(x)
        return inner(params, (x + 0.1 * step.sign(), y), key)

    return loss


def test_attacks_inside_the_loss_pass_by_unseen(monkeypatch):
    monkeypatch.setattr(dp_sgd_module, "vmapped_sum", refused)
    modules, stacked, batch = cohort()
    found = together(dp(0.5), attacked, modules, stacked, batch)
    torch.testing.assert_close(found, one_by_one(attacked, modules, batch, 0.5), rtol=1e-9, atol=1e-12)


def test_a_record_without_a_finite_gradient_counts_as_zero():
    modules, stacked, (x, y) = cohort()
    x[1, 2] = math.nan
    defence = dp(0.5)
    for _ in range(2):
        found = together(defence, cross_entropy, modules, stacked, (x, y))
        torch.testing.assert_close(
            found, one_by_one(cross_entropy, modules, (x, y), 0.5), rtol=1e-9, atol=1e-12
        )


def twice(apply):
    inner = cross_entropy(apply)
    return lambda params, batch, key: inner(params, batch, key) + inner(params, (1 - batch[0], batch[1]), key)


def penalised(apply):
    inner = cross_entropy(apply)
    return lambda params, batch, key: inner(params, batch, key) + params["9.weight"].square().sum()


def listed(apply):
    """A penalty whose parameter goes in among others."""
    inner = cross_entropy(apply)
    return lambda params, batch, key: (
        inner(params, batch, key) + torch.cat([params["9.weight"], params["9.weight"]]).square().sum()
    )


class Squares(torch.autograd.Function):
    """A function of its own."""

    generate_vmap_rule = True

    @staticmethod
    def forward(w):
        return w.square().sum()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


def hidden(apply):
    inner = cross_entropy(apply)
    return lambda params, batch, key: inner(params, batch, key) + Squares.apply(params["9.weight"])


class Grouped(nn.Sequential):
    def __init__(self, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            super().__init__(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 3))
        self.double()


class Named(nn.Sequential):
    def __init__(self, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            super().__init__(nn.Conv2d(1, 4, 3, padding="same"), nn.Flatten(), nn.Linear(256, 3))
        self.double()


class Tokens(nn.Module):
    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.inner, self.head = nn.Linear(8, 4).double(), nn.Linear(32, 3).double()

    def forward(self, x):
        return self.head(self.inner(x.reshape(len(x), 8, 8)).reshape(len(x), -1))


class Rows(Tokens):
    def forward(self, x):
        return self.head(self.inner(x.reshape(-1, 8)).reshape(len(x), -1))


class Scaled(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.inner = network(seed)
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))

    def forward(self, x):
        return self.inner(x) * self.scale


UNSUPPORTED = [
    (network, twice, "is used 2 times"),
    (network, penalised, "no formula for square"),
    (network, listed, "no formula for cat"),
    (network, hidden, "no formula for custom_function_call"),
    (Grouped, cross_entropy, "grouped convolutions"),
    (Named, cross_entropy, "padding by name"),
    (Tokens, cross_entropy, "more than one row a record"),
    (Rows, cross_entropy, "one row a record"),
    (Scaled, cross_entropy, "no formula for mul"),
]


@pytest.mark.parametrize(("build", "make_loss", "reason"), UNSUPPORTED)
def test_what_has_no_formula_is_done_per_sample(build, make_loss, reason):
    modules, stacked, batch = cohort(build)
    expected = one_by_one(make_loss, modules, batch, 0.5)
    defence = dp(0.5)
    for _ in range(2):
        found = together(defence, make_loss, modules, stacked, batch)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(PluginError, match=reason):
        together(dp(0.5, per_sample="ghost"), make_loss, modules, stacked, batch)


def test_a_formula_with_a_wrong_norm_is_not_used(monkeypatch):
    right = formulas.linear

    def wrong(x, g, owned):
        return [part._replace(squared=0.9 * part.squared) for part in right(x, g, owned)]

    monkeypatch.setattr(_ghost, "linear", wrong)
    monkeypatch.setattr(_ghost_stacked, "linear", wrong)
    modules, stacked, batch = cohort()
    defence = dp(0.5, per_sample="ghost")
    with pytest.raises(PluginError, match="the norm of autograd's"):
        together(defence, cross_entropy, modules, stacked, batch)
    with pytest.raises(PluginError, match="the norm of autograd's"):
        alone(defence, modules[0], (batch[0][0], batch[1][0]))


def test_gradients_that_are_zero_but_for_rounding_are_no_reason_to_refuse(monkeypatch):
    """A bias in front of a normalisation of each channel."""
    monkeypatch.setattr(dp_sgd_module, "vmapped_sum", refused)

    def build(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.GroupNorm(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
            )

    modules, stacked, batch = cohort(build, torch.float32)
    found = together(dp(0.5), cross_entropy, modules, stacked, batch)
    torch.testing.assert_close(
        found[0], alone(dp(0.5), modules[0], (batch[0][0], batch[1][0])), rtol=1e-3, atol=1e-5
    )


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


def meeting(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Centred(), nn.ReLU(), nn.Linear(8, 3)).double()


@pytest.mark.parametrize("first", [1, RECORDS])
def test_records_that_meet_are_seen_at_the_first_batch_of_several(first):
    modules, stacked, (x, y) = cohort(meeting)
    defence = dp(0.5, per_sample="ghost")
    if first == 1:
        together(defence, cross_entropy, modules, stacked, (x[:, :1], y[:, :1]))
    with pytest.raises(PluginError, match="do not give autograd's gradient"):
        together(defence, cross_entropy, modules, stacked, (x, y))


def test_reduced_precision_is_not_trusted():
    modules, stacked, batch = cohort(lambda seed: network(seed, torch.float32), torch.float32)

    def lowered(apply):
        def loss(params, batch, key):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = apply(params, batch[0]).float()
            return functional.cross_entropy(logits, batch[1], reduction="none")

        return loss

    with pytest.raises(PluginError, match="reduced precision"):
        together(dp(0.5, per_sample="ghost"), lowered, modules, stacked, batch)
    for i in range(RECORDS):  # each counts with just C
        own = (batch[0][:, i : i + 1], batch[1][:, i : i + 1])
        moved = together(dp(0.05), lowered, modules, stacked, own).norm(dim=1)
        assert ((moved >= 0.999 * 0.05) & (moved <= 0.05 * (1 + 1e-5))).all()


def test_a_network_that_was_refused_is_not_tried_again(monkeypatch):
    modules, stacked, batch = cohort()
    defence = dp(0.5)
    together(defence, twice, modules, stacked, batch)
    monkeypatch.setattr(_ghost_stacked, "_Layers", refused)
    together(defence, twice, modules, stacked, batch)


def test_images_of_another_size_and_other_batches_are_learned_anew(monkeypatch):
    monkeypatch.setattr(dp_sgd_module, "vmapped_sum", refused)

    def build(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
            ).double()

    modules, stacked, (x, y) = cohort(build)
    defence = dp(0.1)
    for own in ((x, y), (x[..., :6, :7], y), (x[:, :2], y[:, :2]), (x, y)):
        found = together(defence, cross_entropy, modules, stacked, own)
        for i, module in enumerate(modules):
            torch.testing.assert_close(found[i], alone(defence, module, (own[0][i], own[1][i])))


def alone(defence, module, batch):
    own = Single(**vars(local(cross_entropy(Apply(module)))))
    own.module = module
    grads = defence.gradient(own)(dict(module.named_parameters()), batch, KEY)
    return torch.cat([g.reshape(-1) for g in grads.values()])


class Bare(nn.Module):
    """A layer norm without a shift, for which Opacus' formula fails; and weights that are not called so."""

    def __init__(self, kind):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = nn.Linear(64, 8)
            self.second = (
                nn.LayerNorm(8, bias=False) if kind == "norm" else nn.utils.weight_norm(nn.Linear(8, 8))
            )
            self.head = nn.Linear(8, 3)
        self.double()

    def forward(self, x):
        return self.head(self.second(self.first(x.flatten(1))).tanh())


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(
    ("kind", "reason"), [("norm", "formula for LayerNorm fails"), ("reparametrised", "beside a")]
)
def test_layers_that_no_formula_knows_are_done_per_sample(kind, reason):
    module = Bare(kind)
    _, _, (x, y) = cohort()
    expected = one_by_one(cross_entropy, [module], (x, y), 0.3)[0]
    torch.testing.assert_close(alone(dp(0.3), module, (x[0], y[0])), expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(PluginError, match=reason):
        alone(dp(0.3, per_sample="ghost"), module, (x[0], y[0]))


def test_a_network_is_looked_at_until_every_parameter_has_a_gradient():
    """Records meet behind a layer, and the head that starts at zero hides it from the first batch."""
    modules, stacked, (x, y) = cohort(meeting)
    module = modules[0]
    with torch.no_grad():
        module[4].weight.zero_()
        stacked["4.weight"].zero_()
    single, several = (dp(0.5, per_sample="ghost") for _ in range(2))
    alone(single, module, (x[0], y[0]))
    together(several, cross_entropy, modules, stacked, (x, y))
    with torch.no_grad():
        module[4].weight.fill_(0.1).mul_(torch.arange(3).view(3, 1))
        stacked["4.weight"].copy_(module[4].weight.expand(CLIENTS, -1, -1))
    for _ in range(2):  # a refusal is for good
        with pytest.raises(PluginError, match="do not give"):
            alone(single, module, (x[0], y[0]))
        with pytest.raises(PluginError, match="do not give"):
            together(several, cross_entropy, modules, stacked, (x, y))
    with pytest.raises(PluginError, match="do not give"):
        alone(single, module, (x[0, :1], y[0, :1]))
