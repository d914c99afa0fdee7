"""Vectorised clients: the numbers of clients that train one after another, for every defence, and what falls back."""

from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

import harness
from harness.api import Defence, Field
from harness.contracts.defence import ClientHooks, Sampling
from harness.evaluation.predict import to_pixels
from harness.federation import calibration, cohort, local, vectorised
from harness.federation.batches import batches, stacked_batches
from harness.federation.local import Client, LocalTrainer, Start
from harness.federation.memory_format import channels_last
from harness.federation.together import run_together
from harness.federation.vector import buffer_names, flatten, float_buffers, load_buffers, load_vector
from harness.federation.vectorised import VectorisedTrainer, nature
from harness.grid import cells
from harness.plan import Planner
from harness.random import torch_generator
from harness.scenario import SGD, Compute, LocalTraining, load_text
from harness.scenario_plan import data_facts, metrics_of
from harness.training import Training

FEDERATION = """
schema: 1
name: vectorised
dataset: digits
model: {model}
federation:
  clients: 5
  rounds: 4
  partition: {partition}
  local: {local}
defences: [{defences}]
"""
LOCAL = "{epochs: 1, batch_size: 100, optimizer: {sgd: {lr: 0.1, momentum: 0.9}}}"


def training(tmp_path, defences="none", model="{small-cnn: {width: 2, hidden: 8}}", local=LOCAL,
             partition="{dirichlet: {alpha: 1.0}}", threats="", device="cpu"):  # fmt: skip
    text = FEDERATION
    for name, value in (("model", model), ("partition", partition), ("local", local), ("defences", defences)):
        text = text.replace(f"{{{name}}}", value)
    scenario = load_text(text + threats, tmp_path / "x.yaml")
    planner = Planner(device)
    plan = planner.add(next(iter(cells(scenario))), data_facts(scenario, None), metrics_of(scenario))
    stage = planner.stages[plan.stages["train"]]
    return Training(stage.spec, stage.key, device)


def members(stage, limit=None):
    """The clients of a stage, attacking where they can, with images in float64."""
    ids = list(range(stage.clients))
    found = stage._clients(stage._prepare([ids] * stage.spec.federation.rounds, []))
    found = [client.attacking or client for client in found]
    for client in found:
        client.images, client.labels = to_pixels(client.images[:limit]).double(), client.labels[:limit]
        client.steps = stage._steps(client.size)
    return found


def both(stage, module, clients, chunk=None, batch_norm="train", apart=False):
    """Updates and buffers from both trainers, on the same round; the vectorised one's facts."""
    weights, buffers = flatten(module), float_buffers(module, buffer_names(module))
    moved = torch.randn(weights.shape, generator=torch_generator("moved"), dtype=weights.dtype).to(weights)
    at = Start(1, weights, moved=moved, multiplier=0.5, rounds=4, clients=5, malicious=2)
    arguments = (module, stage.spec.federation.local, 3, "stage", stage.spec.compute.precision, stage.device)
    found = []
    for trainer in (LocalTrainer(*arguments), VectorisedTrainer(*arguments, chunk=chunk, apart=apart)):
        module.eval()  # modes are the trainer's to set
        trainer.batch_norm = batch_norm
        found.append(trainer.train_all(trainer.tasks(clients, at, [buffers] * len(clients))))
        load_vector(module, weights)
        load_buffers(module, buffers)
    return *found, trainer.facts


def same(stage, module=None, clients=None, tolerance=1e-9, chunk=None, apart=False):
    """Trains both ways and compares; the facts of the vectorised trainer."""
    module = stage.initial_module().double() if module is None else module
    clients = members(stage) if clients is None else clients
    one, together, facts = both(stage, module, clients, chunk, apart=apart)
    for (a, buffers), (b, others) in zip(one, together, strict=True):
        assert a.isfinite().all()
        assert float(a.norm()) > 0
        assert float((a - b).norm() / a.norm()) < tolerance
        for name, buffer in buffers.items():
            torch.testing.assert_close(others[name], buffer, rtol=tolerance, atol=tolerance)
    return facts


def updates(stage):
    """What both trainers' clients send, in float64."""
    one, together, _ = both(stage, stage.initial_module().double(), members(stage))
    return [update for update, _ in (*one, *together)]


