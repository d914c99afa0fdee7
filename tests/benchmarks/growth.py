"""How cost grows: time and memory against clients, parameters and cells, as a table and a figure.

    python tests/benchmarks/growth.py

Each point is a process of its own, so that its memory is. clients: rounds over Fashion-MNIST-sized random images, the
same number of images whatever the number of clients. parameters: a round of ten clients, wider and wider networks.
cells: tiny trainings, run in one process; the engine's cost of a cell is the run's time without that of its stages,
divided by the cells. plan: the time to plan a grid that is not run. The figure is an SVG beside the JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from measure import apart, keep, options, peak_memory, table

CLIENTS = (10, 30, 100, 300, 1000)
HIDDEN = (12, 126, 800, 2800)  # of 28x28 images and two hidden layers: 10^4 to 10^7 parameters
CELLS = (10, 100, 1000, 10_000)
PLANNED = (1000, 10_000, 100_000)
TARGETS = {"engine_ms": 5.0, "plan_seconds": 30.0}
TRAINING = """
schema: 1
name: growth
dataset: {{npz: {{path: {data}}}}}
model: {{mlp: {{hidden: {hidden}}}}}
metrics: [accuracy]
federation: {{clients: {clients}, rounds: 3, local: {{epochs: 1, batch_size: 20}}}}
"""
TINY = """
schema: 1
name: cells
dataset: digits
model: {{mlp: {{hidden: [4]}}}}
metrics: [accuracy, robust-accuracy]
federation: {{clients: 2, rounds: 1, local: {{steps: 1, batch_size: 4}}}}
defences: [gradient-clipping: {{max_norm: {{sweep: {norms}}}}}]
evaluation: {{subset: 32}}
seeds: {seeds}
"""
WIDE = """
schema: 1
name: plan
dataset: digits
model: {{mlp: {{hidden: [8]}}}}
federation: {{clients: 5, rounds: 1, local: {{steps: 1, batch_size: 8}}}}
defences: [gradient-clipping: {{max_norm: {{sweep: [1.0, 2.0, 3.0, 4.0, 5.0]}}}}]
aggregators: [mean, median, trimmed-mean, geometric-median, [nnm, trimmed-mean]]
compressors: [none, static-int8, magnitude-pruning: {{ratio: 0.3}}, structured-pruning: {{ratio: 0.5}}]
threats:
  - {{name: evasion, surrogate: uncompressed, budget: {{norm: linf, eps: 8/255}},
     attacks: [pgd: {{steps: {{sweep: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}}}}]}}
