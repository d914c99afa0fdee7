"""Where a submission's cells differ from those of its scenario; nothing is trained to find out."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness.contracts.attack import EvasionAttack, PoisoningAttack
from harness.entry_points import BUILTIN
from harness.errors import HarnessError
from harness.leaderboard.publishable import AXES, cell_name, line
from harness.leaderboard.submission import Cell, Submission
from harness.registry import registry

if TYPE_CHECKING:
    from torch import nn

    from harness.grid import Cell as Planned
    from harness.grid import DataFacts
    from harness.scenario import Scenario


def labels(cell: Planned) -> tuple[str, ...]:
    """A cell's axes as a submission writes them."""
    return tuple(line(cell.axes[axis]) for axis in AXES)


def planned_cells(submission: Submission, scenario: Scenario) -> list[tuple[Cell, Planned]]:
    """Each of the file's cells that the scenario has too, with the scenario's own cell for one of its seeds."""
    from harness.grid import cells

    planned = {cell.id: cell for cell in cells(scenario)}
    found = []
    for cell in submission.cells:
        own = (planned[seed.id] for seed in cell.seeds.values() if seed.id in planned)
        real = next((one for one in own if labels(one) == cell.axes), None)
        if real is not None:
            found.append((cell, real))
    return found


def misdescribed(cell: Cell, real: Planned) -> Iterator[str]:
    """Where a cell says something else of its attack or its guarantee than the scenario does, in sentences."""
    name = cell_name(cell.axes)
    if cell.family != (family := family_of(real)):
        yield f"{name}: it is of the family {cell.family} in the file, and {family} by its scenario"
    if cell.status == "scored" and isinstance(real.attack, EvasionAttack):
        yield from (f"{name}: {text}" for text in _ball(cell, real, real.attack))
    clients = real.scenario.federation.clients
    claim = cell.guarantee
    if claim is not None and claim.unit == "client" and claim.delta * clients >= 1:
        yield f"{name}: its guarantee's delta is {claim.delta:g}, which is not below one over the {clients} clients"


def family_of(cell: Planned) -> str:
    """The family that a cell's record would state: clean, evasion, byzantine, backdoor or privacy.

    byzantine includes untargeted poisoning.
    """
    if cell.attack is None:
        return "clean"
    if isinstance(cell.attack, PoisoningAttack):
        untargeted = type(cell.attack).backdoor_target is PoisoningAttack.backdoor_target
        return "byzantine" if untargeted else "backdoor"
    return cell.attack.family


def _ball(cell: Cell, real: Planned, attack: EvasionAttack) -> Iterator[str]:
    """A radius or norm that differs from the attack's under the threat's budget."""
    budget = real.threat.budget
    eps = attack.radius(None if budget is None else budget.eps)
    eps = None if eps is None or not math.isfinite(eps) else eps
    if not (cell.eps == eps or (cell.eps is not None and eps is not None and math.isclose(cell.eps, eps))):
        yield f"its eps is {_number(cell.eps)} in the file, and {_number(eps)} by its scenario"
    if cell.norm != attack.norm:
        yield f"its norm is {cell.norm or 'none'} in the file, and {attack.norm or 'none'} by its scenario"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.9g}"


# applicability ------------------------------------------------------------------------------------


def applicable(submission: Submission, found: list[tuple[Cell, Planned]]) -> list[str]:
    """The cells that the file calls not applicable and that are applicable here, in sentences.

    found: from `planned_cells`. Raises HarnessError, with the reason, if that cannot be decided: the data set is
    missing here, has another content, may have to be downloaded or is of another package, or a plugin fails.
    """
    from harness.applicability import reason_not_applicable

    refused = [(cell, real) for cell, real in found if cell.status == "not-applicable"]
    if not refused:
        return []
    facts, module = _premises(refused[0][1].scenario, submission.scenario.fingerprint)
    try:
        return [
            f"{cell_name(cell.axes)}: it is not-applicable in the file, and applicable here"
            for cell, real in refused
            if reason_not_applicable(real, facts, module) is None
        ]
    except Exception as error:  # a plugin's own
        raise HarnessError(f"a plugin raised {type(error).__name__}: {line(str(error), 200)}") from None


def _premises(scenario: Scenario, fingerprint: str) -> tuple[DataFacts, nn.Module]:
    """The facts about the data, and the model without weights, which decide whether a cell is applicable.

    Nothing is downloaded, and data sets of other packages are not loaded. Raises HarnessError as `applicable`.
    """
    from harness.scenario_plan import data_facts, meta_module

    dataset = scenario.dataset
    if getattr(dataset, "download", False) or registry().entry_of(dataset).distribution != BUILTIN:
        raise HarnessError(f"the data set {line(dataset.label())} is only loaded to run it")
    with tempfile.TemporaryDirectory(prefix="harness-check-") as empty:
        placed = scenario.model_copy(update={"root": Path(empty)})
        try:
            if dataset.fingerprint(placed.root) != fingerprint:
                raise HarnessError("the data set has another content here")
            facts = data_facts(placed, None)
            return facts, meta_module(placed, facts)
        except HarnessError as error:
            first = next(iter(str(error).splitlines()), "")
            raise HarnessError(line(first, 200)) from None
        except Exception as error:  # a plugin's own
            raise HarnessError(f"a plugin raised {type(error).__name__}: {line(str(error), 200)}") from None
