"""PowerSGD and count sketches: the papers' algorithms, bytes, and what is kept for later."""

from __future__ import annotations

import itertools
import statistics
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import harness
from harness.api import PluginError, UpdateCompressionContext
from harness.federation.outcome import Outcome
from harness.federation.wire import Wire

SHAPES = {"a.weight": (12, 5, 2), "a.bias": (12,), "b.weight": (9, 12), "small.weight": (3, 2)}
LAYOUT, D = {}, 0
for _name, _shape in SHAPES.items():
    _size = torch.Size(_shape).numel()
    LAYOUT[_name] = slice(D, D + _size)
    D += _size


def context(client=0, round=0):
    own = torch.Generator().manual_seed(1000 * round + client)
    return UpdateCompressionContext(round, client, own, torch.Generator().manual_seed(round), LAYOUT, SHAPES)


def create(name, **parameters):
    return harness.create("compressor", name, **parameters)


def updates(n=4, seed=0, rank=None):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, D, generator=generator)
    if rank is not None:
        for name, part in LAYOUT.items():
            if len(SHAPES[name]) > 1:
                rows_of, columns = SHAPES[name][0], (part.stop - part.start) // SHAPES[name][0]
                left = torch.randn(rows_of, rank, generator=generator)
                for row in rows:
                    row[part] = (left @ torch.randn(rank, columns, generator=generator)).flatten()
    return list(rows)


def exchange(method, rows, states=None, server=None, round=0):
    states = [{} for _ in rows] if states is None else states
    contexts = [partial(context, i, round) for i in range(len(rows))]
    made = method.exchange(rows, states, {} if server is None else server, contexts)
    sent = [a + b for a, b in zip(made.before, made.sent, strict=True)]
    return made.updates, sent, made.answered


def test_power_sgd_is_the_paper_s_all_reduce():
    """Algorithm 1 with its means over workers, and algorithm 2's memory, over three rounds in float64."""
    method, states, server = create("powersgd", rank=2), [{} for _ in range(3)], {}
    memory = [torch.zeros(D) for _ in range(3)]
    q = {}
    for round in range(3):
        rows = updates(3, seed=round)
        received, _, _ = exchange(method, rows, states, server, round)
        deltas = [u + e for u, e in zip(rows, memory, strict=True)]
        mean = torch.zeros(D)
        own = [d.clone() for d in deltas]
        shared = torch.Generator().manual_seed(round)
        for name, part in LAYOUT.items():
            matrices = [d[part].view(SHAPES[name][0], -1).double() for d in deltas]
            n, m = matrices[0].shape
            if len(SHAPES[name]) < 2 or 2 * (n + m) >= n * m:
                mean[part] = torch.stack([d[part] for d in deltas]).mean(0)
                continue
            if name not in q:
                q[name] = torch.randn(m, 2, generator=shared).double()
            p = torch.linalg.qr(torch.stack([a @ q[name] for a in matrices]).mean(0)).Q
            each = [a.T @ p for a in matrices]
            q[name] = torch.stack(each).mean(0)
            mean[part] = (p @ q[name].T).flatten().float()
            for value, right in zip(own, each, strict=True):
                value[part] = (p @ right.T).flatten().float()
        torch.testing.assert_close(torch.stack(received).mean(0), mean, rtol=1e-4, atol=1e-4)
        memory = [d - o for d, o in zip(deltas, own, strict=True)]
        for state, kept in zip(states, memory, strict=True):
            torch.testing.assert_close(state["residual"], kept, rtol=1e-4, atol=1e-4)


def test_power_sgd_loses_nothing_of_updates_of_its_rank():
    rows = updates(3, rank=2)  # all in one column space, so the agreed P spans it
    received, sent, answered = exchange(create("powersgd", rank=2), rows)
    torch.testing.assert_close(torch.stack(received), torch.stack(rows), rtol=1e-3, atol=1e-3)
    thin = 2 * (12 + 10) + 2 * (9 + 12)
    assert sent == [4 * (thin + 12 + 6)] * 3  # the bias and the small layer go as they are
    assert answered == [4 * thin] * 3


