"""Defences of the deployed model: smoothing with its certificate, input transforms, and how the engine attacks them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter
from scipy.stats import norm
from torch import nn

import harness
from harness.api import Certificate, Defence, MetricContext, PluginError, hookimpl, make_key
from harness.evaluation.expectation import Expectation
from harness.registry import registry
from harness.scenario import load_text


def create(name, **parameters):
    return harness.create("defence", name, **parameters)


class HalfSpace(nn.Module):
    """Class 1 where <w, x> > b: its smoothed version has a closed form."""

    def __init__(self, size=16, seed=0):
        super().__init__()
        w = torch.randn(size, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("w", w / w.norm())
        self.b = 0.0

    def forward(self, x):
        margin = 1000 * (x.flatten(1) @ self.w - self.b)
        return torch.stack([-margin, margin], dim=1)


def at_distance(model, distances):
    """Images at signed distances from the boundary."""
    return (torch.tensor(distances)[:, None] * model.w).view(len(distances), 1, 4, 4)


def test_the_certified_radius_is_cohen_s_formula():
    defence = create("randomized-smoothing", sigma=0.5, n=1000, alpha=0.001)
    for count in (600, 990, 1000):
        # The Clopper-Pearson bound p solves P(Binomial(n, p) >= count) = alpha.
        low, high = 0.0, 1.0
        for _ in range(60):
            p = (low + high) / 2
            tail = sum(
                math.exp(math.log(math.comb(1000, k)) + k * math.log(p) + (1000 - k) * math.log1p(-p))
                for k in range(count, 1001)
            )
            low, high = (p, high) if tail < 0.001 else (low, p)
        assert defence.radius(count) == pytest.approx(0.5 * norm.ppf(low), rel=1e-6)
    assert defence.radius(500) == 0
    assert defence.radius(0) == 0


def test_on_a_half_space_the_certificate_is_the_distance_to_it():
    model, sigma = HalfSpace(), 0.25
    distances = [0.05, 0.15, 0.3, -0.2, -0.45]
    x = at_distance(model, distances)
    defence = create("randomized-smoothing", sigma=sigma, n=40_000, n0=50)
    labels, radii = defence.certify(model, x, torch.Generator().manual_seed(0))
    assert labels.tolist() == [1, 1, 1, 0, 0]
    for found, distance in zip(radii.tolist(), distances, strict=True):
        assert found <= abs(distance) + 1e-3  # a certificate never promises more than there is
        assert found == pytest.approx(abs(distance), abs=0.03)


def test_it_abstains_near_the_boundary():
    labels, radii = create("randomized-smoothing", n=100).certify(
        HalfSpace(), at_distance(HalfSpace(), [0.001, 0.8]), torch.Generator().manual_seed(0)
    )
    assert labels.tolist() == [-1, 1]
    assert radii[0] == 0
    assert radii[1] > 0


def test_a_diverged_model_certifies_nothing():
    def nothing(x):
        return torch.full((len(x), 3), torch.nan)

    labels, radii = create("randomized-smoothing", n=100).certify(
        nothing, torch.rand(4, 1, 4, 4), torch.Generator().manual_seed(0)
    )
    assert labels.tolist() == [-1] * 4
    assert not radii.any()


def test_training_noise_is_normal_and_each_record_s_own():
    defence = create("randomized-smoothing", sigma=0.5)
    x = torch.rand(400, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(400, dtype=torch.int64)
    noisy, _ = defence.batch(x, y, make_key("noise"))
    noise = ((noisy - x) / 0.5).flatten().sort().values.numpy()
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    quantiles = norm.ppf((np.arange(len(noise)) + 0.5) / len(noise))
    assert np.abs(noise - quantiles)[200:-200].max() < 0.05
    order = torch.tensor([7, 300])
    torch.testing.assert_close(defence.batch(x[order], y[order], make_key("noise"))[0], noisy[order])
    assert defence.batch(x[:0], y[:0], make_key("noise"))[0].shape == (0, 1, 10, 10)


def test_the_deployed_model_averages_noisy_answers():
    model, sigma = HalfSpace(), 0.25
    x = at_distance(model, [0.2])
    smoothed = create("randomized-smoothing", sigma=sigma, samples=4000).inference(model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        share = float(smoothed(x).exp()[0, 1])
    assert share == pytest.approx(norm.cdf(0.2 / sigma), abs=0.03)
    assert create("randomized-smoothing").stochastic


def test_an_expectation_is_the_log_of_the_mean_probability():
    class Coin(nn.Module):
        def forward(self, x):
            return torch.randn(len(x), 3)

    with torch.random.fork_rng():
        torch.manual_seed(3)
        found = Expectation(Coin(), 5)(torch.zeros(2, 1))
        torch.manual_seed(3)
        expected = torch.stack([torch.randn(2, 3).softmax(1) for _ in range(5)]).mean(0).log()
    torch.testing.assert_close(found, expected)


# Input transforms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 17, 23), (2, 9, 9)], ids=str)
@pytest.mark.parametrize("name", ["bit-depth", "median-smoothing", "jpeg-compression"])
def test_transforms_see_pixels_and_let_the_gradient_through(name, shape):
    defence = create(name)
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    moved = defence.transform(x)
    assert moved.shape == x.shape
    assert moved.min() >= 0
    assert moved.max() <= 1
    size = int(np.prod(shape))
    network = nn.Sequential(nn.Flatten(), nn.Linear(size, 3))
    deployed, leaf = defence.inference(network), x.clone().requires_grad_()
    torch.testing.assert_close(deployed(leaf), network(moved))
    gradient = torch.autograd.grad(deployed(leaf)[:, 0].sum(), leaf)[0]
    expected = network[1].weight[0].detach().view(1, *shape).expand(3, -1, -1, -1)
    torch.testing.assert_close(gradient, expected)


def test_transforms_by_their_formulas():
    x = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    assert set(create("bit-depth", bits=1).transform(x).unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(create("bit-depth", bits=3).transform(x), (x * 7).round() / 7)
    smooth = create("median-smoothing", window=3).transform(x)
    assert smooth[0, 0, 4, 5] == x[0, 0, 3:6, 4:7].flatten().sort().values[4]
    with pytest.raises(PluginError, match="must be odd, not 4"):
        create("median-smoothing", window=4)
    worse = create("jpeg-compression", quality=10).transform(x) - x
    better = create("jpeg-compression", quality=95).transform(x) - x
    assert worse.abs().mean() > better.abs().mean()


@pytest.mark.parametrize(
    ("shape", "window"), [((2, 1, 9, 6), 3), ((1, 3, 7, 8), 5), ((2, 2, 3, 2), 15)], ids=str
)
def test_the_median_mirrors_edges_as_the_authors_code_does(shape, window):
    """Xu et al. (2018) filter by SciPy, whose `reflect` repeats the edge's own pixels; torch's does not."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    expected = median_filter(x.numpy(), size=(1, 1, window, window), mode="reflect")
    found = create("median-smoothing", window=window).transform(x)
    assert torch.equal(found, torch.from_numpy(expected))


