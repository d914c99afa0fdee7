"""How fast and how lean the aggregation rules are, beside ByzFL's on the same updates in the same process.

    python tests/benchmarks/aggregators.py
    python tests/benchmarks/aggregators.py --device cuda --n 100 --d 10000000 --json aggregators.json

Ours and ByzFL's take turns; a figure is the median of the repeats. The rule alone is timed: that rows are finite is
checked by the server, once a round, whatever the rule. Memory is what a rule needs at its peak beside the
updates, as a multiple of them, measured in a process of its own.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS = 10  # Weiszfeld steps of both geometric medians
SMALL = 16  # clients of the exponential rules
TARGETS = {"nnm": 15.0, "median": 1.5, "trimmed-mean": 1.5, "meamed": 1.5, "krum": 1.5}


def peers(f: int) -> dict[str, tuple[dict[str, Any], Callable[[], Any]]]:
    """Rule -> the parameters that make ours the peer's rule, and the peer's, which needs byzfl when it is called."""
    byzfl: Any = importlib.import_module("byzfl") if importlib.util.find_spec("byzfl") else None
    return {
        "mean": ({}, lambda: byzfl.Average()),
        "median": ({}, lambda: byzfl.Median()),
        "trimmed-mean": ({"f": f}, lambda: byzfl.TrMean(f)),
        "meamed": ({"f": f}, lambda: byzfl.Meamed(f)),
        "krum": ({"f": f}, lambda: byzfl.Krum(f)),
        "multi-krum": ({"f": f}, lambda: byzfl.MultiKrum(f)),
        "geometric-median": (
            {"nu": 0.1, "iterations": STEPS, "start": "zero", "tolerance": 0.0},
            lambda: byzfl.GeometricMedian(nu=0.1, T=STEPS),
        ),
        "monna": ({"f": f, "trusted": 0}, lambda: byzfl.MoNNA(f, 0)),
        "caf": ({"f": f}, lambda: byzfl.CAF(f)),
        "mda": ({"f": min(f, 3)}, lambda: byzfl.MDA(min(f, 3))),
        "smea": ({"f": min(f, 3)}, lambda: byzfl.SMEA(min(f, 3))),
        "centered-clipping": ({"tau": 100.0}, lambda: byzfl.CenteredClipping(None, 1, 100.0)),
        "nnm": ({"f": f}, lambda: byzfl.NNM(f)),
        "bucketing": ({"s": 2}, lambda: byzfl.Bucketing(2)),
        "clipping": ({"tau": 2.0}, lambda: byzfl.Clipping(2.0)),
        "arc": ({"f": f}, lambda: byzfl.ARC(f)),
    }


ALONE: dict[str, dict[str, Any]] = {
    "bulyan": {}, "dnc": {}, "signguard": {}, "foolsgold": {}, "fltrust": {}, "norm-clipping": {},
    "clipped-clustering": {}, "rlr": {}, "lasa": {}, "flame": {}, "auror": {}, "fldetector": {}, "crfl": {},
}  # fmt: skip


def updates(n: int, d: int, device: str) -> Any:
    import torch

    return torch.randn(n, d, generator=torch.Generator(device).manual_seed(0), device=device)


def context(x: Any) -> dict[str, Any]:
    own = x[0].clone()
    return {"root_update": lambda: own, "global_weights": own}


def clock(call: Callable[[], Any], device: str, times: int = 1) -> float:
    """Seconds of one call, the mean of several in a row."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(times):
        call()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / times


def measure(
    first: Callable[[], Any], second: Callable[[], Any] | None, device: str
) -> tuple[float, float | None]:
    """Median seconds of both, taking turns; more turns, of several calls each, for what is quick."""
    warm = clock(first, device)
    turns, times = (3, 1) if warm > 0.5 else (7, 1) if warm > 0.02 else (15, 10)
    if second is not None and clock(second, device) > 5:
        turns = times = 1
    ours, theirs = [], []
    for _ in range(turns):
        ours.append(clock(first, device, times))
        if second is not None:
            theirs.append(clock(second, device, times))
    return statistics.median(ours), statistics.median(theirs) if theirs else None


def memory(name: str, parameters: dict[str, Any], n: int, d: int, f: int, device: str) -> float:
    """Peak beside the input, as a multiple of it, in a fresh process."""
    order = json.dumps([name, parameters, n, d, f, device])
    environment = {**os.environ, "HARNESS_BENCHMARK": order}
    result = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=True
    )
    return float(result.stdout.split()[-1])


