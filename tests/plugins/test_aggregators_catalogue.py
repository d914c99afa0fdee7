"""The catalogue of robust rules: slow references from the papers' formulas, a peer library, planted attackers."""

from __future__ import annotations

import copy
from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.cluster import HDBSCAN
from test_aggregators import close, create, normal, slow_distances

import harness
from harness.api import MERGED, PluginError
from harness.contracts.aggregator import default_context
from harness_plugins.aggregators.auror import split_in_two
from harness_plugins.aggregators.fldetector import hessian_product, number_of_groups
from harness_plugins.columns import squared_norms

CASES = [(7, 1, 0.0), (11, 2, 0.0), (24, 5, 0.0), (60, 12, 1e4)]


# References: one client and one coordinate at a time, in float64 ---------------------------------------------------


def slow_meamed(x, f):
    columns = []
    for values in x.T:
        centre = np.median(values)
        nearest = sorted(values, key=lambda v: (abs(v - centre), v))
        columns.append(np.mean(nearest[: len(x) - f]))
    return np.array(columns)


def slow_bulyan(x, f):
    distances, left, chosen = slow_distances(x), list(range(len(x))), []
    theta = len(x) - 2 * f
    while len(chosen) < theta:
        k = max(1, len(left) - f - 2)
        scores = {i: sum(sorted(distances[i][j] for j in left if j != i)[:k]) for i in left}
        best = min(left, key=lambda i: (scores[i], i))
        chosen.append(best)
        left.remove(best)
    selected = x[sorted(chosen)]
    return slow_meamed(selected, len(selected) - (theta - 2 * f)), sorted(chosen)


def slow_mda(x, f):
    distances = slow_distances(x)
    subsets = list(combinations(range(len(x)), len(x) - f))
    best = min(subsets, key=lambda s: max((distances[i][j] for i, j in combinations(s, 2)), default=0))
    return x[list(best)].mean(0)


def slow_smea(x, f):
    def largest(subset):
        rows = x[list(subset)] - x[list(subset)].mean(0)
        return np.linalg.eigvalsh(rows.T @ rows / len(rows))[-1]

    best = min(combinations(range(len(x)), len(x) - f), key=largest)
    return x[list(best)].mean(0)


def slow_caf(x, f):
    n = len(x)
    c, best, least = np.ones(n), x.mean(0), np.inf
    while c.sum() > n - 2 * f:
        mean = (c[:, None] * x).sum(0) / c.sum()
        rows = x - mean
        values, vectors = np.linalg.eigh((c[:, None] * rows).T @ rows / c.sum())
        if values[-1] < least:
            best, least = mean, values[-1]
        spread = (rows @ vectors[:, -1]) ** 2
        left = 1 - spread / spread[c > 0].max()
        c = c * np.where(left > 1e-9, left, 0)  # equal rows share the largest spread, whatever rounding says
    return best


def slow_clip(x, radius):
    return np.array([row * min(1, radius / np.linalg.norm(row)) for row in x])


def slow_arc(x, f):
    n = len(x)
    k = int(2 * f / n * (n - f) + 1e-9)
    norms = np.linalg.norm(x, axis=1)
    radius = np.sort(norms)[n - k - 1]
    return np.array([r * radius / m if m > radius else r for r, m in zip(x, norms, strict=True)])


def slow_dnc(x, f, c=1.0):
    centred = x - x.mean(0)
    _, _, v = np.linalg.svd(centred, full_matrices=False)
    scores = (centred @ v[0]) ** 2
    keep = np.argsort(scores, kind="stable")[: len(x) - int(c * f)]
    return x[np.sort(keep)].mean(0)


def slow_foolsgold(x, kappa=1.0):
    n = len(x)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cs = unit @ unit.T - np.eye(n)
    v = cs.max(1)
    pardoned = cs.copy()
    for i in range(n):
        for j in range(n):
            if i != j and v[j] > v[i]:
                pardoned[i, j] = cs[i, j] * v[i] / v[j]
    a = np.clip(1 - pardoned.max(1), 0, 1)
    a = a / a.max()
    a[a == 1] = 0.99
    with np.errstate(divide="ignore"):
        a = kappa * (np.log(a / (1 - a)) + 0.5)
    a[np.isinf(a) & (a > 0)] = 1
    return np.clip(a, 0, 1)


def slow_lasa(x, layers, sparsity, magnitude, direction):
    norms = np.linalg.norm(x, axis=1)
    rows = slow_clip(x, np.median(norms))
    for row in rows:
        keep = int(len(row) * (1 - sparsity) + 1e-9)
        row[np.argsort(np.abs(row))[: len(row) - keep]] = 0
    result = np.zeros(x.shape[1])
    for part in layers:
        layer = rows[:, part]
        kept = np.ones(len(x), dtype=bool)
        purity = [(1 + np.sign(r).sum() / max(np.abs(np.sign(r)).sum(), 1)) / 2 for r in layer]
        for values, radius in ((np.linalg.norm(layer, axis=1), magnitude), (np.array(purity), direction)):
            kept &= np.abs(values - np.median(values)) / values.std() < radius
        result[part] = layer[kept if kept.any() else slice(None)].mean(0)
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "f", "offset"), CASES, ids=str)
class TestFormulas:
    def test_meamed(self, n, f, offset, dtype):
        x = normal(n, 9, dtype=dtype, offset=offset)
        close(create("meamed", f=f)(x), slow_meamed(x.double().numpy(), f), dtype)

    def test_bulyan(self, n, f, offset, dtype):
        f = min(f, (n - 3) // 4)
        x = normal(n, 9, seed=1, dtype=dtype, offset=offset)
        seen: list = []
        ours = create("bulyan", f=f)(x, reporter=seen.append)
        reference, chosen = slow_bulyan(x.double().numpy(), f)
        assert seen[0]["kept"] == chosen
        close(ours, reference, dtype)

    def test_caf(self, n, f, offset, dtype):
        x = normal(n, 5, seed=2, dtype=dtype, offset=offset)
        x[:f] += 3
        close(create("caf", f=f)(x), slow_caf(x.double().numpy(), f), dtype)

    def test_monna(self, n, f, offset, dtype):
        x = normal(n, 9, seed=3, dtype=dtype, offset=offset)
        exact = x.double().numpy()
        nearest = np.argsort(((exact - exact[4]) ** 2).sum(1), kind="stable")[: n - f]
        close(create("monna", f=f, trusted=4)(x), exact[nearest].mean(0), dtype)

    def test_centered_clipping(self, n, f, offset, dtype):
        x = normal(n, 9, seed=4, dtype=dtype, offset=offset)
        state: dict = {}
        rule, v = create("centered-clipping", tau=2.5, iterations=3), np.zeros(9)
        for step in range(2):  # the second round starts where the first ended
            rows = x + step
            for _ in range(3):
                v = v + slow_clip(rows.double().numpy() - v, 2.5).mean(0)
            close(rule(rows, state=state), v, dtype)

    def test_dnc(self, n, f, offset, dtype):
        x = normal(n, 9, seed=5, dtype=dtype, offset=offset)
        x[-f:] += 2
        close(create("dnc", f=f)(x), slow_dnc(x.double().numpy(), f), dtype)

    def test_rlr(self, n, f, offset, dtype):
        x = normal(n, 9, seed=6, dtype=dtype, offset=offset / 1e5)
        exact = x.double().numpy()
        sign = np.where(np.abs(np.sign(exact).sum(0)) >= f + 1, 1, -1)
        close(create("rlr", f=f)(x), sign * exact.mean(0), dtype)

    def test_clipping_and_arc(self, n, f, offset, dtype):
        x = normal(n, 9, seed=7, dtype=dtype, offset=offset)
        x[0] *= 10
        for rule, reference in (
            (create("clipping", tau=2.0), slow_clip(x.double().numpy(), 2.0)),
            (create("arc", f=f), slow_arc(x.double().numpy(), f)),
        ):
            close(rule(x).flatten(), reference.flatten(), dtype)

    def test_norm_clipping(self, n, f, offset, dtype):
        x = normal(n, 9, seed=8, dtype=dtype, offset=offset)
        exact = x.double().numpy()
        weights = np.arange(1, n + 1) / (n * (n + 1) / 2)
        radius = np.median(np.linalg.norm(exact, axis=1))
        reference = (weights[:, None] * slow_clip(exact, radius)).sum(0)
        close(create("norm-clipping")(x, weights=torch.from_numpy(weights)), reference, dtype)
        fixed = (weights[:, None] * slow_clip(exact, 1.5)).sum(0)
        close(create("norm-clipping", threshold=1.5)(x, weights=torch.from_numpy(weights)), fixed, dtype)

    def test_fltrust(self, n, f, offset, dtype):
        x, own = normal(n, 9, seed=9, dtype=dtype, offset=offset), normal(1, 9, seed=10, dtype=dtype)[0] + 1
        exact, g = x.double().numpy(), own.double().numpy()
        trust = np.maximum(0, exact @ g / np.linalg.norm(exact, axis=1) / np.linalg.norm(g))
        rescaled = exact / np.linalg.norm(exact, axis=1, keepdims=True) * np.linalg.norm(g)
        reference = (trust[:, None] * rescaled).sum(0) / trust.sum()
        close(create("fltrust")(x, root_update=lambda: own), reference, dtype)

    def test_foolsgold(self, n, f, offset, dtype):
        x = normal(n, 9, seed=11, dtype=dtype, offset=offset / 1e5)
        exact = x.double().numpy()
        reference = (slow_foolsgold(exact)[:, None] * exact).sum(0) / n
        close(create("foolsgold")(x), reference, dtype)

    def test_lasa(self, n, f, offset, dtype):
        x = normal(n, 30, seed=12, dtype=dtype, offset=offset / 1e5)
        layers = {"a": slice(0, 20), "b": slice(20, 30)}
        reference = slow_lasa(x.double().numpy().copy(), layers.values(), 0.3, 2.0, 1.0)
        close(create("lasa")(x, layout=layers), reference, dtype)

    def test_clipped_clustering(self, n, f, offset, dtype):
        from sklearn.cluster import AgglomerativeClustering

        x = normal(n, 9, seed=13, dtype=dtype) + 1
        x[-f:] = -2 * x[-f:]
        exact = x.double().numpy()
        unit = exact / np.linalg.norm(exact, axis=1, keepdims=True)
        labels = AgglomerativeClustering(2, metric="precomputed", linkage="average").fit_predict(
            1 - unit @ unit.T
        )
        larger = labels == np.bincount(labels).argmax()
        clipped = slow_clip(exact, np.median(np.linalg.norm(exact, axis=1)))
        close(create("clipped-clustering")(x), clipped[larger].mean(0), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "f"), [(10, 2), (10, 3), (11, 4)])
