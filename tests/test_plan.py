"""Cells, applicability, sharing and keys."""

from __future__ import annotations

import copy
import re

import pytest

from harness.console.pooling import pool
from harness.contracts.base import Plugin
from harness.engine import plan, run
from harness.errors import HarnessError
from harness.federation.counts import malicious_clients, participants
from harness.grid import cells, select
from harness.leaderboard.submit import of_store
from harness.scenario import load_text
from harness.scenario_plan import plan_scenarios
from harness_plugins.compressors.static_int8 import StaticInt8

BASE = """
schema: 1
name: small
dataset: digits
model: {mlp: {hidden: [8]}}
federation: {clients: 4, rounds: 1, local: {epochs: 1, batch_size: 64}}
"""


def described(text: str, tmp_path, **options):
    scenario = load_text(BASE + text, tmp_path / "small.yaml")
    return plan(scenario, device="cpu", jobs=2, store=tmp_path / "no-store", **options).to_dict()


def described_alone(text: str, tmp_path):
    """The cells of a scenario with a federation of its own."""
    local = "local: {epochs: 1, batch_size: 64}"
    base = BASE[: BASE.index("federation:")]
    text = text.replace("federation: {", f"federation: {{rounds: 2, {local}, ")
    text = text if "clients:" in text else text.replace("federation: {", "federation: {clients: 4, ")
    scenario = load_text(base + text, tmp_path / "small.yaml")
    return plan(scenario, device="cpu", jobs=2, store=tmp_path / "no-store").to_dict()["scenarios"][0][
        "cells"
    ]


def one_key(text: str, tmp_path, kind: str = "train") -> str:
    found = described(text, tmp_path)["scenarios"][0]["cells"][0]["stages"]
    return found[kind]


def test_everything_after_training_shares_it(tmp_path):
    text = """
defences: [none, gradient-clipping: {max_norm: 1.0}]
aggregators: [mean]
compressors: [none, static-int8, magnitude-pruning: {ratio: 0.3}, structured-pruning: {ratio: 0.5}]
threats:
  - {name: evasion, phase: inference, surrogate: uncompressed, budget: {norm: linf, eps: 8/255},
     attacks: [fgsm, pgd: {steps: {sweep: [1, 2, 5, 10, 20]}}]}
seeds: [0]
"""
    found = described(text, tmp_path)
    assert len(found["scenarios"][0]["cells"]) == 2 * 4 * 6
    assert found["stages"]["train"] == {"total": 2, "cached": 0}
    assert found["stages"]["compress"]["total"] == 2 * 3
    assert found["stages"]["clean"]["total"] == 2 * 4
    assert found["stages"]["attack"]["total"] == 2 * 4 * 6
    assert found["estimate_seconds"] > 0
    assert not (tmp_path / "no-store").exists()


def test_update_compressors_and_training_attacks_need_trainings_of_their_own(tmp_path):
    text = """
compressors: [none, top-k: {ratio: 0.1}, static-int8]
threats:
  - {name: none}
  - {name: byzantine, malicious: 0.25, attacks: [sign-flip, alie: {z: 1.0}]}
  - {name: membership, attacks: [loss-threshold]}
seeds: [0, 1]
"""
    found = described(text, tmp_path)
    # per seed: {clean, sign-flip, alie} × {plain, top-k}; membership attacks the clean ones.
    assert found["stages"]["train"]["total"] == 2 * 3 * 2
    assert found["stages"]["attack"]["total"] == 2 * 3


@pytest.mark.parametrize(
    "change",
    [
        "seeds: [1]",
        "model: {mlp: {hidden: [9]}}",
        "holdout: 0.1",
        "compute: {threads: 2}",
        "normalization: {mean: 0.5, std: 0.5}",
        "dataset: {digits: {split_seed: 5}}",
        "federation: {clients: 4, rounds: 2, local: {epochs: 1, batch_size: 64}}",
        "federation: {clients: 4, rounds: 1, local: {steps: 3, batch_size: 64}}",
        "federation: {clients: 4, rounds: 1, server: fedadam, local: {epochs: 1, batch_size: 64}}",
        "federation: {clients: 4, rounds: 1, local: {epochs: 1, batch_size: 64, optimizer: adam}}",
        "federation: {clients: 4, rounds: 1, byzantine_tolerance: 0.25, local: {epochs: 1, batch_size: 64}}",
        "aggregators: [median]",
        "defences: [gradient-clipping: {max_norm: 2.0}]",
        "compressors: [top-k: {ratio: 0.5}]",
    ],
)
def test_whatever_decides_a_training_is_in_its_key(change, tmp_path):
    key, name = change.split(":")[0], "small"
    lines = [line for line in BASE.strip().splitlines() if not line.startswith(f"{key}:")]
    text = "\n".join([*lines, change])
    scenario = load_text(text, tmp_path / f"{name}.yaml")
    found = plan(scenario, device="cpu", jobs=1, store=tmp_path / "x").to_dict()["scenarios"][0]["cells"][0]
    assert found["stages"]["train"] != one_key("", tmp_path)


