import numpy as np
import pytest

from harness.contracts.privacy import Membership
from harness.errors import HarnessError, PluginError
from harness.evaluation.membership import check_truth, draw_members

MEMBERS = np.arange(0, 60)
OTHERS = np.arange(60, 80)


def _rng(seed=0):
    return np.random.default_rng(seed)


def test_all_non_members_and_as_many_members():
    members, others = draw_members(MEMBERS, OTHERS, None, None, _rng())
    np.testing.assert_array_equal(others, OTHERS)
    assert len(members) == 20
    assert len(np.unique(members)) == 20
    assert np.isin(members, MEMBERS).all()
    assert (np.diff(members) > 0).all()


def test_the_limit_counts_records_a_side():
    for limit in (1, 7):
        members, others = draw_members(MEMBERS, OTHERS, None, limit, _rng())
        assert (len(members), len(others)) == (limit, limit)
        assert np.isin(others, OTHERS).all()
    assert len(draw_members(OTHERS, MEMBERS, None, 100, _rng())[0]) == 20


def test_the_draw_depends_on_the_seed_alone():
    first = draw_members(MEMBERS, OTHERS, None, 7, _rng(1))
    again = draw_members(MEMBERS[::-1], OTHERS[::-1], None, 7, _rng(1))
    other = draw_members(MEMBERS, OTHERS, None, 7, _rng(2))
    for side in (0, 1):
        np.testing.assert_array_equal(first[side], again[side])
        assert not np.array_equal(first[side], other[side])


def test_every_record_is_equally_likely():
    rng = _rng()
    counts = np.zeros(80)
    for _ in range(2000):
        for side in draw_members(MEMBERS, OTHERS, None, 10, rng):
            counts[side] += 1
    # Binomial(2000, 1/6) and (2000, 1/2): five standard deviations are 83 and 112.
    assert np.abs(counts[MEMBERS] - 2000 / 6).max() < 84
    assert np.abs(counts[OTHERS] - 1000).max() < 112


def test_groups_are_drawn_whole_but_for_the_last():
    groups = np.repeat(np.arange(20), 4)  # members: groups 0..14, others: 15..19
    for seed in range(10):
        for side in draw_members(MEMBERS, OTHERS, groups, 10, _rng(seed)):
            sizes = np.bincount(groups[side])
            assert sorted(sizes[sizes > 0]) == [2, 4, 4]
    first = {
        tuple(np.unique(groups[draw_members(MEMBERS, OTHERS, groups, 10, _rng(s))[0]])) for s in range(10)
    }
    assert len(first) > 5


@pytest.mark.parametrize("grouped", [False, True])
def test_with_labels_both_sides_have_equally_many_of_each_class(grouped):
    labels = np.concatenate([np.repeat([0, 1, 2], [40, 17, 3]), np.repeat([0, 1, 3], [5, 9, 6])])
    groups = np.arange(80) // 2 if grouped else None
    for limit, total in ((None, 14), (8, 8), (100, 14)):
        members, others = draw_members(MEMBERS, OTHERS, groups, limit, _rng(), labels)
        assert np.isin(members, MEMBERS).all()
        assert np.isin(others, OTHERS).all()
        counts = np.bincount(labels[members], minlength=4)
        assert counts.tolist() == np.bincount(labels[others], minlength=4).tolist()
        assert counts.sum() == total
        assert (counts <= [5, 9, 0, 0]).all()
        again = draw_members(MEMBERS[::-1], OTHERS[::-1], groups, limit, _rng(), labels)
        assert np.array_equal(again, (members, others))


def test_with_labels_every_record_of_a_class_is_equally_likely():
    labels, rng = np.tile([0, 0, 0, 1], 20), _rng()
    counts = np.zeros(80)
    for _ in range(2000):
        for side in draw_members(MEMBERS, OTHERS, None, 10, rng, labels):
            counts[side] += 1
    # Half of the 20 others, a sixth of the 60 members, whatever the class.
    assert np.abs(counts[MEMBERS] - 2000 / 6).max() < 84
    assert np.abs(counts[OTHERS] - 1000).max() < 112


def test_sides_without_a_common_class_are_refused():
    with pytest.raises(HarnessError, match="no class in common"):
        draw_members(MEMBERS, OTHERS, None, None, _rng(), np.repeat([0, 1], [60, 20]))


def test_a_group_or_record_on_both_sides_is_refused():
    groups = np.repeat(np.arange(8), 10)
    groups[60] = 0
    with pytest.raises(HarnessError, match="share 1 groups"):
        draw_members(MEMBERS, OTHERS, groups, None, _rng())
    with pytest.raises(HarnessError, match=r"share 2 records \(e.g. 58\)"):
        draw_members(MEMBERS, np.arange(58, 70), None, None, _rng())


def test_an_empty_side_and_a_limit_of_nothing_are_refused():
    with pytest.raises(HarnessError, match="60 and 0"):
        draw_members(MEMBERS, np.array([], dtype=int), None, None, _rng())
    with pytest.raises(HarnessError, match="at least 1"):
        draw_members(MEMBERS, OTHERS, None, 0, _rng())


TRUTH = np.repeat([True, False], [3, 2])


@pytest.mark.parametrize(
    ("scores", "is_member", "words"),
    [
        (np.zeros(5), np.zeros(5) > 0.5, "is wrong for 3 of 5 records"),
        (np.zeros(5), ~TRUTH, "is wrong for 5 of 5 records"),
        (np.zeros(4), TRUTH[:4], r"scores of its Membership is \(4,\), not \(5,\)"),
        (np.zeros((5, 1)), TRUTH, r"scores of its Membership is \(5, 1\)"),
        (np.zeros(5), TRUTH[:4], r"is_member of its Membership is \(4,\)"),
        (None, TRUTH, "scores of its Membership"),
    ],
)
def test_who_is_a_member_is_not_for_the_attack_to_say(scores, is_member, words):
    with pytest.raises(PluginError, match=f"^guess: .*{words}"):
        check_truth("guess", Membership(scores, is_member), 3, 2)


@pytest.mark.parametrize("truth", [TRUTH, TRUTH.astype(int), TRUTH.tolist()])
def test_the_truth_passes_in_any_form(truth):
    check_truth("guess", Membership(np.zeros(5), truth), 3, 2)
