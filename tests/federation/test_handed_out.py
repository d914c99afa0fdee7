"""What a round hands to plugins is their own: what they do to it in place moves nobody else's model."""

from __future__ import annotations

import pytest
import torch

from harness.api import Aggregator, ByzantineAttack, Defence, hookimpl
from harness.grid import cells
from harness.registry import registry
from harness.scenario import load_text
from harness.stage_specs import train_spec
from harness.training import Training

SCENARIO = """
schema: 1
name: handed-out
dataset: digits
model: logistic
federation: {{clients: 5, rounds: 3, local: {{steps: 2, batch_size: 16, optimizer: {{sgd: {{lr: 0.1}}}}}}}}
defences: [handed-defence: {{edits: {defence}}}]
aggregators: [handed-rule: {{edits: {rule}}}]
threats:
  - {{name: t, malicious: 0.2, knowledge: omniscient, attacks: [handed-craft: {{edits: {craft}}}]}}
"""


class HandedDefence(Defence):
    """Trains plainly, and may move what the round starts from."""

    name = "handed-defence"
    edits: bool

    def gradient(self, local):
        if self.edits:
            local.start.add_(1)
            if local.moved is not None:
                local.moved.add_(1)


class HandedRule(Aggregator):
    """A mean that may move the global weights and forget who sent what."""

    name = "handed-rule"
    edits: bool

    def aggregate(self, updates, context):
        found = updates.mean(0)
        if self.edits:
            context.global_weights.add_(1)
            context.client_ids.clear()
            updates.zero_()
        return found


class HandedCraft(ByzantineAttack):
    """Sends nothing, and may move the global weights."""

    name = "handed-craft"
    knowledge = "omniscient"
    edits: bool

    def craft(self, honest, context):
        if self.edits:
            context.global_weights.add_(1)
            context.ids.clear()
            honest.zero_()
        return torch.zeros(context.m, honest.shape[1])


class _Module:
    @staticmethod
    @hookimpl
    def harness_register(register):
        for plugin in (HandedDefence, HandedRule, HandedCraft):
            register(plugin)


def trained(**edits):
    if "handed-rule" not in registry().names("aggregator"):
        registry().add(_Module(), "handed", "handed-out-tests")
    text = SCENARIO.format(**{"defence": "false", "rule": "false", "craft": "false"} | edits)
    (cell,) = cells(load_text(text))
    training = Training(train_spec(cell), "a stage's key", "cpu")
    return training.run(training.initial_module(), lambda *_: None).module.state_dict()


@pytest.mark.parametrize("who", ["defence", "rule", "craft"])
def test_an_edit_in_place_of_what_was_handed_out_moves_no_model(who):
    plain, edited = trained(), trained(**{who: "true"})
    for name, value in plain.items():
        assert torch.equal(edited[name], value), name
