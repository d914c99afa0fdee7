"""`harness leaderboard`: makes submissions, checks them, re-runs and compares them, and builds the pages."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from harness.console.options import Device, Jobs, LocalPlugins, Quiet
from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.leaderboard.submission import Submission, Verification

leaderboard = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Make, check, verify and compare submissions, and build the published leaderboard.\n\n"
    "Example: harness leaderboard check leaderboard/records/*.json",
)

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Submissions, JSON files.")]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that holds `records`.")]


@leaderboard.command()
def submit(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder of results.")],
    scenario: Annotated[str, typer.Option(metavar="FILE", help="The YAML file that was run.")],
    name: Annotated[str, typer.Option(help="The submission's name: letters, digits, '-', '_', '.'.")],
    authors: Annotated[str, typer.Option(help="Who submits it.")] = "",
    url: Annotated[str, typer.Option(help="Where to read more: a paper, a repository.")] = "",
    note: Annotated[str, typer.Option(help="What readers should know.")] = "",
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the file goes.")] = Path(
        "leaderboard/records"
    ),
    unofficial: Annotated[
        bool, typer.Option("--unofficial", help="Write the file even if it cannot be official.")
    ] = False,
    plugins: LocalPlugins = None,
) -> None:
    """Write a scenario's results from a store as one JSON file, for a pull request.

    Results are official if they cover every cell and come from one clean commit of the engine, one set of plugins and
    libraries, one device and one data set. Failed cells are named, not hidden.

    Example: harness leaderboard submit runs --scenario scenarios/privacy.yaml --name baselines
    """
    from harness.console.output import count_of
    from harness.database import is_store
    from harness.leaderboard.check import beside
    from harness.leaderboard.other_code import other_code
    from harness.leaderboard.publishable import cell_name
    from harness.leaderboard.submission import file_name, write
    from harness.leaderboard.submit import collect
    from harness.registry import registry
    from harness.scenario import load
    from harness.store import Store

    if out.suffix == ".json" and not out.is_dir():
        raise HarnessError(
            f"--out takes a folder, not the file {out}: a submission's file is named after its board and --name"
        )
    loaded = load(scenario)
    if not is_store(store):
        command = shlex.join(["harness", "run", scenario, "--store", str(store)])
        raise HarnessError(f"{store} is no store; run the scenario first: {command}")
    with Store.reading(store) as opened:
        made = collect(opened.records(loaded.name), loaded, name=name, authors=authors, url=url, note=note)
    if not made.official and not unofficial:
        reasons = "; ".join(made.unofficial_because)
        raise HarnessError(
            f"{name} cannot be official: {reasons}; give --unofficial to write it as unofficial"
        )
    path = out / file_name(made.name, made.scenario)
    if conflicts := beside(made, path):
        raise HarnessError("\n".join(f"{path}: {text}" for text in conflicts))
    done = "replaced" if path.exists() else "wrote"
    write(made, path)
    scored, failed = sum(cell.scored for cell in made.cells), sum(cell.failed for cell in made.cells)
    counts = f"{count_of(scored, 'cell')} scored, {count_of(failed, 'cell')} failed"
    typer.echo(f"{done} {path}: {counts}, {'official' if made.official else 'unofficial'}")
    with registry().seeing(loaded.files):
        changes = other_code(made, "the records")
    for changed in changes:
        print(f"note: {changed}; the file describes the code of the records, not this code", file=sys.stderr)
    for reason in made.unofficial_because:
        typer.echo(f"unofficial: {reason}")
    for cell in made.cells:
        for number, seed in cell.seeds.items():
            if seed.error is not None:
                typer.echo(f"failed: {cell_name(cell.axes, number)}: {seed.error}")
    typer.echo(
        f"next: {shlex.join(['harness', 'leaderboard', 'check', str(path)])}, and a pull request with the file"
    )


@leaderboard.command()
def check(files: Files) -> None:
    """Check submissions without training: format, name, scenario, and whether a run can have produced their numbers.

    What no clean run can produce is an error in an official file, and a note in any other. A score that was changed
    within its possible range passes: only `verify`, which re-runs cells, can find that.

    Exit status: 0 all valid, 2 some are not.

    Example: harness leaderboard check leaderboard/records/*.json
    """
    from harness.leaderboard.check import check as examine

    found = examine(files)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    if found.problems:
        raise HarnessError("\n".join(found.problems))
    for path, submission in found.submissions.items():
        typer.echo(f"{path}: ok, {'official' if submission.official else 'unofficial'}")


@leaderboard.command()
def verify(
    records: Files,
    sample: Annotated[
        int, typer.Option(min=1, help="Cells to re-run per file; one seed per combination.")
    ] = 3,
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help="Seed that draws the cells; default: a random one, so that nobody can predict them."
        ),
    ] = None,
    device: Device = "auto",
    jobs: Jobs = "auto",
    data_root: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FOLDER", help="Where relative data paths are looked up first."),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write/--no-write", help="Write the verdict into the file.")
    ] = True,
    quiet: Quiet = False,
    plugins: LocalPlugins = None,
) -> None:
    """Re-run some cells of submissions with what is installed here, and compare every number.

    A submission's scenario decides what is run: look at it first. If a plugin's code here differs from the file's,
    nothing in the file is verified, and the verdict is other-code.

    Exit status: 0 all verified, 1 some diverged or ran other code, 2 bad input.

    Example: harness leaderboard verify leaderboard/records/quickstart-v1--baselines.json --sample 5
    """
    import secrets

    from harness.console.arguments import parse_jobs
    from harness.console.output import make_console
    from harness.console.progress import make_observer
    from harness.leaderboard.submission import read
    from harness.leaderboard.submission import write as put
    from harness.leaderboard.verify import verify as rerun

    workers = parse_jobs(jobs)
    if data_root is not None and not data_root.is_dir():
        raise HarnessError(f"--data-root {data_root}: there is no such folder")
    chosen = secrets.randbelow(2**32) if seed is None else seed
    failed = False
    submissions = [(path, read(path)) for path in records]
    for path, submission in submissions:
        with make_observer(make_console(stderr=True), quiet=quiet) as observer:
            found = rerun(
                submission,
                sample=sample,
                seed=chosen,
                device=device,
                jobs=workers,
                root=data_root,
                observer=observer,
            )
        typer.echo(
            f"{path}: {found.verdict}, {_rerun(submission, found)} run again, drawn by --seed {chosen}"
        )
        for difference in found.differences:
            typer.echo(f"  {difference}")
        failed |= found.verdict != "verified"
        if write:
            put(submission.model_copy(update={"verification": found}), path)
    raise typer.Exit(1 if failed else 0)


def _rerun(submission: Submission, found: Verification) -> str:
    """`2 of 16 cells, one seed of each,`: every seed counts as a cell, as in the output of `submit`."""
    from harness.console.output import count_of

    every = sum(cell.scored for cell in submission.cells)
    seeds = ", one seed of each," * any(cell.scored > 1 for cell in submission.cells)
    return f"{found.cells} of {count_of(every, 'cell')}{seeds}"


@leaderboard.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="FILE", help="A submission.")],
    b: Annotated[
        str, typer.Argument(metavar="B", help="Another submission of the same board, or a row of the first.")
    ],
    other: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(metavar="[ROW]", help="The row to compare the first row with."),
    ] = None,
    score: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Only this score; repeat for more. Times and memory are shown only if named here."),
    ] = None,
) -> None:
    """Put two submissions side by side, or two rows of one: means, difference, paired 95 % interval over seeds.

    A row is `defence / aggregator / compressor`, without the parts that all rows share.

    Example: harness leaderboard compare a.json b.json --score accuracy
    """
    from harness.console.output import count_of, make_console
    from harness.leaderboard.side_by_side import (
        compare_rows,
        compare_submissions,
        identical,
        is_row,
        render_pairs,
    )
    from harness.leaderboard.submission import read

    first = read(a)
    if other is None:
        if not Path(b).exists() and (" / " in b or is_row(first, b)):
            raise HarnessError(
                f"{b!r} is a row: two rows are needed, the one to compare it with comes after it"
            )
        second = read(Path(b))
        pairs = compare_submissions(first, second, score or ())
        if identical(first, second, score or ()):
            what = f"in {', '.join(score)}" if score else "in all scores, but for times and memory"
            every = count_of(sum(len(cell.seeds) for cell in first.cells), "cell")
            typer.echo(f"{a} and {b} are identical {what}: {every} compared")
            return
        names = first.name, second.name
    else:
        pairs = compare_rows(first, b, other, score or ())
        names = b, other
    render_pairs(pairs, *names, make_console())


@leaderboard.command()
def build(
    folder: Folder = Path("leaderboard"),
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="FOLDER", help="Where the pages go; default: FOLDER itself."),
    ] = None,
) -> None:
    """Build the published leaderboard from a folder of submissions.

    Example: harness leaderboard build leaderboard --out public
    """
    from harness.console.output import count_of
    from harness.leaderboard.build import build as make

    if not folder.is_dir():
        raise HarnessError(f"{folder}: there is no such folder")
    facts = make(folder, out)
    for path in facts["written"]:
        typer.echo(f"wrote {path}")
    counts = (count_of(facts[f"{noun}s"], noun) for noun in ("board", "submission", "row", "cell"))
    typer.echo(", ".join(counts))
    for board in facts["superseded"]:
        typer.echo(f"superseded by a newer version: {board}")
    for note in facts["notes"]:
        print(f"note: {note}", file=sys.stderr)
