"""Imported once by the server that workers are forked from: what every stage would otherwise import itself."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal

from harness.executors.variables import NVML, PRELOAD, SAFE_PATH, SAFE_PATH_OF_SERVER

signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which ends this process
# Held back until here by what started this process.
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

if os.environ.get(SAFE_PATH) == SAFE_PATH_OF_SERVER:
    # It was for this process: programs that plugins start find what they always did.
    del os.environ[SAFE_PATH]

_asked = os.environ.get(NVML)
os.environ[NVML] = "1"  # some libraries ask while they are imported
for _name in ["harness.stages", *filter(None, os.environ.get(PRELOAD, "").split(","))]:
    with contextlib.suppress(ImportError):  # a stage that needs it says so itself
        importlib.import_module(_name)
if _asked is None:
    del os.environ[NVML]
else:
    os.environ[NVML] = _asked

with contextlib.suppress(ImportError):
    from harness.provenance import engine

    engine()  # here, beside the import of what it describes, and not once more in every worker
