"""Aggregates and server optimisers against Flower's, on the same updates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_aggregators import create, normal

from harness.federation.server import Server
from harness.scenario import FedAdagrad, FedAdam, FedAvgM, FedYogi

strategies = pytest.importorskip("flwr.server.strategy")
aggregate = pytest.importorskip("flwr.server.strategy.aggregate")


def flower(rows, sizes=None):
    """Updates as Flower's strategies take them: two arrays a client, and its number of examples."""
    sizes = [1] * len(rows) if sizes is None else sizes
    return [([row[:4].reshape(2, 2), row[4:]], size) for row, size in zip(rows, sizes, strict=True)]


def joined(arrays):
    return np.concatenate([np.asarray(a).reshape(-1) for a in arrays])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "f"), [(7, 1), (12, 3), (25, 5)])
class TestRules:
    def tolerance(self, dtype):
        return {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}

    def test_mean_by_examples(self, n, f, dtype):
        x, sizes = normal(n, 9, dtype=dtype), list(range(1, n + 1))
        weights = torch.tensor(sizes, dtype=torch.float64) / sum(sizes)
        theirs = joined(aggregate.aggregate(flower(x.numpy(), sizes)))
        np.testing.assert_allclose(
            create("mean")(x, weights=weights).numpy(), theirs, **self.tolerance(dtype)
        )

    def test_median(self, n, f, dtype):
        x = normal(n, 9, dtype=dtype)
        theirs = joined(aggregate.aggregate_median(flower(x.numpy())))
        np.testing.assert_allclose(create("median")(x).numpy(), theirs, **self.tolerance(dtype))

    def test_trimmed_mean(self, n, f, dtype):
        x = normal(n, 9, dtype=dtype)
        # Flower trims a share and rounds it down: f / n, with a little to spare for the division.
        theirs = joined(aggregate.aggregate_trimmed_avg(flower(x.numpy()), (f + 0.01) / n))
        np.testing.assert_allclose(create("trimmed-mean", f=f)(x).numpy(), theirs, **self.tolerance(dtype))

    def test_krum_and_multi_krum(self, n, f, dtype):
        x = normal(n, 9, dtype=dtype)
        theirs = joined(aggregate.aggregate_krum(flower(x.numpy()), f, 0))
        np.testing.assert_allclose(create("krum", f=f)(x).numpy(), theirs, **self.tolerance(dtype))
        theirs = joined(aggregate.aggregate_krum(flower(x.numpy()), f, n - f))
        np.testing.assert_allclose(create("multi-krum", f=f)(x).numpy(), theirs, **self.tolerance(dtype))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            FedAdam(lr=0.1, beta1=0.9, beta2=0.95, tau=1e-2, initial=0.0, bias_correction=True),
            lambda p: strategies.FedAdam(initial_parameters=p, eta=0.1, beta_1=0.9, beta_2=0.95, tau=1e-2),
        ),
        (
            FedYogi(lr=0.1, beta1=0.9, beta2=0.95, tau=1e-2, initial=0.0),
            lambda p: strategies.FedYogi(initial_parameters=p, eta=0.1, beta_1=0.9, beta_2=0.95, tau=1e-2),
        ),
        (
            FedAdagrad(lr=0.1, tau=1e-2, initial=0.0),
            lambda p: strategies.FedAdagrad(initial_parameters=p, eta=0.1, tau=1e-2),
        ),
        (
            FedAvgM(lr=0.5, momentum=0.8),
            lambda p: strategies.FedAvgM(initial_parameters=p, server_learning_rate=0.5, server_momentum=0.8),
        ),
    ],
    ids=["fedadam", "fedyogi", "fedadagrad", "fedavgm"],
)
def test_server_optimisers(ours, theirs):
    from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays

    rng = np.random.default_rng(0)
    weights = rng.normal(size=12)
    strategy, server, x = theirs(ndarrays_to_parameters([weights])), Server(ours), torch.from_numpy(weights)
    # Flower counts rounds from 1, and FedAdam corrects for one more than these: from 0 it is Adam's own t.
    for round in range(5) if ours.name != "fedavgm" else range(1, 6):
        update = rng.normal(scale=0.3, size=12)
        x_before = x.numpy()
        x = server.step(x, torch.from_numpy(update))
        reply = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([x_before + update]), 1, {})
        parameters, _ = strategy.aggregate_fit(round, [(None, reply)], [])
        np.testing.assert_allclose(x.numpy(), parameters_to_ndarrays(parameters)[0], rtol=1e-9, atol=1e-9)
