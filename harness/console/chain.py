"""`harness explain`: where a cell's guarantee comes from, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from harness.console.guarantees import largest_group
from harness.contracts.privacy import VIOLATION
from harness.picking import Recorded, pick
from harness.privacy.lineage import PROTECTED_VAL

STYLES = {"creates": "green", "breaks": "bold red", "no guarantee": "dim"}


OWN_VAL = (
    "if the validation records are the server's own and none of the clients', declare `unprotected: [val]` in the "
    "scenario: reading them then breaks nothing"
)


def find_record(records: Sequence[dict[str, Any]], cell: str) -> dict[str, Any]:
    """The record of the cell that is meant, see harness.picking. Raises HarnessError where none or several match."""
    return pick([Recorded(record) for record in records], cell, "CELL", "this store").record


def render_chain(record: dict[str, Any], console: Console) -> None:
    """The cell, its chain from data to release, and what is guaranteed and measured."""
    axes = ", ".join(f"{axis} {value}" for axis, value in record["cell"].items())
    console.print(Text.assemble((record["id"], "bold"), f"  {record['scenario']['name']}: {axes}"))
    if record["status"] != "scored":
        console.print(Text(f"{record['status']}: {record.get('reason') or record['error']['message']}"))
        return
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("stage", "part", "reads", "guarantee", "why"):
        table.add_column(name, overflow="fold")
    for step in record["lineage"]:
        effect = Text(step["effect"], style=STYLES.get(step["effect"], ""))
        table.add_row(*map(Text, (step["stage"], step["part"], step["reads"])), effect, Text(step["why"]))
    console.print(table)
    for line, style in _verdict(record):
        console.print(Text(line, style=style))


def _verdict(record: dict[str, Any]) -> list[tuple[str, str]]:
    guarantee = record["guarantee"]
    lines = []
    if guarantee is None:
        lines.append(("guaranteed: nothing", "bold"))
    elif not guarantee["holds"]:
        lines.append((f"guaranteed: nothing, broken by: {'; '.join(guarantee['broken_by'])}", "bold red"))
        if any(PROTECTED_VAL in why for why in guarantee["broken_by"]):
            lines.append((OWN_VAL, ""))
        lines.append((f"without what breaks it: {_bound(guarantee)}", ""))
    else:
        lines.append((f"guaranteed: {_bound(guarantee)}", "bold green"))
    attack = record["attack"] or {}
    if guarantee is not None:
        lines += [*_group(guarantee), *_attackers(attack)]
    audit = attack.get("audit")
    if audit is not None:
        line = f"audited: epsilon of at least {audit['epsilon']:.3g}, at confidence {audit['confidence']:g}"
        violated = VIOLATION in record["flags"]
        lines.append((line + ": the guarantee is refuted" * violated, "bold red" if violated else ""))
    return lines


def _bound(guarantee: dict[str, Any]) -> str:
    return (
        f"epsilon {guarantee['epsilon']:.4g} at delta {guarantee['delta']:.3g} for a {guarantee['unit']}, "
        f"{guarantee['accountant']} accountant"
    )


def _attackers(attack: dict[str, Any]) -> list[tuple[str, str]]:
    """Whom the guarantee leaves out: malicious clients, with what they control, which older records do not say."""
    if not attack.get("malicious"):
        return []
    controlled = {
        "data": ", who run the defences on records that they change",
        "training": ", who control their training and run no defence",
    }
    return [(f"not for the malicious clients{controlled.get(attack.get('capability', ''), '')}", "")]


def _group(guarantee: dict[str, Any]) -> list[tuple[str, str]]:
    return [] if guarantee.get("largest_group") is None else [(largest_group([guarantee]), "")]
