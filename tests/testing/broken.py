"""Plugins with one planted fault each. FAULTS: (plugin, the check that must catch it, words of its message)."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Any, ClassVar

import heavy_plugin
import numpy as np
import sound
from pydantic import ConfigDict, PrivateAttr

from harness.api import (
    Audit,
    ClientData,
    CompressedModel,
    Exchanged,
    Field,
    Guarantee,
    Membership,
    NotApplicable,
    Payload,
    PluginError,
    Score,
    Split,
    Splits,
    hookimpl,
)

FAULTS: list[tuple[type, str, str]] = []


def fault(check: str, words: str):
    def register(cls):
        cls.name = "broken-" + cls.__name__.lower()
        FAULTS.append((cls, check, words))
        return cls

    return register


FAULTS.append((heavy_plugin.Eager, "heavy_imports_deferred", "imports torch at the top (line 5)"))

# what every plugin owes ---------------------------------------------------------------------------


@fault("documented", "has no docstring")
class Undocumented(sound.Mean):
    pass


@fault("documented", "begin with a whole sentence")
class Terse(sound.Mean):
    """Mean"""


@fault("reference_present", "has no reference")
class Unpublished(sound.Mean):
    """A mean that names no publication."""

    reference = None


@fault("reference_present", "has no address")
class Homeless(sound.Mean):
    """A mean whose publication has no address."""

    reference = sound.SOURCE.model_copy(update={"url": ""})


@fault("parameters_described", "parameter 'shift' of broken-undescribed has no description")
class Undescribed(sound.Mean):
    """A mean with a parameter that nobody explains."""

    shift: float = Field(0.0, ge=0)


@fault("parameters_bounded", "parameter 'shift' of broken-unbounded is a number without bounds")
class Unbounded(sound.Mean):
    """A mean with a parameter that takes every number."""

    shift: float | None = Field(None, description="added, in units of the updates")


@fault("parameters_typed", "parameter 'shift' of broken-untyped is not typed")
class Untyped(sound.Mean):
    """A mean with a parameter of any type."""

    shift: Any = Field(None, description="added, in units of the updates")


@fault("unknown_parameters_refused", "takes a parameter that it does not have")
class Tolerant(sound.Mean):
    """A mean that drops parameters it does not know."""

    model_config = ConfigDict(extra="ignore")


@fault("immutable", "'scale' of a broken-changeable can be set")
class Changeable(sound.Mean):
    """A mean whose parameters can be changed later."""

    model_config = ConfigDict(frozen=False)


@fault("pickles", "cannot be sent to a worker process")
class Tethered(sound.Mean):
    """A mean that holds a function."""

    _function: Any = PrivateAttr(default_factory=lambda: lambda: 1)


@fault("constructs", "cannot be made without parameters")
class Demanding(sound.Mean):
    """A mean with a parameter that has neither a default nor an example that fits."""

    word: str = Field(description="a word of the author's choice", pattern="^xyzzy$")


@fault("parameters_round_trip", "cannot be read back from YAML")
class Pairs(sound.Mean):
    """A mean with a parameter that YAML cannot say in strict form."""

    corners: frozenset[int] = Field(frozenset({1, 2}), description="positions of the corners")


@fault("runs", "fails in an ordinary use: ZeroDivisionError")
class Crashing(sound.Mean):
    """A mean that divides by zero."""

    def aggregate(self, updates, context):
        return updates.sum(0) / (1 // 0)


@fault("runs", "fails in an ordinary use: SystemExit: 3")
class Exiting(sound.Mean):
    """A mean that ends the process."""

    def aggregate(self, updates, context):
        sys.exit(3)


@fault("few_clients", "broken-leaving calls sys.exit(2)")
class Leaving(sound.Mean):
    """A mean that ends the process where it has few rows."""

    def aggregate(self, updates, context):
        if len(updates) == 1:
            sys.exit(2)
        return super().aggregate(updates, context)


# aggregators ----------------------------------------------------------------------------------------


@fault("inputs_unchanged", "changes what it was given: updates")
class InPlace(sound.Mean):
    """A mean that centres the updates in place. Costs O(n d)."""

    def aggregate(self, updates, context):
        centre = updates.mean(0)
        updates -= centre
        return centre


@fault("global_random_state_untouched", "global generator of torch")
class Dice(sound.Mean):
    """A mean with noise from torch's own generator."""

    def aggregate(self, updates, context):
        import torch

        return updates.mean(0) + 1e-3 * torch.randn(updates.shape[1]).to(updates)


@fault("global_random_state_untouched", "global generator of numpy.random")
class Seeding(sound.Mean):
    """A mean that seeds NumPy's own generator."""

    def aggregate(self, updates, context):
        np.random.seed(7)
        return updates.mean(0)


@fault("deterministic", "returns something else the second time")
class Moody(sound.Mean):
    """A mean with noise from the operating system."""

    def aggregate(self, updates, context):
        return updates.mean(0) * (1 + int.from_bytes(os.urandom(4)) * 1e-12)


