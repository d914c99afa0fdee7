"""Everything a plugin author imports. Importing it is cheap: torch is loaded where it is used."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from pydantic import Field

from harness._version import API_VERSION
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
    Exchanged,
    FineTune,
    ModelCompressor,
    Payload,
    Surroundings,
    UpdateCompressionContext,
    UpdateCompressor,
)
from harness.contracts.data import Dataset, Partitioner, Split, Splits, find_file, hash_file, hold_out
from harness.contracts.defence import (
    Batch,
    ClientHooks,
    Defence,
    GradientFn,
    Guarantee,
    Local,
    LogitsFn,
    LossFn,
    Params,
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
from harness.functional import (
    batch_norms,
    detached,
    fgsm,
    held_back,
    in_place_of,
    input_gradient,
    kept_in_range,
    mean_gradient,
    pgd,
    to_climb,
)
from harness.hookspecs import Register, hookimpl
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

__all__ = [
    "API_VERSION",
    "MERGED",
    "AggregationContext",
    "Aggregator",
    "Attack",
    "Audit",
    "Batch",
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
    "Exchanged",
    "Field",
    "FineTune",
    "GradientFn",
    "Guarantee",
    "HarnessError",
    "Local",
    "LogitsFn",
    "LossFn",
    "Membership",
    "Metric",
    "MetricContext",
    "Model",
    "ModelCompressor",
    "Normalization",
    "NotApplicable",
    "Observation",
    "ObservedUpdate",
    "Params",
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
    "Register",
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
    "held_back",
    "hold_out",
    "hookimpl",
    "in_place_of",
    "input_gradient",
    "kept_in_range",
    "make_key",
    "match_images",
    "mean_gradient",
    "numpy_generator",
    "pgd",
    "record_keys",
    "split",
    "to_climb",
    "torch_generator",
    "uniform",
]

# Names that still work but are removed in the next major version, and are kept for at least one minor version:
# old name -> (where it is now, as module:name, the version of harness.api that deprecated it).
DEPRECATED: dict[str, tuple[str, str]] = {}

if not TYPE_CHECKING:  # with a module's __getattr__ in view, a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if name not in DEPRECATED:
            raise AttributeError(f"module 'harness.api' has no attribute {name!r}")
        import importlib

        place, since = DEPRECATED[name]
        module, _, new = place.partition(":")
        warnings.warn(
            f"harness.api.{name} is deprecated since version {since} of harness.api: use {module}.{new}",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(importlib.import_module(module), new)
