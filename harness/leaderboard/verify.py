"""Runs some cells of a submission again and compares every number."""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.comparable import ELSEWHERE, Tolerance, depends_on_rounding
from harness.console.pooling import family
from harness.errors import HarnessError
from harness.evaluation.constant import FLAG as CONSTANT
from harness.evaluation.masking import FLAG as MASKED
from harness.leaderboard.check import contradictions, open_scenario
from harness.leaderboard.citations import selects
from harness.leaderboard.other_code import other_code, same_code, unlisted
from harness.leaderboard.publishable import cell_name, line, shorten
from harness.leaderboard.submission import Cell, Environment, Seed, Submission, Verification
from harness.leaderboard.submit import curve, environment_of

if TYPE_CHECKING:
    from harness.grid import Cell as Planned
    from harness.scenario import Scenario

MAX_DIFFERENCES = 1000
NOTE = "note: "

EXACT = Tolerance(1e-6, 1e-12)
# ELSEWHERE is for another device, other libraries or other code of plugins, and where rounding is by chance. REDRAWN
# replaces it in cells with a defence, except where only rounding differs: device, libraries and code all seed a
# mechanism's noise, so the noise is another draw.
REDRAWN = Tolerance(0.25, 0.1)
# For a guarantee's epsilon and delta, which no training decides, by the tolerance for scores.
ACCOUNTED = {EXACT: Tolerance(1e-6, 0), ELSEWHERE: Tolerance(1e-3, 0), REDRAWN: Tolerance(1e-3, 0)}


def verify(
    submission: Submission,
    *,
    sample: int = 3,
    seed: int = 0,
    device: str = "auto",
    jobs: str | int = "auto",
    root: Path | None = None,
    store: Path | None = None,
    observer: Any = None,
) -> Verification:
    """Re-runs `sample` scored cells, drawn by `seed` and each for one of its seeds, and compares them with the file.

    Whoever knows `seed` in advance knows which cells are looked at. root: the folder in which relative data paths are
    looked up before $HARNESS_DATA. store: where results go and are taken from; None: a new one, so that everything is
    computed.

    Compared are what the file says of its scenario; of all cells, whether they are applicable; and of the drawn ones,
    all scores that are not measurements (by the units that this installation gives them), undefined scores included,
    the validation curve, the guarantee, flags, family, radius and norm. The flag for gradient masking is left out: it
    depends on cells that are not run. The flag for constant predictions may be missing in a file, as in files older
    than the flag, which is noted; where numbers may differ, so may this flag.

    Numbers must agree to 1e-6, with two exceptions. Where device or libraries are not the file's, and in cells that use
    a plugin whose code is not, they must agree to 5 % or 0.02 (whichever is more), or with a defence to 25 % or 0.1
    (see REDRAWN). Where clients train as one program, whose rounding is by chance, they must agree to 5 % or 0.02. In
    both cases only the end of a curve is compared, and epsilon and delta of a guarantee must agree to 1e-3.

    Lines of `differences` that begin with `note: ` say what is not the same here. They do not decide the verdict,
    except for code of plugins: if nothing differs but some plugin of the file has other code here, the verdict is
    `other-code` and not `verified`, since a file can claim any code. Raises HarnessError if nothing can be run: plugins
    or data are missing here, or no cell was scored.
    """
    chosen = draw(submission, sample, seed)
    scenario = open_scenario(submission)
    found = contradictions(submission, scenario)
    with tempfile.TemporaryDirectory(prefix="harness-verify-") as fresh:
        scenario = scenario.model_copy(update={"root": root or Path(fresh)})
        folder = store or Path(fresh) / "store"
        found += _applicability(submission, scenario, device, folder)
        records = _run(scenario, chosen, device, jobs, folder, observer)
    here = _environment(records, device)
    elsewhere, changed = _other_machine(submission.environment, here), other_code(submission)
    same = {id for id, record in records.items() if same_code(submission, record)}
    loose = "compared to 5 % or 0.02, whichever is more; with a defence to 25 % or 0.1, as its noise is drawn anew"
    notes = [*elsewhere, *changed]
    if elsewhere:
        notes.append(f"so numbers are {loose}")
    elif len(same) < len(records):
        notes.append(
            f"so numbers of {len(records) - len(same)} of {len(records)} cells, which use it, are {loose}"
        )
    if changed:
        notes.append(
            "other code than the file's can verify none of it: install that code, and run this again"
        )
    notes += _other_engine(submission.environment, here)
    rounded = 0
    for cell, number in chosen:
        entry = cell.seeds[number]
        record = records.get(entry.id)
        if record is None:
            continue  # a contradiction already: the scenario has no such cell
        name = cell_name(cell.axes, number)
        at_home = not elsewhere and entry.id in same
        tolerance = _tolerance(cell, record, at_home)
        rounded += at_home and tolerance is ELSEWHERE
        found += [
            f"{name}: it uses the {plugin}, which the file does not list"
            for plugin in unlisted(submission, record)
        ]
        mark = record["provenance"]["dataset"]["fingerprint"]
        if mark != submission.scenario.fingerprint:
            found.append(
                f"the data set is another one: {mark[:12]} here, {submission.scenario.fingerprint[:12]} in the file"
            )
        found += [f"{name}: {text}" for text in compare(cell, entry, record, tolerance)]
        if CONSTANT in record["flags"] and CONSTANT not in entry.flags:
            notes.append(
                f"{name}: the model predicts one class for every test image, which the file does not say"
            )
    if rounded:
        notes.append(
            f"clients train as one program in {rounded} of {len(records)} cells, where rounding is by chance, so their "
            "numbers are compared to 5 % or 0.02, whichever is more"
        )
    lines = [line(text) for text in dict.fromkeys([*found, *(NOTE + note for note in notes)])]
    if len(lines) > MAX_DIFFERENCES:
        lines = [*lines[: MAX_DIFFERENCES - 1], f"and {len(lines) - MAX_DIFFERENCES + 1} more"]
    return Verification(
        verdict="diverged" if found else "other-code" if changed or len(same) < len(records) else "verified",
        when=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        cells=len(chosen),
        environment=here,
        differences=tuple(lines),
    )


