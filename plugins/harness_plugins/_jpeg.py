"""JPEG, of batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def encoded_and_decoded(x: Tensor, quality: int) -> Tensor:
    """x (b, c, h, w) in [0, 1] -> what JPEG leaves of it. Channels other than 1 or 3 go one by one, as grey.

    quality: 1 to 100. Values are rounded to 255ths before.
    """
    import torch
    from torchvision.io import decode_jpeg, encode_jpeg

    images = x if x.shape[1] in (1, 3) else x.flatten(0, 1)[:, None]
    values = (images * 255).round().clamp(0, 255).to(torch.uint8).cpu()
    decoded = torch.stack([decode_jpeg(encode_jpeg(image, quality)) for image in values])
    return (decoded.to(x) / 255).view_as(x)
