"""A picture of what backdoors do to test images: as they are, with the trigger, and the difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.contracts.attack import PoisoningAttack
from harness.errors import HarnessError, NotApplicable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from harness.scenario import Scenario

TILE = 96  # least side of an image in the picture, in pixels
GAP = 6
CAPTION = 18


@dataclass(frozen=True)
class Strip:
    """One attack's rows of images, each (m, c, h, w) in [0, 1], under a caption."""

    caption: str
    rows: tuple[Tensor, ...]


def backdoors(scenario: Scenario) -> list[PoisoningAttack]:
    """The scenario's attacks that have a target class, each once, in the file's order."""
    attacks = [a for t in scenario.threats for a in t.attacks]
    found = [a for a in attacks if isinstance(a, PoisoningAttack) and a.backdoor_target is not None]
    return list({a.label(): a for a in found}.values())


def strips(scenario: Scenario, count: int) -> list[Strip]:
    """One strip a backdoor, of `count` test images of other classes than its target. Raises HarnessError."""
    import torch

    from harness.evaluation.predict import to_pixels
    from harness.scenario import check_data

    found = backdoors(scenario)
    if not found:
        raise HarnessError(
            f"{scenario.path or scenario.name}: no threat has a backdoor, so there is nothing to draw"
        )
    data = check_data(scenario)
    result = []
    for attack in found:
        try:
            attack.check(data.num_classes, data.input_shape)
        except NotApplicable as error:
            raise HarnessError(f"{attack.label()}: {error}") from None
        own = attack.success_records(data.input_shape, scenario.root)
        caption = f"{attack.label()}, class {data.class_names[attack.backdoor_target or 0]}"
        if own is not None:
            result.append(Strip(f"{caption}: its own test images", (to_pixels(own.images)[:count],)))
            continue
        others = (data.test.labels != attack.backdoor_target).nonzero()[0][:count]
        x = to_pixels(torch.from_numpy(data.test.images[others].copy()))
        triggered = attack.trigger(x)
        difference = (triggered - x) / 2 + 0.5  # grey where nothing changed
        result.append(Strip(f"{caption}: as they are, triggered, the difference", (x, triggered, difference)))
    return result


def draw(found: Sequence[Strip], out: Path) -> None:
    """Writes the strips below each other as an image. Raises HarnessError where the file cannot be written."""
    import torch
    from PIL import Image, ImageDraw

    blocks = [_grid(strip) for strip in found]
    width = max(block.shape[2] for block in blocks)
    height = sum(block.shape[1] + CAPTION + GAP for block in blocks)
    picture = Image.new("RGB", (width, height), "white")
    pen, top = ImageDraw.Draw(picture), 0
    for strip, block in zip(found, blocks, strict=True):
        pen.text((GAP, top + 3), strip.caption, fill="black")
        values = (block * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        picture.paste(Image.fromarray(values), (0, top + CAPTION))
        top += block.shape[1] + CAPTION + GAP
    try:
        picture.save(out)
    except (OSError, ValueError) as error:  # ValueError: an ending that stands for no image format
        raise HarnessError(f"--out {out}: {error}; use a name that ends in .png") from None


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
