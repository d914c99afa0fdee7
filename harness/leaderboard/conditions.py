"""Under which conditions a board's numbers were measured: data, model, seeds and strength of the attacks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from harness.contracts.attack import KNOWLEDGE
from harness.leaderboard.board import Board
from harness.leaderboard.submission import Cell
from harness.numerals import short

FAMILIES = {
    "evasion": "Attacks at inference",
    "byzantine": "Attacks in training",
    "backdoor": "Backdoors",
    "privacy": "Privacy attacks",
}
KNOWN = {word for words in KNOWLEDGE.values() for word in words}


def conditions(board: Board) -> str:
    """`Data: digits, 359 test records. Model: small-cnn. Seeds: 1. Attacks at inference: linf 0.1, white-box.`

    Radii of evasion attacks are in [0, 1] pixels, from the smallest to the largest. A file's configurations are
    anything that JSON can hold: what is no share of clients and no knowledge is not said.
    """
    facts = board.reference[0].scenario
    tested = "" if facts.test_records is None else f", {facts.test_records:,} test records"
    said = [f"Data: {facts.dataset}{tested}", f"Model: {facts.model}", f"Seeds: {len(facts.seeds)}"]
    cells = [cell for submission in board.reference for cell in submission.cells]
    for family, where in FAMILIES.items():
        own = [cell for cell in cells if cell.family == family]
        # What others send is nothing to a backdoor, whatever the threat lets it know.
        parts = [*_radii(own), *_shares(own), *(_knowledge(own) if family != "backdoor" else ())]
        if parts:
            said.append(f"{where}: {', '.join(parts)}")
    return ". ".join(said) + "."


def _radii(cells: Iterable[Cell]) -> list[str]:
    found: dict[str, list[float]] = {}
    for cell in cells:
        if cell.norm is not None and cell.eps is not None:
            found.setdefault(cell.norm, []).append(cell.eps)
    return [f"{norm} {_span(min(radii), max(radii))}" for norm, radii in found.items()]


def _span(low: float, high: float) -> str:
    return short(low) if low == high else f"{short(low)} to {short(high)}"


def _shares(cells: Iterable[Cell]) -> list[str]:
    threats = map(_threat, cells)
    shares = sorted({s for t in threats if isinstance(s := t.get("malicious"), float) and 0 < s <= 1})
    said = " or ".join(f"{100 * share:g}" for share in shares)
    return [f"{said} % of the clients malicious"] if shares else []


def _knowledge(cells: Iterable[Cell]) -> list[str]:
    words = (_threat(cell).get("knowledge") for cell in cells)
    return [word for word in dict.fromkeys(w for w in words if isinstance(w, str)) if word in KNOWN]


def _threat(cell: Cell) -> dict[str, Any]:
    threat = cell.config.get("threat")
    return threat if isinstance(threat, dict) else {}
