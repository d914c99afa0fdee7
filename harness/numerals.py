"""Numbers as people of the field write them."""

from __future__ import annotations

GREY_LEVELS = 255
MOST = 64  # grey levels; more are thought of as another fraction, such as 85/255 as 1/3


def short(value: float, full: bool = False) -> str:
    """Six digits; or `8/255`, where six digits are inexact and the value is exactly a multiple of half a grey level.

    full: all digits of the value instead of six.
    """
    text = f"{value:.6g}"
    halves = round(2 * GREY_LEVELS * value) if abs(value) * GREY_LEVELS <= MOST else 0
    if float(text) != value and halves / 2 / GREY_LEVELS == value:
        return f"{halves / 2:g}/{GREY_LEVELS}"
    return repr(value) if full else text
