"""Scenarios: what YAML means, what defaults and sweeps become, and what every mistake says and where."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import ValidationError
from scenario_plugins import BUILTIN, Digits, Iid, Krum, Mean, OtherKrum, Pgd, registry_of

import harness.scenario_plan  # noqa: F401  (it binds the registry, which tests replace)
from harness.api import Split, Splits
from harness.errors import HarnessError, ScenarioError
from harness.options import SGD, Adam, Constant, Cosine, FedAdagrad, FedAdam, FedAvg, FedYogi, Linear, Step
from harness.scenario import Federation, Scenario, check_data, load, load_many, load_text
from harness.scenario_errors import other_unit, unwritten
from harness.yaml_loader import parse
from harness_plugins.models.linear import Mlp

BASE = "schema: 1\nname: x\ndataset: digits\nmodel: small-cnn\n"


@pytest.fixture(autouse=True)
def _plugins(monkeypatch):
    registry = registry_of(("psr-harness", BUILTIN))
    monkeypatch.setattr("harness.registry.registry", lambda: registry)


def mistakes(text: str, path: str | None = None) -> list[str]:
    """The messages of a bad scenario, without the source lines and carets."""
    with pytest.raises(ScenarioError) as caught:
        load_text(text, path)
    prefix = path or "<scenario>"
    return [
        line.removeprefix(prefix + ":") for line in str(caught.value).splitlines() if line.startswith(prefix)
    ]


# what YAML means ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1e5", 1e5),
        ("-2.5E+2", -250.0),
        ("8/255", 8 / 255),
        ("-1 / 4", -0.25),
        ("0.5/1e2", 0.005),
        ("12", 12),
        ("-3", -3),
        ("010", 10),
        (".5", 0.5),
        ("3.", 3.0),
        (".inf", math.inf),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("off", "off"),
        ("2024-01-02", "2024-01-02"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0x1f", "0x1f"),
        ("'8/255'", "8/255"),
        ('"1"', "1"),
        ("'true'", "true"),
        ("a/b", "a/b"),
        ("1/2/3", "1/2/3"),
    ],
)
def test_scalars_mean_what_they_look_like(text, value):
    document = parse(f"key: {text}\n")
    assert document.problems == []
    assert document.data == {"key": value}
    assert type(document.data["key"]) is type(value)


def test_every_key_and_value_has_its_place():
    document = parse("a: 1\nb:\n  - {c: 8/255}\n  - two words  # comment\n")
    assert document.data == {"a": 1, "b": [{"c": 8 / 255}, "two words"]}
    assert document.keys[("b", 0, "c")] == (3, 6, "c")
    assert document.values[("b", 0, "c")] == (3, 9, "8/255")
    assert document.values[("b", 0)] == (3, 5, "{c: 8/255}")
    assert document.values[("b", 1)] == (4, 5, "two words")
    assert document.keys[("b",)] == (2, 1, "b")


def test_aliases_repeat_a_value_and_keep_its_place():
    document = parse("a: &x [1, 2]\nb: *x\n")
    assert document.data == {"a": [1, 2], "b": [1, 2]}
    assert document.values[("b", 1)] == (1, 11, "2")


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("a: 1\na: 2\n", (2, 1), "the key 'a' appears twice (first on line 1)"),
        ("a: !!python/name:os.system x\n", (1, 4), "tags such as"),
        ("a: !!int '3'\n", (1, 4), "tags such as"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", (3, 3), "merge keys (<<) are not allowed"),
        ("a: 1\n---\nb: 2\n", (2, 1), "a file holds one document"),
        ("a: &x [*x]\n", (1, 8), "*x names no anchor that ends before it"),
        ("? [1]\n: 2\n", (1, 3), "a key must be plain text"),
        ("a: 1/0\n", (1, 4), "1/0 divides by zero"),
        ("a: 1e999\n", (1, 4), "1e999 is too large for a number"),
        (
            "a: -1e300\n",
            (1, 4),
            "-1e300 is too large for a number: networks compute in float32, up to 3.4e+38",
        ),
        ("a: 1e999/1e999\n", (1, 4), "1e999/1e999 is too large for a number"),
        (f"a: {'9' * 5000}\n", (1, 4), f"{'9' * 37}... is too large for a whole number"),
        (
            "a: 9223372036854775808\n",
            (1, 4),
            "is too large for a whole number, of which the largest is 9223372036854775807",
        ),
        ("", (1, 1), "the file is empty"),
        ("# only this\n", (1, 1), "the file is empty"),
        ("a: [1, 2\nb: 3\n", (2, 2), "(while parsing a flow sequence that begins on line 1)"),
        ("a: [1, 2\n", (1, 4), "not valid YAML: this [ is not closed"),
        ("b: 1\na: 'open\nc: 2\n", (2, 4), "not valid YAML: this ' is not closed"),
        ("a:\n\t- 1\n", (2, 1), "use spaces, not tabs"),
        ("a: @x\n", (1, 4), "put text that starts like this in quotes"),
        ("a: 1\nb\nc: 2\n", (2, 1), "a key needs a colon and a space after it"),
        ("f:\n  a 5\n\n  b: 2\n", (4, 4), "; line 2 has no colon and space after its key"),
        ("f:\n  a:\u00a05\n  b: 2\n", (3, 4), "; line 2 has no colon and space after its key"),
        (
            "f:\n\u00a0 a: 5\n  b: 2\n",
            (3, 4),
            "; line 2 holds a no-break space (U+00A0), as copied from a page",
        ),
        ("a: 1\n  b: 2\n", (2, 4), "; it is indented deeper than line 1, whose key already has a value"),
        (
            "f:\n  a: 1\n b: 2\n",
            (3, 2),
            "keys of one mapping, and dashes of one list, must be indented equally",
        ),
        ("a: b: c\n", (1, 5), "; put a value that holds a colon and a space in quotes"),
        (
            'a: "x(\\d+)"\n',
            (1, 8),
            "not valid YAML: found unknown escape character 'd' (while scanning a double-quoted scalar); "
            "in double quotes a backslash starts an escape: use single quotes, e.g. '(\\d+)'",
        ),
        ("a: \x07\n", (1, 4), "not valid YAML: the character U+0007 is not allowed"),
        ("d: {path: ${HOME}/x}\n", (1, 12), "put text that holds ${...} in quotes"),
        ("a: [1]]\n", (1, 7), "; this ] closes nothing"),
        ("a: [1,,2]\n", (1, 7), "; a value is missing before this comma"),
        ("a: 1\n...\nb: 2\n", (3, 1), "; a file holds one document; remove what follows the `...`"),
    ],
)
def test_yaml_mistakes_have_a_place(text, place, message):
    problems = parse(text).problems
    assert len(problems) == 1
    assert message in problems[0].message
    assert problems[0].mark[:2] == place


def test_growth_by_aliases_is_refused():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]  # 9^9 values
    document = parse("\n".join(lines))
    assert not document.complete
    assert "20000 values" in document.problems[-1].message


def test_depth_is_bounded_in_the_text_and_through_aliases():
    assert "nested deeper" in parse("a: " + "[" * 300 + "]" * 300).problems[0].message
    lines = ["a0: &a0 [" * 1 + "1]"] + [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 60)]
    assert "nested deeper" in parse("\n".join(lines)).problems[0].message


AT_ONCE = """\
threats:
  - {name: a, knowledge: graybox, budget: {norm: linf, eps: 2/0}, attacks: [pgd]}
  - {name: b, malicious: 20, attacks: [alie]}
  - {name: c, knowledge: graybox, attacks: [pgdd]}
  - {name: d, malicious: 200, attacks: [alie]}
