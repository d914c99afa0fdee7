"""Files are whole or absent, have a new file's permissions, and leave nothing beside them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import files
from harness.files import replacing, temporary_folder


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def permissions(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


@pytest.mark.parametrize("sync", [False, True])
def test_the_content_is_there_once_the_block_has_ended(tmp_path, sync):
    target = tmp_path / "board.json"
    target.write_text("old")
    with replacing(target, sync=sync) as draft:
        assert draft.parent == tmp_path
        draft.write_text("half")
        assert target.read_text() == "old"
        draft.write_text("new")
    assert target.read_text() == "new"
    assert names(tmp_path) == ["board.json"]


@pytest.mark.parametrize("there", [False, True])
def test_permissions_are_those_of_a_new_file(tmp_path, umask, there):
    target, plain = tmp_path / "a.bin", tmp_path / "plain"
    plain.write_bytes(b"")
    if there:
        target.write_bytes(b"")
        target.chmod(0o600)
    with replacing(target) as draft:
        draft.write_bytes(b"\0")
    assert permissions(target) == permissions(plain) == 0o640


@pytest.mark.parametrize("error", [ValueError("no"), OSError(28, "No space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("half", ["", "half"])
def test_a_writer_that_raises_leaves_what_was_there(tmp_path, error, half):
    def write(target: Path) -> None:
        with replacing(target) as draft:
            if half:
                draft.write_text(half)
            raise error

    (tmp_path / "a.txt").write_text("old")
    for name in ("a.txt", "new.txt"):
        with pytest.raises(type(error)):
            write(tmp_path / name)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    target = tmp_path / "a.txt"
    with replacing(target) as first, replacing(target) as second:
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first"  # whose block ended last
    assert names(tmp_path) == ["a.txt"]


def test_a_draft_is_not_taken_for_a_file_of_its_kind(tmp_path):
    """Pages are built from all `*.json` of a folder, hidden ones too."""
    with replacing(tmp_path / "a.json") as draft:
        draft.write_text("half")
        assert not list(tmp_path.glob("*.json"))
        draft.write_text("{}")


def test_errors_name_the_target(tmp_path):
    missing, folder = tmp_path / "none" / "a.txt", tmp_path / "folder"
    with pytest.raises(FileNotFoundError) as found, replacing(missing) as draft:
        draft.write_text("x")
    assert found.value.filename == str(missing)
    folder.mkdir()
    with pytest.raises(IsADirectoryError) as found, replacing(folder) as draft:
        draft.write_text("x")
    assert (found.value.filename, found.value.filename2) == (str(folder), None)
    other = OSError(28, "No space left on device", "elsewhere")
    with pytest.raises(OSError, match="elsewhere") as raised, replacing(tmp_path / "a.txt"):
        raise other
    assert raised.value is other
    assert names(tmp_path) == ["folder"]


def test_sync_comes_before_the_file_is_in_place(tmp_path, monkeypatch):
    target, seen = tmp_path / "a.txt", []

    def fsync(handle: int) -> None:
        seen.append((os.fstat(handle).st_size, target.exists()))

    monkeypatch.setattr(files.os, "fsync", fsync)
    with replacing(target) as draft:
        draft.write_text("new")
    assert seen == []
    target.unlink()
    with replacing(target, sync=True) as draft:
        draft.write_text("new")
    assert seen == [(3, False)]


def test_folders_of_killed_processes_go_when_the_next_is_made(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from harness.files import temporary_folder\n"
        "with temporary_folder('psr-x-', sys.argv[1]) as folder:\n"
        "    (folder / 'model').write_text('large')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    (tmp_path / "psr-y-other").mkdir()
    (tmp_path / "psr-x-link").symlink_to(tmp_path / "psr-y-other")
    with temporary_folder("psr-x-", str(tmp_path)):  # one that was made just now may not be locked yet
        assert left.exists()
    for folder in tmp_path.iterdir():
        os.utime(folder, (0, 0), follow_symlinks=False)
    with temporary_folder("psr-x-", str(tmp_path)) as own:
        assert not left.exists()
        os.utime(own, (0, 0))
        with temporary_folder("psr-x-", str(tmp_path)) as second:
            assert own.exists()
            assert second != own
    assert names(tmp_path) == ["psr-x-link", "psr-y-other"]
