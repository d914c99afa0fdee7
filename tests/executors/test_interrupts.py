"""Workers of a run that is interrupted: none is left, none complains, whatever moment the signal comes at."""

from __future__ import annotations

import os
import pickle
import signal
import threading

import pytest

from harness.executors import ray_tasks
from harness.executors.interrupts import interrupts_wait
from harness.executors.local import LocalExecutor, _log_output


@pytest.fixture(autouse=True)
def _interruptible():
    """Python's own handler, also where this process began with the signal ignored, as in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_comes_when_the_block_has_ended():
    done = []

    def work() -> None:
        with interrupts_wait():
            signal.raise_signal(signal.SIGINT)
            done.append("the rest")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["the rest"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with interrupts_wait():
        pass  # and without a signal nothing comes


def test_other_threads_have_no_handlers_to_hold_back():
    done = []

    def elsewhere() -> None:
        with interrupts_wait():
            done.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert done == [signal.default_int_handler]


class Process:
    """A worker process that is interrupted while it starts, or while it is waited for."""

    def __init__(self, begins=lambda: None, ends=lambda: None, **_):
        self.begins, self.ends, self.killed, self.joined = begins, ends, False, False

    def start(self):
        self.begins()

    def is_alive(self):
        return False

    def kill(self):
        self.killed = True

    def join(self):
        self.ends()
        self.joined = True


def test_an_interrupted_start_leaves_no_worker_that_nobody_ends(tmp_path, monkeypatch):
    executor = LocalExecutor(tmp_path, ["cpu"])
    process = Process(begins=lambda: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(executor._context, "Process", lambda **_: process)
    with pytest.raises(KeyboardInterrupt):
        executor._start("cpu")
    executor.close()
    assert process.killed
    assert process.joined


def test_an_impatient_second_signal_leaves_no_worker_either(tmp_path, monkeypatch):
    executor = LocalExecutor(tmp_path, ["cpu", "cpu"])
    made = [Process(ends=lambda: signal.raise_signal(signal.SIGINT)), Process()]
    waiting = list(made)
    monkeypatch.setattr(executor._context, "Process", lambda **_: waiting.pop(0))
    executor._start("cpu")
    executor._start("cpu")
    with pytest.raises(KeyboardInterrupt):
        executor.close()
    assert all(process.joined for process in made)


def test_a_worker_whose_store_is_gone_has_nowhere_to_write_and_does_not_complain(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(
        os, "dup2", lambda file, number: opened.append((os.readlink(f"/proc/self/fd/{file}"), number))
    )
    _log_output(tmp_path / "gone")
    assert opened == [(os.devnull, 1), (os.devnull, 2)]
    opened.clear()
    _log_output(tmp_path)
    assert opened[0][0].startswith(str(tmp_path / "logs" / "worker-"))


class Unpickled:
    """What a plugin does as soon as a stage of it is there."""

    def __reduce__(self):
        return signal.raise_signal, (signal.SIGINT,)


def test_an_interrupt_that_a_plugin_raises_on_a_node_is_part_of_the_outcome(monkeypatch):
    monkeypatch.setattr(ray_tasks, "_differences", lambda expected: ())
    monkeypatch.setattr(ray_tasks, "_delivered", lambda letters: None)
    job = ray_tasks.Job(pickle.dumps(Unpickled()), b"", "key", 0, "cpu", {})
    outcome = ray_tasks.run_stage(job, None)
    assert outcome.error is not None
    assert outcome.error["type"] == "KeyboardInterrupt"
