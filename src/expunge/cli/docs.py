"""`expunge docs`: the pages of the documentation, which case files refer to, wherever Expunge is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import expunge
from expunge.cli import console
from expunge.core.errors import ExpungeError, unknown


def docs(page: str) -> None:
    """Print a page as it is written (Markdown); without a name, list them with their titles."""
    found = pages()
    if not page:
        for name, path in found.items():
            console.out().print(f"{name:<20} {_title(path)}", soft_wrap=True)
        return
    name = page.removeprefix("docs/").removesuffix(".md")
    if name not in found:
        raise unknown("page", name[:40], found)
    sys.stdout.write(found[name].read_text(encoding="utf-8"))


def pages() -> dict[str, Path]:
    """Name -> file, from the installed package, or from the repository that it is run from.

    Raises:
        ExpungeError: If neither has them.
    """
    package = Path(expunge.__file__).parent
    for folder in (package / "docs", package.parent.parent / "docs"):
        found = {path.stem: path for path in sorted(folder.glob("*.md"))}
        if found:
            return found
    raise ExpungeError("the documentation is not part of this installation; install Expunge again.")


def _title(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
