"""LeNet-5."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from harness.api import Field, Model, Normalization, Reference
from harness_plugins.models._checks import check_input

if TYPE_CHECKING:
    from torch import nn


class LeNet5(Model):
    """LeNet-5: 5x5 convolutions of 6 and 16 channels with 2x2 pooling, then 120, 84 and `classes` units.

    Images below 32x32 are padded by 2 on every side, as the paper pads 28x28 to 32x32. With 1 channel and 10
    classes at 28x28 or 32x32: 61,706 parameters. As in every present implementation, and unlike the paper's
    section II-B: pooling has no trainable coefficients, each of the 16 maps sees all 6 maps before it, the
    activation is a plain tanh (or ReLU), and the output layer is linear (logits), not Gaussian units.
    Raises PluginError below 12x12 pixels.
    """

    name = "lenet5"
    reference = Reference(
        title="Gradient-Based Learning Applied to Document Recognition",
        authors="LeCun, Bottou, Bengio, Haffner",
        venue="Proceedings of the IEEE 86(11)",
        year=1998,
        url="https://doi.org/10.1109/5.726791",
    )

    activation: Literal["relu", "mish", "tanh"] = Field("tanh", description="activation of all hidden layers")
    pooling: Literal["average", "max"] = Field("average", description="how each 2x2 square becomes one value")

    def build(
        self, input_shape: tuple[int, int, int], num_classes: int, normalization: Normalization | None = None
    ) -> nn.Module:
        from torch import nn

        from harness.nn import normalization_layer
        from harness_plugins.models._networks import ACTIVATIONS

        check_input(self.name, input_shape, num_classes, smallest=12)
        channels, height, width = input_shape
        padding = 2 if min(height, width) < 32 else 0
        activation = ACTIVATIONS[self.activation]
        pool = nn.AvgPool2d if self.pooling == "average" else nn.MaxPool2d
        h, w = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in (height, width))
        return nn.Sequential(
            normalization_layer(normalization, channels),
            nn.Conv2d(channels, 6, 5, padding=padding),
            activation(),
            pool(2),
            nn.Conv2d(6, 16, 5),
            activation(),
            pool(2),
            nn.Flatten(),
            nn.Linear(16 * h * w, 120),
            activation(),
            nn.Linear(120, 84),
            activation(),
            nn.Linear(84, num_classes),
        )


PLUGINS = (LeNet5,)
