"""Defences: pure hooks, and what is deployed and prepared."""

from __future__ import annotations

import json
from typing import Any

from harness.contracts.defence import ClientHooks, Defence, Sampling
from harness.testing.core import (
    FAMILIES,
    CheckFailed,
    CheckSkipped,
    Family,
    Setting,
    Subject,
    Trial,
    check,
    overrides,
    repeated,
    require,
)
from harness.testing.watch import global_random_state, same, snapshot

HOOKS = ("defence", "poisoning")  # both run ClientHooks at the clients


def _trial(defence: Defence, setting: Setting) -> Trial:
    from harness.testing.local import PlainMean, begin
    from harness.testing.toy import toy, updates

    world = toy(setting)
    training = begin((defence,), world, setting)
    images, labels = world.images[:12].clone(), world.labels[:12].clone()
    released, prepared = world.net, training.prepared[0]
    inputs = {
        "the images of a batch": images, "the labels of a batch": labels, "the global weights": training.start,
        "the model that `inference` gets": released, "what `prepare` returned": prepared,
    }  # fmt: skip

    def call() -> dict[str, Any]:
        output: dict[str, Any] = {"update": training.steps(images, labels), "prepared": prepared}
        output["sampling"] = defence.sampling(12, 8)
        rule = defence.aggregator(PlainMean(), prepared)
        if overrides(defence, Defence, "aggregator"):
            output["aggregated"] = aggregated(rule, updates(world, 4), world, setting)
        deployed = defence.inference(released)
        if not defence.stochastic:
            with global_random_state():  # deployed_model_answers checks whether answers are random
                output["logits"] = deployed.eval()(images).detach()
        return output

    return Trial(inputs, call, ("update", "logits"))


def aggregated(rule: Any, rows: Any, world: Any, setting: Setting, coins: int = 1, **changes: Any) -> Any:
    """What the server's rule makes of rows. coins: seed of its noise. changes: to the context, such as its round."""
    import torch

    from harness.contracts.aggregator import AggregationContext
    from harness.testing.toy import generator

    given: dict[str, Any] = {
        "round": 0, "f": 0, "weights": torch.full((len(rows),), 1 / len(rows)).to(rows),
        "client_ids": list(range(len(rows))), "layout": world.layout, "generator": generator(setting),
        "noise": generator(setting, coins), "rounds": 2, "global_weights": world.vector, "input_shape": world.shape,
        "logits": world.logits,
    }  # fmt: skip
    return rule.aggregate(rows, AggregationContext(**{**given, **changes}))


FAMILIES["defence"] = Family("defence", _trial)


@check("defence")
def update_well_formed(subject: Subject) -> None:
    """A client still sends one finite update (d,), and the server's rule still gives one."""
    outcome = subject.outcome()
    d = len(outcome.trial.inputs["the global weights"])
    for name in ("update", "aggregated"):
        if name in outcome.output:
            found = outcome.output[name]
            require(
                tuple(found.shape) == (d,) and bool(found.isfinite().all()),
                f"the {name} of {subject.name} is {tuple(found.shape)}, or not finite: it must be ({d},)",
            )
    sampling = outcome.output["sampling"]
    require(
        sampling is None or isinstance(sampling, Sampling),
        f"{subject.name}.sampling returns {sampling!r}: Sampling('shuffle'), Sampling('poisson', rate) or None",
    )
    require(
        subject.plugin.server_view in ("updates", "sum") and subject.plugin.neighbours in ("add-remove", "replace"),
        f"{subject.name} declares server_view {subject.plugin.server_view!r} and neighbours "
        f"{subject.plugin.neighbours!r}: see harness.contracts.defence for what there is",
    )  # fmt: skip


