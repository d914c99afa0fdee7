"""The built-in plugins, loaded through the same entry point and hooks as anybody else's.

Every module of a kind's folder lists its plugin classes in PLUGINS; this file registers them all.
Modules whose name starts with an underscore are helpers of their folder and are not looked at; what several kinds
share stands beside the folders.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from harness.api import Plugin, hookimpl


@hookimpl
def harness_register(register: Callable[[type[Plugin]], None]) -> None:
    for module in pkgutil.walk_packages(__path__, f"{__name__}."):
        if module.name.rpartition(".")[2].startswith("_"):
            continue  # helpers, which may import torch at the top
        for plugin in getattr(importlib.import_module(module.name), "PLUGINS", ()):
            register(plugin)
