"""Attacks, in four families: evasion, poisoning, byzantine and privacy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from harness.contracts.base import Plugin
from harness.contracts.defence import ClientHooks

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from harness.contracts.aggregator import Aggregator
    from harness.contracts.compressor import Compressor
    from harness.contracts.defence import Defence


# By phase, from the most that an attacker may know to the least. The first is the default; for privacy, the default is
# what the threat's attacks need.
KNOWLEDGE = {
    "training": ("omniscient", "updates", "own"),
    "inference": ("white-box", "black-box"),
    "privacy": ("server", "white-box", "black-box"),
}
PHASES = {"evasion": "inference", "poisoning": "training", "byzantine": "training", "privacy": "privacy"}


class Attack(Plugin):
    """An attack of any family: subclass EvasionAttack, PoisoningAttack, ByzantineAttack or PrivacyAttack."""

    kind: ClassVar[str] = "attack"
    family: ClassVar[str] = ""
    controls_training: ClassVar[bool | None] = None  # for attacks on training: see PoisoningAttack

    @property
    def phase(self) -> str:
        """training, inference or privacy: the phase of the threats that it belongs to."""
        return PHASES[self.family]

    def check(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        """Raises NotApplicable, with the reason, where the attack makes no sense on such data.

        Called before anything is trained: the same error from a method that is called later fails the cell.
        """


@dataclass(frozen=True)
class Surrogate:
    """Another model of the scenario, on which adversarial examples are made; a part that is None is the target's.

    compressed: whether the model compressors follow its training; update compressors are part of the training.
    """

    name: str
    defences: tuple[Defence, ...] | None = None
    aggregators: tuple[Aggregator, ...] | None = None
    compressors: tuple[Compressor, ...] | None = None
    compressed: bool = True


@dataclass(frozen=True)
class EvasionContext:
    """eps and norm: the radius in [0, 1] pixels (None: not bounded). generator: on x's device.

    budget: the threat's radius; None: it has none. eps is the attack's own, else the budget, else the attack's default.
    """

    num_classes: int
    generator: torch.Generator
    eps: float | None = None
    norm: str | None = None
    budget: float | None = None


# The largest L2 radius: the distance of two opposite images of 10^12 values. The square of a far larger one overflows,
# and then nothing is moved.
FARTHEST = 1e6


def radius_problem(norm: str | None, eps: float | None) -> str | None:
    """What is wrong with a radius in [0, 1] pixels, most often that it was meant in 255ths; None: nothing."""
    if norm == "l2" and eps is not None and eps > FARTHEST:
        return f"an l2 radius of {eps:g} reaches every image: those of n values are sqrt(n) apart at most"
    if norm != "linf" or eps is None or eps <= 1:
        return None
    hint = f"; did you mean {eps:g}/255?" if eps <= 255 else ""
    return f"an linf radius of {eps:g} reaches every image, as pixels lie in [0, 1]{hint}"


class EvasionAttack(Attack):
    """Changes inputs at inference. The engine enforces range and norm ball and seeds every global RNG around it."""

    family: ClassVar[str] = "evasion"
    # What it asks of the model. This and `norm` may be a property instead, where they follow from a parameter.
    access: ClassVar[Literal["gradients", "logits", "labels", "none"]] = "gradients"
    norm: ClassVar[Literal["linf", "l2", "l0", None]] = None  # None: not bounded by a norm
    default_eps: ClassVar[float | None] = None  # radius where neither the attack nor the threat says one

    @property
    def surrogate(self) -> Surrogate | None:
        """The model that examples are made on, for attacks by transfer; None: the target itself."""
        return None

    @property
    def effort(self) -> int:
        """Gradient or query evaluations per sample; more of them should never make the same attack weaker."""
        return 1

    def parts(self, num_classes: int) -> list[EvasionAttack]:
        """The attacks it consists of, in the order they are run; the worst of them counts, sample by sample.

        Each is run on the samples that the scored model still gets right after the parts before it; examples may be
        made on another model. Most attacks have one part, the attack itself.
        """
        return [self]

    def passes(self, num_classes: int) -> int:
        """The most forward passes that it costs per sample, a gradient counted as three; for estimates."""
        return self.effort * (3 if self.access == "gradients" else 1)

    @model_validator(mode="after")
    def _radius_in_pixels(self) -> Self:
        problem = radius_problem(self.norm, getattr(self, "eps", None))
        if problem:
            raise ValueError(problem)
        return self

    def radius(self, budget: float | None = None) -> float | None:
        """The eps used: the attack's own parameter, else the threat's budget, else the default."""
        own = getattr(self, "eps", None)
        if own is not None:
            return float(own)
        return budget if budget is not None else self.default_eps

    def details(self, num_classes: int) -> dict[str, Any]:
        """Plain facts for the record that follow from the data, such as which parts of an ensemble are run."""
        return {}

    @abstractmethod
    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, context: EvasionContext) -> Tensor:
        """model: pixels -> logits, eval mode. x (b, c, h, w) in [0, 1], y (b,). Returns x_adv like x."""

    def functional(
        self, eps: float | None = None
    ) -> Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor] | None:
        """A pure form for use inside training losses: (loss(x) -> (b,), x, key) -> x_adv; None: there is none."""
        return None

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, seed: int = 0, **context: Any) -> Tensor:
        """One batch outside a threat: x (b, c, h, w) in [0, 1] -> x_adv, range and budget enforced."""
        from harness.evaluation.evasion import attack_batch

        return attack_batch(self, model, x, y, seed=seed, **context)


@dataclass(frozen=True)
class ClientData:
    """One client's records: images (n, c, h, w) uint8 or float in [0, 1], labels (n,) int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class PoisonContext:
    """For `poison`: the client, how many classes there are, and a seeded generator on the data's device.

    malicious: all malicious clients, in order (distributed triggers split by rank). root: the scenario's
    folder, for a dataset of the attack's own.
    """

    client: int
    num_classes: int
    generator: torch.Generator
    malicious: tuple[int, ...] = ()
    root: Path | None = None


