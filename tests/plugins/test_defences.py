import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from harness.api import (
    Defence,
    EvasionAttack,
    Field,
    Local,
    NotApplicable,
    PluginError,
    PrepareContext,
    Sampling,
    StackContext,
    make_key,
    pgd,
    record_keys,
    split,
    torch_generator,
    uniform,
)
from harness.federation.apply import Apply
from harness.functional import cross_entropy
from harness.nn import Normalize
from harness.privacy import accounting
from harness.stacks import check_stack
from harness_plugins.defences import dp_sgd as dp_sgd_module
from harness_plugins.defences.adversarial_training import AdversarialTraining
from harness_plugins.defences.dp_sgd import DPSGD
from harness_plugins.defences.gradient_clipping import GradientClipping

KEY = make_key("test")


class Sign(EvasionAttack):
    """PGD from harness.api with its parameters as fields."""

    name = "sign"
    default_eps = 0.1
    eps: float | None = Field(None)
    steps: int = Field(2)
    random_start: bool = Field(True)

    @property
    def effort(self):
        return self.steps

    def perturb(self, model, x, y, context):
        raise AssertionError

    def functional(self, eps=None):
        radius = self.radius(eps)
        return lambda loss, x, key: pgd(loss, x, key, radius, radius / 2, self.steps, self.random_start)


class NoForm(EvasionAttack):
    name = "no-form"

    def perturb(self, model, x, y, context):
        raise AssertionError


def network(dtype=torch.float32, padding_mode="zeros", seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            Normalize([0.4], [0.3]),
            nn.Conv2d(1, 4, 3, padding=1, padding_mode=padding_mode),
            nn.GroupNorm(2, 4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=False),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(54, 8),
            nn.Tanh(),
            nn.Linear(8, 3),
        ).to(dtype)


def records(n=9, dtype=torch.float32, seed=0):
    generator = torch_generator("records", seed)
    x = torch.rand(n, 1, 8, 8, generator=generator, dtype=dtype)
    return x, torch.randint(3, (n,), generator=generator)


def make_local(module, loss, sigma=0.0, batch_size=1, alone=True, gradient=None, seed=0):
    return Local(
        loss=loss,
        gradient=gradient,
        client=1,
        batch_size=batch_size,
        sampling=Sampling("poisson", 0.5),
        prepared={"clients": [{}, {"noise_multiplier": sigma, "sample_rate": 0.5, "steps": 1}]},
        module=module if alone else None,
        generator=torch_generator("noise", seed),
    )


def dp(max_grad_norm=1.0, **parameters):
    return DPSGD(noise_multiplier=0.0, max_grad_norm=max_grad_norm, **parameters)


def flat(grads):
    return torch.cat([g.reshape(-1) for g in grads.values()])


def parameters_of(module):
    return dict(module.named_parameters())


def same(found, expected):
    """Equal but for the 1e-6 that dp-sgd adds to each norm it divides by."""
    assert float((found - expected).norm() / expected.norm()) < 2e-5


def looped(module, loss, batch, max_grad_norm):
    """The formula, record by record: sum of g_i min(1, C / |g_i|), and the norms."""
    params = parameters_of(module)
    total, norms = 0.0, []
    for x, y in zip(*batch, strict=True):
        value = loss(params, (x[None], y[None]), KEY).sum()
        g = torch.cat([v.reshape(-1) for v in torch.autograd.grad(value, list(params.values()))])
        norms.append(float(g.norm()))
        total = total + g * min(1.0, max_grad_norm / norms[-1])
    return total, sorted(norms)


PATHS = ["ghost", "vmap", "auto"]


# dp-sgd: the gradient ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("clipped", [0, 4, 9])
def test_clipped_sum_is_the_formula(path, clipped):
    module, batch = network(torch.float64), records(dtype=torch.float64)
    loss = cross_entropy(Apply(module))
    _, norms = looped(module, loss, batch, 1.0)
    bounds = [norms[0] / 2, *[(a + b) / 2 for a, b in itertools.pairwise(norms)], 2 * norms[-1]]
    c = bounds[9 - clipped]
    expected, _ = looped(module, loss, batch, c)
    grads = dp(c, per_sample=path).gradient(make_local(module, loss))(parameters_of(module), batch, KEY)
    assert list(grads) == list(parameters_of(module))
    assert all(g.dtype == torch.float64 and not g.requires_grad for g in grads.values())
    same(flat(grads), expected)


