"""Whether a network's convolutions have channels first or last in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from harness.scenario import Compute

NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def channels_last(module: nn.Module, compute: Compute, device: str) -> bool:
    """Whether a network's convolutions have channels last.

    auto: on a CPU, for networks that have max-pooling and no normalisation layers: pooling, which is slow with channels
    first, is then a large part of the time. Measured on two cores (AMD EPYC, AVX2): small-cnn trains 1.3 to 1.6 times
    as fast and predicts 1.8 times as fast with channels last, lenet5 1.2 and 1.0; vgg11 trains 0.96 times as fast,
    resnet9 with its group normalisation 0.85. Not for clients that train as one program, which has layouts of its own,
    nor on a GPU, where nothing was measured.
    """
    if compute.channels_last != "auto":
        return compute.channels_last
    layers = list(module.modules())
    pools = any(isinstance(layer, nn.MaxPool2d) for layer in layers)
    normalises = any(isinstance(layer, NORMALISATIONS) for layer in layers)
    return device == "cpu" and pools and not normalises and not compute.vectorised(device)
