"""Stages end to end, on digits: what each may see, what it leaves, and what the scores mean."""

from __future__ import annotations

import gc
import io
import math
import os
import random
import signal
import subprocess
import sys
import warnings
from operator import attrgetter
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import harness
from harness.api import (
    Aggregator,
    ClientData,
    CompressedModel,
    Defence,
    Guarantee,
    Model,
    ModelCompressor,
    Partitioner,
    PoisoningAttack,
    PrivacyAttack,
    Sampling,
    Score,
    TrainingVariant,
    hookimpl,
)
from harness.console.pooling import pool
from harness.console.tables import render_leaderboard
from harness.evaluation.constant import FLAG as CONSTANT
from harness.evaluation.evasion import evade
from harness.evaluation.masking import FLAG
from harness.evaluation.predict import predict
from harness.federation.data import Part
from harness.grid import cells
from harness.leaderboard.board import boards
from harness.leaderboard.submit import of_store
from harness.plan import Planner
from harness.registry import registry
from harness.scenario import load_text
from harness.scenario_plan import data_facts, metrics_of
from harness.stages import score
from harness.stages.isolation import isolated
from harness.stages.score import stratified
from harness.store import Store
from harness.training import Training

BASE = """
schema: 1
name: small
dataset: digits
model: {mlp: {hidden: [16]}}
federation: {clients: 4, rounds: 3, local: {epochs: 1, batch_size: 16, optimizer: {sgd: {lr: 0.2}}}}
"""

SEEN: dict[str, object] = {}


class Peek(ModelCompressor):
    """Looks at the data it is given and leaves the model as it is."""

    name = "test-peek"
    access: str = "private"

    @property
    def data_access(self):
        return self.access

    def compress(self, model, context):
        SEEN["images"], SEEN["labels"] = context.data()
        return CompressedModel(model, model.state_dict())

    def restore(self, model, state, surroundings):
        model.load_state_dict(state)
        return CompressedModel(model, state)


class Blanks(ModelCompressor):
    """Works in place on the data that it is given."""

    name = "test-blanks"
    data_access: ClassVar = "private"

    def compress(self, model, context):
        images, labels = context.data()
        images.zero_(), labels.zero_()
        return CompressedModel(model, model.state_dict())

    def restore(self, model, state, surroundings):
        model.load_state_dict(state)
        return CompressedModel(model, state)


class Corner(PoisoningAttack):
    """A trigger that works in place, in training and in testing."""

    name = "test-corner"
    backdoor_target: ClassVar = 0

    def trigger(self, x):
        x[:, :, -4:, -4:] = 1.0
        return x

    def poison(self, data, context):
        data.labels.zero_()
        return ClientData(self.trigger(data.images), data.labels)


class Zeroes(Defence):
    """Certifies nothing, in place."""

    name = "test-zeroes"

    def certify(self, model, x, generator):
        x.zero_()
        return torch.zeros(len(x), dtype=torch.int64), torch.zeros(len(x))


class Flat(torch.nn.Module):
    """One linear layer over all pixels; what subclasses do around it is theirs."""

    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.fc = torch.nn.Linear(math.prod(input_shape), num_classes)


class Centred(Model):
    """Linear on centred pixels, in place."""

    name = "test-centred"

    def build(self, input_shape, num_classes, normalization=None):
        class Net(Flat):
            def forward(self, x):
                x = x.flatten(1)
                x -= 0.3
                return self.fc(x)

        return Net(input_shape, num_classes)


class Stuck(Model):
    """Predicts class 3, far too sure to learn anything else."""

    name = "test-stuck"

    def build(self, input_shape, num_classes, normalization=None):
        class Net(Flat):
            def forward(self, x):
                certain = torch.zeros(num_classes, device=x.device)
                certain[3] = 1e4
                return self.fc(x.flatten(1)) * 1e-3 + certain

        return Net(input_shape, num_classes)


class Speechless(Model):
    """Has no answer to bright images once it is trained."""

    name = "test-speechless"

    def build(self, input_shape, num_classes, normalization=None):
        class Net(Flat):
            def forward(self, x):
                bright = (x.mean((1, 2, 3)) > 0.3) & (not self.training)
                return self.fc(x.flatten(1)).masked_fill(bright[:, None], torch.nan)

        return Net(input_shape, num_classes)


class Population(PrivacyAttack):
    """Works in place on all that its view holds."""

    name = "test-population"
    scores = {"test_zero": Score("none", "share", "nothing")}

    def run(self, view, context):
        for images, labels in (view.population, view.members, view.non_members):
            images.zero_(), labels.zero_()
        return {"test_zero": 0.0}


