"""Local training and rounds: one client is plain PyTorch; what is dropped, averaged and counted."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from harness.api import Field
from harness.contracts.aggregator import Aggregator, PreAggregator
from harness.contracts.attack import ByzantineAttack
from harness.contracts.compressor import Payload, UpdateCompressor
from harness.contracts.defence import Defence, Sampling
from harness.errors import PluginError
from harness.federation.batches import batches
from harness.federation.local import Client, LocalTrainer
from harness.federation.rounds import Federation, Rules
from harness.federation.together import Run, run_together
from harness.random import torch_generator
from harness.registry import registry
from harness.scenario import SGD, Adam, Constant, FedAvg, LocalTraining, NAdam


class Mean(Aggregator):
    """Weighted mean."""

    name = "test-mean"

    def aggregate(self, updates, context):
        return context.weights @ updates


class Spy(Aggregator):
    """Keeps what it is told."""

    name = "test-spy"

    def aggregate(self, updates, context):
        SEEN.append((updates.clone(), context.f, list(context.client_ids), context.weights.clone()))
        context.state["calls"] = context.state.get("calls", 0) + 1
        SEEN_STATE.append(context.state["calls"])
        return updates.mean(0)


SEEN: list = []
SEEN_STATE: list = []


def network(norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 36, 3))


def clients(sizes, seed=0, hooks=(), steps=None, batch=8, sampling=None):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i, n in enumerate(sizes):
        images = torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 3, (n,), generator=generator)
        count = steps if steps is not None else math.ceil(n / batch)
        prepared = [{} for _ in hooks]
        found.append(Client(i, images, labels, count, sampling or Sampling(), tuple(hooks), prepared))
    return found


def federation(module, members, local=None, seed=0, **rules):
    local = local or LocalTraining(batch_size=8, optimizer=SGD(lr=0.1))
    settings = {"aggregators": (Mean(),), "tolerance": 0.0, "weighting": "examples", "buffers": "average"}
    trainer = LocalTrainer(module, local, seed, "stage", "float32", "cpu")
    return Federation(
        module, members, trainer, Rules(**{**settings, "server": FedAvg(), **rules}), seed, "stage"
    )


def run(federated, rounds=1, ids=None, multiplier=lambda r: 1.0):
    ids = list(range(len(federated.clients))) if ids is None else ids
    run_together([Run(federated, [ids] * rounds, multiplier, None, lambda *_: None)])
    return federated.outcome


@pytest.mark.parametrize(
    ("settings", "plain"),
    [
        (
            SGD(lr=0.1, momentum=0.9, weight_decay=1e-3),
            lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=1e-3),
        ),
        # The same kernel: a bias before batch normalisation has rounding for a gradient, which Adam scales up.
        (Adam(lr=1e-3), lambda p: torch.optim.Adam(p, 1e-3, fused=True)),
        (NAdam(lr=1e-3), lambda p: torch.optim.NAdam(p, 1e-3)),
    ],
    ids=["sgd", "adam", "nadam"],
)
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batchnorm"])
def test_one_client_is_a_plain_pytorch_loop(settings, plain, norm):
    (client,) = clients([37], steps=10)
    ours = network(norm)
    run(federation(ours, [client], LocalTraining(batch_size=8, optimizer=settings)))
    theirs = network(norm).train()
    optimizer = plain(theirs.parameters())
    for index in batches(37, 8, 10, Sampling(), torch_generator(0, "batches", 0, 0)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(
            theirs(client.images[index].float() / 255), client.labels[index]
        ).backward()
        optimizer.step()
    for (_name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        if a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    if norm:
        assert not torch.allclose(ours[1].running_mean, torch.zeros(4))


def test_fedprox_pulls_towards_the_global_weights():
    (client,) = clients([16], steps=3)
    mu, lr = 0.5, 0.1
    ours = network()
    run(federation(ours, [client], LocalTraining(batch_size=8, optimizer=SGD(lr=lr), proximal=mu)))
    theirs = network()
    start = [p.detach().clone() for p in theirs.parameters()]
    for index in batches(16, 8, 3, Sampling(), torch_generator(0, "batches", 0, 0)):
        loss = nn.functional.cross_entropy(theirs(client.images[index].float() / 255), client.labels[index])
        loss = loss + mu / 2 * sum(
            ((p - s) ** 2).sum() for p, s in zip(theirs.parameters(), start, strict=True)
        )
        grads = torch.autograd.grad(loss, list(theirs.parameters()))
        with torch.no_grad():
            for p, g in zip(theirs.parameters(), grads, strict=True):
                p -= lr * g
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_one_full_batch_step_each_is_one_step_on_all_the_data():
    """FedSGD: with one full-batch step, the examples-weighted mean is the centralised step."""
    members = clients([5, 11, 20], steps=1, batch=64)
    ours = network()
    run(federation(ours, members, LocalTraining(batch_size=64, optimizer=SGD(lr=0.3))))
    theirs = network()
    x = torch.cat([c.images for c in members]).float() / 255
    loss = nn.functional.cross_entropy(theirs(x), torch.cat([c.labels for c in members]))
    grads = torch.autograd.grad(loss, list(theirs.parameters()))
    for a, b, g in zip(ours.parameters(), theirs.parameters(), grads, strict=True):
        torch.testing.assert_close(a, b - 0.3 * g, rtol=1e-5, atol=1e-6)


def test_batch_norm_statistics_are_the_weighted_mean_of_the_clients():
    members = clients([8, 24], steps=1, batch=64)
    module = network(norm=True)
    local = LocalTraining(batch_size=64, optimizer=SGD(lr=0.1))
    run(federation(module, members, local))
    copies = []
    for member in members:
        copy = network(norm=True).train()
        copy(member.images.float() / 255)
        copies.append((len(member.labels) / 32) * copy[1].running_var)
    torch.testing.assert_close(module[1].running_var, sum(copies))


def test_local_buffers_stay_with_the_client():
    members = clients([8, 24], steps=1, batch=64)
    module = network(norm=True)
    run(federation(module, members, buffers="local"), rounds=2)
    assert not torch.allclose(members[0].buffers["1.running_mean"], members[1].buffers["1.running_mean"])
    mean = 0.25 * members[0].buffers["1.running_mean"] + 0.75 * members[1].buffers["1.running_mean"]
    torch.testing.assert_close(module[1].running_mean, mean)


def statistics(client, start):
    """The running means of a client that has seen its records once, from these."""
    module = network(norm=True)
    module[1].running_mean.copy_(start)
    module.train()(client.images.float() / 255)
    return module[1].running_mean.clone()


def test_local_buffers_are_averaged_once_over_all_who_took_part():
    """Clients 1, 3, then twice 1, 2: the release has 3's too, and 2 starts from nobody's; 0 never takes part."""
    members = clients([8, 16, 24, 32], steps=1, batch=64)
    module = network(norm=True)
    local = LocalTraining(batch_size=64, optimizer=SGD(lr=0.0001))
    federated = federation(module, members, local, buffers="local")
    seen = []

    def evaluate(round):
        seen.append(module[1].running_mean.clone())
        return {}

    run_together([Run(federated, [[1, 3], [1, 2], [1, 2]], lambda r: 1.0, evaluate, lambda *_: None)])
    kept = {i: members[i].buffers["1.running_mean"] for i in (1, 2, 3)}
    assert members[0].buffers is None
    weights = {1: 16 / 72, 2: 24 / 72, 3: 32 / 72}
    torch.testing.assert_close(module[1].running_mean, sum(weights[i] * kept[i] for i in kept))
    twice = statistics(members[2], statistics(members[2], 0))
    torch.testing.assert_close(
        kept[2], twice, rtol=1e-2, atol=1e-4
    )  # from zero, which is where statistics begin
    torch.testing.assert_close(kept[3], statistics(members[3], 0), rtol=1e-2, atol=1e-4)
    # Evaluations in between: of those known until then.
    first = [statistics(members[i], 0) for i in (1, 3)]
    torch.testing.assert_close(seen[0], (16 * first[0] + 32 * first[1]) / 48, rtol=1e-2, atol=1e-4)
    assert torch.equal(seen[-1], module[1].running_mean)


def test_averaged_buffers_are_the_last_round_s_and_what_the_next_starts_from():
    members = clients([8, 16, 24, 32], steps=1, batch=64)
    module = network(norm=True)
    local = LocalTraining(batch_size=64, optimizer=SGD(lr=0.0001))
    schedule = [[1, 3], [1, 2]]
    run_together([Run(federation(module, members, local), schedule, lambda r: 1.0, None, lambda *_: None)])
    first = [statistics(members[i], 0) for i in (1, 3)]
    mean = (16 * first[0] + 32 * first[1]) / 48
    expected = (16 * statistics(members[1], mean) + 24 * statistics(members[2], mean)) / 40
    torch.testing.assert_close(module[1].running_mean, expected, rtol=1e-2, atol=1e-4)


def test_local_buffers_of_attackers_and_dropped_clients_stay_out():
    members = clients([8, 8, 8], steps=1, batch=64)
    module = network(norm=True)
    rules = {"byzantine": Attacker(), "knowledge": "own", "malicious": (0,), "tolerance": 0.3}
    federated = federation(module, members, buffers="local", **rules)
    run(federated, rounds=2)
    assert members[0].buffers is not None  # it trained, to see what it would have sent
    honest = [members[i].buffers["1.running_mean"] for i in (1, 2)]
    torch.testing.assert_close(module[1].running_mean, (honest[0] + honest[1]) / 2)
    nobody = federation(network(norm=True), clients([8, 8], steps=1), buffers="local")
    nobody.begin([[0, 1], [0, 1]], lambda r: 1.0)
    for bad in (False, True):
        opened = nobody.open(int(bad))
        updates, buffers = nobody.updates(opened.start, opened.ids, [], opened.buffers)
        if bad:
            updates[0][0] = math.nan
            buffers[0]["1.running_mean"].fill_(math.nan)
        else:
            before = buffers[0]["1.running_mean"].clone()
        nobody.close(opened, updates, buffers)
    mean = (before + nobody.clients[1].buffers["1.running_mean"]) / 2  # of the last round in which it counted
    torch.testing.assert_close(nobody.module[1].running_mean, mean)


@pytest.mark.parametrize(("rule", "floats"), [("average", 2 * 4), ("local", 0)])
def test_buffers_that_stay_with_the_client_cost_nothing_to_send(rule, floats):
    module = network(norm=True)
    d = sum(p.numel() for p in module.parameters())
    assert sum(b.numel() for b in module.buffers() if b.is_floating_point()) == 2 * 4
    outcome = run(federation(module, clients([8, 8], steps=1), buffers=rule), rounds=3)
    assert (outcome.uplink_bytes, outcome.downlink_bytes) == (6 * 4 * (d + floats), 6 * 4 * (d + floats))


def test_the_schedule_scales_the_learning_rate():
    (a,) = clients([8], steps=1)
    one, half = network(), network()
    start = torch.cat([p.detach().reshape(-1) for p in network().parameters()])
    run(federation(one, [a]))
    run(federation(half, [a]), multiplier=lambda r: 0.5)
    flat = [torch.cat([p.detach().reshape(-1) for p in m.parameters()]) - start for m in (one, half)]
    torch.testing.assert_close(flat[1], flat[0] / 2, rtol=1e-4, atol=1e-7)
    assert Constant().multiplier(3, 10) == 1


class Attacker(ByzantineAttack):
    """Writes down what it gets; sends a constant."""

    name = "test-attacker"
    value: float = Field(0.0, allow_inf_nan=True)

    def craft(self, honest, context):
        SEEN.append((honest.clone(), context))
        return torch.full((context.m, honest.shape[1]), self.value)


@pytest.fixture(autouse=True)
def _forget():
    SEEN.clear()
    SEEN_STATE.clear()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_that_are_not_finite_are_dropped_and_f_falls(bad):
    members = clients([8, 8, 8, 8, 16])
    rules = {"byzantine": Attacker(value=bad), "knowledge": "updates", "malicious": (1,), "tolerance": 0.4}
    federated = federation(network(), members, aggregators=(Spy(),), **rules)
    outcome = run(federated)
    updates, f, ids, weights = SEEN[-1]
    assert updates.isfinite().all()
    assert (len(updates), f, ids) == (4, 1, [0, 2, 3, 4])
    torch.testing.assert_close(weights, torch.tensor([0.2, 0.2, 0.2, 0.4]))
    assert outcome.dropped == 1
    assert outcome.history[0]["dropped"] == 1


def test_a_rule_left_with_too_few_rows_says_how_many_were_dropped():
    class Five(Mean):
        name = "test-five"

        def check(self, n, f):
            if n < 5:
                raise PluginError(f"test-five needs five updates, not {n}")
            return n, f

    rules = {"byzantine": Attacker(value=math.nan), "knowledge": "own", "malicious": (1,), "tolerance": 0.2}
    federated = federation(network(), clients([8] * 5), aggregators=(Five(),), **rules)
    said = "test-five needs five updates, not 4; of 5 updates, 1 had to be dropped as not finite"
    with pytest.raises(PluginError, match=said):
        run(federated)


def test_when_every_row_is_dropped_the_model_stays():
    module = network()
    before = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    rules = {"byzantine": Attacker(value=math.nan), "knowledge": "own", "malicious": (0, 1)}
    run(federation(module, clients([8, 8]), **rules))
    assert torch.equal(before, torch.cat([p.detach().reshape(-1) for p in module.parameters()]))


@pytest.mark.parametrize("knowledge", ["own", "updates", "omniscient"])
def test_attackers_know_what_the_threat_grants(knowledge):
    members = clients([8, 8, 8, 8])
    rules = {"byzantine": Attacker(), "knowledge": knowledge, "malicious": (2, 3), "tolerance": 0.25}
    run(federation(network(), members, **rules))
    honest, context = SEEN[0]
    clean = federation(network(), clients([8, 8, 8, 8]), aggregators=(Spy(),))
    run(clean)
    everyone = SEEN[-1][0]
    expected = everyone[2:] if knowledge == "own" else everyone[:2]
    torch.testing.assert_close(honest, expected)
    torch.testing.assert_close(context.own, everyone[2:])
    assert (context.aggregator is not None) == (knowledge == "omniscient")
    assert (context.m, context.n, context.f) == (2, 4, 1)
    assert context.sees_others == (knowledge != "own")


def test_attackers_are_told_how_the_model_moved_also_after_a_round_without_them():
    SEEN.clear()
    module = network()
    federated = federation(
        module, clients([8, 8, 8, 8]), byzantine=Attacker(), knowledge="own", malicious=(0,)
    )
    weights = []

    def note(round, *_):
        weights.append(torch.cat([p.detach().reshape(-1) for p in module.parameters()]))

    run_together([Run(federated, [[0, 1], [1, 2], [2, 3], [0, 3]], lambda r: 1.0, None, note)])
    first, last = (context for _, context in SEEN)
    assert first.moved is None
    torch.testing.assert_close(last.moved, weights[2] - weights[1], rtol=1e-4, atol=1e-7)
    assert last.moved.norm() > 0


def test_attackers_who_see_nobody_else_see_their_own():
    run(federation(network(), clients([8, 8]), byzantine=Attacker(), knowledge="updates", malicious=(0, 1)))
    honest, context = SEEN[0]
    assert torch.equal(honest, context.own)
    assert not context.sees_others


def test_a_probe_draws_other_coins_than_the_server():
    class Coins(Spy):
        """Draws."""

        name = "test-coins"

        def aggregate(self, updates, context):
            SEEN.append(
                [torch.rand(3, generator=drawn).tolist() for drawn in (context.generator, context.noise)]
            )
            return updates.mean(0)

    class Twice(Attacker):
        """Probes twice."""

        name = "test-twice"

        def craft(self, honest, context):
            for _ in range(2):
                context.aggregator(torch.cat([honest, honest[: context.m]]))
            return honest[: context.m]

    rules = {"aggregators": (Coins(),), "malicious": (1,)}
    run(federation(network(), clients([8, 8, 8]), byzantine=Twice(), knowledge="omniscient", **rules))
    first, second, real = SEEN
    assert first == second
    assert not set(first[0]) & set(real[0])
    assert not set(first[1]) & set(real[1])
    run(federation(network(), clients([8, 8, 8]), **rules))
    assert SEEN[-1] == real  # the server's own are the same with and without an attack


@pytest.mark.parametrize("knowledge", ["own", "updates", "omniscient"])
def test_buffers_of_clients_that_craft_stay_out_of_the_average(knowledge):
    def statistics(ids, **rules):
        module = network(norm=True)
        run(federation(module, clients([8, 16, 8, 8]), **rules), ids=ids)
        return module[1].running_mean

    rules = {"byzantine": Attacker(), "knowledge": knowledge, "malicious": (3,)}
    torch.testing.assert_close(statistics([0, 1, 2, 3], **rules), statistics([0, 1, 2]))


def test_an_omniscient_attacker_probes_a_copy_of_the_real_state():
    class Prober(Attacker):
        """Calls the server's rule three times before sending."""

        name = "test-prober"

        def craft(self, honest, context):
            for _ in range(3):
                context.aggregator(torch.cat([honest, honest[: context.m]]))
            return honest[: context.m]

    rules = {"byzantine": Prober(), "knowledge": "omniscient", "malicious": (1,), "aggregators": (Spy(),)}
    run(federation(network(), clients([8, 8, 8]), **rules), rounds=2)
    # Three probes and the real call in each round: probes see the state of the round and leave no trace.
    assert SEEN_STATE == [1, 1, 1, 1, 2, 2, 2, 2]