@pytest.mark.parametrize(
    "change", ["description: other words", "version: 2", "compressors: [static-int8]", "metrics: [accuracy]"]
)
def test_whatever_does_not_is_not(change, tmp_path):
    assert one_key(change, tmp_path) == one_key("", tmp_path)


def test_names_and_labels_of_threats_are_not_in_the_key(tmp_path):
    a = one_key("threats: [{name: a, malicious: 0.25, attacks: [sign-flip]}]", tmp_path)
    b = one_key("threats: [{name: b, malicious: 0.25, attacks: [sign-flip]}]", tmp_path)
    c = one_key("threats: [{name: a, malicious: 0.5, attacks: [sign-flip]}]", tmp_path)
    assert a == b != c


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "threats: [{name: e, knowledge: black-box, attacks: [fgsm]}]",
            "fgsm needs gradients; the threat 'e' is black-box",
        ),
        (
            "threats: [{name: e, budget: {norm: l2, eps: 1}, attacks: [fgsm]}]",
            "fgsm is bounded in linf; the budget of 'e' is in l2",
        ),
        (
            "threats: [{name: e, budget: {norm: linf, eps: 0.1}, attacks: [fgsm: {eps: 0.2}]}]",
            "fgsm asks for eps = 0.2, more than the budget of 'e', 0.1",
        ),
        (
            "compressors: [static-int8: {calibration: public}]",
            "static-int8 needs public data and the scenario declares none; "
            "add `unprotected: [val]` if the validation split may be used freely",
        ),
    ],
)
def test_what_makes_no_sense_says_why(text, reason, tmp_path):
    (cell,) = described(text, tmp_path)["scenarios"][0]["cells"]
    assert cell["status"] == "not-applicable"
    assert cell["reason"] == reason
    assert cell["stages"] == {}


def test_a_rule_whose_conditions_fail_is_not_applicable_before_any_training(tmp_path):
    text = "aggregators: [mean, krum]\nthreats: [{name: b, malicious: 0.25, attacks: [sign-flip]}]"
    mean, krum = described(text, tmp_path)["scenarios"][0]["cells"]
    assert mean["status"] == "ready"
    assert krum["status"] == "not-applicable"
    assert "krum" in krum["reason"]


def test_a_rule_with_too_few_clients_says_where_its_f_comes_from(tmp_path):
    """One threat of half the clients decides f of every cell, also of those without an attack."""
    threats = "threats: [{name: none}, {name: b, malicious: 0.5, attacks: [sign-flip]}]"
    text = f"aggregators: [[nnm, mean], [nnm: {{f: 3}}, mean]]\n{threats}"
    cells = described(text, tmp_path)["scenarios"][0]["cells"]
    told, own = (
        {cell["reason"] for cell in cells if cell["axes"]["aggregator"] == rule}
        for rule in ("nnm + mean", "nnm(f=3) + mean")
    )
    assert told == {
        "nnm needs n > 2f updates: n = 4, f = 2; f is the share federation.byzantine_tolerance of the clients, "
        "here 0.5: by default the largest `malicious` of the threats"
    }
    assert own == {"nnm needs n > 2f updates: n = 4, f = 3"}  # the scenario says so itself


def test_a_rule_that_follows_clients_is_not_put_behind_one_that_merges_them(tmp_path):
    merged = "[bucketing, foolsgold], [bucketing, nnm, fldetector], [bucketing, monna: {trusted: 0}]"
    fine = "[bucketing, monna], [nnm, foolsgold], fldetector"
    found = described(f"aggregators: [{merged}, {fine}]", tmp_path)["scenarios"][0]["cells"]
    refused, ready = found[:3], found[3:]
    for cell, name in zip(refused, ("foolsgold", "fldetector", "monna"), strict=True):
        assert cell["status"] == "not-applicable"
        assert cell["reason"] == (
            f"{name} needs to know whose update a row is; bucketing, before it, merges clients' updates"
        )
    assert [cell["status"] for cell in ready] == ["ready"] * 3


