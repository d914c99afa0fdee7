"""What a privacy attack is shown: what the threat grants, of the right trainings and records, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import harness
from harness.api import (
    Canaries,
    Membership,
    Observation,
    PluginError,
    PrivacyAttack,
    Reconstruction,
    Score,
    TrainingVariant,
    hookimpl,
)
from harness.contracts.privacy import Audit, PrivacyContext
from harness.engine import plan as plan_of
from harness.federation.data import Part
from harness.federation.vector import flatten
from harness.grid import cells
from harness.plan import Planner
from harness.registry import registry
from harness.scenario import load_text
from harness.scenario_plan import data_facts, metrics_of
from harness.scenario_threats import Threat
from harness.stages.privacy import _Scene
from harness.store import Store
from harness.training import Training

SEEN: dict[str, object] = {}

CANARIES = Canaries(40)
VARIANTS = (
    TrainingVariant("recorded", 0.5, recorded_rounds=2),
    TrainingVariant("half", 0.5),
    TrainingVariant("other-half", 0.5, complement_of="half"),
    TrainingVariant("own", keep=None, canaries=CANARIES),
)


class Looks(PrivacyAttack):
    """Asks for everything there is, and writes down what it is shown."""

    name = "test-looks"
    scores = {"test_seen": Score("none", "share", "nothing")}
    tag: str = ""

    def trainings(self, cell):
        return list(VARIANTS)

    @property
    def observation(self):
        return Observation(records=2, count=3)

    def run(self, view, context):
        SEEN[f"{self.tag}"] = view
        SEEN[f"context{self.tag}"] = context
        return {"test_seen": 0.0}


class LooksAtTheServer(Looks):
    """The same, and cannot do with less."""

    name = "test-looks-at-the-server"
    knowledge = "server"


class LooksIntoTheModel(Looks):
    """Needs the weights."""

    name = "test-looks-into-the-model"
    knowledge = "white-box"


class Blurts(PrivacyAttack):
    """Returns a score that it does not declare, or what is no value of the one that it declares."""

    name = "test-blurts"
    scores = {"test_declared": Score("none", "share", "something")}
    says: str = "undeclared"

    def run(self, view, context):
        values = {"text": "0.5", "none": None, "infinite": float("inf")}
        if self.says in values:
            return {"test_declared": values[self.says]}
        return {"test_declared": 0.25, "test_undeclared": 1.0}


class SaysNothing(PrivacyAttack):
    """Returns something that is no result."""

    name = "test-says-nothing"

    def run(self, view, context):
        return 0.5


class TellsItself(PrivacyAttack):
    """Scores by chance and takes its own scores for the truth."""

    name = "test-tells-itself"

    def run(self, view, context):
        n = len(view.members[1]) + len(view.non_members[1])
        scores = torch.rand(n, generator=context.generator).numpy()
        return Membership(scores, scores > 0.5)


class Shadows(PrivacyAttack):
    """Asks for some shadow trainings and tells members by chance."""

    name = "test-shadows"
    count: int = 2
    offset: float = 0.0

    def trainings(self, cell):
        return [TrainingVariant(f"view-shadow-{i}", 0.5) for i in range(self.count)]

    def run(self, view, context):
        n = len(view.members[1])
        SEEN["names"], SEEN["shadows"] = list(view.variants), view
        return Membership(np.arange(2 * n, dtype=float), np.repeat([True, False], n))


class Noise(PrivacyAttack):
    """Gets noise back."""

    name = "test-noise"
    knowledge = "server"
    needs_non_members = False

    @property
    def observation(self):
        return Observation(records=3, count=2)

    def run(self, view, context):
        SEEN["observed"] = view.observed
        SEEN["sides"] = (view.members, view.non_members)
        shape = (3, *view.observed[0].input_shape)
        images = tuple(torch.rand(shape, generator=context.generator) for _ in range(len(view.observed)))
        SEEN["guesses"] = images
        return Reconstruction(images=images)


class LabelsOnly(Noise):
    """Gets labels back, and no images."""

    name = "test-labels-only"

    def run(self, view, context):
        return Reconstruction(labels=tuple(torch.zeros(3, dtype=torch.int64) for _ in view.observed))


class MeanImage(Noise):
    """Gives the validation split's mean image for every record: what a guess amounts to."""

    name = "test-mean-image"

    def run(self, view, context):
        mean = view.population[0].mean(0)
        return Reconstruction(images=tuple(mean.expand(3, *mean.shape).clone() for _ in view.observed))


