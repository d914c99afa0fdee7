"""The ServerApp and ClientApp behind `engine: flower`: a simulation of exactly one cell."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from harness.errors import HarnessError, describe_error
from harness.files import replacing
from harness.flower import messages
from harness.flower.engine import ERROR, PROGRESS, RESULT
from harness.flower.job import Simulated, read, simulated
from harness.flower.strategy import FederationStrategy

if TYPE_CHECKING:
    from torch import Tensor


@lru_cache(maxsize=1)
def _simulated(path: str) -> Simulated:
    return simulated(read(path))


def engine_client() -> ClientApp:
    """A ClientApp that plays whichever client a message names, from the job in the run's configuration."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer_training(_simulated(str(context.run_config["job"])), message, context)

    @app.train("craft")
    def craft(message: Message, context: Context) -> Message:
        federation = _simulated(str(context.run_config["job"])).federation
        return Message(federation.craft_here(message.content), reply_to=message)

    return app


def answer_training(own: Simulated, message: Message, context: Context, discreet: bool = False) -> Message:
    """One client's round. Buffers that stay local live in the node's own state, under the client's number.

    discreet: the answer does not say how many records the client holds.
    """
    federation = own.federation
    start, buffers = messages.read_start(message.content, federation.device)
    config = messages.settings(message.content)
    number = config["client"]
    client, kept = federation.clients[number], f"buffers.{number}"
    if kept in context.state:
        client.buffers = messages.tensors(context.state.array_records[kept], federation.device)
    else:
        client.buffers = None
    updates, after = federation.train(start, [number], [number] if config["attacks"] else [], buffers)
    if client.buffers is not None:
        context.state[kept] = messages.arrays(client.buffers)
    content = messages.update_record(number, updates[number], after[number], 1 if discreet else client.size)
    return Message(content, reply_to=message)


def engine_server() -> ServerApp:
    """A ServerApp that trains the job, reports its rounds to a file, and leaves its result in another."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        job = Path(str(context.run_config["job"]))
        folder = job.parent
        try:
            result = serve(simulated(read(str(job))), grid, folder / PROGRESS)
        except Exception as error:
            (folder / ERROR).write_text(json.dumps(describe_error(error)))
            raise
        with replacing(folder / RESULT) as draft:
            draft.write_bytes(pickle.dumps(result))

    return app


def serve(own: Simulated, grid: Grid, progress: Path) -> dict[str, Any]:
    """Train over a Grid. Returns the parts of a `Trained`, with the module's state in place of the module."""
    clients = own.training.clients
    nodes = settled_nodes(grid)
    strategy = FederationStrategy(
        own.ready, {i: nodes[i % len(nodes)] for i in range(clients)}, _to(progress)
    )
    strategy.train(grid)
    state: dict[str, Tensor] = own.module.state_dict()
    return {
        "state": state,
        "outcome": own.federation.outcome,
        "prepared": own.ready.prepared,
        "recorder": own.ready.recorder,
    }


def settled_nodes(grid: Grid, wanted: int = 0, timeout: float = 600.0) -> Sequence[int]:
    """The nodes' ids, sorted, once there are `wanted`; for 0, once none has come or gone for a second.

    Raises HarnessError where that takes longer than `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    before: list[int] = []
    since = time.monotonic()
    while time.monotonic() < deadline:
        now = sorted(grid.get_node_ids())
        if now != before:
            before, since = now, time.monotonic()
        if len(now) >= max(wanted, 1) and (wanted or time.monotonic() - since > 1):
            return now
        time.sleep(0.2)
    raise HarnessError(f"{len(before)} of {wanted or 'any'} nodes connected within {timeout:g} s")


def _to(path: Path) -> Any:
    def report(done: int, total: int, entry: dict[str, Any]) -> None:
        with path.open("a") as file:
            file.write(json.dumps({"done": done, "total": total, "entry": entry}) + "\n")

    return report