@pytest.mark.parametrize("path", PATHS)
def test_clipped_sum_is_opacus(path):
    from opacus import GradSampleModule

    module, (x, y) = network(), records()
    wrapped = GradSampleModule(copy.deepcopy(module), loss_reduction="sum", strict=False)
    for layer in wrapped.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # Opacus' backward hooks refuse it
    functional.cross_entropy(wrapped(x), y, reduction="sum").backward()
    samples = [p.grad_sample for p in wrapped.parameters()]
    norms = torch.stack([s.flatten(1).norm(dim=1) for s in samples]).norm(dim=0)
    c = float(norms.median())
    factors = (c / (norms + 1e-6)).clamp(max=1)
    expected = torch.cat([torch.einsum("i,i...", factors, s).reshape(-1) for s in samples])
    loss = cross_entropy(Apply(module))
    grads = dp(c, per_sample=path).gradient(make_local(module, loss))(parameters_of(module), (x, y), KEY)
    torch.testing.assert_close(flat(grads), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("path", ["ghost", "vmap"])
@pytest.mark.parametrize("fraction", [None, 0.5, 1.0])
def test_a_record_more_or_less_moves_the_sum_by_its_clipped_gradient(path, fraction):
    module, (x, y) = network(), records(10)
    loss = cross_entropy(Apply(module))
    if fraction is not None:
        loss = AdversarialTraining(attack=Sign(eps=0.2), fraction=fraction).loss(loss, None)
    params, c = parameters_of(module), 0.05  # below every norm, so each record counts with just C
    gradient = dp(c, per_sample=path).gradient(make_local(module, loss))
    whole = flat(gradient(params, (x, y), KEY))
    for i in (0, 4, 9):  # also where every later record changes its place
        kept = [j for j in range(10) if j != i]
        moved = (whole - flat(gradient(params, (x[kept], y[kept]), KEY))).norm()
        assert 0.999 * c <= moved <= c * (1 + 1e-5)


@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_paths_agree_on_random_losses(fraction):
    module, batch = network(torch.float64), records(12, torch.float64)
    loss = AdversarialTraining(attack=Sign(), fraction=fraction).loss(
        cross_entropy(Apply(module)), Apply(module)
    )
    results = [
        flat(dp(0.5, per_sample=path).gradient(make_local(module, loss))(parameters_of(module), batch, KEY))
        for path in ("ghost", "vmap")
    ]
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


def test_vmap_runs_in_pieces(monkeypatch):
    module, batch = network(torch.float64), records(7, torch.float64)
    loss = AdversarialTraining(attack=Sign(), fraction=0.5).loss(cross_entropy(Apply(module)), Apply(module))
    gradient = dp(per_sample="vmap").gradient(make_local(module, loss))
    whole = flat(gradient(parameters_of(module), batch, KEY))
    size = sum(p.numel() for p in module.parameters())
    monkeypatch.setattr(dp_sgd_module, "CHUNK_ELEMENTS", 3 * size)
    torch.testing.assert_close(flat(gradient(parameters_of(module), batch, KEY)), whole)


def test_vectorised_clients_equal_single_ones():
    modules = [network(torch.float64, seed=i) for i in range(3)]
    loss = cross_entropy(Apply(modules[0]))
    gradient = dp(0.3).gradient(make_local(None, loss, alone=False))
    stacked = {
        name: torch.stack([parameters_of(m)[name].detach() for m in modules])
        for name in parameters_of(modules[0])
    }
    batches = [records(5, torch.float64, seed=i) for i in range(3)]
    x, y = (torch.stack(part) for part in zip(*batches, strict=True))
    together = torch.func.vmap(gradient, in_dims=(0, (0, 0), None))(stacked, (x, y), KEY)
    for i, module in enumerate(modules):
        expected, _ = looped(module, cross_entropy(Apply(module)), batches[i], 0.3)
        same(flat({n: g[i] for n, g in together.items()}), expected)


@pytest.mark.parametrize("path", PATHS)
def test_expected_batch_size_divides_once(path):
    module, batch = network(torch.float64), records(6, torch.float64)
    loss = cross_entropy(Apply(module))
    defence = dp(0.1, per_sample=path)
    whole = flat(defence.gradient(make_local(module, loss))(parameters_of(module), batch, KEY))
    divided = defence.gradient(make_local(module, loss, batch_size=32))(parameters_of(module), batch, KEY)
    torch.testing.assert_close(flat(divided), whole / 32)  # not by the 6 records that were drawn


@pytest.mark.parametrize("path", PATHS)
def test_noise_has_its_deviation_and_joins_the_sum(path):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 500), nn.Linear(500, 3))
    loss = cross_entropy(Apply(module))
    sigma, c, b = 1.7, 0.6, 20
    defence = DPSGD(noise_multiplier=sigma, max_grad_norm=c, per_sample=path)
    params = parameters_of(module)
    x, y = records()
    gradient = defence.gradient(make_local(module, loss, sigma, b))
    noise = flat(gradient(params, (x[:0], y[:0]), KEY))  # an empty batch is noise alone
    d = noise.numel()
    assert float(noise.std()) == pytest.approx(sigma * c / b, rel=5 / math.sqrt(2 * d))
    assert abs(float(noise.mean())) < 5 * sigma * c / b / math.sqrt(d)
    assert float((noise.abs() < sigma * c / b).double().mean()) == pytest.approx(0.6827, abs=0.01)
    second = flat(gradient(params, (x[:0], y[:0]), KEY))
    assert abs(float(torch.corrcoef(torch.stack([noise, second]))[0, 1])) < 5 / math.sqrt(d)
    signal = flat(dp(c, per_sample=path).gradient(make_local(module, loss, 0, b))(params, (x, y), KEY))
    noisy = defence.gradient(make_local(module, loss, sigma, b))(params, (x, y), KEY)
    torch.testing.assert_close(flat(noisy) - signal, noise, rtol=1e-3, atol=1e-6)