federation: {participation: 50, byzantine_tolerance: 20, local: {optimizer: {sgd: {momentum: 9}}}}
seeds: [0, 1, x, 1]
"""


def test_many_mistakes_are_named_at_once_and_each_once():
    found = [mistake.split(": ", 1) for mistake in mistakes(BASE + AT_ONCE)]
    first = BASE.count("\n")
    told = [(int(place.split(":")[0]) - first, text) for place, text in found]
    levels = "knowledge is one of black-box, omniscient, own, server, updates, white-box, by the phase, not 'graybox'"
    assert told == [
        (2, "knowledge of a threat of phase inference is 'black-box' or 'white-box', not 'graybox'"),
        (2, "2/0 divides by zero"),
        (3, "malicious must be at most 1, not 20; did you mean 0.2?"),
        (4, levels),
        (4, "unknown attack 'pgdd'; did you mean 'pgd'?"),
        (5, "malicious must be at most 1, not 200"),
        (6, "participation must be at most 1, not 50; did you mean 0.5?"),
        (6, "byzantine_tolerance must be less than 0.5, not 20; did you mean 0.2?"),
        (6, "momentum must be less than 1, not 9"),
        (7, "each of seeds must be a whole number such as 3, not x"),
        (7, "the seed 1 is repeated"),
    ]


@pytest.mark.parametrize(
    ("name", "phrase", "value", "hint"),
    [
        ("eps", "at most 1", 8, "8/255"),
        ("eps", "at most 1", 0.5, ""),
        ("eps", "at most 1", 300, ""),
        ("eps", "at most 10", 20, ""),
        ("eps", "at least 0", 8, ""),
        ("eps", "at most 1", "8", ""),
        ("malicious", "at most 1", 20, "0.2"),
        ("malicious", "at most 1", 20.0, "0.2"),
        ("malicious", "at most 1", 1.5, ""),
        ("malicious", "at most 1", True, ""),
        ("val_fraction", "less than 1", 10, "0.1"),
        ("byzantine_tolerance", "less than 0.5", 60, ""),
        ("momentum", "less than 1", 9, ""),
    ],
)
def test_a_number_in_another_unit_is_recognised(name, phrase, value, hint):
    assert other_unit(name, [phrase], value) == (f"; did you mean {hint}?" if hint else "")


@pytest.mark.parametrize(
    ("value", "text", "hint"),
    [(True, "true", "; put it in quotes"), (None, "null", ""), ("true", "'true'", ""), (False, "false", "")],
)
def test_a_choice_that_yaml_does_not_read_as_text_needs_quotes(value, text, hint):
    assert unwritten(["'predicted' or 'true'"], value, text) == hint


def test_the_radius_of_an_attack_within_a_defence_is_hinted_at_too(tmp_path, capsys):
    from harness.cli import main

    file = tmp_path / "x.yaml"
    file.write_text(BASE + "defences: [adversarial-training: {attack: {pgd: {eps: 8}}}]\n")
    assert main(["validate", "--no-data", str(file)]) == 2
    assert "did you mean 8/255?" in capsys.readouterr().err


# what a scenario becomes --------------------------------------------------------------------------


def test_defaults():
    scenario = load_text(BASE)
    assert scenario.schema_version == 1
    assert scenario.version == 1
    assert scenario.dataset == Digits()
    assert scenario.defences == ((),)
    assert [[rule.name for rule in chain] for chain in scenario.aggregators] == [["mean"]]
    assert scenario.compressors == ((),)
    assert [(t.name, t.phase, t.attacks) for t in scenario.threats] == [("none", "none", ())]
    assert scenario.metrics is None
    assert scenario.seeds == (0,)
    assert scenario.holdout == 0.0
    assert scenario.tolerance == 0.0
    assert scenario.normalization is None
    assert (scenario.evaluation.batch_size, scenario.evaluation.subset) == (256, None)
    compute = scenario.compute
    assert (compute.threads, compute.precision, compute.tf32, compute.stage_timeout) == (
        1,
        "float32",
        False,
        None,
    )
    federation = scenario.federation
    assert (federation.clients, federation.rounds, federation.participation) == (10, 10, 1.0)
    assert (federation.weighting, federation.buffers, federation.evaluate_every) == ("examples", "average", 1)
    assert federation.partition.name == "iid"
    assert federation.server == FedAvg()
    local = federation.local
    assert (local.epochs, local.steps, local.batch_size, local.proximal) == (1, None, 32, 0.0)
    assert local.optimizer == SGD()
    assert local.schedule == Constant()
    assert (scenario.path, scenario.root) == (None, Path())


def test_everything_given():
    scenario = load_text(
        BASE.replace("dataset: digits", "dataset: {pictures: {file: a.npz}}")
        + """
unprotected: [val]
normalization: {mean: [0.5], std: 0.25}
federation:
  partition: {dirichlet: {alpha: 1}}
  server: {fedadam: {lr: 1e-2}}
  byzantine_tolerance: 0.3
  local: {steps: 5, optimizer: {adam: {betas: [0.8, 0.99]}}, schedule: {step: {every: 2, factor: 1/2}}}
metrics: [accuracy]
trackers: [jsonl]
compute: {precision: bf16, stage_timeout: 60}
"""
    )
    assert scenario.dataset.file == "a.npz"
    assert scenario.unprotected == ("val",)
    assert scenario.normalization.mean == [0.5]
    assert scenario.normalization.std == 0.25
    assert scenario.federation.partition.alpha == 1.0
    assert scenario.federation.server == FedAdam(lr=0.01, beta1=0.9, beta2=0.99, tau=1e-3)
    assert scenario.tolerance == 0.3
    local = scenario.federation.local
    assert (local.epochs, local.steps) == (None, 5)
    assert local.optimizer == Adam(lr=1e-3, betas=(0.8, 0.99))
    assert local.schedule == Step(every=2, factor=0.5)
    assert [m.name for m in scenario.metrics] == ["accuracy"]
    assert [t.name for t in scenario.trackers] == ["jsonl"]
    assert scenario.compute.stage_timeout == 60.0


def test_axes_stacks_and_none():
    scenario = load_text(
        BASE
        + "defences: [none, dp-sgd: {epsilon: 8}, "
        + "[adversarial-training: {attack: {pgd: {steps: 5}}}, dp-sgd]]"
        + "\naggregators: [fedavg, [nnm, bucketing, krum]]"
        + "\ncompressors: [none, [structured-pruning, static-int8]]\n"
    )
    names = [[p.name for p in stack] for stack in scenario.defences]
    assert names == [[], ["dp-sgd"], ["adversarial-training", "dp-sgd"]]
    assert scenario.defences[1][0].epsilon == 8.0
    assert scenario.defences[2][0].attack == Pgd(steps=5)
    assert [[p.name for p in chain] for chain in scenario.aggregators] == [
        ["mean"],
        ["nnm", "bucketing", "krum"],
    ]
    assert [[p.name for p in chain] for chain in scenario.compressors] == [
        [],
        ["structured-pruning", "static-int8"],
    ]


def test_sweeps_multiply_in_file_order():
    scenario = load_text(
        BASE
        + """
defences:
  - dp-sgd: {epsilon: {sweep: [1, 4]}, max_grad_norm: {sweep: [0.5, 8/4]}}
  - [adversarial-training: {attack: {pgd: {steps: {sweep: [3, 7]}}}}, dp-sgd: {epsilon: {sweep: [2, 3]}}]
aggregators:
  - [{sweep: [nnm, bucketing: {size: {sweep: [2, 3]}}]}, krum]
threats:
  - {name: e, attacks: [pgd: {eps: {sweep: [1/255, 2/255]}}, {sweep: [fgsm, pgd]}]}