def test_a_trusted_client_that_attacks_or_is_away_is_told_before_any_training(tmp_path):
    """MoNNA's pivot is honest by assumption; which clients are malicious follows from the seed."""
    text = """
aggregators: [{rules}]
seeds: [0, 1, 2]
threats: [{{name: none}}, {{name: b, malicious: 0.25, attacks: [sign-flip]}}]
"""
    rules = ", ".join(f"monna: {{f: 1, trusted: {i}}}" for i in range(4))
    found = described(text.format(rules=f"{rules}, monna: {{f: 1}}"), tmp_path)["scenarios"][0]["cells"]
    malicious = {client: seed for seed in (2, 1, 0) for client in malicious_clients(4, 0.25, seed)}
    assert 0 < len(malicious) < 4
    for cell in found:
        (trusted,) = re.findall(r"trusted=(\d)", cell["axes"]["aggregator"]) or [None]
        if trusted is not None and int(trusted) in malicious and cell["axes"]["threat"] == "b":
            seed = malicious[int(trusted)]
            said = f"monna trusts client {trusted}, which is malicious under seed {seed}"
            assert cell["reason"].startswith(said)
        else:
            assert cell["status"] == "ready"
    away = "federation: {participation: 0.5}\naggregators: [monna: {f: 0, trusted: 1}]\n"
    (cell,) = described_alone(away, tmp_path)
    assert (
        cell["reason"]
        == "monna trusts client 1, which does not take part in every round with participation 0.5"
    )


def test_a_client_to_copy_that_attacks_or_is_away_is_told_before_any_training(tmp_path):
    text = """
federation: {{clients: 4, participation: {participation}}}
seeds: [0, 1]
threats: [{{name: b, malicious: 0.25, knowledge: updates, attacks: [{attacks}]}}]
"""
    copies = ", ".join(f"mimic: {{client: {i}}}" for i in range(5))
    found = reasons_by("attack", text.format(attacks=f"mimic, {copies}", participation=1), tmp_path)
    malicious = {client: seed for seed in (1, 0) for client in malicious_clients(4, 0.25, seed)}
    assert 0 < len(malicious) < 4
    expected = {f"mimic(client={i})": None for i in range(4)} | {
        f"mimic(client={i})": f"mimic needs client {i}, which is malicious under seed {seed}: name another one"
        for i, seed in malicious.items()
    }
    late = {"mimic(client=4)": "mimic needs client 4, but the clients run from 0 to 3"}
    assert found == {"mimic": None} | expected | late
    assert reasons_by("attack", text.format(attacks="mimic: {client: 1}", participation=0.5), tmp_path) == {
        "mimic(client=1)": "mimic needs client 1, which does not take part in every round with participation 0.5"
    }


def test_clients_who_always_come_are_no_coin_s(tmp_path):
    """Poisson sampling's amplification would be claimed for clients that a threat puts into every round."""
    text = """
federation: {clients: 8, sampling: poisson, participation: 0.5}
defences: [none, dp-fedavg: {noise_multiplier: 1.0, delta: 0.01}]
threats:
  - {name: drawn, malicious: 0.25, attacks: [sign-flip]}
  - {name: there, malicious: 0.25, participation: always, attacks: [sign-flip]}
"""
    found = described_alone(text, tmp_path)
    reasons = {(c["axes"]["defence"].partition("(")[0], c["axes"]["threat"]): c["reason"] for c in found}
    assert [key for key, reason in reasons.items() if reason] == [("dp-fedavg", "there")]
    assert "take part always" in reasons["dp-fedavg", "there"]


def test_the_twin_of_the_first_link_is_not_one_of_the_chain(tmp_path, monkeypatch):
    monkeypatch.setattr(StaticInt8, "comes_last", False)
    text = "compressors: [[static-int8, magnitude-pruning]]\nthreats: [{name: e, attacks: [pgd]}]"
    (cell,) = described(text, tmp_path)["scenarios"][0]["cells"]
    reason = "pgd needs gradients; static-int8 is not differentiable — add `surrogate: uncompressed`"
    assert cell["reason"] == reason


