"""Numbers as people of the field write them."""

from __future__ import annotations

GREY_LEVELS = 255
MOST = 64  # levels: of 85/255 one would think as 1/3


def short(value: float, full: bool = False) -> str:
    """Six digits, or `8/255` where the value is exactly that, in halves of grey levels, and six digits are not.

    full: all digits that the value has.
    """
    text = f"{value:.6g}"
    halves = round(2 * GREY_LEVELS * value) if abs(value) * GREY_LEVELS <= MOST else 0
    if float(text) != value and halves / 2 / GREY_LEVELS == value:
        return f"{halves / 2:g}/{GREY_LEVELS}"
    return repr(value) if full else text
