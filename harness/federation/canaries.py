"""Canaries: records or clients planted by independent coins, to ask a release which of them it contains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from harness.contracts.defence import ClientHooks
from harness.errors import PluginError
from harness.random import numpy_generator

if TYPE_CHECKING:
    from torch import Tensor

    from harness.contracts.defence import Batch, LogitsFn, LossFn, Params, UpdateContext
    from harness.contracts.privacy import Canaries


@dataclass(frozen=True)
class Planting:
    """One training's canaries.

    included (m,) bool: the coins. coordinates (m,): for each canary, the coordinate of the parameters along which its
    gradient points. client: where records are planted. images (m, c, h, w), labels (m,): as the training would hold
    them; gradient canary j is a black image with the label num_classes + j, by which it is recognised.
    """

    canaries: Canaries
    included: np.ndarray
    coordinates: Tensor
    client: int
    images: Tensor
    labels: Tensor

    @property
    def records(self) -> tuple[Tensor, Tensor]:
        """The images and labels of the included canaries, each as often as it is repeated."""
        chosen = np.repeat(np.flatnonzero(self.included), self.canaries.repeats)
        index = torch.as_tensor(chosen, device=self.labels.device)
        return self.images[index], self.labels[index]

    @property
    def clients(self) -> list[int]:
        """The canaries that take part as clients: those included, or all where the coin decides the sign."""
        if self.canaries.unit != "client":
            return []
        return (
            list(range(len(self.included)))
            if self.canaries.opposite
            else np.flatnonzero(self.included).tolist()
        )

    def sign(self, number: int) -> float:
        """+1, or -1 for a canary whose coin made it the opposite one."""
        return 1.0 if self.included[number] else -1.0


def plant(
    canaries: Canaries, name: str, seed: int, clients: Sequence[int], d: int, images: Tensor, num_classes: int
) -> Planting:
    """Draw coins, coordinates and a client for one training. images: some of the data's, for shape and type.

    clients: those that take part in some round, as records at any other client never enter the training. Raises
    PluginError where there are none, and for settings that make no sense.
    """
    m = canaries.count
    if canaries.form == "image" and canaries.unit == "client":
        raise PluginError("canaries that are clients send a gradient, not an image")
    if not 1 <= m <= d or canaries.repeats < 1:
        raise PluginError(f"between 1 and {d} canaries (one a parameter), not {m}")
    if not clients:
        raise PluginError("canaries need a client that takes part in some round, and none does")
    rng = numpy_generator(seed, "canaries", name)
    included = rng.random(m) < 0.5
    coordinates = torch.from_numpy(rng.choice(d, m, replace=False))
    client = clients[int(rng.integers(len(clients)))]
    device, shape = images.device, (m, *images.shape[1:])
    if canaries.form == "image":
        noise = rng.integers(0, 256, shape, dtype=np.uint8)
        pixels = torch.from_numpy(noise).to(device)
        planted = pixels if images.dtype == torch.uint8 else pixels.to(images.dtype) / 255
        labels = torch.from_numpy(rng.integers(0, num_classes, m)).to(device)
    else:
        planted = torch.zeros(shape, dtype=images.dtype, device=device)
        labels = num_classes + torch.arange(m, device=device)
    return Planting(canaries, included, coordinates.to(device), client, planted, labels)


class GradientCanaries(ClientHooks):
    """The outermost loss: scale times its coordinate of the parameters for a canary, unchanged for other records."""

    couples_samples = False

    def __init__(self, planting: Planting, num_classes: int) -> None:
        self.coordinates = planting.coordinates
        self.scale = planting.canaries.scale
        self.num_classes = num_classes

    def loss(self, loss: LossFn, logits: LogitsFn) -> LossFn:
        def with_canaries(params: Params, batch: Batch, key: Tensor) -> Tensor:
            x, y = batch
            planted = y >= self.num_classes
            ordinary = loss(params, (x, y.clamp(max=self.num_classes - 1)), key)
            flat = torch.cat([p.reshape(-1) for p in params.values()])
            value = self.scale * flat[self.coordinates[(y - self.num_classes).clamp(min=0)]]
            return torch.where(planted, value.to(ordinary.dtype), ordinary)

        return with_canaries


class CanaryClient(ClientHooks):
    """A client that is a canary: whatever it trained, it sends minus scale times one coordinate's unit vector."""

    def __init__(self, coordinate: int, scale: float) -> None:
        self.coordinate = coordinate
        self.scale = scale

    def update(self, delta: Tensor, context: UpdateContext) -> Tensor:
        sent = torch.zeros_like(delta)
        sent[self.coordinate] = -self.scale
        return sent
