"""Server optimisers against Algorithm 2 of Reddi et al. 2021, written out in NumPy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.federation.server import Server
from harness.scenario import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi


def reference(name: str, s, weights: np.ndarray, updates: list[np.ndarray]) -> np.ndarray:
    x, m = weights.copy(), np.zeros_like(weights)
    v = np.full_like(weights, getattr(s, "tau", 0) ** 2)
    for delta in updates:
        if name == "fedavg":
            x = x + s.lr * delta
        elif name == "fedavgm":
            m = s.momentum * m + delta
            x = x + s.lr * m
        else:
            m = s.beta1 * m + (1 - s.beta1) * delta
            if name == "fedadagrad":
                v = v + delta**2
            elif name == "fedyogi":
                v = v - (1 - s.beta2) * delta**2 * np.sign(v - delta**2)
            else:
                v = s.beta2 * v + (1 - s.beta2) * delta**2
            x = x + s.lr * m / (np.sqrt(v) + s.tau)
    return x


@pytest.mark.parametrize(
    "settings",
    [
        FedAvg(lr=0.7),
        FedAvgM(lr=0.5, momentum=0.8),
        FedAdam(lr=0.1, beta1=0.9, beta2=0.99, tau=1e-3),
        FedYogi(lr=0.1, beta1=0.9, beta2=0.99, tau=1e-3),
        FedAdagrad(lr=0.1, beta1=0.5, tau=1e-2),
    ],
    ids=lambda s: s.name,
)
def test_steps_follow_the_paper(settings):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=50)
    updates = [rng.normal(scale=0.1, size=50) for _ in range(6)]
    server, x = Server(settings), torch.from_numpy(weights)
    for update in updates:
        x = server.step(x, torch.from_numpy(update))
    np.testing.assert_allclose(x.numpy(), reference(settings.name, settings, weights, updates), rtol=1e-12)


def test_nothing_is_mutated():
    weights, update = torch.ones(3), torch.ones(3)
    server = Server(FedAdam())
    server.step(weights, update)
    server.step(weights, update)
    assert torch.equal(weights, torch.ones(3))
    assert torch.equal(update, torch.ones(3))


@pytest.mark.parametrize("kind", [FedAdam, FedYogi, FedAdagrad])
def test_the_largest_tau_steps(kind):
    moved = Server(kind(tau=1e18)).step(torch.zeros(2), torch.ones(2))
    assert moved.isfinite().all()
