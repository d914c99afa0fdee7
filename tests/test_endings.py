"""How runs of the command line end that somebody or something stops."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest
import small

from harness.cli import main
from harness.console.signals import ended_like_ctrl_c
from harness.console.streams import outlive_readers

SCENARIO = """
schema: 1
name: small
dataset: digits
model: {mlp: {hidden: [8]}}
federation: {clients: 4, rounds: 40, local: {steps: 1, batch_size: 16, optimizer: {sgd: {lr: 0.2}}}}
aggregators: [mean, slow]
metrics: [accuracy]
trackers: [notes]
plugins: [own.py]
"""
PLUGINS = """
import pathlib
import time
from harness.api import Aggregator, Tracker, hookimpl

HERE = pathlib.Path(__file__).parent

class Slow(Aggregator):
    \"\"\"A mean that takes its time.\"\"\"
    name = "slow"

    def aggregate(self, updates, context):
        (HERE / "began").touch()
        time.sleep(1)
        return updates.mean(0)

class Notes(Tracker):
    \"\"\"Says that a run has ended.\"\"\"
    name = "notes"

    def harness_run_finished(self, run):
        (HERE / "ended").write_text(str(run["failed"]))

@hookimpl
def harness_register(register):
    register(Slow)
    register(Notes)
"""


def started(folder: Path, *options: str) -> subprocess.Popen[str]:
    """A run that is in the middle of its slow stage."""
    (folder / "small.yaml").write_text(SCENARIO)
    (folder / "own.py").write_text(PLUGINS)
    command = [sys.executable, "-m", "harness", "run", "small.yaml", "--device", "cpu", *options]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None and not (folder / "began").exists():
        time.sleep(0.05)
    return process


@pytest.mark.parametrize(("jobs", "send"), [("0", os.kill), ("2", os.killpg)])
def test_sigterm_ends_a_run_as_ctrl_c_does(jobs, send, tmp_path):
    process = started(tmp_path, "--jobs", jobs)
    send(process.pid, signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted; run the same command again to resume" in errors
    assert "computed" in output
    assert (tmp_path / "ended").read_text() == "0"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and exists(process.pid):
        time.sleep(0.1)
    assert not exists(process.pid)  # workers are gone, and so is what they were started from


def exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_ctrl_c_while_libraries_are_imported_is_no_error(monkeypatch, capsys):
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    class Interrupted(ModuleType):
        def __getattr__(self, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "harness.cli", Interrupted("harness.cli"))
    assert runpy.run_module("harness", run_name="harness.__main__")["main"]() == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_ctrl_c_while_python_ends_is_no_traceback():
    program = (
        "import atexit, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # background jobs of shells ignore it
        "atexit.register(signal.raise_signal, signal.SIGINT)\n"
        "sys.argv[1:] = ['--version']\n"
        "from harness.__main__ import main\n"
        "sys.exit(main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGINT
    assert ended.stderr == ""


def test_what_an_interrupt_became_in_compiled_code_is_no_traceback(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise ValueError("Error calling function") from KeyboardInterrupt()

    monkeypatch.setattr("harness.cli.app", interrupted)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    monkeypatch.setattr("harness.cli.app", lambda *_, **__: int("x"))
    with pytest.raises(ValueError, match="invalid literal"):
        main(["list"])


def test_sigterm_of_others_stays_theirs():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        with ended_like_ctrl_c():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [1]

    def elsewhere() -> None:
        with ended_like_ctrl_c():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [1, before]
    with pytest.raises(KeyboardInterrupt), ended_like_ctrl_c():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_ends_what_a_plugin_forked_without_a_word():
    with ended_like_ctrl_c():
        child = os.fork()
        if child == 0:
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM


def test_a_run_outlives_the_reader_of_its_output_and_the_disk_of_its_log(tmp_path, monkeypatch):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    (tmp_path / "small.yaml").write_text(small.SCENARIO)
    reader, writer = os.pipe()
    os.close(reader)
    wanted = ["--store", str(tmp_path / "runs"), "--export", str(tmp_path / "scores.csv")]
    with open(writer, "w") as output, open("/dev/full", "w") as errors:
        for name, stream in (("stdout", output), ("stderr", errors)):
            monkeypatch.setattr(sys, name, stream)
            monkeypatch.setattr(sys, f"__{name}__", stream)
        outlive_readers()
        assert main(["run", str(tmp_path / "small.yaml"), "--device", "cpu", "--jobs", "0", *wanted]) == 0
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("command", [["--help"], ["validate", "--no-data", "small.yaml"]])
def test_a_reader_that_leaves_is_no_error(command, tmp_path):
    (tmp_path / "small.yaml").write_text(small.SCENARIO)
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "harness", *command], cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_full_disk_behind_the_output_is_said_in_one_line():
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "harness", "--version"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 2
    assert ended.stderr == "error: the output cannot be written: No space left on device\n"


def test_a_working_directory_that_is_gone_is_said_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "small.yaml").write_text(small.SCENARIO)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["init", "x.yaml", "--yes"]) == 2
    said = "error: the working directory is gone; change to one that exists\n"
    assert capsys.readouterr().err == said
    command = [sys.executable, "-m", "harness", "run", str(tmp_path / "small.yaml"), "--jobs", "0"]
    ended = subprocess.run([*command, "--store", str(tmp_path / "runs")], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (2, said)  # and not by MKL
