"""From run and study folders to one report page and tables on the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pydantic

from expunge.api.record import CellRecord
from expunge.core.errors import DataError, UsageError


def read_cells(run: Path) -> list[CellRecord]:
    """The records of a folder that `expunge unlearn` wrote, of a cells.json file, or of a study folder."""
    if run.is_dir() and not (run / "cells.json").exists():
        from expunge.bench.run import cells

        if (run / "settings.json").exists():
            raise UsageError(f"{run} holds no measured result; name a folder of a finished `unlearn` or of `run`.")
        return list(cells(run))
    path = run / "cells.json" if run.is_dir() else run
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
        return [CellRecord.model_validate(item) for item in loaded]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); name a folder of `unlearn` or `run`.") from None
    except (ValueError, TypeError, pydantic.ValidationError) as error:
        raise DataError(f"{path} holds no records of Expunge ({str(error).splitlines()[0]}).") from None


def write_report(runs: Sequence[Path], out: Path) -> None:
    """One self-contained page about all records of the given folders."""
    from expunge import report

    report.build([cell for run in runs for cell in read_cells(run)], out)
