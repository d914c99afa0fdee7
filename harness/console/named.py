"""Finds the plugins that typed words mean."""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import PluginError, did_you_mean

if TYPE_CHECKING:
    from harness.registry import Entry


def find(words: list[str]) -> Entry:
    """The plugin meant by `NAME`, `package/NAME` or `KIND NAME`. Raises PluginError, which says what there is."""
    from harness.kinds import KINDS, kind_of
    from harness.registry import registry

    loaded = registry()
    if len(words) > 2:
        raise PluginError(f"one plugin at a time: NAME, or KIND NAME, not {' '.join(words)!r}")
    if len(words) == 2:
        return loaded.find(kind_of(words[0])[0], words[1])
    name = words[0]
    short = name.rpartition("/")[2]
    kinds = [kind for kind in KINDS if short in loaded.names(kind)]
    if len(kinds) > 1:
        options = " or ".join(f"`{kind} {name}`" for kind in kinds)
        raise PluginError(f"{name!r} is of several kinds; say {options}")
    if kinds:
        return loaded.find(kinds[0], name)
    if kind_of(name)[0] in KINDS:
        raise PluginError(
            f"{name!r} is a kind of plugin: say which one, `{name} NAME`; see `harness list {name}`"
        )
    near = did_you_mean(short, {*KINDS, *(known for kind in KINDS for known in loaded.names(kind))})
    note = loaded.disabled_note(short, name.rpartition("/")[0])
    raise PluginError(f"unknown plugin {name!r}; {near}{note}{_lies_here(short)}")


def find_all(words: list[str]) -> list[Entry]:
    """The plugins meant by several of these in a row. Raises PluginError, which says what there is."""
    from harness.kinds import KINDS, kind_of

    left, found = list(words), []
    while left:
        count = 1 + (kind_of(left[0])[0] in KINDS and len(left) > 1)
        found.append(find(left[:count]))
        left = left[count:]
    return found


def _lies_here(name: str) -> str:
    """How to install the plugin of that name if its package, such as one by `plugin new`, lies here uninstalled."""
    for folder in (Path(), Path(name)):
        try:
            project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            declared = project["entry-points"]["harness"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if name in declared:
            return f"; its package is here, and not installed: python -m pip install -e {shlex.quote(str(folder))}"
    return ""
