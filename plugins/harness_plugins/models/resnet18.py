"""ResNet-18."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from harness.api import Field, Model, Normalization, Reference
from harness_plugins.models._checks import check_input

if TYPE_CHECKING:
    from torch import nn


class ResNet18(Model):
    """ResNet-18: a stem, four stages of two basic blocks (64, 128, 256, 512 channels), global mean, linear.

    The `imagenet` stem is the paper's (7x7 stride 2, then 3x3 max-pooling of stride 2), the `small` one,
    usual on CIFAR, is one 3x3 convolution; `auto` takes `small` for images below 64 pixels a side.
    Shortcuts that change the shape are 1x1 convolutions (the paper's option B). 11,689,512 parameters for 3
    channels, 1000 classes and the `imagenet` stem, with either norm. The paper's norm is `batch`; `group`
    keeps records apart, as differential privacy needs (Wu, He 2018, arXiv 1803.08494). Weights start from
    He's normal distribution (fan-out). Raises PluginError below 8x8 pixels.
    """

    name = "resnet18"
    reference = Reference(
        title="Deep Residual Learning for Image Recognition",
        authors="He, Zhang, Ren, Sun",
        venue="CVPR",
        year=2016,
        url="https://arxiv.org/abs/1512.03385",
    )

    width: int = Field(64, ge=2, description="channels of the stem and first stage; the paper's is 64")
    norm: Literal["group", "batch"] = Field("group", description="kind of normalisation layers")
    groups: int = Field(32, ge=1, description="groups of each group normalisation, at most")
    stem: Literal["auto", "small", "imagenet"] = Field(
        "auto", description="the layers before the first stage"
    )

    def build(
        self, input_shape: tuple[int, int, int], num_classes: int, normalization: Normalization | None = None
    ) -> nn.Module:
        from harness.nn import normalization_layer
        from harness_plugins.models import _networks

        check_input(self.name, input_shape, num_classes, smallest=8)
        large = self.stem == "imagenet" or (self.stem == "auto" and min(input_shape[1:]) >= 64)
        return _networks.ResNet18(
            normalization_layer(normalization, input_shape[0]),
            input_shape[0],
            num_classes,
            self.width,
            _networks.norm_factory(self.norm, self.groups),
            large,
        )


PLUGINS = (ResNet18,)
