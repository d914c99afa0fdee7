"""The catalogue of evasion attacks: closed forms on linear models, budgets, AutoAttack's parts, transfer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import harness
from harness.api import NotApplicable, PluginError
from harness.grid import cells
from harness.scenario import load_text

BOUNDED = [
    ("bim", {}), ("mi-fgsm", {}), ("ni-fgsm", {}), ("vmi-fgsm", {"samples": 2}), ("di-fgsm", {}),
    ("ti-fgsm", {"kernel": 3}),
    ("jitter", {}), ("eot-pgd", {}), ("pgd-l2", {}), ("apgd", {"steps": 10}), ("apgd", {"steps": 10, "loss": "dlr"}),
    ("apgd", {"steps": 5, "loss": "targeted"}), ("apgd", {"steps": 10, "ball": "l2"}), ("apgd-ce", {"steps": 10}),
    ("fab", {"steps": 10}), ("fab", {"steps": 10, "ball": "l2"}), ("square", {"queries": 50}),
    ("square", {"queries": 50, "ball": "l2"}), ("autoattack-fast", {}),
    ("multi-attack", {"attacks": ["fgsm", {"bim": {"steps": 3}}]}), ("transfer", {"attack": "fgsm"}),
]  # fmt: skip
UNBOUNDED = [
    ("cw", {"steps": 20}),
    ("deepfool", {"steps": 5}),
    ("sparsefool", {"steps": 2}),
    ("one-pixel", {"steps": 1}),
]


def create(name, **parameters):
    return harness.create("attack", name, **parameters)


class Linear(nn.Module):
    """Logits W (x - 1/2), with as many classes as rows of W; every class's margin has a closed form."""

    def __init__(self, classes=4, shape=(1, 8, 8), seed=0, scale=1.0):
        super().__init__()
        size = int(np.prod(shape))
        weight = torch.randn(classes, size, generator=torch.Generator().manual_seed(seed)) * scale
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return (x.flatten(1) - 0.5) @ self.weight.T


def images(n=24, shape=(1, 8, 8), seed=1, low=0.3, high=0.7):
    x = torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed))
    return low + (high - low) * x  # away from 0 and 1: the box does not bind


def robust(model, x, y, eps, dual):
    """(b,) bool: right, and no change within eps can make another class win. dual: 1 for linf, 2 for l2."""
    logits, w = model(x), model.weight
    result = logits.argmax(1) == y
    for k in range(len(w)):
        gap = logits[torch.arange(len(x)), y] - logits[:, k]
        needed = eps * (w[y] - w[k]).norm(p=dual, dim=1)
        result &= (gap > needed) | (y == k)
    return result


@pytest.mark.parametrize(("name", "parameters"), BOUNDED, ids=lambda v: str(v))
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16)], ids=str)
def test_budgets_are_kept_and_zero_moves_nothing(name, parameters, shape):
    model, x = Linear(5, shape).eval(), images(6, shape, low=0, high=1)
    y = model(x).argmax(1)
    attack = create(name, **parameters)
    try:
        attack.check(5, shape)
    except NotApplicable as reason:
        assert "16 pixels" in str(reason)  # noqa: PT017  what is refused is not run
        return
    before = torch.get_rng_state()
    adversarial = attack(model, x, y, budget=0.05)  # the engine raises where the ball or the range is left
    assert torch.equal(torch.get_rng_state(), before)
    assert (adversarial != x).any()
    assert torch.equal(attack(model, x, y, budget=0.05), adversarial)
    assert torch.equal(attack(model, x, y, budget=0.0), x)
    assert attack.effort >= 1
    assert attack.reference.url


