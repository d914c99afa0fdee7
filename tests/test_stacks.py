"""Stacks in which one method would drop another without a word: refused before any training, with the reason."""

from __future__ import annotations

import itertools

import pytest
from small import SCENARIO

import harness
from harness.api import ClientHooks, Defence, NotApplicable
from harness.engine import plan
from harness.scenario import load_text
from harness.stacks import brought, check_stack
from harness.testing.core import Setting
from harness.testing.local import Training, federation
from harness.testing.toy import toy


def reasons(text, folder):
    """Of every cell of the small scenario with these axes, its model large enough to teach others."""
    scenario = load_text(SCENARIO.replace("[8]", "[200]") + text, folder / "x.yaml")
    planned = plan(scenario, device="cpu", jobs=1, store=folder / "s").to_dict()
    return [cell["reason"] for cell in planned["scenarios"][0]["cells"]]


DROPS = [
    ("adversarial-training", "label-smoothing", "loss", True),
    ("clean-logit-pairing", "label-smoothing", "loss", True),
    ("trades", "label-smoothing", "loss", True),
    ("trades", "mart", "loss", True),
    ("logit-pairing", "mart", "loss", True),
    ("label-smoothing", "mart", "loss", False),  # behind mart, label-smoothing would drop mart
    ("mart", "label-smoothing", "loss", False),
    ("gradient-clipping", "free-adversarial-training", "gradient", True),
    ("gradient-clipping", "adversarial-weight-perturbation", "gradient", True),
    ("soteria", "adversarial-weight-perturbation", "gradient", True),
    ("soteria", "free-adversarial-training", "gradient", True),
    ("free-adversarial-training", "adversarial-weight-perturbation", "gradient", False),
    ("adversarial-weight-perturbation", "free-adversarial-training", "gradient", False),
    ("gradient-clipping", "dp-sgd: {epsilon: 8}", "gradient", True),
]


@pytest.mark.parametrize(("first", "second", "what", "movable"), DROPS)
def test_a_defence_that_drops_the_one_before_it_is_not_applicable(first, second, what, movable, tmp_path):
    name = second.partition(":")[0]
    expected = f"{name} takes no account of the {what} before it and would drop that of {first}"
    expected += f": put {first} after {name}" if movable else ""
    assert reasons(f"defences: [[{first}, {second}]]", tmp_path) == [expected]


def test_the_advice_works(tmp_path):
    turned = [(b, a) for a, b, _, movable in DROPS if movable]
    text = f"defences: [{', '.join(f'[{a}, {b}]' for a, b in turned)}]"
    assert reasons(text, tmp_path) == [None] * len(turned)


FINE = [
    ("label-smoothing", "trades"), ("label-smoothing", "adversarial-training"), ("mart", "clean-logit-pairing"),
    ("free-adversarial-training", "label-smoothing"),  # its gradient is of the stack's whole loss
    ("label-smoothing", "adversarial-weight-perturbation"), ("gradient-noise", "label-smoothing"),
    ("adversarial-training", "dp-sgd: {epsilon: 8}"), ("dp-sgd: {epsilon: 8}", "label-smoothing"),
    ("bit-depth", "mart"), ("randomized-smoothing", "label-smoothing"),
]  # fmt: skip


def test_what_drops_nothing_is_applicable(tmp_path):
    text = f"defences: [{', '.join(f'[{a}, {b}]' for a, b in FINE)}]"
    assert reasons(text, tmp_path) == [None] * len(FINE)


def test_it_is_looked_for_through_the_whole_stack(tmp_path):
    text = "defences: [[trades, gradient-noise, mart, gradient-clipping], [label-smoothing, trades, gradient-noise]]"
    first, second = reasons(text, tmp_path)
    assert first.startswith("mart takes no account of the loss before it and would drop that of trades")
    assert second is None


def test_stacks_that_pass_depend_on_each_of_their_losses_and_gradients():
    """What the refusals are for: of every pair that is let through, the first one changes what is stepped along."""
    few = {"steps": 1}
    settings = {
        "dp-sgd": {"noise_multiplier": 0.0, "max_grad_norm": 0.01},
        "gradient-clipping": {"max_norm": 0.001},
        **dict.fromkeys(("trades", "mart", "logit-pairing"), few),
    }
    names = ["label-smoothing", "mart", "trades", "logit-pairing", "clean-logit-pairing", "adversarial-training",
             "free-adversarial-training", "adversarial-weight-perturbation", "gradient-clipping", "soteria",
             "dp-sgd"]  # fmt: skip
    defences = {name: harness.create("defence", name, **settings.get(name, {})) for name in names}

    def stepped(*stack):
        world = toy(Setting(dtype="float64"))
        prepared = [defence.prepare(federation()) for defence in stack]
        training = Training(world.net.train(), stack, prepared, Setting(dtype="float64"))
        batch = (world.images[:8], world.labels[:8])
        for _ in range(2):  # free adversarial training first moves its images after one step
            found = training.gradient(training.params, batch, training.key(1))
        return {name: g.detach() for name, g in found.items()}

    passed = 0
    for first, second in itertools.permutations(names, 2):
        stack = defences[first], defences[second]
        try:
            check_stack(stack, toy(Setting()).net)
        except NotApplicable:
            continue
        passed += 1
        alone, both = stepped(stack[1]), stepped(*stack)
        assert any((alone[n] - both[n]).abs().max() > 1e-9 for n in alone), (first, second)
    assert passed > 50


