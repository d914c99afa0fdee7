"""Knowledge distillation: a smaller network learns from the answers of the trained one."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, ClassVar, Literal

from harness.api import (
    ClientHooks,
    CompressedModel,
    CompressionContext,
    Field,
    Model,
    ModelCompressor,
    PluginError,
    Reference,
    Surroundings,
)
from harness_plugins.compressors._state import check_finite, file_tensors, load_dense

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.api import Batch, LogitsFn, LossFn, Params


class Distillation(ModelCompressor):
    """A smaller network, trained towards the logits z of the trained one.

    A step minimises (1 - weight) CE(v, y) + weight T^2 KL(softmax(z / T) || softmax(v / T)), v the student's
    logits (Hinton et al., section 2, whose cross-entropy differs from KL by a constant). The teacher answers in
    eval mode for the very images the student sees.

    data `clients`: the same federation trains the student, so defences that change images or build on the loss
    hold for it as for any training, and a record's loss depends on that record alone: a guarantee composes over
    both trainings. data `public` or `private`: the server alone does, on the validation split, with Adam (lr 1e-3)
    and batches of 64, no defence taking part; that breaks a guarantee where the split is protected.

    facts: teacher_parameters, student_parameters. Raises PluginError where the student is not the smaller
    one, NotApplicable where a defence cannot train it, or replaces the loss towards the teacher. Cost: `rounds` rounds
    of training, or passes over the split, with one more forward pass of the teacher a step.
    """

    name: ClassVar[str] = "distillation"
    requires: ClassVar[tuple[str, ...]] = ("torch._dynamo",)  # which torch.optim imports
    reference: ClassVar[Reference | None] = Reference(
        title="Distilling the Knowledge in a Neural Network", authors="Hinton, Vinyals, Dean",
        venue="NIPS Workshop", year=2015, url="https://arxiv.org/abs/1503.02531",
    )  # fmt: skip

    student: Model = Field("lenet5", description="the smaller network: a model, with its parameters")
    data: Literal["clients", "public", "private"] = Field(
        "clients", description="what the student learns from: the clients' records, or the validation split"
    )
    rounds: int = Field(10, ge=1, description="federated rounds, or passes over the validation split")
    temperature: float = Field(2.0, gt=0, description="T, which softens both networks' answers")
    weight: float = Field(0.5, ge=0, le=1, description="share of the loss towards the teacher, in [0, 1]")

    @property
    def data_access(self) -> str:
        return "none" if self.data == "clients" else self.data

    @property
    def fine_tuning_rounds(self) -> int:
        return self.rounds if self.data == "clients" else 0

    @property
    def fine_tuning_hooks(self) -> tuple[str, ...]:
        return ("loss",) if self.data == "clients" else ()

    def check(self, model: nn.Module, surroundings: Surroundings) -> None:
        self._sizes(model, surroundings.build(self.student))

    def _sizes(self, teacher: nn.Module, student: nn.Module) -> dict[str, int]:
        """Their numbers of parameters, as facts; raises PluginError where the student is not the smaller one."""
        large, small = (sum(p.numel() for p in net.parameters()) for net in (teacher, student))
        if small >= large:
            raise PluginError(
                f"{self.name}: the student {self.student.label()} has {small:,} parameters, no fewer than the "
                f"{large:,} of the network it is to replace"
            )
        return {"teacher_parameters": large, "student_parameters": small}

    def compress(self, model: nn.Module, context: CompressionContext) -> CompressedModel:
        check_finite(model, self.name)
        teacher = copy.deepcopy(model).eval().requires_grad_(False)
        student = context.build(self.student)
        sizes = self._sizes(teacher, student)
        hook = TowardsTeacher(teacher, self.temperature, self.weight)
        if self.data == "clients":
            module = context.fine_tune(student, self.rounds, hook).eval()
        else:
            module = self._at_server(student, hook, context)
        return CompressedModel(module, file_tensors(module), facts=sizes)

    def _at_server(self, student: nn.Module, hook: TowardsTeacher, context: CompressionContext) -> nn.Module:
        import torch

        images, labels = context.data()
        key = torch.zeros((), dtype=torch.int64)
        loss = hook.loss(lambda params, batch, key: batch[1], lambda params, x: student(x))
        optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
        student.train()
        for _ in range(self.rounds):
            for index in torch.randperm(len(labels), generator=context.generator).split(64):
                index = index.to(labels.device)
                optimizer.zero_grad()
                loss({}, (images[index], labels[index]), key).mean().backward()
                optimizer.step()
        return student.eval()

    def restore(
        self, model: nn.Module, state: dict[str, Tensor], surroundings: Surroundings
    ) -> CompressedModel:
        return CompressedModel(load_dense(surroundings.build(self.student), state, self.name), dict(state))


class TowardsTeacher(ClientHooks):
    """The distillation loss at a client, in place of the loss so far. The teacher is in eval mode: record by record."""

    couples_samples: ClassVar[bool] = False
    replaces_loss: ClassVar[bool] = True

    def __init__(self, teacher: nn.Module, temperature: float, weight: float) -> None:
        self.teacher, self.temperature, self.weight = teacher, temperature, weight

    def loss(self, loss: LossFn, logits: LogitsFn) -> LossFn:
        from torch.nn import functional

        t = self.temperature

        def distilled(params: Params, batch: Batch, key: Tensor) -> Tensor:
            x, y = batch
            own = logits(params, x)
            wanted, given = (self.teacher(x) / t).log_softmax(1), (own / t).log_softmax(1)
            apart = (wanted.exp() * (wanted - given)).sum(1)
            truth = functional.cross_entropy(own, y, reduction="none")
            return (1 - self.weight) * truth + self.weight * t**2 * apart

        return distilled


PLUGINS = (Distillation,)