class SendsNaN(Defence):
    """Client 0 sends NaN."""

    name = "test-sends-nan"

    def update(self, delta, context):
        return delta * math.nan if context.client == 0 else delta


def test_a_probe_is_the_server_s_answer_also_where_some_updates_are_not_finite():
    class Prober(Attacker):
        """Asks what the server would make of what it then sends."""

        name = "test-nan-prober"

        def craft(self, honest, context):
            assert honest.isfinite().all()
            sent = torch.full((context.m, honest.shape[1]), 0.5)
            SEEN.append(("asked", context.aggregator(torch.cat([honest, sent])), context.ids))
            return sent

    rules = {"byzantine": Prober(), "knowledge": "omniscient", "malicious": (2,), "aggregators": (Spy(),)}
    module = network()
    start = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    run(federation(module, clients([8, 8, 8, 8], hooks=(SendsNaN(),)), tolerance=0.25, **rules))
    (_, probed, ids), (_, f, real_ids, _) = SEEN[-2], SEEN[-1]
    assert ids == [1, 3]
    assert real_ids == [1, 2, 3]
    assert f == SEEN[-3][1] == 0  # told of one, and one row was dropped
    reached = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    torch.testing.assert_close(reached - start, probed, rtol=1e-4, atol=1e-6)


def test_the_server_cannot_tell_attackers_by_their_place():
    rules = {
        "byzantine": Attacker(value=7.0),
        "knowledge": "updates",
        "malicious": (1,),
        "aggregators": (Spy(),),
    }
    run(federation(network(), clients([8, 8, 8]), **rules))
    updates, _, ids, _ = SEEN[-1]
    assert ids == [0, 1, 2]
    assert (updates[1] == 7).all()