seeds: {seeds}
"""


def training(clients: int, hidden: int, place: Path) -> dict[str, Any]:
    """Seconds of one round and what the process needed."""
    import numpy as np

    import harness
    from harness.scenario import load_text

    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 4000), ("val", 200), ("test", 200)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 10
    data = place / "data.npz"
    np.savez(data, **arrays)
    text = TRAINING.format(data=data, hidden=[hidden, hidden], clients=clients)
    result = harness.run(load_text(text, place / "x.yaml"), device="cpu", jobs=0, store=place / "store")
    (record,) = result.records
    shape = [28 * 28, hidden, hidden, 10]
    parameters = sum((a + 1) * b for a, b in pairwise(shape))
    return {"parameters": parameters, "seconds": record["train_seconds"] / 3, "memory": peak_memory()}


def cells(count: int, place: Path) -> dict[str, Any]:
    """What the engine adds to each cell, in time and memory."""
    import gc

    from harness.engine import run
    from harness.scenario import load_text
    from harness.store import Store

    per_norm = min(count, 100)
    norms = [1.0 + i / 1000 for i in range(per_norm)]
    text = TINY.format(norms=norms, seeds=list(range(max(1, count // per_norm))))
    warm = TINY.format(norms=[1.0], seeds=[0])
    run(load_text(warm, place / "x.yaml"), device="cpu", jobs=0, store=place / "warm")
    gc.collect()
    before, start = peak_memory(), time.perf_counter()
    result = run(load_text(text, place / "x.yaml"), device="cpu", jobs=0, store=place / "store")
    seconds = time.perf_counter() - start
    assert result.scored == count, result
    with Store(place / "store") as store:
        stages = store._db.execute("SELECT SUM(seconds) FROM stages WHERE status='done'")[0][0]
    return {
        "seconds": seconds,
        "engine_ms": 1000 * (seconds - stages) / count,
        "memory": peak_memory(),
        "grown": peak_memory() - before,
    }


def plan(count: int, place: Path) -> dict[str, Any]:
    """The time of a plan, libraries imported before."""
    from harness.engine import plan as make_plan
    from harness.scenario import load_text

    def seconds(seeds: int) -> float:
        loaded = load_text(WIDE.format(seeds=list(range(seeds))), place / "x.yaml")
        start = time.perf_counter()
        found = make_plan(loaded, device="cpu", jobs=2, store=place / "none").to_dict()
        assert len(found["scenarios"][0]["cells"]) == 1000 * seeds
        return time.perf_counter() - start

    seconds(1)
    return {"seconds": seconds(count // 1000), "memory": peak_memory()}


POINTS = {"training": training, "cells": cells, "plan": plan}


def figure(series: dict[str, list[dict[str, Any]]], file: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    panels = (
        ("clients", "clients", "seconds", "s per round"),
        ("parameters", "parameters", "seconds", "s per round"),
        ("cells", "cells", "engine_ms", "engine, ms per cell"),
        ("plan", "cells", "seconds", "s per plan"),
    )
    drawing, axes = pyplot.subplots(1, 4, figsize=(15, 3.4))
    for axis, (name, x, y, label) in zip(axes, panels, strict=True):
        rows = series[name]
        axis.loglog([r[x] for r in rows], [r[y] for r in rows], "o-", color="#0b5394")
        axis.set(xlabel=x, ylabel=label)
        memory = axis.twinx()
        memory.semilogx([r[x] for r in rows], [r["memory"] / 1e6 for r in rows], "s--", color="#b45f06")
        memory.set_ylim(bottom=0)
        memory.set_ylabel("peak memory, MB", color="#b45f06")
        axis.grid(alpha=0.3)
    drawing.tight_layout()
    drawing.savefig(file, metadata={"Date": None})
    print(f"wrote {file}")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--point", nargs="+", help="one measurement, for the script's own use")
    args = parser.parse_args()
    if args.point:
        name, *numbers = args.point
        with tempfile.TemporaryDirectory() as place:
            print(json.dumps(POINTS[name](*map(int, numbers), Path(place))))
        return

    def point(name: str, *numbers: int) -> dict[str, Any]:
        return apart(__file__, "--point", name, *map(str, numbers))

    few = slice(0, 2) if args.quick else slice(None)
    series = {
        "clients": [{"clients": n, **point("training", n, 64)} for n in CLIENTS[few]],
        "parameters": [{"clients": 10, **point("training", 10, width)} for width in HIDDEN[few]],
        "cells": [{"cells": n, **point("cells", n)} for n in CELLS[few]],
        "plan": [{"cells": n, **point("plan", n)} for n in PLANNED[: 1 if args.quick else None]],
    }
    for name, rows in series.items():
        print(f"\n{name}")
        table(rows)
    worst = {"engine_ms": series["cells"][-1]["engine_ms"], "plan_seconds": series["plan"][-1]["seconds"]}
    for name, target in TARGETS.items():
        print(f"{name}: {worst[name]:.2f}, target {target:g}: {'met' if worst[name] <= target else 'MISSED'}")
    file = keep(__file__, args, {"series": series, "worst": worst, "targets": TARGETS})
    figure(series, file.with_suffix(".svg"))


if __name__ == "__main__":
    sys.exit(main())
