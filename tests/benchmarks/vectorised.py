"""How fast clients train as one program, beside the same clients one after another on the same device.

    python tests/benchmarks/vectorised.py
    python tests/benchmarks/vectorised.py --quick
    python tests/benchmarks/vectorised.py --device cuda --clients 10 50 200 --json vectorised.json
    python tests/benchmarks/vectorised.py --device cuda --model resnet9 --shape 3 64 64 --defence dp-sgd

A round of local training, batches gathered from uint8 images, plain SGD. Both ways take turns; a ratio is the median of
the turns' ratios, above 1 where one program is faster. The largest difference of their updates, as a share of the
update, is printed too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="small-cnn")
    parser.add_argument("--shape", type=int, nargs=3, default=[1, 28, 28])
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5, help="local steps of a client")
    parser.add_argument("--defence", choices=["none", "dp-sgd"], nargs="+", default=["none", "dp-sgd"])
    parser.add_argument("--chunk", type=int, help="clients in one program at most; default: as many as fit")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="few clients: whether it runs, not how fast")
    parser.add_argument("--json", help="file to write the figures to")
    options = parser.parse_args()

    import torch
    from rich.console import Console
    from rich.table import Table

    import harness
    from harness.contracts.defence import Sampling
    from harness.federation.local import Client, LocalTrainer, Start
    from harness.federation.vector import flatten
    from harness.federation.vectorised import VectorisedTrainer
    from harness.scenario import SGD, LocalTraining

    torch.set_num_threads(options.threads)
    device, batch = options.device, options.batch
    counts, turns, steps = ([3], 1, 2) if options.quick else (options.clients, options.turns, options.steps)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    module = harness.create("model", options.model).build(tuple(options.shape), 10).to(device)
    start = Start(0, flatten(module))
    settings = LocalTraining(batch_size=batch, steps=steps, optimizer=SGD(lr=0.05))
    arguments: tuple[Any, ...] = (module, settings, 0, "benchmark", "float32", device)
    table = Table(
        title=f"{options.model}, {tuple(options.shape)}, batch {batch}, {options.threads} threads, {device}"
    )
    for header in (
        "clients",
        "defence",
        "alone, ms a round",
        "together, ms a round",
        "ratio",
        "chunk",
        "difference",
    ):
        table.add_column(header, justify="left" if header == "defence" else "right")
    figures = []
    for defence in options.defence:
        hooks: tuple[Any, ...] = ()
        if defence == "dp-sgd":
            hooks = (harness.create("defence", "dp-sgd", noise_multiplier=1.0, max_grad_norm=1.0),)
        for n in counts:
            prepared = {"clients": [{"noise_multiplier": 1.0}] * n}
            clients = []
            for i in range(n):
                size = 10 * batch + i % 7  # ragged
                x = torch.randint(256, (size, *options.shape), generator=generator, dtype=torch.uint8)
                y = torch.randint(10, (size,), generator=generator)
                how = hooks[0].sampling(size, batch) if hooks else Sampling()
                clients.append(
                    Client(i, x.to(device), y.to(device), steps, how, hooks, [prepared][: len(hooks)])
                )
            ways = (LocalTrainer(*arguments), VectorisedTrainer(*arguments, chunk=options.chunk))

            def clock(trainer: Any, clients: Any = clients) -> tuple[float, Any]:
                if device == "cuda":
                    torch.cuda.synchronize()
                began = time.perf_counter()
                found = trainer.train_all(trainer.tasks(clients, start, [{}] * len(clients)))
                if device == "cuda":
                    torch.cuda.synchronize()
                return time.perf_counter() - began, found

            (_, one), (_, together) = (clock(trainer) for trainer in ways)
            apart = max(
                float((a - b).norm() / a.norm()) for (a, _), (b, _) in zip(one, together, strict=True)
            )
            seconds = [[clock(trainer)[0] for trainer in ways] for _ in range(turns)]
            ratio = statistics.median(a / b for a, b in seconds)
            alone, joint = (statistics.median(column) for column in zip(*seconds, strict=True))
            facts = ways[1].facts
            figures.append({"clients": n, "defence": defence, "alone_seconds": alone, "together_seconds": joint,
                            "ratio": ratio, "difference": apart, "execution": facts})  # fmt: skip
            table.add_row(str(n), defence, f"{1000 * alone:.1f}", f"{1000 * joint:.1f}", f"{ratio:.2f}",
                          str(facts["chunk"]), f"{apart:.1e}")  # fmt: skip
    Console().print(table)
    print("targets on a GPU: 8 for 50 clients of small-cnn, 2 for resnet9 on 64x64 with dp-sgd")
    if options.json:
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                   "threads": options.threads, "device": device, "torch": torch.__version__,
                   "python": platform.python_version()}  # fmt: skip
        Path(options.json).write_text(json.dumps({"machine": machine, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
