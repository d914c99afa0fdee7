"""Holds Ctrl-C and SIGTERM back while something is done that must not be left half-way."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM are only noted; their handlers run at the end, once for each signal that came.

    Blocking the signals for this thread would not do: another thread would receive them, and Python would still run
    their handlers in the main thread. Outside the main thread nothing changes, since handlers never run there. Nor does
    it for signals whose handling is left to the system or was not installed from Python.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: dict[int, FrameType | None] = {}
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    held = {number: handler for number, handler in usual.items() if callable(handler)}
    for number in held:
        signal.signal(number, seen.__setitem__)
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
        for number, handler in held.items():
            if number in seen:
                handler(number, seen[number])


def here(handle: Callable[[], object]) -> Callable[[int, FrameType | None], None]:
    """A signal handler for this process alone; in a process forked from it, the signal has its default effect."""
    own = os.getpid()

    def handler(number: int, _: FrameType | None) -> None:
        if os.getpid() == own:
            handle()
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    return handler
