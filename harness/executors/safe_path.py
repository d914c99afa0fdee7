"""The variable by which a Python that starts leaves the working directory out of its import path."""

from __future__ import annotations

SAFE_PATH = "PYTHONSAFEPATH"
SAFE_PATH_OF_SERVER = "workers"  # any text counts; this one says that the user did not set it
