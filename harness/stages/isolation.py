"""What of a process's global state a stage begins with, and that none of it is left to the next one.

Worker processes run one stage after another, and plugins share them with libraries that draw from global generators
or change defaults. A stage's numbers must come from its key alone, whatever ran before it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any
from warnings import catch_warnings

import numpy as np
import torch

from harness.devices import current
from harness.random import derive, global_generators

# What torch takes by itself, whatever was set before this module was imported.
_QUANTISED: Any = next(
    (name for name in ("x86", "onednn") if name in torch.backends.quantized.supported_engines),
    torch.backends.quantized.engine,
)
_AUTOCAST = ("cpu", "cuda")
_ATTENTION = ("flash", "mem_efficient", "math", "cudnn")  # the kernels that may compute it
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
# Where torch keeps the hooks of all modules and of all optimisers.
_HOOKED = [import_module(name) for name in ("torch.nn.modules.module", "torch.optim.optimizer")]


@contextmanager
def isolated(key: str, device: str, threads: int, tf32: bool) -> Iterator[None]:
    """Inside, global generators are seeded from a stage's key and settings are the engine's; all come back after.

    threads: of one operation. tf32: whether float32 products may be rounded on the way. Settings are the GPU that
    `cuda` means, the number of threads, default dtype and device, gradient mode, deterministic algorithms, the
    precision of products, autocast (off), and whose kernels compute: oneDNN's, cuDNN's, all that know attention, and
    for quantised layers those that torch prefers here. There are no hooks of all modules or optimisers, or of what is
    saved for gradients. Numbers too small for their exponent are kept, and nobody can ask whether they were before.
    Torch's function and dispatch modes, warnings' filters, NumPy's error handling, handlers of signals, values of
    environment variables and the working directory only come back.
    """
    with (
        current(device),
        torch.inference_mode(False),
        _settings(threads, tf32),
        _hooks(),
        _hooks_of_what_is_saved(),
        _modes(),
        catch_warnings(),
        np.errstate(),
        _folder(),
        _environment(),
        _signals(),
        global_generators(derive("stage", key), device),
        _one_process(),
    ):
        yield


@contextmanager
def _one_process() -> Iterator[None]:
    """A process that a plugin forked and did not end goes no further: it would be a second worker, or a second run."""
    own = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != own:
            if sys.exc_info()[0] is not None:
                traceback.print_exc()
            os._exit(1)


@contextmanager
def _folder() -> Iterator[None]:
    """The working directory comes back, if it is still there."""
    before = None
    with suppress(FileNotFoundError):
        before = os.getcwd()
    try:
        yield
    finally:
        if before is not None:
            with suppress(FileNotFoundError):
                os.chdir(before)


@contextmanager
def _environment() -> Iterator[None]:
    """Environment variables come back; new ones stay, since libraries set theirs once, when they are imported."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name, value in before.items():
            if os.environ.get(name) != value:
                os.environ[name] = value


@contextmanager
def _signals() -> Iterator[None]:
    """Handlers come back, and timers that were set inside are off: they would go off in another stage."""
    if threading.current_thread() is not threading.main_thread():
        yield  # nobody can set a handler here
        return
    idle = [timer for timer in _TIMERS if not signal.getitimer(timer)[0]]
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        yield
    finally:
        for timer in idle:
            signal.setitimer(timer, 0)
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)


@contextmanager
def _hooks() -> Iterator[None]:
    """None of all modules or optimisers inside; those from before come back."""
    tables = [
        table
        for module in _HOOKED
        for name, table in vars(module).items()
        if name.startswith("_global_") and isinstance(table, dict)
    ]
    before = [dict(table) for table in tables]
    for table in tables:
        table.clear()
    try:
        yield
    finally:
        for table, hooks in zip(tables, before, strict=True):
            table.clear()
            table.update(hooks)


@contextmanager
def _hooks_of_what_is_saved() -> Iterator[None]:
    """None of `torch.autograd.graph.saved_tensors_hooks` inside; those from before come back."""
    before = _without_hooks_of_what_is_saved()
    try:
        yield
    finally:
        _without_hooks_of_what_is_saved()
        for pack, unpack in reversed(before):
            torch._C._autograd._push_saved_tensors_default_hooks(pack, unpack)


def _without_hooks_of_what_is_saved() -> list[tuple[Any, Any]]:
    """Takes them off, the innermost first."""
    found = []
    while (hooks := torch._C._autograd._top_saved_tensors_default_hooks(True)) is not None:
        found.append(hooks)
        torch._C._autograd._pop_saved_tensors_default_hooks()
    return found


@contextmanager
def _modes() -> Iterator[None]:
    """Function and dispatch modes that are entered inside are left."""
    ways = (
        (torch._C._len_torch_function_stack, torch._C._pop_torch_function_stack),
        (torch._C._len_torch_dispatch_stack, lambda: torch._C._pop_torch_dispatch_stack(None)),
    )
    before = [count() for count, _ in ways]
    try:
        yield
    finally:
        for (count, pop), depth in zip(ways, before, strict=True):
            while count() > depth:
                pop()


@contextmanager
def _settings(threads: int, tf32: bool) -> Iterator[None]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = torch.get_num_threads(), torch.get_default_dtype()
    default_device = torch.empty(0).device  # get_default_device fails after a None, up to torch 2.9 at least
    strict = _strict()
    flags = cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    precision, products = _precision(), matmul.allow_tf32
    quantized, mkldnn = torch.backends.quantized, torch.backends.mkldnn
    kernels = quantized.engine, mkldnn.enabled, cudnn.enabled
    autocast = {kind: torch.is_autocast_enabled(kind) for kind in _AUTOCAST}
    attention = [getattr(torch.backends.cuda, f"{kind}_sdp_enabled")() for kind in _ATTENTION]
    settle(threads, tf32)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_default_dtype(before[1])
        torch.set_default_device(None if default_device.type == "cpu" else default_device)
        for kind, enabled in autocast.items():
            torch.set_autocast_enabled(kind, enabled)
        _attend(attention)
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
    _attend([True] * len(_ATTENTION))
    torch.backends.quantized.engine = _QUANTISED
    torch.backends.mkldnn.enabled = cudnn.enabled = True  # type: ignore[assignment]


def _attend(enabled: list[bool]) -> None:
    for kind, on in zip(_ATTENTION, enabled, strict=True):
        getattr(torch.backends.cuda, f"enable_{kind}_sdp")(on)


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
