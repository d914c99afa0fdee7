"""Which device to run on, and how much memory was used."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from harness.errors import HarnessError


def resolve_device(name: str) -> str:
    """auto | cpu | cuda | cuda:i -> a device that exists. Raises HarnessError."""
    if name == "cpu":
        return name
    if name != "auto" and not re.fullmatch(r"cuda(:\d+)?", name):
        raise HarnessError(f"unknown device {name!r}; valid: auto, cpu, cuda, cuda:0, cuda:1, ...")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    if not count:
        raise HarnessError(f"device {name}: no CUDA device is available here; use --device cpu")
    if ":" in name and int(name.split(":")[1]) >= count:
        raise HarnessError(f"device {name}: there are {count} CUDA devices, cuda:0 to cuda:{count - 1}")
    return name


class PeakMemory:
    """Peak memory of this process (CPU, resident) or of the device (CUDA, allocated) since `start`, in bytes."""

    def __init__(self, device: str) -> None:
        self.device = device
        if device.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats(device)
        else:
            with contextlib.suppress(OSError):  # where the kernel refuses, the peak is the process's own
                Path("/proc/self/clear_refs").write_text("5")

    def bytes(self) -> int:
        """The peak so far."""
        if self.device.startswith("cuda"):
            import torch

            return int(torch.cuda.max_memory_allocated(self.device))
        status = Path("/proc/self/status")
        if status.exists():
            match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
            if match:
                return int(match[1]) * 1024
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