@check(*HOOKS)
def several_rounds(subject: Subject) -> None:
    """Later rounds give finite updates, at the client and at the server, and the same when run again."""
    from harness.testing.local import ROUNDS, PlainMean, begin
    from harness.testing.toy import toy, updates

    plugin, setting = subject.plugin, Setting(scene=subject.outcome().setting.scene)
    world = toy(setting)
    images, labels = world.images[:12], world.labels[:12]

    def play(number: int, state: dict[str, Any]) -> list[Any]:
        training = begin((plugin,), world, setting, round=number)
        found = [training.steps(images, labels)]
        if isinstance(plugin, Defence) and overrides(plugin, Defence, "aggregator"):
            rule = plugin.aggregator(PlainMean(), training.prepared[0])
            rows = updates(world, 4, seed=number)
            found.append(aggregated(rule, rows, world, setting, round=number, state=state))
        require(
            all(bool(one.isfinite().all()) for one in found),
            f"{subject.name} gives an update that is not finite in round {number + 1}",
        )
        return found

    repeated(subject, play, ROUNDS)


@check(*HOOKS)
def hooks_pure(subject: Subject) -> None:
    """Hooks called twice with the same arguments return the same, and leave their arguments alone."""
    import torch

    training, world = _begin(subject)
    x, y, key = world.images[:8].clone(), world.labels[:8].clone(), training.key(3)
    params = {name: p.detach().clone().requires_grad_() for name, p in training.params.items()}
    delta = torch.ones_like(training.start)
    kept = snapshot([x, y, key, params, delta])
    results = []
    for _ in range(2):
        batch = training.batch((x, y), key)
        losses = training.loss(params, (x, y), key)
        results.append([batch[0], batch[1], losses.detach()])
    _update(subject, training, delta)
    for value, before, name in zip(
        [x, y, key, params, delta], kept, ["images", "labels", "key", "parameters", "update"], strict=True
    ):
        require(
            same(snapshot(value), before), f"a hook of {subject.name} changes the {name} that it was given in place"
        )  # fmt: skip
    require(
        same(*results),
        f"`batch` or `loss` of {subject.name} returns something else the second time: whatever is random must come "
        "from `key`, and nothing may be kept between calls",
    )
    images, labels = results[0][:2]
    require(
        tuple(images.shape[1:]) == world.shape and len(images) == len(labels) and labels.dtype == torch.int64,
        f"`batch` of {subject.name} returns images {tuple(images.shape)} and labels {tuple(labels.shape)} "
        f"{labels.dtype}",
    )
    require(
        tuple(results[0][2].shape) == (8,) and bool(results[0][2].isfinite().all()),
        f"`loss` of {subject.name} returns {tuple(results[0][2].shape)} for 8 records, or values that are not finite: "
        "one loss a record, without a mean",
    )


def _update(subject: Subject, training: Any, delta: Any) -> Any:
    from harness.contracts.defence import UpdateContext
    from harness.federation.vector import layout
    from harness.testing.toy import generator

    context = UpdateContext(
        0, 0, generator(training.setting), layout(training.module), training.prepared[0], 4, 1
    )
    return subject.plugin.update(delta, context)


def _begin(subject: Subject, dtype: str = "float32", alone: bool = True) -> Any:
    from harness.testing.local import begin
    from harness.testing.toy import toy

    setting = Setting(dtype=dtype, scene=subject.outcome().setting.scene)
    world = toy(setting)
    return begin((subject.plugin,), world, setting, alone), world


@check(*HOOKS, when=lambda plugin: not getattr(plugin, "couples_samples", False)
       and overrides(plugin, ClientHooks, "loss", "batch"))  # fmt: skip
def couples_samples_declared(subject: Subject) -> None:
    """Unless it declares `couples_samples`, what it does to a record does not depend on the others of the batch."""
    import torch

    training, world = _begin(subject, "float64")
    x, y, key = world.images[:8], world.labels[:8], training.key(5)
    one = slice(3, 4)
    together, alone = training.batch((x, y), key), training.batch((x[one], y[one]), key)
    advice = (
        "noise for a single record could not hide it. Draw randomness with harness.api.record_keys(key, x), take no "
        "statistics over the batch, or declare couples_samples = True"
    )
    require(
        len(alone[0]) == 1
        and torch.allclose(together[0][one], alone[0], atol=1e-9)
        and same(together[1][one], alone[1]),
        f"what `batch` of {subject.name} makes of a record depends on the other records of the batch, or its "
        "place in it: "
        + advice,
    )  # fmt: skip
    params = {name: p.detach().requires_grad_() for name, p in training.params.items()}
    gradients = []
    for images, labels, row in ((x, y, 3), (x[one], y[one], 0)):
        loss = training.loss(params, (images, labels), key)[row]
        found = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        gradients.append(torch.cat([g.flatten() for g in found if g is not None]))
    require(
        torch.allclose(gradients[0], gradients[1], rtol=1e-6, atol=1e-8),
        f"the gradient of a record's loss under {subject.name} depends on the other records of the batch, and "
        f"couples_samples is False: {advice}",
    )


