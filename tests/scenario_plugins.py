"""Plugins and a registry for the tests of scenarios, so that these do not depend on the built-in ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar, Literal

from harness.api import (
    Aggregator,
    ByzantineAttack,
    Dataset,
    Defence,
    EvasionAttack,
    Field,
    Metric,
    Model,
    ModelCompressor,
    Partitioner,
    PreAggregator,
    PrivacyAttack,
    Reference,
    Score,
    Tracker,
    hookimpl,
)
from harness.registry import Registry


class Pictures(Dataset):
    """Images from a file."""

    name = "pictures"
    file: str = Field(description="path of the file")

    def load(self, root=None):
        raise NotImplementedError


class Digits(Dataset):
    """Small digits."""

    name = "digits"
    split_seed: int = Field(0, ge=0)

    def load(self, root=None):
        raise NotImplementedError


class Iid(Partitioner):
    """Random shares."""

    name = "iid"

    def partition(self, labels, groups, clients, rng):
        raise NotImplementedError


class Dirichlet(Iid):
    """Skewed shares."""

    name = "dirichlet"
    alpha: float = Field(0.5, gt=0, description="concentration")


class SmallCnn(Model):
    """Two convolutions."""

    name = "small-cnn"
    width: int = Field(8, ge=1)
    activation: Literal["relu", "mish"] = "relu"

    def build(self, input_shape, num_classes, normalization=None):
        raise NotImplementedError


class DpSgd(Defence):
    """Clips and adds noise.

    More of its story.
    """

    name = "dp-sgd"
    reference = Reference(title="Deep Learning with Differential Privacy", venue="CCS", year=2016)
    epsilon: float | None = Field(None, gt=0, description="target epsilon")
    max_grad_norm: float = Field(1.0, gt=0, description="clipping bound")
    accountant: Literal["rdp", "prv"] = "rdp"

    def gradient(self, local):
        return local.gradient


class AdversarialTraining(Defence):
    """Trains on attacked inputs."""

    name = "adversarial-training"
    attack: EvasionAttack = Field(description="the attack")
    fraction: float = Field(1.0, ge=0, le=1)

    def batch(self, x, y, key):
        return x, y


class Mean(Aggregator):
    """The mean."""

    name = "mean"
    aliases = ("fedavg",)

    def aggregate(self, updates, context):
        raise NotImplementedError


class Krum(Mean):
    """The most central row."""

    name = "krum"
    aliases = ()
    f: int | None = Field(None, ge=0)


class Nnm(PreAggregator):
    """Mixes neighbours."""

    name = "nnm"

    def transform(self, updates, context):
        raise NotImplementedError


class Bucketing(Nnm):
    """Averages buckets."""

    name = "bucketing"
    size: int = Field(2, ge=1)


class StaticInt8(ModelCompressor):
    """Eight bits."""

    name = "static-int8"
    per_channel: bool = True

    def compress(self, model, context):
        raise NotImplementedError

    def restore(self, model, state, surroundings):
        raise NotImplementedError


class Pruning(StaticInt8):
    """Removes channels."""

    name = "structured-pruning"
    ratio: float = Field(0.5, gt=0, lt=1)


class Pgd(EvasionAttack):
    """Projected gradient ascent."""

    name = "pgd"
    norm: ClassVar[str | None] = "linf"
    eps: float | None = Field(None, ge=0)
    steps: int = Field(10, ge=1)

    def perturb(self, model, x, y, context):
        raise NotImplementedError


class Fgsm(Pgd):
    """One step."""

    name = "fgsm"


class Alie(ByzantineAttack):
    """A little is enough."""

    name = "alie"
    z: float | None = None

    def craft(self, honest, context):
        raise NotImplementedError


class Lira(PrivacyAttack):
    """Likelihood ratio."""

    name = "lira"
    shadows: int = Field(8, ge=1)

    def run(self, view, context):
        raise NotImplementedError


class Peek(PrivacyAttack):
    """Declares a score that a metric declares too."""

    name = "peek"
    scores = {"accuracy": Score("lower", "share", "members told right")}

    def run(self, view, context):
        raise NotImplementedError


class Leaks(Peek):
    """Declares a score that other attacks declare too."""

    name = "leaks"
    scores = {"leak": Score("lower", "bits", "what a record gives away")}


class Oozes(Peek):
    """Means the same by it."""

    name = "oozes"
    scores = {"leak": Score("lower", "bits", "what a record gives away in the end")}


class Drips(Peek):
    """Means something else by it."""

    name = "drips"
    scores = {"leak": Score("higher", "bits", "what a record keeps")}


class Accuracy(Metric):
    """Share that is right."""

    name = "accuracy"
    scores = {"accuracy": Score("higher", "share", "share that is right")}

    def score(self, context):
        raise NotImplementedError


class Exactness(Metric):
    """Declares a score that another metric declares too."""

    name = "exactness"
    scores = {"accuracy": Score("higher", "share", "share that is right")}

    def score(self, context):
        raise NotImplementedError


class Jsonl(Tracker):
    """Writes lines."""

    name = "jsonl"


BUILTIN = (
    Pictures, Digits, Iid, Dirichlet, SmallCnn, DpSgd, AdversarialTraining, Mean, Krum, Nnm, Bucketing,
    StaticInt8, Pruning, Pgd, Fgsm, Alie, Lira, Peek, Leaks, Oozes, Drips, Accuracy, Exactness, Jsonl,
)  # fmt: skip


class OtherKrum(Krum):
    """Another package's rule of the same name."""


def registry_of(*packages: tuple[str, tuple[type, ...]]) -> Registry:
    """A registry that holds these plugins and nothing that is installed."""
    registry = Registry()
    for distribution, plugins in packages:
        hook = SimpleNamespace(
            harness_register=hookimpl(
                lambda register, plugins=plugins: [register(p) for p in plugins] and None
            )
        )
        registry.add(hook, "plugins", distribution)
    assert not registry.disabled
    return registry
