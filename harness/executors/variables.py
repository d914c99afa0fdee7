"""Environment variables that tell the server from which workers are forked how to start."""

from __future__ import annotations

PRELOAD = "_HARNESS_PRELOAD"  # modules to import, with commas between
SAFE_PATH = "PYTHONSAFEPATH"  # Python's own: leaves the working directory out of the import path
SAFE_PATH_OF_SERVER = "workers"  # any text turns it on; this one shows that the harness set it, not the user
# PyTorch's own: it then looks for GPUs without initialising CUDA, which no forked process could use afterwards.
NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