PGD = "attack: {pgd: {eps: 0.1, steps: 2}}"
STACKS = [
    "none",
    "label-smoothing",
    "gradient-clipping: {max_norm: 0.5}",
    f"adversarial-training: {{{PGD}, fraction: 0.5, curriculum: 1.0}}",
    "adversarial-training: {attack: fgsm}",
    "trades: {eps: 0.1, steps: 2}",
    "mart: {eps: 0.1, steps: 2}",
    "logit-pairing: {eps: 0.1, steps: 2}",
    "randomized-smoothing",
    "gradient-noise",
    "gradient-noise: {distribution: laplacian}",
    "gradient-pruning",
    "local-dp: {noise_multiplier: 1.0}",
    "dp-fedavg: {noise_multiplier: 1.0}",
    "dp-ftrl: {noise_multiplier: 1.0}",
    "secure-aggregation",
    "bit-depth",
    "jpeg-compression",
    "median-smoothing",
    "dp-sgd: {noise_multiplier: 1.0}",
    "dp-sgd: {epsilon: 4.0}",
    "dp-sgd: {noise_multiplier: 0.0, clipping: per-layer}",
    "dp-sgd: {noise_multiplier: 0.5, clipping: automatic}",
    "dp-sgd: {noise_multiplier: 0.5, per_sample: vmap}",
    f"[adversarial-training: {{{PGD}, fraction: 0.5}}, dp-sgd: {{noise_multiplier: 1.0}}]",
    "[trades: {eps: 0.1, steps: 2}, dp-sgd: {noise_multiplier: 1.0}]",
    "[mart: {eps: 0.1, steps: 1}, dp-sgd: {epsilon: 3.0}, gradient-clipping]",
    "[label-smoothing, trades: {eps: 0.1, steps: 1}, gradient-clipping: {max_norm: 0.3}, gradient-noise]",
    "[dp-sgd: {noise_multiplier: 1.0}, gradient-noise, gradient-pruning]",
]


@pytest.mark.parametrize("defences", STACKS)
def test_every_stack_trains_as_one_program(tmp_path, defences):
    stage = training(tmp_path, defences)
    clients = members(stage)
    assert len({client.size for client in clients}) == 5  # ragged
    assert len({client.steps for client in clients}) > 1
    facts = same(stage, clients=clients)
    assert list(facts.pop("ways", {})) == ["per-record gradients"] * ("dp-sgd" in str(defences))
    assert facts == {"clients": "vectorised", "chunk": 5, "alone": []}


@pytest.mark.parametrize("defences", STACKS)
def test_every_stack_trains_with_convolutions_client_by_client(tmp_path, defences):
    facts = same(training(tmp_path, defences), apart=True)
    assert facts["clients"] == "semi-vectorised"
    assert facts["alone"] == []


EQUAL = ["adversarial-weight-perturbation: {attack: {pgd: {eps: 0.1, steps: 2}}}", "clean-logit-pairing"]


@pytest.mark.parametrize("defences", EQUAL)
def test_defences_that_couple_records_need_equal_clients(tmp_path, defences):
    stage = training(tmp_path, defences, partition="iid")
    assert same(stage, clients=members(stage, limit=150))["chunk"] == 5
    ragged = training(tmp_path, defences)
    assert same(ragged)["alone"] == ["no two clients are alike"]


ALONE = [
    ("free-adversarial-training", "free-adversarial-training"),
    ("soteria: {ratio: 0.3}", "soteria"),
]


@pytest.mark.parametrize(("defences", "reason"), ALONE)
def test_what_cannot_be_vectorised_trains_alone_and_says_so(tmp_path, defences, reason):
    stage = training(tmp_path, defences, local="{steps: 2, batch_size: 8, optimizer: {sgd: {lr: 0.1}}}")
    facts = same(stage, clients=members(stage, limit=20), tolerance=1e-15)
    assert facts["clients"] == "sequential"
    assert len(facts["alone"]) == 1
    assert reason in facts["alone"][0]


def test_every_built_in_defence_is_tested():
    tested = " ".join([*STACKS, *EQUAL, *(name for name, _ in ALONE)])
    for name, plugin in harness.plugins("defence").items():
        if plugin.__module__.startswith("harness_plugins."):
            assert name in tested


