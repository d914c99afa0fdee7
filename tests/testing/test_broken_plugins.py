"""Every planted fault is found by the check meant for it, and by no other; the correct twins pass."""

from __future__ import annotations

import broken
import pytest
import sound

from harness.testing import check_plugin


@pytest.mark.parametrize("plugin", sound.SOUND, ids=lambda plugin: plugin.name)
def test_correct_twin_passes(plugin):
    report = check_plugin(plugin)
    assert [(r.check, r.message) for r in report.results if r.status != "passed"] == []
    assert len(report.results) >= 15


@pytest.mark.parametrize(
    ("plugin", "check", "words"), broken.FAULTS, ids=[f"{p.name}-{check}" for p, check, _ in broken.FAULTS]
)
def test_fault_is_caught_by_its_check_alone(plugin, check, words):
    report = check_plugin(plugin)
    failed = {r.check: r.message for r in report.results if r.status == "failed"}
    assert list(failed) == [check], failed
    assert words in failed[check]
    assert not report.passed


def test_faults_cover_every_kind():
    from harness.kinds import KINDS

    assert {plugin.kind for plugin, _, _ in broken.FAULTS} == set(KINDS)
    assert len(broken.FAULTS) >= 60
