"""Exported cells: what is pinned is the cell's own training; nodes with their own data never see its seeds."""

from __future__ import annotations

import importlib
import io
import json
import sys
import tomllib
import zipfile
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from direct import DirectGrid
from flwr.app import Message
from flwr.cli.build import build_fab_from_disk
from safetensors.torch import load_file

import harness
from harness.cli import main
from harness.contracts.attack import ClientData
from harness.contracts.defence import Guarantee
from harness.errors import HarnessError, PluginError
from harness.federation.local import LocalTrainer
from harness.federation.vector import layout
from harness.flower import exported
from harness.flower import messages as wire
from harness.flower.discretion import breaches, own_entries
from harness.flower.export import export, find_cell, pin, requirements, undeployable
from harness.flower.exported import check_records, client_app, pinned, server_app
from harness.flower.secure import wrap
from harness.grid import cells
from harness.plan import Planner
from harness.registry import registry
from harness.scenario import load
from harness.scenario_plan import data_facts, metrics_of
from harness.stage_specs import train_spec

TEXT = """
schema: 1
name: Exported_1
dataset: digits
model: logistic
federation: {clients: 3, rounds: 2, partition: {dirichlet: {alpha: 1.0}},
             local: {epochs: 1, batch_size: 2000, optimizer: {sgd: {lr: 0.5}}}}
holdout: 0.1
defences: [none, dp-sgd: {epsilon: {sweep: [2, 8]}}, secure-aggregation]
aggregators: [mean, median]
compressors: [none, half-precision, qsgd]
metrics: [accuracy]
threats:
  - {name: none}
  - {name: byzantine, phase: training, malicious: 0.34, attacks: [sign-flip]}
  - {name: evasion, attacks: [fgsm]}
seeds: [3, 5]
"""


@pytest.fixture
def scenario(tmp_path):
    (tmp_path / "exported.yaml").write_text(TEXT)
    return load(tmp_path / "exported.yaml")


def pick(scenario, **axes):
    wanted = {
        "defence": "none",
        "aggregator": "mean",
        "compressor": "none",
        "threat": "none",
        "seed": 3,
    } | axes
    return next(c for c in cells(scenario) if all(c.axes[a] == v for a, v in wanted.items()))


def apps(folder):
    (package,) = (p for p in folder.iterdir() if p.is_dir())
    cell = package / "cell.yaml"
    sys.path.insert(0, str(folder))
    try:
        data = importlib.import_module(f"{package.name}.data")
    finally:
        sys.path.remove(str(folder))
    return server_app(cell), client_app(cell, data.load)


CONFIG = {"nodes": 0, "round-timeout": 5.0, "strict": False, "device": "cpu", "data-root": "."}


def run(folder, grid_class, out, nodes=3, configs=None, **config):
    from flwr.app import Context, RecordDict

    server, client = apps(folder)
    settings = CONFIG | {"out": str(out)} | config
    grid = grid_class(client, nodes, settings, configs)
    server(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=settings))
    return json.loads((out / "result.json").read_text()), load_file(out / "model.safetensors"), grid


class TestThePinnedCell:
    @pytest.mark.parametrize(
        "axes",
        [
            {},
            {"aggregator": "median"},
            {"defence": "dp-sgd(epsilon=2)", "seed": 5},
            {"threat": "evasion"},
        ],
        ids=str,
    )
    def test_has_the_training_of_the_cell(self, scenario, axes, tmp_path):
        cell = pick(scenario, **axes)
        folder = export(scenario, cell.id, tmp_path / "app").folder
        again = pinned(next(folder.glob("*/cell.yaml")))
        assert replace(again.spec, root=scenario.root) == train_spec(cell)
        facts = data_facts(scenario, None)
        key = Planner("cpu").add(cell, facts, metrics_of(scenario)).stages["train"]
        assert again.facts["noise_key"] == key

    def test_that_of_another_cell_differs(self, scenario):
        texts = {pin(pick(scenario, **axes)) for axes in ({}, {"seed": 5}, {"aggregator": "median"})}
        assert len(texts) == 3

    def test_simulated_has_the_accuracy_of_the_record(self, scenario, direct, tmp_path):
        cell = pick(scenario, defence="dp-sgd(epsilon=8)", aggregator="median")
        selected = "defence=dp-sgd(epsilon=8),aggregator=median,compressor=none,threat=none,seed=3"
        (record,) = harness.run(
            scenario, device="cpu", jobs=0, store=tmp_path / "runs", select=selected
        ).records
        export(scenario, cell.id, tmp_path / "app")
        result, _, _ = run(tmp_path / "app", direct, tmp_path / "out", nodes=2)
        assert record["id"] == cell.id
        assert result["accuracy"] == record["scores"]["accuracy"]
        assert result["guarantee"]["epsilon"] == record["guarantee"]["epsilon"]
        assert not result["deployed"]
        assert result["guarantee"]["simulated"]


