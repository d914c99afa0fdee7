"""Label smoothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from harness.api import Defence, Field, Reference

if TYPE_CHECKING:
    from torch import Tensor

    from harness.api import Batch, LogitsFn, LossFn, Params


class LabelSmoothing(Defence):
    """Cross-entropy towards (1 - s) one-hot(y) + s / k for k classes, instead of the one-hot label.

    Takes the place of the loss so far: not applicable behind a defence with a loss of its own. A record's
    loss depends on that record alone. No cost.
    """

    name = "label-smoothing"
    reference = Reference(
        title="Rethinking the Inception Architecture for Computer Vision",
        authors="Szegedy, Vanhoucke, Ioffe, Shlens, Wojna", venue="CVPR", year=2016,
        url="https://arxiv.org/abs/1512.00567",
    )  # fmt: skip
    replaces_loss: ClassVar[bool] = True

    smoothing: float = Field(0.1, ge=0, lt=1, description="share s of the label given to all classes alike")

    def loss(self, loss: LossFn, logits: LogitsFn) -> LossFn:
        from torch.nn import functional

        def smoothed(params: Params, batch: Batch, key: Tensor) -> Tensor:
            x, y = batch
            return functional.cross_entropy(
                logits(params, x), y, reduction="none", label_smoothing=self.smoothing
            )

        return smoothed


PLUGINS = (LabelSmoothing,)