def test_caf_drops_equal_rows_together(n, f, dtype):
    """As attackers send them: what rounding left of one that was as far as the farthest counted as the farthest."""
    for seed in range(20):
        x = 0.3 * normal(n, 200, seed=seed) + 0.3 * normal(1, 200, seed=100 + seed)
        x[-f:] = -10 * x[:-f].mean(0)
        x = x.to(dtype)
        close(create("caf")(x, f=f), slow_caf(x.double().numpy(), f), dtype)


@pytest.mark.parametrize(("n", "f"), [(5, 1), (7, 2), (9, 3), (9, 4), (8, 0)])
def test_best_subsets(n, f):
    for seed in range(6):
        x = normal(n, 4, seed=seed)
        close(create("mda", f=f)(x), slow_mda(x.numpy(), f), torch.float64)
        close(create("smea", f=f)(x), slow_smea(x.numpy(), f), torch.float64)


@pytest.mark.parametrize("f", [1, 2, 3])
def test_of_subsets_of_one_diameter_the_first_is_taken(f):
    for seed in range(30):
        x = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, (8, 1)).astype(float))
        close(create("mda", f=f)(x), slow_mda(x.numpy(), f), torch.float64)


def test_least_diameter_where_subsets_are_many():
    x = normal(60, 3, seed=3)
    x[50:] += 100
    close(create("mda", f=10, limit=10**12)(x), x[:50].mean(0).numpy(), torch.float64)


def test_bucketing_takes_means_of_a_seeded_permutation():
    x = normal(7, 4)
    context = default_context(create("bucketing"), x, 1, generator=torch.Generator().manual_seed(3))
    rows, after = create("bucketing", s=3).transform(x, context)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    expected = torch.stack([x[order[:3]].mean(0), x[order[3:6]].mean(0), x[order[6:]].mean(0)])
    torch.testing.assert_close(rows, expected)
    assert after.client_ids == [MERGED] * 3
    assert after.f == 1
    torch.testing.assert_close(after.weights, torch.full((3,), 1 / 3, dtype=torch.float64))


def test_bucketing_raises_the_share_of_malicious_rows_for_what_follows():
    assert create("bucketing", s=2).check(20, 4) == (10, 4)
    with pytest.raises(PluginError, match="n = 10, f = 4"):
        create("krum").check(*create("bucketing", s=2).check(20, 4))
    with pytest.raises(PluginError, match="all spoilt"):
        create("bucketing", s=5).check(20, 4)


# A peer library, where definitions are the same ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "f"), [(7, 1), (9, 0), (11, 2), (15, 3), (25, 6)])
def test_same_numbers_as_byzfl(n, f, dtype):
    byzfl = pytest.importorskip("byzfl")
    x = normal(n, 40, seed=n, dtype=dtype)
    pairs = [
        (create("meamed", f=f), byzfl.Meamed(f)),
        (create("monna", f=f, trusted=2), byzfl.MoNNA(f, 2)),
        (create("centered-clipping", tau=3.0, iterations=4), byzfl.CenteredClipping(None, 4, 3.0)),
        (create("clipping", tau=3.0), byzfl.Clipping(3.0)),
        (create("arc", f=f), byzfl.ARC(f)),
    ]
    if n <= 11:
        pairs.append((create("mda", f=f), byzfl.MDA(f)))
    for ours, theirs in pairs:
        before = x.clone()
        torch.testing.assert_close(ours(x).float(), theirs(x.clone()).float(), rtol=1e-4, atol=1e-5)
        assert torch.equal(x, before)


# Planted attackers ---------------------------------------------------------------------------------------------------


def planted(n=20, m=4, d=300, seed=0, scale=-2.0):
    x = normal(n, d, seed=seed) * 0.5 + 1
    x[-m:] = scale * x[-m:]
    return x


@pytest.mark.parametrize(
    "name",
    ["bulyan", "mda", "dnc", "signguard", "clipped-clustering", "flame", "auror", "fltrust", "monna", "caf"],
)
def test_planted_attackers_are_left_out_and_reported(name):
    x = planted(n=23 if name == "bulyan" else 20)
    honest, seen = len(x) - 4, []
    given = {"reporter": seen.append, "global_weights": normal(1, 300, seed=9)[0]}
    given["root_update"] = lambda: torch.ones(300, dtype=torch.float64)
    result = create(name)(x, f=4, **given)
    assert set(seen[-1]["kept"]) <= set(range(honest))
    assert len(seen[-1]["kept"]) >= honest // 2
    assert (result - x[:honest].mean(0)).norm() < 0.2 * x[:honest].mean(0).norm()


