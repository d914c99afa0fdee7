"""The catalogue of Byzantine attacks: formulas in float64, a peer library, feasibility and what is learned."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_byzantine import create, normal

import harness
from harness.api import PluginError
from harness_plugins.attacks.byzantine.optimal import line_search

NAMES = (
    "gaussian",
    "inf",
    "zero",
    "optimal-ipm",
    "optimal-alie",
    "min-max",
    "min-sum",
    "fang",
    "mimic",
    "free-rider",
)


def rule(name="trimmed-mean", **parameters):
    return harness.create("aggregator", name, **parameters)


def craft(name, honest, m=4, parameters=None, **context):
    context.setdefault("aggregator", rule(f=m))
    context.setdefault("global_weights", honest.new_zeros(honest.shape[1]))
    return create(name, **(parameters or {}))(honest, m=m, **context)


@pytest.mark.parametrize("name", NAMES)
class TestEvery:
    def test_shape_type_and_input(self, name):
        for dtype in (torch.float32, torch.float64):
            honest = normal(13, 21, dtype=dtype)
            before = honest.clone()
            crafted = craft(name, honest)
            assert crafted.shape == (4, 21)
            assert crafted.dtype == dtype
            assert torch.equal(honest, before)

    def test_the_generator_decides(self, name):
        honest = normal(13, 21)
        first, second = craft(name, honest), craft(name, honest)
        torch.testing.assert_close(first, second, equal_nan=True, rtol=0, atol=0)

    def test_no_attackers(self, name):
        assert craft(name, normal(5, 7), m=0).shape == (0, 7)

    def test_nobody_to_learn_from(self, name):
        with pytest.raises(PluginError, match="h >= 1"):
            craft(name, normal(1, 7)[:0])

    def test_documented(self, name):
        plugin = harness.plugins("attack")[name]
        assert "(h, d) -> (m, d)" in plugin.__doc__
        assert "Costs " in plugin.__doc__
        assert plugin.reference.url


def test_what_each_needs_to_know():
    known = {name: harness.plugins("attack")[name].knowledge for name in NAMES}
    assert known["optimal-ipm"] == known["optimal-alie"] == "omniscient"
    assert known["mimic"] == "updates"
    assert {known[n] for n in ("gaussian", "inf", "zero", "min-max", "min-sum", "fang", "free-rider")} == {
        "own"
    }


def test_gaussian_moments():
    rows = craft("gaussian", normal(3, 20_000), parameters={"mu": 1.0, "sigma": 3.0})
    assert abs(float(rows.mean()) - 1) < 0.05
    assert abs(float(rows.std()) - 3) < 0.05
    assert not torch.equal(rows[0], rows[1])


def test_inf_and_zero():
    assert (craft("inf", normal(3, 5)) == math.inf).all()
    assert craft("inf", normal(3, 5), parameters={"value": "nan"}).isnan().all()
    assert not craft("zero", normal(3, 5)).any()


# Optimal factors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chain", ["mean", "trimmed-mean", "krum", "nnm+median"])
@pytest.mark.parametrize("h", [9, 16])
def test_the_optimal_factor_is_byzfl_s(h, chain):
    byzfl = pytest.importorskip("byzfl")
    m = 3
    honest = normal(h, 40, seed=h, dtype=torch.float32)
    ours, theirs, pre = {
        "mean": (rule("mean"), byzfl.Average(), []),
        "trimmed-mean": (rule(f=m), byzfl.TrMean(m), []),
        "krum": (rule("krum", f=m, neighbours=h + m - m - 1), byzfl.Krum(m), []),
        "nnm+median": (lambda x: rule("median")(rule("nnm", f=m)(x)), byzfl.Median(), [byzfl.NNM(m)]),
    }[chain]
    for name, peer in (
        ("optimal-ipm", byzfl.Optimal_InnerProductManipulation),
        ("optimal-alie", byzfl.Optimal_ALittleIsEnough),
    ):
        expected = peer(theirs, pre, f=m)(honest)
        torch.testing.assert_close(
            craft(name, honest, m=m, aggregator=ours)[0], expected, rtol=1e-4, atol=1e-4
        )


def test_the_line_search_expands_and_shrinks():
    asked: list[float] = []

    def value(x):
        asked.append(x)
        return -abs(x - 37)

    best = line_search(value, 20, 0.0, 10.0, 0.8)
    assert asked[:4] == [0, 10, 30, 70]  # 10, then 20, then 40: too far
    assert len(asked) == 20
    assert abs(best - 37) < 7  # better than 30, and never below it
    assert best > 30


def test_a_linear_rule_is_harmed_most_by_the_largest_factor_tried():
    honest = normal(6, 10) + 1
    crafted = craft("optimal-ipm", honest, m=2, aggregator=rule("mean"))[0]
    factor = -float((crafted / honest.mean(0)).mean())
    assert factor == pytest.approx(sum(10 * 2.0**i for i in range(19)))


def test_without_the_rule_it_says_so():
    with pytest.raises(PluginError, match="knowledge: omniscient"):
        create("optimal-ipm")(normal(5, 3), m=1)


# Min-Max and Min-Sum --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("perturbation", ["std", "unit", "sign"])
@pytest.mark.parametrize(("h", "offset"), [(2, 0.0), (10, 0.0), (60, 0.0), (16, 1e4)])
def test_as_far_as_feasible_and_no_farther(h, offset, perturbation):
    honest = normal(h, 30, seed=h, offset=offset)
    x = honest.numpy()
    pairs = ((x[:, None] - x[None]) ** 2).sum(-1)
    direction = {
        "std": -x.std(0, ddof=1),
        "unit": -x.mean(0) / np.linalg.norm(x.mean(0)),
        "sign": -np.sign(x.mean(0)),
    }[perturbation]
    for name, spread, bound in (
        ("min-max", lambda row: ((x - row) ** 2).sum(1).max(), pairs.max()),
        ("min-sum", lambda row: ((x - row) ** 2).sum(), pairs.sum(1).max()),
    ):
        row = craft(name, honest, parameters={"perturbation": perturbation})[0].numpy()
        gamma = (row - x.mean(0)) @ direction / (direction @ direction)
        np.testing.assert_allclose(row, x.mean(0) + gamma * direction, rtol=1e-9, atol=1e-7)
        assert spread(row) <= bound * (1 + 1e-9)
        assert spread(x.mean(0) + gamma * (1 + 1e-5) * direction) > bound


def test_float32_rows_are_feasible_too():
    for seed in range(20):
        honest = normal(12, 500, seed=seed, dtype=torch.float32)
        row = craft("min-max", honest)[0].double()
        rows = honest.double()
        assert (rows - row).norm(dim=1).max() <= torch.cdist(rows, rows).max() * (1 + 1e-6)


def test_a_single_honest_update_leaves_no_room():
    honest = normal(1, 6)
    torch.testing.assert_close(craft("min-max", honest), honest.expand(4, -1))
    torch.testing.assert_close(craft("min-sum", honest), honest.expand(4, -1))


# Fang -----------------------------------------------------------------------------------------------------------------


def test_fang_against_trimmed_means_lies_just_outside_on_the_wrong_side():
    honest = normal(16, 200, offset=0.5)
    rows = craft("fang", honest, m=5)
    least, most = honest.amin(0), honest.amax(0)
    towards = honest.mean(0) > 0
    below = torch.where(least > 0, least / 2, least * 2)
    above = torch.where(most > 0, most * 2, most / 2)
    assert ((rows <= least) & (rows >= below))[:, towards].all()
    assert ((rows >= most) & (rows <= above))[:, ~towards].all()
    assert not torch.equal(rows[0], rows[1])
    # The trimmed mean moves to the edge of the honest values, against the honest direction.
    aggregate = rule(f=5)(torch.cat([honest, rows]))
    assert ((aggregate - honest.mean(0)) * honest.mean(0).sign() < 0).all()


def test_fang_draws_evenly_up_to_twice_as_far_out_whatever_the_signs():
    honest = normal(16, 200) + torch.linspace(-6, 6, 200, dtype=torch.float64)
    rows = craft("fang", honest, m=64)
    least, most, towards = honest.amin(0), honest.amax(0), honest.mean(0) > 0
    near = torch.where(towards, least, most)
    outwards = torch.where(towards, near > 0, near < 0)  # zero lies on the way out
    far = torch.where(outwards, near / 2, near * 2)
    share = (rows - near) / (far - near)
    assert float(share.min()) >= 0
    assert float(share.max()) <= 1
    assert float((share.mean(0) - 0.5).abs().max()) < 0.2


def test_fang_is_picked_by_krum_and_points_the_wrong_way():
    honest = normal(16, 50, seed=3) * 0.3 + 0.05
    rows = craft("fang", honest, m=4, parameters={"target": "krum"})
    picked = rule("krum", f=4)(torch.cat([honest, rows]))
    torch.testing.assert_close(picked, rows[0])
    assert (rows[0].sign() == -honest.mean(0).sign()).all()
    factor = float(rows[0].abs().max())
    twice = torch.cat([honest, 2 * rows])
    assert factor > 1e-5
    assert not torch.equal(
        rule("krum", f=4)(twice), twice[-1]
    )  # the largest of the halved factors that works


@pytest.mark.parametrize(("h", "m", "offset"), [(10, 3, 0.05), (6, 2, 0.01), (7, 6, 0.0), (8, 1, 30.0)])
def test_fang_with_full_knowledge_halves_the_paper_s_bound(h, m, offset):
    """Theorem 1's, and no further than to the first below 1e-5 where Krum never picks a crafted row."""
    honest = 0.3 * normal(h, 50, seed=h) + offset
    x, s = honest.numpy(), np.sign(honest.numpy().mean(0))

    def scores(rows):
        pairs = ((rows[:, None] - rows[None]) ** 2).sum(-1)
        return [np.sort(np.delete(pairs[i], i))[: h - 2].sum() for i in range(len(rows))]

    bound = math.sqrt(min(scores(x)) / (max(1, h - m - 1) * 50)) + np.linalg.norm(
        x, axis=1
    ).max() / math.sqrt(50)
    tried = bound
    while np.argmin(scores(np.vstack([x, *[-tried * s] * m]))) < h and tried >= 1e-5:
        tried /= 2
    assert (tried < 1e-5) == (offset == 30)
    rows = craft("fang", honest, m=m, parameters={"target": "krum"})
    torch.testing.assert_close(rows, torch.from_numpy(-tried * s).expand(m, -1), rtol=1e-9, atol=0)