class Overclaims(PrivacyAttack):
    """An audit with the answer written into it."""

    name = "test-overclaims"
    needs_non_members = False
    bound: float = 100.0

    def trainings(self, cell):
        return [TrainingVariant("overclaimed", keep=None)]

    def run(self, view, context):
        return Audit(self.bound, 1e-5, 0.9, view.variants["overclaimed"].guarantee, {"made": "up"})


class _Module:
    @staticmethod
    @hookimpl
    def harness_register(register):
        for plugin in (
            Looks,
            LooksAtTheServer,
            LooksIntoTheModel,
            Blurts,
            SaysNothing,
            TellsItself,
            Shadows,
            Noise,
            LabelsOnly,
            MeanImage,
            Overclaims,
        ):
            register(plugin)


@pytest.fixture(scope="module", autouse=True)
def _registered():
    if Looks.name not in registry().names("attack"):
        registry().add(_Module(), "privacy-views", "privacy-view-tests")


@pytest.fixture(autouse=True)
def _forget():
    SEEN.clear()


BASE = """
schema: 1
name: views
dataset: digits
holdout: 0.4
model: {mlp: {hidden: [8]}}
federation: {clients: 3, rounds: 2, evaluate_every: 0, weighting: uniform,
  local: {steps: 2, batch_size: 16, optimizer: {sgd: {lr: 0.2}}}}
evaluation: {subset: 50}
"""


def run(text: str, folder, base=BASE, **options):
    scenario = load_text(base + text, folder / "views.yaml")
    return harness.run(scenario, device="cpu", jobs=0, store=folder / "runs", **options)


def scored(text: str, folder, base=BASE):
    result = run(text, folder, base)
    assert [r["error"]["message"] for r in result.records if r["error"]] == []
    assert [r["status"] for r in result.records] == ["scored"] * len(result.records), result.records[0][
        "reason"
    ]
    return result.records


def training(folder, variant=None, base=BASE, text="") -> Training:
    scenario = load_text(base + text, folder / "views.yaml")
    planner = Planner("cpu")
    plan = planner.add(next(iter(cells(scenario))), data_facts(scenario, None), metrics_of(scenario))
    stage = planner.stages[plan.stages["train"]]
    return Training(replace(stage.spec, variant=variant), stage.key, "cpu")


def released(folder, record) -> torch.nn.Module:
    """The trained network, from the store."""
    module = training(folder).initial_module()
    store = Store(folder / "runs")
    result = store.stage_result(record["provenance"]["stages"]["train"])
    module.load_state_dict(store.load_tensors(result["artifacts"][0]))
    return module.eval()


# Who sees what --------------------------------------------------------------------------------------


def three(folder):
    """The same attack under the three threats there are, and its records."""
    text = "threats:\n" + "\n".join(
        f"  - {{name: {name}, knowledge: {name}, attacks: [test-looks: {{tag: {name}}}]}}"
        for name in ("black-box", "white-box", "server")
    )
    records = scored(text, folder)
    assert [r["attack"]["access"] for r in records] == ["black-box", "white-box", "server"]
    return records, SEEN["black-box"], SEEN["white-box"], SEEN["server"]


def test_a_threat_shows_what_it_grants_and_no_more(tmp_path):
    records, black, white, server = three(tmp_path)
    assert (black.module, black.observed, black.apply) == (None, (), None)
    assert (white.observed, white.apply) == ((), None)
    for view in (black, white):
        assert all(variant.rounds == () for variant in view.variants.values())
    module = released(tmp_path, records[0])
    for view in (white, server):
        assert torch.equal(flatten(view.module), flatten(module))
        assert not view.module.training
    assert len(server.observed) == 3
    assert callable(server.apply)
    assert [variant.name for variant in VARIANTS] == list(server.variants)
    assert [len(variant.rounds) for variant in server.variants.values()] == [2, 0, 0, 0]
    for view in (black, white, server):  # what everybody may see is the same
        images = view.members[0][:20]
        with torch.no_grad():
            torch.testing.assert_close(view.logits(images), module(images))
        assert torch.equal(view.members[0], black.members[0])
        assert torch.equal(view.non_members[1], black.non_members[1])
        own = training(tmp_path).data.val
        assert torch.equal(view.population[0], own.images.float() / 255)
        assert torch.equal(view.population[1], own.labels)


@pytest.mark.parametrize(
    ("knowledge", "where"), [("black-box", "cpu"), ("white-box", "cpu"), ("server", "meta")]
)
def test_records_are_where_the_attack_computes(knowledge, where):
    """A network quantised for the CPU answers there; what a server sees of its training stays on the device."""
    part = Part(torch.zeros(4, 1, 2, 2, device=where), torch.zeros(4, dtype=torch.int64, device=where), None)
    training = SimpleNamespace(device="meta", data=SimpleNamespace(train=part, val=part))
    scoring = SimpleNamespace(device="cpu", training=training)
    scene = _Scene(scoring, SimpleNamespace(threat=SimpleNamespace(knowledge=knowledge)))
    tensors = (*scene.records(np.arange(2)), *scene.population())
    assert {tensor.device.type for tensor in tensors} == {scene.device} == {where}


