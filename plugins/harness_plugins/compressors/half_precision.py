"""Half precision: all weights and all arithmetic in 16 bits."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, ClassVar, Literal

from harness.api import (
    CompressedModel,
    CompressionContext,
    Field,
    ModelCompressor,
    PluginError,
    Reference,
    Surroundings,
)
from harness_plugins.compressors._state import check_finite, file_tensors, load_dense

if TYPE_CHECKING:
    from torch import Tensor, nn


class HalfPrecision(ModelCompressor):
    """The network cast to float16 (11 bits of precision, up to 65,504) or bfloat16 (8 bits, any size).

    Images are cast on the way in and logits to float32 on the way out; everything between runs in 16 bits,
    batch statistics included. Gradients are those of the cast network, each record's scaled into the range of
    float16. Half of the bytes. Raises PluginError where a weight is not finite or does not fit float16. Source: the
    number formats of Micikevicius et al. (2018) and Kalamkar et al. (2019, arXiv 1905.12322), here for inference alone.
    """

    name: ClassVar[str] = "half-precision"
    comes_last: ClassVar[bool] = True
    reference: ClassVar[Reference | None] = Reference(
        title="Mixed Precision Training",
        authors="Micikevicius, Narang, Alben, Diamos, Elsen, Garcia, Ginsburg, Houston, Kuchaiev, Venkatesh, Wu",
        venue="ICLR", year=2018, url="https://arxiv.org/abs/1710.03740",
    )  # fmt: skip

    dtype: Literal["float16", "bfloat16"] = Field("bfloat16", description="number format")

    def compress(self, model: nn.Module, context: CompressionContext) -> CompressedModel:
        check_finite(model, self.name)
        module = self._cast(model)
        for name, value in module.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                raise PluginError(f"{self.name}: {name!r} does not fit {self.dtype}; use bfloat16")
        return self._compressed(module, file_tensors(module))

    def restore(
        self, model: nn.Module, state: dict[str, Tensor], surroundings: Surroundings
    ) -> CompressedModel:
        return self._compressed(load_dense(self._cast(model), state, self.name), dict(state))

    def _cast(self, model: nn.Module) -> nn.Module:
        import torch

        return copy.deepcopy(model).to(getattr(torch, self.dtype)).eval()

    def _compressed(self, module: nn.Module, state: dict[str, Tensor]) -> CompressedModel:
        import torch

        from harness_plugins.compressors._layers import Cast

        return CompressedModel(Cast(module, getattr(torch, self.dtype)).eval(), state)


PLUGINS = (HalfPrecision,)
