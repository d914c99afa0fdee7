"""All checks of a plugin, run one after another."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from harness.contracts.base import Plugin
from harness.testing.core import CheckFailed, CheckSkipped, checks_of, family_of


@dataclass(frozen=True)
class Result:
    """What came of a check. status: passed, failed or skipped; message: what to change, or why it was skipped."""

    check: str
    description: str
    status: str
    message: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """The results for one plugin."""

    kind: str
    family: str
    name: str
    results: tuple[Result, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.count("failed")

    def count(self, status: str) -> int:
        """How many checks passed, failed or were skipped."""
        return sum(result.status == status for result in self.results)


def check_plugin(
    plugin: Plugin | type[Plugin], progress: Callable[[int, int, str], None] = lambda done, total, name: None
) -> Report:
    """Runs every check of a plugin, class or instance. progress(done, total, name of the next check)."""
    results = []
    checks = checks_of(plugin)
    for number, check in enumerate(checks):
        progress(number, len(checks), check.name)
        started = time.perf_counter()
        status, message = "passed", ""
        try:
            check()
        except CheckFailed as error:
            status, message = "failed", str(error)
        except CheckSkipped as error:
            status, message = "skipped", str(error)
        except Exception as error:  # from the plugin, where it may raise nothing
            where = traceback.extract_tb(error.__traceback__)[-1]
            status = "failed"
            message = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
        results.append(Result(check.name, check.description, status, message, time.perf_counter() - started))
    progress(len(checks), len(checks), "")
    cls = plugin if isinstance(plugin, type) else type(plugin)
    return Report(cls.kind, family_of(cls), cls.name, tuple(results))
