"""dp-sgd's three ways to clip, its noise, and what it spends: against explicit loops, Opacus and the normal law."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from opacus import PrivacyEngine
from opacus.accountants import RDPAccountant
from scipy.stats import kstest
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import harness.federation.local as local_module
from harness.api import Local, PluginError, PrepareContext, Sampling, make_key, torch_generator
from harness.federation.apply import Apply
from harness.federation.batches import batches
from harness.federation.local import Client, LocalTrainer, Start
from harness.federation.vector import flatten, layout
from harness.functional import cross_entropy
from harness.grid import cells
from harness.plan import Planner
from harness.scenario import SGD, LocalTraining, load_text
from harness.scenario_plan import data_facts, metrics_of
from harness.training import Training
from harness_plugins.defences.dp_sgd import DPSGD

KEY = make_key("clipping")
CLIPPINGS = ["flat", "per-layer", "automatic"]
PATHS = [
    ("flat", "ghost"), ("flat", "vmap"), ("per-layer", "auto"), ("per-layer", "ghost"), ("per-layer", "vmap"),
    ("automatic", "auto"), ("automatic", "ghost"), ("automatic", "vmap"),
]  # fmt: skip


def network(dtype=torch.float64, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, bias=False), nn.ReLU(),
            nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3),
        ).to(dtype)  # fmt: skip


def records(n=9, dtype=torch.float64, seed=0):
    generator = torch_generator("records", seed)
    x = torch.rand(n, 1, 8, 8, generator=generator, dtype=dtype)
    return x, torch.randint(3, (n,), generator=generator)


def make_local(module, loss, sigma=0.0, batch_size=1, seed=0):
    return Local(
        loss=loss, gradient=None, client=1, batch_size=batch_size, sampling=Sampling("poisson", 0.5),
        prepared={"clients": [{}, {"noise_multiplier": sigma, "sample_rate": 0.5, "steps": 1}]},
        module=module, generator=torch_generator("noise", seed),
    )  # fmt: skip


def gradient_of(module, batch, c, sigma=0.0, batch_size=1, factor=1.0, **parameters):
    """What the defence steps along, by name."""
    plain = cross_entropy(Apply(module))
    defence = DPSGD(noise_multiplier=sigma, max_grad_norm=c, **parameters)
    step = defence.gradient(
        make_local(module, lambda p, b, key: factor * plain(p, b, key), sigma, batch_size)
    )
    return step(dict(module.named_parameters()), batch, KEY)


def flat(grads):
    return torch.cat([g.reshape(-1) for g in grads.values()])


def per_record(module, batch):
    """Each record's gradient, as a list of tensors, from a plain backward pass of its own."""
    rows = []
    for x, y in zip(*batch, strict=True):
        loss = functional.cross_entropy(module(x[None]), y[None])
        rows.append(torch.autograd.grad(loss, list(module.parameters())))
    return rows


def clipped(row, c, clipping):
    """One record's part in the sum, in plain Python arithmetic on norms."""
    norms = [float(g.norm()) for g in row]
    if clipping == "per-layer":
        bound = c / math.sqrt(len(row))
        return [g * min(1.0, bound / (n + 1e-6)) for g, n in zip(row, norms, strict=True)]
    norm = math.sqrt(sum(n * n for n in norms))
    scale = c / (norm + 0.01) if clipping == "automatic" else min(1.0, c / (norm + 1e-6))
    return [g * scale for g in row]


# the sum ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clipping", "path"), PATHS)
@pytest.mark.parametrize("share", [0.2, 1.0, 5.0])
def test_the_sum_is_that_of_an_explicit_loop(clipping, path, share):
    module, batch = network(), records()
    rows = per_record(module, batch)
    norms = sorted(math.sqrt(sum(float(g.norm()) ** 2 for g in row)) for row in rows)
    c = share * norms[4]  # below most norms, between them, above most
    parts = [clipped(row, c, clipping) for row in rows]
    expected = torch.cat([torch.stack(tensors).sum(0).reshape(-1) for tensors in zip(*parts, strict=True)])
    found = gradient_of(module, batch, c, clipping=clipping, per_sample=path)
    assert list(found) == [name for name, _ in module.named_parameters()]
    torch.testing.assert_close(flat(found), expected, rtol=1e-9, atol=1e-13)


