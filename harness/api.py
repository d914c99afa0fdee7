"""Everything a plugin author imports. Importing it is cheap: torch is loaded where it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from harness.contracts.aggregator import MERGED, AggregationContext, Aggregator, PreAggregator
from harness.contracts.attack import (
    Attack,
    ByzantineAttack,
    ByzantineContext,
    ClientData,
    EvasionAttack,
    EvasionContext,
    PoisonContext,
    PoisoningAttack,
    Surrogate,
)
from harness.contracts.base import Plugin, Reference
from harness.contracts.compressor import (
    CompressedModel,
    CompressionContext,
    Compressor,
    ModelCompressor,
    Payload,
    Surroundings,
    UpdateCompressionContext,
    UpdateCompressor,
)
from harness.contracts.data import Dataset, Partitioner, Split, Splits, find_file, hash_file, hold_out
from harness.contracts.defence import (
    ClientHooks,
    Defence,
    Guarantee,
    Local,
    PrepareContext,
    Sampling,
    StackContext,
    UpdateContext,
)
from harness.contracts.metric import Certificate, Metric, MetricContext, Score
from harness.contracts.model import Model, Normalization
from harness.contracts.privacy import (
    Audit,
    Canaries,
    Membership,
    Observation,
    ObservedUpdate,
    Planted,
    PrivacyAttack,
    PrivacyContext,
    PrivacyView,
    Reconstruction,
    RecordedRound,
    TrainingVariant,
    VariantView,
)
from harness.contracts.tracker import Tracker
from harness.errors import HarnessError, NotApplicable, PluginError, did_you_mean
from harness.evaluation.matching import match_images
from harness.functional import batch_norms, detached, fgsm, input_gradient, mean_gradient, pgd
from harness.hookspecs import hookimpl
from harness.privacy import accounting
from harness.random import (
    derive,
    make_key,
    numpy_generator,
    record_keys,
    split,
    torch_generator,
    uniform,
)

if TYPE_CHECKING:
    # Names for annotations.
    from harness.contracts.defence import Batch, GradientFn, LogitsFn, LossFn, Params  # noqa: F401

__all__ = [
    "MERGED",
    "AggregationContext",
    "Aggregator",
    "Attack",
    "Audit",
    "ByzantineAttack",
    "ByzantineContext",
    "Canaries",
    "Certificate",
    "ClientData",
    "ClientHooks",
    "CompressedModel",
    "CompressionContext",
    "Compressor",
    "Dataset",
    "Defence",
    "EvasionAttack",
    "EvasionContext",
    "Field",
    "Guarantee",
    "HarnessError",
    "Local",
    "Membership",
    "Metric",
    "MetricContext",
    "Model",
    "ModelCompressor",
    "Normalization",
    "NotApplicable",
    "Observation",
    "ObservedUpdate",
    "Partitioner",
    "Payload",
    "Planted",
    "Plugin",
    "PluginError",
    "PoisonContext",
    "PoisoningAttack",
    "PreAggregator",
    "PrepareContext",
    "PrivacyAttack",
    "PrivacyContext",
    "PrivacyView",
    "Reconstruction",
    "RecordedRound",
    "Reference",
    "Sampling",
    "Score",
    "Split",
    "Splits",
    "StackContext",
    "Surrogate",
    "Surroundings",
    "Tracker",
    "TrainingVariant",
    "UpdateCompressionContext",
    "UpdateCompressor",
    "UpdateContext",
    "VariantView",
    "accounting",
    "batch_norms",
    "derive",
    "detached",
    "did_you_mean",
    "fgsm",
    "find_file",
    "hash_file",
    "hold_out",
    "hookimpl",
    "input_gradient",
    "make_key",
    "match_images",
    "mean_gradient",
    "numpy_generator",
    "pgd",
    "record_keys",
    "split",
    "torch_generator",
    "uniform",
]
