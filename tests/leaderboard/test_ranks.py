"""Ranks across boards: which blocks and methods count, what is claimed of planted and of equal methods."""

import hashlib
import math
from itertools import pairwise

import numpy as np
import pytest
import synthetic
from scipy.stats import friedmanchisquare, wilcoxon

from harness.leaderboard.board import boards
from harness.leaderboard.columns import BY_KEY
from harness.leaderboard.rank_figures import BLOCKS, PAIRS, _ranking, diagram, ranks, verdict
from harness.leaderboard.ranks import ALPHA, MOST, Ranking, rank, rankings
from harness.leaderboard.submission import parse

ACCURACY = BY_KEY["accuracy"]


def data(name):
    """The fingerprint of a data set."""
    return hashlib.sha256(name.encode()).hexdigest()


def submission(board, scores, name="base", attacked=None, **fields):
    """scores: (defence, aggregator, compressor) -> accuracy. attacked: -> accuracies under Byzantine attacks."""
    cells = [
        synthetic.cell((*axes, "none", "none"), "clean", {"accuracy": [value, value]}, name)
        for axes, value in scores.items()
    ]
    for axes, values in (attacked or {}).items():
        cells += [
            synthetic.cell((*axes, "byzantine", f"attack{i}"), "byzantine", {"accuracy": [value]}, name)
            for i, value in enumerate(values)
        ]
    made = {"name": board, "seeds": [0, 1], "fingerprint": data(board), **fields.pop("scenario", {})}
    return parse(synthetic.plain(name, cells, scenario=made, **fields), board)


def of(found, axis="defence", key="accuracy", board=None):
    ranked, _ = rankings(boards(found))
    return next(one for one in ranked if (one.axis, one.column.key, one.board) == (axis, key, board))


def planted(blocks, methods, lead=0.3, seed=0):
    """(name, scores) of blocks with noise, in which the method `m1` is better by `lead`."""
    draw = np.random.default_rng(seed)
    table = draw.normal(0.5, 0.1, (blocks, methods))
    table[:, 1] += lead
    return table, [(f"b{i}", {f"m{j}": {"x": v} for j, v in enumerate(row)}) for i, row in enumerate(table)]


# which blocks and methods -------------------------------------------------------------------------


def test_a_block_is_a_data_set_over_the_configurations_that_methods_share():
    found = [
        submission(
            "a",
            {
                ("none", "mean", "none"): 0.9,
                ("none", "krum", "none"): 0.5,
                ("dp-sgd(epsilon=8)", "mean", "none"): 0.6,
            },
        ),
        submission("b", {("none", "mean", "none"): 0.7, ("dp-sgd(epsilon=1)", "mean", "none"): 0.8}),
    ]
    one = of(found)
    assert one.blocks == ("a v1", "b v1")
    assert set(one.methods) == {"none", "dp-sgd"}
    table = {method: one.table[:, i].tolist() for i, method in enumerate(one.methods)}
    assert table == {"none": [0.9, 0.7], "dp-sgd": [0.6, 0.8]}  # krum's 0.5 has no partner
    assert one.ranks.tolist() == [1.5, 1.5]


def test_equal_means_tie_whatever_numbers_they_are_of():
    """0.51 + 0.56 and 0.50 + 0.57 are halved to numbers that differ in the last digit."""
    scores = {
        "a": {("mean", "none"): 0.51, ("krum", "none"): 0.56},
        "b": {("mean", "none"): 0.5, ("krum", "none"): 0.57},
    }
    one = rank("defence", ACCURACY, [("first", scores), ("second", scores)])
    assert one.ranks.tolist() == [1.5, 1.5]
    assert one.pairs[0].share == 0.5


def test_boards_on_one_data_set_are_one_block():
    """They share test records, so what repeats on them is no further evidence."""
    two = {("none", "mean", "none"): 0.9, ("dp-sgd", "mean", "none"): 0.6}
    xrays = {"fingerprint": data("x-rays")}
    found = [
        submission("a", two, scenario=xrays),
        submission(
            "b", {**two, ("none", "mean", "none"): 0.7, ("mart", "mean", "none"): 0.1}, scenario=xrays
        ),
        submission("c", two),
    ]
    one = of(found)
    assert one.blocks == ("a v1 + b v1", "c v1")
    table = {method: one.table[:, i].tolist() for i, method in enumerate(one.methods)}
    assert table == {"none": pytest.approx([0.8, 0.9]), "dp-sgd": pytest.approx([0.6, 0.6])}
    with pytest.raises(StopIteration):
        of(found[:2])  # a data set alone shows nothing across data