"""
    )
    single = [(s[0].epsilon, s[0].max_grad_norm) for s in scenario.defences if len(s) == 1]
    assert single == list(itertools.product([1.0, 4.0], [0.5, 2.0]))
    double = [(s[0].attack.steps, s[1].epsilon) for s in scenario.defences if len(s) == 2]
    assert double == list(itertools.product([3, 7], [2.0, 3.0]))
    rules = [(c[0].name, getattr(c[0], "size", None), c[1].name) for c in scenario.aggregators]
    assert rules == [("nnm", None, "krum"), ("bucketing", 2, "krum"), ("bucketing", 3, "krum")]
    attacks = [(a.name, a.eps) for a in scenario.threats[0].attacks]
    assert attacks == [("pgd", 1 / 255), ("pgd", 2 / 255), ("fgsm", None), ("pgd", None)]


def test_a_swept_radius_makes_a_threat_of_each():
    text = (
        BASE
        + "threats:\n  - {name: curve, budget: {norm: linf, eps: {sweep: [0, 1/256, 0.5]}}, attacks: [fgsm, pgd]}\n"
        "  - {name: none}\n"
    )
    scenario = load_text(text)
    assert [(t.name, t.budget and t.budget.eps) for t in scenario.threats] == [
        ("curve-eps0", 0.0), ("curve-eps0.003906", 1 / 256), ("curve-eps0.5", 0.5), ("none", None),
    ]  # fmt: skip
    assert all(len(t.attacks) == 2 for t in scenario.threats[:3])
    assert Scenario.model_validate(scenario) == scenario
    for wrong, expected in (
        ("[]", "sweep must be a list such as [1, 4, 8], not an empty list"),
        ("[0.1, abc]", "eps must be a finite number"),
        ("[0.1, 0.1]", "the radius 0.1 is repeated"),
    ):
        (mistake,) = mistakes(text.replace("[0, 1/256, 0.5]", wrong))
        assert expected in mistake


def test_threats_are_resolved():
    scenario = load_text(
        BASE
        + """
threats:
  - {name: none}
  - {name: evasion, budget: {norm: linf, eps: 8/255}, surrogate: uncompressed, subset: 9,
     attacks: [pgd, fgsm]}
  - {name: byzantine, malicious: 0.2, attacks: [alie]}
  - {name: weaker, malicious: 0.1, knowledge: own, attacks: [alie]}
  - {name: curious, attacks: [lira]}
"""
    )
    found = [(t.name, t.phase, t.knowledge, t.malicious) for t in scenario.threats]
    assert found == [
        ("none", "none", None, 0.0),
        ("evasion", "inference", "white-box", 0.0),
        ("byzantine", "training", "omniscient", 0.2),
        ("weaker", "training", "own", 0.1),
        ("curious", "privacy", "black-box", 0.0),
    ]
    budget = scenario.threats[1].budget
    assert (budget.norm, budget.eps) == ("linf", 8 / 255)
    assert scenario.tolerance == 0.2
    assert scenario.holdout == 0.2  # a privacy threat needs non-members


def test_a_given_holdout_stays():
    threat = "threats: [{name: p, attacks: [lira]}]\n"
    assert load_text(BASE + threat + "holdout: 0.3\n").holdout == 0.3


def test_python_construction_keeps_the_rules():
    with pytest.raises(ValidationError, match="epochs or steps"):
        Federation.model_validate({"local": {"epochs": 1, "steps": 1}})
    with pytest.raises(ValidationError, match="is repeated"):
        Scenario(schema=1, name="x", dataset=Digits(), model="small-cnn", seeds=(1, 1))
    scenario = load_text(BASE)
    with pytest.raises(ValidationError, match="frozen"):
        scenario.name = "y"


def test_to_dict_reads_back_to_the_same_scenario():
    text = BASE + (
        "defences: [none, dp-sgd: {epsilon: {sweep: [1, 2]}}]\naggregators: [[nnm, krum]]\n"
        "compressors: [none, static-int8]\ntrackers: [jsonl]\n"
        "threats: [{name: none}, {name: p, attacks: [lira]}, "
        "{name: e, budget: {norm: l2, eps: 1/3}, attacks: [pgd]}]\n"
        "federation: {server: fedyogi, local: {steps: 2, optimizer: nadam, "
        "schedule: {cosine: {final: 0.1}}}}\n"
    )
    first = load_text(text)
    again = load_text(yaml.safe_dump(json.loads(json.dumps(first.to_dict()))))
    assert again.to_dict() == first.to_dict()
    assert again.hash() == first.hash()
    assert first.to_dict()["defences"] == [
        "none",
        [{"dp-sgd": {"epsilon": 1.0, "max_grad_norm": 1.0, "accountant": "rdp"}}],
        [{"dp-sgd": {"epsilon": 2.0, "max_grad_norm": 1.0, "accountant": "rdp"}}],
    ]
    assert len(first.hash()) == 64


def test_hash_ignores_what_decides_no_score(tmp_path):
    reference = load_text(BASE).hash()
    same = [
        BASE + "description: words\n",
        BASE + "trackers: [jsonl]\n",
        BASE + "compute: {stage_timeout: 5}\n",
        BASE + "compute: {clients: auto}\n",
        BASE + "defences: [none]\n",
        BASE + "federation: {clients: 10}\n",
        BASE.replace("digits", "{digits: {split_seed: 0}}"),
    ]
    assert {load_text(text).hash() for text in same} == {reference}
    assert load_text(BASE, tmp_path / "a.yaml").hash() == reference
    other = [
        BASE.replace("digits", "{digits: {split_seed: 1}}"),
        BASE + "seeds: [1]\n",
        BASE + "compute: {threads: 2}\n",
        BASE + "compute: {clients: vectorised}\n",
        BASE + "compute: {chunk: 5}\n",
        BASE + "federation: {local: {proximal: 0.1}}\n",
        BASE + "version: 2\n",
        BASE + "aggregators: [krum]\n",
    ]
    assert len({reference, *(load_text(text).hash() for text in other)}) == len(other) + 1


def test_an_ambiguous_plugin_is_written_with_its_package(monkeypatch):
    registry = registry_of(("psr-harness", BUILTIN), ("other", (OtherKrum,)))
    monkeypatch.setattr("harness.registry.registry", lambda: registry)
    scenario = load_text(BASE + "aggregators: [other/krum, psr-harness/krum]\n")
    assert [type(c[0]) for c in scenario.aggregators] == [OtherKrum, Krum]
    assert [next(iter(c[0])) for c in scenario.to_dict()["aggregators"]] == ["other/krum", "psr-harness/krum"]
    assert mistakes(BASE + "aggregators: [krum]\n") == [
        "5:15: aggregator 'krum' is in several packages; say psr-harness/krum or other/krum"
    ]


class OtherPgd(Pgd):
    """Another package's attack of the same name."""


def test_the_hash_does_not_depend_on_what_else_is_installed(monkeypatch):
    text = BASE + "aggregators: [RULE]\ndefences: [adversarial-training: {attack: ATTACK}]\n"

    def hash_of(rule: str, attack: str) -> str:
        return load_text(text.replace("RULE", rule).replace("ATTACK", attack)).hash()

    alone = hash_of("krum", "pgd")
    both = registry_of(("psr-harness", BUILTIN), ("other", (OtherKrum, OtherPgd)))
    monkeypatch.setattr("harness.registry.registry", lambda: both)
    assert hash_of("psr-harness/krum", "psr-harness/pgd") == alone
    # Those of another package make other scenarios, nested ones too.
    rule, attack = hash_of("other/krum", "psr-harness/pgd"), hash_of("psr-harness/krum", "other/pgd")
    assert len({alone, rule, attack}) == 3
    without = tuple(plugin for plugin in BUILTIN if plugin not in (Krum, Pgd))
    fewer = registry_of(("psr-harness", (*without, Pgd)), ("other", (OtherKrum,)))
    monkeypatch.setattr("harness.registry.registry", lambda: fewer)
    assert hash_of("krum", "pgd") == rule