def test_the_three_ways_are_three_ways():
    module, batch = network(), records()
    sums = [flat(gradient_of(module, batch, 0.3, clipping=clipping)) for clipping in CLIPPINGS]
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        assert float((sums[a] - sums[b]).norm()) > 0.01 * float(sums[a].norm())


def test_per_layer_leaves_small_tensors_alone_where_flat_clips_them():
    module, batch = network(), records(1)
    (row,) = per_record(module, batch)
    norms = [float(g.norm()) for g in row]
    bound = sorted(norms)[len(norms) // 2] * 1.0001  # half of the tensors lie below their bound
    found = gradient_of(module, batch, bound * math.sqrt(len(row)), clipping="per-layer")
    kept = [torch.allclose(f, g, rtol=1e-12) for f, g in zip(found.values(), row, strict=True)]
    assert kept == [n < bound for n in norms]
    assert 0 < sum(kept) < len(kept)
    for f, n in zip(found.values(), norms, strict=True):
        if n > bound:
            assert float(f.norm()) == pytest.approx(bound, rel=1e-4)


@pytest.mark.parametrize(("clipping", "path"), PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_record_moves_the_sum_by_more_than_c(clipping, path, dtype):
    c, slack = 0.7, 1e-5 if dtype == torch.float32 else 1e-12
    largest = 0.0
    for seed in range(4):
        module, (x, y) = network(dtype, seed), records(3, dtype, seed)
        for factor in (1e-4, 1.0, 1e5):
            parameters = {"clipping": clipping, "per_sample": path, "factor": factor}
            whole = flat(gradient_of(module, (x, y), c, **parameters)).double()
            for i in range(3):
                kept = [j for j in range(3) if j != i]
                moved = whole - flat(gradient_of(module, (x[kept], y[kept]), c, **parameters)).double()
                alone = flat(gradient_of(module, (x[i : i + 1], y[i : i + 1]), c, **parameters)).double()
                torch.testing.assert_close(moved, alone, rtol=1e-4, atol=1e-5)
                for value in (moved, alone):
                    assert float(value.norm()) <= c * (1 + slack)
                largest = max(largest, float(alone.norm()))
    assert largest > 0.95 * c  # the bound is reached: per-layer where no tensor's gradient is small


def test_every_tensor_has_its_own_bound_per_layer():
    module, batch = network(), records(1)
    found = gradient_of(module, batch, 0.7, clipping="per-layer", factor=1e5)
    bound = 0.7 / math.sqrt(len(found))
    assert [float(g.norm()) for g in found.values()] == pytest.approx([bound] * len(found), rel=1e-6)


def test_automatic_keeps_a_trace_of_the_norm():
    """AUTO-S is monotone in the norm, so a small gradient stays small (its gamma is not zero)."""
    module, batch = network(), records(1)
    norm = float(flat(gradient_of(module, batch, 1e9)).norm())
    for factor in (1e-6, 1e-3, 1.0, 1e3):
        found = float(flat(gradient_of(module, batch, 2.0, clipping="automatic", factor=factor)).norm())
        assert found == pytest.approx(2.0 * factor * norm / (factor * norm + 0.01), rel=1e-9)
        assert found < 2.0


@pytest.mark.parametrize(("clipping", "path"), PATHS)
def test_a_record_without_a_finite_gradient_counts_as_zero(clipping, path):
    module, (x, y) = network(), records(5)
    bad = x.clone()
    bad[2] = math.nan
    kept = [0, 1, 3, 4]
    found = gradient_of(module, (bad, y), 0.3, clipping=clipping, per_sample=path)
    expected = gradient_of(module, (x[kept], y[kept]), 0.3, clipping=clipping, per_sample=path)
    torch.testing.assert_close(flat(found), flat(expected), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"clipping": "layer"}, "clipping"),
        ({"clipping": None}, "clipping"),
        ({"clipping": "automatic", "max_grad_norm": 0.0}, "max_grad_norm"),
        ({"clipping": "automatic", "epsilon": 1.0}, "exactly one"),
    ],
)
def test_bad_combinations(parameters, message):
    with pytest.raises(PluginError, match=message):
        DPSGD.create({"noise_multiplier": 1.0, **parameters})


