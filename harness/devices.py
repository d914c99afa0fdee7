"""Which device to run on, and how much memory was used."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from functools import cache
from pathlib import Path

from harness.errors import HarnessError


def check_name(name: str) -> None:
    """Raises HarnessError for a name that no device can have, whatever devices this machine has."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise HarnessError(f"unknown device {name!r}; valid: auto, cpu, cuda, cuda:0, cuda:1, ...")


def resolve_device(name: str) -> str:
    """auto | cpu | cuda | cuda:i -> a device that exists. Raises HarnessError."""
    check_name(name)
    if name == "cpu":
        return name
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    if not count:
        raise HarnessError(f"device {name}: no CUDA device is available here; use --device cpu")
    if ":" in name and int(name.split(":")[1]) >= count:
        raise HarnessError(f"device {name}: there are {count} CUDA devices, cuda:0 to cuda:{count - 1}")
    return name


def current(device: str) -> contextlib.AbstractContextManager[object]:
    """Makes a GPU the current one inside the block, so that plugins and libraries that say `cuda` find the data.

    With several GPUs, `cuda` would otherwise mean the first one in every worker.
    """
    if not device.startswith("cuda:"):
        return contextlib.nullcontext()
    import torch

    return torch.cuda.device(device)


CONTEXT = 2**30  # bytes that a CUDA process takes beside its tensors: context, kernels, workspaces
FRAGMENTED = 1.3  # bytes that the allocator reserves for each byte allocated at the peak
USED = 0.9  # the share of a GPU's free memory that is planned with


def processes_per_gpu(free: int, peak: int, cores: int) -> int:
    """How many worker processes can share one GPU that a single cell does not fill; at least 1.

    free: bytes free on the GPU. peak: the most bytes that a stage like those to come has allocated. cores: CPU cores
    per GPU; more processes than cores would wait for one another.
    """
    fitting = int(USED * free / (FRAGMENTED * peak + CONTEXT))
    return max(1, min(fitting, cores))


def gpu_count(device: str) -> int:
    """How many GPUs of this machine `device` names."""
    if not device.startswith("cuda"):
        return 0
    import torch

    return torch.cuda.device_count() if device == "cuda" else 1


def free_memory(device: str) -> list[int]:
    """Bytes free on each GPU that `device` names: `cuda` for all, or `cuda:i`."""
    import torch

    names = [f"cuda:{i}" for i in range(gpu_count(device))] if device == "cuda" else [device]
    return [int(torch.cuda.mem_get_info(name)[0]) for name in names]


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
# A freed block is kept if it has at most so many bytes: the first if the C library accepts it, as older ones do not.
KEPT = (2**30, 2**25)


def keep_freed_memory() -> None:
    """Makes this process keep freed memory until `give_back_memory`, instead of fetching it again page by page.

    The server's half of a round allocates and frees matrices of all updates; fetching their pages each time costs time.
    Changes nothing where the C library is not glibc.
    """
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is not None and any(mallopt(M_MMAP_THRESHOLD, size) for size in KEPT):
        mallopt(M_TRIM_THRESHOLD, KEPT[0])


@cache
def _libc() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):  # TypeError: Windows
        return None


def give_back_memory(device: str) -> None:
    """Free what a finished stage left: reference cycles, and blocks that allocators keep for themselves."""
    gc.collect()
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()


class PeakMemory:
    """Peak memory of this process (CPU, resident) or on the device (CUDA, allocated) from its creation on, in bytes."""

    def __init__(self, device: str) -> None:
        self.device = device
        if device.startswith("cuda"):
            import torch

            torch.cuda.init()  # without it the allocator does not know the device in a new process
            torch.cuda.reset_peak_memory_stats(device)
        else:
            # Where the kernel refuses, the peak is that of the process's whole life.
            with contextlib.suppress(OSError):
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
