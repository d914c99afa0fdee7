"""A Ray cluster as the driver sees it: the connection, its nodes, and which of them may be used."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from harness.errors import HarnessError
from harness.executors.ray_tasks import examine

EXAMINATION = 300.0  # seconds that a node may take to answer before the first stage starts
ALONE = 600.0  # seconds to wait for a node when none is left: clusters replace nodes that were taken away
REACHABLE = 10.0  # seconds for a host to answer
LOOK_EVERY = 2.0  # seconds between two looks at the cluster's nodes


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to a running cluster. One that this process already has is used, and left open.

    address: auto (the cluster that this machine is part of, or $RAY_ADDRESS), HOST:PORT, or ray://HOST:PORT. Raises
    HarnessError.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    termination = signal.getsignal(signal.SIGTERM)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns of it in every run
    try:
        import ray
    except ImportError:
        raise HarnessError("--executor ray needs Ray: pip install 'psr-harness[ray]'") from None
    if ray.is_initialized():
        yield
        return
    _check_reachable(address)
    try:
        ray.init(address=address, namespace="psr-harness", log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # ConnectionError, ValueError, RuntimeError: by the kind of address
        reason = " ".join(str(error).split()) or type(error).__name__
        raise HarnessError(
            f"--address {address}: no Ray cluster can be reached: {reason.rstrip('. ')}; "
            "start one with `ray start --head`"
        ) from error
    if callable(termination) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, termination)  # Ray's own handler would end the process at once
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raises HarnessError if the host does not answer within seconds; Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # auto, or something that Ray itself refuses
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHABLE).close()
    except OSError as error:
        raise HarnessError(f"--address {address}: nothing answers there: {error}") from None


def cluster_device(name: str) -> str:
    """auto, cpu or cuda -> cpu or cuda, by what the connected cluster has. Raises HarnessError."""
    import ray

    if name not in ("auto", "cpu", "cuda"):
        raise HarnessError(f"--device {name}: Ray chooses the GPUs; use auto, cpu or cuda")
    gpus = ray.cluster_resources().get("GPU", 0)
    if name == "cuda" and not gpus:
        raise HarnessError("--device cuda: no node of the Ray cluster has a GPU")
    return "cuda" if name == "cuda" or (name == "auto" and gpus) else "cpu"


@dataclass
class Node:
    """A node of the cluster. accepted: None until it was examined."""

    id: str
    name: str
    cpus: float
    gpus: float
    accepted: bool | None = None


class Nodes:
    """The nodes that have room for a stage, examined before they get one.

    threads, gpu: what a stage needs. questions: the arguments of `examine`. problems: messages for the user, until
    the executor takes them.
    """

    def __init__(self, threads: int, gpu: bool, questions: Sequence[Any]) -> None:
        import ray

        self._ray = ray
        self._threads = threads
        self._gpu = gpu
        self._questions = questions
        self._examine = ray.remote(max_retries=0)(examine)
        self._examinations: dict[Any, str] = {}  # reference -> node
        self._nodes: dict[str, Node] = {}
        self._looked = 0.0
        self._alone_since: float | None = None
        self.problems: list[str] = []

    @property
    def accepted(self) -> list[Node]:
        return [node for node in self._nodes.values() if node.accepted]

    @property
    def room(self) -> int:
        """How many stages the accepted nodes can hold at a time."""
        return sum(self._slots(node) for node in self.accepted)

    @property
    def examinations(self) -> list[Any]:
        """References to the answers that are still to come; `examined` takes one that has."""
        return list(self._examinations)

    def name(self, node: str | None) -> str:
        return self._nodes[node].name if node in self._nodes else "a node that is gone"

    def examine_all(self) -> None:
        """Examines all nodes before the first stage starts. Raises HarnessError where no node can be used."""
        self.look()
        limit = time.monotonic() + EXAMINATION
        while self._examinations and time.monotonic() < limit:
            for reference in self._ray.wait(self.examinations, timeout=1.0)[0]:
                self.examined(reference)
        if not self.accepted:
            need = f"{self._threads} CPU{'s' * (self._threads > 1)}" + " and a GPU" * self._gpu
            said = self.problems or [f"a stage needs {need}, and no node that answered has them"]
            raise HarnessError("no node of the Ray cluster can be used:\n" + "\n".join(said))

    def look(self, now: bool = False) -> None:
        """Begins to examine new nodes and forgets those that are gone; Ray reports the tasks that ran there as lost.

        Does nothing if the last look was less than LOOK_EVERY seconds ago, unless `now`. Raises HarnessError where no
        node has been left for ALONE seconds.
        """
        if not now and time.monotonic() - self._looked < LOOK_EVERY:
            return
        self._looked = time.monotonic()
        alive = {}
        for facts in self._ray.nodes():
            resources = facts["Resources"]
            name = f"{facts['NodeManagerHostname']} ({facts['NodeManagerAddress']}, {facts['NodeID'][:8]})"
            node = Node(facts["NodeID"], name, resources.get("CPU", 0), resources.get("GPU", 0))
            if facts["Alive"] and self._slots(node):
                alive[node.id] = self._nodes.get(node.id, node)
        self.problems += [
            f"the node {node.name} is gone; what ran there runs again elsewhere"
            for node in self.accepted
            if node.id not in alive
        ]
        new = [node for node in alive.values() if node.id not in self._nodes]
        self._nodes = alive
        for node in new:
            options = {**at(node.id), "num_cpus": 0}
            self._examinations[self._examine.options(**options).remote(*self._questions)] = node.id
        self._check_alone()

    def examined(self, reference: Any) -> None:
        """Takes in a node's answer."""
        node = self._examinations.pop(reference)
        try:
            reasons = self._ray.get(reference)
        except Exception as error:  # no harness there, another Python, or the node is gone already
            reasons = [last_line(error)]
        if node in self._nodes:
            self._nodes[node].accepted = not reasons
            if reasons:
                self.refuse(node, reasons)

    def refuse(self, node: str | None, reasons: Sequence[str]) -> None:
        """Excludes a node from use, and notes the reasons for the user."""
        if node in self._nodes:
            self._nodes[node].accepted = False
            self.problems.append(f"the node {self._nodes[node].name} is refused: {'; '.join(reasons)}")

    def _slots(self, node: Node) -> int:
        slots = int(node.cpus // self._threads)
        return min(slots, int(node.gpus)) if self._gpu else slots

    def _check_alone(self) -> None:
        if self._examinations or self.accepted:
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = time.monotonic()
            self.problems.append(f"no node is left; waiting {ALONE / 60:g} minutes for another one")
        elif time.monotonic() - self._alone_since > ALONE:
            raise HarnessError("no node of the Ray cluster is left; run the same command again to resume")


def home() -> str:
    """The id of the node where the driver runs; for a driver outside the cluster, of the cluster's head node."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    own = ray.get_runtime_context().get_node_id()
    heads = [node["NodeID"] for node in alive if "node:__internal_head__" in node["Resources"]]
    return own if not heads or any(node["NodeID"] == own for node in alive) else str(heads[0])


def at(node: str) -> dict[str, Any]:
    """Ray's options for what is to run on this node and no other."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)}


def last_line(error: BaseException) -> str:
    """The last non-empty line of an error's text (for a remote error, what was raised there), else its type."""
    lines = [text.strip() for text in str(error).splitlines() if text.strip()]
    return lines[-1] if lines else type(error).__name__
