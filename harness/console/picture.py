"""A picture of what backdoors do to test images: as they are, with the trigger, and the difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.contracts.attack import PoisoningAttack
from harness.errors import HarnessError, NotApplicable
from harness.pictures import Strip, paint

if TYPE_CHECKING:
    from harness.scenario import Scenario


def backdoors(scenario: Scenario) -> list[PoisoningAttack]:
    """The scenario's attacks that have a target class, each once, in the file's order."""
    attacks = [a for t in scenario.threats for a in t.attacks]
    found = [a for a in attacks if isinstance(a, PoisoningAttack) and a.backdoor_target is not None]
    return list({a.label(): a for a in found}.values())


def strips(scenario: Scenario, count: int) -> list[Strip]:
    """One strip per backdoor, of `count` images. Raises HarnessError.

    The images are the attack's own test images if it has some, else test images of other classes than its target.
    """
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
        caption = f"{attack.label()}, target class {data.class_names[attack.backdoor_target or 0]}"
        if own is not None:
            result.append(Strip(f"{caption}: its own test images", (to_pixels(own.images)[:count],)))
            continue
        others = (data.test.labels != attack.backdoor_target).nonzero()[0][:count]
        x = to_pixels(torch.from_numpy(data.test.images[others].copy()))
        triggered = attack.trigger(x.clone())
        difference = (triggered - x) / 2 + 0.5  # grey where nothing changed
        result.append(Strip(f"{caption}: as they are, triggered, the difference", (x, triggered, difference)))
    return result


def draw(found: Sequence[Strip], out: Path) -> None:
    """Writes the strips below each other as an image. Raises HarnessError where the file cannot be written."""
    try:
        paint(found).save(out)
    except ValueError as error:  # the ending names no image format
        raise HarnessError(f"--out {out}: {error}; use a name that ends in .png") from None
    except OSError as error:
        raise HarnessError(f"--out {out}: {error.strerror or error}") from None
