"""What needs a GPU: vectorised clients, ResNet-9 with DP-SGD, the card's own limit.

    python tests/benchmarks/gpu.py
    python tests/benchmarks/gpu.py --quick --device cpu      # shows that the parts run; its times mean nothing

Without a GPU it says that all of this is unmeasured. A ratio is sequential over the faster of vectorised and
semi-vectorised, which is what `clients: auto` takes. The achievable rate is that
of a large matrix product in the same precision; the share is the training's counted floating-point operations (forward
and backward, by torch's own counter) a second over that rate. pfl-research's CIFAR-10 benchmark is in pfl_research.py.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from measure import clock, keep, options, synchronise, table

WAYS = ("sequential", "vectorised", "semi-vectorised")
TARGETS = {"small-cnn": 8.0, "resnet9": 2.0}  # by the first word of a row's name
SCENARIO = """
schema: 1
name: gpu
dataset: {{npz: {{path: {data}}}}}
model: {model}
metrics: [accuracy]
federation: {{clients: {clients}, rounds: {rounds}, local: {{{local}, optimizer: {{sgd: {{lr: 0.05}}}}}}}}
compute: {{clients: {execution}}}
defences: [{defence}]
"""


def data(place: Path, shape: tuple[int, int, int], records: int) -> Path:
    """A file of random images of ten classes: times do not depend on what is in them."""
    import numpy as np

    rng, arrays, file = np.random.default_rng(0), {}, place / f"{'x'.join(map(str, shape))}-{records}.npz"
    channels, height, width = shape
    for split, count in (("train", records), ("val", 100), ("test", 100)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, height, width, channels), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count) % 10
    np.savez(file, **arrays)
    return file


def training(place: Path, device: str, **values: Any) -> float:
    """Seconds of the training alone."""
    import harness
    from harness.scenario import load_text

    name = f"{values['execution']}-{abs(hash(tuple(sorted(map(str, values.items())))))}"
    loaded = load_text(SCENARIO.format(**values), place / "gpu.yaml")
    result = harness.run(loaded, device=device, jobs=0, store=place / name)
    (record,) = result.records
    if record["status"] != "scored":
        raise SystemExit(f"{name}: {record['error'] or record['reason']}")
    return float(record["train_seconds"])


def vectorised(place: Path, device: str, quick: bool) -> list[dict[str, Any]]:
    small = {"data": data(place, (1, 28, 28), 400 if quick else 50_000), "model": "small-cnn",
             "clients": 4 if quick else 50, "rounds": 1 if quick else 10, "local": "steps: 2, batch_size: 25",
             "defence": "none"}  # fmt: skip
    large = {"data": data(place, (3, 64, 64), 40 if quick else 5000), "clients": 2 if quick else 20,
             "rounds": 1 if quick else 10, "local": "steps: 1, batch_size: 16",
             "defence": "dp-sgd: {epsilon: 8}"}  # fmt: skip
    kinds = {"small-cnn": small}
    for width in (8,) if quick else (16, 64):  # that of the scenarios for CPUs, and the paper's
        kinds[f"resnet9, dp-sgd, width {width}"] = large | {"model": f"{{resnet9: {{width: {width}}}}}"}
    rows = []
    for name, values in kinds.items():
        for execution in WAYS:  # once to warm up
            training(place / "warm-up", device, execution=execution, **values)
        times = {execution: training(place, device, execution=execution, **values) for execution in WAYS}
        rows.append(
            {
                "what": name,
                **times,
                "ratio": times["sequential"] / min(times["vectorised"], times["semi-vectorised"]),
                "target": TARGETS[name.partition(",")[0]],
            }
        )
    return rows


def limit(device: str, quick: bool) -> list[dict[str, Any]]:
    """What a large product reaches, and what training ResNet-9 does, in operations a second."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import harness

    size, batch = (256, 4) if quick else (8192, 512)
    rows = []
    for name, dtype in (("bf16", torch.bfloat16), ("tf32", torch.float32)):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        width = 8 if quick else 64
        model = harness.create("model", "resnet9", width=width).build((3, 64, 64), 10).to(device, dtype)
        model = model.to(memory_format=torch.channels_last)
        x = torch.rand(batch, 3, 64, 64, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        y = torch.zeros(batch, dtype=torch.int64, device=device)

        def step(model: Any = model, x: Any = x, y: Any = y) -> None:
            loss = torch.nn.functional.cross_entropy(model(x).float(), y)
            torch.autograd.grad(loss, list(model.parameters()))

        def rate(run: Any, operations: float, times: int = 1 if quick else 20) -> float:
            run()
            synchronise(device)
            seconds, _ = clock(lambda: ([run() for _ in range(times)], synchronise(device)))
            return times * operations / seconds

        with FlopCounterMode(display=False) as counter:
            step()
        reached = rate(step, counter.get_total_flops())
        most = rate(lambda a=a, b=b: a @ b, 2.0 * size**3)
        rows.append({"precision": name, "matrix product, TFLOP/s": most / 1e12, "resnet9, TFLOP/s": reached / 1e12,
                     "share": reached / most})  # fmt: skip
    return rows


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    import torch

    if args.device != "cpu" and not torch.cuda.is_available():
        print("no CUDA device here: vectorised clients, ResNet-9 with DP-SGD and the share of the card's rate are "
              "unmeasured")  # fmt: skip
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        rows = vectorised(place, args.device, args.quick)
        rates = limit(args.device, args.quick)
    table(rows)
    table(rates)
    card = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU: these times mean nothing"
    keep(__file__, args, {"device": card, "clients": rows, "rates": rates, "targets": TARGETS})


if __name__ == "__main__":
    main()