class Doubled(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        return 2 * found if function is torch.nn.functional.linear else found


class Negated(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        return -found if function is torch.ops.aten.addmm.default else found


class Careless(Aggregator):
    """Draws from every global generator, and leaves settings behind that are no business of the next stage."""

    name = "test-careless"
    n: int = 0
    leaves: str = ""

    def aggregate(self, updates, context):
        moved = updates.mean(0)
        if self.leaves == "hooks":
            torch.nn.modules.module.register_module_forward_hook(lambda layer, given, found: 2 * found)
        elif self.leaves == "saved tensors":
            torch.autograd.graph.saved_tensors_hooks(torch.zeros_like, lambda tensor: tensor).__enter__()
        elif self.leaves == "function mode":
            Doubled().__enter__()
        elif self.leaves == "dispatch mode":
            Negated().__enter__()
        elif self.leaves == "inference mode" and context.round == context.rounds - 1:
            SEEN["mode"] = torch.inference_mode()  # which ends with its last name
            SEEN["mode"].__enter__()
        elif self.leaves == "python":
            os.chdir("/")
            os.environ.pop("PATH", None)
            os.environ["OMP_NUM_THREADS"] = "64"
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGALRM, lambda *_: None)
            signal.setitimer(signal.ITIMER_REAL, 1000)
            warnings.simplefilter("error")
            np.seterr(all="raise")
            os.umask(0o777)
            sys.setrecursionlimit(500)
            gc.disable()
        elif self.leaves == "settings":
            torch.backends.cuda.enable_flash_sdp(False)
            torch.set_default_dtype(torch.float64)
            torch.set_float32_matmul_precision("medium")
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.set_flush_denormal(True)
            torch.set_grad_enabled(False)
            torch.set_num_threads(2)
        for draw in (torch.rand(()).item(), np.random.rand(), random.random()):
            moved = moved * (0.5 + draw)
        return moved


class Shuffled(Model):
    """Reads the pixels in an order that it draws, and that no weight holds."""

    name = "test-shuffled"

    def build(self, input_shape, num_classes, normalization=None):
        class Mixed(torch.nn.Module):
            def __init__(self, order):
                super().__init__()
                self.order = order

            def forward(self, x):
                return x.flatten(1)[:, self.order]

        pixels = math.prod(input_shape)
        return torch.nn.Sequential(Mixed(np.random.permutation(pixels)), torch.nn.Linear(pixels, num_classes))


class Dealt(Partitioner):
    """Deals by a global generator."""

    name = "test-dealt"

    def partition(self, labels, groups, clients, rng):
        return np.array_split(np.random.permutation(len(labels)), clients)


class Dimmed(Defence):
    """Darkens each batch by a number of NumPy's global generator."""

    name = "test-dimmed"

    def batch(self, x, y, key):
        return x * np.random.rand(), y


class Halved(ModelCompressor):
    """Leaves half of the tensors out of its file and takes them from the network that `restore` is given."""

    name = "test-halved"

    def compress(self, model, context):
        return CompressedModel(model, dict(list(model.state_dict().items())[::2]))

    def restore(self, model, state, surroundings):
        model.load_state_dict({**model.state_dict(), **state})
        return CompressedModel(model, state)


class Lost(ModelCompressor):
    """Has no gradients, and a straight-through twin whose gradients lead nowhere."""

    name = "test-lost"
    differentiable: ClassVar = False
    straight_through: ClassVar = True
    broken: bool = False

    def compress(self, model, context):
        return self.restore(model, model.state_dict(), None)

    def restore(self, model, state, surroundings):
        class Stepped(torch.nn.Module):
            def __init__(self, network, scale):
                super().__init__()
                self.network, self.scale = network, scale

            def forward(self, x):
                return self.network(x).detach() * self.scale

        class Flat(torch.nn.Module):
            def forward(self, x):
                return x.flatten(1)[:, :10] * 0

        model.load_state_dict(state)
        scale = torch.nan if self.broken else 1.0
        return CompressedModel(Stepped(model, scale), state, twin=Flat(), differentiable=False)


class Variants(PrivacyAttack):
    """Asks for two further trainings and looks at the view."""

    name = "test-variants"
    scores = {"test_mask_share": Score("none", "share", "what the view holds")}

    def trainings(self, cell):
        return [TrainingVariant("a", 0.5), TrainingVariant("b", 0.5)]

    def run(self, view, context):
        SEEN["view"] = view
        mask = view.variants["a"].mask
        return {"test_mask_share": float(mask.mean())}


class Claims(Defence):
    """Claims what Poisson sampling would amplify, and draws batches so or not."""

    name = "test-claims"
    protects = "record"
    poisson: bool = True

    def sampling(self, size, batch_size):
        return Sampling("poisson", min(1.0, batch_size / size)) if self.poisson else None

    def guarantee(self, history):
        return Guarantee(
            unit="record", epsilon=1.0, delta=1e-5, accountant="rdp",
            sampling={"method": "poisson", "rate": 0.1, "steps": 3},
        ) if history else None  # fmt: skip


class _Module:
    @staticmethod
    @hookimpl
    def harness_register(register):
        register(Peek)
        register(Halved)
        register(Variants)
        register(Careless)
        register(Shuffled)
        register(Dealt)
        register(Dimmed)
        register(Blanks)
        register(Corner)
        register(Zeroes)
        register(Centred)
        register(Stuck)
        register(Speechless)
        register(Population)
        register(Lost)
        register(Claims)


@pytest.fixture(scope="module", autouse=True)
def _registered():
    if "test-peek" not in registry().names("compressor"):
        registry().add(_Module(), "stages", "stage-tests")


@pytest.fixture(autouse=True)
def _forget():
    SEEN.clear()


def run(text: str, tmp_path: Path, **options):
    scenario = load_text(BASE + text, tmp_path / "small.yaml")
    result = harness.run(scenario, **{"device": "cpu", "jobs": 0, "store": tmp_path / "runs", **options})
    assert result.failed == 0, [r["error"] for r in result.records if r["error"]]
    return result


def training(text: str, tmp_path: Path, position: int = 0) -> Training:
    return training_of(load_text(BASE + text, tmp_path / "x.yaml"), position)


def training_of(scenario, position: int = 0) -> Training:
    facts, planner = data_facts(scenario, None), Planner("cpu")
    plan = planner.add(list(cells(scenario))[position], facts, metrics_of(scenario))
    stage = planner.stages[plan.stages["train"]]
    return Training(stage.spec, stage.key, "cpu")


def test_the_reported_accuracy_is_that_of_the_stored_model_on_the_whole_test_set(tmp_path):
    (record,) = run("", tmp_path).records
    again = training("", tmp_path)
    module = again.initial_module()
    store = Store(tmp_path / "runs")
    result = store.stage_result(record["provenance"]["stages"]["train"])
    module.load_state_dict(store.load_tensors(result["artifacts"][0]))
    test = again.data.test
    right = predict(module, test.images, 7, "cpu").argmax(1) == test.labels.numpy()
    assert record["scores"]["accuracy"] == pytest.approx(right.mean(), abs=1e-12)
    assert record["test_samples"] == len(test)


def test_seeds_change_weights_partition_and_batches(tmp_path):
    a, b = training("seeds: [0, 1]", tmp_path, 0), training("seeds: [0, 1]", tmp_path, 1)
    first, second = ([p.detach() for p in t.initial_module().parameters()] for t in (a, b))
    assert not torch.equal(first[0], second[0])
    assert not np.array_equal(a.pool.clients[0], b.pool.clients[0])


def test_cells_of_a_seed_share_weights_and_partition(tmp_path):
    text = "defences: [none, gradient-clipping]\naggregators: [mean, median]"
    found = [training(text, tmp_path, i) for i in range(4)]
    for other in found[1:]:
        assert all(
            torch.equal(p, q)
            for p, q in zip(
                found[0].initial_module().parameters(), other.initial_module().parameters(), strict=True
            )
        )
        assert all(
            np.array_equal(p, q) for p, q in zip(found[0].pool.clients, other.pool.clients, strict=True)
        )


def test_non_members_are_never_trained_on(tmp_path):
    found = training("holdout: 0.3", tmp_path)
    everyone = np.concatenate(found.pool.clients)
    assert len(np.intersect1d(everyone, found.pool.non_members)) == 0
    assert len(everyone) + len(found.pool.non_members) == len(found.data.train)
    share = len(found.pool.non_members) / len(found.data.train)
    assert share == pytest.approx(0.3, abs=0.02)


def test_a_holdout_keeps_groups_whole(tmp_path):
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 60, 400)
    images = rng.integers(0, 256, (400, 8, 8), dtype=np.uint8)
    labels = rng.integers(0, 3, (400, 1))
    arrays = {}
    for split, part in (("train", slice(0, 300)), ("val", slice(300, 350)), ("test", slice(350, 400))):
        offset = {"train": 0, "val": 1000, "test": 2000}[split]
        arrays |= {f"{split}_images": images[part], f"{split}_labels": labels[part]}
        arrays[f"{split}_groups"] = groups[part] + offset
    np.savez(tmp_path / "data.npz", **arrays)
    text = BASE.replace("dataset: digits", "dataset: {npz: {path: data.npz}}") + "holdout: 0.25"
    scenario = load_text(text, tmp_path / "x.yaml")
    planner = Planner("cpu")
    plan = planner.add(next(iter(cells(scenario))), data_facts(scenario, None), metrics_of(scenario))
    stage = planner.stages[plan.stages["train"]]
    pool = Training(stage.spec, stage.key, "cpu").pool
    inside, outside = groups[:300][pool.members], groups[:300][pool.non_members]
    assert len(outside)
    assert len(np.intersect1d(inside, outside)) == 0


