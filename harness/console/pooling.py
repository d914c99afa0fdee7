"""From a run's records to one row per configuration: the worst attack of each seed, then mean and spread over seeds."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, Literal

from harness.contracts.privacy import VIOLATION
from harness.evaluation.constant import FLAG as CONSTANT
from harness.evaluation.masking import FLAG as MASKED
from harness.leaderboard.asked import Asked
from harness.leaderboard.columns import BY_KEY, Column, counts_under, is_part, written

AXES = ("defence", "aggregator", "compressor")


@dataclass(frozen=True)
class Quantity:
    """A column of the board as a terminal shows it: under a shorter name, with a line that explains it."""

    column: Column
    header: str
    legend: str = ""

    @property
    def key(self) -> str:
        return self.column.key

    @property
    def better(self) -> Literal["higher", "lower"]:
        return self.column.better

    def compared(self, value: float) -> float:
        """What a value, in the column's unit, counts as in comparisons, as on the board: below chance as chance."""
        column = self.column
        return value if column.chance is None else column.compared(value / column.scale) * column.scale

    def show(self, value: float) -> str:
        """The value, already in the column's unit, with the column's digits, as on the board."""
        return written(value, self.column.digits)


QUANTITIES = tuple(
    Quantity(BY_KEY[key], header, legend)
    for key, header, legend in (
        ("accuracy", "clean %", "clean: accuracy without an attack"),
        ("robust", "robust %", "robust: accuracy under the worst inference attack"),
        ("byzantine", "attacked %",
         "attacked: accuracy under the worst byzantine or untargeted poisoning attack"),
        ("backdoor", "backdoor %", "backdoor: success rate of the worst backdoor"),
        ("mia", "MIA AUC", "MIA AUC: best membership inference; 0.50 is chance, and less counts as chance"),
        ("inversion", "inversion dB", "inversion: mean PSNR of what the strongest attack gets back of records"),
        ("inversion_gain", "gain dB",
         "gain: the PSNR of the inversion less that of the mean validation image; 0 or less: nothing was found"),
        ("epsilon", "epsilon", ""),
        ("audited", "audited ≥", "audited: epsilon that an audit proved to be spent at least"),
        ("size", "size kB", ""),
        ("uplink", "uplink kB", "uplink: what a client sends in a round"),
    )
)  # fmt: skip


@dataclass(frozen=True)
class Value:
    """A pooled number: mean over seeds, standard deviation (None: one seed, or an infinite value), and what marks it.

    incomplete: some attack or seed that counts here has no score, so the true worst case may be worse than this value.
    masked: gradient masking is suspected. violated: an audit refutes the guarantee. constant: the model predicts one
    class for everything, so attacks hardly change it. clients: the guarantee is for clients with all their data.
    subset: the attack was run on fewer test records than the clean accuracy was measured on. text: shown instead of
    the number (`none`, `broken`, `inf`).
    """

    mean: float
    deviation: float | None = None
    incomplete: bool = False
    masked: bool = False
    text: str | None = None
    violated: bool = False
    clients: bool = False
    subset: bool = False
    constant: bool = False

    @property
    def fair(self) -> bool:
        """Whether it can be compared with others of its column, as on the board."""
        flagged = self.masked or self.constant or self.violated
        return not (self.incomplete or flagged) and math.isfinite(self.mean)


@dataclass
class Row:
    """One configuration: (defence, aggregator, compressor) and its values by quantity."""

    axes: tuple[str, ...]
    values: dict[str, Value] = field(default_factory=dict)


def pool(records: Sequence[dict[str, Any]], quantities: Sequence[Quantity] = QUANTITIES) -> list[Row]:
    """One scenario's records as rows, in the order in which configurations first appear.

    For each seed the worst attack counts; mean and standard deviation are then taken over seeds. A value is
    `incomplete` where its row lacks an attack or seed that this scenario's records have for any row.
    """
    configurations: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for record in records:
        configurations.setdefault(axes_of(record), []).append(record)
    families = {_attack(record): family(record) for record in records}
    # A cell without scores says little about its attack's family, so a scored cell of the same attack overrides it.
    families |= {_attack(record): family(record) for record in records if record["status"] == "scored"}
    rows = [Row(axes) for axes in configurations]
    for quantity in quantities:
        relevant = [r for r in records if counts_under(quantity.column.family, families[_attack(r)])]
        asked = Asked()
        for r in relevant:
            outcome = r["status"]
            if outcome == "scored":
                outcome = "silent" if _score(r, quantity) is None else "answered"
            asked.see(_attack(r), _point(r, quantity), outcome)
        points = asked.points
        for row, own in zip(rows, configurations.values(), strict=True):
            value = _epsilon(own) if quantity.key == "epsilon" else _pooled(quantity, own, families, points)
            if value is not None:
                row.values[quantity.key] = value
    return rows


def axes_of(record: dict[str, Any]) -> tuple[str, ...]:
    """The record's configuration, as its row has it."""
    return tuple(str(record["cell"].get(axis) or "none") for axis in AXES)


