"""Writes a new plugin package: a small method that works, its tests, a scenario, and what publishes it."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from harness._version import API_VERSION, __version__
from harness.errors import HarnessError, did_you_mean
from harness.kinds import SORTS
from harness.plugin_kit.names import Names, names_of

if TYPE_CHECKING:
    from jinja2 import Environment

# What can be made -> the kind that `harness list` files it under.
KINDS = {
    "dataset": "dataset",
    "partitioner": "partitioner",
    "model": "model",
    "defence": "defence",
    "aggregator": "aggregator",
    **{sort: kind for sort, (kind, _) in SORTS.items()},
    "metric": "metric",
    "tracker": "tracker",
}
TEMPLATES = Path(__file__).parent / "templates"


def scaffold(kind: str, name: str, out: Path) -> Path:
    """Writes the package `out`/name and returns its folder; all of it or nothing.

    Raises HarnessError for an unknown kind, a name that cannot be a package's, and a folder that exists already.
    """
    if kind not in KINDS:
        sorts = [known for known in KINDS if known.endswith(f"-{kind}")]
        near = f"say which: {', '.join(sorts)}" if sorts else did_you_mean(kind, KINDS, all_below=len(KINDS))
        raise HarnessError(f"unknown kind {kind!r}; {near}")
    names = names_of(name)
    if not out.is_dir():
        raise HarnessError(f"--out {out}: there is no such folder")
    target = out / names.name
    if target.exists() or target.is_symlink():
        raise HarnessError(f"{target} exists already; choose another name or --out")
    files = dict(render(kind, names))
    try:
        # Written beside its final place, so that one rename moves it there.
        with tempfile.TemporaryDirectory(dir=out, prefix=".new-") as made:
            for path, text in files.items():
                file = Path(made, names.name, path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8", newline="\n")
            Path(made, names.name).rename(target)
    except OSError as error:
        raise HarnessError(f"{target} cannot be written: {error.strerror or error}") from error
    return target


def render(kind: str, names: Names) -> Iterator[tuple[PurePosixPath, str]]:
    """(path in the package, text) of every file."""
    templates = _templates()
    values = {
        "kind": kind.replace("-", " "),
        "article": "An" if kind[0] in "aeiou" else "A",
        "harness_kind": KINDS[kind],
        "name": names.name,
        "address": address(kind, names),
        "module": names.module,
        "cls": names.cls,
        "api": API_VERSION,
        "harness_version": __version__,
    }
    text = templates.get_template(f"{kind}/plugin.py.j2").render(values)
    values["summary"] = _first_sentence(text)

    def of(*parts: str) -> str:
        return "".join(templates.get_template(part).render(values) for part in parts)

    yield PurePosixPath("src", names.module, "__init__.py"), text + of("package/hook.py.j2")
    yield PurePosixPath("src", names.module, "py.typed"), ""
    yield PurePosixPath("tests", f"test_{names.module}.py"), of(f"{kind}/test.py.j2")
    yield PurePosixPath("scenario.yaml"), of("package/scenario.yaml.j2", f"{kind}/scenario.yaml.j2")
    yield PurePosixPath("pyproject.toml"), of("package/pyproject.toml.j2")
    yield PurePosixPath("README.md"), of("package/README.md.j2")
    yield PurePosixPath(".github", "workflows", "ci.yml"), of("package/ci.yml.j2")
    yield PurePosixPath(".gitignore"), of("package/gitignore.j2")


def address(kind: str, names: Names) -> str:
    """What a scenario will call the plugin: its name, after its package's where that name is taken already."""
    from harness.registry import registry

    return f"{names.name}/{names.name}" if names.name in registry().names(KINDS[kind]) else names.name


def next_commands(folder: Path, kind: str, names: Names) -> list[str]:
    """The commands to type next, in the folder in which the package was made."""
    return [
        f"cd {shlex.quote(str(folder))}",
        'python -m pip install -e ".[dev]"',
        f"harness list {KINDS[kind]}",
        f"harness plugin check {address(kind, names)}",
        "python -m pytest",
        "harness run scenario.yaml",
    ]


def _first_sentence(source: str) -> str:
    """The module's docstring, which is one sentence."""
    return source.split('"""')[1].strip()


def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # What is rendered is Python, YAML and TOML; names are checked before, so that nothing needs escaping.
    return Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True
    )
