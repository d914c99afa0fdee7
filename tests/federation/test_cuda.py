"""On a GPU: clients as one program are clients one after another, and a run's numbers are a CPU's up to rounding."""

from __future__ import annotations

import gc

import pytest
import torch
from test_dropout import network
from test_vectorised import ALONE, EQUAL, OPTIMISERS, POISONS, STACKS, both, members, same, training

import harness
from harness.federation.local import Start
from harness.federation.vector import flatten
from harness.federation.vectorised import VectorisedTrainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


@pytest.fixture(autouse=True)
def _as_stages_compute(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


RUN = """
schema: 1
name: cuda
dataset: digits
model: {small-cnn: {width: 4, hidden: 16}}
federation: {clients: 4, rounds: 3, local: {epochs: 1, batch_size: 32, optimizer: {sgd: {lr: 0.1, momentum: 0.9}}}}
defences: [none, dp-sgd: {epsilon: 8.0}, adversarial-training: {attack: {pgd: {eps: 0.1, steps: 2}}}]
aggregators: [mean, [nnm, trimmed-mean]]
compressors: [none, structured-pruning: {ratio: 0.5}]
threats:
  - {name: none}
  - {name: evasion, budget: {norm: linf, eps: 0.1}, attacks: [pgd: {steps: 3}]}
  - {name: byzantine, malicious: 0.25, attacks: [alie: {z: 1.0}]}
  - {name: membership, attacks: [loss-threshold]}
"""


@pytest.mark.parametrize("defences", STACKS)
@pytest.mark.parametrize("way", ["vectorised", "semi-vectorised"])
def test_every_stack(tmp_path, defences, way):
    stage = training(tmp_path, defences, device="cuda")
    assert same(stage, apart=way == "semi-vectorised")["clients"] == way


@pytest.mark.parametrize("defences", EQUAL)
def test_defences_that_couple_records(tmp_path, defences):
    stage = training(tmp_path, defences, partition="iid", device="cuda")
    assert same(stage, clients=members(stage, limit=150))["chunk"] == 5


@pytest.mark.parametrize(("defences", "reason"), ALONE)
def test_what_trains_alone(tmp_path, defences, reason):
    local = "{steps: 2, batch_size: 8, optimizer: {sgd: {lr: 0.1}}}"
    stage = training(tmp_path, defences, local=local, device="cuda")
    assert reason in same(stage, clients=members(stage, limit=20), tolerance=1e-12)["alone"][0]


@pytest.mark.parametrize("optimizer", OPTIMISERS)
@pytest.mark.parametrize("proximal", [0.0, 0.3])
def test_fused_optimisers(tmp_path, optimizer, proximal):
    local = f"{{epochs: 2, batch_size: 60, proximal: {proximal}, optimizer: {{{optimizer}}}}}"
    assert same(training(tmp_path, local=local, device="cuda"))["chunk"] == 5


@pytest.mark.parametrize("attack", POISONS)
def test_poisoned_clients(tmp_path, attack):
    threats = f"threats: [{{name: p, phase: training, malicious: 0.4, attacks: [{attack}]}}]\n"
    assert same(training(tmp_path, threats=threats, device="cuda"))["alone"] == []


@pytest.mark.parametrize(
    "model", ["{resnet9: {width: 2}}", "{resnet9: {width: 2, norm: batch}}", "{mlp: {hidden: [8]}}"]
)
@pytest.mark.parametrize("way", ["vectorised", "semi-vectorised"])
def test_other_networks(tmp_path, model, way):
    stage = training(tmp_path, model=model, partition="iid", device="cuda")
    clients = members(stage, limit=100)
    assert same(stage, clients=clients, apart=way == "semi-vectorised")["clients"] == way


def test_a_real_lack_of_memory_halves_the_chunk(tmp_path):
    stage = training(
        tmp_path, model="{mlp: {hidden: [4096, 4096]}}", local="{steps: 1, batch_size: 8}", device="cuda"
    )
    module, clients = stage.initial_module(), members(stage, limit=8)
    for client in clients:
        client.images = client.images.float()
    d = sum(p.numel() for p in module.parameters())
    gc.collect()
    torch.cuda.empty_cache()
    _free, total = torch.cuda.mem_get_info()
    room = (
        12 * 4 * d
    )  # the program of five clients takes some twenty of their weights, that of two some eight
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + room) / total)
    try:
        trainer = VectorisedTrainer(module, stage.spec.federation.local, 0, "s", "float32", "cuda", chunk=5)
        found = trainer.train_all(trainer.tasks(clients, Start(0, flatten(module)), [{}] * 5))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(found) == 5
    assert "did not fit" in trainer.facts["out_of_memory"]


