"""Which records a membership attack is tested on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harness.errors import HarnessError, PluginError

if TYPE_CHECKING:
    from harness.contracts.privacy import Membership


def draw_members(
    member_positions: np.ndarray,
    non_member_positions: np.ndarray,
    groups: np.ndarray | None,
    limit: int | None,
    rng: np.random.Generator,
    labels: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Equally many members and non-members, as sorted positions, drawn alike and without replacement.

    Each side has the size of the smaller one, at most `limit` (records per side; None: no limit), so with fewer
    non-members than members all non-members are used. groups: the group of every position of the pool, or None. With
    groups, both sides are drawn group by group in random order, the last group cut to size, so that members are as
    clustered as non-members. labels: the class of every position, given where members may be of other classes than
    non-members: both sides then have equally many records of each class, as many as the smaller side has, so that
    what is scored is membership and not the class. The order of the positions given does not matter. Raises
    HarnessError where a side is empty, where the sides share a record or a group, where they share no class, and for
    limit < 1.
    """
    sides = [np.unique(np.asarray(side, dtype=np.int64)) for side in (member_positions, non_member_positions)]
    if not all(len(side) for side in sides):
        raise HarnessError(
            f"a membership attack needs members and non-members, not {len(sides[0])} and {len(sides[1])}"
        )
    if limit is not None and limit < 1:
        raise HarnessError(f"the limit must be at least 1 record a side, not {limit}")
    _check_disjoint("record", *sides)
    if groups is not None:
        _check_disjoint("group", *(np.unique(groups[side]) for side in sides))
    size = min(*(len(side) for side in sides), *([] if limit is None else [limit]))
    if labels is None:
        members, non_members = (_draw(side, groups, size, rng) for side in sides)
    else:
        quotas = _quotas(labels[sides[0]], labels[sides[1]], size, rng)
        members, non_members = (
            _of_each_class(_shuffled(side, groups, rng), labels, quotas) for side in sides
        )
    return members, non_members


def check_truth(name: str, found: Membership, members: int, non_members: int) -> None:
    """Raises PluginError where an attack's result is about other records than it was given, or has the truth wrong.

    One score and one is_member per record, members first, as in the view. The engine knows the members and takes no
    attack's word for it.
    """
    truth = np.repeat([True, False], [members, non_members])
    for field, value in (("scores", found.scores), ("is_member", found.is_member)):
        shape = np.shape(value)
        if shape != truth.shape:
            raise PluginError(
                f"{name}: {field} of its Membership is {shape}, not ({len(truth)},): one a record, the {members} "
                f"members first, then the {non_members} non-members"
            )
    wrong = int((np.asarray(found.is_member).astype(bool) != truth).sum())
    if wrong:
        raise PluginError(
            f"{name}: is_member of its Membership is wrong for {wrong} of {len(truth)} records: it is the truth, True "
            f"for the {members} members, which come first, False for the {non_members} others; guesses go into scores"
        )


def _draw(
    positions: np.ndarray, groups: np.ndarray | None, size: int, rng: np.random.Generator
) -> np.ndarray:
    return np.sort(_shuffled(positions, groups, rng)[:size])


def _shuffled(positions: np.ndarray, groups: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    shuffled = rng.permutation(positions)
    if groups is not None:
        # Records stay shuffled inside their group, so that the cut of the last group is random too.
        units = np.unique(groups[shuffled], return_inverse=True)[1]
        rank = rng.permutation(int(units.max()) + 1)
        shuffled = shuffled[np.argsort(rank[units], kind="stable")]
    return shuffled


def _quotas(one: np.ndarray, other: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """How many records of each class a side gets, at most `size` in all, from the labels of both sides."""
    classes = 1 + int(max(one.max(), other.max()))
    both = np.minimum(np.bincount(one, minlength=classes), np.bincount(other, minlength=classes))
    if not both.any():
        raise HarnessError(
            "members and non-members have no class in common, so that a membership attack would only tell classes "
            "apart: let more clients take part"
        )
    places = rng.permutation(np.repeat(np.arange(classes), both))[:size]
    return np.bincount(places, minlength=classes)


def _of_each_class(shuffled: np.ndarray, labels: np.ndarray, quotas: np.ndarray) -> np.ndarray:
    """The first records of each class, as many as its quota; sorted."""
    own = labels[shuffled]
    chosen = [shuffled[own == label][:quota] for label, quota in enumerate(quotas)]
    return np.sort(np.concatenate(chosen))


def _check_disjoint(what: str, members: np.ndarray, non_members: np.ndarray) -> None:
    shared = np.intersect1d(members, non_members)
    if len(shared):
        raise HarnessError(f"members and non-members share {len(shared)} {what}s (e.g. {shared[0]})")