@pytest.mark.parametrize(("name", "parameters"), UNBOUNDED)
def test_attacks_without_a_radius_stay_in_range(name, parameters):
    model, x = Linear(3).eval(), images(4)
    y = model(x).argmax(1)
    adversarial = create(name, **parameters)(model, x, y)
    assert adversarial.shape == x.shape
    if name == "one-pixel":
        assert ((adversarial != x).any(1).flatten(1).sum(1) <= 1).all()
    if name in ("cw", "deepfool"):
        assert (model(adversarial).argmax(1) != y).float().mean() > 0.5


def test_apgd_ce_ascends_the_cross_entropy_alone():
    with pytest.raises(PluginError, match="loss must be 'ce', not 'dlr'"):
        create("apgd-ce", loss="dlr")
    assert create("apgd-ce").loss == "ce"


@pytest.mark.parametrize("name", ["bim", "mi-fgsm", "ni-fgsm", "vmi-fgsm", "jitter", "eot-pgd"])
def test_the_default_step_reaches_the_radius(name):
    model, x = Linear(2).eval(), images(5)
    y = model(x).argmax(1)
    for eps in (0.02, 0.2):  # torchattacks' own step of 2/255 would stop at 0.08
        adversarial = create(name, eps=eps)(model, x, y)
        wrong = model.weight[1 - y] - model.weight[y]
        expected = x + eps * wrong.sign().view_as(x)
        if name == "jitter":
            assert float((adversarial - x).abs().max()) == pytest.approx(eps, rel=1e-4)
        else:
            torch.testing.assert_close(adversarial, expected.clamp(0, 1), rtol=0, atol=1e-5)


def test_cw_moves_pixels_that_are_black_or_white():
    model, x = Linear(3).eval(), images(16).round()
    y = model(x).argmax(1)
    adversarial = create("cw", c=10.0, steps=100, lr=0.05)(model, x, y)
    assert (model(adversarial).argmax(1) != y).float().mean() > 0.5