OPTIMISERS = [
    "sgd: {lr: 0.1}",
    "sgd: {lr: 0.1, momentum: 0.9, weight_decay: 0.01}",
    "adam: {lr: 0.01, weight_decay: 0.01}",
    "nadam: {lr: 0.01}",
]


@pytest.mark.parametrize("optimizer", OPTIMISERS)
@pytest.mark.parametrize("steps", ["epochs: 2", "steps: 3"])
@pytest.mark.parametrize("proximal", [0.0, 0.3])
def test_optimisers_steps_and_the_proximal_term(tmp_path, optimizer, steps, proximal):
    local = f"{{{steps}, batch_size: 60, proximal: {proximal}, optimizer: {{{optimizer}}}}}"
    assert same(training(tmp_path, local=local))["chunk"] == 5


@pytest.mark.parametrize("model", ["logistic", "{mlp: {hidden: [8]}}", "{resnet9: {width: 2}}"])
@pytest.mark.parametrize("apart", [False, True])
def test_other_networks(tmp_path, model, apart):
    facts = same(training(tmp_path, model=model), apart=apart)
    assert facts["clients"] == ("semi-vectorised" if apart else "vectorised")


def test_batch_normalisation_keeps_each_client_s_statistics(tmp_path):
    stage = training(tmp_path, model="{resnet9: {width: 2, norm: batch}}")
    module = stage.initial_module().double()
    clients = members(stage)
    for client in clients[:3]:
        client.images, client.labels = client.images[:90], client.labels[:90]
        client.steps = stage._steps(90)
    assert nature(module, clients[0].images[:1]) == "coupled"
    counter = module.conv1[1].num_batches_tracked
    assert same(stage, module, clients)["chunk"] == 3  # the others have sizes of their own
    assert int(counter) == 2 * sum(client.steps for client in clients)  # as often in each of the two ways
    one, together, _ = both(stage, module, clients)
    means = [found[i][1]["conv1.1.running_mean"] for found in (one, together) for i in (0, 1)]
    assert not torch.allclose(means[0], means[1])
    one, together, _ = both(stage, module, clients, batch_norm="eval")
    for (a, buffers), (b, _) in zip(one, together, strict=True):
        assert float((a - b).norm() / a.norm()) < 1e-9
        assert not buffers["conv1.1.running_mean"].any()  # as it began


def test_local_buffers_are_released_as_of_clients_one_after_another(tmp_path):
    """Of all who took part in any round, the same both ways, where another half takes part in every one."""
    found = []
    for way in ("sequential", "vectorised"):
        stage = training(tmp_path, model="{resnet9: {width: 2, norm: batch}}", partition="iid")
        federation = stage.spec.federation.model_copy(update={"buffers": "local", "participation": 0.4})
        compute = Compute.model_validate({"clients": way})
        stage.spec = replace(stage.spec, federation=federation, compute=compute)
        module = stage.initial_module()
        ready = stage.set_up(module)
        run_together([ready.run(lambda *_: None)])
        clients = [c for c in ready.federation.clients if c.buffers is not None]
        last = set(ready.schedule[-1])
        assert len(clients) > len(last)
        name = "conv1.1.running_mean"
        kept = torch.stack([c.buffers[name] for c in clients])
        weights = torch.tensor([float(c.size) for c in clients])
        torch.testing.assert_close(module.state_dict()[name], weights @ kept / weights.sum())
        found.append(module.state_dict()[name])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


WHOLE = [
    ("trades: {eps: 0.1, steps: 2}", "logistic", "nadam: {lr: 0.01}", "median"),
    ("[label-smoothing, trades: {eps: 0.1, steps: 2}]", "{mlp: {hidden: [8]}}",
     "sgd: {lr: 0.1, momentum: 0.9}", "mean"),
    ("[gradient-clipping: {max_norm: 0.5}, dp-ftrl: {noise_multiplier: 1}]", "{small-cnn: {width: 2, hidden: 8}}",
     "adam: {lr: 0.01}", "mean"),
    ("none", "{resnet9: {width: 2, norm: batch}}", "sgd: {lr: 0.1, momentum: 0.9}", "trimmed-mean"),
]  # fmt: skip


