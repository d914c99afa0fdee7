"""How worker processes start: what they import, and what is said where they cannot."""

from __future__ import annotations

import multiprocessing
import os
import select
import subprocess
import sys
from types import SimpleNamespace

import pytest
import small

import harness
from harness.errors import HarnessError
from harness.executors.local import LocalExecutor, _Worker
from harness.scenario import load_text

SCENARIO = small.SCENARIO + "aggregators: [finds]\nplugins: [own.py]\n"
PLUGIN = """
import os
from harness.api import Aggregator, hookimpl

class Finds(Aggregator):
    \"\"\"A mean that needs a module of PYTHONPATH.\"\"\"
    name = "finds"

    def aggregate(self, updates, context):
        import of_the_path
        assert "PYTHONSAFEPATH" not in os.environ
        return updates.mean(0)

@hookimpl
def harness_register(register):
    register(Finds)
"""
START = "import sys\nfrom harness.cli import main\nsys.exit(main())\n"


def test_workers_import_nothing_from_the_working_directory(tmp_path):
    work, scripts, modules = tmp_path / "work", tmp_path / "scripts", tmp_path / "modules"
    for folder in (work, scripts, modules):
        folder.mkdir()
    for name in ("numpy", "statistics", "selectors", "harness"):
        (work / f"{name}.py").write_text(f"open({name + '.taken'!r}, 'w')\nraise RuntimeError({name!r})\n")
    (modules / "of_the_path.py").touch()
    (scripts / "start.py").write_text(START)
    (work / "small.yaml").write_text(SCENARIO)
    (work / "own.py").write_text(PLUGIN)
    path = os.pathsep.join(filter(None, [str(modules), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(scripts / "start.py"), "run", "small.yaml", "--device", "cpu", "--jobs", "1"],
        cwd=work,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 scored" in done.stdout
    assert not list(work.glob("*.taken"))
    assert not done.stderr.count("Error")


# NVML answers; that it is used shows in that CUDA is still free to start in a forked process.
FORKED = """
import os
import torch
torch.cuda._device_count_nvml = lambda: 1
import harness.executors.preload
if os.fork() == 0:
    os._exit(torch.cuda._is_in_bad_fork())
assert os.wait()[1] == 0, "CUDA cannot start in a worker"
assert "PYTORCH_NVML_BASED_CUDA_CHECK" not in os.environ
"""


def test_a_library_that_looks_for_a_gpu_while_it_is_imported_leaves_it_to_the_workers(tmp_path):
    (tmp_path / "looks_for_a_gpu.py").write_text("import torch\ntorch.cuda.is_available()\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "_HARNESS_PRELOAD": "looks_for_a_gpu"}
    done = subprocess.run(
        [sys.executable, "-c", FORKED], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


class _Fails:
    def Pipe(self):
        return open(os.devnull), open(os.devnull)

    def Process(self, **_):
        return self

    def start(self):
        raise EOFError


def test_workers_that_cannot_start_are_an_error_that_says_so(tmp_path):
    executor = LocalExecutor(tmp_path, ["cpu"])
    executor._context = _Fails()
    with pytest.raises(HarnessError, match="worker processes cannot start"):
        executor._start("cpu")


def test_a_temporary_folder_with_too_long_a_path_is_said_in_one_line(tmp_path):
    (tmp_path / "small.yaml").write_text(small.SCENARIO)
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    command = [sys.executable, "-m", "harness", "run", "small.yaml", "--device", "cpu", "--jobs", "1"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        f"error: worker processes cannot start: the path of the temporary folder {folder}"
    )
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_an_idle_worker_that_has_ended_is_replaced(tmp_path, monkeypatch):
    submit, killed = LocalExecutor.submit, []

    def beside_the_dead(self, stage):
        for worker in self._workers:
            if worker.stage is None and not killed:
                worker.process.kill()
                worker.process.join()
                killed.append(worker.process.pid)
        submit(self, stage)

    monkeypatch.setattr(LocalExecutor, "submit", beside_the_dead)
    scenario = load_text(small.SCENARIO, tmp_path / "small.yaml")
    result = harness.run(scenario, device="cpu", jobs=1, store=tmp_path / "runs")
    assert len(killed) == 1
    assert (result.scored, result.failed) == (1, 0)


class _Dead:
    """A worker process that has ended, and its pipe."""

    exitcode = -9

    def send_bytes(self, message):
        raise BrokenPipeError(32, "Broken pipe")

    def nothing(self):
        pass

    kill = join = close = is_alive = nothing


def test_workers_that_end_as_soon_as_they_start_are_an_error_that_says_so(tmp_path, monkeypatch):
    executor, started = LocalExecutor(tmp_path, ["cpu"]), []

    def start(device):
        started.append(_Worker(_Dead(), _Dead(), device))
        executor._workers.append(started[-1])
        return started[-1]

    monkeypatch.setattr(executor, "_start", start)
    start("cpu")  # one that is idle
    with pytest.raises(HarnessError, match=r"ended before it could be given a stage \(.*Broken pipe\)"):
        executor.submit("a stage")
    assert len(started) == 2
    assert executor._workers == []


class _Ended:
    """A worker process that has ended."""

    def __init__(self, exitcode: int) -> None:
        self.exitcode = exitcode

    def nothing(self) -> None:
        pass

    kill = join = is_alive = nothing


def ended(tmp_path, code: int, **cancelled: str) -> dict:
    """What is told of a stage whose worker ended with this code, after it was cancelled where a reason is given."""
    ours, theirs = multiprocessing.Pipe()
    executor = LocalExecutor(tmp_path, ["cpu"])
    worker = _Worker(_Ended(code), ours, "cpu")
    worker.stage = SimpleNamespace(key="abc")
    executor._workers.append(worker)
    if cancelled:
        executor.cancel("abc", **cancelled)
    theirs.close()
    (event,) = executor.events(timeout=5.0)
    assert (event.kind, event.key) == ("failed", "abc")
    return event.payload


@pytest.mark.parametrize(
    ("code", "said"), [(3, "exited with 3"), (-15, "was ended by SIGTERM"), (-40, "was ended by signal 40")]
)
def test_how_a_worker_ended_is_said_of_every_signal(tmp_path, code, said):
    assert ended(tmp_path, code)["message"] == f"the worker process {said}"


def test_a_stage_that_is_cancelled_fails_with_the_reason_and_not_as_one_that_took_too_long(tmp_path):
    told = ended(tmp_path, -9, kind="Stopped", reason="another stage failed")
    assert (told["type"], told["message"]) == ("Stopped", "another stage failed")


LEAVING = small.SCENARIO + "plugins: [own.py]\n"
LEAVES = """
import pathlib
import os
import subprocess
import threading
from harness.api import Aggregator, hookimpl

HERE = pathlib.Path(__file__).parent

class Leaves(Aggregator):
    \"\"\"A mean that leaves something running.\"\"\"
    name = "leaves"
    what: str
    n: int = 0

    def aggregate(self, updates, context):
        with (HERE / "seen").open("a") as file:
            print(self.what, os.getpid(), file=file)
        if self.what == "thread":
            threading.Thread(target=threading.Event().wait, daemon=True, name="forgotten").start()
        if self.what in ("program", "endless"):
            with (HERE / "held").open("w") as held:
                subprocess.Popen(["sleep", "1000"], stdout=held)
        if self.what == "endless":
            threading.Event().wait()
        return updates.mean(0)

@hookimpl
def harness_register(register):
    register(Leaves)
"""


def leaving(folder, aggregators: str, **options):
    (folder / "own.py").write_text(LEAVES)
    scenario = load_text(LEAVING + f"aggregators: {aggregators}", folder / "small.yaml")
    return harness.run(scenario, device="cpu", store=folder / "runs", **options)


def test_a_worker_in_which_a_thread_was_left_gets_no_other_stage(tmp_path):
    """The thread may reseed generators, or draw from them, while another stage draws."""
    result = leaving(
        tmp_path, "[leaves: {what: thread}, leaves: {what: no, n: 1}, leaves: {what: no, n: 2}]", jobs=1
    )
    assert (result.scored, result.failed, result.problems) == (3, 0, [])
    (first, one), (second, two), (third, three) = (
        line.split() for line in (tmp_path / "seen").read_text().splitlines()
    )
    assert [first, second, third] == ["thread", "no", "no"]
    assert one != two == three


def test_a_thread_that_was_left_in_this_process_is_named(tmp_path):
    result = leaving(tmp_path, "[leaves: {what: thread}, leaves: {what: no}]", jobs=0)
    (problem,) = result.problems
    assert problem.startswith(
        "train none · leaves(what=thread) · seed 0: threads still run that it has started (forg"
    )


@pytest.mark.parametrize(("what", "status"), [("program", "scored"), ("endless", "failed")])
def test_programs_that_a_plugin_has_started_end_with_their_worker(what, status, tmp_path):
    os.mkfifo(tmp_path / "held")
    held = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)
    try:
        result = leaving(
            tmp_path, f"[leaves: {{what: {what}}}]", jobs=1, timeout=20 if what == "program" else 1
        )
        assert [record["status"] for record in result.records] == [status]
        assert select.select([held], [], [], 20)[0]
        assert os.read(held, 1) == b""  # nobody holds the other end
    finally:
        os.close(held)