def test_foolsgold_gives_sybils_nothing_and_follows_clients_by_number():
    rule, state = create("foolsgold"), {}
    honest, sybil = normal(6, 200, seed=1), normal(1, 200, seed=2)[0]
    for round in range(3):
        ids = [0, 1, 2, 3, 10, 11] if round != 1 else [4, 5, 0, 1, 11, 10]  # they come and go, in any order
        rows = torch.stack([sybil if i >= 10 else honest[i] for i in ids])
        seen: list = []
        rule(rows, client_ids=ids, state=state, reporter=seen.append)
        assert {ids[i] for i in seen[0]["kept"]} == {i for i in ids if i < 10}
    torch.testing.assert_close(state["sums"][10], 3 * sybil)
    torch.testing.assert_close(state["sums"][4], honest[4])
    for seed in range(50):  # also where rounding makes a cosine a little less than 1
        alike = normal(1, 200, seed=seed)[0].float()
        assert not create("foolsgold")(torch.stack([alike] * 5)).any()


def test_clipped_clustering_clips_to_all_norms_seen():
    rule, state = create("clipped-clustering"), {}
    first, second = normal(5, 6) + 3, 10 * (normal(5, 6, seed=1) + 3)
    rule(first, state=state)
    norms = torch.cat([first.norm(dim=1), second.norm(dim=1)])
    radius = norms.quantile(0.5)
    seen: list = []
    result = rule(second, state=state, reporter=seen.append)
    rows = second[seen[0]["kept"]]
    torch.testing.assert_close(
        result, (rows * (radius / rows.norm(dim=1, keepdim=True)).clamp(max=1)).mean(0)
    )


def test_clipped_clustering_of_three_keeps_the_two_alike():
    x, seen = torch.tensor([[1.0, 0.1], [-1.0, 0.2], [1.0, 0.0]]), []
    create("clipped-clustering")(x, reporter=seen.append)
    assert seen[0]["kept"] == [0, 2]


@pytest.mark.parametrize(("honest", "zeros"), [(6, 2), (6, 3), (5, 4)])
@pytest.mark.parametrize("first", ["honest", "zeros"])
def test_clipped_clustering_makes_two_clusters_where_merges_are_equally_far(honest, zeros, first):
    from sklearn.cluster import AgglomerativeClustering

    x = normal(1, 20) + 0.1 * normal(honest, 20, seed=1)
    nothing = torch.zeros(zeros, 20, dtype=x.dtype)  # as free-riders send: at 1 from one another and from all
    x = torch.cat([x, nothing] if first == "honest" else [nothing, x])
    unit = (x / x.norm(dim=1, keepdim=True)).nan_to_num(0)
    distances = (1 - unit @ unit.T).clamp(min=0).fill_diagonal_(0).numpy()
    labels = AgglomerativeClustering(2, metric="precomputed", linkage="average").fit_predict(distances)
    seen: list = []
    create("clipped-clustering")(x, reporter=seen.append)
    assert seen[0]["kept"] == np.flatnonzero(labels == np.bincount(labels).argmax()).tolist()
    create("clipped-clustering")(torch.ones(5, 20), reporter=seen.append)  # nothing to tell apart
    assert seen[1]["kept"] == [0, 1, 2, 3, 4]


def test_without_any_trust_nothing_moves():
    x = -planted(m=1)[:5].abs()
    assert not create("fltrust")(x, root_update=lambda: torch.ones(300, dtype=torch.float64)).any()
    with pytest.raises(PluginError, match="no root dataset"):
        create("fltrust")(x)
    assert create("fltrust").data_access == "private"
    assert create("fltrust", root="public", root_size=30).root_records == 30
    assert create("monna", trusted=0).root_records == 0
    assert create("monna").root_records == 100
    assert (create("monna", trusted=3).trusts, create("monna").trusts) == ((3,), ())


def test_signguard_filters_norms_and_clips_to_the_median():
    x = planted(m=0, n=9)
    x[0] *= 100
    x[1] *= 0.01
    seen: list = []
    result = create("signguard", share=1.0)(x, reporter=seen.append)
    kept = seen[0]["kept"]
    assert not {0, 1} & set(kept)
    radius = x.norm(dim=1).quantile(0.5)
    rows = x[kept]
    torch.testing.assert_close(
        result, (rows * (radius / rows.norm(dim=1, keepdim=True)).clamp(max=1)).mean(0)
    )


