"""How the convolutions of many clients, each with weights of its own, are best run at once.

    python tests/benchmarks/stacked_convolution.py                                   # one thread
    python tests/benchmarks/stacked_convolution.py --device cuda --clients 20 --width 64

Forward and backward of every convolution of ResNet-9 on 64x64 images, four ways: client after client; as torch's vmap
runs them, which is one grouped convolution (`compute: {clients: vectorised}`); client by client inside of the vmap
(`semi-vectorised`); and as one batched matrix product of patches (im2col), which the harness does not use. Ways take
turns, a time is the least of them. What all give is compared with client after client in the last columns, as a share
of the largest gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from measure import as_stages_compute, clock, keep, options, synchronise, table

if TYPE_CHECKING:
    from torch import Tensor, nn

    Gradients = list[Tensor]


def layers(width: int, side: int, batch: int) -> list[tuple[nn.Conv2d, tuple[int, ...]]]:
    """The convolutions of ResNet-9, each with the shape of what it is given."""
    import torch

    import harness

    model = harness.create("model", "resnet9", width=width).build((3, side, side), 10)
    found: list[tuple[nn.Conv2d, tuple[int, ...]]] = []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(
                lambda layer, given: found.append((layer, tuple(given[0].shape)))
            )
    with torch.no_grad():
        model(torch.rand(batch, 3, side, side))
    return found


def as_patches(x: Tensor, weight: Tensor, layer: nn.Conv2d) -> Tensor:
    """x (clients, n, c, h, w), weight (clients, o, c, k, k) -> (clients, o, n h w): one product a client."""
    import torch
    from torch.nn.functional import unfold

    clients, n = x.shape[:2]
    columns = unfold(x.flatten(0, 1), layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    columns = columns.unflatten(0, (clients, n)).transpose(1, 2).flatten(2)  # (clients, c k k, n h w)
    return torch.bmm(weight.flatten(2), columns)


def ways(layer: nn.Conv2d, shape: tuple[int, ...], args: Any) -> dict[str, Callable[[], Gradients]]:
    """What each way gives: the gradients of weights and inputs of the sum of squares of all outputs."""
    import torch

    from harness.federation.convolutions import ConvolutionsApart

    weight = torch.stack([layer.weight.detach()] * args.clients).to(args.device)
    weight = (weight + torch.randn_like(weight) * weight.std()).requires_grad_()
    x = torch.rand(args.clients, *shape, device=args.device, requires_grad=True)

    def gradients(output: Tensor) -> Gradients:
        return list(torch.autograd.grad(output.square().sum(), (weight, x)))

    def apart() -> Gradients:
        with ConvolutionsApart():
            return gradients(torch.vmap(convolved)(weight, x))

    def convolved(w: Tensor, images: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(images, w, None, layer.stride, layer.padding, layer.dilation)

    def alone() -> Gradients:
        given = [
            (w.detach().requires_grad_(), own.detach().requires_grad_())
            for w, own in zip(weight, x, strict=True)
        ]
        each = [torch.autograd.grad(convolved(w, own).square().sum(), (w, own)) for w, own in given]
        return [torch.stack(parts) for parts in zip(*each, strict=True)]

    return {
        "alone": alone,
        "grouped": lambda: gradients(torch.vmap(convolved)(weight, x)),
        "apart": apart,
        "patches": lambda: gradients(as_patches(x, weight, layer)),
    }


def measured(layer: nn.Conv2d, shape: tuple[int, ...], args: Any) -> dict[str, Any]:
    runs = ways(layer, shape, args)

    def finished(run: Callable[[], Gradients]) -> Gradients:
        result = run()
        synchronise(args.device)
        return result

    exact = finished(runs["alone"])
    off = {}
    for name, run in runs.items():
        pairs = zip(finished(run), exact, strict=True)
        off[name] = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 if args.quick else 7):
        for name, run in runs.items():
            times[name].append(clock(lambda run=run: finished(run))[0])
    best = {name: min(found) for name, found in times.items()}
    n, _, h, w = shape
    # Forward, and a product as large for each of the two gradients.
    operations = 3 * 2 * args.clients * n * h * w * layer.weight.numel() / (layer.stride[0] * layer.stride[1])
    return {
        "channels": f"{layer.in_channels}-{layer.out_channels}", "side": h,
        **{f"{name}, ms": 1000 * seconds for name, seconds in best.items()},
        **{f"{name}, TFLOP/s": operations / seconds / 1e12 for name, seconds in best.items()},
        **{f"{name}, off by": off[name] for name in runs if name != "alone"},
    }  # fmt: skip


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=16)
    args = parser.parse_args()
    import torch

    as_stages_compute()
    torch.manual_seed(0)
    if args.device == "cpu":
        torch.set_num_threads(1)
    rows = [measured(*each, args) for each in layers(args.width, 16 if args.quick else 64, args.batch)]
    names = [name for name in rows[0] if name.endswith(", ms")]
    total = {name: sum(row[name] for row in rows) for name in names}
    table(rows)
    print("all layers: " + ", ".join(f"{name} {milliseconds:.4g}" for name, milliseconds in total.items()))
    card = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    keep(__file__, args, {"device": card, "layers": rows, "total": total})


if __name__ == "__main__":
    main()
