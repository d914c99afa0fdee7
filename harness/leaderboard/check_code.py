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
    """Methods of a file's cells that are not in its list of plugins. real: the scenario's own cells that the file has.

    Metrics count only if the scenario names them: which ones are built in depends on the engine's version.
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
    """The plugins of a cell that a record's provenance lists."""
    scenario = cell.scenario
    yield from (scenario.dataset, scenario.model, scenario.federation.partition)
    yield from (*cell.defences, *cell.aggregators, *cell.compressors, *(scenario.metrics or ()))
    if cell.attack is not None:
        yield cell.attack


def unnamed_libraries(submission: Submission) -> list[str]:
    """A sentence on libraries that compute every number and whose versions the file lacks; every record has them."""
    lost = [name for name in GENERAL if name not in submission.environment.libraries]
    return [f"its environment does not say which {', '.join(lost)} it was"] if lost else []


def listed_twice(submission: Submission) -> Iterator[str]:
    """Plugins that a file lists with more than one code, in sentences; an official file has one code of each."""
    counts = Counter((plugin.kind, plugin.name, plugin.distribution) for plugin in submission.plugins)
    for (kind, name, _), count in counts.items():
        if count > 1:
            yield f"it lists the {kind} {name} {count} times"
