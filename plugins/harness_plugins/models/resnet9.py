"""ResNet-9 with scale normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from harness.api import Field, Model, Normalization, Reference
from harness_plugins.models._checks import check_input

if TYPE_CHECKING:
    from torch import nn


class ResNet9(Model):
    """Nine layers: conv 64, conv 128, residual 128 (two convs), conv 256, conv 256, residual 256, linear.

    Every convolution is 3x3, pads by 1, has no bias, and is followed by normalisation and activation. 2x2
    max-pooling follows the second, third and fourth single convolutions; adaptive max-pooling to 2x2 and a
    linear layer from 1024 features close. With `scale_norm`, the sum of each residual block passes one more
    normalisation layer of the same kind. 2,439,619 parameters for 1 channel and 3 classes, at width 64 with
    group normalisation and no scale normalisation.

    width w makes the channels w, 2w and 4w. In narrow networks the number of groups is the largest divisor of
    the channels, up to `groups`, that leaves two channels in a group (as 32 groups do in the 64 channels of
    the paper's first layer). Raises PluginError below 8x8 pixels.
    """

    name = "resnet9"
    reference = Reference(
        title="Differentially private training of residual networks with scale normalisation",
        authors="Klause, Ziller, Rueckert, Hammernik, Kaissis",
        venue="Theory and Practice of Differential Privacy workshop, ICML",
        year=2022,
        url="https://arxiv.org/abs/2203.00324",
    )

    width: int = Field(64, ge=2, description="channels of the first convolution; the paper's is 64")
    norm: Literal["group", "batch"] = Field("group", description="kind of normalisation layers")
    groups: int = Field(32, ge=1, description="groups of each group normalisation, at most")
    activation: Literal["relu", "mish"] = Field("relu", description="activation after each normalisation")
    scale_norm: bool = Field(False, description="normalise after the addition of each residual block")

    def build(
        self, input_shape: tuple[int, int, int], num_classes: int, normalization: Normalization | None = None
    ) -> nn.Module:
        from harness.nn import normalization_layer
        from harness_plugins.models import _networks

        check_input(self.name, input_shape, num_classes, smallest=8)
        return _networks.ResNet9(
            normalization_layer(normalization, input_shape[0]),
            input_shape[0],
            num_classes,
            self.width,
            _networks.norm_factory(self.norm, self.groups),
            _networks.ACTIVATIONS[self.activation],
            self.scale_norm,
        )


PLUGINS = (ResNet9,)
