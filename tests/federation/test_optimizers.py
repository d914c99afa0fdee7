"""Local optimisers are torch's own, to the last bit, also where some of the stacked rows are done before others."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import torch

from harness.federation.optimizers import _Sgd, local_optimizer
from harness.scenario import SGD, Adam, NAdam

SETTINGS = [
    SGD(lr=0.1),
    SGD(lr=0.1, momentum=0.9),
    SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    SGD(lr=0.1, weight_decay=0.5),
    Adam(lr=0.1, weight_decay=0.01),
    NAdam(lr=0.1),
]
CLASSES = {"sgd": torch.optim.SGD, "adam": partial(torch.optim.Adam, fused=True), "nadam": torch.optim.NAdam}


def parameters(rows=4):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, *shape, generator=generator).requires_grad_() for shape in ((3, 2), (5,))]


def gradients(like, step):
    generator = torch.Generator().manual_seed(step + 1)
    return [torch.randn(p.shape, generator=generator) for p in like]


def same_steps(optimizer, ours, reference, theirs):
    """Both take five steps along the same gradients."""
    for step in range(5):
        for group in (ours, theirs):
            for p, g in zip(group, gradients(group, step), strict=True):
                p.grad = g
        optimizer.step()
        reference.step()
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_steps_are_torch_s(settings):
    ours, theirs = parameters(), parameters()
    optimizer = local_optimizer(settings, ours, 0.5)
    options = settings.model_dump() | {"lr": settings.lr * 0.5}
    same_steps(optimizer, ours, CLASSES[settings.name](theirs, **options), theirs)


def test_fused_steps_are_the_plain_ones_up_to_rounding():
    settings, fused, plain = (
        Adam(lr=0.01, weight_decay=0.01),
        parameters(),
        [p.double() for p in parameters()],
    )
    plain = [p.detach().requires_grad_() for p in plain]
    optimizer = local_optimizer(settings, fused, 1.0)
    options = settings.model_dump() | {"fused": False, "foreach": False}
    reference = torch.optim.Adam(plain, **options)
    for step in range(20):
        for p, q, g in zip(fused, plain, gradients(fused, step), strict=True):
            p.grad, q.grad = g, g.double()
        optimizer.step()
        reference.step()
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=2e-6)


@pytest.mark.parametrize("settings", [s for s in SETTINGS if s.name == "sgd"], ids=str)
def test_sgd_s_fused_kernel_as_a_gpu_gets_it(settings):
    ours, theirs = parameters(), parameters()
    optimizer = _Sgd(ours, settings.model_dump() | {"fused": True})
    same_steps(optimizer, ours, torch.optim.SGD(theirs, fused=True, **settings.model_dump()), theirs)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_gradient_s_layout_in_memory_does_not_matter(settings, fused):
    shape = (6, 4, 3, 3)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layouts = [start, start.to(memory_format=torch.channels_last)]
    ours = [p.clone(memory_format=torch.preserve_format).requires_grad_() for p in layouts]
    theirs = start.clone().requires_grad_()
    options = settings.model_dump()
    if settings.name == "sgd":
        optimizer = _Sgd(ours, options | {"fused": fused})
    else:
        optimizer = local_optimizer(settings, ours, 1.0)
    plain = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "nadam": torch.optim.NAdam}[settings.name]
    reference = plain([theirs], foreach=False, **options)
    for step in range(3):
        (gradient,) = gradients([start], step)
        gradient = gradient.double()
        theirs.grad = gradient
        ours[0].grad = gradient.to(memory_format=torch.channels_last)
        ours[1].grad = gradient.clone() if step else gradient[:1].expand(shape)
        if not step:
            ours[0].grad = theirs.grad = gradient[:1].expand(shape)
        optimizer.step()
        reference.step()
    for p in ours:
        torch.testing.assert_close(p, theirs, rtol=1e-12, atol=1e-12)


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
        if settings.name == "adam":  # in a fused kernel the last bit depends on a number's place
            torch.testing.assert_close(a[:2], b[:2], rtol=1e-6, atol=1e-6)
        else:
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
