"""The hash of a package's code, and what is noticed when its files change."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import time
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
    forget()


def forget() -> None:
    """What a new process does not know."""
    for name in [name for name in sys.modules if name.startswith(NAME)]:
        del sys.modules[name]
    for name in [name for name in source_code._PACKAGES if name.startswith(NAME)]:
        del source_code._PACKAGES[name]
    source_code._installed_in.cache_clear()
    importlib.invalidate_caches()


def imported() -> str:
    """The hash that the package has for a process that imports it now."""
    forget()
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


# more than one top-level package ------------------------------------------------------------------

CORE = f"{NAME}_core"


def metadata(site: Path, **files: str) -> None:
    """What an installer writes beside some-package."""
    folder = site / "some_package-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: some-package\nVersion: 1.0\n")
    for name, text in files.items():
        (folder / name.replace("_txt", ".txt")).write_text(text)


@pytest.fixture
def core(package) -> Path:
    """A second package of the same distribution."""
    folder = package.parent / CORE
    folder.mkdir()
    (folder / "__init__.py").write_text("FACTOR = 1.0\n")
    (folder / "table.json").write_text("[1]")
    return folder


def hashes_of_edits(*files: Path) -> list[str]:
    """Before, and after each file has got one more line."""
    found = [imported()]
    for file in files:
        file.write_text(file.read_text() + "\n")
        found.append(imported())
    return found


@pytest.mark.parametrize(
    "files",
    [
        {"RECORD": f"{NAME}/__init__.py,,\n{CORE}/__init__.py,sha256=x,13\n../../bin/tool.py,,\n"},
        {"top_level_txt": f"{NAME}\n{CORE}\n"},
        {"entry_points_txt": f"[harness]\nmine = {CORE}.plugins\n"},
    ],
    ids=["RECORD", "top_level.txt", "entry point"],
)
def test_it_covers_all_that_the_distribution_installs(files, core):
    metadata(core.parent, **files)
    found = hashes_of_edits(core / "__init__.py", core / "table.json")
    assert len(set(found)) == 3
    (core / "__init__.py").write_text("FACTOR = 1.0\n")
    (core / "table.json").write_text("[1]")
    assert imported() == found[0]


IMPORTS = {
    "at the top": f"import {CORE}",
    "from": f"from {CORE} import FACTOR",
    "when it is called": f"def f():\n    from {CORE} import FACTOR",
    "by a text": f"import importlib\nimportlib.import_module('{CORE}')",
    "by another one": f"import {NAME}_between",
}


@pytest.mark.parametrize("case", IMPORTS)
def test_it_covers_what_an_editable_package_imports_beside_it(case, package, core):
    """Whose metadata name no module at all."""
    metadata(core.parent, RECORD="_some_package.pth,,\nsome_package-1.0.dist-info/METADATA,,\n")
    (core.parent / f"{NAME}_between.py").write_text(f"import {CORE}\n")
    (core.parent / f"{NAME}_unused.py").write_text("x = 1\n")
    (package / "__init__.py").write_text(IMPORTS[case] + "\n")
    found = hashes_of_edits(core.parent / f"{NAME}_unused.py", core / "__init__.py", core / "table.json")
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_editable_or_not_the_hash_is_the_same(package, core):
    (package / "__init__.py").write_text(f"import {CORE}\n")
    metadata(core.parent, RECORD=f"{NAME}/__init__.py,,\n{CORE}/__init__.py,,\n")
    installed = imported()
    finder = core.parent / "__editable___some_package_1_0_finder.py"
    finder.write_text(f"MAPPING = {{'{NAME}': '{package}'}}\n")
    record = core.parent / "some_package-1.0.dist-info" / "RECORD"
    record.write_text(f"__editable__.some_package-1.0.pth,,\n{finder.name},,\n")
    assert imported() == installed


def test_libraries_and_the_engine_are_no_part_of_it(package, core):
    before = imported()
    own = source_code._digest_of((package,))
    text = "import harness.errors, json, pytest, torch\nfrom harness import nn\n"
    (package / "__init__.py").write_text(text)
    imported()
    assert source_code._PACKAGES[NAME].others == {}
    metadata(core.parent, RECORD=f"other/__init__.py,,\n{CORE}/__init__.py,,\n")
    assert source_hash("psr-harness", "harness_plugins")
    assert source_code._PACKAGES["harness_plugins"].others == {}
    assert before == hashlib.sha256(f"some-package\0{own}".encode()).hexdigest()


def test_a_library_installed_into_a_folder_is_none_of_its_own(package, core):
    """As by `pip install --target`."""
    (package / "__init__.py").write_text(f"import {CORE}\n")
    folder = core.parent / "library-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: library\nVersion: 1.0\n")
    (folder / "RECORD").write_text(f"{CORE}/__init__.py,,\n")
    assert len(set(hashes_of_edits(core / "__init__.py"))) == 1


@pytest.mark.parametrize("hashed", [True, False], ids=["hashed before", "never hashed"])
def test_an_edit_of_the_other_package_is_noticed_too(package, core, hashed):
    (package / "__init__.py").write_text(f"import {CORE}\n")
    metadata(core.parent, RECORD=f"{NAME}/__init__.py,,\n{CORE}/__init__.py,,\n")
    forget()
    remember(NAME)
    importlib.import_module(NAME)
    if hashed:
        check_unchanged("some-package", NAME)
        source_hash("some-package", NAME)
    time.sleep(0.05)  # as long as a file system's clock may lag
    (core / "__init__.py").write_text("FACTOR = 2.0\n")
    with pytest.raises(HarnessError, match=rf"some-package changed after .*{CORE}/__init__.py"):
        check_unchanged("some-package", NAME)


def test_a_class_that_is_not_in_the_module_of_its_entry_point(package, core):
    (package / "__init__.py").write_text(f"from {CORE} import FACTOR\n")
    metadata(core.parent, entry_points_txt=f"[harness]\nmine = {NAME}\n")
    hashes = []
    for text in ("x = 1", "x = 2"):
        (package / "other.py").write_text(text)
        imported()
        hashes.append(source_hash("some-package", CORE))
    assert hashes[0] != hashes[1]
