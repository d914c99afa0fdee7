"""Byzantine attacks against closed forms, float64 references and a peer library."""

from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import harness
from harness.api import PluginError

NAMES = ("sign-flip", "ipm", "alie")


def normal(h, d, seed=0, dtype=torch.float64, offset=0.0):
    rows = torch.randn(h, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (rows + offset).to(dtype)


def create(name, **parameters):
    return harness.create("attack", name, **parameters)


def slow_alie(honest, z):
    columns = []
    for values in honest.T:
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
        columns.append(mean + z * variance**0.5)
    return np.array(columns)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("h", "offset"), [(5, 0.0), (60, 0.0), (60, 1e4)])
def test_formulas(h, offset, dtype):
    honest = normal(h, 11, dtype=dtype, offset=offset)
    exact = honest.double().numpy()
    expected = {
        "sign-flip": (create("sign-flip"), -exact.mean(0)),
        "ipm": (create("ipm", tau=0.7), -0.7 * exact.mean(0)),
        "alie": (create("alie", z=1.5), slow_alie(exact, 1.5)),
    }
    for name, (attack, row) in expected.items():
        crafted = attack(honest, m=3)
        assert crafted.shape == (3, 11)
        assert crafted.dtype == dtype
        np.testing.assert_allclose(
            crafted.double().numpy(),
            np.tile(row, (3, 1)),
            rtol=3e-7 if dtype == torch.float32 else 1e-11,
            atol=1e-7 if dtype == torch.float32 else 1e-12,
            err_msg=name,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("h", [4, 19])
def test_same_numbers_as_byzfl(h, dtype):
    byzfl = pytest.importorskip("byzfl")
    honest = normal(h, 9, seed=h, dtype=dtype)
    pairs = [
        (create("sign-flip"), byzfl.SignFlipping()),
        (create("ipm"), byzfl.InnerProductManipulation(tau=2.0)),
        (create("ipm", tau=0.3), byzfl.InnerProductManipulation(tau=0.3)),
        (create("alie", z=1.5), byzfl.ALittleIsEnough(tau=1.5)),
    ]
    for ours, theirs in pairs:
        crafted = ours(honest, m=2)
        for row in crafted:
            np.testing.assert_allclose(row.numpy(), theirs(honest.numpy()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [10, 25])
def test_the_servers_half_of_a_round_under_attack_is_byzfls(n):
    """ByzFL's clients send gradients, ours the steps against them, so an attack on the one is mirrored on the other."""
    byzfl = pytest.importorskip("byzfl")
    f, lr = n // 5, 0.05
    gradients = normal(n - f, 5000, seed=n, offset=0.1)
    sent = np.vstack([gradients.numpy(), *[byzfl.ALittleIsEnough(tau=1.5)(gradients.numpy())[None]] * f])
    theirs = byzfl.TrMean(f=f)(byzfl.NNM(f=f)(sent))
    steps = -lr * gradients
    rows = torch.cat([steps, create("alie", z=-1.5)(steps, m=f)])
    mixed = harness.create("aggregator", "nnm", f=f)(rows)
    ours = harness.create("aggregator", "trimmed-mean", f=f)(mixed)
    np.testing.assert_allclose(ours.numpy(), -lr * theirs, rtol=1e-9, atol=1e-12)


class TestALIE:
    @pytest.mark.parametrize(
        ("n", "m", "share"),
        [(50, 24, 24 / 26), (50, 10, 24 / 40), (10, 5, 4 / 5), (11, 3, 5 / 8), (5, 1, 2 / 4), (4, 1, 1 / 3)],
    )
    def test_z_of_the_paper(self, n, m, share):
        assert create("alie").quantile(n, m) == pytest.approx(NormalDist().inv_cdf(share), abs=1e-12)

    def test_worked_example_of_the_paper(self):
        # 50 workers, 24 of them malicious: s = 2, and 24/26 of the normal distribution lie below z = 1.43.
        assert create("alie").quantile(50, 24) == pytest.approx(1.43, abs=0.005)

    def test_z_left_out_uses_the_clients_of_the_round(self):
        honest = normal(6, 7)
        z = create("alie").quantile(11, 5)
        np.testing.assert_allclose(create("alie")(honest, m=5)[0].numpy(), slow_alie(honest.numpy(), z))
        # Known updates are fewer than the clients in the round.
        z = create("alie").quantile(40, 5)
        np.testing.assert_allclose(create("alie")(honest, m=5, n=40)[0].numpy(), slow_alie(honest.numpy(), z))

    @pytest.mark.parametrize(("n", "m"), [(10, 6), (10, 9), (10, 10), (2, 1)])
    def test_no_quantile(self, n, m):
        with pytest.raises(PluginError, match=f"m = {m} malicious clients of n = {n}"):
            create("alie")(normal(3, 2), m=m, n=n)
        assert create("alie", z=0.5)(normal(3, 2), m=m, n=n).isfinite().all()

    def test_one_honest_update_has_no_spread(self):
        honest = normal(1, 4)
        assert torch.equal(create("alie", z=2.0)(honest, m=2), honest.repeat(2, 1))

    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 1000), h=st.integers(2, 20), z=st.floats(-3, 3))
    def test_lies_z_deviations_from_the_mean(self, seed, h, z):
        honest = normal(h, 5, seed)
        shift = create("alie", z=z)(honest, m=1)[0] - honest.mean(0)
        torch.testing.assert_close(shift, z * honest.std(0), rtol=1e-9, atol=1e-12)


