"""Models: pixels in [0, 1] in, logits out."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from harness.contracts.base import Plugin

if TYPE_CHECKING:
    from torch import nn


_Mean = Annotated[float, Field(ge=0, le=1)]
_Deviation = Annotated[float, Field(gt=0, le=1)]


class Normalization(BaseModel):
    """Declared per-channel constants, in units of [0, 1] pixels; one value serves every channel.

    They are part of the scenario, never computed from private data: that would need accounting.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    mean: _Mean | list[_Mean] = Field(
        examples=[0.5], description="mean per channel, 0 to 1, in [0, 1] pixels"
    )
    std: _Deviation | list[_Deviation] = Field(
        examples=[0.25], description="standard deviation per channel, above 0, at most 1, in [0, 1] pixels"
    )


class Model(Plugin):
    """A network for images. The caller seeds the initial weights (torch's RNG is forked around `build`)."""

    kind: ClassVar[str] = "model"

    @abstractmethod
    def build(
        self, input_shape: tuple[int, int, int], num_classes: int, normalization: Normalization | None = None
    ) -> nn.Module:
        """A module from pixels (b, c, h, w) in [0, 1] to logits (b, num_classes).

        Normalisation is a layer inside: `harness.nn.normalization_layer(normalization, channels)`.
        Raises PluginError where the input shape is too small for the architecture.
        """
