"""Stages in worker processes, forked from a server that has already imported the heavy libraries.

A worker that crashes, is killed for memory or runs out of time fails its one stage and is replaced. So is one in which
a stage has left threads running: what they draw or set would reach other stages. Programs that plugins started end with
their worker.
Workers ignore Ctrl-C and SIGTERM (the runner decides) and end at once when the runner is gone.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import tempfile
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from multiprocessing import connection, forkserver, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import HarnessError, describe_error
from harness.executors import Event, reporter, threads_left
from harness.executors.interrupts import here, interrupts_wait
from harness.executors.variables import PRELOAD, SAFE_PATH, SAFE_PATH_OF_SERVER
from harness.flower.guard import descendants
from harness.local_plugins import LocalFile, expect
from harness.registry import registry

if TYPE_CHECKING:
    from harness.plan import Stage

SPENT = "spent"  # the kind of a worker's message that it should be replaced once its stage has ended


def warm_up(modules: Sequence[str]) -> None:
    """Starts, in the background, the server that workers are forked from; it imports the libraries they need.

    modules: heavy modules beyond those that every stage imports. A server that already runs stays as it is. Raises
    HarnessError where it cannot start.
    """
    os.environ[PRELOAD] = ",".join(modules)
    multiprocessing.set_forkserver_preload(["harness.executors.preload"])
    with _same_imports():
        try:
            _ensure_server()
        except (EOFError, OSError) as error:
            raise _cannot_start(error) from error


def _ensure_server() -> None:
    """Starts the server if none runs, with SIGINT blocked until the server itself ignores it: see `preload`.

    Python's resource tracker is started first: otherwise the server's start would start it, and that unblocks SIGINT.
    """
    resource_tracker.ensure_running()
    # A new process inherits its parent's signal mask.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _cannot_start(error: EOFError | OSError) -> HarnessError:
    """Why there are no worker processes, and what can be done about it."""
    reason = str(error) or "the process that starts them has ended"
    # The system allows a socket's path about 100 characters; Python's error has no number.
    if "path too long" in reason:
        reason = f"the path of the temporary folder {tempfile.gettempdir()} is too long; set TMPDIR to a shorter one"
    return HarnessError(f"worker processes cannot start: {reason}; --jobs 0 runs everything in this process")


class LocalExecutor:
    """One worker process for each of these devices, started when there is a stage for it.

    A new worker goes to the device with the smallest share of its places taken. more: called once, when the first
    stage is done and its use of memory is known; returns the devices of the workers that then fit. Of each device the
    larger number counts, this one or that of `devices`.
    """

    def __init__(
        self, store: Path, devices: Sequence[str], more: Callable[[], Sequence[str]] | None = None
    ) -> None:
        self.lends = set(devices) == {"cpu"}
        self._store = store
        self._wanted = Counter(devices)
        self._more = more
        self._files = registry().local_files()
        self._context = multiprocessing.get_context("forkserver")
        self._workers: list[_Worker] = []

    @property
    def capacity(self) -> int:
        return self._wanted.total()

    def submit(self, stage: Stage) -> None:
        try:
            message = pickle.dumps(stage)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise HarnessError(
                f"a plugin of this scenario cannot be sent to a worker process ({error}); define it in an "
                "importable module, or run in this process with --jobs 0"
            ) from error
        idle = next((w for w in self._workers if w.stage is None), None)
        if idle is not None and self._send(idle, stage, message) is None:
            return
        taken = Counter(w.device for w in self._workers)
        free = min(self._wanted, key=lambda device: (taken[device] + 1) / self._wanted[device])
        worker = self._start(free)
        trouble = self._send(worker, stage, message)
        if trouble is not None:
            raise HarnessError(
                f"a worker process ended before it could be given a stage ({trouble}); --jobs 0 runs everything in "
                "this process"
            ) from trouble

    def events(self, timeout: float) -> list[Event]:
        found: list[Event] = []
        ready = connection.wait([w.pipe for w in self._workers], timeout)
        for worker in [w for w in self._workers if w.pipe in ready]:
            try:
                while worker.pipe.poll():
                    event: Event = worker.pipe.recv()
                    if event.kind == SPENT:
                        worker.spent = True
                        continue
                    found.append(event)
                    if event.kind in ("done", "failed"):
                        worker.stage = None
            except (EOFError, OSError):
                found += self._lost(worker)
                continue
            if worker.spent and worker.stage is None:
                _end(worker)
                self._lost(worker)
        if self._more is not None and any(event.kind == "done" for event in found):
            more, self._more = Counter(self._more()), None
            self._wanted |= more
        return found

    def cancel(self, key: str, kind: str, reason: str) -> None:
        for worker in self._workers:
            if worker.stage is not None and worker.stage.key == key:
                worker.cancelled = kind, reason
                _end(worker)

    def close(self) -> None:
        with interrupts_wait():  # the store may be removed next, and no worker may be left by then
            _end(*self._workers)
            for worker in self._workers:
                worker.process.join()
                worker.pipe.close()
            self._workers.clear()

    def _start(self, device: str) -> _Worker:
        ours, theirs = self._context.Pipe()
        arguments = (theirs, str(self._store), device, self._files)
        process = self._context.Process(target=_work, args=arguments, daemon=True)
        # An interrupt half-way could leave a worker that this executor does not know of and would never end.
        with interrupts_wait():
            return self._started(process, ours, theirs, device)

    def _started(self, process: Any, ours: Any, theirs: Any, device: str) -> _Worker:
        try:
            with _without_main(), _same_imports():
                _ensure_server()
                process.start()
        except (EOFError, OSError) as error:  # the server that starts them has ended, or the system refuses
            raise _cannot_start(error) from error
        finally:
            theirs.close()
        worker = _Worker(process, ours, device)
        self._workers.append(worker)
        return worker

    def _send(self, worker: _Worker, stage: Stage, message: bytes) -> OSError | None:
        """Gives an idle worker a stage. If the worker has ended meanwhile, drops it and returns the sending error."""
        try:
            worker.pipe.send_bytes(message)
        except OSError as error:
            worker.process.kill()
            self._lost(worker)
            return error
        worker.stage, worker.cancelled = stage, None
        return None

    def _lost(self, worker: _Worker) -> list[Event]:
        worker.process.join()
        self._workers.remove(worker)
        worker.pipe.close()
        if worker.stage is None:
            return []
        code = worker.process.exitcode
        how = (
            f"was ended by {_signal_name(-code)}" if code is not None and code < 0 else f"exited with {code}"
        )
        hint = " (often: out of memory)" if code == -signal.SIGKILL else ""
        kind, message = worker.cancelled or ("WorkerLost", f"the worker process {how}{hint}")
        return [Event("failed", worker.stage.key, {"type": kind, "message": message, "traceback": ""})]


def _signal_name(number: int) -> str:
    """A signal's name; most real-time signals have none."""
    known = {int(one): one.name for one in signal.Signals}
    return known.get(number, f"signal {number}")