def test_cw_takes_all_its_steps_whatever_else_is_in_the_batch():
    """torchattacks ends a batch where the sum of its costs grows, as it does where Adam's first steps overshoot."""
    model, x = TwoSided(0.5), images(n=16, low=0.0, high=1.0)
    y = model(x).argmax(1)
    attack = create("cw", lr=0.1, steps=60)
    whole = attack(model, x, y)
    alone = torch.cat([attack(model, x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(alone, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("attack", "settings", "access", "effort"),
    [
        ("Square", {"n_queries": 70}, "logits", 70),
        ("OnePixel", {"steps": 3}, "logits", 3),
        ("Pixle", {}, "logits", 10),
        ("GN", {}, "none", 1),
        ("VNIFGSM", {"steps": 4}, "gradients", 4),
    ],
)
def test_what_a_class_of_torchattacks_asks_of_the_model(attack, settings, access, effort):
    ball = "none" if attack in ("OnePixel", "Pixle", "GN") else "linf"
    made = create("torchattack", attack=attack, settings=settings, ball=ball)
    assert (made.access, made.effort) == (access, effort)


def test_pgd_l2_ends_on_the_ball_in_the_worst_direction():
    model, x = Linear(2, scale=0.2).eval(), images(5)
    y = model(x).argmax(1)
    adversarial = create("pgd-l2", eps=0.3, random_start=False)(model, x, y)
    wrong = model.weight[1 - y] - model.weight[y]
    expected = x + 0.3 * (wrong / wrong.norm(dim=1, keepdim=True)).view_as(x)
    torch.testing.assert_close(adversarial, expected, rtol=0, atol=1e-4)


def test_deepfool_crosses_the_boundary_where_pixels_are_black_or_white():
    model, x = Linear(5).eval(), images(32, low=0.0, high=1.0).round()
    y = model(x).argmax(1)
    adversarial = create("deepfool")(model, x, y)
    assert (model(adversarial).argmax(1) != y).all()
    assert ((adversarial >= 0) & (adversarial <= 1)).all()
    assert torch.equal(create("deepfool")(model, x, (y + 1) % 5), x)  # wrong already: nothing to look for


def test_deepfool_is_each_image_s_own():
    model, x = Linear(4).eval(), images(6)
    y = model(x).argmax(1)
    whole = create("deepfool")(model, x, y)
    for i in range(6):
        torch.testing.assert_close(create("deepfool")(model, x[i : i + 1], y[i : i + 1])[0], whole[i])


def test_deepfool_finds_the_distance_to_the_boundary():
    model, x = Linear(3).eval(), images(8)
    y = model(x).argmax(1)
    adversarial = create("deepfool", overshoot=0.0)(model, x, y)
    logits = model(x)
    distances = []
    for i in range(8):
        gaps = [
            float((logits[i, y[i]] - logits[i, k]) / (model.weight[y[i]] - model.weight[k]).norm())
            for k in range(3)
            if k != y[i]
        ]
        distances.append(min(gaps))
    moved = (adversarial - x).flatten(1).norm(dim=1)
    torch.testing.assert_close(moved, torch.tensor(distances), rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize(("ball", "dual", "eps"), [("linf", 1, 0.008), ("l2", 2, 0.07)])
def test_autoattack_s_robust_accuracy_is_the_closed_form(classes, ball, dual, eps):
    model, x = Linear(classes, scale=0.3).eval(), images(60, seed=classes)
    y = model(x).argmax(1)
    expected = robust(model, x, y, eps, dual)
    assert 0.1 < expected.float().mean() < 0.95
    adversarial = create("autoattack-fast", ball=ball, eps=eps)(model, x, y)
    found = model(adversarial).argmax(1) == y
    assert not (expected & ~found).any()  # what is provably robust is not broken
    assert (found & ~expected).sum() <= 1  # and all but what lies at the boundary is


def test_apgd_is_never_targeted_at_the_true_class():
    """It was, of a sample that a surrogate gets wrong, where its second likeliest class is the true one."""
    torch.manual_seed(0)
    model, x = (
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5)),
        images(n=40, low=0.0, high=1.0),
    )
    y = model(x).topk(2).indices[:, 1]
    found = create("apgd", loss="targeted", steps=10)(model, x, y, budget=0.1)
    before, after = (model(z).log_softmax(1)[torch.arange(40), y] for z in (x, found))
    assert (after < before).float().mean() > 0.9


def test_the_parts_are_the_published_ones():
    def names(classes):
        return [f"{p.name}:{getattr(p, 'loss', '')}" for p in create("autoattack").parts(classes)]

    assert names(10) == ["apgd:ce", "apgd:targeted", "fab:", "square:"]
    assert names(3) == ["apgd:ce", "apgd:dlr", "fab:", "square:"]
    assert names(2) == ["apgd:ce", "fab:", "square:"]
    first, second, third, fourth = create("autoattack").parts(10)
    assert (first.steps, second.steps, third.steps, fourth.queries) == (100, 100, 100, 5000)
    with pytest.raises(NotApplicable, match="needs 4 classes"):
        create("apgd", loss="targeted").check(3, (1, 8, 8))


def digits_model():
    data = harness.create("dataset", "digits").load()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    x = torch.from_numpy(data.train.images).float() / (255 if data.train.images.dtype == np.uint8 else 1)
    y = torch.from_numpy(data.train.labels)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    test = torch.from_numpy(data.test.images[:200]).float() / (
        255 if data.test.images.dtype == np.uint8 else 1
    )
    return model.eval(), test, torch.from_numpy(data.test.labels[:200])


def test_strength_is_monotone():
    model, x, y = digits_model()
    eps, right = 0.08, {}
    clean = model(x).argmax(1) == y
    for name, parameters in (
        ("fgsm", {}), ("pgd", {"steps": 10}), ("pgd", {"steps": 50}), ("autoattack-fast", {}),
        ("square", {"queries": 500}), ("multi-attack", {"attacks": ["fgsm", {"pgd": {"steps": 50}}]}),
    ):  # fmt: skip
        adversarial = create(name, **parameters)(model, x, y, budget=eps)
        right[name + str(parameters.get("steps", ""))] = float(
            (clean & (model(adversarial).argmax(1) == y)).double().mean()
        )
    assert right["autoattack-fast"] <= right["pgd50"] + 0.005
    assert right["pgd50"] <= right["pgd10"] + 0.005
    assert right["pgd10"] <= right["fgsm"] + 0.005
    assert right["fgsm"] < float(clean.double().mean())
    assert right["autoattack-fast"] <= right["square"]
    assert right["multi-attack"] <= min(right["fgsm"], right["pgd50"]) + 0.015  # another random start


def test_a_multi_attack_keeps_for_each_sample_what_fools():
    model, x, y = digits_model()
    single = create("fgsm")(model, x, y, budget=0.05)
    both = create("multi-attack", attacks=["fgsm", {"pgd": {"steps": 20}}])(model, x, y, budget=0.05)
    fooled = (model(single).argmax(1) != y) & (model(x).argmax(1) == y)
    torch.testing.assert_close(both[fooled], single[fooled])
    assert (model(both).argmax(1) != y).sum() >= (model(single).argmax(1) != y).sum()


class TwoSided(Linear):
    """Two classes of opposite logits, scale times w (x - 1/2): every gradient of the loss points along w or -w.

    At the scale of 3 margins reach 32, where gradients are far below 1e-10 in norm, and well above the least float32.
    """

    def __init__(self, scale=1.0):
        super().__init__(classes=1, scale=scale)

    def forward(self, x):
        logit = super().forward(x)
        return torch.cat([logit, -logit], dim=1)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("pgd-l2", {}), ("torchattack", {"attack": "PGDL2", "ball": "l2", "settings": {"steps": 20}})],
)
def test_an_l2_attack_finds_the_same_whatever_the_scale_of_the_logits(name, parameters):
    x = images(low=0.0, high=1.0)
    found = []
    for scale in (0.15, 3.0):
        model = TwoSided(scale)
        y = model(x).argmax(1)
        found.append(create(name, **parameters)(model, x, y, budget=0.5, seed=3))
    assert (found[0] != x).any()
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "parameters", "ball"),
    [(name, {}, "linf") for name in ("fgsm", "pgd", "bim", "mi-fgsm", "ni-fgsm", "apgd-ce")]
    + [("pgd-l2", {}, "l2"), ("apgd-ce", {"ball": "l2", "steps": 20}, "l2")],
)
@pytest.mark.parametrize("scale", [8.0, 60.0])
def test_a_model_is_not_robust_because_it_is_sure(name, parameters, ball, scale):
    """At 8 gradients are below what torchattacks adds to a length, at 60 the error's own is 0 in float32."""
    x = images(low=0.0, high=1.0)
    budget = 0.1 if ball == "linf" else 0.8
    plain, sure = TwoSided(0.15), TwoSided(scale)
    y = plain(x).argmax(1)
    least = {8.0: 27, 60.0: 103}[scale]
    assert (sure(x).diff(dim=1).abs().flatten() > least).sum() >= len(x) / 2
    left = [
        (model(create(name, **parameters)(model, x, y, budget=budget, seed=3)).argmax(1) == y).sum()
        for model in (plain, sure)
    ]
    assert left[0] < len(x)
    assert left[1] <= left[0] + 1