@pytest.mark.parametrize(("defences", "model", "optimizer", "rule"), WHOLE)
def test_whole_trainings_agree_as_far_as_rounding_lets_them(tmp_path, defences, model, optimizer, rule):
    """In float64. In float32 such trainings come to lie up to a tenth of the update apart: where a sign, a ReLU or a
    maximum hangs on the last digit, rounding the other way is another step."""
    local = f"{{epochs: 2, batch_size: 60, proximal: 0.3, schedule: cosine, optimizer: {{{optimizer}}}}}"
    stage = training(tmp_path, defences, model, local, threats=f"aggregators: [{rule}]\n")
    federation = stage.spec.federation.model_copy(update={"participation": 0.8, "buffers": "local"})
    found = []
    for way in ("sequential", "vectorised", "semi-vectorised"):
        compute = Compute.model_validate({"clients": way})
        stage.spec = replace(stage.spec, federation=federation, compute=compute)
        ready = stage.set_up(stage.initial_module())
        module, trainer = ready.federation.module.double(), ready.federation.trainer
        for client in ready.federation.clients:
            client.images, client.labels = to_pixels(client.images[:150]).double(), client.labels[:150]
            client.steps = stage._steps(client.size)
        ready.evaluate = lambda round: {}
        start = flatten(module).clone()
        run_together([ready.run(lambda *_: None)])
        buffers = [b.flatten() for b in module.buffers() if b.is_floating_point()]
        found.append(torch.cat([flatten(module) - start, *buffers]))
        assert trainer.facts["clients"] == way
    one, *others = found
    for together in others:
        assert float((one - together).norm() / one.norm()) < 1e-10


def test_batch_normalisation_under_a_gradient_hook_trains_alone(tmp_path):
    stage = training(
        tmp_path, "gradient-clipping", model="{resnet9: {width: 2, norm: batch}}", partition="iid"
    )
    facts = same(stage, clients=members(stage, limit=100), tolerance=1e-15)
    assert "running statistics" in facts["alone"][0]


def test_an_attack_in_the_loss_leaves_running_statistics_alone(tmp_path):
    stage = training(
        tmp_path,
        f"adversarial-training: {{{PGD}}}",
        model="{resnet9: {width: 2, norm: batch}}",
        partition="iid",
    )
    assert same(stage, clients=members(stage, limit=100))["chunk"] == 5


def test_dropout_trains_alone(tmp_path):
    stage = training(tmp_path)
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10)).double()
    facts = same(stage, module, tolerance=1e-15)
    assert "random numbers" in facts["alone"][0]


POISONS = [
    "badnets: {target: 0}", "label-flip", "dba: {target: 0}", "blended: {target: 0}",
    "adversarial-samples: {attack: {pgd: {eps: 0.1, steps: 2}}}",
    "neurotoxin: {backdoor: {badnets: {target: 0}}}", "model-replacement: {backdoor: {badnets: {target: 0}}}",
]  # fmt: skip


BESIDE = ["trades: {eps: 0.1, steps: 1}", "dp-sgd: {noise_multiplier: 1.0}"]


@pytest.mark.parametrize(
    ("attack", "defences"),
    [*((attack, "none") for attack in POISONS), *((POISONS[i], beside) for i in (4, 5) for beside in BESIDE)],
)
def test_poisoned_clients_are_a_group_of_their_own(tmp_path, attack, defences):
    threats = f"threats: [{{name: p, phase: training, malicious: 0.4, attacks: [{attack}]}}]\n"
    stage = training(tmp_path, defences, threats=threats)
    clients = members(stage)
    facts = same(stage, clients=clients)
    assert facts["clients"] == "vectorised"
    assert facts["alone"] == []
    assert len({client.hooks for client in clients}) == 2


def test_an_attack_that_counts_steps_trains_alone(tmp_path):
    attack = "alternating-minimisation: {backdoor: {badnets: {target: 0}}}"
    threats = f"threats: [{{name: p, phase: training, malicious: 0.4, attacks: [{attack}]}}]\n"
    facts = same(training(tmp_path, threats=threats))
    assert facts["chunk"] == 3  # the honest ones
    assert "alternating-minimisation" in facts["alone"][0]