def test_a_wrong_shape_is_an_error_that_names_the_plugin():
    class Short(Mean):
        """Wrong length."""

        name = "test-short"

        def aggregate(self, updates, context):
            return updates.mean(0)[:-1]

    with pytest.raises(PluginError, match="test-short returned"):
        run(federation(network(), clients([8, 8]), aggregators=(Short(),)))


def test_an_aggregate_that_is_not_finite_is_an_error():
    class Broken(Mean):
        """NaN."""

        name = "test-broken"

        def aggregate(self, updates, context):
            return updates.mean(0) * math.nan

    with pytest.raises(PluginError, match="not finite"):
        run(federation(network(), clients([8, 8]), aggregators=(Broken(),)))


def test_a_chain_passes_context_and_conditions_on():
    class Pairs(PreAggregator):
        """Means of neighbouring pairs."""

        name = "test-pairs"

        def transform(self, updates, context):
            context.state["calls"] = 100  # in a state of its own
            rows = updates.reshape(-1, 2, updates.shape[1]).mean(1)
            n = len(rows)
            return rows, context.with_rows(torch.full((n,), 1 / n), list(range(n)), f=2)

    class Picky(Spy):
        """Wants n > 2f."""

        name = "test-picky"

        def check(self, n, f):
            if n <= 2 * f:
                raise PluginError(f"test-picky needs n > 2f, not n = {n}, f = {f}")
            return n, f

    run(federation(network(), clients([8] * 10), aggregators=(Pairs(), Spy())), rounds=2)
    assert (len(SEEN[-1][0]), SEEN[-1][1]) == (5, 2)
    assert SEEN_STATE == [1, 2]
    with pytest.raises(PluginError, match="n = 4, f = 2"):
        run(federation(network(), clients([8] * 8), aggregators=(Pairs(), Picky())))


