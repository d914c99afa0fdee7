"""Compressed updates: what is sent, what comes out, what is kept, and how many bytes it takes."""

from __future__ import annotations

import pytest
import torch

import harness
from harness.api import PluginError, UpdateCompressionContext
from harness_plugins.compressors._updates import pack, unpack, width_for

ALL = [
    ("qsgd", {}), ("qsgd", {"levels": 1}), ("qsgd", {"levels": 127, "bucket": 64}), ("terngrad", {}), ("signsgd", {}),
    ("signsgd", {"error_feedback": False, "scaled": False}), ("half-update", {}),
    ("half-update", {"dtype": "bfloat16"}),
    ("random-k", {"ratio": 0.2}), ("random-k", {"ratio": 0.2, "shared": True, "error_feedback": False}),
]  # fmt: skip
UNBIASED = [("qsgd", {"levels": 3, "bucket": 16}), ("terngrad", {"clip": None}),
            ("random-k", {"ratio": 0.25, "error_feedback": False}),
            ("random-k", {"ratio": 0.25, "error_feedback": False, "shared": True})]  # fmt: skip
FEEDBACK = [("signsgd", {}), ("random-k", {"ratio": 0.1}), ("random-k", {"ratio": 0.1, "shared": True}),
            ("top-k", {"ratio": 0.1})]  # fmt: skip


def create(name, **parameters):
    return harness.create("compressor", name, **parameters)


def context(seed=0, client=0, layout=None):
    own = torch.Generator().manual_seed(seed * 1000 + client)
    shared = torch.Generator().manual_seed(seed)
    return UpdateCompressionContext(seed, client, own, shared, layout or {})


