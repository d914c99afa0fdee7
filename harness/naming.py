"""Labels for the values of a scenario's axes, such that no two values of an axis have the same.

Short names and six digits nearly always suffice, and must not change: records refer to cells by what is made of them.
The package is put in front of a name only where two packages in a scenario have plugins of that name, and numbers are
written in full only where two labels would otherwise be the same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from harness.contracts.base import Plugin, Shown
from harness.errors import HarnessError
from harness.nesting import with_nested
from harness.registry import registry

if TYPE_CHECKING:
    from harness.scenario import Scenario


class Naming:
    """Labels and specifications of the plugins on a scenario's axes.

    Raises HarnessError where two labels of an axis are the same even then.
    """

    def __init__(self, scenario: Scenario | None = None) -> None:
        self._names: Mapping[type[Plugin], str] = {}
        # Values whose numbers are written in full, by identity.
        self._full: frozenset[tuple[int, ...]] = frozenset()
        if scenario is None:
            return
        axes: dict[str, Sequence[tuple[Plugin, ...]]] = {
            "defence": scenario.defences,
            "aggregator": scenario.aggregators,
            "compressor": scenario.compressors,
        }
        for threat in scenario.threats:
            axes[f"attack of the threat {threat.name!r}"] = [(attack,) for attack in threat.attacks]
        self._names = _qualified(p for stacks in axes.values() for stack in stacks for p in stack)
        for axis, stacks in axes.items():
            self._full |= {_mark(stack) for stack in self._twins(stacks)}
            for stack in self._twins(stacks):
                raise HarnessError(
                    f"{scenario.path or scenario.name}: two values of the axis {axis} are both called "
                    f"{self.label(stack)}; records could not tell them apart"
                )

    def label(self, plugins: Sequence[Plugin]) -> str:
        """As `stack_label`, but different from all other labels of the axis."""
        with Shown(self._names, full=_mark(plugins) in self._full):
            return stack_label(plugins)

    def specs(self, plugins: Sequence[Plugin]) -> list[dict[str, Any]]:
        """`{name: parameters}` of each plugin, defaults spelled out."""
        with Shown(self._names):
            return [plugin.spec() for plugin in plugins]

    def json(self, plugins: Sequence[Plugin]) -> str:
        """`specs` as JSON with sorted keys."""
        return json.dumps(self.specs(plugins), sort_keys=True)

    def _twins(self, stacks: Sequence[tuple[Plugin, ...]]) -> list[tuple[Plugin, ...]]:
        labels = [self.label(stack) for stack in stacks]
        counts = Counter(labels)
        return [stack for stack, label in zip(stacks, labels, strict=True) if counts[label] > 1]


def stack_label(plugins: Iterable[Plugin]) -> str:
    """`a + b(x=1)`, or `none`."""
    return " + ".join(plugin.label() for plugin in plugins) or "none"


def _mark(plugins: Sequence[Plugin]) -> tuple[int, ...]:
    return tuple(map(id, plugins))


def _qualified(plugins: Iterable[Plugin]) -> dict[type[Plugin], str]:
    """Class -> `distribution/name`, for classes that share kind and name with one of another distribution."""
    alike: dict[tuple[Hashable, ...], dict[type[Plugin], None]] = {}
    for plugin in chain.from_iterable(map(with_nested, plugins)):
        alike.setdefault((plugin.kind, plugin.name), {})[type(plugin)] = None
    found = {}
    for classes in alike.values():
        if len(classes) > 1:
            origins = {cls: registry().entry_of(cls).distribution for cls in classes}
            if len(set(origins.values())) > 1:
                found.update({cls: f"{origin}/{cls.name}" for cls, origin in origins.items()})
    return found