def memory_child(order: str) -> None:
    import torch

    import harness

    name, parameters, n, d, f, device = json.loads(order)
    rule = harness.create("aggregator", name, **parameters)
    rule(updates(n, 64, device), f=f, **context(updates(n, 64, device)))  # libraries loaded, kernels set up
    x = updates(n, d, device)
    given = context(x)
    gc.collect()
    size = x.numel() * x.element_size()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        rule(x, f=f, **given)
        extra = torch.cuda.max_memory_allocated() - before
    else:
        before = resident()
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        rule(x, f=f, **given)
        extra = max(0, high_water() - before)
    print(extra / size)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def high_water() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise OSError("this system does not say how much memory a process needed")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=50, help="clients")
    parser.add_argument("--f", type=int, default=10, help="malicious clients tolerated")
    parser.add_argument("--d", type=int, nargs="+", default=[1_000_000, 10_000], help="coordinates")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", nargs="+", help="these rules alone")
    parser.add_argument("--json", help="file to write the figures to")
    options = parser.parse_args()
    if options.device == "cpu" and importlib.util.find_spec("byzfl") is None:
        parser.error("byzfl is not installed: pip install byzfl")

    import torch
    from rich.console import Console
    from rich.table import Table

    import harness
    from harness.contracts.aggregator import default_context
    from harness.errors import PluginError

    torch.set_num_threads(options.threads)
    console, f = Console(), options.f
    with_peer = peers(f) if options.device == "cpu" else {}
    found: list[dict[str, Any]] = []
    for d in options.d:
        table = Table(
            title=f"n = {options.n}, f = {f}, d = {d:,}, float32, {options.threads} threads, {options.device}"
        )
        for header in ("rule", "ours, ms", "ByzFL, ms", "ratio", "extra memory"):
            table.add_column(header, justify="left" if header == "rule" else "right")
        x, left_out = updates(options.n, d, options.device), []
        for name, parameters in {**{k: v[0] for k, v in peers(f).items()}, **ALONE}.items():
            if options.only and name not in options.only:
                continue
            tolerated = parameters.get("f", f)
            rows = x[:SMALL] if name in ("mda", "smea") else x
            rule, given = harness.create("aggregator", name, **parameters), context(rows)
            try:
                known = default_context(rule, rows, tolerated, **given)
            except PluginError as error:  # it needs more clients
                left_out.append(str(error))
                continue
            peer = with_peer[name][1]() if name in with_peer else None
            # Two of ByzFL's write into their input: clipped once, there is nothing left to do. They get a copy a time.
            fresh = name in ("clipping", "arc")

            run = rule.transform if rule.pre else rule.aggregate

            def ours(run=run, rows=rows, known=known):  # type: ignore[no-untyped-def]
                return run(rows, known)

            def byzfl(peer=peer, rows=rows, fresh=fresh):  # type: ignore[no-untyped-def]
                return peer(rows.clone() if fresh else rows)

            seconds, theirs = measure(ours, None if peer is None else byzfl, options.device)
            extra = (
                memory(name, parameters, len(rows), d, tolerated, options.device) if d >= 10**6 else math.nan
            )
            ratio = None if theirs is None else theirs / seconds
            found.append({"rule": name, "n": len(rows), "f": tolerated, "d": d, "seconds": seconds,
                          "byzfl_seconds": theirs, "ratio": ratio,
                          "extra_memory": None if math.isnan(extra) else extra})  # fmt: skip
            target = TARGETS.get(name, 1.0)
            shown = (
                ""
                if ratio is None
                else f"{ratio:.1f}×" + ("" if ratio >= target else f"  (target {target:g}×)")
            )
            label = f"{name} (n = {SMALL}, f = {tolerated})" if len(rows) < options.n else name
            table.add_row(label, f"{1000 * seconds:.3g}", "" if theirs is None else f"{1000 * theirs:.4g}", shown,
                          "" if math.isnan(extra) else f"{extra:.2f}×")  # fmt: skip
            print(f"{d:,} {label}", file=sys.stderr)
        console.print(table)
        for reason in left_out:
            console.print(f"left out: {reason}", markup=False)
    if options.json:
        facts = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                 "threads": options.threads, "device": options.device, "torch": torch.__version__,
                 "python": platform.python_version()}  # fmt: skip
        Path(options.json).write_text(json.dumps({"machine": facts, "figures": found}, indent=1) + "\n")


if __name__ == "__main__":
    if "HARNESS_BENCHMARK" in os.environ:
        memory_child(os.environ["HARNESS_BENCHMARK"])
    else:
        main()
