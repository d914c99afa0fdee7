"""What torch.compile would win in a client's steps, and after how many of them it would have paid for itself.

    python tests/benchmarks/compiled.py
    python tests/benchmarks/compiled.py --device cuda --batch 256

A client's step, forward and backward, as the harness runs it and compiled; small-cnn on 1x28x28 images and resnet9 on
3x64x64 ones, in the layout that the harness gives them. Compiling needs a C++ compiler on a CPU, and is timed in a
process of its own with an empty cache, as in a first run. Never: it saves nothing.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from typing import Any

from measure import apart, as_stages_compute, clock, keep, options, synchronise, table

NETWORKS = {"small-cnn": ({}, (1, 28, 28)), "resnet9": ({"width": 16}, (3, 64, 64))}


def one(name: str, device: str, batch: int, steps: int) -> dict[str, Any]:
    """Seconds of a step both ways, the better half of their turns, and of compiling."""
    import torch

    import harness
    from harness.federation.memory_format import channels_last
    from harness.scenario import Compute

    parameters, shape = NETWORKS[name]
    torch.set_num_threads(1)
    as_stages_compute()
    torch.manual_seed(0)
    model = harness.create("model", name, **parameters).build(shape, 10).to(device)
    last = channels_last(model, Compute(), device)
    layout = torch.channels_last if last else torch.contiguous_format
    model = model.to(memory_format=layout)
    x = torch.rand(batch, *shape, device=device).to(memory_format=layout)
    y = torch.arange(batch, device=device) % 10
    weights = list(model.parameters())

    def step(network: Any) -> None:
        torch.autograd.grad(torch.nn.functional.cross_entropy(network(x), y), weights)
        synchronise(device)

    def turns(network: Any) -> float:
        return min(clock(lambda: [step(network) for _ in range(steps)])[0] / steps for _ in range(5))

    step(model)
    compiled = torch.compile(model)
    compiling, _ = clock(lambda: step(compiled))
    return {"plain": turns(model), "compiled": turns(compiled), "compiling": compiling}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--one", help="measure this network here, and print it as JSON")
    args = parser.parse_args()
    steps = 2 if args.quick else 40
    if args.one:
        print(json.dumps(one(args.one, args.device, args.batch, steps)))
        return
    rows = []
    for name in NETWORKS:
        with tempfile.TemporaryDirectory() as cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            given = ["--device", args.device, "--batch", str(args.batch), *["--quick"] * args.quick]
            found = apart(__file__, "--one", name, *given)
        saved = found["plain"] - found["compiled"]
        pays = math.ceil(found["compiling"] / saved) if saved > 0 else None
        rows.append({"network": name, "ms a step": 1000 * found["plain"], "compiled, ms": 1000 * found["compiled"],
                     "compiling, s": found["compiling"], "steps until it pays": pays})  # fmt: skip
    table(rows)
    for row in rows:
        if row["steps until it pays"] is None:
            print(f"{row['network']}: never")
    keep(__file__, args, {"rows": rows})


if __name__ == "__main__":
    sys.exit(main())
