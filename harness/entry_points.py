"""Which installed packages offer plugins, found without importing any of them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
from typing import NamedTuple

GROUP = "harness"
BUILTIN = "psr-harness"


class Offer(NamedTuple):
    """An entry point of the group `harness`, with the normalised name and the version of the package that has it."""

    distribution: str
    version: str
    entry_point: importlib.metadata.EntryPoint


def offers() -> list[Offer]:
    """The offers of all installed packages, built-ins first.

    Where HARNESS_LOAD_PLUGINS is set: of the built-ins and of the packages that it names, separated by commas.
    """
    only = os.environ.get("HARNESS_LOAD_PLUGINS")
    wanted = None if only is None else {normalized(name.strip()) for name in only.split(",")}
    found: dict[tuple[str, str], Offer] = {}
    for entry_point in importlib.metadata.entry_points(group=GROUP):
        package = entry_point.dist
        distribution = normalized(package.name if package else "unknown")
        if wanted is None or distribution == BUILTIN or distribution in wanted:
            # An editable install may be seen twice: the first on the path is the one Python imports.
            offer = Offer(distribution, package.version if package else "0", entry_point)
            found.setdefault((distribution, entry_point.name), offer)
    return [found[key] for key in sorted(found, key=lambda key: (key[0] != BUILTIN, key))]


def others_offer() -> bool:
    """Whether any package besides this one has plugins."""
    return any(offer.distribution != BUILTIN for offer in offers())


def from_disk(distribution: str, version: str) -> bool:
    """Whether this version of a package is installed here, and from a file or folder of this machine.

    An editable install counts as one. Installers note where they took a package from, unless it was from an index.
    conda's packages keep the note of the machine that built them, which says nothing.
    """
    try:
        package = importlib.metadata.distribution(distribution)
        origin = json.loads(package.read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):  # no such package, or a damaged note
        return False
    if package.version != version or (package.read_text("INSTALLER") or "").strip() == "conda":
        return False
    return isinstance(origin, dict) and str(origin.get("url", "")).startswith("file:")


def normalized(distribution: str) -> str:
    """A distribution's name as PyPI compares it: My_Plugin, my.plugin and my-plugin are one."""
    return re.sub(r"[-_.]+", "-", distribution).lower()
