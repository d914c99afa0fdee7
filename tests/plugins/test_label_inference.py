from dataclasses import replace

import pytest
import torch
from observed import observe
from torch import nn
from torch.nn import functional

import harness
from harness.api import NotApplicable, ObservedUpdate, PluginError, PrivacyContext, PrivacyView
from harness_plugins.attacks.privacy import _inversion as inversion
from harness_plugins.classifier import last_linear

SHAPE = (1, 6, 6)


def network(classes=10, activation=nn.ReLU, bias=True, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 32), activation(), nn.Linear(32, classes, bias=bias))


def records(n, classes=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((n, *SHAPE), generator=generator)
    return x, torch.randint(classes, (n,), generator=generator)


def infer(*observed, classes=10, population=None, progress=lambda done, total: None, **parameters):
    nobody = (torch.empty(0), torch.empty(0))
    view = PrivacyView(None, nobody, nobody, observed=observed, population=population)
    context = PrivacyContext(classes, torch.Generator().manual_seed(0), progress)
    return harness.create("attack", "label-inference", **parameters).run(view, context)


# the classifier's gradient ---------------------------------------------------------------------------


def test_the_last_linear_layer_is_found_by_name():
    for name, layer in (("lenet5", "12"), ("small-cnn", "10"), ("resnet9", "classifier")):
        module = harness.create("model", name).build((1, 28, 28), 7)
        assert last_linear(module, 7) == layer
        with pytest.raises(NotApplicable, match="7 outputs for 3 classes"):
            last_linear(module, 3)
    with pytest.raises(NotApplicable, match="no linear layer"):
        last_linear(nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten()))


def test_class_gradients_are_probabilities_less_the_share_of_labels():
    x, y = records(12)
    module = network()
    expected = module(x).softmax(1).mean(0) - torch.bincount(y, minlength=10) / 12
    torch.testing.assert_close(
        inversion.class_gradients(observe(module, x, y)), expected, rtol=1e-3, atol=1e-5
    )


def test_class_gradients_without_a_bias_are_row_sums():
    x, y = records(5)
    module = network(bias=False)
    loss = functional.cross_entropy(module(x), y)
    expected = torch.autograd.grad(loss, module[3].weight)[0].sum(1)
    torch.testing.assert_close(
        inversion.class_gradients(observe(module, x, y)), expected, rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("settings", [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}, {}])
def test_weight_decay_is_taken_out(settings):
    x, y = records(6)
    module = network()
    with torch.no_grad():
        module[3].bias.copy_(torch.linspace(-3, 3, 10))
    # At so small a learning rate the weights stay where they are, and every step has the same gradient.
    observed = observe(
        module.double(), x.double(), y, epochs=3, batch_size=6, lr=1e-6, weight_decay=0.5, **settings
    )
    gradient = module(x.double()).softmax(1).mean(0) - torch.bincount(y, minlength=10) / 6
    times = {0.0: 3, 0.9: 1 + 1.9 + 2.71}[settings.get("momentum", 0.0)]
    if settings.get("nesterov"):
        times = 3 + 0.9 * (1 + 1.9 + 2.71)
    torch.testing.assert_close(inversion.class_gradients(observed), times * gradient, rtol=1e-3, atol=1e-4)


def test_of_a_mean_over_clients_they_are_the_mean():
    """Clients of unlike sizes take unlike numbers of steps, each with its own weight decay."""
    module = network()
    with torch.no_grad():
        module[3].bias[4] = 8.0
    settings = {"epochs": 2, "batch_size": 2, "momentum": 0.9, "weight_decay": 0.01}
    clients = [observe(module, *records(count, seed=count), **settings) for count in (2, 6)]
    update = 0.25 * clients[0].update + 0.75 * clients[1].update
    known = {"records": 8, "clients": 2, "sizes": (2, 6), "shares": (0.25, 0.75)}
    together = inversion.class_gradients(replace(clients[0], update=update, **known))
    apart = [inversion.class_gradients(client) for client in clients]
    torch.testing.assert_close(together, 0.25 * apart[0] + 0.75 * apart[1], rtol=1e-4, atol=1e-5)


# iDLG ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.Tanh])
def test_the_label_of_one_record_is_exact_for_every_class(activation):
    module = network(activation=activation)
    for label in range(10):
        x, _ = records(1, seed=label)
        y = torch.tensor([label])
        for settings in ({}, {"epochs": 3, "momentum": 0.9}, {"weight_decay": 0.01}):
            assert inversion.idlg_label(observe(module, x, y, **settings)).tolist() == [label]


def test_the_label_is_exact_on_a_confident_model_too():
    module = network()
    with torch.no_grad():
        module[3].bias[4] = 8.0
    for label in (4, 7):
        observed = observe(module, records(1)[0], torch.tensor([label]))
        assert inversion.idlg_label(observed).tolist() == [label]


def test_idlg_is_for_one_record():
    with pytest.raises(PluginError, match="one record, not 2"):
        inversion.idlg_label(observe(network(), *records(2)))


# LLG -------------------------------------------------------------------------------------------------


def with_gradients(values, count):
    """An update whose classifier bias has these gradients."""
    values = torch.tensor(values)
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, len(values)))
    weights = torch.zeros(sum(p.numel() for p in module.parameters()))
    update = torch.zeros_like(weights)
    update[-len(values) :] = -0.1 * values
    layout = {"1.weight": slice(0, 36 * len(values)), "1.bias": slice(36 * len(values), len(weights))}
    optimizer = {"name": "sgd", "lr": 0.1}
    return ObservedUpdate(update, weights, module, layout, count, count, 1, optimizer, len(values), SHAPE)


