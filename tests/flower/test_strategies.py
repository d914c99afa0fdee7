"""Flower's strategies as rules, and rules as Flower strategies: the same numbers in both directions."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian
from strangers import HalfOfEach

from harness import create
from harness.contracts.aggregator import AggregationContext
from harness.errors import PluginError
from harness.flower import as_strategy

LAYOUT = {"a": slice(0, 5), "b": slice(5, 12)}


def rows(n=9, d=12, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def call(rule, x, **context):
    start = torch.linspace(-3, 3, x.shape[1]) * 100
    return rule(x, layout=LAYOUT, global_weights=start, **context)


class TestStrategiesAsRules:
    @pytest.mark.parametrize(
        ("strategy", "ours"), [("FedMedian", "median"), ("FedAvg", "mean"), ("Krum", "krum")]
    )
    def test_known_ones_are_ours(self, strategy, ours):
        x = rows()
        weights = torch.arange(1.0, 10.0)
        weights = weights / weights.sum()
        theirs = call(create("aggregator", "flower", strategy=strategy), x, f=2, weights=weights)
        torch.testing.assert_close(theirs, create("aggregator", ours)(x, f=2, weights=weights))

    def test_options_reach_the_constructor(self):
        x = rows(10)
        rule = create("aggregator", "flower", strategy="FedTrimmedAvg", options={"beta": 0.2})
        torch.testing.assert_close(call(rule, x), create("aggregator", "trimmed-mean", f=2)(x))

    def test_one_that_is_in_no_package_of_flowers(self):
        rule = create("aggregator", "flower", strategy="strangers:HalfOfEach", options={"share": 0.25})
        torch.testing.assert_close(call(rule, rows()), rows().mean(0) / 4)

    def test_fedadam_keeps_its_moments(self):
        """Three rounds against the formula in float64, with Flower's own correction (exponent: round + 1)."""
        options = {"eta": 0.1, "beta_1": 0.8, "beta_2": 0.9, "tau": 0.01}
        rule = create("aggregator", "flower", strategy="FedAdam", options=options)
        state, m, v = {}, np.zeros(12), np.zeros(12)
        weights = torch.linspace(-1, 1, 12)
        for r in range(3):
            x = rows(seed=r)
            context = AggregationContext(
                round=r, f=0, weights=torch.full((9,), 1 / 9), client_ids=list(range(9)), layout=LAYOUT,
                generator=torch.Generator(), global_weights=weights, state=state,
            )  # fmt: skip
            update = rule.aggregate(x, context)
            delta = x.double().numpy().mean(0)
            m, v = 0.8 * m + 0.2 * delta, 0.9 * v + 0.1 * delta**2
            rate = 0.1 * np.sqrt(1 - 0.9 ** (r + 2)) / (1 - 0.8 ** (r + 2))
            np.testing.assert_allclose(update.numpy(), rate * m / (np.sqrt(v) + 0.01), rtol=1e-4, atol=1e-6)
            weights = weights + update

    def test_a_copy_of_its_state_can_be_probed(self):
        rule = create("aggregator", "flower", strategy="FedAvgM", options={"server_momentum": 0.9})
        make = lambda state: AggregationContext(  # noqa: E731
            round=1, f=0, weights=torch.full((9,), 1 / 9), client_ids=list(range(9)), layout=LAYOUT,
            generator=torch.Generator(), global_weights=torch.zeros(12), state=state,
        )  # fmt: skip
        state = {}
        rule.aggregate(rows(), make(state))
        probe = rule.aggregate(rows(seed=1), make(copy.deepcopy(state)))
        torch.testing.assert_close(rule.aggregate(rows(seed=1), make(state)), probe)

    def test_no_rounding_against_large_weights_no_mutation_no_global_randomness(self):
        x = rows() * 1e-4
        before = x.clone()
        random.seed(5)
        expected = random.Random(5).random()
        got = create("aggregator", "flower", strategy="FedAvg")(
            x, layout=LAYOUT, global_weights=torch.full((12,), 1e4)
        )
        torch.testing.assert_close(got, x.mean(0), rtol=1e-5, atol=1e-9)
        assert torch.equal(x, before)
        assert random.random() == expected

    def test_num_malicious_nodes_is_the_f_of_the_round(self):
        x = torch.cat([rows(8) * 0.01, torch.full((3, 12), 50.0)])
        rule = create("aggregator", "flower", strategy="MultiKrum", options={"num_nodes_to_select": 5})
        assert call(rule, x, f=3).abs().max() < 1

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"strategy": "FedMedain"}, "no strategy 'FedMedain'; did you mean 'FedMedian'"),
            (
                {"strategy": "FedTrimmedAvg", "options": {"bete": 0.1}},
                "no argument 'bete'; did you mean 'beta'",
            ),
            (
                {"strategy": "FedAvg", "options": {"fraction_train": 0.5}},
                "decided by the scenario's federation",
            ),
            ({"strategy": "QFedAvg", "options": {"client_learning_rate": 0.1}}, "training loss"),
            ({"strategy": "FedXgbBagging"}, "trees, not weights"),
            ({"strategy": "DifferentialPrivacyServerSideFixedClipping"}, "wraps another strategy"),
            (
                {"strategy": "FedProx", "options": {"proximal_mu": 0.1}},
                "FedAvg and federation.local.proximal",
            ),
            ({"strategy": "no_such_module:Rule"}, "no_such_module cannot be imported"),
            ({"strategy": "collections:Counter"}, "no strategy 'collections:Counter'"),
        ],
    )
    def test_what_cannot_be_run_is_refused_with_a_reason(self, parameters, message):
        with pytest.raises(PluginError, match=message.replace("(", r"\(")):
            create("aggregator", "flower", **parameters)

    def test_what_clients_are_told_and_do_not_do_is_an_error(self):
        rule = create("aggregator", "flower", strategy="strangers:SlowerClients")
        with pytest.raises(PluginError, match="SlowerClients tells clients lr, but they have trained"):
            call(rule, rows())

    def test_a_skipped_round_is_an_error(self):
        rule = create("aggregator", "flower", strategy="Bulyan", options={"num_malicious_nodes": 3})
        with pytest.raises(PluginError, match="Bulyan skipped the round of 9 updates"):
            call(rule, rows())