def test_several_settings_of_a_method_count_as_their_mean_and_submissions_as_theirs():
    both = {("dp-sgd(epsilon=8)", "mean", "none"): 0.6, ("dp-sgd(epsilon=1)", "mean", "none"): 0.2}
    found = [
        submission("a", {("none", "mean", "none"): 0.9, **both}),
        submission("a", {("none", "mean", "none"): 0.5}, "other"),
        submission("b", {("none", "mean", "none"): 0.7, ("dp-sgd(epsilon=4)", "mean", "none"): 0.8}),
    ]
    one = of(found)
    table = {method: one.table[:, i] for i, method in enumerate(one.methods)}
    assert table["none"] == pytest.approx([0.7, 0.7])
    assert table["dp-sgd"] == pytest.approx([0.4, 0.8])


def test_worse_than_guessing_ranks_as_guessing():
    rows = {"a": [0.5, 0.3], "b": [0.4, 0.2], "c": [0.8, 0.9]}
    found = [
        parse(
            synthetic.plain(
                "base",
                [
                    synthetic.cell((m, "mean", "none", "curious", "loss"), "privacy", {"mia_auc": [v[i]] * 2})
                    for m, v in rows.items()
                ],
                scenario={"name": board, "seeds": [0, 1], "fingerprint": data(board)},
            ),
            board,
        )
        for i, board in enumerate(("x", "y"))
    ]
    one = of(found, key="mia")
    assert dict(zip(one.methods, one.ranks.tolist(), strict=True)) == {"a": 1.5, "b": 1.5, "c": 3.0}
    assert {(pair.first, pair.second): pair.share for pair in one.pairs}["a", "b"] == 0.5


def test_what_cannot_be_compared_takes_no_part():
    two = {("none", "mean", "none"): 0.9, ("dp-sgd", "mean", "none"): 0.6}
    old = submission("c", two, scenario={"version": 1})
    new = submission("c", two, scenario={"version": 2})
    unofficial = submission(
        "a", {**two, ("mine", "mean", "none"): 1.0}, "me", official=False, unofficial_because=["x"]
    )
    found = [submission("a", two), submission("b", two), old, new, unofficial]
    one = of(found)
    assert one.blocks == ("a v1", "b v1", "c v2")
    assert "mine" not in (*one.methods, *one.left_out)


def test_the_largest_complete_part_of_the_table_is_ranked():
    def scores(*methods):
        return {m: {"x": 0.1 * i} for i, m in enumerate(methods)}

    one = rank(
        "defence",
        ACCURACY,
        [("1", scores("a", "b", "c")), ("2", scores("a", "b", "c")), ("3", scores("a", "b"))],
    )
    assert isinstance(one, Ranking)
    assert (one.table.shape, one.left_out) == ((3, 2), ("c",))  # six cells by either choice: more blocks win
    assert rank("defence", ACCURACY, [("1", scores("a", "b")), ("2", scores("c", "d"))]) == (
        "no two of them are on the same two"
    )
    many = scores(*map(str, range(MOST + 1)))
    assert (
        rank("defence", ACCURACY, [("1", many), ("2", many)])
        == f"more than {MOST} of them are on two or more"
    )


def test_within_a_board_a_block_is_an_attack_on_training():
    attacked = {
        (("none"), rule, "none"): [0.1 * i, 0.2 + 0.1 * i, 0.3]
        for i, rule in enumerate(("mean", "krum(f=1)", "median"))
    }
    found = submission("a", dict.fromkeys(attacked, 0.9), attacked=attacked)
    one = of([found], "aggregator", "byzantine", "a v1")
    assert one.methods == ("median", "krum(f=1)", "mean")
    assert one.blocks == tuple(f"byzantine / attack{i}" for i in range(3))
    assert one.table == pytest.approx(np.array([[0.2, 0.1, 0.0], [0.4, 0.3, 0.2], [0.3, 0.3, 0.3]]))
    assert one.ranks == pytest.approx([4 / 3, 2, 8 / 3])
    with pytest.raises(StopIteration):  # two methods or two attacks describe nothing
        of(
            [submission("a", dict.fromkeys(attacked, 0.9), attacked=dict(list(attacked.items())[:2]))],
            "aggregator",
            "byzantine",
            "a v1",
        )


# what is claimed ----------------------------------------------------------------------------------