def test_members_were_trained_on_and_non_members_were_not(tmp_path):
    (record,) = scored("threats: [{name: a, attacks: [test-looks]}]", tmp_path)
    view, found = SEEN[""], training(tmp_path)
    rows = found.data.train.images
    sides = {"members": found.pool.members, "non_members": found.pool.non_members}
    for name, positions in sides.items():
        images, labels = getattr(view, name)
        assert record["attack"][name] == len(labels) == min(len(p) for p in sides.values())
        own = {rows[p].numpy().tobytes() for p in positions}
        assert all((x * 255).round().to(torch.uint8).numpy().tobytes() in own for x in images)


def test_what_a_record_is_trained_on_is_in_the_mask(tmp_path):
    scored("threats: [{name: a, attacks: [test-looks]}]", tmp_path)
    view, n = SEEN[""], len(SEEN[""].members[1])
    half, other = view.variants["half"].mask, view.variants["other-half"].mask
    assert half.shape == (2 * n,)
    assert np.array_equal(half, ~other)
    assert 0.4 < half.mean() < 0.6
    for side in (half[:n], half[n:]):  # members and non-members of the target are the same to the shadows
        assert 0.35 < side.mean() < 0.65
    assert not np.array_equal(half, view.variants["recorded"].mask)
    own = view.variants["own"].mask
    assert own[:n].all()
    assert not own[n:].any()
    kinds = (view.members, view.non_members)
    images = torch.cat([side[0] for side in kinds])
    outputs = [view.variants[name].logits(images[:5]) for name in ("half", "other-half", "own", "recorded")]
    for a, b in combinations(outputs, 2):
        assert not torch.allclose(a, b)


def test_canaries_are_shown_with_the_signal_of_the_guarantee_s_adversary(tmp_path):
    text = """
defences: [none, dp-sgd: {noise_multiplier: 1}, [dp-sgd: {noise_multiplier: 1}, secure-aggregation],
  dp-fedavg: {noise_multiplier: 1}]
threats: [{name: a, attacks: [test-looks]}]
"""
    scenario = load_text(BASE + text, tmp_path / "views.yaml")
    expected = iter(["updates", "updates", "sum", "models"])
    for defence in (
        "none",
        "dp-sgd(noise_multiplier=1)",
        "dp-sgd(noise_multiplier=1) + secure*",
        "dp-fedavg*",
    ):
        SEEN.clear()
        (record,) = harness.run(
            scenario, device="cpu", jobs=0, store=tmp_path / "runs", select=f"defence={defence}"
        ).records
        assert record["status"] == "scored", record["error"] or record["reason"]
        variant = SEEN[""].variants["own"]
        stages = record["provenance"]["stages"]
        kept = Store(tmp_path / "runs").stage_result(stages["variant:own"])["signals"]
        name = next(expected)
        assert np.array_equal(variant.canaries.signal, kept[name])
        assert all(not np.array_equal(kept[name], other) for key, other in kept.items() if key != name)
        assert (variant.guarantee is None) == (defence == "none")
        assert variant.canaries.included.shape == (40,)
        assert SEEN[""].variants["half"].canaries is None


def test_apply_is_the_network_at_other_weights(tmp_path):
    records, *_, server = three(tmp_path)
    weights = flatten(released(tmp_path, records[0])) * 0.5
    images = server.members[0][:4].clone().requires_grad_()
    other = released(tmp_path, records[0])
    torch.nn.utils.vector_to_parameters(weights, other.parameters())
    weights = weights.requires_grad_()
    logits = server.apply(weights, images)
    torch.testing.assert_close(logits, other(images))
    into = torch.autograd.grad(logits.square().sum(), [weights, images])
    loss = other(images).square().sum()
    by_hand = torch.autograd.grad(loss, [*other.parameters(), images])
    torch.testing.assert_close(into[0], torch.cat([g.reshape(-1) for g in by_hand[:-1]]))
    torch.testing.assert_close(into[1], by_hand[-1])


