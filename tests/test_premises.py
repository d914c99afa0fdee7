"""Code and data that change between the plan and the work: no score under a key that is not its own."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from small import write_images

import harness
from harness import source_code
from harness.errors import HarnessError
from harness.registry import registry
from harness.scenario import load_text
from harness.scenario_plan import plan_scenarios

NAME = "harness_edited_plugin"
RULE = '''
from harness.api import Aggregator, hookimpl

class Rule(Aggregator):
    """A rule in development."""
    name = "edited-rule"

    def aggregate(self, updates, context):
        return SIGN * updates.mean(0)

@hookimpl
def harness_register(register):
    register(Rule)
'''
BASE = """
schema: 1
name: small
dataset: digits
model: {mlp: {hidden: [8]}}
federation: {clients: 4, rounds: 1, local: {epochs: 1, batch_size: 64}}
metrics: [accuracy]
"""
BOTH = BASE + "aggregators: [mean, edited-rule]\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with a rule, as this process imported it; write(sign) edits it."""
    folder = tmp_path / "site" / NAME
    folder.mkdir(parents=True)

    def write(sign: str) -> None:
        (folder / "__init__.py").write_text(RULE.replace("SIGN", sign))

    write("1")
    monkeypatch.syspath_prepend(str(folder.parent))
    importlib.invalidate_caches()
    source_code.remember(NAME)
    registry().add(importlib.import_module(NAME), NAME, "edited-plugin")
    yield write
    sys.modules.pop(NAME)
    source_code._PACKAGES.pop(NAME)
    registry()._entries["aggregator"].pop("edited-rule")
    registry().manager.unregister(name=f"edited-plugin:{NAME}")


def run(text: str, folder: Path, **options):
    scenario = load_text(text, folder / "small.yaml")
    return harness.run(scenario, **{"device": "cpu", "jobs": 0, "store": folder / "runs", **options})


class AtTrainingOf:
    """An observer that does something when the training of a rule begins."""

    def __init__(self, rule: str, action) -> None:
        self.rule, self.action = rule, action

    def stage_started(self, key, kind, label):
        if kind == "train" and self.rule in label:
            self.action()

    def __getattr__(self, name):
        return lambda *_, **__: None


@pytest.mark.parametrize("jobs", [0, 1])
def test_a_package_edited_during_a_run_fails_its_own_cells_and_no_others(
    package, jobs, tmp_path, monkeypatch
):
    monkeypatch.setattr("harness.premises.AGE", 0.0)  # the edit follows the plan at once
    result = run(BOTH, tmp_path, jobs=jobs, observer=AtTrainingOf("mean", lambda: package("-1")))
    mean, mine = result.records
    assert mean["status"] == "scored", mean["error"]
    assert mine["status"] == "failed"
    assert (
        "the code of edited-plugin changed since this run was planned; run again" in mine["error"]["message"]
    )
    package("1")
    again = run(BOTH, tmp_path, jobs=jobs)  # put back: nothing wrong was kept
    assert [record["status"] for record in again.records] == ["scored", "scored"]
    assert again.executed["train"] == 1


def test_a_package_edited_since_it_was_imported_asks_for_a_new_process(package, tmp_path):
    run(BOTH, tmp_path)
    package("-1")
    with pytest.raises(HarnessError, match="edited-plugin changed after this process imported it"):
        run(BOTH, tmp_path / "other")
    assert run(BASE, tmp_path / "other").scored == 1  # which the package has no part in


def test_a_package_edited_before_the_first_plan_is_noticed_too(package, tmp_path):
    package("-1")
    with pytest.raises(HarnessError, match="edited-plugin changed after this process imported it"):
        run(BOTH, tmp_path)


def test_a_stage_names_the_packages_of_its_own_plugins_alone(package, tmp_path):
    plan, _, _ = plan_scenarios([load_text(BOTH, tmp_path / "s.yaml")], "cpu", None, [])
    found = {
        stage.label: {code.distribution for code in stage.premises.code} for stage in plan.stages.values()
    }
    assert {tuple(sorted(names)) for label, names in found.items() if "edited-rule" in label} == {
        ("edited-plugin", "psr-harness")
    }
    assert {tuple(names) for label, names in found.items() if "edited-rule" not in label} == {
        ("psr-harness",)
    }


# data -----------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path) -> Path:
    return write_images(tmp_path / "images.npz")


def invert(file: Path) -> None:
    with np.load(file) as archive:
        arrays = dict(archive)
    arrays["train_images"] = 255 - arrays["train_images"]
    np.savez(file, **arrays)


@pytest.mark.parametrize("nested", [False, True], ids=["the data set", "a nested one"])
def test_data_replaced_during_a_run_fail_what_reads_them(nested, images, tmp_path):
    text = BASE.replace("digits", "{npz: {path: images.npz}}")
    if nested:
        attack = "edge-case: {images: {npz: {path: images.npz}}, source: 1, target: 0}"
        text = BASE + f"threats: [{{name: b, malicious: 0.25, attacks: [{attack}]}}]\n"
    (record,) = run(text, tmp_path, observer=AtTrainingOf("", lambda: invert(images))).records
    assert record["status"] == "failed"
    assert "the data of npz" in record["error"]["message"]
    assert "changed during the run; run again" in record["error"]["message"]
    invert(images)
    again = run(text, tmp_path)
    assert (again.scored, again.executed["train"]) == (1, 1)


@pytest.mark.parametrize("jobs", [0, 1])
def test_nested_data_replaced_between_two_stages_fail_those_to_come(jobs, images, tmp_path):
    attack = "edge-case: {images: {npz: {path: images.npz}}, source: 1, target: 0}"
    text = BASE + f"seeds: [0, 1]\nthreats: [{{name: b, malicious: 0.25, attacks: [{attack}]}}]\n"
    reference = run(text, tmp_path, store=tmp_path / "reference")
    edit = AtTrainingOf("seed 1", lambda: invert(images))  # the first training has found them as they were
    _, second = run(text, tmp_path, jobs=jobs, observer=edit).records
    assert second["status"] == "failed"
    assert "the data of npz" in second["error"]["message"]
    invert(images)
    again = run(text, tmp_path, jobs=jobs)
    assert again.executed["train"] == 1
    assert [r["scores"] for r in again.records] == [r["scores"] for r in reference.records]


def test_local_files_are_what_was_hashed_and_need_no_check(tmp_path):
    (tmp_path / "mine.py").write_text(RULE.replace("SIGN", "1").replace("edited-rule", "local-edited"))
    text = BASE + "plugins: [mine.py]\naggregators: [local-edited]\n"
    plan, _, _ = plan_scenarios([load_text(text, tmp_path / "s.yaml")], "cpu", None, [])
    codes = {code.distribution for stage in plan.stages.values() for code in stage.premises.code}
    assert codes == {"psr-harness"}