@fault("device_and_dtype_kept", "as float32 on cpu for float64 on cpu")
class Single(sound.Mean):
    """A mean in float32 whatever comes."""

    def aggregate(self, updates, context):
        return updates.mean(0).float()


@fault("result_well_formed", "not one update")
class Short(sound.Mean):
    """A mean that is one coordinate short."""

    def aggregate(self, updates, context):
        return updates.mean(0)[:-1]


@fault("result_well_formed", "returns ndarray for updates (11, 1243)")
class Numpy(sound.Mean):
    """A mean that leaves torch."""

    def aggregate(self, updates, context):
        return updates.mean(0).numpy()


@fault("unusual_rows", "values that are not finite (rows of zeros)")
class Direction(sound.Mean):
    """The mean of the updates' directions, undefined for zeros. Costs O(n d)."""

    def aggregate(self, updates, context):
        return (updates / updates.norm(dim=1, keepdim=True)).nan_to_num(posinf=0, nan=float("nan")).mean(0)


@fault("few_clients", "breaks with n = 2, f = 0: IndexError")
class Third(sound.Mean):
    """The third smallest value of each coordinate. Costs O(n d log n)."""

    def aggregate(self, updates, context):
        return updates.sort(0).values[2]


@fault("clients_in_any_order", "never its position")
class Senior(sound.Mean):
    """A mean in which the first row counts double. Costs O(n d)."""

    def aggregate(self, updates, context):
        return (updates.sum(0) + updates[0]) / (len(updates) + 1)


@fault("several_rounds", "breaks in round 2")
class Forgetful(sound.Mean):
    """A mean that cannot find its own state again. Costs O(n d)."""

    def aggregate(self, updates, context):
        if "seen" in context.state:
            return updates.mean(0) + context.state["mean"]
        context.state["seen"] = True
        return updates.mean(0)


@fault("clients_in_any_order", "goes by its id in context.client_ids")
class Seated(sound.Mean):
    """The median of what each client sent last and now, which it tells by its place. Costs O(n d log n)."""

    follows_clients = True

    def aggregate(self, updates, context):
        last = context.state.get("rows", updates)
        context.state["rows"] = updates.clone()
        return (updates + (last if last.shape == updates.shape else updates)).median(0).values


AVERAGE: dict[str, Any] = {}


@fault("deterministic", "keep nothing between calls")
class Drifting(sound.Mean):
    """A running mean, begun with the first, that it keeps beside the context's state. Costs O(n d)."""

    def aggregate(self, updates, context):
        now = updates.mean(0)
        before = AVERAGE.get("mean", now)
        AVERAGE["mean"] = (before + now) / 2 if before.shape == now.shape else now
        return AVERAGE["mean"].to(updates)


@fault("an_update_not_weights", "returns the global weights with the update")
class Weighty(sound.Mean):
    """The mean of the clients' models. Costs O(n d)."""

    def aggregate(self, updates, context):
        return context.global_weights + updates.mean(0)


@fault("same_in_every_process", "depends on Python's hash() of a text")
class Salted(sound.Mean):
    """A mean with noise whose seed is the hash of a text. Costs O(n d)."""

    def aggregate(self, updates, context):
        import torch

        own = torch.Generator().manual_seed(hash(f"{self.name}-{context.round}"))
        return updates.mean(0) + 1e-3 * torch.randn(updates.shape[1], generator=own).to(updates)


@fault(
    "several_rounds", "in a later round broken-warmedup draws from (or seeds) the global generator of torch"
)
class WarmedUp(sound.Mean):
    """A mean that adds noise from torch's own generator once it has seen a round. Costs O(n d)."""

    def aggregate(self, updates, context):
        import torch

        noise = torch.randn(updates.shape[1]).to(updates) if context.state else 0
        context.state["seen"] = True
        return updates.mean(0) + 1e-3 * noise


@fault("several_rounds", "something else in a later round when the same rounds are run again")
class LaterMoody(sound.Opposite):
    """Minus the mean, times a factor of the operating system's from the second round on."""

    def craft(self, honest, context):
        factor = 1 + int.from_bytes(os.urandom(4)) * 1e-9 * bool(context.state)
        context.state["seen"] = True
        return factor * super().craft(honest, context)


@fault("report_valid", "reports rows [99] as kept")
class Stranger(sound.Mean):
    """A mean that reports a row nobody sent. Costs O(n d)."""

    def aggregate(self, updates, context):
        context.report(kept=[99])
        return updates.mean(0)


@fault("clients_as_declared", "set follows_clients = True")
class Steady(sound.Mean):
    """The mean of what each client has sent on average so far. Costs O(n d)."""

    def aggregate(self, updates, context):
        for client, update in zip(context.client_ids, updates, strict=True):
            context.state.setdefault(client, []).append(update.clone())
        return sum(sum(context.state[c]) / len(context.state[c]) for c in context.client_ids) / len(updates)


@fault("clients_as_declared", "set merges_clients = True")
class Pooling(sound.Halves):
    """Means of pairs, without a word about it. Costs O(n d)."""

    merges_clients = False