def _tolerance(cell: Cell, record: Mapping[str, Any], at_home: bool) -> Tolerance:
    """How closely scores must agree. at_home: whether device, libraries and the code of plugins are the file's."""
    if at_home:
        return ELSEWHERE if depends_on_rounding(record) else EXACT
    return ELSEWHERE if cell.defence == "none" else REDRAWN


def draw(submission: Submission, sample: int, seed: int) -> list[tuple[Cell, str]]:
    """At most `sample` scored cells, each with one of its scored seeds, in the file's order.

    Raises HarnessError for a sample below 1, and where no cell has a score.
    """
    if sample < 1:
        raise HarnessError(f"at least one cell must be run, not {sample}")
    candidates = []
    rng = random.Random(seed)
    for cell in submission.cells:
        numbers = [number for number, entry in cell.seeds.items() if entry.scores or entry.undefined]
        if cell.status == "scored" and numbers:
            candidates.append((cell, rng.choice(sorted(numbers))))
    if not candidates:
        raise HarnessError(f"{submission.name}: no cell has a score, so there is nothing to run again")
    picked = rng.sample(range(len(candidates)), min(sample, len(candidates)))
    return [candidates[i] for i in sorted(picked)]


def compare(cell: Cell, entry: Seed, record: Mapping[str, Any], tolerance: Tolerance = EXACT) -> list[str]:
    """What differs between one seed of a cell in the file and the record of its re-run, one line per difference."""
    if record["status"] != "scored":
        error = record["error"] or {}
        said = record["reason"] or f"{error.get('type')}: {error.get('message')}"
        return [f"scored in the file, {record['status']} here: {line(said, 200)}"]
    found = list(_scores(entry, record, tolerance))
    found += _guarantee(cell, record, ACCOUNTED[tolerance])
    silent = CONSTANT not in entry.flags or tolerance is not EXACT
    ignored = {MASKED, CONSTANT} if silent else {MASKED}
    flags = [sorted(set(given) - ignored) for given in (entry.flags, record["flags"])]
    if flags[0] != flags[1]:
        found.append(f"flags: {_listed(flags[0])} in the file, {_listed(flags[1])} here")
    attack = record["attack"] or {}
    for name, there, here in (
        ("family", cell.family, family(dict(record))),
        ("norm", cell.norm, attack.get("norm")),
        ("eps", cell.eps, attack.get("eps")),
    ):
        same = there == here or (name == "eps" and None not in (there, here) and EXACT.agree(there, here))  # type: ignore[arg-type]
        if not same:
            found.append(f"{name}: {there} in the file, {here} here")
    again = curve(record)
    if [number for number, _ in again] != [number for number, _ in entry.curve]:
        found.append(f"curve: {len(entry.curve)} rounds in the file, {len(again)} here")
    else:
        points = list(zip(entry.curve, again, strict=True))
        # With other noise or rounding, earlier rounds differ more than the last one.
        if tolerance is not EXACT:
            points = points[-1:]
        for (number, there), (_, here) in points:
            if not tolerance.agree(there, here):
                found.append(f"curve, round {number}: {there:.9g} in the file, {here:.9g} here")
                break
    return found


# running ------------------------------------------------------------------------------------------


