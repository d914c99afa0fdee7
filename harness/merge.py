"""Merges stores that were filled separately, such as by shards on several machines.

What stores agree on is kept once. A conflict is a stage or cell of one key with two contents: it is reported, and
neither it nor anything made from it is taken from any source; the store that is merged into keeps what it has. Where
clients train as one program, contents that differ only by rounding are no conflict: the first of them is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from harness.artifacts import files_of
from harness.comparable import (
    ELSEWHERE,
    ROUNDED,
    alike,
    comparable_record,
    comparable_result,
    depends_on_rounding,
    measured_scores,
)
from harness.database import DATABASE, is_store
from harness.errors import HarnessError, StoreError
from harness.evaluation.masking import flagged
from harness.identity import digest
from harness.store import StageRow, Store
from harness.strict_json import dumps

Key = tuple[str, str]  # scenario, cell id
Origins = dict[str, list[int]]  # digest of a content -> the stores that have it
# Cells of one scenario that are in conflict for one reason: up to so many are named, more are counted.
NAMED = 4


@dataclass
class Merged:
    """What a merge did. conflicts, damaged: a line each; notes: what readers of the merged store should know."""

    into: Path
    stores: int
    cells: int = 0
    new_cells: int = 0
    overlapping: int = 0  # cells that several stores have, with the same scores
    stages: int = 0
    files: int = 0
    bytes: int = 0
    conflicts: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def merge(
    sources: Sequence[Path], into: Path, progress: Callable[[int, int, str], None] | None = None
) -> Merged:
    """Add to the store `into` everything in the sources that is in no conflict.

    What `into` holds already stays, and takes part in the comparison. Sources that cannot be written are only read. No
    other process may use any of the stores meanwhile. Files are written first and then all rows at once: an interrupted
    merge leaves a valid store, and the next one continues it. progress: called with files done, files in all, and a
    file's name. Raises HarnessError where a source is no store, or a store is in use.
    """
    paths = [into, *_distinct(sources, into)]
    with ExitStack() as stack:
        stores = []
        for path in paths:
            opened = Store(path) if path == into else Store.reading(path)
            stores.append(stack.enter_context(opened))
            stack.enter_context(stores[-1].lock())
        return _Merge(stores, Merged(into, len(sources))).run(progress or (lambda done, total, text: None))


def _distinct(sources: Sequence[Path], into: Path) -> list[Path]:
    found: dict[Path, Path] = {}
    for path in sources:
        if not is_store(path):
            raise HarnessError(f"{path} is no store: it holds no {DATABASE}")
        if path.resolve() == into.resolve():
            raise HarnessError(f"{path} is both merged and merged into")
        if path.resolve() in found:
            raise HarnessError(f"{path} is given twice")
        found[path.resolve()] = path
    return list(found.values())


class _Merge:
    """stores: the target first, then the sources."""

    def __init__(self, stores: list[Store], report: Merged) -> None:
        self.stores = stores
        self.report = report
        self.records: list[dict[Key, tuple[str, dict[str, Any]]]] = [
            {(r["scenario"]["name"], r["id"]): (mark, r) for r, mark in store.marked_records()}
            for store in stores
        ]
        self.rows = [{row.key: row for row in store.stage_rows()} for store in stores]
        everything = [r for known in self.records for _, r in known.values()]
        self.measured = measured_scores(everything)
        self.rounded: set[str] = set()  # keys of stages whose last digits may differ
        for record in filter(depends_on_rounding, everything):
            self.rounded |= set(record["provenance"]["stages"].values())
        self.settled = 0  # stages and cells that differed only by rounding

    def run(self, progress: Callable[[int, int, str], None]) -> Merged:
        stages = self._stage_origins()
        bad_stages = {key for key, contents in stages.items() if not self._agree(key, contents)}
        chosen, bad_cells = self._cells(bad_stages)
        kept = self._stages(stages, bad_stages, chosen)
        rows = self._copy(kept, chosen, progress)
        records = [(self.records[i][key][1], self.records[i][key][0]) for key, i in chosen.items() if i]
        self._write(rows, records)
        self._name_conflicts(bad_cells, bad_stages, stages)
        if self.settled:
            self.report.notes.append(
                f"{self.settled} cells and stages differ by rounding alone (to {ROUNDED.relative:g} of a number or "
                f"{ROUNDED.absolute:g}, scores to {ELSEWHERE.relative:g} or {ELSEWHERE.absolute:g}), as clients "
                "that train as one program do; the first is kept"
            )
        return self.report

    # comparing ----------------------------------------------------------------------------------

    def _stage_origins(self) -> dict[str, Origins]:
        """Key of each finished stage -> digest of a content -> the stores that have it."""
        found: dict[str, Origins] = defaultdict(lambda: defaultdict(list))
        for number, rows in enumerate(self.rows):
            for key, row in rows.items():
                content = digest(dumps(comparable_result(row.result, self.measured)))
                found[key][content].append(number)
        return found

    def _agree(self, key: str, contents: Origins) -> bool:
        """Whether the stores agree on a stage: one content, or several that differ only by rounding."""
        if len(contents) == 1:
            return True
        if key not in self.rounded:
            return False
        first, *others = [numbers[0] for numbers in contents.values()]
        known = comparable_result(self.rows[first][key].result, self.measured)
        for other in others:
            same_file = partial(self._same_tensors, first, other)
            if not alike(known, comparable_result(self.rows[other][key].result, self.measured), same_file):
                return False
        self.settled += 1
        return True

    def _same_tensors(self, first: int, other: int, artifact: str, another: str) -> bool:
        """Whether an artifact of the store `first` and one of `other` hold tensors that differ only by rounding."""
        import torch

        try:
            a, b = self.stores[first].load_tensors(artifact), self.stores[other].load_tensors(another)
        except StoreError:  # no artifact, or a damaged one
            return False
        return a.keys() == b.keys() and all(
            a[name].shape == b[name].shape
            and a[name].dtype == b[name].dtype
            and torch.allclose(
                a[name].double(), b[name].double(), ROUNDED.relative, ROUNDED.absolute, equal_nan=True
            )
            for name in a
        )

    def _cells(self, bad_stages: set[str]) -> tuple[dict[Key, int], dict[Key, str]]:
        """Cell -> the store its record is taken from; and the cells in conflict, each with what differs."""
        chosen: dict[Key, int] = {}
        bad: dict[Key, str] = {}
        order = dict.fromkeys(key for known in self.records for key in known)
        for key in order:
            having = [i for i, known in enumerate(self.records) if key in known]
            # A failure is no result: a record from a store where the cell did not fail replaces it.
            scored = [i for i in having if self.records[i][key][1]["status"] != "failed"] or having
            reason = self._contradiction(key, scored, bad_stages)
            if reason is not None:
                bad[key] = reason
                continue
            chosen[key] = scored[0]
            self.report.overlapping += len(scored) > 1
            if len(having) > len(scored):
                failed = next(i for i in having if i not in scored)
                self.report.notes.append(
                    f"{self._named(key)} failed in {self.stores[failed].path}; "
                    f"taken from {self.stores[scored[0]].path}, where it did not"
                )
        return chosen, bad

    def _contradiction(self, key: Key, having: list[int], bad_stages: set[str]) -> str | None:
        found = [self.records[i][key] for i in having]
        where = ", ".join(str(self.stores[i].path) for i in having)
        tainted = any(set(record["provenance"]["stages"].values()) & bad_stages for _, record in found)
        if len({mark for mark, _ in found}) > 1:
            return f"made from other stages ({_other_stages([r for _, r in found])}) in {where}"
        if found[0][1]["status"] == "failed":
            return "made from a stage that is in conflict" if tainted else None
        first, *others = [comparable_record(record) for _, record in found]
        for other in others:
            if first["scenario"]["hash"] != other["scenario"]["hash"]:
                return f"made for two contents of the scenario, in {where}"
            if dumps(first) == dumps(other):
                continue
            if not any(depends_on_rounding(r) for _, r in found) or not alike(first, other):
                return f"{_difference(first, other)} in {where}"
            self.settled += 1
        return f"made from a stage that is in conflict, in {where}" if tainted else None

    def _stages(
        self, stages: dict[str, Origins], bad: set[str], chosen: dict[Key, int]
    ) -> dict[str, list[int]]:
        """The stages to keep: key -> the stores that have the kept content.

        Rows do not say what they were made from; only records do. So once there is a conflict, the only stages that
        certainly do not come from it are trainings, which are made from no other stage, and the stages of kept cells.
        """
        used = {
            stage
            for key, i in chosen.items()
            for stage in self.records[i][key][1]["provenance"]["stages"].values()
        }
        sure = {key for key in stages if key not in bad}
        if bad:
            kinds = {key: row.kind for rows in self.rows for key, row in rows.items()}
            sure = {key for key in sure if key in used or kinds[key] == "train"}
        return {key: next(iter(stages[key].values())) for key in sure}

    # copying ------------------------------------------------------------------------------------

    def _copy(
        self, kept: dict[str, list[int]], chosen: dict[Key, int], progress: Callable[[int, int, str], None]
    ) -> list[StageRow]:
        """Copies the files that the target lacks. Returns the rows that it lacks, except those whose files are lost."""
        wanted = {key: origins for key, origins in kept.items() if origins[0] != 0}
        rows = [self.rows[origins[0]][key] for key, origins in wanted.items()]
        names: dict[str, list[int]] = defaultdict(list)
        for row in rows:
            for name in files_of(row.result):  # equal contents name equal files
                names[name] += wanted[row.key]
        for key, i in [(key, i) for key, i in chosen.items() if i]:
            for name in files_of({"attack": self.records[i][key][1]["attack"]}):
                names[name].append(i)
        lost = set()
        for number, (name, places) in enumerate(names.items(), 1):
            if not self._copy_file(name, dict.fromkeys(places)):
                lost.add(name)
            progress(number, len(names), name)
        whole = [row for row in rows if not lost & set(files_of(row.result))]
        if len(whole) < len(rows):
            self.report.notes.append(
                f"{len(rows) - len(whole)} stages are left out, as their files are missing or damaged; "
                "a run computes them again where they are needed"
            )
        return sorted(whole, key=lambda row: row.finished)

    def _copy_file(self, name: str, places: Iterable[int]) -> bool:
        """Copies a file from the first store that has it undamaged; returns whether one has."""
        for i in places:
            try:
                data = self.stores[i].read_file(name)
            except StoreError as error:
                if (self.stores[i].path / name).exists():
                    self.report.damaged.append(str(error))
                continue
            new = self.stores[0].write_file(name, data)
            self.report.files += new
            self.report.bytes += len(data) * new
            return True
        return False

    def _write(self, rows: list[StageRow], records: list[tuple[dict[str, Any], str]]) -> None:
        target = self.stores[0]
        changed = self._flagged(records)
        facts = {key: value for store in self.stores[1:] for key, value in store.facts().items()}
        target.adopt(rows, changed, facts)
        self.report.stages = len(rows)
        self.report.new_cells = len(records)
        merged = target.records()
        self.report.cells = len(merged)
        self.report.notes += _environments(merged)

    def _flagged(self, records: list[tuple[dict[str, Any], str]]) -> list[tuple[dict[str, Any], str]]:
        """The new records, and those of the target whose flag of gradient masking changes, with their fingerprints.

        Masking shows where attacks on the same model are compared, and these may come from several stores.
        """
        own = {(r["scenario"]["name"], r["id"]): (r, mark) for mark, r in self.records[0].values()}
        union = own | {(r["scenario"]["name"], r["id"]): (r, mark) for r, mark in records}
        groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for record, _ in union.values():
            groups[record["scenario"]["name"], record["scenario"]["hash"]].append(record)
        new = {id(record) for record, _ in records}
        marks = {id(record): mark for record, mark in union.values()}
        return [
            (now, marks[id(record)])
            for group in groups.values()
            for record, now in zip(group, flagged(group), strict=True)
            if id(record) in new or now["flags"] != record["flags"]
        ]

    # saying -------------------------------------------------------------------------------------

    def _named(self, key: Key) -> str:
        from harness.leaderboard.publishable import cell_name

        record = next(known[key][1] for known in self.records if key in known)
        return f"{key[0]}: {cell_name(record['cell'], record['cell']['seed'])} ({key[1]})"

    def _name_conflicts(
        self, cells: dict[Key, str], bad_stages: set[str], stages: dict[str, Origins]
    ) -> None:
        by_reason: dict[tuple[str, str], list[Key]] = defaultdict(list)
        for cell, reason in cells.items():
            by_reason[cell[0], reason].append(cell)
        for (scenario, reason), together in by_reason.items():
            if len(together) > NAMED:  # as where a whole scenario was run again after an edit
                self.report.conflicts.append(f"{scenario}: {len(together)} cells: {reason}")
            else:
                self.report.conflicts += [f"{self._named(cell)}: {reason}" for cell in together]
        rows = {key: row for known in self.rows for key, row in known.items() if key in bad_stages}
        labels = {key: f"{row.kind} {row.label}" for key, row in rows.items()}
        for key in sorted(bad_stages, key=lambda k: labels[k]):
            where = " and ".join(
                ", ".join(str(self.stores[i].path) for i in numbers) for numbers in stages[key].values()
            )
            self.report.conflicts.append(f"stage {labels[key]} ({key[:12]}): other results in {where}")


def _other_stages(records: list[dict[str, Any]]) -> str:
    """Why records of one cell were made from stages with different keys, as far as they say."""
    first, *others = records
    for other in others:
        if first["scenario"]["hash"] != other["scenario"]["hash"]:
            return "another content of the scenario"
        for what in ("libraries", "plugins", "dataset"):
            if first["provenance"][what] != other["provenance"][what]:
                return f"other {what}"
    return "other settings or devices"


def _difference(first: Any, second: Any, where: str = "") -> str:
    """The first place where two values differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in dict.fromkeys([*first, *second]):
            if dumps(first.get(key)) != dumps(second.get(key)):
                return _difference(first.get(key), second.get(key), f"{where}.{key}" if where else str(key))
    return f"{where}: {_short(first)} and {_short(second)}"


def _short(value: Any) -> str:
    text = f"{value:.9g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _environments(records: list[dict[str, Any]]) -> list[str]:
    """Notes on scenarios whose records differ in engine, libraries, device, dataset or content of the scenario."""
    from harness.leaderboard.official import disagreements

    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record["scenario"]["name"]].append(record)
    found = []
    for name, group in groups.items():
        found += [
            f"{name}: {text}"
            for text in disagreements(group)
            if text.startswith("the records are of different")
        ]
        if len({record["scenario"]["hash"] for record in group}) > 1:
            found.append(f"{name}: the records are of different contents of the scenario")
    return found
