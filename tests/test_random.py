"""Counter-based randomness: the published generator, uniform, independent of device and of vmap."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from harness.random import (
    bits,
    derive,
    global_generators,
    make_key,
    numpy_generator,
    secret_generator,
    split,
    torch_generator,
    uniform,
)

MASK = (1 << 64) - 1
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def splitmix64(seed: int, count: int) -> list[int]:
    """The published algorithm, in Python's own integers."""
    out = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & MASK
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        out.append(z ^ (z >> 31))
    return out


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**62 + 7])
def test_bits_are_splitmix64(seed):
    ours = [v & MASK for v in bits(torch.tensor(seed), (9,)).tolist()]
    assert ours == splitmix64(seed, 9)


def test_uniform_is_uniform_and_in_range():
    values = uniform(make_key(3), (200_000,), -2.0, 2.0)
    assert values.min() >= -2
    assert values.max() < 2
    counts = np.histogram(values.numpy(), bins=20, range=(-2, 2))[0]
    chi_square = ((counts - 10_000) ** 2 / 10_000).sum()
    assert chi_square < 43.8  # the 99.9 % point with 19 degrees of freedom


def test_split_keys_are_distinct_and_uncorrelated():
    keys = split(make_key(0), torch.arange(1000))
    assert len(set(keys.tolist())) == 1000
    streams = torch.stack([uniform(k, (500,)) for k in keys[:50]])
    correlation = torch.corrcoef(streams) - torch.eye(50)
    assert correlation.abs().max() < 0.25  # 5.6 standard errors


def test_splitting_by_an_int_and_by_a_tensor_agree():
    key = make_key(5)
    for number in (0, 1, 77, 2**40):
        assert split(key, number) == split(key, torch.tensor(number))


def test_the_same_numbers_under_vmap():
    keys = split(make_key(1), torch.arange(4))
    together = torch.vmap(lambda k: uniform(k, (3, 2)))(keys)
    assert torch.equal(together, torch.stack([uniform(k, (3, 2)) for k in keys]))


def test_derive_tells_types_and_positions_apart():
    assert derive(1, 2) != derive(12)
    assert derive("1") != derive(1)
    assert derive(1, 2) != derive(2, 1)
    assert 0 <= derive("a") < 2**63
    assert derive("a") == derive("a")


def test_generators_do_not_touch_the_global_state():
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    torch.rand(3, generator=torch_generator(0, "x"))
    numpy_generator(0, "x").random(3)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


class TestTorchGenerators:
    @pytest.mark.parametrize("make", [torch_generator, secret_generator])
    def test_every_word_of_the_twister_is_hashed_from_the_parts(self, make):
        words = np.frombuffer(hashlib.shake_256(b"str:noise\0str:secret").digest(4 * 624), np.uint32)
        published = np.random.MT19937()
        published.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
        expected = published.random_raw(2000) & (2**24 - 1)
        drawn = torch.rand(2000, generator=make("noise", "secret")).double() * 2**24
        assert drawn.long().tolist() == expected.tolist()

    @pytest.mark.parametrize("make", [torch_generator, secret_generator])
    def test_they_are_none_of_those_that_a_seed_gives(self, make):
        own = torch.randn(50, generator=make("noise", "secret"))
        low = derive("noise", "secret") % 2**32
        for seed in (0, low, derive("noise", "secret")):
            assert not torch.equal(own, torch.randn(50, generator=torch.Generator().manual_seed(seed)))

    @pytest.mark.parametrize("make", [torch_generator, secret_generator])
    @pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
    def test_streams_repeat_and_differ(self, device, make):
        def drawn(*parts):
            return torch.randn(100_000, generator=make(*parts, device=device), device=device)

        one, other = drawn("secret", 0), drawn("secret", 1)
        assert torch.equal(one, drawn("secret", 0))
        assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 0.02
        assert abs(one.mean()) < 0.02
        assert abs(one.std() - 1) < 0.02


def test_global_generators_are_seeded_whole_and_come_back():
    seed = derive("a stage")
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    drawn = []
    for other in (seed, seed, seed ^ 1 << 40):  # the last shares its lower 32 bits
        with global_generators(other, "cpu"):
            drawn.append((torch.rand(3).tolist(), np.random.random(3).tolist()))
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[2][0]
    assert drawn[0][1] != drawn[2][1]
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
