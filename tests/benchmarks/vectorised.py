"""How fast clients train as one program, beside the same clients one after another on the same device.

    python tests/benchmarks/vectorised.py
    python tests/benchmarks/vectorised.py --device cuda --clients 10 50 200
    python tests/benchmarks/vectorised.py --device cuda --model resnet9 --shape 3 64 64 --defence dp-sgd

A round of local training, batches gathered from uint8 images, plain SGD: one client after another, as one program, and
as one but for the convolutions, which run client by client. The ways take turns; a ratio is the median of the turns'
ratios, above 1 where a program is faster than one client after another. The difference of the updates of the first two,
as a share of the update, is printed too, the clients' median and the largest: where a ReLU's input is zero up to
rounding, either way may go on.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

from measure import as_stages_compute, clock, keep, options, synchronise, table


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", default="small-cnn")
    parser.add_argument("--shape", type=int, nargs=3, default=[1, 28, 28])
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--trainings", type=int, default=1, help="seeds whose clients train together")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5, help="local steps of a client")
    parser.add_argument("--defence", choices=["none", "dp-sgd"], nargs="+", default=["none", "dp-sgd"])
    parser.add_argument("--chunk", type=int, help="clients in one program at most; default: as many as fit")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()

    import torch

    import harness
    from harness.contracts.defence import Sampling
    from harness.federation.local import Client, LocalTrainer, Start
    from harness.federation.vector import flatten
    from harness.federation.vectorised import VectorisedTrainer
    from harness.scenario import SGD, LocalTraining

    torch.set_num_threads(args.threads)
    as_stages_compute()
    device, batch = args.device, args.batch
    counts, turns, steps = ([3], 1, 2) if args.quick else (args.clients, args.turns, args.steps)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    module = harness.create("model", args.model).build(tuple(args.shape), 10).to(device)
    settings = LocalTraining(batch_size=batch, steps=steps, optimizer=SGD(lr=0.05))
    rows = []
    for defence in args.defence:
        hooks: tuple[Any, ...] = ()
        if defence == "dp-sgd":
            hooks = (harness.create("defence", "dp-sgd", noise_multiplier=1.0, max_grad_norm=1.0),)
        for n in counts:
            prepared = {"clients": [{"noise_multiplier": 1.0}] * n}
            members: list[list[Client]] = []
            for _ in range(args.trainings):
                clients = []
                for i in range(n):
                    size = 10 * batch + i % 7  # ragged
                    x = torch.randint(256, (size, *args.shape), generator=generator, dtype=torch.uint8)
                    y = torch.randint(10, (size,), generator=generator)
                    how = hooks[0].sampling(size, batch) if hooks else Sampling()
                    own = [prepared][: len(hooks)]
                    clients.append(Client(i, x.to(device), y.to(device), steps, how, hooks, own))
                members.append(clients)

            def tasks(kind: Any, members: Any = members, **how: Any) -> list[Any]:
                found = []
                for seed, clients in enumerate(members):
                    trainer = kind(module, settings, seed, f"benchmark {seed}", "float32", device, **how)
                    found += trainer.tasks(clients, Start(0, flatten(module)), [{}] * len(clients))
                return found

            def train(own: list[Any]) -> Any:
                found = own[0].trainer.train_all(own)
                synchronise(device)
                return found

            alone, together = tasks(LocalTrainer), tasks(VectorisedTrainer, chunk=args.chunk)
            apart = tasks(VectorisedTrainer, chunk=args.chunk, apart=True)
            differences = sorted(
                float((a - b).norm() / a.norm())
                for (a, _), (b, _) in zip(train(alone), train(together), strict=True)
            )
            train(apart)
            ways = (alone, together, apart)
            seconds = [[clock(partial(train, way))[0] for way in ways] for _ in range(turns)]
            one, joint, semi = (statistics.median(column) for column in zip(*seconds, strict=True))
            rows.append({
                "clients": n, "trainings": args.trainings, "defence": defence, "alone, ms a round": 1000 * one,
                "together, ms a round": 1000 * joint, "ratio": statistics.median(a / b for a, b, _ in seconds),
                "semi, ms a round": 1000 * semi, "semi ratio": statistics.median(a / c for a, _, c in seconds),
                "chunk": together[0].trainer.facts["chunk"], "difference": statistics.median(differences),
                "largest": differences[-1],
            })  # fmt: skip
    table(rows)
    print("targets on a GPU: 8 for 50 clients of small-cnn, 2 for resnet9 on 64x64 with dp-sgd")
    keep(__file__, args, {"rows": rows})


if __name__ == "__main__":
    main()
