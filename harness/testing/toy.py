"""Small worlds to try plugins in: images of a few classes, and a network that tells them apart. Imports torch."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.contracts.model import Model
from harness.federation.apply import Apply
from harness.federation.vector import flatten, layout
from harness.random import torch_generator
from harness.testing.core import Setting

# (channels, height, width), width of the convolutions, hidden units. A plugin that one scene does not suit is tried in
# the next.
SCENES = (((1, 8, 8), 8, 16), ((3, 16, 16), 8, 32), ((1, 28, 28), 16, 96))
CLASSES = 3
RECORDS = 48


class ToyNet(nn.Module):
    """Two convolutions and two linear layers: pixels (b, c, h, w) in [0, 1] -> logits (b, 3)."""

    def __init__(self, shape: tuple[int, int, int], width: int, hidden: int) -> None:
        super().__init__()
        c, h, w = shape
        self.conv1 = nn.Conv2d(c, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(width * (h // 4) * (w // 4), hidden)
        self.fc2 = nn.Linear(hidden, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(functional.relu(self.conv1(x)))
        x = self.pool(functional.relu(self.conv2(x)))
        return self.fc2(functional.relu(self.fc1(self.flatten(x))))


@dataclass(frozen=True)
class Toy:
    """A scene's data, images (n, c, h, w) float in [0, 1] and labels (n,) int64, and its trained network."""

    shape: tuple[int, int, int]
    images: Tensor
    labels: Tensor
    module: nn.Module
    other: bool = False

    @property
    def net(self) -> nn.Module:
        """A copy of the trained network, in eval mode."""
        return copy.deepcopy(self.module).eval()

    @property
    def vector(self) -> Tensor:
        """(d,): the network's weights."""
        return flatten(self.module)

    @property
    def layout(self) -> dict[str, slice]:
        return layout(self.module)

    def logits(self, weights: Tensor, x: Tensor) -> Tensor:
        """weights (d,), x (b, c, h, w) -> (b, 3), in eval mode, differentiable in both."""
        shapes = dict(self.module.named_parameters())
        values = {n: weights[part].view_as(shapes[n]).to(x) for n, part in self.layout.items()}
        return torch.func.functional_call(self.module, values, (x,))

    def build(self, model: Model) -> nn.Module:
        """An untrained network of another architecture for the same data, with seeded weights."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(5)
            return model.build(self.shape, CLASSES)


@cache
def _toy(scene: int) -> Toy:
    shape, width, hidden = SCENES[scene]
    draw = torch_generator("toy", scene)
    prototypes = torch.rand((CLASSES, *shape), generator=draw)
    labels = torch.arange(RECORDS) % CLASSES
    images = (prototypes[labels] + 0.15 * torch.randn((RECORDS, *shape), generator=draw)).clamp(0, 1)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(7)
        module = ToyNet(shape, width, hidden)
        velocity = [torch.zeros_like(p) for p in module.parameters()]
        for _ in range(60):  # by hand: torch.optim imports the compiler, which takes seconds
            loss = functional.cross_entropy(module(images), labels)
            gradients = torch.autograd.grad(loss, list(module.parameters()))
            with torch.no_grad():
                for parameter, speed, gradient in zip(module.parameters(), velocity, gradients, strict=True):
                    speed.mul_(0.9).add_(gradient)
                    parameter.sub_(0.05 * speed)
    return Toy(shape, images, labels, module.eval())


def toy(setting: Setting) -> Toy:
    """The scene of a setting, on its device and in its dtype."""
    made = _toy(setting.scene)
    where: dict[str, Any] = {"device": setting.device, "dtype": getattr(torch, setting.dtype)}
    images = made.images.flip(-1) if setting.other else made.images
    return Toy(
        made.shape, images.to(**where), made.labels.to(setting.device), made.net.to(**where), setting.other
    )


def updates(world: Toy, n: int, seed: int = 0) -> Tensor:
    """Updates (n, d): a direction that all clients share, plus each client's own deviation, half as long."""
    weights = world.vector
    draw = torch_generator("toy updates", seed, *(["other"] if world.other else []))
    d = len(weights)
    common = torch.randn(d, generator=draw)
    own = torch.randn((n, d), generator=draw)
    return (0.01 * (common + 0.5 * own)).to(weights)


def generator(setting: Setting, seed: int = 0) -> torch.Generator:
    """A generator on the setting's device; the same numbers every time."""
    return torch_generator("check", seed, device=setting.device)


def apply(module: nn.Module) -> Apply:
    """logits(params, x) of a module, as the engine calls it."""
    return Apply(module)