def test_defaults_are_the_built_in_ones_whatever_other_packages_call_theirs(monkeypatch):
    others = tuple(type(f"Other{p.__name__}", (p,), {"__doc__": p.__doc__}) for p in (Mean, Iid))
    registry = registry_of(("psr-harness", BUILTIN), ("other", others))
    monkeypatch.setattr("harness.registry.registry", lambda: registry)
    scenario = load_text(BASE)
    assert type(scenario.aggregators[0][0]) is Mean
    assert type(scenario.federation.partition) is Iid
    assert load_text(json.dumps(scenario.to_dict())).hash() == scenario.hash()


# schedules ----------------------------------------------------------------------------------------


def test_schedules():
    assert [Constant().multiplier(r, 4) for r in range(4)] == [1.0] * 4
    assert [Linear(final=0.2).multiplier(r, 4) for r in range(5)] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert [Step(every=2, factor=0.1).multiplier(r, 9) for r in range(5)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01]
    )
    half = 1 / math.sqrt(2)
    cosine = [Cosine(final=0.0).multiplier(r, 4) for r in range(5)]
    assert cosine == pytest.approx([1, (1 + half) / 2, 0.5, (1 - half) / 2, 0])
    assert Cosine(final=0.4).multiplier(2, 4) == pytest.approx(0.7)


def test_server_defaults_are_the_papers():
    assert FedAdagrad().beta1 == 0.0
    assert (FedYogi().beta1, FedYogi().beta2, FedYogi().tau) == (0.9, 0.99, 1e-3)


# mistakes -----------------------------------------------------------------------------------------

MANY = list(range(1, 40))

