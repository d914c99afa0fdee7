"""`harness init`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

Text = Optional[str]  # noqa: UP045
Whole = Optional[int]  # noqa: UP045
Number = Optional[float]  # noqa: UP045


def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The scenario to write.")] = Path(
        "scenario.yaml"
    ),
    data: Annotated[
        Text,
        typer.Option(
            metavar="NAME|PATH", help="A data set, an .npz or .parquet file, or a folder of images."
        ),
    ] = None,
    model: Annotated[Text, typer.Option(metavar="NAME", help="A model's name; auto: by the data.")] = None,
    clients: Annotated[Whole, typer.Option(min=2, help="Clients of the federation.")] = None,
    rounds: Annotated[Whole, typer.Option(min=1, help="Rounds of the federation.")] = None,
    epsilon: Annotated[Number, typer.Option(min=0, help="Privacy budget of each record; 0 for none.")] = None,
    threats: Annotated[
        Text, typer.Option(metavar="LIST", help="all, none, or some of evasion,byzantine,backdoor,privacy.")
    ] = None,
    device_bytes: Annotated[
        Whole, typer.Option(min=0, help="Room for the model on the device, in bytes; 0: as much as it takes.")
    ] = None,
    seeds: Annotated[Whole, typer.Option(min=1, help="Seeds to run, from 0 on.")] = None,
    name: Annotated[Text, typer.Option(help="The scenario's name; the file's where not given.")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Ask nothing: defaults for what is not given.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a commented scenario from a few answers, asked on a terminal, or given as options.

    The scenario is valid and its data can be read, or nothing is written.

    Example: harness init mine.yaml --data xrays.npz --epsilon 4 --threats evasion,privacy --yes
    """
    from harness.errors import HarnessError
    from harness.starter import Answers, known, parse_threats, write_scenario

    if file.exists() and not force:
        raise HarnessError(f"{file} is there already; give --force to replace it, or another file")
    asking = not yes and sys.stdin.isatty() and sys.stdout.isatty()

    def answer(given: Any, question: str, default: Any) -> Any:
        if given is not None or not asking:
            return default if given is None else given
        return typer.prompt(question, default=default, type=type(default))

    fresh = Answers()
    if asking:
        typer.echo(f"data sets: {', '.join(known('dataset'))}; models: {', '.join(known('model'))}")
    answers = Answers(
        data=answer(data, "Data: a name, an .npz or .parquet file, or a folder of images", fresh.data),
        model=_model(answer(model, "Model", "auto")),
        clients=answer(clients, "Clients", fresh.clients),
        rounds=answer(rounds, "Rounds", fresh.rounds),
        epsilon=answer(epsilon, "Privacy budget epsilon of each record (0: none)", fresh.epsilon),
        threats=parse_threats(
            answer(threats, "Threats: all, none, or some of evasion,byzantine,backdoor,privacy", "all")
        ),
        device_bytes=answer(
            device_bytes, "Room for the model on the device in bytes (0: any)", fresh.device_bytes
        ),
        seeds=answer(seeds, "Seeds", fresh.seeds),
        name=name or "",
    )
    write_scenario(answers, file, force=force)
    typed = shlex.quote(str(file))
    typer.echo(f"wrote {file}; next: harness plan {typed}, then harness run {typed}")


def _model(text: str) -> str:
    return "" if text == "auto" else text
