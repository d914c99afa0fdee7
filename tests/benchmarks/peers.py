"""Ours beside ByzFL, Flower's simulation and a single-model script, each doing the same work as its users would.

    python tests/benchmarks/peers.py
    python tests/benchmarks/peers.py --only byzfl

byzfl: small-cnn on Fashion-MNIST, 10, 25 or 50 clients of which a fifth sends ALIE vectors, NNM and trimmed mean, one
step of batch 25 a round, 2,000 in all; ByzFL's Client, Server and ByzantineClient in its own training loop, on images
decoded by torchvision's transforms as its data sets are, and also on ready tensors, which spares it the decoding. The
time of the training alone, on all cores, which each side uses in its own way: ByzFL by torch's threads, ours by clients
at the same time; and on one core (`--only byzfl --cores 1`). Five turns of each, with seeds of their own, and one with
ready tensors: medians of times and of the turns' ratios, means of accuracies.
flower: federated averaging, ten clients, 500 rounds of one step of batch 25; a NumPyClient under run_simulation with
ray. The time of the whole run, from its start to the scored model; both on all cores, by as many clients at a time.
psreval: one hospital's script, after the protocol of Usynin et al. (arXiv 2205.02652): train, train with Opacus, static
int8 of both, then each of the four under PGD made on either float model; every model is trained once (their scripts
train it anew for every target). Ours is the grid that shares, on as many jobs as cores.

Both sides start from the same weights and evaluate at the end alone. The final accuracies stand beside the times: equal
work is expected to end at about equal accuracy, up to the batches drawn. A ratio is the peer's time over ours.
"""

from __future__ import annotations

import os
import tempfile
from functools import cache, partial
from pathlib import Path
from statistics import mean, median
from typing import Any

from measure import clock, keep, options, table

LR, BATCH = 0.05, 25
TARGETS = {"byzfl": 3.0, "flower": 5.0, "psreval": 1.0}  # by the first word of a row's name
DATA = Path(os.environ.get("HARNESS_DATA", ".")) / "fashion-mnist.npz"
SCENARIO = """
schema: 1
name: peer
seeds: [{seed}]
dataset: {{npz: {{path: {data}, train_limit: {records}}}}}
model: small-cnn
metrics: [accuracy, robust-accuracy]
"""
FEDERATED = """
federation:
  clients: {clients}
  rounds: {rounds}
  evaluate_every: 0
  weighting: uniform
  byzantine_tolerance: {share}
  partition: iid
  local: {{steps: {steps}, batch_size: 25, optimizer: {{sgd: {{lr: 0.05}}}}}}
aggregators: [{aggregator}]
threats: [{threat}]
"""
HOSPITAL = """
federation:
  clients: 1
  rounds: {epochs}
  evaluate_every: 0
  local: {{epochs: 1, batch_size: 64, optimizer: {{sgd: {{lr: 0.05}}}}}}
defences: [none, {private}]
compressors: [none, static-int8]
evaluation: {{subset: {tested}, batch_size: 256}}
threats:
  - {{name: none}}
  - name: evasion
    budget: {{norm: linf, eps: 8/255}}
    attacks:
      - transfer: {{attack: {pgd}, source: other, defences: [], compressors: []}}
      - transfer: {{attack: {pgd}, source: other, defences: [{private}], compressors: []}}
"""


PRIVATE = "{dp-sgd: {noise_multiplier: 1.1, max_grad_norm: 1.2}}"
PGD = "{pgd: {steps: 20, alpha: 2/255}}"


@cache
def arrays() -> dict[str, Any]:
    import numpy as np

    with np.load(DATA) as archive:
        found = {key: archive[key] for key in archive.files}
    return {k: v.reshape(-1).astype(np.int64) if k.endswith("labels") else v for k, v in found.items()}


def tensors(split: str) -> tuple[Any, Any]:
    """Images (n, 1, 28, 28) in [0, 1] and labels."""
    import torch

    known = arrays()
    images = torch.from_numpy(known[f"{split}_images"]).float().reshape(-1, 1, 28, 28) / 255
    return images, torch.from_numpy(known[f"{split}_labels"])


def network(seed: int = 0) -> Any:
    """small-cnn with the weights that the harness starts from."""
    import harness
    from harness.federation.local import seeded_modules

    with seeded_modules("cpu", seed, "initial weights"):
        return harness.create("model", "small-cnn").build((1, 28, 28), 10)


