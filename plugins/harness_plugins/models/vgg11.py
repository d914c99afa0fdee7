"""VGG-11."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from harness.api import Field, Model, Normalization, Reference
from harness_plugins.models._checks import check_input

if TYPE_CHECKING:
    from torch import nn


class Vgg11(Model):
    """VGG-11 (configuration A): eight 3x3 convolutions, five 2x2 max-poolings, three linear layers.

    The `imagenet` head is the paper's: 7x7 maps, then 4096, 4096 and `classes` units; 132,863,336
    parameters for 3 channels and 1000 classes. The `small` one, usual on CIFAR, takes the mean over the
    map, then 512, 512 and `classes` units. `auto` takes `small` for images below 64 pixels a side. Adaptive
    average pooling brings any size to the head's; a pooling that would leave no pixel (below 32x32) is left
    out.

    The paper's network has no normalisation layers (`none`); `group` and `batch` put one after each
    convolution, which then has no bias. The paper's dropout is left out: it would draw random numbers
    inside the network. Convolutions start from He's normal distribution (fan-out). Raises PluginError below
    8x8 pixels.
    """

    name = "vgg11"
    reference = Reference(
        title="Very Deep Convolutional Networks for Large-Scale Image Recognition",
        authors="Simonyan, Zisserman",
        venue="ICLR",
        year=2015,
        url="https://arxiv.org/abs/1409.1556",
    )

    width: int = Field(64, ge=2, description="channels of the first convolution; the paper's is 64")
    norm: Literal["group", "batch", "none"] = Field("none", description="kind of normalisation layers")
    groups: int = Field(32, ge=1, description="groups of each group normalisation, at most")
    head: Literal["auto", "small", "imagenet"] = Field(
        "auto", description="the layers after the convolutions"
    )

    def build(
        self, input_shape: tuple[int, int, int], num_classes: int, normalization: Normalization | None = None
    ) -> nn.Module:
        from torch import nn

        from harness.nn import normalization_layer
        from harness_plugins.models import _networks

        check_input(self.name, input_shape, num_classes, smallest=8)
        channels, height, width = input_shape
        large = self.head == "imagenet" or (self.head == "auto" and min(height, width) >= 64)
        w = self.width
        layout: list[int | str] = [
            w,
            "M",
            2 * w,
            "M",
            4 * w,
            4 * w,
            "M",
            8 * w,
            8 * w,
            "M",
            8 * w,
            8 * w,
            "M",
        ]
        norm = _networks.norm_factory(self.norm, self.groups)
        features, maps = _networks.vgg_features(channels, layout, norm, self.norm == "none", (height, width))
        for layer in features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        side, hidden = (7, 4096) if large else (1, 512)
        return nn.Sequential(
            normalization_layer(normalization, channels),
            *features,
            nn.AdaptiveAvgPool2d(side),
            nn.Flatten(),
            nn.Linear(maps * side * side, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )


PLUGINS = (Vgg11,)