BAD = {
    "a defence as its paper writes it": (
        "defences: [DP-SGD]",
        ["5:12: unknown defence 'DP-SGD'; did you mean 'dp-sgd'?"],
    ),
    "unknown defence": (
        "defences: [none, dp-sdg]\n",
        ["5:18: unknown defence 'dp-sdg'; did you mean 'dp-sgd'?"],
    ),
    "nothing, misspelt": (
        "defences: [None]\ncompressors: [nonee]\n",
        [
            "5:12: unknown defence 'None'; did you mean 'none'?",
            "6:15: unknown compressor 'nonee'; did you mean 'none'?",
        ],
    ),
    "unknown plugin with parameters": (
        "defences:\n  - dp-sdg:\n      epsilon: 1\n",
        ["6:5: unknown defence 'dp-sdg'; did you mean 'dp-sgd'?"],
    ),
    "a plugin of another kind": (
        "defences: [krum]\n",
        ["5:12: unknown defence 'krum'; valid: adversarial-training, dp-sgd ('krum' is an aggregator)"],
    ),
    "unknown parameter": (
        "defences:\n  - dp-sgd: {epsilom: 1}\n",
        ["6:14: dp-sgd has no parameter 'epsilom'; did you mean 'epsilon'?"],
    ),
    "bound of a parameter": (
        "defences:\n  - dp-sgd:\n      max_grad_norm: 0\n",
        ["7:22: max_grad_norm must be greater than 0, not 0"],
    ),
    "type of a parameter": (
        "compressors: [static-int8: {per_channel: yes}]\n",
        ["5:42: per_channel must be true or false, not yes"],
    ),
    "choice of a parameter": (
        "defences: [dp-sgd: {accountant: rpd}]\n",
        ["5:33: accountant must be 'rdp' or 'prv', not rpd; did you mean 'rdp'?"],
    ),
    "missing parameter": (
        "defences: [adversarial-training]\n",
        ["5:12: adversarial-training needs the parameter 'attack'"],
    ),
    "nested plugin": (
        "defences: [adversarial-training: {attack: {pdg: {steps: 0}}}]\n",
        ["5:44: unknown attack 'pdg'; did you mean 'pgd'?"],
    ),
    "nested parameter": (
        "defences: [adversarial-training: {attack: {pgd: {steps: 0}}}]\n",
        ["5:57: steps must be at least 1, not 0"],
    ),
    "nested plugin of another sort": (
        "defences: [adversarial-training: {attack: alie}]\n",
        ["5:43: 'alie' is not a EvasionAttack"],
    ),
    "two mistakes in one plugin": (
        "defences: [dp-sgd: {epsilon: -1, norm: 2}]\n",
        [
            "5:30: epsilon must be greater than 0, not -1",
            "5:34: dp-sgd has no parameter 'norm'; valid: accountant, epsilon, max_grad_norm",
        ],
    ),
    "parameters beside the name": (
        "defences:\n  - dp-sgd:\n    epsilon: 1\n",
        [
            "6:5: a defence is `name` or `name: {parameter: value}`, not a mapping of 2 keys "
            "(dp-sgd, epsilon); indent parameters below the name, or begin each plugin with a dash"
        ],
    ),
    "parameters that are no mapping": (
        "defences: [dp-sgd: 8]\n",
        ["5:12: the parameters of defence 'dp-sgd' must be a mapping such as {name: value}"],
    ),
    "number as a plugin": (
        "defences: [3]\n",
        ["5:12: a defence is `name` or `name: {parameter: value}`, not 3"],
    ),
    "axis that is no list": (
        "defences: dp-sgd\n",
        ["5:11: defences must be a list such as [none, {dp-sgd: {epsilon: 8}}], not dp-sgd"],
    ),
    "empty axis": ("compressors: []\n", ["5:14: compressors needs at least one value, e.g. [none]"]),
    "axis without a value": (
        "compressors:\n",
        ["5:1: compressors must be a list such as [none, static-int8], not empty"],
    ),
    "empty stack": (
        "defences: [[]]\n",
        ["5:12: a defence is `name` or `name: {parameter: value}`, not an empty list"],
    ),
    "none in a stack": (
        "defences: [[none, dp-sgd]]\n",
        ["5:13: none must stand alone: remove it from this list"],
    ),
    "no aggregator": (
        "aggregators: [none]\n",
        ["5:15: unknown aggregator 'none'; did you mean 'nnm'?"],
    ),
    "pre-aggregator last": (
        "aggregators: [krum, nnm]\n",
        ["5:21: nnm is a pre-aggregator and needs a rule after it, e.g. [nnm, mean]"],
    ),
    "rule before the last": (
        "aggregators: [[nnm, krum, mean]]\n",
        ["5:21: krum ends a chain: only pre-aggregators may stand before another rule"],
    ),
    "two metrics of one score": (
        "metrics: [accuracy, exactness]\n",
        ["5:21: the metrics accuracy and exactness both declare the score 'accuracy'; list one of them"],
    ),
    "attack with a score of a metric": (
        "threats: [{name: peek, attacks: [peek]}]\nmetrics: [accuracy]\n",
        [
            "5:34: the attack peek and the metric accuracy both declare the score 'accuracy'; leave one of them out"
        ],
    ),
    "attack with a score of a default metric": (
        "threats: [{name: peek, attacks: [peek]}]\n",
        [
            "5:34: the attack peek and the metric exactness both declare the score 'accuracy'; leave one of them out"
        ],
    ),
    "two attacks that mean two things by a score": (
        "threats:\n  - {name: a, attacks: [leaks, oozes]}\n  - {name: b, attacks: [drips]}\n",
        ["7:25: the attacks leaks and drips do not mean the same by the score 'leak'; make two scenarios"],
    ),
    "repeated axis value": (
        "aggregators: [krum, mean, krum: {f: null}]\n",
        ["5:27: the aggregator krum(f=None) is repeated; list each value only once"],
    ),
    "repeated by alias": (
        "aggregators: [mean, fedavg]\n",
        ["5:21: the aggregator mean is repeated; list each value only once"],
    ),
    "repeated none": (
        "defences: [none, none]\n",
        ["5:18: the defence none is repeated; list each value only once"],
    ),
    "repeated by a sweep": (
        "aggregators: [krum: {f: 1}, krum: {f: {sweep: [0, 1]}}]\n",
        ["5:51: the aggregator krum(f=1) is repeated; list each value only once"],
    ),
    "bad item of a sweep": (
        "defences: [dp-sgd: {epsilon: {sweep: [1, x, -1]}}]\n",
        [
            "5:42: epsilon must be a number such as 0.5 or 8/255, not x",
            "5:45: epsilon must be greater than 0, not -1",
        ],
    ),
    "mistake beside a sweep": (
        "defences: [dp-sgd: {epsilon: {sweep: [1, 2, 3]}, max_grad_norm: 0}]\n",
        ["5:65: max_grad_norm must be greater than 0, not 0"],
    ),
    "mistake after a sweep": (
        "aggregators: [krum: {f: {sweep: [1, 2, 3]}}, [krum, mean]]\n",
        ["5:47: krum ends a chain: only pre-aggregators may stand before another rule"],
    ),
    "sweep that is no list": (
        "defences: [dp-sgd: {epsilon: {sweep: 3}}]\n",
        ["5:38: sweep must be a list such as [1, 4, 8], not 3"],
    ),
    "sweep with company": (
        "defences: [dp-sgd: {epsilon: {sweep: [1], to: 3}}]\n",
        ["5:31: sweep must be alone in its braces: {sweep: [1, 4, 8]}"],
    ),
    "too many values": (
        f"defences: [dp-sgd: {{epsilon: {{sweep: {MANY}}}, max_grad_norm: {{sweep: {MANY}}}}}]\n",
        ["5:12: its sweeps expand to 1521 values; at most 1000 are allowed"],
    ),
    "sweep outside the axes": (
        "federation: {partition: {dirichlet: {alpha: {sweep: [1, 2]}}}}\n",
        ["5:46: sweeps belong in the axes and in attacks"],
    ),
    "unknown key": (
        "defenses: [none]\n",
        ["5:1: unknown key 'defenses' in scenario; did you mean 'defences'?"],
    ),
    "a defence that stands twice in a stack": (
        "defences: [[dp-sgd, dp-sgd: {max_grad_norm: 1.0}], [dp-sgd: {epsilon: 1}, dp-sgd: {epsilon: 2}]]\n",
        ["5:21: dp-sgd(max_grad_norm=1) stands twice in this stack with the same parameters; name it once"],
    ),
    "a split or tracker that is listed twice": (
        "unprotected: [val, val]\ntrackers: [jsonl, jsonl]\n",
        [
            "5:20: val is repeated; list each split only once",
            "6:19: the tracker jsonl is repeated; list each value only once",
        ],
    ),
    "a required key that is misspelt is one mistake": (
        "threats: [{nme: x, attacks: [pgd]}, {name: y, attaks: [pgd]}, {name: z, knowlege: own}]\n",
        [
            "5:12: unknown key 'nme' in threat; did you mean 'name'?",
            "5:47: unknown key 'attaks' in threat; did you mean 'attacks'?",
            "5:64: a threat needs attacks, e.g. `attacks: [pgd]`; only the one named none has none",
            "5:73: unknown key 'knowlege' in threat; did you mean 'knowledge'?",
        ],
    ),
    "a required parameter that is misspelt is one mistake": (
        "defences: [adversarial-training: {atack: pgd}, adversarial-training: {fraction: 1}]\n",
        [
            "5:35: adversarial-training has no parameter 'atack'; did you mean 'attack'?",
            "5:48: adversarial-training needs the parameter 'attack'",
        ],
    ),
    "unknown key inside": (
        "federation:\n  client: 3\n",
        ["6:3: unknown key 'client' in federation; did you mean 'clients'?"],
    ),
    "hidden field": (
        "evaluation: {path: x}\n",
        ["5:14: unknown key 'path' in evaluation; valid: batch_size, certified, eot, subset"],
    ),
    "mapping expected": (
        "federation: 3\n",
        ["5:13: federation must be a mapping such as {clients: 10}, not 3"],
    ),
    "text for a number": (
        'federation: {rounds: "10"}\n',
        ['5:22: rounds must be a whole number such as 3, not "10"; remove the quotes'],
    ),
    "fraction for a whole number": (
        "federation: {rounds: 10/2}\n",
        ["5:22: rounds must be a whole number such as 3, not 10/2"],
    ),
    "more than can be": (
        "federation: {rounds: 9223372036854775807, server: {fedadam: {tau: 1e30}}}\n",
        [
            "5:22: rounds must be at most 1000000, not 9223372036854775807",
            "5:67: tau must be at most 1000000000000000000, not 1e30",
        ],
    ),
    "truth for a number": (
        "federation: {participation: true}\n",
        ["5:29: participation must be a number such as 0.5 or 8/255, not true"],
    ),
    "infinite number": (
        "federation: {local: {proximal: .inf}}\n",
        ["5:32: proximal must be a finite number such as 0.5, not .inf"],
    ),
    "range": ("federation: {participation: 1.5}\n", ["5:29: participation must be at most 1, not 1.5"]),
    "open range": (
        "federation: {byzantine_tolerance: 1/2}\n",
        ["5:35: byzantine_tolerance must be less than 0.5, not 1/2"],
    ),
    "choice": (
        "federation: {weighting: example}\n",
        ["5:25: weighting must be 'examples' or 'uniform', not example; did you mean 'examples'?"],
    ),
    "one choice": ("engine: ray\n", ["5:9: engine must be 'local' or 'flower', not ray"]),
    "server optimiser": (
        "federation: {server: fedadm}\n",
        ["5:22: unknown server optimiser 'fedadm'; did you mean 'fedadam' or 'fedavgm' or 'fedavg'?"],
    ),
    "server parameter": (
        "federation: {server: {fedavgm: {momentum: 1, beta1: 0}}}\n",
        [
            "5:43: momentum must be less than 1, not 1",
            "5:46: fedavgm has no parameter 'beta1'; valid: lr, momentum",
        ],
    ),
    "local optimiser": (
        "federation: {local: {optimizer: {sgd: {nesterov: true}}}}\n",
        ["5:34: nesterov needs a momentum greater than 0"],
    ),
    "betas": (
        "federation: {local: {optimizer: {adam: {betas: [0.9, 1.0]}}}}\n",
        ["5:34: each of betas must lie in [0, 1), not [0.9, 1.0]"],
    ),
    "schedule": (
        "federation: {local: {schedule: step}}\n",
        ["5:32: step needs the parameter 'every'"],
    ),
    "epochs and steps": (
        "federation: {local: {epochs: 2, steps: 3}}\n",
        ["5:40: local takes epochs or steps, not both"],
    ),
    "normalization": (
        "normalization: {mean: abc, std: [0.1, b]}\n",
        [
            "5:23: mean must be a number such as 0.5 or 8/255 or a list such as [1, 2], not abc",
            "5:39: each of std must be a number such as 0.5 or 8/255, not b",
        ],
    ),
    "normalization by zero": (
        "normalization: {mean: [0.1, 0.2, 0.3], std: [0.1, 0, 0.3]}\n",
        ["5:51: each of std must be greater than 0, not 0"],
    ),
    "normalization by half": (
        "normalization: {mean: 0.5}\n",
        ["5:1: normalization needs 'std', e.g. `std: 0.25`"],
    ),
    "percent": (
        "federation: {participation: 50%}\nholdout: 2.5 %\n",
        [
            "5:29: participation must be a number such as 0.5 or 8/255, not 50%; did you mean 0.5?",
            "6:10: holdout must be a number such as 0.5 or 8/255, not 2.5 %; did you mean 0.025?",
        ],
    ),
    "budget without a norm": (
        "threats: [{name: a, budget: 8/255, attacks: [fgsm]}]\n",
        ["5:29: budget must be a mapping such as {norm: linf, eps: 8/255}, not 8/255"],
    ),
    "seeds": (
        "seeds: [0, -1, 1.5]\n",
        [
            "5:12: each of seeds must be at least 0, not -1",
            "5:16: each of seeds must be a whole number such as 3, not 1.5",
        ],
    ),
    "repeated seed": ("seeds: [0, 1, 0]\n", ["5:15: the seed 0 is repeated"]),
    "no seed": ("seeds: []\n", ["5:8: seeds needs at least one number, e.g. [0, 1, 2]"]),
    "repeated metric": (
        "metrics: [accuracy, accuracy]\n",
        ["5:21: the metric accuracy is repeated; list each value only once"],
    ),
    "unprotected": ("unprotected: [test]\n", ["5:15: each of unprotected must be 'val', not test"]),
    "threat without a name": (
        "threats: [{attacks: [pgd]}]\n",
        ["5:12: threat needs 'name', e.g. `name: evasion`"],
    ),
    "threat without attacks": (
        "threats: [{name: e}]\n",
        ["5:12: a threat needs attacks, e.g. `attacks: [pgd]`; only the one named none has none"],
    ),
    "none with attacks": (
        "threats: [{name: none, attacks: [pgd]}]\n",
        ["5:18: the threat named none has no attacks; give this one another name"],
    ),
    "none with a share": (
        "threats: [{name: none, malicious: 0.2}]\n",
        ["5:35: the threat named none takes no malicious"],
    ),
    "phase none": (
        "threats: [{name: e, phase: none, attacks: [pgd]}]\n",
        ["5:28: only the threat named none has phase none, not 'e'"],
    ),
    "phase none without a good name": (
        "threats: [{name: 1, phase: none, knowledge: own}]\n",
        [
            "5:12: a threat needs attacks, e.g. `attacks: [pgd]`; only the one named none has none",
            "5:18: name must be text such as 'abc', in quotes if it looks like a number, not 1",
        ],
    ),
    "wrong phase": (
        "threats: [{name: e, phase: training, malicious: 0.2, attacks: [alie, pgd]}]\n",
        ["5:70: pgd is of phase inference, but this threat is of phase training; make two threats"],
    ),
    "mixed phases": (
        "threats: [{name: e, attacks: [pgd, lira]}]\n",
        ["5:36: lira is of phase privacy, but pgd acts at inference; make two threats"],
    ),
    "knowledge": (
        "threats: [{name: e, knowledge: omniscient, attacks: [pgd]}]\n",
        ["5:32: knowledge of a threat of phase inference is 'black-box' or 'white-box', not 'omniscient'"],
    ),
    "share missing": (
        "threats: [{name: b, attacks: [alie]}]\n",
        ["5:12: a training threat needs malicious, the share of clients, e.g. `malicious: 0.2`"],
    ),
    "share where there is none": (
        "threats: [{name: e, malicious: 0.2, attacks: [pgd]}]\n",
        ["5:32: malicious clients act in training; this threat is of phase inference"],
    ),
    "share below one client": (
        "threats: [{name: b, malicious: 0.05, attacks: [alie]}]\n",
        ["5:32: malicious 0.05 of 10 clients is 0.5: less than one client; at least 0.1 makes one"],
    ),
    "one client written as a share": (
        "threats: [{name: b, malicious: 1, attacks: [alie]}]\n",
        ["5:32: malicious is a share, and 1 of 10 clients is all of them; 0.1 is one"],
    ),
    "radius in pixels of 255": (
        "threats:\n  - {name: e, budget: {norm: linf, eps: 8}, attacks: [pgd]}\n",
        [
            "6:41: an linf radius of 8 reaches every image, as pixels lie in [0, 1]; did you mean 8/255?",
        ],
    ),
    "a radius whose square overflows": (
        "threats:\n  - {name: e, budget: {norm: l2, eps: 1e30}, attacks: [pgd]}\n",
        [
            "6:39: an l2 radius of 1e+30 reaches every image: those of n values are sqrt(n) apart at most",
        ],
    ),
    "swept radius in pixels of 255": (
        "threats:\n  - {name: e, budget: {norm: linf, eps: {sweep: [0, 2.5]}}, attacks: [pgd]}\n",
        [
            "6:53: an linf radius of 2.5 reaches every image, as pixels lie in [0, 1]; did you mean 2.5/255?",
        ],
    ),
    "swept radii that are none": (
        "threats:\n  - {name: e, attacks: [pgd], budget: {norm: linf, eps: {sweep: [.inf, x, [1], 300, -1]}}}\n",
        [
            "6:66: eps must be a finite number such as 0.5 or 8/255, not .inf",
            "6:72: eps must be a finite number such as 0.5 or 8/255, not x",
            "6:75: eps must be a finite number such as 0.5 or 8/255, not a list",
            "6:80: an linf radius of 300 reaches every image, as pixels lie in [0, 1]",
            "6:85: eps must be at least 0, not -1",
        ],
    ),
    "swept radii with the same name, and another mistake": (
        "threats:\n  - {name: e, attacks: [pgdd], budget: {norm: linf, eps: {sweep: [1/3, 0.33331]}}}\n",
        [
            "6:25: unknown attack 'pgdd'; did you mean 'pgd'?",
            "6:72: the radius 0.33331 is repeated, to four digits; list each only once",
        ],
    ),
    "swept radii of a threat whose name is none": (
        "threats:\n  - {name: [e], attacks: [pgd], budget: {norm: linf, eps: {sweep: [0.1, 0.2]}}}\n",
        ["6:12: name must be text such as 'abc', in quotes if it looks like a number, not a list"],
    ),
    "shares that are no finite numbers": (
        "holdout: .inf\nfederation: {participation: .nan, byzantine_tolerance: -.inf}\n",
        [
            "5:10: holdout must be a finite number such as 0.5, not .inf",
            "6:29: participation must be a finite number such as 0.5, not .nan",
            "6:56: byzantine_tolerance must be a finite number such as 0.5, not -.inf",
        ],
    ),
    "a subset of test records that nothing attacks": (
        "threats:\n  - {name: t, malicious: 0.2, subset: 5, attacks: [alie]}\n",
        [
            "6:39: subset is of the test records that are attacked, and no attack of this threat attacks any; "
            "evaluation.subset is for all scores",
        ],
    ),
    "a value that goes on in the next line": (
        "seeds:\n- 0\n -1\n",
        ["6:3: each of seeds must be a whole number such as 3, not 0 -1"],
    ),
    "a number as folded text": (
        "holdout: >-\n  0.5\n",
        ["5:10: holdout must be a number such as 0.5 or 8/255, not the text 0.5"],
    ),
    "an attack's own radius in pixels of 255": (
        "threats:\n  - {name: e, attacks: [pgd: {eps: 8}]}\n",
        [
            "6:25: an linf radius of 8 reaches every image, as pixels lie in [0, 1]; did you mean 8/255?",
        ],
    ),
    "budget": (
        "threats: [{name: e, budget: {norm: l3, eps: -8/255}, attacks: [pgd]}]\n",
        [
            "5:36: norm must be 'linf', 'l2' or 'l0', not l3",
            "5:45: eps must be at least 0, not -8/255",
        ],
    ),
    "a number in quotes": (
        "threats: [{name: e, budget: {norm: linf, eps: '8/255'}, attacks: [pgd]}]\n",
        ["5:47: eps must be a number such as 0.5 or 8/255, not '8/255'; remove the quotes"],
    ),
    "no number in quotes": (
        "threats: [{name: e, budget: {norm: linf, eps: '8/x'}, attacks: [pgd]}]\n",
        ["5:47: eps must be a number such as 0.5 or 8/255, not '8/x'"],
    ),
    "other values in quotes": (
        "federation: {clients: '10', rounds: '2.5'}\ncompute: {tf32: 'true'}\n",
        [
            "5:23: clients must be a whole number such as 3, not '10'; remove the quotes",
            "5:37: rounds must be a whole number such as 3, not '2.5'",
            "6:17: tf32 must be true or false, not 'true'; remove the quotes",
        ],
    ),
    "an empty sweep of a radius": (
        "threats: [{name: e, budget: {norm: linf, eps: {sweep: []}}, attacks: [pgd]}]\n",
        ["5:55: sweep must be a list such as [1, 4, 8], not an empty list"],
    ),
    "budget at training": (
        "threats: [{name: b, malicious: 0.2, budget: {norm: l2, eps: 1}, attacks: [alie]}]\n",
        ["5:37: budget is for threats of phase inference; this one is of phase training"],
    ),
    "threat name used twice": (
        "threats: [{name: e, attacks: [pgd]}, {name: e, attacks: [fgsm]}]\n",
        ["5:45: the threat name 'e' is used twice"],
    ),
    "repeated attack": (
        "threats: [{name: e, attacks: [pgd, {pgd: {steps: {sweep: [5, 10]}}}]}]\n",
        ["5:62: the attack pgd(steps=10) is repeated; list each value only once"],
    ),
    "stack of attacks": (
        "threats: [{name: e, attacks: [[pgd, fgsm]]}]\n",
        ["5:31: an attack is `name` or `name: {parameter: value}`, not a list"],
    ),
    "no threat": ("threats: []\n", ["5:10: threats needs at least one, e.g. [{name: none}]"]),
    "a share beside attackers who always take part": (
        'threats: [{name: t, malicious: "1/5", participation: always, attacks: [alie]}]\n',
        ['5:32: malicious must be a number such as 0.5 or 8/255, not "1/5"; remove the quotes'],
    ),
    "a sampling beside attackers who always take part": (
        "threats: [{name: t, malicious: 0.2, participation: always, attacks: [alie]}]\n"
        "federation: {sampling: fixd}\n",
        ["6:24: sampling must be 'fixed' or 'poisson', not fixd; did you mean 'fixed'?"],
    ),
    "a participation beside attackers who always take part": (
        "threats: [{name: t, malicious: 0.2, participation: always, attacks: [alie]}]\n"
        "federation: {participation: true}\n",
        ["6:29: participation must be a number such as 0.5 or 8/255, not true"],
    ),
    "no non-members": (
        "holdout: 0\nthreats: [{name: p, attacks: [lira]}]\n",
        ["5:10: lira needs non-members: holdout must be greater than 0"],
    ),
    "duplicate key": (
        "seeds: [1]\nseeds: [2]\n",
        ["6:1: the key 'seeds' appears twice (first on line 5)"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes(case):
    text, expected = BAD[case]
    assert mistakes(BASE + text) == expected


def test_very_long_names_are_cut():
    long = "x" * 300
    text = f"{long}: 1\ndefences: [{long}, dp-sgd: {{{long}: 1}}, {long}/dp-sgd]\nfederation: {{server: {long}}}\n"
    found = mistakes(BASE.replace("name: x", f"name: {long}") + text)
    assert len(found) == 6
    for message in found:
        assert f"'{'x' * 59}...'" in message
        assert "x" * 60 not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1]\n", ["1:1: scenario must be a mapping such as {schema: 1}, not a list"]),
        (
            "schema: 2\nname: a b\nmodle: small-cnn\n",
            [
                "1:1: scenario needs 'dataset', e.g. `dataset: {npz: {path: images.npz}}`",
                "1:9: schema must be 1, not 2",
                "2:7: 'a b' cannot be a name: use letters, digits, '-', '_' and '.', the first "
                "a letter or a digit, 100 at most",
                "3:1: unknown key 'modle' in scenario; did you mean 'model'?",
            ],
        ),
        (
            BASE.replace("name: x", "name: 2024"),
            ["2:7: name must be text such as 'abc', in quotes if it looks like a number, not 2024"],
        ),
        (
            BASE.replace("digits", "{digitz: {split_seed: 1}}"),
            ["3:11: unknown dataset 'digitz'; did you mean 'digits'?"],
        ),
        (BASE.replace("digits", "pictures"), ["3:10: pictures needs the parameter 'file'"]),
        (
            BASE.replace("small-cnn", "{small-cnn: {width: -2, activation: 3}}"),
            ["4:28: width must be at least 1, not -2", "4:44: activation must be 'relu' or 'mish', not 3"],
        ),
    ],
)
def test_mistakes_at_the_top(text, expected):
    assert mistakes(text) == expected