def test_gradient_leaves_everything_as_it_was():
    module, (x, y) = network(), records()
    before = copy.deepcopy(module.state_dict())
    batch, state = (x.clone(), y.clone()), torch.get_rng_state()
    loss = AdversarialTraining(attack=Sign(), fraction=0.5).loss(cross_entropy(Apply(module)), Apply(module))
    for path in PATHS:
        defence = DPSGD(noise_multiplier=1.0, per_sample=path)
        defence.gradient(make_local(module, loss, 1.0))(parameters_of(module), (x, y), KEY)
    assert torch.equal(x, batch[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[n]) for n, v in module.state_dict().items())
    assert all(p.grad is None and not hasattr(p, "grad_sample") for p in module.parameters())
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in module.modules())


def trades(apply):
    """Two forward passes with the same parameters."""

    def loss(params, batch, key):
        x, y = batch
        clean = apply(params, x)
        return functional.cross_entropy(clean, y, reduction="none") + (
            apply(params, 1 - x) - clean
        ).square().sum(1)

    return loss


def penalised(apply):
    """A parameter outside its layer."""
    inner = cross_entropy(apply)
    return lambda params, batch, key: inner(params, batch, key) + params["9.weight"].square().sum()


class Owner(nn.Module):
    """A parameter outside every layer that has a formula."""

    def __init__(self):
        super().__init__()
        self.inner = network(torch.float64)
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))

    def forward(self, x):
        return self.inner(x) * self.scale


class Twice(nn.Module):
    """One layer, used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.shared = nn.Linear(64, 5).double(), nn.Linear(5, 5).double()

    def forward(self, x):
        return self.shared(self.shared(self.first(x.flatten(1))).tanh())


class Tokens(nn.Module):
    """A layer whose rows are not records."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(8, 4).double(), nn.Linear(32, 3).double()

    def forward(self, x):
        return self.head(self.inner(x.reshape(-1, 8)).reshape(len(x), -1))


UNSUPPORTED = [
    (lambda: network(torch.float64), trades, "used 2 times"),
    (lambda: network(torch.float64), penalised, "9.weight is used 2 times"),
    (lambda: network(torch.float64, padding_mode="reflect"), cross_entropy, "reflect padding"),
    (Owner, cross_entropy, "no formula for Owner"),
    (Twice, cross_entropy, "used 2 times"),
    (Tokens, cross_entropy, "one row a record"),
]