@pytest.mark.parametrize(("access", "unprotected"), [("private", ""), ("public", "unprotected: [val]")])
def test_compressors_calibrate_on_val_never_on_test(access, unprotected, tmp_path):
    run(f"compressors: [test-peek: {{access: {access}}}]\n{unprotected}", tmp_path)
    val = training("", tmp_path).data.val
    torch.testing.assert_close(SEEN["images"], val.images.float() / 255)
    assert torch.equal(SEEN["labels"], val.labels)


def test_a_compressor_that_declares_no_access_is_given_nothing(tmp_path):
    scenario = load_text(BASE + "compressors: [test-peek: {access: none}]", tmp_path / "x.yaml")
    (record,) = harness.run(scenario, device="cpu", jobs=0, store=tmp_path / "runs").records
    assert record["status"] == "failed"
    assert "declares no data access" in record["error"]["message"]


def test_zero_eps_scores_exactly_the_clean_accuracy(tmp_path):
    text = "threats: [{name: e, budget: {norm: linf, eps: 0}, attacks: [fgsm, pgd: {steps: 3}]}]"
    for record in run(text, tmp_path).records:
        assert record["scores"]["robust_accuracy"] == record["scores"]["accuracy"]
        assert record["attack"]["mean_linf"] == 0


def test_stronger_attacks_leave_less(tmp_path):
    text = """
threats: [{name: e, budget: {norm: linf, eps: 0.1}, attacks: [fgsm, pgd: {steps: 2}, pgd: {steps: 20}]}]
"""
    records = run(text, tmp_path).records
    fgsm, few, many = (r["scores"]["robust_accuracy"] for r in records)
    clean = records[0]["scores"]["accuracy"]
    assert many <= few + 0.01
    assert many <= fgsm + 0.02  # on so small a network one step is nearly the best there is
    assert fgsm <= clean
    assert fgsm < clean - 0.05


def test_a_quantised_model_is_attacked_in_every_way_there_is_and_the_worst_counts(tmp_path):
    text = """
compressors: [none, static-int8]
threats:
  - {name: e, budget: {norm: linf, eps: 0.1}, surrogate: uncompressed,
     attacks: [pgd: {steps: 5}, square: {queries: 50}]}
"""
    white, both, black, direct = run(text, tmp_path).records
    assert white["attack"]["mode"] == "white-box"
    assert both["attack"]["mode"] == "straight-through twin and transfer from uncompressed"
    ways = both["attack"]["ways"]
    assert list(ways) == ["straight-through twin", "transfer from uncompressed"]
    robust = both["scores"]["robust_accuracy"]
    assert robust <= min(way["robust_accuracy"] for way in ways.values())  # sample by sample, so perhaps less
    assert abs(white["scores"]["robust_accuracy"] - robust) < 0.1
    assert black["attack"]["access"] == direct["attack"]["access"] == "logits"  # square asks the model itself
    assert direct["attack"]["mode"] == "white-box"


LOST = """
compressors: [test-lost]
evaluation: {subset: 100}
"""


def test_a_twin_s_useless_gradients_are_suspected_and_questions_ask_the_model(tmp_path):
    text = """
compressors: [test-lost]
evaluation: {subset: 100}
threats:
  - {name: white, budget: {norm: linf, eps: 0.2}, attacks: [pgd: {steps: 3}]}
  - {name: black, knowledge: black-box, budget: {norm: linf, eps: 0.2}, attacks: [square: {queries: 100}]}
"""
    pgd, square = run(text, tmp_path / "pgd").records
    assert [r["attack"]["mode"] for r in (pgd, square)] == ["straight-through twin", "black-box"]
    assert square["scores"]["robust_accuracy"] < pgd["scores"]["robust_accuracy"] - 0.2
    assert pgd["flags"] == square["flags"] == [FLAG]
    # An attack of which square is a part is as good as square alone.
    text = text.replace(
        "pgd: {steps: 3}", "multi-attack: {attacks: [pgd: {steps: 3}, square: {queries: 100}]}"
    )
    both, square = run(text, tmp_path / "both").records
    assert both["attack"]["mode"] == "straight-through twin"
    assert both["scores"]["robust_accuracy"] == pytest.approx(square["scores"]["robust_accuracy"], abs=0.1)
    assert both["flags"] == square["flags"] == []


