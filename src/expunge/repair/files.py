"""What a repair leaves in its folder, beside the model: the corrected list, tables of samples, a page, numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.core.files import csv_for_people, write_text
from expunge.repair.outcome import Outcome
from expunge.repair.page import build_repair_page
from expunge.repair.words import notes, sentences

LABELS, STILL, NEIGHBOURS = "labels.csv", "still_suspect.csv", "neighbours.csv"
PAGE, RECORD = "repair.html", "repair.json"
FILES = (LABELS, STILL, NEIGHBOURS, PAGE, RECORD)


def write_repair(
    folder: Path,
    repaired: Outcome,
    *,
    title: str,
    facts: Sequence[tuple[str, str]] = (),
    more: Mapping[str, Any] | None = None,
    raw: bool = False,
) -> dict[str, Any]:
    """Write all files and return the record. `repair.json` comes last: where it is, everything is.

    facts: shown on the page. more: goes into the record. raw: text cells of the tables stay as they are, also where a
    spreadsheet would take them for a formula.
    """
    effects = repaired.effects
    for name, table in ((LABELS, repaired.labels()), (STILL, effects.still), (NEIGHBOURS, effects.neighbours)):
        write_text(folder / name, csv_for_people(table, exact=("id", "nearest_suspect"), raw=raw))
    build_repair_page(repaired, folder / PAGE, title=title, facts=facts)
    record = {
        "format": 1,
        "title": title,
        "sentences": sentences(repaired),
        "notes": list(notes(repaired)),
        **(more or {}),
        **{
            key: repaired.result.facts[key] for key in ("action", "method", "options", "learn", "seed", "data", "sizes")
        },
        **effects.details(),
    }
    write_text(folder / RECORD, json.dumps(record, indent=1, default=str) + "\n")
    return record