@pytest.mark.parametrize(
    ("betas", "expected"),
    [
        ("[0.9]", "betas must be a list of at least 2 values, not 1"),
        ("[]", "betas must be a list of at least 2 values, not an empty list"),
        ("[0.9, 0.99, 0.999]", "betas must be a list of at most 2 values, not 3"),
        ("0.9", "betas must be a list such as [1, 2], not 0.9"),
        ("[0.9, x]", "each of betas must be a number such as 0.5 or 8/255, not x"),
        ("[0.9, 1]", "each of betas must lie in [0, 1), not [0.9, 1.0]"),
    ],
)
def test_pairs_of_numbers(betas, expected):
    text = f"dataset: toy\nfederation: {{local: {{optimizer: {{adam: {{betas: {betas}}}}}}}}}\n"
    (found,) = [mistake for mistake in mistakes(text) if "betas" in mistake]
    assert found.endswith(f": {expected}")


@pytest.mark.parametrize(
    ("hidden", "expected"),
    [
        ("[]", "4:23: hidden must be a list of at least one value, not an empty list"),
        ("[-3]", "4:24: each of hidden must be at least 1, not -3"),
    ],
)
def test_lists_of_too_few_values(hidden, expected, monkeypatch):
    registry = registry_of(("psr-harness", (*BUILTIN, Mlp)))
    monkeypatch.setattr("harness.registry.registry", lambda: registry)
    assert mistakes(BASE.replace("small-cnn", f"{{mlp: {{hidden: {hidden}}}}}")) == [expected]