def test_a_compressor_that_leaves_no_floats_is_not_put_in_front_of_another(tmp_path):
    small = "{distillation: {student: mlp}}"
    refused = f"[static-int8, static-int8], [qat-int8, top-k, half-precision], [dynamic-int8, {small}]"
    halves = "[half-precision, static-int8]"
    fine = "[weight-only, static-int8], [static-int8, top-k], [magnitude-pruning, half-precision]"
    found = described(f"compressors: [{refused}, {halves}, {fine}]", tmp_path)["scenarios"][0]["cells"]
    assert [cell["reason"] for cell in found] == [
        "static-int8 must come last: it leaves no weights in float32 for static-int8",
        "qat-int8 must come last: it leaves no weights in float32 for half-precision",
        "dynamic-int8 must come last: it leaves no weights in float32 for distillation",
        "half-precision must come last: it leaves no weights in float32 for static-int8",
        None,
        None,
        None,
    ]
    assert [cell["status"] for cell in found] == ["not-applicable"] * 4 + ["ready"] * 3


@pytest.mark.parametrize(
    ("server", "stated"),
    [
        ("fedadam", "fedadam with lr 0.1"),
        ("{fedavg: {lr: 0.5}}", "fedavg with lr 0.5"),
        ("fedavgm", "fedavgm with lr 1"),
        ("fedavg", None),
    ],
)
def test_a_rule_that_sets_the_weights_needs_the_plain_server(server, stated, tmp_path):
    text = BASE.replace("rounds: 1,", f"rounds: 1, server: {server},")
    rules = "aggregators: [crfl, fldetector, fldetector: {restart: false}, mean]"
    scenario = load_text(text + rules, tmp_path / "x.yaml")
    found = plan(scenario, device="cpu", jobs=1, store=tmp_path / "s").to_dict()["scenarios"][0]["cells"]
    setting, free = found[:2], found[2:]
    assert [cell["status"] for cell in free] == ["ready"] * 2
    for cell, name in zip(setting, ("crfl", "fldetector"), strict=True):
        assert cell["status"] == ("ready" if stated is None else "not-applicable")
        if stated is not None:
            assert cell["reason"].startswith(f"{name} sets the global weights itself")
            assert cell["reason"].endswith(f"not {stated}")


def test_rules_that_remember_clients_or_perturb_weights_are_not_put_before_what_undoes_that(tmp_path):
    rules = "aggregators: [mean, foolsgold, fldetector, crfl]"
    links = "compressors: [magnitude-pruning: {fine_tune_rounds: 1}, magnitude-pruning, static-int8, half-precision]"
    found = described(f"{rules}\n{links}", tmp_path)["scenarios"][0]["cells"]
    refused = {
        (cell["axes"]["aggregator"], cell["axes"]["compressor"].partition("(")[0]): cell["reason"]
        for cell in found
        if cell["status"] == "not-applicable"
    }
    assert len(found) == 16
    forgotten = "magnitude-pruning fine-tunes, for which rules begin anew: {} would have forgotten what it has learned "
    assert refused == {
        ("foolsgold", "magnitude-pruning"): forgotten.format("foolsgold") + "of clients",
        ("fldetector", "magnitude-pruning"): forgotten.format("fldetector") + "of clients",
        (
            "crfl",
            "static-int8",
        ): "crfl deploys copies with other weights, and those of static-int8 are no parameters",
    }


def test_an_attack_of_several_threats_is_called_by_its_threat_too(tmp_path):
    text = (
        "threats: [{name: e, budget: {norm: linf, eps: {sweep: [0.1, 0.2]}}, attacks: [fgsm]}, "
        "{name: l2, budget: {norm: l2, eps: 1.0}, attacks: [pgd-l2]}]"
    )
    scenario = load_text(BASE + text, tmp_path / "x.yaml")
    stages = plan_scenarios([scenario], "cpu", None, [])[0].stages.values()
    assert sorted(stage.label for stage in stages if stage.kind == "attack") == [
        "fgsm of e-eps0.1 on none · mean · seed 0",
        "fgsm of e-eps0.2 on none · mean · seed 0",
        "pgd-l2 on none · mean · seed 0",
    ]