def slow_partial_krum(own, least=1e-5):
    """Fang et al.'s search with partial knowledge, in float64: (lambda, crafted rows in the simulation)."""
    c, d = own.shape
    s = np.sign(own.mean(0))

    def scores(rows):
        pairs = ((rows[:, None] - rows[None]) ** 2).sum(-1)
        return [np.sort(np.delete(pairs[i], i))[: max(1, c - 2)].sum() for i in range(len(rows))]

    for crafted in range(1, c + 2):
        bound = min(scores(own)) / (max(1, c - crafted - 1) * d)
        factor = math.sqrt(bound) + np.linalg.norm(own, axis=1).max() / math.sqrt(d)
        while factor >= least:
            rows = np.concatenate([own, np.tile(-factor * s, (crafted, 1))])
            if int(np.argmin(scores(rows))) >= c:
                return factor, crafted
            factor /= 2
    raise AssertionError("nothing is picked")


@pytest.mark.parametrize("c", [2, 3, 4, 6, 10])
@pytest.mark.parametrize("spread", [0.01, 0.1])
def test_fang_with_partial_knowledge_searches_with_as_few_crafted_rows_as_will_do(c, spread):
    own = spread * normal(c, 200, seed=c) + 0.02
    rows = craft("fang", own, m=c, parameters={"target": "krum"}, sees_others=False)
    factor, crafted = slow_partial_krum(own.numpy())
    torch.testing.assert_close(rows, (-factor * own.mean(0).sign()).expand(c, -1))
    assert (crafted > 1) == (spread == 0.01 or c < 4)  # both ways are tried here


