"""Runs one command, and ends it and everything it started once this process's standard input closes.

    python guard.py COMMAND [ARGUMENT...]

Whoever starts a guard holds the other end of its standard input. When that process is done, fails or is killed, the
input closes and nothing is left behind: not the command, and not what the command put into the background. Processes
are found by their parents and ended by their ids. Uses the standard library alone, since it has to start at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

GRACE = 5.0  # seconds between asking processes to end and ending them
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: orphaned descendants become children of this process (Linux)


def main(command: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever holds our input
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    closed = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: closed.set())
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def watch() -> None:
        while os.read(0, 4096):
            pass
        closed.set()

    threading.Thread(target=watch, daemon=True).start()
    while child.poll() is None and not closed.wait(0.05):
        pass
    end_descendants(os.getpid())
    code = child.wait()
    return code if code >= 0 else 128 - code


def end_descendants(root: int) -> None:
    """End every process below `root`: by SIGTERM and, after GRACE seconds, by SIGKILL."""
    deadline = time.monotonic() + GRACE
    asked: set[int] = set()
    while left := descendants(root):
        late = time.monotonic() > deadline
        for pid in left:
            if late or pid not in asked:
                asked.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        time.sleep(0.05)


def descendants(*roots: int) -> list[int]:
    """The living processes below `roots`, children first; zombies among this process's own children are reaped."""
    children: dict[int, list[int]] = {}
    for pid, parent, dead in _processes():
        if dead:
            if parent in roots:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            continue
        children.setdefault(parent, []).append(pid)
    found, queue = [], [*roots]
    while queue:
        below = children.get(queue.pop(0), [])
        found += below
        queue += below
    return found


def _processes() -> list[tuple[int, int, bool]]:
    """(process, its parent, whether it is a zombie)."""
    found = []
    if Path("/proc/self/stat").exists():
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    # The name, in brackets, may hold anything, even brackets; the fields after the last one may not.
                    state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                    found.append((int(entry.name), int(parent), state == "Z"))
        return found
    own = os.getpid()
    listing = subprocess.Popen(["ps", "-A", "-o", "pid=,ppid=,stat="], stdout=subprocess.PIPE, text=True)
    for line in listing.communicate()[0].splitlines():
        pid, parent, state = line.split()[:3]
        if not (int(parent) == own and int(pid) == listing.pid):
            found.append((int(pid), int(parent), state.startswith("Z")))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
