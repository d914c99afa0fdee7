"""Errors of the system around a command, in words: closed paths, no room for output, no working directory."""

from __future__ import annotations

import contextlib
import errno
import os
import sys

# What a path that somebody gave can be: whoever meets it first, its name says enough.
_PATHS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP}
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def explained(error: OSError) -> str | None:
    """What to say of an error; None for one that is a bug, or of which nobody knows what it is."""
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