def test_calibration_leaves_numbers_alone(tmp_path):
    stage = training(tmp_path, partition="iid", device="cuda")
    module, clients = stage.initial_module().double(), members(stage)
    one, _together, _ = both(stage, module, clients)
    arguments = (module, stage.spec.federation.local, 3, "stage", "float32", "cuda")
    trainer = VectorisedTrainer(*arguments, calibrates=True)
    moved = torch.randn(flatten(module).shape, dtype=torch.float64).cuda()
    at = Start(1, flatten(module), moved=moved, multiplier=0.5, rounds=4, clients=5, malicious=2)
    found = trainer.train_all(trainer.tasks(clients, at, [{}] * 5))
    for (a, _), (b, _) in zip(one, found, strict=True):
        assert float((a - b).norm() / a.norm()) < 1e-9
    (pace,) = trainer.facts["calibration"]
    assert min(seconds for way, seconds in pace.items() if way != "clients") > 0


@pytest.mark.parametrize("jobs", [0, 2])
def test_a_whole_run_scores_about_what_a_cpu_scores(tmp_path, jobs):
    (tmp_path / "run.yaml").write_text(RUN)
    gpu = harness.run(tmp_path / "run.yaml", device="cuda", jobs=jobs, store=tmp_path / "gpu")
    cpu = harness.run(tmp_path / "run.yaml", device="cpu", jobs=2, store=tmp_path / "cpu")
    assert [r["error"] for r in gpu.records if r["status"] == "failed"] == []
    assert gpu.scored == cpu.scored
    for a, b in zip(gpu.records, cpu.records, strict=True):
        assert a["cell"] == b["cell"]
        if a["status"] != "scored":
            continue
        # A GPU draws other noise and other batches from the same seeds; what they decide is near.
        assert a["scores"]["accuracy"] == pytest.approx(b["scores"]["accuracy"], abs=0.15)
        assert a["guarantee"] == b["guarantee"]
        assert a["provenance"]["stages"]["train"] != b["provenance"]["stages"]["train"]


INT8 = """
schema: 1
name: int8
dataset: digits
holdout: 0.4
model: {small-cnn: {width: 2, hidden: 8}}
federation: {clients: 3, rounds: 1, local: {steps: 2, batch_size: 16, optimizer: {sgd: {lr: 0.1}}}}
compressors: [static-int8]
threats:
  - {name: outputs, knowledge: black-box, attacks: [loss-threshold]}
  - {name: server, knowledge: server, attacks: [
      loss-threshold, gradient-cosine, dlg: {targets: 1, restarts: 1, iterations: 2},
      inverting-gradients: {targets: 1, iterations: 2}, label-inference: {targets: 1, draws: 2},
      property-inference: {attribute: class, targets: 4, simulated: 10, records: 2}]}
"""


def test_int8_answers_on_the_cpu_while_a_server_s_attack_computes_on_the_gpu(tmp_path):
    (tmp_path / "int8.yaml").write_text(INT8)
    run = harness.run(tmp_path / "int8.yaml", device="cuda", jobs=0, store=tmp_path / "runs")
    assert [r["error"] for r in run.records if r["error"]] == []
    assert run.scored == 7


def test_memory_returns_to_its_baseline_after_each_cell(tmp_path):
    (tmp_path / "run.yaml").write_text(RUN)
    held = []
    for seed in range(3):
        (tmp_path / "run.yaml").write_text(RUN + f"seeds: [{seed}]\n")
        harness.run(tmp_path / "run.yaml", device="cuda", jobs=0, store=tmp_path / "runs")
        gc.collect()
        torch.cuda.empty_cache()
        held.append(torch.cuda.memory_allocated())
    assert max(held) - min(held) < 2**20


@pytest.mark.parametrize("defences", ["none", "gradient-clipping: {max_norm: 0.5}"])
def test_dropout(tmp_path, defences):
    stage = training(tmp_path, defences, partition="iid", device="cuda")
    facts = same(stage, network().double().cuda(), members(stage, limit=150))
    assert facts["clients"] == "vectorised"