@pytest.mark.parametrize(
    ("name", "ball", "scale"),
    [
        *((name, "linf", 600.0) for name in ("fgsm", "pgd", "bim", "mi-fgsm", "ni-fgsm")),
        *((name, "linf", 60.0) for name in ("eot-pgd", "vmi-fgsm")),
        ("pgd-l2", "l2", 600.0),
    ],
)
def test_a_model_is_not_robust_because_it_is_surer_than_numbers_hold(name, ball, scale):
    """e^-margin is 0 in float64 from 745 logits on; in float32, where gradients of several passes add up, from 104."""
    x = images(low=0.0, high=1.0)
    budget = 0.1 if ball == "linf" else 0.8
    plain, sure = TwoSided(0.15), TwoSided(scale)
    y = plain(x).argmax(1)
    assert (sure(x).diff(dim=1).abs().flatten() > {600.0: 745, 60.0: 104}[scale]).sum() >= len(x) / 2
    left = [
        (model(create(name)(model, x, y, budget=budget, seed=3)).argmax(1) == y).sum()
        for model in (plain, sure)
    ]
    assert left[0] < len(x)
    assert left[1] <= left[0] + 1


@pytest.mark.parametrize("scale", [60.0, 600.0])
@pytest.mark.parametrize(
    ("name", "settings"),
    [(name, {}) for name in ("FGSM", "PGD", "BIM", "FFGSM", "RFGSM", "MIFGSM", "NIFGSM", "PGDL2")]
    + [("DIFGSM", {"diversity_prob": 0.0})]
    + [(name, {}) for name in ("EOTPGD", "SINIFGSM", "VMIFGSM", "VNIFGSM", "UPGD", "APGD", "TPGD")]
    + [("PGDRS", {"noise_sd": 0.1}), ("PGDRSL2", {"noise_sd": 0.1})]
    + [("UPGD", {"eot_iter": 2}), ("APGD", {"eot_iter": 2})],
)
def test_a_sure_model_is_not_robust_to_the_library_s_own_classes(name, settings, scale):
    """At 60 the cross-entropy's gradient is 0 in float32, and images stayed as they were."""
    x = images(low=0.0, high=1.0)
    ball, budget = ("l2", 0.8) if name in ("PGDL2", "PGDRSL2") else ("linf", 0.1)
    attack = create("torchattack", attack=name, ball=ball, settings=settings)
    plain, sure = TwoSided(0.15), TwoSided(scale)
    y = plain(x).argmax(1)
    left = [
        (model(attack(model, x, y, budget=budget, seed=3)).argmax(1) == y).sum() for model in (plain, sure)
    ]
    assert left[0] < len(x)
    assert left[1] <= left[0] + 1


