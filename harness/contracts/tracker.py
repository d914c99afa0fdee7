"""Trackers: plugins that watch a run through the observer hooks."""

from __future__ import annotations

from typing import ClassVar

from harness.contracts.base import Plugin


class Tracker(Plugin):
    """Override any of the observer hooks of harness.hookspecs, each marked with @hookimpl."""

    kind: ClassVar[str] = "tracker"
