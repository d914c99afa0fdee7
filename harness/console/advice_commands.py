"""`harness recommend`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from harness.console.options import AsJson
from harness.leaderboard.columns import BY_KEY

Number = Optional[float]  # noqa: UP045


def _limit(help: str) -> Any:
    return typer.Option(help=help, min=0)


def _bound(text: str) -> tuple[str, float]:
    """`kappa=0.6` as a column's key and a number. Raises HarnessError."""
    from harness.errors import HarnessError

    key, _, number = text.partition("=")
    try:
        return key.strip(), float(number)
    except ValueError:
        raise HarnessError(f"--limit {text}: write COLUMN=BOUND, for example accuracy=0.8") from None


def recommend(
    results: Annotated[
        list[Path], typer.Argument(metavar="STORE|SUBMISSION...", help="Folders of results, or submissions.")
    ],
    max_epsilon: Annotated[Number, _limit("Largest guaranteed epsilon.")] = None,
    protects: Annotated[
        Optional[Literal["record", "client"]],  # noqa: UP045
        typer.Option(help="What --max-epsilon must protect: a record, or a client with all its data."),
    ] = None,
    min_accuracy: Annotated[Number, _limit("Smallest clean accuracy, a share in [0, 1].")] = None,
    min_robust: Annotated[Number, _limit("Smallest accuracy under the worst attack at inference.")] = None,
    min_attacked: Annotated[Number, _limit("Smallest accuracy under the worst Byzantine attack.")] = None,
    max_backdoor: Annotated[Number, _limit("Largest success rate of the worst backdoor.")] = None,
    max_mia: Annotated[Number, _limit("Largest AUC of the best membership inference; 0.5 is chance.")] = None,
    max_bytes: Annotated[Number, _limit("Largest model file, in bytes.")] = None,
    max_uplink: Annotated[Number, _limit("Most bytes that a client sends in a round.")] = None,
    max_latency: Annotated[
        Number, _limit("Most milliseconds per image, on the machine that measured it.")
    ] = None,
    limit: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="COLUMN=BOUND",
            help="Bound on any column of --objective, in the score's own unit: a minimum if higher is better, else a "
            "maximum. Repeat for more.",
        ),
    ] = None,
    objective: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="COLUMN",
            help="What to optimise, the most important first. Repeat for more. Columns: "
            + ", ".join(BY_KEY)
            + "; and scores that other plugins declare, by name.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Rows to show per board.")] = 10,
    as_json: AsJson = False,
) -> None:
    """List the configurations within given limits, the Pareto-optimal ones first.

    There is no single score: * marks rows on the Pareto front of the objectives, among the rows that fit. A value
    meets no limit if it lacks attacks or seeds, if an audit refutes it, or if gradient masking is suspected. Rows whose
    model predicts one class for every test image are left out. Exit status: 0 something fits, 1 nothing does, 2 bad
    input.

    Example: harness recommend runs --max-epsilon 8 --min-accuracy 0.8 --max-bytes 200000
    """
    from harness.console.advice import as_values, render_advice
    from harness.console.output import make_console, print_json
    from harness.errors import HarnessError
    from harness.leaderboard.recommend import Limit, submissions_of
    from harness.leaderboard.recommend import recommend as choose

    given = {
        "--max-epsilon": ("epsilon", max_epsilon),
        "--min-accuracy": ("accuracy", min_accuracy),
        "--min-robust": ("robust", min_robust),
        "--min-attacked": ("byzantine", min_attacked),
        "--max-backdoor": ("backdoor", max_backdoor),
        "--max-mia": ("mia", max_mia),
        "--max-bytes": ("size", max_bytes),
        "--max-uplink": ("uplink", max_uplink),
        "--max-latency": ("latency", max_latency),
    }
    limits = []
    for option, (key, bound) in given.items():
        if bound is not None:
            limits.append(Limit(option, BY_KEY[key], bound, protects if key == "epsilon" else None))
    if protects is not None and max_epsilon is None:
        raise HarnessError(f"--protects {protects} says whose epsilon counts: give --max-epsilon too")
    bounds = [_bound(text) for text in limit or ()]
    distinct = {path.resolve(): path for path in results}.values()
    submissions = [one for path in distinct for one in submissions_of(path)]
    advice = choose(submissions, limits, objective or (), bounds)
    if as_json:
        print_json([as_values(one, top) for one in advice])
    else:
        console = make_console()
        for one in advice:
            render_advice(one, top, console)
    if not any(one.suggestions for one in advice):
        print("nothing fits", file=sys.stderr)
        raise typer.Exit(1)