def test_one_pixel_finds_the_same_whatever_the_scale_of_the_logits():
    """At 600 most probabilities round to 1 in float32, and candidates were all alike."""
    x = images(n=24, low=0.0, high=1.0)
    y = TwoSided(1.0)(x).argmax(1)
    found = [create("one-pixel", steps=5)(TwoSided(scale), x, y, seed=3) for scale in (1.0, 64.0)]
    assert torch.equal(*found)


def test_an_l2_attack_does_not_depend_on_the_batch_it_is_run_in():
    model, x = TwoSided(3.0), images(n=32, low=0.0, high=1.0)
    y = model(x).argmax(1)
    attack = create("pgd-l2", random_start=False, steps=5, alpha=0.02)  # the steps alone end within the ball
    alone = torch.cat([attack(model, x[i : i + 1], y[i : i + 1], budget=0.5) for i in range(len(x))])
    torch.testing.assert_close(attack(model, x, y, budget=0.5), alone, atol=1e-6, rtol=0)


def test_a_constant_of_torchattacks_that_is_given_is_kept():
    x, settings = images(n=4), {"steps": 5, "eps_for_division": 1e6}  # so large that nothing moves
    model = Linear()
    attack = create("torchattack", attack="PGDL2", ball="l2", settings={**settings, "random_start": False})
    torch.testing.assert_close(attack(model, x, model(x).argmax(1), budget=0.5), x, atol=1e-4, rtol=0)