def accuracy(model: Any, images: Any, labels: Any) -> float:
    import torch

    with torch.no_grad():
        batches = zip(images.split(500), labels.split(500), strict=True)
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    return right / len(labels)


def ours(text: str, jobs: int = 0, **values: Any) -> tuple[float, Any]:
    """(seconds of the whole run, its result), with the records read."""
    import harness
    from harness.scenario import load_text

    with tempfile.TemporaryDirectory() as place:
        values = {"records": len(arrays()["train_labels"]), "seed": 0, **values}
        loaded = load_text((SCENARIO + text).format(data=DATA, **values), Path(place) / "peer.yaml")
        seconds, result = clock(
            lambda: harness.run(loaded, device="cpu", jobs=jobs, store=Path(place) / "store")
        )
        failed = [r.get("error") or r.get("reason") for r in result.records if r["status"] != "scored"]
        if failed:
            raise SystemExit(f"ours: {failed[0]}")
        return seconds, result


def row(name: str, peer: float, own: float, accuracies: tuple[Any, Any]) -> dict[str, Any]:
    return {
        "peer": name, "peer s": peer, "ours s": own, "ratio": peer / own, "target": TARGETS[name.partition(",")[0]],
        "accuracy, peer": accuracies[0], "accuracy, ours": accuracies[1],
    }  # fmt: skip


# ByzFL ---------------------------------------------------------------------------------------------