@fault("declared_access_respected", "does not declare it: set `root_records`")
class Rooted(sound.Mean):
    """Moves towards an update on a root dataset that it does not declare."""

    def aggregate(self, updates, context):
        return (updates.mean(0) + context.root_update()) / 2


@fault("sum_only_true", "declares sum_only, but gives another result")
class NotASum(sound.Mean):
    """A median that says it follows from the sum."""

    sum_only = True

    def aggregate(self, updates, context):
        return updates.median(0).values


@fault("cost_as_documented", "-fold from n = 16, d = 4096 to n = 48")
class Pairwise(sound.Mean):
    """A mean over all pairs of rows. Costs O(n d)."""

    def aggregate(self, updates, context):
        return ((updates[:, None] + updates[None]) / 2).mean((0, 1))


@fault("result_well_formed", "weights, 11 client ids")
class OldWeights(sound.Halves):
    """Merges rows and keeps the weights of the rows before."""

    def transform(self, updates, context):
        return super().transform(updates, context)[0], context


# attacks ----------------------------------------------------------------------------------------------


@fault("declared_access_respected", "runs the server's rule and declares knowledge = 'own'")
class Omniscient(sound.Opposite):
    """Tries the server's rule without saying that it needs it."""

    def craft(self, honest, context):
        return -context.aggregator(honest).expand(context.m, -1).clone()


@fault("declared_access_respected", "reads context.own and declares uses_own = False")
class NotOwn(sound.Opposite):
    """Says that it does not look at the attackers' own updates, and does."""

    uses_own = False


@fault("crafted_well_formed", "not one row a malicious client: (3,")
class OneForAll(sound.Opposite):
    """One row for all attackers."""

    def craft(self, honest, context):
        return -honest.mean(0)


@fault("crafted_well_formed", "crafts ndarray (8 honest clients)")
class Array(sound.Opposite):
    """The opposite, as an array."""

    def craft(self, honest, context):
        return super().craft(honest, context).numpy()


@fault("few_clients", "crafts NaN (8 honest and 1 malicious clients)")
class Deviation(sound.Opposite):
    """The attackers' own mean and standard deviation, undefined for one."""

    def craft(self, honest, context):
        return (context.own.mean(0) - context.own.std(0)).expand(context.m, -1).clone()


@fault(
    "runs",
    "raises NotApplicable when it is used (8 pixels are too few), which fails a cell after its training",
)
class LateToRefuse(sound.Step):
    """Refuses small images where it is too late, and takes those of the next scene."""

    def perturb(self, model, x, y, context):
        if x.shape[-1] == 8:
            raise NotApplicable("8 pixels are too few")
        return super().perturb(model, x, y, context)


@fault("inputs_unchanged", "what it was given: the images that `perturb` gets")
class StepInPlace(sound.Step):
    """A step that also darkens the images it was given."""

    def perturb(self, model, x, y, context):
        found = super().perturb(model, x, y, context)
        x.mul_(0.5)
        return found


@fault("inputs_unchanged", "what it was given: the labels that `perturb` gets")
class LabelsInPlace(sound.Step):
    """A step that leaves other labels behind."""

    def perturb(self, model, x, y, context):
        found = super().perturb(model, x, y, context)
        y.zero_()
        return found


@fault("inputs_unchanged", "what it was given: the model that `perturb` gets")
class LeavesTraining(sound.Step):
    """A step that leaves the model in training mode."""

    def perturb(self, model, x, y, context):
        model.train()
        return super().perturb(model, x, y, context)


@fault("budget_kept", "in linf, and eps is 0.03137")
class TooFar(sound.Step):
    """Twice the step that it is allowed."""

    def perturb(self, model, x, y, context):
        return super().perturb(model, x, y, replace(context, eps=2 * context.eps))


@fault("loss_does_not_fall", "lowers the loss at the true classes")
class Helpful(sound.Step):
    """Steps down the loss."""

    def direction(self, model, x, y):
        return -super().direction(model, x, y)


@fault("pixel_range_kept", "leaves the range of pixels")
class Outside(sound.Step):
    """A step that leaves the range of pixels."""

    def perturb(self, model, x, y, context):
        return x + context.eps * self.direction(model, x, y).sign()


@fault("zero_budget_moves_nothing", "moves images with eps = 0")
class Restless(sound.Step):
    """At least a thousandth, whatever the budget."""

    def perturb(self, model, x, y, context):
        return super().perturb(model, x, y, replace(context, eps=max(context.eps, 0.001)))


@fault("declared_access_respected", "uses the model's gradients and declares access = 'labels'")
class SecretGradient(sound.Step):
    """A gradient step that says it needs labels alone."""

    access = "labels"


@fault("declared_access_respected", "asks the model and declares access = 'none'")
class SecretQuery(sound.Darken):
    """Asks the model and says that it does not."""

    access = "none"