def test_a_defence_that_cannot_work_with_the_model_is_not_applicable(tmp_path):
    text = BASE.replace("{mlp: {hidden: [8]}}", "{resnet9: {width: 8, norm: batch}}")
    scenario = load_text(text + "defences: [none, dp-sgd: {epsilon: 8}]", tmp_path / "x.yaml")
    fine, private = plan(scenario, device="cpu", jobs=1, store=tmp_path / "s").to_dict()["scenarios"][0][
        "cells"
    ]
    assert fine["status"] == "ready"
    assert private["status"] == "not-applicable"
    assert "batch" in private["reason"].lower()


GRID = """
defences: [none, gradient-clipping: {max_norm: 1.0}]
aggregators: [mean, median]
threats: [{name: none}, {name: evasion, attacks: [fgsm, pgd: {steps: 3}]}]
seeds: [0, 1]
"""


def test_cell_ids_are_stable_and_unique(tmp_path):
    found = list(cells(load_text(BASE + GRID, tmp_path / "x.yaml")))
    again = list(cells(load_text(BASE + GRID, tmp_path / "y.yaml")))
    assert len({c.id for c in found}) == len(found) == 2 * 2 * 3 * 2
    assert [c.id for c in found] == [c.id for c in again]


@pytest.mark.parametrize(
    ("expressions", "count"),
    [
        (["defence=none"], 12),
        (["defence=none,seed=1"], 6),
        (["attack=pgd*"], 8),
        (["attack=pgd(steps=3)", "aggregator=median"], 4),
        (["threat=evasion,attack=fgsm,seed=0,defence=none,aggregator=mean"], 1),
    ],
)
def test_select(expressions, count, tmp_path):
    assert len(select(list(cells(load_text(BASE + GRID, tmp_path / "x.yaml"))), expressions)) == count


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("defense=none", "unknown axis 'defense'; did you mean 'defence'?"),
        ("defence", "--select takes axis=value, not 'defence'"),
        ("", "--select takes axis=value, not ''"),
        ("aggregator=medium", "matches no cell; did you mean 'median'?"),
    ],
)
def test_a_bad_selection_is_a_clear_error(expression, text, tmp_path):
    with pytest.raises(HarnessError) as error:
        select(list(cells(load_text(BASE + GRID, tmp_path / "x.yaml"))), [expression])
    assert text in str(error.value)


def test_a_plan_is_deterministic(tmp_path):
    a, b = described(GRID, tmp_path), described(GRID, tmp_path)
    for found in (a, b):
        found.pop("estimate_seconds")
    assert a == copy.deepcopy(b)


def test_a_combination_makes_sense_for_all_its_seeds_or_for_none(tmp_path):
    """Under Poisson sampling rounds of some seeds are too small for a rule: the order of seeds must not decide."""
    text = """
federation: {{clients: 10, rounds: 3, participation: 0.6, sampling: poisson, byzantine_tolerance: 0.2}}
aggregators: [mean, krum]
seeds: [{}]
"""
    head = BASE[: BASE.index("federation")]

    def verdicts(*seeds, **options):
        scenario = load_text(head + text.format(", ".join(map(str, seeds))), tmp_path / "small.yaml")
        found = plan(scenario, device="cpu", jobs=1, store=tmp_path / "no-store", **options).to_dict()
        return {
            (c["axes"]["aggregator"], c["axes"]["seed"]): c["reason"] for c in found["scenarios"][0]["cells"]
        }

    alone = {seed: verdicts(seed)["krum", seed] for seed in range(12)}
    fits = next(seed for seed, reason in alone.items() if reason is None)
    small = next(seed for seed, reason in alone.items() if reason is not None)
    both, turned = verdicts(fits, small), verdicts(small, fits)
    assert both == turned
    assert both["krum", fits] == both["krum", small] == alone[small]
    assert both["mean", fits] is both["mean", small] is None
    chosen = verdicts(fits, small, select=f"seed={fits}")  # what is not selected counts as well
    assert chosen["krum", fits] == alone[small]


def reasons_by(axis, text, tmp_path):
    """Why cells are not applicable, by their value on an axis. text: a scenario from its federation on."""
    scenario = load_text(BASE[: BASE.index("federation")] + text, tmp_path / "small.yaml")
    found = plan(scenario, device="cpu", jobs=1, store=tmp_path / "no-store").to_dict()
    return {c["axes"][axis]: c["reason"] for c in found["scenarios"][0]["cells"]}