def test_costs_follow_the_path_that_is_taken():
    costs = {pair: DPSGD(epsilon=1.0, clipping=pair[0], per_sample=pair[1]).cost() for pair in PATHS}
    dear = {pair for pair, cost in costs.items() if cost > 2}
    assert dear == {pair for pair in PATHS if pair[1] == "vmap"}


# Opacus --------------------------------------------------------------------------------------------


def opacus_parts(module, data, batch_size, c, clipping="flat", lr=1.0, momentum=0.0):
    """Opacus' engine around a copy of the module, without noise."""
    module = copy.deepcopy(module).train()
    count = len(list(module.parameters()))
    bound = [c / math.sqrt(count)] * count if clipping == "per-layer" else c
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PrivacyEngine(accountant="rdp").make_private(
            module=module, optimizer=torch.optim.SGD(module.parameters(), lr, momentum),
            data_loader=DataLoader(TensorDataset(*data), batch_size), noise_multiplier=0.0, max_grad_norm=bound,
            clipping="per_layer" if clipping == "per-layer" else clipping,
        )  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("clipping", ["flat", "per-layer"])
def test_a_poisson_batch_gives_opacus_gradient(clipping):
    module, data = network(), records(60)
    c = 0.2
    wrapped, optimizer, loader = opacus_parts(module, data, 12, c, clipping)
    assert optimizer.expected_batch_size == 12
    sizes = set()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for x, y in loader:
            sizes.add(len(y))
            optimizer.zero_grad()
            functional.cross_entropy(wrapped(x), y).backward()
            optimizer.pre_step()
            theirs = torch.cat([p.grad.reshape(-1) for p in wrapped.parameters()])
            ours = flat(gradient_of(module, (x, y), c, batch_size=12, clipping=clipping))
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)
    assert len(sizes) > 1
    assert sizes != {12}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("clipping", ["flat", "per-layer"])
def test_a_clients_local_training_is_opacus(clipping):
    """The same Poisson batches, one after another, with momentum: the same weights in the end."""
    module, c, rate, steps = network(torch.float32), 0.5, 0.25, 15
    images = (255 * records(40)[0]).to(torch.uint8)
    labels = records(40)[1]
    sampling = Sampling("poisson", rate)
    defence = DPSGD(noise_multiplier=0.0, max_grad_norm=c, clipping=clipping)
    own = {"clients": [{"noise_multiplier": 0.0, "sample_rate": rate, "steps": steps}]}
    client = Client(0, images, labels, steps, sampling, (defence,), [own])
    settings = LocalTraining(batch_size=10, optimizer=SGD(lr=0.3, momentum=0.9))
    x = images.float() / 255
    wrapped, optimizer, _ = opacus_parts(module, (x, labels), 10, c, clipping, 0.3, 0.9)
    before = flatten(module)
    update = LocalTrainer(module, settings, 5, "stage", "float32", "cpu").train(client, Start(0, before))
    sizes = set()
    for index in batches(40, 10, steps, sampling, torch_generator(5, "batches", 0, 0)):
        sizes.add(len(index))
        optimizer.zero_grad()
        functional.cross_entropy(wrapped(x[index]), labels[index]).backward()
        optimizer.step()
    theirs = torch.cat([p.detach().reshape(-1) for p in wrapped.parameters()]) - before
    assert len(sizes) > 3
    assert 0 not in sizes
    torch.testing.assert_close(update, theirs, rtol=1e-4, atol=1e-6)


# noise ---------------------------------------------------------------------------------------------


