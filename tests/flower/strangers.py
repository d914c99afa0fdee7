"""A Strategy as somebody else would write it, in a module of its own."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg


class HalfOfEach(FedAvg):
    """Moves a share of the way to the mean."""

    def __init__(self, share=0.5, **options):
        super().__init__(**options)
        self.share = share

    def configure_train(self, server_round, arrays, config, grid):
        self.before = {name: array.numpy() for name, array in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        moved = {n: b + self.share * (arrays[n].numpy() - b) for n, b in self.before.items()}
        return ArrayRecord({n: Array(value) for n, value in moved.items()}), metrics


class SlowerClients(FedAvg):
    """Sets the clients' learning rate, as the example in Flower's documentation does."""

    def configure_train(self, server_round, arrays, config, grid):
        config["lr"] = 0.1 / server_round
        return super().configure_train(server_round, arrays, config, grid)
