"""Which records are trained on, and who takes part."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.contracts.defence import Sampling
from harness.federation import batches as module
from harness.federation.batches import batches, stacked_batches, steps_per_round
from harness.federation.counts import malicious_clients, malicious_count, participants, tolerated


def test_every_epoch_sees_every_record_once():
    found = list(batches(10, 4, 6, Sampling(), torch.Generator().manual_seed(0)))
    assert [len(b) for b in found] == [4, 4, 2, 4, 4, 2]
    for epoch in (found[:3], found[3:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(10))
    assert not torch.equal(torch.cat(found[:3]), torch.cat(found[3:]))


def test_poisson_inclusion_is_a_coin_per_record_and_step():
    size, rate, steps = 50, 0.2, 4000
    table = torch.zeros(steps, size)
    sampling = Sampling("poisson", rate)
    for step, index in enumerate(batches(size, 10, steps, sampling, torch.Generator().manual_seed(1))):
        table[step, index] = 1
    counts = table.sum(0)
    error = (steps * rate * (1 - rate)) ** 0.5
    assert ((counts - steps * rate).abs() < 5 * error).all()
    # Batch sizes vary as a binomial does: shuffling claimed as Poisson would have none of it.
    assert table.sum(1).var().item() == pytest.approx(size * rate * (1 - rate), rel=0.1)
    pairs = torch.corrcoef(table.T) - torch.eye(size)
    assert pairs.abs().max() < 6 / steps**0.5


def test_poisson_may_draw_an_empty_batch():
    found = list(batches(3, 1, 200, Sampling("poisson", 0.05), torch.Generator().manual_seed(0)))
    assert any(len(b) == 0 for b in found)


@pytest.mark.parametrize("ahead", [2, 3, 20])
def test_coins_thrown_ahead_draw_the_same_batches(monkeypatch, ahead):
    sizes, steps = [30, 7, 3], [7, 7, 4]
    samplings = [Sampling("poisson", rate) for rate in (0.3, 0.2, 0.1)]

    def alone():
        each = zip(sizes, steps, samplings, range(3), strict=True)
        return [b for n, s, how, i in each for b in batches(n, 8, s, how, torch.Generator().manual_seed(i))]

    def stacked():
        generators = [torch.Generator().manual_seed(i) for i in range(3)]
        return [part for step in stacked_batches(sizes, 8, steps, samplings, generators) for part in step]

    expected = alone() + stacked()
    one_by_one = list(module._blocks(5, 30, torch.device("cpu")))
    assert [list(block) for block in one_by_one] == [[0], [1], [2], [3], [4]]
    blocks = module._blocks
    monkeypatch.setattr(module, "AHEAD", 30 * ahead)
    monkeypatch.setattr(
        module, "_blocks", lambda steps, coins, device: blocks(steps, coins, torch.device("cuda"))
    )
    found = alone() + stacked()
    assert any(len(batch) == 0 for batch in found)
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("size", "batch", "epochs", "steps", "expected"),
    [(10, 4, 1, None, 3), (8, 4, 2, None, 4), (10, 4, None, 7, 7), (3, 32, 1, None, 1)],
)
def test_steps(size, batch, epochs, steps, expected):
    assert steps_per_round(size, batch, epochs, steps) == expected


def test_counts_survive_float_rounding():
    assert malicious_count(10, 0.3) == 3
    assert malicious_count(10, 0.7) == 7
    assert malicious_count(10, 0.25) == 2
    assert malicious_count(100, 0.29) == 29
    assert malicious_count(7, 1.0) == 7
    assert tolerated(10, 0.3) == 3
    assert tolerated(10, 0.25) == 3
    assert tolerated(10, 0.0) == 0


def test_participants_are_seeded_and_vary_by_round():
    a = participants(20, 0.25, 30, 0, "train")
    assert a == participants(20, 0.25, 30, 0, "train")
    assert a != participants(20, 0.25, 30, 1, "train")
    assert all(len(set(r)) == 5 and r == sorted(r) for r in a)
    assert len({tuple(r) for r in a}) > 20
    counts = np.bincount(np.concatenate(a), minlength=20)
    assert counts.min() >= 1


def test_malicious_clients_are_seeded():
    assert malicious_clients(20, 0.2, 3) == malicious_clients(20, 0.2, 3)
    assert all(len(set(malicious_clients(20, 0.9, s))) == 18 for s in range(3))
    assert {tuple(malicious_clients(20, 0.2, s)) for s in range(10)} != {tuple(malicious_clients(20, 0.2, 3))}
