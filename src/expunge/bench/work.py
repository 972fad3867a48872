"""What a worker does with its cells. Importing this module loads all that a cell needs (the fork server preloads it)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import sklearn.linear_model
import sklearn.model_selection  # noqa: F401  # loaded before forking, once for all workers
import torch._dynamo  # noqa: F401  # the first optimiser imports it: five seconds, better spent once

from expunge.api import evaluate, unlearn  # noqa: F401  # as above
from expunge.bench.cells import Workbench, cells
from expunge.bench.recipe import parse_study
from expunge.bench.store import Store
from expunge.core.errors import ExpungeError
from expunge.core.run import Progress
from expunge.data.cache import cache_root


def run_cells(
    study: str,
    folder: Path,
    wanted: Sequence[str],
    progress: Callable[[Progress], None] | None,
    tick: Callable[[], None],
) -> None:
    """Run the cells that are not done; a cell that fails is recorded with its sentence and the rest goes on."""
    recipe = parse_study(json.loads(study))
    bench = Workbench(recipe, cache_root(), progress)
    by_id = {cell.id: cell for cell in cells(recipe, bench.fingerprint())}
    store = Store(folder)
    try:
        for cell in wanted:
            if store.states().get(cell) == "done":
                continue
            store.start(cell)
            try:
                record = bench.record(by_id[cell])
            except ExpungeError as error:
                store.fail(cell, str(error))
            except Exception as error:  # noqa: BLE001  # one broken cell must not cost a study its other cells
                store.fail(cell, f"{type(error).__name__}: {error}")
            else:
                store.finish(cell, record)
            tick()
    finally:
        store.close()
