import copy
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional

import harness
from harness.api import Defence, Local, NotApplicable, PluginError, Sampling, StackContext
from harness_plugins.defences.soteria import scores

KEY = torch.tensor(0)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 20), nn.Softplus(), nn.Linear(20, 5)
    )


def plain(params, batch, key, module=None):
    loss = functional.cross_entropy(torch.func.functional_call(module, params, (batch[0],)), batch[1])
    return dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))


def hooked(module, ratio, inner=None):
    local = Local(
        loss=None,
        gradient=inner or (lambda params, batch, key: plain(params, batch, key, module)),
        client=0,
        batch_size=4,
        sampling=Sampling(),
        prepared={},
        module=module,
        generator=torch.Generator(),
    )
    return harness.create("defence", "soteria", ratio=ratio).gradient(local)


def batch(n=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((n, 1, 6, 6), generator=generator), torch.randint(5, (n,), generator=generator)


def by_jacobian(module, images):
    """The score from whole Jacobians, one record at a time."""
    body = module[:-1]
    rows = []
    for image in images:
        jacobian = torch.autograd.functional.jacobian(lambda x: body(x[None])[0], image)
        rows.append(body(image[None])[0].detach().abs() / jacobian.flatten(1).norm(dim=1))
    return torch.stack(rows).mean(0)


def test_the_score_is_size_over_slope_averaged_over_records():
    module, (x, _) = network(), batch()
    found = scores(module, "5", dict(module.named_parameters()), x)
    torch.testing.assert_close(found, by_jacobian(module, x))


def test_a_scaled_linear_feature_scores_by_hand():
    # r = (w1 . x, w2 . x, 0): |w . x| / |w| for the first two, 0 for the dead one.
    module = nn.Sequential(nn.Flatten(), nn.Linear(2, 3, bias=False), nn.Linear(3, 2))
    with torch.no_grad():
        module[1].weight.copy_(torch.tensor([[3.0, 4.0], [-1.0, 0.0], [0.0, 0.0]]))
    x = torch.tensor([[[[1.0, 0.5]]], [[[0.2, 0.6]]]])
    found = scores(module, "2", dict(module.named_parameters()), x)
    torch.testing.assert_close(found, torch.tensor([(5 + 3) / 5 / 2, (1 + 0.2) / 2, 0.0]))


@pytest.mark.parametrize(("ratio", "hidden"), [(0.1, 2), (0.5, 10), (1.0, 20), (0.02, 0), (0.0, 0)])
def test_exactly_the_columns_with_the_largest_scores_are_zeroed(ratio, hidden):
    module, given = network(), batch()
    params = dict(module.named_parameters())
    before = plain(params, given, KEY, module)
    after = hooked(module, ratio)(params, given, KEY)
    zeroed = set(by_jacobian(module, given[0]).argsort(descending=True)[:hidden].tolist())
    assert set(after) == set(before)
    for name in before:
        if name != "5.weight":
            assert torch.equal(after[name], before[name]), name
    for column in range(20):
        expected = before["5.weight"][:, column]
        assert expected.abs().max() > 0
        if column in zeroed:
            expected = torch.zeros_like(expected)
        assert torch.equal(after["5.weight"][:, column], expected), column


def test_an_overflown_gradient_is_hidden_too():
    module = network()

    def overflown(params, given, key):
        return {name: torch.full_like(p, torch.inf) for name, p in params.items()}

    after = hooked(module, 0.5, overflown)(dict(module.named_parameters()), batch(), KEY)
    assert (after["5.weight"] == 0).all(0).sum() == 10
    assert after["5.weight"].isinf().all(0).sum() == 10


def test_module_and_batch_are_left_alone():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 5)
    ).train()
    before = copy.deepcopy(module.state_dict())
    x, y = batch()
    unchanged = x.clone()
    defended = hooked(module, 0.5, lambda params, given, key: {n: p.detach() for n, p in params.items()})
    defended(dict(module.named_parameters()), (x, y), KEY)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(x, unchanged)
    assert not x.requires_grad
    assert all(p.grad is None for p in module.parameters())
    assert not module[-1]._forward_pre_hooks


def test_the_scores_follow_the_parameters_given_not_the_modules_own():
    module, other, (x, y) = network(), network(seed=1), batch()
    params = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters()}
    after = hooked(module, 0.25)(params, (x, y), KEY)["5.weight"]
    expected = set(by_jacobian(other, x).argsort(descending=True)[:5].tolist())
    assert set((after == 0).all(0).nonzero().flatten().tolist()) == expected
    assert expected != set(by_jacobian(module, x).argsort(descending=True)[:5].tolist())


def test_an_empty_batch_passes():
    module = network()
    inner = {name: torch.ones_like(p) for name, p in module.named_parameters()}
    empty = (torch.empty(0, 1, 6, 6), torch.empty(0, dtype=torch.int64))
    after = hooked(module, 0.5, lambda *_: inner)(dict(module.named_parameters()), empty, KEY)
    assert after is inner


def test_every_model_of_the_catalogue_has_the_layer():
    for name, features in (("small-cnn", 64), ("lenet5", 84), ("resnet9", 64), ("logistic", 256)):
        options = {"width": 4} if name == "resnet9" else {}
        torch.manual_seed(0)
        module = harness.create("model", name, **options).build((1, 16, 16), 5)
        x, y = torch.rand(2, 1, 16, 16), torch.tensor([0, 1])
        before = plain(dict(module.named_parameters()), (x, y), KEY, module)
        after = hooked(module, 0.25)(dict(module.named_parameters()), (x, y), KEY)
        changed = [n for n in before if not torch.equal(before[n], after[n])]
        assert len(changed) == 1
        assert after[changed[0]].shape == (5, features)


class Accounted(Defence):
    """Stands for a mechanism with a guarantee for each record."""

    name = "accounted"
    protects: ClassVar[str | None] = "record"


class ForClients(Defence):
    """Stands for a mechanism with a guarantee for each client, whatever its records do."""

    name = "for-clients"
    protects: ClassVar[str | None] = "client"

    def guarantee(self, history):
        raise NotImplementedError


def test_where_it_cannot_work():
    soteria = harness.create("defence", "soteria")
    meta = network().to("meta")
    soteria.check(StackContext((soteria,), 0, meta))
    with pytest.raises(NotApplicable, match="no linear layer"):
        soteria.check(StackContext((soteria,), 0, nn.Sequential(nn.Conv2d(1, 5, 6), nn.Flatten())))
    with pytest.raises(NotApplicable, match="accounted does not account"):
        soteria.check(StackContext((Accounted(), soteria), 1, meta))
    private = harness.create("defence", "dp-sgd", noise_multiplier=1.0)
    with pytest.raises(NotApplicable, match="dp-sgd does not account"):
        soteria.check(StackContext((private, soteria), 1, meta))
    soteria.check(StackContext((ForClients(), soteria), 1, meta))
    with pytest.raises(PluginError, match="vectorised"):
        hooked(None, 0.1, lambda *_: {})
    assert soteria.guarantee([]) is None


def test_the_ratio_is_a_share():
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(PluginError):
            harness.create("defence", "soteria", ratio=bad)
