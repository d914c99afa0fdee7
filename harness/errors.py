"""The errors a user is meant to read. Everything else is a bug and keeps its traceback."""

from __future__ import annotations

import difflib
import os
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.contracts.base import Plugin


class HarnessError(Exception):
    """Bad input, said in one message. The command line prints it and exits 2."""


class ScenarioError(HarnessError):
    """A scenario file that cannot be used; the message names file, line and column of every mistake."""


class PluginError(HarnessError, ValueError):
    """A plugin was asked for something it cannot do (unknown name, bad parameter, too few clients).

    details: (location, message, offending value) of each bad parameter, for callers that know
    which line of which file the parameters came from.
    """

    def __init__(self, message: str, details: Iterable[tuple[tuple[str | int, ...], str, Any]] = ()) -> None:
        super().__init__(message)
        self.details = list(details)


class NotApplicable(HarnessError):
    """This combination makes no sense; the message is the reason shown beside the cell.

    To be raised during planning, such as in `check` of an attack or a defence. Raised later, because of what one seed
    has trained, it fails the cell as any error does: a combination makes sense for all its seeds or for none.
    """


class StoreError(HarnessError):
    """The store is locked, damaged, or of another schema."""


class UnwritableStore(StoreError):
    """Nothing can be written into the store: a run that went on would lose what it computes."""


def from_interrupt(error: BaseException) -> bool:
    """Whether an error is a Ctrl-C, or was caused by one.

    Native code, such as pydantic's, turns an interrupt that arrives inside it into an error of its own.
    """
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, KeyboardInterrupt):
        seen = seen.__cause__
    return seen is not None


@contextmanager
def blamed(plugin: Plugin) -> Iterator[None]:
    """Marks an error raised inside as this plugin's, for its record, unless it is already marked as another's."""
    try:
        yield
    except BaseException as error:
        if not hasattr(error, "raised_by"):
            with suppress(AttributeError):  # an error with __slots__
                error.raised_by = (plugin.kind, plugin.name)  # type: ignore[attr-defined]
        raise


def describe_error(error: BaseException) -> dict[str, str]:
    """An error as a record keeps it: its message begins with the plugin that raised it unless it names that already."""
    kind, name = getattr(error, "raised_by", ("", ""))
    try:
        message = str(error)
    except Exception as another:  # the text of a plugin's own error comes from the plugin's code
        message = f"{type(error).__name__}, whose text failed with {type(another).__name__}"
    return {
        "type": type(error).__name__,
        "message": f"{kind} {name}: {message}" if name not in message else message,
        "traceback": "".join(traceback.format_exception(error)),
    }


def place_of(error: Mapping[str, str]) -> str | None:
    """`plugins/raises.py:6`: where a described error was raised, in the deepest file that is not a library's.

    None for an error meant for users, whose message says what is wrong, and where there is no such file.
    """
    if error.get("type") in _readable(HarnessError):
        return None
    frames = re.findall(r'^  File "(.+)", line (\d+)', error.get("traceback", ""), re.MULTILINE)
    own = [frame for frame in frames if "site-packages" not in frame[0] and not frame[0].startswith("<")]
    if not own:
        return None
    file, number = own[-1]
    here = os.path.relpath(file)
    return f"{file if here.startswith('..') else here}:{number}"


def _readable(error: type[HarnessError]) -> set[str]:
    return {error.__name__}.union(*map(_readable, error.__subclasses__()))


def did_you_mean(name: str, choices: Iterable[str], all_below: int = 12) -> str:
    """A closing sentence about an unknown name: the nearest valid names, else all valid ones where they are few."""
    known = sorted(set(choices))
    if near := nearest(name, known):
        return near
    if not known:
        return "none is available"
    if len(known) <= all_below:
        return "valid: " + ", ".join(known)
    return f"{len(known)} are available"


def nearest(name: str, choices: Iterable[str]) -> str:
    """`did you mean ...?` where valid names are close to an unknown one, else nothing."""
    near = close_names(name, choices)
    return f"did you mean {' or '.join(repr(c) for c in near)}?" if near else ""


def close_names(name: str, choices: Iterable[str]) -> list[str]:
    """The valid names that are close to an unknown one, the closest first; three at most."""
    # Case is ignored: papers write DP-SGD for dp-sgd.
    known = {choice.casefold(): choice for choice in sorted(set(choices))}
    return [known[found] for found in difflib.get_close_matches(name.casefold(), known, n=3, cutoff=0.55)]


def misspelt(unknown: Iterable[str], missing: Iterable[str], choices: Iterable[str]) -> set[str]:
    """The missing names for which an unknown name stands, as the suggestion for that one says already."""
    known = list(choices)
    meant = {near[0] for name in unknown if (near := close_names(name, known))}
    return meant.intersection(missing)


def quoted(name: object) -> str:
    """A name in quotes, as a message shows it: a very long one is cut."""
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-1]}"


def with_file(file: object, message: object) -> str:
    """A message about a file with the file's name in front, unless it begins with `file:` already."""
    return str(message) if str(message).startswith(f"{file}:") else f"{file}: {message}"
