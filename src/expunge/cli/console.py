"""Where words go: results to stdout, everything else (progress, errors) to stderr. Plain text outside a terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.table import Table

    from expunge.core.run import Progress

SECONDS_BETWEEN_LINES = 2.0  # outside a terminal, long work writes a line this often at most


@dataclass
class ConsoleSettings:
    """Global options, allowed anywhere on the command line."""

    quiet: bool = False
    debug: bool = False


settings = ConsoleSettings()


def out() -> Console:
    """A console on stdout, without markup."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def err() -> Console:
    """A console on stderr, without markup."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def say(text: str) -> None:
    """A remark for the person who waits; not part of the result."""
    if not settings.quiet:
        err().print(text, soft_wrap=True)


def interactive() -> bool:
    """Whether somebody can answer."""
    return sys.stdin.isatty() and sys.stderr.isatty() and not settings.quiet


def asked(question: str) -> bool:
    """Yes or no from the terminal; anything but yes is no."""
    err().print(f"{question} [y/N] ", end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def print_json(value: Any) -> None:
    """Print a value as JSON to stdout."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def table(*headers: str, right: tuple[str, ...] = (), title: str | None = None) -> Table:
    """An empty table that folds words and never cuts them."""
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for header in headers:
        grid.add_column(header, justify="right" if header in right else "left", overflow="fold")
    return grid


@contextmanager
def progress() -> Iterator[Callable[[Progress], None] | None]:
    """A callback for `Run.progress`: bars in a terminal, a line now and then elsewhere, nothing when quiet."""
    if settings.quiet:
        yield None
    elif err().is_terminal:
        with _bars() as report:
            yield report
    else:
        yield PlainProgress()


@contextmanager
def _bars() -> Iterator[Callable[[Progress], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}", style="dim"),
    )
    with Bars(*columns, console=err(), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(event: Progress) -> None:
            if event.what not in tasks:
                tasks[event.what] = bars.add_task(_what(event), total=event.total, numbers="")
            bars.update(tasks[event.what], completed=event.done, total=event.total, numbers=_numbers(event))

        yield report


class PlainProgress:
    """One line per event, at most one every few seconds, and always the last."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, event: Progress) -> None:
        now = time.monotonic()
        if event.done < event.total and now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        err().print(f"{_what(event)} {event.done}/{event.total} {_numbers(event)}".rstrip(), soft_wrap=True)


def _what(event: Progress) -> str:
    """`retrain: train` as it is; `train: train` once."""
    first, _, second = event.what.partition(": ")
    return first if first == second else event.what


def _numbers(event: Progress) -> str:
    """At most two numbers: more do not fit beside a bar."""
    texts = [f"{name} {value:.3g}" for name, value in event.numbers.items() if name != "lr"]
    return "  ".join(texts[:2])