def test_only_a_twin_s_questions_go_to_the_model(tmp_path, monkeypatch):
    """A transfer is made on its surrogate as a whole."""
    calls = []

    def spy(*given, **named):
        calls.append(named)
        return evade(*given, **named)

    monkeypatch.setattr(score, "evade", spy)
    text = """
threats:
  - {name: e, budget: {norm: linf, eps: 0.1}, surrogate: uncompressed, attacks: [pgd: {steps: 1}, square: {queries: 2}]}
"""
    run(LOST + text, tmp_path)
    twin, transfer, direct = calls
    assert twin["asked"] is twin["judge"] is not twin["source"]
    assert transfer["asked"] is direct["asked"] is None


def test_a_transfer_from_the_very_model_says_so(tmp_path):
    text = """
defences: [none, gradient-clipping: {max_norm: 0.5}]
evaluation: {subset: 50}
threats: [{name: e, budget: {norm: linf, eps: 0.1}, attacks: [fgsm, transfer: {attack: {pgd: {steps: 10}}}]}]
"""
    fgsm, itself, _, transfer = run(text, tmp_path).records
    assert fgsm["attack"]["mode"] == "white-box"
    assert itself["attack"]["mode"] == "transfer from undefended (itself)"
    assert transfer["attack"]["mode"] == "transfer from undefended"


def test_an_answer_that_is_not_a_number_is_wrong_in_every_way(tmp_path, monkeypatch):
    threat = "threats: [{name: e, budget: {norm: linf, eps: 0.1}, surrogate: uncompressed, attacks: [fgsm]}]"
    (record,) = run(LOST.replace("test-lost", "test-lost: {broken: true}") + threat, tmp_path).records
    assert [way["robust_accuracy"] for way in record["attack"]["ways"].values()] == [0.0, 0.0]

    calls = []

    def second_way_breaks(attack, model, images, labels, *, clean, **named):
        calls.append(named)
        return (clean if len(calls) == 1 else clean * np.nan), {}

    monkeypatch.setattr(score, "evade", second_way_breaks)
    (record,) = run(LOST + threat, tmp_path / "whole").records
    first, second = (way["robust_accuracy"] for way in record["attack"]["ways"].values())
    assert first > 0.3
    assert second == record["scores"]["robust_accuracy"] == 0.0


def test_a_subset_is_seeded_stratified_and_in_the_record(tmp_path):
    text = "evaluation: {subset: 100}\nthreats: [{name: none}, {name: e, attacks: [fgsm]}]"
    clean, attacked = run(text, tmp_path).records
    assert clean["test_samples"] == 100
    assert attacked["attack"]["samples"] == clean["test_samples"]
    assert attacked["scores"]["attacked_clean_accuracy"] == clean["scores"]["accuracy"]


def test_what_is_robust_was_right_among_what_was_attacked(tmp_path):
    """At eps 0 nothing moves: robust is what was right, of the twelve records that were attacked."""
    text = "threats: [{name: none}, {name: e, subset: 12, attacks: [fgsm: {eps: 0}]}]"
    clean, attacked = run(text, tmp_path).records
    assert attacked["attack"]["samples"] == 12
    scores = attacked["scores"]
    assert scores["robust_accuracy"] == scores["attacked_clean_accuracy"]
    assert scores["robust_accuracy"] * 12 == pytest.approx(round(scores["robust_accuracy"] * 12))
    assert scores["accuracy"] == clean["scores"]["accuracy"]  # of the whole test set
    (made,) = of_store([clean, attacked], "store")
    assert [(cell.tested, cell.attacked) for cell in made.cells] == [
        (clean["test_samples"], n) for n in (None, 12)
    ]
    assert made.scenario.test_records == clean["test_samples"]
    (row,) = boards([made])[0].rows
    assert row.values["robust"].signs == pool([clean, attacked])[0].values["robust"].subset * "¶" == "¶"


@pytest.mark.parametrize("counts", [(50, 50), (97, 2, 1), (1, 1, 1, 1, 1), (400, 250, 250, 99, 1), (7,)])
def test_a_subset_has_its_size_and_the_classes_their_shares(counts):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    part = Part(torch.arange(len(labels)), torch.from_numpy(labels), None)
    for size in range(1, len(labels) + 1):
        drawn = stratified(part, size)
        assert len(drawn) == size
        assert len(set(drawn.images.tolist())) == size  # nothing twice
        assert (drawn.labels == part.labels[drawn.images]).all()
        exact = size * np.array(counts) / len(labels)
        found = np.bincount(drawn.labels, minlength=len(counts))
        assert (np.abs(found - exact) < 1).all()
        assert (stratified(part, size).images == drawn.images).all()
    assert len(stratified(part, len(labels) + 5)) == len(labels)


def test_backdoors_are_learned_and_scored_on_other_classes(tmp_path):
    text = "threats: [{name: b, malicious: 0.5, attacks: [badnets: {target: 3}]}]"
    text = text + "\nseeds: [0]"
    scenario = load_text(BASE.replace("rounds: 3", "rounds: 8") + text, tmp_path / "x.yaml")
    (record,) = harness.run(scenario, device="cpu", jobs=0, store=tmp_path / "runs").records
    assert record["scores"]["attack_success_rate"] > 0.5
    assert record["scores"]["accuracy"] > 0.6
    assert len(record["training"]["malicious"]) == 2


