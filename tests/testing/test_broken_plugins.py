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


def test_what_else_is_installed_decides_no_verdict(monkeypatch):
    from types import SimpleNamespace

    from harness.api import hookimpl
    from harness.registry import Registry
    from harness.testing.stacks import partners

    installed = Registry()
    installed.load_entry_points()
    other = type("AnyPrivate", (sound.Private,), {"__doc__": "Sorts first.", "name": "a-private"})
    module = SimpleNamespace(harness_register=hookimpl(lambda register: register(other)))
    installed.add(module, "other", "other-package")
    assert not [d for d in installed.disabled if d.distribution == "other-package"]
    monkeypatch.setattr("harness.registry.registry", lambda: installed)
    found = partners.__wrapped__()
    assert len(found) == 2
    assert {installed.entry_of(defence).distribution for defence in found.values()} == {"psr-harness"}


def test_faults_cover_every_kind():
    from harness.kinds import KINDS

    assert {plugin.kind for plugin, _, _ in broken.FAULTS} == set(KINDS)
    assert len(broken.FAULTS) >= 60
