"""A store's records of one scenario → a submission, and whether it is an official one."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.console.pooling import family
from harness.errors import HarnessError, PluginError
from harness.evaluation.masking import flagged
from harness.grid import Cell, cells
from harness.leaderboard.official import Record, disagreements, missing_cells, mixed_code, unpublished
from harness.leaderboard.other_code import records_of_other_code
from harness.leaderboard.publishable import AXES, cell_name, line, plain, shorten, unportable, without_folders
from harness.leaderboard.submission import LOOKED_AT, SCHEMA, Environment, Submission, parse
from harness.registry import registry

if TYPE_CHECKING:
    from harness.scenario import Scenario


def collect(
    records: Iterable[Record],
    scenario: Scenario,
    *,
    name: str,
    authors: str = "",
    url: str = "",
    note: str = "",
    created: str | None = None,
    text: str | None = None,
) -> Submission:
    """A store's records of a scenario, as its file is now, as a submission that says whether it is official.

    text: the scenario's YAML; by default read from its file. A submission is official if every cell of the scenario
    is scored, not applicable or failed, and all come from one clean commit of the engine, one set of plugins (none of
    them a local file) and libraries, one device and one data set. Raises HarnessError if no record is of this
    scenario, if its text cannot be published, and if a name or note is not fit to print.
    """
    source = _source(scenario) if text is None else text
    problem = unportable(source)
    if problem is not None:
        raise HarnessError(f"{scenario.path or scenario.name}: {problem}")
    mark = scenario.hash()
    named = [record for record in records if record["scenario"]["name"] == scenario.name]
    known = {r["id"]: r for r in flagged([r for r in named if r["scenario"]["hash"] == mark])}
    planned = list(cells(scenario))
    kept = [known[cell.id] for cell in planned if cell.id in known]
    if not kept:
        raise HarnessError(_nothing(scenario, named))
    reasons = [*_missing(planned, known), *disagreements(kept), *unpublished(kept)]
    provenance = next((r for r in kept if r["status"] == "scored"), kept[0])["provenance"]
    data = {
        "schema": SCHEMA,
        "name": name,
        "authors": authors,
        "url": url,
        "note": note,
        "created": created or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "official": not reasons,
        "unofficial_because": [line(reason) for reason in reasons[:20]],
        "scenario": {
            "name": scenario.name,
            "version": scenario.version,
            "hash": mark,
            "description": shorten(scenario.description, 4000),
            "dataset": line(scenario.dataset.label()),
            "fingerprint": provenance["dataset"]["fingerprint"],
            "model": line(scenario.model.label()),
            "seeds": list(scenario.seeds),
            "test_records": provenance["dataset"]["test"],
            "text": source,
        },
        "environment": environment_of(provenance).model_dump(),
        "units": _units(kept),
        "plugins": list(_plugins(kept)),
        "cells": [_cell(group) for group in _grouped(planned, known)],
    }
    return parse(data, f"{scenario.name}, {name}")


def of_store(records: Iterable[Record], name: str) -> list[Submission]:
    """What a store holds, as one unofficial submission for each content of each scenario: to look at, not to publish.

    They are unofficial because without the scenario's file nobody knows which cells are missing.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record["scenario"]["name"], record["scenario"]["hash"]), []).append(record)
    return [_looked_at(flagged(group), name) for group in groups.values()]


def _looked_at(records: Sequence[Record], name: str) -> Submission:
    cells: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        cells.setdefault(tuple(str(record["cell"][axis]) for axis in AXES), []).append(record)
    first = records[0]
    data = {
        "schema": SCHEMA,
        "name": name,
        "created": first["provenance"]["recorded"],
        "official": False,
        "unofficial_because": [LOOKED_AT, *map(line, mixed_code(records))],
        "scenario": {
            **{key: first["scenario"][key] for key in ("name", "version", "hash")},
            "dataset": line(str(first["config"].get("dataset", ""))),
            "fingerprint": first["provenance"]["dataset"]["fingerprint"],
            "model": line(str(first["config"].get("model", ""))),
            "seeds": sorted({record["cell"]["seed"] for record in records}),
            "test_records": first["provenance"]["dataset"]["test"],
            "text": "",
        },
        "environment": environment_of(first["provenance"]).model_dump(),
        "units": _units(records),
        "plugins": list(_plugins(records)),
        "cells": [_cell(group) for group in _told_apart(cells)],
    }
    return parse(data, f"{first['scenario']['name']}, {name}")


# parts --------------------------------------------------------------------------------------------


def _source(scenario: Scenario) -> str:
    if scenario.path is None:
        raise HarnessError(f"{scenario.name}: a submission holds the scenario's file, and this one has none")
    try:
        return scenario.path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(f"{scenario.path}: cannot be read: {error}") from None


def _missing(planned: Sequence[Cell], known: Mapping[str, Any]) -> list[str]:
    lost = [cell_name(cell.axes, cell.seed) for cell in planned if cell.id not in known]
    return [missing_cells(lost, len(planned))] if lost else []


def _nothing(scenario: Scenario, others: Sequence[Record]) -> str:
    where = scenario.path or scenario.name
    if others:
        with registry().seeing(scenario.files):
            changed = records_of_other_code(others)
        why = (
            f" ({'; '.join(changed)}: with other defaults, the same text is another scenario)"
            if changed
            else ""
        )
        return (
            f"{where}: the store's {len(others)} records of {scenario.name} are of another content of the "
            f"scenario{why}; run it again: what did not change is taken from the store"
        )
    return f"{where}: the store has no record of {scenario.name}; run it first"


