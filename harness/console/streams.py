"""Standard output and error that outlive their readers: `harness run ... | head -1` is scored to its end."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


class _Outlives(io.FileIO):
    """A file whose reader may leave: what is written after that is lost, and no error. lossy: whatever the error."""

    def __init__(self, descriptor: int, *, lossy: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._lossy = lossy

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if not self._lossy and not isinstance(error, BrokenPipeError):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(data)


def outlive_readers() -> None:
    """From here on a closed pipe is no error, and on standard error nothing is: no result goes there.

    Streams that somebody else has replaced stay as they are.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream is getattr(sys, f"__{name}__"):
            file: Any = _Outlives(stream.fileno(), lossy=name == "stderr")
            wrapped = io.TextIOWrapper(
                io.BufferedWriter(file),
                stream.encoding,
                stream.errors,
                line_buffering=stream.line_buffering or stream.write_through,
            )
            setattr(sys, name, wrapped)
