import pytest

from harness.api import Aggregator, ByzantineAttack, Defence, Guarantee, ModelCompressor, UpdateCompressor
from harness.errors import PluginError
from harness.privacy.lineage import Parts, Step, apply_lineage, lineage, strongest


def compressor(access):
    class Calibrated(ModelCompressor):
        name = f"calibrated-{access}"

        @property
        def data_access(self):
            return access

        def compress(self, model, context):
            raise AssertionError

        def restore(self, model, state, surroundings):
            raise AssertionError

    return Calibrated()


def aggregator(access):
    class Rooted(Aggregator):
        name = f"rooted-{access}"

        @property
        def data_access(self):
            return access

        def aggregate(self, updates, context):
            raise AssertionError

    return Rooted()


class Mean(Aggregator):
    name = "plain"
    sum_only = True

    def aggregate(self, updates, context):
        raise AssertionError


class Noise(Defence):
    name = "noise"


class Sparse(UpdateCompressor):
    name = "sparse"

    def encode(self, update, state, context):
        raise AssertionError

    def decode(self, payload, context):
        raise AssertionError


def guarantee(**changes):
    return Guarantee(**{"unit": "record", "epsilon": 8.0, "delta": 1e-5, "accountant": "rdp", **changes})


TABLE = [
    # compressors, aggregators, unprotected, parts named as breaking it
    ((), (), (), []),
    (("none",), ("none",), (), []),
    (("private",), (), (), ["calibrated-private"]),
    (("private",), (), ("val",), []),
    (("public",), (), (), ["calibrated-public"]),
    (("public",), (), ("val",), []),
    (("none", "private"), ("none",), (), ["calibrated-private"]),
    ((), ("private",), (), ["rooted-private"]),
    ((), ("private",), ("val",), []),
    ((), ("public",), (), ["rooted-public"]),
    ((), ("public",), ("val",), []),
    (("private",), ("none", "private"), (), ["rooted-private", "calibrated-private"]),
]


@pytest.mark.parametrize(("compressors", "aggregators", "unprotected", "named"), TABLE)
def test_what_breaks_a_guarantee(compressors, aggregators, unprotected, named):
    result = apply_lineage(
        guarantee(),
        Parts(
            compressors=(Sparse(), *map(compressor, compressors)),
            aggregators=tuple(map(aggregator, aggregators)),
            unprotected=unprotected,
        ),
    )
    assert result.holds is (not named)
    assert [reason.split()[0] for reason in result.broken_by] == named
    assert result.epsilon == 8.0


@pytest.mark.parametrize("against", ["server", "recipients"])
@pytest.mark.parametrize(("compressors", "aggregators", "unprotected", "named"), TABLE)
def test_the_chain_goes_from_data_to_release_in_its_own_words(
    compressors, aggregators, unprotected, named, against
):
    parts = Parts(
        defences=(Noise(),),
        compressors=(Sparse(), *map(compressor, compressors)),
        aggregators=tuple(map(aggregator, aggregators)),
        unprotected=unprotected,
        server="fedavg",
    )
    promise = guarantee(by="noise", against=against)
    chain = lineage(promise, parts)
    stages = ["data", "partition", "training", *["aggregation"] * (2 + len(aggregators))]
    assert [step.stage for step in chain] == [*stages, *["compression"] * len(compressors), "release"]
    assert {step.effect for step in chain} <= {"creates", "keeps", "breaks"}
    assert {step.reads for step in chain} <= {"private", "public", "updates", "model"}
    assert ("declared public" in chain[0].why) is ("val" in unprotected)
    assert ("the server is trusted" in chain[2].why) is (against == "recipients")
    assert [s.why for s in chain if s.effect == "breaks"] == apply_lineage(promise, parts).broken_by
    assert chain[3] == Step("aggregation", "sparse", "updates", "keeps", chain[3].why)
    without = lineage(None, parts)
    assert {step.effect for step in without} == {"no guarantee"}
    assert [(s.stage, s.part) for s in without] == [(s.stage, s.part) for s in chain]


def test_the_reason_names_the_data():
    broken = apply_lineage(
        guarantee(), Parts(compressors=(compressor("private"),), aggregators=(), unprotected=())
    )
    assert "validation split" in broken.broken_by[0]
    broken = apply_lineage(
        guarantee(), Parts(compressors=(), aggregators=(aggregator("private"),), unprotected=())
    )
    assert "root data" in broken.broken_by[0]


def test_it_returns_a_copy_and_keeps_earlier_reasons():
    before = guarantee(holds=False, broken_by=["dp-sgd adds no noise"])
    parts = {"compressors": (compressor("private"),), "aggregators": (), "unprotected": ()}
    after = apply_lineage(before, Parts(**parts))
    assert before.broken_by == ["dp-sgd adds no noise"]
    assert [len(after.broken_by), after.holds] == [2, False]
    assert apply_lineage(after, Parts(**parts)) == after
    again = apply_lineage(before, Parts(compressors=(), aggregators=(), unprotected=()))
    assert not again.holds
    assert again is not before
    again.broken_by.append("x")
    assert len(before.broken_by) == 1


def test_the_strongest_is_the_least_of_those_that_hold():
    many = [guarantee(epsilon=e, holds=e != 1.0, broken_by=["x"] * (e == 1.0)) for e in (4.0, 1.0, 2.0)]
    assert strongest(many, Parts()).epsilon == 2.0
    broken = strongest(many, Parts(compressors=(compressor("private"),)))
    assert (broken.epsilon, broken.holds) == (1.0, False)
    assert strongest([], Parts()) is None


def test_what_the_plan_breaks_is_no_candidate():
    """Noise at the server fits a mean alone; noise at the clients fits any rule."""
    central, local = guarantee(epsilon=2.0, against="recipients"), guarantee(epsilon=20.0)
    for order in ([central, local], [local, central]):
        assert strongest(order, Parts(aggregators=(Mean(),))).epsilon == 2.0
        found = strongest(order, Parts(aggregators=(aggregator("none"),)))
        assert (found.epsilon, found.holds) == (20.0, True)


class Copies(ByzantineAttack):
    """What another client sends."""

    name = "copies"

    def craft(self, honest, context):
        return honest[:1].expand(context.m, -1)


@pytest.mark.parametrize("knowledge", ["own", "updates", "omniscient"])
def test_attackers_who_see_updates_see_them_without_the_servers_noise(knowledge):
    parts = Parts(aggregators=(Mean(),), attack=Copies(), knowledge=knowledge)
    central = apply_lineage(guarantee(against="recipients"), parts)
    assert central.holds is (knowledge == "own")
    assert knowledge == "own" or central.broken_by[0].startswith("copies is shown other clients' updates")
    assert apply_lineage(guarantee(), parts).holds  # what they see is noised


def test_unknown_access():
    with pytest.raises(PluginError, match="secret"):
        apply_lineage(guarantee(), Parts(compressors=(compressor("secret"),), aggregators=(), unprotected=()))
