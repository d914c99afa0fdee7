"""Whether records make an official submission: all cells, of one state of the code, one device and one data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.entry_points import BUILTIN, from_disk
from harness.local_plugins import PREFIX as LOCAL
from harness.provenance import UNKNOWN

if TYPE_CHECKING:
    from harness.leaderboard.submission import Environment

Record = Mapping[str, Any]


def missing_cells(labels: Sequence[str], total: int) -> str:
    """A sentence on the cells of a scenario that are missing, which names the first three."""
    more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
    verb = "is" if len(labels) == 1 else "are"
    return f"{len(labels)} of {total} cells {verb} missing: {'; '.join(labels[:3])}{more}"


def disagreements(records: Sequence[Record]) -> list[str]:
    """Why records do not make one official result, in sentences.

    They must be of one clean state of the engine, one set of libraries, one device, one data set and one code of each
    plugin.
    """
    found = []
    origins = [record["provenance"] for record in records]
    found += _engines([state for record in records for state in engines_of(record)])
    if len({_frozen(origin["libraries"]) for origin in origins}) > 1:
        names = sorted(
            {
                n
                for o in origins
                for n, _ in set(o["libraries"].items()) ^ set(origins[0]["libraries"].items())
            }
        )
        found.append(f"the records are of different versions of {', '.join(names)}")
    # A cell that is not applicable was computed nowhere: its record names the machine that wrote it.
    computed = [record["provenance"] for record in records if record["status"] == "scored"]
    devices = dict.fromkeys(f"{origin['device']} ({origin['device_name']})" for origin in computed)
    if len(devices) > 1:
        found.append(f"the records are of different devices: {', '.join(devices)}")
    if len({origin["dataset"]["fingerprint"] for origin in origins}) > 1:
        found.append("the records are of different contents of the data set")
    return found + mixed_code(records)


def mixed_code(records: Sequence[Record]) -> list[str]:
    """A sentence on the plugins whose code differs between records, if there are any."""
    codes: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for record in records:
        for item in record["provenance"]["plugins"]:
            key = (item["kind"], item["name"], item["distribution"])
            codes.setdefault(key, set()).add((item["version"], item["source"]))
    changed = sorted({name for (_, name, _), states in codes.items() if len(states) > 1})
    return [f"the records are of different code of {', '.join(changed[:5])}"] if changed else []


def unclean(environment: Environment) -> list[str]:
    """Why the engine that a file names is not a clean commit."""
    return _engines([{"commit": environment.commit, "dirty": environment.dirty}])


def engines_of(record: Record) -> Sequence[Mapping[str, Any]]:
    """The states of the engine behind a record: of all its stages if it is scored, else of what wrote it.

    UNKNOWN for a scored record that is older than this list: it names only the engine that wrote it, which need not
    be the one that computed its stages.
    """
    origin = record["provenance"]
    return origin.get("engines", (UNKNOWN,)) if record["status"] == "scored" else (origin["engine"],)


def _engines(states: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why these are not one clean state of the engine."""
    found = []
    if UNKNOWN in states:
        found.append("which engine computed some stages is not known: they are older than this being kept")
    states = [state for state in states if state != UNKNOWN]
    if any(state != states[0] for state in states):
        commits = dict.fromkeys(str(state["commit"])[:12] for state in states)
        versions = ", ".join(commits) if len(commits) > 1 else "one commit, with and without changes"
        found.append(f"the records are of different states of the engine: {versions}")
    if any(state["commit"] is None for state in states):
        found.append("the engine's commit is not known: it did not run from a checkout")
    elif any(state["dirty"] is not False for state in states):
        found.append("the engine's files had changes that are in no commit")
    return found


def unpublished(records: Sequence[Record]) -> list[str]:
    """Sentences on plugins that nobody else may have: from local files, and from packages installed from a folder.

    Where another version of a package is installed here than the records name, nothing is said about it.
    """
    items = [item for record in records for item in record["provenance"]["plugins"]]
    names = sorted({f"{i['kind']} {i['name']}" for i in items if i["distribution"].startswith(LOCAL)})
    found = []
    if names:
        found.append(f"{', '.join(names)}: from a local file; publish a package, see `harness plugin new`")
    packages = sorted({(i["distribution"], i["version"]) for i in items if i["distribution"] != BUILTIN})
    private = [f"{name} {version}" for name, version in packages if from_disk(name, version)]
    if private:
        found.append(
            f"{', '.join(private)}: installed from a file or folder, which others do not have; publish the package, "
            "and install it from there"
        )
    return found


def _frozen(libraries: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(libraries.items())
