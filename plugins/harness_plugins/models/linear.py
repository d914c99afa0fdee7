"""Models without convolutions: multinomial logistic regression and the multilayer perceptron."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Annotated, Literal

from harness.api import Field, Model, Normalization, Reference
from harness_plugins.models._checks import check_input

if TYPE_CHECKING:
    from torch import nn


class Logistic(Model):
    """Multinomial logistic regression: logits = W flatten(x) + b, W (classes, c h w).

    Images of any size. classes (c h w + 1) parameters. The loss is convex in them.
    """

    name = "logistic"

    def build(
        self, input_shape: tuple[int, int, int], num_classes: int, normalization: Normalization | None = None
    ) -> nn.Module:
        from torch import nn

        from harness.nn import normalization_layer

        check_input(self.name, input_shape, num_classes)
        normalize = normalization_layer(normalization, input_shape[0])
        return nn.Sequential(normalize, nn.Flatten(), nn.Linear(prod(input_shape), num_classes))


class Mlp(Model):
    """Multilayer perceptron: flattened pixels through fully connected hidden layers, each with an activation.

    The default is the 2NN of McMahan et al. 2017, section 3: two hidden layers of 200 units with ReLU,
    199,210 parameters for 1x28x28 and 10 classes. Images of any size.
    """

    name = "mlp"
    reference = Reference(
        title="Communication-Efficient Learning of Deep Networks from Decentralized Data",
        authors="McMahan, Moore, Ramage, Hampson, Agüera y Arcas",
        venue="AISTATS",
        year=2017,
        url="https://arxiv.org/abs/1602.05629",
    )

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (200, 200), strict=False, min_length=1, description="units of each hidden layer"
    )
    activation: Literal["relu", "mish", "tanh"] = Field("relu", description="activation of the hidden layers")

    def build(
        self, input_shape: tuple[int, int, int], num_classes: int, normalization: Normalization | None = None
    ) -> nn.Module:
        from torch import nn

        from harness.nn import normalization_layer
        from harness_plugins.models._networks import ACTIVATIONS

        check_input(self.name, input_shape, num_classes)
        layers: list[nn.Module] = [normalization_layer(normalization, input_shape[0]), nn.Flatten()]
        for inputs, outputs in pairwise((prod(input_shape), *self.hidden)):
            layers += [nn.Linear(inputs, outputs), ACTIVATIONS[self.activation]()]
        return nn.Sequential(*layers, nn.Linear(self.hidden[-1], num_classes))


PLUGINS = (Logistic, Mlp)