def test_a_rule_asks_the_network_in_eval_mode():
    class Asks(Spy):
        name = "test-asks"

        def aggregate(self, updates, context):
            answers.append(context.logits(context.global_weights, x))
            return super().aggregate(updates, context)

    answers: list = []
    module, x = network(norm=True), torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = module.eval()(x)
    run(federation(module, clients([8, 8]), aggregators=(Asks(),)))
    torch.testing.assert_close(answers[0], expected)


def test_bytes_are_those_of_the_payload():
    class Half(UpdateCompressor):
        """float16."""

        name = "test-half"

        def encode(self, update, state, context):
            state["calls"] = state.get("calls", 0) + 1
            return Payload({"v": update.half()})

        def decode(self, payload, context):
            return payload.tensors["v"].float()

    module = network()
    d = sum(p.numel() for p in module.parameters())
    plain = run(federation(network(), clients([8, 8])), rounds=3)
    assert (plain.uplink_bytes, plain.downlink_bytes, plain.messages) == (6 * 4 * d, 6 * 4 * d, 6)
    federated = federation(module, clients([8, 8]), compressors=(Half(),))
    small = run(federated, rounds=3)
    assert small.uplink_bytes == 6 * 2 * d
    assert {k: v["calls"] for k, v in federated.wire._state.items() if v} == {(0, 0): 3, (1, 0): 3}


