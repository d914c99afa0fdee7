"""Model compressors: a smaller network, and the file it comes back from."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from harness.contracts.compressor import (
    DATA_ACCESS,
    CompressedModel,
    CompressionContext,
    ModelCompressor,
    Surroundings,
)
from harness.contracts.defence import ClientHooks
from harness.stacks import brought
from harness.testing.core import (
    FAMILIES,
    CheckFailed,
    Family,
    Setting,
    Subject,
    Trial,
    check,
    overrides,
    require,
)

FAMILY = "model compressor"


def _trial(compressor: ModelCompressor, setting: Setting, world: Any = None) -> Trial:
    from harness.testing.local import begin
    from harness.testing.toy import CLASSES, generator, toy

    world = toy(setting) if world is None else world
    module = world.net
    images, labels = world.images.clone(), world.labels.clone()
    rounds: list[int] = []
    brings: set[str] = set()

    def data() -> Any:
        return images, labels

    def fine_tune(module: Any, count: int, *hooks: ClientHooks) -> Any:
        rounds.append(count)
        brings.update(name for hook in hooks for name in brought(hook))
        training = begin(hooks, replace(world, module=module), setting)
        training.steps(images, labels, 3)
        module.load_state_dict(training.module.state_dict())
        return module

    if compressor.data_access == "none":
        data = setting.forbid(
            f"{compressor.name} asks for data and declares data_access = 'none': a guarantee would be broken "
            "in silence. "
            "Declare public or private"
        )
    given: Any = fine_tune
    if not compressor.fine_tuning_rounds:
        given = setting.forbid(
            f"{compressor.name} trains in the federation and declares no fine_tuning_rounds: estimates need the number"
        )
    context = CompressionContext(
        input_shape=world.shape, num_classes=CLASSES, build=world.build, generator=generator(setting),
        data=data, fine_tune=given,
    )  # fmt: skip
    inputs = {"the network": module, "images": images, "labels": labels}

    def call() -> dict[str, Any]:
        found = compressor.compress(module, context)
        if not isinstance(found, CompressedModel):
            raise CheckFailed(
                f"{compressor.name}.compress returns {type(found).__name__}, not a CompressedModel"
            )
        return {
            "state": dict(found.state),
            "facts": found.facts,
            "compressed": lambda: found,
            "rounds": rounds,
            "hooks": sorted(brings),
        }

    return Trial(inputs, call)


FAMILIES[FAMILY] = Family(FAMILY, _trial, dtypes=("float32",))


def _found(subject: Subject) -> tuple[CompressedModel, Any]:
    from harness.testing.toy import toy

    outcome = subject.outcome()
    return outcome.output["compressed"](), toy(Setting(scene=outcome.setting.scene))


def _logits(module: Any, world: Any) -> Any:
    import torch

    with torch.no_grad():
        return module.eval()(world.images)


@check(FAMILY)
def compressed_answers(subject: Subject) -> None:
    """The compressed network takes the images the network took, and gives finite logits."""
    from harness.testing.models import answers

    found, world = _found(subject)
    answers(subject, found.module, world)
    require(
        subject.plugin.data_access in DATA_ACCESS,
        f"{subject.name} declares data_access = {subject.plugin.data_access!r}: {', '.join(DATA_ACCESS)}",
    )


@check(FAMILY)
def file_restores(subject: Subject) -> None:
    """Written to a file and read back, the compressed network makes the same predictions."""
    import torch
    from safetensors.torch import load, save

    from harness.evaluation.blank import blank

    found, world = _found(subject)
    require(
        bool(found.state) and all(isinstance(t, torch.Tensor) for t in found.state.values()),
        f"{subject.name} has a state that is not made of tensors: what `restore` needs must be in its file",
    )
    read = load(save({name: t.detach().cpu().clone().contiguous() for name, t in found.state.items()}))
    surroundings = Surroundings(world.shape, 3, world.build)
    expected = _logits(found.module, world)  # first, in case `restore` changes what this network is made of
    restored = subject.plugin.restore(blank(world.net), read, surroundings)
    require(
        torch.allclose(expected, _logits(restored.module, world), rtol=1e-4, atol=1e-5),
        f"the predictions of {subject.name} are others after its file was written and read: `restore` must rebuild the "
        "network from the state alone, and is given one whose values are all NaN",
    )


@check(FAMILY)
def gradients_as_declared(subject: Subject) -> None:
    """A `differentiable` compressor's network has gradients; a `straight_through` one returns a twin that has them."""
    import torch

    found, world = _found(subject)
    compressor = subject.plugin
    networks: list[tuple[str, Any]] = []
    if compressor.differentiable and found.differentiable:
        networks.append(("the compressed network", found.module))
    if compressor.straight_through:
        require(found.twin is not None, f"{compressor.name} declares straight_through and returns no twin")
        networks.append(("the twin", found.twin))
    for what, module in networks:
        x = world.images[:6].clone().requires_grad_()
        logits = module.eval()(x)
        require(
            logits.requires_grad,
            f"{what} of {compressor.name} has no gradient with respect to its input: declare differentiable = "
            "False, or "
            "return a twin",
        )
        (gradient,) = torch.autograd.grad(logits.square().sum(), x)
        require(
            bool(gradient.isfinite().all()) and bool(gradient.any()),
            f"the gradient of {what} of {compressor.name} is zero or not finite: rounding has none, declare "
            "differentiable = False and return a straight-through twin",
        )
    require(
        not (found.differentiable and not compressor.differentiable),
        f"{compressor.name} returns differentiable = True and declares False",
    )