def test_rounds_count_the_clients_that_a_threat_puts_into_all_of_them(tmp_path):
    """Coins draw five of seven clients, which krum takes with f = 1; the sixth is malicious, and makes f = 2."""
    text = """
federation: {clients: 7, rounds: 1, participation: 0.7, sampling: poisson, byzantine_tolerance: 0.2}
aggregators: [krum]
threats:
  - {name: none}
  - {name: sampled, malicious: 0.34, attacks: [sign-flip]}
  - {name: always, malicious: 0.34, participation: always, attacks: [sign-flip]}
seeds: [7]
"""
    reasons = reasons_by("threat", text, tmp_path)
    assert reasons["none"] is reasons["sampled"] is None
    assert reasons["always"].startswith("krum needs n > 2f + 2 updates: n = 6, f = 2;")


def test_rounds_of_shadow_models_count_too(tmp_path):
    """Coins of the target draw six and eight clients, which krum takes; those of a shadow model, four."""
    text = """
federation: {clients: 8, rounds: 2, participation: 0.75, sampling: poisson, byzantine_tolerance: 0.1}
aggregators: [krum]
threats:
  - {name: none}
  - {name: outputs, attacks: [loss-threshold, lira: {shadows: 8}]}
seeds: [2]
"""
    reasons = reasons_by("attack", text, tmp_path)
    assert reasons["none"] is reasons["loss-threshold"] is None
    assert reasons["lira(shadows=8)"].startswith("krum needs n > 2f + 2 updates: n = 4, f = 1;")


def test_a_training_of_nobody_is_not_applicable(tmp_path):
    """Its score would be that of the initial model."""
    text = """
federation: {clients: 2, rounds: 1, participation: 0.1, sampling: poisson}
compressors: [none, magnitude-pruning: {fine_tune_rounds: 2}]
"""
    assert set(reasons_by("compressor", text, tmp_path).values()) == {
        "nobody is trained: coins draw no client in any round, under seed 0"
    }


@pytest.mark.parametrize("sampling", ["fixed", "poisson"])
def test_an_attack_by_nobody_is_not_applicable(tmp_path, sampling):
    """Its scores would be those of a training without attackers."""
    drawn = participants(8, 0.25, 3, 0, "train", sampling=sampling)
    (attacker,) = malicious_clients(8, 0.125, 0)
    there = [round for round, ids in enumerate(drawn, 1) if attacker in ids]
    threats = "".join(
        f"  - {{name: r{round}{who[0]}, malicious: 0.125, start_round: {round}, stop_round: {round}, "
        f"participation: {who}, attacks: [{attack}]}}\n"
        for round, attack in ((1, "sign-flip"), (2, "badnets"), (3, "sign-flip"))
        for who in ("sampled", "always")
    )
    text = f"""
federation: {{clients: 8, rounds: 3, participation: 0.25, sampling: {sampling}}}
threats:
{threats}seeds: [0]
"""
    found = reasons_by("threat", text, tmp_path)
    assert 0 < len(there) < 3
    for round in (1, 2, 3):
        assert found[f"r{round}a"] is None
        if round in there:
            assert found[f"r{round}s"] is None
        else:
            assert found[f"r{round}s"].startswith("nobody attacks: no malicious client is drawn in a round")


@pytest.mark.parametrize("participation", ["sampled", "always"])
def test_rounds_in_which_an_attack_can_craft_nothing_are_found_before_a_run(tmp_path, participation):
    """A round's share of attackers is its own: alone, or most of a round, where they are half of the clients."""
    drawn = participants(
        6, 0.5, 4, 0, "train", malicious_clients(6, 0.5, 0) if participation == "always" else ()
    )
    many = [len(set(ids) & set(malicious_clients(6, 0.5, 0))) for ids in drawn]
    text = f"""
federation: {{clients: 6, rounds: 4, participation: 0.5}}
threats:
  - {{name: one, malicious: 0.17, participation: {participation}, knowledge: own, attacks: [fang]}}
  - {{name: krum, malicious: 0.17, participation: {participation}, knowledge: own, attacks: [fang: {{target: krum}}]}}
  - {{name: half, malicious: 0.5, participation: {participation}, attacks: [alie]}}
  - {{name: given, malicious: 0.5, participation: {participation}, attacks: [alie: {{z: 1}}]}}
  - {{name: none-left, malicious: 0.5, participation: always, attacks: [fang]}}
seeds: [0]
"""
    assert max(many) >= 2
    found = reasons_by("threat", text, tmp_path)
    assert "knowledge: own it needs two of them at least in a round" in found.pop("one")
    assert "the paper's z does not exist" in found.pop("half")
    assert set(found.values()) == {None}