def site(pulls):
    """A ClientApp of somebody else's: client i moves every array towards its own number."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        i = context.node_config["partition-id"]
        sent = message.content["arrays"].to_torch_state_dict()
        model = {n: v + pulls[i] * (i + 1 - v) if v.is_floating_point() else v + 1 for n, v in sent.items()}
        content = {"arrays": ArrayRecord(model), "metrics": MetricRecord({"num-examples": 10 + i})}
        return Message(RecordDict(content), reply_to=message)

    return app


MODEL = {
    "w": torch.linspace(0, 1, 6).reshape(2, 3),
    "steps": torch.tensor(4),
    "b": torch.ones(2, dtype=torch.float64),
}


def run(strategy, direct, pulls, rounds=2):
    grid = direct(site(pulls), len(pulls))
    return strategy.start(grid, ArrayRecord(MODEL), num_rounds=rounds).arrays.to_torch_state_dict()


OPTIONS = {"fraction_evaluate": 0.0}


class TestRulesAsStrategies:
    def test_the_mean_is_flowers_fedavg(self, direct):
        pulls = [0.1, 0.4, 0.3, 0.8]
        ours = run(as_strategy("mean", options=OPTIONS), direct, pulls)
        theirs = run(FedAvg(**OPTIONS), direct, pulls)
        for name in ("w", "b"):
            torch.testing.assert_close(ours[name], theirs[name].to(ours[name].dtype))

    def test_the_median_is_flowers_and_swapping_back_changes_nothing(self, direct):
        pulls = [0.1, 0.4, 0.3, 0.8, 0.5]
        theirs = run(FedMedian(**OPTIONS), direct, pulls)
        for rule in (create("aggregator", "median"), create("aggregator", "flower", strategy="FedMedian")):
            ours = run(as_strategy(rule, options=OPTIONS), direct, pulls)
            for name in ("w", "b"):
                torch.testing.assert_close(ours[name], theirs[name])

    def test_types_shapes_and_integers_stay(self, direct):
        after = run(as_strategy("median", options=OPTIONS), direct, [0.5] * 5)
        assert {n: (v.dtype, v.shape) for n, v in after.items()} == {
            n: (v.dtype, v.shape) for n, v in MODEL.items()
        }
        assert after["steps"] == 4

    def test_krum_keeps_one_of_the_clients(self, direct):
        pulls = [0.5, 0.5, 0.5, 0.5, 0.5, 1000.0]
        after = run(as_strategy("krum", f=1, options=OPTIONS), direct, pulls, rounds=1)
        clients = [(MODEL["w"] + (i + 1)) / 2 for i in range(5)]
        assert any(torch.allclose(after["w"], client) for client in clients)

    def test_a_chain_and_a_client_that_diverged(self, direct):
        pulls = [0.5, 0.5, 0.5, 0.5, 0.5, float("nan")]
        after = run(as_strategy("nnm", "trimmed-mean", f=1, options=OPTIONS), direct, pulls)
        assert all(value.isfinite().all() for value in after.values())

    def test_state_is_kept(self, direct):
        """Centred clipping's v after two rounds is not what it would be from zero each time."""
        strategy = as_strategy("centered-clipping", tau=0.1, options=OPTIONS)
        run(strategy, direct, [0.5] * 5)
        assert strategy._states[0]

    def test_noise_is_a_secret_unless_a_seed_is_given(self, direct):
        """The server's noise of crfl hides nothing from whoever can draw it too."""

        def noisy(**seed):
            strategy = as_strategy("crfl", sigma=0.1, **seed, options=OPTIONS)
            return run(strategy, direct, [0.5] * 5, rounds=1)["w"]

        assert not torch.equal(noisy(), noisy())
        assert torch.equal(noisy(seed=3), noisy(seed=3))
        assert not torch.equal(noisy(seed=3), noisy(seed=4))

    def test_the_order_of_answers_decides_nothing(self, direct):
        """Bucketing puts rows together by their position."""

        def after(hasty):
            class Grid(direct):
                def send_and_receive(self, messages, *, timeout=None):
                    replies = super().send_and_receive(messages, timeout=timeout)
                    return sorted(replies, key=lambda reply: reply.metadata.src_node_id not in hasty)

            rules = create("aggregator", "bucketing", s=2), create("aggregator", "median")
            strategy = as_strategy(*rules, f=1, seed=3, options=OPTIONS)
            return run(strategy, Grid, [0.1, 0.9, 0.2, 0.7, 0.5, 0.4])["w"]

        assert torch.equal(after([100]), after([121, 135]))

    @pytest.mark.parametrize(
        ("rules", "options", "message"),
        [
            ((), {}, "at least one aggregator"),
            (("krumm",), {}, "krum"),
            (("krum",), {"tau": 1}, "no parameter 'tau'"),
            (("median", "mean"), {}, "median is not a pre-aggregator"),
            (("fltrust",), {}, "needs a root dataset"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, rules, options, message):
        with pytest.raises(PluginError, match=message):
            as_strategy(*rules, **options)

    def test_too_few_clients_for_the_rule(self, direct):
        with pytest.raises(PluginError, match="krum needs n > 2f"):
            run(as_strategy("krum", f=2, options=OPTIONS), direct, [0.5] * 4)


NORMALISED = {
    "0.weight": torch.linspace(0, 1, 6).reshape(2, 3),
    "1.running_mean": torch.zeros(3),
    "1.running_var": torch.ones(3),
    "1.num_batches_tracked": torch.tensor(4),
}


def scanner(statistics, pulls=None, names=("1.running_mean", "1.running_var")):
    """A ClientApp whose client i has statistics of its own and moves the weights, by examples 10 + i."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        i = context.node_config["partition-id"]
        model = message.content["arrays"].to_torch_state_dict()
        for name, value in zip(names, statistics[i], strict=True):
            model[name] = torch.full((3,), value)
        pull = 0.1 if pulls is None else pulls[i]
        weight = next(iter(model))
        model[weight] = model[weight] + pull * (1 + torch.arange(6.0).reshape(2, 3) * (i % 3 - 1))
        content = {"arrays": ArrayRecord(model), "metrics": MetricRecord({"num-examples": 10 + i})}
        return Message(RecordDict(content), reply_to=message)

    return app


def normalised(strategy, direct, statistics, model=NORMALISED, **options):
    grid = direct(scanner(statistics, **options), len(statistics))
    return strategy.start(grid, ArrayRecord(model), num_rounds=1).arrays.to_torch_state_dict()


class TestRunningStatistics:
    statistics = [(-3.0, 0.2), (1.0, 0.3), (2.0, 9.0), (-1.0, 8.0), (0.5, 0.1), (4.0, 7.0)]

    def mean(self, column, clients=range(6)):
        return float(
            np.average([self.statistics[i][column] for i in clients], weights=[10 + i for i in clients])
        )

    @pytest.mark.parametrize(
        "rule", ["mean", "median", "krum", "rlr", "majority-vote", "crfl", "norm-clipping"]
    )
    def test_are_averaged_whatever_the_rule(self, rule, direct):
        after = normalised(as_strategy(rule, f=1, seed=1, options=OPTIONS), direct, self.statistics)
        for column, name in enumerate(("1.running_mean", "1.running_var")):
            torch.testing.assert_close(after[name], torch.full((3,), self.mean(column)))
            assert after[name].dtype == torch.float32
        assert list(after) == list(NORMALISED)

    def test_decide_nothing_about_the_weights(self, direct):
        """Krum keeps the client in the middle by weights, however far its statistics are."""
        kept = set()
        for far in range(6):
            statistics = [(1000.0 * (i == far), 1.0) for i in range(6)]
            strategy = as_strategy("krum", f=1, options=OPTIONS)
            after = normalised(strategy, direct, statistics, pulls=[0.1, 0.11, 0.12, 0.13, 0.2, 0.9])
            kept.add(tuple(after["0.weight"].flatten().tolist()))
        assert len(kept) == 1

    def test_of_clients_that_diverged_do_not_count(self, direct):
        statistics = [*self.statistics[:4], (float("nan"), 1.0), (9.0, 9.0)]
        pulls = [0.1] * 5 + [float("nan")]
        after = normalised(as_strategy("median", options=OPTIONS), direct, statistics, pulls=pulls)
        torch.testing.assert_close(after["1.running_mean"], torch.full((3,), self.mean(0, range(4))))

    @pytest.mark.parametrize(("buffers", "averaged"), [(["1", "2"], True), ("1", False), ([], False)])
    def test_arrays_without_such_names_can_be_named(self, buffers, averaged, direct):
        """As arrays are numbered that come from a list."""
        model = {"11": NORMALISED["0.weight"], "1": torch.zeros(3), "2": torch.ones(3)}
        strategy = as_strategy("median", buffers=buffers, options=OPTIONS)
        after = normalised(strategy, direct, self.statistics, model, names=("1", "2"))
        expected = self.mean(1) if averaged else np.median([v for _, v in self.statistics])
        torch.testing.assert_close(after["2"], torch.full((3,), float(expected)))
        assert not torch.equal(after["11"], model["11"])


def test_the_strangers_strategy_is_one():
    assert issubclass(HalfOfEach, FedAvg)
