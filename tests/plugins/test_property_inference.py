import pytest
import torch

import harness
from harness.cli import main
from harness.scenario import load_text

HEAD = """schema: 1
name: property
dataset: digits
model: logistic
federation: {clients: 4, rounds: 2, local: {batch_size: 32, optimizer: {sgd: {lr: 0.5}}}}
"""
FEW = "threshold: 0.31, records: 32, targets: 30, simulated: 100"
MANY = FEW.replace("targets: 30", "targets: 90")


def scores(tmp_path, threats, defences="[none]", seeds="[0]", head=HEAD):
    text = f"{head}defences: {defences}\nthreats: [{{name: server, attacks: [{threats}]}}]\nseeds: {seeds}\n"
    run = harness.run(load_text(text, tmp_path / "p.yaml"), device="cpu", jobs=0, store=tmp_path / "s")
    assert run.failed == 0, [r["error"] for r in run.records]
    return [r["scores"] for r in run.records], run


def test_an_undefended_update_gives_the_property_away_and_noise_hides_it(tmp_path):
    _, run = scores(
        tmp_path, f"property-inference: {{{MANY}}}", "[none, gradient-noise: {scale: 100.0}]", "[0, 1, 2, 3]"
    )
    mean = run.to_pandas().groupby("defence")[["property_auc", "property_accuracy"]].mean()
    hidden, open_ = (row for _, row in mean.sort_index().iterrows())  # gradient-noise, none
    assert open_["property_auc"] > 0.6  # a standard error over four seeds of 90 targets is about 0.03
    assert open_["property_accuracy"] > 0.55
    assert abs(hidden["property_auc"] - 0.5) < 0.1


def test_a_class_is_a_property_too(tmp_path):
    (found,), run = scores(
        tmp_path, "property-inference: {attribute: class, target: 3, records: 4, targets: 12, simulated: 40}"
    )
    assert found["property_auc"] == 1.0
    assert run.records[0]["units"]["property_auc"]["direction"] == "lower"


def test_updates_beyond_float32_are_scored_like_others(tmp_path):
    found, _ = scores(
        tmp_path,
        "property-inference: {threshold: 0.31, targets: 4, simulated: 10}",
        "[gradient-noise: {scale: 1.0e+38}]",  # in some updates a number is infinite, and the others train
        head=HEAD.replace("rounds: 2,", "rounds: 2, server: {fedavg: {lr: 1.0e-37}},"),
    )
    assert 0 <= found[0]["property_auc"] <= 1


def test_clients_hold_what_is_asked_about():
    from harness.federation.observe import observe
    from harness.stage_specs import TrainSpec
    from harness.training import Training

    attack = harness.create("attack", "property-inference", threshold=0.31, records=6, targets=4)
    scenario = load_text(HEAD + "threats: [{name: server, attacks: [property-inference]}]\n")
    spec = TrainSpec(
        scenario.dataset, scenario.root, scenario.model, None, scenario.federation, scenario.holdout, 0.0,
        scenario.compute, (), scenario.aggregators[0], (), None, None, 0,
    )  # fmt: skip
    training = Training(spec, "key", "cpu")
    module = training.initial_module()
    for number in range(4):
        seen, images, _ = observe(training, module, attack.observation, [], number)
        bright = images.flatten(1).mean(1) > 0.31
        assert bool(bright.all() if number % 2 == 0 else not bright.any())
        assert seen.attribute is (number % 2 == 0)
        assert len(images) == 6


@pytest.mark.parametrize(
    ("asked", "share"),
    [("threshold: 0.99", "no"), ("threshold: 0.0", "every"), ("attribute: class, target: 10", "no")],
)
def test_an_attribute_in_which_no_clients_can_differ_is_refused_before_a_run(asked, share, tmp_path, capsys):
    text = f"{HEAD}threats: [{{name: server, attacks: [property-inference: {{{asked}}}]}}]\n"
    (tmp_path / "p.yaml").write_text(text)
    for command in ("validate", "plan"):
        assert main([command, str(tmp_path / "p.yaml")]) == 2
        said = capsys.readouterr().err
        assert "p.yaml:6:36: property-inference(" in said
        assert f"): {share} training image has the attribute that it asks about" in said


def test_records_that_are_not_there_are_said(tmp_path):
    """The brightest training image has a mean of 0.423: one client holds it, and the others nothing of the kind."""
    text = f"{HEAD}threats: [{{name: server, attacks: [property-inference: {{threshold: 0.42}}]}}]\n"
    run = harness.run(load_text(text, tmp_path / "p.yaml"), device="cpu", jobs=0, store=tmp_path / "s")
    assert run.records[0]["error"]["message"].endswith("has no record with the attribute asked about")


def test_clients_must_step_with_sgd(tmp_path):
    text = HEAD.replace("sgd: {lr: 0.5}", "adam: {lr: 0.01}")
    attacks = "[property-inference: {threshold: 0.3}, inverting-gradients, label-inference]"
    text += f"threats: [{{name: server, attacks: {attacks}}}]\n"
    run = harness.run(load_text(text, tmp_path / "p.yaml"), device="cpu", jobs=0, store=tmp_path / "s")
    reasons = [r["reason"] for r in run.records]
    names = ["property-inference", "inverting-gradients", "label-inference"]
    assert reasons == [f"{name} needs clients that step with sgd, not adam" for name in names]


@pytest.mark.parametrize("field", [{"targets": 2}, {"simulated": 1}, {"records": 0}, {"threshold": 2.0}])
def test_bad_parameters(field):
    with pytest.raises(harness.errors.PluginError, match=next(iter(field))):
        harness.create("attack", "property-inference", **field)


def test_the_attribute_is_the_mean_pixel():
    attack = harness.create("attack", "property-inference", threshold=0.5)
    images = torch.stack([torch.full((1, 2, 2), 0.4), torch.full((1, 2, 2), 0.6)])
    assert attack.observation.attribute(images, torch.zeros(2)).tolist() == [False, True]