def slow_signguard(x, looked, lower=0.1, upper=3.0, k=None):
    """Rows kept and their mean. Bandwidth: over rows, the mean distance to the k-th nearest row, itself the first."""
    from sklearn.cluster import MeanShift

    n, norms = len(x), np.linalg.norm(x, axis=1)
    signs = np.sign(x[:, looked])
    features = np.stack([(signs == s).mean(1) for s in (1, 0, -1)], 1)
    apart = np.linalg.norm(features[:, None] - features[None], axis=2)
    bandwidth = np.sort(apart, 1)[:, (n // 2 if k is None else k) - 1].mean()
    labels = MeanShift(bandwidth=bandwidth).fit_predict(features)
    plausible = (norms >= lower * np.median(norms)) & (norms <= upper * np.median(norms))
    kept = np.flatnonzero(plausible & (labels == np.bincount(labels).argmax()))
    return kept.tolist(), slow_clip(x, np.median(norms))[kept].mean(0)


def test_signguard_s_bandwidth_decides_which_cluster_wins():
    """At quantile 0.5 two near groups, of 3 and 2, are one cluster and outnumber a group of 4; at 0.4 they are not."""
    positives = [50] * 4 + [70] * 3 + [78] * 2 + [20]
    x = torch.tensor([[1.0] * p + [-1.0] * (100 - p) for p in positives], dtype=torch.float64)
    assert slow_signguard(x.numpy(), range(100), k=4)[0] == [0, 1, 2, 3]
    assert slow_signguard(x.numpy(), range(100), k=6)[0] == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    kept, mean = slow_signguard(x.numpy(), range(100))
    assert kept == [4, 5, 6, 7, 8]
    seen: list = []
    close(create("signguard", share=1.0)(x, reporter=seen.append), mean, torch.float64)
    assert seen[0]["kept"] == kept


@pytest.mark.parametrize("n", [10, 11, 16])
def test_signguard_is_the_papers(n):
    sizes = set()
    for seed in range(4):
        x = normal(n, 300, seed=seed) + 0.1 * torch.arange(n)[:, None] * (torch.arange(n)[:, None] % 3 == 0)
        x[:, ::7] *= torch.arange(n)[:, None] % 2  # some send zeros
        x[1] *= 2.95 * x[0].norm() / x[1].norm()
        looked = torch.randperm(300, generator=torch.Generator().manual_seed(seed))[:30]
        kept, mean = slow_signguard(x.numpy(), looked.numpy())
        seen: list = []
        ours = create("signguard")(x, reporter=seen.append, generator=torch.Generator().manual_seed(seed))
        assert seen[0]["kept"] == kept
        close(ours, mean, torch.float64)
        sizes.add(len(kept))
    assert len(sizes) > 1


def test_signguard_s_bounds_belong_to_the_plausible_norms():
    lengths = torch.tensor([0.5, 1.0, 1.0, 1.0, 2.0], dtype=torch.float64)
    seen: list = []
    create("signguard", lower=0.5, upper=2.0, share=1.0)(lengths[:, None], reporter=seen.append)
    assert seen[0]["kept"] == [0, 1, 2, 3, 4]
    lengths[0], lengths[4] = 0.4999, 2.0001
    create("signguard", lower=0.5, upper=2.0, share=1.0)(lengths[:, None], reporter=seen.append)
    assert seen[1]["kept"] == [1, 2, 3]
    for lower, upper, kept in ((0.0999, 3.0001, [1, 2, 3]), (0.1001, 2.9999, [0, 1, 2, 3, 4])):  # by default
        lengths[0], lengths[4] = lower, upper
        create("signguard", share=1.0)(lengths[:, None], reporter=seen.append)
        assert seen[-1]["kept"] == kept


@pytest.mark.parametrize("n", [1, 2, 3])
def test_signguard_finds_no_clusters_of_so_few(n):
    """Of three rows each would be its own neighbour, and an arbitrary one would be kept."""
    with pytest.raises(PluginError, match=f"signguard needs n >= 4 updates to find clusters: n = {n}"):
        create("signguard")(normal(n, 20))


def test_signguard_takes_the_larger_of_two_groups_of_equal_signs():
    """Half of the rows are then at no distance from each: the bandwidth is zero."""
    x = torch.ones(9, 20)
    x[[1, 4, 6, 8]] = -1
    seen: list = []
    create("signguard", share=1.0)(x, reporter=seen.append)
    assert seen[0]["kept"] == [0, 2, 3, 5, 7]


def test_signguard_takes_the_larger_of_two_groups_whose_distances_round():
    """scikit-learn's estimate of the bandwidth is 6.6e-9 here instead of 0, with which all nine rows are kept."""
    x = torch.ones(9, 20)
    x[5:, :9] = -1
    seen: list = []
    create("signguard", share=1.0)(x, reporter=seen.append)
    assert seen[0]["kept"] == [0, 1, 2, 3, 4]


def test_signguard_takes_all_rows_where_none_has_a_plausible_norm():
    x = torch.tensor([[0.01], [0.02], [10.0], [20.0]]).expand(4, 6)  # the median is 5.01, and nobody near it
    seen: list = []
    result = create("signguard", upper=1.5, share=1.0)(x, reporter=seen.append)
    assert seen[0]["kept"] == [0, 1, 2, 3]
    torch.testing.assert_close(result, torch.full((6,), (0.01 + 0.02 + 5.01 + 5.01) / 4))


def test_flame_is_a_clipped_mean_of_the_admitted_models_plus_noise():

    x, w = planted(n=15, m=4, seed=2), normal(1, 300, seed=3)[0]
    models = (w + x).numpy()
    unit = models / np.linalg.norm(models, axis=1, keepdims=True)
    options = {"min_cluster_size": 8, "min_samples": 1, "allow_single_cluster": True, "copy": True}
    labels = HDBSCAN(metric="precomputed", **options).fit_predict(np.clip(1 - unit @ unit.T, 0, None))
    median = float(x.norm(dim=1).quantile(0.5))
    reference = slow_clip(x.numpy(), median)[labels == 0].mean(0)
    close(create("flame", noise=0.0)(x, global_weights=w), reference, torch.float64)
    noisy = create("flame", noise=0.1)(x, global_weights=w) - torch.from_numpy(reference)
    assert 0.8 < noisy.std() / (0.1 * median) < 1.2
    published = create("flame")(x, global_weights=w) - torch.from_numpy(reference)
    assert 0.8 < published.std() / (0.001 * median) < 1.2


def test_crfl_clips_the_model_and_adds_noise_except_in_the_last_round():
    x, w = normal(4, 5000, seed=1), normal(1, 5000, seed=2)[0]
    aim = w + x.mean(0)
    for round, rounds, expected in ((2, 3, 0.0), (1, 3, 0.05)):
        rule = create("crfl", rho=2.0, growth=0.5, sigma=0.05)
        reached = w + rule(x, global_weights=w, round=round, rounds=rounds)
        clipped = aim * (2.0 + 0.5 * round) / aim.norm()
        noise = (reached - clipped).std()
        assert abs(float(noise) - expected) < 0.005
    plain = create("crfl", rho=1e6, cap=1e6, sigma=0.0)(x, global_weights=w)
    torch.testing.assert_close(plain, x.mean(0))


def test_crfl_s_radius_is_the_authors_for_mnist():
    """min(0.1 t + 2, 15) with t from 1, as their code has it."""
    w, rule = normal(1, 5000, seed=2)[0], create("crfl", sigma=0.0)
    for round in (0, 10, 129, 500):
        reached = w + rule(torch.zeros(4, 5000, dtype=w.dtype), global_weights=w, round=round, rounds=501)
        assert float(reached.norm()) == pytest.approx(min(0.1 * (round + 1) + 2, 15))


@pytest.mark.parametrize("name", ["centered-clipping", "clipping"])
def test_a_radius_in_units_of_an_update_is_asked_for(name):
    """The published ones are for gradients, and would clip no update."""
    with pytest.raises(PluginError, match=f"{name} needs the parameter 'tau'"):
        create(name)


@pytest.mark.parametrize("n", [10, 200], ids=["one block", "blocks"])
def test_rows_beyond_float32_s_squares_are_clipped_and_not_lost(n):
    x = torch.ones(n, 2**13)
    x[0] *= 1e30
    clipped = create("clipping", tau=1.0)(x)
    assert clipped.norm(dim=1).tolist() == pytest.approx([1.0] * n, rel=1e-4)
    torch.testing.assert_close(
        squared_norms(x)[0], torch.tensor(2.0**13 * 1e60, dtype=torch.float64), rtol=1e-5, atol=0
    )


def test_fldetector_does_not_hold_busy_rounds_against_anybody():
    """A client of rounds with few others has no larger score for that: each round's mean is 1."""
    rule, state = create("fldetector", window=3), {}
    generator = torch.Generator().manual_seed(0)
    weights, before = torch.zeros(6, dtype=torch.float64), set()
    for round, ids in enumerate([range(12), range(12), range(12), range(4), range(4), range(12)]):
        rows = torch.randn(len(ids), 6, generator=generator, dtype=torch.float64)
        weights = weights + rule(rows, state=state, global_weights=weights, client_ids=list(ids), round=round)
        known = before & set(ids)  # those who have a prediction
        shares = [errors[-1] for client, errors in state.get("errors", {}).items() if client in known]
        if round > 1:
            assert sum(shares) / len(shares) == pytest.approx(1.0)
        before = set(ids)


def test_foolsgold_reports_nobody_where_nobody_counts():
    seen = []
    assert not create("foolsgold")(torch.ones(5, 4), reporter=seen.append).any()
    assert seen[0]["kept"] == []


def test_crfl_votes():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
    x = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    sure = create("crfl", sigma_test=0.0, copies=10).inference(network)(x)
    torch.testing.assert_close(sure.exp().sum(1), torch.ones(5))
    assert torch.equal(sure.argmax(1), network(x).argmax(1))
    torch.testing.assert_close(sure.exp().amax(1), torch.full((5,), 11 / 13))
    module = create("crfl", sigma_test=0.5, copies=200).inference(network)
    voted = module(x)
    assert torch.equal(voted, module(x))
    assert set(module.state_dict()) == {f"model.{name}" for name in network.state_dict()}
    shares = (voted.exp() * 203 - 1).round()
    assert shares.sum() == 5 * 200
    # Each logit's noise is normal: the vote share of a pair of classes has a closed form; here by plain sampling.
    generator = torch.Generator().manual_seed(1)
    counts = torch.zeros(5, 3)
    for _ in range(2000):
        weight = network[1].weight + 0.5 * torch.randn(3, 16, generator=generator)
        bias = network[1].bias + 0.5 * torch.randn(3, generator=generator)
        counts += torch.nn.functional.one_hot((x.flatten(1) @ weight.T + bias).argmax(1), 3)
    torch.testing.assert_close(shares.detach() / 200, counts / 2000, atol=0.12, rtol=0)
    assert torch.autograd.grad(voted.logsumexp(1).sum() + voted[:, 0].sum(), x)[0].abs().sum() > 0


@pytest.mark.parametrize("scale", [1.0, 12.0])
def test_an_attack_on_crfl_s_votes_ascends_the_error_of_their_mean_probability(scale):
    """Of unanimous votes too, and where one class alone is near: each class without a vote has the same share."""
    generator = torch.Generator().manual_seed(3)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 5)).eval()
    with torch.no_grad():
        network[1].weight.copy_(scale * torch.randn(5, 16, generator=generator))
    x = torch.rand(6, 1, 4, 4, generator=generator, requires_grad=True)
    y = network(x).argmax(1)
    answers = create("crfl", sigma_test=0.0, copies=3).inference(network)(x)
    (found,) = torch.autograd.grad(torch.nn.functional.cross_entropy(answers, y, reduction="sum"), x)
    # What the cross-entropy grows with, without its own saturation.
    logits = network.double()(x.double())
    own = torch.nn.functional.one_hot(y, 5).bool()
    gap = logits.masked_fill(own, -torch.inf).logsumexp(1) - logits[own]
    assert scale == 1 or (gap < -36).any()
    (wanted,) = torch.autograd.grad(gap.sum(), x)
    cosine = torch.nn.functional.cosine_similarity(
        *[g.double().flatten(1) / g.double().abs().max() for g in (found, wanted)], eps=0
    )
    torch.testing.assert_close(cosine, torch.ones(6, dtype=torch.float64), atol=1e-3, rtol=0)