def test_all_mistakes_come_together_by_line():
    text = """schema: 1
name: x
dataset: digits
model: {small-cnn: {width: 0}}
federation: {clients: 0, cleints: 3, local: {steps: x}}
defences:
  - dp-sdg
  - dp-sgd: {epsilon: -1}
aggregators: [nnm]
threats:
  - {name: e, attacks: [pgd: {steps: 0}, alie]}
seeds: [0, 0]
seeds: [1]
"""
    lines = [int(message.split(":")[0]) for message in mistakes(text)]
    assert lines == [4, 5, 5, 5, 7, 8, 9, 11, 12, 13]


def test_no_text_gets_past_the_error_messages():
    """Damaged files end in a ScenarioError or a scenario, never in a traceback."""
    text = BASE + (
        "normalization: {mean: [0.5], std: 0.25}\n"
        "federation: {server: {fedadam: {lr: 1e-2}}, local: {optimizer: {adam: {betas: [0.8, 0.9]}}}}\n"
        "defences: [none, [adversarial-training: {attack: {pgd: {steps: {sweep: [1, 2]}}}}, dp-sgd]]\n"
        "aggregators: [mean, [nnm, krum: {f: 1}]]\n"
        "threats: [{name: none}, {name: e, budget: {norm: l2, eps: 1/3}, attacks: [pgd, fgsm]}]\n"
    )
    pieces = [
        "[",
        "]",
        "{",
        "}",
        ":",
        ", ",
        "null",
        "none",
        "sweep",
        "0",
        "-1",
        "'",
        "&a ",
        "*a",
        "\n",
        "- ",
        "x",
        "",
    ]
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(400):
        start, piece = int(rng.integers(len(text))), pieces[rng.integers(len(pieces))]
        damaged = text[:start] + piece + text[start + int(rng.integers(0, 12)) :]
        try:
            outcomes.add(type(load_text(damaged)))
        except ScenarioError as error:
            outcomes.add(str(error).split(":")[0])
    assert outcomes == {Scenario, "<scenario>"}


