"""The hash of a package's code, and what is noticed when its files change."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest

from harness import source_code
from harness.errors import HarnessError
from harness.source_code import check_unchanged, remember, source_hash

NAME = "harness_test_package"


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package that can be imported, and is forgotten afterwards."""
    folder = tmp_path / NAME
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("value = 1\n")
    (folder / "inner" / "table.json").write_text("[1, 2]")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield folder
    for name in [name for name in sys.modules if name.startswith(NAME)]:
        del sys.modules[name]
    source_code._PACKAGES.pop(NAME, None)


def imported() -> str:
    """The hash that the package has for a process that imports it now."""
    sys.modules.pop(NAME, None)
    remember(NAME)
    importlib.import_module(NAME)
    return source_hash("some-package", NAME)


def test_it_covers_every_file_that_may_decide_a_number(package):
    hashes = [imported()]
    (package / "inner" / "table.json").write_text("[1, 3]")
    hashes.append(imported())
    (package / "inner" / "table.json").rename(package / "inner" / "other.json")
    hashes.append(imported())
    (package / "weights.bin").write_bytes(b"\0\1")
    hashes.append(imported())
    assert len(set(hashes)) == 4
    assert source_hash("another-package", NAME) != hashes[-1]


def test_bytecode_and_what_tools_leave_behind_is_no_part_of_it(package):
    before = imported()
    (package / "__pycache__").mkdir(exist_ok=True)
    (package / "__pycache__" / "x.txt").write_text("x")
    (package / "old.pyc").write_bytes(b"x")
    (package / ".x.py.swp").write_bytes(b"x")
    assert imported() == before


@pytest.mark.parametrize("hashed", [True, False], ids=["hashed before", "never hashed"])
def test_an_edit_after_the_import_is_noticed(package, hashed):
    remember(NAME)
    importlib.import_module(NAME)
    if hashed:
        known = source_hash("some-package", NAME)
    (package / "__init__.py").write_text("value = 2\n")
    with pytest.raises(
        HarnessError, match=r"some-package changed after this process imported it .*__init__.py"
    ):
        check_unchanged("some-package", NAME)
    if hashed:  # what runs is still what it was
        assert source_hash("some-package", NAME) == known
    else:
        with pytest.raises(HarnessError, match="start Python, or the notebook's kernel, again"):
            source_hash("some-package", NAME)


def test_a_file_that_was_only_touched_or_put_back_is_no_edit(package):
    known = imported()
    os.utime(package / "__init__.py", (1, 1))
    check_unchanged("some-package", NAME)
    (package / "__init__.py").write_text("value = 2\n")
    with pytest.raises(HarnessError):
        check_unchanged("some-package", NAME)
    (package / "__init__.py").write_text("value = 1\n")
    check_unchanged("some-package", NAME)
    assert source_hash("some-package", NAME) == known


def test_listing_plugins_hashes_nothing(monkeypatch):
    import harness
    from harness.registry import Registry

    monkeypatch.setattr(source_code, "_digest", lambda _: pytest.fail("hashed"))
    Registry().load_entry_points()
    assert harness.plugins("aggregator")