class InFacts(UpdateCompressor):
    """Sends the update as facts."""

    name = "test-in-facts"

    def encode(self, update, state, context):
        return Payload({}, {"update": update.tolist()})

    def decode(self, payload, context):
        return torch.tensor(payload.facts["update"])


class Aside(InFacts):
    """Sends the update past the payload."""

    name = "test-aside"
    kept: ClassVar[list] = []

    def encode(self, update, state, context):
        self.kept.append(update)
        return Payload({})

    def decode(self, payload, context):
        return self.kept.pop(0)


class NoPayload(InFacts):
    """Sends nothing that can be counted."""

    name = "test-no-payload"

    def encode(self, update, state, context):
        return None


def test_an_update_in_facts_is_counted_and_one_beside_the_payload_refused():
    module = network()
    d = sum(p.numel() for p in module.parameters())
    sent = run(federation(module, clients([8, 8]), compressors=(InFacts(),)))
    assert sent.uplink_bytes == 2 * (len("update") + 8 * d - 128)
    with pytest.raises(PluginError, match="test-aside sent 0 bytes and decodes an update that is not zero"):
        run(federation(network(), clients([8, 8]), compressors=(Aside(),)))
    with pytest.raises(PluginError, match=r"test-no-payload\.encode returned NoneType, not a Payload"):
        run(federation(network(), clients([8, 8]), compressors=(NoPayload(),)))


