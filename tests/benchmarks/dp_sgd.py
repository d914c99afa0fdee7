"""How fast private training is: ours beside Opacus' two modes and beside training without privacy.

    python tests/benchmarks/dp_sgd.py
    python tests/benchmarks/dp_sgd.py --device cuda --model resnet9 --shape 3 64 64

One client, the same batches in the same process. The ways take turns, and a figure is the median of the rounds' own
ratios. Every way gathers its batches from uint8 images, adds the same amount of noise and steps plain SGD; ours is
LocalTrainer with all it does around a step.
"""

from __future__ import annotations

import copy
import statistics
import warnings
from collections.abc import Callable
from typing import Any

from measure import as_stages_compute, clock, keep, options, synchronise, table

TARGETS = {"of the speed without privacy": 0.55, "of Opacus' fastest": 0.95}
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
    parser = options(__doc__)
    parser.add_argument("--model", default="small-cnn")
    parser.add_argument("--shape", type=int, nargs=3, default=[1, 28, 28])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40, help="steps in a turn")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()

    import torch

    import harness

    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    as_stages_compute()
    steps, turns = (5, 3) if args.quick else (args.steps, args.turns)
    generator = torch.Generator().manual_seed(0)
    n, device = args.batch * steps, args.device
    x = torch.randint(256, (n, *args.shape), generator=generator, dtype=torch.uint8).to(device)
    y = torch.randint(10, (n,), generator=generator).to(device)
    order = torch.randperm(n, generator=generator).to(device).split(args.batch)
    torch.manual_seed(0)
    module = harness.create("model", args.model).build(tuple(args.shape), 10).to(device)
    ways: dict[str, Callable[[], None]] = {
        "without privacy": bare(module, x, y, list(order), None),
        "Opacus, hooks": bare(module, x, y, list(order), "hooks"),
        "Opacus, ghost clipping": bare(module, x, y, list(order), "ghost"),
        "ours": ours(module, x, y, args.batch, steps, device, "auto"),
        "ours, vmap": ours(module, x, y, args.batch, steps, device, "vmap"),
    }

    def finished(call: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            call()
            synchronise(device)

        return run

    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, call in ways.items():
            taken, _ = clock(finished(call))
            if turn:  # in the first, libraries are loaded and kernels set up
                seconds[name].append(taken / steps)

    def ratio(above: str, below: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[above], seconds[below], strict=True))

    fastest = min(("Opacus, hooks", "Opacus, ghost clipping"), key=lambda w: statistics.median(seconds[w]))
    rows = [
        {"way": name, "ms a step": 1000 * statistics.median(found), "speed / without privacy":
         ratio("without privacy", name), f"speed / {fastest}": ratio(fastest, name)}
        for name, found in seconds.items()
    ]  # fmt: skip
    table(rows)
    own = next(row for row in rows if row["way"] == "ours")
    for (what, target), value in zip(TARGETS.items(), list(own.values())[2:], strict=True):
        print(f"ours: {value:.2f} {what}, target {target}: {'met' if value >= target else 'MISSED'}")
    keep(__file__, args, {"rows": rows, "fastest": fastest, "targets": TARGETS})


if __name__ == "__main__":
    main()
