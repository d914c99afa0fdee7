"""A store's records of one scenario → a submission, and whether it is an official one."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.console.pooling import family
from harness.errors import HarnessError, PluginError
from harness.grid import Cell, cells
from harness.leaderboard.submission import (
    SCHEMA,
    Environment,
    Submission,
    parse,
    unseen,
)
from harness.local_plugins import PREFIX as LOCAL
from harness.registry import registry
from harness.yaml_loader import parse as parse_yaml

if TYPE_CHECKING:
    from harness.scenario import Scenario

AXES = ("defence", "aggregator", "compressor", "threat", "attack")
_ABSOLUTE = re.compile(r"/[\w.-]|~[\w.-]*/|\\\\\w|[A-Za-z]:[\\/]|file:", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)")
_FOLDERS = re.compile(r"(?<![\w/.:~}-])(?:~|[A-Za-z]:)?[\\/](?:[^\s'\":,;()<>\\/]+[\\/])+")

Record = Mapping[str, Any]


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
    """What a store holds of a scenario, as it is in its file now, as a submission that says whether it is official.

    text: the scenario's YAML; read from its file where not given. Official are submissions in which every cell of
    the scenario is scored, not applicable or failed, all from one clean commit of the engine, one set of plugins
    and libraries, none of them a local file, one device and one data set. Raises HarnessError where no record is
    of this scenario, where its text cannot be published, and where a name or note is not fit to print.
    """
    source = _source(scenario) if text is None else text
    problem = unportable(source)
    if problem is not None:
        raise HarnessError(f"{scenario.path or scenario.name}: {problem}")
    mark = scenario.hash()
    named = [record for record in records if record["scenario"]["name"] == scenario.name]
    known = {record["id"]: record for record in named if record["scenario"]["hash"] == mark}
    planned = list(cells(scenario))
    kept = [known[cell.id] for cell in planned if cell.id in known]
    if not kept:
        raise HarnessError(_nothing(scenario, len(named)))
    reasons = [*_missing(planned, known), *disagreements(kept), *_unpublished(kept)]
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
            "text": source,
        },
        "environment": environment_of(provenance).model_dump(),
        "units": _units(kept),
        "plugins": list(_plugins(kept)),
        "cells": [_cell(group) for group in _grouped(planned, known)],
    }
    return parse(data, f"{scenario.name}, {name}")


def of_store(records: Iterable[Record], name: str) -> list[Submission]:
    """What a store holds, one unofficial submission for each content of each scenario: for looking at, not to publish.

    Without the scenario's file nobody knows which cells are missing.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record["scenario"]["name"], record["scenario"]["hash"]), []).append(record)
    return [_looked_at(group, name) for group in groups.values()]


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
        "unofficial_because": ["it is a store, looked at without its scenario's file"],
        "scenario": {
            **{key: first["scenario"][key] for key in ("name", "version", "hash")},
            "dataset": line(str(first["config"].get("dataset", ""))),
            "fingerprint": first["provenance"]["dataset"]["fingerprint"],
            "model": line(str(first["config"].get("model", ""))),
            "seeds": sorted({record["cell"]["seed"] for record in records}),
            "text": "",
        },
        "environment": environment_of(first["provenance"]).model_dump(),
        "units": _units(records),
        "plugins": list(_plugins(records)),
        "cells": [_cell(group) for group in cells.values()],
    }
    return parse(data, f"{first['scenario']['name']}, {name}")


# what may be published ----------------------------------------------------------------------------


def unportable(text: str) -> str | None:
    """Why a scenario's text is of use on one machine alone, in a sentence; None where it is not.

    Paths are relative or begin with ${HARNESS_DATA}; no other variable is filled in, and the text does not name
    this machine's home.
    """
    home = str(Path.home())
    if len(home) > 1 and re.search(rf"(?<![\w.}}/-]){re.escape(home)}(?![\w-])", text):
        return f"its text names this machine's home, {home}; write paths relative to the scenario or $HARNESS_DATA"
    for value in _texts(parse_yaml(text).data):
        if _ABSOLUTE.match(value.strip()):
            return (
                f"its text holds the absolute path {value[:100]!r}, which is of no use elsewhere; "
                "write it relative to the scenario, or to ${HARNESS_DATA}"
            )
        for variable in _VARIABLE.findall(value):
            if variable != "HARNESS_DATA":
                return f"its text uses the variable {variable}; others have $HARNESS_DATA alone"
    return None


def without_folders(text: str) -> str:
    """The same with the folders of absolute paths left out: `/home/me/x.npz is gone` -> `x.npz is gone`."""
    return _FOLDERS.sub("", text)