def test_fang_alone_simulates_with_two_crafted_rows():
    """Of two rows Krum cannot tell which is nearer to the other; with a copy of the crafted one it can."""
    own = normal(1, 50)
    rows = craft("fang", own, m=1, parameters={"target": "krum"}, sees_others=False)
    torch.testing.assert_close(rows, -own.sign() * own.norm() / math.sqrt(50))


def test_fang_with_partial_knowledge_of_trimmed_means_draws_between_three_and_four_deviations():
    own = normal(4, 2000, seed=5) + 0.2
    own[:, 0] = torch.tensor(
        [1.0, -1.0, 2.0, -2.0], dtype=torch.float64
    )  # no direction: drawn above, as in the full case
    rows = craft("fang", own, m=4, sees_others=False)
    mean, deviation = own.mean(0), own.std(0)
    sign = torch.where(mean > 0, 1.0, -1.0)
    away = (mean - rows) * sign / deviation
    assert float(away.min()) >= 3 - 1e-9
    assert float(away.max()) <= 4 + 1e-9
    assert float(away.mean()) == pytest.approx(3.5, abs=0.02)
    assert not torch.equal(rows[0], rows[1])
    with pytest.raises(PluginError, match="two of them at least"):
        craft("fang", own[:1], m=1, sees_others=False)


