"""Reads a guide's code blocks and runs them, in order, in one folder.

    ```sh        commands that must succeed; what they print is not shown
    ```console   `$ command`, then what it prints: `...` on a line of its own stands for any lines, and, as numbers
                 differ from machine to machine, every number for any number
                 (a command that is meant to fail says `# exits with STATUS`)
    any other block that follows `<!-- file: PATH -->` is written to that file

`python tests/plugin_kit/guide.py docs/plugins.md` runs a guide in a fresh environment and writes in what was
printed where a block shows no `...`; commands of a guide are trusted as the repository's own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(r"(?:<!-- file: (?P<file>\S+) -->\n+)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
Call = Callable[[str, Path], "subprocess.CompletedProcess[str]"]


@dataclass
class Step:
    """One command, and what it is shown to print; None where nothing is shown."""

    command: str
    shown: str | None


def blocks(text: str) -> Iterator[tuple[str | None, str, str]]:
    """(file to write or None, language, content) of every block, in order."""
    for match in BLOCK.finditer(text):
        yield match["file"], match["kind"], match["text"]


def steps(kind: str, text: str) -> list[Step]:
    """The commands of a block."""
    if kind == "sh":
        return [Step(line, None) for line in text.splitlines() if line and not line.startswith("#")]
    if kind != "console":
        return []
    parts = re.split(r"^\$ ", text, flags=re.M)
    assert not parts[0], f"a console block begins with a command: {parts[0]!r}"
    return [Step(*part.split("\n", 1)) for part in parts[1:]]


def agrees(shown: str, printed: str) -> bool:
    """Whether a text is what is shown, but for numbers, the width of tables, and lines that are left out."""
    pattern = [r".*" if line == "..." else re.escape(line) for line in normal(shown).split("\n")]
    return re.fullmatch("\n".join(pattern), normal(printed), flags=re.S) is not None


def normal(text: str) -> str:
    """Numbers, hashes and rules of tables as one sign each, blanks as one."""
    text = re.sub(r"\b[0-9a-f]{12,64}\b", "#", text)
    text = re.sub(r"\d+(\.\d+)?", "#", text)
    lines = (" ".join(re.sub("─+", "─", line).split()) for line in text.strip().splitlines())
    return "\n".join(line for line in lines if line)


def follow(text: str, folder: Path, call: Call) -> str:
    """Runs a guide; returns it with what was really printed. Fails where a command does."""
    pieces, end = [], 0
    for match in BLOCK.finditer(text):
        file, kind, content = match["file"], match["kind"], match["text"]
        if file:
            place = folder / file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(content, encoding="utf-8")
        found = []
        for step in steps(kind, content):
            done = call(step.command, folder)
            printed = (done.stdout + done.stderr).replace(f"{folder.resolve()}{os.sep}", "")
            status = re.search(r"# exits with (\d+)$", step.command)
            expected = int(status[1]) if status else 0
            assert done.returncode == expected, f"$ {step.command}\nexit status {done.returncode}\n{printed}"
            if step.shown is not None:
                keep = "..." in step.shown.split("\n") and agrees(step.shown, printed)
                tidy = "\n".join(line.rstrip() for line in printed.rstrip().splitlines())
                found.append(f"$ {step.command}\n{step.shown if keep else tidy + chr(10) * bool(tidy)}")
        if kind == "console":
            pieces += [text[end : match.start("text")], "".join(found)]
            end = match.end("text")
    return "".join([*pieces, text[end:]])


def fresh(folder: Path) -> Call:
    """Commands in an environment of their own, with the project's wheel."""
    from fresh_environment import ROOT, Environment, build_wheels

    environment = Environment(folder / "env", build_wheels([ROOT], folder / "wheels"))
    # pip takes what builds a package from here too, instead of fetching it.
    environment.variables |= {
        "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }  # fmt: skip

    def call(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            shell=True,
            cwd=cwd,
            env=environment.variables,
            capture_output=True,
            text=True,
            encoding="utf-8",
        )

    return call


if __name__ == "__main__":
    guide = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as made:
        (work := Path(made, "work")).mkdir()
        written = follow(guide.read_text(encoding="utf-8"), work, fresh(Path(made)))
    guide.write_text(written, encoding="utf-8")
