"""What the engine costs beside a bare PyTorch loop that does the same arithmetic on the same batches.

    python tests/benchmarks/overhead.py
    python tests/benchmarks/overhead.py --local-steps 1 5

Federated averaging of ten clients, batch 25, small-cnn on Fashion-MNIST: 200 local steps a client, of which each takes
--local-steps in a round. The bare loop copies the global weights into the network, steps a fresh torch.optim.SGD and
sums up weighted differences, and nothing else; both keep channels last, and both keep freed memory as worker processes
do. They take turns round by round, so that a machine whose speed wanders is as fast for the one as for the other; the
ratio is the median of whole trainings' ratios. The largest difference between the two models after one round is printed
too. Without Fashion-MNIST in $HARNESS_DATA the pixels are noise.
"""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from measure import keep, options, synchronise, table

LR = 0.05
TARGET = 1.10


def bare(module: Any, clients: list[Any], rounds: int, batch: int, steps: int, device: str) -> Iterator[Any]:
    """The plain loop, a round at a time: the weights (d,) after it."""
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
        yield torch.cat([w.reshape(-1) for w in weights])


def engine(
    module: Any,
    clients: list[Any],
    rounds: int,
    batch: int,
    steps: int,
    device: str,
    report: Callable[..., Any],
) -> None:
    """The engine's rounds. report: called after each."""
    import harness
    from harness.federation.local import LocalTrainer
    from harness.federation.rounds import Federation, Rules
    from harness.federation.together import Run, run_together
    from harness.scenario import SGD, FedAvg, LocalTraining

    settings = LocalTraining(batch_size=batch, steps=steps, optimizer=SGD(lr=LR))
    trainer = LocalTrainer(module, settings, 0, "benchmark", "float32", device)
    rules = Rules((harness.create("aggregator", "mean"),), 0.0, "examples", "average", FedAvg())  # type: ignore[arg-type]
    federation = Federation(module, clients, trainer, rules, 0, "benchmark")
    schedule = [list(range(len(clients)))] * rounds
    run_together([Run(federation, schedule, lambda _: 1.0, None, report)])


def side_by_side(start: Any, *how: Any) -> tuple[float, float, float]:
    """(seconds of the plain loop, of the engine, largest difference of their weights after the first round)."""

    from harness.federation.vector import flatten

    device, network = how[-1], copy.deepcopy(start)
    plain, apart = bare(copy.deepcopy(start), *how), []
    seconds = {"plain": 0.0, "engine": 0.0}
    since = time.perf_counter()

    def lap(side: str) -> None:
        nonlocal since
        synchronise(device)
        now = time.perf_counter()
        seconds[side] += now - since
        since = now

    def report(*_: Any) -> None:
        nonlocal since
        lap("engine")
        weights = next(plain)
        lap("plain")
        if not apart:  # later, pools and kinks that tip over make rounding errors as large as anything
            apart.append(float((weights - flatten(network)).abs().max()))
            since = time.perf_counter()

    engine(network, *how, report)
    return seconds["plain"], seconds["engine"], apart[0]


def shards(clients: int) -> list[tuple[Any, Any]]:
    """(images (n, 1, 28, 28) uint8, labels (n,)) of each client."""
    import numpy as np
    import torch

    file = Path(os.environ.get("HARNESS_DATA", "unset")) / "fashion-mnist.npz"
    if file.exists():
        with np.load(file) as archive:
            images, labels = archive["train_images"], archive["train_labels"].reshape(-1)
    else:
        print("Fashion-MNIST was not found in $HARNESS_DATA: the pixels are noise")
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (500 * clients, 28, 28), dtype=np.uint8)
        labels = np.arange(len(images)) % 10
    x, y = torch.from_numpy(images)[:, None], torch.from_numpy(labels.astype(np.int64))
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)).chunk(clients)
    return [(x[index].contiguous(), y[index]) for index in order]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--steps", type=int, default=200, help="local steps of a client in all")
    parser.add_argument(
        "--local-steps", type=int, nargs="+", default=[1, 5, 20], help="a client's in a round"
    )
    parser.add_argument("--turns", type=int, default=3, help="trainings of each side")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()

    import torch

    import harness
    from harness.contracts.defence import Sampling
    from harness.devices import keep_freed_memory
    from harness.federation.local import Client

    torch.set_num_threads(args.threads)
    keep_freed_memory()
    device, batch = args.device, args.batch
    in_all, turns = (20, 2) if args.quick else (args.steps, args.turns)
    data = [(x.to(device), y.to(device)) for x, y in shards(args.clients)]
    torch.manual_seed(0)
    start = harness.create("model", "small-cnn").build((1, 28, 28), 10).to(device).train()
    start = start.to(memory_format=torch.channels_last)
    rows = []
    for steps in args.local_steps:
        rounds = max(1, in_all // steps)
        clients = [Client(i, x, y, steps, Sampling()) for i, (x, y) in enumerate(data)]
        found = [side_by_side(start, clients, rounds, batch, steps, device) for _ in range(turns)]
        plain, ours = ([1000 * f[side] / (rounds * args.clients * steps) for f in found] for side in (0, 1))
        ratios = [o / p for o, p in zip(ours, plain, strict=True)]
        rows.append({
            "steps a round": steps, "rounds": rounds, "bare, ms a step": statistics.median(plain),
            "engine, ms a step": statistics.median(ours), "ratio": statistics.median(ratios),
            "least": min(ratios), "most": max(ratios), "difference": found[0][2],
        })  # fmt: skip
    table(rows)
    for row in rows:
        met = row["ratio"] <= TARGET
        print(
            f"{row['steps a round']} steps a round: {row['ratio']:.3f}, target {TARGET}: {'met' if met else 'MISSED'}"
        )
    keep(__file__, args, {"rows": rows, "target": TARGET})


if __name__ == "__main__":
    main()