def wide(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 400), nn.Linear(400, 30), nn.Linear(30, 3))


def is_normal(values, deviation):
    """A Kolmogorov-Smirnov test against N(0, deviation^2), and the variance within five standard errors."""
    values = values.double() / deviation
    n = values.numel()
    assert kstest(values.numpy(), "norm").pvalue > 0.001
    # The variance of z^2 is 2.
    assert abs(float(values.square().mean()) - 1) < 5 * math.sqrt(2 / n)


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize(("sigma", "c", "b"), [(1.7, 0.6, 20), (0.3, 4.0, 1)])
def test_noise_is_gaussian_of_sigma_c_in_every_tensor(clipping, sigma, c, b):
    module, (x, y) = wide(), records(1, torch.float32)
    found = gradient_of(module, (x[:0], y[:0]), c, sigma, b, clipping=clipping)
    is_normal(flat(found), sigma * c / b)
    for g in found.values():
        if g.numel() > 300:
            is_normal(g.reshape(-1), sigma * c / b)  # per-layer clipping takes none of it away


def test_the_check_of_noise_rejects_other_noise():
    generator = torch_generator("other noise")
    normal = torch.randn(38_000, generator=generator)
    is_normal(normal, 1.0)
    laplace = torch.distributions.Laplace(0, 1 / math.sqrt(2)).icdf(
        torch.rand(38_000, generator=generator) * 0.999 + 5e-4
    )
    for wrong in (1.05 * normal, 0.95 * normal, normal + 0.05, laplace):
        with pytest.raises(AssertionError):
            is_normal(wrong, 1.0)


