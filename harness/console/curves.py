"""Robustness curves: accuracy under attack against the radius, as a figure for a paper."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.console.drawing import check_format, figure, heading, legend_within, series_style
from harness.console.output import told_apart
from harness.errors import HarnessError
from harness.evaluation.constant import FLAG as CONSTANT
from harness.evaluation.masking import FLAG as MASKED
from harness.evaluation.masking import without_radius

# Radius, robust accuracy in [0, 1], whether a flag says that this accuracy means little.
Point = tuple[float, float, bool]
Panel = dict[str, list[Point]]  # defences -> points
# Norm -> the title of an axis of radii, and the factor from a radius to what the axis shows.
RADII = {"linf": ("radius eps (× 1/255)", 255), "l2": ("L2 radius eps", 1), "l0": ("changed pixels", 1)}
OTHER = ("radius eps", 1)
HOLLOW = "hollow: gradient masking suspected, one class predicted, or seeds missing"


def curves(records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Panel]:
    """(attack, compressors) -> series, named by its defences -> a point for every radius and seed, by radius.

    The points are of scored records under bounded inference-time attacks that were run at two or more radii; attacks
    are the same if their names and parameters are, radius aside. A series' name also has the aggregator if there are
    several, and the settings, radius aside, that tell threats with the same attack apart.
    """
    chosen = [
        r
        for r in records
        if r["status"] == "scored"
        and (r["attack"] or {}).get("eps") is not None
        and r["scores"].get("robust_accuracy") is not None  # the scenario's `metrics` may leave it out
    ]
    rules = {r["cell"]["aggregator"] for r in chosen}
    attacks = _attacks(chosen)
    threats = _threats(chosen, attacks)
    panels: dict[tuple[str, str], Panel] = defaultdict(lambda: defaultdict(list))
    for record in chosen:
        cell = record["cell"]
        series = " / ".join(
            [cell["defence"], *[cell["aggregator"]] * (len(rules) > 1), *threats[record["id"]]]
        )
        point = (
            float(record["attack"]["eps"]),
            float(record["scores"]["robust_accuracy"]),
            not {MASKED, CONSTANT}.isdisjoint(record["flags"]),
        )
        panels[attacks[record["id"]], cell["compressor"]][series].append(point)
    return {
        place: {name: sorted(points) for name, points in panel.items()}
        for place, panel in panels.items()
        if any(len({point[0] for point in points}) > 1 for points in panel.values())
    }


def _attacks(records: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Record id -> `pgd(steps=50) in linf`: the attack without its radius, with the parameters that tell it apart."""
    plain: dict[str, dict[str, Any]] = {}
    bare: dict[str, str] = {}
    for record in records:
        ((name, parameters),) = record["config"]["attack"].items()
        plain[record["id"]] = {k: v for k, v in parameters.items() if k != "eps"}
        bare[record["id"]] = f"{name} in {record['attack']['norm']}"
    labels = {}
    for identifier, own in plain.items():
        rivals = [plain[other] for other, label in bare.items() if label == bare[identifier]]
        told = [
            f"{k}={v}"
            for k, v in own.items()
            if k == "steps" or (k == "queries" and v is not None) or any(r.get(k) != v for r in rivals)
        ]
        name, _, norm = bare[identifier].partition(" in ")
        labels[identifier] = name + f"({','.join(told)})" * bool(told) + f" in {norm}"
    return labels


def _threats(records: Iterable[Mapping[str, Any]], attacks: Mapping[str, str]) -> dict[str, list[str]]:
    """Record id -> [`subset=100`]: the settings, radius aside, that tell its threat from others with that attack."""
    own = {record["id"]: without_radius(record["config"]["threat"]) for record in records}
    shared: dict[str, set[tuple[str, Any]]] = {}
    for identifier, threat in own.items():
        settings = set(threat.items())
        shared[attacks[identifier]] = shared.get(attacks[identifier], settings) & settings
    return {
        identifier: [
            f"{field}={value}"
            for field, value in threat.items()
            if value is not None and (field, value) not in shared[attacks[identifier]]
        ]
        for identifier, threat in own.items()
    }


