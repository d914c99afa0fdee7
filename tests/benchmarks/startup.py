"""How long the first command takes: `harness --help` and `harness list`, in new processes.

    python tests/benchmarks/startup.py

Beside them stands what cannot be less: Python itself, and the libraries of the command line. A figure is the median
of the repeats, after one that fills the disk's cache; the target is 0.7 s on a quiet core.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from measure import keep, options, table

TARGET = 0.7
COMMANDS = {
    "python": ["-c", "pass"],
    "its libraries": ["-c", "import typer, rich.table, pydantic, numpy; from pydantic import BaseModel"],
    "harness --help": ["-m", "harness", "--help"],
    "harness list": ["-m", "harness", "list"],
}


def seconds(arguments: list[str]) -> float:
    kept = {
        k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"
    }  # users keep compiled files
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=kept)
    return time.perf_counter() - start


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=11)
    args = parser.parse_args()
    repeats = 3 if args.quick else args.repeats
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for repeat in range(repeats + 1):
        for name, arguments in COMMANDS.items():
            taken = seconds(arguments)
            if repeat:
                found[name].append(taken)
    rows = [
        {"command": name, "median s": statistics.median(times), "least s": min(times)}
        for name, times in found.items()
    ]
    table(rows)
    for row in rows[2:]:
        met = row["median s"] <= TARGET
        print(f"{row['command']}: {row['median s']:.2f} s, target {TARGET} s: {'met' if met else 'MISSED'}")
    keep(__file__, args, {"rows": rows, "target": TARGET})


if __name__ == "__main__":
    main()
