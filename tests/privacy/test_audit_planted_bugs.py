"""Mistakes that were really made in private training are caught by the audit; trainings without them are not.

Every planted defence claims what the correct one would: its parent's `prepare` and `guarantee` are untouched.
"""

from __future__ import annotations

import math

import pytest
import torch

import harness
from harness.api import hookimpl
from harness.functional import mean_gradient
from harness.registry import registry
from harness.scenario import load_text
from harness_plugins.defences._client_level import NoisyMean, server_noise
from harness_plugins.defences.dp_fedavg import DPFedAvg
from harness_plugins.defences.dp_sgd import DPSGD
from harness_plugins.defences.local_dp import LocalDP


class NoiseOverBatch(DPSGD):
    """Adds to the sum the noise that would fit the mean: its deviation is sigma C / B."""

    name = "test-noise-over-batch"

    def gradient(self, local):
        sigma = local.prepared["clients"][local.client]["noise_multiplier"] / local.batch_size
        clipped = self._clipped_sum(local)

        def gradient(params, batch, key):
            zeros = {name: torch.zeros_like(p) for name, p in params.items()}
            sums = clipped(params, batch, key) if len(batch[1]) else zeros
            return self._noisy(sums, sigma, local)

        return gradient


class ClipsBatch(DPSGD):
    """Clips the gradient of the whole batch to C (`clip_grad_norm_`), with the noise that fits clipped records."""

    name = "test-clips-batch"

    def gradient(self, local):
        sigma = local.prepared["clients"][local.client]["noise_multiplier"]
        plain = mean_gradient(local.loss)

        def gradient(params, batch, key):
            mean = plain(params, batch, key)
            length = torch.cat([g.reshape(-1) for g in mean.values()]).norm()
            scale = (self.max_grad_norm / (length + 1e-6)).clamp(max=1.0)
            return self._noisy({n: local.batch_size * scale * g for n, g in mean.items()}, sigma, local)

        return gradient


class NoiseOverClients(DPFedAvg):
    """Divides the noise on the sum by the number of clients, before the sum is divided by it."""

    name = "test-noise-over-clients"

    def aggregator(self, aggregator, prepared):
        def mechanism(rows, context):
            deviation = prepared["update_noise"] * self.clip_norm / prepared["expected_clients"]
            return self.clip_norm, server_noise(rows.new_empty(rows.shape[1]), deviation, context)

        return NoisyMean(rule=aggregator, expected=prepared["expected_clients"], mechanism=mechanism)


class HundredthOfTheNoise(LocalDP):
    """Noises updates with a hundredth of what its claim needs."""

    name = "test-hundredth-of-the-noise"

    def update(self, delta, context):
        less = context.prepared["noise_multiplier"] / 100
        clipped = delta * (self.clip_norm / delta.norm().clamp_min(1e-12)).clamp(max=1.0)
        noise = torch.randn(delta.shape, generator=context.generator, dtype=delta.dtype)
        return clipped + less * self.clip_norm * noise


class _Module:
    @staticmethod
    @hookimpl
    def harness_register(register):
        for plugin in (NoiseOverBatch, ClipsBatch, NoiseOverClients, HundredthOfTheNoise):
            register(plugin)


@pytest.fixture(scope="module", autouse=True)
def _registered():
    if NoiseOverBatch.name not in registry().names("defence"):
        registry().add(_Module(), "planted-bugs", "planted-bug-tests")


DIGITS = ("digits", 0.75)  # what is trained on, and the share that is not: about 310 digits
XRAYS = ("{npz: {path: pneumonia-28.npz}}", 0.9)  # and about 470 X-rays

BASE = """
schema: 1
name: audits
dataset: {dataset}
holdout: {holdout}
model: {{small-cnn: {{width: {width}, hidden: 32}}}}
federation: {{clients: {clients}, rounds: {rounds}, evaluate_every: 0,
  local: {{steps: {steps}, batch_size: {batch}, optimizer: {{sgd: {{lr: 0.01}}}}}}}}
evaluation: {{subset: 20}}
metrics: [accuracy]
defences: [{defence}]
threats: [{{name: audited, attacks: [audit: {{canaries: {canaries}}}]}}]
seeds: {seeds}
"""
RECORDS = {"clients": 1, "rounds": 2, "steps": 15, "batch": 128, "canaries": 400, "width": 8}
CLIENTS = {"clients": 4, "rounds": 4, "steps": 1, "batch": 32, "canaries": 200, "width": 4}


def audits(folder, defence, data=DIGITS, seeds=(0,), **settings):
    """The records of one cell a seed, all scored."""
    dataset, holdout = data
    text = BASE.format(dataset=dataset, holdout=holdout, defence=defence, seeds=list(seeds), **settings)
    result = harness.run(load_text(text, folder / "audit.yaml"), device="cpu", jobs=0, store=folder / "runs")
    assert [r["error"] for r in result.records if r["error"]] == []
    assert len(result.records) == len(seeds)
    return result.records


def bound(record):
    return record["attack"]["audit"]["epsilon"]


def claim(record):
    """What the audited training claims; that must be the target's own kind of claim, and hold."""
    own, target = record["attack"]["audit"]["guarantee"], record["guarantee"]
    assert own["holds"]
    assert target["holds"]
    assert (own["by"], own["unit"], own["against"]) == (target["by"], target["unit"], target["against"])
    return own["epsilon"]


def assert_caught(record, target):
    assert 0.9 * target < claim(record) <= target
    assert bound(record) > claim(record)
    assert "audit-violation" in record["flags"]
    assert record["attack"]["audit"]["confidence"] == 0.95


