"""Plugins that draw from global generators, whatever their contract says: one of each kind that trains."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn

from harness.api import (
    Aggregator,
    ByzantineAttack,
    Defence,
    Model,
    Partitioner,
    Payload,
    PoisoningAttack,
    UpdateCompressor,
    hookimpl,
)


def draw() -> float:
    """In (0, 1.5), from all three."""
    return (torch.rand(()).item() + np.random.rand() + random.random()) / 2


class StrayRule(Aggregator):
    """Draws a step."""

    name = "stray-rule"

    def aggregate(self, updates, context):
        return updates.mean(0) * draw()


class StrayHooks(Defence):
    """Draws in one hook."""

    name = "stray-hooks"
    hook: str

    def _factor(self, hook):
        return draw() if hook == self.hook else 1.0

    def prepare(self, context):
        return {"factor": self._factor("prepare")}

    def model(self, module):
        with torch.no_grad():
            module[-1].weight.mul_(self._factor("model"))
        return module

    def batch(self, x, y, key):
        return x * self._factor("batch"), y

    def loss(self, inner, logits):
        factor = self._factor("loss")
        return lambda params, batch, key: factor * inner(params, batch, key)

    def gradient(self, local):
        factor = self._factor("gradient")
        return lambda params, batch, key: {
            name: factor * g for name, g in local.gradient(params, batch, key).items()
        }

    def update(self, delta, context):
        return delta * self._factor("update") * context.prepared["factor"]


class StrayModel(Model):
    """Reads the pixels in an order that it draws, and keeps beside its weights."""

    name = "stray-model"

    def build(self, input_shape, num_classes, normalization=None):
        pixels = int(np.prod(input_shape))
        return nn.Sequential(
            nn.Flatten(), _Mixed(np.random.permutation(pixels)), nn.Linear(pixels, num_classes)
        )


class _Mixed(nn.Module):
    def __init__(self, order):
        super().__init__()
        self.order = order

    def forward(self, x):
        return x[:, self.order]


class StrayCraft(ByzantineAttack):
    """Asks the rule, then draws a length."""

    name = "stray-craft"
    knowledge = "omniscient"

    def craft(self, honest, context):
        crafted = -honest.mean(0).expand(context.m, -1)
        context.aggregator(torch.cat([honest, crafted]))
        return crafted * draw()


class StrayLabels(PoisoningAttack):
    """Draws labels."""

    name = "stray-labels"

    def poison(self, data, context):
        data.labels[:] = torch.randint(0, 10, data.labels.shape)
        return data


class StrayPartition(Partitioner):
    """Shuffles by NumPy's global generator."""

    name = "stray-partition"

    def partition(self, labels, groups, clients, rng):
        return np.array_split(np.random.permutation(len(labels)), clients)


class StrayCodec(UpdateCompressor):
    """Draws at both ends."""

    name = "stray-codec"

    def encode(self, update, state, context):
        return Payload({"update": update * draw()})

    def decode(self, payload, context):
        return payload.tensors["update"] * draw()


PLUGINS = (
    StrayRule, StrayHooks, StrayModel, StrayCraft, StrayLabels, StrayPartition, StrayCodec,
)  # fmt: skip


@hookimpl
def harness_register(register):
    for plugin in PLUGINS:
        register(plugin)
