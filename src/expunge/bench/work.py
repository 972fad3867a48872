"""What a worker does with its cells. Importing this module loads all that a cell needs (the fork server does it once).

Without the preloading every worker would pay seconds: scikit-learn, and the compiler that torch's first optimiser
imports.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import sklearn.linear_model
import sklearn.model_selection  # noqa: F401  # loaded for all workers, see above
import torch._dynamo  # noqa: F401  # as above

from expunge.bench.cells import expand
from expunge.bench.reading import parse_study
from expunge.bench.store import CellStore
from expunge.bench.workbench import Workbench
from expunge.core.errors import ExpungeError
from expunge.core.run import Progress
from expunge.data.cache import cache_root


def run_cells(
    study: str,
    folder: Path,
    cell_ids: Sequence[str],
    progress: Callable[[Progress], None] | None,
    tick: Callable[[], None],
) -> None:
    """Run the cells that are not done; a cell that fails is recorded with its sentence and the rest goes on."""
    recipe = parse_study(json.loads(study))
    bench = Workbench(recipe, cache_root(), progress, folder=folder)
    by_id = {cell.id: cell for cell in expand(recipe, bench.fingerprint())}
    store = CellStore(folder)
    try:
        states = store.states()
        for cell in cell_ids:
            if states.get(cell) in ("done", "failed"):
                continue
            if cell not in by_id:
                raise ExpungeError("the data or a file of the recipe changed while the study ran; start it again.")
            store.start(cell)
            record = bench.attempt(by_id[cell])
            if isinstance(record, str):
                store.fail(cell, record)
            else:
                store.finish(cell, record)
            store.keep_stages(bench.stages)
            bench.stages.clear()
            tick()
    finally:
        store.close()