@pytest.mark.parametrize(
    ("facts", "counted"),
    [
        ({}, 0),
        ({"d": 10**6, "shape": (3, 4), "kind": "signs", "raw": False, "top": 1.5, "none": None}, 0),
        ({"numbers": [0.5] * 20}, 7 + 160 - 128),
        ({"large": 1 << 8000}, 5 + 1001 - 128),
        ({"text": "x" * 1000, "bytes": b"y" * 50}, 4 + 1000 + 5 + 50 - 128),
        ({"array": np.zeros(1000)}, None),
    ],
)
def test_facts_are_free_only_while_they_are_small(facts, counted):
    found = Payload({"v": torch.zeros(3)}, facts).nbytes - 12
    assert found == counted if counted is not None else found > 7800


def test_defences_compose_left_to_right():
    class Scale(Defence):
        """Multiplies the update, then adds."""

        name = "test-scale"
        factor: float = 1.0
        offset: float = 0.0

        def update(self, delta, context):
            return delta * self.factor + self.offset

    run(federation(network(), clients([8]), aggregators=(Spy(),)))
    plain = SEEN[-1][0]
    hooks = (Scale(factor=2.0), Scale(offset=1.0))
    run(federation(network(), clients([8], hooks=hooks), aggregators=(Spy(),)))
    torch.testing.assert_close(SEEN[-1][0], 2 * plain + 1)