def test_power_sgd_conserves_what_it_does_not_send_and_drops_what_is_not_finite():
    method, states = create("powersgd", rank=1), [{} for _ in range(3)]
    rows = updates(3)
    received, _, _ = exchange(method, rows, states)
    for row, got, state in zip(rows, received, states, strict=True):
        torch.testing.assert_close(got + state["residual"], row)
    bad = [rows[0].clone(), *rows[1:]]
    bad[0][3] = float("nan")
    received, sent, _ = exchange(create("powersgd", rank=1, error_feedback=False), bad)
    assert received[0].isnan().any()
    assert sent[0] == 4 * D
    assert all(r.isfinite().all() for r in received[1:])
    alone, _, _ = exchange(create("powersgd", rank=1, error_feedback=False), bad[1:])
    torch.testing.assert_close(received[1:], alone)


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e12, 1e25])
def test_power_sgd_does_not_depend_on_the_updates_length(scale):
    """Q has the length of an update, so that M Q has its square, which float32 does not hold."""
    method, states, small = create("powersgd", rank=2), [[{} for _ in range(3)] for _ in "ab"], [{}, {}]
    for round in range(3):
        rows = updates(3, seed=round)
        plain, _, _ = exchange(method, rows, states[0], small[0], round)
        scaled, _, _ = exchange(method, [scale * row for row in rows], states[1], small[1], round)
        torch.testing.assert_close(torch.stack(scaled) / scale, torch.stack(plain), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("long", [1e25, 3e38])
def test_power_sgd_survives_one_client_that_has_diverged(long):
    """Its update spoilt everybody's for good: through Q at the server, and the clients' own residuals."""
    method, states, server = create("powersgd", rank=2), [{} for _ in range(3)], {}
    exchange(method, updates(3), states, server)
    wild = updates(3, seed=1)
    wild[0] = long * wild[0].sign()
    received, _, _ = exchange(method, wild, states, server, 1)
    assert all(r.isfinite().all() for r in received)
    for round in range(2, 4):
        received, _, _ = exchange(method, updates(2, seed=round), states[1:], server, round)
        assert all(r.isfinite().all() for r in received)
    assert all(state["residual"].isfinite().all() for state in states)


def test_power_sgd_of_one_client_is_its_encoding():
    method, rows = create("powersgd", rank=2), updates(1)
    together, sent, _ = exchange(method, rows)
    payload = method.encode(rows[0], {}, context())
    torch.testing.assert_close(method.decode(payload, context()), together[0])
    assert payload.nbytes == sent[0]


@pytest.mark.parametrize("feedback", [True, False])
def test_power_sgd_alone_remembers_as_in_a_round_of_one(feedback):
    method, server = create("powersgd", rank=2, error_feedback=feedback), {}
    together, alone = [{}], {}
    for round in range(3):
        rows = updates(1, seed=round)
        (expected,), _, _ = exchange(method, rows, together, server, round)
        payload = method.encode(rows[0], alone, context(round=round))
        torch.testing.assert_close(method.decode(payload, context()), expected, rtol=1e-4, atol=1e-4)
        assert ("residual" in alone) == ("residual" in together[0]) == feedback
        if feedback:
            torch.testing.assert_close(alone["residual"], together[0]["residual"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("together", [False, True], ids=["alone", "in a round"])
def test_power_sgd_keeps_nothing_of_what_it_sends_as_it_is(together):
    """Algorithm 2's e is what was not sent: an update too long for P carries the last e, and leaves none."""
    method, rows, state, server = create("powersgd", rank=2), updates(2), {}, {}

    def send(row, round):
        if not together:
            return method.decode(method.encode(row, state, context(round=round)), context())
        return exchange(method, [row, rows[1]], [state, {}], server, round)[0][0]

    send(rows[0], 0)
    before = state["residual"].clone()
    assert before.norm() > 1
    long = torch.full((D,), 1e38)  # it fits float32, and its length does not
    torch.testing.assert_close(send(long, 1), long + before)
    assert not state["residual"].any()
    send(rows[0], 2)
    kept = state["residual"].clone()
    spoilt = rows[0].clone()
    spoilt[0] = torch.inf
    assert not send(spoilt, 3).isfinite().all()
    assert torch.equal(state["residual"], kept)  # nothing of it has arrived


def test_power_sgd_sends_updates_as_they_are_whose_sum_does_not_fit_float32():
    method, server = create("powersgd", rank=2), {}
    rows = [torch.full((D,), 2e38 / D**0.5)] * 3  # each is 2e38 long
    received, sent, _ = exchange(method, rows, server=server)
    assert all(torch.equal(got, row) for got, row in zip(received, rows, strict=True))
    assert sent == [4 * D] * 3
    assert server == {}


def test_power_sgd_sends_a_layer_as_it_is_where_its_rank_saves_nothing():
    d, row = 16, updates(1)[0][:16]
    for rank, exact in ((1, False), (2, True)):  # r (n + m) = 8 and 16 of 16 numbers
        given = UpdateCompressionContext(
            0, 0, torch.Generator(), torch.Generator().manual_seed(0), {"w": slice(0, d)}, {"w": (4, 4)}
        )
        method, state = create("powersgd", rank=rank), {}
        assert torch.equal(method.decode(method.encode(row, state, given), given), row) is exact
        made = method.exchange([row], [{}], {}, [lambda given=given: given])
        assert torch.equal(made.updates[0], row) is exact


def counted(*chain):
    """Bytes up and down of one client of three, in a round of this chain."""
    outcome, module = Outcome(), torch.nn.Linear(40, 30, bias=False)
    trainer = SimpleNamespace(device="cpu", layout={"weight": slice(0, 1200)}, module=module)
    wire = Wire([create(name, **parameters) for name, parameters in chain], trainer, 0, outcome)
    generator = torch.Generator().manual_seed(0)
    wire.exchange(0, {i: torch.randn(1200, generator=generator) for i in range(3)}, {})
    return outcome.uplink_bytes / 3, outcome.downlink_bytes / 3


def test_what_is_sent_in_the_middle_of_a_round_counts_wherever_it_stands():
    n, m, d, r = 30, 40, 1200, 2
    power, half = ("powersgd", {"rank": r}), ("half-update", {})
    both_ways = 4 * d + 4 * r * (n + m)  # the model, P and Q
    assert counted(power) == (4 * r * (n + m), both_ways)
    assert counted(half, power) == (4 * r * (n + m), both_ways)
    assert counted() == (4 * d, 4 * d)


@pytest.mark.parametrize("rows", [3, 5])
def test_a_sketch_finds_what_is_large(rows):
    method = create("count-sketch", ratio=0.5, rows=rows, keep=4 / 4000)
    generator = torch.Generator().manual_seed(0)
    update = 0.01 * torch.randn(4000, generator=generator)
    large = torch.tensor([7, 100, 2000, 3999])
    update[large] = torch.tensor([5.0, -4.0, 3.0, 6.0])
    payload = method.encode(update, {}, context())
    got = method.decode(payload, context())
    assert set(got.nonzero().flatten().tolist()) == set(large.tolist())
    torch.testing.assert_close(got[large], update[large], rtol=0.05, atol=0.1)
    assert payload.nbytes == 4 * rows * round(0.5 * 4000 / rows)


@pytest.mark.parametrize(("rows", "keep"), [(1, 1.0), (3, 1.0), (4, 0.3), (5, 0.027)])
def test_a_sketch_is_the_papers(rows, keep):
    """Cell by cell: the median over rows of s_j(i) times cell h_j(i), and the k estimates of largest magnitude."""
    method, update = create("count-sketch", ratio=0.3, rows=rows, keep=keep), updates(1)[0][:100]
    width, shared = round(0.3 * 100 / rows), torch.Generator().manual_seed(7)
    given = UpdateCompressionContext(7, 0, torch.Generator(), torch.Generator().manual_seed(7))
    payload = method.encode(update, {}, given)
    given.shared.manual_seed(7)
    got = method.decode(payload, given)
    cells = torch.randint(width, (rows, 100), generator=shared)
    signs = torch.randint(2, (rows, 100), generator=shared) * 2 - 1
    table = [[0.0] * width for _ in range(rows)]
    for j, i in itertools.product(range(rows), range(100)):
        table[j][cells[j, i]] += float(signs[j, i]) * float(update[i])
    torch.testing.assert_close(payload.tensors["table"], torch.tensor(table), rtol=1e-5, atol=1e-5)
    expected = torch.tensor(
        [
            statistics.median(float(signs[j, i]) * table[j][cells[j, i]] for j in range(rows))
            for i in range(100)
        ]
    )
    k = round(keep * 100)
    left_out = expected.abs().argsort(descending=True)[k:]
    assert int((got != 0).sum()) == min(k, int((expected != 0).sum()))
    expected[left_out] = 0
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_sketch_is_linear_and_its_estimates_are_unbiased():
    method = create("count-sketch", ratio=0.2)
    a, b = updates(2)
    tables = [method.encode(u, {}, context()).tensors["table"] for u in (a, b, a + b)]
    torch.testing.assert_close(tables[0] + tables[1], tables[2], rtol=1e-4, atol=1e-4)
    trials = [method.decode(method.encode(a, {}, context(round=r)), context(round=r)) for r in range(3000)]
    mean, spread = torch.stack(trials).mean(0), torch.stack(trials).std(0)
    assert ((mean - a).abs() < 4.5 * spread / 3000**0.5).all()


def test_a_count_sketch_of_very_many_rows_is_refused():
    """All rows' hashes of all coordinates are in memory at once."""
    with pytest.raises(PluginError, match="rows must be at most 99, not 100"):
        create("count-sketch", rows=100)


def test_federations_learn_through_them_and_their_bytes_are_counted(tmp_path):
    from harness.scenario import load_text

    text = """
schema: 1
name: wires
dataset: digits
model: {mlp: {hidden: [32]}}
federation: {clients: 4, rounds: 8, local: {epochs: 1, batch_size: 32, optimizer: {sgd: {lr: 0.4}}}}
compressors: [none, powersgd: {rank: 4}, count-sketch: {ratio: 0.4}]
aggregators: [mean, trimmed-mean]
threats: [{name: none}, {name: b, malicious: 0.25, attacks: [sign-flip]}]
metrics: [accuracy, uplink]
"""
    result = harness.run(load_text(text, tmp_path / "x.yaml"), device="cpu", jobs=0, store=tmp_path / "runs")
    assert all(r["status"] == "scored" for r in result.records)
    by = {
        (r["cell"]["aggregator"], r["cell"]["compressor"], r["cell"]["threat"]): r["scores"]
        for r in result.records
    }
    compressed = sorted({c for _, c, _ in by} - {"none"})
    assert [c.split("(")[0] for c in compressed] == ["count-sketch", "powersgd"]
    for rule, name in itertools.product(("mean", "trimmed-mean"), compressed):
        plain, small = by[rule, "none", "none"], by[rule, name, "none"]
        assert small["uplink_bytes_per_round"] < 0.5 * plain["uplink_bytes_per_round"]
        assert small["accuracy"] > plain["accuracy"] - 0.25 > 0.4
