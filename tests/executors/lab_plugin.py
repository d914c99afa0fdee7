"""A plugin package for nodes of the test cluster: installed there by a folder on the path, in two versions."""

from __future__ import annotations

import os
import time
from pathlib import Path

from harness.api import Aggregator, Field, hookimpl


class GatedMean(Aggregator):
    """A mean that waits, from the second round on, until a file is there."""

    name = "gated-mean"
    gate: str = Field("", description="the file; none: it does not wait")

    def aggregate(self, updates, context):
        while self.gate and context.round and not Path(self.gate).exists():
            time.sleep(0.02)
        return updates.mean(0)


class DiesOnce(Aggregator):
    """Takes its process down, unless a file says that it has done so."""

    name = "dies-once"
    file: str = Field(description="the file")

    def aggregate(self, updates, context):
        if not Path(self.file).exists():
            Path(self.file).touch()
            os._exit(3)
        return updates.mean(0)


class Raises(Aggregator):
    """Fails, and counts how often it was tried."""

    name = "raises"
    file: str = Field(description="a line is added to it each time")

    def aggregate(self, updates, context):
        with Path(self.file).open("a") as file:
            file.write("tried\n")
        raise RuntimeError("the disk is made of cheese")


@hookimpl
def harness_register(register):
    for plugin in (GatedMean, DiesOnce, Raises):
        register(plugin)
