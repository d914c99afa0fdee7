"""Which executor a run has: unknown ones, settings that belong to another, and nodes that differ."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

import harness
from harness.errors import HarnessError
from harness.executors.compatibility import Code, Identity, data_differences
from harness.scenario import load_text
from harness.scenario_plan import plan_scenarios

TEXT = """
schema: 1
name: small
dataset: digits
model: {mlp: {hidden: [8]}}
federation: {clients: 4, rounds: 2}
defences: [adversarial-training: {attack: {pgd: {steps: 1}}}]
"""


@pytest.fixture(scope="module")
def planned():
    plan, metrics, _ = plan_scenarios([load_text(TEXT)], "cpu", None, [])
    return plan, metrics


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"executor": "rey"}, "did you mean 'ray'"),
        ({"executor": "ray", "artifacts": "object"}, "did you mean 'objects'"),
        ({"address": "127.0.0.1:1"}, "for --executor ray"),
        ({"artifacts": "shared"}, "for --executor ray"),
    ],
)
def test_wrong_choices_are_said_before_anything_is_done(options, words, tmp_path):
    with pytest.raises(HarnessError, match=words):
        harness.run(load_text(TEXT), store=tmp_path / "runs", device="cpu", **options)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"select": "defense=none"}, "did you mean 'defence'"),
        ({"select": ["defence=none"]}, "matches no cell"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"timeout": 1.0, "jobs": 0}, "needs worker processes"),
        ({"executor": "rey"}, "unknown executor"),
        ({"address": "127.0.0.1:1"}, "for --executor ray"),
    ],
)
def test_a_bad_argument_neither_starts_workers_nor_makes_a_store(options, words, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "harness.executors.local.warm_up", lambda modules: pytest.fail("workers were started")
    )
    file = tmp_path / "small.yaml"
    file.write_text(TEXT)
    with pytest.raises(HarnessError, match=words):
        harness.run(file, store=tmp_path / "runs", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_an_address_where_nothing_answers_is_said_at_once(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'psr-harness[ray]'")
    import ray

    if ray.is_initialized():
        pytest.skip("this process is connected to a cluster already")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for given in (address, f"ray://{address}"):
        with pytest.raises(HarnessError, match="nothing answers there"):
            harness.run(load_text(TEXT), store=tmp_path / "runs", executor="ray", address=given)


def test_this_machine_is_like_itself(planned):
    identity = Identity.of(*planned)
    assert identity.differences() == []
    kinds = {kind for kind, _, _ in identity.plugins}
    assert kinds == {"dataset", "model", "partitioner", "defence", "aggregator", "attack", "metric"}
    assert ("attack", "pgd", "psr-harness") in identity.plugins  # nested in a defence


def test_what_differs_is_named_with_both_versions(planned):
    identity = Identity.of(*planned)
    mean = ("aggregator", "mean", "psr-harness")
    changed = replace(
        identity,
        engine=Code("0.0.1", ""),
        libraries={**identity.libraries, "torch": "1.0"},
        plugins={
            **identity.plugins,
            mean: identity.plugins[mean]._replace(source="0" * 64),
            ("defence", "shield", "lab"): Code("2.0", ""),
        },
    )
    engine, torch, source, missing = changed.differences()
    assert engine == f"the engine {harness.__version__} there, 0.0.1 here"
    assert torch == f"torch {identity.libraries['torch']} there, 1.0 here"
    assert source.startswith("aggregator mean of psr-harness")
    assert "has other sources" in source
    assert "000000000000 here" in source
    assert missing.startswith("defence shield of lab 2.0 is missing there")


def test_other_data_and_missing_data_are_named():
    digits, absent = (
        load_text(TEXT.replace("digits", dataset)).dataset
        for dataset in ("digits", "{npz: {path: nowhere.npz}}")
    )
    root = Path()
    mark = digits.fingerprint(root)
    assert data_differences([(digits, root, mark)]) == []
    other, lost = data_differences([(digits, root, "f" * 64), (absent, root, "f" * 64)])
    assert f"{mark[:12]} there, ffffffffffff here" in other
    assert "nowhere.npz" in lost
