"""The network of pfl-research's CIFAR-10 benchmark, as a plugin: what both sides of pfl_research.py train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.api import Field, Model, Normalization, PluginError, Reference, hookimpl

if TYPE_CHECKING:
    from torch import nn


class PflSimpleCnn(Model):
    """Two unpadded 3x3 convolutions (32 and 64 channels) with ReLU, one 2x2 max-pooling, 128 hidden units.

    Dropout follows the pooling (0.25) and the hidden units (0.5). Weights are drawn by Glorot's uniform rule, biases
    as PyTorch does. 1,626,442 parameters for 3x32x32 and 10 classes. Raises PluginError below 6x6 pixels.
    """

    name = "pfl-simple-cnn"
    reference = Reference(
        title="pfl-research: simulation framework for accelerating research in Private Federated Learning",
        authors="Granqvist, Song, Cahill, van Dalen, Pelikan, Chan, Feng, Krishnaswami, Jina, Chitnis",
        venue="NeurIPS 2024 Datasets and Benchmarks",
        year=2024,
        url="https://arxiv.org/abs/2404.06430",
    )

    dropout: bool = Field(True, description="false leaves both layers of dropout out")

    def build(
        self, input_shape: tuple[int, int, int], num_classes: int, normalization: Normalization | None = None
    ) -> nn.Module:
        from torch import nn

        from harness.nn import normalization_layer

        channels, height, width = input_shape
        if min(height, width) < 6:
            raise PluginError(f"{self.name} needs 6x6 pixels or more, not {height}x{width}")
        features = 64 * ((height - 4) // 2) * ((width - 4) // 2)
        layers = [
            normalization_layer(normalization, channels),
            nn.Conv2d(channels, 32, 3),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(0.25),
            nn.Flatten(),
            nn.Linear(features, 128),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(128, num_classes),
        ]
        for layer in layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
        return nn.Sequential(*(own for own in layers if self.dropout or not isinstance(own, nn.Dropout)))


@hookimpl
def harness_register(register: Any) -> None:
    register(PflSimpleCnn)
