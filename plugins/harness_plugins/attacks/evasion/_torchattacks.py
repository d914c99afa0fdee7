"""The bridge to torchattacks, shared by the attacks that it implements."""

from __future__ import annotations

from abc import abstractmethod
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from harness.api import EvasionAttack, EvasionContext, NotApplicable

if TYPE_CHECKING:
    from torch import Tensor, nn


class TorchattacksAttack(EvasionAttack):
    """An evasion attack run by a class of torchattacks, on [0, 1] pixels, without its own normalisation."""

    requires: ClassVar[tuple[str, ...]] = ("torchattacks",)
    implementation: ClassVar[str] = ""  # the class in torchattacks

    @abstractmethod
    def arguments(self, context: EvasionContext) -> dict[str, Any]:
        """Every argument of the implementation: its own defaults do not always suit the radius."""

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor, context: EvasionContext) -> Tensor:
        """x (b, c, h, w) in [0, 1], y (b,) -> x_adv like x. Draws from torch's global generators."""
        if context.eps == 0:  # some divide by it, others start at random even so
            return x
        return self.build(self.implementation, model, x, self.arguments(context))(x, y)  # type: ignore[no-any-return]

    @staticmethod
    def build(implementation: str, model: nn.Module, x: Tensor, arguments: dict[str, Any]) -> Any:
        """torchattacks' attack object on [0, 1] pixels: call it with x and y."""
        import torchattacks

        return getattr(torchattacks, implementation)(_pixel_model_class()(model, x.device), **arguments)


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

    class PixelModel(torch.nn.Module):
        """What torchattacks takes for granted and not every network has: a parameter that tells the device.

        It also has a short repr: torchattacks formats the whole model for every attack.
        """

        def __init__(self, model: nn.Module, device: torch.device) -> None:
            super().__init__()
            self.model = model
            self.device_marker = torch.nn.Parameter(torch.empty(0, device=device), requires_grad=False)
            self.training = model.training  # torchattacks goes back to this mode

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

        def __repr__(self) -> str:
            return "PixelModel()"

    return PixelModel