@fault("labels_are_enough", "reads the logits")
class SecretLogits(sound.Darken):
    """Darkens by how sure the model is, and says that labels are enough."""

    def perturb(self, model, x, y, context):
        sure = model(x).softmax(1).amax(1)
        return (x - context.eps * sure.view(-1, 1, 1, 1)).clamp(0, 1).detach()


@fault("device_and_dtype_kept", "adversarial as float32 on cpu for float64")
class SingleImages(sound.Step):
    """Examples in float32 whatever comes."""

    def perturb(self, model, x, y, context):
        return super().perturb(model, x, y, context).float()


@fault("single_image", "breaks on a batch of one image")
class Batchwise(sound.Step):
    """A step scaled by the spread over the batch."""

    def perturb(self, model, x, y, context):
        if len(x) < 2:
            raise IndexError("a batch of two is needed")
        return super().perturb(model, x, y, context)


@fault("poison_well_formed", "leave [0, 1]")
class Glaring(sound.Corner):
    """A trigger in the records that is brighter than white."""

    def poison(self, data, context):
        return ClientData(data.images + 1, data.labels)


@fault("backdoor_well_formed", "the trigger of broken-dazzling leaves [0, 1]")
class Dazzling(sound.Corner):
    """A trigger at inference that is brighter than white."""

    def trigger(self, x):
        return super().trigger(x) + 0.5


@fault("trigger_is_trained", "of the pixels that both change, 0% lie between")
class OtherCorner(sound.Corner):
    """Teaches one corner and shows another."""

    def trigger(self, x):
        return super().trigger(x.flip(-1)).flip(-1)


@fault("trigger_is_trained", "teaches another trigger than `trigger` shows")
class OtherPattern(sound.Corner):
    """Blends in one pattern in training and another one when it is scored."""

    def trigger(self, x):
        return self.blended(x, 1)

    def poison(self, data, context):
        import torch

        if not data.images.is_floating_point():
            return super().poison(data, context)
        return ClientData(self.blended(data.images, 0), torch.zeros_like(data.labels))

    def blended(self, x, seed):
        import torch

        pattern = torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(seed)).to(x)
        return (0.8 * x + 0.2 * pattern).clamp(0, 1)


@fault(
    "several_rounds", "in a later round broken-laterdice draws from (or seeds) the global generator of torch"
)
class LaterDice(sound.Corner):
    """Adds noise to its update from torch's own generator, from the second round on."""

    def update(self, delta, context):
        import torch

        return delta + 1e-3 * torch.randn(len(delta)).to(delta) if context.round else delta


@fault("runs", "returned tuple, not ClientData(images, labels)")
class Pair(sound.Corner):
    """Returns images and labels as two values."""

    def poison(self, data, context):
        found = super().poison(data, context)
        return found.images, found.labels


@fault("inputs_unchanged", "changes what it was given: labels")
class Relabels(sound.Corner):
    """Changes the client's labels in place."""

    def poison(self, data, context):
        data.labels.fill_(0)
        return ClientData(data.images.clone(), data.labels.clone())


@fault("declared_access_respected", "looks at view.module and declares knowledge = 'black-box'")
class Peeks(sound.Confidence):
    """Reads the weights and says that answers are enough."""

    def score(self, view, images, labels):
        return view.module(images).detach()[:, 0].double().numpy()


@fault("result_well_formed", "scores that are not finite")
class Undefined(sound.Confidence):
    """Scores that may be undefined."""

    def run(self, view, context):
        found = super().run(view, context)
        return Membership(found.scores * np.nan, found.is_member)


@fault("blind_to_sides", "scores the records among the members higher whichever they are (AUC 1.00, and 1.00")
class Standardised(sound.Confidence):
    """Scales members and non-members apart, and the members higher."""

    def run(self, view, context):
        found = super().run(view, context)
        return Membership(found.scores + 1000 * found.is_member, found.is_member)


@fault("result_well_formed", "returns the score 'hidden' and does not declare it")
class UndeclaredExposure(sound.Exposure):
    """A score that boards know nothing of."""

    def run(self, view, context):
        return {"hidden": 0.5}


@fault("result_well_formed", "returns an audit with epsilon -1.0")
class Negative(sound.Bound):
    """An audit that finds less than nothing."""

    def run(self, view, context):
        return Audit(-1.0, 1e-5, 0.95)


# compressors ------------------------------------------------------------------------------------------


@fault("declared_access_respected", "asks for data and declares data_access = 'none'")
class SecretData(sound.Rounded):
    """Calibrates on data that it does not declare."""

    def compress(self, model, context):
        context.data()
        return super().compress(model, context)


@fault("file_restores", "predictions of broken-amnesia are others")
class Amnesia(sound.Rounded):
    """Gives the uncompressed network back instead of the file's."""

    def restore(self, model, state, surroundings):
        return CompressedModel(model, state)


@fault("file_restores", "from the state alone, and is given one whose values are all NaN")
class Halved(sound.Rounded):
    """Leaves half of the tensors out of its file and takes them from the network that `restore` is given."""

    def compress(self, model, context):
        found = super().compress(model, context)
        return replace(found, state=dict(list(found.state.items())[::2]))

    def restore(self, model, state, surroundings):
        return super().restore(model, {**model.state_dict(), **state}, surroundings)