def test_each_part_of_a_multi_attack_keeps_to_the_radius_it_would_have_alone():
    model, x = Linear(scale=0.01), images()
    y = model(x).argmax(1)
    pgd, wide = create("pgd", random_start=False), create("fgsm", eps=0.2)

    def moved(attacks, budget):  # of those that the first attack fools
        only = create("multi-attack", attacks=attacks)
        fooled = model(pgd(model, x, y, budget=budget)).argmax(1) != y
        assert fooled.any()
        assert only.radius(budget) == 0.2
        return (only(model, x, y, budget=budget) - x)[fooled].abs().max().item()

    assert moved([pgd, wide], None) == pytest.approx(8 / 255, abs=1e-6)
    assert moved([pgd, wide], 0.05) == pytest.approx(0.05, abs=1e-6)


def test_a_resized_input_is_smaller_than_the_image():
    for name in ("di-fgsm", "ti-fgsm"):
        create(name, resize_rate=0.99)
        with pytest.raises(PluginError, match="less than 1"):
            create(name, resize_rate=1.0)


def test_what_only_takes_square_images_says_so():
    for name, parameters in (
        ("di-fgsm", {}),
        ("ti-fgsm", {}),
        ("square", {"ball": "l2"}),
        ("autoattack", {"ball": "l2"}),
    ):
        with pytest.raises(NotApplicable, match="takes square images, not 12x10"):
            create(name, **parameters).check(5, (3, 12, 10))
    for name in ("square", "autoattack", "bim"):
        create(name).check(5, (3, 12, 10))
    with pytest.raises(NotApplicable, match="16 pixels a side or more, not 8"):
        create("autoattack", ball="l2").check(5, (1, 8, 8))
    with pytest.raises(NotApplicable, match="1 or 3 channels"):
        create("ti-fgsm").check(5, (2, 8, 8))


def test_bad_combinations_are_refused():
    with pytest.raises(PluginError, match="attacks of one norm"):
        create("multi-attack", attacks=["fgsm", "pgd-l2"])
    with pytest.raises(PluginError, match="transfer cannot be one of several"):
        create("multi-attack", attacks=["fgsm", "transfer"])
    with pytest.raises(PluginError, match="source: other, which needs one"):
        create("transfer", source="other")
    with pytest.raises(PluginError, match="source: other, which needs one"):
        create("transfer", defences=[{"gradient-clipping": {"max_norm": 1.0}}])
    attack = create("transfer", source="other", defences=[], aggregators=["krum"])
    assert attack.surrogate.name == "defences none, aggregators krum"
    assert attack.norm == "linf"
    assert create("multi-attack", attacks=["square"]).access == "logits"


SCENARIO = """
schema: 1
name: transfer
dataset: digits
model: {mlp: {hidden: [16]}}
federation: {clients: 3, rounds: 4, local: {epochs: 1, batch_size: 16, optimizer: {sgd: {lr: 0.2}}}}
defences: [none, gradient-clipping: {max_norm: 0.5}]
compressors: [none, static-int8]
threats:
  - {name: none}
  - {name: evasion, budget: {norm: linf, eps: 0.1}, surrogate: uncompressed,
     attacks: [fgsm, transfer: {attack: fgsm}, transfer: {attack: fgsm, source: uncompressed}, square: {queries: 20}]}
metrics: [accuracy, robust-accuracy]
evaluation: {subset: 100}
"""


def test_transfer_shares_the_surrogate_s_training(tmp_path):
    result = harness.run(
        load_text(SCENARIO, tmp_path / "t.yaml"), device="cpu", jobs=0, store=tmp_path / "runs"
    )
    assert result.failed == 0, [r["error"] for r in result.records if r["error"]]
    assert result.executed["train"] == 2
    by = {(r["cell"]["defence"], r["cell"]["compressor"], r["cell"]["attack"]): r for r in result.records}
    clipped = "gradient-clipping(max_norm=0.5)"
    other = by[clipped, "none", "transfer(attack=fgsm)"]
    assert other["attack"]["mode"] == "transfer from undefended"
    assert by[clipped, "static-int8", "transfer(attack=fgsm)"]["attack"]["mode"] == "transfer from undefended"
    both = "straight-through twin and transfer from uncompressed"
    assert by[clipped, "static-int8", "fgsm"]["attack"]["mode"] == both
    own = by["none", "none", "transfer(attack=fgsm)"]["scores"]["robust_accuracy"]
    assert own == by["none", "none", "fgsm"]["scores"]["robust_accuracy"]  # its surrogate is the model itself
    assert by["none", "static-int8", "square(queries=20)"]["attack"]["mode"] == "white-box"


