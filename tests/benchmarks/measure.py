"""What the benchmarks of this folder share: their options, clocks, facts of the machine, and how results are kept."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LIBRARIES = ("psr-harness", "torch", "numpy", "byzfl", "flwr", "pfl", "ray", "opacus", "torchattacks")


def options(documentation: str | None) -> argparse.ArgumentParser:
    """--quick and --out, which every benchmark has."""
    parser = argparse.ArgumentParser(
        description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small run that shows that the script works")
    parser.add_argument("--out", type=Path, help="where the JSON goes; default: beside the script")
    return parser


def machine() -> dict[str, Any]:
    """Processor, cores, versions: what a time means nothing without."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": os.getloadavg()[
            0
        ],  # of the last minute: well above what the benchmark uses, and times are noise
        "python": platform.python_version(),
        "versions": versions,
    }


def keep(script: str, args: argparse.Namespace, results: dict[str, Any]) -> Path:
    """Write the results, with the settings and the machine, as JSON. A quick run never replaces a full one's file."""
    file = args.out or Path(script).with_suffix(".quick.json" if args.quick else ".json")
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    known = {"settings": settings, "machine": machine(), **results}
    file.write_text(json.dumps(known, indent=2, default=str) + "\n", encoding="utf-8")
    print(f"wrote {file}")
    return file


def as_stages_compute() -> None:
    """torch's switches as stages set them: float32 is float32, and cuDNN's choices repeat themselves."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


def synchronise(device: str) -> None:
    """Waits for what a GPU was given to do; a CPU has done it."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def clock(run: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, what it returned)."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def table(rows: Sequence[dict[str, Any]]) -> None:
    """Rows of equal keys, aligned."""
    texts = [[_show(value) for value in row.values()] for row in rows]
    widths = [max(len(t[i]) for t in [*texts, list(rows[0])]) for i in range(len(rows[0]))]
    for line in [list(rows[0]), *texts]:
        print("  ".join(text.rjust(width) if i else text.ljust(width) for i, (text, width) in
                        enumerate(zip(line, widths, strict=True))))  # fmt: skip


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


def apart(script: str, *arguments: str) -> dict[str, Any]:
    """The JSON that a script prints last, run in a process of its own: its memory is then its own too."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def peak_memory() -> int:
    """The most bytes that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
