"""What decides numbers besides settings and seeds, as JSON values: the code of plugins, the numeric libraries."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from pydantic import SecretBytes, SecretStr
from pydantic_core import to_jsonable_python

from harness.contracts.base import Plugin
from harness.contracts.data import Dataset
from harness.entry_points import normalized
from harness.errors import HarnessError, PluginError
from harness.nesting import members, plugins_in
from harness.registry import registry

# Libraries that the engine and plugins of any kind compute with: their versions are in every key.
GENERAL = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pillow", "opacus", "torchattacks")
# Libraries that few methods use: their versions are in the keys of stages whose plugins name them in `requires`.
SPECIAL = ("torchao", "torch-pruning", "dp-accounting")
# Module -> distribution, where their names differ.
DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "cv2": "opencv-python",
}
# Accountant that a plugin asks for -> the library that the engine then computes with.
ACCOUNTANTS = {"pld": "dp-accounting"}

Fingerprint = Callable[[Dataset], str | None]


def identity_of(plugin: Plugin, fingerprint: Fingerprint | None = None) -> dict[str, Any]:
    """What decides a plugin's behaviour: name, parameters, package, version, source, and libraries that it names.

    Plugins nested in it, at any depth, stand among the parameters as identities of their own. fingerprint: gives that
    of a dataset's content, by which datasets are then identified instead of by their location. Raises PluginError where
    the JSON of the parameters leaves out something that they hold.
    """
    entry = registry().entry_of(plugin)
    values = {name: getattr(plugin, name) for name in type(plugin).model_fields}
    holding = {name for name, value in values.items() if any(plugins_in(value))}
    hidden: dict[str, Any] = {}
    if isinstance(plugin, Dataset) and fingerprint is not None:
        hidden = dict.fromkeys(plugin.locations)
        content: dict[str, Any] = {"content": fingerprint(plugin)}
    else:
        content = {}
    plain = plugin.model_dump(mode="json", exclude={*holding, *hidden})
    for name, written in plain.items():
        lost = _lost(values.get(name), written, name)
        if lost is not None:
            raise PluginError(
                f"{plugin.kind} {plugin.name!r}: {lost} is left out where its parameters are written, so that scores "
                "of two of its values could not be told apart"
            )
    held = {name: _described(values[name], fingerprint) for name in sorted(holding - hidden.keys())}
    return {
        "kind": plugin.kind,
        "name": plugin.name,
        "parameters": plain | held,
        "distribution": entry.distribution,
        "version": entry.version,
        "source": entry.source_hash,
        "libraries": libraries_of(plugin),
        **content,
    }


def _lost(value: Any, written: Any, where: str) -> str | None:
    """Where a value holds something that its JSON leaves out; None where nothing is left out.

    JSON leaves out secrets, fields with `exclude`, and fields of a subclass whose base the parameter is declared as.
    """
    if isinstance(value, SecretStr | SecretBytes):
        return where
    inner = members(value)
    if isinstance(inner, dict) and isinstance(written, dict):
        if not written.keys() <= inner.keys():
            return None  # the value has a JSON form of its own
        for name, item in inner.items():
            if name not in written:
                return f"{where}.{name}"
            if (lost := _lost(item, written[name], f"{where}.{name}")) is not None:
                return lost
    elif isinstance(inner, list) and isinstance(written, list) and not isinstance(value, set | frozenset):
        for number, pair in enumerate(zip(inner, written, strict=False)):
            if (lost := _lost(*pair, f"{where}[{number}]")) is not None:
                return lost
    return None


def _described(value: Any, fingerprint: Fingerprint | None) -> Any:
    """A value that holds plugins, as JSON."""
    if isinstance(value, Plugin):
        return identity_of(value, fingerprint)
    inner = members(value)
    if inner is None:
        return to_jsonable_python(value)
    if isinstance(inner, dict):
        return {name: _described(item, fingerprint) for name, item in inner.items()}
    return [_described(item, fingerprint) for item in inner]


def identities(plugins: Sequence[Plugin], fingerprint: Fingerprint | None = None) -> list[dict[str, Any]]:
    """identity_of each."""
    return [identity_of(p, fingerprint) for p in plugins]


def libraries_of(plugin: Plugin) -> dict[str, str]:
    """Versions of the libraries that a plugin names in `requires`, and of the one that its accountant needs."""
    modules = dict.fromkeys(name.partition(".")[0] for name in plugin.requires)
    names = [DISTRIBUTIONS.get(module, normalized(module)) for module in modules]
    names += [ACCOUNTANTS[asked] for asked in (getattr(plugin, "accountant", None),) if asked in ACCOUNTANTS]
    return {name: library_version(name) for name in sorted(names)}


@cache
def library_version(name: str) -> str:
    """The installed version of a distribution, or `absent`."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def general_versions() -> dict[str, str]:
    """Versions of the libraries that any number may depend on."""
    return {name: library_version(name) for name in GENERAL}


@cache
def library_versions() -> dict[str, str]:
    """Versions of all libraries that are known to decide numbers, for provenance."""
    return general_versions() | {name: library_version(name) for name in SPECIAL}


@cache
def engine_version(engine: str) -> str:
    """The installed version of an engine that is not the harness's own. Raises HarnessError where there is none."""
    try:
        return importlib.metadata.version({"flower": "flwr"}[engine])
    except importlib.metadata.PackageNotFoundError:
        raise HarnessError(
            f"engine: {engine} needs an extra that is not installed: pip install 'psr-harness[{engine}]'"
        ) from None


def digest(value: Any) -> str:
    """sha256 of canonical JSON."""
    return sha256(canonical(value))


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values, equal texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def sha256(text: str) -> str:
    """The hash of a text, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()