# Mimic ----------------------------------------------------------------------------------------------------------------


def test_mimic_copies_the_client_named():
    honest = normal(6, 9)
    crafted = craft("mimic", honest, parameters={"client": 12}, ids=[3, 12, 4, 5, 6, 7])
    torch.testing.assert_close(crafted, honest[1].expand(4, -1))
    with pytest.raises(PluginError, match="client 9 sends no honest update"):
        craft("mimic", honest, parameters={"client": 9})


def test_mimic_learns_the_direction_of_most_variance_and_stays_with_a_client():
    direction = normal(1, 40, seed=7)[0]
    direction = direction / direction.norm()
    state: dict = {}
    positions = torch.linspace(-4, 4, 8, dtype=torch.float64)
    chosen = []
    for round in range(14):
        honest = 0.05 * normal(8, 40, seed=round) + positions[:, None] * direction
        order = torch.randperm(8, generator=torch.Generator().manual_seed(round))
        ids = (order + 20).tolist()
        row = craft("mimic", honest[order], state=state, ids=ids, round=round)[0]
        chosen.append(int((honest - row).norm(dim=1).argmin()))
    assert abs(float(state["direction"] @ direction)) > 0.99
    assert chosen[-1] in (0, 7)  # an end of the line
    assert len(set(chosen[8:])) == 1
    honest = positions[1:7, None] * direction  # that client is gone: the farthest one left
    row = craft("mimic", honest, state=state, ids=[21, 22, 23, 24, 25, 26])[0]
    assert int((honest - row).norm(dim=1).argmin()) == (5 if chosen[-1] == 7 else 0)


