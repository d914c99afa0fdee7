"""Predictions of a model over a whole data set, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from harness.errors import HarnessError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")


def to_pixels(images: Tensor) -> Tensor:
    """Images as floats in [0, 1]: uint8 is divided by 255 (float32), floats are returned as they are.

    The result may share the images' memory: for a part of a data set that others use too, see `own_pixels`. Raises
    HarnessError for any other dtype, as its range is not known.
    """
    import torch

    if images.dtype == torch.uint8:
        return images.to(torch.float32) / 255
    if not images.is_floating_point():
        raise HarnessError(f"images must be uint8 or float in [0, 1], not {images.dtype}")
    return images


def own_pixels(images: Tensor, device: torch.device | str | None = None) -> Tensor:
    """`to_pixels`, on a device, in memory of its own: a plugin that works in place changes nobody's data.

    device: None for the images' own. Only floats that stay on their device are copied; anything else is new already.
    """
    import torch

    device = images.device if device is None else torch.device(device)
    pixels = to_pixels(images.to(device))
    # Compared by address: a view of a part is another tensor over the same memory.
    shared = pixels.untyped_storage().data_ptr() == images.untyped_storage().data_ptr()
    return pixels.clone() if shared else pixels


def gather(images: Tensor | np.ndarray, where: slice | np.ndarray, device: torch.device | str) -> Tensor:
    """The images at some positions, as [0, 1] floats on a device, in memory of their own.

    uint8 is converted on the device, for speed.
    """
    import torch

    if isinstance(images, np.ndarray):
        # A copy, as a memory-mapped file is read-only and torch tensors are not.
        return to_pixels(torch.tensor(images[where]).to(device))
    if isinstance(where, slice):
        return own_pixels(images[where], device)
    return to_pixels(images[torch.from_numpy(where).to(images.device)].to(device))


def unless_too_large(run: Callable[[], T], device: torch.device | str) -> T | None:
    """What `run` returns; None where the device's memory runs out. What it held is then given back to the device."""
    import torch

    with suppress(torch.OutOfMemoryError):
        return run()
    # Not in a handler, whose exception would hold the tensors.
    if str(device).startswith("cuda"):
        torch.cuda.empty_cache()
    return None


def predict(
    model: nn.Module, images: Tensor | np.ndarray, batch_size: int, device: torch.device | str
) -> np.ndarray:
    """The model's logits, (n, k) float32, in eval mode; each module's mode is restored.

    images (n, c, h, w): uint8, or float in [0, 1]. The model is already on `device`. A batch that does not fit the
    device's memory is halved, and so are those after it. Raises HarnessError where there are no images, or where the
    output is not (batch, classes).
    """
    import torch

    from harness.pooling import cheap_pooling

    if batch_size < 1:
        raise HarnessError(f"batch_size must be at least 1, not {batch_size}")
    if not len(images):
        raise HarnessError("there are no images to predict")
    logits = []

    def answer(start: int, size: int) -> Tensor:
        return model(gather(images, slice(start, start + size), device))  # type: ignore[no-any-return]

    with modes_restored(model), cheap_pooling(model), torch.inference_mode():
        model.eval()
        start = 0
        while start < len(images):
            size = min(batch_size, len(images) - start)
            run = partial(answer, start, size)
            output = unless_too_large(run, device) if size > 1 else run()
            if output is None:
                batch_size = (size + 1) // 2
                continue
            start += size
            if output.ndim != 2 or len(output) != size:
                raise HarnessError(
                    f"the model returned {tuple(output.shape)} for {size} images, not (images, classes)"
                )
            logits.append(output.to("cpu", torch.float32))
    return torch.cat(logits).numpy()


@contextmanager
def modes_restored(*models: nn.Module) -> Iterator[None]:
    """Puts every module back into the mode, training or eval, that it was in."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
