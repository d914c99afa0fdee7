"""Conformance checks for plugins: what the engine relies on, asked of a plugin in plain words.

    from harness.testing import parametrize_with_checks

    @parametrize_with_checks([MyRule])
    def test_conforms(check):
        check()

`harness plugin check NAME` runs the same checks. A plugin is judged through its contract (harness.contracts) alone.
"""

from __future__ import annotations

from harness.testing.core import Check, CheckFailed, CheckSkipped, checks_of
from harness.testing.pytest_support import parametrize_with_checks
from harness.testing.report import Report, Result, check_plugin

__all__ = [
    "Check",
    "CheckFailed",
    "CheckSkipped",
    "Report",
    "Result",
    "check_plugin",
    "checks_of",
    "parametrize_with_checks",
]