class TestADeployment:
    """Three sites with 30, 60 and 90 records, files of their own."""

    @pytest.fixture
    def sites(self, scenario, tmp_path):
        train = scenario.dataset.load(None).train
        configs, start = [], 0
        for i, n in enumerate((30, 60, 90)):
            path = tmp_path / f"site{i}.npz"
            np.savez(path, images=train.images[start : start + n], labels=train.labels[start : start + n])
            configs.append({"data": str(path)})
            start += n
        return configs

    def test_moves_the_model_by_the_mean_of_what_the_sites_sent(self, scenario, sites, direct, tmp_path):
        export(scenario, pick(scenario).id, tmp_path / "app")
        sent = []

        class Watching(direct):
            def send_and_receive(self, messages, *, timeout=None):
                asked = list(messages)
                replies = super().send_and_receive(asked, timeout=timeout)
                if asked and asked[0].metadata.message_type == "train":
                    start, _ = wire.read_start(asked[0].content, "cpu")
                    sent.append(
                        (start.weights, [wire.read_update(r.content, "cpu")[0] for r in replies[::-1]])
                    )
                return replies

        result, model, _ = run(tmp_path / "app", Watching, tmp_path / "out", configs=sites)
        assert result["deployed"]
        assert "accuracy" not in result
        weights = sent[0][0].double()
        for start, updates in sent:
            torch.testing.assert_close(start.double(), weights, rtol=1e-6, atol=1e-6)
            weights = weights + sum(
                s * u.double() for s, u in zip((1 / 6, 2 / 6, 3 / 6), updates, strict=True)
            )
        names = layout(scenario.model.build((1, 8, 8), 10))
        got = torch.cat([model[name].reshape(-1) for name in names])
        torch.testing.assert_close(got.double(), weights, rtol=1e-5, atol=1e-6)

    def test_two_runs_are_never_alike_and_the_guarantee_is_for_the_sites(
        self, scenario, sites, direct, tmp_path
    ):
        export(scenario, pick(scenario, defence="dp-sgd(epsilon=8)").id, tmp_path / "app")
        first, one, _ = run(tmp_path / "app", direct, tmp_path / "1", configs=sites)
        _, two, _ = run(tmp_path / "app", direct, tmp_path / "2", configs=sites)
        assert any(not torch.equal(one[name], two[name]) for name in one)
        guarantee = first["guarantee"]
        assert not guarantee["simulated"]
        assert guarantee["epsilon"] == pytest.approx(8, rel=0.01)
        assert guarantee["delta"] == pytest.approx(1 / (10 * 180))

    def test_a_guarantee_that_the_cell_breaks_is_not_given_to_the_sites(
        self, scenario, sites, direct, tmp_path
    ):
        text = TEXT.replace("secure-aggregation]", "dp-fedavg: {epsilon: 2}]")
        (tmp_path / "central.yaml").write_text(text)
        central = load(tmp_path / "central.yaml")
        for aggregator, holds in (("mean", True), ("median", False)):
            folder = tmp_path / aggregator
            export(central, pick(central, defence="dp-fedavg(epsilon=2)", aggregator=aggregator).id, folder)
            result, _, _ = run(folder, direct, tmp_path / f"out-{aggregator}", configs=sites)
            assert result["guarantee"]["holds"] is holds
            assert not result["guarantee"]["simulated"]
        assert "median is no uniform mean" in result["guarantee"]["broken_by"][0]

    def test_no_seed_of_the_cell_reaches_a_site(self, scenario, sites, direct, tmp_path):
        from harness.flower import exported

        made = []
        original = exported.Deployed.__init__

        def spy(self, *args, **kwargs):
            original(self, *args, **kwargs)
            made.append((self.spec.seed, self.stage_key))

        export(scenario, pick(scenario).id, tmp_path / "app")
        exported.Deployed.__init__ = spy
        try:
            run(tmp_path / "app", direct, tmp_path / "out", configs=sites)
        finally:
            exported.Deployed.__init__ = original
        assert len(made) == 7  # the server, and three sites in two rounds
        assert len({seed for seed, _ in made}) == len({key for _, key in made}) == 7
        assert 3 not in {seed for seed, _ in made}

    def test_noise_and_coins_come_from_generators_that_no_seed_of_32_bits_gives(
        self, scenario, sites, direct, tmp_path, monkeypatch
    ):
        from harness.flower.exported import Deployed
        from harness.random import secret_generator

        drawn = Counter()

        def watching(*parts, device="cpu"):
            drawn.update({"noise", "batches", "server noise"} & set(parts))
            return secret_generator(*parts, device=device)

        assert Deployed.generator is secret_generator
        monkeypatch.setattr(Deployed, "generator", staticmethod(watching))
        export(scenario, pick(scenario, defence="dp-sgd(epsilon=8)").id, tmp_path / "app")
        run(tmp_path / "app", direct, tmp_path / "out", configs=sites)
        assert drawn == {"noise": 6, "batches": 6, "server noise": 2}  # three sites, two rounds

    def test_nodes_with_and_without_data_do_not_mix(self, scenario, sites, direct, tmp_path):
        export(scenario, pick(scenario).id, tmp_path / "app")
        configs = [*sites[:2], {"partition-id": 2, "num-partitions": 3}]
        with pytest.raises(HarnessError, match="2 of 3 nodes have data of their own"):
            run(tmp_path / "app", direct, tmp_path / "out", configs=configs)

    def test_a_node_that_says_neither_is_told_how(self, scenario, direct, tmp_path):
        export(scenario, pick(scenario).id, tmp_path / "app")
        with pytest.raises(HarnessError, match="--node-config"):
            run(tmp_path / "app", direct, tmp_path / "out", nodes=1, configs=[{}])

    def test_a_node_with_data_refuses_a_simulations_message(self, scenario, sites, direct, tmp_path):
        from flwr.app import Context, Message, RecordDict

        export(scenario, pick(scenario).id, tmp_path / "app")
        _, client = apps(tmp_path / "app")
        start = wire.Start(0, torch.zeros(650))
        content = wire.start_record(start, {}, 0, attacks=False)
        context = Context(run_id=1, node_id=1, node_config=sites[0], state=RecordDict(), run_config=CONFIG)
        with pytest.raises(HarnessError, match="does not train with a simulation's seeds"):
            client(Message(content, dst_node_id=1, message_type="train"), context)

    def test_a_site_that_leaves_is_done_without(self, scenario, sites, direct, tmp_path):
        export(scenario, pick(scenario).id, tmp_path / "app")

        class Dying(direct):
            def send_and_receive(self, messages, *, timeout=None):
                asked = list(messages)
                if asked and asked[0].metadata.message_type == "train":
                    self.dead = {self.ids[1]}
                return super().send_and_receive(asked, timeout=timeout)

        result, _, _ = run(tmp_path / "app", Dying, tmp_path / "out", configs=sites)
        assert [entry["clients"] for entry in result["history"]] == [2, 2]