def test_ipm_turns_the_mean_where_tau_is_large_enough():
    honest, m = normal(8, 20, seed=5, offset=1.0), 2  # the threshold is tau = 8 / 2
    for tau, sign in ((3.9, 1), (4.1, -1)):
        everyone = torch.cat([honest, create("ipm", tau=tau)(honest, m=m)])
        assert torch.sign(everyone.mean(0) @ honest.mean(0)) == sign


@pytest.mark.parametrize("name", NAMES)
class TestEveryAttack:
    def test_never_mutates_and_rows_are_independent(self, name):
        honest = normal(7, 5)
        before = honest.clone()
        crafted = create(name)(honest, m=3)
        crafted[0].zero_()
        assert torch.equal(honest, before)
        assert torch.equal(crafted[1], crafted[2])
        assert crafted[1].any()

    def test_many_blocks_are_like_one(self, name, monkeypatch):
        from harness_plugins import columns

        honest = normal(7, 40)
        whole = create(name)(honest, m=2)
        monkeypatch.setattr(columns, "CPU_BLOCK", 7 * 9)
        torch.testing.assert_close(create(name)(honest, m=2), whole)

    def test_order_of_clients_does_not_matter(self, name):
        honest = normal(9, 5)
        torch.testing.assert_close(create(name)(honest.flip(0), m=2), create(name)(honest, m=2))

    def test_no_attackers(self, name):
        assert create(name)(normal(4, 5), m=0).shape == (0, 5)

    @pytest.mark.parametrize("bad", [torch.ones(0, 3), torch.ones(3), torch.ones(2, 3, dtype=torch.int64)])
    def test_bad_updates(self, name, bad):
        with pytest.raises(PluginError, match=name):
            create(name)(bad, m=1)

    def test_bad_m(self, name):
        with pytest.raises(PluginError, match="-1"):
            create(name)(normal(4, 5), m=-1, n=4)

    def test_declared(self, name):
        attack = create(name)
        assert (attack.family, attack.phase) == ("byzantine", "training")
        assert attack.reference.url.startswith("https://")


@pytest.mark.parametrize(
    ("name", "bad"), [("ipm", {"tau": 0.0}), ("ipm", {"tau": float("inf")}), ("alie", {"z": float("nan")})]
)
def test_bad_parameters(name, bad):
    with pytest.raises(PluginError, match=next(iter(bad))):
        create(name, **bad)


def test_a_robust_rule_withstands_what_moves_the_mean():
    honest = normal(16, 30, seed=2, offset=1.0)
    everyone = torch.cat([honest, create("ipm", tau=50.0)(honest, m=4)])
    truth = honest.mean(0)
    mean = harness.create("aggregator", "mean")(everyone)
    robust = harness.create("aggregator", "trimmed-mean", f=4)(everyone)
    assert (mean - truth).norm() > 10 * (robust - truth).norm()