def shorten(text: str, length: int) -> str:
    """At most so many characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def line(text: str, length: int = 400) -> str:
    """The text on one line, without characters that cannot be seen."""
    flat = " ".join(str(text).split())
    return shorten("".join(c for c in flat if unseen(c) is None), length)


def _source(scenario: Scenario) -> str:
    if scenario.path is None:
        raise HarnessError(f"{scenario.name}: a submission holds the scenario's file, and this one has none")
    try:
        return scenario.path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise HarnessError(f"{scenario.path}: cannot be read: {error}") from None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


# whether it is official ---------------------------------------------------------------------------


def missing_cells(labels: Sequence[str], total: int) -> str:
    """The sentence about cells of a scenario that are not there, the first few by name."""
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    verb = "is" if len(labels) == 1 else "are"
    return f"{len(labels)} of {total} cells {verb} missing: {'; '.join(labels[:3])}{more}"


def cell_name(axes: Mapping[str, Any] | Sequence[str], seed: Any = None, width: int = 200) -> str:
    """`dp-sgd / mean / static-int8, evasion pgd, seed 0`: a cell in words, cut in the middle where it is long."""
    from harness.console.output import shorten as cut

    values = [axes[axis] for axis in AXES] if isinstance(axes, Mapping) else list(axes)
    defence, aggregator, compressor, threat, attack = map(str, values)
    under = threat if attack == "none" else f"{threat} {attack}"
    named = f"{defence} / {aggregator} / {compressor}" + f", {under}" * (under != "none")
    return cut(named, width) + ("" if seed is None else f", seed {seed}")


def disagreements(records: Sequence[Record]) -> list[str]:
    """Why records do not make one official result: not one clean engine, set of libraries, device or data set."""
    found = []
    origins = [record["provenance"] for record in records]
    engine = origins[0]["engine"]
    if any(origin["engine"] != engine for origin in origins):
        commits = dict.fromkeys(str(origin["engine"]["commit"])[:12] for origin in origins)
        versions = ", ".join(commits) if len(commits) > 1 else "one commit, with and without changes"
        found.append(f"the records are of different states of the engine: {versions}")
    if any(origin["engine"]["commit"] is None for origin in origins):
        found.append("the engine's commit is not known: it did not run from a checkout")
    elif any(origin["engine"]["dirty"] is not False for origin in origins):
        found.append("the engine's files had changes that are in no commit")
    if len({_frozen(origin["libraries"]) for origin in origins}) > 1:
        names = sorted(
            {
                n
                for o in origins
                for n, _ in set(o["libraries"].items()) ^ set(origins[0]["libraries"].items())
            }
        )
        found.append(f"the records are of different versions of {', '.join(names)}")
    # What is not applicable was computed nowhere: it names the machine that wrote the record.
    computed = [record["provenance"] for record in records if record["status"] == "scored"]
    devices = dict.fromkeys(f"{origin['device']} ({origin['device_name']})" for origin in computed)
    if len(devices) > 1:
        found.append(f"the records are of different devices: {', '.join(devices)}")
    if len({origin["dataset"]["fingerprint"] for origin in origins}) > 1:
        found.append("the records are of different contents of the data set")
    codes: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for origin in origins:
        for item in origin["plugins"]:
            key = (item["kind"], item["name"], item["distribution"])
            codes.setdefault(key, set()).add((item["version"], item["source"]))
    changed = sorted({name for (_, name, _), states in codes.items() if len(states) > 1})
    if changed:
        found.append(f"the records are of different code of {', '.join(changed[:5])}")
    return found


def _unpublished(records: Sequence[Record]) -> list[str]:
    """A local file is nowhere to be had: nobody could run it again."""
    items = (item for record in records for item in record["provenance"]["plugins"])
    names = sorted({f"{i['kind']} {i['name']}" for i in items if i["distribution"].startswith(LOCAL)})
    return (
        [f"{', '.join(names)}: from a local file; publish a package, see `harness plugin new`"]
        if names
        else []
    )


def _missing(planned: Sequence[Cell], known: Mapping[str, Any]) -> list[str]:
    lost = [cell_name(cell.axes, cell.seed) for cell in planned if cell.id not in known]
    return [missing_cells(lost, len(planned))] if lost else []


def _nothing(scenario: Scenario, others: int) -> str:
    where = scenario.path or scenario.name
    if others:
        return (
            f"{where}: the store's {others} records of {scenario.name} are of another content of the scenario; "
            "run it again: what did not change is taken from the store"
        )
    return f"{where}: the store has no record of {scenario.name}; run it first"


def _frozen(libraries: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(libraries.items())


# parts --------------------------------------------------------------------------------------------


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
    """Each plugin that took part, once, with what it says of its publication where it is installed here."""
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
    """The records of one cell over its seeds, in the scenario's order."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for cell in planned:
        if cell.id in known:
            groups.setdefault(tuple(str(cell.axes[axis]) for axis in AXES), []).append(known[cell.id])
    for axes, group in groups.items():
        if len({record["cell"]["seed"] for record in group}) < len(group):
            raise HarnessError(
                f"two cells are called {cell_name(axes)}: their parameters differ in digits that labels leave out"
            )
        yield group


def _cell(records: Sequence[Record]) -> dict[str, Any]:
    first = records[0]
    scored = [record for record in records if record["status"] == "scored"]
    status = "scored" if scored else first["status"]
    shown = scored[0] if scored else first
    attack = shown["attack"] or {}
    reason = None if scored else first["reason"] or _error(first)
    return {
        **{axis: line(first["cell"][axis]) for axis in AXES},
        "family": family(dict(shown)),
        "status": status,
        "reason": None if reason is None else shorten(without_folders(reason), 4000),
        "eps": _finite(attack.get("eps")),
        "norm": attack.get("norm"),
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
    """`RuntimeError: what was said` in one line: tracebacks and folders are of one machine."""
    error = record["error"]
    if error is None:
        return None
    said = next((text for text in str(error["message"]).splitlines() if text.strip()), "no message")
    return line(without_folders(f"{error['type']}: {said.strip()}"), 1000)


def _claim(guarantees: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """The worst over seeds; nothing where some seed guarantees nothing."""
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


def plain(value: Any) -> Any:
    """JSON values with numbers that JSON lacks as text: inf, -inf, nan."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value
