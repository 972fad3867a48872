"""Commands whose options come from validated settings classes are built when they are called, not when listed.

Importing pydantic's core costs as much as everything else `expunge --help` does.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

_COMMANDS = ("train", "unlearn", "evaluate", "audit", "memorise", "repair", "init")
HOMES = dict.fromkeys(_COMMANDS, "expunge.cli.work")


class LazyGroup(TyperGroup):
    """Lists stand-ins, which have a name and a help line, and resolves them to the real commands."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Load the command only when it is called."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in HOMES and command is not None:
            application = typer.Typer(rich_markup_mode=None, add_completion=False)
            import_module(HOMES[name]).register(application, name)
            real = typer.main.get_command(application)
            real.name, real.help = name, command.help
            return name, real, rest
        return name, command, rest