class UsesGenerator(Defence):
    """A third party's: knows nothing of vectorised clients, and draws from the client's generator."""

    name = "test-uses-generator"
    scale: float = Field(0.01)

    def gradient(self, local):
        inner, generator = local.gradient, local.generator

        def gradient(params, batch, key):
            return {
                n: g + self.scale * torch.randn(g.shape, generator=generator, dtype=g.dtype)
                for n, g in inner(params, batch, key).items()
            }

        return gradient


class LooksAtValues(Defence):
    """A third party's loss that branches on a value, which vmap refuses."""

    name = "test-looks-at-values"

    def loss(self, loss, logits):
        def halved(params, batch, key):
            losses = loss(params, batch, key)
            return losses / 2 if float(losses.detach().mean()) > 0 else losses

        return halved


class Weighted(Defence):
    """A third party's pure loss and batch: vectorised without being told."""

    name = "test-weighted"

    def batch(self, x, y, key):
        return 1 - x, y

    def loss(self, loss, logits):
        return lambda params, batch, key: loss(params, batch, key) * (1 + batch[0].flatten(1).mean(1))


@pytest.mark.parametrize(
    ("hook", "way"),
    [(UsesGenerator(), "sequential"), (LooksAtValues(), "sequential"), (Weighted(), "vectorised")],
)
def test_a_third_party_s_defence_works_without_knowing(tmp_path, hook, way):
    stage = training(tmp_path)
    clients = members(stage)
    for client in clients:
        client.hooks, client.prepared = (hook,), [{}]
    facts = same(stage, clients=clients)
    assert facts["clients"] == way
    assert bool(facts["alone"]) == (way == "sequential")


def test_a_hook_that_fails_raises_its_own_error(tmp_path):
    class Broken(ClientHooks):
        def loss(self, loss, logits):
            raise ZeroDivisionError("the hook's own")

    stage = training(tmp_path)
    clients = members(stage)
    hook = Broken()
    for client in clients:
        client.hooks, client.prepared = (hook,), [{}]
    module = stage.initial_module().double()
    trainer = VectorisedTrainer(module, stage.spec.federation.local, 0, "stage", "float32", "cpu")
    with pytest.raises(ZeroDivisionError, match="the hook's own"):
        trainer.train_all(trainer.tasks(clients, Start(0, flatten(module)), [{}] * 5))


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_chunks_do_not_change_the_numbers(tmp_path, chunk):
    facts = same(training(tmp_path), chunk=chunk)
    assert facts["chunk"] == chunk
    assert facts["clients"] == ("vectorised" if chunk > 1 else "sequential")


def test_out_of_memory_halves_the_chunk_and_goes_on(tmp_path, monkeypatch, caplog):
    real, sizes = vectorised.Cohort.train, []

    def small(self):
        sizes.append(len(self.clients))
        if len(self.clients) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        real(self)

    monkeypatch.setattr(vectorised.Cohort, "train", small)
    with caplog.at_level("WARNING"):
        facts = same(training(tmp_path))
    assert sizes == [5, 2, 2]  # the fifth client trains alone
    assert facts["clients"] == "vectorised"
    assert facts["chunk"] == 2
    assert "5 clients at once did not fit; 2 from then on" in facts["out_of_memory"]
    assert len(caplog.records) == 1


@pytest.mark.parametrize("late", ["updates", "count_batches"])
def test_batches_are_counted_once_where_memory_runs_out_late(tmp_path, monkeypatch, late):
    stage = training(tmp_path, model="{resnet9: {width: 2, norm: batch}}", partition="iid")
    module, clients = stage.initial_module(), members(stage, limit=150)
    real = getattr(vectorised.Cohort, late)

    def large(self):
        if len(self.clients) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self)

    monkeypatch.setattr(vectorised.Cohort, late, large)
    for client in clients:
        client.images = client.images.float()
    trainer = VectorisedTrainer(module, stage.spec.federation.local, 0, "s", "float32", "cpu", chunk=5)
    buffers = float_buffers(module, buffer_names(module))
    trainer.train_all(trainer.tasks(clients, Start(0, flatten(module)), [buffers] * 5))
    assert "5 clients at once did not fit" in trainer.facts["out_of_memory"]
    steps = sum(client.steps for client in clients)
    assert int(module.conv1[1].num_batches_tracked) == steps