@pytest.mark.parametrize(
    ("attack", "granted", "needed"),
    [
        ("test-looks-at-the-server", "black-box", "server"),
        ("test-looks-at-the-server", "white-box", "server"),
        ("test-looks-into-the-model", "black-box", "white-box"),
        ("audit", "black-box", "server"),
    ],
)
def test_an_attack_that_needs_more_is_not_applicable(attack, granted, needed, tmp_path):
    result = run(f"threats: [{{name: outsider, knowledge: {granted}, attacks: [{attack}]}}]", tmp_path)
    (record,) = result.records
    assert record["status"] == "not-applicable"
    name = "one-run-audit" if attack == "audit" else attack
    assert record["reason"] == f"{name} needs knowledge: {needed}; the threat 'outsider' grants {granted}"
    assert result.executed.get("train", 0) == 0
    assert SEEN == {}


@pytest.mark.parametrize(
    ("attacks", "knowledge"),
    [
        (["test-looks"], "black-box"),
        (["test-looks-into-the-model"], "white-box"),
        (["test-looks", "test-looks-into-the-model"], "white-box"),
        (["test-looks-at-the-server", "test-looks"], "server"),
        (["test-looks-into-the-model", "test-looks-at-the-server"], "server"),
    ],
)
def test_by_default_a_threat_grants_the_most_its_attacks_need(attacks, knowledge):
    plugins = [harness.create("attack", name) for name in attacks]
    assert Threat(name="t", attacks=tuple(plugins)).knowledge == knowledge
    given = Threat(name="t", attacks=tuple(plugins), knowledge="black-box")
    assert given.knowledge == "black-box"


def test_what_others_need_is_shown_to_all_of_a_threat(tmp_path):
    """Knowledge is the threat's: one that can do with less sees what the threat grants."""
    text = "threats: [{name: t, attacks: [test-looks: {tag: less}, test-looks-at-the-server: {tag: more}]}]"
    scored(text, tmp_path)
    for tag in ("less", "more"):
        assert SEEN[tag].module is not None
        assert len(SEEN[tag].observed) == 3


# Trainings ------------------------------------------------------------------------------------------


def grouped(folder):
    """A dataset of 300 training records in 60 groups, three classes."""
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 60, 400)
    arrays = {}
    for split, part, offset in (
        ("train", slice(0, 300), 0),
        ("val", slice(300, 350), 100),
        ("test", slice(350, 400), 200),
    ):
        arrays[f"{split}_images"] = rng.integers(0, 256, (400, 8, 8), dtype=np.uint8)[part]
        arrays[f"{split}_labels"] = rng.integers(0, 3, (400, 1))[part]
        arrays[f"{split}_groups"] = groups[part] + offset
    np.savez(folder / "data.npz", **arrays)
    return BASE.replace("dataset: digits", "dataset: {npz: {path: data.npz}}")


@pytest.mark.parametrize("groups", [False, True], ids=["records", "groups"])
@pytest.mark.parametrize("keep", [0.5, 0.25])
def test_a_complement_is_what_the_other_leaves_out(groups, keep, tmp_path):
    base = grouped(tmp_path) if groups else BASE
    first = training(tmp_path, TrainingVariant("a", keep), base)
    second = training(tmp_path, TrainingVariant("b", keep, complement_of="a"), base)
    n = len(first.data.train)
    assert np.array_equal(np.sort(np.concatenate([first.pool.members, second.pool.members])), np.arange(n))
    assert np.array_equal(first.pool.members, second.pool.non_members)
    assert len(first.pool.members) / n == pytest.approx(keep, abs=0.06)
    for pool in (first.pool, second.pool):
        assert np.array_equal(np.sort(np.concatenate(pool.clients)), pool.members)
    if groups:
        mine, others = (first.data.train.groups[p.pool.members] for p in (first, second))
        assert len(np.intersect1d(mine, others)) == 0
        assert len(np.unique(mine)) > 5
    third = training(tmp_path, TrainingVariant("c", keep), base)
    assert not np.array_equal(first.pool.members, third.pool.members)


def test_a_shadow_model_is_a_draw_of_its_own_and_a_variant_of_the_target_is_not(tmp_path):
    """LiRA's adversary does not know the target's initial weights, nor how records lie at clients."""
    target, own = training(tmp_path), training(tmp_path, TrainingVariant("own", keep=None))
    all_, one, two = (training(tmp_path, TrainingVariant(name, 1.0)) for name in ("all", "one", "two"))
    start = flatten(target.initial_module())
    assert torch.equal(start, flatten(own.initial_module()))
    starts = [start, *(flatten(shadow.initial_module()) for shadow in (all_, one, two))]
    assert not any(torch.equal(a, b) for a, b in combinations(starts, 2))
    assert torch.equal(starts[1], flatten(training(tmp_path, TrainingVariant("all", 1.0)).initial_module()))
    assert not np.array_equal(one.pool.clients[0], two.pool.clients[0])