class Telling(DirectGrid):
    """A grid that keeps what was said: `told` to nodes by messages to train, `answered` by nodes to any."""

    def __init__(self, *args):
        super().__init__(*args)
        self.told, self.answered = [], []

    def send_and_receive(self, messages, *, timeout=None):
        asked = list(messages)
        replies = super().send_and_receive(asked, timeout=timeout)
        self.told += [
            (m.metadata.dst_node_id, m.content) for m in asked if m.metadata.message_type == "train"
        ]
        self.answered += [(r.metadata.src_node_id, r.content) for r in replies if r.has_content()]
        return replies


SITES = (30, 61, 97, 50)
CLIENT_LEVEL = """
schema: 1
name: hidden
dataset: digits
model: logistic
federation: {{clients: 4, rounds: 3, participation: 0.5, sampling: {sampling}, local: {{steps: 1}}}}
defences: [{defences}]
metrics: [accuracy]
seeds: [3]
"""


def of_text(text, tmp_path):
    (tmp_path / "own.yaml").write_text(text)
    return load(tmp_path / "own.yaml")


def site_files(scenario, tmp_path, sizes=SITES):
    train, configs, start = scenario.dataset.load(None).train, [], 0
    for i, n in enumerate(sizes):
        path = tmp_path / f"of{n}.{i}.npz"
        np.savez(path, images=train.images[start : start + n], labels=train.labels[start : start + n])
        configs.append({"data": str(path)})
        start += n
    return configs


