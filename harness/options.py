"""The engine's own choices that a scenario makes by name: server optimiser, local optimiser, schedule.

They are written like plugins, `name` or `{name: {parameter: value}}`, but belong to the engine.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import core_schema

from harness.errors import PluginError, did_you_mean, quoted
from harness.findings import findings


class Option(BaseModel):
    """A frozen set of parameters with a name. A class without a name stands for the choice among its subclasses."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: ClassVar[str] = ""
    what: ClassVar[str] = ""  # the choice in words, for messages

    def spec(self) -> dict[str, Any]:
        """`{name: parameters}`, defaults spelled out."""
        return {self.name: self.model_dump(mode="json")}

    @classmethod
    def choices(cls) -> dict[str, type[Option]]:
        """Name -> class, for each option of this choice."""
        return {option.name: option for option in cls.__subclasses__()}

    @classmethod
    def read(cls, value: Any) -> Option:
        """An instance from `name` or `{name: parameters}`. Raises PluginError with details, as plugins do."""
        if isinstance(value, cls):
            return value
        choices = cls.choices()
        name, parameters = value, None
        if isinstance(value, dict) and len(value) == 1:
            ((name, parameters),) = value.items()
        if not isinstance(name, str):
            first = next(iter(choices))
            raise PluginError(f"{cls.what} is `name` or `{{name: {{parameter: value}}}}`, such as {first}")
        if name not in choices:
            raise PluginError(f"unknown {cls.what} {quoted(name)}; {did_you_mean(name, choices)}")
        if parameters is not None and not isinstance(parameters, dict):
            raise PluginError(
                f"the parameters of {cls.what} {name!r} must be a mapping such as {{name: value}}"
            )
        try:
            return choices[name](**(parameters or {}))
        except ValidationError as error:
            found = findings(name, choices[name].model_fields, error)
            details = [((name, *location), text, given) for location, text, given in found]
            raise PluginError(f"{cls.what} {name}: " + "; ".join(d[1] for d in details), details) from None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        if cls.name or not cls.what:
            return handler(source)
        return core_schema.no_info_plain_validator_function(
            cls.read,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value.spec()),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return handler(schema) if cls.name or not cls.what else {"x-option": cls.__name__}


# What the server does with the aggregated update delta (d,), in round t ---------------------------

# v starts from tau^2, which must fit into a float32 even for the largest tau.
Tau = Annotated[float, Field(gt=0, le=1e18, description="degree of adaptivity: added to sqrt(v)")]


class ServerOptimizer(Option):
    """How the server applies the aggregated update (Reddi et al., ICLR 2021, arXiv 2003.00295)."""

    what: ClassVar[str] = "server optimiser"


class FedAvg(ServerOptimizer):
    """x <- x + lr delta (McMahan et al., AISTATS 2017, with lr = 1)."""

    name: ClassVar[str] = "fedavg"
    lr: float = Field(1.0, gt=0, description="server learning rate")


class FedAvgM(ServerOptimizer):
    """m <- momentum m + delta; x <- x + lr m (Hsu, Qi, Brown 2019, arXiv 1909.06335)."""

    name: ClassVar[str] = "fedavgm"
    lr: float = Field(1.0, gt=0, description="server learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="server momentum, a share of the last step")


class FedAdam(ServerOptimizer):
    """x <- x + lr m / (sqrt(v) + tau), m and v the running means of delta (beta1) and of delta^2 (beta2)."""

    name: ClassVar[str] = "fedadam"
    lr: float = Field(0.1, gt=0, description="server learning rate")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.99, ge=0, lt=1, description="decay of the second moment")
    tau: Tau = 1e-3
    initial: float | None = Field(
        None, ge=0, description="first value of v; null: tau^2, as published; 0 in Flower"
    )
    bias_correction: bool = Field(
        False, description="scale lr in round t by sqrt(1 - beta2^t) / (1 - beta1^t), as Adam does"
    )


class FedYogi(ServerOptimizer):
    """As fedadam, with v <- v - (1 - beta2) delta^2 sign(v - delta^2)."""

    name: ClassVar[str] = "fedyogi"
    lr: float = Field(0.1, gt=0, description="server learning rate")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.99, ge=0, lt=1, description="decay of the second moment")
    tau: Tau = 1e-3
    initial: float | None = Field(
        None, ge=0, description="first value of v; null: tau^2, as published; 0 in Flower"
    )


