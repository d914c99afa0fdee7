"""With --json, standard output holds one JSON value: what plugins print meanwhile goes to standard error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TextIO

import typer

_own: list[TextIO] = []  # standard output as it was, the latest last
_wanted = False  # whether the command that runs, or ran last, was asked for JSON, and has not printed it


def value_is_due() -> bool:
    """Whether a command was asked for one JSON value and has ended without it."""
    return _wanted


def expect_value(due: bool) -> None:
    """Sets what `value_is_due` answers from here on."""
    global _wanted
    _wanted = due


def own_output() -> TextIO:
    """Where the command's own value goes."""
    return _own[-1] if _own else sys.stdout


@contextlib.contextmanager
def prints_on_stderr() -> Iterator[None]:
    """Inside, `print` and the like write to standard error; `own_output` is what standard output was."""
    _own.append(own_output())
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _own.pop()


def for_machines(context: typer.Context, wanted: bool) -> bool:
    """The callback of --json: prints go to stderr until the command ends.

    It is called before anything of a plugin is imported, as the option is eager.
    """
    if wanted and not context.resilient_parsing:
        stack = contextlib.ExitStack()
        stack.enter_context(prints_on_stderr())
        context.call_on_close(stack.close)
        expect_value(True)
    return wanted
