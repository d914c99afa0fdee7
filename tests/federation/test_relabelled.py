"""Which number a client has decides nothing: with its data and its seeds under another one, a training is the same."""

from __future__ import annotations

import pytest
import torch

import harness
from harness.federation.together import run_together
from harness.federation.vector import flatten
from harness.grid import cells
from harness.plan import Planner
from harness.scenario import load_text
from harness.scenario_plan import data_facts, metrics_of
from harness.training import Training

CLIENTS, ATTACKERS, ABSENT = 17, (1, 6), ((0, 8), (3,))
SAME = tuple(range(CLIENTS))
# Client i gets the number OTHER[i]. The attackers stay in their order: the first row that they craft is the first's.
OTHER = (7, 2, 10, 16, 0, 12, 14, 9, 1, 8, 4, 15, 6, 11, 5, 13, 3)
SCENARIO = """
schema: 1
name: relabelled
dataset: digits
model: logistic
federation:
  clients: 17
  rounds: 2
  partition: {quantity: {alpha: 2}}
  weighting: WEIGHTING
  byzantine_tolerance: 0.15
  local: {steps: 2, batch_size: 16, optimizer: {sgd: {lr: 0.1}}}
defences: [DEFENCE]
aggregators: [[RULES]]
compressors: [COMPRESSOR]
threats: [{name: t, phase: training, malicious: 0.12, attacks: [ATTACK]}]
"""


def trained(tmp_path, numbers, **values) -> torch.Tensor:
    """How the weights have moved (d,), in float64, where client i has numbers[i] and its own data and seeds.

    TRUSTED stands for the number of client 2.
    """
    text = SCENARIO
    defaults = {"WEIGHTING": "uniform", "DEFENCE": "none", "COMPRESSOR": "none", "ATTACK": "label-flip"}
    for name, value in ({k.upper(): v for k, v in values.items()} | {"TRUSTED": str(numbers[2])}).items():
        text = text.replace(name, value)
    for name, value in defaults.items():
        text = text.replace(name, value)
    scenario = load_text(text, tmp_path / "x.yaml")
    planner = Planner("cpu")
    plan = planner.add(next(iter(cells(scenario))), data_facts(scenario, None), metrics_of(scenario))
    stage = planner.stages[plan.stages["train"]]
    training = Training(stage.spec, "stage", "cpu")
    training.malicious = list(ATTACKERS)
    ready = training.set_up(training.initial_module())
    federation = ready.federation
    own = federation.clients  # each seeded by its `id`, which stays
    federation.clients = [own[numbers.index(number)] for number in range(CLIENTS)]
    federation.sizes = [client.size for client in federation.clients]
    federation.rules.malicious = tuple(numbers[i] for i in ATTACKERS)
    ready.schedule = [sorted(numbers[i] for i in range(CLIENTS) if i not in absent) for absent in ABSENT]
    ready.evaluate = lambda round: {}
    federation.module.double().register_forward_pre_hook(lambda module, batch: (batch[0].double(),))
    start = flatten(federation.module).clone()
    run_together([ready.run(lambda *_: None)])
    return flatten(federation.module) - start


def same(tmp_path, tolerance=1e-9, **values) -> None:
    moved = trained(tmp_path, SAME, **values)
    assert float(moved.norm()) > 0
    assert float((trained(tmp_path, OTHER, **values) - moved).norm() / moved.norm()) < tolerance


# Where two choices are equally good the lower number decides, as Krum's, Bulyan's and MDA's docstrings say. Bulyan's
# last choice is among 2f + 1 rows by f - 1 neighbours: up to f = 2 the two rows nearest to each other always tie, so
# here f is 3. Subsets of MDA tie where they share their farthest pair, and so do equally large clusters; not with these
# data.
RULES = {
    "bucketing": None,  # which rows share a bucket is drawn by place
    "centered-clipping": "centered-clipping: {tau: 0.1}",
    "clipping": "clipping: {tau: 0.1}, mean",
    "arc": "arc, geometric-median",
    "nnm": "nnm, trimmed-mean",
    "monna": "monna: {trusted: TRUSTED}",
    "flower": "flower: {strategy: FedMedian}",
    "deepsight": "deepsight: {samples: 100}",
}


def built_in(kind, family=None, written=None):
    """A pytest parameter for each built-in plugin, as the scenario writes it."""
    for name, plugin in harness.plugins(kind).items():
        if plugin.__module__.startswith("harness_plugins.") and family in (
            None,
            getattr(plugin, "family", None),
        ):
            text = (written or {}).get(name, name)
            if text is not None:
                yield pytest.param(text, id=name)


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("rule", built_in("aggregator", written=RULES))
def test_rules(tmp_path, rule, weighting):
    same(tmp_path, rules=rule, weighting=weighting)


@pytest.mark.parametrize("attack", built_in("attack", "byzantine"))
def test_crafted_updates(tmp_path, attack):
    same(tmp_path, rules="nnm, trimmed-mean", attack=attack)


@pytest.mark.parametrize(
    "attack", ["dba: {target: 0}", "model-replacement: {backdoor: {badnets: {target: 0}}}"]
)
def test_poisoned_data(tmp_path, attack):
    same(tmp_path, rules="mean", attack=attack)


@pytest.mark.parametrize(
    "defence", ["dp-sgd: {noise_multiplier: 1}", "local-dp: {epsilon: 4}", "dp-ftrl: {noise_multiplier: 1}"]
)
def test_noise_of_clients_and_of_the_server(tmp_path, defence):
    same(tmp_path, rules="mean", defence=defence)


@pytest.mark.parametrize("compressor", ["top-k", "powersgd", "signsgd"])
def test_compressed_updates_and_what_clients_keep_back(tmp_path, compressor):
    same(
        tmp_path, rules="mean", compressor=compressor, weighting="examples", tolerance=1e-6
    )  # sent in float32