def test_what_did_not_fit_is_freed_before_fewer_clients_are_tried(tmp_path, monkeypatch):
    real, held, alive = vectorised.Cohort.train, [], []

    def first_try():
        large = torch.zeros(1000)
        held.append(weakref.ref(large))
        raise ValueError("not this way")

    def large(self):
        gc.collect()
        alive.append([tensor() is not None for tensor in held])
        if len(self.clients) > 2:
            try:
                first_try()
            except ValueError:
                raise torch.OutOfMemoryError("CUDA out of memory")  # noqa: B904 - as within a handler
        real(self)

    monkeypatch.setattr(vectorised.Cohort, "train", large)
    assert same(training(tmp_path))["chunk"] == 2
    assert alive == [[], [False], [False]]


def test_the_estimate_of_memory_keeps_none(tmp_path):
    stage = training(tmp_path)
    trainer = VectorisedTrainer(
        stage.initial_module(), stage.spec.federation.local, 0, "stage", "float32", "cpu"
    )
    client = members(stage)[0]
    client.images = client.images.float()

    def held():
        gc.collect()
        return sum(isinstance(found, torch.Tensor) for found in gc.get_objects())

    assert trainer._fitting(client) > 1
    before = held()
    for _ in range(3):
        trainer._fitting(client)
    assert held() == before


@pytest.mark.parametrize("faster", ["vectorised", "semi-vectorised", "sequential"])
def test_a_few_steps_each_way_decide_how_clients_train(tmp_path, monkeypatch, faster):
    stage = training(tmp_path, model="{resnet9: {width: 2, norm: batch}}", partition="iid")
    clients, module = members(stage, limit=150), stage.initial_module().double()
    weights, buffers = flatten(module), float_buffers(module, buffer_names(module))
    counter, steps = module.conv1[1].num_batches_tracked, []
    plain, ways = calibration._seconds, ["vectorised", "semi-vectorised", "sequential"]

    def timed(run, device):
        taken = plain(run, device)
        steps.append(taken)
        return 1.0 if len(steps) == 1 + ways.index(faster) else 2.0

    monkeypatch.setattr(calibration, "_seconds", timed)
    monkeypatch.setattr(calibration, "_PACES", {})
    arguments = (module, stage.spec.federation.local, 3, "stage", "float32", "cpu")
    found = []
    for trainer in (LocalTrainer(*arguments), VectorisedTrainer(*arguments, calibrates=True)):
        counter.zero_()
        for round in range(2):
            load_vector(module, weights)
            load_buffers(module, buffers)
            at = Start(round, weights, rounds=2, clients=5)
            found += trainer.train_all(trainer.tasks(clients, at, [buffers] * 5))
        assert int(counter) == 2 * sum(client.steps for client in clients)  # nothing of the trial is left
    half = len(found) // 2
    for (a, own), (b, others) in zip(found[:half], found[half:], strict=True):
        assert float((a - b).norm() / a.norm()) < 1e-9
        assert all(torch.allclose(others[name], value, rtol=1e-9) for name, value in own.items())
    assert len(steps) == 3  # once for these clients, not once a round
    assert min(steps) > 0
    facts = trainer.facts
    paces = {way.replace("-", "_"): 1.0 if way == faster else 2.0 for way in ways}
    assert facts["calibration"] == [{"clients": 5, **paces}]
    assert facts["clients"] == faster
    assert facts["alone"] == (["one after another they are faster"] if faster == "sequential" else [])


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ({}, False),
        ({"defences": "dp-sgd: {noise_multiplier: 2.0}"}, True),
        ({"model": "{small-cnn: {width: 3, hidden: 8}}"}, True),
        ({"local": LOCAL.replace("100", "50")}, True),
        ({"threats": "seeds: [1]\n"}, False),
    ],
)
def test_a_process_times_trainings_of_a_kind_once(tmp_path, monkeypatch, changed, again):
    timed = []

    def seconds(run, device):
        timed.append(run)
        return float(len(timed))  # the first way is the fastest

    monkeypatch.setattr(calibration, "_seconds", seconds)
    monkeypatch.setattr(calibration, "_PACES", {})
    usual = {"defences": "dp-sgd: {noise_multiplier: 1.0}", "partition": "iid"}
    for number, settings in enumerate((usual, usual | changed)):
        stage = training(tmp_path, **settings)
        clients = members(stage, limit=60)
        local, module = stage.spec.federation.local, stage.initial_module().double()
        trainer = VectorisedTrainer(module, local, number, "stage", "float32", "cpu", calibrates=True)
        trainer.train_all(trainer.tasks(clients, Start(0, flatten(module), rounds=2, clients=5), [{}] * 5))
        assert trainer.facts["clients"] == "vectorised"
        assert len(timed) == (6 if number and again else 3)
        assert trainer.facts["calibration"][0]["vectorised"] == (4.0 if number and again else 1.0)