class TestWhatAClientLevelGuaranteeHides:
    """How many records a client has, and who takes part in a round."""

    def deploy(self, defences, tmp_path, sampling="poisson"):
        scenario = of_text(CLIENT_LEVEL.format(defences=defences, sampling=sampling), tmp_path)
        (cell,) = cells(scenario)
        export(scenario, cell.id, tmp_path / "app")
        configs = site_files(scenario, tmp_path)
        return run(tmp_path / "app", Telling, tmp_path / "out", nodes=len(SITES), configs=configs)

    @pytest.mark.parametrize(
        "defences",
        ["dp-fedavg: {noise_multiplier: 1.0}", "local-dp: {epsilon: 8}", "dp-ftrl: {epsilon: 8}"],
    )
    def test_no_count_leaves_a_site(self, defences, tmp_path):
        result, _, grid = self.deploy(defences, tmp_path, "fixed")
        greetings = [c for _, c in grid.answered if "records" in wire.settings(c)]
        assert [wire.settings(c)["records"] for c in greetings] == [1] * len(SITES)
        updates = [c for _, c in grid.answered if wire.METRICS in c]
        assert len(updates) == 3 * 2  # rounds, clients in each
        assert {c[wire.METRICS]["num-examples"] for c in updates} == {1}
        guarantee = result["guarantee"]
        assert guarantee["holds"]
        assert guarantee["delta"] == pytest.approx(1 / (10 * len(SITES)))  # the number of sites is public

    @pytest.mark.parametrize(
        ("defences", "kept"),
        [
            ("dp-fedavg: {epsilon: 8}", set()),  # it acts at the server alone
            ("local-dp: {epsilon: 8}", {"noise_multiplier", "delta", "accountant", "clip_norm", "rounds"}),
        ],
    )
    def test_a_site_is_sent_its_own_settings_alone(self, defences, kept, tmp_path):
        _, _, grid = self.deploy(defences, tmp_path, "fixed")
        for node, content in grid.told:
            plan = json.loads(wire.settings(content)["deployment"])
            assert set(plan) == {"clients", "prepared"}
            (prepared,) = plan["prepared"]
            assert set(prepared) == kept
            own = grid.ids.index(node)
            others = [each for i, each in enumerate(prepared.get("rounds", [])) if i != own]
            assert all(each is None for each in others)
            assert "rounds" not in prepared or prepared["rounds"][own] > 0

    @pytest.mark.parametrize("defences", ["dp-fedavg: {epsilon: 8}", "local-dp: {epsilon: 8}"])
    def test_nobody_is_told_who_else_takes_part(self, defences, tmp_path):
        result, _, grid = self.deploy(defences, tmp_path)
        assert grid.told
        for _, content in grid.told:
            assert not {"clients", "malicious", "share"} & set(wire.settings(content))
        assert result["history"] == [{"round": 1}, {"round": 2}, {"round": 3}]
        assert result["guarantee"]["holds"]

    def test_nor_under_secure_aggregation(self, tmp_path):
        text = CLIENT_LEVEL.format(sampling="fixed", defences="[local-dp: {epsilon: 8}, secure-aggregation]")
        scenario = of_text(text.replace("participation: 0.5", "participation: 1.0"), tmp_path)
        (cell,) = cells(scenario)
        export(scenario, cell.id, tmp_path / "app")
        configs = site_files(scenario, tmp_path)
        result, _, grid = run(tmp_path / "app", Telling, tmp_path / "out", nodes=4, configs=configs)
        asked = [c.config_records["fitins.config"] for _, c in grid.told if "fitins.config" in c]
        assert len(asked) == 3 * 4
        assert not any({"clients", "malicious", "share"} & set(config) for config in asked)
        assert result["history"] == [{"round": 1}, {"round": 2}, {"round": 3}]
        assert result["guarantee"]["holds"]

    def test_what_the_protocol_reveals_breaks_the_guarantee(self, tmp_path, monkeypatch):
        """Clients of SecAgg+ learn of each other, which a guarantee that hides taking part cannot bear."""
        from harness_plugins.defences.local_dp import LocalDP

        stack = "[local-dp: {epsilon: 8}, secure-aggregation]"
        specs = {}
        for sampling in ("poisson", "fixed"):
            (cell,) = cells(of_text(CLIENT_LEVEL.format(sampling=sampling, defences=stack), tmp_path))
            specs[sampling] = train_spec(cell)
        assert breaches(specs["poisson"]) == []  # that a client takes part is public there
        monkeypatch.setattr(LocalDP, "neighbours", "add-remove")
        assert (
            "with secure-aggregation the clients of a round learn of each other"
            in breaches(specs["poisson"])[0]
        )
        assert breaches(specs["fixed"]) == []
        given = Guarantee(unit="client", epsilon=1, delta=0.1, accountant="rdp")
        settled = exported._as_deployed(given, specs["poisson"])
        assert not settled.holds
        assert settled.broken_by == breaches(specs["poisson"])
        assert exported._as_deployed(given, specs["fixed"]).holds

    def test_noise_that_is_planned_by_counts_is_not_deployed_beside_it(self, tmp_path):
        stack = "[dp-sgd: {epsilon: 8}, dp-fedavg: {epsilon: 8}]"
        scenario = of_text(CLIENT_LEVEL.format(sampling="fixed", defences=stack), tmp_path)
        (cell,) = cells(scenario)
        with pytest.raises(
            HarnessError, match="dp-sgd plans by the number of each site's records, which dp-fedavg"
        ):
            export(scenario, cell.id, tmp_path / "app")

    def test_a_simulation_knows_its_sizes_as_before(self, tmp_path):
        scenario = of_text(
            CLIENT_LEVEL.format(sampling="fixed", defences="dp-fedavg: {epsilon: 8}"), tmp_path
        )
        (cell,) = cells(scenario)
        (record,) = harness.run(scenario, device="cpu", jobs=0, store=tmp_path / "runs").records
        export(scenario, cell.id, tmp_path / "app")
        result, _, _ = run(tmp_path / "app", Telling, tmp_path / "out", nodes=2)
        assert result["guarantee"]["delta"] == record["guarantee"]["delta"]
        assert [entry["clients"] for entry in result["history"]] == [2, 2, 2]

    def test_the_readme_says_so(self, tmp_path):
        scenario = of_text(
            CLIENT_LEVEL.format(sampling="fixed", defences="dp-fedavg: {epsilon: 8}"), tmp_path
        )
        (cell,) = cells(scenario)
        export(scenario, cell.id, tmp_path / "app")
        text = (tmp_path / "app" / "README.md").read_text()
        assert "sites do not report how many records they have" in text
        assert "{" not in text.partition("## Privacy")[2]


