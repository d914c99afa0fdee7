"""`harness audit`: every training of a scenario, with its guarantee and the lower bound on epsilon from an audit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.console.output import packed, short_labels
from harness.contracts.compressor import UpdateCompressor
from harness.contracts.privacy import VIOLATION, PrivacyAttack
from harness.errors import HarnessError
from harness.leaderboard.columns import written

if TYPE_CHECKING:
    from harness.scenario import Scenario

WIDEST = 34  # of one axis' label
NARROWEST = 12  # of the configuration column
VERDICT = 18  # of the verdict column, the point of the table: always this wide, wrapped between words
GAP = 2  # between columns


def audit_name(scenario: str) -> str:
    """What the audit of a scenario is called in a store."""
    return f"{scenario}-audit"


def audit_scenario(scenario: Scenario, attack: str) -> Scenario:
    """The scenario with the audit as its only threat, and without model compressors, which come after training.

    It has a name of its own, so that its records are stored beside the scenario's. Raises HarnessError if the attack
    is no audit.
    """
    from harness.registry import resolve
    from harness.scenario import Threat

    plugin = resolve("attack", attack)
    if not isinstance(plugin, PrivacyAttack):
        raise HarnessError(f"--attack {attack}: an audit is an attack of the privacy family")
    if not plugin.audits:
        raise HarnessError(f"--attack {attack}: {plugin.name} does not audit")
    threat = Threat.model_validate({"name": "audit", "attacks": (plugin,)})
    chains = [tuple(c for c in chain if isinstance(c, UpdateCompressor)) for chain in scenario.compressors]
    return scenario.model_copy(
        update={
            "name": audit_name(scenario.name),
            "threats": (threat,),
            "compressors": tuple(dict.fromkeys(chains)),
        }
    )


def render_audits(records: Sequence[dict[str, Any]], console: Console) -> int:
    """One row per training; returns how many guarantees are refuted."""
    scored = [r for r in records if r["status"] == "scored"]
    if not scored:
        console.print("nothing was audited")
        return 0
    varying = [
        axis
        for axis in ("defence", "aggregator", "compressor", "seed")
        if axis == "defence" or len({str(r["cell"].get(axis)) for r in scored}) > 1
    ]
    numbers = ("guaran-\nteed ε", "audited\nε ≥", "right\nguesses")
    taken = sum(GAP + max(map(len, name.split("\n"))) for name in numbers) + GAP + VERDICT
    room = max(NARROWEST, console.width - taken)
    labels = [[str(r["cell"].get(axis)) for axis in varying] for r in scored]
    short = short_labels([label for row in labels for label in row], min(WIDEST, room - len("/ ")))
    header, *names = (
        packed([row[0], *(f" / {part}" for part in row[1:])], room)
        for row in (varying, *([short[label] for label in row] for row in labels))
    )
    table = Table(box=SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), show_edge=False, pad_edge=False)
    # This column folds only on consoles narrower than 60 columns, so that nothing is cropped there either.
    table.add_column("\n".join(header), overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for record, lines in zip(scored, names, strict=True):
        found = record["attack"]["audit"]
        verdict, style = _verdict(record, found)
        facts = found["facts"]
        guesses = f"{facts['correct']}/{facts['guesses']}" if "guesses" in facts else "–"
        verdict += "*" * bool(_unaudited(found))
        said = packed([f" {word}" for word in verdict.split()], VERDICT)
        table.add_row(
            Text("\n".join(lines)),
            _claim(found["guarantee"]),
            written(found["epsilon"], 2),
            guesses,
            Text("\n".join(said), style),
        )
    console.print(table)
    legend = f"each bound holds with confidence {scored[0]['attack']['audit']['confidence']:g}"
    if any("§" in _claim(record["attack"]["audit"]["guarantee"]) for record in scored):
        legend += "; § for a client, else for a record"
    console.print(Text(legend, "dim"))
    for note in dict.fromkeys(note for record in scored for note in _unaudited(record["attack"]["audit"])):
        console.print(Text(f"* {note}", "dim"), overflow="fold")
    for label, name in short.items():
        if label != name:
            console.print(Text(f"{name}: {label}", style="dim"), overflow="fold")
    return sum(VIOLATION in record["flags"] for record in scored)


def _claim(guarantee: dict[str, Any] | None) -> str:
    if guarantee is None:
        return "none"
    if not guarantee["holds"]:
        return "broken"
    return written(guarantee["epsilon"], 2) + "§" * (guarantee["unit"] == "client")


def _unaudited(found: dict[str, Any]) -> list[str]:
    """What the scored training did and the audited one did not, in words."""
    return [
        f"{name}: {' and '.join(ways['scored'])} in the scored training, {' and '.join(ways['audited'])} in the "
        f"audited one; the audit says nothing about {' and '.join(missing)}"
        for name, ways in found.get("execution", {}).get("ways", {}).items()
        if (missing := [way for way in ways["scored"] if way not in ways["audited"]])
    ]


def _verdict(record: dict[str, Any], found: dict[str, Any]) -> tuple[str, str]:
    if VIOLATION in record["flags"]:
        return "refuted: suspect a bug in the defence", "bold red"
    guarantee = found["guarantee"]
    if guarantee is None:
        return "claims nothing", ""
    return ("consistent", "green") if guarantee["holds"] else ("broken before the audit", "")