def trained(rate, sigma, steps, size=50, batch_size=20, lr=0.1, round=0, number=0, **parameters):
    """One client's update from LocalTrainer under dp-sgd, on random images."""
    module = wide()
    generator = torch_generator("images")
    images = torch.randint(256, (size, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(3, (size,), generator=generator)
    defence = DPSGD(noise_multiplier=sigma, **parameters)
    own = {"clients": [{"noise_multiplier": sigma, "sample_rate": rate, "steps": steps}] * (number + 1)}
    client = Client(number, images, labels, steps, Sampling("poisson", rate), (defence,), [own])
    settings = LocalTraining(batch_size=batch_size, optimizer=SGD(lr=lr))
    trainer = LocalTrainer(module, settings, 0, "stage", "float32", "cpu")
    return trainer.train(client, Start(round, flatten(module)))


@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_steps_without_a_record_are_noise_over_the_expected_batch_size(clipping):
    steps, sigma, c, lr = 7, 1.3, 0.8, 0.1
    update = trained(1e-12, sigma, steps, max_grad_norm=c, clipping=clipping, lr=lr)
    is_normal(update, lr * sigma * c * math.sqrt(steps) / 20)


def test_a_client_with_fewer_records_than_the_batch_divides_by_its_own_number():
    update = trained(1e-12, 1.0, 4, size=5, batch_size=20, lr=1.0)
    is_normal(update, 2 / 5)  # at rate 1 the expected batch has five records, not twenty


def test_training_goes_on_after_empty_batches():
    """Of the batches some are empty: without noise they change nothing and the others do as they would."""
    rate, steps = 0.02, 30
    sizes = [
        len(b) for b in batches(50, 20, steps, Sampling("poisson", rate), torch_generator(0, "batches", 0, 0))
    ]
    assert 5 < sizes.count(0) < 25
    update = trained(rate, 0.0, steps)
    assert update.isfinite().all()
    # Each record drawn adds at most lr C / b, and plain SGD without noise stands still where none is drawn.
    assert 0 < float(update.norm()) <= 0.1 * 1.0 / 20 * sum(sizes) * (1 + 1e-5)
    noisy = trained(rate, 1.0, steps)
    is_normal(
        noisy[layout(wide())["1.weight"]] - update[layout(wide())["1.weight"]], 0.1 * math.sqrt(30) / 20
    )


# what is spent -------------------------------------------------------------------------------------

DIGITS = """
schema: 1
name: spent
dataset: digits
model: {mlp: {hidden: [8]}}
"""


def training(text, tmp_path):
    scenario = load_text(DIGITS + text, tmp_path / "x.yaml")
    planner = Planner("cpu")
    plan = planner.add(next(iter(cells(scenario))), data_facts(scenario, None), metrics_of(scenario))
    stage = planner.stages[plan.stages["train"]]
    return Training(stage.spec, stage.key, "cpu")


@pytest.fixture
def ledger(monkeypatch):
    """size of a client -> the rate of every step that it really took."""
    book: dict[int, list[float]] = {}

    def counted(size, batch_size, steps, sampling, generator):
        for index in batches(size, batch_size, steps, sampling, generator):
            assert sampling.method == "poisson"
            book.setdefault(size, []).append(sampling.rate)
            yield index

    monkeypatch.setattr(local_module, "batches", counted)
    return book


def opacus_epsilon(rates, sigma, delta):
    """Opacus' accountant, told of each step as it happened."""
    accountant = RDPAccountant()
    for rate in rates:
        accountant.step(noise_multiplier=sigma, sample_rate=rate)
    return accountant.get_epsilon(delta)


@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_one_client_spends_what_opacus_says(tmp_path, ledger, clipping):
    stage = training(
        "federation: {clients: 1, rounds: 3, local: {epochs: 2, batch_size: 64, optimizer: {sgd: {lr: 0.2}}}}\n"
        f"defences: [dp-sgd: {{noise_multiplier: 1.3, clipping: {clipping}}}]\n",
        tmp_path,
    )
    done = stage.run(stage.initial_module(), lambda *_: None)
    (guarantee,) = stage.guarantees(done.prepared)
    n = len(stage.pool.clients[0])
    (rates,) = ledger.values()
    assert len(rates) == 3 * 2 * math.ceil(n / 64) == guarantee.sampling["steps"]
    assert set(rates) == {64 / n}
    assert guarantee.delta == pytest.approx(1 / (10 * n))
    assert guarantee.epsilon == pytest.approx(opacus_epsilon(rates, 1.3, guarantee.delta), abs=1e-6)
    assert guarantee.noise_multiplier == 1.3
    assert 0.5 < guarantee.epsilon < 10


@pytest.mark.parametrize("participation", [1.0, 0.5])
def test_a_federation_spends_what_its_worst_client_does(tmp_path, ledger, participation):
    stage = training(
        f"federation: {{clients: 4, rounds: 5, participation: {participation},"
        " partition: {dirichlet: {alpha: 0.3}}, local: {epochs: 1, batch_size: 32, optimizer: {sgd: {lr: 0.2}}}}\n"
        "defences: [dp-sgd: {noise_multiplier: 1.5, delta: 1.0e-5}]\n",
        tmp_path,
    )
    sizes = [len(c) for c in stage.pool.clients]
    assert len(set(sizes)) == 4
    done = stage.run(stage.initial_module(), lambda *_: None)
    (guarantee,) = stage.guarantees(done.prepared)
    spent = {
        str(i): opacus_epsilon(ledger[n], 1.5, 1e-5) if n in ledger else 0.0 for i, n in enumerate(sizes)
    }
    assert len({round(value, 3) for value in spent.values()}) == 4  # q and steps differ, and so do they
    assert guarantee.client_epsilon == pytest.approx(spent, abs=1e-6)
    assert guarantee.epsilon == pytest.approx(max(spent.values()), abs=1e-6)
    if participation < 1:
        assert len({len(rates) / math.ceil(n / 32) for n, rates in ledger.items()}) > 1


def test_clipping_does_not_change_what_is_spent():
    context = PrepareContext(sizes=[100, 40], steps=[30, 20], batch_size=20, records=140, rounds=10)
    found = {}
    for clipping in CLIPPINGS:
        defence = DPSGD(epsilon=3.0, clipping=clipping)
        found[clipping] = defence.guarantee([defence.prepare(context)])
    assert found["flat"] == found["per-layer"] == found["automatic"]