def environment_of(provenance: Mapping[str, Any]) -> Environment:
    """The environment in a record's provenance, or in `harness.provenance.environment`."""
    return Environment(
        version=line(provenance["engine"]["version"], 120),
        commit=provenance["engine"]["commit"],
        dirty=provenance["engine"]["dirty"],
        python=provenance["python"],
        platform=line(provenance["platform"]),
        device=provenance["device"],
        device_name=line(provenance["device_name"], 120),
        libraries={name: line(version, 120) for name, version in provenance["libraries"].items()},
    )


def _units(records: Sequence[Record]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for record in records:
        for name, unit in record["units"].items():
            found.setdefault(name, {**unit, "description": line(unit["description"])})
    return found


def _plugins(records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    """Each plugin that took part, once, with its reference if it is installed here and has one."""
    every = {
        (item["kind"], item["name"], item["distribution"], item["version"], item["source"]): item
        for record in records
        for item in record["provenance"]["plugins"]
    }
    for key in sorted(every):
        item = every[key]
        try:
            plugin = registry().find(item["kind"], f"{item['distribution']}/{item['name']}").plugin
        except PluginError:
            yield item
            continue
        reference = plugin.reference
        if reference is None:
            yield item
            continue
        yield {
            **item,
            "title": line(reference.title),
            "authors": line(reference.authors),
            "venue": line(reference.venue),
            "year": reference.year,
            "url": line(reference.url),
        }


def _grouped(planned: Sequence[Cell], known: Mapping[str, Record]) -> Iterator[list[Record]]:
    """For each cell, its records over the seeds, in the scenario's order."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for cell in planned:
        if cell.id in known:
            groups.setdefault(tuple(str(cell.axes[axis]) for axis in AXES), []).append(known[cell.id])
    yield from _told_apart(groups)


def _told_apart(groups: Mapping[tuple[str, ...], list[Record]]) -> Iterator[list[Record]]:
    """The groups. Raises HarnessError if one has a seed twice: records of two cells must not become one row."""
    for axes, group in groups.items():
        if len({record["cell"]["seed"] for record in group}) < len(group):
            raise HarnessError(
                f"two cells are called {cell_name(axes)}: their parameters differ in digits that labels leave out, or "
                "their plugins come from two packages"
            )
        yield group


def _cell(records: Sequence[Record]) -> dict[str, Any]:
    first = records[0]
    scored = [record for record in records if record["status"] == "scored"]
    status = "scored" if scored else first["status"]
    shown = scored[0] if scored else first
    attack, kind = shown["attack"] or {}, family(dict(shown))
    reason = None if scored else first["reason"] or _error(first)
    return {
        **{axis: line(first["cell"][axis]) for axis in AXES},
        "family": kind,
        "status": status,
        "reason": None if reason is None else shorten(without_folders(reason), 4000),
        "eps": _finite(attack.get("eps")),
        "norm": attack.get("norm"),
        "tested": shown.get("test_samples"),
        "attacked": attack.get("samples") if kind == "evasion" else None,
        "seeds": {str(record["cell"]["seed"]): _seed(record) for record in records},
        "guarantee": _claim([record["guarantee"] for record in scored]),
        "lineage": [
            {**step, "part": line(step["part"]), "why": line(step["why"])} for step in shown["lineage"]
        ],
        "config": plain({key: shown["config"][key] for key in AXES}),
    }


def _seed(record: Record) -> dict[str, Any]:
    scores = record["scores"]
    return {
        "id": record["id"],
        "scores": {name: value for name, value in scores.items() if math.isfinite(value)},
        "undefined": {name: repr(float(value)) for name, value in scores.items() if not math.isfinite(value)},
        "intervals": {
            n: bounds for n, bounds in record["intervals"].items() if all(map(math.isfinite, bounds))
        },
        "flags": list(record["flags"]),
        "curve": curve(record),
        "error": _error(record),
    }


def curve(record: Record) -> list[tuple[int, float]]:
    """(round, validation accuracy) of the rounds that were evaluated."""
    found = [(entry["round"], entry.get("val_accuracy")) for entry in record.get("history") or ()]
    return [(number, value) for number, value in found if value is not None and math.isfinite(value)]


def _error(record: Record) -> str | None:
    """`RuntimeError: what was said` in one line, without traceback and folders, which are of one machine."""
    error = record["error"]
    if error is None:
        return None
    said = next((text for text in str(error["message"]).splitlines() if text.strip()), "no message")
    return line(without_folders(f"{error['type']}: {said.strip()}"), 1000)


def _claim(guarantees: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """The worst guarantee over seeds; None if some seed has none."""
    given = [guarantee for guarantee in guarantees if guarantee is not None]
    if not given or len(given) < len(guarantees):
        return None
    worst = max(given, key=lambda guarantee: guarantee["epsilon"])
    groups = [g["group_epsilon"] for g in given if g["group_epsilon"] is not None]
    return {
        **{key: worst[key] for key in ("unit", "against", "neighbours", "by", "accountant")},
        "epsilon": _finite(worst["epsilon"]),
        "delta": max(guarantee["delta"] for guarantee in given),
        "group_epsilon": _finite(max(groups, default=None)),
        "largest_group": max((g["largest_group"] for g in given if g["largest_group"]), default=None),
        "simulated": any(guarantee["simulated"] for guarantee in given),
        "holds": all(guarantee["holds"] for guarantee in given),
        "broken_by": list(dict.fromkeys(line(why) for g in given for why in g["broken_by"]))[:50],
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