@pytest.mark.parametrize(
    ("model", "tried"), [("{mlp: {hidden: [8]}}", False), ("{resnet9: {width: 2}}", True)]
)
def test_convolutions_are_tried_client_by_client_where_they_can_be(tmp_path, monkeypatch, model, tried):
    """A network has some, and a failure of this way alone is no reason not to train as one program."""
    stage = training(tmp_path, model=model)
    trials = []

    class Refusing:
        def __enter__(self):
            trials.append(self)
            raise RuntimeError("no rule for vmap")

        def __exit__(self, *_):
            """Never reached."""

    monkeypatch.setattr(cohort, "ConvolutionsApart", Refusing)
    monkeypatch.setattr(calibration, "_PACES", {})
    module, clients = stage.initial_module().double(), members(stage, limit=60)
    arguments = (module, stage.spec.federation.local, 3, "stage", "float32", "cpu")
    trainer = VectorisedTrainer(*arguments, calibrates=True)
    trainer.train_all(trainer.tasks(clients, Start(0, flatten(module), rounds=2, clients=5), [{}] * 5))
    assert len(trials) == tried
    assert all(pace["semi_vectorised"] is None for pace in trainer.facts["calibration"])
    assert trainer.facts["clients"] in ("vectorised", "sequential")


def test_float32_and_bf16(tmp_path):
    stage = training(tmp_path, "label-smoothing", local="{steps: 3, batch_size: 50}")
    clients = members(stage)
    for client in clients:
        client.images = client.images.float()
    for apart in (False, True):
        assert same(stage, stage.initial_module(), clients, tolerance=1e-5, apart=apart)["chunk"] == 5
    object.__setattr__(stage.spec.compute, "precision", "bf16")
    for apart in (False, True):
        assert same(stage, stage.initial_module(), clients, tolerance=0.05, apart=apart)["chunk"] == 5


@pytest.mark.parametrize("how", ["shuffle", "poisson"])
def test_stacked_batches_are_the_clients_own(how):
    sizes, steps = [30, 23, 7, 12], [9, 6, 4, 0]
    samplings = [Sampling(how, 0.1 + 0.05 * i if how == "poisson" else None) for i in range(4)]

    def generators():
        return [torch_generator("order", i) for i in range(4)]

    each = [
        list(batches(n, 8, s, w, g)) for n, s, w, g in zip(sizes, steps, samplings, generators(), strict=True)
    ]
    number = empty = 0
    for number, (index, mask) in enumerate(stacked_batches(sizes, 8, steps, samplings, generators()), 1):
        assert len(index) == sum(s >= number for s in steps)
        for i, row in enumerate(index):
            real = row if mask is None else row[mask[i]]
            assert torch.equal(real, each[i][number - 1])
            empty += not len(real)
            assert int(row.max()) < sizes[i]
    assert number == 9
    assert (empty > 0) == (how == "poisson")