@pytest.mark.parametrize(("build", "make_loss", "reason"), UNSUPPORTED)
def test_what_ghost_clipping_cannot_do_is_done_per_sample(build, make_loss, reason):
    module, batch = build(), records(6, torch.float64)
    loss = make_loss(Apply(module))
    _, norms = looped(module, loss, batch, 1.0)
    c = norms[3]
    expected, _ = looped(module, loss, batch, c)
    grads = dp(c).gradient(make_local(module, loss))(parameters_of(module), batch, KEY)
    same(flat(grads), expected)
    with pytest.raises(PluginError, match=reason):
        dp(c, per_sample="ghost").gradient(make_local(module, loss))(parameters_of(module), batch, KEY)
    assert not any(layer._forward_hooks for layer in module.modules())


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


@pytest.mark.parametrize("c", [1e-3, 1e3])
def test_a_batch_of_one_record_does_not_vouch_for_a_network(c):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Centred(), nn.ReLU(), nn.Linear(8, 3)).double()
    x, y = records(6, torch.float64)
    gradient = dp(c, per_sample="ghost").gradient(make_local(module, cross_entropy(Apply(module))))
    gradient(parameters_of(module), (x[:1], y[:1]), KEY)
    with pytest.raises(PluginError, match="do not give autograd's gradient"):
        gradient(parameters_of(module), (x, y), KEY)


def test_ghost_is_tried_once():
    module, batch = network(), records()
    calls = []

    def loss(params, batch, key):
        calls.append(len(batch[1]))
        return trades(Apply(module))(params, batch, key)

    gradient = dp().gradient(make_local(module, loss))
    for _ in range(3):
        gradient(parameters_of(module), batch, KEY)
    assert calls == [9, 1, 1, 1]  # one attempt on the batch, then records on their own under vmap


def test_auto_uses_ghost_clipping_where_it_can(monkeypatch):
    def refuse(*_):
        raise AssertionError("vmap")

    module, batch = network(), records()
    monkeypatch.setattr(dp_sgd_module, "vmapped_sum", refuse)
    dp().gradient(make_local(module, cross_entropy(Apply(module))))(parameters_of(module), batch, KEY)
    with pytest.raises(AssertionError, match="vmap"):
        dp().gradient(make_local(module, cross_entropy(Apply(module)), alone=False))(
            parameters_of(module), batch, KEY
        )


