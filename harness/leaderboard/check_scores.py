"""What is wrong with a submission's scores, units, intervals and curves, as far as the file alone tells."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from harness.entry_points import BUILTIN
from harness.evaluation.constant import FLAG as CONSTANT
from harness.evaluation.flags import FLAGS
from harness.leaderboard.known_scores import Known, asked, bounds
from harness.leaderboard.publishable import cell_name
from harness.leaderboard.submission import Cell, Seed, Submission
from harness.registry import registry

if TYPE_CHECKING:
    from harness.contracts.metric import Metric
    from harness.grid import Cell as Planned

# By family, the score without which a cell says nothing of what its attack does. Privacy attacks have no common one.
MAIN = {
    "clean": "accuracy",
    "byzantine": "accuracy",
    "evasion": "robust_accuracy",
    "backdoor": "attack_success_rate",
}
RELEASED = ("clean", "evasion", "privacy")  # attacks on one released model leave its clean scores as they are
# How far accuracies of the same records may differ: under an attack clean images are predicted again, which a GPU may
# round differently.
ROUNDED = 0.01
BALANCED = "balanced_accuracy"
# Shares of test records that are classified correctly -> the field of a cell that holds the number of these records.
COUNTED = {"accuracy": "tested", "robust_accuracy": "attacked", "attacked_clean_accuracy": "attacked"}


def impossible(submission: Submission, known: dict[str, Known]) -> Iterator[str]:
    """What no run can have written, in sentences."""
    yield from _units(submission, known)
    yield from gathered(
        (cell_name(cell.axes, number), text)
        for cell in submission.cells
        for number, seed in cell.seeds.items()
        for text in _impossible(submission, cell, seed, known)
    )


def inconsistent(submission: Submission, known: dict[str, Known]) -> Iterator[str]:
    """What no run of one state of this engine, on one device and data set, can have written, in sentences."""
    wanted = asked(submission, MAIN.values(), known)
    yield from gathered(
        (cell_name(cell.axes, number), text)
        for cell in submission.cells
        for number, seed in cell.seeds.items()
        for text in (*_beside_scores(seed), *_main_score(cell, seed, wanted))
    )
    yield from _clean_scores(submission, known)


def same_release(submission: Submission) -> Iterator[list[Cell]]:
    """For each row, the scored cells on its released model: without an attack, or with one on that model."""
    rows: dict[tuple[str, ...], list[Cell]] = {}
    for cell in submission.cells:
        if cell.status == "scored" and cell.family in RELEASED:
            rows.setdefault(cell.axes[:3], []).append(cell)
    yield from rows.values()


def unlike_its_records(submission: Submission, found: Sequence[tuple[Cell, Planned]]) -> Iterator[str]:
    """Accuracies that cannot come from the test records behind them, in sentences. found: from `planned_cells`."""
    yield from gathered(_unlike_records(submission, found))


def _unlike_records(
    submission: Submission, found: Sequence[tuple[Cell, Planned]]
) -> Iterator[tuple[str, str]]:
    """(cell in words, what is wrong)."""
    ours: dict[int, set[str]] = {}
    for cell, real in found:
        if cell.status != "scored":
            continue
        scenario = real.scenario
        if id(scenario) not in ours:
            ours[id(scenario)] = _own_scores(scenario.metrics)
        counted = {name: field for name, field in COUNTED.items() if name in ours[id(scenario)]}
        random = any(defence.stochastic for defence in real.defences)
        for number, seed in cell.seeds.items():
            name = cell_name(cell.axes, number)
            yield from ((name, text) for text in _shares(cell, seed, counted))
            if {"accuracy", BALANCED} <= ours[id(scenario)]:
                yield from ((name, text) for text in _balanced(seed))
            if "accuracy" in counted and "attacked_clean_accuracy" in counted:
                whole = submission.scenario.test_records
                yield from ((name, text) for text in _part(cell, seed, whole, random))


def gathered(found: Iterable[tuple[str, str]]) -> Iterator[str]:
    """`CELL: what is wrong`, once for all cells of which the same is."""
    cells: dict[str, list[str]] = {}
    for name, text in found:
        cells.setdefault(text, []).append(name)
    for text, (first, *others) in cells.items():
        yield f"{first}: {text}" + (f" (so it is in {len(others)} more)" if others else "")


# of one file --------------------------------------------------------------------------------------


def _units(submission: Submission, known: dict[str, Known]) -> Iterator[str]:
    """Units and directions of known scores that are missing, or not those that the scores have here."""
    every = (seed for cell in submission.cells for seed in cell.seeds.values())
    used = {name for seed in every for name in (*seed.scores, *seed.undefined, *seed.intervals)}
    for name in sorted(used | submission.units.keys()):
        if name not in known:
            continue
        here, there = known[name], submission.units.get(name)
        if there is None:
            yield f"the unit of {name} is missing"
            continue
        if here.unit is not None and there.unit != here.unit:
            yield f"{name} has the unit {there.unit or 'none'!r}, and here {here.unit or 'none'!r}"
        if there.direction != here.direction:
            yield f"{name} is better {there.direction} in the file, and {here.direction} here"


def _clean_scores(submission: Submission, known: dict[str, Known]) -> Iterator[str]:
    """Clean scores of a released model that are not the same under every attack on it."""
    for cells in same_release(submission):
        for number in dict.fromkeys(number for cell in cells for number in cell.seeds):
            sound = [cell for cell in cells if number in cell.seeds and cell.seeds[number].error is None]
            names = dict.fromkeys(name for cell in sound for name in cell.seeds[number].values)
            for name in names:
                if name in known and known[name].clean and not known[name].measured:
                    yield from _differing(sound, number, name)


def _differing(cells: Sequence[Cell], number: str, name: str) -> Iterator[str]:
    """The cells whose score is not the most frequent one."""
    said = {cell.axes: _said(cell.seeds[number].values.get(name)) for cell in cells}
    usual = Counter(said.values()).most_common(1)[0][0]
    other = next(axes for axes, text in said.items() if text == usual)
    for axes, text in said.items():
        if text != usual:
            yield (
                f"{cell_name(axes, number)}: {name} is {text}, and {usual} in {cell_name(other, number)}, "
                "which is of the same released model"
            )


def _said(value: float | None) -> str:
    return "missing" if value is None else repr(value)


def _own_scores(metrics: Sequence[Metric] | None) -> set[str]:
    """Scores that built-in metrics compute for a scenario: by the same name, another package may mean something else.

    For the default metrics (None), only the scores that are checked here.
    """
    if metrics is None:
        return {*COUNTED, BALANCED}
    own = [metric for metric in metrics if registry().entry_of(metric).distribution == BUILTIN]
    return {name for metric in own for name in metric.scores}


# of one seed --------------------------------------------------------------------------------------


def _impossible(submission: Submission, cell: Cell, seed: Seed, known: dict[str, Known]) -> Iterator[str]:
    if cell.status != "scored" and seed.values:
        yield f"it is {cell.status}, and has scores"
    if cell.status == "scored" and not (seed.values or seed.error):
        yield "it is scored, and has neither scores nor an error"
    for name, value in seed.values.items():
        low, high = bounds(name, submission, known)
        if not math.isnan(value) and not low <= value <= high:
            yield f"{name} is {value:g}, which is not from {low:g} to {high:g}"
    for name, (start, end) in seed.intervals.items():
        low, high = bounds(name, submission, known)
        if not low <= start <= end <= high:
            yield f"the interval of {name} is {start:g} to {end:g}, which is none from {low:g} to {high:g}"
    wrong = next(((place, value) for place, value in seed.curve if not 0 <= value <= 1), None)
    if wrong is not None:
        yield f"its curve is {wrong[1]:g} in round {wrong[0]}, which is not from 0 to 1"
    yield from _robust(cell, seed)
    yield from _constant(seed)
    yield from _sizes(seed)


def _beside_scores(seed: Seed) -> Iterator[str]:
    if seed.error is not None and seed.values:
        yield "it has an error and scores beside it"
    for flag in dict.fromkeys(seed.flags):
        if flag not in FLAGS:
            yield f"it has the flag {flag!r}, which this engine gives to no cell"


def _sizes(seed: Seed) -> Iterator[str]:
    """What gzip cannot compress it stores, with 5 bytes a block of at most 64 kB and 18 for the whole."""
    whole, packed = seed.values.get("serialized_bytes", math.nan), seed.values.get("gzip_bytes", math.nan)
    if packed > 1.01 * whole + 64:
        yield f"gzip_bytes is {packed:g}, more than gzip makes of {whole:g} bytes (serialized_bytes)"


def _robust(cell: Cell, seed: Seed) -> Iterator[str]:
    """No more records are classified correctly on both the clean and the adversarial input than on the clean one."""
    robust = seed.values.get("robust_accuracy")
    if robust is None:
        return
    clean = seed.values.get("attacked_clean_accuracy", math.inf)
    if robust > clean:
        yield f"robust_accuracy is {robust:g}, more than the attacked_clean_accuracy of the same records, {clean:g}"
    whole = seed.values.get("accuracy", math.inf)
    if cell.attacked is not None and cell.attacked == cell.tested and robust > whole + ROUNDED:
        yield f"robust_accuracy is {robust:g}, more than the accuracy of the same records, {whole:g}"


def _constant(seed: Seed) -> Iterator[str]:
    """Where the test set has k classes, a model that always predicts one of them has a balanced accuracy of 1/k."""
    balanced = seed.values.get(BALANCED)
    if CONSTANT not in seed.flags or not balanced or math.isnan(balanced):
        return  # 0: the test set has no record of the class that it predicts
    classes = 1 / balanced  # infinite on overflow
    if not (1.5 < classes < math.inf and math.isclose(classes, round(classes), rel_tol=1e-6)):
        yield (
            f"it is flagged {CONSTANT}, and its balanced_accuracy is {balanced:g}, which is not one over the number of "
            "classes"
        )


def _shares(cell: Cell, seed: Seed, counted: Mapping[str, str]) -> Iterator[str]:
    """A share of n records is a whole number divided by n."""
    for name, field in counted.items():
        records, value = getattr(cell, field), seed.scores.get(name)
        if records and value is not None and abs(value * records - round(value * records)) > 1e-3:
            yield f"{name} is {value:.9g}, which is no whole number of the {records} records over {records}"


def _balanced(seed: Seed) -> Iterator[str]:
    """The mean recall over classes is 0 or 1 exactly if the accuracy is, however many records each class has."""
    accuracy, balanced = seed.scores.get("accuracy"), seed.scores.get(BALANCED)
    if accuracy is None or balanced is None:
        return
    for extreme in (0, 1):
        if (accuracy == extreme) != math.isclose(balanced, extreme, abs_tol=1e-9):
            yield f"accuracy is {accuracy:.9g} and {BALANCED} {balanced:.9g}: one is {extreme} and the other is not"


def _part(cell: Cell, seed: Seed, whole: int | None, random: bool) -> Iterator[str]:
    """The attacked records are part of those behind the accuracy, with the same clean answers.

    So among them there are no more correct answers than among all records, and no more wrong ones. whole: size of the
    test split. random: whether the model answers at random; then its answers repeat only on the same set of records.
    """
    part, tested = cell.attacked, cell.tested
    before, accuracy = seed.scores.get("attacked_clean_accuracy"), seed.scores.get("accuracy")
    if not part or not tested or before is None or accuracy is None:
        return
    if part != tested and (tested != whole or part > tested or random):
        return  # two draws from the test split, neither of which need contain the other; or other random answers
    slack = ROUNDED * part + 1e-6
    if before * part > accuracy * tested + slack or (1 - before) * part > (1 - accuracy) * tested + slack:
        yield (
            f"accuracy is {accuracy:.9g} of {tested} records, and attacked_clean_accuracy {before:.9g} of {part} of "
            "them, with the same model"
        )


def _main_score(cell: Cell, seed: Seed, wanted: set[str]) -> Iterator[str]:
    """The main score of the cell's family is missing or undefined. `_impossible` reports seeds without any score."""
    name = MAIN.get(cell.family)
    if name == "attack_success_rate" and seed.values.get("accuracy") == 0:
        return  # a diverged model has no answers that a trigger could turn
    if cell.status != "scored" or seed.error is not None or not seed.values or name not in wanted:
        return
    if name not in seed.values:
        yield f"its {name} is missing"
    elif math.isnan(seed.values[name]):
        yield f"its {name} is undefined"
