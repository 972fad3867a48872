"""`expunge cache ...`: what the cache folder holds, where it came from, and removing it. Done by `core.entries`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.cli import console
from expunge.core.errors import ExpungeError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from expunge.core.entries import Entry

_KINDS = "data | models | rows | attacks | precision | hashes"
Kind = Annotated[list[str] | None, typer.Option("--kind", help=f"Only of this kind; may be repeated: {_KINDS}.")]
Age = Annotated[str | None, typer.Option("--older-than", metavar="AGE", help="Only older ones: 12h, 30d, 4w.")]
Data = Annotated[
    str | None, typer.Option("--data", help="Only made of this data set, by its name in the list; `-`: not known.")
]
By = Annotated[str | None, typer.Option("--by", help='Only made by this command, such as "expunge audit".')]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]

app = typer.Typer(
    name="cache",
    help="What the cache folder holds, where it came from, and removing it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    pretty_exceptions_enable=False,
    epilog="""The folder is $EXPUNGE_CACHE, by default ~/.cache/expunge. What is removed is made again when needed.

Examples:\n
  expunge cache list\n
  expunge cache clean --older-than 30d""",
)


@app.command("list", epilog="Examples: expunge cache list --kind models; expunge cache list --older-than 30d --json")
def list_(kind: Kind = None, older_than: Age = None, data: Data = None, by: By = None, json: Json = False) -> None:
    """Every entry with its size, age and origin, oldest first."""
    root = _root()
    chosen = _chosen(root, kind, older_than, data, by)
    if json:
        console.print_json({"folder": str(root), "entries": [_plain(entry) for entry in chosen]})
        return
    if chosen:
        grid = console.table("entry", "size", "written", "data", "samples", "by", right=("size", "samples"))
        for entry in chosen:
            origin = entry.origin
            grid.add_row(
                entry.name, size(entry.bytes), f"{entry.written_at:%Y-%m-%d %H:%M}",
                "not known" if origin is None else origin.data or "-",
                "" if origin is None or not origin.count else f"{origin.count:,}",
                "" if origin is None else origin.command,
            )  # fmt: skip
        console.out().print(grid)
    console.out().print(f"{_counted(chosen)} in {root}", soft_wrap=True)


@app.command(epilog="Example: expunge cache show models/0123456789ab")
def show(
    entry: Annotated[str, typer.Argument(help="Its name in the list; the first digits of the hash are enough.")],
    json: Json = False,
) -> None:
    """Everything about one entry: its files, and what it was made of."""
    from expunge.core.entries import KINDS

    entries = _named(_root(), entry)
    if json:
        console.print_json(_plain(entries))
        return
    origin = entries.origin
    facts = {
        "entry": f"{entries.kind}/{entries.key}",
        "holds": KINDS[entries.kind],
        "size": size(entries.bytes),
        "written": f"{entries.written_at:%Y-%m-%d %H:%M} UTC",
        "data": "not known" if origin is None else origin.data or "none",
        "samples": "" if origin is None or not origin.count else f"{origin.count:,} ({origin.form})",
        "made by": "" if origin is None else origin.command,
    }
    for name, value in facts.items():
        if value:
            console.out().print(f"{name}: {value}", soft_wrap=True)
    for path in entries.paths:
        console.out().print(f"  {path}", soft_wrap=True)


@app.command(epilog="Examples: expunge cache clean --older-than 30d; expunge cache clean --data faces --yes")
def clean(
    kind: Kind = None,
    older_than: Age = None,
    data: Data = None,
    by: By = None,
    all_: Annotated[bool, typer.Option("--all", help="Everything.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
) -> None:
    """Remove entries by kind, age or origin. Without --yes it lists them and asks; outside a terminal it only lists."""
    from expunge.core.entries import InUse, remove

    if not all_ and kind is None and older_than is None and data is None and by is None:
        raise UsageError("which entries? give --kind, --older-than, --data, --by, or --all.")
    root = _root()
    chosen = _chosen(root, kind, older_than, data, by)
    if not chosen:
        console.out().print("nothing to remove")
        return
    for entry in chosen:
        console.say(f"{entry.name}  {size(entry.bytes)}  {'' if entry.origin is None else entry.origin.data}".rstrip())
    if not yes and not (console.interactive() and console.asked(f"Remove {_counted(chosen)}?")):
        console.out().print(f"nothing removed: {_counted(chosen)} would be; --yes removes them")
        return
    left = []
    for entry in chosen:
        try:
            remove(entry, root)
        except InUse as problem:
            left.append(problem)
            console.say(str(problem))
    console.out().print(
        f"{_counted([entry for entry in chosen if not _there(entry)])} removed from {root}", soft_wrap=True
    )
    if left:
        raise ExpungeError(f"{len(left)} of {len(chosen)} could not be removed; run the same command again later.")


def size(count: int) -> str:
    """Bytes for people.

    >>> size(512), size(2_500_000), size(3_000_000_000)
    ('512 B', '2.5 MB', '3.0 GB')
    """
    for unit, worth in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= worth:
            return f"{count / worth:.1f} {unit}"
    return f"{count} B"


def _root() -> Path:
    from expunge.data.cache import cache_root

    return cache_root()


def _chosen(
    root: Path, kind: Sequence[str] | None, older_than: str | None, data: str | None, by: str | None
) -> list[Entry]:
    from expunge.core.entries import days, entries

    before = None if older_than is None else datetime.now(UTC) - timedelta(days=days(older_than))
    return [
        entry
        for entry in entries(root, kinds=kind or ())
        if (before is None or entry.written_at < before)
        and (data is None or (entry.origin.data if entry.origin is not None else "-") == data)
        and (by is None or (entry.origin is not None and entry.origin.command == by))
    ]


def _named(root: Path, name: str) -> Entry:
    from expunge.core.entries import entries

    parts = name.rpartition("/")
    matches = [
        entry for entry in entries(root) if parts[2] and entry.key.startswith(parts[2]) and parts[0] in ("", entry.kind)
    ]
    if not matches:
        raise UsageError(f"there is no entry {name!r} in {root}; `expunge cache list` names them.")
    if len(matches) > 1:
        names = ", ".join(f"{entry.kind}/{entry.key}" for entry in matches[:5])
        raise UsageError(f"{name!r} is the beginning of {len(matches)} entries; give more of it: {names}.")
    return matches[0]


def _counted(chosen: Sequence[Entry]) -> str:
    count = f"{len(chosen):,} {'entry' if len(chosen) == 1 else 'entries'}"
    return f"{count} ({size(sum(entry.bytes for entry in chosen))})"


def _there(entry: Entry) -> bool:
    return any(path.exists() or path.is_symlink() for path in entry.paths)


def _plain(entry: Entry) -> dict[str, Any]:
    return {
        "kind": entry.kind,
        "key": entry.key,
        "bytes": entry.bytes,
        "written_at": entry.written_at.isoformat(),
        "origin": None if entry.origin is None else asdict(entry.origin),
        "paths": [str(path) for path in entry.paths],
    }