class Own(ClientHooks):
    """A hook with a loss and a gradient."""

    couples_samples = False

    def loss(self, loss, logits):
        return loss

    def gradient(self, local):
        return local.gradient


class Afresh(Defence):
    name = "afresh"
    replaces_gradient = True

    def gradient(self, local):
        return local.gradient


def test_hooks_before_the_defences_are_not_dropped_either():
    assert brought(Own()) == ("loss", "gradient")
    smoothing = harness.create("defence", "label-smoothing")
    check_stack((smoothing,), before=(ClientHooks(),))
    for defence, what in ((smoothing, "loss"), (Afresh(), "gradient")):
        check_stack((defence,))
        with pytest.raises(NotApplicable, match=f"of the {what} before it and would drop that of Own$"):
            check_stack((defence,), before=(Own(),))


@pytest.mark.parametrize("defence", ["label-smoothing", "mart"])
def test_a_student_that_would_never_see_its_teacher_is_not_applicable(defence, tmp_path):
    distillation = "distillation: {student: logistic, rounds: 1}"
    at_server = "distillation: {student: logistic, rounds: 1, data: private}"
    text = (
        f"defences: [{defence}]\n"
        f"compressors: [{distillation}, {at_server}, [magnitude-pruning, {distillation}], qat-int8,\n"
        "  weight-clustering: {fine_tune_rounds: 1}]"
    )
    reason = (
        f"{defence} takes no account of the loss before it and would drop that of distillation's fine-tuning"
    )
    assert reasons(text, tmp_path) == [reason, None, reason, None, None]


def test_a_student_that_a_defence_cannot_train_is_not_applicable(tmp_path):
    """The cells failed when the teacher was trained."""
    student = "student: {resnet9: {width: 4, norm: batch}}"
    text = (
        "normalization: {mean: [0.3], std: 0.4}\nunprotected: [val]\n"
        "defences: [none, gradient-clipping, dp-sgd: {epsilon: 8}, [gradient-clipping, dp-fedavg: {epsilon: 8}]]\n"
        f"compressors: [distillation: {{{student}}}, distillation: {{{student}, data: public}}]"
    )
    found = reasons(text, tmp_path)
    assert found[:4] + found[5::2] == [None] * 6
    trains = "distillation trains resnet9(width=4,norm=batch): "
    assert found[4].startswith(f"{trains}dp-sgd needs records kept apart, but ")
    assert found[6].startswith(f"{trains}dp-fedavg does not protect the running statistics that ")


def test_a_student_no_smaller_than_its_teacher_is_not_applicable(tmp_path):
    """The cells failed when the teacher was trained. The scenario's network has 15,010 parameters."""
    students = ["{mlp: {hidden: [200]}}", "{mlp: {hidden: [199]}}", "{mlp: {hidden: [300]}}"]
    public = ", ".join(f"distillation: {{student: {student}}}" for student in students)
    text = f"unprotected: [val]\ncompressors: [{public}, [magnitude-pruning, distillation: {{student: {students[0]}}}]]"
    refused = (
        "distillation: the student mlp(hidden=[200]) has 15,010 parameters, no fewer than the 15,010 of the "
    )
    found = reasons(text, tmp_path)
    assert found[0] == found[3] == f"{refused}network it is to replace"
    assert found[1] is None
    assert "mlp(hidden=[300]) has 22,510 parameters" in found[2]


def test_other_defences_build_on_the_loss_towards_the_teacher(tmp_path):
    text = (
        "defences: [none, trades, adversarial-training, free-adversarial-training, dp-sgd: {epsilon: 8}]\n"
        "compressors: [distillation: {student: logistic, rounds: 1}]"
    )
    assert reasons(text, tmp_path) == [None] * 5


class Promising(Defence):
    """Promises privacy for records and checks nothing of its stack."""

    name = "promising"
    protects = "record"


class Coupled(Defence):
    """Couples the records of a batch and says so."""

    name = "coupled"
    couples_samples = True


@pytest.mark.parametrize("order", [(Coupled, Promising), (Promising, Coupled)])
def test_records_that_meet_are_no_stack_for_any_defence_that_protects_them(order):
    with pytest.raises(NotApplicable, match=r"^coupled couples the records of a batch, so promising cannot"):
        check_stack([defence() for defence in order])
    check_stack([Coupled()])
    check_stack([Promising(), harness.create("defence", "label-smoothing")])
