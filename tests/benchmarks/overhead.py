"""What the engine costs beside a bare PyTorch loop that does the same arithmetic on the same batches.

    python tests/benchmarks/overhead.py
    python tests/benchmarks/overhead.py --quick
    python tests/benchmarks/overhead.py --local-steps 1 5 --json overhead.json

Federated averaging of ten clients, batch 25, small-cnn on 28x28 images: 200 local steps in all, of which every client
takes --local-steps in a round. The bare loop copies the global weights into the network, steps a fresh torch.optim.SGD
and sums up weighted differences, and nothing else. Both take turns; the ratio is the median of the turns' ratios. The
largest difference between the two trained models is printed too.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

LR = 0.05


def bare(module: Any, clients: list[Any], rounds: int, batch: int, steps: int, device: str) -> Any:
    """The final weights (d,) of the plain loop."""
    import torch
    from torch.nn import functional

    from harness.federation.batches import batches
    from harness.random import torch_generator

    total = sum(c.size for c in clients)
    parameters = list(module.parameters())
    weights = [p.detach().clone() for p in parameters]
    for round in range(rounds):
        moved = [torch.zeros_like(w) for w in weights]
        for c in clients:
            with torch.no_grad():
                for p, w in zip(parameters, weights, strict=True):
                    p.copy_(w)
            optimizer = torch.optim.SGD(parameters, LR)
            order = torch_generator(0, "batches", c.id, round, device=device)
            for index in batches(c.size, batch, steps, c.sampling, order):
                optimizer.zero_grad()
                functional.cross_entropy(module(c.images[index].float() / 255), c.labels[index]).backward()
                optimizer.step()
            with torch.no_grad():
                for m, p, w in zip(moved, parameters, weights, strict=True):
                    m.add_(p - w, alpha=c.size / total)
        weights = [w + m for w, m in zip(weights, moved, strict=True)]
    return torch.cat([w.reshape(-1) for w in weights])


def engine(module: Any, clients: list[Any], rounds: int, batch: int, steps: int, device: str) -> Any:
    """The final weights (d,) of the engine's rounds."""
    import harness
    from harness.federation.local import LocalTrainer
    from harness.federation.rounds import Federation, Rules, Run, run_together
    from harness.federation.vector import flatten
    from harness.scenario import SGD, FedAvg, LocalTraining

    settings = LocalTraining(batch_size=batch, steps=steps, optimizer=SGD(lr=LR))
    trainer = LocalTrainer(module, settings, 0, "benchmark", "float32", device)
    rules = Rules((harness.create("aggregator", "mean"),), 0.0, "examples", "average", FedAvg())  # type: ignore[arg-type]
    federation = Federation(module, clients, trainer, rules, 0, "benchmark")
    schedule = [list(range(len(clients)))] * rounds
    run_together([Run(federation, schedule, lambda _: 1.0, None, lambda *_: None)])
    return flatten(module)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--steps", type=int, default=200, help="local steps in all")
    parser.add_argument(
        "--local-steps", type=int, nargs="+", default=[1, 5, 20], help="a client's in a round"
    )
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="few short turns: whether it runs, not how fast")
    parser.add_argument("--json", help="file to write the figures to")
    options = parser.parse_args()

    import torch
    from rich.console import Console
    from rich.table import Table

    import harness
    from harness.contracts.defence import Sampling
    from harness.federation.local import Client

    torch.set_num_threads(options.threads)
    device, batch = options.device, options.batch
    in_all, turns = (40, 3) if options.quick else (options.steps, options.turns)
    generator = torch.Generator().manual_seed(0)
    data = []
    for _ in range(options.clients):
        images = torch.randint(256, (20 * batch, 1, 28, 28), generator=generator, dtype=torch.uint8)
        data.append((images.to(device), torch.randint(10, (20 * batch,), generator=generator).to(device)))
    torch.manual_seed(0)
    start = harness.create("model", "small-cnn").build((1, 28, 28), 10).to(device).train()
    table = Table(title=f"{options.clients} clients, batch {batch}, {options.threads} threads, {device}")
    for header in ("steps a round", "bare, ms a step", "engine, ms a step", "engine / bare", "difference"):
        table.add_column(header, justify="right")
    figures = []
    for steps in options.local_steps:
        rounds = max(1, in_all // (options.clients * steps))
        done = rounds * options.clients * steps
        clients = [Client(i, x, y, steps, Sampling()) for i, (x, y) in enumerate(data)]

        def clock(
            loop: Any, clients: Any = clients, rounds: int = rounds, steps: int = steps
        ) -> tuple[float, Any]:
            module = copy.deepcopy(start)
            if device == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            final = loop(module, clients, rounds, batch, steps, device)
            if device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - began, final

        (_, a), (_, b) = clock(bare), clock(engine)
        apart = float((a - b).abs().max())
        plain, ours = [], []
        for _ in range(turns):
            plain.append(clock(bare)[0] / done)
            ours.append(clock(engine)[0] / done)
        ratio = statistics.median(o / p for o, p in zip(ours, plain, strict=True))
        row = {"local_steps": steps, "rounds": rounds, "bare_seconds": statistics.median(plain),
               "engine_seconds": statistics.median(ours), "ratio": ratio, "difference": apart}  # fmt: skip
        figures.append(row)
        table.add_row(str(steps), f"{1000 * row['bare_seconds']:.3f}", f"{1000 * row['engine_seconds']:.3f}",
                      f"{ratio:.3f}", f"{apart:.1e}")  # fmt: skip
    Console().print(table)
    print("target: 1.10")
    if options.json:
        facts = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                 "threads": options.threads, "device": device, "torch": torch.__version__,
                 "python": platform.python_version()}  # fmt: skip
        Path(options.json).write_text(json.dumps({"machine": facts, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