def test_the_source_is_shown_with_carets():
    with pytest.raises(ScenarioError) as caught:
        load_text(BASE + "defences:\n  - none\n  - dp-sdg: {epsilon: 8}\n", "scenarios/x.yaml")
    assert str(caught.value) == (
        "scenarios/x.yaml:7:5: unknown defence 'dp-sdg'; did you mean 'dp-sgd'?\n"
        "      - dp-sdg: {epsilon: 8}\n"
        "        ^^^^^^"
    )


@pytest.mark.parametrize(
    ("seeds", "excerpt"),
    [
        (["x", *range(10_000)], "    seeds: [x, 0, 1, "),
        ([*range(10_000), "x"], " 9999, x]\n"),
        ([*range(5_000), "x", *range(5_000, 10_000)], " 4999, x, 5000, "),
    ],
    ids=["first", "last", "middle"],
)
def test_of_a_long_line_the_part_around_the_mistake_is_shown(seeds, excerpt):
    with pytest.raises(ScenarioError) as caught:
        load_text(BASE + f"seeds: [{', '.join(map(str, seeds))}]\n")
    assert excerpt in str(caught.value)
    _, source, carets = str(caught.value).split("\n")
    assert len(source) <= 80
    assert source[carets.index("^")] == "x"
    assert ("..." in source[:7], source.endswith("...")) == (seeds[0] != "x", seeds[-1] != "x")


# files --------------------------------------------------------------------------------------------


def test_load_keeps_the_place_of_the_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode())
    scenario = load(file)
    assert (scenario.path, scenario.root) == (file, tmp_path)
    assert scenario.hash() == load_text(BASE).hash()


def test_links_that_lead_nowhere_and_files_that_never_end_are_named(tmp_path):
    (tmp_path / "link.yaml").symlink_to("gone.yaml")
    (tmp_path / "mine.yaml").mkdir()
    with pytest.raises(ScenarioError, match=r"link\.yaml: a link to gone\.yaml, which is not there$"):
        load(tmp_path / "link.yaml")
    with pytest.raises(ScenarioError, match=r"mime\.yaml: no such file; .* has no scenario files$"):
        load(tmp_path / "mime.yaml")  # neither a folder nor a broken link is meant
    with pytest.raises(ScenarioError, match=r"^/dev/zero: larger than 16 MiB, and so no scenario$"):
        load("/dev/zero")


def test_missing_files_name_the_nearest(tmp_path):
    (tmp_path / "quickstart.yaml").write_text(BASE)
    with pytest.raises(ScenarioError) as caught:
        load(tmp_path / "quikstart.yaml")
    assert str(caught.value) == (
        f"{tmp_path}/quikstart.yaml: no such file; did you mean {tmp_path}/quickstart.yaml?"
    )
    with pytest.raises(ScenarioError, match="there is no folder"):
        load(tmp_path / "none" / "x.yaml")
    with pytest.raises(ScenarioError, match="is a folder; give a scenario file"):
        load(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"schema: 1\nname: \xff\xfe")
    with pytest.raises(ScenarioError, match=r"binary\.yaml:2:7: not a text file in UTF-8 \(byte 16 "):
        load(tmp_path / "binary.yaml")


def test_load_many_reports_every_file_and_shared_names(tmp_path):
    for name, text in (("a", BASE), ("b", BASE + "seeds: [x]\n"), ("c", BASE.replace("name: x", "name: z"))):
        (tmp_path / f"{name}.yaml").write_text(text)
    assert [s.name for s in load_many([tmp_path / "a.yaml", tmp_path / "c.yaml"])] == ["x", "z"]
    with pytest.raises(ScenarioError) as caught:
        load_many([tmp_path / "a.yaml", tmp_path / "b.yaml", tmp_path / "bb.yaml"])
    found = [line for line in str(caught.value).splitlines() if line.startswith(str(tmp_path))]
    assert found == [
        f"{tmp_path}/bb.yaml: no such file; did you mean {tmp_path}/b.yaml?",
        f"{tmp_path}/b.yaml:2:7: the scenario name 'x' is already used by {tmp_path}/a.yaml",
        f"{tmp_path}/b.yaml:5:9: each of seeds must be a whole number such as 3, not x",
    ]
    assert load_many([]) == []


def test_check_data_loads_from_the_scenarios_folder(tmp_path, monkeypatch):
    roots = []

    def split(n, label):
        return Split(np.zeros((n, 1, 4, 4), np.float32), np.full(n, label))

    def found(self, root=None):
        roots.append(root)
        return Splits(split(4, 0), split(2, 1), split(2, 1), ("a", "b"))

    scenario = load_text(BASE, tmp_path / "x.yaml")
    monkeypatch.setattr(Digits, "load", found)
    assert len(check_data(scenario).train) == 4
    assert roots == [tmp_path]
    monkeypatch.setattr(
        Digits, "load", lambda self, root=None: Splits(split(4, 2), split(2, 1), split(2, 1), ("a", "b"))
    )
    with pytest.raises(ScenarioError, match=r"digits cannot be used: .*labels run from 2 to 2"):
        check_data(scenario)

    def missing(self, root=None):
        raise HarnessError("a.npz is not there")

    monkeypatch.setattr(Digits, "load", missing)
    with pytest.raises(ScenarioError, match=r"a\.npz is not there"):
        check_data(scenario)


def test_a_default_plugin_that_is_not_installed_is_a_mistake(monkeypatch):
    registry = registry_of(("psr-harness", tuple(p for p in BUILTIN if p.name != "iid")))
    monkeypatch.setattr("harness.registry.registry", lambda: registry)
    assert mistakes(BASE) == ["1:1: unknown partitioner 'psr-harness/iid'; valid: dirichlet"]


def test_reading_a_scenario_needs_no_torch():
    code = (
        "import sys, harness.scenario, harness.schema; print('torch' in sys.modules)\n"
        "from harness.yaml_loader import parse; parse('a: 1'); print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


def test_radii_of_other_norms_may_be_greater_than_one():
    text = "threats: [{name: e, budget: {norm: %s, eps: %s}, attacks: [pgd]}]"
    for norm, eps in (("l2", 3), ("l0", 8), ("linf", 1)):
        (threat,) = load_text(BASE + text % (norm, eps)).threats
        assert threat.budget.eps == eps
