"""How many workers share a GPU, and which worker gets which: rules, tried without one."""

from __future__ import annotations

import contextlib
import multiprocessing
import subprocess
import sys
from typing import ClassVar

import pytest
import small

from harness import devices, engine
from harness.console.output import make_console
from harness.console.plan_table import render_plan
from harness.console.progress import Observer
from harness.devices import CONTEXT, processes_per_gpu
from harness.executors import Event, choice, local
from harness.executors.inline import InlineExecutor
from harness.scenario import load_text
from harness.store import Store

GB = 2**30


@pytest.mark.parametrize(
    ("free", "peak", "cores", "expected"),
    [
        (78 * GB, 60 * GB, 16, 1),
        (78 * GB, 10 * GB, 16, 5),  # 0.9 x 78 / (1.3 x 10 + 1) = 5.01
        (78 * GB, 1 * GB, 16, 16),  # no more than the cores can feed
        (78 * GB, 1 * GB, 4, 4),
        (1 * GB, 10 * GB, 16, 1),  # never none: a batch that does not fit is halved
    ],
)
def test_processes_per_gpu_follow_the_memory(free, peak, cores, expected):
    found = processes_per_gpu(free, peak, cores)
    assert found == expected
    if found > 1:
        assert found * (1.3 * peak + CONTEXT) <= 0.9 * free


@pytest.fixture
def two_gpus(monkeypatch):
    free = {"cuda": [78 * GB, 20 * GB], "cuda:0": [78 * GB], "cuda:1": [20 * GB]}
    monkeypatch.setattr(choice, "free_memory", lambda device: free[device])
    monkeypatch.setattr(choice, "gpu_count", lambda device: len(free.get(device, [])))
    monkeypatch.setattr(choice.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


def test_auto_is_the_sum_over_gpus_and_a_number_wins(two_gpus):
    assert choice.job_count("auto", "cuda") == 2
    assert choice.job_count("auto", "cuda:1") == 1
    assert (
        choice.job_count("auto", "cuda", peak=5 * GB) == 8 + 2
    )  # 70.2 / 7.5 is 9, but a GPU has 8 cores; 18 / 7.5
    assert choice.job_count(3, "cuda", peak=5 * GB) == 3
    assert choice.job_count("auto", "cpu", peak=5 * GB) == 16


def test_the_plan_says_how_many_jobs_on_how_many_gpus(two_gpus, capsys):
    stages = {kind: {"total": 1, "cached": 0} for kind in ("train", "clean")}
    plan = {
        "scenarios": [],
        "stages": stages,
        "estimate_seconds": 60.0,
        "jobs": 10,
        "gpus": 2,
        "device": "cuda",
    }
    render_plan(plan, make_console())
    assert "with 10 jobs on 2 GPUs" in capsys.readouterr().out
    render_plan({**plan, "gpus": 0}, make_console())
    assert "with 10 jobs\n" in capsys.readouterr().out


def test_each_gpu_gets_the_workers_that_fit_it(two_gpus):
    fitting = ["cuda:0"] * 8 + ["cuda:1"] * 2
    assert choice.worker_devices("auto", "cuda", peak=5 * GB) == fitting
    assert choice.worker_devices("auto", "cuda") == ["cuda:0", "cuda:1"]
    assert choice.worker_devices(3, "cuda") == ["cuda:0", "cuda:1", "cuda:0"]
    assert choice.worker_devices(2, "cuda:1", peak=5 * GB) == ["cuda:1", "cuda:1"]
    assert choice.worker_devices(2, "cpu") == ["cpu", "cpu"]
    assert choice.worker_devices(0, "cuda") == []


@pytest.fixture
def executor_on(tmp_path, monkeypatch):
    """(executor, devices of the workers it has started) for the devices that its workers shall have."""

    class Pipe:
        def send_bytes(self, message):
            pass

    def make(devices):
        executor, started = local.LocalExecutor(tmp_path, devices), []

        def start(device):
            started.append(device)
            worker = local._Worker(None, Pipe(), device)
            executor._workers.append(worker)
            return worker

        monkeypatch.setattr(executor, "_start", start)
        return executor, started

    Store(tmp_path).close()
    monkeypatch.setattr(local.pickle, "dumps", lambda stage: b"")
    return make


def test_a_lost_worker_is_replaced_on_the_device_that_lost_it(executor_on):
    executor, started = executor_on(["cuda:0", "cuda:1"] * 2)
    for _ in range(4):
        executor.submit(object())
    assert started == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    executor._workers.pop(1)
    executor.submit(object())
    assert started[-1] == "cuda:1"


def test_a_small_gpu_gets_no_more_workers_than_fit_it(executor_on):
    """Spread evenly, five of ten would share the one that two fit."""
    executor, started = executor_on(["cuda:0"] * 8 + ["cuda:1"] * 2)
    for _ in range(10):
        executor.submit(object())
    assert (started.count("cuda:0"), started.count("cuda:1")) == (8, 2)
    assert "cuda:1" in started[:6]  # not only when the other one is full


def test_more_workers_come_when_the_first_stage_has_shown_what_it_needs(tmp_path):
    """The first run of a scenario, too, has several processes on a GPU that one cell cannot fill."""
    asked = []

    def more():
        asked.append(True)
        return ["cuda:0"] * 3 + ["cuda:1"]

    Store(tmp_path).close()
    executor = local.LocalExecutor(tmp_path, ["cuda:0", "cuda:1"], more)
    ours, theirs = multiprocessing.Pipe()
    executor._workers.append(local._Worker(None, ours, "cuda:0"))
    for kind, capacity in (("began", 2), ("failed", 2), ("done", 4), ("done", 4)):
        theirs.send(Event(kind, "key"))
        assert [event.kind for event in executor.events(1.0)] == [kind]
        assert executor.capacity == capacity
    assert asked == [True]


def test_a_run_that_grows_tells_its_display(tmp_path):
    class Growing(InlineExecutor):
        def events(self, timeout):
            self.capacity = 3  # from the first stage's end
            return super().events(timeout)

    class Display(Observer):
        jobs: ClassVar = []

        def capacity_changed(self, jobs):
            super().capacity_changed(jobs)
            self.jobs.append((jobs, self.estimate.jobs))

    scenario = load_text(small.SCENARIO, tmp_path / "small.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_executor", lambda store, device, *_: Growing(store, device))
        result = engine.run(
            scenario, device="cpu", jobs=1, store=tmp_path / "runs", observer=Display(make_console())
        )
    assert result.scored == 1
    assert Display.jobs == [(3, 3)]


@pytest.mark.parametrize(
    ("jobs", "known", "grows"), [("auto", None, True), ("auto", GB, False), (2, None, False)]
)
def test_only_a_run_that_chooses_and_does_not_know_grows(jobs, known, grows, two_gpus, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def executor(store, device, workers, more):
        assert (more is not None) == grows
        if more is not None:
            monkeypatch.setattr(engine, "_peak", lambda *_: 5 * GB)
            assert more() == ["cuda:0"] * 8 + ["cuda:1"] * 2
        raise Stop

    monkeypatch.setattr(engine, "_executor", executor)
    monkeypatch.setattr(engine, "_peak", lambda *_: known)
    monkeypatch.setattr(engine, "resources", lambda *_: ("cuda", 2))
    with pytest.raises(Stop):
        engine.run(load_text(small.SCENARIO, tmp_path / "x.yaml"), jobs=jobs, store=tmp_path / "runs")


def test_a_stage_on_the_second_gpu_finds_it_as_the_current_one(monkeypatch):
    """A plugin that says `cuda` would else be given the first GPU, where its client's data is not."""
    import torch

    from harness.stages import isolation

    now = [0]

    @contextlib.contextmanager
    def device(name):
        now.append(int(name.partition(":")[2]))
        yield
        now.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(isolation, "global_generators", lambda *_: contextlib.nullcontext())
    for name, expected in (("cuda:1", 1), ("cuda", 0), ("cpu", 0)):
        with isolation.isolated("key", name, 1, False):
            assert now[-1] == expected
        assert now == [0]


def test_memory_is_given_back_to_the_gpu_and_cycles_are_broken(monkeypatch):
    import weakref

    import torch

    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))

    class Node:
        pass

    node = Node()
    node.self = node
    gone = weakref.ref(node)
    del node
    devices.give_back_memory("cpu")
    assert gone() is None
    assert emptied == []
    devices.give_back_memory("cuda:0")
    assert emptied == [True]


