"""`harness init`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from harness.starter_draft import Draft

Text = Optional[str]  # noqa: UP045
Whole = Optional[int]  # noqa: UP045
Number = Optional[float]  # noqa: UP045

QUESTIONS = {
    "data": "Data: a data set's name, an .npz, .parquet or .csv file, or a folder of images",
    "model": "Model",
    "clients": "Clients",
    "rounds": "Rounds",
    "epsilon": "Privacy budget epsilon per record (0: no privacy)",
    "threats": "Threats: all, none, or some of evasion, byzantine, backdoor, privacy",
    "device_bytes": "Largest model file that fits the device, in bytes (0: no limit)",
    "seeds": "Seeds",
}


def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The scenario to write.")] = Path(
        "scenario.yaml"
    ),
    data: Annotated[
        Text,
        typer.Option(
            metavar="NAME|PATH", help="A data set, an .npz, .parquet or .csv file, or a folder of images."
        ),
    ] = None,
    model: Annotated[
        Text, typer.Option(metavar="NAME", help="A model's name; auto: chosen by the data.")
    ] = None,
    clients: Annotated[Whole, typer.Option(min=2, help="Number of clients.")] = None,
    rounds: Annotated[Whole, typer.Option(min=1, help="Number of rounds.")] = None,
    epsilon: Annotated[
        Number, typer.Option(min=0, help="Privacy budget per record; 0 for no privacy.")
    ] = None,
    threats: Annotated[
        Text,
        typer.Option(metavar="LIST", help="all, none, or some of evasion, byzantine, backdoor, privacy."),
    ] = None,
    device_bytes: Annotated[
        Whole, typer.Option(min=0, help="Largest model file that fits the device, in bytes; 0: no limit.")
    ] = None,
    seeds: Annotated[Whole, typer.Option(min=1, help="Number of seeds: 0, 1, ...")] = None,
    name: Annotated[Text, typer.Option(help="The scenario's name; default: the file's.")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing; use defaults for all options not given.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a commented scenario from a few answers, asked on a terminal or given as options.

    Nothing is written unless the scenario is valid and its data can be read. Without a terminal, as in a script,
    --data or --yes is required.

    Example: harness init mine.yaml --data xrays.npz --epsilon 4 --threats evasion,privacy --yes
    """
    from harness.errors import HarnessError
    from harness.starter import Answers, check_target, patients, write_scenario
    from harness.starter_draft import read_answer

    check_target(file, force=force)
    options = {
        "data": data, "model": model, "clients": clients, "rounds": rounds, "epsilon": epsilon,
        "threats": threats, "device_bytes": device_bytes, "seeds": seeds,
    }  # fmt: skip
    given = {field: value for field, value in options.items() if value is not None}
    splits = None
    if yes or not (sys.stdin.isatty() and sys.stdout.isatty()):
        if not yes and data is None:
            raise HarnessError(
                "there is no terminal to ask on: give --data, or --yes for the defaults (data set digits)"
            )
        answers = Answers(
            **{field: read_answer(field, str(value)) for field, value in given.items()}, name=name or ""
        )
    else:
        draft = _asked(file, name or "", given)
        answers, splits = draft.answers, draft.splits
    write_scenario(answers, file, force=force, splits=splits)
    if shared := patients(answers):
        typer.echo(
            f"{shared.said}: if these are patients, add groups: '{shared.pattern}' to the dataset, so that no patient "
            "is in two splits"
        )
    typed = shlex.quote(str(file))
    typer.echo(f"wrote {file}; next: harness plan {typed}, then harness run {typed}")


def _asked(file: Path, name: str, given: dict[str, Any]) -> Draft:
    """A draft of the options that were given and of answers to the questions that are left."""
    from harness.errors import HarnessError
    from harness.starter import Answers, known
    from harness.starter_draft import Draft

    draft, fresh = Draft(file, name), Answers()
    for field, value in given.items():
        try:
            draft.take(field, value)
        except HarnessError as error:  # raised before anything is asked, since no answer would help
            raise HarnessError(f"--{field.replace('_', '-')} {value}: {error}") from None
    typer.echo(f"data sets: {', '.join(known('dataset'))}; models: {', '.join(known('model'))}")
    proposed = {"model": "auto", "threats": "all", "epsilon": f"{fresh.epsilon:g}"}
    try:
        for field, question in QUESTIONS.items():
            if field not in given:
                _ask(draft, field, question, proposed.get(field, str(getattr(fresh, field))))
    except typer.Abort:  # Ctrl-C ends with 130, as it does in every other command
        typer.echo("\ninterrupted: nothing was written", err=True)
        raise typer.Exit(130) from None
    return draft


def _ask(draft: Draft, field: str, question: str, default: str) -> None:
    """Asks until the answer can be used."""
    from harness.errors import HarnessError

    while True:
        text = typer.prompt(question, default=default, type=str)
        try:
            return draft.take(field, text)
        except HarnessError as error:
            typer.echo(f"  {error}")
