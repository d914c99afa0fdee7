"""Plugins that misbehave, one fault each: importable, so that worker processes can have them too."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from typing import Any

from pydantic import PrivateAttr

from harness.api import (
    Aggregator,
    ByzantineAttack,
    Dataset,
    Defence,
    EvasionAttack,
    Metric,
    Model,
    NotApplicable,
    PluginError,
    PreAggregator,
    Score,
    hookimpl,
)


class CrashInRound(Aggregator):
    """Raises in the second round."""

    name = "crash-in-round"

    def aggregate(self, updates, context):
        if context.round == 1:
            raise RuntimeError("the disk is made of cheese")
        return updates.mean(0)


class WrongShape(Aggregator):
    """One coordinate short."""

    name = "wrong-shape"

    def aggregate(self, updates, context):
        return updates.mean(0)[:-1]


class NanUpdate(Defence):
    """Client 0 sends NaN."""

    name = "nan-update"

    def update(self, delta, context):
        return delta * float("nan") if context.client == 0 else delta


class Dies(Aggregator):
    """Takes its whole process down."""

    name = "dies"

    def aggregate(self, updates, context):
        os._exit(3)


class Exits(Aggregator):
    """Calls sys.exit."""

    name = "exits"

    def aggregate(self, updates, context):
        raise SystemExit(5)


class Interrupts(Aggregator):
    """Raises what only Ctrl-C should."""

    name = "interrupts"

    def aggregate(self, updates, context):
        raise KeyboardInterrupt("not the user")


class Mute(Aggregator):
    """Raises an error, of no kind that others catch, that cannot say what it is."""

    name = "mute"

    class Broken(BaseException):
        def __str__(self):
            raise ValueError("no text")

    def aggregate(self, updates, context):
        raise self.Broken


class Forks(Aggregator):
    """Forks a process that does not end by itself."""

    name = "forks"

    def aggregate(self, updates, context):
        child = os.fork()
        if child == 0:
            raise RuntimeError("in the child")
        os.waitpid(child, 0)
        return updates.mean(0)


class UsesProcesses(Aggregator):
    """The mean, by a data loader and a pool that have processes of their own."""

    name = "uses-processes"

    def aggregate(self, updates, context):
        from torch.utils.data import DataLoader

        with multiprocessing.Pool(1) as pool:
            assert pool.map(abs, [-1]) == [1]
        return sum(DataLoader(updates, batch_size=None, num_workers=1)) / len(updates)


class LeavesAProcess(Aggregator):
    """Starts a process that holds a file open, and does not end it."""

    name = "leaves-a-process"
    file: str

    def aggregate(self, updates, context):
        with open(self.file, "w"):
            multiprocessing.Process(target=time.sleep, args=(600,)).start()
        return updates.mean(0)


class Remembers(Aggregator):
    """Sums up means on itself, not in the state of its context."""

    name = "remembers"
    _sum: Any = PrivateAttr(default=0)

    def aggregate(self, updates, context):
        self._sum = self._sum + updates.mean(0)
        return self._sum


class Hangs(Aggregator):
    """Never returns."""

    name = "hangs"

    def aggregate(self, updates, context):
        while True:
            time.sleep(0.05)


class Slow(Aggregator):
    """A mean that takes its time: half a second a round."""

    name = "slow"

    def aggregate(self, updates, context):
        time.sleep(0.5)
        return updates.mean(0)


class TooFar(EvasionAttack):
    """Leaves its budget."""

    name = "too-far"
    norm = "linf"
    eps: float | None = None

    def perturb(self, model, x, y, context):
        return (x + 2 * context.eps).clamp(0, 1)


class NoBuild(Model):
    """Cannot be built."""

    name = "no-build"

    def build(self, input_shape, num_classes, normalization=None):
        raise PluginError("no-build needs images of at least 1000 pixels")


class NeverFits(Defence):
    """Not applicable to anything."""

    name = "never-fits"

    def check(self, context):
        raise NotApplicable("never-fits fits nothing")


class CrashesInCheck(Defence):
    """Cannot even be asked."""

    name = "crashes-in-check"

    def check(self, context):
        raise ZeroDivisionError("check divided by zero")


class ExitsInCheck(Defence):
    """Ends the program, as a script would."""

    name = "exits-in-check"

    def check(self, context):
        sys.exit(0)


class ExitsInLoad(Dataset):
    """Ends the program where its files are missing."""

    name = "exits-in-load"

    def load(self, root=None):
        sys.exit("download it first")


class Undeclared(Metric):
    """Returns a score that it does not declare."""

    name = "undeclared"
    needs = ("logits",)
    scores = {"declared": Score("higher")}

    def score(self, context):
        return {"other": 1.0}


class Whole(Aggregator):
    """Rounds its result to integers."""

    name = "whole"

    def aggregate(self, updates, context):
        return updates.mean(0).round().long()


class NoUpdate(Aggregator):
    """Returns nothing."""

    name = "no-update"

    def aggregate(self, updates, context):
        return None


class Array(Aggregator):
    """Returns a NumPy array."""

    name = "array"

    def aggregate(self, updates, context):
        return updates.mean(0).numpy()


class NoRows(PreAggregator):
    """Returns the rows without their context."""

    name = "no-rows"

    def transform(self, updates, context):
        return updates


class KeepsStrangers(Aggregator):
    """Says that it kept a row which is not there."""

    name = "keeps-strangers"

    def aggregate(self, updates, context):
        context.report(kept=[99])
        return updates.mean(0)


class Shortens(Defence):
    """Sends one coordinate less."""

    name = "shortens"

    def update(self, delta, context):
        return delta[:-1]


class NoDelta(Defence):
    """Sends nothing."""

    name = "no-delta"

    def update(self, delta, context):
        return None


class NoNetwork(Defence):
    """Deploys nothing."""

    name = "no-network"

    def inference(self, model):
        return None


class NoImages(EvasionAttack):
    """Returns nothing."""

    name = "no-images"
    norm = "linf"
    eps: float | None = None

    def perturb(self, model, x, y, context):
        return None


class NoScores(Metric):
    """Returns nothing."""

    name = "no-scores"
    needs = ("logits",)
    scores = {"no_scores": Score("higher")}

    def score(self, context):
        return None


class Divides(Metric):
    """Divides by zero."""

    name = "divides"
    needs = ("logits",)
    scores = {"divided": Score("higher")}

    def score(self, context):
        return {"divided": 1 // 0}


class Writes(Metric):
    """Changes what it is shown."""

    name = "writes"
    needs = ("logits",)
    scores = {"written": Score("higher")}

    def score(self, context):
        context.logits[0] = 0
        return {}


class TooFewLogits(Model):
    """Two logits, whatever the classes."""

    name = "too-few-logits"
    logits: int = 2

    def build(self, input_shape, num_classes, normalization=None):
        import torch

        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, self.logits))


class NoModule(Model):
    """Builds nothing."""

    name = "no-module"

    def build(self, input_shape, num_classes, normalization=None):
        return None


class DropsRecords(Defence):
    """Half of the images, and all labels."""

    name = "drops-records"

    def batch(self, x, y, key):
        return x[: len(x) // 2], y


class NineLogits(Defence):
    """Deploys a model without the last class."""

    name = "nine-logits"

    def inference(self, model):
        import torch

        class Fewer(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = model

            def forward(self, x):
                return self.inner(x)[:, :-1]

        return Fewer()


class ModelLost(Defence):
    """Trains nothing."""

    name = "model-lost"

    def model(self, module):
        return None


class PreparesBadly(Defence):
    """Fails before training."""

    name = "prepares-badly"

    def prepare(self, context):
        raise KeyError("noise")


class Pair(Dataset):
    """Two splits in a tuple."""

    name = "pair"

    def load(self, root=None):
        return (1, 2)


class FewRows(ByzantineAttack):
    """Asks the rule about its own rows alone."""

    name = "few-rows"
    knowledge = "omniscient"

    def craft(self, honest, context):
        context.aggregator(honest[: context.m])
        return honest[: context.m]


class Raises(EvasionAttack):
    """Cannot attack."""

    name = "raises"
    norm = "linf"
    eps: float | None = None

    def perturb(self, model, x, y, context):
        raise RuntimeError("no way")


PLUGINS = (
    Divides,
    Writes,
    TooFewLogits,
    NoModule,
    DropsRecords,
    NineLogits,
    ModelLost,
    PreparesBadly,
    Pair,
    FewRows,
    Raises,
    Whole,
    NoUpdate,
    Array,
    NoRows,
    KeepsStrangers,
    Shortens,
    NoDelta,
    NoNetwork,
    NoImages,
    NoScores,
    CrashInRound,
    WrongShape,
    NanUpdate,
    Dies,
    Exits,
    Interrupts,
    Mute,
    Forks,
    UsesProcesses,
    LeavesAProcess,
    Remembers,
    Hangs,
    Slow,
    TooFar,
    NoBuild,
    NeverFits,
    CrashesInCheck,
    ExitsInCheck,
    ExitsInLoad,
    Undeclared,
)


@hookimpl
def harness_register(register):
    for plugin in PLUGINS:
        register(plugin)