@fault("inputs_unchanged", "changes what it was given: the network")
class Overwrites(sound.Rounded):
    """Compresses the network that it was given, in place."""

    def compress(self, model, context):
        found = super().compress(model, context)
        model.load_state_dict(found.module.state_dict())
        return found


@fault("gradients_as_declared", "is zero or not finite")
class Flat(sound.Rounded):
    """Rounds the input, and says that it has gradients."""

    def load(self, model, state):
        from torch import nn

        class Rounding(nn.Module):
            def forward(self, x):
                return (x * 16).round() / 16

        found = super().load(model, state)
        return replace(found, module=nn.Sequential(Rounding(), found.module).eval())


@fault("facts_plain", "are no plain values")
class Crowded(sound.Rounded):
    """Puts a tensor into the facts."""

    def load(self, model, state):
        found = super().load(model, state)
        return replace(found, facts={"first": next(iter(state.values()))})


@fault(
    "fine_tuning_hooks_declared", "gives `fine_tune` hooks for ['loss'] and declares fine_tuning_hooks = []"
)
class Unannounced(sound.Tuned):
    """Trains on a loss of its own, and does not say so."""

    @property
    def fine_tuning_hooks(self):
        return ()


@fault(
    "fine_tuning_hooks_declared", "gives `fine_tune` hooks for [] and declares fine_tuning_hooks = ['loss']"
)
class Announced(sound.Tuned):
    """Says that it trains on a loss of its own, and does not."""

    def trained(self, model, context):
        import copy

        return context.fine_tune(copy.deepcopy(model), 1)


@fault("fine_tuning_counted", "calls context.fine_tune with [1, 1] rounds and declares fine_tunings = [2]")
class TwoCalls(sound.Tuned):
    """Trains twice, and says nothing of it."""

    @property
    def fine_tuning_rounds(self):
        return 2

    def trained(self, model, context):
        return context.fine_tune(super().trained(model, context), 1, sound.Twice())


@fault(
    "zeros_stay",
    "trains weights that were pruned before it: conv1.weight, conv2.weight, fc1.weight, fc2.weight",
)
class Regrows(sound.Tuned):
    """Lets what was pruned grow again."""

    def compress(self, model, context):
        return sound.Rounded.compress(self, self.trained(model, context), context)


@fault("bytes_counted", "in `facts`, of which 128 are free")
class Smuggler(sound.Signs):
    """Sends the update as plain facts, which cost nothing."""

    def encode(self, update, state, context):
        if not update.isfinite().all():
            raise PluginError("a finite update is needed")
        return Payload({}, {"update": update.tolist()})

    def decode(self, payload, context):
        import torch

        return torch.tensor(payload.facts["update"])


LAST: list[Any] = []


@fault("bytes_are_enough", "reports 1 bytes a client for an update of 1243 numbers")
class Modest(sound.Signs):
    """A round's exchange that says little of what it sends."""

    def exchange(self, updates, states, server, contexts):
        return Exchanged(
            [u.clone() for u in updates], [1] * len(updates), [0] * len(updates), [0] * len(updates)
        )


@fault("payload_is_all", "everything that the server needs must be in the payload")
class Whispers(sound.Signs):
    """Keeps the scale outside of the payload."""

    def encode(self, update, state, context):
        payload = super().encode(update, state, context)
        LAST[:] = [payload.tensors.pop("scale")]
        return payload

    def decode(self, payload, context):
        return payload.tensors["signs"] * LAST[0]


@fault("unusual_updates", "decodes an update of zeros into")
class Relative(sound.Signs):
    """Scales by the largest value, which may be zero."""

    def encode(self, update, state, context):
        import torch

        if not update.isfinite().all():
            raise PluginError("a finite update is needed")
        top = update.abs().max()
        return Payload({"shares": (update / top).to(torch.float16), "top": top})

    def decode(self, payload, context):
        return payload.tensors["shares"].float() * payload.tensors["top"]


@fault("unusual_updates", "turns an update of NaN into ordinary numbers")
class Smooths(sound.Signs):
    """Hides that a client has diverged."""

    def encode(self, update, state, context):
        return super().encode(update.nan_to_num(), state, context)


@fault("unusual_updates", "turns one NaN in an update into ordinary numbers")
class Sample(sound.Signs):
    """Sends one coordinate of all: that a client has diverged shows where it is that one."""

    def encode(self, update, state, context):
        return Payload({"first": update[:1].clone()}, {"d": len(update)})

    def decode(self, payload, context):
        return payload.tensors["first"].new_zeros(payload.facts["d"]) + payload.tensors["first"]


@fault("links_of_a_chain", "declare `remembers = True`")
class Hoards(sound.Signs):
    """Sends what it left out the next time, and does not say so."""

    def encode(self, update, state, context):
        carried = update + state.get("rest", 0)
        payload = super().encode(carried, state, context)
        state["rest"] = carried - self.decode(payload, context)
        return payload


