"""Errors of the system around a command, in words: unusable paths, no room for output, no working directory."""

from __future__ import annotations

import contextlib
import errno
import os
import sys

# What can be wrong with a path that the user gave: its name says enough, whatever code met it first.
_PATHS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP}
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def explained(error: OSError) -> str | None:
    """A message for the user; None for an error that is a bug, or whose cause is not known."""
    if error.errno in _FULL:
        # What is left in the buffer would raise the same once more when Python ends.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return f"{error.filename or 'the output'} cannot be written: {error.strerror}"
    if error.errno in _PATHS and error.filename:
        return f"{_short(str(error.filename))}: {error.strerror}"
    try:
        os.getcwd()
    except FileNotFoundError:
        return "the working directory is gone; change to one that exists"
    return None


def _short(path: str) -> str:
    return path if len(path) <= 200 else f"{path[:100]}...{path[-97:]}"