@pytest.mark.parametrize("defences", ["none", "dp-sgd: {noise_multiplier: 0.5}"])
def test_a_whole_run_scores_the_same_and_says_how_clients_trained(tmp_path, defences):
    text = FEDERATION.replace("{defences}", defences).replace("{model}", "{small-cnn: {width: 2, hidden: 8}}")
    text = text.replace("{partition}", "iid").replace("{local}", LOCAL).replace("clients: 5", "clients: 4")
    found = {}
    for way in ("sequential", "vectorised", "auto", "auto, channels_last: true"):
        file = tmp_path / "run.yaml"
        file.write_text(text + f"compute: {{chunk: 3, clients: {way}}}\n")
        found[way] = harness.run(file, device="cpu", jobs=0, store=tmp_path / way).records[0]
    one, together, default, layout = found.values()
    assert layout["history"][-1]["val_loss"] == pytest.approx(one["history"][-1]["val_loss"], rel=1e-3)
    assert together["training"]["execution"]["clients"] == "vectorised"
    assert together["training"]["execution"]["chunk"] == 3
    assert one["training"]["execution"] == default["training"]["execution"]
    assert one["training"]["execution"] == {
        "clients": "sequential",
        "channels_last": True,
        **({"ways": {"per-record gradients": ["ghost clipping"]}} if defences != "none" else {}),
    }
    assert "channels_last" not in together["training"]["execution"]
    hashes = {record["scenario"]["hash"] for record in found.values()}
    assert len(hashes) == 4
    for a, b in zip(one["history"], together["history"], strict=True):
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-3)
    keys = {record["provenance"]["stages"]["train"] for record in found.values()}
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("model", "compute", "device", "expected"),
    [
        ("small-cnn", {}, "cpu", True),
        ("small-cnn", {"channels_last": False}, "cpu", False),
        ("small-cnn", {"clients": "vectorised"}, "cpu", False),
        ("small-cnn", {}, "cuda", False),
        ("small-cnn", {"channels_last": True}, "cuda", True),
        ("resnet9", {}, "cpu", False),  # normalises
        ("mlp", {}, "cpu", False),
    ],
)
def test_channels_come_last_where_that_was_measured_to_be_faster(model, compute, device, expected):
    module = harness.create("model", model).build((1, 8, 8), 10)
    assert channels_last(module, Compute(**compute), device) == expected


def test_nature_asks_the_network():
    x = torch.rand(1, 1, 8, 8)
    flat = [nn.Flatten(), nn.Linear(64, 5)]
    assert nature(nn.Sequential(*flat), x) == "apart"
    assert nature(nn.Sequential(nn.BatchNorm2d(1), *flat), x) == "coupled"
    assert nature(nn.Sequential(*flat, nn.Dropout(0.5)), x) == "random"
    silent = nn.Sequential(nn.BatchNorm2d(1), *flat)
    nn.init.zeros_(silent[2].weight)
    assert nature(silent, x) == "coupled"
    norm = nn.BatchNorm2d(1).eval()
    state = torch.get_rng_state()
    nature(nn.Sequential(norm, *flat), x)
    assert not norm.training
    assert int(norm.num_batches_tracked) == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_clients_of_other_kinds_are_not_mixed(tmp_path):
    stage = training(tmp_path, local="{steps: 2, batch_size: 8, optimizer: {sgd: {lr: 0.1}}}")
    module = stage.initial_module().double()
    images = torch.rand(20, 1, 8, 8, dtype=torch.float64, generator=torch_generator("images"))
    labels = torch.zeros(20, dtype=torch.int64)
    shuffled = [Client(i, images, labels, 2, Sampling()) for i in range(2)]
    coins = [Client(i, images, labels, 2, Sampling("poisson", 0.4)) for i in (2, 3)]
    assert same(stage, module, [shuffled[0], coins[0], shuffled[1], coins[1]])["chunk"] == 2
    still = Client(4, images, labels, 0, Sampling())
    trainer = VectorisedTrainer(module, LocalTraining(optimizer=SGD()), 0, "stage", "float32", "cpu")
    (update, _), (moved, _) = trainer.train_all(
        trainer.tasks([still, shuffled[0]], Start(0, flatten(module)), [{}, {}])
    )
    assert not update.any()
    assert moved.any()


@pytest.mark.parametrize(
    "defences", ["none", f"adversarial-training: {{{PGD}}}", "dp-sgd: {noise_multiplier: 1.0}"]
)
def test_pooling_before_a_relu_changes_no_bit_of_an_update(tmp_path, defences, monkeypatch):
    stage = training(tmp_path, defences=defences)
    sooner = updates(stage)
    for place in (local, cohort):
        monkeypatch.setattr(place, "cheap_pooling", lambda module: nullcontext())
    assert all(torch.equal(a, b) for a, b in zip(sooner, updates(stage), strict=True))
