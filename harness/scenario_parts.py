"""The parts of a scenario, as frozen models, and the rules that relate their fields.

Every part lists its rules in `problems`, which yields (location, message) and looks only at the values it
is given: the reader also calls it where some fields are wrong, so that all mistakes are reported together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from harness import registry
from harness.contracts.base import Plugin
from harness.contracts.data import Partitioner
from harness.entry_points import BUILTIN
from harness.errors import quoted
from harness.naming import stack_label
from harness.nesting import members
from harness.options import SGD, ClientOptimizer, Constant, FedAvg, Schedule, ServerOptimizer

M = TypeVar("M", bound=BaseModel)
Found = Iterator[tuple[tuple[str | int, ...], str]]


@dataclass(frozen=True)
class Axis:
    """Marks a field that lists plugins, with sweeps. stack: an item may be a chain. none: an item may be `none`."""

    kind: str
    stack: bool = True
    none: bool = True


def _slug(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
        raise ValueError(
            f"{quoted(value)} cannot be a name: use letters, digits, '-', '_' and '.', "
            "the first a letter or a digit, 100 at most"
        )
    return value


Slug = Annotated[str, AfterValidator(_slug)]


class Part(BaseModel):
    """A frozen, strict part of a scenario."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    @classmethod
    def problems(cls, values: Mapping[str, Any], given: Collection[str]) -> Found:
        """(location, message) of each broken rule. values: valid fields and defaults. given: the fields set."""
        yield from ()

    @model_validator(mode="after")
    def _keep_rules(self) -> Part:
        values = {name: getattr(self, name) for name in type(self).model_fields}
        found = list(self.problems(values, self.model_fields_set))
        if found:
            raise ValueError("; ".join(message for _, message in found))
        self._settle()
        return self

    def _settle(self) -> None:
        """Fill in what depends on other fields."""

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # frozen for everybody else


def builtin(kind: str, name: str) -> Plugin:
    """A built-in plugin, for defaults, even where another package has one of the same name."""
    return registry.resolve(kind, f"{BUILTIN}/{name}")


def spec_of(plugin: Plugin) -> dict[str, Any]:
    return {registry.registry().qualified(plugin): plugin.parameters()}


def independent(value: Any, written: Any) -> Any:
    """`written`, a value in its JSON form, with every plugin named in a way that does not depend on what is installed.

    At any depth, built-in plugins are named by their short name, others with their distribution in front.
    """
    if isinstance(value, Plugin):
        return _independent_plugin(value, written)
    inner = members(value)
    if isinstance(inner, dict) and isinstance(written, dict):
        fields = type(value).model_fields if isinstance(value, BaseModel) else {}
        keys = {name: (fields[name].alias if name in fields else None) or name for name in inner}
        known = {keys[name]: item for name, item in inner.items()}
        return {k: independent(known[k], part) if k in known else part for k, part in written.items()}
    if isinstance(inner, list) and isinstance(written, list) and len(inner) == len(written):
        return [independent(item, part) for item, part in zip(inner, written, strict=True)]
    return written


def _independent_plugin(plugin: Plugin, written: Any) -> Any:
    """written: `{name: parameters}`, however the name is spelled, or the parameters alone."""
    values = {name: getattr(plugin, name) for name in type(plugin).model_fields}
    named = isinstance(written, dict) and [key.rpartition("/")[2] for key in written] == [plugin.name]
    if not named or not isinstance(parameters := next(iter(written.values())), dict):
        return independent(values, written)
    known = registry.registry()
    distribution = known.entry_of(plugin).distribution if known.knows(plugin) else BUILTIN
    spelling = plugin.name if distribution == BUILTIN else f"{distribution}/{plugin.name}"
    return {spelling: independent(values, parameters)}


def repeated(items: Collection[Any], field: str, what: str) -> Found:
    """Values that are equal once defaults and sweeps are filled in."""
    seen = set()
    for i, item in enumerate(items):
        stack = item if isinstance(item, tuple) else (item,)
        key = json.dumps([spec_of(plugin) for plugin in stack], sort_keys=True)
        if key in seen:
            yield (field, i), f"the {what} {stack_label(stack)} is repeated; list each value only once"
        seen.add(key)


def default(cls: type[M]) -> Callable[[], M]:
    """A default factory, for fields whose default is a part with all its own defaults."""
    return lambda: cls.model_validate({})