@fault("links_of_a_chain", "passes on ['values'], which its payload does not have")
class Promises(sound.Signs):
    """Passes on what it does not send."""

    passed_on = ("values",)


@fault("links_of_a_chain", "passes on 1 numbers of")
class Misplaces(sound.Signs):
    """Takes its scale for the update."""

    passed_on = ("scale",)
    places_stay = True


@fault("links_of_a_chain", "what following links lose would never be sent")
class Forgets(Hoards):
    """Remembers what it lost itself, and not what others lose of it."""

    passed_on = ("scale",)
    remembers = True


@fault("links_of_a_chain", "does not decode the numbers that it passed on")
class Deaf(sound.Signs):
    """Sends its scale twice, and decodes the one that nobody else encodes."""

    passed_on = ("copy",)

    def encode(self, update, state, context):
        payload = super().encode(update, state, context)
        payload.tensors["copy"] = payload.tensors["scale"].clone()
        return payload


# data and models --------------------------------------------------------------------------------------


@fault("splits_disjoint", "test images of broken-rehearsed are training images too")
class Rehearsed(sound.Drawn):
    """Tests on the records that it trains on."""

    def load(self, root=None):
        found = sound.drawn(groups=False)
        return Splits(found.train, found.val, found.train, found.class_names)


@fault("fingerprint_tells_contents_apart", "is the same for seed = 1, which loads other data")
class Unmarked(sound.Drawn):
    """Hashes a file, and not the seed that decides what becomes of it."""

    def fingerprint(self, root=None):
        return sound.drawn().fingerprint()


@fault("splits_well_formed", "share")
class Shared(sound.Drawn):
    """A patient in two splits."""

    def load(self, root=None):
        found = sound.drawn()
        groups = found.test.groups.copy()
        groups[0] = found.train.groups[0]
        return replace(found, test=Split(found.test.images, found.test.labels, groups))


@fault("splits_well_formed", "float images must lie in [0, 1]")
class Bytes(sound.Drawn):
    """The same images, as floats from 0 to 255."""

    def load(self, root=None):
        found = sound.drawn()
        return replace(found, train=replace(found.train, images=found.train.images.astype(np.float32)))


@fault("splits_well_formed", "put channels before rows and columns, (1, 6, 6)")
class ChannelsLast(sound.Drawn):
    """The same images, as (n, h, w, c)."""

    def load(self, root=None):
        found = sound.drawn()
        parts = (found.train, found.val, found.test)
        turned = [Split(part.images.transpose(0, 2, 3, 1).copy(), part.labels, part.groups) for part in parts]
        return replace(found, train=turned[0], val=turned[1], test=turned[2])


@fault("every_record_once", "loses 1 of 400 records")
class Loses(sound.Dealt):
    """Loses the last record."""

    def partition(self, labels, groups, clients, rng):
        return super().partition(labels[:-1], groups, clients, rng)


@fault("every_record_once", "leaves client 1 without records")
class Starves(sound.Dealt):
    """Leaves a client without records."""

    def partition(self, labels, groups, clients, rng):
        parts = super().partition(labels, groups, clients, rng)
        return [np.concatenate(parts[:2]), parts[0][:0], *parts[2:]]


@fault("client_counts", "401 clients")
class Overfull(sound.Dealt):
    """Deals to more clients than there are records."""

    def partition(self, labels, groups, clients, rng):
        return np.array_split(rng.permutation(len(labels)), clients)


@fault("normalises_inside", "does not normalise as it is told")
class Raw(sound.Linear):
    """Takes pixels as they are, whatever the scenario says."""

    def build(self, input_shape, num_classes, normalization=None):
        return super().build(input_shape, num_classes)


@fault("logits_well_formed", "returns probabilities")
class Probabilities(sound.Linear):
    """Ends in a softmax."""

    def build(self, input_shape, num_classes, normalization=None):
        from torch import nn

        return super().build(input_shape, num_classes, normalization).append(nn.Softmax(1))


@fault("records_independent", "change with the other images of the batch")
class Crowd(sound.Linear):
    """Normalises over the batch, in eval mode too."""

    def build(self, input_shape, num_classes, normalization=None):
        from torch import nn

        return (
            super()
            .build(input_shape, num_classes, normalization)
            .append(nn.BatchNorm1d(num_classes, track_running_stats=False))
        )


@fault("weights_follow_seed", "are the same for every seed")
class Stubborn(sound.Linear):
    """Starts from the same weights whatever the seed."""

    def build(self, input_shape, num_classes, normalization=None):
        import torch

        torch.default_generator.manual_seed(0)
        return super().build(input_shape, num_classes, normalization)


@fault("trains", "gets no finite gradient")
class Idle(sound.Linear):
    """Holds a parameter that is not used."""

    def build(self, input_shape, num_classes, normalization=None):
        import torch

        module = super().build(input_shape, num_classes, normalization)
        module.register_parameter("idle", torch.nn.Parameter(torch.zeros(2)))
        return module