def test_reduced_precision_keeps_the_bound():
    module, (x, y) = network(), records()
    apply = Apply(module)

    def loss(params, batch, key):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = apply(params, batch[0]).float()
        return functional.cross_entropy(logits, batch[1], reduction="none")

    c = 0.05
    gradient = dp(c).gradient(make_local(module, loss))
    for i in range(4):
        moved = flat(gradient(parameters_of(module), (x[i : i + 1], y[i : i + 1]), KEY)).norm()
        assert 0.999 * c <= moved <= c * (1 + 1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_a_record_without_a_finite_gradient_counts_as_zero(path):
    module, (x, y) = network(), records(5)
    bad = x.clone()
    bad[2] = math.nan
    loss = cross_entropy(Apply(module))
    gradient = dp(0.1, per_sample=path).gradient(make_local(module, loss))
    kept = [0, 1, 3, 4]
    torch.testing.assert_close(
        flat(gradient(parameters_of(module), (bad, y), KEY)),
        flat(gradient(parameters_of(module), (x[kept], y[kept]), KEY)),
    )


def test_channels_last_images():
    module, (x, y) = network(torch.float64), records(dtype=torch.float64)
    loss = cross_entropy(Apply(module.to(memory_format=torch.channels_last)))
    expected, _ = looped(module, loss, (x, y), 0.2)
    batch = (x.expand(-1, 1, 8, 8).contiguous(memory_format=torch.channels_last), y)
    gradient = dp(0.2, per_sample="ghost").gradient(make_local(module, loss))
    same(flat(gradient(parameters_of(module), batch, KEY)), expected)


# dp-sgd: planning and accounting -----------------------------------------------------------------


def context(sizes=(100, 40, 10), steps=(30, 20, 40), batch_size=20, **more):
    more.setdefault("records", sum(sizes))
    return PrepareContext(sizes=list(sizes), steps=list(steps), batch_size=batch_size, rounds=10, **more)


@pytest.mark.parametrize("accountant", ["rdp", "gdp"])
@pytest.mark.filterwarnings("ignore:gdp accounting")
def test_noise_is_calibrated_per_client(accountant):
    defence = DPSGD(epsilon=4.0, accountant=accountant)
    prepared = defence.prepare(context())
    assert prepared["delta"] == pytest.approx(1 / 1500)
    assert [c["sample_rate"] for c in prepared["clients"]] == [0.2, 0.5, 1.0]
    assert [c["steps"] for c in prepared["clients"]] == [30, 20, 40]
    sigmas = [c["noise_multiplier"] for c in prepared["clients"]]
    assert sigmas[0] < sigmas[1] < sigmas[2]
    for c in prepared["clients"]:
        spent = accounting.epsilon(
            [(c["noise_multiplier"], c["sample_rate"], c["steps"])], 1 / 1500, accountant
        )
        assert 3.96 <= spent <= 4.0
    result = defence.guarantee([prepared])
    assert 3.96 <= result.epsilon <= 4.0
    assert result.holds is (accountant != "gdp")
    assert result.simulated
    assert result.unit == "record"


def test_guarantee_is_the_worst_client():
    prepared = DPSGD(noise_multiplier=1.5).prepare(context())
    result = DPSGD(noise_multiplier=1.5).guarantee([prepared])
    expected = [
        accounting.epsilon([(1.5, rate, steps)], 1 / 1500)
        for rate, steps in [(0.2, 30), (0.5, 20), (1.0, 40)]
    ]
    assert result.client_epsilon == {"0": expected[0], "1": expected[1], "2": expected[2]}
    assert result.epsilon == max(expected) == expected[2]
    assert result.sampling == {"method": "poisson", "rate": 1.0, "steps": 40}
    assert [result.noise_multiplier, result.max_grad_norm, result.accountant] == [1.5, 1.0, "rdp"]
    assert result.group_epsilon is None


def test_a_later_training_keeps_the_noise_and_adds_up():
    defence = DPSGD(epsilon=4.0)
    first = defence.prepare(context(steps=(30, 20, 0)))
    second = defence.prepare(context(steps=(6, 0, 5), history=[first]))
    sigmas = [[c["noise_multiplier"] for c in p["clients"]] for p in (first, second)]
    assert sigmas[1][:2] == sigmas[0][:2]
    assert sigmas[0][2] > 0  # no steps were planned, but none would be taken without noise
    result = defence.guarantee([first, second])
    delta = first["delta"]
    assert result.client_epsilon["0"] == accounting.epsilon([(sigmas[0][0], 0.2, 36)], delta)
    assert result.client_epsilon["1"] == accounting.epsilon([(sigmas[0][1], 0.5, 20)], delta)
    assert 3.96 <= result.client_epsilon["2"] <= 4  # calibrated when it first took part
    assert result.epsilon == result.client_epsilon["0"] > 4
    assert result.sampling["steps"] == 36
    assert defence.guarantee([first]).epsilon <= 4
    third = defence.prepare(context(steps=(1, 1, 1), history=[first, second]))
    assert third["clients"][2]["noise_multiplier"] == sigmas[1][2]


def test_a_group_is_counted_with_all_its_records():
    defence = DPSGD(noise_multiplier=4.0)
    prepared = defence.prepare(context(largest_group=3, steps=(10, 5, 2)))
    result = defence.guarantee([prepared])
    delta = prepared["delta"]
    clients = [[(4.0, rate, steps)] for rate, steps in [(0.2, 10), (0.5, 5), (1.0, 2)]]
    expected = accounting.group_epsilon(clients, delta, 3)
    assert [result.group_epsilon, result.largest_group] == [expected, 3]
    assert result.group_epsilon > result.epsilon


def test_no_noise_is_no_guarantee():
    defence = DPSGD(noise_multiplier=0.0)
    result = defence.guarantee([defence.prepare(context())])
    assert result.epsilon == math.inf
    assert not result.holds
    assert result.broken_by
    assert defence.guarantee([]) is None


@pytest.mark.parametrize("delta", [1 / 150, 0.1])
def test_delta_must_be_below_one_over_the_records(delta):
    with pytest.raises(PluginError, match="1 / 150"):
        DPSGD(epsilon=1.0, delta=delta).prepare(context())
    prepared = DPSGD(epsilon=1.0, delta=0.99 / 150).prepare(context())
    assert prepared["delta"] == 0.99 / 150


def test_prepared_values_are_plain_json():
    import json

    prepared = DPSGD(epsilon=2.0).prepare(context(largest_group=1, steps=(0, 5, 5)))
    assert json.loads(json.dumps(prepared, allow_nan=False)) == prepared


@pytest.mark.parametrize(("size", "batch_size", "rate"), [(100, 20, 0.2), (20, 20, 1.0), (5, 20, 1.0)])
def test_sampling_is_poisson(size, batch_size, rate):
    assert DPSGD(epsilon=1.0).sampling(size, batch_size) == Sampling("poisson", rate)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"epsilon": 1.0, "noise_multiplier": 1.0},
        {"epsilon": 0.0},
        {"epsilon": math.inf},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": 1.0, "max_grad_norm": 0.0},
        {"noise_multiplier": 1.0, "delta": 1.0},
        {"noise_multiplier": 1.0, "accountant": "moments"},
        {"noise_multiplier": 1.0, "clip": 1.0},
    ],
)
def test_bad_parameters(parameters):
    with pytest.raises(PluginError):
        DPSGD.create(parameters)