def test_mimic_is_appendix_b_s():
    """mu and z by their weighted steps, the client of each warm-up round, and who has the largest sum after it."""
    state, totals, mu, z = {}, {}, 0.0, None
    for t in range(7):
        ids = [i for i in range(6) if (i + t) % 5]  # now and then one is away
        honest = normal(len(ids), 12, seed=t) + 0.3
        x = honest.numpy()
        generator = torch.Generator().manual_seed(t)
        if t < 4:
            if z is None:
                z = torch.randn(12, generator=generator, dtype=torch.float32).double().numpy()
                z = z / np.linalg.norm(z)
            mu = t / (t + 1) * mu + 1 / (t + 1) * x.mean(0)
            step = sum((row - mu) * ((row - mu) @ z) for row in x)
            z = t / (t + 1) * z + 1 / (t + 1) * step / np.linalg.norm(step)
            z = z / np.linalg.norm(z)
            for i, row in zip(ids, x, strict=True):
                totals[i] = totals.get(i, 0.0) + row @ z
            best = int(np.argmax(x @ z))
        else:
            best = max(range(len(ids)), key=lambda k: totals[ids[k]])
        generator = torch.Generator().manual_seed(t)
        row = craft(
            "mimic", honest, parameters={"warmup": 4}, state=state, ids=ids, round=t, generator=generator
        )[0]
        assert torch.equal(row, honest[best]), t
        np.testing.assert_allclose(state["mean"].numpy(), mu, rtol=1e-10)
        np.testing.assert_allclose(state["direction"].numpy(), z, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_mimic_does_not_depend_on_the_scale_of_the_updates(scale):
    state, scaled = {}, {}
    for round in range(6):
        honest = normal(8, 40, seed=round) * torch.linspace(3, 0.1, 40, dtype=torch.float64)
        row = craft("mimic", honest, state=state, round=round)[0]
        torch.testing.assert_close(craft("mimic", scale * honest, state=scaled, round=round)[0], scale * row)
    torch.testing.assert_close(scaled["direction"], state["direction"])


@pytest.mark.parametrize("scale", [2.0**-70, 2.0**-40, 2.0**36, 2.0**70])
def test_mimic_learns_from_updates_whose_products_float32_cannot_hold(scale):
    state, scaled = {}, {}
    for round in range(6):
        honest = (normal(8, 40, seed=round) * torch.linspace(3, 0.1, 40, dtype=torch.float64)).float()
        row = craft("mimic", honest, state=state, round=round)[0]
        assert torch.equal(craft("mimic", scale * honest, state=scaled, round=round)[0], scale * row)
    torch.testing.assert_close(scaled["direction"], state["direction"])


# Free-riders ----------------------------------------------------------------------------------------------------------


def test_stale_free_riders_send_what_the_model_did_last():
    honest, moved = normal(4, 6), normal(1, 6, seed=2)[0]
    torch.testing.assert_close(craft("free-rider", honest, moved=moved, round=3), moved.expand(4, -1))
    assert not craft("free-rider", honest, round=0).any()


def test_noisy_stale_free_riders_add_noise_that_stays():
    honest, moved = normal(4, 20_000), normal(1, 20_000, seed=2)[0]
    parameters = {"mode": "noisy-stale", "sigma": 0.1}
    for round in (0, 9):
        rows = craft("free-rider", honest, parameters=parameters, moved=moved, round=round) - moved
        assert float(rows.std()) == pytest.approx(0.1, rel=0.05)
        assert not torch.equal(rows[0], rows[1])


def test_disguised_free_riders_send_fading_noise_alone():
    """Whatever the model did: they return it as they received it, plus noise."""
    honest = normal(4, 20_000)
    for round, gamma, deviation in ((0, 1.0, 0.1), (9, 1.0, 0.01), (0, 0.5, 0.1), (8, 0.5, 0.1 / 3)):
        parameters = {"mode": "disguised", "sigma": 0.1, "gamma": gamma}
        moved = torch.ones(20_000, dtype=torch.float64)
        rows = craft("free-rider", honest, parameters=parameters, round=round, moved=moved)
        assert float(rows.std()) == pytest.approx(deviation, rel=0.05)
        assert abs(float(rows.mean())) < 0.01 * deviation
        assert not torch.equal(rows[0], rows[1])


def test_random_free_riders_are_uniform():
    honest = normal(4, 20_000)
    rows = craft("free-rider", honest, parameters={"mode": "random", "radius": 0.5})
    assert float(rows.abs().max()) <= 0.5
    assert float(rows.std()) == pytest.approx(1 / math.sqrt(12), rel=0.05)
    assert not torch.equal(rows[0], rows[1])


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gaussian", {"sigma": -1.0}),
        ("inf", {"value": "huge"}),
        ("optimal-ipm", {"shrink": 0.4}),
        ("min-max", {"perturbation": "up"}),
        ("fang", {"target": "median"}),
        ("mimic", {"warmup": 0}),
        ("free-rider", {"mode": "lazy"}),
    ],
)
def test_bad_parameters_are_named(name, parameters):
    with pytest.raises(PluginError, match=next(iter(parameters))):
        create(name, **parameters)