def test_a_planted_method_is_found_and_the_tests_are_scipys():
    table, blocks = planted(12, 4)
    one = rank("defence", ACCURACY, blocks)
    assert one.methods[0] == "m1"
    expected = friedmanchisquare(*table.T)
    assert (one.test.statistic, one.test.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert one.differs
    assert (0,) not in one.groups
    assert not any(0 in group for group in one.groups)  # nobody is joined with the planted one
    first = one.pairs[0]
    assert first.first == "m1"
    p = sorted(wilcoxon(table[:, i] - table[:, j]).pvalue for i in range(4) for j in range(i))
    assert first.p == pytest.approx(p[0])
    assert first.adjusted == pytest.approx(6 * p[0])
    assert all(a.adjusted <= b.adjusted for a, b in pairwise(one.pairs))
    assert "rejects that all methods score alike" in " ".join(verdict(one))


def test_equal_methods_are_claimed_to_differ_as_rarely_as_stated():
    rejected = 0
    for seed in range(300):
        _, blocks = planted(12, 3, lead=0, seed=seed)
        one = rank("defence", ACCURACY, blocks)
        rejected += one.differs
        if not one.differs:
            assert one.groups == []
            assert "this order may be chance" in verdict(one)[0]
    assert (
        300 * ALPHA - 4 * math.sqrt(300 * ALPHA * 0.95)
        < rejected
        < 300 * ALPHA + 4 * math.sqrt(300 * ALPHA * 0.95)
    )


@pytest.mark.parametrize(
    ("blocks", "methods", "least"), [(2, 2, 0.5), (5, 2, 0.0625), (6, 2, 0.03125), (2, 3, math.exp(-2))]
)
def test_too_few_blocks_are_said_with_the_smallest_p_that_they_can_give(blocks, methods, least):
    """Wilcoxon's exact p is 2^(1-n); Friedman's statistic is at most n(k-1),
    and chi-squared(2) exceeds x with probability exp(-x/2)."""
    _, made = planted(blocks, methods, lead=9)
    one = rank("defence", ACCURACY, made)
    assert one.least_p == pytest.approx(least)
    said = " ".join(verdict(one))
    assert ("That is too few" in said) == (least > ALPHA)
    assert not one.differs or least <= ALPHA


# what is drawn ------------------------------------------------------------------------------------


def test_the_diagram_is_to_scale():
    _, blocks = planted(30, 5)
    one = rank("defence", ACCURACY, blocks)
    drawn = diagram(one)
    assert [row["method"] for row in drawn["rows"]] == list(one.methods)
    assert drawn["left"] < 200  # no wider than its longest text needs: phones are narrow
    unit = (drawn["right"] - drawn["left"]) / 4
    for row, average in zip(drawn["rows"], one.ranks, strict=True):
        assert row["x"] == pytest.approx(drawn["left"] + unit * (average - 1), abs=0.06)
    assert drawn["distance"]["x"] == pytest.approx(drawn["left"] + unit * one.critical_difference, abs=0.06)
    assert len(drawn["bars"]) == len(one.groups) > 0
    for bar, group in zip(drawn["bars"], one.groups, strict=True):
        inside = [row["y"] for row in drawn["rows"] if bar["top"] < row["y"] < bar["bottom"]]
        assert inside == [drawn["rows"][place]["y"] for place in group]


def test_the_page_has_every_ranking_and_says_what_is_not_ranked():
    two = {("none", "mean", "none"): 0.9, ("dp-sgd", "mean", "none"): 0.6}
    found = boards([submission("a", two), submission("b", two)])
    shown = ranks(found)
    (one,) = shown["groups"]["Across boards"]
    assert one["head"] == ["defence", "average rank", "mean", "a v1", "b v1"]
    assert one["table"] == [
        ["none", "1.00", "90.0", "90.0", "90.0"],
        ["dp-sgd", "2.00", "60.0", "60.0", "60.0"],
    ]
    assert one["pairs"] == [["none", "dp-sgd", "100 %", "100 – 100 %", "0.5"]]
    assert shown["unranked"] == [
        "aggregators, as no two of them are on the same two data sets: Clean accuracy",
        "compressors, as no two of them are on the same two data sets: Clean accuracy",
    ]
    _, many = planted(BLOCKS + 1, 13)
    wide = rank("defence", ACCURACY, many)
    assert len(wide.pairs) == 78 > PAIRS


def test_values_that_rank_differently_are_written_differently():
    """Else two methods of the same number have ranks 1 and 2; equal ones stay short."""
    blocks = [
        ("a", {"x": {0: 0.50123}, "y": {0: 0.50131}, "z": {0: 0.4}}),
        ("b", {"x": {0: 0.7}, "y": {0: 0.7}, "z": {0: 0.6}}),
    ]
    table = _ranking(rank("defence", ACCURACY, blocks))["table"]
    assert {line[0]: line[3:] for line in table} == {
        "x": ["50.12", "70.0"],
        "y": ["50.13", "70.0"],
        "z": ["40.00", "60.0"],
    }


def test_a_small_p_is_written_as_less():
    _, many = planted(30, 5)
    said = " ".join(verdict(rank("defence", ACCURACY, many)))
    assert "p < 0.001)" in said
    assert "= <" not in said
