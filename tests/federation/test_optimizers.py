"""Local optimisers are torch's own, to the last bit, also where some of the stacked rows are done before others."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from harness.federation.optimizers import local_optimizer
from harness.scenario import SGD, Adam, NAdam

SETTINGS = [
    SGD(lr=0.1),
    SGD(lr=0.1, momentum=0.9),
    SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    SGD(lr=0.1, weight_decay=0.5),
    Adam(lr=0.1, weight_decay=0.01),
    NAdam(lr=0.1),
]
CLASSES = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "nadam": torch.optim.NAdam}


def parameters(rows=4):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, *shape, generator=generator).requires_grad_() for shape in ((3, 2), (5,))]


def gradients(like, step):
    generator = torch.Generator().manual_seed(step + 1)
    return [torch.randn(p.shape, generator=generator) for p in like]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_steps_are_torch_s(settings):
    ours, theirs = parameters(), parameters()
    optimizer = local_optimizer(settings, ours, 0.5)
    options = settings.model_dump() | {"lr": settings.lr * 0.5}
    reference = CLASSES[settings.name](theirs, **options)
    for step in range(5):
        for group in (ours, theirs):
            for p, g in zip(group, gradients(group, step), strict=True):
                p.grad = g
        optimizer.step()
        reference.step()
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_rows_that_are_done_stay_and_the_others_go_on(settings):
    alone, together = parameters(), parameters()
    reference = local_optimizer(settings, alone, 1.0)
    optimizer = local_optimizer(settings, together, 1.0)
    leaves, stopped = together, None
    for step in range(6):
        if step == 3:
            stopped = [p.detach().clone() for p in together]
            leaves = optimizer.keep_first(2)
        wanted = gradients(alone, step)
        for p, g in zip(alone, wanted, strict=True):
            p.grad = g
        for p, g in zip(leaves, wanted, strict=True):
            p.grad = g[: len(p)]
        reference.step()
        optimizer.step()
    for a, b, before in zip(alone, together, stopped, strict=True):
        assert torch.equal(a[:2], b[:2])
        assert torch.equal(b[2:], before[2:])


def test_plain_sgd_does_without_the_compiler():
    """Which torch.optim's classes import, for seconds in every new process."""
    code = (
        "import sys, torch; from harness.federation.optimizers import local_optimizer; "
        "from harness.scenario import SGD; "
        "p = torch.zeros(3, requires_grad=True); p.grad = torch.ones(3); "
        "local_optimizer(SGD(lr=0.5, momentum=0.9), [p], 1.0).step(); "
        "assert p.tolist() == [-0.5] * 3; sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