@check(*HOOKS, when=lambda plugin: overrides(plugin, ClientHooks, "loss", "batch", "gradient")
       and (plugin.vectorises or not overrides(plugin, ClientHooks, "gradient")))  # fmt: skip
def same_in_one_program(subject: Subject) -> None:
    """A client that trains in one program with others, as on a GPU, takes the same step as one that trains alone."""
    import torch

    updates = []
    for alone in (True, False):
        training, world = _begin(subject, "float64", alone)
        try:
            updates.append(training.steps(world.images[:8], world.labels[:8], 1))
        except Exception as error:  # then the engine trains clients one after another
            raise CheckSkipped(f"it does not run so: {type(error).__name__}: {error}") from error
    here, there = updates
    require(
        torch.allclose(here, there, rtol=1e-6, atol=1e-9),
        f"a step under {subject.name} is another one where clients train as one program, as on a GPU, by up to "
        f"{float((here - there).abs().max()):.2g}: let its hooks do the same where local.module is None, and "
        "differentiate by harness.api.input_gradient or torch.func.grad",
    )


@check("defence", when=lambda plugin: overrides(plugin, ClientHooks, "loss"))
def loss_trains(subject: Subject) -> None:
    """A loss that differs from the one before it also has another gradient."""
    import torch

    training, world = _begin(subject, "float64")
    batch, key, found = (world.images[:8], world.labels[:8]), training.key(7), []
    for loss in (training.base, training.loss):
        params = {name: p.detach().clone().requires_grad_() for name, p in training.params.items()}
        losses = loss(params, batch, key)
        gradients = torch.autograd.grad(losses.mean(), list(params.values()), allow_unused=True)
        found.append((losses.detach(), gradients))
    (losses, gradients), (own_losses, own_gradients) = found
    require(
        same(losses, own_losses) or not same(gradients, own_gradients),
        f"what `loss` of {subject.name} adds to a record's loss changes no gradient, so that nothing is trained by it: "
        "leave it in the graph (detach, no_grad, detached and autograd.grad without create_graph cut it out)",
    )


@check(*HOOKS)
def empty_batch(subject: Subject) -> None:
    """A batch without records, as Poisson sampling draws them, gives a finite gradient."""
    training, world = _begin(subject)
    x, y, key = world.images[:0], world.labels[:0], training.key(1)
    try:
        gradients = training.gradient(training.params, training.batch((x, y), key), key)
    except Exception as error:
        raise CheckFailed(
            f"{subject.name} breaks on an empty batch: {type(error).__name__}: {str(error).rstrip('.')}. "
            "Poisson sampling draws them: return the batch as it is, or a zero gradient"
        ) from error
    require(
        all(bool(g.isfinite().all()) for g in gradients.values()),
        f"{subject.name} gives a gradient that is not finite for an empty batch: a mean over no record is NaN",
    )


class _OtherLoss(ClientHooks):
    """Put before a defence, it changes the loss, by more than a constant or a factor alone."""

    def loss(self, loss: Any, logits: Any) -> Any:
        return lambda params, batch, key: 3 * loss(params, batch, key) + 0.5


class _OtherGradient(ClientHooks):
    """Put before a defence, it changes the gradient, in sign too."""

    def gradient(self, local: Any) -> Any:
        def gradient(params: Any, batch: Any, key: Any) -> Any:
            return {name: 1 - 2 * g for name, g in local.gradient(params, batch, key).items()}

        return gradient


