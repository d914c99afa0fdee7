"""Which stage may start next: stages wait for what they need, and come in the plan's order."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Set
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.plan import Stage


class Schedule:
    """The stages that are wanted and not done, with those that they need; each is given out once.

    Of the stages that are ready, the first in the plan comes first, so that cells are finished one after another and
    the stages of one training follow each other. The cost of an operation grows only with what it changes: it uses
    dependency counts and a heap, and scans nothing.

    beside: first stage of a bundle -> keys of those computed together with it. They are held back until that one has
    ended, and then given out unless `drop` has said that they are done.
    """

    def __init__(
        self,
        stages: Mapping[str, Stage],
        wanted: Iterable[str],
        done: Set[str],
        beside: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        needed, ahead = set(), [key for key in wanted if key not in done]
        while ahead:
            key = ahead.pop()
            if key not in needed:
                needed.add(key)
                ahead += [need for need in stages[key].needs if need not in done]
        self._stages = {key: stage for key, stage in stages.items() if key in needed}
        self._position = {key: position for position, key in enumerate(self._stages)}
        self._followers: dict[str, list[str]] = {}
        self._lacking: dict[str, int] = {}  # stage not given out -> how many of its needs are not done
        for key, stage in self._stages.items():
            lacking = {need for need in stage.needs if need not in done}
            self._lacking[key] = len(lacking)
            for need in lacking:
                self._followers.setdefault(need, []).append(key)
        self._held: dict[str, list[str]] = {}  # first of a bundle -> those that wait for its end
        for key, others in (beside or {}).items():
            own = [other for other in others if key in self._lacking and other in self._lacking]
            self._held[key] = own
            for other in own:
                self._lacking[other] += 1
        self._ready = [position for key, position in self._position.items() if not self._lacking[key]]
        self._order = list(self._stages)

    def __len__(self) -> int:
        """How many stages have not been given out."""
        return len(self._lacking)

    @property
    def ready(self) -> int:
        """How many stages could start now, at most: stages that were dropped may still be counted."""
        return len(self._ready)

    def take(self) -> Stage | None:
        """The next stage that can start; None while all that are left wait for others."""
        while self._ready:
            key = self._order[heapq.heappop(self._ready)]
            if self._lacking.pop(key, None) is not None:  # else it was dropped
                return self._stages[key]
        return None

    def finished(self, key: str) -> None:
        """A stage that was given out is done: those that waited for nothing else are ready."""
        for follower in (*self._held.pop(key, ()), *self._followers.pop(key, ())):
            self._released(follower)

    def drop(self, key: str) -> None:
        """A stage that was not given out is done all the same: it was computed together with another."""
        if self._lacking.pop(key, None) is not None:
            self.finished(key)

    def _released(self, key: str) -> None:
        if key in self._lacking:
            self._lacking[key] -= 1
            if not self._lacking[key]:
                heapq.heappush(self._ready, self._position[key])

    def failed(self, key: str) -> list[str]:
        """A stage that was given out failed. Returns it and all that depend on it, which are no longer given out."""
        for other in self._held.pop(key, ()):  # alone, they may succeed
            self._released(other)
        lost, ahead = [], [key]
        while ahead:
            current = ahead.pop()
            lost.append(current)
            for follower in self._followers.pop(current, ()):
                if self._lacking.pop(follower, None) is not None:
                    ahead.append(follower)
        return sorted(lost, key=self._position.__getitem__)
