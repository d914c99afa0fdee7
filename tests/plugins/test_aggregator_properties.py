"""Properties that every registered aggregation rule has, or is listed here as lacking, with the reason."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_aggregators import create, normal

import harness
from harness.api import PluginError

NAMES = sorted(
    n for n, p in harness.plugins("aggregator").items() if p.__module__.startswith("harness_plugins")
)
PARAMETERS = {
    "deepsight": {"samples": 8},
    "flame": {"noise": 0.0},
    "crfl": {"sigma": 0.0},
    "centered-clipping": {"tau": 3.0},
    "clipping": {"tau": 2.0},
    "monna": {"trusted": 10},
    "flower": {"strategy": "FedMedian"},
}
LAYOUT = {
    "hidden": slice(0, 10),
    "weight": slice(10, 22),
    "bias": slice(22, 26),
}  # an output layer of 4 classes
D = 26

# bucketing draws an order: another one is another draw. mda: several subsets share the least diameter as a rule, and
# the first in the rows' order is taken, as in ByzFL. deepsight clusters distances of which many are equal.
ORDER_MATTERS = {"bucketing", "mda", "deepsight"}
MOVES_WITH_A_SHIFT = {  # agg(x + c) = agg(x) + c
    "mean", "median", "trimmed-mean", "meamed", "geometric-median", "krum", "multi-krum", "bulyan", "mda", "smea",
    "caf", "monna", "dnc", "nnm", "auror", "flower",
}  # fmt: skip
ROBUST = MOVES_WITH_A_SHIFT - {"mean", "nnm", "auror"} | {
    "signguard", "clipped-clustering", "fltrust", "flame", "norm-clipping", "lasa", "centered-clipping",
}  # fmt: skip
# Rules against backdoors and sybils: outliers of any size are not what they are for.
NOT_FOR_OUTLIERS = {"mean", "rlr", "foolsgold", "crfl", "deepsight", "fldetector", "auror"}


def rule(name, f=None):
    parameters = dict(PARAMETERS.get(name, {}))
    return create(name, **parameters)


def context(x, seed=0):
    """Everything a rule may ask for."""

    def logits(weights, images):
        return images.flatten(1).to(weights) @ weights[10:22].view(4, 3).T + weights[22:]

    n = len(x)
    return {
        "client_ids": list(range(n)),
        "weights": torch.full((n,), 1 / n, dtype=x.dtype),
        "layout": LAYOUT,
        "global_weights": normal(1, D, seed=77, dtype=x.dtype)[0],
        "round": 1,
        "rounds": 9,
        "input_shape": (1, 1, 3),
        "logits": logits,
        "root_update": lambda: torch.full((D,), 0.5, dtype=x.dtype),
        "generator": torch.Generator().manual_seed(seed),
    }


def test_every_rule_is_sorted_into_the_tables():
    pre = {n for n in NAMES if harness.plugins("aggregator")[n].pre}
    assert set(NAMES) == ROBUST | NOT_FOR_OUTLIERS | pre | ({"majority-vote"} & set(NAMES))


@pytest.mark.parametrize("name", NAMES)
class TestEvery:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_type_input_and_repetition(self, name, dtype):
        x = normal(15, D, dtype=dtype) + 0.5
        before, given_ = x.clone(), context(x)
        kept = {k: copy.deepcopy(v) for k, v in given_.items() if not callable(v) and k != "generator"}
        first = rule(name)(x, f=3, **given_)
        assert first.dtype == dtype
        assert first.shape[-1] == D
        assert first.isfinite().all()
        assert torch.equal(x, before)
        for key, value in kept.items():
            same = torch.equal(given_[key], value) if torch.is_tensor(value) else given_[key] == value
            assert same, key
        torch.testing.assert_close(rule(name)(x, f=3, **context(x)), first, rtol=0, atol=0)

    @settings(max_examples=8, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 1000))
    def test_the_order_of_clients_does_not_matter(self, name, seed):
        if name in ORDER_MATTERS:
            return
        x = normal(15, D, seed=seed) + 0.5
        order = torch.randperm(15, generator=torch.Generator().manual_seed(seed))
        straight, shuffled = context(x), context(x[order])
        shuffled["client_ids"] = order.tolist()
        shuffled["weights"] = straight["weights"][order]
        base, other = rule(name)(x, f=3, **straight), rule(name)(x[order], f=3, **shuffled)
        torch.testing.assert_close(other, base[order] if base.ndim == 2 else base, rtol=1e-8, atol=1e-8)

    @settings(max_examples=8, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 1000))
    def test_a_shift_of_all_updates_shifts_the_aggregate(self, name, seed):
        if name not in MOVES_WITH_A_SHIFT:
            return
        x, shift = normal(15, D, seed=seed), 100 * normal(1, D, seed=seed + 1)[0]
        base = rule(name)(x, f=3, **context(x))
        torch.testing.assert_close(
            rule(name)(x + shift, f=3, **context(x)), base + shift, rtol=1e-8, atol=1e-6
        )

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    def test_rows_that_are_not_finite_count_as_absent(self, name, bad):
        x = normal(19, D, seed=5) + 0.5  # client 10, whom monna trusts, stays
        spoilt = x.clone()
        spoilt[2, 3] = spoilt[11] = bad
        left = [i for i in range(19) if i not in (2, 11)]
        given_ = context(x[left])
        given_["client_ids"] = left
        expected = rule(name)(x[left], f=1, **given_)
        torch.testing.assert_close(rule(name)(spoilt, f=3, **context(x)), expected)
        with pytest.raises(PluginError, match="none of the 19 updates is finite"):
            rule(name)(torch.full_like(x, bad), f=3, **context(x))

    @pytest.mark.parametrize(("n", "f"), [(1, 0), (2, 0), (3, 1), (5, 2)])
    def test_the_smallest_federations_work_or_say_why_not(self, name, n, f):
        x = normal(n, D) + 0.5
        try:
            result = rule(name)(x, f=f, **context(x))
        except PluginError as error:
            assert name in str(error)  # noqa: PT017  either outcome is right
            return
        assert result.isfinite().all()

    @pytest.mark.parametrize("kind", ["alike", "scattered"])
    def test_breakdown(self, name, kind):
        """f rows at 1e6 leave robust rules within the honest rows' scale, and carry the mean away."""
        n, f = 23, 4
        x = normal(n, D, seed=8) + 0.5
        noise = normal(f, D, seed=9)
        x[:f] = 1e6 + noise if kind == "alike" else 1e6 * noise
        honest = x[f:].mean(0)
        apart = float((rule(name)(x, f=f, **context(x)) - honest).norm(dim=-1).min())
        if (name, kind) == ("dnc", "scattered"):
            return  # a single direction of most variance cannot hold four outliers in four directions
        if name in ROBUST:
            assert apart < 3 * D**0.5
        elif name == "mean":
            assert apart > 1e5