def test_who_is_trusted_takes_part(tmp_path):
    text = "federation: {clients: 4}\naggregators: [monna: {trusted: 3}, monna: {trusted: 4}]\n"
    assert list(reasons_by("aggregator", text, tmp_path).values()) == [
        None,
        "monna trusts client 4, but the clients run from 0 to 3",
    ]


def test_rounds_of_fine_tuning_count_too(tmp_path):
    """Coins of the training draw enough clients for krum; those of three rounds of fine-tuning draw four at least once.

    Of pruning in two steps the second draws anew, and so does a second compressor.
    """
    text = """
federation: {clients: 8, rounds: 1, participation: 0.75, sampling: poisson, byzantine_tolerance: 0.1}
aggregators: [krum]
compressors:
  - none
  - magnitude-pruning: {fine_tune_rounds: 3}
  - magnitude-pruning: {fine_tune_rounds: 1}
  - [magnitude-pruning: {fine_tune_rounds: 1}, qat-int8: {fine_tune_rounds: 2}]
seeds: [2]
"""
    reasons = reasons_by("compressor", text, tmp_path)
    small = "krum needs n > 2f + 2 updates: n = 4, f = 1;"
    assert [reason and reason.startswith(small) for reason in reasons.values()] == [None, True, None, True]


@pytest.mark.parametrize("steps", [1, 2])
def test_fine_tuning_is_planned_in_the_calls_that_are_made(steps, tmp_path):
    """Whether krum takes the rounds is what a run finds, over seeds that differ in it."""
    text = f"""
federation:
  {{clients: 8, rounds: 1, participation: 0.75, sampling: poisson, byzantine_tolerance: 0.1, local: {{steps: 1}}}}
aggregators: [krum]
compressors: [magnitude-pruning: {{steps: {steps}, fine_tune_rounds: 2}}]
metrics: [accuracy]
"""
    found = set()
    for seed in range(6):
        whole = BASE[: BASE.index("federation")] + text + f"seeds: [{seed}]\n"
        scenario = load_text(whole, tmp_path / "small.yaml")
        result = run(scenario, device="cpu", jobs=0, store=tmp_path / str(seed))
        assert result.failed == 0
        found.add(result.scored)
    assert found == {0, 1}


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ("aggregators: [bulyan], defences: []", "bulyan needs n >= 4f + 3 updates: n = 4, f = 1"),
        ("defences: [dp-sgd: {epsilon: 8}, soteria]", "soteria reads the records"),
        ("compressors: [dynamic-int8, magnitude-pruning]", "dynamic-int8 must come last"),
        ("aggregators: [median]", "median needs every update; with secure-aggregation"),
        ("aggregators: [fltrust: {root: public}], defences: []", "fltrust needs public data"),
        ("aggregators: [krum: {f: 0}], defences: []", None),
        ("compressors: [static-int8]", None),
    ],
)
def test_a_surrogate_that_makes_no_sense_is_not_trained(parts, reason, tmp_path):
    text = f"""
federation: {{clients: 4, byzantine_tolerance: 0.2}}
defences: [secure-aggregation]
threats:
  - {{name: evasion, attacks: [transfer: {{attack: fgsm, source: other, {parts}}}]}}
seeds: [0]
"""
    (cell,) = described_alone(text, tmp_path)
    if reason is None:
        assert cell["reason"] is None
    else:
        assert cell["reason"].startswith("the surrogate of transfer: " + reason)