def _attack(record: dict[str, Any]) -> tuple[str, str]:
    return str(record["cell"].get("threat")), str(record["cell"].get("attack"))


def _point(record: dict[str, Any], quantity: Quantity) -> tuple[Any, ...]:
    """What every row needs a score for: each seed or, except for columns of clean scores, each attack and seed."""
    seed = record["cell"].get("seed")
    return (seed,) if quantity.column.family == "clean" else (*_attack(record), seed)


def _score(record: dict[str, Any], quantity: Quantity) -> float | None:
    """The record's score for this quantity, in the score's own unit; None where it has none."""
    value = (record.get("scores") or {}).get(quantity.column.score)
    if record["status"] != "scored" or value is None or math.isnan(value):
        return None
    return float(value)


def _pooled(
    quantity: Quantity,
    records: Sequence[dict[str, Any]],
    families: dict[tuple[str, str], str],
    asked: set[Hashable],
) -> Value | None:
    seeds: dict[Any, list[float]] = {}
    there: set[Hashable] = set()
    masked = violated = subset = constant = False
    for record in records:
        score = _score(record, quantity)
        if score is None or not counts_under(quantity.column.family, families[_attack(record)]):
            continue
        flags = record.get("flags") or ()
        masked |= quantity.column.family == "evasion" and MASKED in flags
        violated |= quantity.key == "audited" and VIOLATION in flags
        constant |= quantity.column.hollow and CONSTANT in flags
        attacked = (record.get("attack") or {}).get("samples")
        subset |= quantity.column.family == "evasion" and is_part(attacked, record.get("test_samples"))
        seeds.setdefault(record["cell"].get("seed"), []).append(score)
        there.add(_point(record, quantity))
    if not seeds:
        return None
    worst = [quantity.column.pool(scores) for scores in seeds.values()]
    finite = all(map(math.isfinite, worst))
    deviation = stdev(worst) * quantity.column.scale if finite and len(worst) > 1 else None
    # The mean is taken before it is scaled, as on the board: the other order may round differently.
    mean = (fmean(worst) if finite else sum(worst)) * quantity.column.scale
    return Value(mean, deviation, there != asked, masked, violated=violated, subset=subset, constant=constant)


def _epsilon(records: Sequence[dict[str, Any]]) -> Value | None:
    scored = [record for record in records if record["status"] == "scored"]
    guarantees = [record["guarantee"] for record in scored if record.get("guarantee")]
    if not scored:
        return None
    if len(guarantees) < len(scored):  # some has none, which is the weakest
        return Value(math.inf, text="none")
    if not all(guarantee.get("holds", True) for guarantee in guarantees):
        return Value(math.inf, text="broken")
    epsilons = [float("inf") if g.get("epsilon") is None else float(g["epsilon"]) for g in guarantees]
    return Value(
        max(epsilons),
        text="inf" if math.isinf(max(epsilons)) else None,
        violated=any(VIOLATION in (record.get("flags") or ()) for record in records),
        clients=any(g.get("unit") == "client" for g in guarantees),
    )


def family(record: dict[str, Any]) -> str:
    """The family of a record's attack: clean, evasion, byzantine (with untargeted poisoning), backdoor or privacy.

    Told by the scores if they can, else by the threat's phase if it is recorded, else by the plugin.
    """
    cell, scores = record["cell"], record.get("scores") or {}
    attack = cell.get("attack")
    if attack in (None, "", "none"):
        return "clean"
    if "attack_success_rate" in scores:
        return "backdoor"
    if "robust_accuracy" in scores:
        return "evasion"
    if any(name.startswith("mia_") for name in scores):
        return "privacy"
    phase = ((record.get("config") or {}).get("threat") or {}).get("phase")
    if phase in ("inference", "privacy"):
        return "evasion" if phase == "inference" else "privacy"
    return _plugin_family(str(attack)) or "byzantine"


def _plugin_family(label: str) -> str | None:
    from harness.console.output import without_parameters
    from harness.contracts.attack import Attack, PoisoningAttack
    from harness.errors import PluginError
    from harness.registry import registry

    try:
        plugin = registry().find("attack", without_parameters(label)).plugin
    except PluginError:
        return None
    if issubclass(plugin, PoisoningAttack):
        return "byzantine" if plugin.backdoor_target is PoisoningAttack.backdoor_target else "backdoor"
    return plugin.family if issubclass(plugin, Attack) else None


def best(rows: Sequence[Row], quantity: Quantity) -> set[int]:
    """Positions of the best rows: none where fewer than two have a value, or all those that have one are equal.

    Only fair values compete, compared as they are shown. None is best where some are epsilons for records and others
    for clients.
    """
    shown = {i: r.values[quantity.key] for i, r in enumerate(rows) if quantity.key in r.values}
    values = {i: float(quantity.show(quantity.compared(v.mean))) for i, v in shown.items() if v.fair}
    if len(shown) < 2 or len({shown[i].clients for i in values}) != 1:
        return set()
    top = max(values.values()) if quantity.better == "higher" else min(values.values())
    winners = {i for i, value in values.items() if value == top}
    return set() if len(winners) == len(shown) else winners
