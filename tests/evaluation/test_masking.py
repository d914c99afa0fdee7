import math

import pytest

from harness.evaluation import masking
from harness.evaluation.masking import FLAG, margin, suspect_masking

TWIN, BOTH = "straight-through twin", "straight-through twin and transfer from uncompressed"


def record(name, accuracy, access="gradients", effort=1, *, mode="white-box", eps=8 / 255, n=1000, **cell):
    axes = {"defence": "none", "aggregator": "mean", "compressor": "none", "threat": "evasion", "seed": 0}
    return {
        "id": name,
        "cell": axes | {"attack": name} | cell,
        "scores": {"accuracy": 0.9, "robust_accuracy": accuracy},
        "attack": {
            "access": access, "effort": effort, "mode": mode, "norm": "linf", "eps": eps, "samples": n
        },
    }  # fmt: skip


def searched(name, accuracy, steps, attack="pgd", **rest):
    """One and the same attack but for its steps."""
    own = {k: rest.pop(k) for k in ("n", "eps", "mode", "threat") if k in rest}
    found = record(name, accuracy, effort=steps, **own)
    found["config"] = {"attack": {attack: {"alpha": None, "steps": steps, **rest}}, "threat": {}}
    return found


def flagged(*records):
    result = suspect_masking(records)
    assert all(flags == [FLAG] for flags in result.values())
    return set(result)


def test_the_flag_is_put_on_what_is_suspected_and_taken_from_all_else():
    records = [record("pgd", 0.6), record("square", 0.5, "logits"), record("fgsm", 0.5, seed=1)]
    before = [
        {**one, "flags": flags} for one, flags in zip(records, (["x"], ["x", FLAG], [FLAG]), strict=True)
    ]
    assert [one["flags"] for one in masking.flagged(before)] == [["x", FLAG], ["x", FLAG], []]
    assert [one["flags"] for one in before] == [["x"], ["x", FLAG], [FLAG]]


def test_the_margin_is_two_standard_errors_and_at_least_a_point():
    assert margin(0.4, 0.6, 100) == pytest.approx(0.1)
    assert margin(0.1, 0.3, 400) == pytest.approx(2 * math.sqrt(0.2 * 0.8 / 400))
    assert margin(0.4, 0.6, 10**6) == 0.01
    assert margin(0.0, 0.0, 10) == 0.01
    assert margin(-0.4, 1e-9, 10) == margin(1.5, 0.9, 10) == 0.01  # of a plugin whose score is no share


def test_stronger_attacks_leaving_less_accuracy_is_as_it_should_be():
    assert not flagged(
        record("fgsm", 0.5), record("pgd", 0.3, effort=20), record("square", 0.4, "logits", 5000)
    )


def test_a_black_box_attack_that_beats_every_white_box_one_flags_the_whole_group():
    group = [record("fgsm", 0.6), record("pgd", 0.6, effort=20), record("square", 0.5, "logits", 5000)]
    assert flagged(*group) == {"fgsm", "pgd", "square"}
    # One white-box attack that is as good is enough.
    assert not flagged(*group, record("apgd", 0.5, effort=100))


def test_a_label_only_attack_is_a_black_box_too():
    assert flagged(record("pgd", 0.6), record("boundary", 0.5, "labels", 9)) == {"pgd", "boundary"}


def test_more_effort_of_one_attack_that_leaves_more_accuracy_flags():
    assert flagged(searched("short", 0.5, 5), searched("long", 0.6, 20), record("fgsm", 0.9)) == {
        "short", "long", "fgsm"
    }  # fmt: skip
    assert flagged(searched("one", 0.5, 20, restarts=1), searched("five", 0.6, 100, restarts=5))
    assert not flagged(searched("short", 0.6, 5), searched("long", 0.5, 20))
    assert not flagged(searched("a", 0.5, 20), searched("b", 0.6, 20))
    # Of a stack of attacks the parts count likewise.
    parts = [
        searched(f"m{n}", 0.5 + n / 200, n, "multi-attack", attacks=[{"pgd": {"steps": n}}]) for n in (5, 20)
    ]
    assert flagged(*parts) == {"m5", "m20"}


