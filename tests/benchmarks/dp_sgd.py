"""How fast private training is: ours beside Opacus' two modes and beside training without privacy.

    python tests/benchmarks/dp_sgd.py
    python tests/benchmarks/dp_sgd.py --quick
    python tests/benchmarks/dp_sgd.py --device cuda --model resnet9 --shape 3 64 64 --json dp_sgd.json

One client, the same batches in the same process. The ways take turns, and a figure is the median of the rounds' own
ratios. Every way gathers its batches from uint8 images, adds the same amount of noise and steps plain SGD; ours is
LocalTrainer with all it does around a step.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIGMA, CLIP, LR = 1.0, 1.0, 0.05


def bare(module: Any, x: Any, y: Any, batches: list[Any], private: str | None) -> Callable[[], None]:
    """A plain PyTorch loop; private: one of Opacus' modes, `hooks` or `ghost`."""
    import torch
    from torch.nn import functional

    module = copy.deepcopy(module).train()
    optimizer: Any = torch.optim.SGD(module.parameters(), LR)
    criterion: Any = torch.nn.CrossEntropyLoss()
    if private is not None:
        from opacus import PrivacyEngine
        from torch.utils.data import DataLoader, TensorDataset

        parts = PrivacyEngine(accountant="rdp").make_private(
            module=module, optimizer=optimizer, criterion=criterion, noise_multiplier=SIGMA, max_grad_norm=CLIP,
            data_loader=DataLoader(TensorDataset(torch.arange(len(y))), len(batches[0])),
            grad_sample_mode=private, poisson_sampling=False,
        )  # fmt: skip
        module, optimizer, *rest = parts
        criterion = rest[0] if private == "ghost" else criterion

    def loop() -> None:
        for index in batches:
            optimizer.zero_grad()
            logits = module(x[index].float() / 255)
            loss = criterion(logits, y[index]) if private else functional.cross_entropy(logits, y[index])
            loss.backward()
            optimizer.step()

    return loop


def ours(module: Any, x: Any, y: Any, batch: int, steps: int, device: str, path: str) -> Callable[[], None]:
    """LocalTrainer with dp-sgd on one client; batches of one size, as the others have."""
    import harness
    from harness.contracts.defence import Sampling
    from harness.federation.local import Client, LocalTrainer, Start
    from harness.federation.vector import flatten
    from harness.scenario import SGD, LocalTraining

    module = copy.deepcopy(module)
    defence = harness.create("defence", "dp-sgd", noise_multiplier=SIGMA, max_grad_norm=CLIP, per_sample=path)
    prepared = {"clients": [{"noise_multiplier": SIGMA}]}
    client = Client(0, x, y, steps, Sampling(), (defence,), [prepared])  # type: ignore[arg-type]
    settings = LocalTraining(batch_size=batch, steps=steps, optimizer=SGD(lr=LR))
    trainer = LocalTrainer(module, settings, 0, "benchmark", "float32", device)
    start = Start(0, flatten(module))

    def loop() -> None:
        trainer.train(client, start)

    return loop


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="small-cnn")
    parser.add_argument("--shape", type=int, nargs=3, default=[1, 28, 28])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40, help="steps in a turn")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="few short turns: whether it runs, not how fast")
    parser.add_argument("--json", help="file to write the figures to")
    options = parser.parse_args()

    import torch
    from rich.console import Console
    from rich.table import Table

    import harness

    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    steps, turns = (5, 3) if options.quick else (options.steps, options.turns)
    generator = torch.Generator().manual_seed(0)
    n, device = options.batch * steps, options.device
    x = torch.randint(256, (n, *options.shape), generator=generator, dtype=torch.uint8).to(device)
    y = torch.randint(10, (n,), generator=generator).to(device)
    order = torch.randperm(n, generator=generator).to(device).split(options.batch)
    torch.manual_seed(0)
    module = harness.create("model", options.model).build(tuple(options.shape), 10).to(device)
    ways: dict[str, Callable[[], None]] = {
        "without privacy": bare(module, x, y, list(order), None),
        "Opacus, hooks": bare(module, x, y, list(order), "hooks"),
        "Opacus, ghost clipping": bare(module, x, y, list(order), "ghost"),
        "ours": ours(module, x, y, options.batch, steps, device, "auto"),
        "ours, vmap": ours(module, x, y, options.batch, steps, device, "vmap"),
    }

    def clock(call: Callable[[], None]) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / steps

    for call in ways.values():
        call()  # libraries loaded, kernels set up
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, call in ways.items():
            seconds[name].append(clock(call))

    def ratio(above: str, below: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[above], seconds[below], strict=True))

    fastest = min(("Opacus, hooks", "Opacus, ghost clipping"), key=lambda w: statistics.median(seconds[w]))
    table = Table(
        title=f"{options.model}, {tuple(options.shape)}, batch {options.batch}, {options.threads} threads, {device}"
    )
    for header in ("way", "ms a step", "speed / without privacy", f"speed / {fastest}"):
        table.add_column(header, justify="left" if header == "way" else "right")
    figures = []
    for name, found in seconds.items():
        own = {"way": name, "seconds": statistics.median(found), "of_plain": ratio("without privacy", name),
               "of_opacus": ratio(fastest, name)}  # fmt: skip
        figures.append(own)
        table.add_row(
            name, f"{1000 * own['seconds']:.2f}", f"{own['of_plain']:.2f}", f"{own['of_opacus']:.2f}"
        )
    Console().print(table)
    print("targets for ours: 0.55 of training without privacy, 0.95 of Opacus' fastest mode")
    if options.json:
        facts = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                 "threads": options.threads, "device": device, "torch": torch.__version__,
                 "python": platform.python_version()}  # fmt: skip
        Path(options.json).write_text(json.dumps({"machine": facts, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
