"""The names in a new package, all derived from the one that its author gives."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution

from harness.errors import HarnessError

# Device names that Windows reserves, whatever the file's suffix.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}
_LONGEST = 40


@dataclass(frozen=True)
class Names:
    """name: of the distribution, its folder and the plugin, normalised as by pip; module: to import; cls: the class."""

    name: str
    module: str
    cls: str


def names_of(given: str) -> Names:
    """`My_Rule` -> my-rule, my_rule, MyRule. Raises HarnessError where it cannot be a package's name."""
    # PEP 508: letters, digits, '-', '_' and '.', the first and last a letter or digit.
    if not re.fullmatch(r"[A-Za-z0-9]|[A-Za-z0-9][A-Za-z0-9._-]*[A-Za-z0-9]", given):
        raise HarnessError(
            f"{given!r} cannot be the name of a package: use letters, digits and '-', the first and last "
            "a letter or a digit, such as my-rule"
        )
    name = re.sub(r"[-_.]+", "-", given).lower()
    module = name.replace("-", "_")
    if len(name) > _LONGEST:
        raise HarnessError(f"{given!r} is longer than {_LONGEST} characters")
    if module[0].isdigit():
        raise HarnessError(f"{given!r} cannot be imported: begin with a letter, such as rule-{name}")
    if keyword.iskeyword(module) or module in sys.stdlib_module_names or module in _DEVICES:
        raise HarnessError(f"{given!r} is taken by Python or the system; say more, such as {name}-rule")
    installed = importlib.util.find_spec(module)
    if installed is not None and installed.origin is not None:  # a folder without __init__.py has none
        raise HarnessError(
            f"a module {module!r} is installed already and would be hidden; choose another name"
        )
    if _is_installed(name):
        raise HarnessError(
            f"a package {name!r} is installed already and would be replaced; choose another name, such as {name}-rule"
        )
    return Names(name, module, "".join(part.capitalize() for part in module.split("_")))


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