def draw_curves(panels: Mapping[tuple[str, str], Panel], out: Path, title: str) -> None:
    """Writes the figure: a row of panels per attack, a column per compressor. Raises HarnessError if it cannot.

    Radii are in the unit of the attack's norm, and the title says what hollow markers mean if there are any.
    """
    check_format(out)
    if not panels:
        raise HarnessError(
            "no attack has robust-accuracy at two or more radii: sweep one, for example "
            "`budget: {norm: linf, eps: {sweep: [0, 2/255, 4/255, 8/255]}}`, name robust-accuracy in `metrics` if the "
            "scenario lists its own, and run it"
        )
    attacks = list(dict.fromkeys(attack for attack, _ in panels))
    columns = list(dict.fromkeys(compressor for _, compressor in panels))
    names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    axis = {attack: RADII.get(attack.rpartition(" in ")[2], OTHER) for attack in attacks}
    several = len(set(axis.values())) > 1  # norms: each row has an axis of its own
    title += f"; {HOLLOW}" * any(_doubtful(points) for panel in panels.values() for points in panel.values())
    titles, legend = told_apart(columns), told_apart(names)
    width = 0.8 + 2.1 * len(columns)
    below, above = legend_within([legend[name] for name in names], width, 3), heading(title, width)
    height = 1.0 + (2.2 + 0.3 * several) * len(attacks) + below.height + 0.15 * above.count("\n")
    with figure(out, width, height) as drawn:
        grid = drawn.subplots(
            len(attacks), len(columns), squeeze=False, sharex="row" if several else True, sharey=True
        )
        for (attack, compressor), panel in panels.items():
            axes = grid[attacks.index(attack)][columns.index(compressor)]
            for name, points in panel.items():
                _series(axes, points, names.index(name), legend[name], axis[attack][1])
        for row, attack in enumerate(attacks):
            grid[row][0].set_ylabel(f"accuracy under\n{attack} (%)")
            for axes in grid[row] if several or row == len(attacks) - 1 else ():
                axes.set_xlabel(axis[attack][0])
        for column, compressor in enumerate(columns):
            grid[0][column].set_title(titles[compressor].replace(" + ", "\n+ "), fontsize=8)
        for axes in grid.flat:
            axes.set_ylim(0, 100)
            axes.grid(alpha=0.25, linewidth=0.5)
        lines = {line.get_label(): line for axes in grid.flat for line in axes.get_legend_handles_labels()[0]}
        handles = [lines[legend[name]] for name in names]
        drawn.legend(handles, below.labels, loc="outside lower center", ncols=below.columns, frameon=False)
        drawn.suptitle(above, fontsize=9)


def _doubtful(points: list[Point]) -> set[float]:
    """The radii where a value is flagged, or where a seed is missing that the curve has at another radius."""
    seeds = Counter(point[0] for point in points)
    every = max(seeds.values())
    return {radius for radius, _, flagged in points if flagged or seeds[radius] < every}


def _series(axes: Any, points: list[Point], number: int, name: str, scale: float) -> None:
    """Draws the mean over seeds, and a band from the least to the greatest value; `_doubtful` markers are hollow."""
    radii = sorted({point[0] for point in points})
    at = [[100 * p[1] for p in points if p[0] == radius] for radius in radii]
    hollow = _doubtful(points)
    style = series_style(number)
    x = [scale * radius for radius in radii]
    mean = [sum(values) / len(values) for values in at]
    axes.plot(x, mean, **style._asdict(), linewidth=1, label=name, markersize=4)
    for radius, place, value in zip(radii, x, mean, strict=True):
        if radius in hollow:
            axes.plot(place, value, **style._asdict(), markersize=4, markerfacecolor="white")
    if any(len(values) > 1 for values in at):
        low, high = [min(v) for v in at], [max(v) for v in at]
        axes.fill_between(x, low, high, color=style.color, alpha=0.15, linewidth=0)
