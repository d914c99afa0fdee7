"""The checks as pytest cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from harness.contracts.base import Plugin
from harness.testing.core import Check, CheckFailed, checks_of

Expected = Mapping[str, str] | Callable[[Any], Mapping[str, str]]


def parametrize_with_checks(
    plugins: Iterable[Plugin | type[Plugin]], *, expected_failures: Expected | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A pytest decorator: the test function is called once for each check of each plugin, as `check`.

        @parametrize_with_checks([MyRule, MyRule(f=2)], expected_failures={"several_rounds": "no state (paper, 3)"})
        def test_conforms(check):
            check()

    plugins: classes are tried with their defaults, instances as they are. expected_failures: name of a check -> why
    it cannot pass, or a function plugin -> such a mapping. These are strict: a check that passes after all fails the
    test. Skipped checks are skipped, with the reason. Raises ValueError where such a function names what is no check of
    its plugin; names in a mapping need not be checks of every plugin.
    """
    import pytest

    from harness.testing.core import CheckSkipped

    cases = []
    for number, plugin in enumerate(plugins):
        wanted = expected_failures(plugin) if callable(expected_failures) else expected_failures or {}
        checks = checks_of(plugin)
        for check in checks:
            marks = []
            if check.name in wanted:
                marks = [pytest.mark.xfail(reason=wanted[check.name], strict=True, raises=CheckFailed)]
            cases.append(pytest.param(check, marks=marks, id=f"{_label(plugin, number)}-{check.name}"))
        unknown = set(wanted) - {check.name for check in checks}
        if callable(expected_failures) and unknown:
            raise ValueError(
                f"{_label(plugin, number)} has no check {min(unknown)!r} that could be expected to fail"
            )

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        import functools

        @functools.wraps(function)
        def test(check: Check) -> Any:
            try:
                return function(check)
            except CheckSkipped as reason:
                pytest.skip(str(reason))

        return pytest.mark.parametrize("check", cases)(test)

    return decorate


def _label(plugin: Plugin | type[Plugin], number: int) -> str:
    cls = plugin if isinstance(plugin, type) else type(plugin)
    name = f"{cls.kind}-{cls.name}"
    return name if isinstance(plugin, type) else f"{name}({number})"