def test_different_attacks_are_not_compared_by_their_effort():
    """What is made to transfer takes many gradients and is weak on its own model, masked or not."""
    pgd = searched("pgd", 0.3, 20)
    assert not flagged(pgd, searched("vmi", 0.6, 60, "vmi-fgsm"), searched("ti", 0.7, 30, "ti-fgsm"))
    assert not flagged(pgd, searched("small", 0.6, 100, step_size=0.001))
    assert not flagged(record("a", 0.5), record("b", 0.6, effort=20))  # nobody says what these were
    # Queries and gradient steps are not one currency.
    assert not flagged(record("pgd", 0.5, effort=20), record("square", 0.6, "logits", effort=5000))


def test_differences_within_the_margin_are_chance():
    # 2 sqrt(.55 * .45 / 1000) = 0.0315
    assert flagged(searched("short", 0.5335, 5), searched("long", 0.5665, 20))
    assert not flagged(searched("short", 0.535, 5), searched("long", 0.565, 20))
    assert flagged(searched("short", 0.5, 5), searched("long", 0.59, 20))
    assert not flagged(searched("short", 0.5, 5, n=100), searched("long", 0.59, 20, n=100))


@pytest.mark.parametrize(
    "other",
    [{"defence": "dp-sgd"}, {"aggregator": "krum"}, {"compressor": "int8"}, {"seed": 1}, {"eps": 4 / 255}, {"n": 200}],
)  # fmt: skip
def test_only_like_is_compared_with_like(other):
    """That includes the test records attacked, which follow from how many they are."""
    own = {k: v for k, v in other.items() if k in ("eps", "n")}
    short, square = searched("short", 0.3, 5, **own), record("square", 0.3, "logits", 5000, **own)
    for one in (short, square):
        one["cell"] |= {k: v for k, v in other.items() if k not in own}
    assert not flagged(short, searched("long", 0.6, 20))
    assert not flagged(square, searched("long", 0.6, 20))


def test_attacks_on_one_model_are_compared_whatever_their_threats_are_called_and_grant():
    pgd = record("pgd", 0.9, effort=20, threat="white")
    square = record("square", 0.1, "logits", 5000, mode="black-box", threat="black")
    assert flagged(pgd, square) == {"pgd", "square"}
    # A gradient attack that is as good, of yet another threat, is enough.
    assert not flagged(pgd, square, record("autoattack", 0.1, effort=900, threat="thorough"))
    assert flagged(searched("short", 0.5, 5), searched("long", 0.6, 20, threat="e2")) == {"short", "long"}


def test_a_transfer_that_beats_every_gradient_attack_flags():
    """Athalye et al. (2018, section 3.1) and Carlini et al. (2019) take it for a sign: where a model's own gradients
    serve an attacker less than those of another model, they are masked."""
    pgd = record("pgd", 0.9, effort=20)
    transfer = record("transfer", 0.1, effort=20, mode="transfer from undefended")
    assert flagged(pgd, transfer) == {"pgd", "transfer"}
    assert flagged(pgd, record("asked", 0.1, "logits", mode="transfer from undefended"))
    assert not flagged(
        record("pgd", 0.1, effort=20), record("transfer", 0.9, mode="transfer from undefended")
    )
    assert not flagged(
        record("pgd", 0.5), record("transfer", 0.475, mode="transfer from undefended")
    )  # chance
    # More steps may well transfer less.
    steps = [searched(f"t{n}", 0.5 + n / 200, n, mode="transfer from undefended") for n in (5, 20)]
    assert not flagged(pgd | {"scores": {"robust_accuracy": 0.5}}, *steps)


def test_a_transfer_from_the_model_itself_is_a_gradient_attack():
    fgsm, pgd = (
        record("fgsm", 0.6),
        record("transfer", 0.3, effort=20, mode="transfer from undefended (itself)"),
    )
    assert not flagged(fgsm, pgd)
    assert not flagged(fgsm, pgd, record("square", 0.3, "logits", 5000))
    assert flagged(fgsm, pgd, record("square", 0.1, "logits", 5000))


@pytest.mark.parametrize("mode", [TWIN, BOTH])
def test_a_twin_s_gradients_are_the_model_s(mode):
    pgd = record("pgd", 0.9, effort=20, mode=mode)
    square = record("square", 0.1, "logits", 5000)
    assert flagged(pgd, square) == {"pgd", "square"}
    assert not flagged(record("pgd", 0.1, mode=mode), square)
    assert flagged(searched("short", 0.2, 10, mode=mode), searched("long", 0.9, 100, mode=mode))
    assert not flagged(searched("short", 0.9, 10, mode=mode), searched("long", 0.2, 100, mode=mode))
    radii = [at_radius(f"e{e}", a, e, f"t{e}", mode=mode) for e, a in ((0.01, 0.3), (0.02, 0.6))]
    assert flagged(*radii) == {"e0.01", "e0.02"}


