"""Isolates stages: each begins with the same global state of the process, and leaves none of its own to the next.

Worker processes run one stage after another, and plugins share them with libraries that draw from global generators
or change defaults. A stage's numbers must depend on its key alone, whatever ran before it.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any
from warnings import catch_warnings

import numpy as np
import torch

from harness.devices import current
from harness.random import derive, global_generators

# The engine for quantised layers that torch prefers, whatever was set before this module was imported.
_QUANTISED: Any = next(
    (name for name in ("x86", "onednn") if name in torch.backends.quantized.supported_engines),
    torch.backends.quantized.engine,
)
_AUTOCAST = ("cpu", "cuda")
_ATTENTION = ("flash", "mem_efficient", "math", "cudnn")  # the kernels that may compute it
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
# Where torch keeps its global hooks: those that apply to all modules, and those that apply to all optimisers.
_HOOKED = [import_module(name) for name in ("torch.nn.modules.module", "torch.optim.optimizer")]


@contextmanager
def isolated(key: str, device: str, threads: int, tf32: bool) -> Iterator[None]:
    """Inside, global generators are seeded from a stage's key and settings are the engine's; all are restored after.

    threads: of one operation. tf32: whether the GPU may round the factors of float32 products to TF32.

    The settings are the GPU that `cuda` means, the number of threads, default dtype and device, gradient mode,
    deterministic algorithms, the precision of products, autocast (off), and which kernels compute: oneDNN's, cuDNN's,
    all implementations of attention, and for quantised layers those that torch prefers here. Global hooks of modules
    and optimisers, and hooks on tensors saved for gradients, are off. Denormal numbers are kept, not flushed to zero;
    that setting is not restored, since torch does not tell what it was before. Torch's function and dispatch modes,
    warning filters, NumPy's error handling, signal handlers, values of environment variables, the working directory,
    permissions of new files, the recursion limit and whether garbage is collected are not set, only restored.
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
        _interpreter(),
        _signals(),
        global_generators(derive("stage", key), device),
        _one_process(),
    ):
        yield


@contextmanager
def _one_process() -> Iterator[None]:
    """Ends a process that a plugin forked inside and that gets here: it would go on as a second worker or run."""
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
    """Restores the working directory, if it still exists."""
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
    """Restores environment variables; new ones stay, since libraries set theirs once, when they are imported."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name, value in before.items():
            if os.environ.get(name) != value:
                os.environ[name] = value


@contextmanager
def _interpreter() -> Iterator[None]:
    """Restores the permissions that new files lack, the recursion limit and whether garbage is collected."""
    mask = os.umask(0o77)  # it can only be read by setting it
    os.umask(mask)
    limit, collects = sys.getrecursionlimit(), gc.isenabled()
    try:
        yield
    finally:
        os.umask(mask)
        sys.setrecursionlimit(limit)
        (gc.enable if collects else gc.disable)()


@contextmanager
def _signals() -> Iterator[None]:
    """Restores signal handlers, and stops timers that were set inside: they would go off in another stage."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python sets handlers in the main thread only
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
    """Removes the global hooks of modules and optimisers, and restores them after."""
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
    """Removes the hooks of `torch.autograd.graph.saved_tensors_hooks`, and restores them after."""
    before = _without_hooks_of_what_is_saved()
    try:
        yield
    finally:
        _without_hooks_of_what_is_saved()
        for pack, unpack in reversed(before):
            torch._C._autograd._push_saved_tensors_default_hooks(pack, unpack)


def _without_hooks_of_what_is_saved() -> list[tuple[Any, Any]]:
    """Removes those hooks and returns them, the innermost first; none where torch cannot name them (before 2.7)."""
    found: list[tuple[Any, Any]] = []
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    if top is None:
        return found
    while (hooks := top(True)) is not None:
        found.append(hooks)
        torch._C._autograd._pop_saved_tensors_default_hooks()
    return found


@contextmanager
def _modes() -> Iterator[None]:
    """Leaves torch's function and dispatch modes that were entered inside and are still active at the end."""
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
    # Not get_default_device: it fails after set_default_device(None), up to torch 2.9 at least.
    default_device = torch.empty(0).device
    strict = _strict()
    flags = cudnn.deterministic, cudnn.benchmark
    precision = _told(torch.get_float32_matmul_precision)
    products, convolutions = _told(lambda: matmul.allow_tf32), _told(lambda: cudnn.allow_tf32)
    quantized, mkldnn = torch.backends.quantized, torch.backends.mkldnn
    places = [(place, place.fp32_precision) for place in _places()]
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
        if precision is None and products is not None:
            matmul.allow_tf32 = products
        if convolutions is not None:
            cudnn.allow_tf32 = convolutions
        cudnn.deterministic, cudnn.benchmark = flags
        for place, value in places:
            if place.fp32_precision != value:
                place.fp32_precision = value
        quantized.engine, mkldnn.enabled, cudnn.enabled = kernels


def settle(threads: int, tf32: bool) -> None:
    """Makes the settings of `isolated`, except the GPU, for good: in a process that computes one stage and ends."""
    cudnn = torch.backends.cudnn
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    # Not torch.autocast's context: inside one, cast copies of weights are kept after the weights have changed.
    for kind in _AUTOCAST:
        torch.set_autocast_enabled(kind, False)
    _be_strict(False, False)
    torch.set_flush_denormal(False)
    for place in _places():  # what the settings below leave out, or take over from the one for all backends
        if place.fp32_precision != "none":
            place.fp32_precision = "none"
    # First for every backend at once, since `allow_tf32` does not cover what a CPU may round.
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
    """Whether deterministic algorithms are required, and whether others then only cause a warning."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def _be_strict(enabled: bool, warn_only: bool) -> None:
    """Sets what `_strict` returns, only if it differs: torch imports its compiler to do so, 2.5 s and 150 MB."""
    if _strict() != (enabled, warn_only):
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def _places() -> list[Any]:
    """Where `fp32_precision` can be set, those that others follow first; nowhere before torch 2.9."""
    backends: Any = torch.backends
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    if not hasattr(cudnn, "conv"):
        return []
    own = [cudnn.conv, cudnn.rnn, mkldnn.conv, mkldnn.rnn, backends.cuda.matmul, mkldnn.matmul]
    return [backends, cudnn, mkldnn, *own]


def _told(setting: Callable[[], Any]) -> Any:
    """A setting; None where `fp32_precision` was set instead, and torch cannot tell it."""
    with suppress(RuntimeError):
        return setting()
    return None
