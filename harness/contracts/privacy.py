"""Privacy attacks: what they may see of a federation, what they ask to be trained, what they return."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from harness.contracts.attack import Attack
from harness.contracts.choices import Chosen

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from harness.contracts.defence import Guarantee
    from harness.contracts.metric import Score

Logits = Callable[["Tensor"], "Tensor"]

VIOLATION = "audit-violation"  # flag of records whose audit refutes the guarantee


@dataclass(frozen=True)
class Canaries(Chosen):
    """Canaries planted in a training, each by an independent fair coin, to test what the release reveals of them.

    unit: `record`: records of one client, drawn by the seed from those that take part; or `client`: clients that send
    a canary in every round that draws them. form of a record: `gradient`: its loss is `scale` times one coordinate of
    the parameters, so that its gradient is scale e_j (Steinke et al. 2023, section 6, Dirac canaries); or `image`:
    uniform noise with a random label. repeats: how often each record is planted. A client canary's update is
    -scale e_j. opposite: the coin decides the sign instead of the presence, for guarantees whose neighbours replace
    data (clients only).
    """

    count: int
    unit: Literal["record", "client"] = "record"
    form: Literal["gradient", "image"] = "gradient"
    scale: float = 10.0
    repeats: int = 1
    opposite: bool = False


@dataclass(frozen=True)
class TrainingVariant:
    """Another training of the same cell, run and cached like any other.

    keep: the share of the training pool's groups that it may use; `name` and the seed draw them, and with them the
    partition, the initial weights and the batches; None: the target's own training, with the same draws. complement_of:
    the name of another variant with the same keep; this one uses the groups that the other one leaves out.
    recorded_rounds: how many rounds, evenly spread, `VariantView.rounds` shows. compressed: whether the cell's model
    compressors are applied to it too, as to the target; not needed where only its rounds are looked at.
    """

    name: str
    keep: float | None = 0.5
    complement_of: str | None = None
    recorded_rounds: int = 0
    canaries: Canaries | None = None
    compressed: bool = True


@dataclass(frozen=True)
class Observation(Chosen):
    """Updates that an attack wants to look at, each from a client that trains on a few records in one round.

    records: how many are drawn at each client behind the update; None: all it has. batch_size: None for all in one
    step. at: the round, `start` (initial weights) or `end` (the trained model). count: how many updates, each with its
    own draw of clients and records. batch_norm: `train` for batch statistics at the client, `eval` for the global ones.
    attribute: (images, labels) -> (n,) bool; the clients of even draws, from 0, then hold only records that have it,
    those of odd draws only records that do not.
    """

    records: int | None = 1
    epochs: int = 1
    batch_size: int | None = None
    at: Literal["start", "end"] = "start"
    count: int = 1
    batch_norm: Literal["train", "eval"] = "train"
    attribute: Callable[[Tensor, Tensor], Tensor] | None = None


@dataclass
class ObservedUpdate:
    """One update as the server receives it, after defences and update compressors, and how it came about.

    update (d,): local minus global; weights (d,): global. module: the network with these weights, in the
    client's mode. clients: 1, or how many the server sees the mean of. records: how many they trained on in total.
    sizes, shares: for each client, how many of these records it has and how much its update counts in the mean; () may
    stand for one client, which has them all. What an attack finds is compared with the records in that order of
    clients. optimizer: name and settings of the clients' optimiser, with the learning rate of the round. proximal:
    FedProx's mu, which also pulls each step back towards the global weights. attribute: whether the records have what
    the observation asks about; the truth, for scoring.
    """

    update: Tensor
    weights: Tensor
    module: nn.Module
    layout: dict[str, slice]
    records: int
    batch_size: int
    epochs: int
    optimizer: dict[str, Any]
    num_classes: int
    input_shape: tuple[int, int, int]
    clients: int = 1
    attribute: bool | None = None
    proximal: float = 0.0
    sizes: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()

    def gradient(self) -> Tensor:
        """(d,) -update / lr: for one plain SGD step the gradient itself, for several their sum."""
        return -self.update / self.optimizer["lr"]


@dataclass(frozen=True)
class RecordedRound:
    """A round as the server saw it: weights (d,), and the updates (n, d) of `clients`.

    Where the server sees only sums, updates is their mean (1, d), weighted as in the training, and clients is ().
    """

    round: int
    weights: Tensor
    updates: Tensor
    clients: tuple[int, ...]


@dataclass(frozen=True)
class Planted:
    """A training's canaries: which were included (m,) bool, and what the release says of each.

    signal (m,): how far the updates or models that the guarantee's adversary sees moved against the
    canary's gradient (higher: more likely included); None for images. images, labels: of image canaries.
    """

    included: np.ndarray
    signal: np.ndarray | None = None
    images: Tensor | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class VariantView:
    """What the adversary sees of another training, asked for as a TrainingVariant.

    logits: of its released model, like the target's. mask: over the members, then the non-members; True for a record
    that was trained on, at a client that takes part in some of its rounds. rounds: those recorded, where the threat
    grants server. canaries: where the variant has some. guarantee: that training's own.
    """

    logits: Logits
    mask: np.ndarray
    rounds: tuple[RecordedRound, ...] = ()
    canaries: Planted | None = None
    guarantee: Guarantee | None = None


@dataclass
class PrivacyView:
    """What the threat's adversary may see: the target's outputs, and the records it tests.

    logits: images (n, c, h, w) in [0, 1] -> (n, k) logits of the released model (black-box).
    module: the released network, where the threat grants white-box or server.
    members / non_members: (images, labels), equally many, drawn in the same way from the training pool, by group where
    there are groups; empty for attacks that do without. Members are all records of clients that take part in some
    round, including those that chance left out of every batch. population: the adversary's own records, the validation
    split.
    observed: what an attack with an `observation` asked for, where the threat grants server.
    apply: (weights (d,), images) -> logits, differentiable, in eval mode: the network with other weights (server).
    All tensors are on one device; `logits` takes images from any. Only `module` is on another device where the threat
    grants server and the network was quantised for the CPU.
    """

    logits: Logits
    members: tuple[Tensor, Tensor]
    non_members: tuple[Tensor, Tensor]
    module: nn.Module | None = None
    variants: Mapping[str, VariantView] = field(default_factory=dict)
    population: tuple[Tensor, Tensor] | None = None
    observed: tuple[ObservedUpdate, ...] = ()
    apply: Callable[[Tensor, Tensor], Tensor] | None = None


@dataclass(frozen=True)
class PrivacyContext:
    """num_classes and a seeded generator on the data's device. progress(done, total): optional to call."""

    num_classes: int
    generator: torch.Generator
    progress: Callable[[int, int], None] = lambda done, total: None