def test_of_several_ways_each_is_compared_by_itself():
    """The worst of two ways hides a twin whose gradients lead nowhere."""

    def both(found, twin, transfer):
        ways = {TWIN: twin, "transfer from uncompressed": transfer}
        found["scores"]["robust_accuracy"] = min(twin, transfer)
        found["attack"] |= {"mode": BOTH, "ways": {way: {"robust_accuracy": a} for way, a in ways.items()}}
        return found

    assert flagged(both(record("pgd", 0), 0.9, 0.1)) == {"pgd"}
    assert not flagged(both(record("pgd", 0), 0.1, 0.9))
    assert not flagged(both(record("pgd", 0), 0.5, 0.475))
    assert flagged(both(record("pgd", 0), 0.9, 0.5), record("square", 0.48, "logits", 5000)) == {
        "pgd",
        "square",
    }
    # More steps that transfer less are no sign; more that find less on the twin are.
    assert not flagged(both(searched("s", 0, 5), 0.5, 0.48), both(searched("l", 0, 20), 0.5, 0.55))
    assert not flagged(both(searched("s", 0, 5), 0.5, 0.48), both(searched("l", 0, 20), 0.53, 0.55))
    assert flagged(both(searched("s", 0, 5), 0.5, 0.48), both(searched("l", 0, 20), 0.55, 0.54)) == {"s", "l"}
    falling = [
        both(at_radius(f"e{e}", 0, e, f"t{e}"), a, b) for e, a, b in ((0.01, 0.6, 0.57), (0.02, 0.4, 0.7))
    ]
    assert not flagged(*falling)
    rising = [
        both(at_radius(f"e{e}", 0, e, f"t{e}"), a, b) for e, a, b in ((0.01, 0.4, 0.6), (0.02, 0.6, 0.6))
    ]
    assert flagged(*rising) == {"e0.01", "e0.02"}


def test_one_masked_group_flags_no_other():
    pair = [searched("short", 0.5, 5), searched("long", 0.6, 20)]
    fine = [searched("short-krum", 0.6, 5), searched("long-krum", 0.5, 20)]
    for one in fine:
        one["cell"]["aggregator"] = "krum"
    assert flagged(*pair, *fine) == {"short", "long"}


def test_failed_and_unscored_records_take_no_part():
    pgd = record("pgd", 0.6, effort=20)
    unbounded = record("noise", 0.1, "none")
    unbounded["attack"] |= {"norm": None, "eps": None}
    nothing = [
        unbounded,
        {**record("failed", 0.1), "scores": None},
        {**record("clean", 0.1), "attack": None},
        {**record("unscored", 0.1), "scores": {"accuracy": 0.9}},
        record("undefined", float("nan")),
    ]
    assert not flagged(pgd, *nothing)


def at_radius(name, accuracy, eps, threat, attack=None, **cell):
    found = record(name, accuracy, eps=eps, threat=threat, **cell)
    found["config"] = {
        "threat": {"name": threat, "knowledge": "white-box", "budget": {"norm": "linf", "eps": eps}},
        "attack": attack or {"pgd": {"eps": None, "steps": 20}},
    }
    return found


def test_a_larger_radius_that_leaves_more_accuracy_flags_the_whole_curve():
    falling = [at_radius(f"e{e}", a, e, f"t{e}") for e, a in ((0.01, 0.8), (0.02, 0.6), (0.04, 0.3))]
    assert not flagged(*falling)
    rising = [at_radius(f"e{e}", a, e, f"t{e}") for e, a in ((0.01, 0.8), (0.02, 0.5), (0.04, 0.6))]
    assert flagged(*rising) == {"e0.01", "e0.02", "e0.04"}
    # radii may be the attack's own as well
    own = [
        at_radius(f"e{e}", a, e, "t", {"pgd": {"eps": e, "steps": 20}}) for e, a in ((0.01, 0.4), (0.02, 0.6))
    ]
    assert flagged(*own) == {"e0.01", "e0.02"}
    # other attacks and other models are other curves
    other = at_radius("other", 0.9, 0.08, "t", {"fgsm": {"eps": None}})
    assert not flagged(falling[0], other)
    assert not flagged(falling[1], at_radius("private", 0.9, 0.04, "t0.04", defence="dp-sgd"))
