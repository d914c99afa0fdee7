"""Ctrl-C and SIGTERM wait while something is done that must not be left half-way."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM are only noted; what they would have done comes at the end, once for each.

    Blocking them for this thread would not do: another thread would take them, and Python tells the main thread.
    Nothing changes outside the main thread, whose handlers are the only ones, or for signals that Python leaves to
    the system or to code that is not Python's.
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
    """A handler for this process alone: in one that is forked from it the signal does what it does by default."""
    own = os.getpid()

    def handler(number: int, _: FrameType | None) -> None:
        if os.getpid() == own:
            handle()
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    return handler