def test_auror_splits_each_coordinate_as_two_means_would():
    x = normal(9, 12, seed=4)
    x[:3, :6] += 4
    ordered = x.T.sort(dim=1).values
    edge, apart, low = split_in_two(ordered)
    for j in range(12):
        values = ordered[j].numpy()
        best = min(range(1, 9), key=lambda k: values[:k].var() * k + values[k:].var() * (9 - k))
        assert int(low[j]) == best
        assert edge[j] == values[best - 1]
        assert float(apart[j]) == pytest.approx(values[best:].mean() - values[:best].mean())
    seen: list = []
    create("auror", alpha=2.5)(x, reporter=seen.append)
    assert seen[0]["kept"] == [3, 4, 5, 6, 7, 8]


def slow_auror(x, alpha, tau):
    n, suspected, indicative = len(x), np.zeros(len(x)), 0
    for values in x.T:
        v = np.sort(values)
        cut = min(range(1, n), key=lambda k: v[:k].var() * k + v[k:].var() * (n - k))
        if v[cut:].mean() - v[:cut].mean() > alpha:
            indicative += 1
            lower = values <= v[cut - 1]
            if lower.sum() != n / 2:
                suspected += lower if lower.sum() < n / 2 else ~lower
    return [i for i in range(n) if suspected[i] <= tau * indicative]


@pytest.mark.parametrize("n", [6, 7])
@pytest.mark.parametrize(("alpha", "tau"), [(1.8, 0.5), (2.2, 0.25), (1.8, 0.3)])
def test_auror_keeps_whom_the_papers_counts_keep(n, alpha, tau):
    """Few coordinates, so that clients are often in the smaller cluster of just tau of them."""
    found = set()
    for seed in range(20):
        x = normal(n, 4, seed=seed)
        x[:2] += 1.5
        kept = slow_auror(x.numpy(), alpha, tau)
        seen: list = []
        result = create("auror", alpha=alpha, tau=tau)(x, reporter=seen.append)
        assert seen[0]["kept"] == kept
        close(result, x[kept].mean(0).numpy(), torch.float64)
        found.add(tuple(kept))
    assert len(found) > 4


def test_auror_s_bounds():
    for apart, kept in ((0.0201, [0, 1, 2]), (0.0199, [0, 1, 2, 3])):
        seen: list = []
        create("auror")(apart * torch.eye(4, dtype=torch.float64)[3][:, None], reporter=seen.append)
        assert seen[0]["kept"] == kept
    x = torch.zeros(5, 9, dtype=torch.float64)
    x[0, :5], x[1, 5:] = 1, 1  # one stands out in 5 of 9 coordinates, one in 4
    create("auror")(x, reporter=seen.append)
    assert seen[-1]["kept"] == [1, 2, 3, 4]
    x = torch.tensor([[0.0], [1.0], [1.0], [1.0]], dtype=torch.float64)
    create("auror", alpha=1.0)(x, reporter=seen.append)  # just alpha apart
    assert seen[-1]["kept"] == [0, 1, 2, 3]


@pytest.mark.parametrize(("c", "iterations", "coordinates"), [(1.5, 1, 10_000), (0.9, 3, 4), (1.0, 2, 9)])
def test_dnc_draws_coordinates_and_drops_c_f_rows_each_time(c, iterations, coordinates):
    x = normal(12, 10, seed=5)
    x[-3:] += 1
    generator, good = torch.Generator().manual_seed(4), set(range(12))
    for _ in range(iterations):
        part = x
        if coordinates < 10:
            part = x[:, torch.randperm(10, generator=generator)[:coordinates]]
        centred = (part - part.mean(0)).numpy()
        scores = (centred @ np.linalg.svd(centred, full_matrices=False)[2][0]) ** 2
        good -= set(np.argsort(scores)[12 - int(c * 3) :].tolist())
    seen: list = []
    rule = create("dnc", f=3, c=c, iterations=iterations, coordinates=coordinates)
    rule(x, generator=torch.Generator().manual_seed(4), reporter=seen.append)
    assert seen[0]["kept"] == sorted(good)


@pytest.mark.parametrize("kappa", [0.1, 2.0])
def test_foolsgold_s_confidence_stretches_the_whole_logit(kappa):
    x = normal(9, 6, seed=11)
    weights = slow_foolsgold(x.numpy(), kappa)
    assert ((weights > 0) & (weights < 1)).sum() >= 2
    close(create("foolsgold", kappa=kappa)(x), (weights[:, None] * x.numpy()).sum(0) / 9, torch.float64)


@pytest.mark.parametrize(("n", "alike"), [(14, 7), (14, 8), (15, 7), (15, 8)])
def test_flame_s_cluster_is_more_than_half(n, alike):
    x = normal(n, 300, seed=2)
    x[:alike] = 0.1 * x[:alike] + normal(1, 300, seed=3)
    seen: list = []
    create("flame")(x, global_weights=torch.zeros(300, dtype=x.dtype), reporter=seen.append)
    if alike > n / 2:
        assert seen[0]["kept"] == list(range(alike))
    else:  # others have to join them
        assert len(seen[0]["kept"]) > n / 2


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9])
def test_lasa_takes_layers_without_a_value_for_balanced(sparsity):
    layers = {"a": slice(0, 22), "b": slice(22, 25), "c": slice(25, 30)}
    rule = create("lasa", sparsity=sparsity, magnitude=1.5, direction=0.8)
    for seed in range(8):
        x = normal(9, 30, seed=seed) + 0.2
        reference = slow_lasa(x.numpy().copy(), layers.values(), sparsity, 1.5, 0.8)
        close(rule(x, layout=layers), reference, torch.float64)