def test_two_scenarios_of_one_name_are_refused_however_they_are_given(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(BASE)
    other = load_text(BASE.replace("digits", "{digits: {split_seed: 5}}"), tmp_path / "other.yaml")
    for given in ([load_text(BASE), other], [file, other], [other, file], [other, other]):
        with pytest.raises(HarnessError, match="scenario name 'small' is already used by"):
            plan(given, device="cpu", jobs=0, store=tmp_path / "no-store")
        with pytest.raises(HarnessError, match="scenario name 'small' is already used by"):
            run(given, device="cpu", jobs=0, store=tmp_path / "no-store")
    assert not (tmp_path / "no-store").exists()


RIVAL = """from harness.api import Aggregator, hookimpl


class Median(Aggregator):
    \"\"\"Of another origin: minus the mean.\"\"\"

    name = "median"

    def aggregate(self, updates, context):
        return -updates.mean(0)


@hookimpl
def harness_register(register):
    register(Median)
"""


def test_plugins_of_one_name_from_two_packages_are_told_apart(tmp_path):
    (tmp_path / "rival.py").write_text(RIVAL)
    text = """
plugins: [rival.py]
aggregators: [psr-harness/median, "local:rival.py/median", [nnm, psr-harness/median]]
"""
    scenario = load_text(BASE + text, tmp_path / "small.yaml")
    found = list(cells(scenario))
    labels = ["psr-harness/median", "local:rival.py/median", "nnm + psr-harness/median"]
    assert [cell.axes["aggregator"] for cell in found] == labels
    assert len({cell.id for cell in found}) == 3
    result = run(scenario, device="cpu", jobs=0, store=tmp_path / "runs", select="aggregator=*median")
    assert [record["cell"]["aggregator"] for record in result.records] == labels
    losses = [record["scores"]["loss"] for record in result.records]
    assert losses[0] != losses[1]
    assert [row.axes[1] for row in pool(result.records)] == labels
    (page,) = of_store(result.records, "x")
    assert [cell.aggregator for cell in page.cells] == labels
    # One of them alone keeps its short name, whatever else is seen.
    for name in labels[:2]:
        alone = text.replace(
            '[psr-harness/median, "local:rival.py/median", [nnm, psr-harness/median]]', f'["{name}"]'
        )
        (cell,) = cells(load_text(BASE + alone, tmp_path / "small.yaml"))
        assert cell.axes["aggregator"] == "median"


def test_nested_plugins_of_one_name_are_told_apart(tmp_path):
    (tmp_path / "rival.py").write_text(
        RIVAL.replace("Aggregator", "EvasionAttack")
        .replace("median", "fgsm")
        .replace("aggregate(self, updates, context)", "perturb(self, model, x, y, context)")
        .replace("-updates.mean(0)", "x")
    )
    text = """
plugins: [rival.py]
defences: [adversarial-training: {attack: psr-harness/fgsm}]
threats: [{name: e, attacks: ["local:rival.py/fgsm"]}]
"""
    (cell,) = cells(load_text(BASE + text, tmp_path / "small.yaml"))
    assert cell.axes["defence"] == "adversarial-training(attack=psr-harness/fgsm)"
    assert cell.axes["attack"] == "local:rival.py/fgsm"


def test_values_that_differ_in_late_digits_have_labels_of_their_own(tmp_path):
    text = "aggregators: [centered-clipping: {tau: {sweep: [0.10000001, 0.10000002, 0.123456789]}}]"
    found = list(cells(load_text(BASE + text, tmp_path / "small.yaml")))
    assert [cell.axes["aggregator"] for cell in found] == [
        "centered-clipping(tau=0.10000001)",
        "centered-clipping(tau=0.10000002)",
        "centered-clipping(tau=0.123457)",  # nothing to confuse it with: as it was
    ]
    assert len(select(found, ["aggregator=centered-clipping(tau=0.10000002)"])) == 1


def test_labels_that_stay_equal_are_refused(tmp_path, monkeypatch):
    scenario = load_text(BASE + "aggregators: [median, trimmed-mean]", tmp_path / "small.yaml")
    monkeypatch.setattr(Plugin, "label", lambda self: "a rule")
    with pytest.raises(HarnessError, match="two values of the axis aggregator are both called a rule"):
        list(cells(scenario))


def test_ids_and_labels_of_ordinary_scenarios_are_what_they_were(tmp_path):
    """Published records refer to them."""
    text = """
defences: [none, [gradient-clipping: {max_norm: 1.0}, dp-sgd: {epsilon: 8}]]
aggregators: [[nnm, trimmed-mean]]
compressors: [top-k: {ratio: 0.123456789}]
threats: [{name: none}, {name: e, budget: {norm: linf, eps: 8/255}, attacks: [pgd: {steps: 3}]}]
"""
    found = list(cells(load_text(BASE + text, tmp_path / "small.yaml")))
    assert [cell.id for cell in found] == IDS
    assert found[-1].axes == {
        "defence": "gradient-clipping(max_norm=1) + dp-sgd(epsilon=8)",
        "aggregator": "nnm + trimmed-mean",
        "compressor": "top-k(ratio=0.123457)",
        "threat": "e",
        "attack": "pgd(steps=3)",
        "seed": 0,
    }


IDS = ["6c5856df04ef", "d18a53a2cf44", "682dc343050a", "ef91ec92c599"]
