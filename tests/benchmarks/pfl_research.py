"""pfl-research's own CIFAR-10 benchmark, by pfl and by ours: the same network, weights, users, steps and rounds.

    python tests/benchmarks/pfl_research.py                        # 20 rounds on all cores
    python tests/benchmarks/pfl_research.py --device cuda          # the benchmark's 1,500 rounds

The setting is that of pfl-research's benchmarks/image_classification, CIFAR-10 with IID users and no privacy: 1,000
users of 50 images, 50 of them a round, one epoch in batches of 10 by SGD at 0.1, uniform mean, central SGD at 1. pfl's
side is its PyTorchModel, FederatedAveraging, SimulatedBackend and FederatedDataset on the random user sampler; as
there, its images are normalised beforehand, have their channels last and stay on the device.

The network is pfl-research's simple_cnn (pfl_network.py): as it is, and without its dropout, since ours trains clients
as one program only where a network draws no random numbers. Both sides start from the weights that ours draws, take as
many threads, have TensorFloat-32 on or off alike, and evaluate at the end alone: pfl's central callback is left out,
and so is the evaluation of each user that it makes in its first round. What else differs is their own: pfl draws users
with replacement and keeps the order of a user's images, ours draws without and shuffles them.

Each side is a process of its own. The times are those of the training alone and of the whole process, from its imports
to the accuracy; decoding the images, read by both from one .npz file, is in neither. A ratio is pfl's time over ours.

Needs pfl, which is no extra of the project, and the folder cifar10 in $HARNESS_DATA: train.parquet and test.parquet in
the image schema of Hugging Face datasets. `pip install pfl` takes dp-accounting below 0.6; pfl runs with later ones.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from measure import apart, clock, keep, options, synchronise, table

TARGET = 2.0  # on a GPU
INSTALL = (
    "pip install pfl (or --no-deps pfl dill multiprocess prv-accountant: it keeps dp-accounting as it is)"
)
RECORDS, BATCH, LR = 50, 10, 0.1  # a user's images, and how it trains on them
NETWORKS = {"simple-cnn": True, "no-dropout": False}  # whether pfl-simple-cnn has its dropout
DATA = Path(os.environ.get("HARNESS_DATA", ".")) / "cifar10"
PLUGIN = Path(__file__).with_name("pfl_network.py")
SCENARIO = """
schema: 1
name: pfl-research
plugins: [{plugin}]
dataset: {{npz: {{path: {data}}}}}
model: {{pfl-simple-cnn: {{dropout: {dropout}}}}}
normalization: {{mean: {mean}, std: {std}}}
metrics: [accuracy]
federation:
  clients: {users}
  participation: {participation}
  rounds: {rounds}
  evaluate_every: 0
  weighting: uniform
  partition: iid
  local: {{epochs: 1, batch_size: {batch}, optimizer: {{sgd: {{lr: {lr}}}}}}}
compute: {{threads: {threads}, tf32: {tf32}, clients: {clients}}}
"""


def prepare(place: Path, train: int, test: int) -> None:
    """What both sides read: so many records of each split, decoded, and the networks with the weights ours starts from.

    val, which ours wants and looks at once, is a few records of test.
    """
    import numpy as np
    import pyarrow.parquet as pq
    import torch
    from pfl_network import PflSimpleCnn
    from PIL import Image

    from harness.federation.local import seeded_modules

    arrays = {}
    for split, count in (("train", train), ("test", test)):
        rows = pq.read_table(DATA / f"{split}.parquet").slice(0, count)
        pictures = (Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in rows["img"].to_pylist())
        arrays[f"{split}_images"] = np.stack([np.asarray(picture) for picture in pictures])
        arrays[f"{split}_labels"] = rows["label"].to_numpy()
    for what in ("images", "labels"):
        arrays[f"val_{what}"] = arrays[f"test_{what}"][:100]
    np.savez(place / "cifar.npz", **arrays)
    for name, dropout in NETWORKS.items():
        with seeded_modules("cpu", 0, "initial weights"):
            torch.save(PflSimpleCnn(dropout=dropout).build((3, 32, 32), 10), place / f"{name}.pt")


def moments(images: Any) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel of images (n, h, w, c), in [0, 1]."""
    return (images.mean((0, 1, 2)) / 255).tolist(), (images.std((0, 1, 2)) / 255).tolist()


def ours(args: argparse.Namespace) -> dict[str, Any]:
    import numpy as np

    import harness
    from harness.scenario import load_text

    with np.load(args.place / "cifar.npz") as archive:
        mean, std = moments(archive["train_images"])
        users = len(archive["train_labels"]) // RECORDS
    text = SCENARIO.format(
        plugin=PLUGIN, data=args.place / "cifar.npz", dropout=str(NETWORKS[args.network]).lower(), mean=mean, std=std,
        users=users, participation=args.cohort / users, rounds=args.rounds, batch=BATCH, lr=LR, threads=args.threads,
        tf32=str(args.tf32).lower(), clients="vectorised" if args.device == "cuda" else "auto",
    )  # fmt: skip
    loaded = load_text(text, args.place / "pfl.yaml")
    store = args.place / f"store-{os.getpid()}"  # a new one each turn
    (record,) = harness.run(loaded, device=args.device, jobs=0, store=store).records
    if record["status"] != "scored":
        raise SystemExit(f"ours: {record['error'] or record['reason']}")
    how = record["training"]["execution"]["clients"]
    return {"train": record["train_seconds"], "accuracy": record["scores"]["accuracy"], "clients": how}


