"""Several attacks, of which the worst counts for each sample; and attacks made on another model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import model_validator

from harness.api import (
    Aggregator,
    Compressor,
    Defence,
    EvasionAttack,
    EvasionContext,
    Field,
    Reference,
    Surrogate,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

ASKS = ("none", "labels", "logits", "gradients")  # from the least to the most


def one_after_another(
    attack: EvasionAttack, model: nn.Module, x: Tensor, y: Tensor, context: EvasionContext
) -> Tensor:
    """Each part on what the ones before left right; a sample keeps the first change that fools the model."""
    import torch

    result = x.clone()
    with torch.no_grad():
        left = (model(x).argmax(1) == y).nonzero().squeeze(1)
    for part in attack.parts(context.num_classes):
        if not len(left):
            break
        radius = _within(part, context)
        own = replace(context, eps=radius, norm=part.norm)
        moved = part.perturb(model, x[left].clone(), y[left], own).detach()
        with torch.no_grad():
            fooled = model(moved).argmax(1) != y[left]
        result[left[fooled]] = moved[fooled]
        left = left[~fooled]
    return result


def _within(part: EvasionAttack, context: EvasionContext) -> float | None:
    """A part's radius: never beyond the whole's, which a caller may have made smaller."""
    radius = part.radius(context.budget)
    return radius if radius is None or context.eps is None else min(radius, context.eps)


class MultiAttack(EvasionAttack):
    """The worst case over several attacks, sample by sample: each is run on what the ones before left right.

    All bounded by the same norm (or by none); each keeps to the radius that it would have alone: its own, else
    the threat's budget, else its default. The radius of the whole is the largest of these. Source: the union of
    perturbation models of Tramèr and Boneh.
    """

    name = "multi-attack"
    reference = Reference(
        title="Adversarial Training and Robustness for Multiple Perturbations", authors="Tramèr, Boneh",
        venue="NeurIPS", year=2019, url="https://arxiv.org/abs/1904.13000",
    )  # fmt: skip
    attacks: tuple[EvasionAttack, ...] = Field(
        ("fgsm", "pgd"),
        strict=False,
        min_length=1,
        description="evasion attacks, in the order in which they are run",
    )

    @model_validator(mode="after")
    def _one_norm(self) -> Self:
        norms = {attack.norm for attack in self.attacks}
        if len(norms) > 1:
            raise ValueError(f"attacks of one norm are needed, not {', '.join(sorted(map(str, norms)))}")
        if any(attack.surrogate is not None for attack in self.attacks):
            raise ValueError("transfer cannot be one of several attacks: give it a cell of its own")
        return self

    @property
    def norm(self) -> str | None:  # type: ignore[override]
        return self.attacks[0].norm

    @property
    def access(self) -> str:  # type: ignore[override]
        return max((a.access for a in self.attacks), key=ASKS.index)

    @property
    def effort(self) -> int:
        return sum(a.effort for a in self.attacks)

    def passes(self, num_classes: int) -> int:
        return sum(a.passes(num_classes) for a in self.attacks)

    def radius(self, budget: float | None = None) -> float | None:
        radii = [r for a in self.attacks if (r := a.radius(budget)) is not None]
        return max(radii, default=None)

    def check(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        for attack in self.attacks:
            attack.check(num_classes, input_shape)

    def details(self, num_classes: int) -> dict[str, Any]:
        return {"parts": [attack.label() for attack in self.attacks]}

    def parts(self, num_classes: int) -> list[EvasionAttack]:
        return [part for attack in self.attacks for part in attack.parts(num_classes)]

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, context: EvasionContext) -> Tensor:
        return one_after_another(self, model, x, y, context)


class Transfer(EvasionAttack):
    """Examples made on another model of the scenario and tried on this one.

    The surrogate shares the cell's seed, data and federation. `undefended` has no defence and no compressor,
    `uncompressed` no compressor of the model; or `defences`, `aggregators` and `compressors` say what it has
    where it differs. Its training is a stage like any other, shared with the cells that have it.
    """

    name = "transfer"
    reference = Reference(
        title="Transferability in Machine Learning: from Phenomena to Black-Box Attacks using Adversarial Samples",
        authors="Papernot, McDaniel, Goodfellow", venue="arXiv 1605.07277", year=2016,
        url="https://arxiv.org/abs/1605.07277",
    )  # fmt: skip
    attack: EvasionAttack = Field("pgd", description="the attack made on the surrogate")
    source: Literal["undefended", "uncompressed", "other"] = Field(
        "undefended", description="which model examples are made on; other: as the lists below say"
    )
    defences: tuple[Defence, ...] | None = Field(None, strict=False, description="the surrogate's defences")
    aggregators: tuple[Aggregator, ...] | None = Field(
        None, strict=False, description="the surrogate's rules"
    )
    compressors: tuple[Compressor, ...] | None = Field(
        None, strict=False, description="the surrogate's compressors"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        lists = (self.defences, self.aggregators, self.compressors)
        if (self.source == "other") != any(part is not None for part in lists):
            raise ValueError(
                "defences, aggregators and compressors are for source: other, which needs one of them"
            )
        if self.attack.surrogate is not None:
            raise ValueError("transfer of a transfer: give the inner attack itself")
        return self

    @property
    def surrogate(self) -> Surrogate | None:
        if self.source == "undefended":
            return Surrogate("undefended", defences=(), compressors=())
        if self.source == "uncompressed":
            return Surrogate("uncompressed", compressed=False)
        lists = {"defences": self.defences, "aggregators": self.aggregators, "compressors": self.compressors}
        told = {kind: part for kind, part in lists.items() if part is not None}
        name = ", ".join(
            f"{kind} {' + '.join(p.label() for p in part) or 'none'}" for kind, part in told.items()
        )
        return Surrogate(name, **told)  # type: ignore[arg-type]

    @property
    def norm(self) -> str | None:  # type: ignore[override]
        return self.attack.norm

    @property
    def access(self) -> str:  # type: ignore[override]
        return self.attack.access

    def details(self, num_classes: int) -> dict[str, Any]:
        return self.attack.details(num_classes)

    @property
    def effort(self) -> int:
        return self.attack.effort

    def passes(self, num_classes: int) -> int:
        return self.attack.passes(num_classes)

    def parts(self, num_classes: int) -> list[EvasionAttack]:
        inner = self.attack.parts(num_classes)
        return (
            [self] if inner == [self.attack] else [self.model_copy(update={"attack": part}) for part in inner]
        )

    def radius(self, budget: float | None = None) -> float | None:
        return self.attack.radius(budget)

    def check(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        self.attack.check(num_classes, input_shape)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, context: EvasionContext) -> Tensor:
        return self.attack.perturb(model, x, y, context)


PLUGINS = (MultiAttack, Transfer)