def flagged(records):
    """How many of them carry the flag; it is there where the bound is above the claim, and only there."""
    for record in records:
        assert ("audit-violation" in record["flags"]) == (bound(record) > claim(record))
    return sum("audit-violation" in record["flags"] for record in records)


def assert_seldom_flagged(records):
    """A correct training is flagged with a probability of at most 0.05, the audit's confidence being 0.95.

    So of 20 seeds at most Binomial(20, 0.05) are, of which P[more than 4] = 0.0026.
    """
    assert len(records) == 20
    assert flagged(records) <= 4
    # With bounds of 0 throughout nothing would have been tested: canaries were seen, by most audits.
    assert sum(bound(record) > 0 for record in records) >= 10
    assert {record["attack"]["audit"]["facts"]["canaries"] for record in records} == {400}


@pytest.mark.parametrize("epsilon", [1.5, 2.0])
@pytest.mark.parametrize("defence", [NoiseOverBatch.name, ClipsBatch.name])
def test_a_mistake_in_dp_sgd_is_caught_on_digits(defence, epsilon, tmp_path):
    (record,) = audits(tmp_path, f"{defence}: {{epsilon: {epsilon}}}", **RECORDS)
    assert_caught(record, epsilon)


@pytest.mark.parametrize("defence", [NoiseOverBatch.name, ClipsBatch.name])
def test_a_mistake_in_dp_sgd_is_caught_on_x_rays(defence, data_root, tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_DATA", str(data_root))
    (record,) = audits(tmp_path, f"{defence}: {{epsilon: 1.5}}", XRAYS, **RECORDS)
    assert_caught(record, 1.5)


# The strongest case for the audit: all records in every step, of which there are few, and a larger claim.
CORRECT = {"clients": 1, "rounds": 1, "steps": 2, "batch": 1000, "canaries": 400, "width": 4}


def test_correct_dp_sgd_is_flagged_no_more_often_than_stated_on_digits(tmp_path):
    assert_seldom_flagged(audits(tmp_path, "dp-sgd: {epsilon: 4}", seeds=range(20), **CORRECT))


@pytest.mark.slow
def test_correct_dp_sgd_is_flagged_no_more_often_than_stated_on_x_rays(data_root, tmp_path, monkeypatch):
    monkeypatch.setenv("HARNESS_DATA", str(data_root))
    assert_seldom_flagged(audits(tmp_path, "dp-sgd: {epsilon: 4}", XRAYS, range(20), **CORRECT))


def test_correct_dp_sgd_with_small_batches_is_not_flagged(tmp_path):
    assert flagged(audits(tmp_path, "dp-sgd: {epsilon: 1.5}", seeds=range(3), **RECORDS)) == 0


def test_correct_dp_fedavg_is_not_flagged(tmp_path):
    records = audits(tmp_path, "dp-fedavg: {epsilon: 2}", seeds=range(4), **CLIENTS)
    assert flagged(records) == 0
    assert {record["guarantee"]["against"] for record in records} == {"recipients"}


@pytest.mark.parametrize("other", ["dp-fedavg", "local-dp"])
def test_correct_dp_sgd_is_not_flagged_beside_a_weak_guarantee_for_clients(other, tmp_path):
    stack = f"[dp-sgd: {{epsilon: 1}}, {other}: {{noise_multiplier: 0.01}}]"
    (record,) = audits(tmp_path, stack, **RECORDS)
    assert claim(record) <= 1
    assert record["guarantee"]["unit"] == "record"
    assert flagged([record]) == 0


def test_dp_fedavg_s_noise_divided_by_the_clients_is_caught(tmp_path):
    (record,) = audits(tmp_path, f"{NoiseOverClients.name}: {{epsilon: 2}}", **CLIENTS)
    assert_caught(record, 2.0)
    assert record["guarantee"]["unit"] == "client"


def test_correct_local_dp_is_not_flagged(tmp_path):
    records = audits(tmp_path, "local-dp: {epsilon: 2}", seeds=range(4), **CLIENTS)
    assert flagged(records) == 0
    assert {record["guarantee"]["neighbours"] for record in records} == {"replace"}


def test_local_dp_with_a_hundredth_of_the_noise_is_caught(tmp_path):
    (record,) = audits(tmp_path, f"{HundredthOfTheNoise.name}: {{epsilon: 2}}", **CLIENTS)
    assert_caught(record, 2.0)


def test_without_a_defence_there_is_a_bound_and_no_claim_to_violate(tmp_path):
    (record,) = audits(tmp_path, "none", **RECORDS)
    assert bound(record) > 2
    assert "audit-violation" not in record["flags"]
    audit = record["attack"]["audit"]
    assert audit["guarantee"] is record["guarantee"] is None
    assert audit["delta"] == 1e-5
    assert audit["facts"]["correct"] > 0.9 * audit["facts"]["guesses"]


def test_a_guarantee_that_is_broken_elsewhere_is_not_refuted_again(tmp_path):
    """With no noise there is no claim: the bound is high, and the record says `broken`, not `audit-violation`."""
    (record,) = audits(tmp_path, "dp-sgd: {noise_multiplier: 0}", **RECORDS)
    assert bound(record) > 2
    assert "audit-violation" not in record["flags"]
    assert not record["attack"]["audit"]["guarantee"]["holds"]
    assert math.isinf(record["attack"]["audit"]["guarantee"]["epsilon"])


def test_the_planted_defences_promise_what_the_correct_ones_do():
    """They differ from their parents in what they do, in nothing that they say."""
    for planted in (NoiseOverBatch, ClipsBatch, NoiseOverClients, HundredthOfTheNoise):
        (parent,) = planted.__bases__
        for method in ("prepare", "guarantee", "sampling", "check"):
            assert getattr(planted, method) is getattr(parent, method)
