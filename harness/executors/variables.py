"""Environment variables by which the server that workers are forked from is told how to start."""

from __future__ import annotations

PRELOAD = "_HARNESS_PRELOAD"  # modules to import, with commas between
SAFE_PATH = "PYTHONSAFEPATH"  # Python's own: leaves the working directory out of the import path
SAFE_PATH_OF_SERVER = "workers"  # any text counts; this one says that the user did not set it
# PyTorch's own: asked whether there is a GPU, it looks without starting CUDA, which no forked process could use then.
NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
