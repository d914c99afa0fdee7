"""Stages as tasks of a Ray cluster. The driver places them, keeps the store, and writes the records.

A node is examined before it gets work: if its engine, plugins, numeric libraries or data differ from the driver's,
it is refused by name. A stage whose node or worker process is lost runs again; a stage that fails does not.
"""

from __future__ import annotations

import pickle
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.artifacts import files_of
from harness.errors import HarnessError
from harness.executors import Event
from harness.executors.compatibility import Identity
from harness.executors.ray_cluster import Nodes, at, home, last_line
from harness.executors.ray_tasks import Job, Mailbox, Outcome, run_stage
from harness.stage_specs import training_of
from harness.store import Store

if TYPE_CHECKING:
    from harness.contracts.metric import Metric
    from harness.plan import Plan, Stage

RETRIES = 3  # how often a stage is started again after its node or worker process was lost
HELD_BYTES = 1 << 30  # of inputs that are kept in the object store for later stages


@dataclass
class _Task:
    """A stage under way. node, reference: None while it waits for room."""

    stage: Stage
    job: Job
    threads: int
    node: str | None = None
    reference: Any = None
    began: bool = False
    cancelled: tuple[str, str] | None = None  # type and message of the error
    losses: list[str] = field(default_factory=list)


class RayExecutor:
    """Runs at most `jobs` stages at a time on the cluster that this process is connected to.

    A stage takes as many CPUs as it has threads and, with CUDA, one GPU. jobs: None for as many as there is room for.
    shared: every node sees the store's folder under the same path, and artifacts are written there; otherwise they
    travel through Ray's object store.
    """

    lends = False  # Ray reserves for a stage only the CPUs that it was declared to take

    def __init__(
        self,
        store: Path,
        device: str,
        plan: Plan,
        metrics: dict[str, tuple[Metric, ...]],
        *,
        jobs: int | None = None,
        shared: bool = False,
    ) -> None:
        import ray

        self._ray = ray
        self._store = Store(store.absolute())
        self._device = device
        self._jobs = jobs
        self._shared = str(self._store.path) if shared else None
        self._expected = pickle.dumps(Identity.of(plan, metrics))
        self._tasks: dict[str, _Task] = {}
        self._held: dict[str, tuple[Any, int]] = {}  # name of a file -> its reference and size
        self._events: list[Event] = []
        self._run_stage = ray.remote(max_retries=0)(run_stage)
        self._mailbox: Any = None
        self._token = self._store.path / f".ray-{uuid.uuid4().hex[:12]}.partial"  # a draft: see `drafts`
        if shared:
            self._token.touch()
        threads = max((training_of(s.spec).compute.threads for s in plan.stages.values()), default=1)
        questions = (self._expected, pickle.dumps(_datasets(plan)), self._shared, self._token.name)
        self._nodes = Nodes(threads, device == "cuda", questions)
        try:
            self._mailbox = ray.remote(Mailbox).options(num_cpus=0, **at(home())).remote()
            self._nodes.examine_all()
        except BaseException:
            self.close()
            raise

    @property
    def capacity(self) -> int:
        """How many stages there is room for now; nodes come and go."""
        return self._nodes.room if self._jobs is None else min(self._nodes.room, self._jobs)

    def submit(self, stage: Stage) -> None:
        try:
            message = pickle.dumps(stage)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise HarnessError(
                f"a plugin of this scenario cannot be sent to another process ({error}); define it in an "
                "importable module that is installed on every node"
            ) from error
        results = {key: self._store.stage_result(key) or {} for key in stage.needs}
        job = Job(message, self._expected, stage.key, 0, self._device, results, shared=self._shared)
        self._tasks[stage.key] = _Task(stage, job, training_of(stage.spec).compute.threads)
        self._place()

    def events(self, timeout: float) -> list[Event]:
        self._nodes.look()
        references = [t.reference for t in self._tasks.values() if t.reference is not None]
        references += self._nodes.examinations
        ready: set[Any] = set()
        if references:
            self._ray.wait(references, timeout=timeout)
            ready.update(self._ray.wait(references, num_returns=len(references), timeout=0)[0])
        else:
            time.sleep(timeout)
        # After the wait: the progress of a stage that has ended is in the mailbox by now.
        self._take_letters()
        for reference in [r for r in self._nodes.examinations if r in ready]:
            self._nodes.examined(reference)
        for task in [t for t in self._tasks.values() if t.reference in ready]:
            self._ended(task)
        self._place()
        found = [Event("problem", "", {"text": text}) for text in self._nodes.problems]
        found += [*self._events, *(Event("queued", key) for key, t in self._tasks.items() if not t.began)]
        self._nodes.problems.clear()
        self._events.clear()
        return found

    def cancel(self, key: str, kind: str, reason: str) -> None:
        task = self._tasks.get(key)
        if task is None:
            return
        task.cancelled = kind, reason
        if task.reference is None:
            self._fail(task, kind, reason)
        else:
            self._ray.cancel(task.reference, force=True)

    def close(self) -> None:
        with suppress(Exception):  # the cluster may be gone, and then nothing runs there
            for task in self._tasks.values():
                if task.reference is not None:
                    self._ray.cancel(task.reference, force=True)
            if self._mailbox is not None:
                self._ray.kill(self._mailbox)
        self._tasks.clear()
        self._held.clear()
        self._token.unlink(missing_ok=True)
        self._store.close()

    # starting -----------------------------------------------------------------------------------

    def _place(self) -> None:
        """Waiting tasks go to the accepted nodes with the most room."""
        for task in [t for t in self._tasks.values() if t.reference is None]:
            free = {}
            for node in self._nodes.accepted:
                there = [t for t in self._tasks.values() if t.node == node.id]
                cpus = node.cpus - sum(t.threads for t in there)
                if cpus >= task.threads and (self._device != "cuda" or len(there) < int(node.gpus)):
                    free[node.id] = cpus
            if not free:
                return
            task.node = max(free, key=lambda node: free[node])
            options = {**at(task.node), "num_cpus": task.threads, "num_gpus": int(self._device == "cuda")}
            job = task.job if self._shared is not None else replace(task.job, files=self._files(task))
            task.reference = self._run_stage.options(**options).remote(job, self._mailbox)

    def _files(self, task: _Task) -> dict[str, Any]:
        """References to the artifacts of the stages that this one needs."""
        if sum(size for _, size in self._held.values()) > HELD_BYTES:
            self._held.clear()  # Ray keeps the inputs of running tasks by itself
        found = {}
        for name in {name for result in task.job.results.values() for name in files_of(result)}:
            if name not in self._held:
                data = self._store.read_file(name)
                self._held[name] = self._ray.put(data), len(data)
            found[name] = self._held[name][0]
        return found

    # ending -------------------------------------------------------------------------------------

    def _ended(self, task: _Task) -> None:
        try:
            outcome: Outcome = self._ray.get(task.reference)
        except self._ray.exceptions.RayTaskError as error:  # our code on the node, not the stage
            self._fail(task, type(error).__name__, last_line(error), str(error))
            return
        except self._ray.exceptions.RayError as error:
            self._lost(task, error)
            return
        if outcome.refused:
            self._nodes.refuse(task.node, outcome.refused)
            self._again(task)
        elif not outcome.results:
            self._tasks.pop(task.job.key)
            self._events.append(Event("failed", task.job.key, dict(outcome.error or {})))
        else:
            self._keep(task.stage, outcome)

    def _keep(self, stage: Stage, outcome: Outcome) -> None:
        """Puts what a stage returned into the store, files before the rows that refer to them."""
        for name, data in outcome.files.items():
            self._store.write_file(name, data)
        for one in (*stage.beside, stage):
            result = outcome.results.get(one.key)
            if result is not None:
                facts = (one.key, one.kind, one.signature, one.label)
                self._store.put_stage(*facts, "done", result, result["seconds"])
        self._tasks.pop(stage.key)
        self._events.append(Event("done", stage.key))

    def _lost(self, task: _Task, error: Exception) -> None:
        """Handles the loss of a node or worker process, which may be due to `cancel`."""
        if task.cancelled is not None:
            self._fail(task, *task.cancelled)
            return
        task.losses.append(f"{type(error).__name__} on {self._nodes.name(task.node)}")
        self._nodes.look(now=True)
        if len(task.losses) > RETRIES:
            message = f"its worker was lost {len(task.losses)} times: {'; '.join(task.losses)}"
            self._fail(task, "WorkerLost", message, str(error))
            return
        self._nodes.problems.append(
            f"{task.stage.label}: {task.losses[-1]}; started again, {len(task.losses)} of {RETRIES}"
        )
        self._again(task)

    def _again(self, task: _Task) -> None:
        task.job = replace(task.job, attempt=task.job.attempt + 1)
        task.node = task.reference = None
        task.began = False

    def _fail(self, task: _Task, kind: str, message: str, traceback: str = "") -> None:
        self._tasks.pop(task.job.key, None)
        error = {"type": kind, "message": message, "traceback": traceback}
        self._events.append(Event("failed", task.job.key, error))

    def _take_letters(self) -> None:
        try:
            letters: list[tuple[int, Event]] = self._ray.get(self._mailbox.take.remote(), timeout=10)
        except self._ray.exceptions.RayError:  # stages can go on without their progress
            return
        for attempt, event in letters:
            task = self._tasks.get(event.key)
            if task is not None and task.job.attempt == attempt:
                task.began = True
                self._events.append(event)


def _datasets(plan: Plan) -> list[tuple[Any, Path, str]]:
    scenarios = {p.cell.scenario.name: p.cell.scenario for p in plan.cells}
    return [(s.dataset, s.root, plan.facts[name].fingerprint) for name, s in scenarios.items()]
