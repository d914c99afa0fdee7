"""What sharing saves: a grid of defences, aggregators, compressors, inference attacks and seeds, with it and without.

    python tests/benchmarks/grid.py

The grid is run once, in one process. Without sharing, every cell would train, compress and attack for itself: a
seeded sample of its cells is run, each in a store of its own in the same process, and the time of all is
EXTRAPOLATED from their mean. Work is the time of the run; libraries are imported before.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

from measure import clock, keep, options, table

SCENARIO = """
schema: 1
name: grid
dataset: digits
model: {{mlp: {{hidden: [64]}}}}
federation: {{clients: 10, rounds: {rounds}, local: {{epochs: 1, batch_size: 16, optimizer: {{sgd: {{lr: 0.2}}}}}}}}
defences: [{defences}]
aggregators: [{aggregators}]
compressors: [{compressors}]
threats:
  - {{name: evasion, budget: {{norm: linf, eps: 0.1}}, surrogate: uncompressed, attacks: [{attacks}]}}
seeds: {seeds}
"""
DEFENCES = (
    "none",
    "gradient-clipping: {max_norm: 1.0}",
    "adversarial-training: {attack: {pgd: {steps: 3}}}",
    "dp-sgd: {epsilon: 8}",
)
AGGREGATORS = ("mean", "median", "[nnm, trimmed-mean]")
COMPRESSORS = ("none", "static-int8", "magnitude-pruning: {ratio: 0.3}", "structured-pruning: {ratio: 0.5}")
ATTACKS = (
    "fgsm", "bim: {steps: 10}", "pgd: {steps: 5}", "pgd: {steps: 10}", "pgd: {steps: 20}", "mi-fgsm: {steps: 10}",
    "apgd: {steps: 10}", "square: {queries: 50}",
)  # fmt: skip
TARGET = 10.0


def scenario(quick: bool) -> str:
    less = 2 if quick else 99
    return SCENARIO.format(
        rounds=2 if quick else 20,
        defences=", ".join(DEFENCES[:less]),
        aggregators=", ".join(AGGREGATORS[:less]),
        compressors=", ".join(COMPRESSORS[:less]),
        attacks=", ".join(ATTACKS[: less + 1]),
        seeds=[0] if quick else [0, 1],
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--sample", type=int, default=24, help="cells run without sharing")
    args = parser.parse_args()

    import harness
    from harness.engine import run
    from harness.scenario import load_text

    with tempfile.TemporaryDirectory() as place:

        def score(name: str, select: list[str] | None = None) -> Any:
            loaded = load_text(scenario(args.quick), Path(place) / "grid.yaml")
            return clock(lambda: run(loaded, device="cpu", jobs=0, store=Path(place) / name, select=select))

        score(
            "warm-up",
            ["seed=0", f"attack={ATTACKS[0]}", "defence=none", "aggregator=mean", "compressor=none"],
        )
        seconds, whole = score("whole")
        cells = len(whole.records)
        chosen = random.Random(0).sample(whole.records, min(args.sample if not args.quick else 3, cells))
        alone = []
        for number, record in enumerate(chosen):
            axes = [f"{axis}={value}" for axis, value in record["cell"].items()]
            taken, result = score(f"alone-{number}", axes)
            assert [r["id"] for r in result.records] == [record["id"]], axes
            assert result.records[0]["scores"]["accuracy"] == record["scores"]["accuracy"]  # the same work
            alone.append(taken)
    apart = statistics.mean(alone) * cells
    ratio = apart / seconds
    rows: list[dict[str, Any]] = [
        {"what": "shared, measured", "cells": cells, "trainings": whole.executed["train"], "seconds": seconds},
        {"what": f"not shared, EXTRAPOLATED from {len(alone)} cells", "cells": cells, "trainings": cells,
         "seconds": apart},
    ]  # fmt: skip
    table(rows)
    outcome = f"{whole.scored} scored, {whole.failed} failed, {whole.not_applicable} not applicable"
    print(f"{outcome}; stages {whole.executed}; harness {harness.__version__}")
    print(f"work saved: {ratio:.1f} times less, target {TARGET:g}: {'met' if ratio >= TARGET else 'MISSED'}")
    spread = statistics.stdev(alone) if len(alone) > 1 else None
    facts = {"stages": whole.executed, "seconds_alone": {"mean": statistics.mean(alone), "deviation": spread}}
    keep(__file__, args, {"rows": rows, "ratio": ratio, "target": TARGET, **facts})


if __name__ == "__main__":
    main()
