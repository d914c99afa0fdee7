"""Imported once by the server that workers are forked from; imports what every stage would otherwise import itself."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal

from harness.executors.variables import NVML, PRELOAD, SAFE_PATH, SAFE_PATH_OF_SERVER

signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends this process
# Blocked until here by `_ensure_server`, which started this process.
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

if os.environ.get(SAFE_PATH) == SAFE_PATH_OF_SERVER:
    # It was meant for this process only: programs that plugins start must find the user's environment.
    del os.environ[SAFE_PATH]

_asked = os.environ.get(NVML)
os.environ[NVML] = "1"  # some libraries ask for a GPU while they are imported
for _name in ["harness.stages", *filter(None, os.environ.get(PRELOAD, "").split(","))]:
    with contextlib.suppress(ImportError):  # a stage that needs the module reports the error itself
        importlib.import_module(_name)
if _asked is None:
    del os.environ[NVML]
else:
    os.environ[NVML] = _asked

with contextlib.suppress(ImportError):
    from harness.provenance import engine

    # Cached: looked up once, here, close to the import of what it describes, and not again in every worker.
    engine()