@fault(
    "several_rounds", "in a later round broken-laterseed draws from (or seeds) the global generator of torch"
)
class LaterSeed(sound.Signs):
    """Flips a sign by torch's own coin, from the second round on."""

    def encode(self, update, state, context):
        import torch

        flip = bool(context.round) and float(torch.rand(())) < 0.5
        return super().encode(-update if flip else update, state, context)


# defences -----------------------------------------------------------------------------------------------


@fault("couples_samples_declared", "depends on the other records of the batch, and couples_samples is False")
class Coupled(sound.Jitter):
    """A loss relative to the batch's mean."""

    def loss(self, loss, logits):
        def centred(params, batch, key):
            losses = loss(params, batch, key)
            return losses - 0.5 * losses.mean() + 1

        return centred


@fault("couples_samples_declared", "its place in it")
class Positional(sound.Jitter):
    """Noise by a record's place in the batch."""

    def batch(self, x, y, key):
        from harness.api import uniform

        return (x + 0.05 * uniform(key, x.shape).to(x)).clamp(0, 1), y


@fault("hooks_pure", "changes the images that it was given in place")
class Clamps(sound.Jitter):
    """Changes the batch that it was given."""

    def batch(self, x, y, key):
        return x.mul_(0.9), y


@fault("empty_batch", "not finite for an empty batch")
class MeanOfNone(sound.Jitter):
    """A mean over the batch, undefined for an empty one."""

    replaces_gradient = True

    def gradient(self, local):
        import torch

        def gradient(params, batch, key):
            total = local.loss(params, batch, key).sum()
            sums = torch.autograd.grad(total, list(params.values()))
            return {name: g / len(batch[1]) for name, g in zip(params, sums, strict=True)}

        return gradient


@fault("replacement_declared", "the loss of broken-forgetsloss is the same whatever loss stands before it")
class ForgetsLoss(sound.Jitter):
    """A loss of its own, whatever was there before."""

    def loss(self, loss, logits):
        from torch.nn import functional

        return lambda params, batch, key: functional.cross_entropy(
            logits(params, batch[0]), batch[1], reduction="none"
        )


@fault(
    "replacement_declared",
    "the gradient of broken-forgetsgradient is the same whatever gradient stands before it",
)
class ForgetsGradient(sound.Jitter):
    """A gradient from the loss, whatever was there before."""

    def gradient(self, local):
        from harness.api import mean_gradient

        return mean_gradient(local.loss)


@fault("replacement_declared", "declares replaces_loss = True, but its loss depends on the one before it")
class SaysItForgets(sound.Jitter):
    """Builds on the loss before it and says that it does not."""

    replaces_loss = True


@fault("loss_trains", "changes no gradient")
class Idler(sound.Jitter):
    """A penalty that is cut out of the graph."""

    def loss(self, loss, logits):
        return lambda params, batch, key: loss(params, batch, key) + loss(params, batch, key).detach()


@fault(
    "replacement_declared", "declares replaces_gradient = True, but its gradient depends on the one before it"
)
class HasNoGradient(sound.Jitter):
    """Says that it replaces the gradient and has none."""

    replaces_gradient = True


@fault("deployed_model_answers", "answers at random")
class Wavering(sound.Jitter):
    """A deployed model that answers at random and does not say so."""

    def inference(self, model):
        import torch

        class Noisy(torch.nn.Module):
            def forward(self, x):
                return model(x + 0.1 * torch.randn_like(x))

        return Noisy()


@fault("guarantee_valid", "a smaller epsilon for two trainings")
class Shrinking(sound.Private):
    """A guarantee that gets better the more is trained."""

    def guarantee(self, history):
        found = super().guarantee(history)
        return None if found is None else found.model_copy(update={"epsilon": 1.5 / len(history)})


@fault("guarantee_valid", "`guarantee([])` raises IndexError: list index out of range; it returns None")
class Unstarted(sound.Private):
    """Takes it for granted that something was trained."""

    def guarantee(self, history):
        delta = history[0]["delta"]
        return Guarantee(unit="record", epsilon=1.5 * len(history), delta=delta, accountant="sum")


@fault("guarantee_valid", "spends 5.2 at delta")
class Halving(sound.Private):
    """Claims half of what its noise spends."""

    def guarantee(self, history):
        found = super().guarantee(history)
        stated = {"noise_multiplier": 1.0, "sampling": {"method": "poisson", "rate": 8 / 12, "steps": 4}}
        return None if found is None else found.model_copy(update=stated)


@fault("guarantee_valid", "epsilon is the largest over clients, and client 1 has 3")
class Averaging(sound.Private):
    """Claims less than one of its clients spends."""

    def guarantee(self, history):
        found = super().guarantee(history)
        return None if found is None else found.model_copy(update={"client_epsilon": {"0": 0.5, "1": 3.0}})


@fault("guarantee_valid", "delta below 1 / N")
class Generous(sound.Private):
    """A delta that allows to reveal a record outright."""

    def prepare(self, context):
        return {"epsilon": 1.5, "delta": 0.5}