def test_a_variant_without_a_share_has_the_target_s_members(tmp_path):
    target = training(tmp_path)
    own = training(tmp_path, TrainingVariant("own", keep=None))
    assert np.array_equal(own.pool.members, target.pool.members)
    assert np.array_equal(own.pool.non_members, target.pool.non_members)
    assert all(np.array_equal(a, b) for a, b in zip(own.pool.clients, target.pool.clients, strict=True))
    everyone = training(tmp_path, TrainingVariant("all", keep=1.0))
    assert len(everyone.pool.members) == len(target.data.train)
    assert len(everyone.pool.non_members) == 0


FEW = BASE.replace("clients: 3, rounds: 2", "clients: 10, participation: 0.1, rounds: 3")


def bytes_of(images) -> list[bytes]:
    return [(x * 255).round().to(torch.uint8).numpy().tobytes() for x in images]


def trained_on(own: Training, rounds=None, purpose="train") -> set[int]:
    """The records of the clients in the schedule that a training follows."""
    ready = own.set_up(own.initial_module(), rounds=rounds, purpose=purpose)
    drawn = {i for ids in ready.schedule for i in ids}
    assert 0 < len(drawn) < 10  # or there is nothing to tell apart
    return {int(position) for i in drawn for position in own.pool.clients[i]}


def test_members_are_of_clients_that_take_part_and_so_are_shadow_masks(tmp_path):
    """Else most "members" are records that no training has seen, and what leaks is hidden among them."""
    (record,) = scored("threats: [{name: a, attacks: [test-looks]}]", tmp_path, FEW)
    view, target = SEEN[""], training(tmp_path, base=FEW)
    places = {x.numpy().tobytes(): i for i, x in enumerate(target.data.train.images)}
    assert len(places) == len(target.data.train)
    members, others = ([places[x] for x in bytes_of(side[0])] for side in (view.members, view.non_members))
    seen = trained_on(target)
    assert set(members) <= seen
    labels = target.data.train.labels.numpy()
    of_class = [np.bincount(labels[list(own)], minlength=10) for own in (seen, target.pool.non_members)]
    most = int(np.minimum(*of_class).sum())
    assert len(members) == most == record["attack"]["members"]
    assert set(others) <= set(target.pool.non_members.tolist())
    assert record["attack"]["never_trained_on"] == len(target.pool.members) - len(seen) > 0
    for variant in VARIANTS:
        seen = trained_on(training(tmp_path, variant, FEW))
        expected = [position in seen for position in (*members, *others)]
        assert view.variants[variant.name].mask.tolist() == expected, variant.name
    assert not (view.variants["half"].mask & view.variants["other-half"].mask).any()


def test_with_all_clients_every_record_of_the_pool_is_a_member(tmp_path):
    (record,) = scored("threats: [{name: a, attacks: [test-looks]}]", tmp_path)
    assert "never_trained_on" not in record["attack"]
    for variant in (None, *VARIANTS):
        own = training(tmp_path, variant)
        assert np.array_equal(own.members(), np.sort(own.pool.members))


def test_whom_fine_tuning_draws_are_members_too(tmp_path):
    text = """
compressors: [structured-pruning: {ratio: 0.5, fine_tune_rounds: 2}]
threats: [{name: a, attacks: [test-shadows: {count: 1}]}]
"""
    (record,) = scored(text, tmp_path, FEW)
    (tuned,) = record["compression"]["fine_tuning"]
    later = {"rounds": 2, "purpose": tuned["purpose"]}
    target, view = training(tmp_path, base=FEW), SEEN["shadows"]
    first, more = trained_on(target), trained_on(target, **later)
    assert more - first
    places = {x.numpy().tobytes(): i for i, x in enumerate(target.data.train.images)}
    members, others = ([places[x] for x in bytes_of(side[0])] for side in (view.members, view.non_members))
    assert set(members) <= first | more
    assert set(members) & (more - first)
    assert record["attack"]["never_trained_on"] == len(target.pool.members) - len(first | more)
    shadow = training(tmp_path, TrainingVariant("view-shadow-0", 0.5), FEW)
    seen = trained_on(shadow) | trained_on(shadow, **later)
    mask = view.variants["view-shadow-0"].mask
    assert mask.tolist() == [position in seen for position in members + others]


