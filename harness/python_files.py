"""The files of a Python package, and what sources import."""

from __future__ import annotations

import ast
import os
import warnings
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

BYTECODE = (".pyc", ".pyo")
CODE = (".py", *EXTENSION_SUFFIXES)


def files_in(roots: tuple[Path, ...]) -> Iterator[tuple[str, str]]:
    """(name relative to its root, path) of each file but bytecode and hidden files, which editors and tools leave."""
    for root in roots:
        if not root.is_dir():
            yield root.name, str(root)
            continue
        start = len(str(root)) + 1
        # Strings, not Paths, for speed: this runs at every stage.
        for folder, folders, names in os.walk(root):
            folders[:] = [f for f in folders if f != "__pycache__" and not f.startswith(".")]
            for name in names:
                if not name.startswith(".") and not name.endswith(BYTECODE):
                    path = f"{folder}{os.sep}{name}"
                    yield path[start:].replace(os.sep, "/"), path


def code_files(name: str, place: Path) -> Iterator[tuple[str, Path]]:
    """(module, file) of a module, or of every module in a package's folder."""
    if not place.is_dir():
        yield name, place
        return
    for relative, file in sorted(files_in((place,))):
        if relative.endswith(CODE):
            parts = [name, *relative.partition(".")[0].split("/")]
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), Path(file)


def package_of(module: str, file: Path) -> str:
    """The package that relative imports of a module start from."""
    return module if file.name == "__init__.py" else module.rpartition(".")[0]


def imports_of(source: bytes, package: str) -> Iterator[str]:
    """Dotted names that a source imports, anywhere in it. `from a import b` gives a.b, `import_module("a")` a."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # importing it will say what is wrong
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            if not node.level or (package and above):
                base = ".".join([*above, *([node.module] if node.module else [])])
                yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            name = node.args[0].value
            if called in ("import_module", "__import__") and isinstance(name, str):
                yield name
