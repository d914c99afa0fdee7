"""Correct plugins, small ones of every kind: the twins of those in `broken`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from harness.api import (
    Aggregator,
    Audit,
    ByzantineAttack,
    ClientData,
    ClientHooks,
    CompressedModel,
    Dataset,
    Defence,
    EvasionAttack,
    Field,
    Guarantee,
    Membership,
    Metric,
    Model,
    ModelCompressor,
    Partitioner,
    Payload,
    PluginError,
    PoisoningAttack,
    PreAggregator,
    PrivacyAttack,
    Reference,
    Score,
    Split,
    Splits,
    Tracker,
    UpdateCompressor,
    hold_out,
    input_gradient,
    record_keys,
    uniform,
)

SOURCE = Reference(title="A method made up for tests", url="https://example.org/method")


class Mean(Aggregator):
    """The weighted mean of the updates. updates (n, d) -> (d,). Costs O(n d)."""

    name = "sound-mean"
    reference = SOURCE
    scale: float = Field(1.0, gt=0, allow_inf_nan=False, description="factor on the result, without unit")

    def aggregate(self, updates, context):
        context.report(kept=list(range(len(updates))))
        return self.scale * (context.weights.to(updates) @ updates)


class Halves(PreAggregator):
    """Means of pairs of clients, neighbours by id; a last one stays alone. Costs O(n d)."""

    name = "sound-halves"
    merges_clients = True
    reference = SOURCE

    def transform(self, updates, context):
        import torch

        by_id = torch.tensor(context.client_ids).argsort()
        rows = torch.stack([pair.mean(0) for pair in updates[by_id].split(2)])
        weights = torch.full((len(rows),), 1 / len(rows)).to(updates)
        return rows, context.with_rows(weights, [-1] * len(rows), min(context.f, len(rows)))


class Opposite(ByzantineAttack):
    """Minus the mean of what the attackers would send, the same row from each of them."""

    name = "sound-opposite"
    reference = SOURCE

    def craft(self, honest, context):
        return -context.own.mean(0).expand(context.m, -1).clone()


class Step(EvasionAttack):
    """One signed gradient step, clipped to the range of pixels."""

    name = "sound-step"
    reference = SOURCE
    norm = "linf"

    def direction(self, model, x, y):
        import torch

        return input_gradient(
            lambda images: torch.nn.functional.cross_entropy(model(images), y, reduction="none"), x
        )

    def perturb(self, model, x, y, context):
        return (x + context.eps * self.direction(model, x, y).sign()).clamp(0, 1)


class Darken(EvasionAttack):
    """Darkens the images that the model is right about, asking for its predicted class alone."""

    name = "sound-darken"
    reference = SOURCE
    access = "labels"
    norm = "linf"

    def perturb(self, model, x, y, context):
        right = model(x).argmax(1) == y
        return (x - context.eps * right.view(-1, 1, 1, 1).to(x)).clamp(0, 1)


class Corner(PoisoningAttack):
    """Sets a corner of the images to white and their labels to class 0."""

    name = "sound-corner"
    reference = SOURCE

    @property
    def backdoor_target(self):
        return 0

    def trigger(self, x):
        marked = x.clone()
        marked[:, :, :2, :2] = 1
        return marked

    def poison(self, data, context):
        import torch

        white = 1 if data.images.is_floating_point() else 255
        images = data.images.clone()
        images[:, :, :2, :2] = white
        return ClientData(images, torch.zeros_like(data.labels))


class Confidence(PrivacyAttack):
    """The more confident the model is of a record's class, the likelier the record was trained on."""

    name = "sound-confidence"
    reference = SOURCE

    def score(self, view, images, labels):
        return view.logits(images).log_softmax(1).gather(1, labels[:, None])[:, 0].double().numpy()

    def run(self, view, context):
        sides = [self.score(view, *side) for side in (view.members, view.non_members)]
        return Membership(np.concatenate(sides), np.repeat([True, False], [len(s) for s in sides]))


class Exposure(PrivacyAttack):
    """One number of its own, declared."""

    name = "sound-exposure"
    reference = SOURCE
    needs_non_members = False
    scores = {"exposed": Score("lower", "share", "share of records exposed")}

    def run(self, view, context):
        return {"exposed": 0.25}


class Bound(PrivacyAttack):
    """An audit that finds nothing."""

    name = "sound-bound"
    reference = SOURCE
    audits = True
    needs_non_members = False

    def run(self, view, context):
        return Audit(0.0, 1e-5, 0.95)


class Rounded(ModelCompressor):
    """Weights rounded to one decimal place, kept as float16."""

    name = "sound-rounded"
    reference = SOURCE

    def load(self, model, state):
        import copy

        module = copy.deepcopy(model)
        module.load_state_dict({n: t.to(module.state_dict()[n].dtype) for n, t in state.items()})
        return CompressedModel(module.eval(), state, facts={"decimals": 1})

    def compress(self, model, context):
        import torch

        return self.load(
            model, {n: (10 * t).round().div(10).to(torch.float16) for n, t in model.state_dict().items()}
        )

    def restore(self, model, state, surroundings):
        return self.load(model, state)


class Twice(ClientHooks):
    """Trains on twice the loss."""

    couples_samples = False

    def loss(self, loss, logits):
        return lambda params, batch, key: 2 * loss(params, batch, key)