def test_one_target_is_asked_for():
    with pytest.raises(PluginError, match="exactly one of epsilon and noise_multiplier"):
        DPSGD.create({})


class Coupling(Defence):
    name = "coupling"
    couples_samples = True


class Replacing(Defence):
    name = "replacing"
    replaces_gradient = True

    def gradient(self, local):
        return local.gradient


class Sampler(Defence):
    name = "sampler"

    def sampling(self, size, batch_size):
        return Sampling("shuffle")


PRIVATE = DPSGD(noise_multiplier=1.0)
ADVERSARIAL = AdversarialTraining(attack=Sign())


@pytest.mark.parametrize(
    ("stack", "reason"),
    [
        ((PRIVATE,), None),
        ((ADVERSARIAL, PRIVATE), None),
        ((PRIVATE, ADVERSARIAL), None),
        ((PRIVATE, GradientClipping()), None),
        ((Sampler(), PRIVATE), None),
        ((GradientClipping(), PRIVATE), "gradient-clipping after dp-sgd"),
        ((Coupling(), PRIVATE), "coupling couples"),
        ((PRIVATE, Coupling()), "coupling couples"),
        ((PRIVATE, Replacing()), "replacing takes no account of the gradient .* that of dp-sgd$"),
        ((PRIVATE, Sampler()), "Poisson"),
        ((PRIVATE, DPSGD(noise_multiplier=2.0)), "once"),
    ],
)
def test_stacks(stack, reason):
    if reason is None:
        check_stack(stack, network())
        return
    with pytest.raises(NotApplicable, match=reason):
        check_stack(stack, network())


def test_layers_over_the_batch_are_refused_by_name():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).to("meta")
    with pytest.raises(NotApplicable, match=r"\b1\b.*group normalisation"):
        PRIVATE.check(StackContext((PRIVATE,), 0, module))
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2, track_running_stats=True))
    with pytest.raises(NotApplicable, match="running statistics"):
        PRIVATE.check(StackContext((PRIVATE,), 0, module))
    PRIVATE.check(StackContext((PRIVATE,), 0, nn.Sequential(nn.InstanceNorm2d(2))))


# adversarial training ----------------------------------------------------------------------------


def test_no_budget_or_no_fraction_is_plain_training():
    module, batch = network(), records()
    plain = cross_entropy(Apply(module))
    expected = plain(parameters_of(module), batch, KEY)
    for defence in (
        AdversarialTraining(attack=Sign(eps=0.0)),
        AdversarialTraining(attack=Sign(eps=0.3), fraction=0.0),
    ):
        assert torch.equal(defence.loss(plain, None)(parameters_of(module), batch, KEY), expected)


