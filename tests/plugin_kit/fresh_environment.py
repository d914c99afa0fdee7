"""A virtual environment in which the project's own wheel is installed, and everything else is the caller's.

Third-party libraries are not installed again: a .pth file lends those of the running interpreter. Packages that
are installed come first on the path, and .pth files are not followed from a lent folder, so an editable install
of the project there is out of reach.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def build_wheels(folders: Sequence[Path], out: Path) -> list[Path]:
    """One wheel a project folder, built with what is installed here."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    run([*command, "--disable-pip-version-check", "--wheel-dir", str(out), *map(str, folders)])
    return sorted(out.glob("*.whl"))


class Environment:
    """A virtual environment with these wheels."""

    def __init__(self, folder: Path, wheels: Sequence[Path]) -> None:
        run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
        self.scripts = folder / ("Scripts" if os.name == "nt" else "bin")
        self.python = self.scripts / "python"
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(self.python),
            "install",
            "-q",
            "--no-deps",
            "--no-index",
        ]
        run([*pip, "--no-compile", "--disable-pip-version-check", *map(str, wheels)])
        (self.packages,) = folder.glob("[lL]ib/**/site-packages")
        lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        lent |= {path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")}
        (self.packages / "lent.pth").write_text("\n".join(sorted(lent)) + "\n")
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HARNESS_LOAD_PLUGINS")}
        path = os.pathsep.join([str(self.scripts), os.environ.get("PATH", "")])
        self.variables = {**kept, "PATH": path, "VIRTUAL_ENV": str(folder), "COLUMNS": "100"}

    def harness(self, *arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        """The installed `harness` command."""
        return self.call([self.scripts / "harness", *arguments], cwd)

    def call(self, command: Sequence[str | Path], cwd: Path) -> subprocess.CompletedProcess[str]:
        """Any command, in this environment."""
        return subprocess.run(
            list(map(str, command)),
            cwd=cwd,
            env=self.variables,
            capture_output=True,
            text=True,
            encoding="utf-8",
        )


def run(command: Sequence[str]) -> None:
    """Must succeed; shows what it said where it does not."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
