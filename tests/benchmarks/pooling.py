"""What cheaper pooling wins: in a client's step, in an attack's, and in predictions.

    python tests/benchmarks/pooling.py
    python tests/benchmarks/pooling.py --device cuda --batch 512

Each network as it stands and under `harness.pooling.cheap_pooling`, in the layout that the harness gives it, on one
thread; the two take turns, a time is the least of them, and a ratio is the time as it stands over the other. That the
numbers are the same to the last bit is looked at, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from measure import as_stages_compute, clock, keep, options, synchronise, table

NETWORKS = (
    ("small-cnn", {}, (1, 28, 28)),
    ("small-cnn", {}, (3, 64, 64)),
    ("lenet5", {"pooling": "max"}, (1, 28, 28)),
    ("vgg11", {}, (3, 32, 32)),
    ("resnet9", {"width": 16}, (1, 28, 28)),
    ("resnet9", {"width": 16}, (3, 64, 64)),
)  # fmt: skip


def measured(name: str, parameters: dict[str, Any], shape: tuple[int, int, int], args: Any) -> dict[str, Any]:
    import torch

    import harness
    from harness.pooling import cheap_pooling
    from harness.scenario import Compute
    from harness.training import channels_last

    torch.manual_seed(0)
    model = harness.create("model", name, **parameters).build(shape, 10).to(args.device)
    if channels_last(model, Compute(), args.device):
        model.to(memory_format=torch.channels_last)
    x = torch.rand(args.batch, *shape, device=args.device)
    y = torch.arange(args.batch, device=args.device) % 10
    weights = list(model.parameters())

    def gradients(*wanted: torch.Tensor, images: torch.Tensor = x) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(torch.nn.functional.cross_entropy(model(images), y), wanted)

    def attack() -> tuple[torch.Tensor, ...]:
        images = x.clone().requires_grad_()
        return gradients(images, images=images)

    def prediction() -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return (model(x),)

    row: dict[str, Any] = {"network": f"{name}, {'x'.join(map(str, shape))}"}
    same = True
    work: dict[str, Callable[[], tuple[torch.Tensor, ...]]] = {
        "step": lambda: gradients(*weights), "attack": attack, "prediction": prediction
    }  # fmt: skip
    for what, run in work.items():

        def repeated(run: Callable[[], Any] = run) -> None:
            for _ in range(args.steps):
                run()
            synchronise(args.device)

        as_it_stands = run()
        with cheap_pooling(model):
            same &= all(torch.equal(a, b) for a, b in zip(as_it_stands, run(), strict=True))
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(1 if args.quick else 7):
            for sooner in times:
                with cheap_pooling(model) if sooner else nullcontext():
                    times[sooner].append(clock(repeated)[0] / args.steps)
        row |= {
            f"{what}, ms": 1000 * min(times[False]),
            "ratio " + what: min(times[False]) / min(times[True]),
        }
    return row | {"same": same}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    as_stages_compute()
    args.steps = 1 if args.quick else 3
    rows = [measured(*network, args) for network in NETWORKS[: 3 if args.quick else None]]
    table(rows)
    keep(__file__, args, {"rows": rows})


if __name__ == "__main__":
    sys.exit(main())