class Pictures:
    """A torchvision data set: each record goes from an array to a PIL image to a tensor when it is asked for."""

    def __init__(self, split: str, limit: int | None = None) -> None:
        from torchvision import transforms

        known = arrays()
        self.images, self.targets = known[f"{split}_images"][:limit], known[f"{split}_labels"][:limit]
        self.transform = transforms.Compose([transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), int(self.targets[index])


def byzfl_loop(data: Any, rounds: int, n: int, f: int, seed: int) -> tuple[float, float]:
    """(seconds of the training loop, final accuracy), as byzfl.benchmark.train has it for DSGD."""
    import torch
    from byzfl import ByzantineClient, Client, Server
    from byzfl.fed_framework import models
    from torch.utils.data import DataLoader, Subset, TensorDataset

    # A user's own model is added like this: it is looked up by name.
    models.small_cnn = partial(network, seed)
    torch.manual_seed(seed)
    parts = torch.randperm(len(data)).chunk(n)
    common = {"model_name": "small_cnn", "device": "cpu", "optimizer_name": "SGD", "learning_rate": LR,
              "weight_decay": 0.0, "milestones": [], "learning_rate_decay": 1.0}  # fmt: skip
    clients = [
        Client({**common, "loss_name": "CrossEntropyLoss", "LabelFlipping": False, "nb_labels": 10, "momentum": 0.0,
                "store_per_client_metrics": False,
                "training_dataloader": DataLoader(Subset(data, part.tolist()), batch_size=BATCH, shuffle=True)})
        for part in parts[: n - f]
    ]  # fmt: skip
    images, labels = tensors("test")
    server = Server({**common, "aggregator_info": {"name": "TrMean", "parameters": {"f": f}},
                     "pre_agg_list": [{"name": "NNM", "parameters": {"f": f}}],
                     "test_loader": DataLoader(TensorDataset(images, labels), batch_size=500)})  # fmt: skip
    attack = ByzantineClient({"name": "ALittleIsEnough", "f": f, "parameters": {"tau": 1.5}})

    def loop() -> None:
        for client in clients:
            client.set_model_state(server.get_dict_parameters())
        for _ in range(rounds):
            for client in clients:
                client.compute_gradients()
            gradients = [client.get_flat_gradients_with_momentum() for client in clients]
            server.update_model_with_gradients(gradients + attack.apply_attack(gradients))
            state = server.get_dict_parameters()
            for client in clients:
                client.set_model_state(state)

    seconds, _ = clock(loop)
    return seconds, server.compute_test_accuracy()


def byzfl(quick: bool, cores: int) -> list[dict[str, Any]]:
    import torch
    from torch.utils.data import TensorDataset

    torch.set_num_threads(cores)
    # ByzFL's clients send gradients, ours send steps against them: mean + 1.5 std of the one is mean - 1.5 std of the
    # other.
    threat = "{name: byzantine, malicious: 0.2, attacks: [alie: {z: -1.5}]}"
    found = []
    for n in (10,) if quick else (10, 25, 50):
        rounds, turns = (5, 1) if quick else (2000 // n, 5)
        kinds = {"": Pictures("train"), ", ready tensors": TensorDataset(*tensors("train"))}
        times: dict[str, list[float]] = {kind: [] for kind in ("ours", *kinds)}
        reached: dict[str, list[float]] = {kind: [] for kind in times}
        for seed in range(turns):  # in turns, as a machine's speed wanders
            settings = {"clients": n, "rounds": rounds, "share": 0.2, "steps": 1, "seed": seed}
            _, result = ours(
                FEDERATED, jobs=cores, aggregator="[nnm, trimmed-mean]", threat=threat, **settings
            )
            (record,) = result.records
            times["ours"].append(record["training"]["elapsed_seconds"])
            reached["ours"].append(record["scores"]["accuracy"])
            for kind in kinds if seed == 0 else [""]:  # ready tensors once
                seconds, score = byzfl_loop(kinds[kind], rounds, n, n // 5, seed)
                times[kind].append(seconds)
                reached[kind].append(score)
        for kind in kinds:
            own, scores = times["ours"][: len(times[kind])], reached["ours"][: len(times[kind])]
            ratios = [theirs / mine for theirs, mine in zip(times[kind], own, strict=True)]
            accuracies = mean(reached[kind]), mean(scores)
            middle = row(f"byzfl, {n} clients{kind}", median(times[kind]), median(own), accuracies)
            found.append(middle | {"ratio": median(ratios)})
            print(f"  {found[-1]['peer']}: ratios {[round(r, 2) for r in ratios]}, accuracies "
                  f"{[round(v, 3) for v in reached[kind]]}, ours {[round(v, 3) for v in scores]}")  # fmt: skip
    return found


# Flower --------------------------------------------------------------------------------------------


def flower(quick: bool, cores: int) -> list[dict[str, Any]]:
    import torch

    rounds, steps = (2, 1) if quick else (500, 1)
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    with tempfile.TemporaryDirectory() as home:
        os.environ["FLWR_HOME"] = home
        os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        )
        final: list[Any] = []
        seconds, _ = clock(lambda: flower_run(rounds, steps, final, cores))
    model = network()
    with torch.no_grad():
        for p, value in zip(model.parameters(), final[-1], strict=True):
            p.copy_(torch.from_numpy(value))
    reached = accuracy(model, *tensors("test"))
    plain = {"share": 0.0, "aggregator": "mean", "threat": "{name: none}"}
    whole, result = ours(FEDERATED, jobs=cores, clients=10, rounds=rounds, steps=steps, **plain)
    return [row("flower", seconds, whole, (reached, result.records[0]["scores"]["accuracy"]))]


def flower_run(rounds: int, steps: int, final: list[Any], cores: int) -> None:
    from flwr.client import ClientApp
    from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.server import ServerApp, ServerAppComponents, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.simulation import run_simulation

    class Keeping(FedAvg):
        def aggregate_fit(self, *arguments: Any) -> Any:
            result = super().aggregate_fit(*arguments)
            final.append(parameters_to_ndarrays(result[0]))
            return result

    initial = ndarrays_to_parameters([p.detach().numpy() for p in network().parameters()])

    def server(context: Any) -> Any:
        strategy = Keeping(fraction_fit=1.0, fraction_evaluate=0.0, min_available_clients=10,
                           initial_parameters=initial, on_fit_config_fn=lambda _: {"steps": steps})  # fmt: skip
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=rounds))

    from peers import hospital  # by name: ray's workers import it

    run_simulation(
        ServerApp(server_fn=server), ClientApp(client_fn=hospital), num_supernodes=10,
        backend_config={"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": cores}},
    )  # fmt: skip


@cache
def shard(number: int) -> tuple[Any, Any]:
    """A client's records, kept by the process between its turns."""
    import torch

    images, labels = tensors("train")
    own = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).chunk(10)[number]
    return images[own], labels[own]


