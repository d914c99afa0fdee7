"""What is wrong with a submission's guarantees, as far as the file alone tells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from harness.contracts.compressor import ModelCompressor
from harness.entry_points import BUILTIN
from harness.leaderboard.check_scores import gathered, same_release
from harness.leaderboard.known_scores import Known, asked
from harness.leaderboard.publishable import cell_name
from harness.leaderboard.submission import Cell, Claim, Seed, Submission
from harness.privacy.lineage import BREAKS, CREATES
from harness.registry import registry

if TYPE_CHECKING:
    from harness.contracts.defence import Defence
    from harness.grid import Cell as Planned

# Noise is chosen so that at least 99.9 % of the target epsilon is spent (`accounting.noise_multiplier`).
SPENT = 0.99
# Above this target less may be spent: accountants switch from one bound to another, or noise is the least there is.
LARGEST = 100.0


def impossible(submission: Submission) -> Iterator[str]:
    """Claims that no run can have written, in sentences."""
    yield from gathered(
        found
        for cell in submission.cells
        if cell.guarantee is not None
        for found in (*_named(cell, _impossible(cell, cell.guarantee)), *_spent(cell, cell.guarantee))
    )


def inconsistent(submission: Submission, known: dict[str, Known]) -> Iterator[str]:
    """Claims that no run of one state of this engine, on one device and data set, can have written, in sentences."""
    measured = bool(asked(submission, ("epsilon",), known))
    yield from gathered(
        found
        for cell in submission.cells
        if cell.status == "scored"
        for found in _named(
            cell, _unclaimed(cell) if cell.guarantee is None else _unfounded(cell, cell.guarantee, measured)
        )
    )
    yield from gathered(found for cells in same_release(submission) for found in _differing(cells))


def unlike_the_scenario(found: Sequence[tuple[Cell, Planned]]) -> Iterator[str]:
    """Claims that are not what the scenario asks of its defences, in sentences. found: from `planned_cells`.

    Noise, rates and steps are not in a file, so epsilon is compared with its target. Parameters are compared for
    built-in defences only: another's `epsilon` need not mean what a whole training spends.
    """
    yield from gathered(_unlike_the_scenario(found))


def _unlike_the_scenario(found: Sequence[tuple[Cell, Planned]]) -> Iterator[tuple[str, str]]:
    for cell, real in found:
        claim = cell.guarantee
        if cell.status != "scored" or claim is None or not claim.by:
            continue
        own = [defence for defence in real.defences if defence.name == claim.by]
        if not own:
            yield cell_name(cell.axes), f"its guarantee is by {claim.by}, which is none of its defences"
        elif len(own) == 1 and registry().entry_of(own[0]).distribution == BUILTIN:
            yield from _named(cell, (*_terms(claim, own[0]), *_target(cell, claim, own[0], real)))


def _named(cell: Cell, texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    return ((cell_name(cell.axes), text) for text in texts)


def _terms(claim: Claim, defence: Defence) -> Iterator[str]:
    """Where unit, neighbours, accountant or delta are not what the defence fixes, or epsilon exceeds the group's."""
    for field, there, here in (
        ("unit", claim.unit, defence.protects),
        ("neighbours", claim.neighbours, defence.neighbours),
        ("accountant", claim.accountant, getattr(defence, "accountant", None)),
    ):
        if here is not None and there != here:
            yield f"its guarantee's {field} is {there} in the file, and {here} by its scenario"
    delta = getattr(defence, "delta", None)
    if delta is not None and not math.isclose(claim.delta, delta, rel_tol=1e-9):
        yield f"its guarantee's delta is {claim.delta:g} in the file, and {delta:g} by its scenario"
    if None not in (claim.epsilon, claim.group_epsilon) and claim.group_epsilon < claim.epsilon * (1 - 1e-9):  # type: ignore[operator]
        yield f"its guarantee's epsilon is {claim.epsilon:g} for one, and {claim.group_epsilon:g} for a group"