@dataclass(frozen=True)
class Membership:
    """A membership attack's result: scores (n,), higher means more likely a member; is_member (n,) bool.

    groups (n,): the group of each record, such as a patient, filled in by the engine where the data have groups.
    """

    scores: np.ndarray
    is_member: np.ndarray
    groups: np.ndarray | None = None


@dataclass(frozen=True)
class Reconstruction:
    """What was reconstructed of the records behind each observed update, in any order.

    images: one (b, c, h, w) in [0, 1] per update, or None; labels: one (b,) int64 per update, or None. The engine fills
    in the truth, true_images and true_labels, and what a guess could use that looks at no update: the mean image
    (c, h, w) of the validation records and the share of each class (k,) among them.
    """

    images: tuple[Tensor, ...] | None = None
    labels: tuple[Tensor, ...] | None = None
    true_images: tuple[Tensor, ...] | None = None
    true_labels: tuple[Tensor, ...] | None = None
    mean_image: Tensor | None = None
    class_shares: Tensor | None = None


@dataclass(frozen=True)
class Audit:
    """An empirical lower bound: with this confidence, no guarantee below `epsilon` at `delta` can be true.

    guarantee: what the audited training claims; None: it claims nothing. facts: how it was found.
    """

    epsilon: float
    delta: float
    confidence: float
    guarantee: Guarantee | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def violated(self) -> bool:
        """Whether the claim is refuted, at this confidence."""
        claim = self.guarantee
        return claim is not None and claim.holds and self.epsilon > claim.epsilon


class PrivacyAttack(Attack):
    """Measures what a release leaks."""

    family: ClassVar[str] = "privacy"
    needs_non_members: ClassVar[bool] = True  # False: the view has neither members nor non-members
    # The share of the training records to keep out of every training where the scenario sets no `holdout`.
    holdout: ClassVar[float] = 0.2
    # The least it needs: black-box (outputs), white-box (the released network), server (updates, round by round).
    knowledge: ClassVar[Literal["black-box", "white-box", "server"]] = "black-box"
    scores: ClassVar[dict[str, Score]] = {}  # what a result that is a dict may hold
    audits: ClassVar[bool] = False  # True: its result is an Audit
    # True: it reads gradients off updates, which only clients with SGD send.
    needs_sgd: ClassVar[bool] = False

    def trainings(self, cell: Any) -> list[TrainingVariant]:
        """Further trainings it needs, besides the target."""
        return []

    @property
    def effort(self) -> int:
        """How many gradients of a batch it computes besides its trainings, for estimates."""
        return 0

    @property
    def observation(self) -> Observation | None:
        """The updates it wants to see; None: none."""
        return None

    @abstractmethod
    def run(
        self, view: PrivacyView, context: PrivacyContext
    ) -> Membership | Reconstruction | Audit | dict[str, float]:
        """The attack. Membership, Reconstruction and Audit are scored by the metrics; a dict is scored as it is."""