class LocalTraining(Part):
    """What a client does in a round: epochs or steps, not both; one epoch where neither is given."""

    epochs: int | None = Field(None, ge=1, description="passes over the client's data per round")
    steps: int | None = Field(None, ge=1, description="optimiser steps per round, instead of epochs")
    batch_size: int = Field(
        32,
        ge=1,
        description="records per step (expected, under Poisson sampling); the last of an epoch may have fewer",
    )
    optimizer: ClientOptimizer = Field(
        default_factory=default(SGD),
        examples=[{"sgd": {"lr": 0.05}}],
        description="the local optimiser, without memory of earlier rounds",
    )
    schedule: Schedule = Field(
        default_factory=default(Constant), examples=["cosine"], description="learning rate over the rounds"
    )
    proximal: float = Field(0.0, ge=0, description="FedProx mu: weight of ||w - w_global||^2 / 2")

    @classmethod
    def problems(cls, values: Mapping[str, Any], given: Collection[str]) -> Found:
        if values.get("epochs") is not None and values.get("steps") is not None:
            yield ("steps",), "local takes epochs or steps, not both"

    def _settle(self) -> None:
        if self.epochs is None and self.steps is None:
            self._set("epochs", 1)


class Federation(Part):
    """Who trains together, and how."""

    clients: int = Field(10, ge=1, description="number of clients")
    rounds: int = Field(10, ge=1, le=1_000_000, description="communication rounds")
    participation: float = Field(
        1.0, gt=0, le=1, description="share of the clients that take part in a round"
    )
    sampling: Literal["fixed", "poisson"] = Field(
        "fixed",
        description="how they are drawn: a fixed number, or an independent coin per client, which amplifies privacy",
    )
    partition: Partitioner = Field(
        default_factory=lambda: cast(Partitioner, builtin("partitioner", "iid")),
        examples=[{"dirichlet": {"alpha": 0.5}}],
        description="how the training records are assigned to clients; default: iid",
    )
    weighting: Literal["examples", "uniform"] = Field(
        "examples",
        description="weight of a client in the mean; always uniform under a defence that protects whole clients",
    )
    server: ServerOptimizer = Field(
        default_factory=default(FedAvg), examples=[{"fedavg": {"lr": 1.0}}], description="server optimiser"
    )
    byzantine_tolerance: float | None = Field(
        None,
        ge=0,
        lt=0.5,
        description="share of malicious clients robust rules are told, rounded up; default: the threats' largest",
    )
    local: LocalTraining = Field(
        default_factory=default(LocalTraining), examples=[{"epochs": 1}], description="training at a client"
    )
    evaluate_every: int = Field(1, ge=0, description="rounds between evaluations on val; 0: only at the end")
    buffers: Literal["average", "local"] = Field(
        "average",
        description="BatchNorm's and other statistics: averaged in every round, or kept by each client between its "
        "rounds (FedBN). The released model has their average either way; with local, it is over all clients that "
        "took part, from one message each at the end, and until then only evaluations on val use it",
    )


class Evaluation(Part):
    """How scores are taken."""

    batch_size: int = Field(
        256, ge=1, description="records per batch; attacks draw random starts batch by batch"
    )
    subset: int | None = Field(
        None, ge=1, description="test records used, seeded and class-stratified; default: all"
    )
    eot: int = Field(
        10, ge=1, description="draws averaged by gradient attacks on a model that answers at random"
    )
    certified: int = Field(
        200, ge=1, description="test records certified, seeded and class-stratified, where a defence can"
    )


class Compute(Part):
    """What decides the numbers of a stage beside its parameters, and how long it may take."""

    threads: int = Field(1, ge=1, le=1024, description="CPU threads of a stage")
    precision: Literal["float32", "bf16"] = Field("float32", description="arithmetic of local training")
    tf32: bool = Field(False, description="allow TensorFloat-32 matrix products on a GPU")
    clients: Literal["auto", "sequential", "vectorised", "semi-vectorised"] = Field(
        "auto",
        description="how clients train: one after another, as one program, or as one but for their convolutions; auto: "
        "on a GPU the fastest of these, by a few timed steps, on a CPU one after another",
    )
    chunk: int | None = Field(
        None, ge=1, description="most clients trained as one program; default: as many as fit the memory"
    )
    trainings: int = Field(
        1,
        ge=1,
        description="most seeds of a cell, or shadow models, that train as one program, if clients do",
    )
    channels_last: bool | Literal["auto"] = Field(
        "auto",
        description="layout of images and convolutions; auto: on a CPU, for networks that pool and do not normalise",
    )
    stage_timeout: float | None = Field(
        None, gt=0, description="seconds after which a stage fails; default: never"
    )

    def vectorised(self, device: str) -> bool:
        """Whether clients train as one program on this device.

        auto: they do on a GPU, where one client's kernels leave most of the card idle and a calibration finds the
        exceptions: compared with one after another, fifty clients of small-cnn trained 12 times as fast on an H200,
        twenty of resnet9 under dp-sgd 0.7 times. They do not on a CPU: ten clients of small-cnn reached 0.73 to 0.97
        of the speed of one after another, and 0.79 under dp-sgd (tests/benchmarks/vectorised.py).
        """
        return device.startswith("cuda") if self.clients == "auto" else self.clients != "sequential"