def _target(cell: Cell, claim: Claim, defence: Defence, real: Planned) -> Iterator[str]:
    """An epsilon above the target, or so far below it that the noise cannot have been made for that target."""
    target = getattr(defence, "epsilon", None)
    if target is None:
        return
    tuned = any(isinstance(c, ModelCompressor) and c.fine_tuning_rounds for c in real.compressors)
    given = [math.inf if claim.epsilon is None else claim.epsilon]
    given += [seed.scores["epsilon"] for seed in cell.seeds.values() if "epsilon" in seed.scores]
    # If a coin per client decides who takes part, there may be a training in which no client took a step.
    idle = real.scenario.federation.sampling == "poisson"
    for epsilon in dict.fromkeys(given):
        if epsilon > target * (1 + 1e-9) and not tuned:
            yield f"its epsilon is {epsilon:.9g}, and {claim.by} spends at most {target:g} by its scenario"
        elif epsilon < SPENT * target and target <= LARGEST and not (idle and epsilon == 0):
            yield (
                f"its epsilon is {epsilon:.9g}, and {claim.by} makes its noise to spend {target:g} by its scenario"
            )


def _impossible(cell: Cell, claim: Claim) -> Iterator[str]:
    if not 0 < claim.delta < 1:
        yield f"its guarantee's delta is {claim.delta:g}, which is not between 0 and 1"
    breaking = next((step for step in cell.lineage if step.effect == BREAKS), None)
    if claim.holds and breaking is not None:
        yield f"it says that its guarantee holds, and its lineage that {breaking.part} breaks it"


def _spent(cell: Cell, claim: Claim) -> Iterator[tuple[str, str]]:
    """Where the worst epsilon over seeds is not the guarantee's, as it must be."""
    spent = max((seed.values.get("epsilon", 0.0) for seed in cell.seeds.values()), default=0.0)
    guaranteed = math.inf if claim.epsilon is None or not claim.holds else claim.epsilon
    if math.isclose(spent, guaranteed, rel_tol=1e-9):
        return
    for number, seed in cell.seeds.items():
        if "epsilon" in seed.values:
            said = f"the worst epsilon of its seeds is {spent:g}, the guarantee's {guaranteed:g}"
            yield cell_name(cell.axes, number), said


def _unclaimed(cell: Cell) -> Iterator[str]:
    """Traces of a guarantee in a cell that claims none."""
    seeds = _sound(cell)
    if seeds and all("epsilon" in seed.values for seed in seeds):
        yield "its seeds have an epsilon, and it claims no guarantee"
    elif any(step.effect in (CREATES, BREAKS) for step in cell.lineage):
        yield "its lineage tells of a guarantee, and it claims none"


def _unfounded(cell: Cell, claim: Claim, measured: bool) -> Iterator[str]:
    """What a claim lacks, or where it contradicts itself. measured: whether the run computed epsilon."""
    if claim.holds and not any(step.effect == CREATES for step in cell.lineage):
        yield "it claims a guarantee, and no step of its lineage creates one"
    if claim.holds and claim.broken_by:
        yield f"it says that its guarantee holds, and that this breaks it: {claim.broken_by[0]}"
    seeds = _sound(cell)
    if measured and not all("epsilon" in seed.values for seed in seeds):
        yield "it claims a guarantee, and epsilon is missing in its scores"
    deltas = [seed.values["delta"] for seed in seeds if "delta" in seed.values]
    if deltas and len(deltas) == len(seeds) and not math.isclose(max(deltas), claim.delta, rel_tol=1e-9):
        yield f"the largest delta of its seeds is {max(deltas):g}, the guarantee's {claim.delta:g}"


def _differing(cells: Sequence[Cell]) -> Iterator[tuple[str, str]]:
    """Claims that differ between cells of one released model: attacks on it do not change what is guaranteed."""
    first: dict[tuple[str, ...], Cell] = {}
    for cell in cells:
        # A claim is the worst over the seeds that have scores, so cells with other such seeds may claim something else.
        numbers = tuple(sorted(number for number, seed in cell.seeds.items() if seed.error is None))
        other = first.setdefault(numbers, cell)
        if cell.guarantee != other.guarantee:
            yield (
                cell_name(cell.axes),
                f"it claims {_said(cell.guarantee)}, and {cell_name(other.axes)}, of the same training, "
                f"{_said(other.guarantee)}",
            )


def _said(claim: Claim | None) -> str:
    if claim is None:
        return "no guarantee"
    epsilon = math.inf if claim.epsilon is None else claim.epsilon
    broken = "" if claim.holds else ", broken"
    return f"epsilon {epsilon:.9g} at delta {claim.delta:.9g} for a {claim.unit}{broken}"


def _sound(cell: Cell) -> list[Seed]:
    """The seeds that have scores and no error."""
    return [seed for seed in cell.seeds.values() if seed.error is None and seed.values]