@pytest.mark.parametrize(
    ("attack", "kept"),
    [
        ("fgsm", ["top-k"]),  # by the threat's surrogate, which is called uncompressed too
        ("transfer: {source: uncompressed}", ["top-k"]),
        ("transfer", []),
        ("transfer: {source: other, compressors: []}", []),
    ],
)
def test_compressors_of_updates_belong_to_the_training_of_an_uncompressed_surrogate(tmp_path, attack, kept):
    text = SCENARIO[: SCENARIO.index("compressors")] + (
        "compressors: [[top-k, static-int8]]\n"
        f"threats: [{{name: e, budget: {{norm: linf, eps: 0.1}}, surrogate: uncompressed, attacks: [{attack}]}}]\n"
    )
    behind = next(iter(cells(load_text(text, tmp_path / "t.yaml")))).behind_transfer
    assert [compressor.name for compressor in behind.compressors] == kept


def test_the_record_says_which_parts_were_run(tmp_path):
    text = (
        SCENARIO[: SCENARIO.index("defences")]
        + """
threats: [{name: evasion, budget: {norm: linf, eps: 0.1}, attacks: [autoattack-fast]}]
metrics: [robust-accuracy]
evaluation: {subset: 20}
"""
    )
    (record,) = harness.run(
        load_text(text, tmp_path / "t.yaml"), device="cpu", jobs=0, store=tmp_path / "runs"
    ).records
    parts = record["attack"]["parts"]
    assert [part.split("(")[0] for part in parts] == ["apgd", "apgd", "fab", "square"]
    assert "loss=targeted" in parts[1]


# Corruptions and the library's other attacks --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 17, 23), (2, 16, 16)], ids=str)
@pytest.mark.parametrize("name", ["gaussian-noise", "gaussian-blur", "contrast", "jpeg"])
def test_corruptions_grow_with_severity(name, shape):
    x = images(4, shape, low=0, high=1)
    x = nn.functional.avg_pool2d(nn.functional.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1)  # some structure
    moved = []
    for severity in range(1, 6):
        attack = create(name, severity=severity)
        corrupted = attack(Linear(3, shape).eval(), x, torch.zeros(4, dtype=torch.int64))
        assert corrupted.shape == x.shape
        moved.append(float((corrupted - x).square().mean()))
        assert torch.equal(attack(Linear(3, shape).eval(), x, torch.zeros(4, dtype=torch.int64)), corrupted)
    assert moved == sorted(moved)
    assert moved[0] > 0
    assert attack.norm is None
    assert attack.access == "none"


def test_corruptions_by_their_formulas():
    x = images(2, (1, 16, 16), low=0.4, high=0.6)
    y = torch.zeros(2, dtype=torch.int64)
    model = Linear(3, (1, 16, 16)).eval()
    noise = create("gaussian-noise", severity=5)(model, x, y) - x
    assert float(noise.std()) == pytest.approx(0.1, rel=0.1)
    mean = x.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(create("contrast", severity=2)(model, x, y), mean + 0.5 * (x - mean))


def test_any_attack_of_the_library_is_one_line():
    model, x = Linear(4, (1, 16, 16)).eval(), images(5, (1, 16, 16))
    y = model(x).argmax(1)
    attack = create("torchattack", attack="VNIFGSM", settings={"steps": 4, "N": 2})
    adversarial = attack(model, x, y, budget=0.1)
    assert float((adversarial - x).abs().max()) == pytest.approx(0.1, rel=1e-4)
    assert attack.effort == 4
    assert torch.equal(attack(model, x, y, budget=0.0), x)
    assert create("torchattack", attack="CW", ball="none")(model, x, y).shape == x.shape


