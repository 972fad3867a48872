"""What the page of one scenario draws: per model and seeds, counts of predictions and sampled losses, as plain JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

from expunge.api.record import CellRecord
from expunge.report.summarise import ORIGINAL, REFERENCE, MethodRow, ScenarioBlock


def drill(block: ScenarioBlock) -> dict[str, Any]:
    """classes: names. forgotten: numbers of the classes that samples to forget have. seeds: their names, in order.

    models: label, kind (before, reference or ""), and per seed: losses (split -> values), confusion (split -> rows of
    true class, predicted class, count). Models without any of it are left out.
    """
    rows = [row for row in block.rows if any(_drawable(cell) for cell in row.cells)]
    cells = [cell for row in rows for cell in row.cells if _drawable(cell)]
    classes = _classes(cells)
    forgotten = {
        at
        for cell in cells
        for at, counts in enumerate(cell.curves.get("confusion", {}).get("forget", ()))
        if any(counts)
    }
    return {
        "classes": classes,
        "forgotten": sorted(forgotten),
        "seeds": list(dict.fromkeys(seed_name(cell) for cell in cells)),
        "models": [_model(row) for row in rows],
    }


def seed_name(cell: CellRecord) -> str:
    """`1`, or `0/1/1/1` where the sources of randomness have seeds of their own."""
    values = [str(seed) for seed in cell.seeds.values()]
    return values[0] if len(set(values)) == 1 else "/".join(values) or "0"


def _drawable(cell: CellRecord) -> bool:
    return bool(cell.curves.get("confusion") or cell.curves.get("losses"))


def _classes(cells: list[CellRecord]) -> list[str]:
    named = next((cell.data["class_names"] for cell in cells if cell.data.get("class_names")), None)
    if named is not None:
        return [str(name) for name in named]
    sizes = [len(counts) for cell in cells for counts in cell.curves.get("confusion", {}).values()]
    return [str(number) for number in range(max(sizes, default=0))]


def _model(row: MethodRow) -> dict[str, Any]:
    return {
        "label": row.label,
        "kind": {ORIGINAL: "before", REFERENCE: "reference"}.get(row.name, ""),
        "seeds": {
            seed_name(cell): {
                "losses": {
                    split: [_short(x) for x in values] for split, values in cell.curves.get("losses", {}).items()
                },
                "confusion": {
                    split: [[int(i), int(j), int(counts[i][j])] for i, j in np.argwhere(np.asarray(counts) > 0)]
                    for split, counts in cell.curves.get("confusion", {}).items()
                },
            }
            for cell in row.cells
            if _drawable(cell)
        },
    }


def _short(loss: float) -> float:
    """Four significant digits: enough for a threshold, half the size of a page. An infinite loss is a large one."""
    return float(f"{min(float(loss), 1e6):.4g}") if loss == loss else 1e6  # NaN is not equal to itself
