"""The bridge to torchattacks, shared by the attacks that it implements."""

from __future__ import annotations

from abc import abstractmethod
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from harness.api import EvasionAttack, EvasionContext, NotApplicable

if TYPE_CHECKING:
    from torch import Tensor, nn

# What torchattacks adds to a gradient's norm (eps_for_division) where its own 1e-10 would not stay a guard against
# zero alone: the cross-entropy of a confident model, averaged over a batch, has gradients far smaller than that,
# and with it their steps shrink to nothing. 1e-35 is still a normal float32.
ZERO_GUARD = 1e-35
# Logits by which a class leads at most where gradients of several passes add up: beyond e^-17 the shorter one is lost
# beside the longer in float32, as neighbours' are beside that of an image that fools.
SURE = 14.0


class TorchattacksAttack(EvasionAttack):
    """An evasion attack run by a class of torchattacks, on [0, 1] pixels, without its own normalisation."""

    requires: ClassVar[tuple[str, ...]] = ("torchattacks",)
    implementation: ClassVar[str] = ""  # the class in torchattacks
    single_precision: ClassVar[bool] = False  # the class fails on float64
    cross_entropy: ClassVar[bool] = False  # its loss is the cross-entropy of the model's answers
    adds_passes: ClassVar[bool] = False  # it adds up gradients of several passes, whose lengths then matter

    @abstractmethod
    def arguments(self, context: EvasionContext) -> dict[str, Any]:
        """Every argument of the implementation: its own defaults do not always suit the radius."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, context: EvasionContext) -> Tensor:
        """x (b, c, h, w) in [0, 1], y (b,) -> x_adv like x. Draws from torch's global generators."""
        if context.eps == 0:  # some divide by it, others start at random even so
            return x
        loss = {"cross_entropy": self.cross_entropy, "adds_passes": self.adds_passes}
        attack = self.build(self.implementation, model, x, self.arguments(context), **loss)
        return run(attack, x, y) if self.single_precision else attack(x, y)  # type: ignore[no-any-return]

    @staticmethod
    def build(
        implementation: str,
        model: nn.Module,
        x: Tensor,
        arguments: dict[str, Any],
        *,
        cross_entropy: bool = False,
        adds_passes: bool = False,
    ) -> Any:
        """torchattacks' attack object on [0, 1] pixels: call it with x and y.

        cross_entropy: for a loss that is the same of logits and of their log_softmax, whose gradient is exact.
        Each sample's has some length of its own then, unless the attack `adds_passes`: others ask for its direction.
        """
        import torchattacks

        pixel_model = _pixel_model_class()(model, x, cross_entropy, cross_entropy and not adds_passes)
        return getattr(torchattacks, implementation)(pixel_model, **arguments)


def run(attack: Any, x: Tensor, y: Tensor) -> Tensor:
    """What torchattacks' attack object makes of x, in x's dtype, where its class knows float32 alone."""
    return attack(x.float(), y).to(x.dtype)  # type: ignore[no-any-return]


def check_square(name: str, input_shape: tuple[int, int, int]) -> None:
    """Raises NotApplicable for images that are not as wide as high: some of torchattacks' take them to be."""
    if input_shape[1] != input_shape[2]:
        raise NotApplicable(f"{name} takes square images, not {input_shape[1]}x{input_shape[2]}")


def three_channels(model: nn.Module) -> nn.Module:
    """A model of grey images as one of three channels: their mean. Each channel's gradient has the same sign."""
    import torch

    class Grey(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.training = model.training

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x.mean(1, keepdim=True))

    return Grey()


@cache
def _pixel_model_class() -> type[nn.Module]:
    """Made at the first use: the module must load without torch."""
    import torch

    class Widened(torch.autograd.Function):
        """To float64; each record's gradient comes back times the power of two that brings it to about 1.

        A confident model's would be 0 in float32, or too short for what torchattacks adds to a length.
        """

        @staticmethod
        def forward(ctx: Any, logits: Tensor) -> Tensor:
            ctx.dtype = logits.dtype
            return logits.double()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
            exponent = torch.frexp(g.abs().amax(1, keepdim=True)).exponent.clamp(-1000, 1000)
            return (g * torch.exp2(-exponent.double())).to(ctx.dtype)

    def lowered(logits: Tensor, lead: float) -> Tensor:
        """The same, the first class at most `lead` ahead of the second: e^-lead is still a number.

        How far it leads decides the length of the cross-entropy's gradient by the others' logits, not its direction.
        """
        if logits.shape[1] < 2:
            return logits
        top = logits.detach().topk(2, dim=1)
        beyond = (top.values[:, :1] - top.values[:, 1:] - lead).clamp(min=0).nan_to_num(nan=0.0, posinf=0.0)
        first = torch.arange(logits.shape[1], device=logits.device) == top.indices[:, :1]
        return logits - beyond * first

    class PixelModel(torch.nn.Module):
        """What torchattacks takes for granted and not every network has: a parameter that tells the device.

        It also has a short repr: torchattacks formats the whole model for every attack.
        """

        def __init__(self, model: nn.Module, like: Tensor, normalised: bool, rescaled: bool) -> None:
            super().__init__()
            self.model = model
            self.normalised, self.rescaled = normalised, rescaled
            self.device_marker = torch.nn.Parameter(like.new_empty(0), requires_grad=False)
            self.training = model.training  # torchattacks goes back to this mode

        def forward(self, x: Tensor) -> Tensor:
            logits = self.model(x.to(self.device_marker.dtype))
            if not self.normalised:
                # The attack computes in float32, whatever the model does; see `run`.
                return logits.to(x.dtype)
            # The cross-entropy's gradient by the true class is p - 1, which rounds to 0 for a confident model: what is
            # left has another sign. Through log_softmax it is minus the sum of the other classes', and float64 holds
            # these, and tells losses apart, where float32 has zeros.
            # Passes that are added up keep their lengths, within what float32 still adds: see SURE.
            wide = Widened.apply(logits) if self.rescaled else logits.double()
            return lowered(wide, 600 if self.rescaled else SURE).log_softmax(1)  # type: ignore[no-any-return]

        def __repr__(self) -> str:
            return "PixelModel()"

    return PixelModel
