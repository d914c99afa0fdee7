"""Whether a submission names the code that its cells were computed with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from harness.identity import GENERAL
from harness.leaderboard.submission import Submission
from harness.nesting import with_nested

if TYPE_CHECKING:
    from harness.contracts.base import Plugin
    from harness.grid import Cell as Planned

SHOWN = 5


def unnamed_methods(submission: Submission, real: Sequence[Planned]) -> Iterator[str]:
    """Methods of its cells that are not among its plugins. real: the scenario's own cells, those that the file has.

    Metrics count where the scenario names them: which ones are built in depends on the engine's version.
    """
    listed = {(plugin.kind, plugin.name) for plugin in submission.plugins}
    wanted: dict[tuple[str, str], None] = {}
    seen: set[int] = set()
    for cell in real:
        for plugin in _methods(cell):
            if id(plugin) not in seen:
                seen.add(id(plugin))
                wanted |= {(part.kind, part.name): None for part in with_nested(plugin)}
    lost = [f"{kind} {name}" for kind, name in wanted if (kind, name) not in listed]
    if lost:
        more = f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else ""
        yield f"its plugins lack what its scenario uses: {', '.join(lost[:SHOWN])}{more}"


def _methods(cell: Planned) -> Iterator[Plugin]:
    """What a record's provenance lists of a cell."""
    scenario = cell.scenario
    yield from (scenario.dataset, scenario.model, scenario.federation.partition)
    yield from (*cell.defences, *cell.aggregators, *cell.compressors, *(scenario.metrics or ()))
    if cell.attack is not None:
        yield cell.attack


def unnamed_libraries(submission: Submission) -> list[str]:
    """Those that every number is computed with, and of which a record always says the version."""
    lost = [name for name in GENERAL if name not in submission.environment.libraries]
    return [f"its environment does not say which {', '.join(lost)} it was"] if lost else []


def listed_twice(submission: Submission) -> Iterator[str]:
    """Plugins of which a file says more than one code; official results are of one."""
    counts = Counter((plugin.kind, plugin.name, plugin.distribution) for plugin in submission.plugins)
    for (kind, name, _), count in counts.items():
        if count > 1:
            yield f"it lists the {kind} {name} {count} times"