def test_weights_count_where_the_rule_averages_by_weight():
    x, w, weights = normal(6, 8), normal(1, 8, seed=2)[0], torch.arange(1.0, 7.0, dtype=torch.float64) / 21
    mean = weights @ x
    agree = x.sign().sum(0).abs() >= 2
    torch.testing.assert_close(create("rlr", f=1)(x, weights=weights), torch.where(agree, mean, -mean))
    crfl = create("crfl", rho=100.0, cap=100.0, sigma=0.0)
    torch.testing.assert_close(crfl(x, weights=weights, global_weights=w), mean)
    fldetector = create("fldetector")
    torch.testing.assert_close(fldetector(x, weights=weights, global_weights=w), mean)


def test_norm_clipping_s_noise_is_on_the_result():
    x = normal(4, 20_000)
    noise = create("norm-clipping", noise=0.3)(x) - create("norm-clipping")(x)
    assert float(noise.std()) == pytest.approx(0.3, rel=0.03)
    assert abs(float(noise.mean())) < 0.01


# DeepSight and FLDetector ---------------------------------------------------------------------------------------------


def linear_context(n, classes=4, pixels=9, seed=0):
    """Updates of linear networks, and a context that can run them."""
    d = classes * pixels + classes
    layout = {"weight": slice(0, classes * pixels), "bias": slice(classes * pixels, d)}

    def logits(weights, x):
        return (
            x.flatten(1).to(weights) @ weights[: classes * pixels].view(classes, pixels).T
            + weights[-classes:]
        )

    base = normal(1, d, seed=99)[0] * 0.1
    given = {"layout": layout, "logits": logits, "input_shape": (1, 3, 3), "global_weights": base}
    return normal(n, d, seed=seed) * 0.05 + 0.2, given


def test_deepsight_drops_the_cluster_trained_for_one_class():
    x, given = linear_context(20)
    x[-6:] = normal(6, 40, seed=5) * 0.001  # all they change is what feeds class 2
    x[-6:, 18:27] += 1.0
    x[-6:, 38] += 1.0
    seen: list = []
    result = create("deepsight", samples=50)(x, reporter=seen.append, **given)
    kept = seen[0]["kept"]
    assert set(kept) <= set(range(14))
    assert len(kept) >= 10
    rows = x[kept]
    factors = (x.norm(dim=1).quantile(0.5) / rows.norm(dim=1, keepdim=True)).clamp(max=1)
    torch.testing.assert_close(result, (rows * factors).mean(0))


def slow_deepsight(x, given, samples, seed, size):
    """Rows kept, by sections V-B and V-C of the paper, for `linear_context`."""
    generator = torch.Generator().manual_seed(seed)
    x, base, n = x.numpy(), given["global_weights"].numpy(), len(x)
    weights, biases = x[:, :36].reshape(n, 4, 9), x[:, 36:]
    energy = np.abs(biases) + np.abs(weights).sum(2)
    neups = energy**2 / (energy**2).sum(1, keepdims=True)
    exceedings = (neups > neups.max(1, keepdims=True) * max(0.01, 1 / 4)).sum(1)
    suspicious = exceedings <= np.median(exceedings) / 2

    def softmax(model, images):
        powers = np.exp(images @ model[:36].reshape(4, 9).T + model[36:])
        return powers / powers.sum(1, keepdims=True)

    def apart(values, metric="euclidean"):
        found = HDBSCAN(min_cluster_size=size, min_samples=3, metric=metric, copy=True).fit_predict(values)
        return 1.0 * (found[:, None] != found)

    lengths = np.linalg.norm(biases, axis=1)
    cosines = np.clip(1 - biases @ biases.T / np.outer(lengths, lengths), 0, None)
    ddifs = []
    for _ in range(3):
        images = torch.rand((samples, 1, 3, 3), generator=generator).flatten(1).double().numpy()
        before = softmax(base, images)
        ddifs.append(apart(np.stack([(softmax(base + row, images) / before).mean(0) for row in x])))
    together = (apart(cosines, "precomputed") + apart(neups) + np.mean(ddifs, 0)) / 3
    settings = {"min_cluster_size": size, "min_samples": 3, "metric": "precomputed", "copy": True}
    labels = HDBSCAN(allow_single_cluster=True, **settings).fit_predict(together)
    good = [c for c in set(labels) - {-1} if suspicious[labels == c].mean() < 1 / 3]
    return [i for i in range(n) if labels[i] in good]


def test_deepsight_is_the_papers():
    kinds = set()
    for seed in range(12):
        x, given = linear_context(24, seed=seed)
        # Three kinds of clients, and some trained for one class.
        directions = 0.4 * normal(3, 40, seed=200 + seed)
        x = x * 4 + directions[torch.arange(24) % 3]
        x[-6:, 18:27] += 2.0
        seen: list = []
        generator = torch.Generator().manual_seed(seed)
        rule = create("deepsight", samples=30, min_cluster_size=3)
        rule(x, reporter=seen.append, generator=generator, **given)
        assert seen[0]["kept"] == slow_deepsight(x, given, 30, seed, 3)
        kinds.add(len(seen[0]["kept"]))
    assert len(kinds) > 2


@pytest.mark.parametrize("seed", [1, 9, 13, 14, 26, 28, 32])
def test_deepsight_weighs_how_homogeneous_a_cluster_is(seed):
    """Nine of 24 favour a class, more or less: other thresholds, shares or weights accept other clusters."""
    x, given = linear_context(24, seed=seed)
    x = x * 4 + 0.4 * normal(3, 40, seed=200 + seed)[torch.arange(24) % 3]
    rng = np.random.default_rng(seed)
    for row in rng.choice(24, 9, replace=False):
        k, factor = int(rng.integers(4)), float(rng.uniform(1, 3))
        x[row, 9 * k : 9 * k + 9] *= factor
        x[row, 36 + k] *= factor
    seen: list = []
    rule = create("deepsight", samples=30, min_cluster_size=3)
    rule(x, reporter=seen.append, generator=torch.Generator().manual_seed(seed), **given)
    assert seen[0]["kept"] == slow_deepsight(x, given, 30, seed, 3)


def test_deepsight_finds_the_weight_behind_the_bias_where_the_layer_is_parametrized():
    """As it is while a compressor masks or rounds the layer's weights in fine-tuning."""
    x, given = linear_context(12)
    turned = dict(given)
    d, logits = x.shape[1], given["logits"]
    order = torch.cat([torch.arange(d - 4, d), torch.arange(d - 4)])  # bias first
    turned["layout"] = {"8.bias": slice(0, 4), "8.parametrizations.weight.original": slice(4, d)}
    turned["global_weights"] = given["global_weights"][order]
    turned["logits"] = lambda weights, images: logits(weights[order.argsort()], images)
    expected = create("deepsight", samples=50)(x, **given)
    assert expected.norm() > 0
    torch.testing.assert_close(create("deepsight", samples=50)(x[:, order], **turned), expected[order])


def test_deepsight_takes_no_other_layers_bias_for_the_output_layers():
    x, given = linear_context(12)
    given["layout"] = {"1.bias": slice(0, 4), "5.weight": slice(4, x.shape[1])}  # of a norm
    with pytest.raises(PluginError, match=r"weight and bias as the last two parameters, not '1\.bias' and"):
        create("deepsight", samples=5)(x, **given)


