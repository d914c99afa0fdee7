"""What runs on the nodes of a Ray cluster: a check of what is installed there, then stages."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from harness.errors import describe_error
from harness.executors import Event, reporter
from harness.files import temporary_folder

if TYPE_CHECKING:
    from harness.plan import Stage
    from harness.store import Store


@dataclass(frozen=True)
class Job:
    """All that a node needs for one stage.

    stage, expected: pickled `Stage` and `Identity`. They are separate because the node unpickles and checks `expected`
    first: one that lacks a plugin could not unpickle the stage, and has to be able to say so. results: by key, of the
    stages that this one needs. files: name in the store -> reference to its content. shared: the store's folder, if
    every node sees it; files are then not used.
    """

    stage: bytes
    expected: bytes
    key: str
    attempt: int
    device: str
    results: dict[str, dict[str, Any]]
    files: dict[str, Any] = field(default_factory=dict)
    shared: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How a stage ended. results: its own and those of the stages beside it, by key; empty where it failed.

    files: what it wrote, where the store is not shared. refused: why the node did not begin it.
    """

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    error: dict[str, str] | None = None
    refused: tuple[str, ...] = ()


class Mailbox:
    """An actor beside the driver that holds progress until the driver takes it."""

    def __init__(self) -> None:
        self._letters: list[tuple[int, Event]] = []

    def put(self, attempt: int, event: Event) -> None:
        self._letters.append((attempt, event))

    def take(self) -> list[tuple[int, Event]]:
        letters, self._letters = self._letters, []
        return letters


def examine(expected: bytes, datasets: bytes, shared: str | None, token: str) -> list[str]:
    """The reasons why this node cannot be used, one line each.

    token: the name of a file that the driver keeps in a shared store: a node that lacks it sees another folder.
    """
    found = list(_differences(expected))
    if found:
        return found
    from harness.executors.compatibility import data_differences

    found = data_differences(pickle.loads(datasets))
    if shared is not None:
        try:
            with tempfile.NamedTemporaryFile(dir=Path(shared) / "artifacts"):
                if not (Path(shared) / token).exists():
                    raise FileNotFoundError(f"{shared} is another folder there")
        except OSError as error:
            found.append(f"the store {shared} is not shared with it ({error}); use --artifacts objects")
    return found


def run_stage(job: Job, mailbox: Any) -> Outcome:
    """Compute a stage. What the stage raises becomes part of the outcome: an exception from here is never its own."""
    refused = _differences(job.expected)
    if refused:
        return Outcome(refused=refused)
    letters: list[Any] = []

    def send(event: Event) -> None:
        with suppress(Exception):  # progress that cannot be sent must not end a stage
            letters[:] = [mailbox.put.remote(job.attempt, event)]

    try:
        stage: Stage = pickle.loads(job.stage)
        with _folder(job) as folder:
            send(Event("began", job.key))
            from harness.stages import execute

            bench = _bench(folder, job)
            report = partial(reporter, send=send, every=0.5)
            results = execute(stage, cast("Store", bench), job.device, report)
            return Outcome(results, bench.written(job.files) if job.shared is None else {})
    except BaseException as error:  # a plugin must not end a worker
        return Outcome(error=describe_error(error))
    finally:
        _delivered(letters)


@cache
def _differences(expected: bytes) -> tuple[str, ...]:
    """How this node differs, looked up once per worker process and run: one started later may find other packages."""
    return tuple(pickle.loads(expected).differences())


@contextmanager
def _folder(job: Job) -> Iterator[Path]:
    if job.shared is not None:
        yield Path(job.shared)
        return
    with temporary_folder("psr-stage-") as folder:
        yield folder


def _bench(folder: Path, job: Job) -> Any:
    """The store of one stage on a node: holds the results and files that it needs, and collects what it writes."""
    import ray

    from harness.artifacts import Artifacts

    class Bench(Artifacts):
        def stage_result(self, key: str) -> dict[str, Any] | None:
            return job.results.get(key)

        def put_stage(self, *_: Any) -> None:
            """Does nothing: the driver writes the rows."""

        def written(self, given: dict[str, Any]) -> dict[str, bytes]:
            files = (p for p in self.path.rglob("*") if p.is_file())
            names = [str(p.relative_to(self.path)) for p in files]
            return {name: self.read_file(name) for name in names if name not in given}

    bench = Bench(folder)
    for name, reference in job.files.items():
        bench.write_file(name, ray.get(reference))
    return bench


def _delivered(letters: list[Any]) -> None:
    """Waits until the last progress has reached the mailbox, so that the outcome does not overtake it."""
    import ray

    with suppress(Exception):
        ray.get(letters, timeout=10)