class FedAdagrad(ServerOptimizer):
    """As fedadam, with v <- v + delta^2; without momentum unless beta1 is given."""

    name: ClassVar[str] = "fedadagrad"
    lr: float = Field(0.1, gt=0, description="server learning rate")
    beta1: float = Field(0.0, ge=0, lt=1, description="decay of the first moment; 0: no momentum")
    tau: Tau = 1e-3
    initial: float | None = Field(
        None, ge=0, description="first value of v; null: tau^2, as published; 0 in Flower"
    )


# How clients step ----------------------------------------------------------------------------------


class ClientOptimizer(Option):
    """The optimiser of a client's local training, as in torch.optim, with a fresh state each round."""

    what: ClassVar[str] = "optimizer"
    requires: ClassVar[tuple[str, ...]] = ()  # heavy modules that it imports
    lr: float


class SGD(ClientOptimizer):
    """Stochastic gradient descent."""

    name: ClassVar[str] = "sgd"
    lr: float = Field(0.05, gt=0, description="learning rate")
    momentum: float = Field(0.0, ge=0, lt=1, description="momentum, a share of the last step")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty, added to the gradient")
    nesterov: bool = Field(False, description="Nesterov momentum; needs momentum > 0")

    @model_validator(mode="after")
    def _nesterov(self) -> SGD:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum greater than 0")
        return self


class Adam(ClientOptimizer):
    """Adam (Kingma, Ba, ICLR 2015, arXiv 1412.6980)."""

    name: ClassVar[str] = "adam"
    requires: ClassVar[tuple[str, ...]] = ("torch._dynamo",)
    lr: float = Field(1e-3, gt=0, description="learning rate")
    betas: tuple[float, float] = Field(
        (0.9, 0.999), strict=False, description="decay of the two moments, each in [0, 1)"
    )
    eps: float = Field(1e-8, gt=0, description="added to the denominator")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty, added to the gradient")

    @model_validator(mode="after")
    def _betas(self) -> Adam:
        _check_betas(self.betas)
        return self


class NAdam(ClientOptimizer):
    """Adam with Nesterov momentum (Dozat, ICLR workshop 2016)."""

    name: ClassVar[str] = "nadam"
    requires: ClassVar[tuple[str, ...]] = ("torch._dynamo",)
    lr: float = Field(2e-3, gt=0, description="learning rate")
    betas: tuple[float, float] = Field(
        (0.9, 0.999), strict=False, description="decay of the two moments, each in [0, 1)"
    )
    eps: float = Field(1e-8, gt=0, description="added to the denominator")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty, added to the gradient")
    momentum_decay: float = Field(4e-3, ge=0, description="decay of the momentum schedule")

    @model_validator(mode="after")
    def _betas(self) -> NAdam:
        _check_betas(self.betas)
        return self


def _check_betas(betas: tuple[float, float]) -> None:
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"each of betas must lie in [0, 1), not {list(betas)}")


# The local learning rate over the rounds -----------------------------------------------------------


class Schedule(Option):
    """The share of the local learning rate used in each round."""

    what: ClassVar[str] = "schedule"

    def multiplier(self, round: int, rounds: int) -> float:
        """The share of the learning rate in `round` (from 0) out of `rounds` rounds."""
        raise NotImplementedError


class Constant(Schedule):
    """Always 1."""

    name: ClassVar[str] = "constant"

    def multiplier(self, round: int, rounds: int) -> float:
        return 1.0


class Cosine(Schedule):
    """final + (1 - final) (1 + cos(pi round / rounds)) / 2: `final` would be reached after the last round."""

    name: ClassVar[str] = "cosine"
    final: float = Field(0.0, ge=0, le=1, description="share of the learning rate at the end")

    def multiplier(self, round: int, rounds: int) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * round / rounds)) / 2


class Step(Schedule):
    """factor^floor(round / every)."""

    name: ClassVar[str] = "step"
    every: int = Field(ge=1, description="rounds between two cuts")
    factor: float = Field(0.1, gt=0, le=1, description="what each cut multiplies the learning rate by")

    def multiplier(self, round: int, rounds: int) -> float:
        return self.factor ** (round // self.every)


class Linear(Schedule):
    """1 + (final - 1) round / rounds: `final` would be reached after the last round."""

    name: ClassVar[str] = "linear"
    final: float = Field(0.0, ge=0, le=1, description="share of the learning rate at the end")

    def multiplier(self, round: int, rounds: int) -> float:
        return 1 + (self.final - 1) * round / rounds


CHOICES: dict[str, type[Option]] = {c.__name__: c for c in (ServerOptimizer, ClientOptimizer, Schedule)}
