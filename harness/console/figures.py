"""Figures of a run for a paper: Pareto front, heatmap of aggregators and attacks, critical-difference diagram."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.console.contributed import shown_quantities
from harness.console.drawing import CHARACTER, COLOURS, figure, heading, legend_within, series_style
from harness.console.output import count_of, in_lines, kept_apart, told_apart
from harness.console.pooling import AXES, Quantity, Value, family, pool
from harness.contracts.privacy import VIOLATION
from harness.errors import HarnessError, did_you_mean
from harness.evaluation.constant import FLAG as CONSTANT
from harness.evaluation.masking import FLAG as MASKED
from harness.leaderboard.columns import written

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

    from harness.leaderboard.comparisons import Omnibus

KINDS = ("curves", "pareto", "heatmap", "ranks", "table")
SHARED = "blocks share data and seeds: p describes this scenario and is no evidence beyond it"
OPTIONS = {"x": ("pareto",), "y": ("pareto", "ranks"), "by": ("ranks",)}  # option -> the figures that take it
WIDTH = 5.2  # inches of a figure without panels
LINE = 86  # characters of a line above or beneath the figure of ranks
Point = tuple[float, float]
Records = Sequence[Mapping[str, Any]]


def quantity(key: str, records: Records) -> Quantity:
    """A column of these records' table by its key. Raises HarnessError."""
    found = {q.key: q for q in shown_quantities(records)}
    if key not in found:
        raise HarnessError(f"unknown quantity {key!r}; {did_you_mean(key, found)}")
    return found[key]


def check_kind(kind: str, **options: str | None) -> None:
    """Raises HarnessError for an unknown figure or axis, and for an option that this figure does not take."""
    if kind not in KINDS:
        raise HarnessError(f"--figure {kind}: no such figure; {did_you_mean(kind, KINDS)}")
    for option, value in options.items():
        if value is not None and kind not in (kinds := OPTIONS[option]):
            raise HarnessError(
                f"--{option} {value}: an option of --figure {' and '.join(kinds)}, not of {kind}"
            )
    by = options.get("by")
    if by is not None and by not in AXES:
        raise HarnessError(f"--by {by}: no such axis; {did_you_mean(by, AXES)}")


# Pareto ---------------------------------------------------------------------------------------------


class Front(NamedTuple):
    """How many configurations are on a front, and how many others are not drawn, by reason."""

    points: int
    left_out: Counter[str]

    @property
    def said(self) -> str:
        """`3 on the front; not drawn: 2 without a guarantee`."""
        told = [f"{count} {why}" for why, count in self.left_out.most_common()]
        return f"{self.points} on the front" + (f"; not drawn: {', '.join(told)}" if told else "")


def draw_pareto(records: Records, out: Path, title: str, x: str, y: str) -> Front:
    """One point per configuration; those that no other beats in one quantity without losing in the other are joined.

    Values that are not fair, such as those of suspected gradient masking, are left out and counted. An epsilon for
    records is not compared with one for clients: each unit has its own front. Raises HarnessError.
    """
    from harness.leaderboard.comparisons import pareto_front

    across, up = quantity(x, records), quantity(y, records)
    every = pool([dict(r) for r in records], (across, up))
    reasons = (
        next(filter(None, (_why_not(row.values.get(q.key), q) for q in (across, up))), "") for row in every
    )
    left_out = Counter(filter(None, reasons))
    rows = [row for row in every if {x, y} <= row.values.keys()]
    if len(rows) < 2:
        raise HarnessError(f"fewer than two configurations have both {x} and {y}; run more of the scenario")
    points = [[_number(row.values[q.key]) for q in (across, up)] for row in rows]
    costs = [[cost for q in (across, up) for cost in _costs(row.values[q.key], q)] for row in rows]
    front = pareto_front(costs, ["lower"] * len(costs[0]))
    if not front.any():
        raise HarnessError(f"nothing has {x} and {y} that can be compared: {Front(0, left_out).said}")
    clients = [any(row.values[q.key].clients for q in (across, up)) for row in rows]
    varying = [i for i in range(len(AXES)) if len({row.axes[i] for row in rows}) > 1]
    series = list(dict.fromkeys(row.axes[varying[0]] if varying else "" for row in rows))
    above = heading(f"{title}: filled on the Pareto front", WIDTH)
    named = kept_apart(series, 40)
    units = [f"epsilon for a {unit}" for unit in ("record", "client") if any(clients)]
    below = legend_within([*named.values(), *units], WIDTH, 2)
    with figure(out, WIDTH, 3.5 + below.height + 0.15 * above.count("\n")) as drawn:
        axes = drawn.subplots()
        for number, name in enumerate(series):
            own = [i for i, row in enumerate(rows) if (row.axes[varying[0]] if varying else "") == name]
            colour, marker, _ = series_style(number)
            told = False
            for filled in (True, False):
                there = [i for i in own if bool(front[i]) is filled and all(map(math.isfinite, points[i]))]
                if there:
                    axes.scatter(
                        [points[i][0] for i in there], [points[i][1] for i in there], s=24, marker=marker,
                        zorder=3 if filled else 2, facecolors=colour if filled else "white", edgecolors=colour,
                        label=None if told else below.labels[number],
                    )  # fmt: skip
                    told = True
        for unit, style in (("record", "-"), ("client", "--")):
            line = sorted(
                points[i] for i in range(len(rows)) if front[i] and clients[i] is (unit == "client")
            )
            axes.plot(
                [p[0] for p in line], [p[1] for p in line], color="#888888", linewidth=0.8, linestyle=style, zorder=1,
                label=f"epsilon for a {unit}" if line and any(clients) else None,
            )  # fmt: skip
        axes.set_xlabel(_axis(across))
        axes.set_ylabel(_axis(up))
        axes.grid(alpha=0.25, linewidth=0.5)
        drawn.legend(loc="outside lower center", ncols=below.columns, frameon=False)
        drawn.suptitle(above, fontsize=9)
        rest = [" / ".join(row.axes[j] for j in varying[1:]) for row in rows]
        beside = kept_apart(rest, 30)
        labels: dict[Point, list[str]] = {}
        for i, text in enumerate(rest):
            if front[i] and text:
                labels.setdefault((points[i][0], points[i][1]), []).append(beside[text])
        texts = {p: own[0] + f" and {len(own) - 1} more" * (len(own) > 1) for p, own in labels.items()}
        _label(drawn, texts, [(px, py) for px, py in points if math.isfinite(px) and math.isfinite(py)])
    return Front(int(front.sum()), left_out)