def test_llg_by_hand():
    # m = (-0.9 - 0.3) / 4 * (1 + 1/3) = -0.4: classes 0 and 1 once, then g = (-0.5, 0.1, 0.2): 0, then 0 again.
    observed = with_gradients([-0.9, -0.3, 0.2], 4)
    assert inversion.llg(observed).tolist() == [0, 0, 0, 1]
    # m = -1.15 / 4 (1 + 1/3) = -0.383: g = (-0.367, -0.017, 0.2): 0, then (0.017, -0.017, 0.2): 1.
    assert inversion.llg(with_gradients([-0.75, -0.4, 0.2], 4)).tolist() == [0, 0, 1, 1]
    # With m = -0.7 and s = (0.1, 0.5, 0): g = (-0.3, -0.1, 0.2): 0, then (0.4, -0.1, 0.2): 1.
    known = (torch.tensor(-0.7), torch.tensor([0.1, 0.5, 0.0]))
    assert inversion.llg(observed, known).tolist() == [0, 0, 1, 1]


def test_llg_keeps_the_smallest_where_noise_makes_too_many_negative():
    assert inversion.llg(with_gradients([-0.1, -0.5, -0.2, 0.1], 2)).tolist() == [1, 2]
    assert inversion.llg(with_gradients([float("nan"), 0.2, 0.1], 2)).tolist() == [0, 0]


def test_gauged_impact_and_offset_by_hand():
    # A network that always answers p: a batch of class i has gradient p - e_i, so that m = (1 + 1/k) / b
    # mean(p_i - 1) = -(1 - 1/k^2) / b and s_j = p_j.
    module = network(classes=4)
    with torch.no_grad():
        module[3].weight.zero_()
        module[3].bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]).log())
    observed = observe(module, *records(5, classes=4), classes=4)
    draw = inversion.dummies(observed, torch.Generator().manual_seed(0))
    impact, offset = inversion.llg_knowledge(observed, draw, 2)
    assert impact.item() == pytest.approx(-(1 - 1 / 16) / 5, rel=1e-4)
    torch.testing.assert_close(offset, torch.tensor([0.1, 0.2, 0.3, 0.4]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("auxiliary", ["dummies", "population"])
@pytest.mark.parametrize(("classes", "count"), [(10, 4), (10, 8), (3, 5)])
def test_labels_are_recovered_exactly_from_true_gradients(auxiliary, classes, count):
    population = records(200, classes, seed=99)
    observed, truth = [], []
    for seed in range(3):
        x, y = records(count, classes, seed)
        observed.append(observe(network(classes), x, y, classes=classes))
        truth.append(y)
    result = infer(*observed, classes=classes, population=population, auxiliary=auxiliary, draws=2)
    assert result.images is None
    for found, y in zip(result.labels, truth, strict=True):
        assert found.dtype == torch.int64
        assert found.tolist() == y.sort().values.tolist()


def hits(found, y, classes):
    return torch.minimum(*(torch.bincount(labels, minlength=classes) for labels in (found, y))).sum().item()


def test_few_classes_and_many_records_need_knowledge():
    # m is too small by 1 / k^2, which costs a record or two of 32 in 3 classes; without knowledge it is no use.
    x, y = records(32, classes=3)
    observed = observe(network(3), x, y, classes=3)
    (gauged,) = infer(observed, classes=3, draws=2).labels
    (blind,) = infer(observed, classes=3, auxiliary="none").labels
    assert hits(gauged, y, 3) >= 30
    assert hits(blind, y, 3) < 25


def test_without_knowledge_few_records_of_many_classes_are_found():
    for seed in range(5):
        x, _ = records(4, seed=seed)
        y = torch.tensor([1, 5, 5, 8])
        (found,) = infer(observe(network(), x, y), auxiliary="none").labels
        assert found.tolist() == [1, 5, 5, 8]


def test_many_local_steps_are_followed():
    x, y = records(32, classes=3)
    observed = observe(network(3), x, y, classes=3, epochs=2, batch_size=8, momentum=0.9)
    (found,) = infer(observed, classes=3, draws=2).labels
    assert hits(found, y, 3) >= 29


def test_a_class_that_the_population_lacks_is_gauged_from_the_others():
    x, y = records(8, classes=4)
    images, labels = records(100, classes=4, seed=9)
    kept = labels != 2
    observed = observe(network(4), x, y, classes=4)
    (found,) = infer(
        observed, classes=4, population=(images[kept], labels[kept]), auxiliary="population", draws=2
    ).labels
    assert found.tolist() == y.sort().values.tolist()


def test_what_is_asked_and_what_is_refused():
    attack = harness.create("attack", "label-inference", epochs=2, batch_size=8, at="end", targets=3)
    seen = attack.observation
    assert (seen.records, seen.epochs, seen.batch_size) == (None, 2, 8)
    assert (seen.at, seen.count, seen.batch_norm) == ("end", 3, "train")
    assert (attack.knowledge, attack.needs_non_members) == ("server", False)
    with pytest.raises(PluginError, match="observed updates"):
        infer()
    observed = observe(network(), *records(3))
    with pytest.raises(PluginError, match="population"):
        infer(observed, auxiliary="population")
    observed.optimizer = {"name": "nadam", "lr": 0.1}
    with pytest.raises(NotApplicable, match="nadam"):
        infer(observed)


def test_progress_runs_to_the_end():
    calls = []
    observed = observe(network(), *records(3))
    infer(observed, observed, draws=1, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(0, 2), (1, 2), (2, 2)]
