"""What the command line does when the system asks it to end, as schedulers and container engines do."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from harness.executors.interrupts import here


@contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """Inside, SIGTERM raises KeyboardInterrupt, so that what was done is kept, summed up and reported.

    Nothing changes outside the main thread, where Python allows no handlers to be set, or if SIGTERM already has one.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, here(_interrupt))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt() -> None:
    raise KeyboardInterrupt
