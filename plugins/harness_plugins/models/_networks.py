"""The networks that the model plugins build. Imports torch.

Nothing works in place, nothing depends on values, and nothing draws random numbers after construction: the
networks can be traced by torch.fx, vmapped, pickled, and differentiated per sample.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Norm = Callable[[int], nn.Module]  # channels -> layer
Activation = Callable[[], nn.Module]
ACTIVATIONS: dict[str, Activation] = {"relu": nn.ReLU, "mish": nn.Mish, "tanh": nn.Tanh}


def group_count(channels: int, groups: int) -> int:
    """The most groups, at most `groups`, that divide the channels and leave two or more channels in each.

    A group of one channel and one pixel would be normalised to zero, whatever the input.
    """
    limit = min(groups, max(channels // 2, 1))
    return next(g for g in range(limit, 0, -1) if channels % g == 0)


def norm_factory(kind: str, groups: int) -> Norm:
    """`group`, `batch` or `none`, as a function from channels to a layer."""
    if kind == "group":
        return lambda channels: nn.GroupNorm(group_count(channels, groups), channels)
    return nn.BatchNorm2d if kind == "batch" else lambda channels: nn.Identity()


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size at stride 1; without bias, as a normalisation follows."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def conv_block(
    inputs: int, outputs: int, norm: Norm, activation: Activation, pool: bool = False
) -> nn.Sequential:
    """3x3 convolution, normalisation, activation, and 2x2 max-pooling if asked for."""
    layers = [conv3x3(inputs, outputs), norm(outputs), activation()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class Residual(nn.Module):
    """norm(x + branch(x)); `norm` is the identity unless scale normalisation is on."""

    def __init__(self, branch: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.branch, self.norm = branch, norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.branch(x) + x)


class ResNet9(nn.Module):
    """conv w; conv 2w, pool; residual 2w; conv 4w, pool; conv 4w, pool; residual 4w; max 2x2; linear."""

    def __init__(
        self,
        normalize: nn.Module,
        channels: int,
        classes: int,
        width: int,
        norm: Norm,
        activation: Activation,
        scale_norm: bool,
    ) -> None:
        super().__init__()
        w, after = width, norm if scale_norm else (lambda _: nn.Identity())

        def residual(c: int) -> Residual:
            return Residual(nn.Sequential(*(conv_block(c, c, norm, activation) for _ in range(2))), after(c))

        self.normalize = normalize
        self.conv1 = conv_block(channels, w, norm, activation)
        self.conv2 = conv_block(w, 2 * w, norm, activation, pool=True)
        self.residual1 = residual(2 * w)
        self.conv3 = conv_block(2 * w, 4 * w, norm, activation, pool=True)
        self.conv4 = conv_block(4 * w, 4 * w, norm, activation, pool=True)
        self.residual2 = residual(4 * w)
        self.pool = nn.AdaptiveMaxPool2d(2)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(16 * w, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.residual1(self.conv2(self.conv1(self.normalize(x))))
        x = self.residual2(self.conv4(self.conv3(x)))
        return self.classifier(self.flatten(self.pool(x)))


class BasicBlock(nn.Module):
    """relu(shortcut(x) + norm(conv(relu(norm(conv(x)))))), the block of ResNet-18."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv3x3(inputs, outputs, stride), norm(outputs)
        self.relu1 = nn.ReLU()
        self.conv2, self.norm2 = conv3x3(outputs, outputs), norm(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(y + self.shortcut(x))


class ResNet18(nn.Module):
    """Stem, four stages of two basic blocks (w, 2w, 4w, 8w; stride 2 after the first), mean, linear."""

    def __init__(
        self, normalize: nn.Module, channels: int, classes: int, width: int, norm: Norm, large_stem: bool
    ) -> None:
        super().__init__()
        if large_stem:
            first = nn.Conv2d(channels, width, 7, 2, padding=3, bias=False)
            stem = [first, norm(width), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)]
        else:
            stem = [conv3x3(channels, width), norm(width), nn.ReLU()]
        blocks, inputs = [], width
        for outputs, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
            blocks += [BasicBlock(inputs, outputs, stride, norm), BasicBlock(outputs, outputs, 1, norm)]
            inputs = outputs
        self.normalize = normalize
        self.stem = nn.Sequential(*stem)
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.flatten(self.pool(self.blocks(self.stem(self.normalize(x))))))


def vgg_features(
    channels: int, layout: list[int | str], norm: Norm, bias: bool, size: tuple[int, int]
) -> tuple[list[nn.Module], int]:
    """(layers, output channels) of a VGG layout: numbers are 3x3 convolutions, "M" is 2x2 max-pooling.

    A pooling that would leave no pixel is left out.
    """
    layers: list[nn.Module] = []
    smallest = min(size)
    for item in layout:
        if isinstance(item, str):
            if smallest >= 2:
                layers.append(nn.MaxPool2d(2))
                smallest //= 2
            continue
        layers += [nn.Conv2d(channels, item, 3, padding=1, bias=bias), norm(item), nn.ReLU()]
        channels = item
    return layers, channels
