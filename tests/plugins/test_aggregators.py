"""Aggregation rules against float64 references from their formulas, a peer library, and properties."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import harness
from harness.api import PluginError
from harness.contracts.aggregator import default_context
from harness_plugins import columns
from harness_plugins.columns import exchanges, mean_between, selection, sort_clients
from harness_plugins.distances import squared_distances

ROBUST = ("median", "trimmed-mean", "krum", "multi-krum", "geometric-median", "nnm")


def normal(n, d, seed=0, dtype=torch.float64, offset=0.0):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (rows + offset).to(dtype)


def create(name, **parameters):
    return harness.create("aggregator", name, **parameters)


def close(ours, reference, dtype):
    relative = {torch.float64: 1e-10, torch.float32: 2e-7}[dtype]
    scale = np.abs(reference).max()
    np.testing.assert_allclose(ours.double().numpy(), reference, rtol=0, atol=4 * relative * max(scale, 1))


# References: from the formulas, one client and one coordinate at a time, in float64 ------------------


def slow_distances(x):
    return np.array([[sum((a - b) ** 2) for b in x] for a in x])


def slow_krum(x, f, neighbours=None):
    distances, n = slow_distances(x), len(x)
    k = n - f - 2 if neighbours is None else neighbours
    scores = [sum(sorted(distances[i][j] for j in range(n) if j != i)[:k]) for i in range(n)]
    return sorted(range(n), key=lambda i: scores[i])


def slow_median(x):
    n, columns = len(x), []
    for values in x.T:
        v = sorted(values)
        columns.append(v[n // 2] if n % 2 else (v[n // 2 - 1] + v[n // 2]) / 2)
    return np.array(columns)


def slow_trimmed(x, f):
    return np.array([sum(sorted(values)[f : len(x) - f]) / (len(x) - 2 * f) for values in x.T])


def slow_nnm(x, f):
    distances = slow_distances(x)
    return np.array([x[np.argsort(row, kind="stable")[: len(x) - f]].mean(0) for row in distances])


def slow_weiszfeld(x, nu, iterations, start):
    v = x.mean(0) if start == "mean" else np.zeros(x.shape[1])
    for _ in range(iterations):
        b = 1 / np.maximum(nu, np.linalg.norm(v - x, axis=1))
        v = (b[:, None] * x).sum(0) / b.sum()
    return v


@pytest.fixture(params=[(7, 2, 0.0), (11, 0, 0.0), (24, 5, 0.0), (60, 12, 1e4)], ids=str)
def case(request):
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
class TestFormulas:
    def test_median(self, case, dtype):
        n, _, offset = case
        x = normal(n, 13, dtype=dtype, offset=offset)
        close(create("median")(x), slow_median(x.double().numpy()), dtype)

    def test_trimmed_mean(self, case, dtype):
        n, f, offset = case
        x = normal(n, 13, dtype=dtype, offset=offset)
        close(create("trimmed-mean", f=f)(x), slow_trimmed(x.double().numpy(), f), dtype)

    def test_krum(self, case, dtype):
        n, f, offset = case
        x = normal(n, 13, dtype=dtype, offset=offset)
        best = slow_krum(x.double().numpy(), f)[0]
        assert torch.equal(create("krum", f=f)(x), x[best])

    def test_multi_krum(self, case, dtype):
        n, f, offset = case
        x = normal(n, 13, dtype=dtype, offset=offset)
        order = slow_krum(x.double().numpy(), f)
        close(create("multi-krum", f=f)(x), x.double().numpy()[order[: n - f]].mean(0), dtype)
        close(create("multi-krum", f=f, m=3)(x), x.double().numpy()[order[:3]].mean(0), dtype)

    def test_nnm(self, case, dtype):
        n, f, offset = case
        x = normal(n, 13, dtype=dtype, offset=offset)
        close(create("nnm", f=f)(x), slow_nnm(x.double().numpy(), f), dtype)

    @pytest.mark.parametrize("start", ["mean", "zero"])
    @pytest.mark.parametrize("iterations", [1, 4])
    def test_geometric_median(self, case, dtype, start, iterations):
        n, _, offset = case
        x = normal(n, 13, dtype=dtype, offset=offset)
        ours = create("geometric-median", nu=0.3, iterations=iterations, tolerance=0, start=start)(x)
        close(ours, slow_weiszfeld(x.double().numpy(), 0.3, iterations, start), dtype)

    def test_mean_follows_weights(self, case, dtype):
        n, _, offset = case
        x = normal(n, 13, dtype=dtype, offset=offset)
        weights = torch.arange(1, n + 1, dtype=torch.float64) * 2 / (n * (n + 1))
        expected = sum(w * row for w, row in zip(weights.numpy(), x.double().numpy(), strict=True))
        ours = create("mean")(x, weights=weights)
        np.testing.assert_allclose(
            ours.double().numpy(), expected, rtol=2e-6 if dtype == torch.float32 else 1e-12
        )


class TestByHand:
    def test_median_of_even_n_is_the_mean_of_the_middle_two(self):
        x = torch.tensor([[1.0, -8.0], [2.0, 0.0], [4.0, 3.0], [100.0, 4.0]])
        assert create("median")(x).tolist() == [3.0, 1.5]

    def test_krum_sums_squares_over_n_minus_f_minus_2(self):
        # n = 10, f = 2. The row at 15 has the least sum of squares to its 6 nearest others:
        # 4^2 + 4^2 + 5^2 + 6^2 + 9^2 + 13^2 = 343. Distances that are not squared would pick 20, and
        # n - f - 1 = 7 neighbours 24 (3^2 + 4^2 + 5^2 + 9^2 + 12^2 + 13^2 + 14^2 = 640).
        x = torch.tensor([[2.0, 11, 15, 19, 20, 21, 24, 36, 38, 90]]).T
        assert create("krum", f=2)(x).tolist() == [15.0]
        assert create("krum", f=2, neighbours=7)(x).tolist() == [24.0]

    def test_ties_go_to_the_lower_row(self):
        x = torch.tensor([[1.0, 0], [-1.0, 0], [0, 1.0], [0, -1.0], [1.0, 0], [-1.0, 0]])
        facts = []
        create("krum", f=0)(x, reporter=facts.append)
        assert facts == [{"kept": [0]}]

    def test_trimmed_mean_without_f_is_the_unweighted_mean(self):
        x = normal(5, 4)
        weights = torch.tensor([1.0, 0, 0, 0, 0])
        torch.testing.assert_close(create("trimmed-mean")(x, weights=weights), x.mean(0))

    def test_geometric_median_of_a_triangle_is_its_fermat_point(self):
        x = torch.tensor([[0.0, 0.0], [4.0, 0.0], [1.0, 3.0]], dtype=torch.float64)
        v = create("geometric-median", nu=1e-9, iterations=1000, tolerance=1e-12)(x)
        pulls = (x - v) / (x - v).norm(dim=1, keepdim=True)
        assert pulls.sum(0).norm() < 1e-8  # the unit vectors to the corners cancel: 120 degrees apart

    @pytest.mark.parametrize("length", [1e-5, 1e-3, 1e-2, 1.0])
    def test_geometric_median_of_short_updates_is_not_their_mean(self, length):
        """Updates of real federations are a few hundredths apart: a floor of 0.1 made the rule the mean."""
        x = length * normal(11, 50, seed=2)
        x[:3] = 20 * length
        v = create("geometric-median")(x)
        torch.testing.assert_close(
            v, create("geometric-median", nu=1e-12, tolerance=1e-12)(x), rtol=1e-4, atol=0
        )
        assert (v - x[3:].mean(0)).norm() < 0.2 * (x.mean(0) - x[3:].mean(0)).norm()

    def test_geometric_median_within_nu_is_the_mean(self):
        x = 1e-3 * normal(11, 50)
        torch.testing.assert_close(create("geometric-median", nu=0.1)(x), x.mean(0))

    @pytest.mark.parametrize("size", [1e3, 1e10, 1e16, 1e24, 1e37])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_geometric_median_is_exact_whatever_the_outlier(self, size, dtype):
        x = (0.01 * normal(11, 300)).to(dtype)
        x[0] = size
        expected = slow_weiszfeld(x.double().numpy().astype(np.longdouble), 1e-6, 100, "mean")
        ours = create("geometric-median", tolerance=0)(x)
        np.testing.assert_allclose(ours.double().numpy(), expected.astype(float), rtol=0, atol=2e-8)

    @pytest.mark.parametrize("size", [1e100, 1e160, 1e300])
    def test_rows_whose_squares_float64_cannot_hold(self, size):
        x = 0.01 * normal(11, 300)
        x[0] = size
        assert (
            create("geometric-median", start="zero")(x) - x[1:].mean(0)
        ).norm() < 0.02  # rows are 0.17 long
        torch.testing.assert_close(create("caf")(x, f=1), x[1:].mean(0))
        slow = create("geometric-median", tolerance=0, iterations=30)(x)
        exact = slow_weiszfeld(x.numpy().astype(np.longdouble), 1e-6, 30, "mean").astype(float)
        np.testing.assert_allclose(slow.numpy(), exact, rtol=1e-10)

    def test_geometric_median_stops_by_its_tolerance(self):
        x, facts = normal(9, 5), []
        create("geometric-median", iterations=500)(x, reporter=facts.append)
        create("geometric-median", iterations=500, tolerance=0)(x, reporter=facts.append)
        assert 2 < facts[0]["iterations"] < 100
        assert facts[1]["iterations"] == 500

    @pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
    def test_geometric_median_stops_after_the_first_step_shorter_than_its_share(self, tolerance):
        x, facts, taken = normal(9, 5), [], 0
        v = x.numpy().mean(0)
        while True:
            distances = np.linalg.norm(x.numpy() - v, axis=1)
            before, v = v, ((1 / distances)[:, None] * x.numpy()).sum(0) / (1 / distances).sum()
            taken += 1
            if np.linalg.norm(v - before) < tolerance * np.median(distances):
                break
        ours = create("geometric-median", tolerance=tolerance)(x, reporter=facts.append)
        assert facts[0]["iterations"] == taken
        close(ours, v, torch.float64)

    def test_nnm_matrix(self):
        x = torch.tensor([[0.0], [1.0], [2.5], [9.0]])
        assert create("nnm", f=1)(x).flatten().tolist() == pytest.approx(
            [3.5 / 3, 3.5 / 3, 3.5 / 3, 12.5 / 3]
        )

    def test_nnm_context(self):
        x, rule = normal(5, 3), create("nnm", f=1)
        weights = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1])
        context = default_context(rule, x, weights=weights, client_ids=[4, 8, 1, 0, 3])
        rows, after = rule.transform(x, context)
        assert after.weights.tolist() == pytest.approx([0.2] * 5)
        assert after.client_ids == [4, 8, 1, 0, 3]
        assert after.f == 1
        assert context.weights is weights
        torch.testing.assert_close(rule.aggregate(x, context), rows.mean(0))


class TestDistances:
    @pytest.mark.parametrize("offset", [0.0, 1e4])
    def test_match_float64_under_an_offset(self, offset):
        x = normal(30, 40, dtype=torch.float32, offset=offset)
        expected = slow_distances(x.double().numpy())
        np.testing.assert_allclose(squared_distances(x, exact=True).numpy(), expected, rtol=1e-11, atol=0)

    @pytest.mark.parametrize("offset", [0.0, 1.0, 30.0, 1e4])
    def test_the_quick_form_is_as_good_as_float32_allows(self, offset):
        x = normal(30, 4000, dtype=torch.float32, offset=offset)
        x[:7] += 50
        expected = ((x.double()[:, None] - x.double()[None]) ** 2).sum(-1).numpy()
        np.testing.assert_allclose(squared_distances(x).numpy(), expected, rtol=1e-4, atol=0)

    @pytest.mark.parametrize("n", [3, 5, 8, 20, 21])
    def test_the_least_majority_with_an_offset_is_measured_from_it(self, n):
        """Half of the rows and one share an offset; the others are as long and anywhere."""
        x = 1e-4 * normal(n, 2000, seed=n)
        x[: n // 2 + 1] += normal(1, 2000, seed=90)
        x[n // 2 + 1 :] = normal(n - n // 2 - 1, 2000, seed=91)
        x = x.float()
        expected = ((x.double()[:, None] - x.double()[None]) ** 2).sum(-1).numpy()
        np.testing.assert_allclose(squared_distances(x).numpy(), expected, rtol=1e-5, atol=0)

    @pytest.mark.parametrize("spread", [1e-1, 1e-2, 1e-3, 1e-4])
    def test_krum_chooses_in_float32_as_in_float64(self, spread):
        """12 of 20 rows near one another, one of them a stealthy outlier, and 8 scattered: 35 % of pairs are close."""
        for seed in range(10):
            x = spread * normal(20, 2000, seed=seed)
            x[11] *= 4
            x[:12] += normal(1, 2000, seed=100 + seed)
            x[12:] = normal(8, 2000, seed=200 + seed)
            x = x.float()
            chosen = create("krum", f=8)(x)
            assert torch.equal(chosen, create("krum", f=8)(x.double()).float()), seed
            mixed = create("nnm", f=8)(x)[:11].double()
            exact = create("nnm", f=8)(x.double())[:11]
            assert (mixed - exact).abs().max() < 1e-5  # one wrong neighbour is worth a tenth of the spread

    def test_outliers_spoil_neither_the_others_nor_themselves(self):
        x = normal(20, 40, dtype=torch.float32)
        x[:8] += 1e6
        x[8] -= 3e9
        expected = slow_distances(x.double().numpy())
        np.testing.assert_allclose(squared_distances(x, exact=True).numpy(), expected, rtol=1e-8, atol=0)

    def test_many_blocks_add_up(self, monkeypatch):
        x = normal(9, 101, dtype=torch.float32)
        whole = squared_distances(x)
        mixed, median = create("nnm", f=2)(x), create("median")(x)
        monkeypatch.setattr(columns, "CPU_BLOCK", 9 * 7)  # 7 columns a block, and 3 left over
        np.testing.assert_allclose(squared_distances(x).numpy(), whole.numpy(), rtol=1e-5)
        torch.testing.assert_close(create("nnm", f=2)(x), mixed)
        assert torch.equal(create("median")(x), median)

    def test_identical_rows_are_at_zero(self):
        distances = squared_distances(torch.full((6, 5), 3.7))
        assert not distances.any()

    def test_a_row_that_is_not_finite_is_far_from_all(self):
        x = normal(7, 4, dtype=torch.float32)
        x[2, 1] = torch.inf
        x[5, 0] = torch.nan
        others = [0, 1, 3, 4, 6]
        distances = squared_distances(x, exact=True)
        assert torch.isinf(distances[2, others]).all()
        assert torch.isinf(distances[5, [0, 1, 2, 3, 4, 6]]).all()
        np.testing.assert_allclose(
            distances[others][:, others].numpy(), slow_distances(x[others].double().numpy()), rtol=1e-11
        )
        assert create("krum", f=2)(x).isfinite().all()


class TestPeer:
    """Parity with ByzFL, which is reliable in float32 for few clients."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @pytest.mark.parametrize(("n", "f"), [(7, 1), (12, 3), (25, 8)])
    def test_same_numbers(self, n, f, dtype):
        byzfl = pytest.importorskip("byzfl")
        x = normal(n, 17, seed=n, dtype=dtype)
        array = x.numpy()
        pairs = {
            "mean": (create("mean"), byzfl.Average()),
            "median": (create("median"), byzfl.Median()),
            "trimmed-mean": (create("trimmed-mean", f=f), byzfl.TrMean(f)),
            "krum": (create("krum", f=f, neighbours=n - f - 1), byzfl.Krum(f)),
            "multi-krum": (create("multi-krum", f=f, neighbours=n - f - 1), byzfl.MultiKrum(f)),
            "nnm": (create("nnm", f=f), byzfl.NNM(f)),
            "geometric-median": (
                create("geometric-median", nu=0.1, iterations=3, start="zero", tolerance=0),
                byzfl.GeometricMedian(nu=0.1, T=3),
            ),
        }
        tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-12}
        for name, (ours, theirs) in pairs.items():
            np.testing.assert_allclose(ours(x).numpy(), theirs(array), err_msg=name, **tolerance)


