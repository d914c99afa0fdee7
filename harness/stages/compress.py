"""The compress stage: a chain of model compressors, and the model as released."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from harness.borders import network
from harness.contracts.aggregator import Aggregator
from harness.contracts.compressor import CompressedModel, CompressionContext, Surroundings
from harness.contracts.defence import ClientHooks, Defence
from harness.errors import PluginError, blamed
from harness.evaluation.blank import blank
from harness.evaluation.predict import own_pixels
from harness.federation.counts import fine_tuning_purpose
from harness.federation.data import Part
from harness.plan import Stage
from harness.random import torch_generator
from harness.stage_specs import CompressSpec
from harness.stages.train import Progress, load_trained, report_rounds, training_facts
from harness.training import Training

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.store import Store


def compress(
    stage: Stage, spec: CompressSpec, store: Store, device: str, progress: Progress
) -> dict[str, Any]:
    base = store.stage_result(stage.needs[-1])
    assert base is not None
    training = Training(spec.train, stage.key, device)
    module = load_trained(training, store, base)
    prepared = base["prepared"]
    links: list[dict[str, Any]] = []
    fine_tuned: list[dict[str, Any]] = []
    compressed = CompressedModel(module, module.state_dict())
    for position, compressor in enumerate(spec.compressors):

        def fine_tune(
            module: nn.Module, rounds: int, *hooks: ClientHooks, position: int = position
        ) -> nn.Module:
            nonlocal prepared
            module.train()
            purpose = fine_tuning_purpose(position, len(fine_tuned))
            trained = training.run(
                module, report_rounds(progress), rounds=rounds, purpose=purpose, history=prepared, hooks=hooks
            )
            prepared = trained.prepared
            fine_tuned.append(
                {
                    "purpose": purpose,
                    "rounds": rounds,
                    "history": trained.outcome.history,
                    **training_facts(trained),
                }
            )
            return module

        context = CompressionContext(
            input_shape=training.data.input_shape,
            num_classes=training.data.num_classes,
            build=training.build,
            generator=torch_generator(spec.train.seed, "compress", position),
            data=_data_for(compressor.name, compressor.data_access, spec.unprotected, training.data.val),
            fine_tune=fine_tune,
        )
        source = compressed.module.to("cpu") if compressed.device == "cpu" else compressed.module
        with blamed(compressor):
            compressed = _model(compressor.compress(source.eval(), context), f"{compressor.name}.compress")
        digest, size = store.save_tensors(compressed.state)
        links.append({"name": compressor.name, "artifact": digest, "bytes": size, "facts": compressed.facts})
    return {
        "artifacts": [link["artifact"] for link in links],
        "links": links,
        "prepared": prepared,
        "guarantees": [guarantee.model_dump() for guarantee in training.guarantees(prepared)],
        "fine_tuning": fine_tuned,
    }


def _model(found: Any, who: str) -> CompressedModel:
    """What a compressor returned, unchanged. Raises PluginError if it is not a CompressedModel."""
    if not isinstance(found, CompressedModel):
        raise PluginError(f"{who} returned {type(found).__name__}, not a CompressedModel")
    return found


def _data_for(
    name: str, access: str, unprotected: tuple[str, ...], val: Part
) -> Callable[[], tuple[Tensor, Tensor]]:
    """What a compressor may see: nothing, or the validation split, which is public only if declared unprotected."""

    def data() -> tuple[Tensor, Tensor]:
        if access == "none":
            raise PluginError(f"{name} declares no data access")
        if access == "public" and "val" not in unprotected:
            raise PluginError(f"{name} needs public data and the scenario declares none")
        return own_pixels(val.images), val.labels.clone()

    return data


Certify = Callable[["Tensor", torch.Generator], "tuple[Tensor, Tensor] | None"]


@dataclass
class Released:
    """A model as it is deployed. certify: the defences' certificate for a batch of pixels, if they give one.

    radius_limit: the largest radius that the certificate can state.
    """

    module: nn.Module
    state: dict[str, Tensor]
    differentiable: bool
    twin: nn.Module | None
    device: str
    stochastic: bool
    certify: Certify | None
    radius_limit: float


@torch.no_grad()
def load_released(
    training: Training,
    spec: CompressSpec,
    store: Store,
    base: dict[str, Any],
    compressed: dict[str, Any] | None,
) -> Released:
    """The model as released: trained, each link of the compressor chain restored from its file, then deployed.

    Deploying applies what aggregators and defences do to the model at inference.
    """
    if compressed is None:
        module = load_trained(training, store, base)
        released = CompressedModel(module, module.state_dict())
    else:
        # The files alone must give the network back, so it starts blank, without trained weights to fall back on.
        module = blank(training.initial_module())
        released = CompressedModel(module, {})
        surroundings = Surroundings(training.data.input_shape, training.data.num_classes, training.build)
        for compressor, link in zip(spec.compressors, compressed["links"], strict=True):
            state = store.load_tensors(link["artifact"])
            with blamed(compressor):
                restored = compressor.restore(released.module, state, surroundings)
            released = _model(restored, f"{compressor.name}.restore")
    device = released.device or training.device
    deploy: list[Aggregator | Defence] = [*spec.train.aggregators, *spec.train.defences]
    certify: Certify | None = None
    radius_limit = math.inf
    for part in deploy:
        if isinstance(part, Defence) and type(part).certify is not Defence.certify:
            certify, radius_limit = partial(part.certify, released.module), part.radius_limit
        elif type(part).inference not in (Defence.inference, Aggregator.inference):
            certify = None  # an earlier defence's certificate is for the model without this part
        released.module = deployed(part, released.module)
        if released.twin is not None:
            released.twin = deployed(part, released.twin)
    return Released(
        module=released.module.to(device).eval(),
        state=released.state,
        differentiable=released.differentiable,
        twin=None if released.twin is None else released.twin.to(device).eval(),
        device=device,
        stochastic=any(defence.stochastic for defence in spec.train.defences),
        certify=certify,
        radius_limit=radius_limit,
    )


def deployed(part: Aggregator | Defence, module: nn.Module) -> nn.Module:
    """The network that an aggregator or defence deploys in place of `module`. Raises PluginError if it is none."""
    with blamed(part):
        return network(part.inference(module), f"{part.name}.inference")