@check(FAMILY)
def facts_plain(subject: Subject) -> None:
    """The facts on what was reached, which the record keeps, are plain JSON values."""
    facts = subject.outcome().output["facts"]
    try:
        json.dumps(facts, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckFailed(f"the facts of {subject.name} are no plain values: {error}") from error


@check(FAMILY)
def fine_tuning_counted(subject: Subject) -> None:
    """It trains no more rounds in the federation than it declares, in the calls that it declares."""
    calls, declared = subject.outcome().output["rounds"], subject.plugin.fine_tuning_rounds
    require(
        sum(calls) <= declared,
        f"{subject.name} asks for {sum(calls)} rounds of training and declares fine_tuning_rounds = {declared}",
    )
    planned = list(subject.plugin.fine_tunings)
    require(
        calls == planned[: len(calls)],
        f"{subject.name} calls context.fine_tune with {calls} rounds and declares fine_tunings = {planned}",
    )


@check(FAMILY)
def fine_tuning_hooks_declared(subject: Subject) -> None:
    """The client hooks that it gives to fine-tuning are declared, so that stacks that would drop them are refused."""
    brings, declared = subject.outcome().output["hooks"], sorted(subject.plugin.fine_tuning_hooks)
    require(
        brings == declared,
        f"{subject.name} gives `fine_tune` hooks for {brings} and declares fine_tuning_hooks = {declared}: a defence "
        "that replaces the loss or the gradient would drop theirs without a word",
    )


@check(FAMILY, when=lambda plugin: overrides(plugin, ModelCompressor, "fine_tuning_rounds"))
def zeros_stay(subject: Subject) -> None:
    """Weights that an earlier compressor pruned are zero after its training too, where the network keeps its shape."""
    import torch
    from torch import nn

    from harness.testing.toy import toy

    setting = Setting(scene=subject.outcome().setting.scene)
    if not subject.plugin.fine_tuning_rounds:
        return
    pruned = toy(setting).net
    with torch.no_grad():
        for layer in pruned.modules():
            if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)):
                layer.weight.view(-1)[::2] = 0
    before = {name: p.detach().clone() for name, p in pruned.named_parameters()}
    world = replace(toy(setting), module=pruned)
    found = _trial(subject.plugin, setting, world).call()["compressed"]().module
    after = {name: p.detach() for name, p in found.named_parameters()}
    if {name: p.shape for name, p in after.items()} != {name: p.shape for name, p in before.items()}:
        return  # another network: which of its weights were pruned cannot be told
    grown = [name for name, p in before.items() if p.ndim > 1 and bool(((p == 0) & (after[name] != 0)).any())]
    require(
        not grown,
        f"{subject.name} trains weights that were pruned before it: {', '.join(grown)} has other values where it had "
        "zeros. Hold them, with torch.nn.utils.parametrize for instance, or the row claims a sparsity that is gone",
    )
