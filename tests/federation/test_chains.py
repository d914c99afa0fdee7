"""Chains of update compressors: each encodes what the one before passes on; bytes, memory, and what cannot follow."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import harness
from harness.errors import NotApplicable, PluginError
from harness.federation.chain import check_chain
from harness.federation.outcome import Outcome
from harness.federation.wire import Wire

D, K = 1200, 120  # in two layers; what a tenth of it is
LAYOUT = {"weight": slice(0, 1160), "bias": slice(1160, 1200)}


def links(*chain):
    made = []
    for link in chain:
        name, parameters = (link, {}) if isinstance(link, str) else link
        made.append(harness.create("compressor", name, **parameters))
    return made


TOP = ("top-k", {"ratio": 0.1})
RANDOM = ("random-k", {"ratio": 0.1, "shared": True})
LOSSY = ("top-k", {"ratio": 0.1, "error_feedback": False})
SKETCH = ("count-sketch", {"ratio": 0.1})
SIGNS = ("signsgd", {"error_feedback": False})


def wire(*chain, d=D):
    module = torch.nn.Linear(29, 40)
    trainer = SimpleNamespace(device="cpu", layout=LAYOUT, module=module)
    return Wire(links(*chain), trainer, 0, Outcome())


def update(seed=0, d=D):
    return torch.randn(d, generator=torch.Generator().manual_seed(seed))


def bytes_of(*chain):
    found = wire(*chain)
    found.exchange(0, {0: update()}, {})
    return found._outcome.uplink_bytes


CODES = K // 2 + 4  # QSGD of K numbers: four bits each, one bucket
SCALE = 4  # what follows a link with error feedback is scaled


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        ((TOP,), 8 * K),
        ((TOP, "qsgd"), 4 * K + CODES + SCALE),
        ((TOP, "half-update"), 4 * K + 2 * K + SCALE),
        ((TOP, "terngrad"), 4 * K + K // 4 + 4 + SCALE),  # one scale: the layers are not known there
        ((TOP, SIGNS), 4 * K + K // 8 + 4 + SCALE),
        ((TOP, "half-update", "qsgd"), 4 * K + CODES + SCALE),
        ((LOSSY, "qsgd"), 4 * K + CODES),
        ((RANDOM,), 4 * K),
        ((RANDOM, "qsgd"), CODES + SCALE),
        ((SKETCH, "qsgd"), CODES),
        (("half-update", TOP), 8 * K),
        (("half-update", TOP, "qsgd"), 4 * K + CODES + SCALE),
        (("half-update", "qsgd"), bytes_of("qsgd")),
        ((LOSSY, ("random-k", {"ratio": 0.5, "error_feedback": False})), 4 * K + 8 * K // 2),
    ],
    ids=str,
)
def test_bytes_are_those_of_every_link_s_own_part(chain, expected):
    assert bytes_of(*chain) == expected


@pytest.mark.parametrize(("dtype", "each"), [(torch.float32, 4), (torch.float64, 8), (torch.bfloat16, 2)])
def test_numbers_count_in_the_type_in_which_they_are_sent(dtype, each):
    plain, top = wire(), wire(TOP)
    buffers = {"mean": torch.zeros(7, dtype=dtype)}
    plain.exchange(0, {0: update().to(dtype), 1: update(1).to(dtype)}, buffers)
    assert plain._outcome.uplink_bytes == plain._outcome.downlink_bytes == 2 * each * (D + 7)
    top.exchange(0, {0: update().to(dtype)}, {})
    assert (top._outcome.uplink_bytes, top._outcome.downlink_bytes) == (8 * K, each * D)


@pytest.mark.parametrize(
    ("chain", "reason"),
    [
        (("qsgd", LOSSY), "qsgd must come last: it leaves no numbers for top-k"),
        (("powersgd", "half-update"), "powersgd must come last"),
        (("terngrad", "half-update"), "terngrad must come last"),
        ((SIGNS, "qsgd"), "signsgd must come last"),
        ((LOSSY, RANDOM), "random-k keeps what it did not send .* behind top-k"),
        ((LOSSY, "signsgd"), "signsgd keeps what it did not send .* behind top-k"),
        ((SKETCH, "powersgd"), "powersgd keeps .* behind count-sketch"),
        ((TOP, "half-update", RANDOM), "random-k keeps"),
    ],
    ids=str,
)
def test_what_cannot_follow_is_refused_with_the_reason(chain, reason):
    with pytest.raises(NotApplicable, match=reason):
        check_chain(links(*chain))
    with pytest.raises(NotApplicable, match=reason):
        wire(*chain)


def test_two_memories_of_one_loss_are_refused():
    class Kept(type(links("half-update")[0])):
        """Half precision with a memory."""

        name = "kept"
        remembers = True

    with pytest.raises(NotApplicable, match="kept and top-k would both send again"):
        check_chain([Kept(), *links(TOP)])
    check_chain(links("half-update", TOP, "qsgd"))


def test_not_applicable_in_a_plan(tmp_path):
    from harness.scenario import load_text

    text = """
