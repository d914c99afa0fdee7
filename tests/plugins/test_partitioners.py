"""Partitioners: every record on exactly one client, seeded, and distributed as their papers say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import harness
from harness import PluginError

NAMES = ("iid", "dirichlet", "shards", "quantity", "by-group")
quick = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def deal(name, labels, clients, seed=0, groups=None, **parameters):
    plugin = harness.create("partitioner", name, **parameters)
    return plugin.partition(labels, groups, clients, np.random.default_rng(seed))


def check_partition(parts, n, clients):
    assert len(parts) == clients
    assert all(len(part) > 0 for part in parts)
    assert all(np.issubdtype(part.dtype, np.integer) for part in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))


@pytest.mark.parametrize("name", NAMES)
@quick
@given(st.integers(1, 8), st.integers(2, 12), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_every_record_on_exactly_one_client(name, clients, per_client, classes, seed):
    rng = np.random.default_rng(seed)
    n = clients * per_client
    labels = rng.integers(0, classes, n)
    groups = np.concatenate([np.arange(clients), rng.integers(0, 2 * clients, n - clients)])
    before = labels.copy(), groups.copy()
    parameters = {"alpha": 5.0} if name in ("dirichlet", "quantity") else {}
    parts = deal(name, labels, clients, seed, groups, **parameters)
    check_partition(parts, n, clients)
    np.testing.assert_array_equal(labels, before[0])
    np.testing.assert_array_equal(groups, before[1])


@pytest.mark.parametrize("name", NAMES)
def test_seeded(name):
    labels = np.repeat(np.arange(4), 50)
    groups = np.arange(200) // 2
    first, again, other = (deal(name, labels, 5, seed, groups) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_too_few_records_or_clients(name):
    labels, groups = np.zeros(3, dtype=np.int64), np.arange(3)
    with pytest.raises(PluginError, match="3 records cannot"):
        deal(name, labels, 4, groups=groups)
    with pytest.raises(PluginError, match="at least 1"):
        deal(name, labels, 0, groups=groups)


def test_iid_sizes_are_equal():
    sizes = [len(part) for part in deal("iid", np.zeros(103, dtype=np.int64), 10)]
    assert sorted(sizes) == [10] * 7 + [11] * 3


def test_dirichlet_proportions_have_the_distributions_moments():
    # One class: a share is Beta(alpha, (k - 1) alpha), of mean 1/k and variance (k-1) / (k^2 (k alpha + 1)).
    k, alpha, n = 4, 0.8, 1000
    labels = np.zeros(n, dtype=np.int64)
    rng = np.random.default_rng(0)
    plugin = harness.create("partitioner", "dirichlet", alpha=alpha, min_size=1)
    shares = np.array([[len(p) / n for p in plugin.partition(labels, None, k, rng)] for _ in range(1500)])
    np.testing.assert_allclose(shares.mean(0), 1 / k, atol=0.02)
    np.testing.assert_allclose(shares.var(0), (k - 1) / (k**2 * (k * alpha + 1)), rtol=0.12)


def test_dirichlet_classes_are_drawn_independently():
    labels = np.repeat([0, 1], 500)
    rng = np.random.default_rng(1)
    plugin = harness.create("partitioner", "dirichlet", alpha=1.0)
    firsts = [plugin.partition(labels, None, 3, rng)[0] for _ in range(800)]
    counts = np.array([[(part < 500).sum(), (part >= 500).sum()] for part in firsts])
    assert counts.std(0).min() > 80
    assert abs(np.corrcoef(counts.T)[0, 1]) < 0.12


def test_dirichlet_alpha_sets_the_skew():
    labels = np.repeat(np.arange(10), 200)

    def skew(alpha):
        parts = deal("dirichlet", labels, 10, 0, alpha=alpha)
        tables = np.array([np.bincount(labels[p], minlength=10) / len(p) for p in parts])
        return np.abs(tables - 0.1).sum(1).mean()

    assert skew(1e5) < 0.05
    assert skew(0.1) > 3 * skew(10.0)


@pytest.mark.parametrize("name", ["dirichlet", "quantity"])
def test_min_size_holds_or_is_an_error(name):
    labels = np.repeat(np.arange(3), 40)
    for seed in range(20):
        assert min(len(p) for p in deal(name, labels, 4, seed, alpha=0.5, min_size=12)) >= 12
    with pytest.raises(PluginError, match="larger alpha"):
        deal(name, np.zeros(40, dtype=np.int64), 20, alpha=0.001, max_draws=20)
    with pytest.raises(PluginError, match="5 clients 30 records"):
        deal(name, labels, 5, min_size=30)


def test_shards_hold_few_classes():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 60))
    parts = deal("shards", labels, 20, 1, shards_per_client=2)
    assert {len(p) for p in parts} == {30}
    # 40 shards of 15, and 15 divides 60: each shard is of one class.
    for part in parts:
        assert all(count % 15 == 0 for count in np.bincount(labels[part]))
        assert len(np.unique(labels[part])) <= 2
    assert len({tuple(np.unique(labels[p])) for p in parts}) > 5
    with pytest.raises(PluginError, match="shards"):
        deal("shards", labels, 20, shards_per_client=31)


def test_quantity_skews_sizes_not_labels():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1], 5000))
    parts = deal("quantity", labels, 10, 2, alpha=0.5)
    sizes = np.array([len(p) for p in parts])
    assert sizes.max() > 5 * sizes.min()
    for part in parts:
        if len(part) > 200:
            assert abs(labels[part].mean() - 0.5) < 4 * 0.5 / np.sqrt(len(part))
    even = [len(p) for p in deal("quantity", labels, 10, 2, alpha=1e5)]
    assert max(even) - min(even) < 100


@quick
@given(st.integers(1, 6), st.lists(st.integers(1, 30), min_size=6, max_size=40), st.integers(0, 2**32 - 1))
def test_by_group_keeps_groups_whole_and_balanced(clients, sizes, seed):
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(1000 + 7 * np.arange(len(sizes)), sizes))
    parts = deal("by-group", np.zeros(len(groups), dtype=np.int64), clients, seed, groups)
    check_partition(parts, len(groups), clients)
    assert sum(len(np.unique(groups[p])) for p in parts) == len(sizes)
    # List scheduling: the fullest client was the emptiest when it got its last group.
    largest = max(sizes)
    loads = [len(p) for p in parts]
    assert max(loads) <= len(groups) / clients + (1 - 1 / clients) * largest + 1e-9
    assert max(loads) - min(loads) <= largest


def test_by_group_takes_the_largest_first():
    # 5 4 3 3 3 on two clients: largest first gives 5+3 and 4+3+3, the other way round can give 11 and 7.
    groups = np.repeat(np.arange(5), [3, 5, 3, 4, 3])
    for seed in range(10):
        parts = deal("by-group", np.zeros(18, dtype=np.int64), 2, seed, groups)
        assert sorted(len(p) for p in parts) == [8, 10]


def test_by_group_needs_groups():
    labels = np.zeros(6, dtype=np.int64)
    with pytest.raises(PluginError, match="needs a dataset with groups"):
        deal("by-group", labels, 2)
    with pytest.raises(PluginError, match="2 groups cannot be dealt to 3"):
        deal("by-group", labels, 3, groups=np.array([0, 0, 0, 1, 1, 1]))
    with pytest.raises(PluginError, match="groups must be"):
        deal("by-group", labels, 2, groups=np.arange(5))