class TestOwnEntries:
    def test_keeps_what_is_no_list_over_clients(self):
        prepared = {
            "per_layer": [0.1, 0.2, 0.3],
            "clients": [{"steps": i} for i in range(3)],
            "by_client": {"0": 5, "1": 6, "2": 7},
            "delta": 0.1,
        }
        larger = prepared | {
            "clients": [{"steps": i} for i in range(4)],
            "by_client": {str(i): 5 for i in range(4)},
        }
        assert own_entries(prepared, larger, 1, 3) == {
            "per_layer": [0.1, 0.2, 0.3],
            "clients": [None, {"steps": 1}, None],
            "by_client": {"1": 6},
            "delta": 0.1,
        }

    def test_hides_every_list_of_that_length_where_it_cannot_tell(self):
        assert own_entries({"a": [1, 2, 3], "b": [1, 2]}, {}, 0, 3) == {"a": [1, None, None], "b": [1, 2]}


def test_no_site_is_sent_another_ones_steps_and_rate(tmp_path):
    """They say how many records it has."""
    scenario = of_text(CLIENT_LEVEL.format(sampling="fixed", defences="dp-sgd: {epsilon: 8}"), tmp_path)
    (cell,) = cells(scenario)
    export(scenario, cell.id, tmp_path / "app")
    configs = site_files(scenario, tmp_path)
    result, _, grid = run(tmp_path / "app", Telling, tmp_path / "out", nodes=4, configs=configs)
    for node, content in grid.told:
        (prepared,) = json.loads(wire.settings(content)["deployment"])["prepared"]
        own = grid.ids.index(node)
        assert [i for i, entry in enumerate(prepared["clients"]) if entry is not None] == [own]
        assert prepared["clients"][own]["sample_rate"] == min(1, 32 / SITES[own])
    assert result["guarantee"]["delta"] == pytest.approx(
        1 / (10 * sum(SITES))
    )  # record level: counts are known


INFERENCE = """
schema: 1
name: answers
dataset: digits
model: logistic
federation: {{clients: 3, rounds: 2, local: {{epochs: 1, batch_size: 64, optimizer: {{sgd: {{lr: 0.5}}}}}}}}
defences: [{defence}]
aggregators: [{rule}]
metrics: [accuracy]
evaluation: {{batch_size: 100, subset: 200}}
seeds: [3]
"""