@fault("guarantee_valid", "its guarantee is not one: unit = 'banana'")
class Banana(sound.Private):
    """Guarantees for a unit that there is not."""

    def guarantee(self, history):
        return Guarantee(unit="banana", epsilon=1, delta=1e-5, accountant="sum") if history else None


@fault("guarantee_valid", "declares protects = 'client'")
class Mislabelled(sound.Private):
    """Guarantees for records and says clients."""

    protects = "client"


@fault("guarantee_valid", "gives no guarantee")
class Boastful(sound.Private):
    """Says that it protects records, and guarantees nothing."""

    def guarantee(self, history) -> Guarantee | None:
        return None


@fault("noise_as_declared", "under noise of deviation 0, which is 0 times that")
class Noiseless(sound.Private):
    """States noise and adds none."""

    def guarantee(self, history):
        found = super().guarantee(history)
        return None if found is None else found.model_copy(update={"noise_multiplier": 1.0})


@fault("noise_as_declared", "states a noise multiplier of 2, and in the first step a client moves")
class HalfNoised(sound.Noised):
    """Adds half of the noise that it states."""

    deviation: ClassVar = 1.0


@fault("prepared_plain", "returns what JSON has not")
class Unwritable(sound.Jitter):
    """Prepares what no record can hold."""

    def prepare(self, context):
        return {"sizes": np.array(context.sizes)}


@fault("certificate_well_formed", "certifies a radius of 0.6 and says that 0.5 is its limit")
class Boasting(sound.Jitter):
    """Certifies more than it says that it can."""

    def certify(self, model, x, generator):
        import torch

        return torch.zeros(len(x), dtype=torch.int64), torch.full((len(x),), 0.6)

    @property
    def radius_limit(self):
        return 0.5


@fault("same_in_one_program", "a step under broken-offduty is another one where clients train as one program")
class OffDuty(sound.Jitter):
    """Does its work where there is a network to look at, and none on a GPU."""

    vectorises = True

    def gradient(self, local):
        def shrunk(params, batch, key):
            return {name: 0.5 * g for name, g in local.gradient(params, batch, key).items()}

        return shrunk if local.module is not None else local.gradient


@fault("composes", "fails: RuntimeError")
class Lonely(sound.Jitter):
    """A loss that asks for a value, which vmap has not."""

    def loss(self, loss, logits):
        def gated(params, batch, key):
            losses = loss(params, batch, key)
            return losses * 2 if float(losses.detach().sum()) > 0 else losses

        return gated


# metrics and trackers -------------------------------------------------------------------------------------


@fault("scores_exactly_declared", "returns the score 'wrong' and does not declare it")
class Talkative(sound.Right):
    """A score that it does not declare."""

    def score(self, context):
        found = super().score(context)
        return {**found, "wrong": 1 - found["right"]}


@fault("scores_exactly_declared", "declares the score 'right' and does not return it")
class Silent(sound.Right):
    """A score that it declares and leaves out."""

    def score(self, context):
        return {}


@fault("scores_well_formed", "a share lies in [0, 1]")
class Percent(sound.Right):
    """A share in percent."""

    def score(self, context):
        return {"right": 100 * super().score(context)["right"]}


SEEN: list[float] = []


@fault("deterministic", "keep nothing between calls")
class Lifelong(sound.Right):
    """The mean over all cells so far."""

    def score(self, context):
        SEEN.append(super().score(context)["right"])
        return {"right": sum(SEEN) / len(SEEN)}


@fault("scores_declared", "has no description")
class Laconic(sound.Right):
    """A score that does not say what it is."""

    scores = {"right": Score("higher", "share")}


@fault("score_names_own", "which the built-in metric accuracy declares: give it another name")
class Usurper(sound.Right):
    """Takes the name of a built-in score."""

    scores = {"accuracy": Score("higher", "share", "share that is right")}

    def score(self, context):
        return {"accuracy": super().score(context)["right"]}


@fault("declared_access_respected", "reads context.state and does not declare it")
class Curious(sound.Right):
    """Looks at the file without saying that it needs it."""

    def score(self, context):
        assert context.state
        return super().score(context)


@fault("survives_nan", "is perfect for logits that are all NaN")
class Flattered(sound.Right):
    """Counts what is not provably wrong."""

    def score(self, context):
        rows = np.arange(len(context.labels))
        own = context.logits[rows, context.labels]
        return {"right": float(1 - (own < context.logits.max(1)).mean())}


@fault("hooks_known", "is called with cell, record by keyword")
class Halfway(sound.Counter):
    """A hook that does not take what it is called with."""

    @hookimpl
    def harness_cell_finished(self, cell):
        pass


@fault("hooks_known", "which is no observer hook")
class Mistyped(sound.Counter):
    """A hook that nobody calls."""

    def harness_cell_done(self, cell):
        pass


@fault("unusual_runs", "breaks with a failed cell: KeyError")
class Optimist(sound.Counter):
    """Takes for granted that cells are scored."""

    def harness_cell_finished(self, cell, record):
        record["scores"]["accuracy"].as_integer_ratio()