def test_leakage_is_not_hidden_by_clients_that_never_train(tmp_path):
    """One client of ten learns noise by heart: its records are told from others, and no others are asked about."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 800), ("val", 20), ("test", 20)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        arrays[f"{split}_labels"] = rng.integers(0, 3, (count, 1))
    np.savez(tmp_path / "noise.npz", **arrays)
    base = FEW.replace("dataset: digits", "dataset: {npz: {path: noise.npz}}").replace(
        "rounds: 3", "rounds: 1"
    )
    base = base.replace("hidden: [8]", "hidden: [256]").replace("steps: 2", "epochs: 60")
    base = base.replace("subset: 50", "subset: 20")
    (record,) = scored("threats: [{name: m, attacks: [loss-threshold]}]", tmp_path, base)
    assert record["attack"]["members"] == record["attack"]["non_members"] == 48
    assert record["attack"]["never_trained_on"] == 432
    assert record["scores"]["mia_auc"] > 0.9


def test_which_classes_the_clients_that_took_part_have_does_not_count_as_membership(tmp_path):
    """Two clients with few classes each teach these and memorise nothing: the loss then tells classes, not members."""
    base = BASE.replace(
        "clients: 3, rounds: 2",
        "clients: 20, participation: 0.1, rounds: 2, partition: {dirichlet: {alpha: 0.1}}",
    )
    base += "seeds: [0, 1, 2]\n"
    records = scored("threats: [{name: m, attacks: [loss-threshold]}]", tmp_path, base)
    aucs = [record["scores"]["mia_auc"] for record in records]
    assert len(aucs) == 3
    assert max(abs(auc - 0.5) for auc in aucs) < 0.08, aucs
    assert all(record["attack"]["members"] > 50 for record in records)


def test_groups_travel_with_membership_scores(tmp_path):
    base = grouped(tmp_path)
    scored("threats: [{name: a, attacks: [test-looks]}]", tmp_path, base)
    view, found = SEEN[""], training(tmp_path, base=base)
    groups, pool = found.data.train.groups, found.pool
    assert len(np.intersect1d(groups[pool.members], groups[pool.non_members])) == 0
    rows = {found.data.train.images[i].numpy().tobytes(): groups[i] for i in range(300)}
    images = torch.cat([view.members[0], view.non_members[0]])
    tested = [rows[(x * 255).round().to(torch.uint8).numpy().tobytes()] for x in images]
    mask = view.variants["half"].mask
    assert np.array_equal(mask, ~view.variants["other-half"].mask)
    for group in np.unique(tested):  # a group is trained on as a whole, or not at all
        assert len(set(mask[np.asarray(tested) == group].tolist())) == 1


def test_recorded_rounds_are_the_variant_s_own(tmp_path):
    records, *_, server = three(tmp_path)
    rounds = server.variants["recorded"].rounds
    assert [entry.round for entry in rounds] == [0, 1]
    again = training(tmp_path, TrainingVariant("recorded", 0.5))
    assert torch.equal(rounds[0].weights, flatten(again.initial_module()))
    for entry in rounds:
        assert entry.clients == (0, 1, 2)
        assert entry.updates.shape == (3, len(entry.weights))
    torch.testing.assert_close(rounds[0].weights + rounds[0].updates.mean(0), rounds[1].weights)
    final = rounds[1].weights + rounds[1].updates.mean(0)
    images = server.members[0][:6]
    torch.testing.assert_close(
        server.apply(final, images), server.variants["recorded"].logits(images), rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(server.apply(final, images), server.logits(images))
    assert (
        records[2]["provenance"]["stages"]["variant:recorded"] != records[2]["provenance"]["stages"]["train"]
    )


def test_under_secure_aggregation_the_server_sees_what_it_steps_along(tmp_path):
    """Clients of unlike sizes count by their records, in what is seen as in the training."""
    base = BASE.replace("weighting: uniform", "weighting: examples, partition: {dirichlet: {alpha: 0.3}}")
    text = "defences: [secure-aggregation]\nthreats: [{name: a, knowledge: server, attacks: [test-looks]}]"
    scored(text, tmp_path, base)
    first, second = SEEN[""].variants["recorded"].rounds
    torch.testing.assert_close(first.weights + first.updates[0], second.weights, rtol=1e-5, atol=1e-6)


def test_secure_aggregation_leaves_one_row_and_nobody_s_name(tmp_path):
    views = []
    for defence in ("none", "secure-aggregation"):
        text = f"defences: [{defence}]\nthreats: [{{name: a, knowledge: server, attacks: [test-looks]}}]"
        scored(text, tmp_path)
        views.append(SEEN[""])
    plain, hidden = (view.variants["recorded"].rounds for view in views)
    for before, now in zip(plain, hidden, strict=True):
        assert now.updates.shape == (1, len(now.weights))
        assert now.clients == ()
        assert torch.equal(now.weights, before.weights)
        assert before.updates.shape[0] == 3
        torch.testing.assert_close(now.updates[0], before.updates.mean(0))
    assert [seen.clients for seen in views[0].observed] == [1, 1, 1]
    assert [seen.clients for seen in views[1].observed] == [3, 3, 3]


def test_trainings_that_two_attacks_ask_for_are_planned_and_run_once(tmp_path):
    text = (
        "threats: [{name: a, attacks: [test-shadows, test-shadows: {offset: 1.0}, test-shadows: {count: 4}]}]"
    )
    scenario = load_text(BASE + text, tmp_path / "views.yaml")
    planned = plan_of(scenario, device="cpu", store=tmp_path / "runs").to_dict()
    assert planned["stages"]["train"]["total"] == 5  # the target and four shadows, for three attacks
    result = run(text, tmp_path)
    assert result.executed["train"] == 5
    first, second, third = (record["provenance"]["stages"] for record in result.records)
    names = [f"variant:view-shadow-{i}" for i in range(4)]
    assert [name in first for name in names] == [True, True, False, False]
    for name in names[:2]:
        assert first[name] == second[name] == third[name]
    assert len({third[name] for name in names} | {third["train"]}) == 5
    assert len({stages["attack"] for stages in (first, second, third)}) == 3
    assert SEEN["names"] == [name.removeprefix("variant:") for name in names]
    assert run(text, tmp_path).executed.get("train", 0) == 0


def test_variants_that_differ_in_anything_are_other_trainings(tmp_path):
    base = TrainingVariant("v", 0.5)
    others = [
        replace(base, keep=0.25),
        replace(base, name="w"),
        replace(base, recorded_rounds=1),
        replace(base, canaries=Canaries(20)),
        replace(base, canaries=Canaries(20, scale=5.0)),
        replace(base, canaries=Canaries(20, unit="client")),
        replace(base, canaries=Canaries(20, unit="client", opposite=True)),
    ]
    scenario = load_text(BASE, tmp_path / "views.yaml")
    facts, planner = data_facts(scenario, None), Planner("cpu")
    cell = next(iter(cells(scenario)))
    plan = planner.add(cell, facts, metrics_of(scenario))
    spec = planner.stages[plan.stages["train"]].spec
    environment = planner._environment(scenario.compute)
    keys = [
        planner._train(replace(spec, variant=variant), environment)[0] for variant in (None, base, *others)
    ]
    assert len(set(keys)) == len(keys)


# Results --------------------------------------------------------------------------------------------


def test_an_undeclared_score_fails_its_cell_and_names_it(tmp_path):
    result = run("threats: [{name: a, attacks: [test-blurts, test-looks]}]", tmp_path)
    bad, good = result.records
    assert (bad["status"], good["status"]) == ("failed", "scored")
    message = "test-blurts returned 'test_undeclared', which it does not declare in `scores`"
    assert message in bad["error"]["message"]
    assert bad["error"]["type"] == PluginError.__name__
    assert bad["scores"] == {}
    assert good["scores"]["test_seen"] == 0.0
    assert good["units"]["test_seen"]["unit"] == "share"


@pytest.mark.parametrize(
    ("says", "said"),
    [
        ("text", "is '0.5', not a number"),
        ("none", "is None, not a number"),
        ("infinite", "is a share and inf"),
    ],
)
def test_what_is_no_value_of_a_score_fails_its_cell_as_a_metric_s_does(tmp_path, says, said):
    (record,) = run(f"threats: [{{name: a, attacks: [test-blurts: {{says: {says}}}]}}]", tmp_path).records
    assert (record["status"], record["error"]["type"]) == ("failed", "PluginError")
    assert f"attack test-blurts: the score 'test_declared' {said}" in record["error"]["message"]


def test_an_attack_s_own_truth_is_not_believed(tmp_path):
    (record,) = run("threats: [{name: a, attacks: [test-tells-itself]}]", tmp_path).records
    assert record["error"]["type"] == "PluginError"
    assert "test-tells-itself: is_member of its Membership is wrong for" in record["error"]["message"]


def test_a_result_of_no_known_kind_fails_its_cell(tmp_path):
    (record,) = run("threats: [{name: a, attacks: [test-says-nothing]}]", tmp_path).records
    assert record["status"] == "failed"
    assert "test-says-nothing returned float, which nobody can score" in record["error"]["message"]


def test_pictures_of_reconstructions_are_in_the_store(tmp_path):
    first, second = scored("threats: [{name: a, attacks: [test-noise]}]\nseeds: [0, 1]", tmp_path)
    assert first["attack"]["pictures"] != second["attack"]["pictures"]
    for record in (first, second):
        (name,) = record["attack"]["pictures"]
        file = tmp_path / "runs" / name
        assert file.suffix == ".png"
        assert file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        with Image.open(file) as picture:
            assert picture.format == "PNG"
            values = np.asarray(picture.convert("L"))
        assert values.shape[1] >= 3 * 96  # three originals side by side
        assert values.shape[0] >= 4 * 96  # two updates, each with originals over guesses
        assert len(np.unique(values)) > 20
    assert len(list((tmp_path / "runs" / "pictures").iterdir())) == 2


def test_a_picture_shows_the_originals_over_what_was_got_back(tmp_path):
    (record,) = scored("threats: [{name: a, attacks: [test-noise]}]", tmp_path)
    with Image.open(tmp_path / "runs" / record["attack"]["pictures"][0]) as picture:
        values = torch.from_numpy(np.asarray(picture.convert("L")).copy()).float() / 255
    # Every tile is an 8x8 image enlarged twelvefold: its pixels at every twelfth place.
    tiles = [values[top + 6 : top + 6 + 12 * 8 : 12, 6 : 6 + 96 : 12] for top in range(len(values) - 102)]
    for guess in SEEN["guesses"]:
        distances = [
            min(float((tile - image[0]).abs().max()) for image in guess)
            for tile in tiles
            if tile.shape == (8, 8)
        ]
        assert min(distances) < 0.01  # rounded to a byte
    originals = training(tmp_path).data.train.images.float() / 255
    flat = originals.flatten(1)
    nearest = min(
        float((flat - tile.reshape(1, -1)).abs().amax(1).min()) for tile in tiles[:40] if tile.shape == (8, 8)
    )
    assert nearest < 0.01


def test_a_reconstruction_is_held_against_a_guess_that_sees_no_update(tmp_path):
    (noise,) = scored("threats: [{name: a, attacks: [test-noise]}]", tmp_path)
    (mean,) = scored("threats: [{name: b, attacks: [test-mean-image]}]", tmp_path)
    (labels,) = scored("threats: [{name: c, attacks: [test-labels-only]}]", tmp_path)
    assert noise["scores"]["reconstruction_psnr_gain"] < -1
    assert mean["scores"]["reconstruction_psnr_gain"] == pytest.approx(0, abs=1e-6)
    assert "reconstruction_psnr_gain" not in labels["scores"]
    assert labels["scores"]["label_recovery_gain"] <= labels["scores"]["label_recovery"] < 1


def test_without_images_there_is_no_picture(tmp_path):
    (record,) = scored("threats: [{name: a, attacks: [test-labels-only]}]", tmp_path)
    assert "pictures" not in record["attack"]
    assert not (tmp_path / "runs" / "pictures").exists()


def test_an_attack_that_does_without_members_gets_none(tmp_path):
    (record,) = scored("threats: [{name: a, attacks: [test-noise]}]", tmp_path)
    for images, labels in SEEN["sides"]:
        assert len(images) == len(labels) == 0
    assert (record["attack"]["members"], record["attack"]["non_members"]) == (0, 0)
    assert [seen.records for seen in SEEN["observed"]] == [3, 3]


@pytest.mark.parametrize(("bound", "flags"), [(100.0, ["audit-violation"]), (0.5, [])])
def test_an_audit_above_the_claim_raises_the_flag(bound, flags, tmp_path):
    text = f"""
defences: [none, dp-sgd: {{epsilon: 2}}]
threats: [{{name: a, attacks: [test-overclaims: {{bound: {bound}}}]}}]
"""
    plain, private = scored(text, tmp_path)
    assert plain["flags"] == []
    assert plain["attack"]["audit"]["guarantee"] is None
    assert private["flags"] == flags
    audit = private["attack"]["audit"]
    assert (audit["epsilon"], audit["delta"], audit["confidence"]) == (bound, 1e-5, 0.9)
    assert audit["facts"] == {"made": "up"}
    assert audit["guarantee"]["epsilon"] == pytest.approx(2, rel=0.01)


def test_the_generator_is_the_seed_s(tmp_path):
    text = "threats: [{name: a, attacks: [test-looks]}]"
    numbers = []
    for seed in (0, 0, 1):
        SEEN.clear()
        folder = tmp_path / str(len(numbers))
        folder.mkdir()
        scored(text + f"\nseeds: [{seed}]", folder)
        context = SEEN["context"]
        assert isinstance(context, PrivacyContext)
        assert context.num_classes == 10
        numbers.append(float(torch.rand((), generator=context.generator)))
    assert numbers[0] == numbers[1] != numbers[2]
