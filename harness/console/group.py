"""The `harness` command group: hints for mistyped commands, and subcommands of plugins, loaded only when needed.

Contexts and commands are Any: newer releases of Typer carry their own copy of Click, older ones depend on it.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from functools import cache
from typing import Any

import typer
from typer.core import TyperGroup

from harness.errors import HarnessError, PluginError, did_you_mean


class NearMisses(TyperGroup):
    """For an unknown command, names the nearest ones, or else those that there are."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            hint = did_you_mean(args[0], self.list_commands(ctx), all_below=24)
            ctx.fail(f"unknown command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)


class HarnessGroup(NearMisses):
    """Built-in commands first: none of them waits for plugins to load, and no plugin can replace one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for command in self.commands.values():
            for own in [command, *getattr(command, "commands", {}).values()]:
                own.help = flowing(own.help)

    def get_command(self, ctx: Any, cmd_name: str) -> Any | None:
        return super().get_command(ctx, cmd_name) or plugin_commands(frozenset(self.commands)).get(cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        return [*self.commands, *plugin_commands(frozenset(self.commands))]

    def invoke(self, ctx: Any) -> Any:
        """Prints `interrupted` on Ctrl-C, where Typer would silently exit with 130.

        A command that has more to say about it does not let KeyboardInterrupt get here. Raises HarnessError where a
        plugin called sys.exit: its status, often 0, would be taken for the command's.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(130) from None
        except SystemExit as error:
            if ctx.invoked_subcommand not in self.commands:
                raise  # a plugin's own command may end the program
            raise HarnessError(_ended_by(error)) from error


def _ended_by(error: SystemExit) -> str:
    """Who called sys.exit, and where."""
    who = " ".join(getattr(error, "raised_by", ("a plugin or a library",)))
    # The functions `exit` and `quit` are Python code of its own, without a file.
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    last = frames[-1]
    return (
        f"{who} ended the program with sys.exit({'' if error.code is None else repr(error.code)}), at "
        f"{last.filename}:{last.lineno}; a plugin says what is wrong by raising PluginError"
    )


def flowing(text: str | None) -> str | None:
    """Help with each paragraph on one line, so that it wraps at the terminal's width; examples keep their lines."""
    if text is None:
        return None
    paragraphs = text.split("\n\n")
    return "\n\n".join(p if p.startswith("Example") else " ".join(p.split()) for p in paragraphs)


@cache
def plugin_commands(taken: frozenset[str]) -> dict[str, Any]:
    """Name -> command from every harness_commands hook; a plugin whose hook fails is named on stderr."""
    from harness import entry_points

    if not entry_points.others_offer():
        return {}  # this package's own commands need no hook: nothing to load
    from harness.registry import registry

    loaded = registry()
    found: dict[str, Any] = {}
    before = len(loaded.disabled)

    def add(hook: Callable[..., object], distribution: str) -> None:
        # Each gets an application of its own, so that one that fails half-way leaves nothing behind.
        cli: Any = typer.Typer()
        hook(cli)
        own = typer.main.get_group(cli).commands if cli.registered_commands or cli.registered_groups else {}
        for name in own:
            if name in taken or name in found:
                raise PluginError(f"the command {name!r} exists already")
        found.update(own)

    loaded.add_commands(add)
    for item in loaded.disabled[before:]:
        print(f"warning: plugin {item.distribution}:{item.name}: {item.reason}", file=sys.stderr)
    return found