# Scores ---------------------------------------------------------------------------------------------------------------


def score(name, **known):
    return harness.create("metric", name).score(MetricContext(3, (1, 8, 8), **known))


def test_certified_accuracy_counts_right_predictions_by_radius():
    labels, predicted = np.array([0, 1, 2, 0, 1]), np.array([0, 1, 2, 1, -1])
    radii = np.array([0.1, 0.3, 1.5, 2.0, 0.0])
    assert score("certified-accuracy", certificate=Certificate(labels, predicted, radii)) == {
        "certified_accuracy": 0.6, "certified_accuracy_0.25": 0.4, "certified_accuracy_0.5": 0.2,
        "certified_accuracy_1": 0.2, "mean_certified_radius": pytest.approx(1.9 / 5),
    }  # fmt: skip


def test_radii_that_cannot_be_certified_are_left_out_and_not_zero():
    labels = np.array([0, 1, 2, 0])
    found = Certificate(labels, labels, np.array([0.1, 0.3, 0.5, 0.62]), limit=0.62)
    assert score("certified-accuracy", certificate=found) == {
        "certified_accuracy": 1.0, "certified_accuracy_0.25": 0.75, "certified_accuracy_0.5": 0.5,
        "mean_certified_radius": pytest.approx(1.52 / 4), "certified_radius_limit": 0.62,
    }  # fmt: skip
    exact = replace(found, radii=np.array([0.1, 0.3, 0.5, 0.5]), limit=0.5)
    assert score("certified-accuracy", certificate=exact)["certified_accuracy_0.5"] == 0.5
    nothing = Certificate(labels, np.full(4, -1), np.zeros(4), limit=0.0)
    assert score("certified-accuracy", certificate=nothing) == {"certified_radius_limit": 0.0}


@pytest.mark.parametrize(
    ("settings", "limit"),
    [({}, 0.6158), ({"n": 100_000}, 0.9529), ({"sigma": 1.0}, 2.4633), ({"n": 9, "n0": 1}, 0.0)],
)
def test_the_limit_is_the_radius_of_unanimous_votes(settings, limit):
    """sigma Phi^-1(alpha^(1/n)), which the certificate of a constant network reaches and none exceeds."""
    defence = create("randomized-smoothing", **settings)
    assert defence.radius_limit == pytest.approx(limit, abs=1e-4)
    share = defence.alpha ** (1 / defence.n)
    assert defence.radius_limit == pytest.approx(max(0.0, defence.sigma * norm.ppf(share)), rel=1e-6)
    if defence.n <= 1000:

        def constant(x):
            return torch.tensor([[1.0, 0.0]]).expand(len(x), 2)

        _, radii = defence.certify(constant, torch.rand(2, 1, 4, 4), torch.Generator().manual_seed(0))
        assert radii.tolist() == [defence.radius_limit] * 2


def test_a_defence_states_no_limit_unless_it_says_so():
    assert create("bit-depth").radius_limit == math.inf