def hospital(context: Any) -> Any:
    """A Flower client: sets the weights, takes some steps, sends them back."""
    import torch
    from flwr.client import NumPyClient

    class Hospital(NumPyClient):
        def fit(self, parameters: Any, config: Any) -> Any:
            torch.set_num_threads(1)
            images, labels = shard(int(context.node_config["partition-id"]))
            model = network()
            with torch.no_grad():
                for p, value in zip(model.parameters(), parameters, strict=True):
                    p.copy_(torch.from_numpy(value))
            optimizer = torch.optim.SGD(model.parameters(), LR)
            for _ in range(int(config["steps"])):
                index = torch.randint(len(labels), (BATCH,))
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(images[index]), labels[index]).backward()
                optimizer.step()
            return [p.detach().numpy() for p in model.parameters()], len(labels), {}

    return Hospital().to_client()


# One hospital's script -----------------------------------------------------------------------------


def script(epochs: int, records: int, tested: int) -> dict[str, float]:
    """Accuracies, clean and robust, of the four models and both sources of adversarial examples."""
    import copy

    import torch
    import torchattacks
    from opacus import PrivacyEngine
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
    from torch.utils.data import DataLoader

    loader = DataLoader(Pictures("train", records), batch_size=64, shuffle=True)
    models = {}
    for name in ("vanilla", "dp"):
        model = network()
        optimizer: Any = torch.optim.SGD(model.parameters(), LR)
        batches: Any = loader
        trained: Any = model
        if name == "dp":
            trained, optimizer, batches = PrivacyEngine().make_private(
                module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=1.1, max_grad_norm=1.2
            )
        for _ in range(epochs):
            for x, y in batches:
                if len(x):
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(trained(x), y).backward()
                    optimizer.step()
        models[name] = network()
        models[name].load_state_dict(
            {key.removeprefix("_module."): value for key, value in trained.state_dict().items()}
        )
        models[name].eval()
    float_models = dict(models)
    calibration = DataLoader(Pictures("val"), batch_size=64)
    for name, model in float_models.items():
        example = torch.zeros(1, 1, 28, 28)
        prepared = prepare_fx(copy.deepcopy(model), get_default_qconfig_mapping("x86"), example)
        with torch.no_grad():
            for number, (x, _) in enumerate(calibration):
                if number < 8:
                    prepared(x)
        models[f"int8({name})"] = convert_fx(prepared)
    results = {}
    test = DataLoader(Pictures("test", tested), batch_size=256)
    for name, model in models.items():
        results[name] = sum(int((model(x).argmax(1) == y).sum()) for x, y in test) / tested
        for source, attacked in float_models.items():
            attack = torchattacks.PGD(attacked, eps=8 / 255, alpha=2 / 255, steps=20)
            right = sum(int((model(attack(x, y)).argmax(1) == y).sum()) for x, y in test)
            results[f"{name} under pgd on {source}"] = right / tested
    return results


def psreval(quick: bool, cores: int) -> list[dict[str, Any]]:
    import torch

    epochs, records, tested = (1, 512, 100) if quick else (5, 10_000, 2000)
    whole, result = ours(
        HOSPITAL, jobs=cores, epochs=epochs, records=records, tested=tested, pgd=PGD, private=PRIVATE
    )
    torch.set_num_threads(cores)
    seconds, found = clock(lambda: script(epochs, records, tested))
    clean = {
        (r["cell"]["defence"].partition("(")[0], r["cell"]["compressor"]): r["scores"]["accuracy"]
        for r in result.records
        if r["cell"]["attack"] == "none"
    }
    for (defence, compressor), own in clean.items():
        base = "vanilla" if defence == "none" else "dp"
        name = base if compressor == "none" else f"int8({base})"
        print(f"  {name}: accuracy {found[name]:.3f} script, {own:.3f} ours")
    pair = found["vanilla"], clean["none", "none"]
    return [row("psreval", seconds, whole, pair)]


PEERS = {"byzfl": byzfl, "flower": flower, "psreval": psreval}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--only", choices=PEERS, nargs="+", default=list(PEERS))
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="default: all")
    args = parser.parse_args()
    if not DATA.exists():
        raise SystemExit("set HARNESS_DATA to the folder that holds fashion-mnist.npz")
    rows = []
    for name in args.only:
        rows += PEERS[name](args.quick, args.cores)
    table(rows)
    for found in rows:
        if "ready" not in found["peer"]:
            met = found["ratio"] >= found["target"]
            print(f"{found['peer']}: {found['ratio']:.2f} times our time, target {found['target']:g}: "
                  f"{'met' if met else 'MISSED'}")  # fmt: skip
    keep(__file__, args, {"rows": rows})


if __name__ == "__main__":
    main()