def theirs(args: argparse.Namespace) -> dict[str, Any]:
    os.environ["PFL_PYTORCH_DEVICE"] = args.device
    import numpy as np
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByUser
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Weighted
    from pfl.model.pytorch import PyTorchModel

    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.tf32
    torch.manual_seed(0)
    np.random.seed(0)

    class Network(torch.nn.Module):
        """What PyTorchModel asks of a network, on images (b, h, w, c)."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.load(args.place / f"{args.network}.pt", weights_only=False)

        def forward(self, x: Any) -> Any:
            return self.layers(x.permute(0, 3, 1, 2))

        def loss(self, x: Any, y: Any) -> Any:
            self.train()
            return torch.nn.functional.cross_entropy(self(x), y)

        @torch.no_grad()
        def metrics(self, x: Any, y: Any) -> Any:
            self.eval()
            return {"accuracy": Weighted((self(x).argmax(1) == y).sum().item(), len(y))}

    class Averaging(FederatedAveraging):
        """Without evaluating users in round 0, which pfl does however seldom it is told to evaluate."""

        def get_next_central_contexts(self, *arguments: Any, **more: Any) -> Any:
            contexts, model, metrics = super().get_next_central_contexts(*arguments, **more)
            quiet = contexts and tuple(replace(context, do_evaluation=False) for context in contexts)
            return quiet, model, metrics

    with np.load(args.place / "cifar.npz") as archive:
        mean, std = (255 * np.float32(values) for values in moments(archive["train_images"]))

        def tensors(split: str) -> tuple[Any, Any]:
            images = (archive[f"{split}_images"].astype(np.float32) - mean) / std
            labels = archive[f"{split}_labels"]
            return torch.from_numpy(images).to(args.device), torch.from_numpy(labels).to(args.device)

        (images, labels), test = tensors("train"), tensors("test")
    users = [(images[own], labels[own]) for own in torch.randperm(len(labels)).split(RECORDS)]
    data = FederatedDataset.from_slices(users, get_user_sampler("random", range(len(users))))
    network = Network()
    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), 1.0))

    def train() -> None:
        Averaging().run(
            NNAlgorithmParams(args.rounds, args.rounds, train_cohort_size=args.cohort, val_cohort_size=0),
            SimulatedBackend(data, data, [WeightByUser()]),
            model,
            NNTrainHyperParams(local_batch_size=BATCH, local_num_epochs=1, local_learning_rate=LR),
        )
        synchronise(args.device)

    seconds, _ = clock(train)
    found = model.evaluate(Dataset(test), eval_params=NNEvalHyperParams(local_batch_size=500))
    return {"train": seconds, "accuracy": found["accuracy"].overall_value}


SIDES = {"pfl": theirs, "ours": ours}


def turn(args: argparse.Namespace, network: str) -> dict[str, Any]:
    """Both sides once, one after the other."""
    common = ["--device", args.device, "--rounds", str(args.rounds), "--cohort", str(args.cohort)]
    common += ["--threads", str(args.threads), "--network", network, "--place", str(args.place)]
    common += ["--tf32"] * args.tf32
    found: dict[str, Any] = {}
    for side in SIDES:
        seconds, result = clock(lambda side=side: apart(__file__, "--side", side, *common))
        print(f"  {network}, {side}: {result['train']:.1f} s of training, {seconds:.1f} s in all", flush=True)
        found[side] = {**result, "whole": seconds}
    return found


def row(network: str, turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians; ratios are of the turns' own."""

    def median(side: str, what: str) -> float:
        return statistics.median(t[side][what] for t in turns)

    def ratio(what: str) -> float:
        return statistics.median(t["pfl"][what] / t["ours"][what] for t in turns)

    return {
        "network": network, "clients, ours": turns[0]["ours"]["clients"],
        "pfl s": median("pfl", "train"), "ours s": median("ours", "train"), "ratio": ratio("train"),
        "pfl, whole": median("pfl", "whole"), "ours, whole": median("ours", "whole"), "ratio, whole": ratio("whole"),
        "accuracy, pfl": median("pfl", "accuracy"), "accuracy, ours": median("ours", "accuracy"),
    }  # fmt: skip


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, help="default: 1,500 on a GPU, 20 on a CPU")
    parser.add_argument("--cohort", type=int, default=50, help="users a round")
    parser.add_argument("--network", choices=NETWORKS, nargs="+", default=list(NETWORKS))
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="of each side; default: all cores"
    )
    parser.add_argument("--tf32", action="store_true", help="TensorFloat-32 on both sides; default: float32")
    parser.add_argument("--turns", type=int, default=1, help="of both sides; times are medians")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # the script's own use, with --place
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        (args.network,) = args.network
        print(json.dumps(SIDES[args.side](args)))
        return
    if importlib.util.find_spec("pfl") is None:
        parser.error(f"pfl is not installed: {INSTALL}")
    if not (DATA / "train.parquet").exists():
        parser.error(
            "set HARNESS_DATA to the folder that holds cifar10/train.parquet and cifar10/test.parquet"
        )
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here: pfl-research's benchmark on a GPU is unmeasured")
    args.rounds = args.rounds or (2 if args.quick else 1500 if args.device == "cuda" else 20)
    if args.quick:
        args.cohort, args.turns = 5, 1
    with tempfile.TemporaryDirectory() as place:
        args.place = Path(place)
        prepare(args.place, *((1000, 500) if args.quick else (50_000, 10_000)))
        rows = [row(name, [turn(args, name) for _ in range(args.turns)]) for name in args.network]
    del args.side, args.place
    table(rows)
    for found in rows:
        verdict = "met" if found["ratio"] >= TARGET else "MISSED"
        target = f"target {TARGET:g}: {verdict}" if args.device == "cuda" else "no target on a CPU"
        print(f"{found['network']}: pfl takes {found['ratio']:.2f} times our time, {target}")
    card = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    keep(__file__, args, {"device": card, "rows": rows, "target": TARGET})


if __name__ == "__main__":
    main()