def test_a_targeted_class_of_the_library_is_told_how_many_classes_there_are():
    """Four, of which it looked for the fifth best."""
    model, x = Linear(4, (1, 6, 6)).eval(), images(5, (1, 6, 6))
    y = model(x).argmax(1)
    attack = create("torchattack", attack="APGDT", settings={"steps": 3})
    attack.check(4, (1, 6, 6))
    assert float((attack(model, x, y, budget=1e-3) - x).abs().max()) <= 1e-3 + 1e-6


@pytest.mark.parametrize(
    ("name", "classes", "shape", "settings", "reason"),
    [
        ("Pixle", 4, (1, 8, 8), {}, "takes images of 3 channels, not 1"),
        ("TIFGSM", 4, (1, 8, 8), {}, "takes images of 3 channels, not 1"),
        ("DIFGSM", 4, (1, 8, 6), {}, "takes square images, not 8x6"),
        ("APGDT", 3, (1, 8, 8), {}, "needs 4 classes here, not 3"),
        ("AutoAttack", 3, (1, 8, 8), {}, "needs 4 classes here, not 3"),
        ("UPGD", 2, (1, 8, 8), {"loss": "dlr"}, "needs 3 classes here, not 2"),
    ],
)
def test_what_a_class_of_the_library_cannot_take_is_not_applicable(name, classes, shape, settings, reason):
    attack = create("torchattack", attack=name, settings=settings, ball="none" if name == "Pixle" else "linf")
    with pytest.raises(NotApplicable, match=reason):
        attack.check(classes, shape)
    attack.check(4, (3, 8, 8))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"attack": "PDG"}, "no attack 'PDG'; did you mean 'PGD'"),
        ({"attack": "VNIFGSM", "settings": {"stesp": 3}}, "no parameter 'stesp'; did you mean 'steps'"),
        ({}, "needs the parameter 'attack'"),
        ({"attack": "DeepFool", "ball": "none"}, "leaves samples right that can be fooled; take deepfool"),
        ({"attack": "UPGD", "settings": {"loss": "margin"}}, "all logits are below 0; take loss ce or dlr"),
        ({"attack": "MultiAttack"}, "MultiAttack needs 'attacks', which is no number or text"),
        ({"attack": "CW"}, "CW has no radius with these settings: set `ball: none`"),
        ({"attack": "PGDL2"}, "PGDL2 has its radius in l2 with these settings: set `ball: l2`"),
        (
            {"attack": "PGD", "ball": "none"},
            "PGD has its radius in linf with these settings: set `ball: linf`",
        ),
        (
            {"attack": "APGD", "ball": "l2"},
            "APGD has its radius in linf with these settings: set `ball: linf`",
        ),
        ({"attack": "APGD", "settings": {"norm": "L2"}}, "has its radius in l2"),
        ({"attack": "APGD", "settings": {"norm": "l2"}}, "APGD has no norm 'l2'; did you mean 'L2'"),
    ],
)
def test_unknown_names_get_the_nearest(parameters, message):
    with pytest.raises(PluginError, match=message):
        create("torchattack", **parameters)


@pytest.mark.parametrize(("name", "parameters"), [("ti-fgsm", {"steps": 2}), ("fab", {"steps": 2})])
def test_attacks_of_float32_libraries_keep_float64(name, parameters):
    """TIFGSM's kernel and FAB's buffers are float32 in torchattacks: a float64 model failed under them."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 3)).double()
    x = torch.rand((4, 3, 8, 8), generator=generator, dtype=torch.float64)
    found = harness.create("attack", name, eps=0.1, **parameters)(model, x, model(x).argmax(1))
    assert found.dtype == torch.float64
    assert 0 < float((found - x).abs().max()) <= 0.1 + 1e-6