def test_a_worker_keeps_what_it_frees_until_it_gives_it_back(monkeypatch):
    class Library:
        def __init__(self, oldest):
            self.oldest, self.set, self.trimmed = oldest, {}, 0

        def mallopt(self, option, value):
            if option == devices.M_MMAP_THRESHOLD and self.oldest and value > 2**25:
                return 0
            self.set[option] = value
            return 1

        def malloc_trim(self, left):
            self.trimmed += left == 0
            return 1

    for oldest, threshold in ((False, 2**30), (True, 2**25)):
        library = Library(oldest)
        monkeypatch.setattr(devices, "_libc", lambda library=library: library)
        devices.keep_freed_memory()
        assert library.set == {devices.M_MMAP_THRESHOLD: threshold, devices.M_TRIM_THRESHOLD: 2**30}
        devices.give_back_memory("cpu")
        assert library.trimmed == 1
    monkeypatch.setattr(devices, "_libc", lambda: None)  # another C library
    devices.keep_freed_memory()
    devices.give_back_memory("cpu")


def test_freed_memory_is_kept_and_given_back_by_this_c_library():
    """In a process of its own, as the setting is for good."""
    if not hasattr(devices._libc(), "malloc_trim"):
        pytest.skip("not glibc")
    script = """
import numpy as np
from harness import devices
devices.keep_freed_memory()
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
np.ones(1)
before = resident()
np.ones(2**25)
kept = resident() - before
devices.give_back_memory("cpu")
print(kept, resident() - before)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    kept, left = map(int, out.split())
    assert kept > 2**27 > left