def test_dropout_is_seeded_and_leaves_the_global_generator_alone():
    def dropped():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 3))

    finals = []
    for _ in range(2):
        module = dropped()
        torch.manual_seed(np.random.default_rng().integers(1 << 30))
        before = torch.random.get_rng_state()
        run(federation(module, clients([16])))
        assert torch.equal(before, torch.random.get_rng_state())
        finals.append(module[2].weight.detach().clone())
    assert torch.equal(*finals)


class Poisoned(Defence):
    """Keeps how much of the round is the attackers'."""

    name = "test-poisoned"

    def update(self, delta, context):
        SHARES.append((context.clients, context.malicious, context.share))
        return delta


SHARES: list = []


@pytest.mark.parametrize(
    ("weighting", "share"), [("examples", (5 + 9) / (5 + 9 + 30 + 16)), ("uniform", 2 / 4)]
)
def test_attackers_are_told_their_share_of_the_mean(weighting, share):
    """What model replacement has to scale by: m of n where all weigh the same, their records' share where not."""
    members = clients([5, 30, 9, 16, 40], hooks=[Poisoned()], steps=1)
    found = federation(network(), members, malicious=(0, 2, 4), weighting=weighting)
    SHARES.clear()
    run_together([Run(found, [[0, 1, 2, 3]], lambda _: 1.0, lambda _: {}, lambda *_: None)])
    assert [(4, 2, pytest.approx(share))] * 4 == SHARES
    found.begin([[1, 3]], lambda _: 1.0)
    assert found.open(0).start.share == 0.0


@pytest.mark.parametrize(("chain", "judged"), [(("krum",), True), (("nnm", "krum"), False)])
def test_rows_that_hold_several_clients_single_out_nobody(chain, judged):
    """Krum behind NNM keeps one mixed row, the mean of most clients, who are not thereby found malicious."""
    rules = tuple(registry().create("aggregator", name) for name in chain)
    members = clients([8] * 10, steps=1)
    found = federation(network(), members, aggregators=rules, tolerance=0.2, malicious=(3, 7))
    run_together([Run(found, [list(range(10))] * 2, lambda _: 1.0, lambda _: {}, lambda *_: None)])
    assert (found.outcome.detection is not None) is judged


class Listener(Aggregator):
    """Keeps the round that it is told, and what it is given."""

    name = "test-listener"

    def aggregate(self, updates, context):
        HEARD.append((context.round, context.rounds, list(context.client_ids), updates.clone()))
        return updates.mean(0)


class Tries(ByzantineAttack):
    """Tries the rule on what it would send."""

    name = "test-tries"

    def craft(self, honest, context):
        crafted = honest.new_full((context.m, honest.shape[1]), float(context.round))
        context.aggregator(torch.cat([honest, crafted]))
        return crafted


HEARD: list = []


def test_rules_and_attackers_hear_of_rounds_of_the_whole_training():
    """Fine-tuning goes on where the training was: a bound that grows over rounds does not begin anew."""
    HEARD.clear()
    federated = federation(network(), clients([8, 8]), aggregators=(Listener(),), done=5)
    run(federated, rounds=2)
    assert [entry[:2] for entry in HEARD] == [(5, 7), (6, 7)]
    HEARD.clear()
    attacked = {"byzantine": Tries(), "knowledge": "omniscient", "malicious": (1,), "done": 5}
    run(federation(network(), clients([8, 8, 8]), aggregators=(Listener(),), **attacked))
    (_, _, ids, trial), (_, _, real_ids, real) = HEARD
    assert ids == [0, 2, 1]
    assert real_ids == [0, 1, 2]
    assert (trial[-1] == 5).all()
    torch.testing.assert_close(real[1], trial[2], rtol=0, atol=0)


def test_the_trial_of_a_round_of_attackers_alone_holds_no_honest_row():
    HEARD.clear()
    attacked = {"byzantine": Tries(), "knowledge": "omniscient", "malicious": (0, 1), "done": 3}
    run(federation(network(), clients([8, 8, 8]), aggregators=(Listener(),), **attacked), ids=[0, 1])
    (_, _, trial_ids, trial), (_, _, real_ids, real) = HEARD
    assert trial_ids == real_ids == [0, 1]
    torch.testing.assert_close(trial, real, rtol=0, atol=0)