@check("defence", when=lambda plugin: overrides(plugin, Defence, "loss", "gradient")
       or plugin.replaces_loss or plugin.replaces_gradient)  # fmt: skip
def replacement_declared(subject: Subject) -> None:
    """It builds on the loss and the gradient of the hooks before it, or declares that it replaces them, and does."""
    for what, other in (("loss", _OtherLoss()), ("gradient", _OtherGradient())):
        declared = getattr(subject.plugin, f"replaces_{what}")
        dropped = subject.plugin.overrides(what) and same(
            _composed(subject, what), _composed(subject, what, other)
        )
        require(
            declared or not dropped,
            f"the {what} of {subject.name} is the same whatever {what} stands before it, and replaces_{what} is False: "
            "another defence would be dropped without a word. Build on what is given, or declare "
            f"replaces_{what} = True",
        )
        require(
            dropped or not declared,
            f"{subject.name} declares replaces_{what} = True, but its {what} depends on the one before it, or is no "
            "other: stacks that work would be refused",
        )


def _composed(subject: Subject, what: str, *before: ClientHooks) -> Any:
    """A defence's loss, or gradient, on a batch, behind these hooks."""
    from harness.testing.local import begin
    from harness.testing.toy import toy

    setting = Setting(scene=subject.outcome().setting.scene)
    world = toy(setting)
    training = begin((*before, subject.plugin), world, setting)
    made = getattr(training, what)(training.params, (world.images[:8], world.labels[:8]), training.key(5))
    return snapshot({name: g.detach() for name, g in made.items()} if what == "gradient" else made.detach())


@check("defence")
def deployed_model_answers(subject: Subject) -> None:
    """The model as deployed gives logits; where it answers at random, `stochastic` is True."""
    from harness.testing.models import answers
    from harness.testing.toy import toy

    world = toy(Setting(scene=subject.outcome().setting.scene))
    defence = subject.plugin
    answers(subject, defence.inference(world.net), world)
    if not defence.stochastic:
        found = []
        for seed in (1, 2):
            with global_random_state(seed):
                found.append(defence.inference(world.net).eval()(world.images[:5]).detach())
        require(
            same(found[0], found[1]),
            f"the model that {subject.name} deploys answers at random: let `stochastic` be True, so that "
            "gradient attacks "
            "average over its answers",
        )


@check("defence", when=lambda plugin: overrides(plugin, Defence, "certify"))
def certificate_well_formed(subject: Subject) -> None:
    """Certificates are labels (b,), -1 for abstained, with radii (b,) from 0 to `radius_limit`."""
    from harness.testing.toy import generator, toy

    setting = Setting(scene=subject.outcome().setting.scene)
    world = toy(setting)
    found = subject.plugin.certify(world.net, world.images[:3], generator(setting))
    if found is None:
        return
    labels, radii = found
    require(
        tuple(labels.shape) == tuple(radii.shape) == (3,) and not labels.is_floating_point(),
        f"{subject.name} certifies labels {tuple(labels.shape)} and radii {tuple(radii.shape)} for 3 images",
    )
    require(
        bool((radii >= 0).all()) and bool((labels >= -1).all()) and bool((labels < 3).all()),
        f"{subject.name} certifies negative radii or labels outside [-1, classes)",
    )
    limit = subject.plugin.radius_limit
    require(
        limit >= 0 and float(radii.max()) <= limit * (1 + 1e-6),
        f"{subject.name} certifies a radius of {float(radii.max()):g} and says that {limit:g} is its limit: "
        "let `radius_limit` be the largest radius that `certify` can state, or leave it out",
    )


@check("defence")
def prepared_plain(subject: Subject) -> None:
    """What `prepare` returns, which the record keeps, is made of plain JSON values."""
    prepared = subject.outcome().output["prepared"]
    try:
        again = json.loads(json.dumps(prepared))
    except (TypeError, ValueError) as error:
        raise CheckFailed(
            f"`prepare` of {subject.name} returns what JSON has not: {error}. Use numbers, text, lists and mappings"
        ) from error
    require(
        again == prepared,
        f"`prepare` of {subject.name} is not the same after it was written as JSON: text as keys, lists for tuples",
    )
