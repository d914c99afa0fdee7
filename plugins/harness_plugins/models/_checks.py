"""Input checks that the models share."""

from __future__ import annotations

from harness.api import PluginError


def check_input(name: str, input_shape: tuple[int, int, int], num_classes: int, smallest: int = 1) -> None:
    """Raises PluginError unless input_shape is (channels, height, width), each side >= `smallest` pixels."""
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise PluginError(f"{name}: input_shape must be (channels, height, width), not {tuple(input_shape)}")
    if num_classes < 2:
        raise PluginError(f"{name}: needs 2 classes or more, not {num_classes}")
    height, width = input_shape[1:]
    if min(height, width) < smallest:
        raise PluginError(
            f"{name} needs images of at least {smallest}x{smallest} pixels, not {height}x{width}"
        )
