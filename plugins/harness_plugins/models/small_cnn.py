"""A small convolutional network for small images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.api import Field, Model, Normalization
from harness_plugins.models._checks import check_input

if TYPE_CHECKING:
    from torch import nn


class SmallCnn(Model):
    """Two 3x3 convolutions (16 and 32 channels), each with ReLU and 2x2 max-pooling, then 64 hidden units.

    Convolutions pad by 1 and have biases; there is no normalisation layer beside the input's, so records of
    a batch never meet and nothing needs replacing under differential privacy. 105,866 parameters for
    1x28x28 and 10 classes at width 16. Raises PluginError below 4x4 pixels.
    """

    name = "small-cnn"

    width: int = Field(
        16, ge=1, description="channels of the first convolution; the second has twice as many"
    )
    hidden: int = Field(64, ge=1, description="units of the hidden layer")

    def build(
        self, input_shape: tuple[int, int, int], num_classes: int, normalization: Normalization | None = None
    ) -> nn.Module:
        from torch import nn

        from harness.nn import normalization_layer

        check_input(self.name, input_shape, num_classes, smallest=4)
        channels, height, width = input_shape
        return nn.Sequential(
            normalization_layer(normalization, channels),
            nn.Conv2d(channels, self.width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(self.width, 2 * self.width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * self.width * (height // 4) * (width // 4), self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, num_classes),
        )


PLUGINS = (SmallCnn,)