EVERY_FAMILY = """
threats:
  - {name: none}
  - {name: e, budget: {norm: linf, eps: 0.1}, attacks: [fgsm]}
  - {name: b, malicious: 0.5, attacks: [badnets: {target: 3}]}
  - {name: z, malicious: 0.25, attacks: [gaussian]}
  - {name: p, attacks: [loss-threshold]}
"""


def test_a_model_that_predicts_one_class_is_flagged_in_all_its_cells(tmp_path):
    scenario = load_text(
        BASE.replace("{mlp: {hidden: [16]}}", "test-stuck") + EVERY_FAMILY, tmp_path / "x.yaml"
    )
    result = harness.run(scenario, device="cpu", jobs=0, store=tmp_path / "runs")
    assert result.failed == 0, [r["error"] for r in result.records if r["error"]]
    assert [r["flags"] for r in result.records] == [[CONSTANT]] * 5
    _, evasion, backdoor, *_ = result.records
    assert evasion["scores"]["robust_accuracy"] == evasion["scores"]["accuracy"]  # nothing was defended
    assert backdoor["scores"]["attack_success_rate"] == 1  # and no trigger was learned
    assert "constant-predictions" not in {f for r in run(EVERY_FAMILY, tmp_path).records for f in r["flags"]}


def test_a_model_that_answers_nan_is_flagged_and_no_attack_says_that_little_leaks_from_it(tmp_path):
    diverging = BASE.replace("rounds: 3", "rounds: 1, server: {fedavg: {lr: 1e38}}")
    scenario = load_text(diverging + EVERY_FAMILY, tmp_path / "x.yaml")
    result = harness.run(scenario, device="cpu", jobs=0, store=tmp_path / "runs")
    clean, evasion, backdoor, _, privacy = result.records
    assert clean["scores"]["accuracy"] == evasion["scores"]["robust_accuracy"] == 0
    assert "attack_success_rate" not in backdoor["scores"]
    assert all("nan-predictions" in r["flags"] for r in (clean, evasion, backdoor))
    assert privacy["status"] == "failed"  # it was scored with 0.5, as if nothing leaked
    assert (
        "the released model answers NaN to 180 of 180 images: it has diverged" in privacy["error"]["message"]
    )
    console = Console(file=io.StringIO(), width=200)
    render_leaderboard(result.records, console)
    assert f"NaN predictions ×{result.scored}: the model has diverged" in console.file.getvalue()


def test_an_attack_that_no_metric_scores_is_flagged(tmp_path):
    records = run(EVERY_FAMILY + "metrics: [accuracy, mia]", tmp_path).records
    assert [r["flags"] for r in records] == [[], ["attack-unscored"], ["attack-unscored"], [], []]


def test_an_answer_of_nan_to_a_privacy_attack_is_none(tmp_path):
    scenario = load_text(
        BASE.replace("{mlp: {hidden: [16]}}", "test-speechless") + EVERY_FAMILY, tmp_path / "x.yaml"
    )
    result = harness.run(scenario, device="cpu", jobs=0, store=tmp_path / "runs", select="threat=[np]*")
    clean, privacy = result.records
    assert clean["flags"] == ["nan-predictions"]
    assert 0 < clean["scores"]["accuracy"] < 1
    assert privacy["error"]["message"].startswith("the released model answers NaN to")


def test_a_stage_that_does_not_say_is_not_flagged(tmp_path):
    """Stores that are older than the fact are read, and their stages used."""
    scenario = load_text(BASE.replace("{mlp: {hidden: [16]}}", "test-stuck"), tmp_path / "x.yaml")
    harness.run(scenario, device="cpu", jobs=0, store=tmp_path / "runs")
    with Store(tmp_path / "runs") as store:
        (row,) = [row for row in store.stage_rows() if row.kind == "clean"]
        older = {name: value for name, value in row.result.items() if name not in ("constant", "unanswered")}
        store.adopt([row._replace(result=older)], [], {})
    again = load_text(
        BASE.replace("{mlp: {hidden: [16]}}", "test-stuck").replace("name: small", "name: other"),
        tmp_path / "x.yaml",
    )
    result = harness.run(again, device="cpu", jobs=0, store=tmp_path / "runs")
    assert sum(result.executed.values()) == 0
    assert [r["flags"] for r in result.records] == [[]]


def test_fine_tuning_under_dp_is_accounted(tmp_path):
    text = """
defences: [dp-sgd: {epsilon: 4}]
compressors: [none, structured-pruning: {ratio: 0.5, fine_tune_rounds: 2}]
"""
    plain, tuned = run(text, tmp_path).records
    assert plain["scores"]["epsilon"] <= 4
    assert tuned["scores"]["epsilon"] > plain["scores"]["epsilon"] * 1.1
    assert tuned["guarantee"]["holds"]
    assert tuned["guarantee"]["sampling"]["steps"] > plain["guarantee"]["sampling"]["steps"]
    assert tuned["train_seconds"] > plain["train_seconds"]


@pytest.mark.parametrize("poisson", [True, False])
def test_amplification_by_poisson_sampling_holds_only_where_clients_sample_so(poisson, tmp_path):
    text = f"defences: [{{test-claims: {{poisson: {str(poisson).lower()}}}}}]"
    (record,) = run(text, tmp_path).records
    assert record["guarantee"]["holds"] is poisson
    why = "test-claims counts on Poisson sampling, and clients shuffle their records into batches"
    assert record["guarantee"]["broken_by"] == ([] if poisson else [why])


@pytest.mark.parametrize(("unprotected", "holds"), [("", False), ("unprotected: [val]", True)])
def test_private_calibration_breaks_the_guarantee(unprotected, holds, tmp_path):
    text = f"defences: [dp-sgd: {{epsilon: 4}}]\ncompressors: [static-int8]\n{unprotected}"
    (record,) = run(text, tmp_path).records
    assert record["guarantee"]["holds"] is holds
    assert bool(record["guarantee"]["broken_by"]) is not holds
    assert np.isinf(record["scores"]["epsilon"]) != holds
    assert record["guarantee"]["simulated"]


