"""What of a process's global state a stage begins with, and that none of it is left to the next one.

Worker processes run one stage after another, and plugins share them with libraries that draw from global generators
or change defaults. A stage's numbers must come from its key alone, whatever ran before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from harness.devices import current
from harness.random import derive, global_generators

# What torch takes by itself, whatever was set before this module was imported.
_QUANTISED: Any = next(
    (name for name in ("x86", "onednn") if name in torch.backends.quantized.supported_engines),
    torch.backends.quantized.engine,
)
_AUTOCAST = ("cpu", "cuda")


@contextmanager
def isolated(key: str, device: str, threads: int, tf32: bool) -> Iterator[None]:
    """Inside, global generators are seeded from a stage's key and settings are the engine's; all come back after.

    threads: of one operation. tf32: whether float32 products may be rounded on the way. Settings are the GPU that
    `cuda` means, the number of threads, default dtype and device, gradient mode, deterministic algorithms, the
    precision of products, autocast (off), and whose kernels compute: oneDNN's, cuDNN's, and for quantised layers those
    that torch prefers here. Numbers too small for their exponent are kept, and nobody can ask whether they were before.
    """
    with current(device), _settings(threads, tf32), global_generators(derive("stage", key), device):
        yield


@contextmanager
def _settings(threads: int, tf32: bool) -> Iterator[None]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    default_device = torch.get_default_device()
    strict = _strict()
    flags = cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    precision, products = _precision(), matmul.allow_tf32
    quantized, mkldnn = torch.backends.quantized, torch.backends.mkldnn
    kernels = quantized.engine, mkldnn.enabled, cudnn.enabled
    autocast = {kind: torch.is_autocast_enabled(kind) for kind in _AUTOCAST}
    settle(threads, tf32)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_default_dtype(before[1])
        torch.set_default_device(None if default_device.type == "cpu" else default_device)
        torch.set_grad_enabled(before[2])
        for kind, enabled in autocast.items():
            torch.set_autocast_enabled(kind, enabled)
        _be_strict(*strict)
        torch.set_float32_matmul_precision(precision or "highest")
        if precision is None:
            matmul.allow_tf32 = products
        cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = flags
        quantized.engine, mkldnn.enabled, cudnn.enabled = kernels


def settle(threads: int, tf32: bool) -> None:
    """The settings that `isolated` states, for good: in a process that computes one stage and ends."""
    cudnn = torch.backends.cudnn
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    for kind in _AUTOCAST:  # not its context: within one, copies of weights are kept after they have changed
        torch.set_autocast_enabled(kind, False)
    _be_strict(False, False)
    torch.set_flush_denormal(False)
    # First for every backend at once: what a CPU may round is no part of `allow_tf32`.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    cudnn.deterministic, cudnn.benchmark = True, False
    torch.backends.quantized.engine = _QUANTISED
    torch.backends.mkldnn.enabled = cudnn.enabled = True  # type: ignore[assignment]


def _strict() -> tuple[bool, bool]:
    """Whether only deterministic algorithms are allowed, and others only warned of."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def _be_strict(enabled: bool, warn_only: bool) -> None:
    """Sets what `_strict` returns, only where it is another: torch imports its compiler to do so, 2.5 s and 150 MB."""
    if _strict() != (enabled, warn_only):
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def _precision() -> str | None:
    """Of float32 products; None where backends were set apart, which torch then has no word for."""
    with suppress(RuntimeError):
        return torch.get_float32_matmul_precision()
    return None