def test_a_record_without_a_prediction_counts_as_wrong(monkeypatch):
    """As in the accuracy of a run: argmax would take the NaN for the largest logit."""
    logits = np.array([[np.nan, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=np.float32)
    monkeypatch.setattr(exported, "predict", lambda *_: logits)
    data = SimpleNamespace(test=SimpleNamespace(images=None, labels=torch.tensor([0, 0, 1, 0])))
    spec = SimpleNamespace(aggregators=(), defences=(), seed=0)
    training = SimpleNamespace(spec=spec, data=data, device="cpu")
    evaluation = SimpleNamespace(subset=None, batch_size=4)
    assert exported._accuracy(training, evaluation, torch.nn.Linear(1, 1)) == 0.5


@pytest.mark.parametrize(
    ("defence", "rule", "kind"),
    [
        ("bit-depth: {bits: 1}", "mean", "defence"),
        ("median-smoothing", "mean", "defence"),
        ("randomized-smoothing: {sigma: 1.5, samples: 2}", "mean", "defence"),
        ("none", "crfl: {sigma_test: 0.5, copies: 3}", "aggregator"),
    ],
)
def test_what_acts_at_inference_is_scored_as_in_the_record_and_said(defence, rule, kind, direct, tmp_path):
    scenario = of_text(INFERENCE.format(defence=defence, rule=rule), tmp_path)
    (cell,) = cells(scenario)
    (record,) = harness.run(scenario, device="cpu", jobs=0, store=tmp_path / "runs").records
    notes = export(scenario, cell.id, tmp_path / "app").notes
    result, model, _ = run(tmp_path / "app", direct, tmp_path / "out")
    assert result["accuracy"] == record["scores"]["accuracy"]
    assert set(model) == set(scenario.model.build((1, 8, 8), 10).state_dict())
    (note,) = notes
    name = (rule if kind == "aggregator" else defence).partition(":")[0]
    assert "`model.safetensors` is the network alone" in note
    assert f"`inference` of the {kind} `{name}`" in note
    assert note in (tmp_path / "app" / "README.md").read_text()


LOCAL_RULE = '''"""A rule."""

from harness.api import Aggregator, hookimpl


class Tenth(Aggregator):
    """A tenth of the mean. updates (n, d) -> (d,)."""

    name = "{name}"

    def aggregate(self, updates, context):
        return updates.mean(0) / 10


@hookimpl
def harness_register(register):
    register(Tenth)
'''
LOCAL = """
schema: 1
name: local
dataset: digits
model: logistic
plugins: [{plugins}]
federation: {{clients: 3, rounds: 1, local: {{steps: 2, optimizer: {{sgd: {{lr: 0.5}}}}}}}}
aggregators: [{rule}]
metrics: [accuracy]
"""


class TestLocalPlugins:
    def scenario(self, tmp_path, files, rule):
        for path, name in files.items():
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_text(LOCAL_RULE.replace("{name}", name))
        return of_text(LOCAL.format(plugins=", ".join(files), rule=rule), tmp_path)

    def test_travel_with_the_app_and_their_originals_are_not_needed(self, direct, tmp_path):
        files = {"data.py": "tenth", "b/data.py": "unused", "c/__init__.py": "other"}
        scenario = self.scenario(tmp_path, files, "tenth")
        (cell,) = cells(scenario)
        (record,) = harness.run(scenario, device="cpu", jobs=0, store=tmp_path / "runs").records
        folder = export(scenario, cell.id, tmp_path / "app").folder
        for path in files:
            (tmp_path / path).unlink()
        copies = [p.relative_to(folder).parts[1:] for p in folder.glob("*/plugins/**/*.py")]
        assert copies == [("plugins", "0", "data.py")]  # the cell's own, apart from the app's data.py
        bundle = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(folder)))  # what `flwr run` sends
        assert any(name.endswith("/plugins/0/data.py") for name in bundle.namelist())
        result, _, _ = run(folder, direct, tmp_path / "out")
        assert result["accuracy"] == record["scores"]["accuracy"]

    def test_of_a_package_keep_their_folders_name(self, direct, tmp_path):
        scenario = self.scenario(tmp_path, {"c/__init__.py": "other"}, "'local:c/__init__.py/other'")
        (cell,) = cells(scenario)
        folder = export(scenario, cell.id, tmp_path / "app").folder
        (tmp_path / "c" / "__init__.py").unlink()
        run(folder, direct, tmp_path / "out")

    def test_that_flower_would_leave_out_are_refused(self, tmp_path):
        scenario = self.scenario(tmp_path, {"test_rule.py": "tested"}, "tested")
        (cell,) = cells(scenario)
        with pytest.raises(HarnessError, match=r"out of an app: rename test_rule\.py"):
            export(scenario, cell.id, tmp_path / "app")

    def test_that_import_what_lies_beside_them_are_refused(self, tmp_path, monkeypatch):
        """The app held the rule alone: its processes could not import it."""
        (tmp_path / "beside_a_rule.py").write_text("SHARE = 10")
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "rule.py").write_text("import beside_a_rule\n" + LOCAL_RULE.replace("{name}", "helped"))
        scenario = of_text(LOCAL.format(plugins="rule.py", rule="helped"), tmp_path)
        with pytest.raises(HarnessError, match=r"rule\.py imports beside_a_rule\.py beside it"):
            export(scenario, next(cells(scenario)).id, tmp_path / "app")


