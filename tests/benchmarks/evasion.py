"""How fast robust evaluation is, beside a plain loop over torchattacks with the same batches in the same process.

    python tests/benchmarks/evasion.py
    python tests/benchmarks/evasion.py --device cuda --model resnet18 --images 2000 --batch 256

The plain loop is what a paper's script does: for each batch of the test set that is right on clean images, run the
attack, ask the model again, count. Ours does the same work through the engine: budget, range and finiteness checked,
every random generator seeded and restored, facts for the record. Both take turns; a figure is the median of the
repeats, the ratio is plain over ours: above 1, the engine is faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchattacks

import harness
from harness.evaluation.evasion import evade

EPS = 8 / 255
ATTACKS: dict[str, tuple[dict[str, Any], Callable[[Any], Any]]] = {
    "fgsm": ({}, lambda m: torchattacks.FGSM(m, eps=EPS)),
    "pgd": ({"steps": 20}, lambda m: torchattacks.PGD(m, eps=EPS, alpha=2.5 * EPS / 20, steps=20)),
    "mi-fgsm": ({"steps": 10}, lambda m: torchattacks.MIFGSM(m, eps=EPS, alpha=EPS / 10, steps=10)),
    "apgd": ({"steps": 20}, lambda m: torchattacks.APGD(m, eps=EPS, steps=20)),
    "square": ({"queries": 200}, lambda m: torchattacks.Square(m, eps=EPS, n_queries=200)),
}


def network(name: str, parameters: dict[str, Any], shape: tuple[int, int, int], device: str) -> Any:
    """A network with seeded weights; its own answers serve as labels, so every image has to be attacked."""
    torch.manual_seed(0)
    return harness.create("model", name, **parameters).build(shape, 10).eval().to(device)


def plain(model: Any, attack: Any, x: torch.Tensor, y: torch.Tensor, batch: int) -> float:
    right = 0
    for start in range(0, len(x), batch):
        images, labels = x[start : start + batch], y[start : start + batch]
        with torch.no_grad():
            keep = model(images).argmax(1) == labels
        adversarial = attack(images[keep], labels[keep])
        with torch.no_grad():
            right += int((model(adversarial).argmax(1) == labels[keep]).sum())
    return right / len(x)


def ours(model: Any, attack: Any, x: torch.Tensor, y: torch.Tensor, batch: int, device: str) -> float:
    logits, _ = evade(
        attack, model, x, y, batch_size=batch, seed=0, budget=EPS, num_classes=10, device=device
    )
    return float((torch.from_numpy(logits).argmax(1) == y.cpu()).double().mean())


def timed(run: Callable[[], float], device: str) -> tuple[float, float]:
    start = time.perf_counter()
    result = run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="small-cnn")
    parser.add_argument("--width", type=int)
    parser.add_argument("--shape", type=int, nargs=3, default=(1, 28, 28), metavar=("C", "H", "W"))
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    width = {} if args.width is None else {"width": args.width}
    model = network(args.model, width, tuple(args.shape), args.device)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(args.images, *args.shape, generator=generator).to(args.device)
    with torch.no_grad():
        y = torch.cat([model(part).argmax(1) for part in x.split(args.batch)])
    rows = []
    print(f"{'attack':10} {'plain s':>9} {'ours s':>9} {'ratio':>6}  robust plain / ours")
    for name, (parameters, peer) in ATTACKS.items():
        attack = harness.create("attack", name, eps=EPS, **parameters)
        times: dict[str, list[float]] = {"plain": [], "ours": []}
        found = {}
        for repeat in range(args.repeats + 1):  # the first is a warm-up
            torch.manual_seed(repeat)
            turns: list[tuple[str, Callable[[], float]]] = [
                ("plain", partial(plain, model, peer(model), x, y, args.batch)),
                ("ours", partial(ours, model, attack, x, y, args.batch, args.device)),
            ]
            for who, run in turns if repeat % 2 else turns[::-1]:
                seconds, found[who] = timed(run, args.device)
                if repeat:
                    times[who].append(seconds)
        median = {who: statistics.median(values) for who, values in times.items()}
        ratio = median["plain"] / median["ours"]
        rows.append({"attack": name, **median, "ratio": ratio, "robust": found})
        print(
            f"{name:10} {median['plain']:9.3f} {median['ours']:9.3f} {ratio:6.2f}  "
            f"{found['plain']:.3f} / {found['ours']:.3f}"
        )
    if args.json:
        args.json.write_text(
            json.dumps({"settings": vars(args) | {"json": str(args.json)}, "rows": rows}, indent=2)
        )


if __name__ == "__main__":
    main()