def _axis(of: Quantity) -> str:
    """An axis' title. It says where values below chance, which are drawn as they are, count as chance."""
    said, chance = f"{of.header} ({of.better} is better)", of.column.chance
    return (
        said if chance is None else f"{said}\n{of.column.show(chance)} is chance, and less counts as chance"
    )


def _label(drawn: Figure, labels: Mapping[Point, str], points: Sequence[Point]) -> None:
    """Puts a text beside each point, where it covers least of other texts and points and sticks out least."""
    axes = drawn.axes[0]
    drawn.draw_without_rendering()  # positions are known only after this
    inside = axes.get_window_extent()
    across = drawn.dpi * 3 / 72  # half a marker, in pixels
    taken: list[Sequence[float]] = [
        (x - across, y - across, x + across, y + across) for x, y in axes.transData.transform(points)
    ]
    for point, text in sorted(labels.items(), key=lambda item: (-item[0][1], item[0][0])):
        # The side with more room first.
        beyond = axes.transData.transform(point)[0] > (inside.x0 + inside.x1) / 2
        tried: list[tuple[float, int, Annotation]] = []
        for down in (3, -8, 11, -16, 19, -24):
            for side in (-5, 5) if beyond else (5, -5):
                note = axes.annotate(
                    text, point, textcoords="offset points", xytext=(side, down), fontsize=6,
                    ha="right" if side < 0 else "left",
                )  # fmt: skip
                box = note.get_window_extent()
                outside = max(0, inside.x0 - box.x0) + max(0, box.x1 - inside.x1)
                outside += max(0, inside.y0 - box.y0) + max(0, box.y1 - inside.y1)
                hidden = sum(_overlap(box.extents, other) for other in taken)
                tried.append((hidden + outside * box.height, len(tried), note))
        kept = min(tried, key=lambda one: one[:2])[2]
        for *_, note in tried:
            if note is not kept:
                note.remove()
        taken.append(kept.get_window_extent().extents)


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """The area that two boxes (left, bottom, right, top) share."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0


def _why_not(value: Value | None, of: Quantity) -> str:
    """Why a configuration with this value has no point; empty where it has one."""
    if value is None:
        return f"without {of.key}"
    if value.text in ("none", "broken"):
        return "without a guarantee" if value.text == "none" else "with a broken guarantee"
    if not math.isfinite(value.mean):
        return f"with an infinite {of.key}"
    why = {
        value.violated: "refuted by an audit",
        value.masked: "suspected of gradient masking",
        value.incomplete: "lacking attacks or seeds",
        value.constant: "predicting one class for every test image",
    }
    return why.get(True, "")


def _number(value: Value) -> float:
    """The mean, or NaN for a value that cannot be compared, which puts it on no front."""
    return value.mean if value.fair else math.nan


def _costs(value: Value, of: Quantity) -> tuple[float, float]:
    """Two costs of a value, one for records and one for clients; lower is better."""
    from harness.leaderboard.comparisons import by_unit

    return by_unit(of.compared(_number(value)), of.better, value.clients)


# heatmap --------------------------------------------------------------------------------------------


def draw_heatmap(records: Records, out: Path, title: str) -> int:
    """Accuracy of every aggregator under every attack on training, a panel per defence; returns how many panels.

    Means over seeds, of uncompressed models, with a † where a mean lacks a seed that others have; the column `none` is
    accuracy without an attack. An attack under several threats has a column for each. Raises HarnessError.
    """
    clean = ("none", "none")
    cells: dict[str, dict[tuple[str, tuple[str, str]], dict[Any, float]]] = {}  # accuracies by seed
    compressed = any(record["cell"]["compressor"] != "none" for record in records)
    for record in records:
        kind = family(dict(record))
        if record["status"] != "scored" or kind not in ("clean", "byzantine", "backdoor"):
            continue
        cell, accuracy = record["cell"], record["scores"].get("accuracy")
        if accuracy is None or cell["compressor"] != "none":
            continue
        attack = clean if kind == "clean" else (cell["threat"], cell["attack"])
        place = (cell["aggregator"], attack)
        cells.setdefault(cell["defence"], {}).setdefault(place, {})[cell.get("seed")] = accuracy
    attacks = list(dict.fromkeys(a for panel in cells.values() for _, a in panel))
    attacks.sort(key=lambda attack: attack != clean)  # without an attack first, however records are ordered
    if not cells or attacks == [clean]:
        raise HarnessError("no attack on training was scored on an uncompressed model: there is no heatmap")
    found = [own for panel in cells.values() for own in panel.values()]
    every = {seed for own in found for seed in own}
    lacking = any(own.keys() != every for own in found)
    threats = Counter(attack for _, attack in attacks)
    under, where = (kept_apart(names, 24) for names in zip(*attacks, strict=True))
    labels = [where[attack] + f"\n{under[threat]}" * (threats[attack] > 1) for threat, attack in attacks]
    rules = kept_apart(dict.fromkeys(r for panel in cells.values() for r, _ in panel), 34)
    width = 3.2 + 0.55 * len(attacks)
    across = int((width - 2.9) / CHARACTER)  # characters above a panel between long names and the colour bar
    titles = {name: in_lines(told, across) for name, told in told_apart(list(cells)).items()}
    title += ", uncompressed models" * compressed + "; †: lacks seeds" * lacking
    above = heading(title, width)
    lines = max(rule.count("\n") + 1 for rule in rules.values())
    height = 1.3 + 0.14 * (lines + 1) * len(rules) * len(cells)
    height += 0.14 * (above.count("\n") + sum(told.count("\n") for told in titles.values()))
    with figure(out, width, height) as drawn:
        grid = drawn.subplots(len(cells), 1, squeeze=False, sharex=True)
        for axes, (defence, panel) in zip(grid[:, 0], cells.items(), strict=True):
            by_seed = [[panel.get((rule, attack), {}) for attack in attacks] for rule in rules]
            table = [[100 * fmean(own.values()) if own else math.nan for own in row] for row in by_seed]
            image = axes.imshow(table, vmin=0, vmax=100, cmap="viridis", aspect="auto")
            for i, row in enumerate(table):
                for j, value in enumerate(row):
                    shade = "white" if value < 44 else "black"  # what contrasts more with viridis
                    lacks = by_seed[i][j].keys() != every
                    text = "–" if math.isnan(value) else written(value, 0) + "†" * lacks
                    axes.text(j, i, text, ha="center", va="center", fontsize=6, color=shade)
            axes.set_yticks(range(len(rules)), list(rules.values()))
            axes.set_xticks(range(len(attacks)), labels, rotation=45, ha="right")
            if len(cells) > 1:
                axes.set_title(titles[defence], fontsize=8)
        drawn.colorbar(image, ax=grid[:, 0].tolist(), label="accuracy (%)", shrink=0.8)
        drawn.suptitle(above, fontsize=9)
    return len(cells)


# critical differences -------------------------------------------------------------------------------


def draw_ranks(records: Records, out: Path, title: str, by: str, key: str) -> Omnibus:
    """Average ranks of one axis' values, the methods, joined where Nemenyi's test does not tell them apart at 5 %.

    A block is one combination of everything else (the other axes, threat and attack), averaged over seeds. A value is
    not compared if it lacks a seed that another value of its block has, or if it is flagged, as in the table. Methods
    and blocks that are not ranked for this reason are listed below the figure. Blocks of one scenario share data and
    seeds, so p comes out too small: the figure only describes the scenario. After Demsar, "Statistical comparisons of
    classifiers over multiple data sets" (JMLR 2006). Returns the test with its blocks and how many were left out.
    Raises HarnessError.
    """
    import numpy as np

    from harness.leaderboard.comparisons import compared_mean, complete_blocks
    from harness.leaderboard.ranks import Ranking

    chosen = quantity(key, records)
    if chosen.column.pooling == "claim":
        raise HarnessError(f"{key} is what a training guarantees under every attack alike: it is not ranked")
    distrusted = (
        {MASKED} if chosen.column.family == "evasion" else {VIOLATION} if chosen.key == "audited" else set()
    )
    distrusted |= {CONSTANT} if chosen.column.hollow else set()
    found: dict[tuple[str, ...], dict[str, dict[Any, float]]] = {}
    scored: dict[str, None] = {}
    for record in records:
        value = (record.get("scores") or {}).get(chosen.column.score)
        if record["status"] != "scored" or value is None:
            continue
        if chosen.column.family not in ("any", family(dict(record))):
            continue
        cell = record["cell"]
        place, method = tuple(str(v) for axis, v in cell.items() if axis not in (by, "seed")), str(cell[by])
        scored[method], block = None, found.setdefault(place, {})
        if math.isfinite(value) and not distrusted & {*(record.get("flags") or ())}:
            block.setdefault(method, {})[cell.get("seed")] = float(value)
    blocks = [_complete(block) for block in found.values()]
    methods = list(dict.fromkeys(m for block in blocks for m in block))
    if len(methods) < 2:
        raise HarnessError(f"ranks need two or more values of {by} that have {key}, not {len(methods)}")
    counted = chosen.column.compared
    table = np.array([[compared_mean(counted(block.get(m, math.nan))) for m in methods] for block in blocks])
    kept, dropped = complete_blocks(table)
    if len(kept) < 2:
        raise HarnessError(f"ranks need two or more blocks in which every {by} has {key}, not {len(kept)}")
    one = Ranking(by, chosen.column, title, tuple(methods), tuple(map(str, range(len(kept)))), kept)
    above = [f"{title}: {one.test.test.capitalize()} p = {one.test.p:.2g}; {_claim(one)}", SHARED]
    beneath = [f"average rank by {chosen.header} over {len(kept)} blocks (1 is best)"]
    names = kept_apart(scored, 40)
    if told := _not_ranked([names[m] for m in scored if m not in methods], dropped):
        beneath.append(f"without a value to compare, and so not ranked: {told}")
    above, beneath = ([line for text in texts for line in _wrapped(text)] for texts in (above, beneath))
    step = max(0.2, 0.12 * max(names[method].count("\n") + 1 for method in methods))
    with figure(out, WIDTH, 1.2 + step * len(methods) + 0.14 * (len(above) + len(beneath) - 3)) as drawn:
        axes = drawn.subplots()
        axes.spines[["left", "right", "top"]].set_visible(False)  # names may reach beyond them
        order = np.argsort(one.ranks, kind="stable")
        for height, position in enumerate(order):
            rank = float(one.ranks[position])
            axes.plot([1, rank], [height, height], color="#cccccc", linewidth=0.6, zorder=1)
            axes.plot(rank, height, marker="o", color=COLOURS[0], markersize=4)
            axes.annotate(
                f"{names[methods[position]]}  {written(rank, 2)}", (rank, height),
                textcoords="offset points", xytext=(6, 0), fontsize=7, va="center",
            )  # fmt: skip
        for number, group in enumerate(one.groups):
            ends = [float(one.ranks[i]) for i in group]
            below = len(methods) - 0.3 + 0.35 * number
            axes.plot([min(ends), max(ends)], [below, below], color="black", linewidth=2)
        axes.set_xlim(0.9, len(methods) + 0.9)
        axes.set_ylim(len(methods) - 0.4 + 0.35 * len(one.groups), -0.6)
        axes.set_yticks([])
        drawn.supxlabel("\n".join(beneath), fontsize=8)  # in the middle of the figure, which names make wider
        drawn.suptitle("\n".join(above), fontsize=7)
    return one.test._replace(dropped=dropped)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, LINE, break_on_hyphens=False)


def _not_ranked(methods: Sequence[str], blocks: int) -> str:
    """What is not ranked, as in `crfl anywhere, some method in 2 blocks`; empty where everything is."""
    told = [f"{method} anywhere" for method in methods]
    return ", ".join(told + [f"some method in {count_of(blocks, 'block')}"] * bool(blocks))


def _complete(block: Mapping[str, Mapping[Any, float]]) -> dict[str, float]:
    """The mean over seeds of each method that has all seeds of the block."""
    seeds = {seed for own in block.values() for seed in own}
    return {method: fmean(own.values()) for method, own in block.items() if own.keys() == seeds}


def _claim(ranking: Any) -> str:
    if not ranking.differs:
        return "the order may be chance"
    if len(ranking.methods) == 2:
        return "the two differ"
    return f"bars join what Nemenyi's test at 5 % does not tell apart (CD {written(ranking.critical_difference, 2)})"