def update(d=100, seed=0, dtype=torch.float32):
    return torch.randn(d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def sent(method, u, state=None, seed=0, layout=None):
    state = {} if state is None else state
    return method.decode(method.encode(u, state, context(seed, layout=layout)), context(seed, layout=layout))


@pytest.mark.parametrize(("name", "parameters"), ALL, ids=str)
class TestEvery:
    @pytest.mark.parametrize("d", [1, 2, 7, 100, 1031])
    def test_shape_input_and_repetition(self, name, parameters, d):
        method, u = create(name, **parameters), update(d)
        before = u.clone()
        decoded = sent(method, u)
        assert decoded.shape == (d,)
        assert decoded.dtype == torch.float32
        assert decoded.isfinite().all()
        assert torch.equal(u, before)
        assert torch.equal(sent(method, u), decoded)

    def test_zeros_stay_zero(self, name, parameters):
        decoded = sent(create(name, **parameters), torch.zeros(50))
        assert not decoded.any() or name == "signsgd"

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_what_is_not_finite_reaches_the_server(self, name, parameters, bad):
        u, state = update(40), {}
        method = create(name, **{**parameters, **({"ratio": 1.0} if "ratio" in parameters else {})})
        sent(method, u, state)
        kept = {k: v.clone() for k, v in state.items()}
        u[3] = bad
        assert not sent(method, u, state).isfinite().all()
        assert all(torch.equal(state[k], v) for k, v in kept.items())

    def test_bad_updates(self, name, parameters):
        for bad in (torch.zeros(2, 2), torch.zeros(0), torch.zeros(3, dtype=torch.int64)):
            with pytest.raises(PluginError, match="needs an update"):
                create(name, **parameters).encode(bad, {}, context())

    def test_documented(self, name, parameters):
        plugin = harness.plugins("compressor")[name]
        assert "Cost: O(d)" in plugin.__doc__
        assert plugin.reference.url


REGISTERED = sorted(n for n, c in harness.plugins("compressor").items() if c.acts_on == "update")


@pytest.mark.parametrize("together", [False, True], ids=["alone", "in a round"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("name", REGISTERED)
def test_one_bad_coordinate_of_many_shows_at_the_server(name, bad, together):
    """Whatever share of the coordinates is sent: the server drops such an update, and has to see it for that."""
    method, good, wrong = create(name), update(1000), update(1000, seed=1)
    wrong[700] = bad
    if together:
        made = method.exchange([good, wrong], [{}, {}], {}, [context, lambda: context(client=1)])
        sound, decoded = made.updates
        assert sound.isfinite().all()
    else:
        decoded = sent(method, wrong)
    assert decoded.shape == (1000,)
    assert not decoded.isfinite().all()


@pytest.mark.parametrize(("name", "parameters"), UNBIASED, ids=str)
def test_the_mean_over_draws_is_the_update(name, parameters):
    method, u = create(name, **parameters), update(48)
    draws = torch.stack([sent(method, u, seed=s) for s in range(3000)])
    error = (draws.mean(0) - u).abs()
    assert (error < 5 * draws.std(0) / 3000**0.5 + 1e-6).all()


@pytest.mark.parametrize(("name", "parameters"), FEEDBACK, ids=str)
def test_what_is_not_sent_is_kept(name, parameters):
    method, state, total = create(name, **parameters), {}, torch.zeros(200, dtype=torch.float64)
    received = torch.zeros(200, dtype=torch.float64)
    for step in range(6):
        u = update(200, seed=step, dtype=torch.float64)
        total += u
        received += sent(method, u, state, seed=step).double()
        torch.testing.assert_close(received + state["residual"], total, rtol=0, atol=1e-6)
    with pytest.raises(PluginError, match="the residual 200"):
        method.encode(update(10), state, context())


@pytest.mark.parametrize(("name", "parameters"), FEEDBACK, ids=str)
def test_what_does_not_fit_the_wire_leaves_the_residual(name, parameters):
    """A float64 update of 1e200 arrives as infinity and is dropped: the client's next one is not to be."""
    method, state, u = create(name, **parameters), {}, update(50, dtype=torch.float64)
    sent(method, u, state)
    kept = state["residual"].clone()
    assert not sent(method, 1e200 * u, state).isfinite().all()
    assert torch.equal(state["residual"], kept)
    assert sent(method, u, state, seed=1).isfinite().all()


@pytest.mark.parametrize(("name", "parameters"), FEEDBACK, ids=str)
def test_contraction(name, parameters):
    u = update(500, seed=9)
    left = float((u - sent(create(name, **parameters), u)).square().sum())
    assert left < float(u.square().sum())


def test_qsgd_takes_a_bucket_larger_than_any_memory():
    u, exact = update(100), create("qsgd", bucket=100)
    for bucket in (512, 10**12):  # one norm for the whole update
        assert torch.equal(sent(create("qsgd", bucket=bucket), u), sent(exact, u))


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("d", [1, 7, 8, 9, 100])
def test_bits_are_packed_and_come_back(width, d):
    values = torch.randint(0, 2**width, (d,), generator=torch.Generator().manual_seed(d))
    packed = pack(values, width)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-d * width // 8)
    assert torch.equal(unpack(packed, width, d).long(), values)
    assert [width_for(n) for n in (2, 3, 4, 15, 16, 17, 255)] == [1, 2, 2, 4, 4, 8, 8]


@pytest.mark.parametrize(
    ("name", "parameters", "d", "expected"),
    [
        ("qsgd", {"levels": 7, "bucket": 512}, 1024, 512 + 8),
        ("qsgd", {"levels": 1, "bucket": 512}, 1024, 256 + 8),
        ("terngrad", {}, 1024, 256 + 4),
        ("signsgd", {}, 1024, 128 + 4),
        ("signsgd", {"scaled": False, "error_feedback": False}, 1024, 128),
        ("half-update", {}, 1024, 2048),
        ("random-k", {"ratio": 0.25}, 1024, 256 * 8),
        ("random-k", {"ratio": 0.25, "shared": True}, 1024, 256 * 4),
    ],
)
def test_bytes_on_the_wire(name, parameters, d, expected):
    assert create(name, **parameters).encode(update(d), {}, context()).nbytes == expected


def test_qsgd_by_its_formula():
    u = torch.tensor([3.0, -4.0, 0.0, 0.001])
    draws = torch.stack([sent(create("qsgd", levels=5, bucket=4), u, seed=s) for s in range(200)])
    assert set((draws * 1).round(decimals=4)[:, 0].tolist()) == {3.0}  # 5 * 3/5 is whole: nothing is random
    assert set(draws[:, 1].tolist()) == {-4.0}
    assert not draws[:, 2].any()
    assert set(draws[:, 3].tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("size", [1e-30, 1e20, 1e37])
def test_qsgd_takes_updates_whose_squares_float32_does_not_hold(size):
    u = torch.tensor([3.0, -4.0, 0.0, 0.0])
    decoded = sent(create("qsgd", levels=5, bucket=4), size * u) / size
    torch.testing.assert_close(decoded, u, rtol=1e-5, atol=0)


def test_qsgd_sends_what_has_no_norm_in_float32_as_it_is():
    u = torch.full((8,), 3e38)
    assert torch.equal(sent(create("qsgd"), u), u)


def test_terngrad_takes_the_largest_of_each_layer():
    layout = {"a": slice(0, 3), "b": slice(3, 6)}
    u = torch.tensor([0.5, -2.0, 0.0, 10.0, 1.0, -10.0])
    decoded = sent(create("terngrad"), u, layout=layout)
    assert decoded[1] == -2
    assert decoded[3] == 10
    assert decoded[5] == -10
    assert decoded[0] in (0, 2)
    assert decoded[4] in (0, 10)
    clipped = sent(create("terngrad", clip=0.5), u, layout=layout)
    assert float(clipped.abs().max()) == pytest.approx(0.5 * float(u[3:].std(correction=0)))
    tail = torch.cat([torch.ones(99), torch.tensor([50.0])])  # the paper's 2.5 deviations, by default
    limit = 2.5 * float(tail.std(correction=0))
    assert float(sent(create("terngrad"), tail).abs().max()) == pytest.approx(limit)


def test_terngrad_sends_layers_whose_values_are_all_equal():
    layout = {"slope": slice(0, 1), "bias": slice(1, 4), "weight": slice(4, 8)}
    u = torch.tensor([0.7, 0.3, 0.3, 0.3, 1.0, -2.0, 0.5, 0.0])
    assert sent(create("terngrad"), u, layout=layout)[:4].tolist() == u[:4].tolist()


def test_sign_sgd_by_its_formula():
    u = torch.tensor([1.0, -3.0, 0.0, 2.0])
    assert sent(create("signsgd"), u).tolist() == [1.5, -1.5, 1.5, 1.5]
    assert sent(create("signsgd", scaled=False, error_feedback=False), u).tolist() == [1, -1, 1, 1]


@pytest.mark.parametrize("size", [1e-37, 1e37])
def test_sign_sgd_takes_updates_whose_sum_float32_does_not_hold(size):
    u = size * torch.tensor([1.0, -3.0] * 50)
    assert sent(create("signsgd"), u).double().tolist() == pytest.approx([2 * size, -2 * size] * 50)


def test_signs_alone_take_no_error_feedback():
    with pytest.raises(PluginError, match="error_feedback: false"):
        create("signsgd", scaled=False)
    # What would be kept is of size 1: the next signs would be the opposite ones, whatever the update.
    u = torch.tensor([0.01, -0.03])
    assert (sent(create("signsgd", scaled=False, error_feedback=False), u) - u).abs().min() > 0.9


def test_half_precision_refuses_what_does_not_fit():
    with pytest.raises(PluginError, match="does not fit float16"):
        create("half-update").encode(torch.tensor([1e6]), {}, context())
    assert float(sent(create("half-update", dtype="bfloat16"), torch.tensor([1e6]))) == pytest.approx(
        1e6, rel=0.01
    )


@pytest.mark.parametrize("name", ["top-k", "random-k"])
@pytest.mark.parametrize(("d", "ratio", "k"), [(10, 0.26, 3), (10, 0.24, 2), (10, 0.04, 1), (10, 1.0, 10)])
def test_k_is_the_nearest_whole_number_and_one_at_least(name, d, ratio, k):
    payload = create(name, ratio=ratio).encode(update(d), {}, context())
    assert len(payload.tensors["values"]) == len(set(payload.tensors["indices"].tolist())) == k


def test_shared_coordinates_are_the_same_for_all_clients():
    method = create("random-k", ratio=0.1, shared=True, error_feedback=False)
    ones = torch.ones(100)
    masks = [method.decode(method.encode(ones, {}, context(3, c)), context(3, c)) != 0 for c in range(4)]
    assert all(torch.equal(masks[0], m) for m in masks)
    other = method.decode(method.encode(ones, {}, context(4)), context(4)) != 0
    assert not torch.equal(masks[0], other)
    own = create("random-k", ratio=0.1, error_feedback=False)
    assert not torch.equal(*(own.encode(ones, {}, context(3, c)).tensors["indices"] for c in range(2)))


def test_majority_vote():
    rows = torch.tensor([[1.0, -9.0, 0.0, 2.0], [0.1, 0.1, 0.0, -2.0], [5.0, 0.1, 1.0, 0.0]])
    rule = harness.create("aggregator", "majority-vote", step=0.5)
    assert rule(rows).tolist() == [0.5, 0.5, 0.5, 0.0]


def test_through_the_engine_bytes_fall_and_the_guarantee_holds(tmp_path):
    from harness.scenario import load_text

    text = """
schema: 1
name: wire
dataset: digits
model: {mlp: {hidden: [16]}}
federation: {clients: 3, rounds: 2, local: {epochs: 1, batch_size: 64, optimizer: {sgd: {lr: 0.2}}}}
defences: [none, dp-sgd: {epsilon: 8}]
compressors: [none, qsgd, terngrad, signsgd, random-k: {ratio: 0.1}, half-update, count-sketch, powersgd]
aggregators: [mean, majority-vote: {step: 0.02}]
metrics: [accuracy, uplink, epsilon]
"""
    result = harness.run(load_text(text, tmp_path / "t.yaml"), device="cpu", jobs=0, store=tmp_path / "runs")
    assert result.failed == 0, [r["error"] for r in result.records if r["error"]]
    plain = {}
    for record in result.records:
        cell, scores = record["cell"], record["scores"]
        if cell["compressor"] == "none":
            plain[cell["defence"], cell["aggregator"]] = scores["uplink_bytes_per_round"]
        else:
            whole = plain[cell["defence"], cell["aggregator"]]
            assert scores["uplink_bytes_per_round"] < 0.6 * whole
            answered = cell["compressor"] == "powersgd"  # whose server sends back what the clients agreed on
            assert (scores["downlink_bytes_per_round"] > whole) is answered
        if cell["defence"] != "none":  # compression after the noise is post-processing
            assert record["guarantee"]["holds"]
            assert record["guarantee"]["epsilon"] <= 8
