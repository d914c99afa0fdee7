"""`harness audit`: every training of a scenario, its guarantee beside what an audit proves to be spent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.console.output import short_labels
from harness.contracts.compressor import UpdateCompressor
from harness.contracts.privacy import VIOLATION, PrivacyAttack
from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.scenario import Scenario

WIDEST = 34


def audit_name(scenario: str) -> str:
    """What the audit of a scenario is called in a store."""
    return f"{scenario}-audit"


def audit_scenario(scenario: Scenario, attack: str) -> Scenario:
    """The same trainings under one threat, the audit; model compressors, which come after training, left out.

    It has a name of its own, so that its records stand beside the scenario's. Raises HarnessError.
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
    """One row a training; returns how many guarantees are refuted."""
    scored = [r for r in records if r["status"] == "scored"]
    if not scored:
        console.print("nothing was audited")
        return 0
    varying = [
        axis
        for axis in ("defence", "aggregator", "compressor", "seed")
        if axis == "defence" or len({str(r["cell"].get(axis)) for r in scored}) > 1
    ]
    short = short_labels([str(r["cell"].get(axis)) for r in scored for axis in varying], WIDEST)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for axis in varying:
        longest = max(len(short[str(r["cell"].get(axis))]) for r in scored)
        table.add_column(axis, overflow="fold", min_width=min(longest, 24))
    for name in ("guaran-\nteed ε", "audited\nε ≥", "right\nguesses"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for record in scored:
        found = record["attack"]["audit"]
        verdict, style = _verdict(record, found)
        facts = found["facts"]
        guesses = f"{facts['correct']}/{facts['guesses']}" if "guesses" in facts else "–"
        verdict += "*" * bool(_unaudited(found))
        labels = [Text(short[str(record["cell"].get(axis))]) for axis in varying]
        table.add_row(
            *labels, _claim(found["guarantee"]), f"{found['epsilon']:.2f}", guesses, Text(verdict, style)
        )
    console.print(table)
    confidence = scored[0]["attack"]["audit"]["confidence"]
    console.print(
        Text(f"each bound holds with confidence {confidence:g}; § for a client, else for a record", "dim")
    )
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
    return f"{guarantee['epsilon']:.2f}" + "§" * (guarantee["unit"] == "client")


def _unaudited(found: dict[str, Any]) -> list[str]:
    """What the scored training did and the audited one did not, in words."""
    return [
        f"{name}: {' and '.join(ways['scored'])} in the scored training, {' and '.join(ways['audited'])} in the "
        f"audited one; the audit says nothing of {' and '.join(missing)}"
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