def test_packages_of_plugins_and_extras_are_installed_with_the_app(tmp_path, monkeypatch):
    text = TEXT.replace("{epsilon: {sweep: [2, 8]}}", "{epsilon: 2, accountant: pld}")
    scenario = of_text(text, tmp_path)
    cell = pick(scenario, defence="dp-sgd(epsilon=2,accountant=pld)", aggregator="median")
    folder = export(scenario, cell.id, tmp_path / "app").folder
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["dependencies"] == [f"psr-harness[flower]>={harness.__version__}", "psr-harness[pld]"]
    assert "`pip install 'psr-harness[flower]' 'psr-harness[pld]'`" in (folder / "README.md").read_text()
    known = registry()._entries["aggregator"]
    theirs = replace(known["median"][0], distribution="their-rules", version="1.2+local")
    monkeypatch.setitem(known, "median", [theirs])
    assert sorted(requirements(cell)) == ["psr-harness[pld]", "their-rules>=1.2"]


class TestSecureAggregation:
    def app(self, scenario, tmp_path):
        return export(scenario, pick(scenario, defence="secure-aggregation").id, tmp_path / "app").folder

    def test_is_the_cells_training_up_to_quantisation(self, scenario, direct, tmp_path):
        """Each coordinate's error is at most a level's width per client and round, over the smallest weight."""
        _, masked, grid = run(self.app(scenario, tmp_path), direct, tmp_path / "masked")
        assert [kind for kind, _ in grid.log].count("train") == 2 * 4 * 3  # rounds, stages, clients
        export(scenario, pick(scenario).id, tmp_path / "plain")
        _, plain, _ = run(tmp_path / "plain", direct, tmp_path / "out")
        for name, value in plain.items():
            torch.testing.assert_close(masked[name], value, rtol=0, atol=2e-4)

    def test_no_answer_holds_an_update(self, scenario, direct, tmp_path):
        seen = []

        class Listening(direct):
            def send_and_receive(self, messages, *, timeout=None):
                replies = super().send_and_receive(messages, timeout=timeout)
                seen.extend(reply for reply in replies if reply.has_content())
                return replies

        run(self.app(scenario, tmp_path), Listening, tmp_path / "out")
        assert len(seen) == 3 + 2 * 4 * 3
        assert not any(record for reply in seen for record in reply.content.array_records.values())

    def test_goes_on_without_a_client_that_leaves_in_the_middle(self, scenario, direct, tmp_path):
        (tmp_path / "four.yaml").write_text(
            TEXT.replace("clients: 3", "clients: 4").replace("Exported_1", "four")
        )
        four = load(tmp_path / "four.yaml")

        class Dying(direct):
            stages = 0

            def send_and_receive(self, messages, *, timeout=None):
                asked = list(messages)
                self.stages += bool(asked and asked[0].metadata.message_type == "train")
                if self.stages == 3:  # it has given its key shares, and never sends its masked update
                    self.dead = {self.ids[1]}
                return super().send_and_receive(asked, timeout=timeout)

        result, model, _ = run(self.app(four, tmp_path), Dying, tmp_path / "out", nodes=4)
        assert [entry["clients"] for entry in result["history"]] == [3, 3]
        assert all(value.isfinite().all() and value.abs().max() < 5 for value in model.values())

    @pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), 8.1])
    def test_an_update_that_cannot_be_quantised_stays_at_its_client(self, wrong):
        update = torch.zeros(5)
        update[2] = wrong
        answer = Message(wire.update_record(0, update, {}, 1), dst_node_id=1, message_type="train")
        with pytest.raises(PluginError, match="cannot be quantised"):
            wrap(answer, "uniform")

    def test_a_client_that_has_diverged_leaves_the_sum_as_it_is(
        self, scenario, direct, tmp_path, monkeypatch
    ):
        text = TEXT.replace("clients: 3", "clients: 4").replace("Exported_1", "four")
        four = of_text(text, tmp_path)
        train = LocalTrainer.train

        def diverged(self, client, at):
            return train(self, client, at) * (float("nan") if client.id == 1 else 1)

        monkeypatch.setattr(LocalTrainer, "train", diverged)
        result, model, _ = run(self.app(four, tmp_path), direct, tmp_path / "out", nodes=4)
        assert [entry["clients"] for entry in result["history"]] == [3, 3]
        assert [entry["lost"] for entry in result["history"]] == [[1], [1]]
        export(four, pick(four).id, tmp_path / "plain")
        _, plain, _ = run(tmp_path / "plain", direct, tmp_path / "plain-out", nodes=4)
        for name, value in plain.items():
            torch.testing.assert_close(model[name], value, rtol=0, atol=2e-4)

    def test_two_clients_are_too_few(self, scenario, direct, tmp_path):
        text = TEXT.replace("clients: 3", "clients: 2").replace("Exported_1", "two")
        (tmp_path / "two.yaml").write_text(text.replace("malicious: 0.34", "malicious: 0.5"))
        with pytest.raises(HarnessError, match="needs 3 clients in a round"):
            run(self.app(load(tmp_path / "two.yaml"), tmp_path), direct, tmp_path / "out", nodes=2)

    def test_rules_that_need_each_update_are_refused(self, scenario, tmp_path):
        cell = pick(scenario, defence="secure-aggregation", aggregator="median")
        with pytest.raises(
            HarnessError, match="median needs every update; with secure-aggregation the server sees only"
        ):
            export(scenario, cell.id, tmp_path / "app")


