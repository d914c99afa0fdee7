"""Edge-case backdoor: rare inputs, from outside the data, with a wrong label."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from harness.api import (
    ClientData,
    Dataset,
    Field,
    NotApplicable,
    PluginError,
    PoisonContext,
    PoisoningAttack,
    Reference,
)
from harness_plugins.attacks.poisoning._records import check_class

if TYPE_CHECKING:
    from torch import Tensor

    from harness.api import Split


class EdgeCase(PoisoningAttack):
    """Mixes images that the task's data hardly hold, labelled `target`, into the malicious clients' records.

    The images are those of class `source` of another dataset, as in the paper (an airline's planes among
    CIFAR-10, another country's digits among EMNIST): its training split is dealt out, its test split is what
    success is scored on. They are resized bilinearly to the task's size; channels are averaged or repeated.
    round(fraction n) of the client's n records are replaced, by drawing with replacement. No image is
    changed: there is no trigger.

    Raises PluginError where the source class has no images. Costs O(n c h w) and loading the other dataset.
    """

    name: ClassVar[str] = "edge-case"
    reference: ClassVar[Reference | None] = Reference(
        title="Attack of the Tails: Yes, You Really Can Backdoor Federated Learning",
        authors="Wang, Sreenivasan, Rajput, Vishwakarma, Agarwal, Sohn, Lee, Papailiopoulos",
        venue="NeurIPS",
        year=2020,
        url="https://arxiv.org/abs/2007.05084",
    )

    images: Dataset = Field("digits", description="dataset that holds the edge cases")
    source: int = Field(7, ge=0, description="its class that is used")
    target: int = Field(0, ge=0, description="class of the task that they are given")
    fraction: float = Field(0.3, ge=0, le=1, description="share of the malicious client's records replaced")

    @property
    def backdoor_target(self) -> int | None:
        return self.target

    def check(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        check_class(self, "target", self.target, num_classes, NotApplicable)

    def poison(self, data: ClientData, context: PoisonContext) -> ClientData:
        import torch

        check_class(self, "target", self.target, context.num_classes)
        pool = self._edge(self.images.load(context.root).train, tuple(data.images.shape[1:]))
        n, generator = len(data.labels), context.generator
        count = int(self.fraction * n + 0.5)
        replaced = torch.randperm(n, generator=generator, device=generator.device)[:count]
        drawn = torch.randint(len(pool), (count,), generator=generator, device=generator.device)
        chosen = pool[drawn.cpu()]
        if not data.images.is_floating_point():
            chosen = (255 * chosen).round()
        images, labels = data.images.clone(), data.labels.clone()
        images[replaced] = chosen.to(images)
        labels[replaced] = self.target
        return ClientData(images, labels)

    def success_records(self, input_shape: tuple[int, int, int], root: Path | None) -> ClientData | None:
        import torch

        found = self._edge(self.images.load(root).test, input_shape)
        return ClientData(found, torch.full((len(found),), -1))

    def _edge(self, split: Split, shape: tuple[int, ...]) -> Tensor:
        """The source class's images as (n, c, h, w) float32 in [0, 1] of the task's shape."""
        import torch
        from torch.nn import functional

        images = torch.from_numpy(split.images[split.labels == self.source].copy())
        if not len(images):
            raise PluginError(f"edge-case: {self.images.name} has no images of class {self.source}")
        images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        if images.shape[1] != shape[0]:
            images = images.mean(1, keepdim=True).expand(-1, shape[0], -1, -1)
        if images.shape[2:] != shape[1:]:
            images = functional.interpolate(images, size=shape[1:], mode="bilinear", antialias=True)
        return images.clamp(0, 1).contiguous()


PLUGINS = (EdgeCase,)