class Tuned(Rounded):
    """Weights rounded to one decimal place after a round of training on twice the loss; zeros stay zero."""

    name = "sound-tuned"

    @property
    def fine_tuning_rounds(self):
        return 1

    @property
    def fine_tuning_hooks(self):
        return ("loss",)

    def trained(self, model, context):
        import copy

        return context.fine_tune(copy.deepcopy(model), 1, Twice())

    def compress(self, model, context):
        import torch

        module = self.trained(model, context)
        with torch.no_grad():
            for before, after in zip(model.parameters(), module.parameters(), strict=True):
                after[before == 0] = 0
        return super().compress(module, context)


class Signs(UpdateCompressor):
    """Signs of the update as int8, and their mean size."""

    name = "sound-signs"
    reference = SOURCE

    def encode(self, update, state, context):
        import torch

        if not update.isfinite().all():
            raise PluginError("sound-signs needs a finite update")
        return Payload({"signs": update.sign().to(torch.int8), "scale": update.abs().mean()})

    def decode(self, payload, context):
        return payload.tensors["signs"] * payload.tensors["scale"]


def drawn(seed: int = 0, groups: bool = True) -> Splits:
    """300 random images of three classes, split by patient."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (300, 1, 6, 6), dtype=np.uint8)
    whole = Split(images, rng.integers(0, 3, 300), np.arange(300) // 3 if groups else None)
    kept, test = hold_out(whole.labels, whole.groups, 0.2, rng)
    rest = whole.take(kept)
    train, val = hold_out(rest.labels, rest.groups, 0.2, rng)
    return Splits(rest.take(train), rest.take(val), whole.take(test), ("a", "b", "c"))


class Drawn(Dataset):
    """Random images, drawn from a seed of its own."""

    name = "sound-drawn"
    seed: int = Field(0, ge=0, description="seed of the images, without unit")

    def load(self, root=None):
        return drawn(self.seed)


class Dealt(Partitioner):
    """A random permutation in equal parts."""

    name = "sound-dealt"
    reference = SOURCE

    def partition(self, labels, groups, clients, rng):
        if clients > len(labels):
            raise PluginError(f"{clients} clients for {len(labels)} records")
        return np.array_split(rng.permutation(len(labels)), clients)


class Linear(Model):
    """One linear layer on normalised pixels."""

    name = "sound-linear"

    def build(self, input_shape, num_classes, normalization=None):
        import math

        from torch import nn

        from harness.nn import normalization_layer

        return nn.Sequential(
            normalization_layer(normalization, input_shape[0]),
            nn.Flatten(),
            nn.Linear(math.prod(input_shape), num_classes),
        )


class Jitter(Defence):
    """Noise on each record's pixels, from the record's own key."""

    name = "sound-jitter"
    reference = SOURCE

    def batch(self, x, y, key):
        if not len(y):
            return x, y
        return (x + 0.05 * (uniform(record_keys(key, x), x.shape) - 0.5).to(x)).clamp(0, 1), y

    def loss(self, loss, logits):
        return lambda params, batch, key: 2 * loss(params, batch, key)


class Private(Defence):
    """Claims a guarantee that adds up over trainings."""

    name = "sound-private"
    reference = SOURCE
    protects = "record"

    def prepare(self, context):
        return {"epsilon": 1.5, "delta": 1 / (10 * context.records)}

    def guarantee(self, history):
        if not history:
            return None
        return Guarantee(
            unit="record", epsilon=sum(t["epsilon"] for t in history), delta=max(t["delta"] for t in history),
            accountant="sum",
        )  # fmt: skip


class Noised(Defence):
    """Clips a client's update to length 1 and adds Gaussian noise of twice that."""

    name = "sound-noised"
    reference = SOURCE
    protects = "client"
    deviation: ClassVar = 2.0

    def prepare(self, context):
        return {"delta": 1 / (10 * context.records)}

    def update(self, delta, context):
        import torch

        noise = torch.randn(delta.shape, generator=context.generator, dtype=delta.dtype)
        return delta / max(1.0, float(delta.norm())) + self.deviation * noise

    def guarantee(self, history):
        if not history:
            return None
        return Guarantee(
            unit="client", epsilon=4.0 * len(history), delta=history[0]["delta"], accountant="sum",
            noise_multiplier=2.0, max_grad_norm=1.0,
        )  # fmt: skip


class Right(Metric):
    """Share of predictions that are right."""

    name = "sound-right"
    needs = ("labels", "logits")
    scores = {"right": Score("higher", "share", "predictions that are right")}

    def score(self, context):
        found = np.where(np.isnan(context.logits).any(1), -1, context.logits.argmax(1))
        return {"right": float((found == context.labels).mean())}


class Counter(Tracker):
    """Writes how many cells were finished."""

    name = "sound-counter"

    def harness_run_started(self, run):
        with open("cells.txt", "w") as file:
            file.write("0")

    def harness_cell_finished(self, cell, record):
        with open("cells.txt", "a") as file:
            file.write("+")


SOUND = (Mean, Halves, Opposite, Step, Darken, Corner, Confidence, Exposure, Bound, Rounded, Signs, Drawn, Dealt,
         Linear, Jitter, Private, Noised, Right, Counter)  # fmt: skip