class TestRecordsOfASite:
    good = ClientData(np.zeros((4, 1, 8, 8), np.uint8), np.arange(4))

    def check(self, images=None, labels=None):
        return check_records(
            self.good.images if images is None else images,
            self.good.labels if labels is None else labels,
            shape=[1, 8, 8],
            classes=4,
        )

    def test_become_the_engines_types(self):
        images, labels = self.check(np.full((4, 1, 8, 8), 0.5), np.arange(4, dtype=np.int32))
        assert (images.dtype, labels.dtype) == (np.float32, np.int64)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"images": np.zeros((4, 8, 8), np.uint8)}, "images must be"),
            ({"images": np.zeros((4, 1, 9, 9), np.uint8)}, "images must be"),
            ({"images": np.full((4, 1, 8, 8), 2.0)}, "float in"),
            ({"images": np.full((4, 1, 8, 8), np.nan)}, "float in"),
            ({"labels": np.arange(5)}, "4 images and 5 labels"),
            ({"labels": np.array([0, 1, 2, 4])}, "labels must be in"),
            ({"labels": np.array([0, 1, 2, -1])}, "labels must be in"),
            ({"labels": np.array([0.0, 1, 2, 3])}, "integers"),
        ],
    )
    def test_are_refused_with_what_is_wrong(self, wrong, message):
        with pytest.raises(HarnessError, match=message):
            self.check(**wrong)


class TestRefusals:
    @pytest.mark.parametrize(
        ("axes", "message"),
        [
            ({"threat": "byzantine"}, "trained under sign-flip: attacks are for simulations"),
            ({"compressor": "qsgd"}, "qsgd is simulated at the server"),
        ],
        ids=str,
    )
    def test_cells_that_must_not_be_deployed(self, scenario, axes, message):
        assert message in undeployable(pick(scenario, **axes))

    def test_a_compressor_of_the_model_is_left_to_its_user_and_said(self, scenario, tmp_path):
        written = export(scenario, pick(scenario, compressor="half-precision").id, tmp_path / "app")
        assert "half-precision, acts after training" in written.notes[0]
        text = (tmp_path / "app" / "README.md").read_text()
        assert written.notes[0] in text
        assert "the record's scores and guarantee are of the compressed model" in text
        assert "so the result is its record's" not in text

    def test_ids(self, scenario):
        known = [cell.id for cell in cells(scenario)]
        assert find_cell(scenario, known[4][:8]).id == known[4]
        with pytest.raises(HarnessError, match=f"has no such cell.*\n  {known[4]} "):
            find_cell(scenario, known[4][:10] + "zz")
        with pytest.raises(HarnessError, match=r"cells of .* match"):
            find_cell(scenario, next(i[0] for i in known if sum(k[0] == i[0] for k in known) > 1))

    def test_a_folder_in_use_and_the_command_line(self, scenario, tmp_path, capsys):
        path, cell = str(tmp_path / "exported.yaml"), pick(scenario)
        assert main(["export", "flower", path, "--cell", cell.id, "--out", str(tmp_path / "app")]) == 0
        assert "wrote" in capsys.readouterr().out
        assert main(["export", "flower", path, "--cell", cell.id, "--out", str(tmp_path / "app")]) == 2
        assert "not an empty folder" in capsys.readouterr().err
        attacked = pick(scenario, threat="byzantine")
        assert main(["export", "flower", path, "--cell", attacked.id, "--out", str(tmp_path / "b")]) == 2
        assert "attacks are for simulations" in capsys.readouterr().err
        assert not (tmp_path / "b").exists()

    def test_a_folder_that_cannot_be_made(self, scenario, tmp_path):
        with pytest.raises(HarnessError, match=r"--out .*app: Not a directory"):
            export(scenario, pick(scenario).id, tmp_path / "exported.yaml" / "app")