def _applicability(submission: Submission, scenario: Scenario, device: str, store: Path) -> list[str]:
    """Cells that are applicable in the file but not here, or the other way round. This takes no training."""
    from harness.engine import plan

    planned = plan(scenario, device=device, jobs=0, store=store).to_dict()["scenarios"]
    reasons = {cell["id"]: cell["reason"] for found in planned for cell in found["cells"]}
    found = []
    for cell in submission.cells:
        for number, entry in cell.seeds.items():
            if entry.id not in reasons or (cell.status == "not-applicable") == (
                reasons[entry.id] is not None
            ):
                continue
            here = f"not applicable here: {reasons[entry.id]}" if reasons[entry.id] else "applicable here"
            found.append(f"{cell_name(cell.axes, number)}: {cell.status} in the file, {here}")
    return found


def _run(
    scenario: Scenario,
    chosen: Sequence[tuple[Cell, str]],
    device: str,
    jobs: str | int,
    store: Path,
    observer: Any,
) -> dict[str, dict[str, Any]]:
    """Cell id -> record, of the chosen cells that the scenario has. Stages that they share are run once."""
    from harness.engine import run
    from harness.grid import cells

    planned = {cell.id: cell for cell in cells(scenario)}
    wanted = [planned[cell.seeds[number].id] for cell, number in chosen if cell.seeds[number].id in planned]
    if not wanted:
        raise HarnessError(f"{scenario.name}: the scenario in the file has none of the cells drawn from it")
    found: dict[str, dict[str, Any]] = {}
    for cell in wanted:
        result = run(
            scenario, device=device, jobs=jobs, store=store, select=_selection(cell), observer=observer
        )
        if result.interrupted:
            raise KeyboardInterrupt
        found |= {record["id"]: record for record in result.records if record["id"] == cell.id}
    return found


def _selection(cell: Planned) -> list[str]:
    """`axis=glob` for each axis."""
    return [f"{axis}={selects(str(value))}" for axis, value in cell.axes.items()]


def _environment(records: Mapping[str, Mapping[str, Any]], device: str) -> Environment:
    from harness.devices import resolve_device
    from harness.provenance import environment

    known = next(iter(records.values()), None)
    return environment_of(environment(resolve_device(device)) if known is None else known["provenance"])


# comparing ----------------------------------------------------------------------------------------


def _other_machine(there: Environment, here: Environment) -> list[str]:
    """The devices and libraries that differ."""
    found = []
    if (there.device.split(":")[0], there.device_name) != (here.device.split(":")[0], here.device_name):
        found.append(
            f"another device: {there.device} ({there.device_name}) in the file, {here.device} ({here.device_name}) here"
        )
    for name in sorted(there.libraries.keys() | here.libraries.keys()):
        versions = there.libraries.get(name, "absent"), here.libraries.get(name, "absent")
        if versions[0] != versions[1]:
            found.append(f"another {name}: {versions[0]} in the file, {versions[1]} here")
    return found


def _other_engine(there: Environment, here: Environment) -> list[str]:
    states = [f"{one.version}, commit {(one.commit or 'unknown')[:12]}" for one in (there, here)]
    return [] if states[0] == states[1] else [f"another engine: {states[0]} in the file, {states[1]} here"]


def _scores(entry: Seed, record: Mapping[str, Any], tolerance: Tolerance) -> Iterator[str]:
    there, here = entry.values, record["scores"]
    for name in sorted(there.keys() | here.keys()):
        if name not in here:
            yield f"{name}: {there[name]:.9g} in the file, no such score here"
        elif name not in there:
            yield f"{name}: missing in the file, {here[name]:.9g} here"
        elif not record["units"].get(name, {}).get("measured") and not tolerance.agree(
            there[name], here[name]
        ):
            yield f"{name}: {there[name]:.9g} in the file, {here[name]:.9g} here"


def _guarantee(cell: Cell, record: Mapping[str, Any], tolerance: Tolerance) -> Iterator[str]:
    """Where a guarantee contradicts the file's claim.

    The claim is the worst over seeds: no seed may have more, and if there is only one seed it must have exactly that.
    """
    claim, here = cell.guarantee, record["guarantee"]
    if claim is None or here is None:
        if (claim is None) != (here is None):
            said = ["none" if one is None else "one" for one in (claim, here)]
            yield f"guarantee: {said[0]} in the file, {said[1]} here"
        return
    alone = sum(bool(other.scores or other.undefined) for other in cell.seeds.values()) == 1
    claimed = {"epsilon": math.inf if claim.epsilon is None else claim.epsilon, "delta": claim.delta}
    for name, worst in claimed.items():
        if not tolerance.agree(worst, here[name]) and (alone or here[name] > worst):
            yield f"guarantee's {name}: {worst:.9g} in the file, {here[name]:.9g} here"
    if claim.holds and not here["holds"]:
        yield f"guarantee: holds in the file, broken here by {shorten('; '.join(here['broken_by']), 200)}"
    elif alone and claim.holds != here["holds"]:
        yield "guarantee: broken in the file, holds here"
    for name in ("unit", "against", "neighbours"):
        if getattr(claim, name) != here[name]:
            yield f"guarantee's {name}: {getattr(claim, name)} in the file, {here[name]} here"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