def test_adversarial_loss_is_the_loss_at_the_attacked_images():
    module, (x, y) = network(), records()
    plain = cross_entropy(Apply(module))
    attack = Sign(eps=0.1, steps=3, random_start=False)
    moved = x.clone()
    for _ in range(3):  # Madry et al. 2018, section 2.1, on the module itself
        moved.requires_grad_(True)
        (g,) = torch.autograd.grad(functional.cross_entropy(module(moved), y, reduction="sum"), moved)
        moved = (x + (moved.detach() + 0.05 * g.sign() - x).clamp(-0.1, 0.1)).clamp(0, 1)
    params = parameters_of(module)
    losses = AdversarialTraining(attack=attack).loss(plain, None)(params, (x, y), KEY)
    torch.testing.assert_close(losses, plain(params, (moved, y), KEY))
    clean = plain(params, (x, y), KEY)
    assert float(losses.mean().detach()) > float(clean.mean().detach())
    # Danskin: the gradient is that of the loss at the attacked images, which are held fixed.
    ours = torch.autograd.grad(losses.sum(), list(params.values()))
    theirs = torch.autograd.grad(plain(params, (moved, y), KEY).sum(), list(params.values()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_the_default_radius_is_the_attacks():
    module, batch = network(), records()
    plain, params = cross_entropy(Apply(module)), parameters_of(module)
    default, given, other = (
        AdversarialTraining(attack=Sign(eps=eps)).loss(plain, None)(params, batch, KEY)
        for eps in (None, 0.1, 0.2)
    )
    assert torch.equal(default, given)
    assert not torch.allclose(default, other)


def test_a_records_loss_depends_on_no_other_record():
    module, (x, y) = network(torch.float64), records(8, torch.float64)
    loss = AdversarialTraining(attack=Sign(), fraction=0.5).loss(cross_entropy(Apply(module)), Apply(module))
    params = parameters_of(module)
    whole = loss(params, (x, y), KEY)
    other, labels = records(8, torch.float64, seed=5)
    other[3], labels[3] = x[3], y[3]
    torch.testing.assert_close(loss(params, (other, labels), KEY)[3], whole[3])
    order = torch.tensor([5, 3, 0, 7])
    torch.testing.assert_close(loss(params, (x[order], y[order]), KEY), whole[order])
    single = torch.stack([loss(params, (x[i : i + 1], y[i : i + 1]), KEY)[0] for i in range(8)])
    torch.testing.assert_close(single, whole)


def test_the_coin_has_its_probability_and_no_favourite_position():
    loss = AdversarialTraining(attack=Sign(eps=0.5, random_start=False), fraction=0.3).loss(
        lambda params, batch, key: batch[0].flatten(1).sum(1), None
    )
    hits = torch.zeros(8)
    rounds = 400
    x = records(8)[0] * 0.4
    for step in range(rounds):
        key = make_key("coin", step)
        losses = loss({}, (x, torch.zeros(8, dtype=torch.int64)), key)
        assert torch.equal(losses, loss({}, (x, torch.zeros(8, dtype=torch.int64)), key))
        hits += losses > x.flatten(1).sum(1) + 1
    assert float(hits.sum()) / (8 * rounds) == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / (8 * rounds)))
    assert all(abs(h / rounds - 0.3) < 5 * math.sqrt(0.21 / rounds) for h in hits.tolist())


def test_it_runs_under_vmap_over_clients_and_on_empty_batches():
    module, (x, y) = network(torch.float64), records(6, torch.float64)
    loss = AdversarialTraining(attack=Sign(), fraction=0.5).loss(cross_entropy(Apply(module)), Apply(module))
    params = parameters_of(module)
    stacked = {n: torch.stack([p.detach(), p.detach() * 1.1]) for n, p in params.items()}
    keys = split(KEY, torch.arange(2))
    both = torch.func.vmap(loss, in_dims=(0, (None, None), 0))(stacked, (x, y), keys)
    for i in range(2):
        torch.testing.assert_close(both[i], loss({n: p[i] for n, p in stacked.items()}, (x, y), keys[i]))
    assert loss(params, (x[:0], y[:0]), KEY).shape == (0,)


def test_batch_normalisation_sees_the_attack_but_does_not_keep_it():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3))
    batch = records()
    loss = AdversarialTraining(attack=Sign(steps=4)).loss(cross_entropy(Apply(module)), Apply(module))
    losses = loss(parameters_of(module), batch, KEY)
    assert int(module[1].num_batches_tracked) == 1  # the training pass alone, none of the attack's four
    losses.sum().backward()
    assert float(module[0].weight.grad.abs().sum()) > 0


