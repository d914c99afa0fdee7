"""Clipping of the batch gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import Defence, Field, Local, Reference

if TYPE_CHECKING:
    from torch import Tensor

    from harness.api import Batch, GradientFn, Params


class GradientClipping(Defence):
    """Rescales the gradient of a batch to at most a given L2 norm over all parameters.

    g <- g min(1, max_norm / (|g| + 1e-6)). It bounds a step, not a record's part in it: no privacy guarantee.
    After dp-sgd it is post-processing of the noisy gradient. Cost: one pass over d values a step.
    Source: Pascanu, Mikolov and Bengio (2013), algorithm 1.
    """

    name = "gradient-clipping"
    vectorises: ClassVar[bool] = True
    reference = Reference(
        title="On the difficulty of training recurrent neural networks",
        authors="Pascanu, Mikolov, Bengio",
        venue="ICML 2013",
        year=2013,
        url="https://proceedings.mlr.press/v28/pascanu13.html",
    )

    max_norm: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="largest L2 norm of the batch gradient"
    )

    def gradient(self, local: Local) -> GradientFn:
        import torch

        inner = local.gradient

        def gradient(params: Params, batch: Batch, key: Tensor) -> Params:
            grads = inner(params, batch, key)
            # In float64: the square of an exploding gradient leaves float32, and its norm would be infinite.
            norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in grads.values()]
            scale = (self.max_norm / (torch.linalg.vector_norm(torch.stack(norms)) + 1e-6)).clamp(max=1.0)
            return {name: g * scale.to(g) for name, g in grads.items()}

        return gradient


PLUGINS = (GradientClipping,)
