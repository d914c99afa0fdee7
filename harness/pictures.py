"""Rows of images under captions, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

TILE = 96  # least length of an image's longer side in the picture, in pixels
GAP = 6
CAPTION = 18


@dataclass(frozen=True)
class Strip:
    """Rows of images, each (m, c, h, w) in [0, 1], under a caption."""

    caption: str
    rows: tuple[Tensor, ...]


def paint(found: Sequence[Strip]) -> Image:
    """One picture of all strips, each below the one before."""
    import torch
    from PIL import Image, ImageDraw

    blocks = [_grid(strip) for strip in found]
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    captions = [2 * GAP + int(ruler.textlength(strip.caption)) for strip in found]
    width = max(*(block.shape[2] for block in blocks), *captions)
    height = sum(block.shape[1] + CAPTION + GAP for block in blocks)
    picture = Image.new("RGB", (width, height), "white")
    pen, top = ImageDraw.Draw(picture), 0
    for strip, block in zip(found, blocks, strict=True):
        pen.text((GAP, top + 3), strip.caption, fill="black")
        values = (block * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        picture.paste(Image.fromarray(values), (0, top + CAPTION))
        top += block.shape[1] + CAPTION + GAP
    return picture


def _grid(strip: Strip) -> torch.Tensor:
    """(3, height, width) in [0, 1]: the strip's rows, every image enlarged without smoothing."""
    import torch
    from torch.nn import functional
    from torchvision.utils import make_grid

    rows = []
    for images in strip.rows:
        scale = max(1, -(-TILE // max(images.shape[-2:])))
        large = functional.interpolate(images, scale_factor=scale, mode="nearest")
        large = large if large.shape[1] == 3 else large.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        rows.append(make_grid(large, nrow=len(large), padding=GAP, pad_value=1.0))
    return torch.cat(rows, dim=1)