def test_epsilon_is_that_of_opacus_for_the_same_rate_noise_and_steps(tmp_path):
    from opacus.accountants import RDPAccountant

    (record,) = run("defences: [dp-sgd: {noise_multiplier: 1.3}]", tmp_path).records
    sizes = record["training"]["client_sizes"]
    worst = 0.0
    for size in sizes:
        accountant = RDPAccountant()
        accountant.history = [(1.3, min(1.0, 16 / size), 3 * -(-size // 16))]
        worst = max(worst, accountant.get_epsilon(delta=1 / (10 * sum(sizes))))
    assert record["scores"]["epsilon"] == pytest.approx(worst, rel=1e-6)


def test_a_model_that_memorised_its_records_leaks_membership(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 200), ("val", 20), ("test", 20)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 3, (count, 1))  # nothing to learn but the records
    np.savez(tmp_path / "noise.npz", **arrays)
    text = BASE.replace("dataset: digits", "dataset: {npz: {path: noise.npz}}").replace(
        "epochs: 1", "epochs: 40"
    )
    text = text.replace("clients: 4", "clients: 1").replace("hidden: [16]", "hidden: [256]")
    text += "holdout: 0.5\nthreats: [{name: m, attacks: [loss-threshold]}]"
    scenario = load_text(text, tmp_path / "x.yaml")
    (record,) = harness.run(scenario, device="cpu", jobs=0, store=tmp_path / "runs").records
    assert record["scores"]["mia_auc"] > 0.9
    assert record["attack"]["members"] == record["attack"]["non_members"] == 100
    assert "mia_tpr_at_1pct_fpr" not in record["scores"]  # too few non-members to say


def test_variants_are_ordinary_trainings_shared_and_masked(tmp_path):
    text = "threats: [{name: m, attacks: [test-variants, loss-threshold]}]"
    result = run(text, tmp_path)
    assert result.executed["train"] == 3
    first = result.records[0]
    assert {"train", "clean", "attack", "variant:a", "variant:b"} == set(first["provenance"]["stages"])
    view = SEEN["view"]
    masks = [view.variants[name].mask for name in ("a", "b")]
    assert 0.35 < first["scores"]["test_mask_share"] < 0.65
    assert not np.array_equal(*masks)
    assert view.module is None  # black-box
    assert view.variants["a"].logits(view.members[0][:3]).shape == (3, 10)


def test_reduced_precision_trains_about_as_well_and_has_its_own_key(tmp_path):
    (full,) = run("", tmp_path).records
    (half,) = run("compute: {precision: bf16}", tmp_path).records
    assert full["provenance"]["stages"]["train"] != half["provenance"]["stages"]["train"]
    assert abs(full["scores"]["accuracy"] - half["scores"]["accuracy"]) < 0.1
    assert full["scores"]["loss"] != half["scores"]["loss"]


def test_batch_norm_models_train_and_keep_their_statistics(tmp_path):
    text = BASE.replace("{mlp: {hidden: [16]}}", "{resnet9: {width: 4, norm: batch}}").replace(
        "rounds: 3, local: {epochs: 1, batch_size: 16, optimizer: {sgd: {lr: 0.2}",
        "rounds: 6, local: {epochs: 1, batch_size: 24, optimizer: {sgd: {lr: 0.05}",
    )
    text += "defences: [none, adversarial-training: {attack: {pgd: {eps: 0.02, steps: 1}}}]"
    scenario = load_text(text, tmp_path / "x.yaml")
    for record in harness.run(scenario, device="cpu", jobs=0, store=tmp_path / "runs").records:
        assert record["status"] == "scored", record["error"]
        # Not the last round's: the statistics of so small a training swing, and with them the accuracy.
        assert max(entry["val_accuracy"] for entry in record["history"]) > 0.5


def test_uplink_is_what_one_client_sends_in_a_round(tmp_path):
    text = """
compressors: [none, top-k: {ratio: 0.1}]
threats: [{name: none}, {name: b, malicious: 0.25, attacks: [sign-flip]}]
"""
    parameters = 64 * 16 + 16 + 16 * 10 + 10
    sent = {
        (r["cell"]["compressor"], r["cell"]["threat"]): r["scores"]["uplink_bytes_per_round"]
        for r in run(text, tmp_path).records
    }
    kept = round(0.1 * parameters)
    assert sent["none", "none"] == sent["none", "b"] == 4 * parameters
    assert sent["top-k(ratio=0.1)", "none"] == sent["top-k(ratio=0.1)", "b"] == 8 * kept  # values and indices


def test_history_is_kept_every_k_rounds(tmp_path):
    text = BASE.replace("rounds: 3", "rounds: 5, evaluate_every: 2")
    scenario = load_text(text, tmp_path / "x.yaml")
    (record,) = harness.run(scenario, device="cpu", jobs=0, store=tmp_path / "runs").records
    evaluated = [entry["round"] for entry in record["history"] if "val_accuracy" in entry]
    assert evaluated == [2, 4, 5]


def test_sampled_clients_are_counted_in_steps_and_epsilon(tmp_path):
    text = BASE.replace("clients: 4", "clients: 8, participation: 0.25").replace("rounds: 3", "rounds: 6")
    text += "defences: [dp-sgd: {noise_multiplier: 1.0}]"
    scenario = load_text(text, tmp_path / "x.yaml")
    (record,) = harness.run(scenario, device="cpu", jobs=0, store=tmp_path / "runs").records
    store = Store(tmp_path / "runs")
    prepared = store.stage_result(record["provenance"]["stages"]["train"])["prepared"][0][0]
    per_round = [-(-size // 16) for size in record["training"]["client_sizes"]]
    rounds = [c["steps"] / p for c, p in zip(prepared["clients"], per_round, strict=True)]
    assert sum(rounds) == 6 * 2
    assert all(r == int(r) for r in rounds)


def test_exports_hold_the_scores(tmp_path):
    import json

    import pandas

    from harness.export import export

    result = run("defences: [none, dp-sgd: {epsilon: 4}]\ncompressors: [none, static-int8]", tmp_path)
    for ending in ("jsonl", "csv", "parquet"):
        export(result.records, tmp_path / f"out.{ending}")
    assert repr(result).startswith("RunResult(scored=4, failed=0, not_applicable=0, seconds=")
    frame = result.to_pandas()
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list(frame["id"])
    assert lines[3]["scores"]["epsilon"] == {"$float": "inf"}
    for other in (pandas.read_csv(tmp_path / "out.csv"), pandas.read_parquet(tmp_path / "out.parquet")):
        assert list(other["accuracy"].round(12)) == list(frame["accuracy"].round(12))
        assert list(other.columns) == list(frame.columns)
    assert not list(tmp_path.glob(".*partial"))


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch has no fp32_precision here")
@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("", "tf32"),
        ("", "bf16"),
        ("cudnn", "tf32"),
        ("cudnn.conv", "tf32"),
        ("cudnn.rnn", "ieee"),
        ("cuda.matmul", "tf32"),
        ("mkldnn", "bf16"),
        ("mkldnn.conv", "bf16"),
        ("mkldnn.matmul", "bf16"),
    ],
)
def test_a_precision_of_one_backend_reaches_no_other_stage(where, value):
    names = [
        "",
        "cudnn",
        "mkldnn",
        "cuda.matmul",
        *(f"{b}.{o}" for b in ("cudnn", "mkldnn") for o in ("conv", "rnn")),
    ]

    def place(name):
        return attrgetter(name)(torch.backends) if name else torch.backends

    def seen():
        return [place(name).fp32_precision for name in names]

    with isolated("outer", "cpu", 1, False):
        clean = seen()
        place(where).fp32_precision = value
        changed = seen()
        with isolated("inner", "cpu", 1, False):  # as a run inside a script that set it
            assert seen() == clean
        assert seen() == changed
    with isolated("next", "cpu", 1, False):
        assert seen() == clean
    # Torch raises here where settings contradict each other.
    assert isinstance(torch.backends.cuda.matmul.allow_tf32, bool)


def process_state():
    """What a process shares between the stages that it runs."""
    settings = (
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.backends.cuda.flash_sdp_enabled(),
        torch.is_inference_mode_enabled(),
        len(torch.nn.modules.module._global_forward_hooks),
        (os.getcwd(), os.environ["PATH"], os.environ["OMP_NUM_THREADS"], list(warnings.filters), np.geterr()),
        (sys.getrecursionlimit(), gc.isenabled(), os.umask(os.umask(0o22))),
        (signal.getitimer(signal.ITIMER_REAL), *map(signal.getsignal, (signal.SIGALRM, signal.SIGTERM))),
    )
    return settings, torch.get_rng_state().tolist(), list(np.random.get_state()[1]), random.getstate()


def losses(result):
    return {record["cell"]["aggregator"]: record["scores"]["loss"] for record in result.records}


def test_what_a_plugin_draws_comes_from_its_stage_alone(tmp_path):
    text = "aggregators: [test-careless: {n: 1}, test-careless: {n: 2}, mean]"
    before = process_state()
    first = losses(run(text, tmp_path / "a"))
    assert process_state() == before
    torch.rand(3), np.random.rand(3), random.random()  # a process that did something else before
    alone = losses(run(text, tmp_path / "b", select="aggregator=test-careless(n=2)"))
    assert alone["test-careless(n=2)"] == first["test-careless(n=2)"]
    assert first["test-careless(n=1)"] != first["test-careless(n=2)"]


def test_what_a_model_draws_when_it_is_built_is_the_same_when_it_is_scored(tmp_path):
    text = "seeds: [0]\nmetrics: [accuracy]"
    scenario = load_text((BASE + text).replace("{mlp: {hidden: [16]}}", "test-shuffled"), tmp_path / "x.yaml")
    (record,) = harness.run(scenario, device="cpu", jobs=0, store=tmp_path / "runs").records
    assert record["scores"]["accuracy"] > 0.5, "by another order of the pixels it knows nothing"


def test_a_partitioner_that_draws_by_itself_deals_the_same_to_all_cells_of_a_seed(tmp_path):
    text = BASE.replace("clients: 4,", "clients: 4, partition: test-dealt,") + "aggregators: [mean, median]"
    scenario = load_text(text, tmp_path / "x.yaml")
    one, again, other = training_of(scenario), training_of(scenario), training_of(scenario, 1)
    for a, b, c in zip(one.pool.clients, again.pool.clients, other.pool.clients, strict=True):
        assert np.array_equal(a, b)
        assert np.array_equal(a, c)


def test_a_defence_that_draws_by_itself_trains_one_client_after_another(tmp_path):
    one, together = (
        run(f"defences: [test-dimmed]\ncompute: {{clients: {how}}}", tmp_path / how).records[0]
        for how in ("sequential", "vectorised")
    )
    assert "they draw from a global generator" in together["training"]["execution"]["alone"][0]
    assert together["scores"]["loss"] == one["scores"]["loss"]


def test_a_run_imports_no_compiler(tmp_path):
    """Which would take longer than small stages, in every process; counting operations needs it, training does not."""
    (tmp_path / "small.yaml").write_text(BASE + "metrics: [accuracy]\n")
    program = (
        "import sys, harness\n"
        f"result = harness.run({str(tmp_path / 'small.yaml')!r}, device='cpu', jobs=0, store={str(tmp_path / 's')!r})\n"
        "assert result.scored == 1\n"
        "sys.exit('torch._inductor' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


WANDERING = """
import os
from harness.api import Aggregator, hookimpl

class Wandering(Aggregator):
    \"\"\"The mean, from another folder. updates (n, d) -> (d,).\"\"\"

    name = "wandering"
    to: str

    def aggregate(self, updates, context):
        if os.path.isdir(self.to):
            os.chdir(self.to)
        return updates.mean(0)

@hookimpl
def harness_register(register):
    register(Wandering)
"""

TELLS_HOOKS = hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks")
LEFT = (
    "settings",
    "hooks",
    *["saved tensors"] * TELLS_HOOKS,
    "function mode",
    "dispatch mode",
    "inference mode",
    "python",
)


@pytest.mark.parametrize("leaves", LEFT)
def test_what_a_plugin_leaves_behind_reaches_no_other_stage(leaves, tmp_path):
    before = process_state()
    text = f"aggregators: [test-careless: {{leaves: {leaves}}}, mean]\ndefences: [dp-sgd: {{noise_multiplier: 1.0}}]"
    both = run(text, tmp_path / "a")
    after = process_state()
    torch.set_flush_denormal(False)
    assert after == before
    alone = run(text, tmp_path / "b", select="aggregator=mean")
    assert {record["status"] for record in both.records} == {"scored"}
    assert losses(both)["mean"] == losses(alone)["mean"]


@pytest.mark.parametrize("jobs", [0, 1])
def test_artifacts_stay_in_the_store_when_a_plugin_changes_the_working_directory(jobs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wandering = "plugins: [wandering.py]\naggregators: [wandering: {to: elsewhere}]"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "wandering.py").write_text(WANDERING)
    assert run(wandering, tmp_path, store="runs", jobs=jobs).scored == 1
    assert list(Path("runs/artifacts").rglob("*.safetensors"))
    assert list(Path("elsewhere").iterdir()) == []


@pytest.mark.skipif(not TELLS_HOOKS, reason="this torch cannot name the hooks that are open")
def test_hooks_of_what_is_saved_that_were_open_before_a_stage_are_so_after_it():
    x = torch.ones(3, requires_grad=True)
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: 2 * t),
        torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: 3 * t),
    ):
        with isolated("key", "cpu", 1, False):
            inside = torch.autograd.grad((x * x).sum(), x)[0]
        outside = torch.autograd.grad((x * x).sum(), x)[0]
    assert inside.tolist() == [2.0] * 3
    assert outside.tolist() == [6.0] * 3


