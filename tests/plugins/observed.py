"""Updates that a server observes, as torch makes them."""

from __future__ import annotations

import copy

import torch
from torch.nn import functional

from harness.api import ObservedUpdate


def observe(module, x, y, *, epochs=1, batch_size=None, classes=10, **settings):
    """What a client with torch.optim.SGD really sends, trained on consecutive batches."""
    options = {"lr": 0.05, "momentum": 0.0, "weight_decay": 0.0, "nesterov": False} | settings
    client, size = copy.deepcopy(module), batch_size or len(x)
    optimizer = torch.optim.SGD(client.parameters(), **options)
    for _ in range(epochs):
        for images, labels in zip(x.split(size), y.split(size), strict=True):
            optimizer.zero_grad()
            functional.cross_entropy(client(images), labels).backward()
            optimizer.step()
    return ObservedUpdate(
        update=_flat(client) - _flat(module),
        weights=_flat(module),
        module=module,
        layout=_layout(module),
        records=len(x),
        batch_size=size,
        epochs=epochs,
        optimizer={"name": "sgd", **options},
        num_classes=classes,
        input_shape=tuple(x.shape[1:]),
    )


def _flat(module):
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def _layout(module):
    slices, start = {}, 0
    for name, parameter in module.named_parameters():
        slices[name] = slice(start, start + parameter.numel())
        start += parameter.numel()
    return slices