def _end(*workers: _Worker) -> None:
    """Ends workers, and the programs that plugins have started in them, which nobody would wait for."""
    alive = [worker.process.pid for worker in workers if worker.process.is_alive()]
    _signal(alive, signal.SIGSTOP)
    _end_below(*alive)
    for worker in workers:
        worker.process.kill()


def _end_below(*processes: int) -> None:
    """Ends all descendants of processes. They are stopped first, so that none starts another meanwhile."""
    below: set[int] = set()
    while new := set(descendants(*processes)) - below:
        _signal(new, signal.SIGSTOP)
        below |= new
    _signal(below, signal.SIGKILL)


def _signal(processes: Iterable[int], number: signal.Signals) -> None:
    for pid in processes:
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
            os.kill(pid, number)


class _Worker:
    def __init__(self, process: Any, pipe: Any, device: str) -> None:
        self.process = process
        self.pipe = pipe
        self.device = device
        self.stage: Stage | None = None
        self.spent = False  # after its stage it gets no other
        self.cancelled: tuple[str, str] | None = None  # type and message of the error


@contextlib.contextmanager
def _same_imports() -> Iterator[None]:
    """A server started inside has the working directory on its import path only if this process has it too.

    By default Python would always add it.
    """
    ours = {os.path.realpath(entry) for entry in sys.path}  # "" is the working directory
    if os.path.realpath("") in ours or SAFE_PATH in os.environ:
        yield
        return
    os.environ[SAFE_PATH] = SAFE_PATH_OF_SERVER
    try:
        yield
    finally:
        del os.environ[SAFE_PATH]


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Workers started inside do not import the caller's script again: stages only refer to importable plugins."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _work(pipe: Any, store_path: str, device: str, files: list[LocalFile]) -> None:
    """A worker's life: stages in, events out."""
    expect(files)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # SIGTERM may be sent to the whole process group: the worker ignores it, but it still ends what plugins fork.
    signal.signal(signal.SIGTERM, here(lambda: None))
    # With this method the locks that libraries make (tqdm does) are unlinked at once. Workers are killed, and would
    # otherwise leave them behind.
    multiprocessing.set_start_method("fork", force=True)
    _let_plugins_fork(pipe)
    _log_output(Path(store_path))
    from harness.devices import give_back_memory, keep_freed_memory
    from harness.stages import execute
    from harness.store import Store

    keep_freed_memory()
    gc.freeze()  # libraries stay loaded, so the collector need only look through what stages make
    stages: queue.Queue[bytes] = queue.Queue()
    send_lock = threading.Lock()

    def receive() -> None:
        while True:
            try:
                message = pipe.recv_bytes()
            except (EOFError, OSError):
                _end_below(os.getpid())
                os._exit(0)  # the runner is gone
            stages.put(message)

    def send(event: Event) -> None:
        with send_lock, contextlib.suppress(BrokenPipeError):
            pipe.send(event)

    threading.Thread(target=receive, daemon=True).start()
    store = Store(Path(store_path).absolute())  # a plugin may change the working directory
    while True:
        stage: Stage = pickle.loads(stages.get())
        threads = threading.enumerate()
        send(Event("began", stage.key))
        try:
            execute(stage, store, device, partial(reporter, send=send, every=0.2))
        except BaseException as error:  # a plugin must not end a worker; Ctrl-C is ignored here
            event = Event("failed", stage.key, describe_error(error))
        else:
            event = Event("done", stage.key)
        # Before the event is sent, so that the next stage, in this worker or another, finds the memory free.
        give_back_memory(device)
        if threads_left(threads):
            send(Event(SPENT, stage.key))
        send(event)


def _let_plugins_fork(pipe: connection.Connection) -> None:
    """Lets plugins use process pools and data loaders. What they fork ends when this process ends, in whatever way.

    pipe: the connection to the runner. Forked processes close their copy of it, or the runner would not see it close
    when this process ends.
    """
    multiprocessing.current_process().daemon = False  # a daemon may have no children
    alive, held = multiprocessing.Pipe(duplex=False)

    def watch() -> None:
        alive.poll(None)  # until no process holds the other end
        os._exit(1)

    def begin() -> None:
        pipe.close()
        held.close()
        threading.Thread(target=watch, daemon=True).start()

    os.register_at_fork(after_in_child=begin)


def _log_output(store: Path) -> None:
    """Sends what libraries print to a log file in the store, so that it does not disturb the progress display.

    If the store is gone, the run is over and this worker is about to end: its output is dropped.
    """
    logs = store / "logs"
    try:
        logs.mkdir(exist_ok=True)
        file = os.open(logs / f"worker-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except FileNotFoundError:
        file = os.open(os.devnull, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
