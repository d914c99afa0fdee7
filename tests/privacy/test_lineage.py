import pytest

from harness.api import Aggregator, Guarantee, ModelCompressor, UpdateCompressor
from harness.errors import PluginError
from harness.privacy.lineage import Parts, apply_lineage


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


class Sparse(UpdateCompressor):
    name = "sparse"

    def encode(self, update, state, context):
        raise AssertionError

    def decode(self, payload, context):
        raise AssertionError


def guarantee(**changes):
    return Guarantee(unit="record", epsilon=8.0, delta=1e-5, accountant="rdp", **changes)


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


def test_no_guarantee_stays_none():
    parts = {"compressors": (compressor("private"),), "aggregators": (), "unprotected": ()}
    assert apply_lineage(None, Parts(**parts)) is None


def test_unknown_access():
    with pytest.raises(PluginError, match="secret"):
        apply_lineage(guarantee(), Parts(compressors=(compressor("secret"),), aggregators=(), unprotected=()))