class PoisoningAttack(ClientHooks, Attack):
    """Changes what malicious clients train on, and, through the client hooks, how they train.

    A backdoor also overrides the property `backdoor_target` and the method `trigger`: its success rate is then scored.
    `controls_training` declares that the attackers of its paper run their own training and not the clients' software:
    in the rounds in which they attack, they leave out what the stack's defences would do at a client, such as noise and
    clipping. Otherwise they tamper with data alone, and the defences act on what is trained on these data. A threat can
    overrule this (`capability`).
    """

    family: ClassVar[str] = "poisoning"
    controls_training: ClassVar[bool | None] = False

    @property
    def backdoor_target(self) -> int | None:
        """The class that the trigger should produce; None: not a backdoor. Override it as a property."""
        return None

    def poison(self, data: ClientData, context: PoisonContext) -> ClientData:
        """What the malicious client trains on instead of its data; never mutates the input."""
        return data

    def trigger(self, x: Tensor) -> Tensor:
        """x (b, c, h, w) float in [0, 1] with the trigger at full strength, as used at inference."""
        raise NotImplementedError

    def success_records(self, input_shape: tuple[int, int, int], root: Path | None) -> ClientData | None:
        """Records of the attack's own on which its success is scored, instead of triggered test images.

        Labels are the true ones; -1 for a record that belongs to none of the classes.
        """
        return None


@dataclass
class ByzantineContext:
    """What the attackers know. The engine enforces it: what the threat does not grant is None.

    m: malicious clients this round. round: from 0, continuing through fine-tuning. own (m, d): what they would honestly
    send. ids: the clients whose updates `honest` holds, row by row. aggregator: aggregator(updates (n, d)) -> (d,), the
    server's chain of rules, run on a fresh copy of its real state; its rows are those of `honest`, then the m crafted
    ones; only for an omniscient threat. It draws other random numbers than the server then will, the same ones in every
    call of a round: the rule is known, its secret coins are not. state: the attackers' own memory between rounds.
    moved (d,): how the global weights moved in the last round, w_t - w_(t-1), which clients' hooks are told too;
    None in the first. sees_others: whether `honest` holds the updates of other clients; otherwise it is `own`, and the
    aggregator leaves those rows out.
    """

    m: int
    round: int
    generator: torch.Generator
    own: Tensor | None = None
    n: int = 0  # clients in the round
    f: int = 0  # what the server's rule is told
    global_weights: Tensor | None = None
    layout: dict[str, slice] = field(default_factory=dict)
    aggregator: Callable[[Tensor], Tensor] | None = None
    ids: list[int] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    moved: Tensor | None = None
    sees_others: bool = True


class ByzantineAttack(Attack):
    """Malicious clients send crafted updates."""

    family: ClassVar[str] = "byzantine"
    controls_training: ClassVar[bool | None] = True
    uses_own: ClassVar[bool] = True  # False: `context.own` is never read, so it need not be computed
    # Numbers of the clients whose honest updates it needs in every round: refused where one is absent or malicious.
    needs_clients: ClassVar[tuple[int, ...]] = ()
    # The least it needs: own, updates (the others') or omniscient (the rule too).
    knowledge: ClassVar[Literal["own", "updates", "omniscient"]] = "own"

    def check_round(self, n: int, m: int, sees_others: bool) -> None:
        """Raises PluginError where it can craft nothing for m malicious clients in a round of n.

        sees_others: whether it is shown the others' updates, as in `context.sees_others`. Asked before a run, for every
        round that the threat attacks.
        """

    @abstractmethod
    def craft(self, honest: Tensor, context: ByzantineContext) -> Tensor:
        """honest (h, d): the updates known to the attackers, never mutated. Returns (m, d)."""

    def __call__(self, honest: Tensor, m: int = 1, **context: Any) -> Tensor:
        """honest (h, d) -> (m, d) in a default context. Raises PluginError."""
        import torch

        from harness.errors import PluginError

        if not isinstance(honest, torch.Tensor):
            raise PluginError(
                f"{self.name}: honest must be a torch tensor (h, d), not {type(honest).__name__}"
            )
        context.setdefault("round", 0)
        context.setdefault("n", len(honest) + m)
        context.setdefault("f", m)
        context.setdefault("generator", torch.Generator(honest.device).manual_seed(0))
        context.setdefault("ids", list(range(len(honest))))
        context.setdefault("layout", {"all": slice(0, honest.shape[-1])})
        return self.craft(honest, ByzantineContext(m=m, **context))
