"""The command line's arguments and options: type, help and how they are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from harness.console.machine import for_machines
from harness.errors import HarnessError

# Typer reads these when a command is built; `Optional` is the form that every version of it knows.
Scenarios = Annotated[
    list[str], typer.Argument(metavar="SCENARIO...", help="YAML files, folders of them, or quoted patterns.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N; auto uses the GPUs if there are any.")]
Jobs = Annotated[
    str, typer.Option(metavar="auto|N", help="Worker processes; 0 runs everything in this process.")
]


def folder(text: str | Path) -> Path:
    """A folder as it was given. Raises HarnessError for an empty text, which an unset shell variable leaves."""
    if not str(text):
        raise HarnessError("a folder is needed for the store, not an empty text, e.g. --store runs")
    return Path(text)


Store = Annotated[
    Path,
    typer.Option(
        parser=folder, metavar="PATH", help="Folder of results; results in it are not computed again."
    ),
]
Select = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        metavar="AXIS=GLOB,...",
        help="Only cells whose labels match; axes: defence, aggregator, compressor, threat, attack, seed. "
        "Repeat to narrow further.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would run, as `plan` does.")]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="Stop at the first failed stage.")]
Timeout = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(metavar="SECONDS", help="Fail any stage that takes longer."),
]
Executor = Annotated[
    str,
    typer.Option(metavar="local|ray", help="Where stages run: on this machine, or on a Ray cluster."),
]
Address = Annotated[
    str,
    typer.Option(
        metavar="auto|HOST:PORT|ray://HOST:PORT",
        help="The Ray cluster; auto: the one this machine belongs to.",
    ),
]
Artifacts = Annotated[
    str,
    typer.Option(
        metavar="objects|shared",
        help="How models travel on a Ray cluster: through Ray, or through the store's folder if all nodes share it.",
    ),
]
ShardOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Only part I of N of the cells, divided the same way on every machine; see `merge`.",
    ),
]
Export = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(metavar="FILE", help="Also write the results: .jsonl, .csv or .parquet."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; failures are still shown.")]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="Print one JSON value instead of tables.", callback=for_machines, is_eager=True
    ),
]
CheckData = Annotated[bool, typer.Option("--data/--no-data", help="Also load the data and check it.")]
Out = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(metavar="FILE", help="Write here instead of to standard output."),
]
OptionalKind = Annotated[
    Optional[str],  # noqa: UP045
    typer.Argument(metavar="[KIND]", help="One kind only."),
]


def _load(files: Optional[list[str]]) -> Optional[list[str]]:  # noqa: UP045
    """Loads local plugins before the command begins."""
    if files:
        from harness.registry import registry

        for file in files:
            registry().see(registry().load_file(file))
    return files


LocalPlugins = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--plugin",
        metavar="FILE.py",
        callback=_load,
        help="Also load the plugins in this Python file (for development). Repeat for more files.",
    ),
]
Named = Annotated[
    list[str],
    typer.Argument(
        metavar="[KIND] NAME",
        help="A name, alias or package/name. Put the kind in front if several kinds have a plugin of that name.",
    ),
]