def test_deepsight_needs_the_network():
    with pytest.raises(PluginError, match="needs the network"):
        create("deepsight")(normal(8, 10))
    with pytest.raises(PluginError, match="n >= 5"):
        create("deepsight").check(4, 0)


def test_the_compact_lbfgs_product_is_that_of_the_recursion():
    d, m = 12, 5
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(d, d, generator=generator, dtype=torch.float64)
    hessian = a @ a.T / d + torch.eye(d, dtype=torch.float64)
    moves = [torch.randn(d, generator=generator, dtype=torch.float64) for _ in range(m)]
    changes = [hessian @ s for s in moves]
    b = float(changes[-1] @ moves[-1] / (moves[-1] @ moves[-1])) * torch.eye(d, dtype=torch.float64)
    for s, y in zip(moves, changes, strict=True):  # the BFGS update, from the oldest pair to the newest
        b = b - torch.outer(b @ s, b @ s) / (s @ b @ s) + torch.outer(y, y) / (y @ s)
    v = torch.randn(d, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(hessian_product(moves, changes, v), b @ v, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(hessian_product(moves, changes, moves[-1]), changes[-1], rtol=1e-8, atol=1e-8)


def test_the_gap_statistic_counts_groups():
    rng = np.random.default_rng(0)
    references = rng.uniform(size=(20, 40))
    two = np.clip(np.concatenate([rng.normal(0.1, 0.02, 30), rng.normal(0.9, 0.02, 10)]), 0, 1)
    assert number_of_groups(two, references, 7) == 2
    assert number_of_groups(rng.uniform(size=40), references, 7) == 1


def slow_groups(values, references, most):
    """Tibshirani, Walther and Hastie's rule, with the best of all cuts of the sorted values for k-means."""

    def within(sample, k):
        cuts = combinations(range(1, len(sample)), k - 1)
        return min(sum(p.var() * len(p) for p in np.split(np.sort(sample), cut)) for cut in cuts)

    logs = np.log([[within(sample, k) for sample in references] for k in range(1, most + 1)])
    gap = logs.mean(1) - np.log([within(values, k) for k in range(1, most + 1)])
    s = logs.std(1) * np.sqrt(1 + 1 / len(references))
    return next((k for k in range(1, most) if gap[k - 1] >= gap[k] - s[k]), most)


# Samples that another s would count otherwise: the deviation alone (45, 126), with ddof 1 or with 1 + 1/B not under the
# root (226, 379), or that of k (126, 226, 379); as would the largest gap (45, 126, 379).
@pytest.mark.parametrize("seed", [0, 1, 45, 126, 226, 379])
def test_the_gap_statistic_is_the_papers(seed):
    rng = np.random.default_rng(seed)
    values, references = rng.uniform(size=9), rng.uniform(size=(3, 9))
    assert number_of_groups(values, references, 4) == slow_groups(values, references, 4)


def test_the_gap_statistic_takes_the_first_number_that_will_do():
    rng = np.random.default_rng(5)
    references = rng.uniform(size=(5, 12))
    pairs = np.repeat([0.0, 0.1, 0.9, 1.0], 3) + rng.uniform(0, 1e-3, 12)  # two groups, or four
    found = {most: number_of_groups(pairs, references, most) for most in (2, 3, 4, 5)}
    assert found == {most: slow_groups(pairs, references, most) for most in (2, 3, 4, 5)}


def slow_fldetector(rounds, window, start):
    """Each client's errors over the round's mean one: B by the BFGS recursion, one pair after the other."""
    scores, last, points, means = {}, {}, [], []
    for t, (ids, rows, point) in enumerate(rounds):
        moves = np.diff(points, axis=0)[-window:] if len(points) > 1 else []
        if len(moves) and t >= start:
            changes = np.diff(means, axis=0)[-window:]
            b = np.eye(len(point)) * (changes[-1] @ moves[-1]) / (moves[-1] @ moves[-1])
            for s, y in zip(moves, changes, strict=True):
                b = b - np.outer(b @ s, b @ s) / (s @ b @ s) + np.outer(y, y) / (y @ s)
            guess = b @ (point - points[-1])
            errors = {
                i: np.linalg.norm(last[i] + guess - r) for i, r in zip(ids, rows, strict=True) if i in last
            }
            for i, error in errors.items():
                scores[i] = [*scores.get(i, []), error / np.mean(list(errors.values()))][-window:]
        last = dict(zip(ids, rows, strict=True))
        points.append(point)
        means.append(rows.mean(0))
    return scores


@pytest.mark.parametrize("seed", range(8))
def test_fldetector_finds_the_larger_group_where_scores_form_more_than_one(seed):
    """Algorithm 2, on scores as they stand after `window` rounds."""
    spread = np.random.default_rng(seed).uniform(size=9) ** (1 + seed % 3)
    scores = 0.8 + 0.4 * spread
    drawn = torch.rand((3, 9), generator=torch.Generator().manual_seed(seed)).double().numpy()
    scaled = (scores - scores.min()) / (scores.max() - scores.min())
    malicious: set[int] = set()
    if slow_groups(scaled, drawn, 4) > 1:
        order = np.argsort(scores)
        cut = min(range(1, 9), key=lambda k: scores[order[:k]].var() * k + scores[order[k:]].var() * (9 - k))
        malicious = set(order[cut:].tolist())
    state = {"errors": {i: [score - 0.1, score + 0.1] for i, score in enumerate(scores)}}
    seen: list = []
    create("fldetector", window=2, groups=4, references=3)(
        normal(9, 5),
        state=state,
        global_weights=torch.zeros(5, dtype=torch.float64),
        generator=torch.Generator().manual_seed(seed),
        reporter=seen.append,
    )
    assert seen[0]["kept"] == [i for i in range(9) if i not in malicious]


@pytest.mark.parametrize("start", [0, 5])
def test_fldetector_s_scores_are_the_papers(start):
    window, d, state, seen = 4, 6, {}, []
    rule = create("fldetector", window=window, start=start)
    generator = torch.Generator().manual_seed(2)
    weights, curvature = 3 * torch.ones(d, dtype=torch.float64), torch.linspace(0.5, 1.5, d)
    for round in range(12):
        ids = [i for i in range(5) if (i + round) % 6]  # now and then one is away
        noise = torch.randn(len(ids), d, generator=generator, dtype=torch.float64)
        rows = -0.1 * (curvature * weights + 0.02 * noise)
        before = weights
        weights = weights + rule(rows, state=state, global_weights=weights, client_ids=ids, round=round)
        seen.append((ids, rows.numpy(), before.numpy()))
        expected = slow_fldetector(seen, window, start)
        assert state.get("errors", {}).keys() == expected.keys()
        for client, errors in expected.items():
            assert state["errors"][client] == pytest.approx(errors, rel=1e-6)
    assert max(map(len, expected.values())) == window


def quadratic_rounds(rule, rounds, malicious, seed=0, n=12, d=20):
    """Gradient descent on a quadratic: honest updates follow from the weights, malicious ones are noise."""
    generator = torch.Generator().manual_seed(seed)
    eigenvalues = torch.linspace(0.5, 1.5, d, dtype=torch.float64)
    offsets = 0.1 * torch.randn(n, d, generator=generator, dtype=torch.float64)
    weights = initial = 3 * torch.ones(d, dtype=torch.float64)
    state: dict = {}
    history = []
    for round in range(rounds):
        rows = -0.1 * (eigenvalues * weights + offsets)
        rows[malicious] = torch.randn(len(malicious), d, generator=generator, dtype=torch.float64)
        seen: list = []
        step = rule(
            rows, state=state, global_weights=weights, round=round, rounds=rounds, reporter=seen.append
        )
        weights = weights + step
        history.append((seen[0]["kept"], weights.clone()))
    return initial, history


def test_fldetector_predicts_gradient_descent_on_a_parabola():
    """One pair of differences tells the curvature: only who leaves it is in error, of the four by the mean of all."""
    rule, state = create("fldetector", window=5), {}
    weights, offsets = torch.ones(1, dtype=torch.float64), torch.tensor([[0.3], [-0.2], [0.1], [0.0]])
    for round in range(4):
        rows = -0.1 * (weights + offsets.double())
        rows[3] += 0.5 * (round == 3)
        weights = weights + rule(rows, state=state, global_weights=weights, round=round, rounds=40)
    assert [state["errors"][i][-1] for i in range(4)] == pytest.approx([0, 0, 0, 4], abs=1e-9)


def test_fldetector_finds_whom_it_cannot_predict_and_starts_again():
    initial, history = quadratic_rounds(create("fldetector", window=3), 24, [2, 7])
    found = [i for i, (kept, _) in enumerate(history) if len(kept) < 12]
    assert found
    first = found[0]
    assert all(kept == [i for i in range(12) if i not in (2, 7)] for kept, _ in history[first:])
    torch.testing.assert_close(history[first][1], initial)
    assert history[-1][1].norm() < initial.norm()
    late = quadratic_rounds(create("fldetector", window=3), 2 * first, [2, 7])[1]  # too late to start again
    assert late[first][0] == history[first][0]
    assert (late[first][1] - initial).norm() > 0.1


def test_fldetector_starts_again_in_the_last_round_of_the_first_half_and_no_later():
    rule = create("fldetector", window=2, groups=2, references=5)
    history = quadratic_rounds(rule, 12, [1], n=6)[1]
    first = next(i for i, (kept, _) in enumerate(history) if len(kept) < 6)
    initial, last = quadratic_rounds(rule, 2 * (first + 1), [1], n=6)
    torch.testing.assert_close(last[first][1], initial)
    initial, late = quadratic_rounds(rule, 2 * (first + 1) - 1, [1], n=6)
    assert late[first][0] == last[first][0]
    assert (late[first][1] - initial).norm() > 0.1


# Conditions and state -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "n", "f", "message"),
    [
        ("meamed", {}, 6, 3, "n > 2f"),
        ("bulyan", {}, 10, 2, r"n >= 4f \+ 3"),
        ("mda", {}, 4, 2, "n > 2f"),
        ("mda", {}, 60, 20, "subsets"),
        ("smea", {}, 40, 10, "more than its limit"),
        ("caf", {}, 4, 2, "n > 2f"),
        ("monna", {}, 4, 2, "n > 2f"),
        ("arc", {}, 4, 2, "n > 2f"),
        ("dnc", {"c": 2.0}, 8, 4, "n > c f"),
        ("rlr", {"threshold": 9}, 8, 2, "threshold 9"),
    ],
)
def test_conditions_on_n_and_f(name, parameters, n, f, message):
    with pytest.raises(PluginError, match=message):
        create(name, **parameters).check(n, f)


@pytest.mark.parametrize(
    ("name", "parameters", "fitting"),
    [
        ("multi-krum", {"m": 10}, {"m": 8}),
        ("multi-krum", {"m": 8}, {"m": 8}),  # n - f, which dropping malicious rows leaves as it is
        ("multi-krum", {"m": 3, "neighbours": 9}, {"m": 3, "neighbours": 7}),
        ("krum", {"neighbours": 9}, {"neighbours": 7}),
        ("krum", {"neighbours": 7, "f": 2}, {"neighbours": 7, "f": 0}),
        ("rlr", {"threshold": 10}, {"threshold": 8}),
        ("rlr", {"threshold": 4}, {"threshold": 4}),
    ],
)
def test_counts_of_rows_give_way_where_rows_were_dropped(name, parameters, fitting):
    x = normal(10, 5) + 0.2
    spoilt = x.clone()
    spoilt[[2, 7]] = torch.inf
    left = x[[0, 1, 3, 4, 5, 6, 8, 9]]
    result = create(name, **parameters)(spoilt, f=2)
    torch.testing.assert_close(result, create(name, **fitting)(left, f=0))
    too_many = {k: 99 for k in parameters if k != "f"}
    with pytest.raises(PluginError, match="99"):  # a mistake in the scenario is still one
        create(name, **too_many)(x, f=2)


def test_a_trusted_client_must_take_part():
    with pytest.raises(PluginError, match="trusts client 9, which takes no part"):
        create("monna", trusted=9)(normal(5, 3), f=1)
    x = normal(5, 3)
    own = create("monna", trusted="root")(x, f=2, root_update=lambda: x[3] + 1e-9)
    torch.testing.assert_close(own, create("monna", trusted=3)(x, f=2))


def test_dnc_says_when_nobody_is_left():
    x = normal(4, 200)
    with pytest.raises(PluginError, match="left none"):
        create("dnc", iterations=60, coordinates=1)(x, f=2)


@pytest.mark.parametrize(
    "name", ["caf", "krum", "mda", "smea", "bulyan", "geometric-median", "signguard", "dnc"]
)
def test_equal_rows_are_their_own_aggregate(name):
    row = normal(1, 8)[0]
    torch.testing.assert_close(create(name)(row.expand(11, -1).clone(), f=2), row)


@pytest.mark.parametrize(
    ("name", "parameters"), [("foolsgold", {}), ("fldetector", {}), ("monna", {"trusted": 0})]
)
def test_rules_that_follow_clients_refuse_rows_of_several(name, parameters):
    x = planted(d=40)
    context = default_context(create("bucketing"), x, 4)
    context.global_weights = torch.zeros(40, dtype=torch.float64)
    rows, merged = create("bucketing").transform(x, context)
    with pytest.raises(PluginError, match=f"{name} follows single clients"):
        create(name, **parameters).aggregate(rows, merged)


def test_state_can_be_copied_for_a_probe():
    x = planted(d=40)
    for rule in (
        create("centered-clipping", tau=1.0),
        *map(create, ("foolsgold", "clipped-clustering", "fldetector")),
    ):
        state: dict = {}
        given = {"global_weights": torch.zeros(40, dtype=torch.float64)}
        rule(x, state=state, **given)
        probe = copy.deepcopy(state)
        before = rule(x, state=copy.deepcopy(state), **given)
        rule(5 * x, state=probe, **given)
        torch.testing.assert_close(rule(x, state=state, **given), before)


def test_every_rule_documents_formula_source_and_cost():
    for name, plugin in harness.plugins("aggregator").items():
        text = plugin.__doc__ or ""
        if plugin.__module__.startswith("harness_plugins"):
            assert "Costs O(" in text, name
            assert "(n, d) ->" in text, name
            assert plugin.reference is not None, name
            assert plugin.reference.url, name


@pytest.mark.parametrize("name", ["caf", "geometric-median", "krum", "nnm"])
def test_one_row_beyond_float32_squares_takes_no_rule_down(name):
    """1e30 is finite in float32 and its square is not: such a row was infinitely far from itself, and caf crashed."""
    rows = torch.randn(11, 300, generator=torch.Generator().manual_seed(0)) * 0.01
    honest = rows[1:].mean(0)
    rows[0] = 1e30
    result = harness.create("aggregator", name)(rows, f=2)
    result = result[1:].mean(0) if result.ndim == 2 else result
    assert float((result - honest).norm()) < 0.3  # the honest rows are 0.17 long
