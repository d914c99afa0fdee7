"""Compressors, of the model after training and of the update before it is sent."""

from __future__ import annotations

import pickle
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from harness.contracts.base import Plugin
from harness.errors import PluginError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from harness.contracts.defence import ClientHooks
    from harness.contracts.model import Model

DATA_ACCESS = ("none", "public", "private")


@dataclass
class CompressedModel:
    """A compressed network and the tensors that make up its file.

    state: what is written to disk (plain tensors; int8 weights as int8), enough for `restore`.
    differentiable: gradients with respect to the input are those of `module` itself.
    twin: a differentiable straight-through copy for adaptive attacks, if there is one.
    """

    module: nn.Module
    state: dict[str, Tensor]
    differentiable: bool = True
    twin: nn.Module | None = None
    device: str | None = None  # "cpu" where the kernels exist only there; None: any
    # What was reached, e.g. the sparsity; kept in the record.
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Surroundings:
    """What a compressor may know of the network's surroundings: the shape of its data, and a way to build others.

    build(model): an untrained network of another architecture for the same data, with the scenario's
    normalisation, the defences' changes and seeded weights.
    """

    input_shape: tuple[int, int, int]
    num_classes: int
    build: Callable[[Model], nn.Module]


class FineTune(Protocol):
    """fine_tune(module, rounds, hooks): the same federation, defences and attackers train `module` in place.

    `module` may have other parameters than the network that it was made from. Weights of convolution and linear layers
    that an earlier compressor pruned do not stay zero by themselves: a compressor that fine-tunes must hold them there.
    At every client the hooks come before the defences; where a defence protects records, they must declare
    `couples_samples = False`. The privacy cost of the rounds is accounted for. Raises NotApplicable where a defence
    cannot train this network, or not with these hooks.
    """

    def __call__(self, module: nn.Module, rounds: int, *hooks: ClientHooks) -> nn.Module: ...


@dataclass
class CompressionContext(Surroundings):
    """What a model compressor may use.

    data(): the images (n, c, h, w) in [0, 1] and labels (n,) that `data_access` declares; raises PluginError where it
    is `none`, or `public` and the scenario declares no public data.
    """

    generator: torch.Generator
    data: Callable[[], tuple[Tensor, Tensor]]
    fine_tune: FineTune


class Compressor(Plugin):
    """A compressor of either kind: subclass ModelCompressor or UpdateCompressor."""

    kind: ClassVar[str] = "compressor"
    acts_on: ClassVar[str] = ""  # model | update


class ModelCompressor(Compressor):
    """Makes a trained network smaller or faster. Chains compose: each gets the module of the one before."""

    acts_on: ClassVar[str] = "model"
    differentiable: ClassVar[bool] = True  # False: white-box gradient attacks need a surrogate or a twin
    straight_through: ClassVar[bool] = False  # True: what it returns has a `twin`
    comes_last: ClassVar[bool] = False  # True: it leaves no weights in float32, so no other may follow it

    @property
    def data_access(self) -> Literal["none", "public", "private"]:
        """none, public (data the scenario declares unprotected) or private (the validation split)."""
        return "none"

    @property
    def fine_tuning_rounds(self) -> int:
        """Federated rounds asked of `context.fine_tune`, for planning; 0: none.

        Models among its parameters are assumed to be what is fine-tuned: beside a defence that cannot train one of
        them, the compressor is not applicable.
        """
        return 0

    @property
    def fine_tunings(self) -> tuple[int, ...]:
        """The rounds of each call of `context.fine_tune`, in order, for planning; by default one call for all of them.

        Clients are drawn anew for each call: a rule for which a round has too few of them is not applicable.
        """
        return (self.fine_tuning_rounds,) if self.fine_tuning_rounds else ()

    @property
    def fine_tuning_hooks(self) -> tuple[str, ...]:
        """Names of the client hooks that it gives `context.fine_tune`, such as `loss`, for planning.

        A defence that replaces the loss or gradient of such a hook is not applicable with this compressor.
        """
        return ()

    def check(self, model: nn.Module, surroundings: Surroundings) -> None:
        """Raises NotApplicable or PluginError, before anything is trained, where it cannot compress such a network.

        model: the scenario's, on the meta device (shapes without values), as is what `surroundings.build` returns.
        Neither has been changed by the defences, nor by compressors before this one.
        """

    @abstractmethod
    def compress(self, model: nn.Module, context: CompressionContext) -> CompressedModel:
        """model: in eval mode, not to be mutated (copy it). Returns the compressed network and its file."""

    @abstractmethod
    def restore(
        self, model: nn.Module, state: dict[str, Tensor], surroundings: Surroundings
    ) -> CompressedModel:
        """The compressed network, rebuilt from the uncompressed architecture and the tensors of its file.

        model: what `compress` was given, with NaN for every float of its state, so that all values have to come from
        the file. Behind another compressor, it is the network that the other one restored.
        """


# Bytes of facts that are not counted: enough for a few numbers that both sides could have agreed on beforehand. The
# built-in compressors send one number, d.
FREE_FACTS = 128


@dataclass
class Payload:
    """What goes over the wire.

    tensors: by name, in the types in which they are sent, indices included; their bytes are counted. facts: small
    plain values that both sides need, such as d; what exceeds 128 bytes is counted too.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors, and of the facts beyond the free ones."""
        return _counted(self)


def _counted(payload: Payload) -> int:
    tensors = sum(t.numel() * t.element_size() for t in payload.tensors.values())
    return tensors + max(0, _size(payload.facts) - FREE_FACTS)