def test_cost_and_attack_without_a_form():
    assert AdversarialTraining(attack=Sign(steps=7)).cost() == 8
    with pytest.raises(PluginError, match="no functional form"):
        AdversarialTraining.create({"attack": NoForm()})
    with pytest.raises(PluginError):
        AdversarialTraining.create({"attack": Sign(), "fraction": 1.5})


# gradient clipping -------------------------------------------------------------------------------


@pytest.mark.parametrize("max_norm", [0.01, 1e6])
def test_gradient_clipping_is_torchs(max_norm):
    module, batch = network(torch.float64), records(dtype=torch.float64)
    params = parameters_of(module)
    grads = torch.autograd.grad(module(batch[0]).square().sum(), [*params.values()])
    raw = dict(zip(params, grads, strict=True))
    kept = {n: g.clone() for n, g in raw.items()}
    local = make_local(module, None, gradient=lambda params, batch, key: raw)
    clipped = GradientClipping(max_norm=max_norm).gradient(local)(params, batch, KEY)
    assert all(torch.equal(raw[n], kept[n]) for n in raw)
    for name, p in params.items():
        p.grad = kept[name]
    nn.utils.clip_grad_norm_(module.parameters(), max_norm)
    torch.testing.assert_close(flat(clipped), torch.cat([p.grad.reshape(-1) for p in params.values()]))


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e19, 1e30])
def test_an_exploding_gradient_is_clipped_and_not_lost(size):
    raw = {"a": torch.full((3,), size), "b": torch.full((2, 2), -size)}
    local = make_local(network(), None, gradient=lambda params, batch, key: raw)
    clipped = flat(GradientClipping(max_norm=2.0).gradient(local)({}, records(), KEY)).double()
    norm = size * 7**0.5
    torch.testing.assert_close(clipped, flat(raw).double() * min(1.0, 2.0 / norm), rtol=1e-5, atol=0)


def test_gradient_clipping_after_dp_sgd_is_post_processing():
    module, batch = network(), records()
    loss = cross_entropy(Apply(module))
    noisy = DPSGD(noise_multiplier=3.0).gradient(make_local(module, loss, 3.0, 4))
    expected = flat(noisy(parameters_of(module), batch, KEY))
    again = DPSGD(noise_multiplier=3.0).gradient(make_local(module, loss, 3.0, 4))
    local = make_local(module, loss, gradient=again)
    clipped = flat(GradientClipping(max_norm=0.5).gradient(local)(parameters_of(module), batch, KEY))
    torch.testing.assert_close(clipped, expected * 0.5 / expected.norm(), rtol=1e-4, atol=1e-7)
    assert GradientClipping().guarantee([{}]) is None


# what they stand on ------------------------------------------------------------------------------


def test_apply_uses_the_parameters_given():
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3))
    apply, (x, _) = Apply(module), records()
    other = {n: 2 * p.detach() for n, p in module.named_parameters()}
    twin = copy.deepcopy(module)
    twin.load_state_dict(other, strict=False)
    torch.testing.assert_close(apply(other, x), twin(x))
    assert int(module[1].num_batches_tracked) == 0
    torch.testing.assert_close(apply(parameters_of(module), x), copy.deepcopy(module)(x))
    assert int(module[1].num_batches_tracked) == 1


def test_record_keys_follow_content():
    x, _ = records(6)
    keys = record_keys(KEY, x)
    assert len(set(keys.tolist())) == 6
    assert torch.equal(record_keys(KEY, x[[4, 1]]), keys[[4, 1]])
    assert torch.equal(record_keys(keys, x), keys)
    assert not (record_keys(split(KEY, 1), x) == keys).any()
    changed = x.clone()
    changed[2, 0, 7, 7] += 2.0**-20
    assert (record_keys(KEY, changed) == keys).tolist() == [True, True, False, True, True, True]
    rows = uniform(keys, (6, 2, 3))
    assert torch.equal(rows[[3]], uniform(keys[[3]], (1, 2, 3)))
    assert torch.equal(rows[3], uniform(keys[3], (2, 3)))
