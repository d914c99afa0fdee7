import math

import pytest

from harness.evaluation.masking import FLAG, margin, suspect_masking


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
    found = record(name, accuracy, effort=steps, **{k: rest.pop(k) for k in ("n", "eps") if k in rest})
    found["config"] = {"attack": {attack: {"alpha": None, "steps": steps, **rest}}, "threat": {}}
    return found


def flagged(*records):
    result = suspect_masking(records)
    assert all(flags == [FLAG] for flags in result.values())
    return set(result)


def test_the_margin_is_two_standard_errors_and_at_least_a_point():
    assert margin(0.4, 0.6, 100) == pytest.approx(0.1)
    assert margin(0.1, 0.3, 400) == pytest.approx(2 * math.sqrt(0.2 * 0.8 / 400))
    assert margin(0.4, 0.6, 10**6) == 0.01
    assert margin(0.0, 0.0, 10) == 0.01


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
    # The smaller sample counts.
    assert not flagged(searched("short", 0.5, 5, n=100), searched("long", 0.59, 20, n=10**6))


@pytest.mark.parametrize(
    "other",
    [{"defence": "dp-sgd"}, {"aggregator": "krum"}, {"compressor": "int8"}, {"threat": "e2"}, {"seed": 1},
     {"eps": 4 / 255}],
)  # fmt: skip
def test_only_like_is_compared_with_like(other):
    short = searched("short", 0.3, 5, **{k: v for k, v in other.items() if k == "eps"})
    short["cell"] |= {k: v for k, v in other.items() if k != "eps"}
    assert not flagged(short, searched("long", 0.6, 20))


def test_one_masked_group_flags_no_other():
    pair = [searched("short", 0.5, 5), searched("long", 0.6, 20)]
    fine = [searched("short-krum", 0.6, 5), searched("long-krum", 0.5, 20)]
    for one in fine:
        one["cell"]["aggregator"] = "krum"
    assert flagged(*pair, *fine) == {"short", "long"}


def test_transfer_failed_and_unscored_records_take_no_part():
    pgd = record("pgd", 0.6, effort=20)
    nothing = [
        {**record("failed", 0.1), "scores": None},
        {**record("clean", 0.1), "attack": None},
        {**record("unscored", 0.1), "scores": {"accuracy": 0.9}},
        record("undefined", float("nan")),
    ]
    assert not flagged(pgd, record("transfer", 0.1, "logits", mode="transfer"), *nothing)


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
