"""A Flower app as a folder: pyproject.toml and a package with the two apps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import __version__

CONFIGURED = """[build-system]
requires = ["hatchling>=1.25"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "1.0.0"
description = "{description}"
license = "Apache-2.0"
dependencies = [
{dependencies}
]

[tool.hatch.build.targets.wheel]
packages = ["{package}"]

[tool.flwr.app]
publisher = "psr-harness"

[tool.flwr.app.components]
serverapp = "{package}.server_app:app"
clientapp = "{package}.client_app:app"

[tool.flwr.app.config]
{config}
"""


def write_app(
    folder: Path,
    name: str,
    description: str,
    server: str,
    client: str,
    config: dict[str, Any],
    requirements: Sequence[str] = (),
) -> Path:
    """Write the app and return its package's folder. server, client: the sources of the two modules.

    config: the run configuration, plain values by name. requirements: what pip installs beside the harness.
    """
    package = name.replace("-", "_")
    (folder / package).mkdir(parents=True)
    text = CONFIGURED.format(
        name=name,
        package=package,
        description=description.replace('"', "'"),
        dependencies="\n".join(
            f"  {json.dumps(wanted)}," for wanted in (f"psr-harness[flower]>={__version__}", *requirements)
        ),
        config="\n".join(f"{key} = {json.dumps(value)}" for key, value in config.items()),
    )
    (folder / "pyproject.toml").write_text(text)
    for module, source in (("__init__", ""), ("server_app", server), ("client_app", client)):
        (folder / package / f"{module}.py").write_text(source)
    return folder / package
