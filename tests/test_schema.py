"""The JSON Schema accepts what the loader accepts and refuses what it refuses, where a schema can tell."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from scenario_plugins import BUILTIN, OtherKrum, registry_of

from harness.errors import ScenarioError
from harness.scenario import load_text
from harness.schema import scenario_schema
from harness.yaml_loader import parse

BASE = "schema: 1\nname: x\ndataset: digits\nmodel: small-cnn\n"
SCENARIOS = sorted(Path(__file__).parent.parent.glob("scenarios/*.yaml"))


@pytest.fixture
def plugins(monkeypatch):
    registry = registry_of(("psr-harness", BUILTIN))
    monkeypatch.setattr("harness.registry.registry", lambda: registry)


@pytest.fixture
def validator(plugins):
    return jsonschema.Draft202012Validator(scenario_schema())


@pytest.fixture(scope="module")
def installed():
    return jsonschema.Draft202012Validator(scenario_schema())


def read(text: str):
    document = parse(text)
    assert document.problems == []
    return document.data


def test_it_is_valid_json_schema(plugins):
    schema = scenario_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "x-plugin-kind" not in json.dumps(schema)
    assert "x-option" not in json.dumps(schema)


def test_every_reference_leads_somewhere(plugins):
    schema = scenario_schema()

    def references(node):
        if isinstance(node, dict):
            if "$ref" in node:
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    found = set(references(schema))
    assert found
    assert {r.removeprefix("#/$defs/") for r in found} <= set(schema["$defs"])


GOOD = [
    "",
    "defences: [none, dp-sgd, dp-sgd: {epsilon: 8}]\n",
    "defences:\n  - dp-sgd:\n  - [adversarial-training: {attack: {pgd: {steps: 5}}}, dp-sgd]\n",
    "defences: [dp-sgd: {epsilon: {sweep: [1/2, 4, 8]}}]\n",
    "defences: [adversarial-training: {attack: {sweep: [pgd, fgsm]}}]\n",
    "defences: [adversarial-training: {attack: {pgd: {steps: {sweep: [1, 2]}}}}]\n",
    "aggregators: [mean, [nnm, krum], krum: {f: 2}, [{sweep: [nnm, bucketing]}, krum: {f: 1}]]\n",
    "aggregators: [psr-harness/krum, psr-harness/mean: {}]\n",
    "aggregators: [fedavg]\ncompressors: [none, static-int8, structured-pruning: {ratio: 0.25}]\n",
    "threats: [{name: none}, {name: e, budget: {norm: linf, eps: 8/255}, attacks: [pgd]}]\n",
    "threats: [{name: b, malicious: 0.2, attacks: [alie: {z: {sweep: [1.5, 2]}}]}]\n",
    "federation: {server: {fedadam: {lr: 1e-2}}, partition: {dirichlet: {alpha: 0.5}}}\n",
    "federation: {server: fedavgm, local: {optimizer: {adam: {betas: [0.9, 0.99]}}, schedule: cosine}}\n",
    "normalization: {mean: [0.5, 0.4, 0.3], std: 0.2}\nmetrics: [accuracy]\ntrackers: [jsonl]\n",
    "unprotected: [val]\nholdout: 0.2\nevaluation: {subset: 100}\ncompute: {precision: bf16, tf32: true}\n",
]


@pytest.mark.parametrize("text", GOOD)
def test_good_scenarios_pass(validator, text):
    load_text(BASE + text)  # and the loader agrees
    assert list(validator.iter_errors(read(BASE + text))) == []


BAD = [
    "defenses: [none]\n",
    "defences: none\n",
    "defences: [dp-sdg]\n",
    "defences: [dp-sgd: {epsilom: 1}]\n",
    "defences: [dp-sgd: {epsilon: 0}]\n",
    "defences: [dp-sgd: {epsilon: x}]\n",
    "defences: [dp-sgd: {epsilon: {sweep: []}}]\n",
    "defences: [dp-sgd: {epsilon: {sweep: [1, x]}}]\n",
    "defences: [dp-sgd: {epsilon: {sweep: [1], to: 2}}]\n",
    "defences: [adversarial-training]\n",
    "defences: [adversarial-training: {attack: {pgd: {steps: 0}}}]\n",
    "defences: [[]]\n",
    "defences: [[none, dp-sgd]]\n",
    "aggregators: [none]\n",
    "aggregators: [{krum: {f: 1}, mean: {}}]\n",
    "aggregators: [krum: {f: 1.5}]\n",
    "compressors: []\n",
    "federation: {clients: 0}\n",
    "federation: {weighting: example}\n",
    "federation: {server: fedadm}\n",
    "federation: {server: {fedavg: {momentum: 1}}}\n",
    "federation: {local: {schedule: step}}\n",
    "federation: {partition: {dirichlet: {alpha: {sweep: [1, 2]}}}}\n",
    "threats: [{attacks: [pgd]}]\n",
    "threats: [{name: e, budget: {norm: l3, eps: 1}, attacks: [pgd]}]\n",
    "threats: [{name: e, attacks: [[pgd]]}]\n",
    "threats: [{name: e, attacks: [none]}]\n",
    "seeds: [-1]\n",
    "path: x\n",
    "root: x\n",
]


@pytest.mark.parametrize("text", BAD)
def test_bad_scenarios_are_refused(validator, text):
    with pytest.raises(ScenarioError):
        load_text(BASE + text)
    assert list(validator.iter_errors(read(BASE + text)))


@pytest.mark.parametrize("line", BASE.splitlines(keepends=True))
def test_what_is_needed_is_required(validator, line):
    assert list(validator.iter_errors(read(BASE.replace(line, ""))))


@pytest.mark.parametrize(
    ("text", "good"), [("8/255", True), ("1e-3", True), ("-1/2", True), ("8", False), ("a/b", False)]
)
def test_editors_that_take_numbers_for_text_are_served(validator, text, good):
    data = read(BASE)
    data["federation"] = {"local": {"proximal": text}}
    assert (not list(validator.iter_errors(data))) == good


def test_descriptions_reach_the_editor(plugins):
    schema = scenario_schema()
    parameters = schema["$defs"]["defence.psr-harness:dp-sgd"]
    assert parameters["description"].startswith("Clips and adds noise.\n\nMore of its story.")
    assert "Deep Learning with Differential Privacy (CCS, 2016)" in parameters["description"]
    assert parameters["properties"]["epsilon"]["description"] == "target epsilon"
    assert {"const": "dp-sgd", "description": "Clips and adds noise."} in schema["$defs"]["defence"]["oneOf"]
    assert schema["properties"]["seeds"]["description"]


def test_ambiguous_names_need_their_package(monkeypatch):
    registry = registry_of(("psr-harness", BUILTIN), ("other", (OtherKrum,)))
    monkeypatch.setattr("harness.registry.registry", lambda: registry)
    validator = jsonschema.Draft202012Validator(scenario_schema())
    for name, good in (("krum", False), ("other/krum", True), ("psr-harness/krum", True), ("mean", True)):
        assert (not list(validator.iter_errors(read(BASE + f"aggregators: [{name}]\n")))) == good


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_shipped_scenarios_pass(installed, path):
    text = path.read_text()
    load_text(text, path)
    assert [error.message for error in installed.iter_errors(read(text))] == []