def test_a_stage_does_not_need_a_working_directory(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with isolated("key", "cpu", 1, False):
        os.chdir(tmp_path)


@pytest.mark.parametrize("before", [False, True])
def test_autocast_is_off_where_a_stage_begins_and_what_it_was_where_it_ends(before):
    x = torch.full((2, 2), 1 / 3)
    try:
        torch.set_autocast_enabled("cpu", before)
        with isolated("key", "cpu", 1, False):
            assert (x @ x).dtype == torch.float32
            torch.set_autocast_enabled("cpu", True)  # as a plugin leaves it
        assert torch.is_autocast_enabled("cpu") == before
    finally:
        torch.set_autocast_enabled("cpu", False)


def test_kernels_that_were_chosen_before_a_stage_are_not_its_own(tmp_path):
    quantized, mkldnn = torch.backends.quantized, torch.backends.mkldnn
    own = quantized.engine
    others = [name for name in quantized.supported_engines if name not in (own, "fbgemm", "none")]
    if not others:
        pytest.skip("this build of torch has one kind of quantised kernels")
    text = "compressors: [static-int8]\nunprotected: [val]\nmetrics: [loss]"
    (first,) = run(text, tmp_path / "a").records
    try:
        # As a plugin before, or a notebook, may have left them.
        quantized.engine, mkldnn.enabled = others[0], False
        (second,) = run(text, tmp_path / "b").records
        assert (quantized.engine, mkldnn.enabled) == (others[0], False)
    finally:
        quantized.engine, mkldnn.enabled = own, True
    assert first["compression"]["links"] == second["compression"]["links"]
    assert first["scores"] == second["scores"]


@pytest.mark.parametrize(
    "text",
    [
        "compressors: [test-blanks]",
        "threats: [{name: b, malicious: 0.5, attacks: [test-corner]}]",
        "defences: [test-zeroes]",
        "threats: [{name: p, attacks: [test-population]}]",
        "model: test-centred",
        "model: test-centred\ncompute: {clients: vectorised}",
    ],
)
def test_a_plugin_that_works_in_place_changes_nobody_else_s_data(text, tmp_path):
    """Floats need no conversion, so that views of the process's one copy of the data could be handed out."""
    head = BASE.replace("dataset: digits", "dataset: {digits: {dtype: float32}}")
    head = "\n".join(
        line for line in head.splitlines() if not text.startswith(line.split(":")[0] + ":") or not line
    )
    scenario = load_text(f"{head}\n{text}\n", tmp_path / "small.yaml")
    data = training_of(scenario).data
    parts = [(part.images.clone(), part.labels.clone()) for part in (data.train, data.val, data.test)]
    result = harness.run(scenario, device="cpu", jobs=0, store=tmp_path / "runs")
    assert result.scored == 1, [record["error"] for record in result.records]
    assert training_of(scenario).data is data  # the copy that the run used
    for part, (images, labels) in zip((data.train, data.val, data.test), parts, strict=True):
        assert torch.equal(part.images, images)
        assert torch.equal(part.labels, labels)


def test_an_attacker_poisons_a_copy_of_its_records(tmp_path):
    text = "threats: [{name: b, malicious: 0.5, start_round: 2, attacks: [test-corner]}]"
    own = training(text, tmp_path)
    clients = own._clients([])
    for client, positions in zip(clients, own.pool.clients, strict=True):
        assert torch.equal(client.labels, own.data.train.take(positions)[1])
    assert sum(client.attacking is not None for client in clients) == 2


def test_a_compressed_model_has_nothing_that_its_file_lacks(tmp_path):
    """A file without some weights must not be scored with the trained ones."""
    whole, halved, chain = run(
        "compressors: [test-peek, test-halved, [magnitude-pruning: {ratio: 0}, test-halved]]", tmp_path
    ).records
    assert whole["scores"]["accuracy"] > 0.3
    assert halved["scores"]["accuracy"] < 0.2, "its logits are NaN, of class 0 throughout"
    # Behind another compressor it has what that one's file holds.
    assert chain["scores"]["accuracy"] == pytest.approx(whole["scores"]["accuracy"])
