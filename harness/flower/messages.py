"""What travels between ServerApp and ClientApps: tensors as ArrayRecords, plain numbers as ConfigRecords."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import torch

from harness.federation.local import Start

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, RecordDict
    from torch import Tensor

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"
BUFFER = "buffer."  # the prefix of buffers' names among the arrays
# The fields of a Start beside its tensors.
FACTS = (
    "round",
    "multiplier",
    "rounds",
    "done",
    "clients",
    "malicious",
    "share",
)
WHO = ("clients", "malicious", "share")  # the fields among these that tell who else takes part
HELLO, TRAIN, CRAFT = "query", "train", "train.craft"


def arrays(tensors: dict[str, Tensor]) -> ArrayRecord:
    """Tensors of any shape, by name; exact to the bit."""
    from flwr.app import Array, ArrayRecord

    return ArrayRecord({name: Array(tensor.detach().cpu().numpy()) for name, tensor in tensors.items()})


def tensors(record: ArrayRecord, device: str) -> dict[str, Tensor]:
    """The inverse of `arrays`."""
    return {name: torch.from_numpy(array.numpy().copy()).to(device) for name, array in record.items()}


def start_record(
    start: Start,
    buffers: dict[str, Tensor],
    client: int,
    attacks: bool,
    discreet: bool = False,
    **more: Any,
) -> RecordDict:
    """What a client needs to train in a round.

    attacks: whether it is malicious and active. discreet: leaves out who else takes part. more: further plain values.
    """
    from flwr.app import ConfigRecord, RecordDict

    values = {"weights": start.weights} | {BUFFER + name: b for name, b in buffers.items()}
    if start.moved is not None:
        values["moved"] = start.moved
    config = ConfigRecord(
        {
            "client": client,
            "attacks": attacks,
            **facts_of(start, discreet),
            **more,
        }
    )
    return RecordDict({ARRAYS: arrays(values), CONFIG: config})


def facts_of(start: Start, discreet: bool = False) -> dict[str, Any]:
    """What a Start says beside its tensors. discreet: leaves out who else takes part."""
    said = [name for name in FACTS if not (discreet and name in WHO)]
    return {name: getattr(start, name) for name in said} | {"multiplier": float(start.multiplier)}


def settings(content: RecordDict) -> dict[str, Any]:
    """The plain values of a message."""
    return dict(content.config_records[CONFIG])


def read_start(content: RecordDict, device: str) -> tuple[Start, dict[str, Tensor]]:
    """The inverse of `start_record`: the start, as far as it was told, and the global buffers."""
    config = content.config_records[CONFIG]
    values = tensors(content.array_records[ARRAYS], device)
    facts: dict[str, Any] = {name: config[name] for name in FACTS if name in config}
    start = Start(weights=values.pop("weights"), moved=values.pop("moved", None), **facts)
    return start, {name.removeprefix(BUFFER): value for name, value in values.items()}


def update_record(client: int, update: Tensor, buffers: dict[str, Tensor], examples: int) -> RecordDict:
    """A client's answer: its update (d,), its float buffers and how many records it counts for."""
    from flwr.app import ConfigRecord, MetricRecord, RecordDict

    values = {"update": update} | {BUFFER + name: b for name, b in buffers.items()}
    about, metrics = ConfigRecord({"client": client}), MetricRecord({"num-examples": examples})
    return RecordDict({ARRAYS: arrays(values), CONFIG: about, METRICS: metrics})


def read_update(content: RecordDict, device: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The inverse of `update_record`, without the count."""
    values = tensors(content.array_records[ARRAYS], device)
    update = values.pop("update")
    return update, {name.removeprefix(BUFFER): value for name, value in values.items()}


def to_bytes(value: Any) -> bytes:
    """Nested dicts and lists of tensors and plain values as bytes, for the simulation's side channel."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def from_bytes(data: bytes) -> Any:
    """The inverse of `to_bytes`. Only ever called on what the same simulation wrote."""
    return torch.load(io.BytesIO(data), weights_only=False)