@pytest.mark.parametrize("name", ["mean", *ROBUST])
class TestEveryRule:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_keeps_dtype_and_shape_and_never_mutates(self, name, dtype):
        x = normal(9, 6, dtype=dtype)
        before = x.clone()
        result = create(name)(x, f=2)
        assert result.dtype == dtype
        assert result.shape == ((9, 6) if name == "nnm" else (6,))
        result.add_(1)  # the result is the caller's: not a view of the updates
        assert torch.equal(x, before)

    def test_takes_strided_rows_and_gradients(self, name):
        x = normal(12, 9)[:9].T.contiguous().T.requires_grad_()
        torch.testing.assert_close(create(name)(x, f=2).detach(), create(name)(x.detach().contiguous(), f=2))

    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 10_000), n=st.integers(7, 30), d=st.integers(1, 12))
    def test_permutation_and_translation(self, name, seed, n, d):
        x, f = normal(n, d, seed), (n - 3) // 2
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        shift = normal(1, d, seed + 1)[0] * 100
        rule = create(name)
        base = rule(x, f=f)
        permuted = rule(x[order], f=f)
        torch.testing.assert_close(permuted, base[order] if name == "nnm" else base, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(rule(x + shift, f=f), base + shift, rtol=1e-8, atol=1e-6)

    def test_identical_updates_come_back(self, name):
        row = normal(1, 8, dtype=torch.float32)
        result = create(name)(row.repeat(9, 1), f=3)
        torch.testing.assert_close(result, row.repeat(9, 1) if name == "nnm" else row[0])

    @pytest.mark.parametrize("bad", [torch.ones(4), torch.ones(0, 3), torch.ones(9, 3, dtype=torch.int64)])
    def test_bad_updates(self, name, bad):
        with pytest.raises(PluginError):
            create(name)(bad)

    def test_reference_and_documentation(self, name):
        rule = harness.plugins("aggregator")[name]
        assert rule.reference.url.startswith("https://")
        assert all(field.description for field in rule.model_fields.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("direction", ["same", "scattered"])
class TestBreakdown:
    """f outliers at 1e6: the mean is lost, robust rules stay among the honest updates."""

    n, f, d = 21, 6, 50

    def updates(self, direction, dtype):
        x = normal(self.n, self.d, seed=3, dtype=dtype)
        noise = normal(self.f, self.d, seed=4, dtype=dtype)
        x[: self.f] = 1e6 + noise if direction == "same" else 1e6 * noise
        return x, x[self.f :].mean(0)

    @pytest.mark.parametrize("name", [r for r in ROBUST if r != "nnm"])
    def test_robust_rules_hold(self, name, direction, dtype):
        x, honest = self.updates(direction, dtype)
        # An honest row is about sqrt(d) = 7 from the honest mean.
        assert (create(name)(x, f=self.f) - honest).norm() < 1.5 * self.d**0.5

    def test_nnm_keeps_honest_rows_clean(self, direction, dtype):
        x, honest = self.updates(direction, dtype)
        rows = create("nnm", f=self.f)(x)
        torch.testing.assert_close(rows[self.f :], honest.expand(self.n - self.f, -1), rtol=1e-4, atol=1e-5)

    def test_mean_is_lost(self, direction, dtype):
        x, honest = self.updates(direction, dtype)
        assert (create("mean")(x) - honest).norm() > 1e5


class TestConditions:
    @pytest.mark.parametrize("name", ["krum", "multi-krum"])
    def test_krum_needs_more_than_2f_plus_2(self, name):
        assert create(name).check(7, 2) == (7, 2)
        with pytest.raises(PluginError, match=r"n > 2f \+ 2.*n = 6, f = 2"):
            create(name).check(6, 2)
        with pytest.raises(PluginError, match="f = 2"):
            create(name, f=2)(normal(6, 3))

    @pytest.mark.parametrize("name", ["trimmed-mean", "nnm"])
    def test_half_is_too_many(self, name):
        assert create(name).check(7, 3) == (7, 3)
        with pytest.raises(PluginError, match=r"n > 2f.*n = 6, f = 3"):
            create(name).check(6, 3)

    @pytest.mark.parametrize("name", ["krum", "multi-krum", "trimmed-mean", "nnm"])
    def test_own_f_comes_first_and_what_follows_keeps_the_scenarios(self, name):
        x = normal(11, 4)
        assert create(name, f=4).check(11, 1) == (11, 1)
        assert torch.equal(create(name, f=3)(x, f=1), create(name)(x, f=3))
        assert not torch.equal(create(name, f=3)(x), create(name)(x, f=0))
        with pytest.raises(PluginError):
            create(name, f=6).check(11, 0)

    def test_neighbours_and_m_have_limits(self):
        with pytest.raises(PluginError, match="8 others"):
            create("krum", neighbours=9)(normal(9, 2))
        with pytest.raises(PluginError, match="only 9"):
            create("multi-krum", m=10)(normal(9, 2))
        assert torch.equal(create("multi-krum", m=1)(normal(9, 2), f=3), create("krum")(normal(9, 2), f=3))

    @pytest.mark.parametrize(
        ("name", "bad"),
        [
            ("krum", {"f": -1}),
            ("krum", {"neighbours": 0}),
            ("multi-krum", {"m": 0}),
            ("trimmed-mean", {"f": 1.5}),
            ("geometric-median", {"nu": 0.0}),
            ("geometric-median", {"iterations": 0}),
            ("geometric-median", {"start": "median"}),
        ],
    )
    def test_bad_parameters(self, name, bad):
        with pytest.raises(PluginError, match=next(iter(bad))):
            create(name, **bad)

    def test_mean_wants_one_weight_a_row(self):
        with pytest.raises(PluginError, match=r"\(3,\)"):
            create("mean")(normal(3, 2), weights=torch.ones(2))

    def test_fedavg_is_the_mean(self):
        assert type(create("fedavg")) is type(create("mean"))


def test_rows_kept_are_reported():
    x = normal(11, 5, seed=8)
    x[[1, 4]] += 50
    kept = []
    create("krum", f=2)(x, reporter=kept.append)
    create("multi-krum", f=2)(x, reporter=kept.append)
    assert kept[0]["kept"] == [slow_krum(x.numpy(), 2)[0]]
    assert kept[1]["kept"] == [0, 2, 3, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("n", range(1, 17))
def test_the_network_of_exchanges_sorts(n):
    values = np.array(list(itertools.product((0, 1), repeat=n)), dtype=np.int8)  # the 0-1 principle
    for low, high in exchanges(n):
        pair = values[:, [low, high]]
        values[:, low], values[:, high] = pair.min(1), pair.max(1)
    assert (np.diff(values, axis=1) >= 0).all()


@pytest.mark.parametrize("n", range(1, 13))
def test_a_selection_separates_the_order_statistics(n):
    for low, high in itertools.combinations(range(n + 1), 2):
        values = np.array(list(itertools.product((0, 1), repeat=n)), dtype=np.int8)
        ordered = np.sort(values, axis=1)
        for i, j in selection(n, low, high):
            pair = values[:, [i, j]]
            values[:, i], values[:, j] = pair.min(1), pair.max(1)
        for part in (slice(0, low), slice(low, high), slice(high, n)):
            assert np.array_equal(values[:, part].sum(1), ordered[:, part].sum(1))
    if n > 5:
        assert len(selection(n, 1, n - 1)) < len(exchanges(n))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 2, 5, 10, 25, 32, 33])
def test_the_mean_between_order_statistics(n, dtype):
    updates = torch.randn(n, 40_001, generator=torch.Generator().manual_seed(n)).to(dtype)
    updates[n // 2, ::7], updates[0, ::11] = float("inf"), -0.0
    updates[n - 1, ::13] = -float("inf")
    for broken in (False, True):
        if broken:
            updates[0, 3], updates[n - 1, 40_000] = float("nan"), float("nan")
        before = updates.clone()
        ordered = np.sort(updates.double().numpy(), axis=0)
        for low, high in {(0, n), (n // 5, n - n // 5), ((n - 1) // 2, n // 2 + 1)}:
            found = mean_between(updates, low, high)
            with np.errstate(invalid="ignore"):
                expected = torch.from_numpy(ordered[low:high].mean(0)).to(dtype)
            assert found.dtype == dtype
            assert torch.allclose(found, expected, rtol=1e-6, atol=1e-7, equal_nan=True)
        assert torch.equal(updates.nan_to_num(7.0), before.nan_to_num(7.0))


@pytest.mark.parametrize("n", [1, 2, 5, 12, 13, 30])
def test_clients_are_sorted_as_numpy_sorts_them(n):
    block = torch.randn(n, 40_000, generator=torch.Generator().manual_seed(n))
    block[n // 2, ::7], block[0, ::11] = float("inf"), -0.0
    before = block.clone()
    assert np.array_equal(sort_clients(block).numpy(), np.sort(block.numpy().T, axis=1))
    assert torch.equal(block, before)
    block[0, 3] = float("nan")
    assert np.array_equal(sort_clients(block).numpy(), np.sort(block.numpy().T, axis=1), equal_nan=True)