def test_agreement():
    before, after = np.eye(3)[[0, 1, 2, 2]], np.eye(3)[[0, 1, 1, 2]]
    assert score("agreement", logits=after, uncompressed_logits=before) == {"agreement": 0.75}
    with pytest.raises(PluginError):
        score("agreement", logits=after, uncompressed_logits=before[:2])


def test_a_certificate_is_of_the_model_as_deployed(tmp_path):
    """What stands before smoothing is inside the certificate; what comes after it would not be."""
    text = """
schema: 1
name: certified
dataset: digits
model: {mlp: {hidden: [24]}}
federation: {clients: 2, rounds: 2, local: {epochs: 1, batch_size: 32, optimizer: {sgd: {lr: 0.3}}}}
defences: [[randomized-smoothing: {n: 100, n0: 10}, bit-depth: {bits: 1}], [bit-depth: {bits: 1}, randomized-smoothing: {n: 100, n0: 10}]]
evaluation: {certified: 10}
metrics: [accuracy, certified-accuracy]
"""  # noqa: E501
    result = harness.run(load_text(text, tmp_path / "t.yaml"), device="cpu", jobs=0, store=tmp_path / "runs")
    assert result.failed == 0, [r["error"] for r in result.records if r["error"]]
    assert ["certified_accuracy" in r["scores"] for r in result.records] == [False, True]
    scores = result.records[1]["scores"]  # of 100 votes no radius above 0.38 can be stated
    assert scores["certified_radius_limit"] == pytest.approx(0.25 * norm.ppf(0.001 ** (1 / 100)))
    assert [f"certified_accuracy_{r}" in scores for r in ("0.25", "0.5", "1")] == [True, False, False]


class Boasts(Defence):
    """Certifies more than it says it can."""

    name = "test-boasts"

    def certify(self, model, x, generator):
        return torch.zeros(len(x), dtype=torch.int64), torch.full((len(x),), 0.6)

    @property
    def radius_limit(self):
        return 0.5


def test_a_radius_beyond_the_limit_is_an_error_that_is_told(tmp_path):
    class Module:
        @staticmethod
        @hookimpl
        def harness_register(register):
            register(Boasts)

    if Boasts.name not in registry().names("defence"):
        registry().add(Module(), "boasts", "boast-tests")
    text = """
schema: 1
name: boasts
dataset: digits
model: {mlp: {hidden: [8]}}
federation: {clients: 2, rounds: 1, local: {steps: 1, batch_size: 32}}
defences: [test-boasts]
metrics: [accuracy, certified-accuracy]
"""
    (record,) = harness.run(
        load_text(text, tmp_path / "t.yaml"), device="cpu", jobs=0, store=tmp_path / "runs"
    ).records
    assert record["status"] == "failed"
    assert "certifies a radius of 0.6, and its radius_limit is 0.5" in record["error"]["message"]


def test_through_the_engine(tmp_path):
    text = """
schema: 1
name: deployed
dataset: digits
model: {mlp: {hidden: [24]}}
federation: {clients: 2, rounds: 6, local: {epochs: 2, batch_size: 32, optimizer: {sgd: {lr: 0.3}}}}
defences: [none, randomized-smoothing: {n: 200, n0: 20}, bit-depth: {bits: 2}]
compressors: [none, static-int8]
threats: [{name: e, budget: {norm: linf, eps: 0.1}, surrogate: uncompressed, attacks: [pgd: {steps: 4}]}]
evaluation: {subset: 120, certified: 30, eot: 3}
metrics: [accuracy, robust-accuracy, certified-accuracy, agreement]
"""
    result = harness.run(load_text(text, tmp_path / "t.yaml"), device="cpu", jobs=0, store=tmp_path / "runs")
    assert result.failed == 0, [r["error"] for r in result.records if r["error"]]
    by = {(r["cell"]["defence"].split("(")[0], r["cell"]["compressor"]): r for r in result.records}
    plain, smooth = by["none", "none"], by["randomized-smoothing", "none"]
    assert "certified_accuracy" not in plain["scores"]
    assert "agreement" not in plain["scores"]
    assert smooth["scores"]["certified_accuracy"] > 0.3
    assert smooth["scores"]["certified_accuracy_0.25"] <= smooth["scores"]["certified_accuracy"]
    assert smooth["attack"]["eot"] == 3
    assert "eot" not in plain["attack"]
    assert smooth["scores"]["robust_accuracy"] <= smooth["scores"]["accuracy"]
    for (_, compressor), record in by.items():
        assert ("agreement" in record["scores"]) == (compressor != "none")
    assert by["none", "static-int8"]["scores"]["agreement"] > 0.9
    again = harness.run(
        load_text(text, tmp_path / "t.yaml"), device="cpu", jobs=0, store=tmp_path / "again",
        select="defence=randomized-smoothing*,compressor=none",
    )  # fmt: skip
    (repeated,) = again.records
    assert repeated["id"] == smooth["id"]
    assert repeated["scores"]["robust_accuracy"] == smooth["scores"]["robust_accuracy"]  # random, but seeded