def _size(fact: Any) -> int:
    """Bytes that a fact takes on the wire: 8 a number, more for a large integer."""
    if isinstance(fact, int):  # bool too
        return max(8, (fact.bit_length() + 7) // 8)
    if isinstance(fact, float) or fact is None:
        return 8
    if isinstance(fact, str | bytes):
        return len(fact.encode() if isinstance(fact, str) else fact)
    if isinstance(fact, dict):
        return sum(_size(key) + _size(value) for key, value in fact.items())
    if isinstance(fact, list | tuple):
        return sum(map(_size, fact))
    return len(pickle.dumps(fact))


@dataclass
class Exchanged:
    """The updates that a round's messages delivered and the bytes they took, one entry per client.

    updates: the server's view of each, (d,). sent: bytes of the message that carries the update. before: bytes that
    the client sent earlier, in the middle of the round. answered: bytes that it received besides the model.
    """

    updates: list[Tensor]
    sent: list[int]
    before: list[int]
    answered: list[int]


@dataclass(frozen=True)
class UpdateCompressionContext:
    """What encoder and decoder know besides the update.

    round: from 0. generator: the client's own. shared: the same random stream for the server and all clients of a
    round, restarted for each call, so that what is drawn from it need not be sent. Both are on the update's device.
    layout: parameter name -> slice of d; shapes: parameter name -> its shape.
    """

    round: int
    client: int
    generator: torch.Generator
    shared: torch.Generator
    layout: dict[str, slice] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


class UpdateCompressor(Compressor):
    """Makes an update (d,) cheaper to send.

    In a chain, each link encodes the numbers that the previous link's payload passes on, and its payload replaces
    them; the rest of the previous payload, such as positions, travels as it is. The server decodes from the last link
    to the first. To a later link, d is the count of these numbers; where they are no longer the update's coordinates
    in their order, the context has neither layout nor shapes.

    passed_on: the payload's float tensors that the next link encodes, joined into one vector; () where nothing may
    follow. `decode` gets them back in their shapes, as float32, changed by the links that followed. A compressor that
    passes numbers on keeps the default `exchange`. places_stay: the numbers passed on are the d coordinates in their
    order. remembers: what it keeps between rounds, such as error feedback, is about coordinates. Such a compressor may
    only follow links whose places stay, and a chain may have only one, as two would each send again what was lost.
    """

    acts_on: ClassVar[str] = "update"
    summable: ClassVar[bool] = False  # payloads can be added up, so that the server need not see each
    couples_clients: ClassVar[bool] = False  # what is decoded for one client depends on the others' updates
    passed_on: ClassVar[tuple[str, ...]] = ()
    places_stay: ClassVar[bool] = False
    remembers: ClassVar[bool] = False

    @abstractmethod
    def encode(self, update: Tensor, state: dict[str, Any], context: UpdateCompressionContext) -> Payload:
        """The payload of update (d,), never mutated. state: this client's dictionary, kept between its rounds."""

    @abstractmethod
    def decode(self, payload: Payload, context: UpdateCompressionContext) -> Tensor:
        """The server's view of the update, (d,)."""

    def add_lost(self, lost: Tensor, state: dict[str, Any]) -> None:
        """Called after `encode` where links follow: lost (d,) is what `decode` gives minus what the server received.

        A compressor with error feedback adds it to what it keeps (Basu et al. 2019, Qsparse-local-SGD: the memory is
        the difference to what all links together send). Where a link `remembers`, the server's view is multiplied by
        the factor that makes the loss smallest, and the client sends this factor too: a quantiser's errors can be
        larger than what it quantises, and when they were fed back without the factor they grew from round to round.
        """

    def exchange(
        self,
        updates: list[Tensor],
        states: list[dict[str, Any]],
        server: dict[str, Any],
        contexts: Sequence[Callable[[], UpdateCompressionContext]],
    ) -> Exchanged:
        """All messages of a round: updates (d,), one per client, with each client's state and the server's.

        By default every client encodes by itself; override it for methods in which the server answers in the middle of
        a round, or keeps something of each client. contexts: for each client, a function that returns its context, with
        random streams that restart at each call. Raises PluginError where `encode` returns no payload that can be
        counted, where `decode` returns another shape than the update's, or where 0 bytes decode to an update that is
        not zero.
        """
        payloads = [
            self.encode(u, state, at()) for u, state, at in zip(updates, states, contexts, strict=True)
        ]
        sent = [self._bytes(payload) for payload in payloads]
        received = [self.decode(payload, at()) for payload, at in zip(payloads, contexts, strict=True)]
        for at, count, update, row in zip(contexts, sent, updates, received, strict=True):
            shape = getattr(row, "shape", type(row).__name__)
            if shape != update.shape:
                what = shape if isinstance(shape, str) else tuple(shape)
                raise PluginError(
                    f"{self.name}.decode returned {what}, not {tuple(update.shape)}, of client {at().client}"
                )
            if not count and bool((row != 0).any()):
                raise PluginError(
                    f"{self.name} sent 0 bytes and decodes an update that is not zero: what the server needs goes "
                    "into the payload"
                )
        return Exchanged(received, sent, [0] * len(sent), [0] * len(sent))

    def _bytes(self, payload: Any) -> int:
        """The bytes counted for a payload, even if it is of a subclass with another `nbytes`."""
        if not isinstance(payload, Payload):
            raise PluginError(f"{self.name}.encode returned {type(payload).__name__}, not a Payload")
        try:
            return _counted(payload)
        except (AttributeError, TypeError, pickle.PicklingError) as error:
            raise PluginError(
                f"{self.name}.encode returned a payload that cannot be counted ({error}): `tensors` holds tensors by "
                "name, `facts` small plain values"
            ) from error