schema: 1
name: chains
dataset: digits
model: {mlp: {hidden: [16]}}
federation: {clients: 3, rounds: 3, local: {epochs: 1, batch_size: 64, optimizer: {sgd: {lr: 0.3}}}}
compressors:
  - none
  - top-k: {ratio: 0.1}
  - [top-k: {ratio: 0.1}, qsgd]
  - [qsgd, top-k: {ratio: 0.1}]
metrics: [accuracy, uplink]
"""
    result = harness.run(load_text(text, tmp_path / "x.yaml"), device="cpu", jobs=0, store=tmp_path / "runs")
    none, top, both, refused = result.records
    assert [r["status"] for r in (none, top, both)] == ["scored"] * 3
    assert refused["status"] == "not-applicable"
    assert "qsgd must come last" in str(refused)
    size = [r["scores"]["uplink_bytes_per_round"] for r in (none, top, both)]
    d = size[0] / 4
    k = round(0.1 * d)
    assert size[1:] == [8 * k, 4 * k + (k + 1) // 2 + 4 * -(-k // 512) + 4]


def test_the_server_decodes_from_the_last_link_to_the_first():
    """Largest coordinates in their places, each within a step of half precision; all others zero."""
    u = update()
    got = wire(LOSSY, "half-update").exchange(0, {0: u}, {})[0]
    largest = u.abs().topk(K).indices
    expected = torch.zeros(D).index_copy(0, largest, u[largest].half().float())
    assert torch.equal(got, expected)


def test_a_chain_of_one_is_its_link():
    (method,) = links(TOP)
    alone, state = wire(TOP), {}
    for round in range(3):
        u = update(round)
        context = alone._context(round, 0, 0)
        expected = method.decode(method.encode(u, state, context), context)
        assert torch.equal(alone.exchange(round, {0: u}, {})[0], expected)
        assert torch.equal(alone._state[0, 0]["residual"], state["residual"])


@pytest.mark.parametrize("last", ["qsgd", "half-update", "terngrad", SIGNS], ids=str)
@pytest.mark.parametrize("first", [TOP, RANDOM], ids=str)
def test_the_memory_is_the_difference_to_what_the_server_really_got(first, last):
    """sum of what was received + residual = sum of updates, for each client by itself."""
    chain = wire(first, last)
    received, total = torch.zeros(2, D), torch.zeros(2, D)
    for round in range(6):
        rows = {i: update(10 * round + i) for i in range(2)}
        got = chain.exchange(round, rows, {})
        received += torch.stack(list(got.values()))
        total += torch.stack(list(rows.values()))
        kept = torch.stack([chain._state[i, 0]["residual"] for i in range(2)])
        torch.testing.assert_close(received + kept, total, rtol=0, atol=2e-4)
    assert not chain._state[0, 1]  # what follows keeps nothing


def test_every_round_s_loss_is_at_most_what_was_to_be_sent():
    """A quantiser so coarse that its errors are larger than its input, beta = sqrt(120): fed back as they are they
    would grow without bound; scaled by the best factor they do not, and what is sent follows the updates.
    """
    chain = wire(TOP, ("qsgd", {"levels": 1}))
    u = update()
    sizes = []
    received = torch.zeros(D)
    for round in range(400):
        received += chain.exchange(round, {0: u}, {})[0]
        sizes.append(float(chain._state[0, 0]["residual"].norm()))
    assert max(sizes[300:]) < 1.3 * max(sizes[100:200])
    assert float((received / 400 - u).norm() / u.norm()) < 0.35


@pytest.mark.parametrize("last", ["qsgd", "half-update"])
def test_an_update_that_is_not_finite_shows_and_leaves_the_memory(last):
    chain = wire(TOP, last)
    chain.exchange(0, {0: update(), 1: update(1)}, {})
    before = [chain._state[i, 0]["residual"].clone() for i in range(2)]
    bad = update(2)
    bad[7] = torch.nan
    got = chain.exchange(1, {0: bad, 1: update(3)}, {})
    assert not got[0].isfinite().all()
    assert got[1].isfinite().all()
    assert torch.equal(chain._state[0, 0]["residual"], before[0])
    assert not torch.equal(chain._state[1, 0]["residual"], before[1])


def test_a_payload_in_another_form_goes_as_it_is():
    """random-k sends an update that is not finite whole, which no following link touches."""
    chain = wire(("random-k", {"ratio": 0.1}), "qsgd")
    bad = update()
    bad[3] = torch.inf
    got = chain.exchange(0, {0: bad, 1: update(1)}, {})
    assert torch.equal(got[0], bad)
    assert chain._outcome.uplink_bytes == 4 * D + 4 * K + CODES + SCALE


def test_a_link_that_changes_how_many_there_are_is_named():
    class Longer(type(links("half-update")[0])):
        """One number too many."""

        name = "longer"

        def decode(self, payload, context):
            return torch.cat([super().decode(payload, context), torch.zeros(1)])

    chain = wire(LOSSY)
    chain._compressors = [*links(LOSSY), Longer()]
    with pytest.raises(PluginError, match=r"longer\.decode returned \(121,\), not \(120,\)"):
        chain.exchange(0, {0: update()}, {})
